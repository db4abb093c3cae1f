package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/serf/serf"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
)

const (
	reconcileEvery  = time.Minute            // everything, while the server of this agent leads
	reconcileRetry  = 5 * time.Second        // after a failure
	leadershipEvery = 250 * time.Millisecond // how soon the agent of a new leader notices
	strayGrace      = 10 * time.Minute       // how long a node may be unknown to gossip before it is deregistered
	reconcileBatch  = 32                     // members per proposal

	outputAlive  = "Agent alive and reachable"
	outputFailed = "Agent not live or unreachable"
)

// reconciler brings what gossip knows of members into the catalog. It works only while its server leads.
type reconciler struct {
	g      *gossip
	strays map[string]time.Time // nodes with serfHealth that gossip does not know -> since when
	soon   bool                 // a server's vote is about to follow its gossip, or the other way round: look again soon
}

// reconcile runs until ctx ends: the members that moved at once, everything when leadership begins and every minute.
func (g *gossip) reconcile(ctx context.Context) {
	if g.a.o.IsLeader == nil {
		g.drain(ctx)
		return
	}
	r := &reconciler{g: g}
	leads := time.NewTicker(leadershipEvery)
	defer leads.Stop()
	var due time.Time // of the next full one; zero: this agent's server does not lead
	for {
		var moved []string
		select {
		case <-ctx.Done():
			return
		case moved = <-g.moved:
			moved = g.moreMoved(moved)
		case <-leads.C:
		}
		if !g.a.o.IsLeader() {
			due, r.strays = time.Time{}, nil
			continue
		}
		now := g.a.o.Now()
		var err error
		switch {
		case due.IsZero() || !now.Before(due):
			r.begin()
			r.soon = false
			err = r.all(ctx)
			due = now.Add(reconcileEvery)
		case moved != nil:
			err = r.some(ctx, moved)
		}
		if r.soon && due.Sub(now) > reconcileRetry {
			due = now.Add(reconcileRetry)
		}
		if err != nil && ctx.Err() == nil {
			g.a.o.Log.Warn("what gossip knows is not in the catalog yet; trying again", "error", err)
			due = now.Add(reconcileRetry)
		}
	}
}

func (g *gossip) drain(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.moved:
		}
	}
}

// moreMoved takes what else is waiting, so that a burst is one round.
func (g *gossip) moreMoved(names []string) []string {
	for {
		select {
		case more := <-g.moved:
			names = append(names, more...)
		default:
			slices.Sort(names)
			return slices.Compact(names)
		}
	}
}

func (r *reconciler) begin() {
	if r.strays == nil {
		r.strays = map[string]time.Time{}
	}
}

// some reconciles the named members.
func (r *reconciler) some(ctx context.Context, names []string) error {
	servers, err := r.servers(ctx)
	if err != nil {
		return err
	}
	var members []serf.Member
	for _, m := range r.g.serf.Members() {
		if _, named := slices.BinarySearch(names, m.Name); named {
			members = append(members, m)
		}
	}
	return r.members(ctx, members, servers)
}

// all reconciles every member, and the nodes that were members once.
func (r *reconciler) all(ctx context.Context) error {
	servers, err := r.servers(ctx)
	if err != nil {
		return err
	}
	members := r.g.serf.Members()
	if err := r.members(ctx, members, servers); err != nil {
		return err
	}
	return r.reap(ctx, members, servers)
}

// servers returns the names of the nodes with a vote or about to get one.
func (r *reconciler) servers(ctx context.Context) (map[string]bool, error) {
	servers := map[string]bool{r.g.a.o.Node.Name: true} // it leads, whether its name is published already or not
	if r.g.a.o.RaftMembers == nil {
		return servers, nil
	}
	names, err := r.g.a.o.RaftMembers(ctx)
	for _, n := range names {
		servers[n] = true
	}
	return servers, err
}

// members proposes what the catalog lacks of these members. What it refuses of one does not keep the others out.
func (r *reconciler) members(ctx context.Context, members []serf.Member, servers map[string]bool) error {
	type change struct {
		name string
		ops  []catalog.Op
	}
	for batch := range slices.Chunk(members, reconcileBatch) {
		var changes []change
		var all []catalog.Op
		for _, m := range batch {
			if m.Tags["role"] == "consul" && (m.Status == serf.StatusAlive && !servers[m.Name] || m.Status == serf.StatusLeft && servers[m.Name]) {
				r.soon = true
			}
			ops, err := r.ops(ctx, m, servers[m.Name])
			if err != nil {
				return err
			}
			if len(ops) > 0 {
				changes = append(changes, change{m.Name, ops})
				all = append(all, ops...)
			}
		}
		if len(all) == 0 {
			continue
		}
		outcome, err := r.g.a.o.Directory.Discover(ctx, r.g.a.o.Who, all)
		if err != nil {
			return err
		}
		if len(outcome.Failures) == 0 {
			continue
		}
		for _, c := range changes {
			outcome, err := r.g.a.o.Directory.Discover(ctx, r.g.a.o.Who, c.ops)
			if err != nil {
				return err
			}
			for _, f := range outcome.Failures {
				r.g.a.o.Log.Error("the catalog refuses a member of the gossip", "member", c.name, "reason", f.What)
			}
		}
	}
	return nil
}

