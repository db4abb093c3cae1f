package core

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/replica"
)

// readRounds turns many linearizable reads into few calls of the log: while one caller asks the log for everybody of its
// round, the ones that come meanwhile gather for the next round, which one of them will run. A lone reader costs one
// lock and no allocation.
//
// Whoever runs a round waits for it even if its own context ends, at most for the request timeout: the others depend on it.
type readRounds struct {
	mu      sync.Mutex
	running bool
	next    *readRound // who gathers
	stopped bool

	// The context of rounds: one is shared by those that begin within a second, so that a round needs no timer. Tick ends
	// the ones that are over.
	fresh    sharedContext
	older    []sharedContext
	rotateAt time.Time
}

type sharedContext struct {
	ctx    context.Context
	cancel context.CancelFunc
	until  time.Time
}

type readRound struct {
	lead    chan struct{} // capacity 1: who takes it runs the round
	done    chan struct{}
	err     error
	members int
}

// context returns the context for a round that begins now.
func (r *readRounds) contextLocked(now time.Time, timeout time.Duration) context.Context {
	if r.fresh.ctx == nil || !now.Before(r.rotateAt) {
		if r.fresh.ctx != nil {
			r.older = append(r.older, r.fresh)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r.fresh = sharedContext{ctx: ctx, cancel: cancel, until: now.Add(timeout + time.Second)}
		r.rotateAt = now.Add(time.Second)
		if r.stopped {
			cancel()
		}
	}
	return r.fresh.ctx
}

// expire ends rounds that have lasted for too long.
func (r *readRounds) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.older) > 0 && !now.Before(r.older[0].until) {
		r.older[0].cancel()
		r.older = r.older[1:]
	}
	if r.fresh.ctx != nil && !now.Before(r.fresh.until) {
		r.fresh.cancel()
		r.fresh = sharedContext{}
	}
}

func (r *readRounds) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	for _, s := range r.older {
		s.cancel()
	}
	if r.fresh.ctx != nil {
		r.fresh.cancel()
	}
}

// linearize returns once this member shows every write that was acknowledged anywhere before the call.
func (c *Core) linearize(ctx context.Context) error {
	r := &c.reads
	r.mu.Lock()
	if !r.running {
		r.running = true
		shared := r.contextLocked(c.clock(), c.timeout)
		r.mu.Unlock()
		return c.runRound(shared)
	}
	round := r.next
	if round == nil {
		round = &readRound{lead: make(chan struct{}, 1), done: make(chan struct{})}
		r.next = round
	}
	round.members++
	r.mu.Unlock()

	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		c.leaveRound(round)
		return ctx.Err()
	case <-round.lead:
		r.mu.Lock()
		r.next = nil
		shared := r.contextLocked(c.clock(), c.timeout)
		r.mu.Unlock()
		round.err = c.runRound(shared)
		close(round.done)
		return round.err
	}
}

// runRound asks the log and hands over to the next round.
func (c *Core) runRound(shared context.Context) error {
	start := c.clock()
	_, err := c.replog.ReadIndex(shared)
	r := &c.reads
	r.mu.Lock()
	if r.next != nil && r.next.members > 0 {
		r.next.lead <- struct{}{}
	} else {
		r.next, r.running = nil, false
	}
	r.mu.Unlock()
	return c.readError(err, start)
}

// leaveRound takes one member out of a round that it does not want to wait for. If it was the one to run it, another is
// chosen.
func (c *Core) leaveRound(round *readRound) {
	r := &c.reads
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next != round {
		return // under way already
	}
	round.members--
	if round.members > 0 {
		return // the turn, if it has come, waits in lead for one of them
	}
	r.next = nil
	select {
	case <-round.lead:
		r.running = false
	default:
	}
}

// readError words a failure of the log as etcd does.
func (c *Core) readError(err error, start time.Time) error {
	switch {
	case err == nil:
		return nil
	case c.stopped.Load(), errors.Is(err, replica.ErrStopped):
		return ErrStopped
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		c.stats.timeouts.Add(1)
		return c.timeoutError(start, false)
	case errors.Is(err, replica.ErrDropped):
		return ErrLeaderChanged
	}
	return err
}

// timeoutError says why something that began at start may have timed out. lost is set if the log has lost sight of it.
func (c *Core) timeoutError(start time.Time, lost bool) error {
	s := c.replog.Status()
	if lost || !s.LeaderSince.IsZero() && start.Before(s.LeaderSince) && start.After(s.LeaderSince.Add(-2*c.opt.Election)) {
		return ErrTimeoutLeaderFail
	}
	if s.Leader != 0 && !s.Self {
		for _, p := range s.Peers {
			if p.ID == s.Leader && (p.ActiveSince.IsZero() || p.ActiveSince.After(start)) {
				return ErrTimeoutConnection
			}
		}
	}
	return ErrTimeout
}
