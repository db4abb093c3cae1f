package core

import (
	"fmt"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

func denied(t testing.TB, err error) {
	t.Helper()
	if fault.From(err).Kind != fault.Denied {
		t.Fatalf("got %v, want a refusal", err)
	}
}

// session makes a session on node n1, which it makes too.
func (m *member) session(id, ttl string) {
	m.t.Helper()
	m.discover(nodeSet("n1", "10.0.0.1"), catalog.Op{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: id, Node: "n1", TTL: ttl, Behavior: "release"}})
}

func (m *member) lives(id string) bool {
	m.t.Helper()
	return len(m.mustLook(catalog.Query{Kind: catalog.QuerySession, Name: id}).Sessions) == 1
}

// sid is the id of a session in tests.
func sid(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n) }

func (m *member) clocked() (sessions, timers int) {
	k := &m.sessions
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.ends), len(k.line.timers)
}

func TestSessionTTLIsChecked(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	for _, ttl := range []string{"9s", "24h1s", "forever", "10", "-10s"} {
		_, err := m.Discover(m.ctx, m.anon, []catalog.Op{{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: sid(1), Node: "n1", TTL: ttl}}})
		want(t, err, ErrSessionTTL)
	}
	if m.loop.index != 0 {
		t.Fatal("something reached the log")
	}
	for i, ttl := range []string{"", "0s", "10s", "24h"} {
		m.session(sid(i), ttl)
	}
	if sessions, timers := m.clocked(); sessions != 2 || timers != 2 {
		t.Fatal(sessions, timers)
	}
}

// TestSessionEnds: at twice its TTL, not before, with its locks.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.session(sid(1), "10s")
	m.session(sid(2), "")
	lock := func(key, session string) bool {
		out, err := m.Discover(m.ctx, m.anon, []catalog.Op{{Verb: catalog.KVLock, Pair: &catalog.Pair{Key: key, Session: session}}})
		must(t, err)
		return len(out.Failures) == 0
	}
	if !lock("l", sid(1)) {
		t.Fatal("not locked")
	}
	m.pass(20*time.Second - 1)
	if !m.lives(sid(1)) {
		t.Fatal("too early")
	}
	index := m.mustLook(pair1("l")).Index
	wait := m.waitFor(pair1("l"), index)
	m.pass(1)
	if m.lives(sid(1)) || !m.lives(sid(2)) {
		t.Fatal("it ends at twice its TTL; one without a TTL does not end")
	}
	if f, err := wait(); err != nil || f.Index <= index || f.Pairs[0].Session != "" {
		t.Fatalf("%+v %v", f, err)
	}
	if sessions, timers := m.clocked(); sessions != 0 || timers != 0 {
		t.Fatal(sessions, timers)
	}
	entries := m.loop.index
	m.pass(time.Minute)
	if m.loop.index != entries {
		t.Fatal("ended twice")
	}
	if _, err := m.RenewSession(m.ctx, m.anon, sid(1)); fault.From(err).Kind != fault.NotFound {
		t.Fatal(err)
	}
}

func TestSessionIsRenewed(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.session(sid(1), "10s")
	m.session(sid(2), "")
	for range 5 {
		m.pass(19 * time.Second)
		s, err := m.RenewSession(m.ctx, m.anon, sid(1))
		if err != nil || s.ID != sid(1) || s.TTL != "10s" || s.Node != "n1" || s.CreateIndex == 0 {
			t.Fatalf("%+v %v", s, err)
		}
	}
	index := m.loop.index
	if s, err := m.RenewSession(m.ctx, m.anon, sid(2)); err != nil || s.ID != sid(2) {
		t.Fatalf("%+v %v", s, err)
	}
	if m.loop.index != index {
		t.Fatal("renewing is no entry")
	}
	m.pass(20 * time.Second)
	if m.lives(sid(1)) || !m.lives(sid(2)) {
		t.Fatal("from the last renewal on")
	}
	for _, id := range []string{sid(1), sid(9), "", "no uuid"} {
		_, err := m.RenewSession(m.ctx, m.anon, id)
		want(t, err, ErrSessionNotFound)
	}
	// Destroyed ones are forgotten.
	m.session(sid(3), "10s")
	m.discover(catalog.Op{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: sid(3)}})
	_, err := m.RenewSession(m.ctx, m.anon, sid(3))
	want(t, err, ErrSessionNotFound)
	// So are those whose node goes.
	m.session(sid(4), "10s")
	m.discover(catalog.Op{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: "n1"}})
	if sessions, timers := m.clocked(); sessions != 0 || timers != 0 || m.lives(sid(4)) {
		t.Fatal(sessions, timers)
	}
}

