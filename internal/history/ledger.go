package history

import (
	"fmt"
	"math"
	"slices"
)

// ledger is the history ordered by revision. Every answer about keys names the revision at which the store was when it was
// given, so it has one place there; what has none (unknown outcomes) gets the place where it was seen to have been done.
type ledger struct {
	*verdict
	base, last int64 // the revision of the beginning; the newest that anything names
	exact      int64 // up to here the content of the store is known
	pages      map[int64]*page
	store      store // at exact; its past holds every revision before
	ops        []place
	ambiguous  bool            // several operations can have made some revision, and it may not be known which rightly
	used       map[int64]int64 // lease -> the first revision that attaches something to it
	seen       *sightTimes
	revoked    map[int64]int64 // lease -> when its first answered revocation had returned
	sightings  map[int64][]KV  // by mod revision, of what reads showed; made when needed
}

// page is what is known of the making of one revision.
type page struct {
	writer  int     // the operation that made it; -1: none known
	lease   int64   // it is the end of this lease (if cause is byLease)
	cause   cause   // what made it
	told    []Event // by watches, each key once
	whole   bool    // told holds all of it, in order
	by      int     // the watch that told first
	effects []Event // what it did, in order, with what was there before
}

type cause uint8

const (
	unexplained cause = iota
	byOperation
	byLease // by the end of a lease that nobody revoked
)

// place is where an operation stands.
type place struct {
	revision int64 // 0: nowhere certain
	writes   bool  // it made that revision
	blind    bool  // its answer never came
}

func (l *ledger) page(revision int64) *page {
	p := l.pages[revision]
	if p == nil {
		p = &page{writer: -1, by: -1}
		l.pages[revision] = p
	}
	return p
}

// wrote reports whether an answer says that something changed.
func wrote(r *Request, a *Response) bool {
	switch r.Kind {
	case Put:
		return true
	case Delete:
		return a.Deleted > 0
	case Txn:
		branch := r.Then
		if !a.Succeeded {
			branch = r.Else
		}
		for i := range min(len(branch), len(a.Responses)) {
			if wrote(&branch[i], &a.Responses[i]) {
				return true
			}
		}
	}
	return false
}

// serializable reports whether an operation may be answered with what the member has.
func serializable(r *Request) bool {
	switch r.Kind {
	case Range:
		return r.Serializable
	case Txn:
		for _, branch := range [][]Request{r.Then, r.Else} {
			for i := range branch {
				if branch[i].Kind != Range || !branch[i].Serializable {
					return false
				}
			}
		}
		return len(r.Then)+len(r.Else) > 0 // one that only compares is linearizable
	}
	return false
}

// aboutKeys reports whether the answer of such an operation has a place by its revision.
func (k Kind) aboutKeys() bool { return k == Range || k == Put || k == Delete || k == Txn }

func newLedger(v *verdict) *ledger {
	s := newStore(v.h.Initial)
	s.anyLease = true
	l := &ledger{verdict: v, base: s.revision, last: s.revision, pages: map[int64]*page{}, store: s, ops: make([]place, len(v.h.Operations))}
	l.place()
	l.listen()
	return l
}

// place gives every answered operation its place.
func (l *ledger) place() {
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		if o.Outcome != Answered || !o.Request.Kind.aboutKeys() {
			continue
		}
		r := o.Response.Revision
		if r <= 0 {
			l.found(linearizable, "answer without a revision", l.h.operation(i), []int{i}, nil)
			continue
		}
		l.ops[i] = place{revision: r, writes: wrote(&o.Request, &o.Response)}
		l.last = max(l.last, r)
		if !l.ops[i].writes {
			continue
		}
		p := l.page(r)
		if p.writer >= 0 {
			l.found(linearizable, "two writes of one revision", l.h.operation(p.writer)+"\n"+l.h.operation(i), []int{p.writer, i}, nil)
			continue
		}
		p.writer, p.cause = i, byOperation
	}
}

