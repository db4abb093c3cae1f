package main

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// model is what is known of one server.
type model struct {
	flavour
	*people
	*store
	watches []*openWatch
}

func newModel(f flavour, revision int64, authRevision uint64) *model {
	return &model{flavour: f, people: newPeople(f, authRevision), store: newStore(revision)}
}

func (m *model) fl() flavour { return m.flavour }

// answer is what a request has to bring.
type answer struct {
	refusal string        // its text; empty: it is answered
	free    bool          // any answer but a refusal of rights
	resp    proto.Message // nil: nobody looks at it
	skip    bool          // the case cannot be told beforehand; it is not sent
}

func refuse(text string) answer                 { return answer{refusal: text} }
func reply(text string, m proto.Message) answer { return answer{refusal: text, resp: m} }

// predict decides a case and does to the model what it does to the server.
func (m *model) predict(method string, c caller, req proto.Message) answer {
	if k := kinds[method]; k.queued() {
		return m.queue(method, c, req.(*pbPut))
	}
	switch r := req.(type) {
	case *pbRange:
		return m.read(c, r)
	case *pbPut:
		return m.put(c, r)
	case *pbDel:
		return m.remove(c, r)
	case *pbTxn:
		return m.transact(c, r)
	case *etcdserverpb.CompactionRequest:
		return m.compact(c, r)
	}
	switch service := kinds[method].service; service {
	case "etcdserverpb.Lease":
		return m.lease(c, req)
	case "etcdserverpb.Auth":
		return m.auth(c, req)
	}
	return m.manage(c, req)
}

func (m *model) read(c caller, r *pbRange) answer {
	refusal := rangeForm(r)
	if refusal == granted {
		refusal = m.may(c, false, string(r.Key), string(r.RangeEnd))
	}
	if refusal == granted {
		refusal = m.readable(r.Revision)
	}
	if refusal != granted {
		return refuse(refusal)
	}
	return reply(granted, m.begin().read(r))
}

func (m *model) mayPut(c caller, r *pbPut) string {
	refusal := m.may(c, true, string(r.Key), "")
	if refusal == granted && r.Lease != 0 && m.leases[r.Lease] != nil {
		refusal = m.each(c, true, m.leases[r.Lease].sorted())
	}
	if refusal == granted && r.PrevKv {
		refusal = m.may(c, false, string(r.Key), "")
	}
	return refusal
}

func (m *model) put(c caller, r *pbPut) answer {
	refusal := putForm(r)
	if refusal == granted {
		refusal = m.mayPut(c, r)
	}
	if refusal == granted {
		refusal = m.puttable(r)
	}
	if refusal != granted {
		return refuse(refusal)
	}
	w := m.begin()
	resp := w.put(r)
	w.end()
	return reply(granted, resp)
}

func (m *model) mayRemove(c caller, r *pbDel) string {
	refusal := m.may(c, true, string(r.Key), string(r.RangeEnd))
	if refusal == granted && r.PrevKv {
		refusal = m.may(c, false, string(r.Key), string(r.RangeEnd))
	}
	return refusal
}

func (m *model) remove(c caller, r *pbDel) answer {
	if len(r.Key) == 0 {
		return refuse(noKey)
	}
	if refusal := m.mayRemove(c, r); refusal != granted {
		return refuse(refusal)
	}
	w := m.begin()
	resp := w.remove(r)
	w.end()
	return reply(granted, resp)
}

