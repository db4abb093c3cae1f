package state

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/policy"
)

// randomOp is one operation on a few names, well-formed, most of the time possible.
func randomOp(rng *rand.Rand) catalog.Op {
	pick := func(words ...string) string { return words[rng.IntN(len(words))] }
	node, id, index := pick("n1", "N1", "n2"), pick("s1", "s2", "s3"), rng.Uint64N(12)
	switch v := catalog.Verb(1 + rng.IntN(int(catalog.SessionExpire))); {
	case v <= catalog.KVCheckNotExists:
		return catalog.Op{Verb: v, Pair: &catalog.Pair{Key: pick("a", "a/b", "b"), Value: []byte(pick("", "1", "2")), Session: id, ModifyIndex: index}}
	case v <= catalog.NodeDeleteCAS:
		return catalog.Op{Verb: v, Node: &catalog.Node{Name: node, Address: pick("1", "2"), Meta: map[string]string{"x": "1", "y": pick("1", "2")}, ModifyIndex: index}}
	case v <= catalog.ServiceDeleteCAS:
		return catalog.Op{Verb: v, Service: &catalog.Service{Node: node, ID: pick("w1", "w2"), Name: pick("web", "Web", "db"), ModifyIndex: index}}
	case v <= catalog.CheckDeleteCAS:
		return catalog.Op{Verb: v, Check: &catalog.Check{Node: node, ID: pick("c1", "c2"), ServiceID: pick("", "w1"), Status: pick(catalog.Passing, catalog.Warning, catalog.Critical), ModifyIndex: index}}
	default:
		s := &catalog.Session{ID: id, Node: node, TTL: pick("", "10s"), Behavior: pick("", "delete"), LockDelay: rng.Int64N(3) * 20_000_000}
		if rng.IntN(2) == 0 {
			s.NodeChecks = []string{pick("c1", "c2")}
		}
		return catalog.Op{Verb: v, Session: s}
	}
}

// TestDiscoveryRandom holds members against each other that apply the same random batches one by one, many at once, after crashes
// that throw away what was not flushed, and from snapshots. Entries come twice, the leaders' clocks jump back, and a batch that
// fails leaves nothing: who applies nothing in its place has the same spaces. STATE_SEEDS sets how many.
func TestDiscoveryRandom(t *testing.T) {
	seeds := 40
	if n, err := strconv.Atoi(os.Getenv("STATE_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range seeds {
		discoveryRun(t, uint64(seed))
	}
}

func discoveryRun(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	one, many, crashing := discoveryBench(t), discoveryBench(t), discoveryBench(t)
	many.reopen()
	crashing.crashable()
	var all, pending []Entry
	answers := map[uint64][]Result{}
	compare := func(b *bench, out *Outcome) {
		t.Helper()
		for _, batch := range out.Batches {
			if want := answers[batch.Index]; !reflect.DeepEqual(batch.Results, want) {
				t.Fatalf("seed %d, entry %d: %+v, alone %+v", seed, batch.Index, batch.Results, want)
			}
		}
		if b.hash() != one.hash() {
			t.Fatalf("seed %d, entry %d: another state", seed, one.machine.Applied())
		}
	}
	for range 60 {
		var calls []Call
		for range 1 + rng.IntN(3) {
			ops := make([]catalog.Op, 1+rng.IntN(4))
			for i := range ops {
				ops[i] = randomOp(rng)
			}
			calls = append(calls, Call{policy.NewSystem("x"), &Discovery{Ops: ops}})
		}
		one.time += rng.Int64N(60) - 20 // the next leader's clock may be behind
		e := one.encode(calls...)
		if n := len(all); n > 0 && rng.IntN(8) == 0 { // the same proposal again
			e.Data = all[rng.IntN(n)].Data
		}
		before := one.machine.clock.time
		out := one.apply(e)
		if one.machine.clock.time < before {
			t.Fatalf("seed %d: time went back", seed)
		}
		for _, batch := range out.Batches {
			answers[batch.Index] = batch.Results
			for i, r := range batch.Results {
				if o, ok := r.Value.(*catalog.Outcome); r.Err == nil && (!ok || len(o.Failures) > 0 && (o.Index != 0 || len(o.Results) > 0)) {
					t.Fatalf("seed %d, entry %d, request %d: %+v", seed, e.Index, i, r.Value)
				}
			}
		}
		all, pending = append(all, e), append(pending, e)
		switch rng.IntN(8) {
		case 0, 1:
			compare(many, many.apply(pending...))
			pending = nil
		case 2:
			if rng.IntN(2) == 0 {
				if err := crashing.engine.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			crashing.lose()
			compare(crashing, crashing.apply(all...)) // what was applied before is skipped
		case 3:
			one.reopen()
		case 4:
			crashing.apply(all...)
			copied := crashing.copy()
			crashing.close()
			copied.crashable()
			crashing = copied
			compare(crashing, crashing.apply())
		}
	}
	compare(many, many.apply(pending...))
	compare(crashing, crashing.apply(all...))
	one.close()
	many.close()
	crashing.close()
}

// crashable moves what the bench has to a disk that can forget.
func (b *bench) crashable() {
	b.t.Helper()
	if err := b.engine.Flush(); err != nil {
		b.t.Fatal(err)
	}
	b.close()
	fs := vfs.NewCrashableMem()
	if ok, err := vfs.Clone(b.fs, fs, "state", "state", vfs.CloneSync); err != nil || !ok {
		b.t.Fatal(fmt.Errorf("clone: %v %w", ok, err))
	}
	b.fs = fs
	b.engine = openEngine(b.t, b.fs)
	b.open()
}

// lose throws away what is not durable.
func (b *bench) lose() {
	b.t.Helper()
	fs := b.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	b.close()
	b.fs = fs
	b.engine = openEngine(b.t, b.fs)
	b.open()
}
