package core

import (
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

func (m *member) revoke(who policy.Principal, id int64) error {
	_, err := m.LeaseRevoke(m.ctx, who, id)
	return err
}

// TestRevokeNamesItsRevision: the answer to a revocation names the revision at which the keys went, although a write that was
// decided in the same entry, after it, has moved the store on by the time that the answer leaves.
func TestRevokeNamesItsRevision(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.grant(1, 60)
	m.putLease("leased", 1)
	m.loop.set(func() { m.loop.hold = true })
	var revoked, put int64
	revocation := later(t, func() (err error) {
		revoked, err = m.LeaseRevoke(m.ctx, m.anon, 1)
		return err
	})
	until(t, "the revocation is queued", func() bool { return m.proposals.waitingNow() == 1 })
	write := later(t, func() error {
		res, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("other")})
		if err == nil {
			put = res.Revision
		}
		return err
	})
	until(t, "both are queued", func() bool { return m.proposals.waitingNow() == 2 })
	m.loop.release()
	must(t, revocation())
	must(t, write())
	if revoked == 0 || revoked+1 != put {
		t.Errorf("revoked at %d, the put that followed it at %d", revoked, put)
	}
}
