package core

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

const (
	tokenLetters  = 24 // of 52: more than 128 bits
	tokenAlphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	// tokenTrust is how long a member believes what another one said about a token that lives there.
	tokenTrust = 5 * time.Second
	tokenAsk   = 2 * time.Second
)

// session is a simple token. It stands for the user as long as its password is the one that the token was given for.
type session struct {
	user    string
	hash    []byte
	expires time.Time
	foreign bool // lives on another member; this is what it said
}

// tokenStore holds simple tokens. A token lives in the memory of the member that gave it, whose id it names: other members
// ask that one, and believe the answer for a moment. With jwt set no token is held at all.
type tokenStore struct {
	jwt   *jwtTokens
	ttl   time.Duration
	limit int

	mu       sync.Mutex
	sessions map[string]session
	sweepAt  time.Time
}

// issue returns a new token for user.
func (c *Core) issueToken(user state.User, view *state.AuthView) (string, error) {
	t := &c.tokens
	if t.jwt != nil {
		return t.jwt.sign(user.Name, view.Revision(), c.clock())
	}
	letters := make([]byte, tokenLetters)
	if err := c.letters(letters); err != nil {
		return "", err
	}
	token := string(letters) + "." + strconv.FormatUint(c.member, 16)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) >= t.limit {
		t.sweepLocked(c.clock())
		if len(t.sessions) >= t.limit {
			return "", ErrTooManyRequests
		}
	}
	t.sessions[token] = session{user: user.Name, hash: user.PasswordHash(), expires: c.clock().Add(t.ttl)}
	return token, nil
}

// letters fills b with letters, each equally likely.
func (c *Core) letters(b []byte) error {
	var raw [64]byte
	for i := 0; i < len(b); {
		if err := c.fillRandom(raw[:]); err != nil {
			return err
		}
		for _, r := range raw {
			if r < 208 && i < len(b) { // 208 = 4 * 52
				b[i] = tokenAlphabet[r%52]
				i++
			}
		}
	}
	return nil
}

// lookup returns the user that a token stands for in view. It lives on for another TTL.
func (t *tokenStore) lookup(token string, view *state.AuthView, now time.Time) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.sessions[token]
	if !ok {
		return "", false
	}
	if !now.Before(s.expires) || !samePassword(view, s.user, s.hash) {
		delete(t.sessions, token)
		return "", false
	}
	if !s.foreign {
		s.expires = now.Add(t.ttl)
		t.sessions[token] = s
	}
	return s.user, true
}

func samePassword(view *state.AuthView, name string, hash []byte) bool {
	u, ok := view.User(name)
	return ok && !u.NoPassword && bytes.Equal(u.PasswordHash(), hash)
}

// review drops the tokens of users who are gone or have another password, and all of them when nobody needs one.
func (t *tokenStore) review(view *state.AuthView) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !view.Enabled() {
		clear(t.sessions)
		return
	}
	for token, s := range t.sessions {
		if !samePassword(view, s.user, s.hash) {
			delete(t.sessions, token)
		}
	}
}

func (t *tokenStore) tick(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !now.Before(t.sweepAt) {
		t.sweepAt = now.Add(t.ttl / 4)
		t.sweepLocked(now)
	}
}

func (t *tokenStore) sweepLocked(now time.Time) {
	for token, s := range t.sessions {
		if !now.Before(s.expires) {
			delete(t.sessions, token)
		}
	}
}

// Identify establishes the user that who acts as: by token, or by the common name of a client certificate. While user
// authentication is off, who stays as it is.
func (c *Core) Identify(who policy.Principal, token string) (policy.Principal, error) {
	g := c.acquire()
	view := g.machine.Auth()
	g.release()
	if !view.Enabled() {
		return who, nil
	}
	if token == "" {
		if _, ok := who.Certificate(); ok && who.Kind() == policy.Holder && !who.IsAdmin() && who.Name() != "" {
			return who.WithUser(who.Name(), view.Revision(), false), nil
		}
		return who, nil
	}
	if c.tokens.jwt != nil {
		user, revision, ok := c.tokens.jwt.verify(token, c.clock())
		if !ok {
			return who, c.badToken(who)
		}
		return who.WithUser(user, revision, true), nil
	}
	user, ok := c.tokens.lookup(token, view, c.clock())
	if !ok {
		var err error
		if user, view, err = c.askForToken(token); err != nil {
			return who, c.badToken(who)
		}
	}
	return who.WithUser(user, view.Revision(), true), nil
}

func (c *Core) badToken(who policy.Principal) error {
	c.refused(who, "token", ErrInvalidToken)
	return ErrInvalidToken
}

var errTokenUnknown = errors.New("token is not known")

// askForToken asks the member that gave a token whom it stands for.
func (c *Core) askForToken(token string) (string, *state.AuthView, error) {
	letters, home, ok := strings.Cut(token, ".")
	member, err := strconv.ParseUint(home, 16, 64)
	if !ok || err != nil || len(letters) != tokenLetters || len(home) > 16 || member == c.member {
		return "", nil, errTokenUnknown
	}
	g := c.acquire()
	_, known := g.machine.Member(member)
	g.release()
	if !known {
		return "", nil, errTokenUnknown
	}
	ctx, cancel := context.WithTimeout(context.Background(), tokenAsk)
	defer cancel()
	answer, err := c.peers.Call(ctx, member, methodToken, []byte(token))
	if err != nil {
		return "", nil, err
	}
	if len(answer) < 8 {
		return "", nil, errMalformedCall
	}
	revision, user := binary.BigEndian.Uint64(answer), string(answer[8:])
	view := c.authView()
	if view.Revision() < revision { // this member is behind the one that asked for the password
		if err := c.linearize(ctx); err != nil {
			return "", nil, err
		}
		view = c.authView()
	}
	u, ok := view.User(user)
	if !ok || u.NoPassword || !view.Enabled() {
		return "", nil, errTokenUnknown
	}
	t := &c.tokens
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) < t.limit {
		t.sessions[token] = session{user: user, hash: u.PasswordHash(), expires: c.clock().Add(tokenTrust), foreign: true}
	}
	return user, view, nil
}

func (c *Core) authView() *state.AuthView {
	g := c.acquire()
	defer g.release()
	return g.machine.Auth()
}

// serveToken answers methodToken: the revision of the user store, and the user that the token stands for.
func (c *Core) serveToken(_ context.Context, from policy.Principal, payload []byte) ([]byte, error) {
	if err := fromPeer(from); err != nil {
		return nil, err
	}
	view := c.authView()
	if view.Enabled() && c.tokens.jwt == nil {
		if user, ok := c.tokens.lookup(string(payload), view, c.clock()); ok {
			return append(binary.BigEndian.AppendUint64(nil, view.Revision()), user...), nil
		}
	}
	return nil, ErrInvalidToken
}

// refresh returns who as of the present revision of the user store. A principal whose user is gone or has another password
// stays as it is, and so does one with a JWT, which is bound to the revision it was signed at.
func (c *Core) refresh(who policy.Principal) policy.Principal {
	if who.User() == "" || who.IsAdmin() || c.tokens.jwt != nil && who.ViaToken() {
		return who
	}
	g := c.acquire()
	defer g.release()
	view := g.machine.Auth()
	if view.Revision() <= who.UserRevision() {
		return who
	}
	if g.machine.AuthorizeSubject(who, policy.UserRead, who.User()) != nil {
		return who
	}
	return who.WithUser(who.User(), view.Revision(), who.ViaToken())
}
