package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// A Case is one request by one caller. Revisions in it are relative: 0 is none, -1 the present one, -2 the one before,
// 1 and up so many ahead. So a case means the same after others before it were left out.
type Case struct {
	Cert    string // name of the certificate; empty: none
	Token   string // USER: its newest token, got now if it has none that lives; USER~: one that has ended; ?: garbage
	Gateway bool   // over JSON
	Keep    bool   // a watch that stays open
	Method  string
	Req     proto.Message
}

// kind is how a method is called.
type kind struct {
	service, method, path string
	req, resp             func() proto.Message
	streams               bool // the answer is a stream
}

func of[Req, Resp any, PReq interface {
	*Req
	proto.Message
}, PResp interface {
	*Resp
	proto.Message
}](service, method, path string) kind {
	return kind{service, method, path, func() proto.Message { return PReq(new(Req)) }, func() proto.Message { return PResp(new(Resp)) }, false}
}

func streaming(k kind) kind { k.streams = true; return k }

// kinds are all methods of etcd's API. Those of locks and elections carry their fields in a PutRequest: key is the name or
// the key, value and lease are theirs.
var kinds = map[string]kind{
	"range":   of[etcdserverpb.RangeRequest, etcdserverpb.RangeResponse]("etcdserverpb.KV", "Range", "kv/range"),
	"stream":  streaming(of[etcdserverpb.RangeRequest, etcdserverpb.RangeStreamResponse]("etcdserverpb.KV", "RangeStream", "")),
	"put":     of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("etcdserverpb.KV", "Put", "kv/put"),
	"delete":  of[etcdserverpb.DeleteRangeRequest, etcdserverpb.DeleteRangeResponse]("etcdserverpb.KV", "DeleteRange", "kv/deleterange"),
	"txn":     of[etcdserverpb.TxnRequest, etcdserverpb.TxnResponse]("etcdserverpb.KV", "Txn", "kv/txn"),
	"compact": of[etcdserverpb.CompactionRequest, etcdserverpb.CompactionResponse]("etcdserverpb.KV", "Compact", "kv/compaction"),

	"watch": streaming(of[etcdserverpb.WatchCreateRequest, etcdserverpb.WatchResponse]("etcdserverpb.Watch", "Watch", "watch")),

	"grant":     of[etcdserverpb.LeaseGrantRequest, etcdserverpb.LeaseGrantResponse]("etcdserverpb.Lease", "LeaseGrant", "lease/grant"),
	"revoke":    of[etcdserverpb.LeaseRevokeRequest, etcdserverpb.LeaseRevokeResponse]("etcdserverpb.Lease", "LeaseRevoke", "lease/revoke"),
	"keepalive": streaming(of[etcdserverpb.LeaseKeepAliveRequest, etcdserverpb.LeaseKeepAliveResponse]("etcdserverpb.Lease", "LeaseKeepAlive", "lease/keepalive")),
	"ttl":       of[etcdserverpb.LeaseTimeToLiveRequest, etcdserverpb.LeaseTimeToLiveResponse]("etcdserverpb.Lease", "LeaseTimeToLive", "lease/timetolive"),
	"leases":    of[etcdserverpb.LeaseLeasesRequest, etcdserverpb.LeaseLeasesResponse]("etcdserverpb.Lease", "LeaseLeases", "lease/leases"),

	"member.add":     of[etcdserverpb.MemberAddRequest, etcdserverpb.MemberAddResponse]("etcdserverpb.Cluster", "MemberAdd", "cluster/member/add"),
	"member.remove":  of[etcdserverpb.MemberRemoveRequest, etcdserverpb.MemberRemoveResponse]("etcdserverpb.Cluster", "MemberRemove", "cluster/member/remove"),
	"member.update":  of[etcdserverpb.MemberUpdateRequest, etcdserverpb.MemberUpdateResponse]("etcdserverpb.Cluster", "MemberUpdate", "cluster/member/update"),
	"member.promote": of[etcdserverpb.MemberPromoteRequest, etcdserverpb.MemberPromoteResponse]("etcdserverpb.Cluster", "MemberPromote", "cluster/member/promote"),
	"member.list":    of[etcdserverpb.MemberListRequest, etcdserverpb.MemberListResponse]("etcdserverpb.Cluster", "MemberList", "cluster/member/list"),

	"alarm":      of[etcdserverpb.AlarmRequest, etcdserverpb.AlarmResponse]("etcdserverpb.Maintenance", "Alarm", "maintenance/alarm"),
	"status":     of[etcdserverpb.StatusRequest, etcdserverpb.StatusResponse]("etcdserverpb.Maintenance", "Status", "maintenance/status"),
	"defragment": of[etcdserverpb.DefragmentRequest, etcdserverpb.DefragmentResponse]("etcdserverpb.Maintenance", "Defragment", "maintenance/defragment"),
	"hash":       of[etcdserverpb.HashRequest, etcdserverpb.HashResponse]("etcdserverpb.Maintenance", "Hash", "maintenance/hash"),
	"hashkv":     of[etcdserverpb.HashKVRequest, etcdserverpb.HashKVResponse]("etcdserverpb.Maintenance", "HashKV", "maintenance/hashkv"),
	"snapshot":   streaming(of[etcdserverpb.SnapshotRequest, etcdserverpb.SnapshotResponse]("etcdserverpb.Maintenance", "Snapshot", "maintenance/snapshot")),
	"moveleader": of[etcdserverpb.MoveLeaderRequest, etcdserverpb.MoveLeaderResponse]("etcdserverpb.Maintenance", "MoveLeader", "maintenance/transfer-leadership"),
	"downgrade":  of[etcdserverpb.DowngradeRequest, etcdserverpb.DowngradeResponse]("etcdserverpb.Maintenance", "Downgrade", "maintenance/downgrade"),

	"auth.enable":  of[etcdserverpb.AuthEnableRequest, etcdserverpb.AuthEnableResponse]("etcdserverpb.Auth", "AuthEnable", "auth/enable"),
	"auth.disable": of[etcdserverpb.AuthDisableRequest, etcdserverpb.AuthDisableResponse]("etcdserverpb.Auth", "AuthDisable", "auth/disable"),
	"auth.status":  of[etcdserverpb.AuthStatusRequest, etcdserverpb.AuthStatusResponse]("etcdserverpb.Auth", "AuthStatus", "auth/status"),
	"login":        of[etcdserverpb.AuthenticateRequest, etcdserverpb.AuthenticateResponse]("etcdserverpb.Auth", "Authenticate", "auth/authenticate"),
	"user.add":     of[etcdserverpb.AuthUserAddRequest, etcdserverpb.AuthUserAddResponse]("etcdserverpb.Auth", "UserAdd", "auth/user/add"),
	"user.get":     of[etcdserverpb.AuthUserGetRequest, etcdserverpb.AuthUserGetResponse]("etcdserverpb.Auth", "UserGet", "auth/user/get"),
	"user.list":    of[etcdserverpb.AuthUserListRequest, etcdserverpb.AuthUserListResponse]("etcdserverpb.Auth", "UserList", "auth/user/list"),
	"user.delete":  of[etcdserverpb.AuthUserDeleteRequest, etcdserverpb.AuthUserDeleteResponse]("etcdserverpb.Auth", "UserDelete", "auth/user/delete"),
	"user.passwd":  of[etcdserverpb.AuthUserChangePasswordRequest, etcdserverpb.AuthUserChangePasswordResponse]("etcdserverpb.Auth", "UserChangePassword", "auth/user/changepw"),
	"user.grant":   of[etcdserverpb.AuthUserGrantRoleRequest, etcdserverpb.AuthUserGrantRoleResponse]("etcdserverpb.Auth", "UserGrantRole", "auth/user/grant"),
	"user.revoke":  of[etcdserverpb.AuthUserRevokeRoleRequest, etcdserverpb.AuthUserRevokeRoleResponse]("etcdserverpb.Auth", "UserRevokeRole", "auth/user/revoke"),
	"role.add":     of[etcdserverpb.AuthRoleAddRequest, etcdserverpb.AuthRoleAddResponse]("etcdserverpb.Auth", "RoleAdd", "auth/role/add"),
	"role.get":     of[etcdserverpb.AuthRoleGetRequest, etcdserverpb.AuthRoleGetResponse]("etcdserverpb.Auth", "RoleGet", "auth/role/get"),
	"role.list":    of[etcdserverpb.AuthRoleListRequest, etcdserverpb.AuthRoleListResponse]("etcdserverpb.Auth", "RoleList", "auth/role/list"),
	"role.delete":  of[etcdserverpb.AuthRoleDeleteRequest, etcdserverpb.AuthRoleDeleteResponse]("etcdserverpb.Auth", "RoleDelete", "auth/role/delete"),
	"role.grant":   of[etcdserverpb.AuthRoleGrantPermissionRequest, etcdserverpb.AuthRoleGrantPermissionResponse]("etcdserverpb.Auth", "RoleGrantPermission", "auth/role/grant"),
	"role.revoke":  of[etcdserverpb.AuthRoleRevokePermissionRequest, etcdserverpb.AuthRoleRevokePermissionResponse]("etcdserverpb.Auth", "RoleRevokePermission", "auth/role/revoke"),

	"lock":     of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3lockpb.Lock", "Lock", "lock/lock"),
	"unlock":   of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3lockpb.Lock", "Unlock", "lock/unlock"),
	"campaign": of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3electionpb.Election", "Campaign", "election/campaign"),
	"proclaim": of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3electionpb.Election", "Proclaim", "election/proclaim"),
	"leader":   of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3electionpb.Election", "Leader", "election/leader"),
	"observe":  streaming(of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3electionpb.Election", "Observe", "election/observe")),
	"resign":   of[etcdserverpb.PutRequest, etcdserverpb.PutResponse]("v3electionpb.Election", "Resign", "election/resign"),
}

// queued reports whether a method is one of locks and elections.
func (k kind) queued() bool { return strings.HasPrefix(k.service, "v3") }

func (k kind) full() string { return "/" + k.service + "/" + k.method }

type caseJSON struct {
	Cert, Token   string          `json:",omitempty"`
	Gateway, Keep bool            `json:",omitempty"`
	Method        string          //
	Req           json.RawMessage `json:",omitempty"`
}

// MarshalJSON writes a case on one line.
func (c Case) MarshalJSON() ([]byte, error) {
	req, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c.Req)
	if err != nil {
		return nil, err
	}
	return json.Marshal(caseJSON{c.Cert, c.Token, c.Gateway, c.Keep, c.Method, req})
}

