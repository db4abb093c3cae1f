package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// lane is one server and the model of it. Its cases come one after the other.
type lane struct {
	world
	server *server
	wire   *endpoint
	*model
	rng *rand.Rand

	tally     map[string]int // of cases, by what came of them
	audits    int
	sinceSync int
}

// resolveCaller returns who a case is by, and the text of the token. A name without a token that lives is logged in.
func (l *lane) resolveCaller(c Case) (caller, string, error) {
	who := l.certificate(c.Cert)
	name, stale := strings.CutSuffix(c.Token, "~")
	switch {
	case c.Token == "":
		return who, "", nil
	case stale:
		for _, t := range l.tokens[name] {
			if t.text != "" && (t.dead || l.world.jwt && t.revision < l.people.revision) {
				who.token = t
				return who, t.text, nil
			}
		}
	case name != "?":
		t, err := l.liveToken(name)
		if err != nil {
			return who, "", err
		}
		if t != nil {
			who.token = t
			return who, t.text, nil
		}
	}
	who.token = &token{dead: true}
	return who, garbage, nil
}

// garbage looks like a token.
const garbage = "aBcDeFgHiJkLmNoPqRsTuVwX.1"

// liveToken returns a token of a user that counts now; nil if it cannot have one.
func (l *lane) liveToken(name string) (*token, error) {
	all := l.tokens[name]
	for i := len(all) - 1; i >= 0; i-- {
		if t := all[i]; t.text != "" && !t.dead && (!l.world.jwt || t.revision == l.people.revision) {
			return t, nil
		}
	}
	u := l.users[name]
	if !l.on || u == nil || u.noPass {
		return nil, nil
	}
	t, refusal := l.login(name, u.pass)
	if refusal != granted {
		return nil, fmt.Errorf("the model cannot log %s in: %s", name, refusal)
	}
	got, err := l.wire.ask(Case{Cert: l.anyCert, Method: "login"}, "", &etcdserverpb.AuthenticateRequest{Name: name, Password: u.pass})
	if err != nil || got.refusal != "" {
		return nil, fmt.Errorf("logging %s in: %s %v", name, got.refusal, err)
	}
	t.text = got.resp.(*etcdserverpb.AuthenticateResponse).Token
	return t, nil
}

// play does one case and returns what differs.
func (l *lane) play(c Case) string {
	who, text, err := l.resolveCaller(c)
	if err != nil {
		return err.Error()
	}
	req := resolve(c, l.store)
	if add, ok := req.(*etcdserverpb.MemberAddRequest); ok {
		add.PeerURLs = []string{l.server.peerURL}
	}
	if put, ok := req.(*pbPut); ok && kinds[c.Method].queued() {
		req = &queueRequest{put, l.leaderRevision(string(put.Key))}
	}
	changes, settled := len(l.changes), fmt.Sprint(l.on, l.people.revision)
	if c.Method == "watch" {
		return l.playWatch(c, who, text, req.(*etcdserverpb.WatchCreateRequest))
	}
	want := l.predictOne(c, who, req)
	if want.skip {
		l.tally["not sent"]++
		return ""
	}
	got, err := l.wire.ask(c, text, req)
	if err != nil {
		return err.Error()
	}
	if d := l.compare(c, want, got); d != "" {
		return d
	}
	l.count(want)
	l.follow(changes)
	if want.refusal != granted && writes(c.Method) {
		if d := l.audit("after the refusal"); d != "" {
			return d
		}
	}
	if l.sinceSync++; l.sinceSync > 25 || len(l.watches) > 0 && settled != fmt.Sprint(l.on, l.people.revision) {
		return l.sync()
	}
	return ""
}

func (l *lane) predictOne(c Case, who caller, req proto.Message) answer {
	if q, ok := req.(*queueRequest); ok {
		req = q.pbPut
	}
	l.unsure = false
	a := l.predict(c.Method, who, req)
	a.skip = a.skip || l.unsure
	return a
}

func (l *lane) count(a answer) {
	switch {
	case a.refusal == granted:
		l.tally["allowed"]++
	case a.refusal == badToken || a.refusal == nobodyNamed:
		l.tally["unauthenticated"]++
	case isRefusal(a.refusal):
		l.tally["refused"]++
	default:
		l.tally["invalid"]++
	}
}

// writes reports whether a method could have changed something.
func writes(method string) bool {
	switch method {
	case "range", "stream", "watch", "ttl", "leases", "member.list", "status", "hash", "hashkv", "auth.status", "user.get", "user.list", "role.get", "role.list", "leader", "observe", "login":
		return false
	}
	return true
}

// compare says how an answer differs from what it has to be.
func (l *lane) compare(c Case, want answer, got received) string {
	switch {
	case want.free && isRefusal(got.refusal), !want.free && !sameWords(got.refusal, want.refusal):
		return fmt.Sprintf("answered with %q, not with %q", got.refusal, want.refusal)
	case got.refusal != granted || want.free:
		return ""
	}
	if a, ok := got.resp.(*etcdserverpb.AuthenticateResponse); ok {
		name := c.Req.(*etcdserverpb.AuthenticateRequest).Name
		l.tokens[name][len(l.tokens[name])-1].text = a.Token
	}
	if d := l.checkHeader(got.resp); d != "" {
		return d
	}
	if want.resp == nil {
		return ""
	}
	normalise(got.resp, want.resp)
	if !proto.Equal(got.resp, want.resp) {
		return fmt.Sprintf("answered\n      %v\n  not %v", got.resp, want.resp)
	}
	return ""
}

func (l *lane) checkHeader(m proto.Message) string {
	h, ok := m.(interface {
		GetHeader() *etcdserverpb.ResponseHeader
	})
	if ok && h.GetHeader().GetRevision() != 0 && h.GetHeader().GetRevision() != l.store.revision {
		return fmt.Sprintf("answered at revision %d; it is %d", h.GetHeader().GetRevision(), l.store.revision)
	}
	return ""
}

