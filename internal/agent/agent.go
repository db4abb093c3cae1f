package agent

import (
	"context"
	"errors"

	"holdfast.dev/holdfast/internal/catalog"
)

// Agent is one agent. Its methods may be called from many goroutines, before, while and after it runs.
type Agent struct {
	o Options
}

var errMissing = errors.New("agent: not there yet")

// New makes an agent and loads what its Store kept.
func New(o Options) (*Agent, error) { return &Agent{o: o}, nil }

// Run runs checks, anti-entropy and gossip until ctx ends, and waits for all of them.
func (a *Agent) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Node returns this agent's node as it registers itself.
func (a *Agent) Node() catalog.Node { return a.o.Node }

// Services returns the services of this agent by id.
func (a *Agent) Services() []ServiceState { return nil }

// Service returns one service of this agent.
func (a *Agent) Service(id string) (ServiceState, bool) { return ServiceState{}, false }

// Checks returns the checks of this agent by id, maintenance included.
func (a *Agent) Checks() []CheckState { return nil }

// Changed returns a channel that is closed at the next change of a local service or check.
func (a *Agent) Changed() <-chan struct{} { return nil }

// Reload replaces the definitions of the configuration; what was registered at run time stays.
func (a *Agent) Reload(ctx context.Context, services []ServiceDefinition, checks []CheckDefinition) error {
	return errMissing
}

// RegisterService adds or replaces a service and its checks; with replaceChecks those of its checks that def does not name
// go. It is in the catalog when RegisterService returns, unless the catalog could not be reached: then anti-entropy does it.
func (a *Agent) RegisterService(ctx context.Context, def ServiceDefinition, replaceChecks bool) error {
	return errMissing
}

// DeregisterService removes a service and its checks.
func (a *Agent) DeregisterService(ctx context.Context, id string) error { return errMissing }

// RegisterCheck adds or replaces a check.
func (a *Agent) RegisterCheck(ctx context.Context, def CheckDefinition) error { return errMissing }

// DeregisterCheck removes a check; one that is not there is no error.
func (a *Agent) DeregisterCheck(ctx context.Context, id string) error { return errMissing }

// UpdateTTL is the sign of life of a TTL check. status is passing, warning or critical.
func (a *Agent) UpdateTTL(ctx context.Context, id, status, output string) error { return errMissing }

// ServiceMaintenance takes a service out, or back in. An empty reason is replaced by Consul's default text.
func (a *Agent) ServiceMaintenance(ctx context.Context, id string, on bool, reason string) error {
	return errMissing
}

// NodeMaintenance takes the node out, or back in.
func (a *Agent) NodeMaintenance(ctx context.Context, on bool, reason string) error { return errMissing }
