package core

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

func (m *member) stream() *WatchStream {
	s := m.NewWatchStream(m.anon, mvcc.SpaceEtcd)
	m.t.Cleanup(s.Close)
	return s
}

func (s *WatchStream) mustWatch(t testing.TB, r WatchRequest) int64 {
	t.Helper()
	id, err := s.Watch(r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// recv returns the next message, which must be there already or be read without waiting.
func (s *WatchStream) recv(t testing.TB) *WatchMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := s.Recv(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// nothing fails if there is a message.
func (s *WatchStream) nothing(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := s.Recv(ctx); err == nil {
		t.Fatalf("unexpected message %+v %s", m, describe(m.Events))
	}
}

func (s *WatchStream) wantEvents(t testing.TB, id int64, text string) {
	t.Helper()
	m := s.recv(t)
	if m.Kind != WatchEvents || m.ID != id || strings.TrimSpace(describe(m.Events)) != text {
		t.Fatalf("got %d %d %v %s, want %d %s", m.Kind, m.ID, m.Reason, describe(m.Events), id, text)
	}
	if last := m.Events[len(m.Events)-1].KV.ModRevision; m.Revision < last {
		t.Fatalf("revision %d before that of its event, %d", m.Revision, last)
	}
}

func (m *member) txnPuts(keys ...string) {
	m.t.Helper()
	x := &state.Txn{Space: mvcc.SpaceEtcd}
	for _, key := range keys {
		x.Success = append(x.Success, state.Op{Put: &state.Put{Key: []byte(key), Value: []byte("v")}})
	}
	if _, err := m.Txn(m.ctx, m.anon, x, false); err != nil {
		m.t.Fatal(err)
	}
}

func TestWatchTable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*member)
		req    WatchRequest
		after  func(*member)
		want   []string
	}{
		"key from now": {
			before: func(m *member) { m.put("a", "0") },
			req:    WatchRequest{Span: span("a", "")},
			after:  func(m *member) { m.put("a", "1"); m.put("b", "1"); m.put("a\x00", "1"); m.del("a", "") },
			want:   []string{"+a@3 -a@6"},
		},
		"range, revisions whole": {
			req:   WatchRequest{Span: span("a", "c")},
			after: func(m *member) { m.txnPuts("a", "b", "c"); m.del("a", "z") },
			want:  []string{"+a@2 +b@2 -a@3 -b@3"},
		},
		"open end": {
			req:   WatchRequest{Span: span("b", "∞")},
			after: func(m *member) { m.put("a", ""); m.put("b", ""); m.put("\xff\xff", "") },
			want:  []string{"+b@3 +\xff\xff@4"},
		},
		"from the past": {
			before: func(m *member) { m.put("a", "1"); m.put("b", "1"); m.put("a", "2") },
			req:    WatchRequest{Span: span("a", ""), StartRevision: 2},
			after:  func(m *member) { m.put("a", "3") },
			want:   []string{"+a@2 +a@4 +a@5"}, // read in one piece: the third put came before the first Recv
		},
		"from the future": {
			before: func(m *member) { m.put("a", "1") },
			req:    WatchRequest{Span: span("a", ""), StartRevision: 4},
			after:  func(m *member) { m.put("a", "2"); m.put("a", "3"); m.put("a", "4") },
			want:   []string{"+a@4 +a@5"},
		},
		"no puts": {
			req:   WatchRequest{Span: span("a", ""), NoPut: true},
			after: func(m *member) { m.put("a", "2"); m.del("a", ""); m.put("a", "3") },
			want:  []string{"-a@3"},
		},
		"no deletes, from the past": {
			before: func(m *member) { m.put("a", "2"); m.del("a", "") },
			req:    WatchRequest{Span: span("a", ""), NoDelete: true, StartRevision: 1},
			after:  func(m *member) { m.put("a", "3") },
			want:   []string{"+a@2 +a@4"},
		},
		"compact revision itself can be read": {
			before: func(m *member) { m.put("a", "1"); m.put("a", "2"); m.put("a", "3"); m.compact(3) },
			req:    WatchRequest{Span: span("a", ""), StartRevision: 3},
			want:   []string{"+a@3 +a@4"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, nil)
			if c.before != nil {
				c.before(m)
			}
			s := m.stream()
			id := s.mustWatch(t, c.req)
			if c.after != nil {
				c.after(m)
			}
			for _, text := range c.want {
				s.wantEvents(t, id, text)
			}
			s.nothing(t)
		})
	}
}

