package etcdapi

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

func TestLoggedRequests(t *testing.T) {
	t.Parallel()
	key := func(k string) storage.Span { return storage.KeySpan([]byte(k)) }
	txn := &state.Txn{
		Space: mvcc.SpaceEtcd,
		Compare: []state.Compare{
			{Span: key("a"), Target: state.CompareMod, Result: state.CompareNotEqual, Number: 7},
			{Span: storage.Span{Start: []byte("b")}, Target: state.CompareValue, Result: state.CompareLess, Value: []byte("v")},
		},
		Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a"), Value: []byte("1"), Lease: 3}}, {Delete: &state.Delete{Space: mvcc.SpaceEtcd, Span: storage.Span{Start: []byte("p"), End: []byte("q")}}}},
		Failure: []state.Op{{Range: &mvcc.Query{Span: key("a"), Limit: 5, KeysOnly: true, Target: mvcc.SortByMod, Order: mvcc.SortDescend}}, {Txn: &state.Txn{}}},
	}
	wantTxn := &pb.TxnRequest{
		Compare: []*pb.Compare{
			{Key: []byte("a"), Target: pb.Compare_MOD, Result: pb.Compare_NOT_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: 7}},
			{Key: []byte("b"), RangeEnd: []byte{0}, Target: pb.Compare_VALUE, Result: pb.Compare_LESS, TargetUnion: &pb.Compare_Value{Value: []byte("v")}},
		},
		Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Value: []byte("1"), Lease: 3}}},
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("p"), RangeEnd: []byte("q")}}},
		},
		Failure: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), Limit: 5, KeysOnly: true, SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_DESCEND}}},
			{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}},
		},
	}
	cases := []struct {
		name string
		in   state.Request
		want []*pb.InternalRaftRequest
	}{
		{"put", &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("k"), Value: []byte("v"), PrevKV: true}, []*pb.InternalRaftRequest{{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), PrevKv: true}}}},
		{"encrypted put", &state.Encrypted{Request: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("k")}}, []*pb.InternalRaftRequest{{Put: &pb.PutRequest{Key: []byte("k")}}}},
		{"put of another space", &state.Put{Space: mvcc.SpaceCA, Key: []byte("k")}, nil},
		{"delete", &state.Delete{Space: mvcc.SpaceEtcd, Span: key("k")}, []*pb.InternalRaftRequest{{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}}}},
		{"txn", txn, []*pb.InternalRaftRequest{{Txn: wantTxn}}},
		{"txn of another space", &state.Txn{Space: mvcc.SpaceCA}, nil},
		{"compact", &state.Compact{Space: mvcc.SpaceEtcd, Revision: 9}, []*pb.InternalRaftRequest{{Compaction: &pb.CompactionRequest{Revision: 9}}}},
		{"compaction of another space", &state.Compact{Space: mvcc.SpaceConsulKV, Revision: 9}, nil},
		{"grant", &state.LeaseGrant{ID: 4, TTL: 60}, []*pb.InternalRaftRequest{{LeaseGrant: &pb.LeaseGrantRequest{ID: 4, TTL: 60}}}},
		{"revoke two", &state.LeaseRevoke{IDs: []int64{4, 5}}, []*pb.InternalRaftRequest{{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 4}}, {LeaseRevoke: &pb.LeaseRevokeRequest{ID: 5}}}},
		{"checkpoint", &state.LeaseCheckpoint{Remaining: map[int64]int64{4: 1}}, nil},
		{"users", &state.AuthChange{Op: state.UserAdd, User: "u"}, nil},
	}
	for _, c := range cases {
		got, err := LoggedRequests(c.in)
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%s: %d requests, %v; want %d", c.name, len(got), err, len(c.want))
			continue
		}
		for i, b := range got {
			m := &pb.InternalRaftRequest{}
			if err := proto.Unmarshal(b, m); err != nil || !proto.Equal(m, c.want[i]) {
				t.Errorf("%s: %v, %v; want %v", c.name, m, err, c.want[i])
			}
		}
	}
	if _, err := LoggedRequests(&state.Txn{Space: mvcc.SpaceEtcd, Success: []state.Op{{}}}); err == nil {
		t.Error("an empty operation is taken")
	}
}
