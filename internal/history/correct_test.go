package history

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestCorrectHistories holds that nothing is wrong with what a correct store shows: thousands of histories of all shapes.
func TestCorrectHistories(t *testing.T) {
	t.Parallel()
	n := uint64(2000)
	if testing.Short() {
		n = 200
	}
	undecided := 0
	seeds := []uint64{641, 101904} // two revisions that one operation fits, one of them by its lease too; the past by which a state was reached
	for seed := range n {
		seeds = append(seeds, seed)
	}
	for _, seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 5))
		s := shape{clients: 1 + rnd.IntN(8), steps: 50 + rnd.IntN(500), keys: 1 + rnd.IntN(8), watches: rnd.IntN(5), whole: rnd.IntN(4) > 0, leases: rnd.IntN(2) == 0, step: 1 + int64(20*time.Millisecond)}
		if rnd.IntN(3) > 0 {
			s.unknown = []float64{0.01, 0.05, 0.2}[rnd.IntN(3)]
		}
		h := generate(seed, s)
		r := Check(h, Options{SettledAt: h.End, ExpiryAllowance: time.Second, Timeout: 500 * time.Millisecond})
		if len(r.Violations) > 0 {
			t.Fatalf("seed %d, %+v:\n%s", seed, s, r)
		}
		if len(r.Undecided) > 0 {
			undecided++
			if s.whole && !canceled(h.Watches[0]) {
				t.Fatalf("seed %d, %+v: undecided, although everything was watched: %s", seed, s, r)
			}
		}
	}
	t.Logf("%d of %d undecided", undecided, n)
}

// TestCorrectLargeHistories holds the same for histories as the simulation makes them: some thousand operations of up to thirty clients.
func TestCorrectLargeHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(25) {
		h := generate(seed, shape{clients: 5 + int(seed), steps: 11000, keys: 5 + int(seed), watches: 10, whole: true, unknown: []float64{0, 0.02, 0.1}[seed%3], leases: true, step: 1 + 10*ms, calm: true})
		if r := Check(h, Options{SettledAt: h.End, ExpiryAllowance: time.Second}); !r.OK() {
			t.Fatalf("seed %d:\n%s", seed, r)
		}
	}
}

func canceled(w Watch) bool {
	return len(w.Responses) > 0 && w.Responses[len(w.Responses)-1].Canceled
}

// TestInnerComparisonsAreDecidedFirst: a transaction inside another one does not see what that one has written when its
// comparisons are decided, as in etcd.
func TestInnerComparisonsAreDecidedFirst(t *testing.T) {
	t.Parallel()
	r := Request{
		Kind: Txn,
		Then: []Request{
			{Kind: Put, Key: "a", Value: "1"},
			{Kind: Txn, Compares: []Compare{{Key: "a", Target: TargetVersion, Result: ">"}}, Then: []Request{{Kind: Put, Key: "b", Value: "2"}}, Else: []Request{{Kind: Range, Key: "a"}}},
		},
	}
	for _, seen := range []bool{false, true} {
		inner := Response{Kind: Txn, Succeeded: seen, Responses: []Response{{Kind: Range, Count: 1, KVs: []KV{kv("a", "1", 2, 2, 1)}}}}
		if seen {
			inner.Responses = []Response{{Kind: Put}}
		}
		h := History{Operations: []Operation{done(1, 1, 2, r, Response{Revision: 2, Succeeded: true, Responses: []Response{{Kind: Put}, inner}})}}
		if report := Check(h, Options{}); report.OK() == seen {
			t.Fatalf("inner comparison came out %v:\n%s", seen, report)
		}
	}
}
