package etcdapi

import (
	"context"
	"errors"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/mvccpb"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// electionServer is etcd's Election service. Candidates queue as keys NAME/LEASE, oldest first: the layout of
// clientv3/concurrency, so that programs which use that package take part in the same elections.
type electionServer struct {
	*API
	epb.UnsafeElectionServer
}

// sessionTTL is the lease that etcd grants to a caller who brings none, in seconds. Nobody keeps it alive.
const sessionTTL = 60

// Errors of etcd's own that have no code.
func errNotLeader() error     { return status.Error(codes.Unknown, "election: not leader") }
func errNoElected() error     { return status.Error(codes.Unknown, "election: no leader") }
func errLeaderMissing() error { return status.Error(codes.Unknown, `"leader" field must be provided`) }

// A queue is the keys under one name, for one caller.
type queue struct {
	a      *API
	who    policy.Principal
	prefix []byte // NAME + "/"
}

func (a *API) queue(ctx context.Context, name []byte) (queue, error) {
	who, err := a.identify(ctx)
	return queue{a: a, who: who, prefix: append(append([]byte(nil), name...), '/')}, err
}

func (q queue) span() storage.Span { return storage.Span{Start: q.prefix, End: prefixEnd(q.prefix)} }

// prefixEnd returns the end of the span of the keys that start with prefix, which is not empty and ends in '/'.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

// place returns the caller's key, granting a lease if it has none.
func (q queue) place(ctx context.Context, lease int64) (key []byte, id int64, err error) {
	if lease == 0 {
		if lease, _, err = q.a.core.LeaseGrant(ctx, q.who, 0, sessionTTL); err != nil {
			return nil, 0, err
		}
	}
	return strconv.AppendInt(append([]byte(nil), q.prefix...), lease, 16), lease, nil
}

// oldest is the read that finds who is at the head.
func (q queue) oldest() mvcc.Query {
	return mvcc.Query{Span: q.span(), Target: mvcc.SortByCreate, Order: mvcc.SortAscend, Limit: 1}
}

func absent(key []byte) []state.Compare {
	return []state.Compare{{Span: storage.KeySpan(key), Target: state.CompareCreate}}
}

func createdAt(key []byte, rev int64) []state.Compare {
	return []state.Compare{{Span: storage.KeySpan(key), Target: state.CompareCreate, Number: rev}}
}

func readKey(key []byte) state.Op { return state.Op{Range: &mvcc.Query{Span: storage.KeySpan(key)}} }

func (q queue) txn(ctx context.Context, cmp []state.Compare, then, otherwise []state.Op) (*state.TxnResult, error) {
	return q.a.core.Txn(ctx, q.who, &state.Txn{Space: mvcc.SpaceEtcd, Compare: cmp, Success: then, Failure: otherwise}, false)
}

func (q queue) read(ctx context.Context, query mvcc.Query) (mvcc.Page, error) {
	return q.a.core.Range(ctx, q.who, core.RangeRequest{Space: mvcc.SpaceEtcd, Query: query})
}

// join puts the caller's key into the queue unless it is there. It returns the revision at which it was created, and the
// value it has if it had been there.
func (q queue) join(ctx context.Context, key, value []byte, lease int64, also ...state.Op) (res *state.TxnResult, rev int64, had *mvcc.KV, err error) {
	put := state.Op{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: key, Value: value, Lease: lease}}
	res, err = q.txn(ctx, absent(key), append([]state.Op{put}, also...), append([]state.Op{readKey(key)}, also...))
	if err != nil {
		return nil, 0, nil, err
	}
	if res.Succeeded {
		return res, res.Revision, nil, nil
	}
	had = &res.Results[0].Range.KVs[0]
	return res, had.CreateRevision, had, nil
}

// awaitTurn returns when every key of the queue that was created before rev is gone.
func (q queue) awaitTurn(ctx context.Context, rev int64) error {
	before := mvcc.Query{Span: q.span(), Target: mvcc.SortByCreate, Order: mvcc.SortDescend, Limit: 1, MaxCreateRevision: rev - 1}
	for {
		page, err := q.read(ctx, before)
		if err != nil || len(page.KVs) == 0 {
			return err
		}
		if err := q.awaitDelete(ctx, page.KVs[0].Key, page.Revision+1); err != nil {
			return err
		}
	}
}

func (q queue) awaitDelete(ctx context.Context, key []byte, from int64) error {
	w := core.WatchRequest{Span: storage.KeySpan(key), StartRevision: from, NoPut: true}
	return q.follow(ctx, w, func(*core.SharedEvent) (bool, error) { return true, nil })
}

// follow calls each with the events of a watch until it says that it is done.
func (q queue) follow(ctx context.Context, r core.WatchRequest, each func(*core.SharedEvent) (done bool, err error)) error {
	stream := q.a.core.NewWatchStream(q.who, mvcc.SpaceEtcd)
	defer stream.Close()
	if _, err := stream.Watch(r); err != nil {
		return err
	}
	for {
		m, err := stream.Recv(ctx)
		if err != nil {
			return err
		}
		if m.Kind == core.WatchCanceled {
			return m.Reason
		}
		for _, e := range m.Events {
			if done, err := each(e); done || err != nil {
				return err
			}
		}
	}
}

