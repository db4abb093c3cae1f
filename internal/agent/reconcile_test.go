package agent

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/serf/serf"

	"holdfast.dev/holdfast/internal/catalog"
)

// leading makes options of an agent whose server leads while lead says so.
func leading(o *Options, lead func() bool, raft ...string) {
	o.Server, o.IsLeader = true, lead
	o.RaftMembers = func(context.Context) ([]string, error) { return raft, nil }
	o.Gossip.Tags["role"], o.Gossip.Tags["port"], o.Gossip.Tags["build"] = "consul", "8300", "1.22.0:abc"
}

func always() bool { return true }

func TestReconcile(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k := key(t, 32)
	o := gossiping(t, d, "node-01", k)
	leading(&o, always, "node-01", "node-02")
	a := build(t, o)
	start(t, a)
	o = gossiping(t, d, "node-02", k)
	leading(&o, func() bool { return false }) // a server that follows
	b := build(t, o)
	stopB := start(t, b)
	c := build(t, gossiping(t, d, "node-03", k))
	stopC := start(t, c)
	o = gossiping(t, d, "node-04", k)
	o.Gossip.Tags["role"], o.Gossip.Tags["port"] = "consul", "8300" // it only says that it is a server
	e := build(t, o)
	start(t, e)
	for _, x := range []*Agent{b, c, e} {
		joined(t, x, a)
	}
	health := func(node, status, output string) func() bool {
		return func() bool {
			c := d.check(node, SerfHealth)
			return c != nil && c.Status == status && c.Output == output && c.Name == "Serf Health Status"
		}
	}
	for _, node := range []string{"node-01", "node-02", "node-03", "node-04"} {
		until(t, node+" is healthy in the catalog", health(node, Passing, "Agent alive and reachable"))
		if n := d.look(catalog.QueryNode, node).Nodes[0]; n.Address != "127.0.0.1" || n.ID == "" {
			t.Errorf("%+v", n)
		}
	}
	until(t, "the servers are the service consul", func() bool {
		s := d.service("node-02", ConsulService)
		return d.service("node-01", ConsulService) != nil && s != nil && s.Port == 8300 && s.Meta["version"] == "1.22.0"
	})
	if d.service("node-03", ConsulService) != nil || d.service("node-04", ConsulService) != nil {
		t.Error("who has no vote is a server in the catalog")
	}

	stopC()
	until(t, "a silent agent is critical", health("node-03", Critical, "Agent not live or unreachable"))
	if err := a.ForceLeave("node-03", false); err != nil {
		t.Fatal(err)
	}
	until(t, "an agent that left is deregistered", func() bool { return len(d.look(catalog.QueryNode, "node-03").Nodes) == 0 })

	if err := b.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "a server that left the gossip but votes is critical", health("node-02", Critical, "Agent not live or unreachable"))
	if d.service("node-02", ConsulService) == nil {
		t.Error("its services are gone")
	}
	stopB()
}

// TestOnlyTheLeaderReconciles, and it begins when it becomes one.
func TestOnlyTheLeaderReconciles(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	var mu sync.Mutex
	leads, asked := false, 0
	o := gossiping(t, d, "node-01", nil)
	leading(&o, func() bool { mu.Lock(); defer mu.Unlock(); asked++; return leads }, "node-01")
	a := build(t, o)
	start(t, a)
	until(t, "it looked several times", func() bool { mu.Lock(); defer mu.Unlock(); return asked > 3 })
	if d.check("node-01", SerfHealth) != nil {
		t.Error("an agent that does not lead wrote what is the leader's")
	}
	mu.Lock()
	leads = true
	mu.Unlock()
	until(t, "the new leader reconciles", func() bool { return d.check("node-01", SerfHealth) != nil })
}

// TestReap: a node that gossip does not know goes after a while, unless it votes or was never gossip's.
func TestReap(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		for _, node := range []string{"stray", "voter", "known", "back"} {
			d.do(catalog.Op{Verb: catalog.NodeSet, Node: &catalog.Node{Name: node, Address: "10.0.0.1"}},
				catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: node, ID: SerfHealth, Name: "x", Status: Passing}})
		}
		d.do(catalog.Op{Verb: catalog.NodeSet, Node: &catalog.Node{Name: "external", Address: "10.0.0.1"}},
			catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "external", ID: "ping", Name: "x", Status: Passing}})
		a := build(t, options(t, d, "node-01"))
		r := &reconciler{g: &gossip{a: a}}
		r.begin()
		members := []serf.Member{{Name: "known"}}
		look := func(members ...serf.Member) {
			t.Helper()
			if err := r.reap(t.Context(), members, map[string]bool{"voter": true}); err != nil {
				t.Fatal(err)
			}
		}
		look(members...)
		pass(9 * time.Minute)
		look(append(members, serf.Member{Name: "back"})...)
		if len(d.look(catalog.QueryNodes, "").Nodes) != 5 {
			t.Error("a node went before its time")
		}
		pass(2 * time.Minute)
		look(members...)
		var names []string
		for _, n := range d.look(catalog.QueryNodes, "").Nodes {
			names = append(names, n.Name)
		}
		if len(names) != 4 || len(d.look(catalog.QueryNode, "stray").Nodes) != 0 {
			t.Errorf("left: %v", names)
		}
	})
}

// TestOneRefusedMember: a member that the catalog does not take does not keep the others out.
func TestOneRefusedMember(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	d.refuse = func(op *catalog.Op) string {
		if op.Node != nil && op.Node.Name == "bad" {
			return "Node name bad is reserved"
		}
		return ""
	}
	a := build(t, options(t, d, "node-01"))
	r := &reconciler{g: &gossip{a: a}}
	members := []serf.Member{{Name: "bad", Status: serf.StatusAlive}, {Name: "good", Status: serf.StatusAlive}}
	if err := r.members(t.Context(), members, nil); err != nil {
		t.Fatal(err)
	}
	if d.check("good", SerfHealth) == nil || d.check("bad", SerfHealth) != nil {
		t.Errorf("%+v", d.look(catalog.QueryNodes, ""))
	}
	before := d.written()
	if err := r.members(t.Context(), members[1:], nil); err != nil || d.written() != 0 || before == 0 {
		t.Errorf("reconciling again wrote: %v", err)
	}
	d.down = true
	if err := r.members(t.Context(), members, nil); err == nil {
		t.Error("no catalog, no error")
	}
}
