package consulapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	wireDev1 = `{"ID":"bf0b901d-f9b5-7c92-62fa-796d6b1574af","Node":"dev1","Address":"127.0.0.1","Datacenter":"dc1",
	 "TaggedAddresses":{"lan":"127.0.0.1","lan_ipv4":"127.0.0.1","wan":"127.0.0.1","wan_ipv4":"127.0.0.1"},"Meta":{"consul-version":"1.22.0"},"CreateIndex":0,"ModifyIndex":0}`
	wireSerf = `{"Node":"dev1","CheckID":"serfHealth","Name":"Serf Health Status","Status":"passing","Notes":"","Output":"Agent alive and reachable","ServiceID":"","ServiceName":"",
	 "ServiceTags":[],"Type":"","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}`
	wireWeb = `{"ID":"web","Service":"web","Tags":["v1","primary"],"Address":"","Meta":{"a":"b"},"Port":80,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,
	 "Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":0,"ModifyIndex":0}`
	wireWebCheck = `{"Node":"dev1","CheckID":"service:web","Name":"Service 'web' check","Status":"warning","Notes":"","Output":"meh","ServiceID":"web","ServiceName":"web",
	 "ServiceTags":["v1","primary"],"Type":"ttl","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}`
)

// registerWeb registers the service whose shapes were looked at in Consul.
func (l *lab) registerWeb() {
	l.ok("PUT", "/v1/catalog/register", `{"Node":"dev1","SkipNodeUpdate":true,"Service":{"Service":"web","Port":80,"Tags":["v1","primary"],"Meta":{"a":"b"}},
	 "Check":{"CheckID":"service:web","Name":"Service 'web' check","Status":"warning","Output":"meh","ServiceID":"web","Type":"ttl"}}`)
}

func TestCatalogShapes(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.registerWeb()
	for path, want := range map[string]string{
		"/v1/catalog/datacenters": `["dc1"]`,
		"/v1/catalog/nodes":       `[` + wireDev1 + `]`,
		"/v1/catalog/services":    `{"web":["v1","primary"]}`,
		"/v1/catalog/service/web": `[{"ID":"bf0b901d-f9b5-7c92-62fa-796d6b1574af","Node":"dev1","Address":"127.0.0.1","Datacenter":"dc1",
		 "TaggedAddresses":{"lan":"127.0.0.1","lan_ipv4":"127.0.0.1","wan":"127.0.0.1","wan_ipv4":"127.0.0.1"},"NodeMeta":{"consul-version":"1.22.0"},
		 "ServiceKind":"","ServiceID":"web","ServiceName":"web","ServiceTags":["v1","primary"],"ServiceAddress":"","ServiceWeights":{"Passing":1,"Warning":1},"ServiceMeta":{"a":"b"},
		 "ServicePort":80,"ServiceSocketPath":"","ServiceEnableTagOverride":false,"ServiceProxy":{"Mode":"","MeshGateway":{},"Expose":{}},"ServiceConnect":{},"ServiceLocality":null,"CreateIndex":0,"ModifyIndex":0}]`,
		"/v1/catalog/node/dev1":                                   `{"Node":` + wireDev1 + `,"Services":{"web":` + wireWeb + `}}`,
		"/v1/catalog/node-services/dev1":                          `{"Node":` + wireDev1 + `,"Services":[` + wireWeb + `]}`,
		"/v1/health/service/web":                                  `[{"Node":` + wireDev1 + `,"Service":` + wireWeb + `,"Checks":[` + wireSerf + `,` + wireWebCheck + `]}]`,
		"/v1/health/node/dev1":                                    `[` + wireSerf + `,` + wireWebCheck + `]`,
		"/v1/health/checks/web":                                   `[` + wireWebCheck + `]`,
		"/v1/health/state/warning":                                `[` + wireWebCheck + `]`,
		"/v1/health/state/any":                                    `[` + wireSerf + `,` + wireWebCheck + `]`,
		"/v1/health/service/web?passing":                          `[]`,
		"/v1/health/service/web?passing=false&tag=V1&tag=primary": `[{"Node":` + wireDev1 + `,"Service":` + wireWeb + `,"Checks":[` + wireSerf + `,` + wireWebCheck + `]}]`,
		"/v1/status/leader":                                       `"127.0.0.1:8300"`,
		"/v1/status/peers":                                        `["127.0.0.1:8300","127.0.0.3:8300"]`,
	} {
		a := l.ok("GET", path, "")
		sameJSON(t, a.body, want)
	}
	l.run([]exchange{
		{"GET", "/v1/catalog/service/none", "", 200, "[]"},
		{"GET", "/v1/catalog/services?node-meta=x:y", "", 200, "{}"},
		{"GET", "/v1/catalog/nodes?node-meta=x:y", "", 200, "[]"},
		{"GET", "/v1/catalog/node/none", "", 200, "null"},
		{"GET", "/v1/catalog/node-services/none", "", 200, `{"Node":null,"Services":[]}`},
		{"GET", "/v1/health/service/none", "", 200, "[]"},
		{"GET", "/v1/health/state/bogus", "", 200, "[]"},
		{"GET", "/v1/health/service/web?tag=v1&tag=nope", "", 200, "[]"},
		{"GET", "/v1/health/service/web?passing=maybe", "", 400, "Invalid value for ?passing"},
		{"GET", "/v1/catalog/service/", "", 400, "Missing service name"},
		{"GET", "/v1/catalog/node/", "", 400, "Missing node name"},
		{"GET", "/v1/health/state/", "", 400, "Missing check state"},
		{"GET", "/v1/health/service/", "", 400, "Missing service name"},
		{"GET", "/v1/status/leader?dc=wrong_dc1", "", 500, "No path to datacenter"},
		{"GET", "/v1/status/peers?dc=wrong_dc1", "", 500, "No path to datacenter"},
	})
	// The order of the fields, which people read and some tests compare.
	if a := l.get("/v1/catalog/service/web"); !strings.HasPrefix(a.body, `[{"ID":"bf0b901d-f9b5-7c92-62fa-796d6b1574af","Node":"dev1","Address":`) {
		t.Errorf("%s", a.body)
	}
}

