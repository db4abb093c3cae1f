package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

func TestPutGetDelete(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	if rev := m.put("a", "1"); rev != 2 {
		t.Fatal(rev)
	}
	res, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("2"), PrevKV: true})
	must(t, err)
	if res.Revision != 3 || string(res.Prev.Value) != "1" {
		t.Fatalf("%+v", res)
	}
	if v := m.get("a"); v != "2" {
		t.Fatal(v)
	}
	del, err := m.Delete(m.ctx, m.anon, &state.Delete{Space: mvcc.SpaceEtcd, Span: span("a", "∞"), PrevKV: true})
	must(t, err)
	if del.Deleted != 1 || del.Revision != 4 || string(del.Prev[0].Value) != "2" {
		t.Fatalf("%+v", del)
	}
	if v := m.get("a"); v != "-" {
		t.Fatal(v)
	}
	if h := m.Header(mvcc.SpaceEtcd); h != (Header{Cluster: testCluster, Member: testMember, Term: 1, Revision: 4}) {
		t.Fatalf("%+v", h)
	}
	old := query("a")
	old.Query.Revision = 2
	page, err := m.Range(m.ctx, m.anon, old)
	must(t, err)
	if page.Revision != 4 || string(page.KVs[0].Value) != "1" {
		t.Fatalf("%+v", page)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.TxnOps = 2 })
	m.put("a", "1")
	m.put("a", "2")
	_, err := m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 3}, true)
	must(t, err)
	put := func(p state.Put) error {
		p.Space = mvcc.SpaceEtcd
		_, err := m.Put(m.ctx, m.anon, &p)
		return err
	}
	get := func(q mvcc.Query) error {
		_, err := m.Range(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceEtcd, Query: q})
		return err
	}
	txn := func(x state.Txn) error {
		x.Space = mvcc.SpaceEtcd
		_, err := m.Txn(m.ctx, m.anon, &x, false)
		return err
	}
	compact := func(rev int64) error {
		_, err := m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: rev}, false)
		return err
	}
	a, b := []byte("a"), []byte("b")
	op := state.Op{Put: &state.Put{Key: a}}
	before := m.loop.index
	for name, c := range map[string]struct{ got, want error }{
		"empty key":          {put(state.Put{}), state.ErrEmptyKey},
		"too large":          {put(state.Put{Key: a, Value: make([]byte, 2<<20)}), ErrTooLarge},
		"value given":        {put(state.Put{Key: a, Value: b, IgnoreValue: true}), state.ErrValueProvided},
		"lease given":        {put(state.Put{Key: a, Lease: 1, IgnoreLease: true}), state.ErrLeaseProvided},
		"range no key":       {get(mvcc.Query{}), state.ErrEmptyKey},
		"sort":               {get(mvcc.Query{Span: storage.KeySpan(a), Order: 9}), state.ErrInvalidSort},
		"future":             {get(mvcc.Query{Span: storage.KeySpan(a), Revision: 99}), mvcc.ErrFutureRevision},
		"compacted":          {get(mvcc.Query{Span: storage.KeySpan(a), Revision: 2}), mvcc.ErrCompacted},
		"many ops":           {txn(state.Txn{Success: []state.Op{op, op, op}}), state.ErrTooManyOps},
		"duplicate":          {txn(state.Txn{Success: []state.Op{op, op}}), state.ErrDuplicateKey},
		"empty op":           {txn(state.Txn{Success: []state.Op{{}}}), state.ErrKeyNotFound},
		"txn future":         {txn(state.Txn{Success: []state.Op{{Range: &mvcc.Query{Span: storage.KeySpan(a), Revision: 99}}}}), mvcc.ErrFutureRevision},
		"compact compacted":  {compact(3), mvcc.ErrCompacted},
		"compact the future": {compact(99), mvcc.ErrFutureRevision},
		"unknown lease":      {put(state.Put{Key: a, Lease: 5}), mvcc.ErrLeaseNotFound},
		"no such key":        {put(state.Put{Key: b, IgnoreValue: true}), state.ErrKeyNotFound},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.got, c.want)
		}
	}
	if after := m.loop.index; after != before+4 { // the last four are the machine's to decide
		t.Errorf("%d entries for refused requests", after-before)
	}
	if v := m.get("a"); v != "2" {
		t.Fatal(v)
	}
}

