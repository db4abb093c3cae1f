package agent

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
)

// TestRegistrationsAreInTheCatalogAtOnce registers what the measured Consul was given and wants what it showed.
func TestRegistrationsAreInTheCatalogAtOnce(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	a := build(t, options(t, d, "node-01")) // it does not even run
	registered(t, a, `{"Name":"web","Port":80,"Tags":["v1","primary"],"Meta":{"a":"b"},"Check":{"TTL":"30s","DeregisterCriticalServiceAfter":"1s"}}`)
	registered(t, a, `{"name":"web2","id":"web2-1","port":81,"address":"10.1.2.3","checks":[{"http":"http://127.0.0.1:1/x","interval":"10s","timeout":"1s"},{"tcp":"127.0.0.1:1","interval":"10s","name":"tcpc"}]}`)

	node := d.look(catalog.QueryNode, "node-01")
	if len(node.Nodes) != 1 || !sameNode(&node.Nodes[0], &a.o.Node) {
		t.Errorf("the node: %+v", node.Nodes)
	}
	web := d.service("node-01", "web")
	web.CreateIndex, web.ModifyIndex = 0, 0
	if want := (&catalog.Service{Node: "node-01", ID: "web", Name: "web", Tags: []string{"v1", "primary"}, Port: 80, Meta: map[string]string{"a": "b"},
		Weights: catalog.Weights{Passing: 1, Warning: 1}}); !reflect.DeepEqual(web, want) {
		t.Errorf("web: %+v", web)
	}
	addr := catalog.Address{Address: "10.1.2.3", Port: 81}
	if got := d.service("node-01", "web2-1").TaggedAddresses; !reflect.DeepEqual(got, map[string]catalog.Address{"lan_ipv4": addr, "wan_ipv4": addr}) {
		t.Errorf("web2: %+v", got)
	}
	var checks []string
	for _, c := range d.look(catalog.QueryNodeChecks, "node-01").Checks {
		checks = append(checks, fmt.Sprintf("%s|%s|%s|%s|%s|%s|%s|%v", c.ID, c.Name, c.Status, c.ServiceName, c.Type, c.Interval, c.Timeout, c.ServiceTags))
	}
	want := []string{
		"service:web|Service 'web' check|critical|web|ttl|||[v1 primary]",
		"service:web2-1:1|Service 'web2' check|critical|web2|http|10s|1s|[]",
		"service:web2-1:2|tcpc|critical|web2|tcp|10s||[]",
	}
	if !slices.Equal(checks, want) {
		t.Errorf("checks:\n%q\nwant\n%q", checks, want)
	}
	for _, s := range a.Services() {
		if !s.Synced {
			t.Errorf("%s is not known to be in the catalog", s.ID)
		}
	}

	d.written()
	registered(t, a, `{"Name":"web","Port":80,"Tags":["v1","primary"],"Meta":{"a":"b"},"Check":{"TTL":"30s","DeregisterCriticalServiceAfter":"1s"}}`)
	if n := d.written(); n != 0 {
		t.Errorf("registering the same again wrote %d times", n)
	}

	// Another definition of the service keeps the checks it does not name, unless it is told to replace them.
	def := `{"Name":"web2","ID":"web2-1","Port":82,"Tags":["new"],"Check":{"CheckID":"mine","TTL":"1h"}}`
	registered(t, a, def)
	if c := d.check("node-01", "service:web2-1:2"); c == nil || !slices.Equal(c.ServiceTags, []string{"new"}) {
		t.Errorf("a check that the new definition does not name: %+v", c)
	}
	if err := a.RegisterService(t.Context(), serviceOf(t, def), true); err != nil {
		t.Fatal(err)
	}
	if c := d.check("node-01", "service:web2-1:2"); c != nil || d.check("node-01", "mine") == nil {
		t.Errorf("after replacing the checks: %+v", c)
	}

	if err := a.DeregisterService(t.Context(), "web2-1"); err != nil {
		t.Fatal(err)
	}
	if d.service("node-01", "web2-1") != nil || d.check("node-01", "mine") != nil || len(a.Services()) != 1 || len(a.Checks()) != 1 {
		t.Error("a service that was deregistered is still there")
	}
}

