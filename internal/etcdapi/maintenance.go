package etcdapi

import (
	"context"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// maintenanceServer is etcd's Maintenance service.
type maintenanceServer struct {
	*API
	pb.UnsafeMaintenanceServer
}

func (s maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	kind, err := alarmKind(r.Alarm)
	if err != nil {
		return nil, err
	}
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	alarm := state.Alarm{Member: r.MemberID, Kind: kind}
	var alarms []state.Alarm
	switch r.Action {
	case pb.AlarmRequest_GET:
		alarms, err = s.core.Alarms(ctx, who, state.Alarm{Kind: kind}) // etcd lists those of every member, whatever the request says
	case pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE:
		raise := r.Action == pb.AlarmRequest_ACTIVATE
		alarms, err = s.core.ChangeAlarm(ctx, who, state.AlarmChange{Alarm: alarm, Raise: raise})
	default:
		err = status.Error(codes.InvalidArgument, "etcdserver: unknown alarm action")
	}
	if err != nil {
		return nil, err
	}
	resp := &pb.AlarmResponse{Header: s.header().proto()}
	for _, a := range alarms {
		resp.Alarms = append(resp.Alarms, &pb.AlarmMember{MemberID: a.Member, Alarm: alarmType(a.Kind)})
	}
	return resp, nil
}

func alarmKind(t pb.AlarmType) (state.AlarmKind, error) {
	switch t {
	case pb.AlarmType_NONE:
		return state.AlarmNone, nil
	case pb.AlarmType_NOSPACE:
		return state.AlarmNoSpace, nil
	case pb.AlarmType_CORRUPT:
		return state.AlarmCorrupt, nil
	}
	return state.AlarmNone, status.Error(codes.InvalidArgument, "etcdserver: unknown alarm type")
}

func alarmType(k state.AlarmKind) pb.AlarmType {
	switch k {
	case state.AlarmNoSpace:
		return pb.AlarmType_NOSPACE
	case state.AlarmCorrupt:
		return pb.AlarmType_CORRUPT
	}
	return pb.AlarmType_NONE
}

func (s maintenanceServer) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	st, err := s.core.Status(ctx, who)
	if err != nil {
		return nil, err
	}
	h := header{cluster: st.Header.Cluster, member: st.Header.Member, revision: st.Header.Revision, term: st.Header.Term}
	return &pb.StatusResponse{
		Header:           h.proto(),
		Version:          ServerVersion,
		DbSize:           st.DBSize,
		Leader:           st.Leader,
		RaftIndex:        st.RaftIndex,
		RaftTerm:         st.Header.Term,
		RaftAppliedIndex: st.AppliedIndex,
		Errors:           st.Errors,
		DbSizeInUse:      st.DBSizeInUse,
		IsLearner:        st.Learner,
		StorageVersion:   StorageVersion,
		DbSizeQuota:      st.Quota,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}, nil
}

// Defragment and MoveLeader answer without a header, as in etcd.
func (s maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if s.o.NotServingOnDefrag {
		s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		defer s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	}
	if err := s.core.Defragment(ctx, who); err != nil {
		return nil, err
	}
	return &pb.DefragmentResponse{}, nil
}

func (s maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	h, err := s.core.Hash(ctx, who)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: s.headerAt(h.Header.Revision).proto(), Hash: h.Hash}, nil
}

func (s maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	h, err := s.core.HashKV(ctx, who, mvcc.SpaceEtcd, r.Revision)
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header: s.headerAt(h.Header.Revision).proto(), Hash: h.Hash, HashRevision: h.HashRevision, CompactRevision: h.CompactRevision,
	}, nil
}

// Snapshot is refused: what etcd streams here is a bbolt file, which Holdfast does not keep.
func (s maintenanceServer) Snapshot(_ *pb.SnapshotRequest, ss pb.Maintenance_SnapshotServer) error {
	who, err := s.identify(ss.Context())
	if err == nil {
		err = s.core.MaySnapshot(who)
	}
	if err != nil {
		return err
	}
	return status.Error(codes.Unimplemented, "etcdserver: snapshots in etcd's file format are not served by this build;"+
		" back a member up by adding one more, or copy keys with `etcdctl make-mirror`")
}

func (s maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.core.MoveLeader(ctx, who, r.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}

func (s maintenanceServer) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	var action core.DowngradeAction
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE:
		action = core.DowngradeValidate
	case pb.DowngradeRequest_ENABLE:
		action = core.DowngradeEnable
	case pb.DowngradeRequest_CANCEL:
		action = core.DowngradeCancel
	default:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	return nil, s.core.Downgrade(ctx, who, action, r.Version) // always an error: there is no version to go back to
}
