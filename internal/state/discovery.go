package state

import (
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/policy"
)

// Discovery is a batch of operations on the catalog and on Consul's key-value pairs; it is answered by *catalog.Outcome.
type Discovery struct {
	Ops []catalog.Op
}

// SessionEffect says that a session began or ended. TTL is as it was given; empty: none.
type SessionEffect struct {
	ID    string
	TTL   string
	Ended bool
}

// AuthorizeLookup returns the fault that keeps who from asking q, and from waiting for a change of its answer.
func (m *Machine) AuthorizeLookup(who policy.Principal, q catalog.Query) error {
	return ErrPermissionDenied
}
