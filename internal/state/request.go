package state

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// Request is one thing that the log can ask of the machine. Each kind has a number in the log that never changes and a
// feature level from which on it may be proposed.
type Request interface{ kind() requestKind }

// Put writes one key.
type Put struct {
	Space       mvcc.SpaceID
	Key, Value  []byte
	Lease       int64
	PrevKV      bool // return the replaced version
	IgnoreValue bool // keep the present value; the key must exist
	IgnoreLease bool // keep the present lease; the key must exist
}

// Delete deletes every key in Span.
type Delete struct {
	Space  mvcc.SpaceID
	Span   storage.Span
	PrevKV bool
}

// Txn is etcd's transaction: if all Compare hold, Success runs, otherwise Failure. It takes at most one revision.
type Txn struct {
	Space            mvcc.SpaceID
	Compare          []Compare
	Success, Failure []Op
}

// Op is one operation of a Txn: exactly one field is set. The Space of nested operations is that of the outermost Txn.
type Op struct {
	Range  *mvcc.Query
	Put    *Put
	Delete *Delete
	Txn    *Txn
}

// CompareTarget is what a Compare looks at.
type CompareTarget uint8

const (
	CompareVersion CompareTarget = iota
	CompareCreate
	CompareMod
	CompareValue
	CompareLease
)

// CompareResult is the relation that must hold.
type CompareResult uint8

const (
	CompareEqual CompareResult = iota
	CompareGreater
	CompareLess
	CompareNotEqual
)

// Compare holds if every key in Span satisfies the relation. With no key in Span it is judged against a zero KV, but a
// comparison of values is then false.
type Compare struct {
	Span   storage.Span
	Target CompareTarget
	Result CompareResult
	Number int64  // for version, create, mod, lease
	Value  []byte // for value
}

// Compact makes revisions below Revision unreadable.
type Compact struct {
	Space    mvcc.SpaceID
	Revision int64
}

// LeaseGrant creates a lease. TTL is in seconds.
type LeaseGrant struct {
	ID  int64
	TTL int64
}

// LeaseRevoke deletes leases and the keys attached to them: one revision for each lease that held keys. With Expired set,
// a lease that does not exist any more is skipped, and only the System principal may ask it.
type LeaseRevoke struct {
	IDs     []int64
	Expired bool
}

// LeaseCheckpoint records the time that leases have left, in seconds, so that a new leader does not start them afresh.
type LeaseCheckpoint struct {
	Remaining map[int64]int64
}

// AuthOp is one change of the user store.
type AuthOp uint8

const (
	AuthEnable AuthOp = iota + 1
	AuthDisable
	UserAdd            // User, Hash or NoPassword
	UserDelete         // User
	UserChangePassword // User, Hash
	UserGrantRole      // User, Role
	UserRevokeRole     // User, Role
	RoleAdd            // Role
	RoleDelete         // Role
	RoleGrant          // Role, Permission
	RoleRevoke         // Role, Permission.Span
)

// AuthChange is one change of the user store. The password is hashed before it is proposed.
type AuthChange struct {
	Op         AuthOp
	User, Role string
	Hash       []byte // bcrypt
	NoPassword bool
	Permission Permission
}

// Permission is what a role may do on a span of SpaceEtcd.
type Permission struct {
	Span        storage.Span
	Read, Write bool
}

// AlarmKind is a replicated alarm.
type AlarmKind uint8

const (
	AlarmNone AlarmKind = iota // in a query: any
	AlarmNoSpace
	AlarmCorrupt
)

// Alarm is one member's alarm.
type Alarm struct {
	Member uint64
	Kind   AlarmKind
}

// AlarmChange raises or lowers an alarm. Member 0 with Raise unset lowers it on every member.
type AlarmChange struct {
	Alarm
	Raise bool
}

// Member is one member of the cluster.
type Member struct {
	ID         uint64
	Name       string // empty until it has started
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// MemberPublish is what a member says of itself when it has started.
type MemberPublish struct {
	ID           uint64
	Name         string
	ClientURLs   []string
	FeatureLevel uint32 // highest level this build knows
}

// ConfChange is a change of the membership; it travels in an entry of its own as the context of raft's configuration
// change and is decided again by Apply.
type ConfChange struct {
	Op     ConfOp
	Member Member
}

// ConfOp is the kind of a ConfChange.
type ConfOp uint8

const (
	ConfAdd ConfOp = iota + 1 // Member whole; Member.Learner decides as what
	ConfRemove
	ConfUpdate // Member.PeerURLs
	ConfPromote
)

// Result is the answer to one Request. Exactly one of Value and Err is set.
type Result struct {
	Value any // *PutResult, *DeleteResult, *TxnResult, … by the request's type; nil for requests without answer
	Err   error
}

// PutResult answers Put.
type PutResult struct {
	Revision int64
	Prev     *mvcc.KV
}

// DeleteResult answers Delete.
type DeleteResult struct {
	Revision int64
	Deleted  int64
	Prev     []mvcc.KV
}

// TxnResult answers Txn.
type TxnResult struct {
	Revision  int64
	Succeeded bool
	Results   []OpResult
}

// OpResult answers one Op: the field that matches the Op is set.
type OpResult struct {
	Range  *mvcc.Page
	Put    *PutResult
	Delete *DeleteResult
	Txn    *TxnResult
}

// Proposal names one batch of requests: who proposed it, in which run of that member, and where in its sequence.
type Proposal struct {
	Member uint64
	Boot   uint64 // random, new at each start
	Seq    uint64 // 1, 2, 3 … within a boot
}

// Call is one request together with who asks it.
type Call struct {
	Who     policy.Principal
	Request Request
}