func (m *member) compact(rev int64) {
	m.t.Helper()
	if _, err := m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: rev}, true); err != nil {
		m.t.Fatal(err)
	}
}

func TestWatchIDs(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.stream()
	req := WatchRequest{Span: span("a", "")}
	if id := s.mustWatch(t, req); id != 0 {
		t.Fatal(id)
	}
	req.ID = 1
	if id := s.mustWatch(t, req); id != 1 {
		t.Fatal(id)
	}
	_, err := s.Watch(req)
	want(t, err, ErrDuplicateWatchID)
	req.ID = 0
	if id := s.mustWatch(t, req); id != 2 {
		t.Fatal(id)
	}
	if !s.Cancel(1) || s.Cancel(1) || s.Cancel(77) {
		t.Fatal("cancel")
	}
	req.ID = 1
	if id := s.mustWatch(t, req); id != 1 {
		t.Fatal(id)
	}
	_, err = s.Watch(WatchRequest{Span: storage.Span{Start: []byte("b"), End: []byte("a")}})
	want(t, err, ErrEmptyWatchRange)
	_, err = s.Watch(WatchRequest{Span: span("a", ""), StartRevision: -1})
	want(t, err, mvcc.ErrCompacted)
}

func TestWatchCancelDropsWhatIsQueued(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.stream()
	a, b := s.mustWatch(t, WatchRequest{Span: span("a", "")}), s.mustWatch(t, WatchRequest{Span: span("a", "b")})
	m.put("a", "1")
	s.Cancel(a)
	s.wantEvents(t, b, "+a@2")
	s.nothing(t)
	s.Cancel(b)
	if n := m.hubs[mvcc.SpaceEtcd].watchers.Load(); n != 0 || s.buffered != 0 {
		t.Fatal(n, s.buffered)
	}
}

func TestWatchCompacted(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	for range 5 {
		m.put("a", "x")
	}
	m.compact(4)
	s := m.stream()
	id := s.mustWatch(t, WatchRequest{Span: span("a", ""), StartRevision: 3})
	msg := s.recv(t)
	if msg.Kind != WatchCanceled || msg.ID != id || msg.CompactRevision != 4 || msg.Revision != 6 {
		t.Fatalf("%+v", msg)
	}
	if s.Cancel(id) {
		t.Fatal("it is gone")
	}
}

// TestWatchSlowConsumer: a stream that is not read keeps a bounded queue, and loses nothing.
func TestWatchSlowConsumer(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.StreamBytes = 2000 })
	s := m.stream()
	all, one := s.mustWatch(t, WatchRequest{Span: span("k", "l")}), s.mustWatch(t, WatchRequest{Span: span("k7", "")})
	const n = 300
	for i := range n {
		m.txnPuts(fmt.Sprintf("k%d", i%10), fmt.Sprintf("k%d.", i%10))
		if s.buffered > 2000+4*eventOverhead {
			t.Fatalf("%d bytes are queued", s.buffered)
		}
	}
	if m.stats.slowWatchers.Load() == 0 {
		t.Fatal("the test does not test anything")
	}
	next := map[int64]int64{all: 2, one: 2 + 7}
	for next[all] < n+2 || next[one] < n+2 {
		msg := s.recv(t)
		var revs []int64
		for _, e := range msg.Events {
			if len(revs) == 0 || revs[len(revs)-1] != e.KV.ModRevision {
				revs = append(revs, e.KV.ModRevision)
			}
		}
		for _, rev := range revs {
			if rev != next[msg.ID] {
				t.Fatalf("watch %d: revision %d, want %d", msg.ID, rev, next[msg.ID])
			}
			if msg.ID == all {
				next[all]++
			} else {
				next[one] += 10
			}
		}
		if msg.ID == all && len(msg.Events) != 2*len(revs) {
			t.Fatal("a revision was split")
		}
	}
	s.nothing(t)
	if len(s.lag) != 0 || s.buffered != 0 {
		t.Fatal("still behind")
	}
	m.put("k7", "live again")
	s.recv(t)
	s.recv(t)
	s.nothing(t)
}

