package consulapi

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/agent"
)

func TestAgentServices(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.run([]exchange{
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":80,"Tags":["v1","primary"],"Meta":{"a":"b"},"Check":{"TTL":"30s","DeregisterCriticalServiceAfter":"1s"}}`, 200, ""},
		{"PUT", "/v1/agent/service/register?replace-existing-checks=true", `{"name":"web2","id":"web2-1","port":81,"address":"10.1.2.3","checks":[{"http":"http://127.0.0.1:1/x","interval":"10s","timeout":"1s"},{"tcp":"127.0.0.1:1","interval":"10s","name":"tcpc"}]}`, 200, ""},
		{"PUT", "/v1/agent/service/register", `{"Port":80}`, 400, "Missing service name"},
		{"PUT", "/v1/agent/service/register", `{"Name":"bad","Check":{"HTTP":"http://x"}}`, 400, "Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"},
		{"PUT", "/v1/agent/service/register", `{"Name":"scr","Check":{"Args":["true"],"Interval":"10s"}}`, 500, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"},
		{"PUT", "/v1/agent/service/register", `{"Name":"un_known","Foo":1}`, 400, `Request decode failed: json: unknown field "Foo"`},
		{"GET", "/v1/agent/service/none", "", 404, "unknown service ID: none"},
	})
	const web = `{"ID":"web","Service":"web","Tags":["v1","primary"],"Meta":{"a":"b"},"Port":80,"Address":"","Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false`
	sameJSON(t, l.get("/v1/agent/services").body, `{"web":`+web+`,"Datacenter":"dc1"},
	 "web2-1":{"ID":"web2-1","Service":"web2","Tags":[],"Meta":{},"Port":81,"Address":"10.1.2.3","TaggedAddresses":{"lan_ipv4":{"Address":"10.1.2.3","Port":81},"wan_ipv4":{"Address":"10.1.2.3","Port":81}},
	 "Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}}`)
	a := l.get("/v1/agent/service/web")
	hash := a.header.Get("X-Consul-Contenthash")
	sameJSON(t, a.body, web+`,"ContentHash":"`+hash+`","Datacenter":"dc1"}`)
	sameJSON(t, l.get("/v1/agent/services?filter=primary+in+Tags").body, `{"web":`+web+`,"Datacenter":"dc1"}}`)

	sameJSON(t, l.get("/v1/agent/checks?filter=CheckID==`service:web`").body, `{"service:web":{"Node":"dev1","CheckID":"service:web","Name":"Service 'web' check","Status":"critical","Notes":"","Output":"",
	 "ServiceID":"web","ServiceName":"web","ServiceTags":["v1","primary"],"Type":"ttl","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}}`)
	// What was registered is in the catalog when the answer comes.
	if a := l.get("/v1/health/service/web2"); !strings.Contains(a.body, `"CheckID":"service:web2-1:1"`) || !strings.Contains(a.body, `"Name":"tcpc"`) || !strings.Contains(a.body, `"Interval":"10s","Timeout":"1s"`) {
		t.Errorf("%s", a.body)
	}
	l.run([]exchange{
		{"PUT", "/v1/agent/check/pass/nope", "", 404, `Unknown check ID "nope". Ensure that the check ID is passed, not the check name.`},
		{"PUT", "/v1/agent/check/update/service:web", `{"Status":"fluffy"}`, 400, "Invalid check status: 'fluffy'"},
		{"PUT", "/v1/agent/service/maintenance/web", "", 400, "Missing value for enable"},
		{"PUT", "/v1/agent/service/maintenance/web?enable=perhaps", "", 400, `Invalid value for enable: "perhaps"`},
		{"PUT", "/v1/agent/service/maintenance/none?enable=true", "", 404, `Unknown service ID "none". Ensure that the service ID is passed, not the service name.`},
		{"PUT", "/v1/agent/service/deregister/web2-1", "", 200, ""},
		{"GET", "/v1/catalog/service/web2", "", 200, "[]"},
		{"GET", "/v1/agent/health/service/name/none?format=text", "", 404, "ServiceName none Not Found"},
		{"GET", "/v1/agent/health/service/name/none", "", 404, "[]"},
		{"GET", "/v1/agent/health/service/id/none", "", 404, "null"},
		{"GET", "/v1/agent/health/service/id/web?format=xml", "", 400, "Invalid format: it is json or text"},
	})
	for _, x := range []struct {
		put, body, word string
		status          int
	}{
		{"/v1/agent/check/pass/service:web?note=ok", "", "passing", 200},
		{"/v1/agent/check/warn/service:web", "", "warning", 429},
		{"/v1/agent/check/fail/service:web", "", "critical", 503},
		{"/v1/agent/check/update/service:web", `{"Status":"passing","Output":"fine"}`, "passing", 200},
		{"/v1/agent/service/maintenance/web?enable=true&reason=why", "", "maintenance", 503},
		{"/v1/agent/service/maintenance/web?enable=false", "", "passing", 200},
		{"/v1/agent/maintenance?enable=true&reason=why", "", "maintenance", 503},
		{"/v1/agent/maintenance?enable=false", "", "passing", 200},
	} {
		l.ok("PUT", x.put, x.body)
		for _, by := range []string{"id", "name"} {
			at := "/v1/agent/health/service/" + by + "/web"
			if a := l.get(at + "?format=text"); a.status != x.status || a.body != x.word || a.header.Get("X-Consul-Reason") != x.word {
				t.Errorf("%s after %s: %d %s", at, x.put, a.status, a.body)
			}
			if a := l.get(at); a.status != x.status || !strings.Contains(a.body, `"AggregatedStatus":"`+x.word+`"`) {
				t.Errorf("%s after %s: %d %s", at, x.put, a.status, a.body)
			}
		}
	}
	if a := l.do("GET", "/v1/agent/health/service/id/web", "", "Accept: text/plain"); a.body != "passing" {
		t.Errorf("%s", a.body)
	}
}

// The hash is Consul's own, so that a client that keeps one over a change of servers keeps its place.
func TestContentHash(t *testing.T) {
	t.Parallel()
	s := agentService{ID: "foo", Service: "foo", Tags: []string{"bar", "baz"}, Port: 8000, Weights: weights{1, 1}, Meta: map[string]string{}, Datacenter: "dc1"}
	if got := s.contentHash(); got != "c4bb6737c185ed93" { // of HashiCorp's TestAPI_AgentService
		t.Errorf("%s", got)
	}
	seen := map[string]bool{s.contentHash(): true}
	for _, change := range []func(*agentService){
		func(s *agentService) { s.Port++ }, func(s *agentService) { s.Tags = []string{"baz", "bar"} }, func(s *agentService) { s.Meta = map[string]string{"a": "b"} },
		func(s *agentService) { s.TaggedAddresses = map[string]address{"lan": {"1.1.1.1", 1}} }, func(s *agentService) { s.EnableTagOverride = true },
		func(s *agentService) { s.Weights.Warning = 2 }, func(s *agentService) { s.SocketPath = "/x" }, func(s *agentService) { s.Kind = "k" },
	} {
		other := s
		change(&other)
		if seen[other.contentHash()] {
			t.Errorf("%+v has the hash of another", other)
		}
		seen[other.contentHash()] = true
	}
}

func TestBlockingByHash(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/agent/service/register", `{"Name":"web","Port":80}`)
	hash := l.get("/v1/agent/service/web").header.Get("X-Consul-Contenthash")
	began := time.Now()
	l.ok("GET", "/v1/agent/service/web?wait=300ms&hash="+hash, "")
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("took %v", took)
	}
	done := make(chan answer, 1)
	go func() { done <- l.get("/v1/agent/service/web?wait=60s&hash=" + hash) }()
	l.waiting(1)
	l.ok("PUT", "/v1/agent/service/register", `{"Name":"web","Port":81}`)
	if a := <-done; a.header.Get("X-Consul-Contenthash") == hash || !strings.Contains(a.body, `"Port":81`) {
		t.Errorf("%s", a.body)
	}
	hash = l.get("/v1/agent/service/web").header.Get("X-Consul-Contenthash")
	go func() { done <- l.get("/v1/agent/service/web?wait=60s&hash=" + hash) }()
	l.waiting(1)
	l.ok("PUT", "/v1/agent/service/deregister/web", "")
	if a := <-done; a.status != 404 {
		t.Errorf("%d", a.status)
	}
}