// TestSessionsOutliveAnElection: a new leader gives every session its whole time, and who does not lead ends none.
func TestSessionsOutliveAnElection(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	const n = sessionPage + 10
	for i := range n {
		m.session(sid(i), "10s")
	}
	m.pass(19 * time.Second)
	m.lead(9, 2)
	entries := m.loop.index
	m.pass(time.Hour)
	if m.loop.index != entries {
		t.Fatal("it does not lead")
	}
	if sessions, _ := m.clocked(); sessions != 0 {
		t.Fatal("who does not lead keeps no time")
	}
	m.lead(testMember, 3)
	if sessions, _ := m.clocked(); sessions != sessionPage {
		t.Fatalf("%d sessions after the first page", sessions)
	}
	if _, err := m.RenewSession(m.ctx, m.anon, sid(n-1)); err != nil { // its page is not read yet
		t.Fatal(err)
	}
	m.discover(catalog.Op{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: sid(n - 2)}})
	m.pass(20*time.Second - 1)
	for _, i := range []int{0, sessionPage - 1, sessionPage, n - 1} {
		if !m.lives(sid(i)) {
			t.Fatalf("session %d ended early", i)
		}
	}
	for range 4 {
		m.pass(1)
	}
	for _, i := range []int{0, sessionPage - 1, sessionPage, n - 1} {
		if m.lives(sid(i)) {
			t.Fatalf("session %d lives on", i)
		}
	}
	if sessions, timers := m.clocked(); sessions != 0 || timers != 0 {
		t.Fatal(sessions, timers)
	}
}

// TestSessionCreatedRightAfterTheElection: it starts once, when it is created.
func TestSessionCreatedRightAfterTheElection(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.lead(2, 2)
	m.loop.set(func() { m.loop.status.Leader, m.loop.status.Term, m.loop.status.Self = m.member, 3, true }) // without a tick
	m.session(sid(1), "10s")
	m.pass(20*time.Second - 1)
	if !m.lives(sid(1)) {
		t.Fatal("too early")
	}
	m.pass(1)
	if m.lives(sid(1)) {
		t.Fatal("too late")
	}
}

// TestSessionStormIsPaced: ended sessions leave room for other requests, and each ends once.
func TestSessionStormIsPaced(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	const n = 3*sessionsPerExpiry + 5
	for i := range n {
		m.session(sid(i), "10s")
	}
	m.loop.set(func() { m.loop.keep = true })
	m.pass(20 * time.Second)
	m.pass(1)
	pulled := 0
	m.loop.set(func() { pulled = len(m.loop.kept) })
	if _, timers := m.clocked(); pulled != expiriesUnderWay || timers != n-expiriesUnderWay*sessionsPerExpiry {
		t.Fatalf("%d proposals, %d wait", pulled, timers)
	}
	// While its end is proposed a session cannot be renewed.
	if _, err := m.RenewSession(m.ctx, m.anon, sid(0)); fault.From(err).Kind != fault.NotFound {
		t.Fatal(err)
	}
	// One whose end is not proposed yet lives on.
	if _, err := m.RenewSession(m.ctx, m.anon, sid(n-1)); err != nil {
		t.Fatal(err)
	}
	m.loop.release()
	m.pass(1)
	m.pass(1)
	if sessions, _ := m.clocked(); sessions != 1 || !m.lives(sid(n-1)) || m.lives(sid(0)) {
		t.Fatal(sessions)
	}
}

// TestSessionEndWhoseFateIsUnknown: it is not asked twice, but what never left the queue is asked again.
func TestSessionEndWhoseFateIsUnknown(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.session(sid(1), "10s")
	m.loop.set(func() { m.loop.keep = true })
	m.pass(20 * time.Second)
	m.pass(m.timeout)
	m.pass(m.timeout)
	pulled := 0
	m.loop.set(func() { pulled = len(m.loop.kept) })
	if pulled != 1 {
		t.Fatalf("%d proposals", pulled)
	}
	m.loop.release()
	if m.lives(sid(1)) {
		t.Fatal("it was applied after all")
	}
	m.session(sid(2), "10s")
	m.loop.set(func() { m.loop.hold = true })
	m.pass(20 * time.Second)
	m.pass(m.timeout)
	if m.proposals.waitingNow() != 0 {
		t.Fatal("given up")
	}
	// It can be renewed now: nothing has happened to it.
	if ok, leads, err := m.sessions.renew(sid(2), m.time.Now(), nil); !ok || !leads || err != nil {
		t.Fatal(ok, leads, err)
	}
	m.pass(20*time.Second - 1)
	m.pass(1)
	m.loop.release()
	if m.lives(sid(2)) {
		t.Fatal("it is asked again")
	}
}

