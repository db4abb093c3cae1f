package core

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// discover does a batch that must succeed, and returns its index.
func (m *member) discover(ops ...catalog.Op) uint64 {
	m.t.Helper()
	out, err := m.Discover(m.ctx, m.anon, ops)
	if err != nil || len(out.Failures) > 0 {
		m.t.Fatalf("%v %+v", err, out.Failures)
	}
	return out.Index
}

func kvSet(key, value string) catalog.Op {
	return catalog.Op{Verb: catalog.KVSet, Pair: &catalog.Pair{Key: key, Value: []byte(value)}}
}

func kvDelete(key string) catalog.Op {
	return catalog.Op{Verb: catalog.KVDelete, Pair: &catalog.Pair{Key: key}}
}

func nodeSet(name, address string) catalog.Op {
	return catalog.Op{Verb: catalog.NodeSet, Node: &catalog.Node{Name: name, Address: address}}
}

func serviceSet(node, name string, port int) catalog.Op {
	return catalog.Op{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: node, ID: name, Name: name, Port: port}}
}

func checkSet(node, id, service, status string) catalog.Op {
	return catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: node, ID: id, Name: id, ServiceID: service, Status: status}}
}

func pair1(key string) catalog.Query { return catalog.Query{Kind: catalog.QueryPair, Name: key} }

func (m *member) mustLook(q catalog.Query) Found {
	m.t.Helper()
	f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: q})
	must(m.t, err)
	return f
}

// blocked asks a question beside the test, returns once it waits, and gives what waits for its answer.
func (m *member) blocked(ctx context.Context, who policy.Principal, r LookupRequest) func() (Found, error) {
	m.t.Helper()
	var found Found
	before := m.Counters().Waiters
	wait := later(m.t, func() (err error) {
		found, err = m.Lookup(ctx, who, r)
		return err
	})
	until(m.t, "the lookup waits", func() bool { return m.Counters().Waiters == before+1 })
	return func() (Found, error) {
		m.t.Helper()
		err := wait()
		return found, err
	}
}

func (m *member) waitFor(q catalog.Query, index uint64) func() (Found, error) {
	m.t.Helper()
	return m.blocked(m.ctx, m.anon, LookupRequest{Query: q, MinIndex: index, Wait: time.Minute})
}

func TestLookup(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	reads := m.loop.reads
	f := m.mustLook(pair1("a"))
	if len(f.Pairs) != 0 || f.Index != 1 || !f.KnownLeader || f.LastContact != 0 || m.loop.reads != reads+1 {
		t.Fatalf("%+v, %d reads", f, m.loop.reads-reads)
	}
	index := m.discover(kvSet("a", "1"))
	if f = m.mustLook(pair1("a")); f.Index != index || string(f.Pairs[0].Value) != "1" || f.Pairs[0].ModifyIndex != index {
		t.Fatalf("%d %+v", index, f)
	}
	reads = m.loop.reads
	f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: pair1("a"), Serializable: true})
	if err != nil || f.Index != index || m.loop.reads != reads {
		t.Fatal("a serializable lookup does not ask the cluster", f, err)
	}
	// Without an index, or without a wait, nothing blocks.
	for _, r := range []LookupRequest{{Query: pair1("a"), MinIndex: 99}, {Query: pair1("a"), Wait: time.Hour}, {Query: pair1("a"), MinIndex: index - 1, Wait: time.Hour}} {
		if f, err := m.Lookup(m.ctx, m.anon, r); err != nil || f.Index != index {
			t.Fatalf("%+v %v", f, err)
		}
	}
	if _, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: catalog.Query{Kind: 99}, MinIndex: 1, Wait: time.Hour}); err == nil {
		t.Fatal("no such question")
	}
	if m.Counters().Waiters != 0 || len(m.lookups.line.timers) != 0 || m.hubs[mvcc.SpaceConsulKV].watchers.Load() != 0 {
		t.Fatal("somebody is left")
	}
}

