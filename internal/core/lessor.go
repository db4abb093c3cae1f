package core

import (
	"container/heap"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

const (
	leasePage         = 1024 // rows read at once when leadership is gained
	leasesPerRevoke   = 500  // expired leases in one proposal
	revokesUnderWay   = 2    // proposals of expired leases at a time
	leasesPerRecord   = 1000 // leases in one checkpoint
	leaseRevokeWaits  = 500  // expiry is looked at again after this many milliseconds when proposals are refused
	leaseTTLUnknown   = -1
	leaseTTLNotServed = 0
)

// lease is the leader's view of one lease. Times are on the injected clock, of which only the monotonic part counts.
type lease struct {
	id         int64
	ttl        int64 // seconds
	expiry     time.Time
	checkpoint time.Time // when the time left is to be recorded next; zero: never
	short      uint64    // the checkpoint that shortened it, applied or on its way: a renewal has to undo that; 0: none
	revoking   bool
	at         int // in the heap; -1: not in it
}

// lessor is the leader's clock of leases: who leads knows when each of them ends, nobody else does. It is filled from the
// lease rows when leadership is gained, page by page, and thrown away when it is lost.
type lessor struct {
	mu       sync.Mutex
	leads    bool
	term     uint64
	loaded   bool
	cursor   int64     // loading: next id to read
	extend   time.Time // loading: leases start no earlier than here
	leases   map[int64]*lease
	heap     expiryHeap
	revokes  int // proposals under way
	retry    time.Time
	recordAt time.Time // next look for checkpoints
	shorts   uint64    // names the checkpoints that shorten leases

	election time.Duration
	interval time.Duration // of checkpoints; 0: none
}

func (l *lessor) setup(election, interval time.Duration) {
	l.election, l.interval = election, interval
	l.demoteLocked()
}

func (l *lessor) demoteLocked() {
	l.leads, l.loaded, l.cursor, l.revokes = false, false, minLease, 0
	l.leases, l.heap = map[int64]*lease{}, nil
	l.retry, l.recordAt = time.Time{}, time.Time{}
}

// minLease is where the iteration over lease ids begins.
const minLease = -1 << 63

// follow starts or stops the clock with the leadership. Every lease gets at least an election timeout more than it had
// left: while there was no leader, nobody could renew.
func (l *lessor) follow(leads bool, term uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if leads == l.leads && (!leads || term == l.term) {
		return
	}
	l.demoteLocked()
	if leads {
		l.leads, l.term, l.extend = true, term, now.Add(l.election)
		l.recordAt = now.Add(l.interval)
	}
}

// reload reads everything again: the machine was replaced.
func (l *lessor) reload() {
	l.mu.Lock()
	defer l.mu.Unlock()
	leads, term, extend := l.leads, l.term, l.extend
	l.demoteLocked()
	l.leads, l.term, l.extend = leads, term, extend
}

// load reads the next page of lease rows. It holds the lock meanwhile: an effect of the log must not fall between reading a
// row and taking it in.
func (l *lessor) load(read func(from int64, limit int) ([]mvcc.Lease, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads || l.loaded {
		return nil
	}
	rows, err := read(l.cursor, leasePage)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if l.leases[row.ID] == nil {
			l.addLocked(row, l.extend)
		}
	}
	if len(rows) < leasePage || rows[len(rows)-1].ID == 1<<63-1 {
		l.loaded = true
		return nil
	}
	l.cursor = rows[len(rows)-1].ID + 1
	return nil
}

// addLocked starts the clock of a lease at now.
func (l *lessor) addLocked(row mvcc.Lease, now time.Time) *lease {
	left := row.TTL
	if row.Remaining > 0 {
		left = row.Remaining
	}
	e := &lease{id: row.ID, ttl: row.TTL, expiry: now.Add(seconds(left)), at: -1}
	if left < row.TTL {
		l.shorts++
		e.short = l.shorts
	}
	l.planLocked(e, now)
	l.leases[row.ID] = e
	heap.Push(&l.heap, e)
	return e
}

func (l *lessor) planLocked(e *lease, now time.Time) {
	e.checkpoint = time.Time{}
	if l.interval > 0 && seconds(e.ttl) > l.interval {
		e.checkpoint = now.Add(l.interval)
	}
}

// seconds is n seconds, bounded so that it fits: 9e9 s, etcd's longest lease, is 285 years.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(n, most)) * time.Second
}

// affect follows what the log did to leases.
func (l *lessor) affect(effects []state.LeaseEffect, now time.Time) {
	if len(effects) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads {
		return
	}
	for _, e := range effects {
		known := l.leases[e.ID]
		switch e.Op {
		case state.LeaseGranted:
			if known != nil {
				l.dropLocked(known)
			}
			l.addLocked(mvcc.Lease{ID: e.ID, TTL: e.TTL}, now)
		case state.LeaseRevoked:
			if known != nil {
				l.dropLocked(known)
			}
		case state.LeaseCheckpointed: // this member's own, since it leads: due and undone keep account of them
		}
	}
}

func (l *lessor) dropLocked(e *lease) {
	delete(l.leases, e.id)
	if e.at >= 0 {
		heap.Remove(&l.heap, e.at)
	}
}

