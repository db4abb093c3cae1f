package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// move is one step of the store as porcupine sees it.
type move struct {
	operation int // -1: the end of a lease
	request   *Request
	answer    *Response
	blind     bool  // the answer is not known
	revision  int64 // at which it stands; 0: not known
	writes    bool
	optional  bool // it may never have happened
	call, ret int64
}

// maker tells porcupine what a store may do.
type maker struct {
	*ledger
}

// step does one move, or says why it cannot be the next one.
func (m *maker) step(s *store, v *move) (*store, string) {
	if v.optional && s.revision >= m.last {
		return s, "" // nobody saw it: it never happened, or after all this
	}
	next, want, events, why := s.do(v.request)
	switch {
	case v.optional && v.request.Kind == LeaseGrant:
		if why != "" {
			return s, ""
		}
		return &next, ""
	case v.optional && (why != "" || len(events) == 0):
		return nil, "it changes nothing here"
	case why != "":
		return nil, why
	}
	if v.revision == 0 && len(events) > 0 {
		if why := m.free(next.revision, events); why != "" {
			return nil, why
		}
	}
	if v.revision != 0 && next.revision != v.revision {
		return nil, fmt.Sprintf("it belongs to revision %d, and the store would be at %d", v.revision, next.revision)
	}
	if v.revision != 0 && v.writes != (len(events) > 0) {
		return nil, fmt.Sprintf("it would have %d events here", len(events))
	}
	if !v.blind {
		if diff := same(v.request, &want, v.answer); diff != "" {
			return nil, diff
		}
	}
	return &next, ""
}

// free says why a revision cannot have been made by a move with these events.
func (m *maker) free(revision int64, events []Event) string {
	p := m.pages[revision]
	if p == nil {
		return ""
	}
	if p.cause != unexplained {
		return fmt.Sprintf("it would make revision %d, which something else has made", revision)
	}
	for i := range p.told {
		if !slices.ContainsFunc(events, func(e Event) bool { return sameEvent(e, p.told[i]) }) {
			return fmt.Sprintf("it would make revision %d, of which watches were told otherwise", revision)
		}
	}
	for _, kv := range m.sightings[revision] {
		if !slices.ContainsFunc(events, func(e Event) bool { return e.Type == PutEvent && e.KV == kv }) {
			return fmt.Sprintf("it would make revision %d, of which reads showed something else", revision)
		}
	}
	return ""
}

func (m *maker) model(start *store) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(state, input, _ any) (bool, any) {
			next, why := m.step(state.(*store), input.(*move))
			if why != "" {
				return false, state
			}
			return true, next
		},
		Equal: func(a, b any) bool {
			x, y := a.(*store), b.(*store)
			return x.revision == y.revision && x.hash == y.hash && x.trail == y.trail && x.compacted == y.compacted
		},
		Hash: func(state any) uint64 { return state.(*store).hash ^ state.(*store).trail },
	}
}

// bounded runs porcupine within a time and a memory: it keeps a set of operations for each state that it has been in.
func bounded(m porcupine.Model, ops []porcupine.Operation, limit time.Duration) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	const memory = 1 << 30
	var steps atomic.Int64
	allowed := int64(memory / (len(ops)/8 + 500))
	step := m.Step
	m.Step = func(state, input, output any) (bool, any) {
		ok, next := false, state
		if steps.Load() <= allowed {
			if ok, next = step(state, input, output); ok {
				steps.Add(1)
			}
		}
		return ok, next // when it is spent, nothing goes on and the search ends
	}
	result, info := porcupine.CheckOperationsVerbose(m, ops, limit)
	if steps.Load() > allowed && result == porcupine.Illegal {
		result = porcupine.Unknown
	}
	return result, info
}

// bounds holds when the store can have come to a revision: not before first, not after last.
type bounds struct {
	base        int64
	first, last []int64
}

func (b *bounds) of(revision int64) (first, last int64) {
	i := revision - b.base
	switch {
	case i < 0:
		return 0, 0
	case i >= int64(len(b.first)):
		return b.first[len(b.first)-1], never
	}
	return b.first[i], b.last[i]
}

