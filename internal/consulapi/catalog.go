package consulapi

import (
	"maps"
	"slices"
	"strings"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
)

func (c *call) catalogDatacenters() error { return c.ok([]string{c.api.o.Datacenter}) }

// hasMeta reports whether a node has all the meta data that the call asks for.
func (c *call) hasMeta(n *catalog.Node) bool {
	for k, v := range c.read.nodeMeta {
		if n == nil {
			return false
		}
		if have, ok := n.Meta[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// answerCatalog writes a read of the catalog.
func (c *call) answerCatalog(found core.Found, v any) error {
	c.meta(found)
	c.effective()
	return c.ok(v)
}

func (c *call) catalogNodes() error {
	if err := c.parseReading(); err != nil {
		return err
	}
	found, err := c.lookup(catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return err
	}
	out := []node{}
	for i := range found.Nodes {
		if c.hasMeta(&found.Nodes[i]) {
			out = append(out, c.api.wireNode(&found.Nodes[i]))
		}
	}
	if out, err = kept(c.read.filter, out); err != nil {
		return err
	}
	return c.answerCatalog(found, out)
}

func (c *call) catalogServices() error {
	if err := c.parseReading(); err != nil {
		return err
	}
	q := catalog.Query{Kind: catalog.QueryServiceNames}
	if len(c.read.nodeMeta) == 0 && c.read.filter == "" {
		found, err := c.lookup(q)
		if err != nil {
			return err
		}
		out := make(map[string][]string, len(found.Names))
		for name, tags := range found.Names {
			out[name] = list(tags)
		}
		return c.answerCatalog(found, out)
	}
	found, nodes, err := c.together(q)
	if err != nil {
		return err
	}
	var all []serviceNode
	for i := range found.Services {
		s := &found.Services[i]
		if n := nodes[strings.ToLower(s.Node)]; n != nil && c.hasMeta(n) {
			all = append(all, c.api.wireServiceNode(n, s))
		}
	}
	if all, err = kept(c.read.filter, all); err != nil {
		return err
	}
	out := map[string][]string{}
	for i := range all {
		tags := list(out[all[i].ServiceName])
		for _, t := range all[i].ServiceTags {
			if !slices.Contains(tags, t) {
				tags = append(tags, t)
			}
		}
		out[all[i].ServiceName] = tags
	}
	return c.answerCatalog(found, out)
}

// instances returns the instances of the service that the call names, in the order that every endpoint keeps, of those
// nodes and with those tags that the call asks for.
func (c *call) instances() (core.Found, error) {
	found, err := c.lookup(catalog.Query{Kind: catalog.QueryInstances, Name: c.name})
	if err != nil {
		return core.Found{}, err
	}
	found.Instances = slices.DeleteFunc(found.Instances, func(i catalog.Instance) bool {
		return !c.hasMeta(&i.Node) || !tagged(i.Service.Tags, c.query["tag"])
	})
	return found, nil
}

func (c *call) catalogService() error {
	if err := c.needName("Missing service name"); err != nil {
		return err
	}
	if err := c.parseReading(); err != nil {
		return err
	}
	found, err := c.instances()
	if err != nil {
		return err
	}
	out := make([]serviceNode, len(found.Instances))
	for i := range found.Instances {
		out[i] = c.api.wireServiceNode(&found.Instances[i].Node, &found.Instances[i].Service)
	}
	if out, err = kept(c.read.filter, out); err != nil {
		return err
	}
	return c.answerCatalog(found, out)
}

// nodeAndServices answers the question that catalog/node and catalog/node-services share.
func (c *call) nodeAndServices() (found core.Found, at *node, services []nodeService, err error) {
	if err = c.needName("Missing node name"); err != nil {
		return found, nil, nil, err
	}
	if err = c.parseReading(); err != nil {
		return found, nil, nil, err
	}
	if found, err = c.lookup(catalog.Query{Kind: catalog.QueryNode, Name: c.name}); err != nil {
		return found, nil, nil, err
	}
	services = []nodeService{}
	if len(found.Nodes) > 0 && c.hasMeta(&found.Nodes[0]) {
		n := c.api.wireNode(&found.Nodes[0])
		at = &n
		for i := range found.Services {
			services = append(services, wireService(&found.Services[i]))
		}
	}
	services, err = kept(c.read.filter, services)
	return found, at, services, err
}

func (c *call) catalogNode() error {
	found, at, services, err := c.nodeAndServices()
	if err != nil {
		return err
	}
	if at == nil {
		return c.answerCatalog(found, nil)
	}
	byID := make(map[string]nodeService, len(services))
	for _, s := range services {
		byID[s.ID] = s
	}
	return c.answerCatalog(found, struct {
		Node     *node
		Services map[string]nodeService
	}{at, byID})
}

func (c *call) catalogNodeServices() error {
	found, at, services, err := c.nodeAndServices()
	if err != nil {
		return err
	}
	return c.answerCatalog(found, struct {
		Node     *node
		Services []nodeService
	}{at, services})
}

func (c *call) healthNode() error {
	return c.checksOf(catalog.QueryNodeChecks, "Missing node name")
}

func (c *call) healthChecks() error {
	return c.checksOf(catalog.QueryServiceChecks, "Missing service name")
}

func (c *call) healthState() error {
	return c.checksOf(catalog.QueryChecksInState, "Missing check state")
}

func (c *call) checksOf(kind catalog.Kind, missing string) error {
	if err := c.needName(missing); err != nil {
		return err
	}
	if err := c.parseReading(); err != nil {
		return err
	}
	q := catalog.Query{Kind: kind, Name: c.name}
	var found core.Found
	var nodes map[string]*catalog.Node
	var err error
	if len(c.read.nodeMeta) > 0 {
		found, nodes, err = c.together(q)
	} else {
		found, err = c.lookup(q)
	}
	if err != nil {
		return err
	}
	if nodes != nil {
		found.Checks = slices.DeleteFunc(found.Checks, func(k catalog.Check) bool { return !c.hasMeta(nodes[strings.ToLower(k.Node)]) })
	}
	out, err := kept(c.read.filter, wireChecks(found.Checks))
	if err != nil {
		return err
	}
	return c.answerCatalog(found, out)
}

func (c *call) healthService() error {
	if err := c.needName("Missing service name"); err != nil {
		return err
	}
	if err := c.parseReading(); err != nil {
		return err
	}
	passing, err := c.flag("passing")
	if err != nil {
		return err
	}
	found, err := c.instances()
	if err != nil {
		return err
	}
	out := []instance{}
	for i := range found.Instances {
		in := &found.Instances[i]
		if passing && slices.ContainsFunc(in.Checks, func(k catalog.Check) bool { return k.Status != "passing" }) {
			continue
		}
		out = append(out, instance{c.api.wireNode(&in.Node), wireService(&in.Service), wireChecks(in.Checks)})
	}
	if out, err = kept(c.read.filter, out); err != nil {
		return err
	}
	return c.answerCatalog(found, out)
}

// statusLeader and statusPeers tell where the servers' RPC is.
func (c *call) statusLeader() error {
	servers, err := c.api.o.Directory.Servers(c.r.Context(), c.who)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.Leader {
			return c.ok(s.Address)
		}
	}
	return c.ok("")
}

func (c *call) statusPeers() error {
	servers, err := c.api.o.Directory.Servers(c.r.Context(), c.who)
	if err != nil {
		return err
	}
	at := map[string]bool{}
	for _, s := range servers {
		if s.Address != "" {
			at[s.Address] = true
		}
	}
	return c.ok(list(slices.Sorted(maps.Keys(at))))
}
