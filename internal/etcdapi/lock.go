package etcdapi

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// lockServer is etcd's Lock service: the holder is the head of a queue of the same layout as that of an election.
type lockServer struct {
	*API
	v3lockpb.UnsafeLockServer
}

func (s lockServer) Lock(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	q, err := s.queue(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	key, lease, err := q.place(ctx, r.Lease)
	if err != nil {
		return nil, err
	}
	head := q.oldest()
	res, rev, _, err := q.join(ctx, key, nil, lease, state.Op{Range: &head})
	if err != nil {
		return nil, err
	}
	if owner := res.Results[1].Range.KVs; len(owner) == 0 || owner[0].CreateRevision == rev {
		return &v3lockpb.LockResponse{Header: s.headerAt(res.Revision).proto(), Key: key}, nil
	}
	var page mvcc.Page
	if err = q.awaitTurn(ctx, rev); err == nil {
		page, err = q.read(ctx, mvcc.Query{Span: storage.KeySpan(key)})
	}
	if err != nil {
		if _, left := q.leave(ctx, key, rev); left != nil {
			s.log.Warn("a waiter that gave up could not be taken out; its lease will", "error", left)
		}
		return nil, err
	}
	if len(page.KVs) == 0 {
		return nil, status.Error(codes.Unknown, "mutex: session is expired")
	}
	return &v3lockpb.LockResponse{Header: s.headerAt(page.Revision).proto(), Key: key}, nil
}

func (s lockServer) Unlock(ctx context.Context, r *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	c := deleteRequest{key: r.Key}
	if err := c.check(); err != nil {
		return nil, err
	}
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	res, err := s.core.Delete(ctx, who, c.delete())
	if err != nil {
		return nil, err
	}
	return &v3lockpb.UnlockResponse{Header: s.headerAt(res.Revision).proto()}, nil
}
