// Package ordered keeps values in order while they come in any order.
//
// Job: a set from which a walk can begin anywhere, at the cost of a search, after every insertion. Non-job: removing,
// finding one value, concurrency.
//
// Invariant: the same insertions give the same walks. An insertion costs O(log n) comparisons and the move of at most one
// chunk; a walk costs O(log n) comparisons and then one step for each value.
package ordered

import "sort"

// chunk is how many values lie together: what an insertion may have to move.
const chunk = 512

// Set holds values in order. The zero Set is empty.
type Set[T any] struct {
	chunks [][]T // none is empty
	n      int
}

// Len returns the number of values.
func (s *Set[T]) Len() int { return s.n }

// Reset empties the set and keeps some of its memory.
func (s *Set[T]) Reset() {
	if len(s.chunks) > 0 {
		first := s.chunks[0]
		clear(first)
		clear(s.chunks)
		s.chunks = append(s.chunks[:0], first[:0])[:0]
	}
	s.n = 0
}

// Insert adds v, which must not be in the set. less reports whether a value of the set lies below v.
func (s *Set[T]) Insert(v T, less func(T) bool) {
	s.n++
	i := sort.Search(len(s.chunks), func(i int) bool { return !less(s.chunks[i][len(s.chunks[i])-1]) })
	if i == len(s.chunks) { // above all: ascending insertions fill chunks
		if i == 0 || len(s.chunks[i-1]) == chunk {
			s.append(v)
			return
		}
		s.chunks[i-1] = append(s.chunks[i-1], v)
		return
	}
	c := s.chunks[i]
	if len(c) == chunk {
		upper := append(make([]T, 0, chunk), c[chunk/2:]...)
		clear(c[chunk/2:])
		s.chunks = append(s.chunks, nil)
		copy(s.chunks[i+2:], s.chunks[i+1:])
		s.chunks[i], s.chunks[i+1] = c[:chunk/2], upper
		if less(c[chunk/2-1]) {
			i++
		}
		c = s.chunks[i]
	}
	at := sort.Search(len(c), func(j int) bool { return !less(c[j]) })
	c = append(c, v)
	copy(c[at+1:], c[at:])
	c[at] = v
	s.chunks[i] = c
}

// append begins a chunk, in the memory that Reset kept if there is some.
func (s *Set[T]) append(v T) {
	if n := len(s.chunks); n < cap(s.chunks) {
		s.chunks = s.chunks[:n+1]
		s.chunks[n] = append(s.chunks[n][:0], v)
		return
	}
	s.chunks = append(s.chunks, []T{v})
}

// seek returns the place of the first value that is not below what is sought.
func (s *Set[T]) seek(less func(T) bool) (i, j int) {
	i = sort.Search(len(s.chunks), func(i int) bool { return !less(s.chunks[i][len(s.chunks[i])-1]) })
	if i < len(s.chunks) {
		j = sort.Search(len(s.chunks[i]), func(j int) bool { return !less(s.chunks[i][j]) })
	}
	return i, j
}

// Walk returns a cursor over the values from the first that is not below the start up to the last that is below the end;
// a nil end is no bound.
func (s *Set[T]) Walk(belowStart, belowEnd func(T) bool) Cursor[T] {
	i, j := s.seek(belowStart)
	to, end := len(s.chunks), 0
	if belowEnd != nil {
		to, end = s.seek(belowEnd)
	}
	if end > 0 {
		to++
	}
	if i >= to || i == to-1 && end > 0 && j >= end {
		return Cursor[T]{}
	}
	if end == 0 {
		end = len(s.chunks[to-1])
	}
	return Cursor[T]{chunks: s.chunks[i:to], at: j, end: end}
}

// Cursor walks over a part of a set. It is good until the next insertion. The zero Cursor has ended.
type Cursor[T any] struct {
	chunks [][]T // that are left; none: the end
	at     int   // in the first of them
	end    int   // of the last of them
}

// Value returns the value under the cursor; false at the end.
func (c *Cursor[T]) Value() (v T, ok bool) {
	if len(c.chunks) == 0 {
		return v, false
	}
	return c.chunks[0][c.at], true
}

// Next moves to the next value.
func (c *Cursor[T]) Next() {
	n := len(c.chunks[0])
	if len(c.chunks) == 1 {
		n = c.end
	}
	if c.at++; c.at == n {
		c.chunks, c.at = c.chunks[1:], 0
	}
}