func TestRegister(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.run([]exchange{
		{"PUT", "/v1/catalog/register", `{"Node":"ext1","Address":"10.9.9.9","Service":{"Service":"db","Port":5432},"Check":{"CheckID":"service:db","Name":"db","Status":"passing","ServiceID":"db"}}`, 200, "true"},
		{"PUT", "/v1/catalog/register", `{"Address":"10.9.9.9"}`, 500, "Must provide node"},
		{"PUT", "/v1/catalog/register", `{"Node":"x"}`, 500, "Must provide address if SkipNodeUpdate is not set"},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","ID":"nope"}`, 500, `Bad node ID: "nope" is not a UUID`},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Service":{"ID":"s"}}`, 500, "Must provide service name with ID"},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Datacenter":"far"}`, 500, "No path to datacenter"},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Check":{"Node":"y","CheckID":"c"}}`, 500, `check node "y" does not match node "x"`},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Check":{"CheckID":"c","Status":"fluffy"}}`, 500, `Invalid check status "fluffy": it is passing, warning or critical`},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Check":{"CheckID":"c","ServiceID":"nope"}}`, 500, "Missing service registration"},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Foo":1}`, 400, `Request decode failed: json: unknown field "Foo"`},
		{"PUT", "/v1/catalog/register", `{"Node":"x","Address":"1.1.1.1","Service":{"Service":"s","Weights":{"Passing":-1,"Warning":1}}}`, 500, "Invalid weights: Passing must be from 1 to 65535, Warning from 0 to 65535"},
		{"PUT", "/v1/catalog/register", ``, 400, "Request decode failed: EOF"},
		{"PUT", "/v1/catalog/deregister", `{"Address":"10.9.9.9"}`, 500, "Must provide node"},
		{"PUT", "/v1/catalog/deregister", `{"Node":"none"}`, 200, "true"},
		{"PUT", "/v1/catalog/deregister", `{"Node":"ext1","ServiceID":"none"}`, 200, "true"},
		{"PUT", "/v1/catalog/deregister", `{"Node":"ext1","Datacenter":"far"}`, 500, "No path to datacenter"},
	})
	sameJSON(t, l.get("/v1/health/service/db").body, `[{"Node":{"ID":"","Node":"ext1","Address":"10.9.9.9","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":0,"ModifyIndex":0},
	 "Service":{"ID":"db","Service":"db","Tags":[],"Address":"","Meta":null,"Port":5432,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":0,"ModifyIndex":0},
	 "Checks":[{"Node":"ext1","CheckID":"service:db","Name":"db","Status":"passing","Notes":"","Output":"","ServiceID":"db","ServiceName":"db","ServiceTags":[],"Type":"","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}]}]`)
	if a := l.get("/v1/catalog/node/x"); a.body != "null" {
		t.Errorf("a refused registration left a node: %s", a.body)
	}
	// What one reads one can write back: nothing changes, nobody is woken.
	before := l.get("/v1/health/service/db").index(t)
	l.ok("PUT", "/v1/catalog/register", `{"Node":"ext1","Address":"10.9.9.9","Service":{"Service":"db","Port":5432},"Check":{"CheckID":"service:db","Name":"db","Status":"passing","ServiceID":"db"}}`)
	if after := l.get("/v1/health/service/db").index(t); after != before {
		t.Errorf("the same registration moved the index from %d to %d", before, after)
	}
	// Fields for readers survive, and a definition's durations come in two forms.
	l.ok("PUT", "/v1/catalog/register", `{"Node":"ext1","SkipNodeUpdate":true,"Service":{"Kind":"connect-proxy","ID":"p","Service":"p","Proxy":{"DestinationServiceName":"db","Mode":"transparent","Upstreams":[{"LocalBindPort":9191,"Config":{"x":1000}}],"MeshGateway":{},"Expose":{}},"SocketPath":"/run/p.sock"},
	 "Checks":[{"CheckID":"a","Definition":{"UDP":"1.1.1.1:53","IntervalDuration":5000000000,"Timeout":"1s","Interval":"0s"}}]}`)
	a := l.get("/v1/health/service/p")
	for _, want := range []string{`"Kind":"connect-proxy"`, `"DestinationServiceName":"db"`, `"x":1000`, `"SocketPath":"/run/p.sock"`, `"Type":"udp"`, `"Definition":{"Interval":"5s","Timeout":"1s","UDP":"1.1.1.1:53"}`, `"Status":"critical"`} {
		if !strings.Contains(a.body, want) {
			t.Errorf("without %s: %s", want, a.body)
		}
	}
	l.run([]exchange{
		{"PUT", "/v1/catalog/deregister", `{"Node":"ext1","CheckID":"a"}`, 200, "true"},
		{"PUT", "/v1/catalog/deregister", `{"Node":"ext1","ServiceID":"db"}`, 200, "true"},
		{"GET", "/v1/health/node/ext1", ``, 200, "[]"},
		{"PUT", "/v1/catalog/deregister", `{"Node":"ext1"}`, 200, "true"},
		{"GET", "/v1/catalog/node/ext1", ``, 200, "null"},
	})
}

