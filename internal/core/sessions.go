package core

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

const (
	sessionPage       = 1024 // rows read at once when leadership is gained
	sessionsPerExpiry = 100  // ended sessions in one proposal: each may hold many locks
	expiriesUnderWay  = 2    // proposals of ended sessions at a time
	expiryWaits       = 500 * time.Millisecond
)

// sessionEnd is the leader's view of one session with a TTL.
type sessionEnd struct {
	id       string
	life     time.Duration // from a renewal to the end: twice the TTL, as in Consul
	expiring bool          // its end is proposed, or was
}

// sessionClock is the leader's clock of Consul's sessions, as the lessor is that of leases: who leads knows when each of
// them ends, nobody else does. It is filled from the rows when leadership is gained, page by page, and thrown away when it
// is lost. A session lives for at least its TTL and at most twice as long after it was created, was renewed, or got a new
// leader.
type sessionClock struct {
	mu       sync.Mutex
	leads    bool
	term     uint64
	loaded   bool
	cursor   string    // loading: the last id that was read
	began    time.Time // loading: sessions live from here on at least
	ends     map[string]*timer[*sessionEnd]
	line     timeline[*sessionEnd]
	expiries int // proposals under way
	retry    time.Time
}

func (k *sessionClock) demoteLocked() {
	k.leads, k.loaded, k.cursor, k.expiries, k.retry = false, false, "", 0, time.Time{}
	k.ends, k.line = map[string]*timer[*sessionEnd]{}, timeline[*sessionEnd]{}
}

// follow starts or stops the clock with the leadership.
func (k *sessionClock) follow(leads bool, term uint64, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if leads == k.leads && (!leads || term == k.term) {
		return
	}
	k.demoteLocked()
	if leads {
		k.leads, k.term, k.began = true, term, now
	}
}

// reload reads everything again: the machine was replaced.
func (k *sessionClock) reload() {
	k.mu.Lock()
	defer k.mu.Unlock()
	leads, began := k.leads, k.began
	k.demoteLocked()
	k.leads, k.began = leads, began
}

// load reads the next page of sessions. It holds the lock meanwhile: an effect of the log must not fall between reading a
// row and taking it in.
func (k *sessionClock) load(read func(after string, limit int) ([]catalog.Session, error)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads || k.loaded {
		return nil
	}
	page, err := read(k.cursor, sessionPage)
	if err != nil {
		return err
	}
	for i := range page {
		if k.ends[page[i].ID] == nil {
			k.addLocked(page[i].ID, page[i].TTL, k.began)
		}
	}
	if len(page) < sessionPage {
		k.loaded = true
	} else {
		k.cursor = page[len(page)-1].ID
	}
	return nil
}

// addLocked starts the clock of a session, if it has a TTL, and returns it.
func (k *sessionClock) addLocked(id, ttl string, now time.Time) *timer[*sessionEnd] {
	d, err := time.ParseDuration(ttl)
	if err != nil || d <= 0 {
		return nil // none; Discover lets nothing in that cannot be parsed
	}
	t := &timer[*sessionEnd]{value: &sessionEnd{id: id, life: 2 * min(d, mostSessionTTL)}, pos: -1}
	t.at = now.Add(t.value.life)
	k.ends[id] = t
	k.line.add(t)
	return t
}

func (k *sessionClock) dropLocked(t *timer[*sessionEnd]) {
	delete(k.ends, t.value.id)
	k.line.remove(t)
}

// affect follows what the log did to sessions.
func (k *sessionClock) affect(effects []state.SessionEffect, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads {
		return
	}
	for _, e := range effects {
		if known := k.ends[e.ID]; known != nil {
			k.dropLocked(known)
		}
		if !e.Ended {
			k.addLocked(e.ID, e.TTL, now)
		}
	}
}

// renew starts a session anew. leads is false if this member does not lead; ok is false if there is no such session, or
// if its end is decided. row tells of a session as this member has applied it.
func (k *sessionClock) renew(id string, now time.Time, row func() (catalog.Session, bool, error)) (ok, leads bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads {
		return false, false, nil
	}
	t := k.ends[id]
	switch {
	case t == nil: // without a TTL, not loaded yet, or unknown
		s, ok, err := row()
		if err == nil && ok {
			k.addLocked(id, s.TTL, now)
		}
		return ok, true, err
	case t.value.expiring:
		return false, true, nil
	}
	k.line.move(t, now.Add(t.value.life))
	return true, true, nil
}

// expired returns the ids for the next proposal, which must be told to settled once it has been decided.
func (k *sessionClock) expired(now time.Time) (ids []string, term uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads || k.expiries >= expiriesUnderWay || now.Before(k.retry) {
		return nil, 0
	}
	for len(ids) < sessionsPerExpiry {
		t := k.line.due(now)
		if t == nil {
			break
		}
		t.value.expiring = true
		ids = append(ids, t.value.id)
	}
	if len(ids) > 0 {
		k.expiries++
	}
	return ids, k.term
}

// settled tells what became of a proposal made of expired. If it certainly has done nothing, the sessions end again
// shortly. If its fate is unknown they are left alone, as leases are: as long as this member leads, what it appended will
// be applied, and the next leader counts afresh.
func (k *sessionClock) settled(ids []string, term uint64, now time.Time, undone bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads || term != k.term {
		return
	}
	k.expiries--
	if !undone {
		return
	}
	k.retry = now.Add(expiryWaits)
	for _, id := range ids {
		if t := k.ends[id]; t != nil && t.value.expiring && t.pos < 0 {
			t.value.expiring = false
			k.line.add(t)
		}
	}
}