func TestACheckBelongsToOneService(t *testing.T) {
	t.Parallel()
	a := build(t, options(t, openDirectory(t), "node-01"))
	registered(t, a, `{"Name":"one","Check":{"CheckID":"c","TTL":"1h"}}`)
	if err := a.RegisterService(t.Context(), serviceOf(t, `{"Name":"two","Check":{"CheckID":"c","TTL":"1h"}}`), false); err == nil {
		t.Error("a second service took the check of the first")
	}
	if _, ok := a.Service("two"); ok {
		t.Error("a refused service is there")
	}
}

// TestAntiEntropy lets others write into what is this agent's.
func TestAntiEntropy(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		synctest.Wait()
		if len(d.look(catalog.QueryNode, "node-01").Nodes) != 1 {
			t.Fatal("the agent did not register its node when it started")
		}
		registered(t, a, `{"Name":"web","Port":80,"Check":{"TTL":"1000h","Status":"passing"}}`)
		d.do(
			catalog.Op{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: "node-01", ID: "stale", Name: "stale"}},
			catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "node-01", ID: "stale", Name: "stale", Status: Passing}},
			catalog.Op{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: "node-01", ID: "web", Name: "web", Port: 81}},
			catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "node-01", ID: "service:web", Name: "forged", Status: Critical, ServiceID: "web"}},
			catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "node-01", ID: SerfHealth, Name: "Serf Health Status", Status: Passing}},
			catalog.Op{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: "node-01", ID: ConsulService, Name: ConsulService, Port: 8300}},
		)
		pass(2 * time.Minute)
		synctest.Wait()
		if d.service("node-01", "stale") != nil || d.check("node-01", "stale") != nil {
			t.Error("what the agent does not know is still in the catalog")
		}
		if s := d.service("node-01", "web"); s == nil || s.Port != 80 {
			t.Errorf("the service was not put right: %+v", s)
		}
		if c := d.check("node-01", "service:web"); c == nil || c.Status != Passing || c.Name != "Service 'web' check" {
			t.Errorf("the check was not put right: %+v", c)
		}
		if d.check("node-01", SerfHealth) == nil || d.service("node-01", ConsulService) == nil {
			t.Error("what is the leader's was removed")
		}

		d.do(catalog.Op{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: "node-01"}})
		pass(2 * time.Minute)
		synctest.Wait()
		if d.service("node-01", "web") == nil || d.check("node-01", "service:web") == nil {
			t.Error("a node that was deregistered behind its agent's back does not come back")
		}
		d.written()
		pass(time.Hour)
		if n := d.written(); n != 0 {
			t.Errorf("an hour in which nothing happened wrote %d times", n)
		}
	})
}

