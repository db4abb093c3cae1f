package etcdapi

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// LoggedRequests returns what an etcd would have in its log for a request of ours: encoded InternalRaftRequests, one for each
// thing that is applied by itself. There are none for what is not a request to the store of etcd clients: other spaces,
// users and alarms, members, checkpoints of leases. An encrypted write is given as the log has it, with ciphertext.
func LoggedRequests(r state.Request) ([][]byte, error) {
	var out []*pb.InternalRaftRequest
	switch r := r.(type) {
	case *state.Encrypted:
		return LoggedRequests(r.Request)
	case *state.Put:
		if r.Space == mvcc.SpaceEtcd {
			out = append(out, &pb.InternalRaftRequest{Put: loggedPut(r)})
		}
	case *state.Delete:
		if r.Space == mvcc.SpaceEtcd {
			out = append(out, &pb.InternalRaftRequest{DeleteRange: loggedDelete(r)})
		}
	case *state.Txn:
		if r.Space == mvcc.SpaceEtcd {
			t, err := loggedTxn(r)
			if err != nil {
				return nil, err
			}
			out = append(out, &pb.InternalRaftRequest{Txn: t})
		}
	case *state.Compact:
		if r.Space == mvcc.SpaceEtcd {
			out = append(out, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: r.Revision}})
		}
	case *state.LeaseGrant:
		out = append(out, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: r.ID, TTL: r.TTL}})
	case *state.LeaseRevoke:
		for _, id := range r.IDs {
			out = append(out, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
		}
	}
	encoded := make([][]byte, len(out))
	for i, m := range out {
		var err error
		if encoded[i], err = (proto.MarshalOptions{Deterministic: true}).Marshal(m); err != nil {
			return nil, fmt.Errorf("encode a request: %w", err)
		}
	}
	return encoded, nil
}

func loggedPut(r *state.Put) *pb.PutRequest {
	return &pb.PutRequest{Key: r.Key, Value: r.Value, Lease: r.Lease, PrevKv: r.PrevKV, IgnoreValue: r.IgnoreValue, IgnoreLease: r.IgnoreLease}
}

func loggedDelete(r *state.Delete) *pb.DeleteRangeRequest {
	key, end := rangeOf(r.Span)
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: r.PrevKV}
}

func loggedTxn(r *state.Txn) (*pb.TxnRequest, error) {
	t := &pb.TxnRequest{}
	for i := range r.Compare {
		c, err := loggedCompare(&r.Compare[i])
		if err != nil {
			return nil, err
		}
		t.Compare = append(t.Compare, c)
	}
	var err error
	if t.Success, err = loggedOps(r.Success); err == nil {
		t.Failure, err = loggedOps(r.Failure)
	}
	return t, err
}

func loggedOps(ops []state.Op) ([]*pb.RequestOp, error) {
	var out []*pb.RequestOp
	for _, op := range ops {
		o := &pb.RequestOp{}
		switch {
		case op.Range != nil:
			q := op.Range
			key, end := rangeOf(q.Span)
			o.Request = &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{
				Key: key, RangeEnd: end, Limit: q.Limit, Revision: q.Revision, KeysOnly: q.KeysOnly, CountOnly: q.CountOnly,
				SortTarget: pb.RangeRequest_SortTarget(q.Target), SortOrder: pb.RangeRequest_SortOrder(q.Order),
				MinModRevision: q.MinModRevision, MaxModRevision: q.MaxModRevision,
				MinCreateRevision: q.MinCreateRevision, MaxCreateRevision: q.MaxCreateRevision,
			}}
		case op.Put != nil:
			o.Request = &pb.RequestOp_RequestPut{RequestPut: loggedPut(op.Put)}
		case op.Delete != nil:
			o.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: loggedDelete(op.Delete)}
		case op.Txn != nil:
			t, err := loggedTxn(op.Txn)
			if err != nil {
				return nil, err
			}
			o.Request = &pb.RequestOp_RequestTxn{RequestTxn: t}
		default:
			return nil, fmt.Errorf("an operation of a transaction is empty")
		}
		out = append(out, o)
	}
	return out, nil
}

func loggedCompare(c *state.Compare) (*pb.Compare, error) {
	key, end := rangeOf(c.Span)
	out := &pb.Compare{Key: key, RangeEnd: end, Result: pb.Compare_CompareResult(c.Result)}
	switch c.Target {
	case state.CompareVersion:
		out.Target, out.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: c.Number}
	case state.CompareCreate:
		out.Target, out.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: c.Number}
	case state.CompareMod:
		out.Target, out.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: c.Number}
	case state.CompareValue:
		out.Target, out.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: c.Value}
	case state.CompareLease:
		out.Target, out.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{Lease: c.Number}
	default:
		return nil, fmt.Errorf("comparison of target %d", c.Target)
	}
	return out, nil
}
