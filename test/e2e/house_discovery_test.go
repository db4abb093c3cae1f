package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// discoveryLoads are those that speak Consul.
type discoveryLoads struct {
	h         *house
	pairs     *ledger
	sessions  *ledger
	locks     *ledger            // key -> session that holds it
	nodes     map[string]*ledger // node -> service -> what was said of it
	holder    string             // session of locks
	contender [2]string          // sessions that want the same lock
	inside    atomic.Int32       // who says that it holds it
	counted   atomic.Int64       // acknowledged increments under that lock
	beating   string             // session with a TTL that is renewed
	lost      atomic.Bool        // it ended all the same
	silent    string             // session with a TTL that nobody renews
	services  *task
}

// outside is a node that nobody runs: what is registered for it lives until it is deregistered.
const outside = "outside"

func newDiscoveryLoads(h *house) *discoveryLoads {
	d := &discoveryLoads{h: h, pairs: newLedger(), sessions: newLedger(), locks: newLedger(), nodes: map[string]*ledger{}}
	for _, node := range []string{outside, "m0", "m1", "m2", "web1"} {
		d.nodes[node] = newLedger()
	}
	t := h.t
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for i := range houseSize { // until gossip has made them known
		for {
			var nodes []struct{ Node string }
			_, err := h.onConsul(ctx, i, http.MethodGet, "/v1/catalog/nodes", nil, &nodes)
			if err == nil && len(nodes) == houseSize+1 {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("the members and the agent do not get into the catalog: %v %v\n%s", nodes, err, h.tails())
			}
			wait(ctx, 100*time.Millisecond)
		}
	}
	_, err := h.onConsul(ctx, 0, http.MethodPut, "/v1/catalog/register", map[string]any{"Node": outside, "Address": "192.0.2.1"}, nil)
	check(t, err)
	d.holder = d.mustSession(ctx, "holder", "")
	d.contender = [2]string{d.mustSession(ctx, "contender", ""), d.mustSession(ctx, "contender", "")}
	d.beating, d.silent = d.mustSession(ctx, "beating", "10s"), d.mustSession(ctx, "silent", "10s")
	var ok bool
	_, err = h.onConsul(ctx, 0, http.MethodPut, "/v1/kv/silent/"+h.mark+"?acquire="+d.silent, "v-"+h.mark, &ok)
	if err != nil || !ok {
		t.Fatalf("a lock for the session that nobody renews: %v %v", ok, err)
	}
	return d
}

func (d *discoveryLoads) mustSession(ctx context.Context, name, ttl string) string {
	d.h.t.Helper()
	id, err := d.createSession(ctx, 0, name, ttl)
	check(d.h.t, err)
	return id
}

func (d *discoveryLoads) createSession(ctx context.Context, member int, name, ttl string) (string, error) {
	var answer struct{ ID string }
	def := map[string]any{"Name": name + "-" + d.h.mark, "Node": outside, "NodeChecks": []string{}, "LockDelay": "0s", "Behavior": "release"}
	if ttl != "" {
		def["TTL"] = ttl
	}
	if name == "silent" {
		def["Behavior"] = "delete"
	}
	_, err := d.h.onConsul(ctx, member, http.MethodPut, "/v1/session/create", def, &answer)
	return answer.ID, err
}

func (d *discoveryLoads) loads() []*task {
	d.services = &task{name: "services", pause: 10 * time.Millisecond, step: d.service, verify: d.verifyServices}
	return []*task{
		{name: "consul kv", pause: 3 * time.Millisecond, step: d.pair, verify: d.verifyPairs},
		{name: "consul lock", pause: 5 * time.Millisecond, step: d.lock, verify: d.verifyLocks},
		{name: "contended lock", pause: 5 * time.Millisecond, step: d.contend(0), verify: d.verifyCount},
		{name: "contended lock", pause: 5 * time.Millisecond, step: d.contend(1), verify: d.verifyCount},
		{name: "sessions", pause: 5 * time.Millisecond, step: d.session, verify: d.verifySessions},
		d.services,
	}
}

