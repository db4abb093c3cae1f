// Package clustertest runs whole clusters in one process, so that the same seed does the same thing to the last byte.
//
// Job: a simulation. Each member is a real log, a real core, a real machine and a real storage engine; clock, network, disk,
// randomness and the order of everything come from one seed. Faults are injected, clients work, and what they saw is judged
// by internal/history; members are compared by their state hashes. A seed that fails is shrunk to a short schedule, and
// schedules are replayed as tests.
//
// Non-job: sockets, TLS, gRPC and processes; test/lab breaks real ones. How to run and to read it: docs/operations/simulation.md.
//
// Invariants: one goroutine, the driver, decides what happens next; everything else that runs is quiescent whenever the
// driver looks. Nothing that a trace holds depends on the order in which goroutines run, on a map's order, on the wall clock
// or on what encryption draws at random.
//
// Lock order: disk.mu and network.mu are leaves. Key schema: none.
package clustertest
