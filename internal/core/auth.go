package core

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// errPasswordTooLong is bcrypt's bound.
var errPasswordTooLong = fault.New(fault.Invalid, "password is longer than 72 bytes")

const (
	freeFailures   = 5                      // wrong passwords for one user before attempts are slowed down
	firstBackoff   = 200 * time.Millisecond // then, doubling
	longestBackoff = 5 * time.Second
	forgetFailures = 10 * time.Minute
	mostFailures   = 10_000 // user names remembered
)

// passwords hashes and compares, few at a time: bcrypt is slow on purpose, and must not take every processor.
type passwords struct {
	cost  int
	slots chan struct{}
	dummy []byte // hash compared with when there is no such user, so that the answer takes as long

	mu       sync.Mutex
	failures map[string]failure
}

type failure struct {
	count int
	last  time.Time
}

func (c *Core) setupAuth() error {
	p := &c.passwords
	p.cost = c.opt.BcryptCost
	if p.cost == 0 {
		p.cost = bcrypt.DefaultCost
	}
	if p.cost < bcrypt.MinCost || p.cost > bcrypt.MaxCost {
		return errors.New("core: bcrypt cost is out of range")
	}
	p.slots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	p.failures = map[string]failure{}
	var noise [32]byte
	if err := c.fillRandom(noise[:]); err != nil {
		return err
	}
	var err error
	if p.dummy, err = bcrypt.GenerateFromPassword(noise[:], p.cost); err != nil {
		return err
	}
	c.tokens.ttl, c.tokens.limit, c.tokens.sessions = c.opt.TokenTTL, c.limits.Tokens, map[string]session{}
	c.tokens.jwt, err = parseTokenOptions(c.opt.AuthToken, c.opt.ReadFile)
	return err
}

// enter waits for a free slot.
func (p *passwords) enter(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *passwords) leave() { <-p.slots }

func (p *passwords) hash(ctx context.Context, password string) ([]byte, error) {
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	defer p.leave()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), p.cost)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return nil, errPasswordTooLong
	}
	return hash, err
}

// matches compares; a nil hash costs the same and never matches.
func (p *passwords) matches(ctx context.Context, hash []byte, password string) (bool, error) {
	if err := p.enter(ctx); err != nil {
		return false, err
	}
	defer p.leave()
	against := hash
	if len(against) == 0 {
		against = p.dummy
	}
	return bcrypt.CompareHashAndPassword(against, []byte(password)) == nil && len(hash) > 0, nil
}

// allowed reports whether an attempt for name may be made now.
func (p *passwords) allowed(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failures[name]
	if f.count < freeFailures {
		return true
	}
	wait := longestBackoff
	if shift := f.count - freeFailures; shift < 5 {
		wait = min(firstBackoff<<shift, longestBackoff)
	}
	return now.Sub(f.last) >= wait
}

func (p *passwords) note(name string, good bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if good {
		delete(p.failures, name)
		return
	}
	if len(p.failures) >= mostFailures {
		p.forgetLocked(now)
		if len(p.failures) >= mostFailures {
			return
		}
	}
	p.failures[name] = failure{count: p.failures[name].count + 1, last: now}
}

func (p *passwords) forgetLocked(now time.Time) {
	for name, f := range p.failures {
		if now.Sub(f.last) > forgetFailures {
			delete(p.failures, name)
		}
	}
}

// Authenticate trades a password for a token. An unknown user, a user without password and a wrong password are one answer,
// and take the same work. Who holds a certificate that is never a user gets no token.
func (c *Core) Authenticate(ctx context.Context, who policy.Principal, name, password string) (string, error) {
	if err := c.checkRead(ctx, false); err != nil {
		return "", err
	}
	if err := c.control(who, policy.Authenticate, ""); err != nil {
		return "", err
	}
	if err := c.audit.Err(); err != nil {
		return "", c.unwritable(err)
	}
	for range attempts {
		view := c.authView()
		if !view.Enabled() {
			return "", ErrAuthNotEnabled
		}
		if name == "" {
			return "", state.ErrUserEmpty
		}
		if !c.passwords.allowed(name, c.clock()) {
			c.noteLogin(name, ErrTooManyRequests)
			return "", ErrTooManyRequests
		}
		user, ok := view.User(name)
		var hash []byte
		if ok && !user.NoPassword {
			hash = user.PasswordHash()
		}
		good, err := c.passwords.matches(ctx, hash, password)
		if err != nil {
			return "", err
		}
		now := c.authView()
		if now != view && (!good || !samePassword(now, name, hash)) {
			continue // the password was judged by a user store that is gone
		}
		c.passwords.note(name, good, c.clock())
		if !good {
			c.noteLogin(name, ErrAuthFailed)
			return "", ErrAuthFailed
		}
		token, err := c.issueToken(user, now)
		c.noteLogin(name, err)
		return token, err
	}
	return "", state.ErrAuthOldRevision
}

