package core

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// loopback is a log of one member. It applies what it is given at once, on the goroutine of whoever wakes it, or holds it
// until told.
type loopback struct {
	core *Core

	mu      sync.Mutex
	busy    bool
	pending bool
	hold    bool // do not pull
	keep    bool // pull, but do not apply
	kept    [][]byte
	batches int // pulled
	index   uint64
	status  replica.Status
	block   bool // ReadIndex waits for its context
	readErr error
	reads   int
	onRead  func()
	confErr error

	peers    map[uint64]*loopback
	handlers map[string]replica.Handler
	callErr  error
}

func (l *loopback) set(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
}

func (l *loopback) Wake() {
	l.mu.Lock()
	l.pending = true
	if l.busy || l.hold {
		l.mu.Unlock()
		return
	}
	l.busy = true
	for l.pending {
		l.pending = false
		l.mu.Unlock()
		for {
			data, ok := l.core.Next(1 << 20)
			if !ok {
				break
			}
			l.mu.Lock()
			l.batches++
			keep := l.keep
			if keep {
				l.kept = append(l.kept, data)
			}
			l.mu.Unlock()
			if !keep {
				l.apply(data)
			}
		}
		l.mu.Lock()
	}
	l.busy = false
	l.mu.Unlock()
}

// apply gives one batch to the machine.
func (l *loopback) apply(data []byte) { l.entry(replica.Entry{Data: data}) }

func (l *loopback) entry(e replica.Entry) []replica.Decision {
	if e.Data != nil && !Stamp(l.core.clock)(e.Data) {
		panic("no batch")
	}
	l.mu.Lock()
	l.index++
	e.Index, e.Term = l.index, l.status.Term
	l.mu.Unlock()
	decisions, err := l.core.Apply([]replica.Entry{e})
	if err != nil {
		panic(err)
	}
	return decisions
}

// release applies what was held.
func (l *loopback) release() {
	l.mu.Lock()
	l.hold, l.keep = false, false
	kept := l.kept
	l.kept = nil
	l.mu.Unlock()
	for _, data := range kept {
		l.apply(data)
	}
	l.Wake()
}

func (l *loopback) ReadIndex(ctx context.Context) (uint64, error) {
	l.mu.Lock()
	l.reads++
	block, err, index, f := l.block, l.readErr, l.index, l.onRead
	l.mu.Unlock()
	if f != nil {
		f()
	}
	if block {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return index, err
}

func (l *loopback) ProposeConf(_ context.Context, change replica.Change) error {
	l.mu.Lock()
	err := l.confErr
	l.confErr = nil
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.entry(replica.Entry{Conf: change.Data})[0].Err
}

func (l *loopback) TransferLeader(context.Context, uint64) error { return nil }

func (l *loopback) Status() replica.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *loopback) Call(ctx context.Context, member uint64, method string, payload []byte) ([]byte, error) {
	l.mu.Lock()
	peer, err := l.peers[member], l.callErr
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if peer == nil {
		return nil, replica.ErrUnreachable
	}
	return peer.handlers[method](ctx, policy.NewMember("peer", policy.Certificate{}), payload)
}

func (l *loopback) Handle(method string, h replica.Handler) { l.handlers[method] = h }

// clock is a clock that stands still until told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// recorder is an audit record in memory.
type recorder struct {
	mu     sync.Mutex
	events []audit.Event
	err    error
}

func (r *recorder) Commit(e audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.events = append(r.events, e)
	}
	return r.err
}

func (r *recorder) Note(e audit.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *recorder) has(action, outcome string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Action == action && e.Outcome == outcome {
			return true
		}
	}
	return false
}

// noise reads as random bytes, the same in each run.
type noise struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (n *noise) Read(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.r.Read(b)
}

// member is a core over a machine in memory and its loopback.
type member struct {
	*Core
	t     testing.TB
	loop  *loopback
	time  *clock
	audit *recorder
	anon  policy.Principal
	ctx   context.Context
}

const (
	testMember  = 0xa1
	testCluster = 0xc1
)

