package catalog

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// drawing draws operations over few names, so that they meet.
type drawing struct {
	*rand.Rand
	m *model
}

func (d drawing) of(list ...string) string { return list[d.IntN(len(list))] }

func (d drawing) key() string {
	return d.of("a", "a/b", "a/b/c", "a/c", "b", "b/\x00", "c/d/e", "c/d/f", "A", "\xff", "\xff/x")
}
func (d drawing) node() string    { return d.of("n1", "n2", "N2", "n3", "n\x00") }
func (d drawing) session() string { return d.of("s1", "s2", "s3", "s4", "s5", "s6") }
func (d drawing) check() string   { return d.of("serfHealth", "c1", "c2", "C2", "service:web") }
func (d drawing) status() string  { return d.of(Passing, Passing, Warning, Critical, "") }
func (d drawing) index(now uint64) uint64 {
	return [...]uint64{0, now, now, now, now + 1, 1}[d.IntN(6)]
}

func (d drawing) tags() []string {
	return [][]string{nil, {"x"}, {"x", "y"}, {"y", "x"}}[d.IntN(4)]
}

func (d drawing) op() Op {
	switch d.IntN(10) {
	case 0, 1, 2, 3:
		key := d.key()
		p := Pair{Key: key, Value: []byte(d.of("", "1", "2")), Flags: uint64(d.IntN(2)), Session: d.of(d.session(), d.session(), ""), ModifyIndex: d.index(d.m.pairs[key].ModifyIndex)}
		verb := KVSet + Verb(d.IntN(int(KVCheckNotExists)))
		if verb >= KVGet && d.IntN(3) > 0 { // what looks fails often, and a batch that fails does little
			verb = KVLock
		}
		if verb == KVDeleteTree || verb == KVGetTree {
			p.Key = d.of("a/", "b", "c/d", "", "none")
		}
		return Op{Verb: verb, Pair: &p}
	case 4:
		name := d.node()
		n := Node{Name: name, Address: d.of("1", "2"), ID: d.of("", "", "ID1", "id1", "id2"), ModifyIndex: d.index(d.m.nodes[fold(name)].ModifyIndex)}
		op := Op{Verb: NodeSet + Verb(d.IntN(5)), Node: &n}
		if op.Verb == NodeDelete && d.IntN(3) > 0 {
			op.Verb = NodeSet
		}
		op.SkipNodeUpdate = op.Verb == NodeSet && d.IntN(4) == 0
		return op
	case 5, 6:
		s := Service{Node: d.node(), ID: d.of("web1", "web2", "WEB2", "db"), Name: d.of("web", "web", "Web", "db"), Port: d.IntN(2), Tags: d.tags()}
		s.ModifyIndex = d.index(d.m.services[id2(s.Node, s.ID)].ModifyIndex)
		verb := ServiceSet + Verb(d.IntN(5))
		return Op{Verb: verb, Service: &s}
	case 7, 8:
		c := Check{Node: d.node(), ID: d.check(), Status: d.status(), ServiceID: d.of("", "", "web1", "web2", "db"), Output: d.of("", "", "out")}
		c.ModifyIndex = d.index(d.m.checks[id2(c.Node, c.ID)].ModifyIndex)
		verb := CheckSet
		if d.IntN(3) == 0 {
			verb += Verb(d.IntN(5))
		}
		return Op{Verb: verb, Check: &c}
	default:
		s := Session{ID: d.session(), Node: d.node(), LockDelay: int64(d.IntN(3)) * 1_500_000, Behavior: d.of("", "release", "delete")}
		for range d.IntN(3) {
			s.NodeChecks = append(s.NodeChecks, d.check())
		}
		if d.IntN(4) == 0 {
			s.ServiceChecks = []ServiceCheck{{ID: d.check()}}
		}
		return Op{Verb: [...]Verb{SessionCreate, SessionCreate, SessionCreate, SessionDestroy, SessionExpire}[d.IntN(5)], Session: &s}
	}
}

// questions are everything that can be asked about the names drawn.
func questions() []Query {
	list := []Query{{Kind: QueryNodes}, {Kind: QueryServiceNames}, {Kind: QuerySessions}}
	for kind, names := range map[Kind][]string{
		QueryPair:  {"a", "a/b", "b", "b/\x00", "\xff", "never"},
		QueryPairs: {"", "a", "a/", "c/d/", "\xff", "never"},
		QueryNode:  {"n1", "N2", "n\x00", "never"}, QueryNodeChecks: {"n1", "n2", "never"}, QueryNodeSessions: {"n1", "n2", "never"},
		QueryInstances: {"web", "WEB", "db", "never"}, QueryServiceChecks: {"web", "db", "never"},
		QueryChecksInState: {"any", Passing, Warning, Critical, "never"}, QuerySession: {"s1", "s2", "never"},
	} {
		for _, name := range names {
			list = append(list, Query{Kind: kind, Name: name})
		}
	}
	for _, name := range []string{"", "a/", "c/", "a"} {
		list = append(list, Query{Kind: QueryKeys, Name: name, Separator: "/"}, Query{Kind: QueryKeys, Name: name})
	}
	return list
}