func TestAgentChecks(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/agent/check/register", `{"Name":"foo","TTL":"15s"}`)
	if a := l.get("/v1/agent/checks"); !strings.Contains(a.body, `"foo":{"Node":"dev1","CheckID":"foo"`) || !strings.Contains(a.body, `"Type":"ttl"`) {
		t.Errorf("%s", a.body)
	}
	if a := l.do("PUT", "/v1/agent/check/register", `{"Name":"r","ServiceID":"x","TTL":"15s","DeregisterCriticalServiceAfter":"nope"}`); a.status != 400 || !strings.Contains(a.body, "invalid duration") {
		t.Errorf("%d %s", a.status, a.body)
	}
	l.ok("PUT", "/v1/agent/check/deregister/foo", "")
	if a := l.get("/v1/agent/checks"); a.body != "{}" {
		t.Errorf("%s", a.body)
	}
}

func TestAgentSelf(t *testing.T) {
	t.Parallel()
	l := start(t, func(o *Options) {
		o.Debug = func() map[string]any { return map[string]any{"SerfAdvertiseAddrLAN": "tcp://127.0.0.1:8301"} }
		o.Reload = func(context.Context) error { return fmt.Errorf("line 3 is wrong") }
	})
	var self struct {
		Config struct {
			Datacenter, NodeName, NodeID, Version string
			Server                                bool
		}
		DebugConfig map[string]any
		Member      member
		Meta        map[string]string
		Stats       map[string]map[string]string
	}
	l.ok("GET", "/v1/agent/self", "").into(t, &self)
	if self.Config.Datacenter != "dc1" || self.Config.NodeName != "dev1" || self.Config.NodeID != ownNodeID || !self.Config.Server || self.Config.Version != "1.22.0" ||
		self.DebugConfig["SerfAdvertiseAddrLAN"] != "tcp://127.0.0.1:8301" || self.Member.Name != "dev1" || self.Member.Addr != "127.0.0.1" || self.Meta["consul-version"] != "1.22.0" || self.Stats["consul"]["leader_addr"] != "127.0.0.1:8300" {
		t.Errorf("%+v", self)
	}
	if a := l.do("PUT", "/v1/agent/reload", ""); a.status != 500 || a.body != "line 3 is wrong" {
		t.Errorf("%d %s", a.status, a.body)
	}
	var members []member
	l.ok("GET", "/v1/agent/members", "").into(t, &members)
	if len(members) != 1 || members[0].Name != "dev1" {
		t.Errorf("%+v", members)
	}
	if a := l.ok("GET", "/v1/agent/members?filter=Name+==+other", ""); a.body != "[]" {
		t.Errorf("%s", a.body)
	}
}

