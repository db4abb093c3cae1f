package etcdapi

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
)

// leaseServer is etcd's Lease service.
type leaseServer struct {
	*API
	pb.UnsafeLeaseServer
}

func (s leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	id, ttl, err := s.core.LeaseGrant(ctx, who, r.ID, r.TTL)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: s.header().proto(), ID: id, TTL: ttl}, nil
}

func (s leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	revision, err := s.core.LeaseRevoke(ctx, who, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: s.headerAt(revision).proto()}, nil
}

// LeaseKeepAlive renews each lease that it is sent the id of, one after the other. It ends when the client has no more.
func (s leaseServer) LeaseKeepAlive(ss pb.Lease_LeaseKeepAliveServer) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	ended := s.receive("/etcdserverpb.Lease/LeaseKeepAlive", func() error { return s.renewals(ctx, ss) })
	select {
	case err := <-ended:
		return err
	case <-s.leaderLost(ctx):
		return rpctypes.ErrGRPCNoLeader
	case <-ctx.Done():
		return streamEnd(ctx)
	}
}

func (s leaseServer) renewals(ctx context.Context, ss pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := ss.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		who, err := s.identify(ctx)
		if err != nil {
			return err
		}
		// The header is taken first: a client must not see a revision at which the lease may be gone already.
		h := s.header()
		ttl, err := s.core.LeaseRenew(ctx, who, r.ID)
		if errors.Is(err, mvcc.ErrLeaseNotFound) {
			ttl, err = 0, nil
		}
		if err != nil {
			return err
		}
		if err := ss.Send(&pb.LeaseKeepAliveResponse{Header: h.proto(), ID: r.ID, TTL: ttl}); err != nil {
			return err
		}
	}
}

func (s leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	info, err := s.core.LeaseInfo(ctx, who, r.ID, r.Keys)
	if errors.Is(err, mvcc.ErrLeaseNotFound) {
		info, err = core.LeaseInfo{TTL: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header().proto(), ID: r.ID, TTL: info.TTL}
	if info.TTL >= 0 {
		resp.GrantedTTL, resp.Keys = info.Granted, info.Keys
	}
	return resp, nil
}

func (s leaseServer) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := s.core.Leases(ctx, who)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Header: s.header().proto(), Leases: make([]*pb.LeaseStatus, len(ids))}
	for i, id := range ids {
		resp.Leases[i] = &pb.LeaseStatus{ID: id}
	}
	return resp, nil
}
