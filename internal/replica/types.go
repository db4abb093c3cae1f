package replica

import (
	"context"
	"io"
	"time"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Faults of replica. Those that etcd knows have etcd's reasons.
var (
	// ErrRemoved is what Run returns when the cluster has removed this member. Its data is of no more use.
	ErrRemoved = fault.New(fault.Unavailable, "the member has been permanently removed from the cluster")
	// ErrStopped is returned by calls that were waiting when Run ended.
	ErrStopped = fault.New(fault.Unavailable, "server stopped")
	// ErrLeaderChanged means that the outcome is unknown: the leader changed or went out of reach while the request was
	// on its way.
	ErrLeaderChanged = fault.New(fault.Unavailable, "leader changed")
	// ErrDropped means that the request is in no log and never will be: it may be asked again.
	ErrDropped = fault.New(fault.Unavailable, "leader changed before the request entered a log")
	// ErrNoLeader means that no leader is known.
	ErrNoLeader = fault.New(fault.Unavailable, "no leader")
	// ErrBusy means that another change of the membership is under way.
	ErrBusy = fault.New(fault.Conflict, "another configuration change is under way")
	// ErrBadTransferee means that leadership cannot go to that member: it is unknown, or a learner.
	ErrBadTransferee = fault.New(fault.Conflict, "bad leader transferee")
	// ErrUnknownMember means that there is no such peer.
	ErrUnknownMember = fault.New(fault.NotFound, "member not found")
	// ErrUnreachable means that the peer could not be reached or the connection to it broke; a call may have been served.
	ErrUnreachable = fault.New(fault.Unavailable, "the member cannot be reached")
	// ErrRolledBack means that the log and the state in the data directory do not fit together, or do not fit the marker.
	ErrRolledBack = fault.New(fault.Corrupt, "part of the data directory is older than the rest")
)

// Entry is one committed entry of the log. Data is the batch that Source gave, stamped; it is empty for the entry with
// which a new leader begins its term. Conf is the Data of a Change and is not nil exactly for configuration changes.
type Entry struct {
	Index, Term uint64
	Data, Conf  []byte
}

// Machine is the replicated state machine, implemented by core. Snapshot and Staged.Install are never called at the same
// time as Apply; Flush and Stage run beside it; State may be called from any goroutine.
//
// An error of any of them, except Stage and Snapshot, is fatal for the member.
type Machine interface {
	// Apply applies entries in order, each index once. A configuration change comes alone. The answer holds one
	// Decision for each entry with Conf; a change without one, or with an Err, is not carried out. The entries' bytes
	// are read-only and may be kept.
	Apply(entries []Entry) ([]Decision, error)
	// State describes the state as of the last applied entry.
	State() State
	// Flush makes everything applied durable and returns when it is. It is called when the log has grown long.
	Flush() error
	// Snapshot pins the state at its applied index. It must not block Apply for long.
	Snapshot() (Snapshot, error)
	// Stage reads what Snapshot.WriteTo wrote, builds a state of its own in dir (which does not exist yet), flushes and
	// fsyncs it, the directory included, without touching the present state. It runs beside Apply. On error the caller
	// removes dir.
	Stage(dir string, r io.Reader) (Staged, error)
}

// State is what replica must know of a machine at its applied index.
type State struct {
	Applied uint64 // index of the last applied entry; 0 for a joiner that has not received a snapshot yet
	Durable uint64 // index of the last applied entry that survives a crash
	Members []Peer // the configuration at Applied, every voter and learner
	Removed []uint64
}

// Peer is one member of the cluster. A member removed and added again is another member with another ID.
type Peer struct {
	ID      uint64
	URLs    []string // where its Options.Listener is reached; may be empty for members that have not started
	Learner bool
}

// Decision is what the machine makes of a configuration change. Err is given to whoever called ProposeConf.
type Decision struct {
	Index uint64
	Err   error
}

// Snapshot is a pinned state. WriteTo streams it in bounded memory.
type Snapshot interface {
	State() State
	WriteTo(w io.Writer) (int64, error)
	Close() error
}

// Staged is a received state that is durable but not yet in use.
type Staged interface {
	State() State
	// Install makes it the machine's state and closes the former one. The marker already names it.
	Install() error
	// Discard closes it; the caller removes the directory.
	Discard() error
}

// Source is where proposals come from, implemented by core.
type Source interface {
	// Next returns one encoded batch of at most maxBytes, unless its first request alone is larger. It is called from
	// one goroutine at a time, only while a leader is known. Ownership of the bytes passes to replica.
	Next(maxBytes int) (data []byte, ok bool)
	// Lost gives back a batch that Next gave: err is ErrDropped if it is in no log and never will be, ErrLeaderChanged if
	// it may or may not be applied. It must not block.
	Lost(data []byte, err error)
}

// ChangeKind is what a Change does.
type ChangeKind uint8

// The changes. AddVoter also promotes a learner; Update leaves the configuration as it is.
const (
	AddVoter ChangeKind = iota + 1
	AddLearner
	Remove
	Update
)

// Change is one change of the membership. Data travels with it and comes back as Entry.Conf.
type Change struct {
	Kind   ChangeKind
	Member uint64
	Data   []byte
}

// Handler answers a Call. from is the member that asked, as its connection was identified. An error that is not a
// *fault.Error arrives as an internal one, without its text.
type Handler = func(ctx context.Context, from policy.Principal, payload []byte) ([]byte, error)

// Clock is injected time. Wall is the one that reads the machine's.
type Clock interface {
	Now() time.Time
	// After delivers once after d.
	After(d time.Duration) <-chan time.Time
}

// Leadership is a moment of who leads, as this member knows it.
type Leadership struct {
	Leader uint64 // 0: none known
	Term   uint64
	Self   bool // this member leads, and has applied an entry of its own term
}

// Status is a moment of the member. Sizes are in bytes.
type Status struct {
	Leadership
	Vote          uint64
	Transferee    uint64
	Committed     uint64
	Applied       uint64
	First, Last   uint64 // indexes that the log holds; Last may not be durable yet
	Learner       bool
	LeaderSince   time.Time // when the present leader was first seen; zero while there is none
	NoLeaderSince time.Time // when the last leader was lost; zero while there is one
	LeaderContact time.Time // when this member last heard of a leader or led, to the tick; zero: never
	LeaderChanges uint64
	Peers         []PeerStatus
	Counters      Counters
}

// PeerStatus is how this member sees another one.
type PeerStatus struct {
	Peer
	Match       uint64    // on the leader: last index known to be durable there
	Active      bool      // on the leader: heard of during the last election timeout
	Snapshot    bool      // on the leader: waiting for a snapshot
	ActiveSince time.Time // since when this member has had a connection to it; zero: not connected
	Dropped     uint64    // messages thrown away because the queue was full or there was no connection
}

// Counters only grow, except LogBytes, QueuedBytes and Cached.
type Counters struct {
	Proposals, ProposalBytes       uint64 // batches pulled from Source
	ProposalsLost                  uint64
	Appends, AppendBytes, Syncs    uint64 // frames written to the log, payload bytes in them, fdatasyncs
	SyncSeconds                    float64
	Inline                         uint64 // appends done on the loop, without a wake-up
	Applies, Applied               uint64 // calls of Machine.Apply, entries in them
	ReadRounds, Reads              uint64 // rounds of ReadIndex, readers that they served
	SnapshotsSent, SnapshotsTaken  uint64
	LogBytes, QueuedBytes, Cached  uint64 // log on disk, events not yet handled, entries held in memory
	SegmentsCut                    uint64
	ForwardedIn, RefusedForwarders uint64 // proposals of other members: appended here, turned away
}
