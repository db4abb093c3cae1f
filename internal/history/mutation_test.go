package history

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// TestMutatedHistories breaks correct histories in one place and holds that the judges find it.
func TestMutatedHistories(t *testing.T) {
	t.Parallel()
	mutations := map[string]func(h *History, rnd *rand.Rand) bool{
		"an event is dropped": func(h *History, rnd *rand.Rand) bool {
			w := &h.Watches[0]
			if len(w.Responses) < 3 {
				return false
			}
			i := rnd.IntN(len(w.Responses) - 1) // what comes after shows that it is missing
			n := len(w.Responses[i].Events)
			if n == 0 || w.Responses[i].More || i > 0 && w.Responses[i-1].More {
				return false
			}
			k := rnd.IntN(n)
			w.Responses[i].Events = slices.Delete(slices.Clone(w.Responses[i].Events), k, k+1)
			return true
		},
		"a read is answered from an older revision": func(h *History, rnd *rand.Rand) bool {
			return pick(h, rnd, func(o *Operation) bool {
				if o.Request.Kind != Range || o.Request.Serializable || o.Response.Revision < 4 || o.Request.Revision != 0 {
					return false
				}
				o.Response.Revision -= 3
				return true
			})
		},
		"a value is another": func(h *History, rnd *rand.Rand) bool {
			return pick(h, rnd, func(o *Operation) bool {
				if o.Request.Kind != Range || len(o.Response.KVs) == 0 || o.Request.KeysOnly {
					return false
				}
				o.Response.KVs = slices.Clone(o.Response.KVs)
				o.Response.KVs[0].Value += "?"
				return true
			})
		},
		"a write is not done": func(h *History, rnd *rand.Rand) bool {
			return pick(h, rnd, func(o *Operation) bool {
				if o.Request.Kind != Put {
					return false
				}
				o.Response.Revision--
				return true
			})
		},
	}
	for name, mutate := range mutations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			missed, n := 0, 0
			for seed := range uint64(300) {
				h := generate(seed, shape{clients: 4, steps: 200, keys: 4, watches: 2, whole: true, unknown: 0.05, leases: seed%2 == 0, step: 1 + 10*ms})
				if canceled(h.Watches[0]) || !mutate(&h, rand.New(rand.NewPCG(seed, 6))) {
					continue
				}
				n++
				if len(Check(h, Options{Timeout: 5 * time.Second}).Violations) == 0 {
					missed++
				}
			}
			// a read that was under way while the revisions that it skips were made, and of keys that they left alone, is right
			if n < 50 || missed*50 > n && name != "a read is answered from an older revision" || missed*2 > n {
				t.Fatalf("%d of %d were not found", missed, n)
			}
			t.Logf("%d of %d were not found", missed, n)
		})
	}
}

func pick(h *History, rnd *rand.Rand, change func(o *Operation) bool) bool {
	for range 50 {
		if o := &h.Operations[rnd.IntN(len(h.Operations))]; o.Outcome == Answered && change(o) {
			return true
		}
	}
	return false
}

