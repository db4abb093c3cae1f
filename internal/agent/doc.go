// Package agent is one agent of service discovery: the services and checks of its own node, their running, their way into
// the catalog, and its part in the gossip.
//
// Job: hold the definitions that were registered here, run their checks, keep the catalog equal to what is known here
// (anti-entropy), keep definitions and TTL states over a restart, gossip with the other agents, pass user events on, and,
// on the leader's agent, bring what gossip knows of members into the catalog. Non-job: HTTP, DNS, configuration files, who
// may ask, sessions, the catalog itself.
//
// Invariants:
//
//   - For its own node the agent is right and the catalog is a copy: what the catalog holds of this node and the agent does
//     not know is removed, except what the leader writes (serfHealth, the service "consul").
//   - A check is critical until it was seen otherwise, or until its definition said otherwise.
//   - A script runs only if its definition came in on a way for which scripts were asked for by name.
//   - Gossip with a key takes and sends nothing in the clear. Nothing that serf or memberlist would write to disk is
//     written: members and keys are kept through Store, which seals.
//   - An output that changes while its status does not reaches the catalog at most every UpdateInterval.
//
// Lock order: Agent.syncing, then Agent.mu; gossip's own locks are leaves. Nothing waits for the Directory under mu.
//
// Keys in Store: "agent-index" (ids of what is kept), "agent-service-<hash of id>", "agent-check-<hash of id>",
// "agent-ttl-<hash of id>", "agent-gossip-keys", "agent-gossip-members". Each is JSON.
package agent