func newEngine(t testing.TB) *storage.Engine {
	t.Helper()
	e, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "state", Split: mvcc.Split, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func start(t testing.TB, change func(*Options)) *member {
	t.Helper()
	return startAs(t, testMember, []state.Member{{ID: testMember, Name: "a", PeerURLs: []string{"http://a:1"}}}, change)
}

func startAs(t testing.TB, id uint64, members []state.Member, change func(*Options)) *member {
	t.Helper()
	return startFounded(t, id, founding{members, state.MaxLevel}, change)
}

// founding is what a cluster begins with.
type founding struct {
	members []state.Member
	level   uint32
}

func startFounded(t testing.TB, id uint64, f founding, change func(*Options)) *member {
	t.Helper()
	e := newEngine(t)
	if err := state.Bootstrap(e, testCluster, f.members, f.level, true); err != nil {
		t.Fatal(err)
	}
	machine, err := state.Open(e, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{
		t: t, time: &clock{now: time.Unix(1_700_000_000, 0)}, audit: &recorder{}, anon: policy.NewAnonymous(), ctx: t.Context(),
		loop: &loopback{handlers: map[string]replica.Handler{}, peers: map[uint64]*loopback{}},
	}
	o := Options{
		Machine: machine, Member: id, Boot: id + 7, Clock: m.time.Now, Audit: m.audit, BcryptCost: 4,
		Rand: &noise{r: rand.NewChaCha8([32]byte{byte(id)})},
		NewEngine: func(string) (*storage.Engine, error) {
			return newEngine(t), nil
		},
	}
	if change != nil {
		change(&o)
	}
	if m.Core, err = New(o); err != nil {
		t.Fatal(err)
	}
	m.loop.core = m.Core
	m.loop.status = replica.Status{Leadership: replica.Leadership{Leader: id, Term: 1, Self: true}}
	m.Attach(m.loop, m.loop)
	t.Cleanup(func() {
		m.Close()
		if err := closeMachine(m.Release()); err != nil {
			t.Error(err)
		}
	})
	m.Tick(m.time.Now())
	return m
}

// pass moves the clock on and ticks.
func (m *member) pass(d time.Duration) {
	m.time.mu.Lock()
	m.time.now = m.time.now.Add(d)
	m.time.mu.Unlock()
	m.Tick(m.time.Now())
}

func (m *member) put(key, value string) int64 {
	m.t.Helper()
	res, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Value: []byte(value)})
	if err != nil {
		m.t.Fatal(err)
	}
	return res.Revision
}

func (m *member) putLease(key string, lease int64) {
	m.t.Helper()
	if _, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Lease: lease}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) del(start, end string) int64 {
	m.t.Helper()
	s := span(start, end)
	res, err := m.Delete(m.ctx, m.anon, &state.Delete{Space: mvcc.SpaceEtcd, Span: s})
	if err != nil {
		m.t.Fatal(err)
	}
	return res.Revision
}

// get returns the value of a key, and "-" if there is none.
func (m *member) get(key string) string {
	m.t.Helper()
	page, err := m.Range(m.ctx, m.anon, query(key))
	if err != nil {
		m.t.Fatal(err)
	}
	if len(page.KVs) == 0 {
		return "-"
	}
	return string(page.KVs[0].Value)
}

func query(key string) RangeRequest {
	return RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: storage.KeySpan([]byte(key))}}
}

// span is one key, or from start to end; end "∞" is no bound.
func span(start, end string) storage.Span {
	switch end {
	case "":
		return storage.KeySpan([]byte(start))
	case "∞":
		return storage.Span{Start: []byte(start)}
	}
	return storage.Span{Start: []byte(start), End: []byte(end)}
}

// want fails unless err is the fault.
func want(t testing.TB, err, fault error) {
	t.Helper()
	if !errors.Is(err, fault) {
		t.Fatalf("got %v, want %v", err, fault)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// later runs f beside the test and returns a function that waits for its error.
func later(t testing.TB, f func() error) func() error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			return errors.New("still waiting after 30 s")
		}
	}
}

// until waits for a condition that another goroutine brings about.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("never: " + what)
		}
	}
}

// login makes a user with a role over a span and returns who acts as it.
func (m *member) login(name, password string) policy.Principal {
	m.t.Helper()
	token, err := m.Authenticate(m.ctx, m.anon, name, password)
	if err != nil {
		m.t.Fatal(err)
	}
	who, err := m.Identify(m.anon, token)
	if err != nil {
		m.t.Fatal(err)
	}
	return who
}

// auth turns authentication on with root and the given users, each with a role of its own name over the span.
func (m *member) auth(users map[string]storage.Span) {
	m.t.Helper()
	must(m.t, m.UserAdd(m.ctx, m.anon, "root", "secret", false))
	must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.RoleAdd, Role: "root"}))
	must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.UserGrantRole, User: "root", Role: "root"}))
	for name, s := range users {
		must(m.t, m.UserAdd(m.ctx, m.anon, name, "pw-"+name, false))
		must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.RoleAdd, Role: name}))
		must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.RoleGrant, Role: name, Permission: state.Permission{Span: s, Read: true, Write: true}}))
		must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.UserGrantRole, User: name, Role: name}))
	}
	must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.AuthEnable}))
}

func describe(events []*SharedEvent) (s string) {
	for _, e := range events {
		op := "+"
		if e.Type == mvcc.EventDelete {
			op = "-"
		}
		s += fmt.Sprintf("%s%s@%d ", op, e.KV.Key, e.KV.ModRevision)
	}
	return s
}
