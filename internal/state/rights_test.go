package state

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// oracle is the user store as lists, judged key by key.
type oracle struct {
	roles  map[string][]Permission
	users  map[string][]string
	leases map[int64][]string // keys attached
}

// universe is dense enough that different unions of the spans drawn differ in one of its keys.
func universe() []string {
	var keys []string
	for _, k := range []string{"\x00", "a", "b", "ba", "c", "d", "e\x00", "\xff\xff"} {
		keys = append(keys, k, k+"\x00", k+"\x00\x00", k+"!")
	}
	return keys
}

func (o *oracle) may(user string, key string, want right) bool {
	for _, r := range o.users[user] {
		if r == RootName {
			return true
		}
		for _, p := range o.roles[r] {
			if p.Span.Contains([]byte(key)) && (want == wantRead && p.Read || want == wantWrite && p.Write) {
				return true
			}
		}
	}
	return false
}

func (o *oracle) all(user string, s storage.Span, want right) bool {
	if slices.Contains(o.users[user], RootName) {
		return true
	}
	if s.Empty() {
		return false
	}
	if s.End == nil && !o.may(user, "\xff\xff\xff\xff", want) { // the rest above every key that is drawn
		return false
	}
	for _, key := range universe() {
		if s.Contains([]byte(key)) && !o.may(user, key, want) {
			return false
		}
	}
	return true
}

func (o *oracle) allows(user string, r Request) bool {
	switch r := r.(type) {
	case *Put:
		return o.put(user, r)
	case *Delete:
		return o.all(user, r.Span, wantWrite) && (!r.PrevKV || o.all(user, r.Span, wantRead))
	case *Txn:
		for _, c := range r.Compare {
			if !o.all(user, c.Span, wantRead) {
				return false
			}
		}
		for _, op := range slices.Concat(r.Success, r.Failure) {
			if op.Range != nil && !o.all(user, op.Range.Span, wantRead) || op.Put != nil && !o.put(user, op.Put) ||
				op.Delete != nil && !o.allows(user, op.Delete) || op.Txn != nil && !o.allows(user, op.Txn) {
				return false
			}
		}
		return true
	case *LeaseRevoke:
		return o.lease(user, r.IDs[0])
	case *LeaseGrant:
		return true
	}
	return slices.Contains(o.users[user], RootName) // compaction, alarms
}

func (o *oracle) put(user string, p *Put) bool {
	return o.may(user, string(p.Key), wantWrite) && (!p.PrevKV || o.may(user, string(p.Key), wantRead)) && o.lease(user, p.Lease)
}

func (o *oracle) lease(user string, id int64) bool {
	return !slices.ContainsFunc(o.leases[id], func(key string) bool { return !o.may(user, key, wantWrite) })
}

