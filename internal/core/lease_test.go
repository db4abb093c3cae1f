package core

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

func (m *member) grant(id, ttl int64) {
	m.t.Helper()
	if _, _, err := m.LeaseGrant(m.ctx, m.anon, id, ttl); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) ttl(id int64) int64 {
	m.t.Helper()
	info, err := m.LeaseInfo(m.ctx, m.anon, id, false)
	if err != nil {
		m.t.Fatal(err)
	}
	return info.TTL
}

// lead changes whether the member leads.
func (m *member) lead(leader uint64, term uint64) {
	m.loop.set(func() {
		m.loop.status.Leader, m.loop.status.Term, m.loop.status.Self = leader, term, leader == m.loop.core.member
	})
	m.Tick(m.time.Now())
}

func TestLeaseGrant(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	id, ttl, err := m.LeaseGrant(m.ctx, m.anon, 0, 60)
	must(t, err)
	if id <= 0 || ttl != 60 {
		t.Fatal(id, ttl)
	}
	if _, ttl, err = m.LeaseGrant(m.ctx, m.anon, -5, 1); err != nil || ttl != 2 {
		t.Fatal("a negative id is legal, and one and a half election timeouts are the least", ttl, err)
	}
	_, _, err = m.LeaseGrant(m.ctx, m.anon, -5, 10)
	want(t, err, mvcc.ErrLeaseExists)
	_, _, err = m.LeaseGrant(m.ctx, m.anon, 9, state.MaxLeaseTTL+1)
	want(t, err, state.ErrLeaseTTL)
	if _, ttl, err = m.LeaseGrant(m.ctx, m.anon, 9, state.MaxLeaseTTL); err != nil || ttl != state.MaxLeaseTTL {
		t.Fatal(ttl, err)
	}
	if left := m.ttl(9); left < state.MaxLeaseTTL-2 {
		t.Fatal(left)
	}
	ids, err := m.Leases(m.ctx, m.anon)
	must(t, err)
	if len(ids) != 3 || ids[0] != -5 {
		t.Fatal(ids)
	}
}

func TestLeaseLife(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.grant(1, 10)
	m.putLease("a", 1)
	m.putLease("b", 1)
	m.pass(4 * time.Second)
	info, err := m.LeaseInfo(m.ctx, m.anon, 1, true)
	must(t, err)
	if info.Granted != 10 || info.TTL != 6 || fmt.Sprintf("%s", info.Keys) != "[a b]" {
		t.Fatalf("%+v", info)
	}
	ttl, err := m.LeaseRenew(m.ctx, m.anon, 1)
	if err != nil || ttl != 10 {
		t.Fatal(ttl, err)
	}
	m.pass(9 * time.Second)
	if m.get("a") != "" {
		t.Fatal("renewed leases live")
	}
	s := m.stream()
	id := s.mustWatch(t, WatchRequest{Span: span("a", "z")})
	m.pass(time.Second)
	if m.get("a") != "-" || m.get("b") != "-" {
		t.Fatal("ended leases take their keys with them")
	}
	s.wantEvents(t, id, "-a@4 -b@4")
	if m.ttl(1) != -1 {
		t.Fatal("it is gone")
	}
	if ttl, err = m.LeaseRenew(m.ctx, m.anon, 1); err != nil || ttl != 0 {
		t.Fatal(ttl, err)
	}
	want(t, m.revoke(m.anon, 1), mvcc.ErrLeaseNotFound)
	m.grant(2, 10)
	m.putLease("c", 2)
	must(t, m.revoke(m.anon, 2))
	if m.get("c") != "-" || len(m.lessor.leases) != 0 || len(m.lessor.heap) != 0 {
		t.Fatal("a revoked lease is forgotten")
	}
}

func TestLeaseEndsOnlyOnTheLeader(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.grant(1, 10)
	m.putLease("a", 1)
	m.lead(9, 2)
	m.pass(time.Hour)
	m.lead(testMember, 3)
	// The new leader counts from when it began, and an election timeout more.
	if left := m.ttl(1); left != 11 {
		t.Fatal(left)
	}
	m.pass(11*time.Second - 1)
	if m.get("a") != "" {
		t.Fatal("too early")
	}
	m.pass(1)
	if m.get("a") != "-" {
		t.Fatal("too late")
	}
}

