package core

import (
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/state"
)

// The states of a waiter. Whoever moves it away from waiting decides what becomes of it.
const (
	waiting uint32 = iota
	answered
	abandoned
)

// waiter is one request on its way through the log. It is in the queue or in one batch of the ring, and whoever takes it out
// of there answers it. It is used again after its answer was taken; one that was abandoned is left to the garbage
// collector, because the queue or the ring still points at it.
type waiter struct {
	call     state.Call
	size     int64
	start    time.Time
	deadline time.Time
	state    atomic.Uint32
	index    uint64
	result   state.Result
	done     chan struct{} // capacity 1
	errand                 // instead of done, for requests of core itself
}

// errand is what core itself asks for. then runs on the applier, on the clock or on the log's loop. If term is not 0, the
// request counts only if this member appends it as the leader of that term: it never travels to another leader, whose clocks
// say something else by now.
type errand struct {
	then func(r state.Result)
	term uint64
}

// proposals queues requests for the log, remembers which batch each went into, and answers them. It never gives a request
// to the log twice, unless the log says that it is in no log and never will be.
type proposals struct {
	mu     sync.Mutex
	name   state.Proposal // Seq: of the last batch
	queue  []*waiter
	head   int
	bytes  int64 // of all requests not yet answered
	limit  int64
	ring   []slot // batches under way, by sequence
	oldest uint64 // no batch before this one is in the ring
	err    error  // set when stopped

	pool  sync.Pool
	calls []state.Call // scratch of Next
}

type slot struct {
	seq     uint64
	lost    bool // the log does not know what became of it
	waiters []*waiter
}

// ringSlots bounds the batches under way. The log has a handful at a time; more can only be lost ones.
const ringSlots = 1024

func (p *proposals) setup(name state.Proposal, limit int64) {
	p.name, p.limit, p.oldest = name, limit, 1
	p.ring = make([]slot, ringSlots)
	p.pool.New = func() any { return &waiter{done: make(chan struct{}, 1)} }
}

// submit queues a request. The caller waits on the waiter's done unless it is an errand.
func (p *proposals) submit(call state.Call, now time.Time, timeout time.Duration, e errand) (*waiter, error) {
	w := p.pool.Get().(*waiter)
	w.call, w.size, w.start, w.deadline, w.errand = call, int64(state.Size(call.Request))+64, now, now.Add(timeout), e
	w.state.Store(waiting)
	p.mu.Lock()
	err := p.err
	if err == nil && p.bytes > 0 && p.bytes+w.size > p.limit {
		err = ErrTooManyRequests
	}
	if err == nil {
		p.bytes += w.size
		p.queue = append(p.queue, w)
	}
	p.mu.Unlock()
	if err != nil {
		p.recycle(w)
		return nil, err
	}
	return w, nil
}

func (p *proposals) recycle(w *waiter) {
	w.call, w.result, w.errand, w.index = state.Call{}, state.Result{}, errand{}, 0
	p.pool.Put(w)
}

// abandon takes w back from whoever would answer it; false means that the answer is there.
func (w *waiter) abandon() bool { return w.state.CompareAndSwap(waiting, abandoned) }

// answer gives w its result, unless it was abandoned. The caller has taken w out of the queue or the ring, and does not
// hold the lock.
func (p *proposals) answer(w *waiter, index uint64, r state.Result) {
	if !w.state.CompareAndSwap(waiting, answered) {
		return
	}
	if then := w.then; then != nil {
		p.recycle(w)
		then(r)
		return
	}
	w.index, w.result = index, r
	w.done <- struct{}{}
}

// Next implements replica.Source: it packs what waits into one batch of at most maxBytes.
func (c *Core) Next(maxBytes int) (data []byte, ok bool) {
	for {
		seq, waiters := c.proposals.take(int64(maxBytes), c.leads)
		if len(waiters) == 0 {
			return nil, false
		}
		data, err := c.proposals.encode(seq, waiters)
		if err == nil {
			return data, true
		}
		// A request that cannot be encoded was not validated: refuse all of the batch, and say so.
		c.log.Error("a batch could not be encoded", "requests", len(waiters), "error", err)
		c.proposals.finish(seq, 0, nil, state.Result{Err: err})
	}
}

// leads reports whether this member leads in term now. It is asked on the log's loop, so that it holds until the batch that
// Next returns is appended or given back.
func (c *Core) leads(term uint64) bool {
	s := c.replog.Status()
	return s.Self && s.Term == term
}

// take moves waiters from the queue into a new slot of the ring. Errands of a term in which this member does not lead any
// more are answered as undone.
func (p *proposals) take(maxBytes int64, leads func(term uint64) bool) (uint64, []*waiter) {
	p.mu.Lock()
	var batch, deposed []*waiter
	var size int64
	for p.head < len(p.queue) {
		w := p.queue[p.head]
		if w.state.Load() == abandoned {
			p.bytes -= w.size
			p.popLocked()
			continue
		}
		if w.term != 0 && !leads(w.term) {
			p.bytes -= w.size
			deposed = append(deposed, w)
			p.popLocked()
			continue
		}
		if len(batch) > 0 && size+w.size > maxBytes {
			break
		}
		size += w.size
		if batch == nil {
			batch = make([]*waiter, 0, min(len(p.queue)-p.head, 1024))
		}
		batch = append(batch, w)
		p.popLocked()
	}
	var forgotten []*waiter // lost long ago
	var seq uint64
	if len(batch) > 0 {
		seq = p.nextLocked()
		s := &p.ring[seq%ringSlots]
		forgotten = p.clearLocked(s)
		*s = slot{seq: seq, waiters: batch}
	}
	p.mu.Unlock()
	for _, w := range deposed {
		p.answer(w, 0, state.Result{Err: ErrNotLeader})
	}
	for _, w := range forgotten {
		p.answer(w, 0, state.Result{Err: ErrTimeoutLeaderFail})
	}
	return seq, batch
}