// mayTxn asks for everything in both branches and below.
func (m *model) mayTxn(c caller, t *pbTxn) string {
	for _, cmp := range t.Compare {
		if r := m.may(c, false, string(cmp.Key), string(cmp.RangeEnd)); r != granted {
			return r
		}
	}
	for _, op := range slices.Concat(t.Success, t.Failure) {
		refusal := granted
		switch {
		case op.GetRequestRange() != nil:
			refusal = m.may(c, false, string(op.GetRequestRange().Key), string(op.GetRequestRange().RangeEnd))
		case op.GetRequestPut() != nil:
			refusal = m.mayPut(c, op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			refusal = m.mayRemove(c, op.GetRequestDeleteRange())
		case op.GetRequestTxn() != nil:
			refusal = m.mayTxn(c, op.GetRequestTxn())
		}
		if refusal != granted {
			return refusal
		}
	}
	if len(t.Compare)+len(t.Success)+len(t.Failure) == 0 {
		if _, _, revision, _ := m.actor(c); m.fl().etcd && m.checkToken(c) == granted && revision > 0 && revision < m.people.revision {
			return oldRevision
		}
		if m.fl().etcd {
			return m.control(c, forAll)
		}
		return m.control(c, forUser)
	}
	return granted
}

func (m *model) transact(c caller, t *pbTxn) answer {
	refusal := txnForm(t, 128)
	for _, ops := range [][]*pbOp{t.Success, t.Failure} {
		if _, _, clash := clashes(ops); refusal == granted && clash {
			refusal = duplicateKey
		}
	}
	if refusal == granted {
		refusal = m.mayTxn(c, t)
	}
	if refusal != granted {
		return refuse(refusal)
	}
	way := m.decide(t)
	if refusal = m.possible(t, way); refusal != granted {
		return refuse(refusal)
	}
	w := m.begin()
	resp := w.txn(t, way)
	w.end()
	return reply(granted, resp)
}

func (m *model) compact(c caller, r *etcdserverpb.CompactionRequest) answer {
	refusal := m.control(c, forRoot)
	switch {
	case refusal != granted:
	case r.Revision > m.store.revision:
		refusal = future
	case r.Revision <= m.compacted:
		refusal = compacted
	default:
		m.compacted = r.Revision
	}
	return refuse(refusal)
}

func (m *model) lease(c caller, req proto.Message) answer {
	refusal := m.control(c, forUser)
	attached := func(id int64, write bool) {
		if l := m.leases[id]; l != nil && refusal == granted {
			refusal = m.each(c, write, l.sorted())
		}
	}
	switch r := req.(type) {
	case *etcdserverpb.LeaseGrantRequest:
		if refusal == granted && m.leases[r.ID] != nil {
			refusal = leaseExists
		}
		if refusal == granted {
			m.leases[r.ID] = &lease{ttl: r.TTL, keys: map[string]bool{}}
		}
		return reply(refusal, &etcdserverpb.LeaseGrantResponse{ID: r.ID, TTL: r.TTL})
	case *etcdserverpb.LeaseRevokeRequest:
		attached(r.ID, true)
		if refusal == granted && m.leases[r.ID] == nil {
			refusal = noLease
		}
		if refusal == granted {
			w := m.begin()
			for _, k := range m.leases[r.ID].sorted() {
				w.remove(&pbDel{Key: []byte(k)})
			}
			w.end()
			delete(m.leases, r.ID)
		}
		return refuse(refusal)
	case *etcdserverpb.LeaseKeepAliveRequest:
		attached(r.ID, true)
		resp := &etcdserverpb.LeaseKeepAliveResponse{ID: r.ID}
		if l := m.leases[r.ID]; l != nil {
			resp.TTL = l.ttl
		}
		return reply(refusal, resp)
	case *etcdserverpb.LeaseTimeToLiveRequest:
		if r.Keys {
			attached(r.ID, false)
		}
		resp := &etcdserverpb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}
		if l := m.leases[r.ID]; l != nil {
			resp.TTL, resp.GrantedTTL = l.ttl, l.ttl
			for _, k := range l.sorted() {
				if r.Keys {
					resp.Keys = append(resp.Keys, []byte(k))
				}
			}
		}
		return reply(refusal, resp)
	}
	resp := &etcdserverpb.LeaseLeasesResponse{}
	for _, id := range slices.Sorted(keysSeq(m.leases)) {
		attached(id, false)
		resp.Leases = append(resp.Leases, &etcdserverpb.LeaseStatus{ID: id})
	}
	return reply(refusal, resp)
}

func keysSeq(leases map[int64]*lease) func(func(int64) bool) {
	return func(yield func(int64) bool) {
		for id := range leases {
			if !yield(id) {
				return
			}
		}
	}
}

// manage is Cluster and Maintenance. Cases ask for what fails when it is allowed, so that nothing happens to the server.
func (m *model) manage(c caller, req proto.Message) answer {
	need, free, ok := forRoot, true, granted
	switch r := req.(type) {
	case *etcdserverpb.MemberListRequest, *etcdserverpb.StatusRequest:
		need, free = forUser, false
	case *etcdserverpb.AlarmRequest:
		if r.Action == etcdserverpb.AlarmRequest_GET {
			need = forUser
		}
		free = false
		if r.Action == etcdserverpb.AlarmRequest_ACTIVATE && m.control(c, need) == granted {
			return answer{skip: true}
		}
	case *etcdserverpb.MemberRemoveRequest, *etcdserverpb.MemberUpdateRequest, *etcdserverpb.MemberPromoteRequest:
		free, ok = false, "etcdserver: member not found"
	case *etcdserverpb.MemberAddRequest:
		free, ok = false, "etcdserver: Peer URLs already exists"
	case *etcdserverpb.HashRequest, *etcdserverpb.DefragmentRequest:
		free = false
	}
	if refusal := m.control(c, need); refusal != granted {
		return refuse(refusal)
	}
	return answer{refusal: ok, free: free}
}

// kmsOnly: a certificate of the role kms has no status and no token.
func (m *model) kmsOnly(c caller) bool { return m.secured && c.role == "kms" }