// TestPorcupineAlone holds that porcupine finds by itself what the direct judges find, when nothing is asked of them.
func TestPorcupineAlone(t *testing.T) {
	t.Parallel()
	alone := func(h History) Report {
		r := Report{Counts: map[string]int{}}
		l := newLedger(&verdict{h: &h, r: &r, tally: map[string]int{}})
		times := l.times(l.sights())
		l.replay(times)
		r.Violations = nil
		l.linear(times)
		return r
	}
	if r := alone(correct()); !r.OK() {
		t.Fatal(r)
	}
	for _, name := range []string{"stale read", "read of what was never written", "count", "revision goes back", "comparison came out wrong", "lost update", "put with a lease that was revoked", "read of what was compacted", "serializable read from the future"} {
		h, o := correct(), Options{}
		i := slices.IndexFunc(wrongOrders, func(c wrongCase) bool { return c.name == name })
		wrongOrders[i].change(&h, &o)
		if r := alone(h); len(r.Violations) != 1 || r.Violations[0].Rule != "not linearizable" {
			t.Errorf("%s: %s", name, r)
		}
	}
	missed, n := 0, 0
	for seed := range uint64(100) {
		h := generate(seed, shape{clients: 4, steps: 200, keys: 4, whole: true, unknown: 0.05, leases: true, step: 1 + 10*ms})
		if canceled(h.Watches[0]) || !pick(&h, rand.New(rand.NewPCG(seed, 6)), func(o *Operation) bool {
			if o.Request.Kind != Range || o.Request.Serializable || o.Request.CountOnly {
				return false
			}
			o.Response.Count++
			return true
		}) {
			continue
		}
		if n++; alone(h).OK() {
			missed++
		}
	}
	if missed > 0 || n < 20 {
		t.Fatalf("%d of %d were not found", missed, n)
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	h := generate(7, shape{clients: 4, steps: 300, keys: 4, watches: 3, whole: true, unknown: 0.1, leases: true, step: 1 + 10*ms})
	h.Name, h.Initial = "seed 7", Initial{Revision: 3, KVs: []KV{kv("a", "<\x00ü>", 2, 2, 1)}}
	h.Revocations = []Revocation{{Certificate: "x", Call: 1, Return: 2, Outcome: Answered}}
	h.Consul = generateConsul(1, 50)
	name := t.TempDir() + "/history.jsonl"
	if err := h.Save(name); err != nil {
		t.Fatal(err)
	}
	got, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(h, got) {
		t.Fatal("what was read is not what was written")
	}
	for text, want := range map[string]string{
		``:                                       "entry 1",
		`{"history":{"format":2}}`:               "format 2",
		`{"operation":{}}`:                       "head",
		`{"history":{"format":1}}{"tolt":1}`:     "entry 2",
		`{"history":{"format":1}}{}`:             "empty",
		`{"history":{"format":1}}{"history":{}}`: "head",
		`{"history":{"format":1}}{"told":{"watch":0,"time":1,"revision":1}}`: "watch 0",
		`{"history":{"format":1}}{"operation":{"outcome":"perhaps"}}`:        "perhaps",
	} {
		if _, err := Read(bytes.NewBufferString(text)); err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	h.Operations[3].Request.Key = "\xff"
	if err := h.Save(name); err == nil {
		t.Error("text that is not UTF-8 was written")
	}
}

// TestGolden holds that a history of format 1 can be read and judged.
func TestGolden(t *testing.T) {
	t.Parallel()
	h, err := Load("testdata/stale.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Operations) != 4 || len(h.Watches[0].Responses) != 2 || len(h.Consul) != 1 || len(h.Revocations) != 1 {
		t.Fatalf("%+v", h)
	}
	expect(t, Check(h, Options{}), "linearizability: stale read", false)
}

func TestShrink(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		steps := 1 + rnd.IntN(300)
		needed := map[int]bool{}
		for range rnd.IntN(5) {
			needed[rnd.IntN(steps)] = true
		}
		calls := 0
		keep := Shrink(steps, func(keep []bool) bool {
			calls++
			for i := range needed {
				if !keep[i] {
					return false
				}
			}
			return true
		})
		for i, k := range keep {
			if k != needed[i] {
				t.Fatalf("seed %d: step %d kept: %v, needed: %v", seed, i, k, needed[i])
			}
		}
		if calls > 20+len(needed)*40+steps/4 {
			t.Errorf("seed %d: %d calls for %d of %d steps", seed, calls, len(needed), steps)
		}
	}
	// two that hide each other: either is enough
	keep := Shrink(10, func(keep []bool) bool { return keep[2] || keep[7] })
	if n := len(slices.DeleteFunc(keep, func(k bool) bool { return !k })); n != 1 {
		t.Errorf("%d kept", n)
	}
}

// BenchmarkCheck judges what the simulation judges: about 3,000 operations of a history.
func BenchmarkCheck(b *testing.B) {
	h := generate(1, shape{clients: 10, steps: 11000, keys: 20, watches: 10, whole: true, unknown: 0.02, leases: true, step: 1 + 10*ms, calm: true})
	b.ReportMetric(float64(len(h.Operations)), "operations")
	for b.Loop() {
		if r := Check(h, Options{Timeout: 10 * time.Second}); !r.OK() {
			b.Fatal(r)
		}
	}
}

// BenchmarkCheckLarge judges 100,000 operations of 100 clients.
func BenchmarkCheckLarge(b *testing.B) {
	h := generate(1, shape{clients: 100, steps: 370000, keys: 20, watches: 10, whole: true, unknown: 0.01, step: 1 + ms, calm: true})
	b.ReportMetric(float64(len(h.Operations)), "operations")
	for b.Loop() {
		if r := Check(h, Options{Timeout: 10 * time.Second}); !r.OK() {
			b.Fatal(r)
		}
	}
}
