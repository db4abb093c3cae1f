package state

import (
	"bytes"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// ErrSecretsRefused answers a write of a replicated secret in a cluster whose peers do not authenticate each other.
var ErrSecretsRefused = fault.New(fault.Denied, "cluster without authenticated peers keeps no replicated secrets")

// Authorize is the choke point for rights: it returns the fault that keeps who from asking r, nil if nothing does. Nested
// operations are flattened and all of them judged, those of a branch that will not run too. Core asks it before it
// proposes and for a Txn that only reads; Apply asks it again in log order. An error that is no fault is the storage's.
func (m *Machine) Authorize(who policy.Principal, r Request) error {
	a := authority{auth: m.auth.Load(), secure: m.Secure(), leases: leasesAt{m.spaces[mvcc.SpaceEtcd], m.engine}, catalog: m}
	return both(a.request(&who, r))
}

// AuthorizeRead returns the fault that keeps who from reading, watching or counting the keys of span.
func (m *Machine) AuthorizeRead(who policy.Principal, space mvcc.SpaceID, span storage.Span) error {
	a := authority{auth: m.auth.Load()}
	return both(a.keys(&who, space, span, wantRead), nil)
}

// AuthorizeControl returns the fault that keeps who from an action that is not about keys.
func (m *Machine) AuthorizeControl(who policy.Principal, action policy.Action) error {
	return both(m.auth.Load().control(&who, action, ""), nil)
}

// AuthorizeSubject is AuthorizeControl for an action on the user or role named subject, which a user may do to its own.
func (m *Machine) AuthorizeSubject(who policy.Principal, action policy.Action, subject string) error {
	return both(m.auth.Load().control(&who, action, subject), nil)
}

// AuthorizeLeaseKeys returns the fault that keeps who from learning which keys are attached to a lease: it needs the right
// to read each of them.
func (m *Machine) AuthorizeLeaseKeys(who policy.Principal, id int64) error {
	a := authority{auth: m.auth.Load(), leases: leasesAt{m.spaces[mvcc.SpaceEtcd], m.engine}}
	if f := a.auth.control(&who, policy.LeaseRead, ""); f != nil {
		return f
	}
	return both(a.attached(&who, id, wantRead))
}

// AuthorizeLeaseRenewal returns the fault that keeps who from keeping a lease alive: whoever may not write the keys attached
// to it must not decide how long they live.
func (m *Machine) AuthorizeLeaseRenewal(who policy.Principal, id int64) error {
	a := authority{auth: m.auth.Load(), leases: leasesAt{m.spaces[mvcc.SpaceEtcd], m.engine}}
	if f := a.auth.control(&who, policy.LeaseRenew, ""); f != nil {
		return f
	}
	return both(a.attached(&who, id, wantWrite))
}

// both joins a fault and an error of the storage: a nil *fault.Error must not become a non-nil error.
func both(f *fault.Error, err error) error {
	if err != nil {
		return err
	}
	if f != nil {
		return f
	}
	return nil
}

// leaseKeys lists the keys attached to a lease: of the state as readers see it, or of a batch being applied.
type leaseKeys interface {
	LeaseKeys(id int64) ([][]byte, error)
}

// leasesAt lists from what readers see.
type leasesAt struct {
	space  *mvcc.Space
	reader storage.Reader
}

// LeaseKeys implements leaseKeys.
func (l leasesAt) LeaseKeys(id int64) ([][]byte, error) { return l.space.LeaseKeys(l.reader, id) }

// authority is what a decision about rights rests on.
type authority struct {
	auth   *AuthView
	secure bool
	leases leaseKeys

	catalog catalogRows
}

// request is the choke point.
func (a *authority) request(who *policy.Principal, r Request) (*fault.Error, error) {
	if who.Kind() == policy.Nobody {
		return ErrPermissionDenied, nil
	}
	switch r := r.(type) {
	case *Put:
		return a.put(who, r.Space, r)
	case *Delete:
		return a.delete(who, r.Space, r), nil
	case *Txn:
		return a.txn(who, r.Space, r)
	case *Encrypted:
		if !mustBeEncrypted(r.Request) {
			return ErrPermissionDenied, nil
		}
		return a.request(who, r.Request)
	case *Compact:
		if r.Space == mvcc.SpaceEtcd {
			return a.auth.control(who, policy.CompactSpace, ""), nil
		}
		return insider(who), nil
	case *LeaseGrant:
		return a.auth.control(who, policy.LeaseCreate, ""), nil
	case *LeaseRevoke:
		return a.leaseRevoke(who, r)
	case *AuthChange:
		return a.auth.control(who, policy.AuthAdmin, ""), nil
	case *AlarmChange:
		return a.auth.control(who, policy.AlarmSet, ""), nil
	case *LeaseCheckpoint, *MemberPublish, *RaiseLevel:
		return systemOnly(who), nil
	case *Discovery:
		return a.discovery(who, r)
	default:
		return ErrPermissionDenied, nil
	}
}

// insider admits those who work on the spaces that no client sees.
func insider(who *policy.Principal) *fault.Error {
	if who.IsAdmin() || who.Kind() == policy.Member {
		return nil
	}
	return ErrPermissionDenied
}

func systemOnly(who *policy.Principal) *fault.Error {
	if who.Kind() == policy.System {
		return nil
	}
	return ErrPermissionDenied
}

// keys decides about the keys of span in any space.
func (a *authority) keys(who *policy.Principal, space mvcc.SpaceID, span storage.Span, want right) *fault.Error {
	if who.Kind() == policy.Nobody {
		return ErrPermissionDenied
	}
	if space == mvcc.SpaceEtcd {
		return a.auth.keys(who, span, want)
	}
	return insider(who)
}

// key decides about one key without making a span of it where nobody looks at it.
func (a *authority) key(who *policy.Principal, space mvcc.SpaceID, key []byte, want right) *fault.Error {
	if space == mvcc.SpaceEtcd && a.auth.enabled && !who.IsAdmin() {
		return a.auth.keys(who, storage.KeySpan(key), want)
	}
	return a.keys(who, space, storage.Span{Start: key}, want)
}

func (a *authority) put(who *policy.Principal, space mvcc.SpaceID, p *Put) (*fault.Error, error) {
	if f := a.key(who, space, p.Key, wantWrite); f != nil {
		return f, nil
	}
	if space == mvcc.SpaceCA && !a.secure && bytes.HasPrefix(p.Key, []byte(secretPrefix)) {
		return ErrSecretsRefused, nil
	}
	if p.Lease != 0 && space == mvcc.SpaceEtcd {
		// Who cannot write a key of the lease could not revoke it either, and must not hang more on it.
		if f, err := a.attached(who, p.Lease, wantWrite); f != nil || err != nil {
			return f, err
		}
	}
	if p.PrevKV {
		return a.key(who, space, p.Key, wantRead), nil
	}
	return nil, nil
}

func (a *authority) delete(who *policy.Principal, space mvcc.SpaceID, d *Delete) *fault.Error {
	if f := a.keys(who, space, d.Span, wantWrite); f != nil {
		return f
	}
	if d.PrevKV {
		return a.keys(who, space, d.Span, wantRead)
	}
	return nil
}

func (a *authority) txn(who *policy.Principal, space mvcc.SpaceID, t *Txn) (*fault.Error, error) {
	for i := range t.Compare {
		if f := a.keys(who, space, t.Compare[i].Span, wantRead); f != nil {
			return f, nil
		}
	}
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		for i := range ops {
			if f, err := a.op(who, space, &ops[i]); f != nil || err != nil {
				return f, err
			}
		}
	}
	if len(t.Compare) == 0 && len(t.Success) == 0 && len(t.Failure) == 0 {
		return a.empty(who, space), nil
	}
	return nil, nil
}