// TestRestsOn: it must say of every question what the catalog says.
func TestRestsOn(t *testing.T) {
	t.Parallel()
	kinds := 0
	for kind := catalog.Kind(1); ; kind++ {
		for _, name := range []string{"", "x"} {
			q := catalog.Query{Kind: kind, Name: name}
			id, spans := catalog.Watched(q)
			if id == 0 {
				if kinds < 13 {
					t.Fatal(kinds, "kinds of questions")
				}
				return
			}
			if space, exact := restsOn(q); space != id || exact != (len(spans) == 1 && spans[0].SingleKey()) {
				t.Errorf("kind %d, name %q: %d %v, want %d and %d spans", kind, name, space, exact, id, len(spans))
			}
		}
		kinds++
	}
}

// TestBells: what rings for a question is what changes its answer, and nothing else.
func TestBells(t *testing.T) {
	t.Parallel()
	query := func(kind catalog.Kind, name string) catalog.Query { return catalog.Query{Kind: kind, Name: name} }
	for name, c := range map[string]struct {
		q            catalog.Query
		rings, quiet []catalog.Op
	}{
		"pair": {pair1("app/a"),
			[]catalog.Op{kvSet("app/a", "2"), kvDelete("app/a"), kvSet("app/a", "3")},
			[]catalog.Op{kvSet("app/b", "1"), kvSet("app/a/b", "1"), kvSet("app", "1"), kvDelete("app/b"), nodeSet("x", "10.0.0.9")}},
		"missing pair":   {pair1("new"), []catalog.Op{kvSet("new", "1")}, []catalog.Op{kvSet("ne", "1"), kvSet("newer", "1")}},
		"the same again": {pair1("app/a"), nil, []catalog.Op{kvSet("app/a", "1")}},
		"pairs": {query(catalog.QueryPairs, "app/"),
			[]catalog.Op{kvSet("app/x", "1"), kvDelete("app/a"), kvSet("app/z/z", "1")}, []catalog.Op{kvSet("app", "1"), kvSet("apq", "1")}},
		"keys":  {catalog.Query{Kind: catalog.QueryKeys, Name: "app/", Separator: "/"}, []catalog.Op{kvDelete("app/a")}, []catalog.Op{kvDelete("other")}},
		"nodes": {query(catalog.QueryNodes, ""), []catalog.Op{nodeSet("n2", "10.0.0.2")}, []catalog.Op{nodeSet("n1", "10.0.0.1"), kvSet("n", "1")}},
		"instances": {query(catalog.QueryInstances, "web"),
			[]catalog.Op{serviceSet("n1", "web", 81), checkSet("n1", "c1", "web", "critical"), checkSet("n1", "alive", "", "critical")},
			[]catalog.Op{serviceSet("n1", "db", 1), serviceSet("n1", "web", 80), nodeSet("n9", "10.0.0.9")}},
		"missing service": {query(catalog.QueryInstances, "none"), []catalog.Op{serviceSet("n1", "none", 81)}, []catalog.Op{serviceSet("n1", "web", 99)}},
		"a node's checks": {query(catalog.QueryNodeChecks, "n1"), []catalog.Op{checkSet("n1", "alive", "", "critical")}, []catalog.Op{kvSet("x", "1")}},
		"state":           {query(catalog.QueryChecksInState, "critical"), []catalog.Op{checkSet("n1", "alive", "", "critical")}, []catalog.Op{nodeSet("n3", "10.0.0.3")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, nil)
			m.discover(kvSet("app/a", "1"), kvSet("other", "1"), nodeSet("n1", "10.0.0.1"), serviceSet("n1", "web", 80),
				checkSet("n1", "alive", "", "passing"), checkSet("n1", "c1", "web", "passing"))
			for _, ops := range [2][]catalog.Op{c.quiet, c.rings} {
				for i, op := range ops {
					index := m.mustLook(c.q).Index
					w, err := m.lookups.enter(m.Core, &LookupRequest{Query: c.q, MinIndex: index, Wait: time.Hour})
					must(t, err)
					m.discover(op)
					rang := len(w.ring) > 0
					m.lookups.leave(w)
					moved := m.mustLook(c.q).Index != index
					if want := len(c.rings) > 0 && &ops[0] == &c.rings[0]; rang != want || moved != want {
						t.Errorf("operation %d: rang %v, the index moved %v, want %v", i, rang, moved, want)
					}
				}
			}
		})
	}
}

