package core

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// lostAfter is how many election timeouts without a leader end streams that demand one.
const lostAfter = 3

// leadership tells those who wait that the clock has moved or that there has been no leader for long.
type leadership struct {
	mu   sync.Mutex
	tick chan struct{} // closed by the next Tick; nil while nobody waits
	lost chan struct{} // closed while there has been no leader for lostAfter election timeouts
	gone bool          // lost is closed
}

func (l *leadership) setup() { l.lost = make(chan struct{}) }

// next returns a channel that the next Tick closes.
func (l *leadership) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tick == nil {
		l.tick = make(chan struct{})
	}
	return l.tick
}

func (l *leadership) ticked(lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tick != nil {
		close(l.tick)
		l.tick = nil
	}
	switch {
	case lost && !l.gone:
		l.gone = true
		close(l.lost)
	case !lost && l.gone:
		l.gone = false
		l.lost = make(chan struct{})
	}
}

// NoLeaderSince returns since when this member knows no leader; ok is false while it knows one.
func (c *Core) NoLeaderSince() (since time.Time, ok bool) {
	s := c.replog.Status()
	return s.NoLeaderSince, s.Leader == 0
}

// LeaderLost returns a channel that is closed when there has been no leader for three election timeouts. Take it anew for
// each stream: after a leader was found again there is another one.
func (c *Core) LeaderLost() <-chan struct{} {
	l := &c.leadership
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// observe looks who leads and starts or stops what only a leader does.
func (c *Core) observe(now time.Time) replica.Status {
	s := c.replog.Status()
	c.seen.Store(&s)
	c.lessor.follow(s.Self, s.Term, now)
	c.sessions.follow(s.Self, s.Term, now)
	return s
}

// onLeader runs local if this member leads; otherwise it calls method on the leader. It tries again, once a tick, while
// there is no leader or it cannot be reached, until the request times out: only for what may be asked twice.
func (c *Core) onLeader(ctx context.Context, method string, payload []byte, local func() ([]byte, error)) ([]byte, error) {
	start := c.clock()
	for {
		if err := c.checkRunning(ctx); err != nil {
			return nil, err
		}
		tick := c.leadership.next()
		s := c.observe(c.clock())
		var answer []byte
		var err error
		switch {
		case s.Self:
			answer, err = local()
		case s.Leader == 0 || s.Leader == c.member:
			err = ErrNoLeader
		default:
			answer, err = c.peers.Call(ctx, s.Leader, method, payload)
		}
		if err == nil || !retriable(err) {
			return answer, err
		}
		if c.clock().Sub(start) >= c.timeout {
			return nil, c.timeoutError(start, false)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func retriable(err error) bool {
	for _, again := range []error{ErrNoLeader, ErrNotLeader, replica.ErrUnreachable, replica.ErrLeaderChanged, replica.ErrDropped} {
		if errors.Is(err, again) {
			return true
		}
	}
	return false
}

// fromPeer refuses calls over the peer port by anybody but a member.
func fromPeer(from policy.Principal) error {
	if from.Kind() != policy.Member {
		return state.ErrPermissionDenied
	}
	return nil
}
