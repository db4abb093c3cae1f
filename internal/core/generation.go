package core

import (
	"context"
	"sync"
	"sync/atomic"

	"holdfast.dev/holdfast/internal/state"
)

// generation is one machine and its readers. A snapshot that is installed makes a new one; the former is closed when its
// last reader has left.
type generation struct {
	machine *state.Machine
	refs    atomic.Int64 // readers, and one for being current
	once    sync.Once
	drained chan struct{}

	current context.Context // ends when it is not the present one any more
	end     context.CancelFunc
}

func newGeneration(m *state.Machine) *generation {
	g := &generation{machine: m, drained: make(chan struct{})}
	g.current, g.end = context.WithCancel(context.Background())
	g.refs.Store(1)
	return g
}

// acquire returns the present machine, which stays usable until release.
func (c *Core) acquire() *generation {
	for {
		g := c.current.Load()
		// From zero there is no way back: that generation was retired between the two lines.
		for n := g.refs.Load(); n > 0; n = g.refs.Load() {
			if g.refs.CompareAndSwap(n, n+1) {
				return g
			}
		}
		if g == c.current.Load() {
			// Retired without a successor: Release was called, and whoever comes after it must not use the rows.
			g.refs.Add(1)
			return g
		}
	}
}

func (g *generation) release() {
	if g.refs.Add(-1) == 0 {
		g.once.Do(func() { close(g.drained) })
	}
}

// retire gives up the reference for being current.
func (g *generation) retire() {
	g.end()
	g.release()
}