// TestRightsAgainstOracle draws users, roles and requests of every shape and depth; the choke point and a key-by-key oracle
// must agree, before the log and in it.
func TestRightsAgainstOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		o := &oracle{roles: map[string][]Permission{}, users: map[string][]string{}, leases: map[int64][]string{}}
		b.must(&LeaseGrant{ID: 1, TTL: 60})
		b.must(&LeaseGrant{ID: 2, TTL: 60})
		for range rapid.IntRange(0, 3).Draw(rt, "attached") {
			key := string(drawKey(rt))
			b.must(&Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Lease: 1})
			if !slices.Contains(o.leases[1], key) {
				o.leases[1] = append(o.leases[1], key)
			}
		}
		for _, name := range []string{"r1", "r2"} {
			b.must(&AuthChange{Op: RoleAdd, Role: name})
			for range rapid.IntRange(0, 3).Draw(rt, "permissions") {
				p := Permission{Span: drawSpan(rt), Read: rapid.Bool().Draw(rt, "r"), Write: rapid.Bool().Draw(rt, "w")}
				if b.do(policy.NewSystem("test"), &AuthChange{Op: RoleGrant, Role: name, Permission: p}).Err == nil {
					// The same span again replaces the rights on it.
					o.roles[name] = slices.DeleteFunc(o.roles[name], func(q Permission) bool { return compareSpans(p.Span, q.Span) == 0 })
					o.roles[name] = append(o.roles[name], p)
				}
			}
		}
		for _, name := range []string{RootName, "u"} {
			b.must(&AuthChange{Op: UserAdd, User: name, NoPassword: true})
		}
		b.must(&AuthChange{Op: UserGrantRole, User: RootName, Role: RootName})
		o.users[RootName] = []string{RootName}
		for _, name := range []string{"r1", "r2"} {
			if rapid.Bool().Draw(rt, "granted") {
				b.must(&AuthChange{Op: UserGrantRole, User: "u", Role: name})
				o.users["u"] = append(o.users["u"], name)
			}
		}
		b.must(&AuthChange{Op: AuthEnable})
		rev := b.machine.Auth().Revision()
		for range rapid.IntRange(1, 12).Draw(rt, "requests") {
			r := drawRequest(rt, b.machine.Space(mvcc.SpaceEtcd).Revision())
			if x, ok := r.(*LeaseRevoke); ok && (x.Expired || x.IDs[0] == 1) {
				continue // the keys attached stay as they were set up
			}
			if x, ok := r.(*Txn); ok && len(x.Compare)+len(x.Success)+len(x.Failure) == 0 {
				continue
			}
			for _, user := range []string{"u", RootName} {
				who := policy.NewAnonymous().WithUser(user, rev, true)
				want := o.allows(user, r)
				if got := b.machine.Authorize(who, r) == nil; got != want {
					rt.Fatalf("%s asks %+v: allowed %v, want %v; roles %v of %v", user, r, got, want, o.roles, o.users[user])
				}
				if _, ok := r.(*Put); ok || !want { // others may move the keys of the lease
					result := b.do(who, withoutLease(r, want))
					if denied := errors.Is(result.Err, ErrPermissionDenied); denied == want {
						rt.Fatalf("%s applied %+v: %v, want allowed %v", user, r, result.Err, want)
					}
				}
				for _, bad := range []policy.Principal{{}, policy.NewAnonymous(), who.WithUser(user, rev-1, true), who.WithUser("nobody", rev, true)} {
					if b.machine.Authorize(bad, r) == nil && controlOnly(r) != (bad.User() == user) {
						rt.Fatalf("%v at %d may ask %+v", bad, bad.UserRevision(), r)
					}
				}
			}
		}
		b.close()
	})
}

// withoutLease keeps an allowed put from hanging its key on the lease that the oracle knows, or taking it off.
func withoutLease(r Request, allowed bool) Request {
	if p, ok := r.(*Put); ok && allowed {
		kept := *p
		kept.Lease, kept.IgnoreLease = 0, true
		return &kept
	}
	return r
}

// controlOnly reports whether the right to ask r does not depend on the user store's revision, as in etcd.
func controlOnly(r Request) bool {
	switch r.(type) {
	case *Compact, *AlarmChange, *LeaseGrant:
		return true
	case *LeaseRevoke: // without keys on it
		return true
	}
	return false
}

// TestAnyoneOutside is the table of those who may do nothing with keys, whatever the user store says.
func TestAnyoneOutside(t *testing.T) {
	b := newBench(t)
	cert := policy.Certificate{Issuer: "a", Serial: "1"}
	requests := []Request{
		parse("put a 1").request(), parse("del a").request(), parse("txn then(range a)").request(), parse("txn").request(),
		parse("compact 1").request(), parse("grant 1 1").request(), parse("revoke 1").request(), parse("expire 1").request(),
		parse("alarm raise nospace 1").request(), parse("auth-on").request(), parse("user-add x y").request(),
		parse("checkpoint 1=1").request(), parse("publish 1 n").request(), parse("level 2").request(),
		parse("put a 1 space=ca").request(), parse("del a space=system").request(), parse("compact 1 space=catalog").request(), nil,
	}
	outside := []policy.Principal{
		{}, policy.Principal{}.WithUser(RootName, 99, true), policy.NewHolder(RootName, cert, policy.RoleClient, false),
		policy.NewHolder(RootName, cert, policy.RoleNone, false), policy.NewHolder(RootName, cert, policy.RoleAgent, false),
		policy.NewHolder(RootName, cert, policy.RoleMember, false),
		policy.NewHolder(RootName, cert, policy.RoleAgent, false).WithUser(RootName, 99, false),
	}
	check := func(stage string) {
		t.Helper()
		for _, who := range outside {
			for _, r := range requests {
				if b.machine.Authorize(who, r) == nil {
					t.Errorf("%s: %v (role %d) may ask %T", stage, who, who.Role(), r)
				}
			}
			if b.machine.AuthorizeRead(who, mvcc.SpaceEtcd, storage.Span{Start: []byte{0}}) == nil {
				t.Errorf("%s: %v may read", stage, who)
			}
			if b.machine.AuthorizeRead(who, mvcc.SpaceCA, storage.Span{Start: []byte{0}}) == nil {
				t.Errorf("%s: %v may read the authority's space", stage, who)
			}
			for _, a := range append(policy.Actions(), policy.NoAction, policy.Action(99)) {
				open := a.Class() == policy.ClassOpen && who.Role() == policy.RoleClient // who could be a user
				if got := b.machine.AuthorizeControl(who, a) == nil; got != open {
					t.Errorf("%s: %v may %v: %v", stage, who, a, got)
				}
			}
		}
		// Nobody but the insiders sees the other spaces, users with every right included.
		for _, who := range []policy.Principal{policy.NewAnonymous(), policy.NewAnonymous().WithUser(RootName, 99, true)} {
			for _, id := range mvcc.Spaces()[1:] {
				if b.machine.AuthorizeRead(who, id, storage.Span{Start: []byte{0}}) == nil {
					t.Errorf("%s: %v reads space %d", stage, who, id)
				}
			}
		}
	}
	check("auth off")
	b.must(&AuthChange{Op: UserAdd, User: RootName, NoPassword: true})
	b.must(&AuthChange{Op: UserGrantRole, User: RootName, Role: RootName})
	b.must(&AuthChange{Op: AuthEnable})
	check("auth on")
}