func TestWatchSlowConsumerMeetsCompaction(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.StreamBytes = 500 })
	s := m.stream()
	id := s.mustWatch(t, WatchRequest{Span: span("a", "")})
	for range 10 {
		m.put("a", "x")
	}
	m.compact(11)
	got := ""
	for {
		msg := s.recv(t)
		if msg.Kind == WatchCanceled {
			if msg.ID != id || msg.CompactRevision != 11 {
				t.Fatalf("%+v", msg)
			}
			break
		}
		got += describe(msg.Events)
	}
	if !strings.HasPrefix(got, "+a@2 +a@3 ") || strings.Contains(got, "@11") {
		t.Fatal(got) // what was queued before it fell behind was delivered, in order
	}
	s.nothing(t)
}

// TestWatchAgainstModel: random writers, watches and readers; every watch sees exactly what the log of events says.
func TestWatchAgainstModel(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.StreamBytes = 3000 })
	r := rand.New(rand.NewPCG(1, 2))
	type watch struct {
		s    *WatchStream
		id   int64
		span storage.Span
		from int64
		got  []string
	}
	var watches []*watch
	streams := []*WatchStream{m.stream(), m.stream(), m.stream()}
	var history []string // of events, "rev key", by revision order
	key := func() string { return fmt.Sprintf("%c%d", 'a'+r.IntN(4), r.IntN(3)) }
	take := func(s *WatchStream) bool {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		msg, err := s.Recv(ctx)
		if err != nil {
			return false
		}
		for _, w := range watches {
			if w.s == s && w.id == msg.ID {
				for _, e := range msg.Events {
					w.got = append(w.got, fmt.Sprintf("%d %s", e.KV.ModRevision, e.KV.Key))
				}
			}
		}
		return true
	}
	for range 600 {
		switch r.IntN(10) {
		case 0:
			if len(watches) < 40 {
				s := streams[r.IntN(len(streams))]
				w := &watch{s: s, span: span(key(), "")}
				if r.IntN(2) == 0 {
					w.span = span(string(rune('a'+r.IntN(3))), string(rune('d'+r.IntN(3))))
				}
				now := m.Header(mvcc.SpaceEtcd).Revision
				start := int64(0)
				w.from = now + 1
				if r.IntN(2) == 0 {
					start = 1 + r.Int64N(now+5)
					w.from = start
				}
				w.id = s.mustWatch(t, WatchRequest{Span: w.span, StartRevision: start})
				watches = append(watches, w)
			}
		case 1, 2, 3:
			take(streams[r.IntN(len(streams))])
		case 4:
			a, b := key(), key()
			if a != b {
				m.txnPuts(a, b)
				rev := m.Header(mvcc.SpaceEtcd).Revision
				history = append(history, fmt.Sprintf("%d %s", rev, a), fmt.Sprintf("%d %s", rev, b))
			}
		default:
			k := key()
			history = append(history, fmt.Sprintf("%d %s", m.put(k, "v"), k))
		}
	}
	for _, s := range streams {
		for take(s) {
		}
	}
	for i, w := range watches {
		var expect []string
		for _, line := range history {
			var rev int64
			var k string
			if _, err := fmt.Sscanf(line, "%d %s", &rev, &k); err != nil {
				t.Fatal(err)
			}
			if rev >= w.from && w.span.Contains([]byte(k)) {
				expect = append(expect, line)
			}
		}
		if fmt.Sprint(w.got) != fmt.Sprint(expect) {
			t.Fatalf("watch %d over %q from %d:\ngot  %v\nwant %v", i, w.span, w.from, w.got, expect)
		}
	}
}

