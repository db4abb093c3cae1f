package history

import (
	"fmt"
	"maps"
	"slices"
)

// sight is one moment at which a revision was seen to exist.
type sight struct {
	time, revision int64
	operation      int // -1: it was a watch
	watch          int
}

func (l *ledger) source(s sight) string {
	if s.operation >= 0 {
		return fmt.Sprintf("revision %d had been seen at %s by %s", s.revision, at(s.time), l.h.operation(s.operation))
	}
	return fmt.Sprintf("revision %d had been told at %s to %s", s.revision, at(s.time), l.h.watch(s.watch))
}

// sightTimes holds for every revision the time at which it, or a later one, was first seen.
type sightTimes struct {
	base   int64
	latest []int64 // latest[i]: before this time revision base+i was there
}

func (s *sightTimes) by(revision int64) int64 {
	i := revision - s.base
	if i < 0 {
		i = 0
	}
	if i >= int64(len(s.latest)) {
		return never
	}
	return s.latest[i]
}

// sights lists in order of time when which revision was seen.
func (l *ledger) sights() []sight {
	var all []sight
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		if o.Outcome == Answered && o.Response.Revision > 0 {
			all = append(all, sight{o.Return, o.Response.Revision, i, -1})
		}
	}
	for i := range l.h.Watches {
		for j := range l.h.Watches[i].Responses {
			answer := &l.h.Watches[i].Responses[j]
			r := answer.Revision
			if n := len(answer.Events); n > 0 {
				r = max(r, answer.Events[n-1].KV.Mod)
			}
			if r > 0 {
				all = append(all, sight{answer.Time, r, -1, i})
			}
		}
	}
	slices.SortFunc(all, func(a, b sight) int {
		if c := sign64(a.time, b.time); c != 0 {
			return c
		}
		return sign64(a.revision, b.revision)
	})
	return all
}

func (l *ledger) times(all []sight) *sightTimes {
	n := min(l.last-l.base+1, int64(4*(len(l.h.Operations)+len(all))+1000))
	s := &sightTimes{base: l.base, latest: make([]int64, n)}
	for i := range s.latest {
		s.latest[i] = never
	}
	for _, x := range all {
		if i := x.revision - l.base; i >= 0 && i < n {
			s.latest[i] = min(s.latest[i], x.time)
		}
	}
	for i := n - 2; i >= 0; i-- {
		s.latest[i] = min(s.latest[i], s.latest[i+1])
	}
	return s
}

// realTime judges revisions against time: whoever asks after a revision was seen must not be answered with an older one, and
// a write that is asked for after it must make a newer one.
func (l *ledger) realTime(all []sight) (ok bool) {
	order := make([]int, 0, len(l.ops))
	for i := range l.ops {
		if l.ops[i].revision > 0 && (l.ops[i].writes || !serializable(&l.h.Operations[i].Request)) {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return sign64(l.h.Operations[a].Call, l.h.Operations[b].Call) })
	var newest sight
	next := 0
	ok = true
	for _, i := range order {
		o, p := &l.h.Operations[i], l.ops[i]
		for ; next < len(all) && all[next].time < o.Call; next++ {
			if all[next].revision > newest.revision {
				newest = all[next]
			}
		}
		involved := func() []int {
			if newest.operation >= 0 {
				return []int{i, newest.operation}
			}
			return []int{i}
		}
		switch {
		case p.writes && p.revision <= newest.revision:
			ok = false
			l.found(linearizable, "revision goes back in real time", "before this was asked, "+l.source(newest)+"\n"+l.h.operation(i), involved(), nil)
		case !p.writes && p.revision < newest.revision:
			ok = false
			l.found(linearizable, "stale read", "before this was asked, "+l.source(newest)+"\n"+l.h.operation(i), involved(), nil)
		}
	}
	l.counts("operations judged against real time", len(order))
	return ok
}

// doubled finds values that were written more than once, or though the write was refused.
func (l *ledger) doubled() {
	type writer struct{ operation, n int }
	asked := map[string]writer{}
	var walk func(i int, r *Request)
	walk = func(i int, r *Request) {
		switch r.Kind {
		case Put:
			w := asked[r.Key+"\x00"+r.Value]
			asked[r.Key+"\x00"+r.Value] = writer{i, w.n + 1}
		case Txn:
			for j := range r.Then {
				walk(i, &r.Then[j])
			}
			for j := range r.Else {
				walk(i, &r.Else[j])
			}
		}
	}
	for i := range l.h.Operations {
		walk(i, &l.h.Operations[i].Request)
	}
	first := map[string]int64{}
	for _, r := range slices.Sorted(maps.Keys(l.pages)) {
		p := l.pages[r]
		events := p.told
		if len(p.effects) > 0 {
			events = p.effects
		}
		for _, e := range events {
			if e.Type != PutEvent {
				continue
			}
			name := e.KV.Key + "\x00" + e.KV.Value
			w := asked[name]
			if w.n != 1 {
				continue
			}
			if before, again := first[name]; again {
				l.found(linearizable, "write done twice", fmt.Sprintf("%q = %q was written at revision %d and again at %d\n%s", e.KV.Key, e.KV.Value, before, r, l.h.operation(w.operation)), []int{w.operation}, watchOf(p))
			}
			first[name] = r
			if l.h.Operations[w.operation].Outcome == Refused {
				l.found(linearizable, "refused write done", fmt.Sprintf("at revision %d\n%s", r, l.h.operation(w.operation)), []int{w.operation}, watchOf(p))
			}
		}
	}
}
