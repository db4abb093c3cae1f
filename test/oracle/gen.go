package main

import (
	"fmt"
	"math/rand/v2"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

type permission = *authpb.Permission

var (
	someUsers = []string{"root", "alice", "bob", "carol"}
	someRoles = []string{"r1", "r2", "r3"}
	someLease = []int64{1, 2, 3, 0x71, 0x72}
)

// gen draws cases. Values are counted, so that two writes are told apart.
type gen struct {
	*rand.Rand
	certs  []string
	queues bool
	values int
	aims   []grant // of the roles that there are
}

func pick[T any](g *gen, from []T) T { return from[g.IntN(len(from))] }

func (g *gen) in(n int) bool { return g.IntN(n) == 0 }

func (g *gen) value() []byte { g.values++; return fmt.Appendf(nil, "v%d", g.values) }

// key draws a key, seldom one without bytes.
func (g *gen) key() []byte {
	switch n := g.IntN(100); {
	case n == 0:
		return nil
	case n < 8:
		return []byte(queueKey(pick(g, queues), pick(g, queueLeases)))
	}
	return []byte(pick(g, someKeys))
}

// span draws a range in one of its forms: one key, a range, a prefix, all from a key, all, reversed, empty.
// Some are just those of a grant, so that not all is refused.
func (g *gen) span() (key, end []byte) {
	if len(g.aims) > 0 && g.in(4) {
		a := pick(g, g.aims)
		return []byte(a.key), []byte(a.end)
	}
	switch n := g.IntN(20); {
	case n < 8:
		return g.key(), nil
	case n < 12:
		return g.key(), []byte(pick(g, someEnds))
	case n < 15:
		k := pick(g, []string{"a/", "b", "a", "a/q/", "c"})
		e := []byte(k)
		e[len(e)-1]++
		return []byte(k), e
	case n < 17:
		return g.key(), []byte{0}
	case n == 17:
		return []byte{0}, []byte{0}
	case n == 18:
		k := g.key()
		return k, k
	}
	k := pick(g, someKeys)
	return []byte(k), []byte(k + "\x00")
}

func (g *gen) ranged() *pbRange {
	r := &pbRange{}
	r.Key, r.RangeEnd = g.span()
	r.Serializable = g.in(3)
	r.CountOnly, r.KeysOnly = g.in(8), g.in(8)
	if g.in(6) {
		r.Limit = int64(1 + g.IntN(3))
	}
	if g.in(6) {
		r.SortOrder = etcdserverpb.RangeRequest_SortOrder(g.IntN(3))
	}
	switch g.IntN(12) {
	case 0, 1:
		r.Revision = int64(-1 - g.IntN(8))
	case 2:
		r.Revision = 5
	case 3:
		r.MinModRevision = int64(-1 - g.IntN(9))
	case 4:
		r.MaxCreateRevision = int64(-1 - g.IntN(9))
	}
	return r
}

func (g *gen) put() *pbPut {
	p := &pbPut{Key: g.key(), Value: g.value(), PrevKv: g.in(3)}
	if g.in(4) {
		p.Lease = pick(g, someLease)
	}
	if g.in(12) {
		p.IgnoreValue = true
		if !g.in(5) {
			p.Value = nil
		}
	}
	if g.in(12) {
		p.IgnoreLease = true
		if !g.in(5) {
			p.Lease = 0
		}
	}
	return p
}

func (g *gen) remove() *pbDel {
	d := &pbDel{PrevKv: g.in(3)}
	d.Key, d.RangeEnd = g.span()
	return d
}

func (g *gen) compare() *etcdserverpb.Compare {
	c := &etcdserverpb.Compare{Result: etcdserverpb.Compare_CompareResult(g.IntN(4))}
	c.Key, c.RangeEnd = g.span()
	if len(c.Key) == 0 {
		c.Key = []byte("a")
	}
	switch g.IntN(5) {
	case 0:
		c.Target, c.TargetUnion = etcdserverpb.Compare_VALUE, &etcdserverpb.Compare_Value{Value: fmt.Appendf(nil, "v%d", g.IntN(g.values+2))}
	case 1:
		c.Target, c.TargetUnion = etcdserverpb.Compare_CREATE, &etcdserverpb.Compare_CreateRevision{CreateRevision: int64(-g.IntN(6))}
	case 2:
		c.Target, c.TargetUnion = etcdserverpb.Compare_MOD, &etcdserverpb.Compare_ModRevision{ModRevision: int64(-g.IntN(6))}
	case 3:
		c.Target, c.TargetUnion = etcdserverpb.Compare_LEASE, &etcdserverpb.Compare_Lease{Lease: pick(g, someLease)}
	default:
		c.Target, c.TargetUnion = etcdserverpb.Compare_VERSION, &etcdserverpb.Compare_Version{Version: int64(g.IntN(3))}
	}
	return c
}

// txn draws a transaction with at most depth more below it.
func (g *gen) txn(depth int) *pbTxn {
	t := &pbTxn{}
	for range g.IntN(3) {
		t.Compare = append(t.Compare, g.compare())
	}
	for _, ops := range []*[]*pbOp{&t.Success, &t.Failure} {
		for range g.IntN(3) {
			*ops = append(*ops, g.op(depth))
		}
	}
	return t
}

func (g *gen) op(depth int) *pbOp {
	if depth > 0 && g.in(3) {
		return nested(g.txn(depth - 1))
	}
	switch g.IntN(3) {
	case 0:
		return &pbOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: g.ranged()}}
	case 1:
		return &pbOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: g.put()}}
	}
	return &pbOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.remove()}}
}