// TestWatchConcurrently: writers, watchers that come and go, and slow readers at the same time.
func TestWatchConcurrently(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.StreamBytes = 4000 })
	const writes = 400
	base := m.Header(mvcc.SpaceEtcd).Revision
	var waits []func() error
	for r := range 4 {
		waits = append(waits, later(t, func() error {
			s := m.NewWatchStream(m.anon, mvcc.SpaceEtcd)
			defer s.Close()
			head := m.Header(mvcc.SpaceEtcd).Revision
			id, err := s.Watch(WatchRequest{Span: span("w", "x"), StartRevision: head + 1})
			if err != nil {
				return err
			}
			other, err := s.Watch(WatchRequest{Span: span("w", "x")})
			if err != nil {
				return err
			}
			for next, n := head+1, 0; next <= base+writes; n++ {
				msg, err := s.Recv(m.ctx)
				if err != nil {
					return err
				}
				if msg.ID != id {
					if n%3 == r%3 && s.Cancel(other) {
						if other, err = s.Watch(WatchRequest{Span: span("w", "x")}); err != nil {
							return err
						}
					}
					continue
				}
				for _, e := range msg.Events {
					if e.KV.ModRevision != next {
						return fmt.Errorf("revision %d, want %d", e.KV.ModRevision, next)
					}
					next++
				}
			}
			return nil
		}))
	}
	for w := range 2 {
		waits = append(waits, later(t, func() error {
			for i := range writes / 2 {
				_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "w%d.%d", w, i%7), Value: make([]byte, 200)})
				if err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, wait := range waits {
		must(t, wait())
	}
}

func TestWatchPrevAndWire(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.put("a", "1")
	s := m.stream()
	first, second := s.mustWatch(t, WatchRequest{Span: span("a", "")}), s.mustWatch(t, WatchRequest{Span: span("a", "b")})
	m.put("a", "2")
	m.put("b", "0")
	m.del("a", "")
	x, y := s.recv(t), s.recv(t)
	if x.ID != first || y.ID != second || x.Events[0] != y.Events[0] {
		t.Fatal("watchers share the event")
	}
	var encoded atomic.Int32
	encode := func(e *SharedEvent, prev *mvcc.KV) []byte {
		encoded.Add(1)
		if prev == nil {
			return []byte("none")
		}
		return prev.Value
	}
	for _, msg := range []*WatchMessage{x, y} {
		for i, value := range []string{"1", "2"} {
			wire, err := msg.Events[i].Wire(true, encode)
			must(t, err)
			if string(wire) != value {
				t.Fatalf("event %d: %s", i, wire)
			}
			wire, err = msg.Events[i].Wire(false, encode)
			must(t, err)
			if string(wire) != "none" {
				t.Fatal("prev_kv was not asked for")
			}
		}
	}
	if encoded.Load() != 4 {
		t.Fatalf("%d encodings", encoded.Load())
	}
	m.put("a", "3")
	m.put("a", "4")
	z := s.recv(t)
	m.compact(6)
	if prev, err := z.Events[0].Prev(); err != nil || prev != nil {
		t.Fatal("a created key has no version before", prev, err)
	}
	m.put("a", "5")
	m.compact(m.Header(mvcc.SpaceEtcd).Revision)
	if prev, err := z.Events[1].Prev(); err != nil || prev != nil {
		t.Fatal("the version before is compacted", prev, err)
	}
}

func TestWatchProgressOnRequest(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.StreamBytes = 400 })
	s := m.stream()
	s.RequestProgress()
	s.nothing(t) // no watch, no answer
	a := s.mustWatch(t, WatchRequest{Span: span("a", "")})
	m.put("a", "1")
	s.RequestProgress()
	s.wantEvents(t, a, "+a@2")
	if msg := s.recv(t); msg.Kind != WatchProgress || msg.ID != -1 || msg.Revision != 2 {
		t.Fatalf("%+v", msg)
	}
	s.nothing(t)

	// A watch that is behind holds the answer back until it has caught up.
	for range 10 {
		m.put("b", "x")
	}
	b := s.mustWatch(t, WatchRequest{Span: span("b", ""), StartRevision: 3})
	s.RequestProgress()
	if msg := s.recv(t); msg.Kind != WatchEvents || msg.ID != b || len(msg.Events) != 10 {
		t.Fatalf("%+v", msg)
	}
	if msg := s.recv(t); msg.Kind != WatchProgress || msg.Revision != 12 {
		t.Fatalf("%+v", msg)
	}

	// The answer was queued, and a watch fell behind before it was read: it waits again.
	m.put("a", "2")
	s.RequestProgress()
	s.mu.Lock()
	s.progressLocked()
	s.mu.Unlock()
	for range 5 {
		m.put("b", "y")
	}
	seen := int64(0)
	for {
		msg := s.recv(t)
		if msg.Kind == WatchProgress {
			if msg.Revision < seen || msg.Revision > 18 || len(s.lag) > 0 {
				t.Fatalf("%+v after %d", msg, seen)
			}
			break
		}
		seen = msg.Events[len(msg.Events)-1].KV.ModRevision
	}

	// None is sent while a watch starts in the future.
	s.mustWatch(t, WatchRequest{Span: span("c", ""), StartRevision: 100})
	s.RequestProgress()
	s.nothing(t)
}