// TestBellsOfTheFuture: what cannot bring the index above that of the question does not ring.
func TestBellsOfTheFuture(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	index := m.discover(kvSet("a", "1"))
	for _, q := range []catalog.Query{pair1("a"), {Kind: catalog.QueryPairs, Name: "a"}} {
		w, err := m.lookups.enter(m.Core, &LookupRequest{Query: q, MinIndex: index + 1, Wait: time.Hour})
		must(t, err)
		index = m.discover(kvSet("a", fmt.Sprint(index)))
		if len(w.ring) != 0 {
			t.Fatal("too early")
		}
		index = m.discover(kvSet("a", fmt.Sprint(index)))
		if len(w.ring) != 1 {
			t.Fatal("not rung")
		}
		m.lookups.leave(w)
	}
}

// TestOldReadsAreNotShared: a read that began before a change says nothing to who was woken by it.
func TestOldReadsAreNotShared(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.discover(kvSet("a", "1"))
	g := m.acquire()
	defer g.release()
	begun := g.machine.Space(mvcc.SpaceConsulKV).Revision()
	old := &flight{revision: begun, done: make(chan struct{}), sight: sight{Answer: catalog.Answer{Index: 99}}}
	f := &m.lookups.flights
	f.under[pair1("a")] = old
	close(old.done)
	if s, err := f.look(g.machine, pair1("a")); err != nil || s.Index != 99 {
		t.Fatalf("one that began at the present revision is shared: %+v %v", s, err)
	}
	index := m.discover(kvSet("a", "2"))
	s, err := f.look(g.machine, pair1("a"))
	if err != nil || s.Index != index || string(s.Pairs[0].Value) != "2" {
		t.Fatalf("%+v %v", s, err)
	}
	if len(f.under) != 0 {
		t.Fatal("it is over")
	}
}

func TestBlockingLookup(t *testing.T) {
	t.Parallel()
	t.Run("creation", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		wait := m.waitFor(pair1("a"), m.mustLook(pair1("a")).Index)
		m.discover(kvSet("b", "1"))
		index := m.discover(kvSet("a", "1"))
		if f, err := wait(); err != nil || f.Index != index || string(f.Pairs[0].Value) != "1" {
			t.Fatalf("%+v %v", f, err)
		}
	})
	t.Run("deletion", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		wait := m.waitFor(pair1("a"), m.discover(kvSet("a", "1")))
		index := m.discover(kvDelete("a"))
		if f, err := wait(); err != nil || f.Index != index || len(f.Pairs) != 0 {
			t.Fatalf("%+v %v", f, err)
		}
	})
	t.Run("time is over", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		index := m.discover(kvSet("a", "1"))
		wait := m.waitFor(pair1("a"), index)
		m.pass(time.Minute - 1)
		if m.Counters().Waiters != 1 || len(m.lookups.line.timers) != 1 {
			t.Fatal("too early")
		}
		m.pass(1)
		if f, err := wait(); err != nil || f.Index != index || len(f.Pairs) != 1 {
			t.Fatalf("%+v %v", f, err)
		}
	})
	t.Run("an index ahead", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		m.discover(kvSet("a", "1"))
		wait := m.waitFor(pair1("a"), 1000)
		index := m.discover(kvSet("a", "2"))
		m.pass(time.Minute - 1)
		if len(m.lookups.line.timers) != 1 {
			t.Fatal("the whole wait")
		}
		m.pass(1)
		if f, err := wait(); err != nil || f.Index != index || string(f.Pairs[0].Value) != "2" {
			t.Fatalf("%+v %v", f, err)
		}
	})
	t.Run("no wait is longer than ten minutes and a sixteenth", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		wait := m.blocked(m.ctx, m.anon, LookupRequest{Query: pair1("a"), MinIndex: 1 << 63, Wait: 1 << 62})
		m.pass(maxWait)
		if f, err := wait(); err != nil || f.Index != 1 {
			t.Fatalf("%+v %v", f, err)
		}
	})
	t.Run("the context", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		ctx, cancel := context.WithCancel(m.ctx)
		wait := m.blocked(ctx, m.anon, LookupRequest{Query: pair1("a"), MinIndex: 1, Wait: time.Minute})
		cancel()
		_, err := wait()
		want(t, err, context.Canceled)
		if m.Counters().Waiters != 0 || len(m.lookups.line.timers) != 0 {
			t.Fatal("it is left behind")
		}
	})
	t.Run("core closes", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		wait := m.waitFor(pair1("a"), 1)
		m.Close()
		_, err := wait()
		want(t, err, ErrStopped)
	})
	t.Run("no generation is held", func(t *testing.T) {
		t.Parallel()
		m := start(t, nil)
		m.waitFor(pair1("a"), 1)
		// Whoever waits is between two reads; none of them is there for good.
		until(t, "only the present one holds the machine", func() bool { return m.current.Load().refs.Load() == 1 })
	})
}