func (m *model) auth(c caller, req proto.Message) answer {
	switch r := req.(type) {
	case *etcdserverpb.AuthStatusRequest:
		refusal := granted
		switch {
		case m.fl().etcd:
			refusal = m.checkToken(c)
		case m.kmsOnly(c):
			refusal = denied
		}
		return reply(refusal, &etcdserverpb.AuthStatusResponse{Enabled: m.on, AuthRevision: m.people.revision})
	case *etcdserverpb.AuthenticateRequest:
		if m.kmsOnly(c) {
			return refuse(denied)
		}
		_, refusal := m.login(r.Name, r.Password) // whatever token comes with it
		return refuse(refusal)
	case *etcdserverpb.AuthUserGetRequest:
		refusal := m.self(c, func(name string, _ *user) bool { return name == r.Name })
		u := m.users[r.Name]
		if refusal == granted && u == nil {
			refusal = noSuchUser
		}
		if refusal != granted {
			return refuse(refusal)
		}
		return reply(granted, &etcdserverpb.AuthUserGetResponse{Roles: sortedNames(u.roles)})
	case *etcdserverpb.AuthRoleGetRequest:
		refusal := m.self(c, func(_ string, u *user) bool { return u.roles[r.Role] })
		if refusal == granted && m.roles[r.Role] == nil {
			refusal = "etcdserver: role name not found"
		}
		return reply(refusal, &etcdserverpb.AuthRoleGetResponse{Perm: m.perms(r.Role)})
	}
	return m.changePeople(c, req)
}

func (m *model) perms(role string) []*authpb.Permission {
	if role == "root" {
		return []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}
	}
	var out []*authpb.Permission
	for _, g := range m.roles[role] {
		p := &authpb.Permission{Key: []byte(g.key), RangeEnd: []byte(g.end)}
		if !m.fl().etcd && g.end == g.key+"\x00" {
			p.RangeEnd = nil
		}
		switch {
		case g.read && g.write:
			p.PermType = authpb.Permission_READWRITE
		case g.write:
			p.PermType = authpb.Permission_WRITE
		}
		out = append(out, p)
	}
	return out
}

// badGrant is the form of a permission.
func badGrant(p *authpb.Permission) string {
	switch {
	case p == nil:
		return "etcdserver: permission not given"
	case len(p.Key) == 0 || string(p.RangeEnd) != "\x00" && len(p.RangeEnd) > 0 && string(p.Key) >= string(p.RangeEnd):
		return "etcdserver: invalid auth management"
	}
	return granted
}

func (m *model) changePeople(c caller, req proto.Message) answer {
	if r, ok := req.(*etcdserverpb.AuthRoleGrantPermissionRequest); ok && !m.fl().etcd && badGrant(r.Perm) != granted {
		return refuse(badGrant(r.Perm))
	}
	if refusal := m.control(c, forRoot); refusal != granted {
		return refuse(refusal)
	}
	switch r := req.(type) {
	case *etcdserverpb.AuthUserListRequest:
		return reply(granted, &etcdserverpb.AuthUserListResponse{Users: sortedNames(m.users)})
	case *etcdserverpb.AuthRoleListRequest:
		return reply(granted, &etcdserverpb.AuthRoleListResponse{Roles: sortedNames(m.roles)})
	case *etcdserverpb.AuthEnableRequest:
		return refuse(m.switchOn())
	case *etcdserverpb.AuthDisableRequest:
		return refuse(m.switchOff())
	case *etcdserverpb.AuthUserAddRequest:
		return refuse(m.addUser(r.Name, r.Password, r.GetOptions().GetNoPassword()))
	case *etcdserverpb.AuthUserDeleteRequest:
		return refuse(m.deleteUser(r.Name))
	case *etcdserverpb.AuthUserChangePasswordRequest:
		return refuse(m.changePassword(r.Name, r.Password))
	case *etcdserverpb.AuthUserGrantRoleRequest:
		return refuse(m.grantRole(r.User, r.Role))
	case *etcdserverpb.AuthUserRevokeRoleRequest:
		return refuse(m.revokeRole(r.Name, r.Role))
	case *etcdserverpb.AuthRoleAddRequest:
		return refuse(m.addRole(r.Name))
	case *etcdserverpb.AuthRoleDeleteRequest:
		return refuse(m.deleteRole(r.Role))
	case *etcdserverpb.AuthRoleRevokePermissionRequest:
		return refuse(m.forbid(r.Role, string(r.Key), string(r.RangeEnd)))
	case *etcdserverpb.AuthRoleGrantPermissionRequest:
		refusal := badGrant(r.Perm)
		if refusal == granted {
			t := r.Perm.PermType
			refusal = m.permit(r.Name, grant{string(r.Perm.Key), string(r.Perm.RangeEnd), t != authpb.Permission_WRITE, t != authpb.Permission_READ})
		}
		return refuse(refusal)
	}
	return answer{skip: true}
}

// refusal reports whether a text is one about rights.
func isRefusal(text string) bool {
	return slices.ContainsFunc(refusals, func(r string) bool { return strings.Contains(text, r) })
}