// leave deletes the caller's key if it still is the one created at rev. It is also called when the caller has given up,
// so it does not depend on the caller's context.
func (q queue) leave(ctx context.Context, key []byte, rev int64) (*state.TxnResult, error) {
	del := state.Op{Delete: &state.Delete{Space: mvcc.SpaceEtcd, Span: storage.KeySpan(key)}}
	return q.txn(context.WithoutCancel(ctx), createdAt(key, rev), []state.Op{del}, nil)
}

// proclaim writes value if the key still is the one created at rev.
func (q queue) proclaim(ctx context.Context, leader *epb.LeaderKey, value []byte) (*state.TxnResult, error) {
	put := state.Op{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: leader.Key, Value: value, Lease: leader.Lease}}
	res, err := q.txn(ctx, createdAt(leader.Key, leader.Rev), []state.Op{put}, nil)
	if err == nil && !res.Succeeded {
		err = errNotLeader()
	}
	return res, err
}

func (s electionServer) Campaign(ctx context.Context, r *epb.CampaignRequest) (*epb.CampaignResponse, error) {
	q, err := s.queue(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	key, lease, err := q.place(ctx, r.Lease)
	if err != nil {
		return nil, err
	}
	res, rev, had, err := q.join(ctx, key, r.Value, lease)
	if err != nil {
		return nil, err
	}
	leader := &epb.LeaderKey{Name: r.Name, Key: key, Rev: rev, Lease: lease}
	if had != nil && string(had.Value) != string(r.Value) {
		_, err = q.proclaim(ctx, leader, r.Value)
	}
	if err == nil {
		err = q.awaitTurn(ctx, rev)
	}
	if err != nil {
		if _, left := q.leave(ctx, key, rev); left != nil {
			s.log.Warn("a candidate that gave up could not be taken out; its lease will", "error", left)
		}
		return nil, err
	}
	return &epb.CampaignResponse{Header: s.headerAt(res.Revision).proto(), Leader: leader}, nil
}

func (s electionServer) Proclaim(ctx context.Context, r *epb.ProclaimRequest) (*epb.ProclaimResponse, error) {
	if r.Leader == nil {
		return nil, errLeaderMissing()
	}
	q, err := s.queue(ctx, r.Leader.Name)
	if err != nil {
		return nil, err
	}
	res, err := q.proclaim(ctx, r.Leader, r.Value)
	if err != nil {
		return nil, err
	}
	return &epb.ProclaimResponse{Header: s.headerAt(res.Revision).proto()}, nil
}

func (s electionServer) Leader(ctx context.Context, r *epb.LeaderRequest) (*epb.LeaderResponse, error) {
	q, err := s.queue(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	page, err := q.read(ctx, q.oldest())
	if err != nil {
		return nil, err
	}
	if len(page.KVs) == 0 {
		return nil, errNoElected()
	}
	return &epb.LeaderResponse{Header: s.headerAt(page.Revision).proto(), Kv: kvProto(&page.KVs[0])}, nil
}

func (s electionServer) Resign(ctx context.Context, r *epb.ResignRequest) (*epb.ResignResponse, error) {
	if r.Leader == nil {
		return nil, errLeaderMissing()
	}
	q, err := s.queue(ctx, r.Leader.Name)
	if err != nil {
		return nil, err
	}
	res, err := q.leave(ctx, r.Leader.Key, r.Leader.Rev)
	if err != nil {
		return nil, err
	}
	return &epb.ResignResponse{Header: s.headerAt(res.Revision).proto()}, nil
}

// Observe sends the head of the queue, each of its values, and then the next head.
func (s electionServer) Observe(r *epb.LeaderRequest, ss epb.Election_ObserveServer) error {
	ctx := ss.Context()
	q, err := s.queue(ctx, r.Name)
	if err != nil {
		return err
	}
	for {
		page, err := q.read(ctx, q.oldest())
		if err != nil {
			return err
		}
		if len(page.KVs) > 0 {
			err = s.observeLeader(ctx, q, ss, page)
		} else {
			w := core.WatchRequest{Span: q.span(), StartRevision: page.Revision + 1, NoDelete: true}
			err = q.follow(ctx, w, func(*core.SharedEvent) (bool, error) { return true, nil })
		}
		if errors.Is(err, mvcc.ErrCompacted) {
			continue // read again where it stands
		}
		if err != nil {
			return err
		}
	}
}

// observeLeader sends the leader that page holds and its proclamations until its key is deleted.
func (s electionServer) observeLeader(ctx context.Context, q queue, ss epb.Election_ObserveServer, page mvcc.Page) error {
	leader := &page.KVs[0]
	send := func(kv *mvcc.KV, revision int64) error {
		return ss.Send(&epb.LeaderResponse{Header: s.headerAt(revision).proto(), Kv: kvProto(kv)})
	}
	if err := send(leader, page.Revision); err != nil {
		return err
	}
	w := core.WatchRequest{Span: storage.KeySpan(leader.Key), StartRevision: page.Revision + 1}
	return q.follow(ctx, w, func(e *core.SharedEvent) (bool, error) {
		if e.Type == mvcc.EventDelete {
			return true, nil
		}
		return false, send(&e.KV, e.KV.ModRevision)
	})
}

func kvProto(kv *mvcc.KV) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
		Version: kv.Version, Lease: kv.Lease}
}
