// Package history holds what clients of a cluster asked and saw, and judges whether a correct cluster can have shown it.
//
// Job: record operations with their times and answers, watches with their events; decide linearizability (porcupine) and
// etcd's guarantees of watches, what Consul promises of its pairs, indexes and locks, and what Holdfast promises of leases
// and of revoked certificates; say in words what is wrong.
//
// Non-job: running clients or clusters (clustertest drives simulated ones, test/lab real ones).
//
// Invariants: judging depends on nothing but the history and the options; an operation whose answer never came may have
// happened at any time after it was asked, once, or never; what cannot be decided is reported as undecided and never as
// passed. Lock order: Recorder.mu is a leaf. Key schema: none.
package history