func (r *reconciler) look(ctx context.Context, kind catalog.Kind, name string) (core.Found, error) {
	return r.g.a.o.Directory.Lookup(ctx, r.g.a.o.Who, core.LookupRequest{Query: catalog.Query{Kind: kind, Name: name}})
}

// ops returns what makes the catalog say of one member what gossip says.
func (r *reconciler) ops(ctx context.Context, m serf.Member, server bool) ([]catalog.Op, error) {
	found, err := r.look(ctx, catalog.QueryNode, m.Name)
	if err != nil {
		return nil, err
	}
	checks, err := r.look(ctx, catalog.QueryNodeChecks, m.Name)
	if err != nil {
		return nil, err
	}
	there := len(found.Nodes) > 0
	switch m.Status {
	case serf.StatusAlive:
		var ops []catalog.Op
		if !there {
			// The node itself may have come first by now, and knows more of itself: it stays as it is.
			ops = append(ops, catalog.Op{Verb: catalog.NodeSet, SkipNodeUpdate: true, Node: &catalog.Node{
				ID: m.Tags["id"], Name: m.Name, Address: m.Addr.String(), Datacenter: m.Tags["dc"]}})
		}
		ops = append(ops, consulService(m, server, found.Services)...)
		return append(ops, health(m.Name, Passing, outputAlive, checks.Checks)...), nil
	case serf.StatusFailed:
		if !there {
			return nil, nil
		}
		return health(m.Name, Critical, outputFailed, checks.Checks), nil
	case serf.StatusLeft:
		if !there {
			return nil, nil
		}
		if server {
			r.g.a.o.Log.Warn("a server has left the gossip but has its vote still; its node stays, critical", "member", m.Name)
			return health(m.Name, Critical, outputFailed, checks.Checks), nil
		}
		r.g.a.o.Log.Info("a member left; its node is deregistered", "member", m.Name)
		return []catalog.Op{{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: m.Name}}}, nil
	}
	return nil, nil
}

// consulService is what every server is, for as long as Raft says so: a gossip tag alone makes nobody a server.
func consulService(m serf.Member, server bool, there []catalog.Service) []catalog.Op {
	i := slices.IndexFunc(there, func(s catalog.Service) bool { return s.ID == ConsulService })
	port, err := strconv.Atoi(m.Tags["port"])
	if !server || m.Tags["role"] != "consul" || err != nil || port < 1 || port > 65535 {
		if i < 0 || there[i].Name != ConsulService {
			return nil
		}
		return []catalog.Op{{Verb: catalog.ServiceDelete, Service: &catalog.Service{Node: m.Name, ID: ConsulService}}}
	}
	version, _, _ := strings.Cut(m.Tags["build"], ":")
	s := &catalog.Service{
		Node: m.Name, ID: ConsulService, Name: ConsulService, Port: port, Weights: catalog.Weights{Passing: 1, Warning: 1},
		Meta: map[string]string{
			"raft_version": m.Tags["raft_vsn"], "version": version, "serf_protocol_current": fmt.Sprint(m.ProtocolCur),
			"serf_protocol_min": fmt.Sprint(m.ProtocolMin), "serf_protocol_max": fmt.Sprint(m.ProtocolMax),
		},
	}
	if i >= 0 && sameService(s, &there[i]) {
		return nil
	}
	return []catalog.Op{{Verb: catalog.ServiceSet, Service: s}}
}

// health is the leader's check of a node, if the catalog says something else.
func health(node, status, output string, there []catalog.Check) []catalog.Op {
	for _, c := range there {
		if c.ID == SerfHealth && c.Status == status && c.Output == output {
			return nil
		}
	}
	return []catalog.Op{{Verb: catalog.CheckSet, Check: &catalog.Check{Node: node, ID: SerfHealth, Name: serfHealthName, Status: status, Output: output}}}
}

// reap deregisters nodes that gossip once vouched for and has not known for a while. A leader that has just started knows
// nobody yet: hence the grace.
func (r *reconciler) reap(ctx context.Context, members []serf.Member, servers map[string]bool) error {
	member := map[string]bool{}
	for _, m := range members {
		member[m.Name] = true
	}
	nodes, err := r.look(ctx, catalog.QueryNodes, "")
	if err != nil {
		return err
	}
	now := r.g.a.o.Now()
	seen := map[string]bool{}
	for _, n := range nodes.Nodes {
		if member[n.Name] || servers[n.Name] {
			continue
		}
		checks, err := r.look(ctx, catalog.QueryNodeChecks, n.Name)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(checks.Checks, func(c catalog.Check) bool { return c.ID == SerfHealth && c.ServiceID == "" }) {
			continue // registered by hand: not gossip's
		}
		seen[n.Name] = true
		since, ok := r.strays[n.Name]
		switch {
		case !ok:
			r.strays[n.Name] = now
		case now.Sub(since) >= strayGrace:
			r.g.a.o.Log.Info("a node that gossip does not know any more is deregistered", "node", n.Name)
			if _, err := r.g.a.o.Directory.Discover(ctx, r.g.a.o.Who, []catalog.Op{{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: n.Name}}}); err != nil {
				return err
			}
		}
	}
	for name := range r.strays {
		if !seen[name] {
			delete(r.strays, name)
		}
	}
	return nil
}