func TestNobodyMayNothing(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	client := policy.NewHolder("x", policy.Certificate{Issuer: "i", Serial: "1"}, policy.RoleClient, false)
	for _, who := range []policy.Principal{{}, client} {
		_, err := m.Range(m.ctx, who, query("a"))
		want(t, err, state.ErrPermissionDenied)
		_, err = m.Put(m.ctx, who, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
		want(t, err, state.ErrPermissionDenied)
		_, err = m.Txn(m.ctx, who, &state.Txn{Space: mvcc.SpaceEtcd, Compare: []state.Compare{{Span: span("a", "")}}}, true)
		want(t, err, state.ErrPermissionDenied)
		_, err = m.NewWatchStream(who, mvcc.SpaceEtcd).Watch(WatchRequest{Span: span("a", "")})
		want(t, err, state.ErrPermissionDenied)
		_, _, err = m.LeaseGrant(m.ctx, who, 1, 5)
		want(t, err, state.ErrPermissionDenied)
		_, err = m.LeaseRenew(m.ctx, who, 1)
		want(t, err, state.ErrPermissionDenied)
		_, err = m.Status(m.ctx, who)
		want(t, err, state.ErrPermissionDenied)
		_, _, err = m.MemberAdd(m.ctx, who, []string{"http://b:1"}, false)
		want(t, err, state.ErrPermissionDenied)
		want(t, m.AuthChange(m.ctx, who, &state.AuthChange{Op: state.AuthEnable}), state.ErrPermissionDenied)
		want(t, m.Defragment(m.ctx, who), state.ErrPermissionDenied)
	}
	if m.loop.index != 0 {
		t.Fatal("something reached the log")
	}
	if !m.audit.has("put", "permission denied") || !m.audit.has("watch", "permission denied") || !m.audit.has("range", "permission denied") {
		t.Fatal("a refusal is not in the record")
	}
	// Who comes in openly sees etcd's space and no other.
	_, err := m.Range(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceCA, Query: mvcc.Query{Span: span("\x00", "∞")}})
	want(t, err, state.ErrPermissionDenied)
}

func TestTxn(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.put("a", "1")
	read := &state.Txn{
		Space:   mvcc.SpaceEtcd,
		Compare: []state.Compare{{Span: span("a", ""), Target: state.CompareValue, Value: []byte("1")}},
		Success: []state.Op{{Range: &mvcc.Query{Span: span("a", "")}}, {Range: &mvcc.Query{Span: span("b", "")}}},
	}
	index, reads := m.loop.index, m.loop.reads
	res, err := m.Txn(m.ctx, m.anon, read, false)
	must(t, err)
	if !res.Succeeded || res.Revision != 2 || len(res.Results) != 2 || len(res.Results[0].Range.KVs) != 1 || len(res.Results[1].Range.KVs) != 0 {
		t.Fatalf("%+v", res)
	}
	if m.loop.index != index || m.loop.reads != reads+1 {
		t.Fatal("a read-only transaction is a linearizable read and no entry")
	}
	compareOnly := &state.Txn{Space: mvcc.SpaceEtcd, Compare: read.Compare}
	_, err = m.Txn(m.ctx, m.anon, compareOnly, false)
	must(t, err)
	if m.loop.reads != reads+2 {
		t.Fatal("a transaction that only compares is linearizable too")
	}
	write := &state.Txn{Space: mvcc.SpaceEtcd, Compare: read.Compare, Success: []state.Op{
		{Put: &state.Put{Key: []byte("b"), Value: []byte("x")}}, {Range: &mvcc.Query{Span: span("b", "")}},
	}}
	res, err = m.Txn(m.ctx, m.anon, write, false)
	must(t, err)
	if res.Revision != 3 || string(res.Results[1].Range.KVs[0].Value) != "x" {
		t.Fatalf("%+v", res)
	}
}

func TestGroupCommit(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.hold = true })
	const n = 50
	var waits []func() error
	revisions := make([]int64, n)
	for i := range n {
		waits = append(waits, later(t, func() error {
			res, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "%d", i), Value: []byte("v")})
			if err == nil {
				revisions[i] = res.Revision
			}
			return err
		}))
	}
	until(t, "all queued", func() bool { return m.proposals.waitingNow() == n })
	m.loop.release()
	seen := map[int64]bool{}
	for i, wait := range waits {
		must(t, wait())
		if rev := revisions[i]; seen[rev] || rev < 2 || rev > n+1 {
			t.Fatalf("revision %d", rev)
		} else {
			seen[rev] = true
		}
	}
	if m.loop.batches != 1 || m.loop.index != 1 {
		t.Fatalf("%d batches, %d entries", m.loop.batches, m.loop.index)
	}
	if m.proposals.queuedBytes() != 0 {
		t.Fatal("bytes are still counted")
	}
}

