package core

import (
	"context"
	"errors"

	"holdfast.dev/holdfast/internal/replica"
)

// Log is the replicated log as core needs it: *replica.Replica. Tests have one that applies on command.
type Log interface {
	// ReadIndex returns once this member's machine shows every write that was acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) (index uint64, err error)
	// Wake tells the log that Core.Next has something to give. It never blocks.
	Wake()
	// ProposeConf waits until the change is applied; the machine's refusal is the error.
	ProposeConf(ctx context.Context, change replica.Change) error
	// TransferLeader waits until the member leads.
	TransferLeader(ctx context.Context, to uint64) error
	// Status is cheap and never blocks.
	Status() replica.Status
}

// Peers is request and response between members: *replica.Replica.
type Peers interface {
	// Call sends payload to a member and returns its answer. A fault of the handler arrives as the same fault.
	Call(ctx context.Context, member uint64, method string, payload []byte) ([]byte, error)
	// Handle registers what answers a method. It is called before the first peer is served.
	Handle(method string, h replica.Handler)
}

// The methods that members call on each other. The names are part of the peer protocol.
const (
	methodLease   = "core/lease"
	methodSession = "core/session"
	methodToken   = "core/token"
	methodPromote = "core/promote"
	methodHash    = "core/hash"
)

// isDropped reports whether the log says that something is in no log and never will be.
func isDropped(err error) bool { return errors.Is(err, replica.ErrDropped) }