// renewed is what became of a renewal. TTL is 0 if the lease is unknown or has ended. If short is not 0, a checkpoint says that the
// lease has less: it has to be undone, and undone be told, before the renewal may be answered. Else the next leader, which
// knows nothing but what is in the log, would end the lease early.
type renewed struct {
	ttl         int64
	short, term uint64
}

// renew starts the lease anew. leads is false if this member does not lead.
func (l *lessor) renew(id int64, now time.Time, row func(id int64) (mvcc.Lease, bool, error)) (r renewed, leads bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, leads, err := l.findLocked(id, row)
	if e == nil || err != nil || e.revoking || !now.Before(e.expiry) {
		return renewed{ttl: leaseTTLNotServed}, leads, err
	}
	e.expiry = now.Add(seconds(e.ttl))
	heap.Fix(&l.heap, e.at)
	l.planLocked(e, now)
	return renewed{e.ttl, e.short, l.term}, true, nil
}

// undone tells that the log holds a checkpoint with the whole time after the one that r names. It reports whether the renewal
// stands.
func (l *lessor) undone(id int64, r renewed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.leases[id]
	switch {
	case !l.leads || l.term != r.term:
		return true // whoever leads now has read the row
	case e == nil || e.short != 0 && e.short != r.short:
		return false // it has gone meanwhile, or was recorded again: ask again
	}
	e.short = 0
	return true
}

// left returns how much time a lease has, in seconds, and -1 for one that is unknown or has ended.
func (l *lessor) left(id int64, now time.Time, row func(id int64) (mvcc.Lease, bool, error)) (granted, ttl int64, leads bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, leads, err := l.findLocked(id, row)
	if e == nil || err != nil {
		return 0, leaseTTLUnknown, leads, err
	}
	left := int64(e.expiry.Sub(now) / time.Second)
	if e.revoking || left < 0 {
		return e.ttl, leaseTTLUnknown, true, nil
	}
	return e.ttl, left, true, nil
}

// findLocked finds a lease, also one whose row has not been loaded yet.
func (l *lessor) findLocked(id int64, row func(id int64) (mvcc.Lease, bool, error)) (*lease, bool, error) {
	if !l.leads {
		return nil, false, nil
	}
	e := l.leases[id]
	if e == nil && !l.loaded {
		found, ok, err := row(id)
		if err != nil {
			return nil, true, err
		}
		if ok {
			e = l.addLocked(found, l.extend)
		}
	}
	return e, true, nil
}

// expired returns the ids for the next proposal: ended leases that are not being revoked yet, at most so many that a storm
// leaves room for other requests. The caller must call revoked when the proposal has been decided.
func (l *lessor) expired(now time.Time) (ids []int64, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads || l.revokes >= revokesUnderWay || now.Before(l.retry) {
		return nil, 0
	}
	for len(ids) < leasesPerRevoke && len(l.heap) > 0 && !now.Before(l.heap[0].expiry) {
		e := heap.Pop(&l.heap).(*lease)
		e.revoking = true
		ids = append(ids, e.id)
	}
	if len(ids) > 0 {
		l.revokes++
	}
	return ids, l.term
}

// revoked tells what became of a proposal made of expired. If it certainly is in no log, the leases expire again shortly.
// If its fate is unknown they are left alone: as long as this member leads, what it appended will be applied, and when it
// does not lead any more the next leader counts afresh. Asking twice could revoke a lease granted again under the same id.
func (l *lessor) revoked(ids []int64, term uint64, now time.Time, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads || term != l.term {
		return
	}
	l.revokes--
	if !refused {
		return
	}
	l.retry = now.Add(leaseRevokeWaits * time.Millisecond)
	for _, id := range ids {
		if e := l.leases[id]; e != nil && e.revoking {
			e.revoking = false
			heap.Push(&l.heap, e)
		}
	}
}

// due returns what is to be checkpointed: long leases with what they have left.
func (l *lessor) due(now time.Time) (record map[int64]int64, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads {
		return nil, 0
	}
	take := func(id, left int64) {
		if record == nil {
			record = map[int64]int64{}
		}
		record[id] = left
	}
	if l.interval == 0 || now.Before(l.recordAt) {
		return record, l.term
	}
	for _, e := range l.heap {
		if len(record) >= leasesPerRecord {
			return record, l.term // the rest at the next tick
		}
		if e.checkpoint.IsZero() || now.Before(e.checkpoint) || !now.Before(e.expiry) {
			continue
		}
		if left := int64((e.expiry.Sub(now) + time.Second - 1) / time.Second); left < e.ttl {
			take(e.id, left)
			l.shorts++
			e.short = l.shorts
		}
		e.checkpoint = now.Add(l.interval)
	}
	l.recordAt = now.Add(min(l.interval, time.Second))
	return record, l.term
}

// expiryHeap orders leases by their end, then by id.
type expiryHeap []*lease

// Len implements heap.Interface.
func (h expiryHeap) Len() int { return len(h) }

// Less implements heap.Interface.
func (h expiryHeap) Less(i, j int) bool {
	if h[i].expiry.Equal(h[j].expiry) {
		return h[i].id < h[j].id
	}
	return h[i].expiry.Before(h[j].expiry)
}

// Swap implements heap.Interface.
func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *expiryHeap) Push(x any) {
	e := x.(*lease)
	e.at = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *expiryHeap) Pop() any {
	old := *h
	n := len(old)
	e := old[n-1]
	old[n-1] = nil
	*h = old[:n-1]
	e.at = -1
	return e
}
