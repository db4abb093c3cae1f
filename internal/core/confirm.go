package core

import (
	"context"
	"sync"
	"time"
)

// proof is when a quorum last confirmed that this member leads. A leader that is cut off, or whose process has stood still,
// believes for up to two election timeouts more that it leads, while others have elected another one.
type proof struct {
	mu   sync.Mutex // a leaf
	at   time.Time  // when the confirmation was asked for
	term uint64
}

func (p *proof) good(term uint64, now time.Time, life time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.term == term && now.Sub(p.at) < life
}

// confirm returns once it is certain that nobody else can have been elected, if this member believes to lead: what its clocks of
// leases and sessions promise then, its successor knows or gives more time for. The members that have confirmed it elect
// nobody within an election timeout, so that one round of the log serves for half of one.
func (c *Core) confirm(ctx context.Context) error {
	now := c.clock()
	if seen := c.seen.Load(); seen.Self && c.proof.good(seen.Term, now, c.opt.Election/2) {
		return nil
	}
	s := c.replog.Status()
	if !s.Self {
		return nil
	}
	if err := c.linearize(ctx); err != nil {
		return err
	}
	if c.observe(c.clock()).Leadership == s.Leadership {
		c.proof.mu.Lock()
		c.proof.at, c.proof.term = now, s.Term
		c.proof.mu.Unlock()
	}
	return nil
}
