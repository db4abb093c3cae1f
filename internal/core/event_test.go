package core

import (
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// TestPrevOfAKeyWrittenTwice: a transaction may put a key and delete everything from a key on. As in etcd both events show
// what there was at the revision before.
func TestPrevOfAKeyWrittenTwice(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	put := func(key, value string) *state.Put {
		return &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Value: []byte(value)}
	}
	for _, key := range []string{"b", "other"} { // so that the old version is not of the last revision
		_, err := m.Put(m.ctx, m.anon, put(key, "old"))
		must(t, err)
	}
	s := m.NewWatchStream(m.anon, mvcc.SpaceEtcd)
	defer s.Close()
	_, err := s.Watch(WatchRequest{Span: storage.Span{Start: []byte("a")}, PrevKV: true})
	must(t, err)
	_, err = m.Txn(m.ctx, m.anon, &state.Txn{Space: mvcc.SpaceEtcd, Success: []state.Op{
		{Put: put("b", "new")}, {Put: put("c", "made and gone")},
		{Delete: &state.Delete{Space: mvcc.SpaceEtcd, Span: storage.Span{Start: []byte("a")}}},
	}}, false)
	must(t, err)
	got, err := s.Recv(m.ctx)
	must(t, err)
	want := []string{"old", "", "old", "", "old"}
	if len(got.Events) != len(want) {
		t.Fatalf("%d events", len(got.Events))
	}
	for i, e := range got.Events {
		prev, err := e.Prev()
		must(t, err)
		if value := ""; prev != nil && string(prev.Value) != want[i] || prev == nil && want[i] != value {
			t.Errorf("event %d of %q: %v before it, want %q", i, e.KV.Key, prev, want[i])
		}
	}
}
