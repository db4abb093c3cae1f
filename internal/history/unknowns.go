package history

import (
	"fmt"
	"slices"
)

// unknowns finds out which of the operations that were never answered were done, and where: by what was told and read of the
// revisions that no answered operation made. What it cannot settle is left to porcupine.
type unknowns struct {
	*ledger
	seen     *sightTimes
	byValue  map[string][]int // key and value of a put -> operations that may put it
	deleters []int            // operations that may delete
	revokes  map[int64][]int  // lease -> answered and unknown revocations of it
	all      []int
	open     []question
}

// question is a revision whose events are known and whose maker is not.
type question struct {
	revision   int64
	candidates []int
	lease      int64 // its events are the end of this lease, if it is not 0
}

func newUnknowns(l *ledger, seen *sightTimes) *unknowns {
	u := &unknowns{ledger: l, seen: seen, byValue: map[string][]int{}, revokes: map[int64][]int{}}
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		if o.Request.Kind == LeaseRevoke && o.Outcome != Refused {
			u.revokes[o.Request.Lease] = append(u.revokes[o.Request.Lease], i)
		}
		if o.Outcome != Unknown || !o.Request.Kind.aboutKeys() || o.Request.Kind == Range {
			continue
		}
		u.all = append(u.all, i)
		if u.index(i, &o.Request) {
			u.deleters = append(u.deleters, i)
		}
	}
	for _, list := range u.revokes {
		slices.SortStableFunc(list, func(a, b int) int {
			return -sign64(int64(l.h.Operations[a].Outcome), int64(l.h.Operations[b].Outcome)) // answered ones first
		})
	}
	l.counts("operations never answered", len(u.all))
	return u
}

func (u *unknowns) index(i int, r *Request) (deletes bool) {
	switch r.Kind {
	case Put:
		name := r.Key + "\x00" + r.Value
		if list := u.byValue[name]; len(list) == 0 || list[len(list)-1] != i {
			u.byValue[name] = append(list, i)
		}
	case Delete:
		return true
	case Txn:
		for _, branch := range [][]Request{r.Then, r.Else} {
			for j := range branch {
				deletes = u.index(i, &branch[j]) || deletes
			}
		}
	}
	return deletes
}

// fits returns the events of an operation if it may have been what made revision r.
func (u *unknowns) fits(i int, r int64) []Event {
	if u.ops[i].revision != 0 || u.h.Operations[i].Call > u.seen.by(r) {
		return nil
	}
	_, _, events, why := u.store.do(&u.h.Operations[i].Request)
	if why != "" {
		return nil
	}
	return events
}

// consider notes who may have made revision r, whose events are all known.
func (u *unknowns) consider(r int64, p *page) {
	q := question{revision: r}
	from := u.deleters
	for i := range p.told {
		if e := &p.told[i]; e.Type == PutEvent {
			from = u.byValue[e.KV.Key+"\x00"+e.KV.Value]
			break
		}
	}
	for _, i := range from {
		if events := u.fits(i, r); events != nil && slices.EqualFunc(events, p.told, sameEvent) {
			q.candidates = append(q.candidates, i)
		}
	}
	q.lease = u.endOfLease(p.told)
	if q.lease != 0 {
		for _, i := range u.revokes[q.lease] {
			if u.ops[i].revision != 0 || u.h.Operations[i].Call > u.seen.by(r) {
				continue
			}
			if u.h.Operations[i].Outcome == Answered {
				u.settleOn(i, r)
				return
			}
			q.candidates = append(q.candidates, i)
		}
	}
	u.open = append(u.open, q)
}

func sameEvent(a, b Event) bool { return a.Type == b.Type && a.KV == b.KV }

// endOfLease returns the lease whose keys are exactly those that the events delete, or 0.
func (u *unknowns) endOfLease(events []Event) (lease int64) {
	for i := range events {
		kv := u.store.keys.get(events[i].KV.Key)
		if events[i].Type != DeleteEvent || kv == nil || kv.Lease == 0 || i > 0 && kv.Lease != lease {
			return 0
		}
		lease = kv.Lease
	}
	if lease != 0 && len(u.store.attached(lease)) == len(events) {
		return lease
	}
	return 0
}

func (u *unknowns) settleOn(i int, r int64) {
	u.ops[i] = place{revision: r, writes: true, blind: u.h.Operations[i].Outcome == Unknown}
	p := u.page(r)
	p.writer, p.cause = i, byOperation
	if u.ops[i].blind {
		u.counts("operations never answered that were found done", 1)
	}
}

