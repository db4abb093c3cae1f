package catalog

import (
	"fmt"
	"slices"
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
)

func service(node, id, name string, tags ...string) Op {
	return Op{Verb: ServiceSet, Service: &Service{Node: node, ID: id, Name: name, Tags: tags}}
}

func gone(op Op) Op {
	switch op.Verb {
	case NodeSet:
		return Op{Verb: NodeDelete, Node: op.Node}
	case ServiceSet:
		return Op{Verb: ServiceDelete, Service: op.Service}
	}
	return Op{Verb: CheckDelete, Check: op.Check}
}

// crowd are n services on one node, each with a check.
func crowd(node string, n int, tags ...string) (services, checks []Op) {
	for i := range n {
		id := fmt.Sprintf("s%05d", i)
		services = append(services, service(node, id, id, tags...))
		checks = append(checks, check(node, "service:"+id, id, Passing))
	}
	return services, checks
}

// inBatches applies operations in batches of at most 4096.
func (b *bench) inBatches(ops ...[]Op) {
	b.t.Helper()
	for _, list := range ops {
		for len(list) > 0 {
			n := min(len(list), 4096)
			b.must(list[:n]...)
			list = list[n:]
		}
	}
}

func BenchmarkCrowdedNode(b *testing.B) {
	for _, n := range []int{1000, 8000} {
		services, checks := crowd("n1", n)
		tagged, _ := crowd("n1", n, "a", "b")
		deletes := make([]Op, n)
		for i := range services {
			deletes[i] = gone(services[i])
		}
		filled := func(b *testing.B) *bench {
			x := newBench(b)
			x.must(node("n1"))
			x.inBatches(services, checks)
			return x
		}
		run := func(name string, before func(*testing.B) *bench, ops ...[]Op) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					x := before(b)
					b.StartTimer()
					x.inBatches(ops...)
				}
			})
		}
		run("create", func(b *testing.B) *bench {
			x := newBench(b)
			x.must(node("n1"))
			return x
		}, services)
		run("retag", filled, tagged)
		run("delete", filled, deletes)
		run("delete-node", filled, []Op{gone(node("n1"))})
	}
}

// BenchmarkManyRequests is one entry with many requests, each of which walks over what those before it did.
func BenchmarkManyRequests(b *testing.B) {
	services, checks := crowd("n1", 1000)
	var batches [][]Op
	for i := range services {
		batches = append(batches, []Op{gone(services[i])})
	}
	for range b.N {
		b.StopTimer()
		x := newBench(b)
		x.must(node("n1"))
		x.inBatches(services, checks)
		b.StartTimer()
		x.apply(false, batches...)
	}
}

func BenchmarkInstances(b *testing.B) {
	for _, on := range []string{"100-nodes", "one-node-of-1000"} {
		b.Run(on, func(b *testing.B) {
			x := newBench(b)
			if on == "100-nodes" {
				for i := range 100 {
					n := fmt.Sprintf("n%03d", i)
					x.must(node(n), check(n, SerfHealth, "", Passing), service(n, "web", "web"), check(n, "service:web", "web", Passing))
				}
			} else {
				var services, checks []Op
				for i := range 1000 {
					id := fmt.Sprintf("s%05d", i)
					services, checks = append(services, service("n1", id, "web")), append(checks, check("n1", "service:"+id, id, Passing))
				}
				x.must(node("n1"), check("n1", SerfHealth, "", Passing))
				x.inBatches(services, checks)
			}
			b.ResetTimer()
			for range b.N {
				x.look(QueryInstances, "web")
			}
		})
	}
}