// TestLeaseGrantedRightAfterTheElection: the first tick as a leader comes after the grant, and must not extend the lease as
// those are that the election interrupted.
func TestLeaseGrantedRightAfterTheElection(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.lead(2, 2)
	m.loop.set(func() { m.loop.status.Leader, m.loop.status.Term, m.loop.status.Self = m.member, 3, true }) // without a tick
	m.grant(7, 10)
	m.Tick(m.time.Now())
	if left := m.ttl(7); left > 10 {
		t.Fatalf("a lease of 10 s has %d s left", left)
	}
	m.pass(10 * time.Second)
	m.Tick(m.time.Now())
	if left := m.ttl(7); left != -1 {
		t.Fatalf("it has ended, but %d s are left", left)
	}
}

func TestLeasesAreLoadedInPages(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	const n = leasePage + 10
	for i := range int64(n) {
		m.grant(i+1, 10)
	}
	m.putLease("last", n)
	m.lead(9, 2)
	m.loop.set(func() { m.loop.status.Leader, m.loop.status.Term, m.loop.status.Self = testMember, 3, true })
	// Asked for before its page was read.
	if left := m.ttl(n); left != 11 {
		t.Fatal(left)
	}
	m.Tick(m.time.Now())
	if m.lessor.loaded || len(m.lessor.leases) != leasePage+1 {
		t.Fatal(m.lessor.loaded, len(m.lessor.leases))
	}
	m.grant(n+1, 10)
	must(t, m.revoke(m.anon, n-1))
	m.Tick(m.time.Now())
	if !m.lessor.loaded || len(m.lessor.leases) != n || len(m.lessor.heap) != n {
		t.Fatal(m.lessor.loaded, len(m.lessor.leases))
	}
	index := m.loop.index
	for range 4 {
		m.pass(4 * time.Second)
	}
	if m.get("last") != "-" || len(m.lessor.leases) != 0 {
		t.Fatal(len(m.lessor.leases))
	}
	if entries := m.loop.index - index; entries > 4 {
		t.Fatalf("a storm of %d leases made %d entries", n, entries)
	}
}

func TestExpiryStormIsPaced(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	const n = 4 * leasesPerRevoke
	for i := range int64(n) {
		m.grant(i+1, 10)
	}
	m.loop.set(func() { m.loop.keep = true })
	for range 5 {
		m.pass(10 * time.Second / 4)
	}
	pulled := 0
	m.loop.set(func() { pulled = len(m.loop.kept) })
	if pulled != revokesUnderWay || len(m.lessor.heap) != n-revokesUnderWay*leasesPerRevoke {
		t.Fatalf("%d proposals under way, %d leases wait", pulled, len(m.lessor.heap))
	}
	// While it is being revoked a lease cannot be renewed.
	if ttl, err := m.LeaseRenew(m.ctx, m.anon, 1); err != nil || ttl != 0 {
		t.Fatal(ttl, err)
	}
	m.loop.release()
	m.pass(1)
	if len(m.lessor.leases) != 0 {
		t.Fatal(len(m.lessor.leases))
	}
}

// TestExpiryWhoseFateIsUnknown: ids are not revoked twice by one leader, because one could have been granted again.
func TestExpiryWhoseFateIsUnknown(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.grant(1, 10)
	m.loop.set(func() { m.loop.keep = true })
	m.pass(10 * time.Second)
	m.pass(m.timeout)
	m.pass(m.timeout)
	pulled := 0
	m.loop.set(func() { pulled = len(m.loop.kept) })
	if pulled != 1 {
		t.Fatalf("%d proposals", pulled)
	}
	m.loop.release()
	if len(m.lessor.leases) != 0 {
		t.Fatal("the revocation was applied after all")
	}
	// One that never left the queue is asked again.
	m.grant(2, 10)
	m.loop.set(func() { m.loop.hold = true })
	m.pass(10 * time.Second)
	m.pass(m.timeout)
	if m.proposals.waitingNow() != 0 {
		t.Fatal("given up")
	}
	m.pass(time.Second)
	m.loop.release()
	if len(m.lessor.leases) != 0 {
		t.Fatal("asked again and revoked")
	}
}