// settle gives each open revision a maker, no operation more than one: a matching by augmenting paths.
func (u *unknowns) settle() {
	holder := map[int]int{} // operation -> question
	var try func(q int, visited map[int]bool) bool
	try = func(q int, visited map[int]bool) bool {
		for _, i := range u.open[q].candidates {
			if visited[i] || u.ops[i].revision != 0 {
				continue
			}
			visited[i] = true
			if before, taken := holder[i]; !taken || try(before, visited) {
				holder[i] = q
				return true
			}
		}
		return false
	}
	// those that the end of a lease would explain too come last: they can do without an operation
	slices.SortStableFunc(u.open, func(a, b question) int {
		switch {
		case a.lease == 0 && b.lease != 0:
			return -1
		case a.lease != 0 && b.lease == 0:
			return 1
		}
		return sign64(a.revision, b.revision)
	})
	for q := range u.open {
		if try(q, map[int]bool{}) {
			continue
		}
		p := u.page(u.open[q].revision)
		if u.open[q].lease != 0 {
			p.cause, p.lease = byLease, u.open[q].lease
			u.counts("leases that expired", 1)
			continue
		}
		u.found(linearizable, "events that nobody wrote", fmt.Sprintf("revision %d: %s; no operation that is not accounted for can have done this", u.open[q].revision, list(p.told)), nil, watchOf(p))
	}
	for i, q := range holder {
		u.settleOn(i, u.open[q].revision)
	}
}

// guess looks for the one thing that can have been done at revision r, of which no or not all events are known; nil if there are
// several. What it finds stands on the page afterwards, as if it had been told.
func (u *unknowns) guess(r int64) *page {
	p := u.page(r)
	shown := u.shown(r)
	consistent := func(events []Event) bool {
		for i := range p.told {
			if !slices.ContainsFunc(events, func(e Event) bool { return sameEvent(e, p.told[i]) }) {
				return false
			}
		}
		for i := range shown {
			if !slices.ContainsFunc(events, func(e Event) bool { return e.Type == PutEvent && e.KV == shown[i] }) {
				return false
			}
		}
		return len(events) > 0
	}
	var effect []Event
	several := false
	offer := func(events []Event) {
		switch {
		case !consistent(events):
		case effect == nil:
			effect = events
		default:
			several = several || !slices.EqualFunc(effect, events, sameEvent)
		}
	}
	for _, i := range u.all {
		offer(u.fits(i, r))
	}
	if len(shown) == 0 {
		for _, lease := range u.holding() {
			offer(u.endEvents(lease, r))
		}
	}
	switch {
	case several:
		return nil
	case effect != nil: // whoever it was, this is what was done
		p.told, p.whole = make([]Event, len(effect)), true
		for i := range effect {
			p.told[i] = Event{Type: effect[i].Type, KV: effect[i].KV}
		}
	case u.doubtful():
		return nil
	default:
		u.found(linearizable, "revision that nobody wrote", fmt.Sprintf("revision %d was reached, and no operation that is not accounted for can have made it", r), nil, watchOf(p))
		return nil
	}
	return p
}

// holding lists the leases that have keys.
func (u *unknowns) holding() (leases []int64) {
	var before string
	u.store.leases.walk("", "\x00", func(kv *KV) bool {
		if id := kv.Key[:8]; len(kv.Key) > 8 && id != before {
			before = id
			leases = append(leases, leaseOf(id))
		}
		return true
	})
	return leases
}

func (u *unknowns) endEvents(lease, r int64) (events []Event) {
	for _, key := range u.store.attached(lease) {
		events = append(events, Event{Type: DeleteEvent, KV: KV{Key: key, Mod: r}})
	}
	return events
}

// shown returns what reads showed of keys that were last written at r.
func (u *unknowns) shown(r int64) []KV {
	if u.sightings == nil {
		u.sightings = map[int64][]KV{}
		for i := range u.h.Operations {
			if o := &u.h.Operations[i]; o.Outcome == Answered {
				u.show(&o.Request, &o.Response)
			}
		}
	}
	return u.sightings[r]
}

func (u *unknowns) show(r *Request, a *Response) {
	add := func(kvs []KV) {
		for _, kv := range kvs {
			if kv.Mod > u.base && !slices.Contains(u.sightings[kv.Mod], kv) {
				u.sightings[kv.Mod] = append(u.sightings[kv.Mod], kv)
			}
		}
	}
	add(a.Prev)
	if r.Kind == Range && !r.KeysOnly {
		add(a.KVs)
	}
	if r.Kind == Txn {
		branch := r.Then
		if !a.Succeeded {
			branch = r.Else
		}
		for i := range min(len(branch), len(a.Responses)) {
			u.show(&branch[i], &a.Responses[i])
		}
	}
}

// doubtful reports whether some revision so far can have been made by several operations.
func (u *unknowns) doubtful() bool {
	return slices.ContainsFunc(u.open, func(q question) bool { return len(q.candidates) > 1 || len(q.candidates) == 1 && q.lease != 0 })
}