// put asks for a put that must be done: a refusal is an error of the house.
func (d *discoveryLoads) put(ctx context.Context, member int, path, value string) error {
	var ok bool
	_, err := d.h.onConsul(ctx, member, http.MethodPut, path, value, &ok)
	if err == nil && !ok {
		d.h.t.Errorf("%s was refused", path)
	}
	return err
}

// pair puts pairs that must not exist yet; every fourth is deleted in the next step.
func (d *discoveryLoads) pair(ctx context.Context, n int) error {
	key := func(n int) string { return fmt.Sprintf("kv/%s/%08d", d.h.mark, n) }
	if n%4 == 3 {
		_, err := d.h.onConsul(ctx, n%houseSize, http.MethodDelete, "/v1/kv/"+key(n-1), nil, nil)
		return d.pairs.removed(key(n-1), err)
	}
	value := fmt.Sprintf("c-%s-%d", d.h.mark, n)
	return d.pairs.wrote(key(n), value, d.put(ctx, n%houseSize, "/v1/kv/"+key(n)+"?cas=0&flags="+strconv.Itoa(n), value))
}

// lock acquires keys; every third is released in the next step.
func (d *discoveryLoads) lock(ctx context.Context, n int) error {
	key := func(n int) string { return fmt.Sprintf("lock/%s/%08d", d.h.mark, n) }
	if n%3 == 2 {
		_, err := d.h.onConsul(ctx, n%houseSize, http.MethodPut, "/v1/kv/"+key(n-1)+"?release="+d.holder, "", nil)
		return d.locks.removed(key(n-1), err)
	}
	return d.locks.wrote(key(n), d.holder, d.put(ctx, n%houseSize, "/v1/kv/"+key(n)+"?acquire="+d.holder, "h-"+d.h.mark))
}

// kvEntry is a pair as Consul's API shows it.
type kvEntry struct {
	Key, Session                        string
	Value                               []byte
	LockIndex, ModifyIndex, CreateIndex uint64
	Flags                               uint64
}

func (d *discoveryLoads) get(ctx context.Context, member int, key string) (*kvEntry, error) {
	var all []kvEntry
	_, err := d.h.onConsul(ctx, member, http.MethodGet, "/v1/kv/"+key, nil, &all)
	var s *statusError
	if errors.As(err, &s) && s.status == http.StatusNotFound {
		return nil, nil
	}
	if err != nil || len(all) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d pairs of %s", len(all), key))
	}
	return &all[0], nil
}

// contend is one of two that want the same lock, and count under it: nobody else may have counted meanwhile.
func (d *discoveryLoads) contend(me int) func(context.Context, int) error {
	mine := d.contender[me]
	lock, count := "hot/"+d.h.mark, "count/"+d.h.mark
	return func(ctx context.Context, n int) error {
		member := n % houseSize
		var ok bool
		if _, err := d.h.onConsul(ctx, member, http.MethodPut, "/v1/kv/"+lock+"?acquire="+mine, mine, &ok); err != nil {
			return err // it may hold it now: then the next acquire says so
		}
		if !ok {
			return nil // the other one has it
		}
		if !d.inside.CompareAndSwap(0, 1) {
			d.h.t.Error("two hold the same lock")
		}
		defer d.inside.Store(0)
		for try := range 60 { // until it is known whether the count was written; nobody else may write it meanwhile
			done, err := d.count(ctx, (member+try)%houseSize, count)
			if done {
				break
			}
			if ctx.Err() != nil || try == 59 {
				return err
			}
			wait(ctx, 100*time.Millisecond)
		}
		d.inside.Store(0)
		_, err := d.h.onConsul(ctx, member, http.MethodPut, "/v1/kv/"+lock+"?release="+mine, "", nil)
		return err
	}
}

