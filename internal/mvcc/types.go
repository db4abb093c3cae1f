package mvcc

import (
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/storage"
)

// SpaceID names one of the separate keyspaces that share a log. It is the first byte of every storage key of the space
// and is in the Raft log: the numbers never change.
type SpaceID byte

// The spaces. What an etcd client deletes, compacts, hashes, watches or snapshots is SpaceEtcd only.
const (
	SpaceEtcd     SpaceID = 1
	SpaceConsulKV SpaceID = 2
	SpaceCatalog  SpaceID = 3
	SpaceCA       SpaceID = 4
	SpaceSystem   SpaceID = 5
)

// Spaces lists every space in ascending order.
func Spaces() []SpaceID {
	return []SpaceID{SpaceEtcd, SpaceConsulKV, SpaceCatalog, SpaceCA, SpaceSystem}
}

// KV is one version of a key.
type KV struct {
	Key            []byte
	Value          []byte // nil when only the key was asked for
	CreateRevision int64
	ModRevision    int64
	Version        int64 // 1 at creation
	Lease          int64 // 0: none
}

// EventType says what happened to a key.
type EventType uint8

const (
	EventPut EventType = iota
	EventDelete
)

// Event is one change of one key. A delete carries Key and ModRevision only.
type Event struct {
	Type         EventType
	KV           KV
	PrevRevision int64 // ModRevision of the version this one replaced; 0 if there was none
}

// RevisionEvents holds all events of one revision, in the order of the operations that made them.
type RevisionEvents struct {
	Revision int64
	Events   []Event
}

// SortTarget and SortOrder are etcd's.
type (
	SortTarget uint8
	SortOrder  uint8
)

const (
	SortByKey SortTarget = iota
	SortByVersion
	SortByCreate
	SortByMod
	SortByValue
)

const (
	SortNone SortOrder = iota
	SortAscend
	SortDescend
)

// Query selects versions of the keys in Span.
type Query struct {
	Span     storage.Span
	Revision int64 // <= 0: the newest
	Limit    int64 // <= 0: no limit
	MaxBytes int64 // <= 0: no bound; otherwise stop after the key that reaches it (More is set)

	KeysOnly  bool // no values (and, as in etcd 3.7, no lease)
	CountOnly bool
	NoCount   bool // Count is not wanted: it is left 0

	Target SortTarget
	Order  SortOrder

	// Bounds on the revisions of the versions found; 0: no bound. They do not change Count.
	MinModRevision, MaxModRevision, MinCreateRevision, MaxCreateRevision int64
}

// Page is the answer to a Query.
type Page struct {
	KVs      []KV
	Count    int64 // keys in the span at the revision, without limit and filters
	More     bool  // the limit cut the answer
	Revision int64 // the space's revision when it was read
}

// Faults of reads and writes in a space.
var (
	ErrCompacted      = fault.New(fault.OutOfRange, "required revision has been compacted")
	ErrFutureRevision = fault.New(fault.OutOfRange, "required revision is a future revision")
	ErrLeaseNotFound  = fault.New(fault.NotFound, "requested lease not found")
	ErrLeaseExists    = fault.New(fault.Conflict, "lease already exists")
)
