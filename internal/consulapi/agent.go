package consulapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"

	"holdfast.dev/holdfast/internal/agent"
)

// agentSelf says who this agent is. Configuration shows here only as far as Options.Debug does.
func (c *call) agentSelf() error {
	a := c.api
	debug := map[string]any{}
	if a.o.Debug != nil {
		debug = a.o.Debug()
	}
	n := a.o.Agent.Node()
	type config struct {
		Datacenter, PrimaryDatacenter, NodeName, NodeID string
		Server                                          bool
		Version                                         string
	}
	leader := ""
	if servers, err := a.o.Directory.Servers(c.r.Context(), c.who); err == nil {
		for _, s := range servers {
			if s.Leader {
				leader = s.Address
			}
		}
	}
	return c.ok(struct {
		Config      config
		DebugConfig map[string]any
		Member      member
		Stats       map[string]map[string]string
		Meta        map[string]string
	}{
		config{a.o.Datacenter, a.o.Datacenter, a.o.Node, a.o.NodeID, a.o.Server, a.o.Version},
		debug,
		wireMember(a.o.Agent.Self()),
		map[string]map[string]string{
			"agent":  {"checks": strconv.Itoa(len(a.o.Agent.Checks())), "services": strconv.Itoa(len(a.o.Agent.Services()))},
			"build":  {"version": a.o.Version},
			"consul": {"server": strconv.FormatBool(a.o.Server), "leader_addr": leader},
		},
		n.Meta,
	})
}

// lanOnly refuses the pool that spans datacenters.
func (c *call) lanOnly() error {
	wan, err := c.flag("wan")
	if err == nil && wan {
		err = refuse(http.StatusBadRequest, "there is no WAN pool: this build knows one datacenter")
	}
	return err
}

func (c *call) agentMembers() error {
	if err := c.lanOnly(); err != nil {
		return err
	}
	if s := c.query.Get("segment"); s != "" && s != "_all" {
		return refuse(http.StatusBadRequest, "Invalid query parameter: \"segment\" - network segments are an Enterprise feature")
	}
	out := []member{}
	for _, m := range c.api.o.Agent.Members() {
		out = append(out, wireMember(m))
	}
	out, err := kept(c.query.Get("filter"), out)
	if err != nil {
		return err
	}
	return c.ok(out)
}

func (c *call) agentJoin() error {
	if err := c.needName("Missing address to join"); err != nil {
		return err
	}
	if err := c.lanOnly(); err != nil {
		return err
	}
	if _, err := c.api.o.Agent.Join([]string{c.name}); err != nil {
		return c.gossipFailed(err)
	}
	return c.done()
}

// gossipFailed answers an error of the gossip, which says what could not be reached: the caller is to read it.
func (c *call) gossipFailed(err error) error {
	var own *agent.Error
	if errors.As(err, &own) {
		return err
	}
	return refuse(http.StatusInternalServerError, "%v", err)
}

func (c *call) agentLeave() error {
	if err := c.api.o.Agent.Leave(c.r.Context()); err != nil {
		return c.gossipFailed(err)
	}
	if err := c.done(); err != nil {
		return err
	}
	_ = http.NewResponseController(c.w).Flush() // who asked should know before the listener goes
	if c.api.o.Left != nil {
		c.api.o.Left()
	}
	return nil
}

func (c *call) agentForceLeave() error {
	if err := c.needName("Missing node name"); err != nil {
		return err
	}
	if err := c.lanOnly(); err != nil {
		return err
	}
	prune, err := c.flag("prune")
	if err != nil {
		return err
	}
	if err := c.api.o.Agent.ForceLeave(c.name, prune); err != nil {
		return c.gossipFailed(err)
	}
	return c.done()
}

func (c *call) agentReload() error {
	if c.api.o.Reload == nil {
		return refuse(http.StatusNotImplemented, "this agent was not started from configuration files: there is nothing to reload")
	}
	if err := c.api.o.Reload(c.r.Context()); err != nil {
		return c.gossipFailed(err)
	}
	return c.done()
}

// enabled reads ?enable, which maintenance needs.
func (c *call) enabled() (bool, error) {
	v := c.query.Get("enable")
	if v == "" {
		return false, refuse(http.StatusBadRequest, "Missing value for enable")
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, refuse(http.StatusBadRequest, "Invalid value for enable: %q", v)
	}
	return on, nil
}

func (c *call) agentMaintenance() error {
	on, err := c.enabled()
	if err != nil {
		return err
	}
	if err := c.api.o.Agent.NodeMaintenance(c.r.Context(), on, c.query.Get("reason")); err != nil {
		return err
	}
	return c.done()
}

