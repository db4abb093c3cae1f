// Package etcdapi is the edge that speaks the etcd v3 API: gRPC, its JSON gateway, health checks and metrics.
//
// Job: translate etcd's requests into calls of core and the answers back, in the exact texts, codes, headers and bytes
// that etcd's clients match.
//
// Non-job: deciding rights (core does; this package only finds out who asks), semantics of keys, TLS and listeners
// (authn and node), anything below core.
//
// Invariants:
//   - Every call reaches core with a principal: that of the connection, after Identify. The gateway runs the same
//     handlers as gRPC, in process, with the same principal, limits and codec; there is no second path.
//   - Ranges are rewritten once, in spanOf; nothing after it reads etcd's spelling.
//   - The hand-written codec and the protobuf library agree on every byte (differential and fuzz tests).
//   - A panic ends one request, never the process; the text of an error without a kind never reaches a client.
//   - Keys, values and names of users do not appear in what this package logs.
//
// Lock order: watchSession.mu is the only lock; it is held while a response is written to the stream, and never while
// core waits for events.
//
// Key schema: none; Election and Lock write the keys that clientv3/concurrency writes: NAME "/" LEASE-IN-HEX.
package etcdapi