func (l *ledger) bounds(seen *sightTimes, moves []move) *bounds {
	b := &bounds{base: l.base, first: make([]int64, len(seen.latest)), last: slices.Clone(seen.latest)}
	for i := range moves {
		v := &moves[i]
		if v.revision == 0 || v.operation < 0 {
			continue
		}
		at := v.revision - l.base
		if v.writes && at >= 0 && at < int64(len(b.last)) {
			b.last[at] = min(b.last[at], v.ret)
		}
		if !v.writes {
			at++
		}
		if at >= 0 && at < int64(len(b.first)) {
			b.first[at] = max(b.first[at], v.call)
		}
	}
	for i := 1; i < len(b.first); i++ {
		b.first[i] = max(b.first[i], b.first[i-1])
	}
	for i := len(b.last) - 2; i >= 0; i-- {
		b.last[i] = min(b.last[i], b.last[i+1])
	}
	return b
}

// tighten brings call and return of a move as near as its revision allows.
func (b *bounds) tighten(v *move) {
	if v.revision == 0 {
		return
	}
	first, last := b.of(v.revision)
	if !v.writes {
		_, last = b.of(v.revision + 1)
	}
	v.call, v.ret = max(v.call, first), min(v.ret, last)
}

// linear judges with porcupine. It cuts the history where the store was in one certain state: between two revisions that no
// operation without a revision spans.
func (l *ledger) linear(seen *sightTimes) {
	if l.last-l.base+1 > int64(len(seen.latest)) {
		l.undecided(fmt.Sprintf("linearizability: revision %d is further from the first one, %d, than this history can explain; did it begin with a store that was not empty, and does it not say so?", l.last, l.base))
		return
	}
	moves := l.moves()
	order(moves)
	b := l.bounds(seen, moves)
	for i := range moves {
		if v := &moves[i]; v.optional && v.request.Kind == LeaseGrant { // it was there when it was used first
			if r := l.used[v.request.Lease]; r != 0 {
				_, last := b.of(r)
				v.ret = min(v.ret, last)
			}
			if t, ok := l.revoked[v.request.Lease]; ok {
				v.ret = min(v.ret, t)
			}
		}
		b.tighten(&moves[i])
	}
	order(moves)
	start := newStore(l.h.Initial)
	start.withTrail = slices.ContainsFunc(moves, func(v move) bool { return v.request.Kind != Put && looksBack(v.request, l.exact) })
	m := &maker{ledger: l}
	end := time.Now().Add(cmp.Or(l.o.Timeout, time.Minute))
	for _, part := range l.cut(b, moves) {
		if part = l.thin(part); len(part) == 0 {
			continue
		}
		left := time.Until(end)
		if left <= 0 {
			l.undecided("linearizability: out of time")
			return
		}
		result, info := bounded(m.model(&start), ranked(part), left)
		l.counts("operations judged by porcupine", len(part))
		longest := longestOf(info.PartialLinearizations())
		state := &start
		for _, i := range longest {
			if next, why := m.step(state, part[i]); why == "" {
				state = next
			}
		}
		switch result {
		case porcupine.Ok:
			start = *state
			continue
		case porcupine.Unknown:
			l.undecided(fmt.Sprintf("linearizability: no decision on %d operations from revision %d on within %s and a gigabyte; a watch on everything would have told which of the unanswered ones were done", len(part), start.revision, cmp.Or(l.o.Timeout, time.Minute)))
		case porcupine.Illegal:
			words, involved := m.stuck(state, part, longest)
			if l.ambiguous {
				l.undecided("linearizability: " + words)
				return
			}
			l.found(linearizable, "not linearizable", words, involved, nil)
		}
		return
	}
}

