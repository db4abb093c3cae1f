package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

var errDown = errors.New("no leader")

// directory is the real catalog, of one member and without a log.
type directory struct {
	t  *testing.T
	mu sync.Mutex

	engine  *storage.Engine
	batch   *storage.Batch
	kv, cat *mvcc.Space
	changed chan struct{}

	down   bool
	refuse func(op *catalog.Op) string // words of a refusal; empty: none
	writes [][]catalog.Op              // that changed something
}

func openDirectory(t *testing.T) *directory {
	t.Helper()
	e, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "data", Split: mvcc.Split, MemTableBytes: 64 << 20, CacheBytes: 1 << 20, // no table is made inside a bubble
		OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	d := &directory{t: t, engine: e, batch: e.NewBatch(), changed: make(chan struct{})}
	for id, s := range map[mvcc.SpaceID]**mvcc.Space{mvcc.SpaceConsulKV: &d.kv, mvcc.SpaceCatalog: &d.cat} {
		if *s, err = mvcc.OpenSpace(e, id); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := errors.Join(d.batch.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *directory) Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return catalog.Outcome{}, err
	}
	if d.down {
		return catalog.Outcome{}, errDown
	}
	if d.refuse != nil {
		for i := range ops {
			if what := d.refuse(&ops[i]); what != "" {
				return catalog.Outcome{Failures: []catalog.Failure{{Op: i, Kind: catalog.Refused, What: what}}}, nil
			}
		}
	}
	d.batch.Reset()
	kv, cat := d.kv.NewWriter(d.engine, d.batch), d.cat.NewWriter(d.engine, d.batch)
	kv.Begin()
	cat.Begin()
	before := cat.Revision()
	outcome, err := catalog.Apply(kv, cat, catalog.Batch{Ops: ops, Time: time.Now().UnixMilli()}, false)
	if err != nil {
		return outcome, err
	}
	kv.End()
	if cat.End() > before {
		d.writes = append(d.writes, slices.Clone(ops))
	}
	for _, w := range []*mvcc.Writer{kv, cat} {
		if _, err := w.Finish(); err != nil {
			return outcome, err
		}
	}
	if err := d.engine.Apply(d.batch); err != nil {
		return outcome, err
	}
	d.kv.Publish(kv)
	d.cat.Publish(cat)
	close(d.changed)
	d.changed = make(chan struct{})
	return outcome, nil
}

func (d *directory) Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, max(r.Wait, time.Minute))
	defer cancel()
	for {
		d.mu.Lock()
		if d.down {
			d.mu.Unlock()
			return core.Found{}, errDown
		}
		answer, err := catalog.Look(d.engine, d.kv, d.cat, r.Query)
		changed := d.changed
		d.mu.Unlock()
		if err != nil || r.MinIndex == 0 || answer.Index > r.MinIndex {
			return core.Found{Answer: answer, KnownLeader: true}, err
		}
		select {
		case <-ctx.Done():
			return core.Found{Answer: answer, KnownLeader: true}, nil
		case <-changed:
		}
	}
}

func (d *directory) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// written counts the writes that changed something, and forgets them.
func (d *directory) written() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.writes)
	d.writes = nil
	return n
}

func (d *directory) look(kind catalog.Kind, name string) catalog.Answer {
	d.t.Helper()
	found, err := d.Lookup(context.Background(), policy.Principal{}, core.LookupRequest{Query: catalog.Query{Kind: kind, Name: name}})
	if err != nil {
		d.t.Fatal(err)
	}
	return found.Answer
}

func (d *directory) do(ops ...catalog.Op) {
	d.t.Helper()
	outcome, err := d.Discover(context.Background(), policy.Principal{}, ops)
	if err != nil || len(outcome.Failures) > 0 {
		d.t.Fatal(err, outcome.Failures)
	}
}

// check returns a check of a node as the catalog has it; nil if it has none.
func (d *directory) check(node, id string) *catalog.Check {
	d.t.Helper()
	for _, c := range d.look(catalog.QueryNodeChecks, node).Checks {
		if c.ID == id {
			return &c
		}
	}
	return nil
}

func (d *directory) service(node, id string) *catalog.Service {
	d.t.Helper()
	for _, s := range d.look(catalog.QueryNode, node).Services {
		if s.ID == id {
			return &s
		}
	}
	return nil
}

// shelf is a Store in memory.
type shelf struct {
	mu   sync.Mutex
	docs map[string][]byte
	bad  bool
}

func newShelf() *shelf { return &shelf{docs: map[string][]byte{}} }

func (s *shelf) Load(name string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.docs[name]
	return bytes.Clone(data), ok, nil
}

func (s *shelf) Save(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad {
		return errors.New("disk full")
	}
	s.docs[name] = bytes.Clone(data)
	return nil
}

func (s *shelf) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.docs, name)
	return nil
}

func (s *shelf) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.docs))
}

// options are those of an agent on a node of that name.
func options(t *testing.T, d Directory, name string) Options {
	return Options{
		Node:      catalog.Node{ID: "00000000-0000-0000-0000-0000000000" + name[len(name)-2:], Name: name, Address: "127.0.0.1", Datacenter: "dc1"},
		Directory: d, Store: newShelf(), Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.NewTextHandler(logging(t), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// logTo writes records to the test's log, for as long as there is one.
type logTo struct {
	mu sync.Mutex
	t  *testing.T
}

func logging(t *testing.T) *logTo {
	l := &logTo{t: t}
	if t != nil {
		t.Cleanup(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.t = nil
		})
	}
	return l
}

func (l *logTo) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

func build(t *testing.T, o Options) *Agent {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// start runs an agent until stop is called or the test ends.
func start(t *testing.T, a *Agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func local(t *testing.T, a *Agent, id string) CheckState {
	t.Helper()
	for _, c := range a.Checks() {
		if c.ID == id {
			return c
		}
	}
	t.Fatalf("no check %q here: %v", id, a.Checks())
	return CheckState{}
}

func registered(t *testing.T, a *Agent, def string) {
	t.Helper()
	if err := a.RegisterService(t.Context(), serviceOf(t, def), false); err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition of the real world: sockets and processes.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("still not so: %s", what)
		case <-tick.C:
		}
	}
}

// pass lets time go by in a bubble of synctest, where it takes none.
func pass(d time.Duration) { <-time.After(d) }