func (c *call) agentServiceMaintenance() error {
	if err := c.needName("Missing service ID"); err != nil {
		return err
	}
	on, err := c.enabled()
	if err != nil {
		return err
	}
	if err := c.api.o.Agent.ServiceMaintenance(c.r.Context(), c.name, on, c.query.Get("reason")); err != nil {
		return err
	}
	return c.done()
}

func (c *call) agentServices() error {
	f, err := compile(c.query.Get("filter"), agentService{})
	if err != nil {
		return err
	}
	out := map[string]agentService{}
	for _, s := range c.api.o.Agent.Services() {
		w := c.api.wireOwnService(&s.Service)
		ok, err := f.keeps(w)
		if err != nil {
			return err
		}
		if ok {
			out[w.ID] = w
		}
	}
	return c.ok(out)
}

// agentService answers one service; with ?hash it waits until the service is another.
func (c *call) agentService() error {
	if err := c.parseWaiting(); err != nil {
		return err
	}
	known := c.query.Get("hash")
	ctx := c.r.Context()
	if known != "" {
		release, err := c.api.waiters.enter(c.client(), c.api.o.MaxWaiting, c.api.o.MaxWaitingAll)
		if err != nil {
			return err
		}
		defer release()
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.api.jittered(c.read.wait))
		defer cancel()
	}
	for {
		changed := c.api.o.Agent.Changed() // before reading, so that no change is missed
		s, ok := c.api.o.Agent.Service(c.name)
		if !ok {
			return refuse(http.StatusNotFound, "unknown service ID: %s", c.name)
		}
		w := c.api.wireOwnService(&s.Service)
		w.ContentHash = w.contentHash()
		if w.ContentHash != known || ctx.Err() != nil {
			c.w.Header().Set("X-Consul-Contenthash", w.ContentHash)
			return c.ok(w)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (c *call) agentServiceRegister() error {
	replace, err := c.flag("replace-existing-checks")
	if err != nil {
		return err
	}
	var def agent.ServiceDefinition
	if err := c.decode(&def, false); err != nil {
		return err
	}
	if err := c.api.o.Agent.RegisterService(c.r.Context(), def, replace); err != nil {
		return err
	}
	return c.done()
}

func (c *call) agentServiceDeregister() error {
	if err := c.needName("Missing service ID"); err != nil {
		return err
	}
	if err := c.api.o.Agent.DeregisterService(c.r.Context(), c.name); err != nil {
		return err
	}
	return c.done()
}

// ownChecks returns the agent's checks, by id.
func (c *call) ownChecks() []check {
	var out []check
	for _, k := range c.api.o.Agent.Checks() {
		out = append(out, wireCheck(&k.Check))
	}
	return out
}

func (c *call) agentChecks() error {
	checks, err := kept(c.query.Get("filter"), c.ownChecks())
	if err != nil {
		return err
	}
	out := make(map[string]check, len(checks))
	for _, k := range checks {
		out[k.CheckID] = k
	}
	return c.ok(out)
}

func (c *call) agentCheckRegister() error {
	var def agent.CheckDefinition
	if err := c.decode(&def, false); err != nil {
		return err
	}
	if err := c.api.o.Agent.RegisterCheck(c.r.Context(), def); err != nil {
		return err
	}
	return c.done()
}

func (c *call) agentCheckDeregister() error {
	if err := c.needName("Missing check ID"); err != nil {
		return err
	}
	if err := c.api.o.Agent.DeregisterCheck(c.r.Context(), c.name); err != nil {
		return err
	}
	return c.done()
}

func (c *call) agentCheckPass() error { return c.ttl("passing", c.query.Get("note")) }
func (c *call) agentCheckWarn() error { return c.ttl("warning", c.query.Get("note")) }
func (c *call) agentCheckFail() error { return c.ttl("critical", c.query.Get("note")) }

func (c *call) agentCheckUpdate() error {
	var update struct{ Status, Output string }
	if err := c.decode(&update, false); err != nil {
		return err
	}
	if !slices.Contains([]string{"passing", "warning", "critical"}, update.Status) {
		return refuse(http.StatusBadRequest, "Invalid check status: '%s'", update.Status)
	}
	return c.ttl(update.Status, update.Output)
}

func (c *call) ttl(status, output string) error {
	if err := c.needName("Missing check ID"); err != nil {
		return err
	}
	if err := c.api.o.Agent.UpdateTTL(c.r.Context(), c.name, status, output); err != nil {
		return err
	}
	return c.done()
}
