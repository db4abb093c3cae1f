// Package core is the only way in: every call of every protocol reaches the replicated machine through it, and carries
// the principal who asks.
//
// Job: check rights early, bound and queue proposals, wait for their outcome, serve linearizable and serializable
// reads, let lookups wait for a change, fan events out to watchers, keep the leader's clocks of leases and sessions,
// verify passwords and tokens, encrypt values before the log and open them after a read where an encryption configuration
// says so, change the membership, watch the quota, and write the audit record of all that.
//
// Non-job: protocols (edge packages translate), consensus (replica), the meaning of a command (state decides again in
// log order; what core decides early only spares the log), files and sockets.
//
// Invariants:
//   - A request that may have reached a log is never proposed again, unless the machine itself refused it.
//   - What a caller reads was authorized at the revision of the user store that held when the read ended.
//   - A blocked lookup is woken by what changes its answer and by nothing else, misses none, and holds no storage.
//   - All events of one revision of one watch leave in one message, in order, each once, without a gap.
//   - Core starts no goroutine. Work is done by callers, by the applier (Apply) and by the clock (Tick).
//   - No structure grows with the number of keys. Leases, sessions, watchers, waiting lookups and tokens are counted and
//     bounded by their owners.
//
// Lock order: WatchStream.mu, then a shard or the spans of a hub. proposals.mu, readRounds.mu, lessor.mu, sessionClock.mu,
// lookups.mu, flights.mu, tokenStore.mu, passwords.mu, leadership.mu, hub.mu and SharedEvent.mu are leaves, but for what
// they read from storage (lessor.mu a page of leases, sessionClock.mu one of sessions, SharedEvent.mu one version). The
// applier takes each of them for a short time only; none is held across a call of Log or Peers. A generation (the machine and its readers) is a count, not a lock: Install waits for its readers,
// so nobody may wait for the log while it holds one.
//
// Key schema: core has none of its own; it reads rows through state and mvcc.
package core