// listen assembles the event log from all watches.
func (l *ledger) listen() {
	for i := range l.h.Watches {
		w := &l.h.Watches[i]
		all := inRange("", w.Key, w.End) || w.Key == "\x00" && w.End == "\x00"
		all = all && w.End == "\x00" && !w.NoPut && !w.NoDelete
		for j := range w.Responses {
			answer := &w.Responses[j]
			for k := range answer.Events {
				l.hear(i, &answer.Events[k])
			}
			if all && !answer.More && len(answer.Events) > 0 {
				l.closePages(w, j)
			}
			l.last = max(l.last, answer.Revision)
		}
	}
}

func (l *ledger) hear(watch int, e *Event) {
	l.last = max(l.last, e.KV.Mod)
	p := l.page(e.KV.Mod)
	if p.by < 0 {
		p.by = watch
	}
	for i := range p.told {
		if p.told[i].KV.Key != e.KV.Key {
			continue
		}
		if p.told[i].Type != e.Type || p.told[i].KV != e.KV {
			l.found(watching, "two contents of one revision", fmt.Sprintf("revision %d was told as %s and as %s\n%s\n%s", e.KV.Mod, p.told[i], e, l.h.watch(p.by), l.h.watch(watch)), nil, []int{p.by, watch})
		}
		return
	}
	if p.whole {
		l.found(watching, "two contents of one revision", fmt.Sprintf("revision %d was told with %s and, to one who watches everything, without it\n%s", e.KV.Mod, e, l.h.watch(watch)), nil, []int{p.by, watch})
		return
	}
	p.told = append(p.told, Event{Type: e.Type, KV: e.KV})
}

// closePages marks as whole the revisions that response j of a watch on everything completes, and puts them in its order.
func (l *ledger) closePages(w *Watch, j int) {
	first := j
	for first > 0 && w.Responses[first-1].More {
		first--
	}
	var order []Event
	flush := func() {
		if len(order) == 0 {
			return
		}
		p := l.page(order[0].KV.Mod)
		if !p.whole {
			if len(p.told) > len(order) {
				l.found(watching, "two contents of one revision", fmt.Sprintf("revision %d was told with %d events and, to one who watches everything, with %d", order[0].KV.Mod, len(p.told), len(order)), nil, []int{p.by})
			}
			p.told, p.whole = slices.Clone(order), true
		}
		order = order[:0]
	}
	for ; first <= j; first++ {
		for _, e := range w.Responses[first].Events {
			if len(order) > 0 && order[0].KV.Mod != e.KV.Mod {
				flush()
			}
			order = append(order, Event{Type: e.Type, KV: e.KV})
		}
	}
	flush()
}

// replay makes every revision from the one before, from what its writer asked or from what was told of it, and finds the
// places of operations whose answers never came.
func (l *ledger) replay(seen *sightTimes) {
	l.exact = l.base
	l.seen = seen
	u := newUnknowns(l, seen)
	for r := l.base + 1; r <= l.last; r++ {
		p := l.pages[r]
		if p == nil || p.writer < 0 && !p.whole {
			if p = u.guess(r); p == nil {
				l.ambiguous = u.doubtful()
				break
			}
		}
		if p.writer >= 0 {
			l.write(r, p)
		} else {
			u.consider(r, p)
			l.follow(r, p)
		}
		l.exact = r
	}
	u.settle()
	l.counts("revisions replayed", int(l.exact-l.base))
}

// write replays the operation that made revision r.
func (l *ledger) write(r int64, p *page) {
	o := &l.h.Operations[p.writer]
	s, want, events, why := l.store.do(&o.Request)
	blind := l.ops[p.writer].blind
	switch {
	case why != "":
		l.found(linearizable, "done though it cannot have been", why+"\n"+l.h.operation(p.writer), []int{p.writer}, nil)
	case len(events) == 0:
		l.found(linearizable, "answer contradicts its revision", "it says that it wrote, and at its revision it would have written nothing\n"+l.h.operation(p.writer), []int{p.writer}, nil)
	case !blind:
		if diff := same(&o.Request, &want, &o.Response); diff != "" {
			l.found(linearizable, "answer contradicts its revision", diff+"\n"+l.h.operation(p.writer), []int{p.writer}, nil)
		}
	}
	if diff := l.toldOtherwise(p, events); diff != "" {
		l.found(linearizable, "event log contradicts the write", diff+"\n"+l.h.operation(p.writer), []int{p.writer}, watchOf(p))
		if p.whole {
			l.follow(r, p)
			return
		}
	}
	if len(events) == 0 {
		l.follow(r, p)
		return
	}
	p.effects = events
	l.store = s
}

