package core

import (
	"context"
	"crypto/sha256"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// Hashes are a member's checksums over everything it keeps. Members that have applied the same entries have the same.
type Hashes struct {
	Header  Header
	Applied uint64            // the index of the log that All was taken at; 0: entries came in between, so it compares with nothing
	All     [sha256.Size]byte // over the machine's own rows (users, roles, members, alarms …) and what can be read of every space
	Spaces  []HashResult      // in the order of mvcc.Spaces
}

// Hashes returns the checksums of every space, of those that at names at the revision it says, of the others at the newest.
// It is answered without the cluster, and reads everything twice.
func (c *Core) Hashes(ctx context.Context, who policy.Principal, at map[mvcc.SpaceID]int64) (Hashes, error) {
	var h Hashes
	if err := c.checkRunning(ctx); err != nil {
		return h, err
	}
	if err := c.control(who, policy.HashAll, ""); err != nil {
		return h, err
	}
	for space := range at {
		if c.spaceUnknown(space) {
			return h, state.ErrUnknownSpace
		}
	}
	for _, space := range mvcc.Spaces() {
		one, err := c.hashSpace(space, at[space])
		if err != nil {
			return h, err
		}
		h.Spaces = append(h.Spaces, one)
		if space == mvcc.SpaceEtcd {
			h.Header = one.Header
		}
	}
	g := c.acquire()
	defer g.release()
	applied := g.machine.Applied()
	sum, err := g.machine.Hash()
	if err != nil {
		return h, err
	}
	h.All = sum
	if applied == g.machine.Applied() {
		h.Applied = applied
	}
	return h, nil
}