// TestWatchProgressNeverGoesBack: progress is not below an event that was told before it: not if the event came while the
// progress was queued, and not if the hub is still telling others of the event.
func TestWatchProgressNeverGoesBack(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.stream()
	a := s.mustWatch(t, WatchRequest{Span: span("a", "")})
	m.put("a", "1")
	s.RequestProgress()
	s.mu.Lock()
	s.progressLocked() // up to 2, behind the event of 2, which another one joins
	s.mu.Unlock()
	m.put("a", "2")
	s.wantEvents(t, a, "+a@2 +a@3")
	if msg := s.recv(t); msg.Kind != WatchProgress || msg.Revision != 3 {
		t.Fatalf("after an event of revision 3: %+v", msg)
	}

	m.put("a", "3")
	hub := m.hubs[mvcc.SpaceEtcd]
	hub.dispatched.Store(3) // it is not through with 4
	s.RequestProgress()
	s.wantEvents(t, a, "+a@4")
	s.nothing(t)
	hub.dispatch(nil, 4)
	if msg := s.recv(t); msg.Kind != WatchProgress || msg.Revision != 4 {
		t.Fatalf("after an event of revision 4: %+v", msg)
	}
}

func TestWatchProgressByClock(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.ProgressInterval = time.Minute })
	s := m.stream()
	quiet := s.mustWatch(t, WatchRequest{Span: span("q", ""), ProgressNotify: true})
	busy := s.mustWatch(t, WatchRequest{Span: span("b", ""), ProgressNotify: true})
	s.mustWatch(t, WatchRequest{Span: span("b", "c")})
	s.mustWatch(t, WatchRequest{Span: span("f", ""), StartRevision: 50, ProgressNotify: true})
	m.put("b", "1")
	s.wantEvents(t, busy, "+b@2")
	s.recv(t)
	m.pass(50 * time.Second)
	s.nothing(t)
	m.pass(20 * time.Second) // one interval and its tenth
	if msg := s.recv(t); msg.Kind != WatchProgress || msg.ID != quiet || msg.Revision != 2 {
		t.Fatalf("%+v", msg)
	}
	s.nothing(t)
	m.pass(70 * time.Second)
	ids := map[int64]bool{}
	for range 2 {
		msg := s.recv(t)
		if msg.Kind != WatchProgress {
			t.Fatalf("%+v", msg)
		}
		ids[msg.ID] = true
	}
	if !ids[quiet] || !ids[busy] {
		t.Fatal(ids)
	}
	s.nothing(t)
	m.pass(10 * time.Minute)
	m.pass(10 * time.Minute) // unread notifications do not pile up
	s.recv(t)
	s.recv(t)
	s.nothing(t)
}