// TestBlockingLookupWithoutLeader: only what is linearizable depends on a leader.
func TestBlockingLookupWithoutLeader(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	index := m.discover(kvSet("a", "1"))
	strict := m.waitFor(pair1("a"), index)
	stale := m.blocked(m.ctx, m.anon, LookupRequest{Query: pair1("a"), MinIndex: index, Wait: time.Minute, Serializable: true})
	lost := m.time.Now()
	m.loop.set(func() {
		m.loop.status.Leader, m.loop.status.Self, m.loop.status.NoLeaderSince = 0, false, lost
		m.loop.status.LeaderContact = lost.Add(-time.Second)
	})
	m.pass(2 * time.Second)
	if m.Counters().Waiters != 2 {
		t.Fatal("an election is no reason")
	}
	m.pass(time.Second)
	_, err := strict()
	want(t, err, ErrNoLeader)
	m.pass(57 * time.Second)
	if f, err := stale(); err != nil || f.KnownLeader || f.LastContact != 61*time.Second || f.Index != index {
		t.Fatalf("%+v %v", f, err)
	}
	f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: pair1("a"), Serializable: true})
	if err != nil || f.KnownLeader || len(f.Pairs) != 1 {
		t.Fatalf("%+v %v", f, err)
	}
	m.loop.set(func() { m.loop.readErr = replica.ErrDropped })
	_, err = m.Lookup(m.ctx, m.anon, LookupRequest{Query: pair1("a")})
	want(t, err, ErrLeaderChanged)
	m.loop.set(func() { m.loop.readErr = nil })
	// There is one again, but the clock has not moved yet: who comes now is not sent away, and is when it is lost again.
	m.loop.set(func() { m.loop.status.Leader = 9 })
	strict = m.waitFor(pair1("a"), index)
	until(t, "waiting for the clock", func() bool {
		m.leadership.mu.Lock()
		defer m.leadership.mu.Unlock()
		return m.leadership.tick != nil
	})
	m.pass(1)
	now := m.time.Now()
	m.loop.set(func() { m.loop.status.Leader, m.loop.status.NoLeaderSince = 0, now })
	m.pass(3 * time.Second)
	_, err = strict()
	want(t, err, ErrNoLeader)
}

func TestStaleOnAFollower(t *testing.T) {
	t.Parallel()
	_, follower := pair(t)
	follower.loop.set(func() { follower.loop.status.LeaderContact = follower.time.Now() })
	follower.pass(30 * time.Millisecond)
	f, err := follower.Lookup(follower.ctx, follower.anon, LookupRequest{Query: pair1("a"), Serializable: true})
	if err != nil || !f.KnownLeader || f.LastContact != 30*time.Millisecond {
		t.Fatalf("%+v %v", f, err)
	}
	// Without ever having heard of one: since the start.
	follower.loop.set(func() { follower.loop.status.Leader, follower.loop.status.LeaderContact = 0, time.Time{} })
	follower.pass(time.Second)
	f, err = follower.Lookup(follower.ctx, follower.anon, LookupRequest{Query: pair1("a"), Serializable: true})
	if err != nil || f.KnownLeader || f.LastContact != 1030*time.Millisecond {
		t.Fatalf("%+v %v", f, err)
	}
}