// count brings the count to one more than was acknowledged before.
func (d *discoveryLoads) count(ctx context.Context, member int, key string) (done bool, err error) {
	want := d.counted.Load() + 1
	entry, err := d.get(ctx, member, key)
	if err != nil {
		return false, err
	}
	now, index := int64(0), uint64(0)
	if entry != nil {
		index = entry.ModifyIndex
		now, _ = strconv.ParseInt(string(entry.Value), 10, 64)
	}
	switch now {
	case want: // a try without an answer was done
		d.counted.Store(want)
		return true, nil
	case want - 1:
	default:
		d.h.t.Errorf("the count is %d, and was %d", now, want-1)
	}
	var ok bool
	if _, err := d.h.onConsul(ctx, member, http.MethodPut, fmt.Sprintf("/v1/kv/%s?cas=%d", key, index), strconv.FormatInt(want, 10), &ok); err != nil || !ok {
		return false, errors.Join(err, errors.New("an earlier try came first")) // the next one sees it
	}
	d.counted.Store(want)
	return true, nil
}

// session makes sessions; every third is destroyed in the next step.
func (d *discoveryLoads) session(ctx context.Context, n int) error {
	last := ""
	if n%3 == 2 {
		d.sessions.mu.Lock()
		for id, name := range d.sessions.there {
			if name == fmt.Sprintf("s%d-%s", n-1, d.h.mark) {
				last = id
			}
		}
		d.sessions.mu.Unlock()
	}
	if last != "" {
		_, err := d.h.onConsul(ctx, n%houseSize, http.MethodPut, "/v1/session/destroy/"+last, nil, nil)
		return d.sessions.removed(last, err)
	}
	name := fmt.Sprintf("s%d", n)
	id, err := d.createSession(ctx, n%houseSize, name, "")
	if err != nil {
		id = "unknown " + name // its id was in the answer
	}
	return d.sessions.wrote(id, name+"-"+d.h.mark, err)
}

// renew renews a session of 10 s through all kills.
func (d *discoveryLoads) renew(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		call, done := context.WithTimeout(ctx, 5*time.Second)
		_, err := d.h.onConsul(call, n%houseSize, http.MethodPut, "/v1/session/renew/"+d.beating, nil, nil)
		done()
		var s *statusError
		if errors.As(err, &s) && s.status == http.StatusNotFound {
			d.lost.Store(true)
			return
		}
		wait(ctx, time.Second)
	}
}

// follow is a blocking query that goes from member to member: its index never goes back.
func (d *discoveryLoads) follow(ctx context.Context) {
	index := uint64(0)
	for n := 0; ctx.Err() == nil; n++ {
		call, done := context.WithTimeout(ctx, 8*time.Second)
		head, err := d.h.onConsul(call, n%houseSize, http.MethodGet, fmt.Sprintf("/v1/catalog/services?index=%d&wait=2s", index), nil, new([]byte))
		done()
		if err == nil {
			now, err := strconv.ParseUint(head.Get("X-Consul-Index"), 10, 64)
			if err != nil || now < index {
				d.h.t.Errorf("the index of a blocking query went from %d to %q", index, head.Get("X-Consul-Index"))
			}
			index = now
		}
		wait(ctx, 100*time.Millisecond)
	}
}

