package state

import (
	"maps"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
)

func (a *application) leaseGrant(r *LeaseGrant) (any, *fault.Error, error) {
	ttl := max(r.TTL, 1) // core raises it to what an election takes
	if err := a.writer(mvcc.SpaceEtcd).GrantLease(r.ID, ttl); err != nil {
		f, err := refusal(err)
		return nil, f, err
	}
	a.leaseEffect(LeaseGranted, r.ID, ttl)
	return &LeaseResult{ID: r.ID, TTL: ttl}, nil, nil
}

func (a *application) leaseEffect(op LeaseOp, id, ttl int64) {
	a.out.Effects.Leases = append(a.out.Effects.Leases, LeaseEffect{Op: op, ID: id, TTL: ttl})
}

// leaseRevoke removes leases with their keys, one revision for each lease that held any. Unless they are said to have
// expired, all of them must exist.
func (a *application) leaseRevoke(r *LeaseRevoke) (any, *fault.Error, error) {
	w := a.writer(mvcc.SpaceEtcd)
	present := make([]int64, 0, len(r.IDs))
	var seen map[int64]struct{}
	if len(r.IDs) > 1 {
		seen = make(map[int64]struct{}, len(r.IDs))
	}
	for _, id := range r.IDs {
		_, ok, err := w.Lease(id)
		if err != nil {
			return nil, nil, err
		}
		_, repeated := seen[id]
		if seen != nil {
			seen[id] = struct{}{}
		}
		switch {
		case ok && !repeated:
			present = append(present, id)
		case !ok && !r.Expired:
			return nil, mvcc.ErrLeaseNotFound, nil
		}
	}
	result := &RevokeResult{Leases: len(present)}
	for _, id := range present {
		w.Begin()
		deleted, err := w.RevokeLease(id)
		w.End()
		if err != nil {
			return nil, nil, err
		}
		result.Keys += deleted
		a.leaseEffect(LeaseRevoked, id, 0)
	}
	result.Revision = w.Revision()
	return result, nil, nil
}

// leaseCheckpoint records what leases have left; those that are gone are skipped.
func (a *application) leaseCheckpoint(r *LeaseCheckpoint) (any, *fault.Error, error) {
	w := a.writer(mvcc.SpaceEtcd)
	result := &RevokeResult{}
	for _, id := range slices.Sorted(maps.Keys(r.Remaining)) {
		lease, ok, err := w.Lease(id)
		if err != nil {
			return nil, nil, err
		}
		remaining := r.Remaining[id]
		if !ok || remaining <= 0 || remaining > lease.TTL {
			continue
		}
		if err := w.CheckpointLease(id, remaining); err != nil {
			return nil, nil, err
		}
		result.Leases++
		a.leaseEffect(LeaseCheckpointed, id, remaining)
	}
	result.Revision = w.Revision()
	return result, nil, nil
}