func nested(t *pbTxn) *pbOp { return &pbOp{Request: &etcdserverpb.RequestOp_RequestTxn{RequestTxn: t}} }

// deep draws one operation below so many transactions, up to the limit and one beyond.
func (g *gen) deep() *pbTxn {
	t := g.txn(0)
	for range pick(g, []int{10, 60, 120, 124, 126, 127, 128}) {
		outer := &pbTxn{}
		if g.in(2) {
			outer.Success = []*pbOp{nested(t)}
		} else {
			outer.Failure = []*pbOp{nested(t)}
		}
		t = outer
	}
	return t
}

func (g *gen) grant() permission {
	p := &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(3))}
	p.Key, p.RangeEnd = g.span()
	return p
}

func (g *gen) who(c Case) Case {
	c.Cert = pick(g, g.certs)
	c.Gateway = g.in(6)
	switch n := g.IntN(100); {
	case n < 66:
		c.Token = pick(g, someUsers)
	case n < 71:
		c.Token = pick(g, someUsers) + "~"
	case n < 74:
		c.Token = "?"
	}
	return c
}

// next draws a case. Changes of the user store are mostly those of root, so that there is something to refuse.
func (g *gen) next(l *lane) Case {
	g.aims = g.aims[:0]
	for _, role := range sortedNames(l.roles) {
		g.aims = append(g.aims, l.roles[role]...)
	}
	if !l.on && g.in(12) {
		c := l.master()
		c.Method, c.Req = "auth.enable", &etcdserverpb.AuthEnableRequest{}
		return c
	}
	c := g.who(Case{})
	switch n := g.IntN(100); {
	case n < 20:
		c.Method, c.Req = "range", g.ranged()
	case n < 23:
		c.Method, c.Req = "stream", g.streamed()
	case n < 38:
		c.Method, c.Req = "put", g.put()
	case n < 46:
		c.Method, c.Req = "delete", g.remove()
	case n < 64:
		c.Method, c.Req = "txn", g.txn(3)
		if g.in(40) {
			c.Req = g.deep()
		}
	case n < 69:
		c.Method, c.Req, c.Keep = "watch", g.watch(), g.in(2)
	case n < 79:
		g.lease(&c)
	case n < 84:
		g.queue(&c)
	case n < 88:
		g.control(&c)
	case n < 91:
		g.look(&c)
	case n < 93:
		g.login(&c, l)
	default:
		who := l.master()
		g.people(&c)
		if !g.in(3) && (c.Method != "auth.disable" || g.in(4)) {
			c.Cert, c.Token = who.Cert, who.Token
		}
	}
	return c
}

func (g *gen) streamed() *pbRange {
	r := g.ranged()
	r.SortOrder, r.MinModRevision, r.MaxCreateRevision = 0, 0, 0
	return r
}