func TestSessionRenewalsAreForwarded(t *testing.T) {
	t.Parallel()
	leader, follower := pair(t)
	leader.session(sid(1), "10s")
	leader.pass(19 * time.Second)
	s, err := follower.RenewSession(follower.ctx, follower.anon, sid(1))
	if err != nil || s.ID != sid(1) || s.TTL != "10s" || s.CreateIndex == 0 {
		t.Fatalf("%+v %v", s, err)
	}
	leader.pass(20*time.Second - 1)
	if !leader.lives(sid(1)) {
		t.Fatal("not renewed")
	}
	_, err = follower.RenewSession(follower.ctx, follower.anon, sid(7))
	want(t, err, ErrSessionNotFound)

	// Whom the leader does not find it looks for once it has caught up: the session may be newer than what it has applied.
	leader.loop.set(func() {
		leader.loop.onRead = func() {
			leader.loop.set(func() { leader.loop.onRead = nil })
			leader.session(sid(2), "10s")
		}
	})
	if s, err = follower.RenewSession(follower.ctx, follower.anon, sid(2)); err != nil || s.ID != sid(2) {
		t.Fatalf("%+v %v", s, err)
	}

	// Then it is no longer everybody's.
	leader.loop.set(func() {
		leader.loop.onRead = func() {
			leader.loop.set(func() { leader.loop.onRead = nil })
			leader.session(sid(3), "10s")
		}
	})
	stranger := policy.NewHolder("n2", policy.Certificate{Issuer: "aa", Serial: "2"}, policy.RoleAgent, false)
	_, err = follower.RenewSession(follower.ctx, stranger, sid(3))
	denied(t, err)

	from := policy.NewMember("b", policy.Certificate{})
	_, err = leader.serveSession(t.Context(), from, encodeRenewal(sid(1), policy.Principal{}))
	denied(t, err)
	for name, from := range map[string]policy.Principal{"nobody": {}, "a client": leader.anon} {
		if _, err := leader.serveSession(t.Context(), from, encodeRenewal(sid(1), leader.anon)); err == nil {
			t.Fatal(name + " may not call as a member")
		}
	}
	for _, payload := range [][]byte{nil, {1}, {200, 200}, append(encodeRenewal(sid(1), leader.anon), 0)} {
		_, err := leader.serveSession(t.Context(), from, payload)
		want(t, err, errMalformedCall)
	}
	leader.lead(2, 2)
	_, err = leader.serveSession(t.Context(), from, encodeRenewal(sid(1), leader.anon))
	want(t, err, ErrNotLeader)

	// It waits for a leader, as long as requests wait.
	follower.loop.set(func() { follower.loop.callErr = replica.ErrUnreachable })
	follower.pass(1)
	wait := later(t, func() error { _, err := follower.RenewSession(follower.ctx, follower.anon, sid(1)); return err })
	until(t, "waiting for the clock", func() bool {
		follower.leadership.mu.Lock()
		defer follower.leadership.mu.Unlock()
		return follower.leadership.tick != nil
	})
	follower.pass(follower.timeout)
	want(t, wait(), ErrTimeout)
}

// TestAgentRenewsItsOwn: an agent may renew sessions of its own node, not of another.
func TestAgentRenewsItsOwn(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.session(sid(1), "10s")
	own := policy.NewHolder("n1", policy.Certificate{Issuer: "aa", Serial: "1"}, policy.RoleAgent, false)
	other := policy.NewHolder("n2", policy.Certificate{Issuer: "aa", Serial: "2"}, policy.RoleAgent, false)
	if s, err := m.RenewSession(m.ctx, own, sid(1)); err != nil || s.ID != sid(1) {
		t.Fatalf("%+v %v", s, err)
	}
	_, err := m.RenewSession(m.ctx, other, sid(1))
	denied(t, err)
	want(t, err, state.ErrPermissionDenied)
}

// TestDeposedClocksAreNotHeard: what a leader's clocks decided and it could not append before it was deposed never reaches the
// next leader, who may have renewed what it ends.
func TestDeposedClocksAreNotHeard(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.session(sid(1), "10s")
	id, _, err := m.LeaseGrant(m.ctx, m.anon, 7, 20)
	must(t, err)
	m.putLease("leased", id)
	m.loop.set(func() { m.loop.hold = true })
	m.pass(20 * time.Second) // both have ended, and wait to be appended
	if n := m.proposals.queuedBytes(); n == 0 {
		t.Fatal("nothing was proposed")
	}
	m.loop.set(func() { m.loop.status.Leadership = replica.Leadership{Leader: testMember + 1, Term: 2} })
	before := m.loop.index
	m.loop.release()
	if m.loop.index != before || m.proposals.queuedBytes() != 0 {
		t.Fatal("it was sent to the next leader")
	}
	m.loop.set(func() { m.loop.status.Leadership = replica.Leadership{Leader: testMember, Term: 3, Self: true} })
	m.pass(0)
	if _, err := m.RenewSession(m.ctx, m.anon, sid(1)); err != nil {
		t.Fatal(err)
	}
	if ttl, err := m.LeaseRenew(m.ctx, m.anon, id); err != nil || ttl != 20 {
		t.Fatal(ttl, err)
	}
	m.loop.Wake()
	if !m.lives(sid(1)) || m.get("leased") != "" {
		t.Fatal("what was renewed has ended")
	}
	m.pass(20 * time.Second)
	if m.lives(sid(1)) || m.get("leased") != "-" {
		t.Fatal("what was not renewed lives on")
	}
}
