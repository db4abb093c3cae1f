package consulapi

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// population is the catalog that HashiCorp's client tests filter.
func (l *lab) population() {
	for _, reg := range []string{
		`{"Node":"foo","ID":"e0155642-135d-4739-9853-a1ee6c9f945b","Address":"127.0.0.2","TaggedAddresses":{"lan":"127.0.0.2","wan":"198.18.0.2"},"NodeMeta":{"env":"production","os":"linux"},"Locality":{"Region":"us-west-1","Zone":"us-west-1a"},
		  "Checks":[{"Node":"foo","CheckID":"foo:alive","Name":"foo-liveness","Status":"passing","Notes":"foo is alive and well"},{"Node":"foo","CheckID":"foo:ssh","Status":"passing"}]}`,
		`{"Node":"foo","SkipNodeUpdate":true,"Service":{"ID":"redisV1","Service":"redis","Tags":["v1"],"Meta":{"version":"1"},"Port":1234,"Address":"198.18.1.2","Locality":{"Region":"us-west-1","Zone":"us-west-1a"}},"Checks":[{"Node":"foo","CheckID":"foo:redisV1","Name":"redis-liveness","Status":"passing","ServiceID":"redisV1","ServiceName":"redis"}]}`,
		`{"Node":"foo","SkipNodeUpdate":true,"Service":{"ID":"redisV2","Service":"redis","Tags":["v2"],"Meta":{"version":"2"},"Port":1235,"Address":"198.18.1.2"},"Checks":[{"Node":"foo","CheckID":"foo:redisV2","Status":"passing","ServiceID":"redisV2","ServiceName":"redis"}]}`,
		`{"Node":"bar","SkipNodeUpdate":true,"Service":{"ID":"webV1","Service":"web","Tags":["v1","connect"],"Meta":{"version":"1","connect":"enabled"},"Port":443,"Connect":{"Native":true}},"Checks":[{"Node":"bar","CheckID":"bar:web:v1","Status":"warning","ServiceID":"webV1"}]}`,
		`{"Node":"bar","ID":"c6e7a976-8f4f-44b5-bdd3-631be7e8ecac","Address":"127.0.0.3","NodeMeta":{"env":"production","os":"windows"}}`,
		`{"Node":"baz","Address":"127.0.0.4","NodeMeta":{"env":"qa","os":"linux"},"Service":{"ID":"webV2","Service":"web","Tags":["v2"],"Port":8443},"Check":{"CheckID":"baz:web","Status":"critical","ServiceID":"webV2"}}`,
	} {
		l.ok("PUT", "/v1/catalog/register", reg)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.population()
	for _, x := range []struct {
		path, filter string
		want         int // elements
	}{
		{"/v1/catalog/nodes", "Meta.env == production", 2},
		{"/v1/catalog/nodes", "Meta[\"env\"] == production and Meta.os != windows", 1},
		{"/v1/catalog/nodes", "Node == bar or Node == baz", 2},
		{"/v1/catalog/nodes", "Address == `10.0.0.1`", 0},
		{"/v1/catalog/nodes", "Meta.env != production", 2}, // also where there is no env at all
		{"/v1/catalog/nodes", "Meta is empty or not (Meta.env == qa)", 3},
		{"/v1/catalog/nodes", "TaggedAddresses.wan matches `^198\\.`", 1},
		{"/v1/catalog/nodes", "env in Meta", 3},
		{"/v1/catalog/service/redis", "ServiceMeta.version == 1", 1},
		{"/v1/catalog/service/redis", "NodeMeta.os != windows", 2},
		{"/v1/catalog/service/redis", "ServicePort == 1235", 1},
		{"/v1/catalog/service/redis", "v2 in ServiceTags", 1},
		{"/v1/catalog/service/redis", "ServiceTags contains v2", 1},
		{"/v1/catalog/service/web", "ServiceConnect.Native == true", 1},
		{"/v1/catalog/services", "ServiceName matches \"^re\"", 1}, // HAProxy's data plane API
		{"/v1/catalog/services", "NodeMeta.os == linux", 2},
		{"/v1/catalog/services", "NodeMeta[\"nope\"] == nope", 0},
		{"/v1/health/service/web", "Service.Meta.version == 1", 1},
		{"/v1/health/service/web", "Node.Meta.os == linux", 1},
		{"/v1/health/service/web", "Checks.Status == critical", 1}, // through the list of checks
		{"/v1/health/service/redis", "Checks.CheckID == `foo:ssh` and Service.Port == 1234", 1},
		{"/v1/health/service/redis", "any Checks as k { k.Notes contains \"alive\" }", 2},
		{"/v1/health/service/redis", "all Checks as k { k.Status == passing }", 2},
		{"/v1/health/service/redis", "not Checks.Status == critical", 2},
		{"/v1/health/service/redis", "v1 in Checks.ServiceTags", 1},
		{"/v1/health/node/foo", "ServiceID == ``", 2},
		{"/v1/health/node/foo", "ServiceName == redis", 2},
		{"/v1/health/checks/redis", "Node == foo and v1 in ServiceTags", 1},
		{"/v1/health/state/any", "Status == warning or Status == critical", 2},
	} {
		a := l.ok("GET", x.path+"?filter="+url.QueryEscape(x.filter), "")
		var got any
		a.into(t, &got)
		n := 0
		switch got := got.(type) {
		case []any:
			n = len(got)
		case map[string]any:
			n = len(got)
		}
		if n != x.want {
			t.Errorf("%s %s: %d, want %d: %s", x.path, x.filter, n, x.want, a.body)
		}
	}
	var at struct{ Services map[string]any }
	l.ok("GET", "/v1/catalog/node/foo?filter="+url.QueryEscape("v2 in Tags"), "").into(t, &at)
	if len(at.Services) != 1 || at.Services["redisV2"] == nil {
		t.Errorf("%v", at.Services)
	}
	if a := l.ok("GET", "/v1/catalog/service/redis", ""); !strings.Contains(a.body, `"ServiceLocality":{"Region":"us-west-1","Zone":"us-west-1a"}`) {
		t.Errorf("locality: %s", a.body)
	}
	if a := l.ok("GET", "/v1/catalog/nodes", ""); !strings.Contains(a.body, `"Locality":{"Region":"us-west-1","Zone":"us-west-1a"}`) {
		t.Errorf("locality: %s", a.body)
	}
}

func TestFiltersThatAreNone(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.population()
	const prefix = "Failed to create boolean expression evaluator: "
	for filter, want := range map[string]string{
		"Nope == 1":                  prefix + `Selector "Nope" is not valid`,
		"Service.Nope == 1":          prefix + `Selector "Service.Nope" is not valid`,
		"Checks.Nope == 1":           prefix + `Selector "Checks.Nope" is not valid`,
		"any Nope as x { x == 1 }":   prefix + `Selector "Nope" is not valid`,
		"Service.CreateIndex == 1":   prefix + `Selector "Service.CreateIndex" is not valid`,
		"bogus ===":                  prefix + "1:9 (8): no match found",
		"(":                          prefix,
		"Service.Port == not-a-port": prefix,
		"Service.Port == abc":        "Failed to execute filter: ",
		"Service.ID matches `(`":     "Failed to execute filter: ",
	} {
		a := l.get("/v1/health/service/redis?filter=" + url.QueryEscape(filter))
		if a.status != 500 || !strings.HasPrefix(a.body, want) {
			t.Errorf("%s: %d %s", filter, a.status, a.body)
		}
	}
	if a := l.get("/v1/catalog/nodes?filter=" + strings.Repeat("a", maxFilter+1)); a.status != 400 {
		t.Errorf("a long filter: %d", a.status)
	}
	if a := l.get("/v1/catalog/nodes?filter=Node==%22%92%22"); a.status != 400 || !strings.Contains(a.body, "UTF-8") {
		t.Errorf("a filter of no text: %d %s", a.status, a.body)
	}
	// Nesting makes the grammar's parser start over again and again: its work is bounded.
	began := time.Now()
	nested := strings.Repeat("(", 2000) + "Node == a" + strings.Repeat(")", 2000)
	if a := l.get("/v1/catalog/nodes?filter=" + url.QueryEscape(nested)); a.status != 500 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a nested filter took %v", took)
	}
}