// waitingNow is the number of requests in the queue.
func (p *proposals) waitingNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) - p.head
}

func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.hold = true })
	var waits []func() error
	for i := range 5 {
		waits = append(waits, later(t, func() error {
			_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "%d", i), Value: make([]byte, 400<<10)})
			return err
		}))
	}
	until(t, "all queued", func() bool { return m.proposals.waitingNow() == 5 })
	m.loop.release()
	for _, wait := range waits {
		must(t, wait())
	}
	if m.loop.batches != 3 { // two of 400 KiB in 1 MiB
		t.Fatal(m.loop.batches)
	}
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.QueueBytes = 1000 })
	m.loop.set(func() { m.loop.hold = true })
	big := &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: make([]byte, 700)}
	first := later(t, func() error { _, err := m.Put(m.ctx, m.anon, big); return err })
	until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
	_, err := m.Put(m.ctx, m.anon, big)
	want(t, err, ErrTooManyRequests)
	m.loop.release()
	must(t, first())
	_, err = m.Put(m.ctx, m.anon, big)
	must(t, err)
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	put := func(m *member) func() error {
		wait := later(t, func() error {
			_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("1")})
			return err
		})
		return wait
	}
	t.Run("in the queue", func(t *testing.T) {
		m := start(t, nil)
		m.loop.set(func() { m.loop.hold = true })
		wait := put(m)
		until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
		m.pass(m.timeout - 1)
		if m.proposals.waitingNow() != 1 {
			t.Fatal("too early")
		}
		m.pass(1)
		want(t, wait(), ErrTimeout)
		m.loop.release()
		if m.get("a") != "-" || m.proposals.queuedBytes() != 0 {
			t.Fatal("a request that was given up in the queue was proposed")
		}
	})
	t.Run("on its way", func(t *testing.T) {
		m := start(t, nil)
		m.loop.set(func() { m.loop.keep = true })
		wait := put(m)
		until(t, "pulled", func() bool { m.loop.mu.Lock(); defer m.loop.mu.Unlock(); return len(m.loop.kept) == 1 })
		m.pass(m.timeout)
		want(t, wait(), ErrTimeout)
		m.loop.release() // it is applied all the same, and answered to nobody
		if m.get("a") != "1" || m.proposals.queuedBytes() != 0 {
			t.Fatal("what reached the log is applied")
		}
	})
	t.Run("leader failure", func(t *testing.T) {
		m := start(t, nil)
		m.loop.set(func() { m.loop.keep = true })
		wait := put(m)
		until(t, "pulled", func() bool { m.loop.mu.Lock(); defer m.loop.mu.Unlock(); return len(m.loop.kept) == 1 })
		m.Lost(m.loop.kept[0], replica.ErrLeaderChanged)
		m.pass(m.timeout)
		want(t, wait(), ErrTimeoutLeaderFail)
	})
	t.Run("leader elected meanwhile", func(t *testing.T) {
		m := start(t, nil)
		m.loop.set(func() { m.loop.hold = true; m.loop.status.LeaderSince = m.time.Now().Add(1) })
		wait := put(m)
		until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
		m.pass(m.timeout)
		want(t, wait(), ErrTimeoutLeaderFail)
	})
	t.Run("connection lost", func(t *testing.T) {
		m := start(t, nil)
		m.loop.set(func() {
			m.loop.hold = true
			m.loop.status = replica.Status{Leadership: replica.Leadership{Leader: 9, Term: 1}, Peers: []replica.PeerStatus{{Peer: replica.Peer{ID: 9}}}}
		})
		wait := put(m)
		until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
		m.pass(m.timeout)
		want(t, wait(), ErrTimeoutConnection)
	})
}

