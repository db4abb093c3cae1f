// Package replica is one member of the Raft group: a sealed log, elections, replication, membership, snapshots between
// members, reads confirmed by a quorum, and the connections between members. It is the only importer of
// go.etcd.io/raft.
//
// Job: hand the same entries in the same order to every member's Machine; never lose an entry that a Machine has seen;
// carry requests between members.
//
// Non-job: what entries mean (the Machine's), rights (core's), TLS and certificates (authn's: connections come in
// through Options.Dial, Options.Listener and Options.Identify), the clock (Options.Clock).
//
// How core and node use it:
//
//	store, err := replica.Create(so, boot, build)       // once: build(dir) makes the first state, flushed, at applied index 1 (0 for a joiner)
//	store, err := replica.Open(so)                      // afterwards; refuses a directory that was rolled back or tampered with
//	engine := storage.Open(… store.StateDir() …)        // node opens the state where the marker says it is
//	r, err := replica.New(store, replica.Options{…})    // Machine, Source, Stamp, Dial, Listener, Identify, callbacks
//	r.Handle("method", h)                               // before Run
//	err = r.Run(ctx)                                    // until ctx ends, Stop is called, the member is removed (ErrRemoved) or a fault is fatal
//
// While the member does not run, Store.Each shows its log, and Store.Force makes it go on alone.
//
// From any goroutine, also before Run:
//
//	Wake()                                              // Source has something; never blocks
//	ReadIndex(ctx) (index, error)                       // confirmed by a quorum; the machine has already applied it when it returns
//	ProposeConf(ctx, Change) error                      // waits until it is applied; the Machine's refusal is the error; forwarded to the leader
//	TransferLeader(ctx, to) error                       // asks the leader, waits until to leads
//	Call(ctx, member, method, payload) ([]byte, error)  // a fault of the handler arrives as the same fault
//	Status() Status                                     // cheap, never blocks
//	Stop(ctx) error                                     // hands leadership over, then stops; Run returns nil
//
// A simulation takes a Stepper in the place of Run: the same loop, appender and applier, one step at a time, and links whose
// parcels it carries itself.
//
// A proposal is a batch that Source.Next gives when the log has room (group commit). On the leader it is stamped
// (Options.Stamp) and appended; on a follower it is forwarded, and the leader stamps it. It is never proposed twice. A
// batch that is known not to have entered a log, or whose fate became unknown, is given back through Source.Lost.
//
// Invariants:
//   - No message that promises durability leaves before the fdatasync it depends on. A failed write or fsync is fatal:
//     the member stops at once, nothing is retried (the rule is in docs/formats/raft-log.md).
//   - Apply sees every index once, in order, and only entries that are durable on this member and committed.
//   - The log is cut only below what the Machine says is durable.
//   - A message is accepted only from the member that the connection was identified as.
//   - A state directory becomes valid by one write: the sealed marker CURRENT.
//
// Goroutines: the loop (owns Member and raft), the appender (owns log writes and snapshot installation), the applier
// (the only caller of Machine.Apply), for each peer one that dials and reads and one that writes, two for each accepted
// connection, one for each call being served, at most one snapshot sender per peer and one snapshot receiver. Run waits
// for all of them. A sole voter with little to do appends and applies on the loop itself, which spares two wake-ups a
// write; neither worker has work then, so Machine.Apply still has one caller at a time.
//
// Lock order: transport.mu > link.mu. Replica.mu, Replica.randMu, raftLog.mu, mailbox.mu and queue.mu are leaves. None
// is held across a call of Machine, Source, a callback or a Handler, nor across file and network input or output.
//
// Files, below the data directory: CURRENT (marker), log/ (segments), state-N/ (the Machine's). Formats:
// docs/formats/raft-log.md and docs/formats/peer.md.
package replica