// normalise takes away what the model does not know, and orders what has no order.
func normalise(got, want proto.Message) {
	dropHeaders(got.ProtoReflect())
	switch g := got.(type) {
	case *etcdserverpb.LeaseTimeToLiveResponse:
		if w := want.(*etcdserverpb.LeaseTimeToLiveResponse); g.TTL > 0 && g.TTL <= w.TTL && g.TTL > w.TTL-600 {
			g.TTL = w.TTL
		}
		slices.SortFunc(g.Keys, func(a, b []byte) int { return strings.Compare(string(a), string(b)) })
	case *etcdserverpb.LeaseLeasesResponse:
		slices.SortFunc(g.Leases, func(a, b *etcdserverpb.LeaseStatus) int { return int(a.ID - b.ID) })
	case *etcdserverpb.AuthUserGetResponse:
		slices.Sort(g.Roles)
	case *etcdserverpb.AuthUserListResponse:
		slices.Sort(g.Users)
	case *etcdserverpb.AuthRoleListResponse:
		slices.Sort(g.Roles)
	case *etcdserverpb.AuthRoleGetResponse:
		sortPerms(g)
		sortPerms(want.(*etcdserverpb.AuthRoleGetResponse))
	}
}

func sortPerms(r *etcdserverpb.AuthRoleGetResponse) {
	slices.SortFunc(r.Perm, func(a, b permission) int {
		return strings.Compare(string(a.Key)+"\x00"+string(a.RangeEnd), string(b.Key)+"\x00"+string(b.RangeEnd))
	})
}

// dropHeaders clears the headers of m and of all below it: only the outermost is looked at.
func dropHeaders(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.Message().Name() == "ResponseHeader":
			m.Clear(f)
		case f.IsList():
			for i := range v.List().Len() {
				dropHeaders(v.List().Get(i).Message())
			}
		default:
			dropHeaders(v.Message())
		}
		return true
	})
}

// audit compares everything that there is with the model.
func (l *lane) audit(when string) string {
	l.audits++
	who, text, err := l.resolveCaller(l.master())
	if err != nil {
		return err.Error()
	}
	all := &pbRange{Key: []byte{0}, RangeEnd: []byte{0}, Serializable: true}
	want := l.read(who, all)
	got, err := l.wire.ask(Case{Cert: l.master().Cert, Method: "range"}, text, all)
	if err != nil {
		return when + ": " + err.Error()
	}
	if d := l.compare(Case{}, want, got); d != "" {
		return when + " all that there is differs: " + d
	}
	leases := &etcdserverpb.LeaseLeasesRequest{}
	got, err = l.wire.ask(Case{Cert: l.master().Cert, Method: "leases"}, text, leases)
	if err != nil {
		return when + ": " + err.Error()
	}
	if d := l.compare(Case{}, l.lease(who, leases), got); d != "" {
		return when + " the leases differ: " + d
	}
	status := &etcdserverpb.AuthStatusRequest{}
	got, err = l.wire.ask(Case{Cert: l.master().Cert, Method: "auth.status"}, text, status)
	if err != nil {
		return when + ": " + err.Error()
	}
	if d := l.compare(Case{}, l.auth(who, status), got); d != "" {
		return when + " the user store differs: " + d
	}
	return ""
}

// master is who may everything.
func (l *lane) master() Case {
	switch {
	case l.world.secured:
		return Case{Cert: "admin"}
	case l.on:
		return Case{Cert: l.anyCert, Token: "root"}
	}
	return Case{Cert: l.anyCert}
}

// sync lets the open watches come to the present, and compares everything.
func (l *lane) sync() string {
	l.sinceSync = 0
	for _, w := range l.watches {
		if d := w.settle(l.store.revision); d != "" {
			return d
		}
		if w.lost {
			l.tally["watches cut"]++
			w.close()
		}
	}
	l.watches = slices.DeleteFunc(l.watches, func(w *openWatch) bool { return w.lost })
	return l.audit("at a look")
}

const mostWatches = 6

func (l *lane) playWatch(c Case, who caller, text string, r *etcdserverpb.WatchCreateRequest) string {
	if r.StartRevision != 0 && (r.StartRevision <= max(l.base, l.compacted) || r.StartRevision > l.store.revision) {
		r.StartRevision = 0
	}
	l.unsure = false
	w, refusal := l.mayWatch(who, r)
	if l.unsure {
		l.tally["not sent"]++
		return ""
	}
	if c.Gateway {
		got, err := l.wire.ask(c, text, r)
		if err != nil {
			return err.Error()
		}
		said := got.refusal
		if resp, ok := got.resp.(*etcdserverpb.WatchResponse); ok && said == "" {
			said = resp.CancelReason
		}
		l.count(refuse(refusal))
		if !sameWords(said, refusal) {
			return fmt.Sprintf("answered with %q, not with %q", said, refusal)
		}
		return ""
	}
	opened, said, err := l.wire.open(c, text, r)
	if err != nil {
		return err.Error()
	}
	if opened != nil {
		defer func() {
			if !slices.Contains(l.watches, w) {
				opened.close()
			}
		}()
	}
	if !sameWords(said, refusal) {
		return fmt.Sprintf("answered with %q, not with %q", said, refusal)
	}
	l.count(refuse(refusal))
	if refusal != granted {
		return ""
	}
	w.said, w.stream, w.end, w.heard = c.String(), opened.stream, opened.end, opened.heard
	if c.Keep && len(l.watches) < mostWatches {
		l.watches = append(l.watches, w)
		return ""
	}
	return w.settle(l.store.revision)
}