func (g *gen) watch() *etcdserverpb.WatchCreateRequest {
	w := &etcdserverpb.WatchCreateRequest{PrevKv: g.in(2), ProgressNotify: g.in(4), Fragment: g.in(4)}
	w.Key, w.RangeEnd = g.span()
	if g.in(3) {
		w.Filters = []etcdserverpb.WatchCreateRequest_FilterType{etcdserverpb.WatchCreateRequest_FilterType(g.IntN(2))}
	}
	if g.in(3) {
		w.StartRevision = int64(-1 - g.IntN(10))
	}
	return w
}

func (g *gen) lease(c *Case) {
	id := pick(g, someLease)
	switch g.IntN(6) {
	case 0:
		c.Method, c.Req = "grant", &etcdserverpb.LeaseGrantRequest{ID: id, TTL: 9000}
	case 1:
		c.Method, c.Req = "revoke", &etcdserverpb.LeaseRevokeRequest{ID: id}
	case 2:
		c.Method, c.Req = "keepalive", &etcdserverpb.LeaseKeepAliveRequest{ID: id}
	case 3, 4:
		c.Method, c.Req = "ttl", &etcdserverpb.LeaseTimeToLiveRequest{ID: id, Keys: !g.in(4)}
	default:
		c.Method, c.Req = "leases", &etcdserverpb.LeaseLeasesRequest{}
	}
}

func (g *gen) queue(c *Case) {
	name, lease := pick(g, queues), pick(g, append(queueLeases, 0))
	p := &pbPut{Key: []byte(name), Lease: lease, Value: g.value()}
	c.Method, c.Req = pick(g, []string{"lock", "unlock", "campaign", "proclaim", "leader", "observe", "resign"}), p
	switch c.Method {
	case "unlock", "proclaim", "resign":
		if p.Lease == 0 {
			p.Lease = queueLeases[0]
		}
		p.Key = []byte(queueKey(name, p.Lease))
	}
	if c.Method == "unlock" {
		p.Lease, p.Value = 0, nil
	}
	if !g.queues {
		c.Method, c.Req = "range", g.ranged()
	}
}

func (g *gen) control(c *Case) {
	choices := map[string]proto.Message{
		"member.add": &etcdserverpb.MemberAddRequest{}, "member.remove": &etcdserverpb.MemberRemoveRequest{ID: 1},
		"member.update":  &etcdserverpb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"https://127.0.0.1:9"}},
		"member.promote": &etcdserverpb.MemberPromoteRequest{ID: 1}, "member.list": &etcdserverpb.MemberListRequest{Linearizable: g.in(2)},
		"status": &etcdserverpb.StatusRequest{}, "hash": &etcdserverpb.HashRequest{}, "hashkv": &etcdserverpb.HashKVRequest{},
		"snapshot": &etcdserverpb.SnapshotRequest{}, "moveleader": &etcdserverpb.MoveLeaderRequest{TargetID: 1},
		"downgrade": &etcdserverpb.DowngradeRequest{Version: "3.6"}, "defragment": &etcdserverpb.DefragmentRequest{},
		"alarm":   &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_AlarmAction(g.IntN(3)), Alarm: etcdserverpb.AlarmType_NOSPACE},
		"compact": &etcdserverpb.CompactionRequest{Revision: int64(-30 - g.IntN(20)), Physical: g.in(2)},
	}
	c.Method = pick(g, sortedNames(choices))
	c.Req = choices[c.Method]
	if c.Method == "snapshot" || c.Method == "downgrade" {
		c.Gateway = false
	}
	if c.Method == "defragment" && c.Token == "root" && !g.in(10) {
		c.Token = "alice"
	}
}

// look reads the user store.
func (g *gen) look(c *Case) {
	switch g.IntN(5) {
	case 0:
		c.Method, c.Req = "auth.status", &etcdserverpb.AuthStatusRequest{}
	case 1:
		c.Method, c.Req = "user.get", &etcdserverpb.AuthUserGetRequest{Name: pick(g, append(someUsers, "ghost"))}
	case 2:
		c.Method, c.Req = "user.list", &etcdserverpb.AuthUserListRequest{}
	case 3:
		c.Method, c.Req = "role.get", &etcdserverpb.AuthRoleGetRequest{Role: pick(g, append(someRoles, "root"))}
	default:
		c.Method, c.Req = "role.list", &etcdserverpb.AuthRoleListRequest{}
	}
}