// Traefik puts the two lists together by position.
func TestOneOrderOfInstances(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	for i := range 40 {
		n, s := (i*7)%5, (i*11)%8
		l.ok("PUT", "/v1/catalog/register", fmt.Sprintf(`{"Node":"Node%d","Address":"10.0.0.%d","NodeMeta":{"half":"%d"},"Service":{"ID":"web-%d","Service":"web","Tags":["t%d"]},"Check":{"CheckID":"c%d","Status":"%s","ServiceID":"web-%d"}}`,
			n, n, n%2, s, s%3, s, []string{"passing", "critical"}[s%2], s))
	}
	for _, query := range []string{"", "?tag=t1", "?node-meta=half:1", "?stale"} {
		var plain []serviceNode
		var healthy []struct{ Node, Service json.RawMessage }
		l.ok("GET", "/v1/catalog/service/web"+query, "").into(t, &plain)
		l.ok("GET", "/v1/health/service/web"+query, "").into(t, &healthy)
		var a, b []string
		for i := range plain {
			a = append(a, plain[i].Node+"/"+plain[i].ServiceID)
		}
		for i := range healthy {
			var n struct{ Node string }
			var s struct{ ID string }
			json.Unmarshal(healthy[i].Node, &n)
			json.Unmarshal(healthy[i].Service, &s)
			b = append(b, n.Node+"/"+s.ID)
		}
		if len(a) == 0 || !slices.Equal(a, b) || !slices.IsSorted(a) {
			t.Errorf("%s\n%v\n%v", query, a, b)
		}
	}
}

// Spring sends KV values as text/plain and its parameters in other letters.
func TestForeignContentTypes(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", ""} {
		if a := l.do("PUT", "/v1/kv/form", "a=b&c=d", "Content-Type: "+kind); a.status != 200 {
			t.Errorf("%s: %d", kind, a.status)
		}
		if a := l.get("/v1/kv/form?raw"); a.body != "a=b&c=d" {
			t.Errorf("%s: %q", kind, a.body)
		}
		if a := l.do("PUT", "/v1/session/create", `{"name":"s"}`, "Content-Type: "+kind); a.status != 200 {
			t.Errorf("%s: %d %s", kind, a.status, a.body)
		}
	}
}