func TestRegistrationsWithoutACatalog(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		d.set(func() { d.down = true })
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"web","Port":80}`)
		if s, ok := a.Service("web"); !ok || s.Synced {
			t.Errorf("the service should be here and not synced: %+v", s)
		}
		pass(time.Hour)
		d.set(func() { d.down = false })
		pass(2 * syncRetry)
		synctest.Wait()
		if d.service("node-01", "web") == nil {
			t.Error("the catalog came back, but not the service")
		}
	})
}

// TestOneRefusedRegistration: what the catalog does not take of one service must not keep its neighbours out.
func TestOneRefusedRegistration(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	d.down = true
	a := build(t, options(t, d, "node-01"))
	for i := range 3 {
		registered(t, a, fmt.Sprintf(`{"Name":"s%d","Check":{"TTL":"1h"}}`, i))
	}
	d.down = false
	d.refuse = func(op *catalog.Op) string {
		if op.Service != nil && op.Service.ID == "s1" || op.Check != nil && op.Check.ServiceID == "s1" {
			return "not this one"
		}
		return ""
	}
	if err := a.syncChanges(t.Context()); err == nil || err.Error() != "the catalog refuses service s1: not this one" {
		t.Errorf("error %v", err)
	}
	if d.service("node-01", "s0") == nil || d.service("node-01", "s1") != nil || d.check("node-01", "service:s2") == nil {
		t.Errorf("services %+v", d.look(catalog.QueryNode, "node-01").Services)
	}
	d.refuse = nil
	if err := a.syncChanges(t.Context()); err != nil || d.check("node-01", "service:s1") == nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestEnableTagOverride(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"free","Tags":["mine"],"EnableTagOverride":true,"Check":{"TTL":"1000h"}}`)
		registered(t, a, `{"Name":"fixed","Tags":["mine"]}`)
		for _, name := range []string{"free", "fixed"} {
			s := d.service("node-01", name)
			s.Tags = []string{"theirs"}
			d.do(catalog.Op{Verb: catalog.ServiceSet, Service: s})
		}
		pass(2 * time.Minute)
		synctest.Wait()
		for name, want := range map[string]string{"free": "theirs", "fixed": "mine"} {
			s, _ := a.Service(name)
			if got := d.service("node-01", name).Tags; !slices.Equal(got, []string{want}) || !slices.Equal(s.Tags, got) {
				t.Errorf("%s: the catalog has %v, the agent %v", name, got, s.Tags)
			}
		}
		registered(t, a, `{"Name":"free","Tags":["mine"],"EnableTagOverride":true,"Check":{"TTL":"1000h"}}`)
		if got := d.service("node-01", "free").Tags; !slices.Equal(got, []string{"theirs"}) {
			t.Errorf("registering the same again undid the override: %v", got)
		}
	})
}

func TestLocalityIsKeptForReaders(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	a := build(t, options(t, d, "node-01"))
	registered(t, a, `{"Name":"web","Locality":{"Region":"r","Zone":"z"}}`)
	var extra struct{ Locality Locality }
	if err := json.Unmarshal(d.service("node-01", "web").Extra, &extra); err != nil || extra.Locality != (Locality{"r", "z"}) {
		t.Errorf("%+v %v", extra, err)
	}
}

func TestStretch(t *testing.T) {
	t.Parallel()
	for nodes, want := range map[int]int{1: 1, 128: 1, 129: 2, 256: 2, 257: 3, 512: 3, 513: 4, 1024: 4} {
		if got := stretch(nodes); got != want {
			t.Errorf("%d nodes: %d, want %d", nodes, got, want)
		}
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	o := options(t, d, "node-01")
	o.Services = []ServiceDefinition{serviceOf(t, `{"Name":"stays","Check":{"TTL":"1h"}}`), serviceOf(t, `{"Name":"goes","Check":{"TTL":"1h"}}`)}
	o.Checks = []CheckDefinition{checkOf(t, `{"Name":"gone too","TTL":"1h"}`)}
	a := build(t, o)
	registered(t, a, `{"Name":"dynamic"}`)
	if err := a.UpdateTTL(t.Context(), "service:stays", Passing, "fine"); err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(t.Context(), []ServiceDefinition{{Name: "stays", Check: &CheckDefinition{TTL: -1}}}, nil); err == nil {
		t.Error("a wrong configuration was taken")
	}
	if len(a.Services()) != 3 {
		t.Error("a wrong configuration changed something")
	}
	err := a.Reload(t.Context(), []ServiceDefinition{serviceOf(t, `{"Name":"stays","Check":{"TTL":"2h"}}`), serviceOf(t, `{"Name":"new"}`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range d.look(catalog.QueryNode, "node-01").Services {
		names = append(names, s.ID)
	}
	if !slices.Equal(names, []string{"dynamic", "new", "stays"}) || len(a.Checks()) != 1 || local(t, a, "service:stays").Output != "fine" {
		t.Errorf("services %v checks %+v", names, a.Checks())
	}
	if names := o.Store.(*shelf).names(); slices.Contains(names, keptName("service", "stays")) {
		t.Errorf("a service of the configuration was kept: %v", names)
	}
}