// login sends the right password, or seldom a wrong one: several wrong ones for a name are slowed down.
func (g *gen) login(c *Case, l *lane) {
	name := pick(g, someUsers)
	r := &etcdserverpb.AuthenticateRequest{Name: name, Password: "wrong"}
	if u := l.users[name]; u != nil && !(g.in(6) && l.wrong[name] < 3) {
		r.Password = u.pass
	}
	switch {
	case !l.on || l.kmsOnly(l.certificate(c.Cert)):
	case l.users[name] == nil || l.users[name].noPass || r.Password != l.users[name].pass:
		if l.wrong[name]++; l.wrong[name] > 3 {
			l.wrong[name]--
			c.Method, c.Req = "auth.status", &etcdserverpb.AuthStatusRequest{}
			return
		}
	default:
		l.wrong[name] = 0
	}
	c.Method, c.Req = "login", r
}

func (g *gen) people(c *Case) {
	name, role := pick(g, someUsers), pick(g, someRoles)
	if g.in(12) {
		role = "root"
	}
	switch g.IntN(16) {
	case 0:
		c.Method, c.Req = "user.add", &etcdserverpb.AuthUserAddRequest{Name: name, Password: pick(g, []string{"p1", "p2"}), Options: &authpb.UserAddOptions{NoPassword: g.in(6)}}
	case 1:
		c.Method, c.Req = "user.delete", &etcdserverpb.AuthUserDeleteRequest{Name: name}
	case 2:
		c.Method, c.Req = "user.passwd", &etcdserverpb.AuthUserChangePasswordRequest{Name: name, Password: pick(g, []string{"p1", "p2"})}
	case 3, 4, 5:
		c.Method, c.Req = "user.grant", &etcdserverpb.AuthUserGrantRoleRequest{User: name, Role: role}
	case 6, 7:
		c.Method, c.Req = "user.revoke", &etcdserverpb.AuthUserRevokeRoleRequest{Name: name, Role: role}
	case 8:
		c.Method, c.Req = "role.add", &etcdserverpb.AuthRoleAddRequest{Name: role}
	case 9:
		c.Method, c.Req = "role.delete", &etcdserverpb.AuthRoleDeleteRequest{Role: role}
	case 10, 11, 12:
		c.Method, c.Req = "role.grant", &etcdserverpb.AuthRoleGrantPermissionRequest{Name: role, Perm: g.grant()}
	case 13:
		r := &etcdserverpb.AuthRoleRevokePermissionRequest{Role: role}
		r.Key, r.RangeEnd = g.span()
		c.Method, c.Req = "role.revoke", r
	case 14:
		c.Method, c.Req = "auth.disable", &etcdserverpb.AuthDisableRequest{}
	default:
		c.Method, c.Req = "auth.enable", &etcdserverpb.AuthEnableRequest{}
	}
}

// opening makes the users, roles and keys that an epoch begins with.
func (g *gen) opening(master string) []Case {
	var out []Case
	add := func(method string, req proto.Message) {
		out = append(out, Case{Cert: master, Method: method, Req: req})
	}
	add("user.add", &etcdserverpb.AuthUserAddRequest{Name: "root", Password: "p1"})
	add("role.add", &etcdserverpb.AuthRoleAddRequest{Name: "root"})
	add("user.grant", &etcdserverpb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	for _, r := range someRoles {
		add("role.add", &etcdserverpb.AuthRoleAddRequest{Name: r})
		for range 1 + g.IntN(3) {
			add("role.grant", &etcdserverpb.AuthRoleGrantPermissionRequest{Name: r, Perm: g.grant()})
		}
	}
	for _, u := range someUsers[1:] {
		add("user.add", &etcdserverpb.AuthUserAddRequest{Name: u, Password: "p1"})
		for range g.IntN(3) {
			add("user.grant", &etcdserverpb.AuthUserGrantRoleRequest{User: u, Role: pick(g, someRoles)})
		}
	}
	for _, id := range someLease {
		add("grant", &etcdserverpb.LeaseGrantRequest{ID: id, TTL: 9000})
	}
	for range 8 {
		p := &pbPut{Key: g.key(), Value: g.value()}
		if g.in(3) {
			p.Lease = pick(g, someLease)
		}
		add("put", p)
	}
	if !g.in(8) {
		add("auth.enable", &etcdserverpb.AuthEnableRequest{})
	}
	return out
}
