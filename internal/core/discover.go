package core

import (
	"context"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// Faults of discovery.
var (
	ErrSessionTTL      = fault.New(fault.Invalid, "invalid session TTL").WithHint("a session's TTL is a duration from 10s to 24h, or empty")
	ErrSessionNotFound = fault.New(fault.NotFound, "session not found")
	ErrTooManyWaiters  = fault.New(fault.Exhausted, "too many blocking queries").WithHint("ask another member, or wait for fewer things at once")
)

// The shortest and the longest time to live that a session may ask for, as in Consul.
const (
	leastSessionTTL = 10 * time.Second
	mostSessionTTL  = 24 * time.Hour
)

// Discover does a batch of operations on the catalog and on Consul's key-value pairs: all of them, or none. An operation
// that could not be done is no error but a Failure in the outcome. The caller must not change ops afterwards.
func (c *Core) Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	if err := checkSessions(ops); err != nil {
		return catalog.Outcome{}, err
	}
	out, err := call[*catalog.Outcome](c, ctx, who, &state.Discovery{Ops: ops})
	if err != nil {
		return catalog.Outcome{}, err
	}
	return *out, nil
}

// checkSessions refuses a session whose end nobody could tell: the machine has no clock and takes a TTL for a text.
func checkSessions(ops []catalog.Op) error {
	for i := range ops {
		if s := ops[i].Session; ops[i].Verb == catalog.SessionCreate && s != nil && s.TTL != "" {
			if ttl, err := time.ParseDuration(s.TTL); err != nil || ttl != 0 && (ttl < leastSessionTTL || ttl > mostSessionTTL) {
				return ErrSessionTTL
			}
		}
	}
	return nil
}

// discoveryName names a batch for the record: by its first operation.
func discoveryName(r *state.Discovery) string {
	if len(r.Ops) == 0 {
		return "discovery"
	}
	switch v := r.Ops[0].Verb; {
	case v <= catalog.KVCheckNotExists:
		return "consul kv"
	case v <= catalog.NodeDeleteCAS:
		return "catalog node"
	case v <= catalog.ServiceDeleteCAS:
		return "catalog service"
	case v <= catalog.CheckDeleteCAS:
		return "catalog check"
	default:
		return "consul session"
	}
}