// UnmarshalJSON reads it.
func (c *Case) UnmarshalJSON(b []byte) error {
	var j caseJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	k, ok := kinds[j.Method]
	if !ok {
		return fmt.Errorf("no method %q", j.Method)
	}
	*c = Case{Cert: j.Cert, Token: j.Token, Gateway: j.Gateway, Keep: j.Keep, Method: j.Method, Req: k.req()}
	if len(j.Req) == 0 {
		return nil
	}
	return protojson.Unmarshal(j.Req, c.Req)
}

// String says a case to people.
func (c Case) String() string {
	who := "nobody"
	switch {
	case c.Token != "" && c.Cert != "":
		who = "certificate " + c.Cert + " with token " + c.Token
	case c.Token != "":
		who = "token " + c.Token
	case c.Cert != "":
		who = "certificate " + c.Cert
	}
	over := ""
	if c.Gateway {
		over = " over JSON"
	}
	return who + over + ": " + c.Method + " " + prototext.MarshalOptions{}.Format(c.Req)
}

// resolve returns the request with absolute revisions.
func resolve(c Case, s *store) proto.Message {
	req := proto.Clone(c.Req)
	eachRevision(req, func(r *int64) {
		switch {
		case *r < 0:
			*r = max(s.base, s.revision+*r+1)
		case *r > 0:
			*r += s.revision
		}
	})
	return req
}

func eachRevision(m proto.Message, f func(*int64)) {
	switch r := m.(type) {
	case *etcdserverpb.RangeRequest:
		for _, at := range []*int64{&r.Revision, &r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			f(at)
		}
	case *etcdserverpb.WatchCreateRequest:
		f(&r.StartRevision)
	case *etcdserverpb.CompactionRequest:
		f(&r.Revision)
	case *etcdserverpb.TxnRequest:
		for _, c := range r.Compare {
			switch u := c.TargetUnion.(type) {
			case *etcdserverpb.Compare_CreateRevision:
				f(&u.CreateRevision)
			case *etcdserverpb.Compare_ModRevision:
				f(&u.ModRevision)
			}
		}
		for _, ops := range [][]*pbOp{r.Success, r.Failure} {
			for _, op := range ops {
				if n := op.GetRequestRange(); n != nil {
					eachRevision(n, f)
				}
				if n := op.GetRequestTxn(); n != nil {
					eachRevision(n, f)
				}
			}
		}
	}
}
