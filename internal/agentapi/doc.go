// Package agentapi is the RPC between the agents that keep no state and the servers: the questions and writes of the
// catalog and of the key-value store, the renewal of sessions, the list of servers, and the wish of a new server to
// become a member.
//
// Job: Server answers on connections that somebody else has accepted and authenticated; Client asks one of several
// servers over connections that somebody else dials. Both ends speak HTTP/2 with hand-written binary bodies
// (docs/formats/agent-rpc.md). Non-job: TLS and who is who (authn), what a principal may do (core), membership of the
// gossip pool (agent).
//
// Invariants:
//
//   - A connection whose principal is nobody is refused before a byte of a body is read.
//   - Bodies, answers, requests at work and blocked questions are bounded. Lengths on the wire are checked against what
//     came, never believed.
//   - A question is cancelled at the server when its asker goes.
//   - A write is never repeated once it may have reached a server: then the error is ErrUnsure. A question is, elsewhere.
//   - Faults cross with kind, reason and hint; the text of an internal error does not cross.
//
// Lock order: Client.mu is a leaf.
package agentapi

import "holdfast.dev/holdfast/internal/fault"

// Protocol is the ALPN name of this RPC. Its connections begin with the preface of HTTP/2, so that on a port without TLS
// the first byte tells them from the peer protocol.
const Protocol = "holdfast-agent/1"

// Faults of the RPC itself. What the server refuses has the faults of core and of what is below it.
var (
	ErrNoServers  = fault.New(fault.Unavailable, "No known Consul servers").WithHint("this agent keeps no state: name a server with -retry-join (retry_join), and see `consul members`")
	ErrUnsure     = fault.New(fault.Unavailable, "the connection to the server broke: the write may or may not have happened").WithHint("read what it was to write before you repeat it")
	ErrNoAnswer   = fault.New(fault.Unavailable, "no server answered in time")
	ErrNobody     = fault.New(fault.Unauthenticated, "the connection proves nobody")
	ErrBusy       = fault.New(fault.Exhausted, "too many requests of agents at once")
	ErrMalformed  = fault.New(fault.Invalid, "malformed agent request")
	ErrTooLarge   = fault.New(fault.Invalid, "agent request or answer is too large")
	ErrStopping   = fault.New(fault.Unavailable, "server is stopping")
	ErrNotMember  = fault.New(fault.Unavailable, "this server belongs to no cluster yet")
	ErrNoJoin     = fault.New(fault.Unsupported, "this server takes no members in")
	ErrBadAnswer  = fault.New(fault.Unavailable, "the server's answer is not one of this protocol")
	ErrNotAllowed = fault.New(fault.Denied, "an agent without state asks servers only for callers that may everything")
)