func TestLeaseCheckpoints(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.CheckpointInterval = time.Minute })
	m.grant(1, 600)
	m.grant(2, 30)
	m.pass(30 * time.Second / 2)
	m.pass(45 * time.Second)
	row := func(id int64) mvcc.Lease {
		l, _, err := m.leaseRow(id)
		must(t, err)
		return l
	}
	if r := row(1).Remaining; r != 540 {
		t.Fatal(r)
	}
	m.lead(9, 2)
	m.lead(testMember, 3)
	if left := m.ttl(1); left != 541 {
		t.Fatal(left)
	}
	m.pass(1)
	index := m.loop.index
	m.pass(1)
	if m.loop.index != index {
		t.Fatal("nothing to record")
	}
	// A renewal undoes it, once.
	if ttl, err := m.LeaseRenew(m.ctx, m.anon, 1); err != nil || ttl != 600 {
		t.Fatal(ttl, err)
	}
	m.pass(1)
	if r := row(1).Remaining; r != 600 {
		t.Fatal(r)
	}
	index = m.loop.index
	if _, err := m.LeaseRenew(m.ctx, m.anon, 1); err != nil {
		t.Fatal(err)
	}
	m.pass(1)
	if m.loop.index != index {
		t.Fatal("there was nothing left to undo")
	}
}

// A renewal is answered when the next leader would know of it: not before the checkpoint that shortens the lease is undone.
func TestRenewalIsAnsweredWhenTheCheckpointIsUndone(t *testing.T) {
	t.Parallel()
	for name, applied := range map[string]bool{"applied": true, "on its way": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, func(o *Options) { o.CheckpointInterval = time.Minute })
			m.grant(1, 600)
			m.loop.set(func() { m.loop.keep = !applied })
			m.pass(61 * time.Second)
			m.loop.set(func() { m.loop.keep = true })
			wait := later(t, func() error {
				ttl, err := m.LeaseRenew(m.ctx, m.anon, 1)
				if err == nil && ttl != 600 {
					err = fmt.Errorf("ttl %d", ttl)
				}
				return err
			})
			batches := 2
			if applied {
				batches = 1
			}
			for kept := 0; kept < batches; {
				runtime.Gosched()
				m.loop.set(func() { kept = len(m.loop.kept) })
			}
			if row, _, err := m.leaseRow(1); err != nil || applied && row.Remaining != 539 {
				t.Fatal(row, err)
			}
			m.loop.release()
			must(t, wait())
			if row, _, err := m.leaseRow(1); err != nil || row.Remaining != 600 {
				t.Fatal(row, err)
			}
			m.lead(9, 2)
			m.lead(testMember, 3)
			if left := m.ttl(1); left != 601 {
				t.Fatal(left)
			}
		})
	}
}

// A leader that is cut off, or has stood still, may have been deposed: it asks a quorum before it promises anything, at most
// twice in an election timeout.
func TestLeaderAsksBeforeItRenews(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.grant(1, 100)
	renew := func(rounds int) {
		t.Helper()
		reads := m.loop.reads
		if ttl, err := m.LeaseRenew(m.ctx, m.anon, 1); err != nil || ttl != 100 || m.loop.reads != reads+rounds {
			t.Fatal(ttl, err, m.loop.reads-reads)
		}
	}
	renew(1)
	renew(0)
	m.pass(m.opt.Election / 4)
	renew(0)
	m.pass(m.opt.Election / 2)
	renew(1)
	m.time.mu.Lock() // the process stands still: no tick comes
	m.time.now = m.time.now.Add(30 * time.Second)
	m.time.mu.Unlock()
	renew(1)
	renew(0)
	m.lead(9, 2)
	m.lead(testMember, 3)
	renew(1)
	// It has been deposed meanwhile.
	m.pass(20 * time.Second)
	m.loop.set(func() {
		m.loop.onRead = func() {
			m.loop.set(func() { m.loop.status.Leader, m.loop.status.Term, m.loop.status.Self = 9, 4, false })
		}
	})
	if ttl, leads, err := m.renewLocal(m.ctx, 1); leads || err != nil {
		t.Fatal("a member that leads no more has renewed a lease", ttl, leads, err)
	}
}

// pair is two members that reach each other; the first leads. They do not share a log.
func pair(t *testing.T) (leader, follower *member) {
	members := []state.Member{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a:1"}}, {ID: 2, Name: "b", PeerURLs: []string{"http://b:1"}},
	}
	leader, follower = startAs(t, 1, members, nil), startAs(t, 2, members, nil)
	for _, m := range []*member{leader, follower} {
		m.loop.peers[1], m.loop.peers[2] = leader.loop, follower.loop
		m.lead(1, 1)
	}
	return leader, follower
}

