package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"

	"holdfast.dev/holdfast/internal/state"
)

// clusterServer is etcd's Cluster service. Its answers carry no revision.
type clusterServer struct {
	*API
	pb.UnsafeClusterServer
}

func (s clusterServer) noRevision() *pb.ResponseHeader {
	h := s.header()
	h.revision = 0
	return h.proto()
}

// peerURLs returns urls as etcd writes them, sorted.
func peerURLs(urls []string) ([]string, error) {
	parsed, err := types.NewURLs(urls)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	return parsed.StringSlice(), nil
}

func (s clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := peerURLs(r.PeerURLs)
	if err != nil {
		return nil, err
	}
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	added, all, err := s.core.MemberAdd(ctx, who, urls, r.IsLearner)
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: s.noRevision(), Member: memberProto(added), Members: membersProto(all)}, nil
}

func (s clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.core.MemberRemove(ctx, who, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: s.noRevision(), Members: membersProto(all)}, nil
}

func (s clusterServer) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	urls, err := peerURLs(r.PeerURLs)
	if err != nil {
		return nil, err
	}
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.core.MemberUpdate(ctx, who, r.ID, urls)
	if err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: s.noRevision(), Members: membersProto(all)}, nil
}

func (s clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.core.Members(ctx, who, r.Linearizable)
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: s.noRevision(), Members: membersProto(all)}, nil
}

func (s clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.core.MemberPromote(ctx, who, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: s.noRevision(), Members: membersProto(all)}, nil
}

func memberProto(m state.Member) *pb.Member {
	return &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner}
}

func membersProto(ms []state.Member) []*pb.Member {
	out := make([]*pb.Member, len(ms))
	for i, m := range ms {
		out[i] = memberProto(m)
	}
	return out
}