func watchOf(p *page) []int {
	if p.by < 0 {
		return nil
	}
	return []int{p.by}
}

// toldOtherwise says in what the watches contradict what a write did.
func (l *ledger) toldOtherwise(p *page, events []Event) string {
	for i := range p.told {
		e := &p.told[i]
		if !slices.ContainsFunc(events, func(x Event) bool { return x.Type == e.Type && x.KV == e.KV }) {
			return fmt.Sprintf("watches were told %s at that revision; the write did: %s", e, list(events))
		}
	}
	if !p.whole {
		return ""
	}
	if len(events) > len(p.told) {
		return fmt.Sprintf("watches were told only %s; the write did: %s", list(p.told), list(events))
	}
	for i := range events {
		if events[i].KV != p.told[i].KV {
			return fmt.Sprintf("watches were told in the order %s; the write did: %s", list(p.told), list(events))
		}
	}
	return ""
}

// follow takes over what was told of revision r.
func (l *ledger) follow(r int64, p *page) {
	p.effects = make([]Event, len(p.told))
	for i, e := range p.told {
		prev := l.store.keys.get(e.KV.Key)
		e.Prev = prev
		p.effects[i] = e
		want := KV{Key: e.KV.Key, Mod: r}
		if e.Type == PutEvent {
			want = KV{e.KV.Key, e.KV.Value, r, r, 1, e.KV.Lease}
			if prev != nil {
				want.Create, want.Version = prev.Create, prev.Version+1
			}
		} else if prev == nil {
			l.found(watching, "event contradicts the revision before", fmt.Sprintf("%s: the key was not there", e), nil, watchOf(p))
			continue
		}
		if e.KV != want {
			l.found(watching, "event contradicts the revision before", fmt.Sprintf("%s: it should be %s", e, Event{Type: e.Type, KV: want}), nil, watchOf(p))
		}
	}
	l.store = l.store.follow(r, p.told)
}

// reads compares every answer that changed nothing with the content of its revision.
func (l *ledger) reads() {
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		p := l.ops[i]
		if p.revision == 0 || p.writes || p.blind {
			continue
		}
		judge := linearizable
		if serializable(&o.Request) {
			judge = serializing
			l.counts("serializable reads", 1)
		} else {
			l.counts("linearizable reads", 1)
		}
		if p.revision > l.exact {
			if judge == serializing {
				l.counts("serializable reads at a revision whose content is not known (not judged)", 1)
			}
			continue
		}
		s, ok := l.asOf(p.revision)
		if !ok {
			l.found(judge, "answer from before the history", l.h.operation(i), []int{i}, nil)
			continue
		}
		_, want, events, why := s.do(&o.Request)
		switch {
		case why != "":
			l.found(judge, "done though it cannot have been", why+"\n"+l.h.operation(i), []int{i}, nil)
		case len(events) > 0:
			l.found(judge, "answer contradicts its revision", "it says that it changed nothing; it would have: "+list(events)+"\n"+l.h.operation(i), []int{i}, nil)
		default:
			if diff := same(&o.Request, &want, &o.Response); diff != "" {
				l.found(judge, "answer contradicts its revision", diff+"\n"+l.h.operation(i), []int{i}, nil)
			}
		}
	}
}

// asOf returns the store at a revision.
func (l *ledger) asOf(revision int64) (store, bool) {
	keys, ok := l.store.at(revision)
	if !ok {
		return store{}, false
	}
	n := revision - l.base + 1
	return store{revision: revision, keys: keys, past: l.store.past[:n:n], base: l.base, anyLease: true}, true
}

const never = math.MaxInt64