// walked applies a batch that has to succeed and returns how many rows it walked over.
func (b *bench) walked(ops ...Op) int {
	b.t.Helper()
	batch := b.e.NewBatch()
	defer batch.Close()
	kv, cat := b.kv.NewWriter(b.e, batch), b.cat.NewWriter(b.e, batch)
	a := newApplication(kv, cat, b.time, false)
	out, err := a.run(ops)
	if err != nil || len(out.Failures) > 0 {
		b.t.Fatal(err, out.Failures)
	}
	for _, w := range []*mvcc.Writer{kv, cat} {
		if _, err := w.Finish(); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := b.e.Apply(batch); err != nil {
		b.t.Fatal(err)
	}
	b.kv.Publish(kv)
	b.cat.Publish(cat)
	return maxRows - a.rows
}

// TestRowsWalked: what a batch walks over grows with what its operations touch, not with what else there is on their node
// or in the batch.
func TestRowsWalked(t *testing.T) {
	b := newBench(t)
	const n = 400
	services, checks := crowd("n1", n)
	tagged, _ := crowd("n1", n, "a")
	var deletes, lockers, held, ends []Op
	for i := range n {
		deletes = append(deletes, gone(services[i]))
		id := fmt.Sprintf("l%05d", i)
		s := session(id, "n1")
		s.Session.LockDelay = 1
		lockers, held, ends = append(lockers, s), append(held, pairOp(KVLock, id, "", id)), append(ends, destroy(id))
	}
	b.must(node("n1"))
	for i, step := range []struct {
		name string
		ops  []Op
		most int // rows for each operation
	}{
		{"create services", services, 2}, {"create checks", checks, 2}, {"the same again", slices.Concat(services, checks), 0},
		{"other tags", tagged, 4}, {"sessions", lockers, 1}, {"locks", held, 1}, {"ends", ends, 3}, {"sessions over delays", lockers, 4},
		{"delete services", deletes, 6}, {"create services anew", services, 3}, {"create checks anew", checks, 3},
	} {
		b.time += 1000 * int64(i)
		if got := b.walked(step.ops...); got > step.most*len(step.ops)+100 {
			t.Errorf("%s: %d rows for %d operations, want at most %d for each", step.name, got, len(step.ops), step.most)
		}
	}
	if got := b.walked(gone(node("n1"))); got > 6*n+100 {
		t.Errorf("deleting the node: %d rows", got)
	}
	b.checkRows()
}

// TestTooManyRows: a batch that walks over more rows than one may is refused, leaves no trace, and the rows that it deleted
// itself count too. The walk at the end of a batch is charged like the others.
func TestTooManyRows(t *testing.T) {
	b := newBench(t)
	services, checks := crowd("n1", 20)
	b.must(node("n1"))
	b.inBatches(services, checks)
	before := b.dump()
	for _, x := range []struct {
		name   string
		visits int
		at     int
		ops    []Op
	}{
		{"a node and again", 50, 2, []Op{gone(node("n1")), node("n1"), gone(node("n1")), node("n2")}},
		{"retag", 10, 10, append(retagged(20), node("n2"))},
		{"topics", 10, 0, []Op{check("n1", SerfHealth, "", Passing)}},
		{"trees", 0, 1, []Op{set("a", "1"), pairOp(KVDeleteTree, "", "", ""), set("b", "1")}},
	} {
		for range 2 {
			batch := b.e.NewBatch()
			kv, cat := b.kv.NewWriter(b.e, batch), b.cat.NewWriter(b.e, batch)
			a := newApplication(kv, cat, 0, false)
			a.visits, a.rows = x.visits, x.visits
			out, err := a.run(x.ops)
			want := Outcome{Failures: []Failure{{Op: x.at, Kind: Refused, What: tooLarge}}}
			if err != nil || fmt.Sprint(out) != fmt.Sprint(want) {
				t.Errorf("%s: %+v %v, want %+v", x.name, out, err, want)
			}
			for _, w := range []*mvcc.Writer{kv, cat} {
				if events, err := w.Finish(); err != nil || len(events) != 0 {
					t.Errorf("%s: %d events, %v", x.name, len(events), err)
				}
			}
			if err := b.e.Apply(batch); err != nil {
				t.Error(err)
			}
			batch.Close()
			if b.dump() != before {
				t.Errorf("%s left a trace", x.name)
			}
		}
	}
}

func retagged(n int) []Op {
	ops, _ := crowd("n1", n, "other")
	return ops
}

// TestManyLocks: a session ends however many locks it holds.
func TestManyLocks(t *testing.T) {
	b := newBench(t)
	b.must(node("n1"), session("s1", "n1"))
	for i := range 50 {
		b.must(pairOp(KVLock, fmt.Sprintf("k%02d", i), "", "s1"))
	}
	if got := b.walked(destroy("s1")); got > 0 {
		t.Errorf("%d rows charged", got)
	}
	if a := b.look(QueryPairs, ""); len(a.Pairs) != 50 || a.Pairs[49].Session != "" {
		t.Error("the locks are not free")
	}
}

// TestCrowdedInstances: instances have their checks also on a node that has too many to read all of them.
func TestCrowdedInstances(t *testing.T) {
	b := newBench(t)
	services, checks := crowd("N1", fewChecks)
	b.must(node("N1"))
	b.inBatches(services, checks)
	b.must(service("n1", "Web", "web"), check("n1", "W2", "WEB", Passing), check("n1", "w1", "web", Warning), check("n1", "disk", "", Passing))
	for moved := range 2 {
		a := b.look(QueryInstances, "web")
		got := ""
		for _, c := range a.Instances[0].Checks {
			got += c.ID + " "
		}
		if want := []string{"disk w1 W2 ", "disk w1 "}[moved]; len(a.Instances) != 1 || got != want {
			t.Errorf("checks %q, want %q", got, want)
		}
		b.must(check("n1", "w2", "s00003", Passing))
	}
	if a := b.look(QueryServiceChecks, "s00003"); len(a.Checks) != 2 {
		t.Errorf("%d checks", len(a.Checks))
	}
	b.checkRows()
}
