package state

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
)

// Entry is one committed entry of the log. Data is a batch made by EncodeBatch, or empty for an entry of raft's own. For a
// configuration change Conf holds what EncodeConf made, and Data is not looked at. Apply keeps references to Data: nobody
// may change it afterwards.
type Entry struct {
	Index, Term uint64
	Data        []byte
	Conf        []byte
}

// Outcome is everything that follows from the entries handed to one Apply.
type Outcome struct {
	Applied uint64 // index of the last entry
	Time    int64  // the newest time that an entry carried, unix milliseconds; it never decreases
	Batches []AppliedBatch
	Confs   []AppliedConf
	Events  map[mvcc.SpaceID][]mvcc.RevisionEvents
	Effects Effects
}

// AppliedBatch answers one batch; Results has one element for each of its requests, in order. Duplicates that were dropped
// are left out.
type AppliedBatch struct {
	Index    uint64
	Proposal Proposal
	Results  []Result
}

// AppliedConf answers one configuration change. Raft is told of the change only if Err is nil; otherwise of an empty one.
type AppliedConf struct {
	Index    uint64
	Proposal Proposal // zero when Err is ErrDuplicate: the one who waits was answered then
	Change   ConfChange
	Err      error
	Members  []Member // all members after the change, ascending by ID
}

// Effects are the changes that somebody outside the machine has to act upon. All slices are in the order of the log.
type Effects struct {
	Leases       []LeaseEffect // granted, revoked, checkpointed
	AlarmsSet    []Alarm
	AlarmsUnset  []Alarm
	AuthRevision uint64               // of the user store, when it changed; otherwise 0
	AuthEnabled  *bool                // set when user authentication was switched
	Members      bool                 // some member's row changed
	Removed      []uint64             // members that were removed
	Revoked      []policy.Certificate // certificates whose revocation was written
	Unrevoked    []policy.Certificate // certificates whose revocation was deleted
	Level        uint32               // the new feature level, when it was raised; otherwise 0
	Compacted    []Compaction
	Sessions     []SessionEffect // begun, ended
}

// LeaseOp is what happened to a lease.
type LeaseOp uint8

// What can happen to a lease.
const (
	LeaseGranted LeaseOp = iota + 1
	LeaseRevoked
	LeaseCheckpointed
)

// LeaseEffect is one change of a lease. TTL is in seconds: what was granted, or what remains at a checkpoint.
type LeaseEffect struct {
	Op  LeaseOp
	ID  int64
	TTL int64
}

// Compaction says that a space is unreadable below Revision.
type Compaction struct {
	Space    mvcc.SpaceID
	Revision int64
}

// LeaseResult answers LeaseGrant.
type LeaseResult struct {
	ID, TTL int64
}

// RevokeResult answers LeaseRevoke and LeaseCheckpoint.
type RevokeResult struct {
	Revision int64
	Leases   int   // leases that were there
	Keys     int64 // keys that were deleted with them
}

// CompactResult answers Compact: the space's revision at that moment.
type CompactResult struct {
	Revision int64
}

// AlarmResult answers AlarmChange: the alarms that were raised (also when they had been) or lowered.
type AlarmResult struct {
	Alarms []Alarm
}

// AuthResult answers AuthChange with the revision of the user store.
type AuthResult struct {
	Revision uint64
}

// PublishResult answers MemberPublish and RaiseLevel.
type PublishResult struct {
	Member Member
	Level  uint32
}