// empty decides about a transaction that asks for nothing: its answer still tells the revision.
func (a *authority) empty(who *policy.Principal, space mvcc.SpaceID) *fault.Error {
	if space == mvcc.SpaceEtcd {
		return a.auth.control(who, policy.StatusRead, "")
	}
	return insider(who)
}

func (a *authority) op(who *policy.Principal, space mvcc.SpaceID, op *Op) (*fault.Error, error) {
	// Every field that is set is judged, although Validate refuses two: the order of checks is not what safety rests on.
	if op.Range != nil {
		if f := a.keys(who, space, op.Range.Span, wantRead); f != nil {
			return f, nil
		}
	}
	if op.Put != nil {
		if f, err := a.put(who, space, op.Put); f != nil || err != nil {
			return f, err
		}
	}
	if op.Delete != nil {
		if f := a.delete(who, space, op.Delete); f != nil {
			return f, nil
		}
	}
	if op.Txn != nil {
		return a.txn(who, space, op.Txn)
	}
	return nil, nil
}

func (a *authority) leaseRevoke(who *policy.Principal, r *LeaseRevoke) (*fault.Error, error) {
	if r.Expired {
		return systemOnly(who), nil
	}
	if f := a.auth.control(who, policy.LeaseCreate, ""); f != nil {
		return f, nil
	}
	for _, id := range r.IDs {
		if f, err := a.attached(who, id, wantWrite); f != nil || err != nil {
			return f, err
		}
	}
	return nil, nil
}

// attached decides about every key attached to a lease.
func (a *authority) attached(who *policy.Principal, lease int64, want right) (*fault.Error, error) {
	if !a.auth.enabled || who.IsAdmin() || a.auth.isRoot(who) {
		return nil, nil
	}
	keys, err := a.leases.LeaseKeys(lease)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if f := a.auth.keys(who, storage.KeySpan(key), want); f != nil {
			return f, nil
		}
	}
	return nil, nil
}

func (v *AuthView) isRoot(who *policy.Principal) bool {
	u, f := v.actingUser(who)
	return f == nil && u != nil && u.root && !stale(who, u)
}

// stale reports whether who holds a token from before the user's password was last set, or from before a user of that name
// was made anew.
func stale(who *policy.Principal, u *user) bool { return who.UserRevision() < u.since }

// control decides about an action that is not about keys.
func (v *AuthView) control(who *policy.Principal, action policy.Action, subject string) *fault.Error {
	class := action.Class()
	switch {
	case class == policy.ClassNone || who.Kind() == policy.Nobody:
		return ErrPermissionDenied
	case who.IsAdmin():
		return nil
	case class == policy.ClassOpen:
		if who.Kind() == policy.Holder && !mayActAsUser(who) {
			return ErrPermissionDenied
		}
		return nil
	case who.Kind() == policy.Member:
		if action == policy.MemberList || action == policy.StatusRead || action == policy.AlarmList {
			return nil
		}
		return ErrPermissionDenied
	case !v.enabled:
		return whenAuthOff(who)
	}
	u, f := v.actingUser(who)
	if f != nil {
		return f
	}
	if u == nil {
		return ErrUserNotFound
	}
	if stale(who, u) {
		return ErrAuthOldRevision
	}
	if class == policy.ClassUser || u.root {
		return nil
	}
	if action == policy.UserRead && subject == u.name || action == policy.RoleRead && subject != "" && u.has(subject) {
		return nil
	}
	return ErrPermissionDenied
}