// service registers services in three ways: for a node that nobody runs, with a member's own agent, with the client agent.
// Every fourth is deregistered by the next step of its kind.
func (d *discoveryLoads) service(ctx context.Context, n int) error {
	kind, k := n%3, n/3
	id := fmt.Sprintf("svc-%s-%d", d.h.mark, k)
	def := map[string]any{
		"ID": id, "Name": fmt.Sprintf("web-%s-%d", d.h.mark, k%7), "Tags": []string{"tag-" + d.h.mark}, "Meta": map[string]string{"meta": "m-" + d.h.mark}, "Port": 1 + k%60000,
	}
	said := fmt.Sprintf("web-%s-%d tag-%s m-%s %d", d.h.mark, k%7, d.h.mark, d.h.mark, 1+k%60000)
	old := fmt.Sprintf("svc-%s-%d", d.h.mark, k-1)
	remove := k%4 == 3
	if kind == 0 {
		member := k % houseSize
		if remove {
			_, err := d.h.onConsul(ctx, member, http.MethodPut, "/v1/catalog/deregister", map[string]any{"Node": outside, "ServiceID": old}, nil)
			return d.nodes[outside].removed(old, err)
		}
		def["Service"] = def["Name"]
		delete(def, "Name")
		check := map[string]any{"CheckID": "check-" + id, "Name": "check-" + d.h.mark, "Status": "passing", "Output": "output-" + d.h.mark, "ServiceID": id}
		_, err := d.h.onConsul(ctx, member, http.MethodPut, "/v1/catalog/register", map[string]any{"Node": outside, "Address": "192.0.2.1", "Service": def, "Check": check}, nil)
		return d.nodes[outside].wrote(id, said, err)
	}
	node, call := "web1", func(path string, body any) error {
		_, err := ask(ctx, d.h.local, http.MethodPut, fmt.Sprintf("http://127.0.0.1:%d%s", d.h.agentHTTP, path), body, nil)
		return err
	}
	if kind == 1 {
		member := (k / 4) % houseSize
		node, call = fmt.Sprintf("m%d", member), func(path string, body any) error {
			_, err := d.h.onConsul(ctx, member, http.MethodPut, path, body, nil)
			return err
		}
	}
	if remove {
		return d.nodes[node].removed(old, call("/v1/agent/service/deregister/"+old, nil))
	}
	def["Check"] = map[string]any{"CheckID": "check-" + id, "Name": "check-" + d.h.mark, "TTL": "24h", "Status": "passing"}
	if err := d.nodes[node].wrote(id, said, call("/v1/agent/service/register", def)); err != nil {
		return err
	}
	return call("/v1/agent/check/pass/check-"+id+"?note=output-"+d.h.mark, nil)
}

func (d *discoveryLoads) list(t testing.TB, ctx context.Context, who int, prefix string) map[string]kvEntry {
	t.Helper()
	// Linearizable, so that this member has applied everything; then its own state.
	var all []kvEntry
	for _, mode := range []string{"&consistent", "&stale"} {
		_, err := d.h.onConsul(ctx, who, http.MethodGet, "/v1/kv/"+prefix+"?recurse"+mode, nil, &all)
		var s *statusError
		if errors.As(err, &s) && s.status == http.StatusNotFound {
			return nil
		}
		check(t, err)
	}
	have := map[string]kvEntry{}
	for _, e := range all {
		have[e.Key] = e
	}
	return have
}

func (d *discoveryLoads) verifyPairs(t testing.TB, ctx context.Context, who int) {
	have := map[string]string{}
	for key, e := range d.list(t, ctx, who, "kv/") {
		have[key] = string(e.Value)
		if e.CreateIndex != e.ModifyIndex || !strings.HasSuffix(have[key], fmt.Sprintf("-%d", e.Flags)) {
			t.Errorf("%s was written more than once, or its flags are wrong: %+v", key, e)
		}
	}
	d.pairs.compare(t, fmt.Sprintf("consul kv, member %d", who), have)
}

func (d *discoveryLoads) verifyLocks(t testing.TB, ctx context.Context, who int) {
	have := map[string]string{}
	for key, e := range d.list(t, ctx, who, "lock/") {
		if e.Session != "" {
			have[key] = e.Session
		}
		if e.LockIndex != 1 {
			t.Errorf("%s was locked %d times", key, e.LockIndex)
		}
	}
	d.locks.compare(t, fmt.Sprintf("consul lock, member %d", who), have)
	if left := d.list(t, ctx, who, "silent/"); len(left) != 0 {
		for range 100 { // nobody renews it; it may have been renewed by a change of leader
			if entry, err := d.get(ctx, who, "silent/"+d.h.mark); err == nil && entry == nil {
				return
			}
			wait(ctx, 300*time.Millisecond)
		}
		t.Errorf("the lock of a session that nobody renews is held: %+v", left)
	}
}

func (d *discoveryLoads) verifyCount(t testing.TB, ctx context.Context, who int) {
	e, err := d.get(ctx, who, "count/"+d.h.mark)
	check(t, err)
	last := strconv.FormatInt(d.counted.Load()+1, 10) // sent, without an answer
	if e == nil || string(e.Value) != strconv.FormatInt(d.counted.Load(), 10) && string(e.Value) != last {
		t.Errorf("the count on member %d is %+v, and %d were acknowledged", who, e, d.counted.Load())
	}
}

