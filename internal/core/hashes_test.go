package core

import (
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// TestHashesOfSpaces: what is equal has equal checksums; a difference shows in its space, and in
// everything, whichever space it is.
func TestHashesOfSpaces(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, m := range []*member{a, b} {
		m.put("x", "1")
		for _, space := range mvcc.Spaces()[1:] {
			_, err := m.Txn(m.ctx, m.system, &state.Txn{Space: space, Success: []state.Op{{Put: &state.Put{Space: space, Key: []byte("k"), Value: []byte("v")}}}}, false)
			must(t, err)
		}
	}
	ha, err := a.Hashes(a.ctx, a.system, nil)
	must(t, err)
	hb, err := b.Hashes(b.ctx, b.system, map[mvcc.SpaceID]int64{mvcc.SpaceCA: 2})
	must(t, err)
	if len(ha.Spaces) != len(mvcc.Spaces()) || ha.Applied == 0 {
		t.Fatalf("%+v", ha)
	}
	for i, space := range mvcc.Spaces() {
		if ha.Spaces[i].Hash == 0 || ha.Spaces[i].Hash != hb.Spaces[i].Hash || ha.Spaces[i].HashRevision != 2 {
			t.Errorf("space %d: %+v %+v", space, ha.Spaces[i], hb.Spaces[i])
		}
	}
	if again, err := a.Hashes(a.ctx, a.system, nil); err != nil || again.All != ha.All || again.Applied != ha.Applied {
		t.Errorf("everything differs though nothing happened: %v", err)
	}
	_, err = b.Txn(b.ctx, b.system, &state.Txn{Space: mvcc.SpaceCA, Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceCA, Key: []byte("k"), Value: []byte("w")}}}}, false)
	must(t, err)
	now, err := b.Hashes(b.ctx, b.system, nil)
	must(t, err)
	then, err := b.Hashes(b.ctx, b.system, map[mvcc.SpaceID]int64{mvcc.SpaceCA: 2})
	must(t, err)
	for i, space := range mvcc.Spaces() {
		if changed := now.Spaces[i].Hash != ha.Spaces[i].Hash; changed != (space == mvcc.SpaceCA) {
			t.Errorf("space %d after a change of the CA's: changed %v", space, changed)
		}
		if then.Spaces[i].Hash != ha.Spaces[i].Hash {
			t.Errorf("space %d as it was: %+v", space, then.Spaces[i])
		}
	}
	if now.All == hb.All {
		t.Error("everything is as it was after a change")
	}
	_, err = a.Hashes(a.ctx, a.system, map[mvcc.SpaceID]int64{mvcc.SpaceCA: 99})
	want(t, err, mvcc.ErrFutureRevision)
	_, err = a.Hashes(a.ctx, a.system, map[mvcc.SpaceID]int64{9: 1})
	want(t, err, state.ErrUnknownSpace)
}
