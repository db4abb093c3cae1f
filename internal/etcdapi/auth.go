package etcdapi

import (
	"context"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/state"
)

// authServer is etcd's Auth service.
type authServer struct {
	*API
	pb.UnsafeAuthServer
}

// change asks for one change of the user store.
func (s authServer) change(ctx context.Context, c *state.AuthChange) (*pb.ResponseHeader, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.core.AuthChange(ctx, who, c); err != nil {
		return nil, err
	}
	return s.header().proto(), nil
}

func (s authServer) AuthEnable(ctx context.Context, _ *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.AuthEnable})
	if err != nil {
		return nil, err
	}
	return &pb.AuthEnableResponse{Header: h}, nil
}

func (s authServer) AuthDisable(ctx context.Context, _ *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.AuthDisable})
	if err != nil {
		return nil, err
	}
	return &pb.AuthDisableResponse{Header: h}, nil
}

// AuthStatus asks nobody who they are: in etcd too, everybody may know whether there are users.
func (s authServer) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	enabled, revision, err := s.core.AuthStatus(ctx, s.o.Principal(ctx))
	if err != nil {
		return nil, err
	}
	return &pb.AuthStatusResponse{Header: s.header().proto(), Enabled: enabled, AuthRevision: revision}, nil
}

// Authenticate needs no token, as it makes one.
func (s authServer) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	token, err := s.core.Authenticate(ctx, s.o.Principal(ctx), r.Name, r.Password)
	if err != nil {
		return nil, err
	}
	return &pb.AuthenticateResponse{Header: s.header().proto(), Token: token}, nil
}

func (s authServer) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.core.UserAdd(ctx, who, r.Name, r.Password, r.GetOptions().GetNoPassword()); err != nil {
		return nil, err
	}
	return &pb.AuthUserAddResponse{Header: s.header().proto()}, nil
}

func (s authServer) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	roles, err := s.core.User(ctx, who, r.Name)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGetResponse{Header: s.header().proto(), Roles: roles}, nil
}

func (s authServer) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	users, err := s.core.Users(ctx, who)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserListResponse{Header: s.header().proto(), Users: users}, nil
}

func (s authServer) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.UserDelete, User: r.Name})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserDeleteResponse{Header: h}, nil
}

func (s authServer) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.core.ChangePassword(ctx, who, r.Name, r.Password); err != nil {
		return nil, err
	}
	return &pb.AuthUserChangePasswordResponse{Header: s.header().proto()}, nil
}

func (s authServer) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.UserGrantRole, User: r.User, Role: r.Role})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGrantRoleResponse{Header: h}, nil
}

func (s authServer) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.UserRevokeRole, User: r.Name, Role: r.Role})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserRevokeRoleResponse{Header: h}, nil
}

func (s authServer) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.RoleAdd, Role: r.Name})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleAddResponse{Header: h}, nil
}

func (s authServer) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	perms, err := s.core.Role(ctx, who, r.Role)
	if err != nil {
		return nil, err
	}
	resp := &pb.AuthRoleGetResponse{Header: s.header().proto()}
	for _, p := range perms {
		resp.Perm = append(resp.Perm, permissionProto(p))
	}
	return resp, nil
}

func (s authServer) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	roles, err := s.core.Roles(ctx, who)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleListResponse{Header: s.header().proto(), Roles: roles}, nil
}

func (s authServer) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	h, err := s.change(ctx, &state.AuthChange{Op: state.RoleDelete, Role: r.Role})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleDeleteResponse{Header: h}, nil
}

func (s authServer) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	perm, err := permissionOf(r.Perm)
	if err != nil {
		return nil, err
	}
	h, err := s.change(ctx, &state.AuthChange{Op: state.RoleGrant, Role: r.Name, Permission: perm})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleGrantPermissionResponse{Header: h}, nil
}

func (s authServer) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	perm := state.Permission{Span: spanOf(r.Key, r.RangeEnd)}
	h, err := s.change(ctx, &state.AuthChange{Op: state.RoleRevoke, Role: r.Role, Permission: perm})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, nil
}

// permissionOf returns p on the one kind of range there is below the edge. As in etcd a key without bytes is none, and a
// range without keys is refused.
func permissionOf(p *authpb.Permission) (state.Permission, error) {
	if p == nil {
		return state.Permission{}, rpctypes.ErrGRPCPermissionNotGiven
	}
	perm := state.Permission{Span: spanOf(p.Key, p.RangeEnd)}
	switch p.PermType {
	case authpb.Permission_READ:
		perm.Read = true
	case authpb.Permission_WRITE:
		perm.Write = true
	case authpb.Permission_READWRITE:
		perm.Read, perm.Write = true, true
	default:
		return state.Permission{}, rpctypes.ErrGRPCInvalidAuthMgmt
	}
	if len(p.Key) == 0 || perm.Span.Empty() {
		return state.Permission{}, rpctypes.ErrGRPCInvalidAuthMgmt
	}
	return perm, nil
}

func permissionProto(p state.Permission) *authpb.Permission {
	out := &authpb.Permission{PermType: authpb.Permission_READ}
	out.Key, out.RangeEnd = rangeOf(p.Span)
	switch {
	case p.Read && p.Write:
		out.PermType = authpb.Permission_READWRITE
	case p.Write:
		out.PermType = authpb.Permission_WRITE
	}
	return out
}
