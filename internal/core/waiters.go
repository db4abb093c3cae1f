package core

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// errUnknownQuery answers a question that the catalog does not know.
var errUnknownQuery = fault.New(fault.Invalid, "unknown query")

// bell is a place in a hub that rings when a key of its span changes at revision from or later. Bells of the same span form
// a list, so that the thousands that wait for one key come and go at the same cost as one.
type bell struct {
	span       storage.Span
	from       int64
	ring       chan struct{} // capacity 1
	prev, next *bell
}

// bellList is a list of bells, the one added last first.
type bellList struct{ head *bell }

func (l *bellList) add(b *bell) {
	b.prev, b.next = nil, l.head
	if l.head != nil {
		l.head.prev = b
	}
	l.head = b
}

func (l *bellList) remove(b *bell) {
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		l.head = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	}
	b.prev, b.next = nil, nil
}

// strike rings the bells that wait for revision.
func (l *bellList) strike(revision int64) {
	for b := l.head; b != nil; b = b.next {
		if revision >= b.from {
			chime(b.ring)
		}
	}
}

// chime wakes who listens on ring, once.
func chime(ring chan struct{}) {
	select {
	case ring <- struct{}{}:
	default:
	}
}

// hang makes b known to dispatch.
func (h *hub) hang(b *bell) {
	h.watchers.Add(1)
	if !b.span.SingleKey() {
		h.spans.Lock()
		h.spans.tree.hang(b)
		h.spans.Unlock()
		return
	}
	s := h.shard(b.span.Start)
	s.Lock()
	defer s.Unlock()
	l := s.bells[string(b.span.Start)]
	if l == nil {
		l = new(bellList)
		s.bells[string(b.span.Start)] = l
	}
	l.add(b)
}

// unhang takes b out again.
func (h *hub) unhang(b *bell) {
	h.watchers.Add(-1)
	if !b.span.SingleKey() {
		h.spans.Lock()
		h.spans.tree.unhang(b)
		h.spans.Unlock()
		return
	}
	s := h.shard(b.span.Start)
	s.Lock()
	defer s.Unlock()
	if l := s.bells[string(b.span.Start)]; l != nil {
		if l.remove(b); l.head == nil {
			delete(s.bells, string(b.span.Start))
		}
	}
}

// waitingLookup is one blocked lookup: some bells in one hub, and the moment when it has waited for long enough.
type waitingLookup struct {
	hub      *hub
	ring     chan struct{}
	bells    []bell
	deadline timer[*waitingLookup]
}

// lookups are the blocked lookups of one member.
type lookups struct {
	limit   int
	count   atomic.Int64
	flights flights

	mu      sync.Mutex
	line    timeline[*waitingLookup]
	changed chan struct{} // closed when rights move, a certificate is revoked, the machine is replaced or core closes
}

func (l *lookups) setup(limit int) {
	l.limit, l.changed = limit, make(chan struct{})
	l.flights.under = map[catalog.Query]*flight{}
}

// enter makes a lookup known to the hub that its answer changes in.
func (l *lookups) enter(c *Core, r *LookupRequest) (*waitingLookup, error) {
	id, spans := catalog.Watched(r.Query)
	if c.spaceUnknown(id) || len(spans) == 0 {
		return nil, errUnknownQuery
	}
	h := c.hubs[id]
	if l.count.Add(1) > int64(l.limit) {
		l.count.Add(-1)
		c.stats.tooMany.Add(1)
		return nil, ErrTooManyWaiters
	}
	w := &waitingLookup{hub: h, ring: make(chan struct{}, 1), bells: make([]bell, len(spans))}
	w.deadline.value, w.deadline.at = w, c.clock().Add(min(r.Wait, maxWait))
	from := int64(min(r.MinIndex, 1<<62)) + 1 // nothing older can bring the index above MinIndex
	for i, span := range spans {
		w.bells[i] = bell{span: span, from: from, ring: w.ring}
		h.hang(&w.bells[i])
	}
	l.mu.Lock()
	l.line.add(&w.deadline)
	l.mu.Unlock()
	return w, nil
}

func (l *lookups) leave(w *waitingLookup) {
	for i := range w.bells {
		w.hub.unhang(&w.bells[i])
	}
	l.mu.Lock()
	l.line.remove(&w.deadline)
	l.mu.Unlock()
	l.count.Add(-1)
}

// moved returns a channel that the next call of move closes.
func (l *lookups) moved() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// move makes every blocked lookup ask whether it may go on waiting.
func (l *lookups) move() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// tick wakes those who have waited for long enough.
func (l *lookups) tick(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t := l.line.due(now); t != nil; t = l.line.due(now) {
		chime(t.value.ring)
	}
}

// flights lets those who are woken by the same change, and ask the same, read once for all: what 3,000 wait for may be
// expensive to read.
type flights struct {
	mu    sync.Mutex
	under map[catalog.Query]*flight // under way
}

// flight is one read. What it finds is at least as new as revision.
type flight struct {
	revision int64
	done     chan struct{}
	sight    sight
	err      error
}

// look reads the answer to q from m, or takes it from who is reading it.
func (f *flights) look(m *state.Machine, q catalog.Query) (sight, error) {
	id, _ := restsOn(q)
	space := m.Space(id)
	f.mu.Lock()
	revision := space.Revision()
	if under := f.under[q]; under != nil && under.revision >= revision {
		f.mu.Unlock()
		<-under.done // a read that is under way waits for nothing but storage
		return under.share()
	}
	own := &flight{revision: revision, done: make(chan struct{})}
	f.under[q] = own
	f.mu.Unlock()
	own.sight, own.err = sightOf(m, q)
	f.mu.Lock()
	if f.under[q] == own {
		delete(f.under, q)
	}
	f.mu.Unlock()
	close(own.done)
	return own.share()
}

// share copies the slices and the map of an answer, so that each who has it may reorder and cut its own.
func (f *flight) share() (sight, error) {
	s := f.sight
	s.Pairs, s.Keys, s.Nodes, s.Services = slices.Clone(s.Pairs), slices.Clone(s.Keys), slices.Clone(s.Nodes), slices.Clone(s.Services)
	s.Instances, s.Checks, s.Sessions = slices.Clone(s.Instances), slices.Clone(s.Checks), slices.Clone(s.Sessions)
	s.Names = maps.Clone(s.Names)
	return s, f.err
}