// TestAgainstModel holds Apply and Look against the naive model: failures, answers, indexes; that whoever waits for an
// answer is woken when it changes, with a higher index, and not otherwise; and that what fails or changes nothing leaves
// no trace. Some batches share one storage batch, as the requests of an entry do.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(10) {
		b, m := newBench(t), newModel()
		d := drawing{Rand: rand.New(rand.NewPCG(seed, 7)), m: m}
		asked := questions()
		indexes := map[Query]uint64{}
		failures, changes := 0, 0
		for step := range 250 {
			b.time += int64(d.IntN(3))
			before := d.m
			kv, cat := b.kv.Revision(), b.cat.Revision()
			system := d.IntN(2) == 0
			var batches [][]Op
			var wants []map[int]FailureKind
			for range 1 + d.IntN(2) {
				var ops []Op
				for range 1 + d.IntN(1+d.IntN(4)) {
					ops = append(ops, d.op())
				}
				next, failed := d.m.apply(ops, b.time, system)
				batches, wants, d.m = append(batches, ops), append(wants, failed), next
				if len(failed) > 0 {
					failures++
				}
			}
			for i, out := range b.apply(system, batches...) {
				got := map[int]FailureKind{}
				for _, f := range out.Failures {
					got[f.Op] = f.Kind
				}
				if fmt.Sprint(got) != fmt.Sprint(wants[i]) {
					t.Fatalf("seed %d step %d: %s\nfailures %v, want %v", seed, step, describe(batches[i]), out.Failures, wants[i])
				}
			}
			if len(batches) == 1 && len(wants[0]) > 0 && (b.kv.Revision() != kv || b.cat.Revision() != cat) {
				t.Fatalf("seed %d step %d: a failed batch took a revision", seed, step)
			}
			if kv, cat := uint64(b.kv.Revision()), uint64(b.cat.Revision()); kv != d.m.kv || cat != d.m.cat {
				t.Fatalf("seed %d step %d: %s\nthe spaces are at %d and %d, want %d and %d", seed, step, describe(batches...), kv, cat, d.m.kv, d.m.cat)
			}
			for _, q := range asked {
				a, err := Look(b.e, b.kv, b.cat, q)
				if err != nil {
					t.Fatal(err)
				}
				index := a.Index
				a.Index = 0
				if got, want := show(a), show(d.m.answer(q)); got != want {
					t.Fatalf("seed %d step %d: %s\n%+v\nis      %s\nshould be %s", seed, step, describe(batches...), q, got, want)
				}
				changed := show(before.answer(q)) != show(d.m.answer(q))
				woken := b.woken(q)
				if changed {
					changes++
				}
				switch {
				case changed && (!woken || index <= indexes[q]):
					t.Fatalf("seed %d step %d: %s\n%+v changed: woken %v, index %d after %d", seed, step, describe(batches...), q, woken, index, indexes[q])
				case !changed && woken && len(batches) == 1 && len(batches[0]) == 1 && q.Kind != QueryKeys && !mayFade(q, a):
					t.Fatalf("seed %d step %d: %s\n%+v was woken for nothing", seed, step, describe(batches...), q)
				case !woken && index != max(indexes[q], 1):
					t.Fatalf("seed %d step %d: %+v was not woken, but its index went from %d to %d", seed, step, q, indexes[q], index)
				}
				indexes[q] = index
			}
		}
		b.checkRows()
		if failures < 20 || changes < 150 {
			t.Errorf("seed %d: %d failures, %d changes of answers: the test has lost its teeth", seed, failures, changes)
		}
	}
}

// mayFade reports whether the topic of an answer without content may end with what it was about.
func mayFade(q Query, a Answer) bool {
	return len(a.Checks)+len(a.Sessions) == 0 &&
		(q.Kind == QueryServiceChecks || q.Kind == QueryNodeChecks || q.Kind == QueryNodeSessions)
}

func show(a Answer) string { return fmt.Sprintf("%q", printAnswer(a)) }

func describe(batches ...[]Op) string {
	s := ""
	for _, ops := range batches {
		for i := range ops {
			op := &ops[i]
			s += fmt.Sprintf("  verb %d:", op.Verb)
			for _, v := range []any{op.Pair, op.Node, op.Service, op.Check, op.Session} {
				if line := fmt.Sprintf("%+v", v); line != "<nil>" {
					s += line
				}
			}
			s += "\n"
		}
		s += "  --\n"
	}
	return s
}
