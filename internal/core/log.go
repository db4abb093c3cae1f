package core

import (
	"context"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Log is the replicated log as core needs it. replica implements it; tests have one that applies on command.
type Log interface {
	// ReadIndex returns an index such that a machine which has applied it shows every write acknowledged before the call.
	ReadIndex(ctx context.Context) (uint64, error)
	// Wake tells the log that Core.Next has something to give. It never blocks.
	Wake()
	// ProposeConf proposes a change of the configuration. data travels as its context and comes back in Apply as the
	// entry's Conf. It returns once the change was handed to the log; the outcome arrives through Apply.
	ProposeConf(ctx context.Context, change LogConfChange) error
	// TransferLeader asks the leader, which must be this member, to hand over to another, and waits until it has.
	TransferLeader(ctx context.Context, to uint64) error
	// Status is cheap and never blocks.
	Status() LogStatus
}

// Peers is request and response between members, over the connections of the log.
type Peers interface {
	// Call sends payload to a member and returns its answer. A fault of the handler arrives as the same fault.
	Call(ctx context.Context, member uint64, method string, payload []byte) ([]byte, error)
	// Handle registers what answers a method. It is called before the first peer is served.
	Handle(method string, h PeerHandler)
}

// PeerHandler answers a Call. from is the member that asked, as its connection proved.
type PeerHandler = func(ctx context.Context, from policy.Principal, payload []byte) ([]byte, error)

// LogConfKind is what a LogConfChange does to the log's own configuration.
type LogConfKind uint8

// The changes of the log's configuration.
const (
	LogAddVoter LogConfKind = iota + 1 // also the promotion of a learner
	LogAddLearner
	LogRemove
	LogUpdate // addresses only
)

// LogConfChange is one change of the configuration, with the machine's own record of it.
type LogConfChange struct {
	Kind   LogConfKind
	Member uint64
	Data   []byte // state.EncodeConf
}

// LogStatus is a moment of the log.
type LogStatus struct {
	Leader        uint64 // 0: none known
	Term          uint64
	Committed     uint64
	Last          uint64 // last index in this member's log
	IsLeader      bool
	Learner       bool
	LeaderSince   time.Time // when Leader was last seen to change to a member; zero if never
	NoLeaderSince time.Time // when the last leader was lost; zero while there is one
	Peers         []PeerStatus
}

// PeerStatus is how this member sees another one.
type PeerStatus struct {
	ID          uint64
	Match       uint64    // on the leader: last index known to be on the peer
	ActiveSince time.Time // zero: not connected
}
