// Package mvcc keeps revisioned keyspaces in ordered storage.
//
// Job: the semantics of etcd's store (revisions, versions, history, compaction, leases and the keys attached to them,
// exact counts) for several spaces that share one engine, in structures that live on disk only. Non-job: who may do
// what, the clock of leases, the log, delivering events to watchers.
//
// # Invariants
//
//   - A space is changed by one Writer at a time, whose changes become visible by Engine.Apply and then Publish. The same
//     calls in the same order give the same rows, results, events, sizes and hashes on every member.
//   - The exception is Sweep, which removes what compaction made unreachable whenever its owner has time for it: no
//     read, size, event or hash shows how far it has come.
//   - A reader works on one iterator, hence on one state; a version above the published revision is skipped. A state
//     that shows effects of a Sweep also shows the compaction that allowed it.
//   - Memory does not grow with the number of keys, and opening reads one row.
//   - A revision has at least one row in the revision log until it is compacted: there are no gaps.
//
// # Sizes
//
// Bytes is the logical size: what every readable version, in the history too, would take with its share of the log and
// the index. It falls at the moment of a compaction, by the sum that the revision log carries along, not when Sweep gets
// there. There is no free space inside that could be given back, so BytesInUse is the same number.
//
// # Key schema
//
// A key begins with the SpaceID and a table byte. Numbers are big-endian, "uv" is an unsigned varint, "esc(key)" has
// 00 replaced by 00 ff and ends with 00 01. docs/formats/mvcc.md has the values.
//
//	d  esc(key) ^revision(8) ^sub(4)   one version of key; the newest comes first
//	l  revision(8) sub(4)              what happened, and which version it replaced
//	k  key                             key exists now
//	n  level(1) 00 upper | level(1) 01 counted index over k: how many keys lie below upper and not below the row before;
//	                                   01 stands for no upper bound
//	x  revision(8) sub(4)              key was created or deleted
//	e  lease id(8)                     lease
//	a  lease id(8) key                 key is attached to the lease
//	m  r | s                           meta row of the space; how far this member's Sweep has come
//
// # Lock order
//
// Space.sweepMu is held over a whole Sweep call; nothing else is locked under it. Everything else is atomics.
package mvcc