func TestLeaseCallsAreForwarded(t *testing.T) {
	t.Parallel()
	leader, follower := pair(t)
	leader.grant(1, 100)
	leader.putLease("a", 1)
	leader.pass(40 * time.Second)
	info, err := follower.LeaseInfo(follower.ctx, follower.anon, 1, true)
	must(t, err)
	if info.Granted != 100 || info.TTL != 60 || len(info.Keys) != 1 {
		t.Fatalf("%+v", info)
	}
	if ttl, err := follower.LeaseRenew(follower.ctx, follower.anon, 1); err != nil || ttl != 100 {
		t.Fatal(ttl, err)
	}
	if leader.ttl(1) != 100 {
		t.Fatal("not renewed")
	}
	if ttl, err := follower.LeaseRenew(follower.ctx, follower.anon, 7); err != nil || ttl != 0 {
		t.Fatal(ttl, err)
	}
	// The principal travels: the leader judges it too.
	_, err = leader.serveLease(t.Context(), policy.NewMember("b", policy.Certificate{}), encodeLeaseCall(leaseCallRenew, 1, policy.Principal{}))
	want(t, err, state.ErrPermissionDenied)
	for name, from := range map[string]policy.Principal{"nobody": {}, "a client": leader.anon} {
		if _, err := leader.serveLease(t.Context(), from, encodeLeaseCall(leaseCallRenew, 1, leader.anon)); err == nil {
			t.Fatal(name + " may not call as a member")
		}
	}
	for _, payload := range [][]byte{nil, {1}, make([]byte, 9), append(encodeLeaseCall(leaseCallRenew, 1, leader.anon), 0), encodeLeaseCall(99, 1, leader.anon)} {
		_, err := leader.serveLease(t.Context(), policy.NewMember("b", policy.Certificate{}), payload)
		want(t, err, errMalformedCall)
	}
}

func TestRenewWaitsForALeader(t *testing.T) {
	t.Parallel()
	leader, follower := pair(t)
	leader.grant(1, 100)
	follower.loop.set(func() { follower.loop.callErr = replica.ErrUnreachable })
	wait := later(t, func() error {
		ttl, err := follower.LeaseRenew(follower.ctx, follower.anon, 1)
		if err == nil && ttl != 100 {
			err = fmt.Errorf("ttl %d", ttl)
		}
		return err
	})
	until(t, "waiting for the clock", func() bool {
		follower.leadership.mu.Lock()
		defer follower.leadership.mu.Unlock()
		return follower.leadership.tick != nil
	})
	follower.loop.set(func() { follower.loop.callErr = nil })
	follower.pass(1)
	must(t, wait())

	follower.loop.set(func() { follower.loop.status.Leader = 0 })
	follower.pass(1)
	wait = later(t, func() error { _, err := follower.LeaseRenew(follower.ctx, follower.anon, 1); return err })
	until(t, "waiting for the clock", func() bool {
		follower.leadership.mu.Lock()
		defer follower.leadership.mu.Unlock()
		return follower.leadership.tick != nil
	})
	follower.pass(follower.timeout)
	want(t, wait(), ErrTimeout)
}

func TestLeaseRights(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b"), "bob": span("b", "c")})
	alice, bob := m.login("alice", "pw-alice"), m.login("bob", "pw-bob")
	_, _, err := m.LeaseGrant(m.ctx, m.anon, 1, 10)
	want(t, err, state.ErrUserEmpty)
	_, _, err = m.LeaseGrant(m.ctx, alice, 1, 10)
	must(t, err)
	_, err = m.Put(m.ctx, alice, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Lease: 1})
	must(t, err)
	want(t, m.revoke(bob, 1), state.ErrPermissionDenied)
	_, err = m.LeaseInfo(m.ctx, bob, 1, true)
	want(t, err, state.ErrPermissionDenied)
	_, err = m.Leases(m.ctx, bob)
	want(t, err, state.ErrPermissionDenied)
	_, err = m.LeaseInfo(m.ctx, bob, 1, false)
	must(t, err)
	_, err = m.LeaseRenew(m.ctx, bob, 1)
	want(t, err, state.ErrPermissionDenied)
	_, err = m.LeaseRenew(m.ctx, alice, 1)
	must(t, err)
	info, err := m.LeaseInfo(m.ctx, alice, 1, true)
	if err != nil || len(info.Keys) != 1 {
		t.Fatalf("%+v %v", info, err)
	}
	must(t, m.revoke(alice, 1))
}