func TestLostButNotLogged(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.keep = true })
	wait := later(t, func() error {
		_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("1")})
		return err
	})
	until(t, "pulled", func() bool { m.loop.mu.Lock(); defer m.loop.mu.Unlock(); return len(m.loop.kept) == 1 })
	var data []byte
	m.loop.set(func() { data, m.loop.kept, m.loop.keep = m.loop.kept[0], nil, false })
	m.Lost(data, replica.ErrDropped)
	must(t, wait())
	if m.get("a") != "1" || m.Header(mvcc.SpaceEtcd).Revision != 2 {
		t.Fatal("once and only once")
	}
	m.loop.apply(data) // the first batch comes after all: nobody waits for it, and what it asks is asked by another proposal
	if m.proposals.queuedBytes() != 0 {
		t.Fatal("bytes are still counted")
	}
}

func TestDuplicateBatchIsAppliedOnce(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.keep = true })
	wait := later(t, func() error {
		_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("1")})
		return err
	})
	until(t, "pulled", func() bool { m.loop.mu.Lock(); defer m.loop.mu.Unlock(); return len(m.loop.kept) == 1 })
	again := bytes.Clone(m.loop.kept[0])
	m.loop.release()
	must(t, wait())
	m.loop.apply(again)
	if rev := m.Header(mvcc.SpaceEtcd).Revision; rev != 2 {
		t.Fatal(rev)
	}
}

func TestCancellation(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.hold = true })
	ctx, cancel := context.WithCancel(m.ctx)
	wait := later(t, func() error {
		_, err := m.Put(ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("1")})
		return err
	})
	until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
	cancel()
	want(t, wait(), context.Canceled)
	m.loop.release()
	if m.get("a") != "-" || m.loop.batches != 0 {
		t.Fatal("a cancelled request was proposed")
	}
	_, err := m.Put(ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	want(t, err, context.Canceled)
	_, err = m.Range(ctx, m.anon, query("a"))
	want(t, err, context.Canceled)
}

func TestStopped(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.hold = true })
	wait := later(t, func() error {
		_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
		return err
	})
	until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
	stream := m.NewWatchStream(m.anon, mvcc.SpaceEtcd)
	received := later(t, func() error { _, err := stream.Recv(m.ctx); return err })
	m.Close()
	want(t, wait(), ErrStopped)
	want(t, received(), ErrWatchClosed)
	_, err := m.Range(m.ctx, m.anon, query("a"))
	want(t, err, ErrStopped)
	_, err = m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	want(t, err, ErrStopped)
	_, err = m.NewWatchStream(m.anon, mvcc.SpaceEtcd).Watch(WatchRequest{Span: span("a", "")})
	want(t, err, ErrWatchClosed)
}

func TestReadWithoutLeader(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.put("a", "1")
	m.loop.set(func() { m.loop.block = true })
	wait := later(t, func() error { _, err := m.Range(m.ctx, m.anon, query("a")); return err })
	until(t, "asked", func() bool { m.loop.mu.Lock(); defer m.loop.mu.Unlock(); return m.loop.reads == 1 })
	local := query("a")
	local.Serializable = true
	page, err := m.Range(m.ctx, m.anon, local)
	must(t, err)
	if len(page.KVs) != 1 {
		t.Fatal("serializable reads need nobody")
	}
	// One that comes meanwhile gathers for the next round, and may leave.
	ctx, cancel := context.WithCancel(m.ctx)
	joined := later(t, func() error { _, err := m.Range(ctx, m.anon, query("a")); return err })
	until(t, "joined", func() bool { m.reads.mu.Lock(); defer m.reads.mu.Unlock(); return m.reads.next != nil })
	cancel()
	want(t, joined(), context.Canceled)
	m.pass(m.timeout + 1)
	m.pass(m.timeout)
	want(t, wait(), ErrTimeout)
	m.loop.set(func() { m.loop.block = false; m.loop.readErr = replica.ErrLeaderChanged })
	_, err = m.Range(m.ctx, m.anon, query("a"))
	want(t, err, ErrLeaderChanged)
	m.loop.set(func() { m.loop.readErr = nil })
	if m.get("a") != "1" {
		t.Fatal("reads go on")
	}
}

func TestReadRoundsAreShared(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	m.loop.set(func() { m.loop.onRead = func() { entered <- struct{}{}; <-gate } })
	read := func() func() error {
		return later(t, func() error { _, err := m.Range(m.ctx, m.anon, query("a")); return err })
	}
	waits := []func() error{read()}
	<-entered
	for range 40 {
		waits = append(waits, read())
	}
	until(t, "gathered", func() bool {
		m.reads.mu.Lock()
		defer m.reads.mu.Unlock()
		return m.reads.next != nil && m.reads.next.members == 40
	})
	close(gate)
	for _, wait := range waits {
		must(t, wait())
	}
	if m.loop.reads != 2 {
		t.Fatalf("%d rounds for 41 reads", m.loop.reads)
	}
	if m.reads.running || m.reads.next != nil {
		t.Fatal("a round was left behind")
	}
}