// What is spelled again means the same: quotes, paths with dots, every operator.
func TestSpelling(t *testing.T) {
	t.Parallel()
	v := instance{Node: node{Node: "n", Meta: map[string]string{"a.b": `q"uo`, "c": "`"}}, Service: nodeService{ID: "s", Tags: []string{"x\\"}}, Checks: []check{{Status: "passing"}, {Status: "warning", Output: "line\nfeed"}}}
	for expression, want := range map[string]bool{
		"Node.Meta[\"a.b\"] == `q\"uo`":                                                       true,
		"Node.Meta.c == \"`\"":                                                                true,
		"`x\\` in Service.Tags":                                                               true,
		"Service.Tags contains `x\\`":                                                         true,
		"Service.Tags is not empty":                                                           true,
		"Checks.Output matches `^line`":                                                       true,
		"Checks.Output not matches `^line`":                                                   true, // of any check
		"Checks.Status != passing":                                                            true,
		"Checks.Output is not empty":                                                          true,
		"Checks.Status not in Service.Tags":                                                   true,
		"not (Checks.Status == critical) and Node.Node == n":                                  true,
		"all Checks as i, k { k.Status == passing }":                                          false,
		"any Checks as _, k { k.Status == warning }":                                          true,
		"any Checks as i, _ { i == 1 }":                                                       true,
		"any Node.Meta as k { k == c }":                                                       true,
		"Checks is empty":                                                                     false,
		"(Node.Node == x or Checks.Status == warning) and Node.Node == n":                     true,
		"Node.Node == n or Checks.Status == nope and Node.Node == x":                          true,
		"(Node.Node == n or Checks.Status == nope) and Node.Node == x":                        false,
		"not (Checks.Status == nope or Node.Node == n)":                                       false,
		"not Checks.Status == nope and not (Node.Node == x and Node.Node == n)":               true,
		"not (not (Checks.Status == warning) or Node.Node == x)":                              true,
		"(any Checks as k { k.Status == nope }) or Checks.Status == warning":                  true,
		"Node.Node == x or (Checks.Status == warning and (Node.Node == x or Node.Node == n))": true,
		strings.Repeat("Checks.Status == nope or ", 60) + "Node.Node == n":                    true,
		strings.Repeat("Checks.Status == warning and ", 60) + "Node.Node == x":                false,
		strings.Repeat("Node.Node == x or ", 500) + "Node.Node == n":                          true,
		strings.Repeat("(", 6) + "Node.Node == n" + strings.Repeat(")", 6):                    true,
		"Checks.0.Status == passing and Checks.1.Status==warning":                             true,
	} {
		f, err := compile(expression, instance{})
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		if got, err := f.keeps(v); err != nil || got != want {
			t.Errorf("%s: %v %v; spelled %s", expression, got, err, f.by.Expression())
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"Node.Node == a", "Checks.Status == `x`", "any Checks as k { k.Name == \"\\u0022\" }", "not a in Service.Tags and (Node.Meta.x is empty)"} {
		f.Add(s)
	}
	v := instance{Node: node{Node: "n", Meta: map[string]string{"a": "b"}}, Checks: []check{{Status: "passing"}}}
	f.Fuzz(func(t *testing.T, expression string) {
		size := len(expression)
		// Each parenthesis around the rest costs many times as much, up to maxExpressions: docs/compat/consul.md.
		if n := strings.Count(expression, "("); n > 2 {
			size = 1 << 20
		} else {
			size <<= 4 * n
		}
		fuzztest.Bounded(t, size, func() {
			c, err := compile(expression, instance{})
			if err != nil {
				if err.Error() == "" {
					t.Errorf("%q is refused without a word", expression)
				}
				return
			}
			one, err1 := c.keeps(v)
			two, err2 := c.keeps(v)
			if one != two || (err1 == nil) != (err2 == nil) {
				t.Errorf("%q keeps it or not, as it likes", expression)
			}
		})
	})
}