func TestLookupRights(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	cert := policy.Certificate{Issuer: "aa", Serial: "1"}
	client := policy.NewHolder("c", policy.Certificate{Issuer: "i", Serial: "1"}, policy.RoleClient, false)
	agent := policy.NewHolder("n1", cert, policy.RoleAgent, false)
	for _, who := range []policy.Principal{{}, client} {
		_, err := m.Lookup(m.ctx, who, LookupRequest{Query: pair1("a")})
		denied(t, err)
		_, err = m.Lookup(m.ctx, who, LookupRequest{Query: pair1("a"), MinIndex: 1, Wait: time.Hour})
		denied(t, err)
		_, err = m.Discover(m.ctx, who, []catalog.Op{kvSet("a", "1")})
		denied(t, err)
		_, err = m.RenewSession(m.ctx, who, "x")
		denied(t, err)
		_, err = m.Servers(m.ctx, who)
		denied(t, err)
	}
	if !m.audit.has("lookup", "permission denied") || !m.audit.has("consul kv", "permission denied") {
		t.Fatal("a refusal is not in the record")
	}
	_, err := m.Servers(m.ctx, agent)
	must(t, err)
	// Nobody but the clock ends a session for its time.
	_, err = m.Discover(m.ctx, m.anon, []catalog.Op{{Verb: catalog.SessionExpire, Session: &catalog.Session{ID: "x"}}})
	denied(t, err)
	if m.loop.index != 0 {
		t.Fatal("something reached the log")
	}

	// A change of the user store ends what it forbids, and nothing else; a revocation ends what the certificate waits for.
	nodes := catalog.Query{Kind: catalog.QueryNodes}
	anon := m.waitFor(pair1("a"), 1)
	held := m.blocked(m.ctx, agent, LookupRequest{Query: nodes, MinIndex: 1, Wait: time.Minute})
	admin := policy.NewHolder("root", policy.Certificate{Issuer: "aa", Serial: "2"}, policy.RoleAdmin, false)
	other := m.blocked(m.ctx, admin, LookupRequest{Query: nodes, MinIndex: 1, Wait: time.Minute})
	_, err = m.Put(m.ctx, admin, &state.Put{Space: mvcc.SpaceCA, Key: state.RevokedKey(cert), Value: []byte("{}")})
	must(t, err)
	_, err = held()
	want(t, err, state.ErrRevoked)
	m.auth(nil)
	_, err = anon()
	if err == nil {
		t.Fatal("who came in openly may nothing while users count")
	}
	if m.Counters().Waiters != 1 {
		t.Fatal("an admin may go on")
	}
	index := m.discoverAs(admin, nodeSet("n1", "10.0.0.1"))
	if f, err := other(); err != nil || f.Index != index || len(f.Nodes) != 1 {
		t.Fatalf("%+v %v", f, err)
	}
}

func (m *member) discoverAs(who policy.Principal, ops ...catalog.Op) uint64 {
	m.t.Helper()
	out, err := m.Discover(m.ctx, who, ops)
	if err != nil || len(out.Failures) > 0 {
		m.t.Fatalf("%v %+v", err, out.Failures)
	}
	return out.Index
}

// TestFanOut: thousands wait for one key, are all woken by one change, and leave nothing behind.
func TestFanOut(t *testing.T) {
	t.Parallel()
	const n = 3000
	m := start(t, nil)
	index := m.discover(kvSet("a", "1"))
	found := make(chan Found, 2*n)
	failed := make(chan error, 2*n)
	ask := func(q catalog.Query) {
		f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: q, MinIndex: index, Wait: time.Hour})
		if err != nil {
			failed <- err
		}
		found <- f
	}
	for range n {
		go ask(pair1("a"))
		go ask(catalog.Query{Kind: catalog.QueryPairs, Name: "a"})
	}
	until(t, "all wait", func() bool { return m.Counters().Waiters == 2*n })
	index = m.discover(kvSet("a", "2"))
	for range 2 * n {
		select {
		case err := <-failed:
			t.Fatal(err)
		case f := <-found:
			if f.Index != index || len(f.Pairs) != 1 || string(f.Pairs[0].Value) != "2" {
				t.Fatalf("%+v", f)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("some were not woken")
		}
	}
	h := m.hubs[mvcc.SpaceConsulKV]
	if m.Counters().Waiters != 0 || h.watchers.Load() != 0 || h.spans.tree.root != nil || len(m.lookups.line.timers) != 0 || len(m.lookups.flights.under) != 0 {
		t.Fatal("something is left")
	}
	for i := range h.shards {
		if len(h.shards[i].bells) != 0 {
			t.Fatal("a bell is left")
		}
	}
}

