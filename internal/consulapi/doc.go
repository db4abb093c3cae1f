// Package consulapi is the edge that speaks Consul's HTTP API.
//
// Job: decode a request as Consul does, hand it to a Directory (the key-value store, the catalog, sessions) or to this
// host's agent, and answer in Consul's shapes: its JSON, headers, status codes and error texts. Non-job: who may do what
// (core decides; the principal comes in with the connection), indexes and blocking (the Directory's), running checks and
// gossip (agent), listeners and TLS (authn, node).
//
// Invariants:
//
//   - Every read carries X-Consul-Index, never 0, X-Consul-KnownLeader and X-Consul-LastContact.
//   - catalog/service and health/service answer one service's instances in one order: by node, then by service ID.
//   - A parameter or field is obeyed or refused; what Consul serves and this build does not is refused by name.
//   - A request body is read up to a limit, a blocking query lasts at most wait + wait/16, and one client holds a bounded
//     number of them.
//   - A token (?token=, X-Consul-Token, Authorization) is neither logged nor repeated in an answer.
//   - Values of keys are never answered as a document that a browser would run.
//
// Lock order: waiters.mu is a leaf.
//
// Key schema: none; the Directory keeps the rows. What is served and what is not: docs/compat/consul.md.
package consulapi