// AuthStatus says whether user authentication is on, and the revision of the user store.
func (c *Core) AuthStatus(ctx context.Context, who policy.Principal) (enabled bool, revision uint64, err error) {
	err = c.inspect(ctx, who, policy.AuthStatus, "", func(v *state.AuthView) error {
		enabled, revision = v.Enabled(), v.Revision()
		return nil
	})
	return enabled, revision, err
}

// AuthChange changes the user store. Passwords go through UserAdd and ChangePassword.
func (c *Core) AuthChange(ctx context.Context, who policy.Principal, r *state.AuthChange) error {
	if err := c.recordControl(who, r, subjectOf(r)); err != nil {
		return err
	}
	_, err := c.propose(ctx, who, r)
	return err
}

// UserAdd creates a user.
func (c *Core) UserAdd(ctx context.Context, who policy.Principal, name, password string, noPassword bool) error {
	if name == "" {
		return state.ErrUserEmpty
	}
	change := &state.AuthChange{Op: state.UserAdd, User: name, NoPassword: noPassword}
	if noPassword {
		return c.AuthChange(ctx, who, change)
	}
	return c.withPassword(ctx, who, change, password)
}

// ChangePassword gives a user another password. Its tokens end.
func (c *Core) ChangePassword(ctx context.Context, who policy.Principal, name, password string) error {
	return c.withPassword(ctx, who, &state.AuthChange{Op: state.UserChangePassword, User: name}, password)
}

// withPassword hashes, after a look whether who may ask at all, so that nobody else makes the member work.
func (c *Core) withPassword(ctx context.Context, who policy.Principal, change *state.AuthChange, password string) error {
	if err := c.control(who, policy.AuthAdmin, ""); err != nil {
		return err
	}
	hash, err := c.passwords.hash(ctx, password)
	if err != nil {
		return err
	}
	change.Hash = hash
	return c.AuthChange(ctx, who, change)
}

// inspect reads the user store, linearizably.
func (c *Core) inspect(ctx context.Context, who policy.Principal, action policy.Action, subject string, f func(*state.AuthView) error) error {
	if err := c.checkRead(ctx, false); err != nil {
		return err
	}
	err := c.read(who, func(m *state.Machine, who policy.Principal) error {
		if err := m.AuthorizeSubject(who, action, subject); err != nil {
			return err
		}
		return f(m.Auth())
	})
	if err != nil {
		c.refused(who, action.String(), err)
	}
	return err
}

// User returns the roles of a user. A user may ask for itself.
func (c *Core) User(ctx context.Context, who policy.Principal, name string) (roles []string, err error) {
	err = c.inspect(ctx, who, policy.UserRead, name, func(v *state.AuthView) error {
		u, ok := v.User(name)
		if !ok {
			return state.ErrUserNotFound
		}
		roles = u.Roles
		return nil
	})
	return roles, err
}

// Users returns the names of all users.
func (c *Core) Users(ctx context.Context, who policy.Principal) (names []string, err error) {
	err = c.inspect(ctx, who, policy.AuthAdmin, "", func(v *state.AuthView) error { names = v.Users(); return nil })
	return names, err
}

// Role returns the permissions of a role. A user may ask for those it has.
func (c *Core) Role(ctx context.Context, who policy.Principal, name string) (permissions []state.Permission, err error) {
	err = c.inspect(ctx, who, policy.RoleRead, name, func(v *state.AuthView) error {
		p, ok := v.Role(name)
		if !ok {
			return state.ErrRoleNotFound
		}
		permissions = p
		return nil
	})
	return permissions, err
}

// Roles returns the names of all roles.
func (c *Core) Roles(ctx context.Context, who policy.Principal) (names []string, err error) {
	err = c.inspect(ctx, who, policy.AuthAdmin, "", func(v *state.AuthView) error { names = v.Roles(); return nil })
	return names, err
}

// control asks whether who may do something that is not about keys, at the present revision of the user store.
func (c *Core) control(who policy.Principal, action policy.Action, subject string) error {
	err := c.read(who, func(m *state.Machine, who policy.Principal) error {
		return m.AuthorizeSubject(who, action, subject)
	})
	if err != nil {
		c.refused(who, action.String(), err)
	}
	return err
}

// authorizeWatch asks whether who may see the keys of span, at the present revision of the user store. A certificate may
// have become a user since the stream began.
func (c *Core) authorizeWatch(who policy.Principal, space mvcc.SpaceID, span storage.Span) error {
	if who.User() == "" {
		identified, err := c.Identify(who, "")
		if err != nil {
			return err
		}
		who = identified
	}
	return c.read(c.refresh(who), func(m *state.Machine, who policy.Principal) error {
		return m.AuthorizeRead(who, space, span)
	})
}