func TestWaitersAreBounded(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.Waiters = 2 })
	ctx, cancel := context.WithCancel(m.ctx)
	r := LookupRequest{Query: pair1("a"), MinIndex: 1, Wait: time.Hour}
	first := m.blocked(ctx, m.anon, r)
	m.blocked(m.ctx, m.anon, r)
	_, err := m.Lookup(m.ctx, m.anon, r)
	want(t, err, ErrTooManyWaiters)
	if m.Counters().Waiters != 2 || m.Counters().TooManyRequests != 1 {
		t.Fatalf("%+v", m.Counters())
	}
	cancel()
	_, err = first()
	want(t, err, context.Canceled)
	m.blocked(m.ctx, m.anon, r)
}

// TestNoLostWakeUp: readers that always ask for what is newer than what they have see every write. Each write waits for all
// of them to have seen the one before, so that it falls into the moment in which they begin to wait again.
func TestNoLostWakeUp(t *testing.T) {
	t.Parallel()
	const writes, readers = 2000, 6
	m := start(t, nil)
	seen := make(chan error, readers)
	for i := range readers {
		q := pair1("a")
		if i%2 == 1 {
			q = catalog.Query{Kind: catalog.QueryPairs, Name: "a"}
		}
		go func() {
			index := uint64(1)
			for range writes {
				f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: q, MinIndex: index, Wait: time.Hour, Serializable: i > 2})
				if err == nil && f.Index <= index {
					err = fmt.Errorf("index %d after %d, and no time has passed", f.Index, index)
				}
				index = f.Index
				seen <- err
			}
		}()
	}
	stuck := time.After(30 * time.Second)
	for i := range writes {
		m.discover(kvSet("a", fmt.Sprint(i)))
		for range readers {
			select {
			case err := <-seen:
				must(t, err)
			case <-stuck:
				t.Fatalf("write %d was not seen by all", i)
			}
		}
	}
}

func TestCompactedStart(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	one, prefix := pair1("p/a"), catalog.Query{Kind: catalog.QueryPairs, Name: "p/"}
	seen := m.discover(kvSet("p/a", "1"))
	m.discover(kvSet("p/b", "1"))
	last := m.discover(kvSet("q", "1"))
	m.discover(kvDelete("p/a"))
	m.discover(kvDelete("p/b"))
	gone := m.discover(kvSet("q", "2"))
	system := policy.NewSystem("test")
	_, err := m.Compact(m.ctx, system, &state.Compact{Space: mvcc.SpaceConsulKV, Revision: int64(gone)}, true)
	must(t, err)
	// Its deletion is compacted, so there is no newer index; but it has changed since.
	f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: one, MinIndex: seen, Wait: time.Hour})
	if err != nil || len(f.Pairs) != 0 {
		t.Fatalf("%+v %v", f, err)
	}
	wait := m.waitFor(one, max(f.Index, 1)) // and who goes on from there waits
	if f, err = m.Lookup(m.ctx, m.anon, LookupRequest{Query: prefix, MinIndex: last, Wait: time.Hour}); err != nil || f.Index <= last {
		t.Fatalf("%+v %v", f, err)
	}
	all := m.waitFor(prefix, f.Index)
	// A pair that has not changed does not end a wait because something was compacted.
	quiet := m.waitFor(pair1("q"), gone)
	index := m.discover(kvSet("p/a", "2"))
	for _, w := range []func() (Found, error){wait, all} {
		if f, err := w(); err != nil || f.Index != index {
			t.Fatalf("%+v %v", f, err)
		}
	}
	if m.Counters().Waiters != 1 {
		t.Fatal("q has not changed")
	}
	m.discover(kvSet("x", "1"))
	_, err = m.Compact(m.ctx, system, &state.Compact{Space: mvcc.SpaceConsulKV, Revision: int64(index) + 1}, true)
	must(t, err)
	again := m.waitFor(pair1("q"), gone)
	index = m.discover(kvSet("q", "3"))
	for _, w := range []func() (Found, error){quiet, again} {
		if f, err := w(); err != nil || f.Index != index {
			t.Fatalf("%+v %v", f, err)
		}
	}
}