// The index of events is made of an ID and may be above what fits in an int64.
func TestEvents(t *testing.T) {
	t.Parallel()
	l := startWith(t, &agent.GossipOptions{Bind: "127.0.0.1", Plaintext: true, Tags: map[string]string{"role": "consul", "dc": "dc1"}}, nil)
	if a := l.ok("GET", "/v1/event/list", ""); a.body != "[]" || a.index(t) == 0 {
		t.Errorf("%v %s", a.header, a.body)
	}
	last, large := uint64(1), false
	for i := 0; i < 8 || !large && i < 64; i++ { // half of all indexes are large
		name := []string{"deploy", "other"}[i%2]
		done := make(chan answer, 1)
		go func() { done <- l.do("GET", fmt.Sprintf("/v1/event/list?index=%d&wait=60s", last), "") }()
		l.waiting(1)
		var fired event
		a := l.ok("PUT", "/v1/event/fire/"+name+"?node=.*&tag=", fmt.Sprint("pay", i))
		a.into(t, &fired)
		if fired.Name != name || string(fired.Payload) != fmt.Sprint("pay", i) || fired.NodeFilter != ".*" || fired.Version != 1 || !uuidForm.MatchString(fired.ID) {
			t.Fatalf("%s", a.body)
		}
		woken := <-done
		var events []event
		woken.into(t, &events)
		last = woken.index(t)
		if len(events) == 0 || events[len(events)-1].ID != fired.ID || string(events[len(events)-1].Payload) != fmt.Sprint("pay", i) {
			t.Fatalf("%s", woken.body)
		}
		large = large || last > math.MaxInt64
	}
	if !large {
		t.Error("no index was large")
	}
	var events []event
	l.ok("GET", "/v1/event/list?name=deploy", "").into(t, &events)
	for _, e := range events {
		if e.Name != "deploy" {
			t.Errorf("%+v", e)
		}
	}
	if len(events) < 4 {
		t.Errorf("%d events", len(events))
	}
	l.run([]exchange{
		{"PUT", "/v1/event/fire/", "", 400, "Missing name"},
		{"GET", "/v1/event/list?node=x", "", 400, `Invalid query parameter: "node" - events are listed by name`},
		{"GET", "/v1/event/list?index=-1", "", 400, "Invalid index"},
	})
}

func TestGossipEndpoints(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	l := startWith(t, &agent.GossipOptions{Bind: "127.0.0.1", Plaintext: true, Tags: map[string]string{"role": "consul", "dc": "dc1"}}, func(o *Options) { o.Left = func() { close(left) } })
	var members []member
	l.ok("GET", "/v1/agent/members?filter=Tags.dc==dc1", "").into(t, &members)
	if len(members) != 1 || members[0].Status != agent.MemberAlive || members[0].Port == 0 {
		t.Fatalf("%+v", members)
	}
	l.run([]exchange{
		{"PUT", fmt.Sprintf("/v1/agent/join/127.0.0.1:%d", members[0].Port), "", 200, ""},
		{"PUT", "/v1/agent/join/127.0.0.1:8301?wan=1", "", 400, "there is no WAN pool: this build knows one datacenter"},
		{"PUT", "/v1/agent/force-leave/dev1?prune", "", 200, ""}, // oneself: nothing happens
	})
	if a := l.do("PUT", "/v1/agent/join/127.0.0.1:1", ""); a.status != 500 || a.body == "internal error" || a.body == "" {
		t.Errorf("joining nobody: %d %s", a.status, a.body)
	}
	l.ok("PUT", "/v1/agent/leave", "")
	select {
	case <-left:
	case <-time.After(20 * time.Second):
		t.Error("nobody was told that the agent has left")
	}
}
