package core

import (
	"container/heap"
	"time"
)

// timer is one moment of a timeline and what it is for.
type timer[V any] struct {
	at    time.Time
	order uint64 // among timers of the same moment
	pos   int    // in the timeline; -1: not in it
	value V
}

// timeline is a set of timers, the earliest first. It is not safe for concurrent use.
type timeline[V any] struct {
	timers  timers[V]
	counter uint64
}

// add puts a timer in; it must not be in it.
func (l *timeline[V]) add(t *timer[V]) {
	l.counter++
	t.order = l.counter
	heap.Push(&l.timers, t)
}

// move gives a timer another moment.
func (l *timeline[V]) move(t *timer[V], at time.Time) {
	t.at = at
	heap.Fix(&l.timers, t.pos)
}

// remove takes a timer out, if it is in it.
func (l *timeline[V]) remove(t *timer[V]) {
	if t.pos >= 0 {
		heap.Remove(&l.timers, t.pos)
	}
}

// due takes the earliest timer out if its moment has come; nil otherwise.
func (l *timeline[V]) due(now time.Time) *timer[V] {
	if len(l.timers) == 0 || now.Before(l.timers[0].at) {
		return nil
	}
	return heap.Pop(&l.timers).(*timer[V])
}

// timers is the heap of a timeline.
type timers[V any] []*timer[V]

// Len implements heap.Interface.
func (h timers[V]) Len() int { return len(h) }

// Less implements heap.Interface.
func (h timers[V]) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].order < h[j].order
	}
	return h[i].at.Before(h[j].at)
}

// Swap implements heap.Interface.
func (h timers[V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

// Push implements heap.Interface.
func (h *timers[V]) Push(x any) {
	t := x.(*timer[V])
	t.pos = len(*h)
	*h = append(*h, t)
}

// Pop implements heap.Interface.
func (h *timers[V]) Pop() any {
	old := *h
	n := len(old)
	t := old[n-1]
	old[n-1] = nil
	*h = old[:n-1]
	t.pos = -1
	return t
}