// TestSelf: a user may read its own roles and the permissions of roles that it has.
func TestSelf(t *testing.T) {
	b := newBench(t)
	for _, text := range []string{
		"user-add root x", "user-grant root root", "user-add alice x", "user-add bob x", "role-add r", "role-add s", "user-grant alice r", "auth-on",
	} {
		b.must(parse(text).request())
	}
	rev := b.machine.Auth().Revision()
	as := func(name string) policy.Principal { return policy.NewAnonymous().WithUser(name, rev, false) }
	for _, c := range []struct {
		user    string
		action  policy.Action
		subject string
		want    error
	}{
		{"alice", policy.UserRead, "alice", nil}, {"alice", policy.UserRead, "bob", ErrPermissionDenied},
		{"alice", policy.UserRead, "", ErrPermissionDenied}, {"alice", policy.RoleRead, "r", nil},
		{"alice", policy.RoleRead, "s", ErrPermissionDenied}, {"bob", policy.RoleRead, "r", ErrPermissionDenied},
		{"root", policy.UserRead, "alice", nil}, {"root", policy.RoleRead, "s", nil}, {"ghost", policy.UserRead, "ghost", ErrUserNotFound},
		{"", policy.UserRead, "", ErrUserEmpty}, {"alice", policy.AuthAdmin, "alice", ErrPermissionDenied},
		{"alice", policy.MemberList, "", nil}, {"alice", policy.HashSpace, "", ErrPermissionDenied},
	} {
		if err := b.machine.AuthorizeSubject(as(c.user), c.action, c.subject); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s %v %s: %v, want %v", c.user, c.action, c.subject, err, c.want)
		}
	}
	b.must(&LeaseGrant{ID: 1, TTL: 60})
	b.must(&Put{Space: mvcc.SpaceEtcd, Key: []byte("k"), Lease: 1})
	if err := b.machine.AuthorizeLeaseKeys(as("alice"), 1); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("alice sees the keys of a lease: %v", err)
	}
	if err := b.machine.AuthorizeLeaseKeys(as("root"), 1); err != nil {
		t.Error(err)
	}
	if err := b.machine.AuthorizeLeaseKeys(as("alice"), 9); err != nil {
		t.Errorf("a lease that is not there: %v", err)
	}
	if err := b.machine.AuthorizeLeaseRenewal(as("alice"), 1); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("alice keeps a lease alive whose key she may not write: %v", err)
	}
	for name, lease := range map[string]int64{"root": 1, "alice": 9} {
		if err := b.machine.AuthorizeLeaseRenewal(as(name), lease); err != nil {
			t.Errorf("%s renews lease %d: %v", name, lease, err)
		}
	}
}

// TestNeverAUser: a certificate of a role that is never a user learns nothing of the user store and gets no token.
func TestNeverAUser(t *testing.T) {
	b := newBench(t)
	for role, want := range map[policy.Role]error{policy.RoleKMS: ErrPermissionDenied, policy.RoleAgent: ErrPermissionDenied, policy.RoleClient: nil, policy.RoleAdmin: nil} {
		who := policy.NewHolder("x", policy.Certificate{Issuer: "i", Serial: "1"}, role, false)
		for _, action := range []policy.Action{policy.AuthStatus, policy.Authenticate} {
			if err := b.machine.AuthorizeControl(who, action); !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("role %d, %v: %v, want %v", role, action, err, want)
			}
		}
	}
}
