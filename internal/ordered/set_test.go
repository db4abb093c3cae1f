package ordered

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func below(v int) func(int) bool { return func(o int) bool { return o < v } }

func walk(s *Set[int], start, end int) []int {
	var upper func(int) bool
	if end >= 0 {
		upper = below(end)
	}
	list := []int{}
	for c := s.Walk(below(start), upper); ; c.Next() {
		v, ok := c.Value()
		if !ok {
			return list
		}
		list = append(list, v)
	}
}

// TestAgainstSlice holds walks after every few insertions against a sorted slice, over several lives of the set.
func TestAgainstSlice(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var s Set[int]
	for life, values := range [][]int{nil, rnd.Perm(5000), rnd.Perm(10), ascending(3000), descending(3000), rnd.Perm(3*chunk + 1)} {
		s.Reset()
		var sorted []int
		for i, v := range values {
			s.Insert(v, below(v))
			at, _ := slices.BinarySearch(sorted, v)
			sorted = slices.Insert(sorted, at, v)
			if i%37 != 0 && i != len(values)-1 {
				continue
			}
			for range 5 {
				start, end := rnd.IntN(len(values)+2)-1, rnd.IntN(len(values)+2)-1
				lo, _ := slices.BinarySearch(sorted, start)
				hi, _ := slices.BinarySearch(sorted, end)
				if end < 0 {
					hi = len(sorted)
				}
				if got, want := walk(&s, start, end), sorted[lo:max(lo, hi)]; !slices.Equal(got, want) {
					t.Fatalf("life %d after %d values: from %d to %d %v, want %v", life, i+1, start, end, got, want)
				}
			}
		}
		if got := walk(&s, -1, -1); !slices.Equal(got, sorted) || s.Len() != len(values) {
			t.Fatalf("life %d: %d of %d values", life, len(got), len(values))
		}
	}
}

func ascending(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func descending(n int) []int {
	list := ascending(n)
	slices.Reverse(list)
	return list
}

// TestComparisons: walks between insertions cost comparisons by the logarithm of what is there, not by its number.
func TestComparisons(t *testing.T) {
	const n = 1 << 16
	for name, values := range map[string][]int{"random": rand.New(rand.NewPCG(3, 4)).Perm(n), "ascending": ascending(n), "descending": descending(n)} {
		var s Set[int]
		compared := 0
		counted := func(v int) func(int) bool {
			return func(o int) bool {
				compared++
				return o < v
			}
		}
		for _, v := range values {
			s.Insert(v, counted(v))
			c := s.Walk(counted(v), counted(v+1))
			if got, ok := c.Value(); !ok || got != v {
				t.Fatalf("%s: %d is not found", name, v)
			}
		}
		if most := n * 3 * 20; compared > most {
			t.Errorf("%s: %d comparisons, want at most %d", name, compared, most)
		}
	}
}