// cut divides the moves into parts of some hundreds.
func (l *ledger) cut(b *bounds, moves []move) [][]*move {
	const enough = 400
	var placed, loose []*move
	for i := range moves {
		if moves[i].revision != 0 {
			placed = append(placed, &moves[i])
		} else {
			loose = append(loose, &moves[i])
		}
	}
	slices.SortStableFunc(placed, func(x, y *move) int { return sign64(x.revision, y.revision) })
	slices.SortStableFunc(loose, func(x, y *move) int { return sign64(x.call, y.call) })
	spanned := make([]int, len(b.first)+1) // differences: how many loose moves span the coming of a revision
	for _, v := range loose {
		from := sort.Search(len(b.last), func(i int) bool { return b.last[i] >= v.call })
		to := sort.Search(len(b.first), func(i int) bool { return b.first[i] > v.ret })
		if from < to {
			spanned[from]++
			spanned[to]--
		}
	}
	var parts [][]*move
	var part []*move
	next, n, at := 0, 0, 0 // the next loose move; how many span revision base+at-1
	for i, v := range placed {
		if i > 0 && v.revision != placed[i-1].revision && v.revision <= l.exact+1 {
			for r := int(v.revision - l.base); at <= r; at++ {
				n += spanned[at]
			}
			if n == 0 && (len(part) >= enough || v.revision == l.exact+1) {
				first, _ := b.of(v.revision)
				for next < len(loose) && loose[next].ret < first {
					part = append(part, loose[next])
					next++
				}
				parts, part = append(parts, part), nil
			}
		}
		part = append(part, v)
	}
	return append(parts, append(part, loose[next:]...))
}

// ranked hands moves to porcupine with their times replaced by ranks, in which what is called at the same time is in the order
// of revisions: the first order that porcupine tries is then nearly always the right one.
func ranked(part []*move) []porcupine.Operation {
	type edge struct {
		time int64
		back bool
		i    int
	}
	edges := make([]edge, 0, 2*len(part))
	for i, v := range part {
		edges = append(edges, edge{v.call, false, i}, edge{v.ret, true, i})
	}
	slices.SortFunc(edges, func(x, y edge) int {
		if c := sign64(x.time, y.time); c != 0 {
			return c
		}
		if x.back != y.back {
			if x.back {
				return 1
			}
			return -1
		}
		a, b := part[x.i], part[y.i]
		if a.rank() != b.rank() {
			return a.rank() - b.rank()
		}
		if c := sign64(a.revision, b.revision); c != 0 {
			return c
		}
		if a.writes != b.writes {
			if a.writes {
				return -1
			}
			return 1
		}
		return x.i - y.i
	})
	ops := make([]porcupine.Operation, len(part))
	for rank, e := range edges {
		if e.back {
			ops[e.i].Return = int64(rank)
		} else {
			ops[e.i].Call, ops[e.i].Input, ops[e.i].ClientId = int64(rank), part[e.i], e.i
		}
	}
	return ops
}

func longestOf(all [][][]int) (longest []int) {
	for _, part := range all {
		for _, sequence := range part {
			if len(sequence) > len(longest) {
				longest = sequence
			}
		}
	}
	return longest
}

// stuck says where no order of the operations leads on.
func (m *maker) stuck(s *store, part []*move, done []int) (string, []int) {
	left := make(map[int]bool, len(part))
	for i := range part {
		left[i] = true
	}
	for _, i := range done {
		delete(left, i)
	}
	order := slices.SortedFunc(maps.Keys(left), func(a, b int) int { return sign64(part[a].ret, part[b].ret) })
	var words []string
	var involved []int
	for _, i := range order {
		v := part[i]
		if v.optional || len(words) == 5 {
			continue
		}
		_, why := m.step(s, v)
		if why == "" {
			why = "it is not the one that is stuck"
		}
		line := "the end of lease " + num(v.request.Lease)
		if v.operation >= 0 {
			line = m.h.operation(v.operation)
			involved = append(involved, v.operation)
		}
		words = append(words, line+"\n  cannot come next: "+why)
	}
	return fmt.Sprintf("no order of the operations explains the answers. The longest one found has %d of these %d and leaves the store at revision %d. Then these are next to return:\n%s",
		len(done), len(part), s.revision, strings.Join(words, "\n")), involved
}