// TestDiscoveryIsCompacted: Consul's spaces keep a quarter of an hour.
func TestDiscoveryIsCompacted(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	compacted := func() [2]int64 {
		g := m.acquire()
		defer g.release()
		return [2]int64{g.machine.Space(mvcc.SpaceConsulKV).CompactRevision(), g.machine.Space(mvcc.SpaceCatalog).CompactRevision()}
	}
	index := m.loop.index
	for range 40 {
		m.pass(time.Minute)
	}
	if m.loop.index != index {
		t.Fatal("what was never written needs no compaction")
	}
	revisions := map[int]int64{}
	for minute := range 60 {
		kv := m.discover(kvSet("a", fmt.Sprint(minute)))
		m.discover(nodeSet("n", fmt.Sprintf("10.0.0.%d", minute)))
		revisions[minute] = int64(kv)
		m.pass(time.Minute)
		if c := compacted(); minute >= 15 && max(c[0], c[1]) > revisions[minute-15]+1 {
			t.Fatalf("minute %d: %d is younger than a quarter of an hour", minute, c)
		}
	}
	if c := compacted(); c[0] < revisions[25] || c[1] < revisions[25] {
		t.Fatal("hardly anything was compacted", c)
	}
	m.discover(kvSet("a", "last"))
	m.lead(9, 2)
	index = m.loop.index
	for range 60 {
		m.pass(time.Minute)
	}
	if m.loop.index != index {
		t.Fatal("only the leader compacts")
	}
}

// TestInstallWakesLookups: a received state holds changes of which there are no events.
func TestInstallWakesLookups(t *testing.T) {
	t.Parallel()
	ahead, m := start(t, nil), start(t, func(o *Options) { o.Boot = 99 })
	for _, x := range []*member{ahead, m} {
		x.discover(kvSet("a", "1"), kvSet("b", "1"))
	}
	index := m.mustLook(pair1("a")).Index
	changed, same := m.waitFor(pair1("a"), index), m.waitFor(pair1("b"), index)
	next := ahead.discover(kvSet("a", "2"))
	must(t, ahead.Flush())
	snap, err := ahead.Snapshot()
	must(t, err)
	var stream bytes.Buffer
	_, err = snap.WriteTo(&stream)
	must(t, err)
	must(t, snap.Close())
	staged, err := m.Stage("next", &stream)
	must(t, err)
	must(t, staged.Install()) // which waits for every reader: who waits holds none
	if f, err := changed(); err != nil || f.Index != next || string(f.Pairs[0].Value) != "2" {
		t.Fatalf("%+v %v", f, err)
	}
	if m.Counters().Waiters != 1 {
		t.Fatal("b is as it was")
	}
	m.loop.set(func() { m.loop.index = ahead.loop.index })
	next = m.discover(kvSet("b", "2"))
	if f, err := same(); err != nil || f.Index != next {
		t.Fatalf("%+v %v", f, err)
	}
}

func TestServers(t *testing.T) {
	t.Parallel()
	m := trio(t)
	_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"unix://sock", "https://d:8300"}, true)
	must(t, err)
	m.loop.set(func() { m.loop.status.Leader, m.loop.readErr = 2, replica.ErrDropped }) // it does not need the cluster
	servers, err := m.Servers(m.ctx, m.anon)
	must(t, err)
	if len(servers) != 4 {
		t.Fatalf("%+v", servers)
	}
	for _, s := range servers {
		switch {
		case s.ID <= 3 && (!s.Voter || s.Leader != (s.ID == 2)), s.ID > 3 && (s.Voter || s.Leader || s.Address != "d:8300"), s.Address == "":
			t.Fatalf("%+v", s)
		}
	}
}
