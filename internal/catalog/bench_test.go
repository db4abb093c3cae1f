package catalog

import (
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// bench is two spaces on an engine, driven as state drives them.
type bench struct {
	t       testing.TB
	e       *storage.Engine
	kv, cat *mvcc.Space
	time    int64
	events  map[mvcc.SpaceID][]mvcc.RevisionEvents // of the last batch
}

func newBench(t testing.TB) *bench {
	t.Helper()
	e, err := storage.Open(storage.Options{
		FS: vfs.NewMem(), Dir: "state", Split: mvcc.Split, CacheBytes: 64 << 20, MemTableBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{t: t, e: e}
	for id, s := range map[mvcc.SpaceID]**mvcc.Space{mvcc.SpaceConsulKV: &b.kv, mvcc.SpaceCatalog: &b.cat} {
		if *s, err = mvcc.OpenSpace(e, id); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// apply decides batches in one storage batch, as the requests of one entry are.
func (b *bench) apply(system bool, batches ...[]Op) []Outcome {
	b.t.Helper()
	batch := b.e.NewBatch()
	defer batch.Close()
	kv, cat := b.kv.NewWriter(b.e, batch), b.cat.NewWriter(b.e, batch)
	outcomes := make([]Outcome, len(batches))
	for i, ops := range batches {
		var err error
		if outcomes[i], err = Apply(kv, cat, Batch{Ops: ops, Time: b.time}, system); err != nil {
			b.t.Fatal(err)
		}
	}
	b.events = map[mvcc.SpaceID][]mvcc.RevisionEvents{}
	for id, w := range map[mvcc.SpaceID]*mvcc.Writer{mvcc.SpaceConsulKV: kv, mvcc.SpaceCatalog: cat} {
		events, err := w.Finish()
		if err != nil {
			b.t.Fatal(err)
		}
		b.events[id] = events
	}
	if err := b.e.Apply(batch); err != nil {
		b.t.Fatal(err)
	}
	b.kv.Publish(kv)
	b.cat.Publish(cat)
	return outcomes
}

func (b *bench) do(ops ...Op) Outcome {
	b.t.Helper()
	return b.apply(false, ops)[0]
}

// must applies a batch that has to succeed.
func (b *bench) must(ops ...Op) Outcome {
	b.t.Helper()
	out := b.do(ops...)
	if len(out.Failures) > 0 {
		b.t.Fatalf("failures %+v", out.Failures)
	}
	return out
}

func (b *bench) look(kind Kind, name string) Answer {
	b.t.Helper()
	a, err := Look(b.e, b.kv, b.cat, Query{Kind: kind, Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// woken reports whether the last batch has an event that an answer to q rests on.
func (b *bench) woken(q Query) bool {
	id, spans := Watched(q)
	for _, r := range b.events[id] {
		for i := range r.Events {
			for _, s := range spans {
				if s.Contains(r.Events[i].KV.Key) {
					return true
				}
			}
		}
	}
	return false
}

// compact compacts both spaces to what they are and sweeps what that made unreachable.
func (b *bench) compact() {
	b.t.Helper()
	batch := b.e.NewBatch()
	defer batch.Close()
	for _, s := range []*mvcc.Space{b.kv, b.cat} {
		w := s.NewWriter(b.e, batch)
		if s.CompactRevision() < s.Revision() {
			if err := w.Compact(s.Revision()); err != nil {
				b.t.Fatal(err)
			}
		}
		if _, err := w.Finish(); err != nil {
			b.t.Fatal(err)
		}
		if err := b.e.Apply(batch); err != nil {
			b.t.Fatal(err)
		}
		s.Publish(w)
		batch.Reset()
	}
}

func set(key, value string) Op { return Op{Verb: KVSet, Pair: &Pair{Key: key, Value: []byte(value)}} }

func pairOp(verb Verb, key, value, session string) Op {
	return Op{Verb: verb, Pair: &Pair{Key: key, Value: []byte(value), Session: session}}
}

func node(name string) Op { return Op{Verb: NodeSet, Node: &Node{Name: name, Address: "10.0.0.1"}} }

func check(node, id, service, status string) Op {
	return Op{Verb: CheckSet, Check: &Check{Node: node, ID: id, Name: id, ServiceID: service, Status: status}}
}

func session(id, node string, checks ...string) Op {
	return Op{Verb: SessionCreate, Session: &Session{ID: id, Node: node, NodeChecks: checks}}
}

func destroy(id string) Op { return Op{Verb: SessionDestroy, Session: &Session{ID: id}} }

// fails checks that a batch fails with these texts, by the place of the operation, and leaves no trace.
func (b *bench) fails(want map[int]string, ops ...Op) {
	b.t.Helper()
	kv, cat, rows := b.kv.Revision(), b.cat.Revision(), b.dump()
	out := b.do(ops...)
	got := map[int]string{}
	for _, f := range out.Failures {
		got[f.Op] = f.What
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("failures %v, want %v", got, want)
	}
	if out.Index != 0 || out.Results != nil || b.kv.Revision() != kv || b.cat.Revision() != cat || b.dump() != rows {
		b.t.Errorf("a failed batch left a trace: %+v", out)
	}
}

// dump returns every row of the engine.
func (b *bench) dump() string {
	b.t.Helper()
	it, err := b.e.NewIter(storage.Span{})
	if err != nil {
		b.t.Fatal(err)
	}
	out := ""
	for ok := it.First(); ok; ok = it.Next() {
		out += fmt.Sprintf("%x=%x\n", it.Key(), it.Value())
	}
	if err := it.Close(); err != nil {
		b.t.Fatal(err)
	}
	return out
}