func TestLearner(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.put("a", "1")
	m.loop.set(func() { m.loop.status.Learner = true })
	m.pass(1)
	_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	want(t, err, ErrLearner)
	_, err = m.Range(m.ctx, m.anon, query("a"))
	want(t, err, ErrLearner)
	_, err = m.Txn(m.ctx, m.anon, &state.Txn{Space: mvcc.SpaceEtcd}, false)
	want(t, err, ErrLearner)
	_, err = m.LeaseRenew(m.ctx, m.anon, 1)
	want(t, err, ErrLearner)
	_, err = m.Authenticate(m.ctx, m.anon, "a", "b")
	want(t, err, ErrLearner)
	want(t, m.Health(m.ctx, HealthNonLearner), ErrLearner)
	local := query("a")
	local.Serializable = true
	_, err = m.Range(m.ctx, m.anon, local)
	must(t, err)
	_, err = m.Status(m.ctx, m.anon)
	must(t, err)
}

func TestRangeStream(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	const n = 137
	for i := range n {
		m.put(fmt.Sprintf("k%04d", i), string(make([]byte, 50)))
	}
	collect := func(r RangeRequest, chunk int64, disturb bool) (kvs []mvcc.KV, pages []int, end mvcc.Page) {
		err := m.RangeStream(m.ctx, m.anon, r, chunk, func(page mvcc.Page, last bool) error {
			if disturb {
				m.put("k0000x", "new")
			}
			kvs = append(kvs, page.KVs...)
			pages = append(pages, len(page.KVs))
			if last {
				end = page
			} else if page.More || page.Count != 0 {
				t.Fatal("only the last piece tells about the whole")
			}
			return nil
		})
		must(t, err)
		return kvs, pages, end
	}
	all := RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: span("k", "l")}}
	kvs, pages, end := collect(all, 4000, true)
	if len(kvs) != n || end.Count != n || end.More || end.Revision != n+1 || pages[0] != 10 || len(pages) < 4 {
		t.Fatalf("%d keys in %v, count %d more %v revision %d", len(kvs), pages, end.Count, end.More, end.Revision)
	}
	for i, kv := range kvs {
		if string(kv.Key) != fmt.Sprintf("k%04d", i) {
			t.Fatalf("%d is %s", i, kv.Key)
		}
	}
	limited := all
	limited.Query.Limit, limited.Query.Revision = 25, n+1
	kvs, pages, end = collect(limited, 1<<20, false)
	if len(kvs) != 25 || !end.More || end.Count != n {
		t.Fatalf("%d keys in %v, count %d more %v", len(kvs), pages, end.Count, end.More)
	}
	limited.Query.Limit = n
	if kvs, _, end = collect(limited, 1<<20, false); len(kvs) != n || end.More {
		t.Fatal(len(kvs), end.More)
	}
	counted := all
	counted.Query.CountOnly = true
	if kvs, pages, end = collect(counted, 100, false); len(kvs) != 0 || len(pages) != 1 || end.Count != n+1 {
		t.Fatal(len(kvs), pages, end.Count)
	}
	sorted := all
	sorted.Query.Target, sorted.Query.Order = mvcc.SortByValue, mvcc.SortAscend
	want(t, m.RangeStream(m.ctx, m.anon, sorted, 100, nil), errRangeStreamOptions)
	stop := errors.New("client gone")
	want(t, m.RangeStream(m.ctx, m.anon, all, 100, func(mvcc.Page, bool) error { return stop }), stop)
	_, err := m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 5}, false)
	must(t, err)
	old := all
	old.Query.Revision = 3
	want(t, m.RangeStream(m.ctx, m.anon, old, 100, nil), mvcc.ErrCompacted)
}