func (p *proposals) nextLocked() uint64 {
	p.name.Seq++
	return p.name.Seq
}

// next names a proposal that does not go through the queue.
func (p *proposals) next() state.Proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := p.name
	name.Seq = p.nextLocked()
	return name
}

// clearLocked empties a slot and returns who waits in it.
func (p *proposals) clearLocked(s *slot) []*waiter {
	waiters := s.waiters
	for _, w := range waiters {
		if w != nil {
			p.bytes -= w.size
		}
	}
	*s = slot{}
	return waiters
}

func (p *proposals) popLocked() {
	p.queue[p.head] = nil
	p.head++
	if p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
	} else if p.head > 1024 && p.head*2 > len(p.queue) {
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
}

func (p *proposals) encode(seq uint64, waiters []*waiter) ([]byte, error) {
	calls := p.calls[:0]
	for _, w := range waiters {
		calls = append(calls, w.call)
	}
	// Member and Boot never change; Seq does, under the lock.
	data, err := state.EncodeBatch(state.Proposal{Member: p.name.Member, Boot: p.name.Boot, Seq: seq}, calls)
	clear(calls)
	p.calls = calls[:0]
	return data, err
}

// release takes a batch out of the ring and returns its waiters, nil for those that were answered before; all nil if it
// is not there any more.
func (p *proposals) release(seq uint64) []*waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.ring[seq%ringSlots]
	if s.seq != seq {
		return nil
	}
	return p.clearLocked(s)
}

// finish answers a batch: with results, one for each request, or all with the same.
func (p *proposals) finish(seq, index uint64, results []state.Result, all state.Result) {
	for i, w := range p.release(seq) {
		if w == nil {
			continue
		}
		r := all
		if i < len(results) {
			r = results[i]
		}
		p.answer(w, index, r)
	}
}

// applied answers the batches of this run of this member.
func (p *proposals) applied(batches []state.AppliedBatch) {
	for i := range batches {
		b := &batches[i]
		if b.Proposal.Member == p.name.Member && b.Proposal.Boot == p.name.Boot {
			p.finish(b.Proposal.Seq, b.Index, b.Results, state.Result{Err: ErrTimeoutLeaderFail})
		}
	}
}

// Lost implements replica.Source. A batch that is in no log goes back to the head of the queue; of one whose fate is
// unknown the answer may still come.
func (c *Core) Lost(data []byte, err error) {
	b, derr := state.DecodeBatch(data)
	if derr != nil {
		c.log.Error("the log gave back something that is no batch", "error", derr)
		return
	}
	if c.proposals.lost(b.Proposal.Seq, isDropped(err) || lab.Repropose.Planted()) {
		c.replog.Wake()
	}
}

// lost reports whether there is something to propose again.
func (p *proposals) lost(seq uint64, dropped bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.ring[seq%ringSlots]
	if s.seq != seq {
		return false
	}
	if !dropped {
		s.lost = true
		return false
	}
	again := make([]*waiter, 0, len(s.waiters)+len(p.queue)-p.head)
	for _, w := range s.waiters {
		if w != nil {
			again = append(again, w)
		}
	}
	p.queue, p.head = append(again, p.queue[p.head:]...), 0
	*s = slot{}
	return len(p.queue) > 0
}

// expired is a waiter that has waited for too long. queued is set if the log has never seen it, lost if the log does not
// know what became of its batch.
type expired struct {
	*waiter
	queued, lost bool
}

// unproposed marks the error of a request that certainly is in no log.
type unproposed struct{ error }

// Unwrap returns the fault.
func (u unproposed) Unwrap() error { return u.error }

// expire takes out what has waited for too long; the caller answers it.
func (p *proposals) expire(now time.Time) (late []expired) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head < len(p.queue) && !now.Before(p.queue[p.head].deadline) {
		w := p.queue[p.head]
		p.bytes -= w.size
		late = append(late, expired{waiter: w, queued: true})
		p.popLocked()
	}
	if p.oldest+ringSlots <= p.name.Seq {
		p.oldest = p.name.Seq - ringSlots + 1
	}
	for seq := p.oldest; seq <= p.name.Seq; seq++ {
		s := &p.ring[seq%ringSlots]
		left := 0
		if s.seq == seq {
			for i, w := range s.waiters {
				switch {
				case w == nil:
				case now.Before(w.deadline):
					left++
				default:
					p.bytes -= w.size
					s.waiters[i] = nil
					late = append(late, expired{waiter: w, lost: s.lost})
				}
			}
			if left == 0 {
				*s = slot{}
			}
		}
		if left > 0 {
			break // later batches hold later requests
		}
		p.oldest = seq + 1
	}
	return late
}

// stop answers everything with err and refuses from now on.
func (p *proposals) stop(err error) {
	p.mu.Lock()
	p.err = err
	all := append([]*waiter(nil), p.queue[p.head:]...)
	p.queue, p.head = nil, 0
	for i := range p.ring {
		all = append(all, p.ring[i].waiters...)
		p.ring[i] = slot{}
	}
	p.bytes = 0
	p.mu.Unlock()
	for _, w := range all {
		if w != nil {
			p.answer(w, 0, state.Result{Err: err})
		}
	}
}

func (p *proposals) queuedBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}