// tickSessions ends sessions whose time is over. Nothing happens on a member that does not lead.
func (c *Core) tickSessions(now time.Time) {
	err := c.sessions.load(func(after string, limit int) ([]catalog.Session, error) {
		g := c.acquire()
		defer g.release()
		return catalog.SessionsAfter(g.machine.Engine(), g.machine.Space(mvcc.SpaceCatalog), after, limit)
	})
	if err != nil {
		c.log.Error("sessions cannot be read", "error", err)
	}
	for {
		ids, term := c.sessions.expired(now)
		if len(ids) == 0 {
			return
		}
		r := &state.Discovery{Ops: make([]catalog.Op, len(ids))}
		for i, id := range ids {
			r.Ops[i] = catalog.Op{Verb: catalog.SessionExpire, Session: &catalog.Session{ID: id}}
		}
		c.decree(r, errand{term: term, then: func(res state.Result) {
			out, _ := res.Value.(*catalog.Outcome)
			failed := out != nil && len(out.Failures) > 0
			c.sessions.settled(ids, term, c.clock(), failed || isRefused(res.Err))
			if (failed || res.Err != nil) && !errors.Is(res.Err, ErrStopped) {
				c.log.Warn("sessions whose time is over were not ended", "sessions", len(ids), "error", res.Err)
			}
		}})
	}
}

// RenewSession starts the time of a session anew and returns it. Any member serves it; the leader decides. Who may
// destroy a session may renew it.
func (c *Core) RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error) {
	if err := c.mayRenew(who, id); err != nil {
		return catalog.Session{}, err
	}
	if c.seen.Load().Learner {
		return catalog.Session{}, ErrLearner
	}
	answer, err := c.onLeader(ctx, methodSession, encodeRenewal(id, who), func() ([]byte, error) { return c.renewSessionHere(ctx, who, id) })
	if err != nil {
		c.refused(who, "session renew", err)
		return catalog.Session{}, err
	}
	found, err := catalog.DecodeAnswer(answer)
	if err != nil || len(found.Sessions) != 1 {
		return catalog.Session{}, errMalformedCall
	}
	return found.Sessions[0], nil
}

// mayRenew asks whether who may renew a session.
func (c *Core) mayRenew(who policy.Principal, id string) error {
	destroy := &state.Discovery{Ops: []catalog.Op{{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: id}}}}
	err := c.read(who, func(m *state.Machine, who policy.Principal) error { return m.Authorize(who, destroy) })
	if err != nil {
		c.refused(who, "session renew", err)
	}
	return err
}

// renewSessionHere answers with an encoded catalog.Answer that holds the session.
func (c *Core) renewSessionHere(ctx context.Context, who policy.Principal, id string) ([]byte, error) {
	if err := c.confirm(ctx); err != nil {
		return nil, err
	}
	for caughtUp := false; ; caughtUp = true {
		ok, leads, err := c.sessions.renew(id, c.clock(), func() (catalog.Session, bool, error) { return c.sessionRow(id) })
		if err != nil {
			return nil, err
		}
		if !leads {
			return nil, ErrNotLeader
		}
		row, there := catalog.Session{}, false
		if ok {
			if row, there, err = c.sessionRow(id); err != nil {
				return nil, err
			}
		}
		if there {
			return catalog.AppendAnswer(nil, &catalog.Answer{Index: 1, Sessions: []catalog.Session{row}}), nil
		}
		if caughtUp {
			return nil, ErrSessionNotFound
		}
		// It may have been created through another member, which has applied more than this one.
		if err := c.linearize(ctx); err != nil {
			return nil, err
		}
		if err := c.mayRenew(who, id); err != nil { // what is unknown is everybody's
			return nil, err
		}
	}
}

func (c *Core) sessionRow(id string) (catalog.Session, bool, error) {
	g := c.acquire()
	defer g.release()
	s, err := sightOf(g.machine, catalog.Query{Kind: catalog.QuerySession, Name: id})
	if err != nil || len(s.Sessions) == 0 {
		return catalog.Session{}, false, err
	}
	return s.Sessions[0], true, nil
}

func encodeRenewal(id string, who policy.Principal) []byte {
	b := binary.AppendUvarint(nil, uint64(len(id)))
	return who.AppendBinary(append(b, id...))
}

// serveSession answers methodSession. The member that asks vouches for the principal.
func (c *Core) serveSession(ctx context.Context, from policy.Principal, payload []byte) ([]byte, error) {
	if err := fromPeer(from); err != nil {
		return nil, err
	}
	size, n := binary.Uvarint(payload)
	if n <= 0 || size > uint64(len(payload)-n) {
		return nil, errMalformedCall
	}
	id := string(payload[n : n+int(size)])
	who, rest, err := policy.DecodePrincipal(payload[n+int(size):])
	if err != nil || len(rest) > 0 {
		return nil, errMalformedCall
	}
	c.observe(c.clock())
	if err := c.mayRenew(who, id); err != nil {
		return nil, err
	}
	return c.renewSessionHere(ctx, who, id)
}