func TestWatchRightsAreLookedAtAgain(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	open := m.stream()
	before := open.mustWatch(t, WatchRequest{Span: span("a", "")})
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	// The stream of before has no user: what it watched freely it may not watch now.
	msg := open.recv(t)
	if msg.Kind != WatchCanceled || msg.ID != before {
		t.Fatalf("%+v", msg)
	}
	want(t, msg.Reason, state.ErrUserEmpty)

	root, alice := m.login("root", "secret"), m.login("alice", "pw-alice")
	s := m.NewWatchStream(alice, mvcc.SpaceEtcd)
	defer s.Close()
	_, err := s.Watch(WatchRequest{Span: span("c", "")})
	want(t, err, state.ErrPermissionDenied)
	_, err = s.Watch(WatchRequest{Span: span("a", "∞")})
	want(t, err, state.ErrPermissionDenied)
	key, all := s.mustWatch(t, WatchRequest{Span: span("ab", "")}), s.mustWatch(t, WatchRequest{Span: span("a", "b")})

	// A change that takes nothing away ends nothing.
	must(t, m.UserAdd(m.ctx, root, "bob", "x", false))
	_, err = m.Put(m.ctx, root, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("ab")})
	must(t, err)
	s.wantEvents(t, key, "+ab@2")
	s.wantEvents(t, all, "+ab@2")

	// The watches wait while the right is taken away: they end, and show nothing written afterwards.
	received := later(t, func() error {
		msg, err := s.Recv(m.ctx)
		if err == nil && (msg.Kind != WatchCanceled || msg.ID != key) {
			err = fmt.Errorf("%+v", msg)
		}
		return err
	})
	must(t, m.AuthChange(m.ctx, root, &state.AuthChange{Op: state.RoleRevoke, Role: "alice", Permission: state.Permission{Span: span("a", "b")}}))
	_, err = m.Put(m.ctx, root, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("ab")})
	must(t, err)
	must(t, received())
	msg = s.recv(t)
	if msg.Kind != WatchCanceled || msg.ID != all {
		t.Fatalf("%+v %s", msg, describe(msg.Events))
	}
	want(t, msg.Reason, state.ErrPermissionDenied)
	s.nothing(t)
}

func TestWatchOtherSpaceIsAnotherWorld(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.NewWatchStream(m.system, mvcc.SpaceCA)
	defer s.Close()
	id := s.mustWatch(t, WatchRequest{Span: span("revoked/", "revoked0")})
	m.put("revoked/x", "not here")
	s.nothing(t)
	_, err := m.Put(m.ctx, m.system, &state.Put{Space: mvcc.SpaceCA, Key: []byte("revoked/aa/01")})
	must(t, err)
	s.wantEvents(t, id, "+revoked/aa/01@2")
}

func TestRevocationIsTold(t *testing.T) {
	t.Parallel()
	var told []policy.Certificate
	m := start(t, func(o *Options) { o.OnRevoked = func(c []policy.Certificate) { told = append(told, c...) } })
	cert := policy.Certificate{Issuer: "aa", Serial: "01"}
	who := policy.NewHolder("x", cert, policy.RoleAdmin, false)
	_, err := m.Put(m.ctx, who, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	must(t, err)
	_, err = m.Put(m.ctx, m.system, &state.Put{Space: mvcc.SpaceCA, Key: state.RevokedKey(cert)})
	must(t, err)
	if len(told) != 1 || told[0] != cert {
		t.Fatal(told)
	}
	if revoked, err := m.Revoked(cert); err != nil || !revoked {
		t.Fatal(revoked, err)
	}
	_, err = m.Put(m.ctx, who, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	want(t, err, state.ErrRevoked)
	if !m.audit.has("certificate revoked", outcomeDone) || !m.audit.has("put", state.ErrRevoked.Reason) {
		t.Fatal("not in the record")
	}
}

func TestLeaderLost(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	lost := m.LeaderLost()
	if _, none := m.NoLeaderSince(); none {
		t.Fatal("there is a leader")
	}
	m.loop.set(func() {
		m.loop.status.Leader = 0
		m.loop.status.Self = false
		m.loop.status.NoLeaderSince = m.time.Now()
	})
	if _, none := m.NoLeaderSince(); !none {
		t.Fatal("there is no leader")
	}
	m.pass(3*time.Second - 1)
	select {
	case <-lost:
		t.Fatal("too early")
	default:
	}
	m.pass(1)
	<-lost
	m.loop.set(func() { m.loop.status.Leader, m.loop.status.NoLeaderSince = testMember, time.Time{} })
	m.pass(1)
	select {
	case <-m.LeaderLost():
		t.Fatal("there is a leader again")
	default:
	}
}
