package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
)

// Agent is one agent. Its methods may be called from many goroutines, before, while and after it runs.
type Agent struct {
	o Options

	// syncing is held, by a value in it, by whoever writes this node into the catalog.
	syncing chan struct{}
	kick    chan struct{} // wakes the sync loop; holds at most one

	mu struct {
		sync.Mutex
		services     map[string]*service
		checks       map[string]*check
		goneServices map[string]bool // to be removed from the catalog
		goneChecks   map[string]bool
		changed      chan struct{}   // closed and replaced at every change
		running      context.Context // nil unless Run runs
		left         bool            // Leave was called: the catalog is not written any more
	}
	runners sync.WaitGroup // checks that run; grows only under mu while running is set

	random sync.Mutex // over o.Rand

	dormant index // kept, but left out at start; written by New only

	gossip *gossip // nil: none
	events *ring
}

// service is one local service. It is replaced, never changed, except synced and tags under mu.
type service struct {
	def    ServiceDefinition // without checks
	s      catalog.Service
	local  bool // from the configuration
	synced bool
}

// New makes an agent, loads what its Store kept and what the configuration defines, and opens the sockets of gossip. Its
// caller calls Run, or Close.
func New(o Options) (*Agent, error) {
	switch {
	case o.Node.Name == "":
		return nil, errors.New("agent: a node needs a name")
	case o.Directory == nil, o.Store == nil, o.Log == nil, o.Now == nil, o.Rand == nil:
		return nil, errors.New("agent: Directory, Store, Log, Now and Rand must be given")
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&o.SyncInterval, defaultSyncInterval}, {&o.UpdateInterval, defaultUpdateInterval}, {&o.ReapInterval, defaultReapInterval},
		{&o.ScriptTimeout, defaultScriptTimeout},
	} {
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	a := &Agent{o: o, syncing: make(chan struct{}, 1), kick: make(chan struct{}, 1), events: newRing()}
	a.mu.services = map[string]*service{}
	a.mu.checks = map[string]*check{}
	a.mu.goneServices = map[string]bool{}
	a.mu.goneChecks = map[string]bool{}
	a.mu.changed = make(chan struct{})
	if err := a.load(); err != nil {
		return nil, err
	}
	if err := a.configure(o.Services, o.Checks); err != nil {
		return nil, err
	}
	if o.Gossip != nil {
		g, err := newGossip(a, *o.Gossip)
		if err != nil {
			return nil, err
		}
		a.gossip = g
	}
	return a, nil
}

// Run runs checks, anti-entropy and gossip until parent ends, and waits for all of them. Gossip that cannot listen, or a
// StartJoin that reaches nobody, ends it with an error.
func (a *Agent) Run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var group sync.WaitGroup
	a.mu.Lock()
	if a.mu.running != nil {
		a.mu.Unlock()
		return errors.New("agent: it runs already")
	}
	a.mu.running = ctx
	for _, c := range a.mu.checks {
		a.startLocked(c)
	}
	a.mu.Unlock()
	group.Go(func() { a.keepSynced(ctx) })
	group.Go(func() { a.reapCritical(ctx) })
	if a.gossip != nil {
		group.Go(func() {
			if err := a.gossip.run(ctx); err != nil {
				cancel(fmt.Errorf("gossip: %w", err))
			}
		})
	}
	<-ctx.Done()
	a.mu.Lock()
	a.mu.running = nil
	for _, c := range a.mu.checks {
		a.stopLocked(c)
	}
	a.mu.Unlock()
	a.runners.Wait()
	group.Wait()
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// Close gives back what New opened. It is needed only for an agent that never ran; after Run it does nothing.
func (a *Agent) Close() error {
	if a.gossip == nil {
		return nil
	}
	a.gossip.log.off.Store(true)
	return a.gossip.serf.Shutdown()
}

// Node returns this agent's node as it registers itself.
func (a *Agent) Node() catalog.Node { return a.o.Node }

// Services returns the services of this agent by id.
func (a *Agent) Services() []ServiceState {
	a.mu.Lock()
	defer a.mu.Unlock()
	states := make([]ServiceState, 0, len(a.mu.services))
	for _, s := range a.mu.services {
		states = append(states, ServiceState{Service: s.s, Synced: s.synced})
	}
	slices.SortFunc(states, func(x, y ServiceState) int { return strings.Compare(x.ID, y.ID) })
	return states
}

// Service returns one service of this agent.
func (a *Agent) Service(id string) (ServiceState, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.mu.services[id]
	if !ok {
		return ServiceState{}, false
	}
	return ServiceState{Service: s.s, Synced: s.synced}, true
}

// Checks returns the checks of this agent by id, maintenance included.
func (a *Agent) Checks() []CheckState {
	a.mu.Lock()
	defer a.mu.Unlock()
	states := make([]CheckState, 0, len(a.mu.checks))
	for _, id := range known(a.mu.checks) {
		c := a.mu.checks[id]
		states = append(states, CheckState{Check: c.c, Synced: c.synced})
	}
	return states
}

// Changed returns a channel that is closed at the next change of a local service or check.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.changed
}

func (a *Agent) changedLocked() {
	close(a.mu.changed)
	a.mu.changed = make(chan struct{})
}

// wake has the sync loop look for changes.
func (a *Agent) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// stagger returns a random time in [0, d).
func (a *Agent) stagger(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(a.draw(8)) % uint64(d))
}

// draw returns n random bytes. A source of randomness that fails is a broken machine.
func (a *Agent) draw(n int) []byte {
	a.random.Lock()
	defer a.random.Unlock()
	b := make([]byte, n)
	if _, err := io.ReadFull(a.o.Rand, b); err != nil {
		panic(fmt.Sprintf("agent: no randomness: %v", err))
	}
	return b
}
