package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// Directory is the replicated catalog as an agent reaches it: in this process, or at a server over RPC. Both calls may be
// used from many goroutines.
type Directory interface {
	// Discover proposes operations: all of them are done, or the outcome says which could not.
	Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error)
	// Lookup answers one query, or waits for its answer to change.
	Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error)
}

// Store keeps small named documents over a restart. Its owner seals them.
type Store interface {
	// Load returns a document; ok is false if there is none.
	Load(name string) (data []byte, ok bool, err error)
	// Save replaces a document; it is durable when Save returns.
	Save(name string, data []byte) error
	// Delete removes a document; one that is not there is no error.
	Delete(name string) error
}

// TLSTarget says whom a check expects at the other end of a connection.
type TLSTarget struct {
	ServerName string   // for SNI and verification; empty: no name was given and the address' host is meant
	SkipVerify bool     // accept anybody
	Protocols  []string // ALPN, e.g. "h2"
}

// Options are what an agent is made of. Node, Directory, Who, Store, Log, Now and Rand must be there.
type Options struct {
	Node      catalog.Node // this node, as it registers itself
	Directory Directory
	Who       policy.Principal // under which it reads and writes the catalog
	Store     Store
	Log       *slog.Logger
	Now       func() time.Time
	Rand      io.Reader // for ids, jitter and event ids

	Gossip *GossipOptions // nil: none

	Scripts      bool // enable_script_checks: definitions from anywhere may run commands
	LocalScripts bool // enable_local_script_checks: only definitions of Services and Checks may

	// Secure finishes TLS on a connection that a check opened. nil: checks that ask for TLS are refused.
	Secure func(ctx context.Context, c net.Conn, t TLSTarget) (net.Conn, error)

	// Services and Checks are the definitions of the configuration. They are not persisted; Reload replaces them.
	Services []ServiceDefinition
	Checks   []CheckDefinition

	SyncInterval   time.Duration // of the full comparison with the catalog, before scaling by the number of nodes; 0: 1 minute
	UpdateInterval time.Duration // check_update_interval: outputs of unchanged status; 0: 5 minutes
	ReapInterval   time.Duration // how often critical services are looked for that are to be deregistered; 0: 30 seconds
	ScriptTimeout  time.Duration // for commands without a timeout of their own; 0: 30 seconds

	Server bool // its gossip tags say that a server runs here
	// IsLeader reports whether the server of this agent leads: then the agent reconciles gossip with the catalog. nil: never.
	IsLeader func() bool
	// RaftMembers returns the node names of the members of the Raft group, so that a server is not deregistered while it
	// has a vote. Used only while IsLeader; nil: no node is a server.
	RaftMembers func(ctx context.Context) ([]string, error)
}

// GossipOptions are one agent's part in the gossip of its datacenter.
type GossipOptions struct {
	Bind          string            // IP address to listen on, TCP and UDP
	Port          int               // 0: any that is free
	Advertise     string            // IP address that others are told; empty: Bind
	AdvertisePort int               // 0: Port
	Key           []byte            // 16, 24 or 32 bytes for AES-GCM (ParseGossipKey); nil: in the clear, which must have been asked for by name
	Plaintext     bool              // says so; without it a nil Key is refused
	Tags          map[string]string // role, dc, id, port, vsn, cluster …; at most 512 bytes encoded
	StartJoin     []string          // addresses that must be reached once at start, else Run ends
	RetryJoin     []string          // addresses that are tried until one is reached
	RetryInterval time.Duration     // 0: 30 seconds
	quick         bool              // tests: probe, suspect and reap in fractions of a second
}

const (
	defaultSyncInterval   = time.Minute
	defaultUpdateInterval = 5 * time.Minute
	defaultReapInterval   = 30 * time.Second
	defaultScriptTimeout  = 30 * time.Second
	defaultRetryInterval  = 30 * time.Second
)
