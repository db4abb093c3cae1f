package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// epochLength is how many cases follow on one set of users, roles and keys.
const epochLength = 300

// finding is a difference and the shortest way to it that was found.
type finding struct {
	world string
	what  string
	cases []Case
	after int // cases of this lane until it was seen
}

// String prints a finding so that it can be played again.
func (f finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "DIFFERENCE in world %s, seen after %d cases: %s\n", f.world, f.after, f.what)
	for _, c := range f.cases {
		fmt.Fprintf(&b, "    # %s\n", c)
	}
	line, err := json.Marshal(f.cases)
	if err != nil {
		line = []byte(err.Error())
	}
	fmt.Fprintf(&b, "  again: -world %s -replay '%s'\n", f.world, line)
	return b.String()
}

// runner plays epochs of one world.
type runner struct {
	world   world
	binary  string
	seed    uint64
	cases   int
	shrink  time.Duration
	tally   map[string]int
	played  int
	audits  int
	server  *server
	skip    map[string]bool // kinds of differences that were seen
	reports []finding
	most    int // differences until the world ends
}

func (r *runner) gen(epoch int) *gen {
	g := &gen{Rand: rand.New(rand.NewPCG(r.seed, uint64(epoch)*1000+uint64(len(r.world.name)))), certs: r.world.certs, queues: !r.world.etcd}
	return g
}

// lane returns a lane on a server that was emptied.
func (r *runner) lane() (*lane, error) {
	if r.server == nil {
		s, err := start(r.world, r.binary)
		if err != nil {
			return nil, err
		}
		r.server = s
	}
	l := &lane{world: r.world, server: r.server, wire: r.server.endpoint(), tally: map[string]int{}}
	l.model = newModel(r.world.flavour, 1, 1)
	return l, l.know()
}

// know asks a server for its revisions.
func (l *lane) know() error {
	var last error
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		kv, err := l.direct("range", &pbRange{Key: []byte("a")})
		if err == nil {
			var auth proto.Message
			if auth, err = l.direct("auth.status", &etcdserverpb.AuthStatusRequest{}); err == nil {
				before := l.compacted
				l.model = newModel(l.flavourOf(), kv.(*etcdserverpb.RangeResponse).Header.Revision, auth.(*etcdserverpb.AuthStatusResponse).AuthRevision)
				l.compacted = max(before, l.compacted)
				return nil
			}
		}
		last = err
		<-tick.C
	}
	return last
}

func (l *lane) flavourOf() flavour { return l.world.flavour }

// direct asks as the master, besides all cases.
func (l *lane) direct(method string, req proto.Message) (proto.Message, error) {
	_, text, err := l.resolveCaller(l.master())
	if err != nil {
		return nil, err
	}
	got, err := l.wire.ask(Case{Cert: l.master().Cert, Method: method}, text, req)
	if err == nil && got.refusal != "" {
		err = fmt.Errorf("%s: %s", method, got.refusal)
	}
	return got.resp, err
}

