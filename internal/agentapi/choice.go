package agentapi

import (
	"slices"
	"sync"
	"time"
)

// The back-off from a server that failed.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// health is how it stands with one server.
type health struct {
	failures int
	until    time.Time // not to be asked before
}

// choice decides which server is asked: the one that answered last, as long as it does; else one of those that have not
// failed lately, drawn by lot so that the agents of a lost server spread.
type choice struct {
	now  func() time.Time
	intn func(int) int

	mu      sync.Mutex
	current string
	servers map[string]*health // those that have failed
}

// pick returns the server to ask, or how long to wait until one may be asked again.
func (c *choice) pick(known []string) (address string, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.servers {
		if !slices.Contains(known, s) {
			delete(c.servers, s)
		}
	}
	now := c.now()
	var fit []string
	pause = maxBackoff
	for _, s := range known {
		h := c.servers[s]
		if h != nil && now.Before(h.until) {
			pause = min(pause, h.until.Sub(now))
			continue
		}
		if s == c.current {
			return s, 0
		}
		fit = append(fit, s)
	}
	if len(fit) == 0 {
		return "", pause
	}
	c.current = fit[c.intn(len(fit))]
	return c.current, 0
}

// well notes that a server answers.
func (c *choice) well(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.servers, address)
}

// failed notes that a server does not.
func (c *choice) failed(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.servers[address]
	if h == nil {
		h = &health{}
		c.servers[address] = h
	}
	h.failures++
	backoff := min(minBackoff<<min(h.failures-1, 10), maxBackoff)
	backoff = backoff/2 + time.Duration(c.intn(int(backoff/2)))
	h.until = c.now().Add(backoff)
	if c.current == address {
		c.current = ""
	}
}
