package core

import (
	"context"
	"sync"
	"time"
)

// pulse tells whether this member's clock has stood still: the process was stopped, or got no processor. Raft counts in ticks,
// so a leader to which that has happened may have been deposed long ago without having noticed. Its clocks of leases and
// sessions must then promise nothing before a quorum has confirmed that it leads.
type pulse struct {
	mu    sync.Mutex // a leaf
	last  time.Time  // when the clock was last seen to go
	doubt bool       // it has stood still since a quorum confirmed anything
}

// beat is called by the clock.
func (p *pulse) beat(now time.Time, limit time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubt = p.doubt || !p.last.IsZero() && now.Sub(p.last) > limit
	p.last = now
}

// steady reports whether the clock goes, and has not stood still.
func (p *pulse) steady(now time.Time, limit time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.doubt && (p.last.IsZero() || now.Sub(p.last) <= limit)
}

func (p *pulse) trust(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubt, p.last = false, now
}

// confirm returns once it is certain that this member, if it believes to lead, does so or knows better. It costs a round only
// after the clock has stood still for half an election timeout.
func (c *Core) confirm(ctx context.Context) error {
	limit := c.opt.Election / 2
	if c.pulse.steady(c.clock(), limit) || !c.replog.Status().Self {
		return nil
	}
	start := c.clock()
	if err := c.linearize(ctx); err != nil {
		return err
	}
	c.pulse.trust(start)
	c.observe(c.clock())
	return nil
}