func TestQuota(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.QuotaBytes = 20_000 })
	big := func() error {
		_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("big"), Value: make([]byte, 4000)})
		return err
	}
	var err error
	for range 20 {
		if err = big(); err != nil {
			break
		}
	}
	want(t, err, state.ErrNoSpace)
	alarms, err := m.Alarms(m.ctx, m.anon, state.Alarm{})
	must(t, err)
	if len(alarms) != 1 || alarms[0] != (state.Alarm{Member: testMember, Kind: state.AlarmNoSpace}) {
		t.Fatal(alarms)
	}
	want(t, m.Health(m.ctx, HealthAlarms), state.ErrNoSpace)
	want(t, big(), state.ErrNoSpace)
	_, _, err = m.LeaseGrant(m.ctx, m.anon, 0, 10)
	want(t, err, state.ErrNoSpace)
	m.del("none", "") // deleting is allowed
	st, err := m.Status(m.ctx, m.anon)
	must(t, err)
	if len(st.Errors) != 1 || st.Errors[0] != fmt.Sprintf("memberID:%d alarm:NOSPACE ", testMember) || st.Quota != 20_000 {
		t.Fatalf("%+v", st)
	}
	_, err = m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: m.Header(mvcc.SpaceEtcd).Revision}, true)
	must(t, err)
	must(t, m.Defragment(m.ctx, m.anon))
	lowered, err := m.ChangeAlarm(m.ctx, m.anon, state.AlarmChange{})
	must(t, err)
	if len(lowered) != 1 {
		t.Fatal(lowered)
	}
	must(t, big())
	must(t, m.Health(m.ctx, HealthAlarms))
}

// TestQuotaOnTheClock: what grew through another member's requests raises the alarm as well.
func TestQuotaOnTheClock(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.QuotaBytes = 3000 })
	data, err := state.EncodeBatch(state.Proposal{Member: 77, Boot: 1, Seq: 1}, []state.Call{{
		Who: m.anon, Request: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: make([]byte, 4000)},
	}})
	must(t, err)
	m.loop.apply(data)
	m.pass(1)
	g := m.acquire()
	defer g.release()
	if !g.machine.HasAlarm(state.AlarmNoSpace) {
		t.Fatal("no alarm")
	}
}

// TestDiskReserve: a disk that is nearly full raises the alarm through the log, and room lowers it again; an alarm that the
// disk did not raise stays.
func TestDiskReserve(t *testing.T) {
	t.Parallel()
	var free atomic.Int64
	free.Store(1000)
	var broken atomic.Bool
	m := start(t, func(o *Options) {
		o.Limits.ReserveBytes = 100
		o.FreeDisk = func() (int64, error) {
			if broken.Load() {
				return 0, errors.New("cannot tell")
			}
			return free.Load(), nil
		}
	})
	m.put("a", "1")
	alarmed := func() bool {
		m.pass(10 * time.Second)
		g := m.acquire()
		defer g.release()
		return g.machine.HasAlarm(state.AlarmNoSpace)
	}
	if alarmed() {
		t.Fatal("an alarm with room left")
	}
	broken.Store(true)
	free.Store(50)
	if alarmed() {
		t.Fatal("an alarm though nobody knows")
	}
	broken.Store(false)
	if !alarmed() {
		t.Fatal("no alarm on a full disk")
	}
	_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("b"), Value: []byte("2")})
	want(t, err, state.ErrNoSpace)
	free.Store(150)
	if !alarmed() {
		t.Fatal("lowered before there is twice the reserve")
	}
	free.Store(250)
	if alarmed() {
		t.Fatal("not lowered")
	}
	m.put("b", "2")
	_, err = m.ChangeAlarm(m.ctx, m.system, state.AlarmChange{Alarm: state.Alarm{Member: testMember, Kind: state.AlarmNoSpace}, Raise: true})
	must(t, err)
	if !alarmed() {
		t.Fatal("somebody else's alarm was lowered")
	}
	m.restartClock()
	if alarmed() {
		t.Fatal("the alarm of a run that died with a full disk stays for ever")
	}
}

// restartClock makes what the clock knows that of a new run, which has told the cluster of itself.
func (m *member) restartClock() {
	m.t.Helper()
	m.disk = diskWatch{}
	must(m.t, m.Publish(m.ctx, "a", nil))
}

func BenchmarkRangeSerializable(b *testing.B) {
	benchmarkRange(b, true)
}

func BenchmarkRangeLinearizable(b *testing.B) {
	benchmarkRange(b, false)
}

func benchmarkRange(b *testing.B, serializable bool) {
	m := start(b, nil)
	m.put("a", "1")
	r := query("a")
	r.Serializable = serializable
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Range(context.Background(), m.anon, r); err != nil {
			b.Fatal(err)
		}
	}
}