// clear takes everything away that cases made, so that the next epoch begins with nothing.
func (l *lane) clear() error {
	for _, w := range l.watches {
		w.close()
	}
	l.watches = nil
	do := func(method string, req proto.Message) error { _, err := l.direct(method, req); return err }
	if l.on {
		if err := do("auth.disable", &etcdserverpb.AuthDisableRequest{}); err != nil {
			return err
		}
		l.switchOff()
	}
	if err := do("delete", &pbDel{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
		return err
	}
	for id := range maps.Clone(l.leases) {
		if err := do("revoke", &etcdserverpb.LeaseRevokeRequest{ID: id}); err != nil {
			return err
		}
	}
	for name := range l.users {
		if err := do("user.delete", &etcdserverpb.AuthUserDeleteRequest{Name: name}); err != nil {
			return err
		}
	}
	for name := range l.roles {
		if err := do("role.delete", &etcdserverpb.AuthRoleDeleteRequest{Role: name}); err != nil {
			return err
		}
	}
	return l.know()
}

// run plays the epochs until there were enough cases.
func (r *runner) run() error {
	defer func() {
		if r.server != nil {
			r.server.stop()
		}
	}()
	l, err := r.lane()
	if err != nil {
		return err
	}
	for epoch := 0; r.played < r.cases; epoch++ {
		cases, difference := r.epoch(l, epoch)
		for k, n := range l.tally {
			r.tally[k] += n
		}
		r.audits += l.audits
		l.tally, l.audits = map[string]int{}, 0
		if difference == "" {
			if err := l.clear(); err != nil {
				return fmt.Errorf("world %s: emptying the server: %w", r.world.name, err)
			}
			continue
		}
		if kind := kindOf(cases, difference); !r.skip[kind] {
			r.skip[kind] = true
			f := finding{r.world.name, difference, cases, r.played}
			r.reports = append(r.reports, r.shorter(f))
		}
		if l, err = r.fresh(); err != nil {
			return err
		}
		if len(r.reports) >= r.most {
			return nil
		}
	}
	return nil
}

// fresh starts over with a new server.
func (r *runner) fresh() (*lane, error) {
	r.server.stop()
	r.server = nil
	for k := range r.world.wrong {
		delete(r.world.wrong, k)
	}
	return r.lane()
}

// epoch plays generated cases and returns those that led to a difference.
func (r *runner) epoch(l *lane, n int) ([]Case, string) {
	g := r.gen(n)
	if d := l.strangers(); d != "" {
		return nil, d
	}
	var cases []Case
	for _, c := range g.opening(l.master().Cert) {
		cases = append(cases, c)
		r.played++
		if d := l.play(c); d != "" {
			return cases, d
		}
	}
	for range epochLength {
		c := g.next(l)
		if l.world.etcd && !l.plain {
			c.Gateway = false // etcd refuses names of certificates there
		}
		cases = append(cases, c)
		r.played++
		if d := l.play(c); d != "" {
			return cases, d
		}
		if r.played >= r.cases {
			break
		}
	}
	return cases, l.sync()
}

// strangers knock where certificates are asked for: without one, and with one of another CA under the name of an admin.
func (l *lane) strangers() string {
	if l.plain {
		return ""
	}
	for _, name := range []string{"", "a stranger's root"} {
		if in, _ := handshake(l.server.address, l.server.tls(name)); in {
			return fmt.Sprintf("the client port lets in certificate %q", name)
		}
		l.tally["turned away"]++
	}
	return ""
}

var digits = regexp.MustCompile(`[0-9]+|"[^"]*"`)

// kindOf tells differences apart: by the method of the last case, and what is wrong, without numbers.
func kindOf(cases []Case, what string) string {
	first, _, _ := strings.Cut(what, "\n")
	if len(cases) == 0 {
		return first
	}
	return cases[len(cases)-1].Method + ": " + digits.ReplaceAllString(first, "")[:min(40, len(digits.ReplaceAllString(first, "")))]
}

// replay plays cases on an emptied server and returns how many it took to see a difference.
func (l *lane) replay(cases []Case) (int, string) {
	for i, c := range cases {
		if d := l.play(c); d != "" {
			return i + 1, d
		}
	}
	return len(cases), l.sync()
}

// shorter leaves out cases as long as there still is a difference.
func (r *runner) shorter(f finding) finding {
	limit := time.Now().Add(r.shrink)
	l, err := r.fresh()
	if err != nil {
		return f
	}
	try := func(cases []Case) bool {
		if len(cases) == 0 || time.Now().After(limit) {
			return false
		}
		n, d := l.replay(cases)
		if d == "" {
			if err := l.clear(); err != nil {
				l, _ = r.fresh()
			}
			return false
		}
		f.cases, f.what = append([]Case(nil), cases[:n]...), d
		l, err = r.fresh()
		return err == nil
	}
	for size := len(f.cases) / 2; size > 0 && time.Now().Before(limit) && l != nil; size /= 2 {
		for at := 0; at+size < len(f.cases) && l != nil; {
			if !try(append(append([]Case(nil), f.cases[:at]...), f.cases[at+size:]...)) {
				at += size
			}
		}
	}
	return f
}
