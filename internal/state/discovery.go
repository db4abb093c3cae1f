package state

import (
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// Discovery is a batch of operations on the catalog and on Consul's key-value pairs: all of them are done, or none. It is
// answered by *catalog.Outcome, also when its operations failed.
type Discovery struct {
	Ops []catalog.Op
}

// SessionEffect says that a session began or ended. TTL is as it was given; empty: none.
type SessionEffect struct {
	ID    string
	TTL   string
	Ended bool
}

// MaxDiscoveryOps is how many operations a Discovery may have. What clients may ask for is the edge's business, and less.
const MaxDiscoveryOps = 4096

// Faults of rights in Consul's spaces.
var (
	ErrAgentOwnNode = ErrPermissionDenied.WithHint("an agent's certificate may register, change and remove only the node of its own name, " +
		"with its services, checks and sessions; use an admin's certificate for others")
	ErrNoConsulRights = ErrPermissionDenied.WithHint("this certificate's role has no rights in Consul's catalog and key-value store: " +
		"rules for them are not part of this build; use an admin's certificate, or an agent's for the catalog")
	ErrExpiryOnly = ErrPermissionDenied.WithHint("only the leader's session clock lets a session expire; destroy the session instead")
)

func appendDiscovery(b []byte, r *Discovery) []byte {
	return appendBytes(b, catalog.AppendOps(nil, r.Ops))
}

func (d *decoder) discovery() *Discovery {
	ops, err := catalog.DecodeOps(d.bytes())
	if err != nil {
		d.fail()
	}
	return &Discovery{Ops: ops}
}

func checkDiscovery(r *Discovery) *fault.Error {
	if len(r.Ops) == 0 {
		return ErrMalformed
	}
	if len(r.Ops) > MaxDiscoveryOps {
		return ErrTooManyOps
	}
	for i := range r.Ops {
		if !r.Ops[i].WellFormed() {
			return ErrMalformed
		}
	}
	return nil
}

// discoveryCost estimates what r adds as Cost does: what it writes, with its row's overhead.
func discoveryCost(r *Discovery) int64 {
	sum := int64(0)
	for i := range r.Ops {
		if r.Ops[i].Verb.Grows() {
			sum += kvOverhead + int64(catalog.OpsSize(r.Ops[i:i+1]))
		}
	}
	return sum
}

// discovery decides a batch of operations.
func (a *application) discovery(who *policy.Principal, r *Discovery) (any, *fault.Error, error) {
	if f := a.checkDiscovery(r); f != nil {
		return nil, f, nil
	}
	outcome, err := catalog.Apply(a.writer(mvcc.SpaceConsulKV), a.writer(mvcc.SpaceCatalog),
		catalog.Batch{Ops: r.Ops, Time: a.clock.time}, who.Kind() == policy.System)
	if err != nil {
		return nil, nil, err
	}
	a.read += outcome.Size()
	return &outcome, nil, nil
}

// sessions reports the sessions that events of SpaceCatalog begin or end.
func (a *application) sessions(events []mvcc.RevisionEvents) error {
	for i := range events {
		for j := range events[i].Events {
			s, ended, ok, err := catalog.SessionChange(&events[i].Events[j])
			if err != nil {
				return err
			}
			if ok {
				a.out.Effects.Sessions = append(a.out.Effects.Sessions, SessionEffect{ID: s.ID, TTL: s.TTL, Ended: ended})
			}
		}
	}
	return nil
}

// catalogRow implements catalogRows: as of now in the batch.
func (a *application) catalogRow(key []byte) (mvcc.KV, bool, error) {
	return a.writer(mvcc.SpaceCatalog).Get(key, true)
}

// catalogRow implements catalogRows: as readers see it.
func (m *Machine) catalogRow(key []byte) (mvcc.KV, bool, error) {
	page, err := m.spaces[mvcc.SpaceCatalog].Read(m.engine, mvcc.Query{Span: storage.KeySpan(key), NoCount: true})
	if err != nil || len(page.KVs) == 0 {
		return mvcc.KV{}, false, err
	}
	return page.KVs[0], true, nil
}

// catalogRows finds out whose what an operation names is: in the state as readers see it, or in a batch being applied.
type catalogRows interface {
	catalogRow(key []byte) (mvcc.KV, bool, error)
}

// discovery decides about a batch of operations: every one must be allowed.
func (a *authority) discovery(who *policy.Principal, r *Discovery) (*fault.Error, error) {
	for i := range r.Ops {
		if f, err := a.discoveryOp(who, &r.Ops[i]); f != nil || err != nil {
			return f, err
		}
	}
	if len(r.Ops) == 0 { // the outcome of nothing still tells that somebody was listened to
		return a.consulRights(who, policy.RoleNone), nil
	}
	return nil, nil
}

// consulRights decides for those to whom all of Consul's spaces are open, and for holders of a certificate of role too.
func (a *authority) consulRights(who *policy.Principal, role policy.Role) *fault.Error {
	switch {
	case who.IsAdmin() || who.Kind() == policy.Member:
		return nil
	case who.OpenWhenAuthOff() && !a.auth.enabled:
		return nil
	case role != policy.RoleNone && who.Kind() == policy.Holder && who.Role() == role:
		return nil
	}
	return ErrNoConsulRights
}

// discoveryOp decides about one operation. An agent reads the catalog and writes what is its own node's.
func (a *authority) discoveryOp(who *policy.Principal, op *catalog.Op) (*fault.Error, error) {
	if op.Verb == catalog.SessionExpire {
		if systemOnly(who) != nil {
			return ErrExpiryOnly, nil
		}
		return nil, nil
	}
	if a.consulRights(who, policy.RoleNone) == nil {
		return nil, nil
	}
	if f := a.consulRights(who, policy.RoleAgent); f != nil {
		return f, nil
	}
	if op.Pair != nil {
		return ErrNoConsulRights, nil
	}
	if !op.Verb.Writes() {
		return nil, nil
	}
	own, err := op.BelongsTo(who.Name(), a.catalog.catalogRow)
	if err != nil || own {
		return nil, err
	}
	return ErrAgentOwnNode, nil
}

// AuthorizeLookup returns the fault that keeps who from asking q, and from waiting for a change of its answer.
func (m *Machine) AuthorizeLookup(who policy.Principal, q catalog.Query) error {
	a := authority{auth: m.auth.Load()}
	role := policy.RoleAgent
	switch space, _ := catalog.Watched(q); space {
	case mvcc.SpaceCatalog:
	case mvcc.SpaceConsulKV:
		role = policy.RoleNone
	default:
		return ErrMalformed
	}
	return both(a.consulRights(&who, role), nil)
}
