package consulapi

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// Directory is the replicated half of discovery. *core.Core is one; an agent without state has one over RPC.
type Directory interface {
	Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error)
	Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error)
	RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error)
	Servers(ctx context.Context, who policy.Principal) ([]core.Server, error)
}

// Options are what an API stands on. Directory, Agent, Principal, Rand and Log must be set.
type Options struct {
	Directory Directory
	Agent     *agent.Agent
	// Principal returns who asks, as the listener established it.
	Principal func(ctx context.Context) policy.Principal
	Rand      io.Reader // of session IDs and jitter
	Log       *slog.Logger

	Node       string // this agent's node name: a session without one is this node's
	NodeID     string
	Datacenter string // the only one there is
	Version    string // what agent/self says
	Server     bool   // this agent holds a replicated member

	// DefaultPolicy is what X-Consul-Default-ACL-Policy says: "allow" where ACLs are off and all may, "deny" where rights
	// come from certificates. Empty: not said.
	DefaultPolicy string
	// Debug returns what agent/self shows as DebugConfig; nil: nothing. It must hold no secret.
	Debug func() map[string]any
	// Roots returns the root certificates of connect/ca/roots; nil: connect is off.
	Roots func(ctx context.Context) (Roots, error)
	// Reload reads the configuration again, as SIGHUP does; nil: refused.
	Reload func(ctx context.Context) error
	// Left is called once the agent has left the cluster because leave was asked for; nil: the process stays.
	Left func()

	// MaxWaiting is how many blocking queries one client may hold, and MaxWaitingAll all of them; 0: 8192 and 65536.
	MaxWaiting    int
	MaxWaitingAll int
}

// Roots are the root certificates that services may be verified by.
type Roots struct {
	Certificates []*x509.Certificate
	Active       int    // which of them signs now
	TrustDomain  string // host part of SPIFFE names
	Index        uint64 // changes when they do; at least 1
}

// Limits of the protocol, as Consul's defaults.
const (
	maxValue   = 512 << 10 // bytes of a value, and of a transaction's body
	maxBody    = 1 << 20   // bytes of any other body
	smallBody  = 64 << 10  // bytes of a body that comes at any time; longer ones take turns
	maxOps     = 128       // operations of a transaction
	maxFilter  = 16 << 10  // bytes of a filter expression
	maxWait    = 10 * time.Minute
	waitUnsaid = 5 * time.Minute

	largeBodies = 64               // long bodies that are read at a time
	bodyTime    = 15 * time.Second // for a long body's turn to come, and then for its rest
)

// API serves Consul's HTTP API.
type API struct {
	o       Options
	exact   map[string]*endpoint
	below   []*endpoint // longest path first
	waiters waiters
	large   chan struct{} // one token for each long body under way
}

// New returns the API over o.
func New(o Options) *API {
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 8192
	}
	if o.MaxWaitingAll == 0 {
		o.MaxWaitingAll = 65536
	}
	a := &API{o: o, exact: map[string]*endpoint{}, large: make(chan struct{}, largeBodies)}
	a.waiters.held = map[string]int{}
	a.routes()
	return a
}

// Handler returns the API as a handler for /v1/.
func (a *API) Handler() http.Handler { return http.HandlerFunc(a.serve) }