func (d *discoveryLoads) verifySessions(t testing.TB, ctx context.Context, who int) {
	var all []struct{ ID, Name, Node string }
	_, err := d.h.onConsul(ctx, who, http.MethodGet, "/v1/session/node/"+outside, nil, &all)
	check(t, err)
	own := map[string]bool{d.holder: true, d.contender[0]: true, d.contender[1]: true, d.beating: true, d.silent: true}
	have := map[string]string{}
	for _, s := range all {
		name := strings.TrimSuffix(s.Name, "-"+d.h.mark)
		d.sessions.mu.Lock()
		_, lost := d.sessions.maybe["unknown "+name]
		d.sessions.mu.Unlock()
		switch {
		case own[s.ID]:
		case lost:
			if _, twice := have["unknown "+name]; twice {
				t.Errorf("session %s was made twice", s.Name)
			}
			have["unknown "+name] = s.Name
		default:
			have[s.ID] = s.Name
		}
	}
	d.sessions.compare(t, fmt.Sprintf("sessions, member %d", who), have)
	if d.lost.Load() {
		t.Error("the session that was renewed has ended")
	}
}

func (d *discoveryLoads) verifyServices(t testing.TB, ctx context.Context, who int) {
	for node, ledger := range d.nodes {
		var answer struct {
			Services []struct {
				ID, Service string
				Tags        []string
				Meta        map[string]string
				Port        int
			}
		}
		_, err := d.h.onConsul(ctx, who, http.MethodGet, "/v1/catalog/node-services/"+node, nil, &answer)
		check(t, err)
		have := map[string]string{}
		for _, s := range answer.Services {
			if strings.HasPrefix(s.ID, "svc-") {
				have[s.ID] = fmt.Sprintf("%s %s %s %d", s.Service, strings.Join(s.Tags, ","), s.Meta["meta"], s.Port)
			}
		}
		ledger.compare(t, fmt.Sprintf("services of %s, member %d", node, who), have)
		var checks []struct{ CheckID, Output, Status, ServiceID string }
		_, err = d.h.onConsul(ctx, who, http.MethodGet, "/v1/health/node/"+node, nil, &checks)
		check(t, err)
		with := map[string]bool{}
		for _, c := range checks {
			with[c.ServiceID] = true
			if _, ok := have[c.ServiceID]; c.ServiceID != "" && !ok {
				t.Errorf("check %s of %s outlives its service on member %d", c.CheckID, node, who)
			}
		}
		for id := range ledger.all() {
			if !with[id] {
				t.Errorf("service %s of %s has lost its check on member %d", id, node, who)
			}
		}
	}
	d.verifyNames(t, ctx, who)
}

// verifyNames asks a member's DNS, and the client agent, for what the member says itself.
func (d *discoveryLoads) verifyNames(t testing.TB, ctx context.Context, who int) {
	path := "/v1/catalog/service/web-" + d.h.mark + "-1"
	var own, agent []struct{ Node, ServiceID string }
	_, err := d.h.onConsul(ctx, who, http.MethodGet, path, nil, &own)
	check(t, err)
	_, err = ask(ctx, d.h.local, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", d.h.agentHTTP, path), nil, &agent)
	check(t, err)
	if len(own) < 3 || fmt.Sprint(own) != fmt.Sprint(agent) {
		t.Errorf("member %d has %d instances, the agent says %d", who, len(own), len(agent))
	}
	dns := (&consulCluster{t: d.h.t, dns: d.h.dns}).resolver(who)
	hosts, err := dns.LookupHost(ctx, "web-"+d.h.mark+"-1.service.consul.")
	if err != nil || len(hosts) != 2 || !slices.Contains(hosts, "192.0.2.1") { // the node that nobody runs, and the loopback address of all others
		t.Errorf("DNS of member %d: %v %v", who, hosts, err)
	}
}
