package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/agentapi"
	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/consulapi"
	"holdfast.dev/holdfast/internal/dnsapi"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"

	"holdfast.dev/holdfast/internal/core"
)

// Discovery under `holdfast server`: the same faces as those of a Consul agent, with certificates instead of ACLs. The
// gossip key is a secret of the cluster; where members gossip is a row of each.

const (
	serverDatacenter = "dc1"
	serverDomain     = "consul"
	gossipRows       = "gossip-address/" // with the member's id; in the space of the authority
	gossipRowsEnd    = "gossip-address0"
	gossipEvery      = 5 * time.Second
)

// serveAgents answers the RPC of agents without state: only certificates of the role agent come that far.
func (n *Node) serveAgents() {
	s := agentapi.NewServer(agentapi.ServerOptions{Directory: n.core, Principal: principalOf, Log: n.log})
	n.watchGate(ignoreClosed(s.Serve(n.ctx, n.peers.rpc)))
}

// keepDiscovery opens what of discovery was asked for once the authority is there, and runs as long as the member.
func (n *Node) keepDiscovery() {
	select {
	case <-n.ready:
	case <-n.ctx.Done():
		return
	}
	f, err := n.openDiscovery(n.ctx)
	if err != nil {
		if n.ctx.Err() == nil {
			n.fail(fmt.Errorf("discovery: %w", err))
		}
		return
	}
	f.run()
	n.log.Info("serving discovery", "consul", n.config.Listen.Consul.String(), "dns", n.config.Listen.DNS, "gossip", n.config.Listen.Gossip)
	look := time.NewTicker(gossipEvery)
	defer look.Stop()
	for n.ctx.Err() == nil {
		if f.o.gossip != nil {
			if err := n.meetOthers(f); err != nil && n.ctx.Err() == nil {
				n.log.Warn("gossip with the other members is not complete; trying again", "error", err)
			}
		}
		select {
		case <-n.ctx.Done():
		case <-look.C:
		}
	}
	if err := f.close(); err != nil {
		n.log.Warn("closing discovery", "error", err)
	}
}

func (n *Node) openDiscovery(ctx context.Context) (*face, error) {
	c := n.config
	id, err := nodeID(n.home, n.env, "")
	if err != nil {
		return nil, err
	}
	host, err := addressOf(ctx, c.Advertise.Host)
	if err != nil {
		return nil, err
	}
	gossip, err := n.serverGossip(ctx, id, host)
	if err != nil {
		return nil, err
	}
	o := faceOptions{
		home: n.home, env: n.env, directory: n.core, who: n.system, server: true, gossip: gossip,
		binder: binder{registry: n.registry, log: n.log, now: n.env.Now, refused: n.refusals.add},
		node: catalog.Node{ID: id, Name: c.Name, Address: host, Datacenter: serverDatacenter, TaggedAddresses: taggedAddresses(host, nil),
			Meta: map[string]string{"consul-network-segment": "", "consul-version": ConsulVersion}},
		leader: func() bool { return n.replica.Status().Self },
		members: func(ctx context.Context) (out []string, err error) {
			members, err := n.core.Members(ctx, n.system, false)
			for _, m := range members {
				out = append(out, m.Name)
			}
			return out, err
		},
		failed: n.fail, dnsSet: dnsapi.Options{Domain: serverDomain},
		api: consulapi.Options{Version: ConsulVersion, DefaultPolicy: "deny", Roots: n.discoveryRoots},
	}
	if c.Listen.DNS != "" {
		o.dns = []string{c.Listen.DNS}
	}
	if len(c.Listen.Consul) > 0 {
		o.http = []faceHTTP{{urls: c.Listen.Consul.Strings(), streams: webStreams,
			gate: authn.GateOptions{Side: authn.DiscoverySide, Routes: authn.ServeWeb, TLS: n.ids.discovery}}}
	}
	return openFace(ctx, o)
}

// addressOf is the IP address of a host that may be a name.
func addressOf(ctx context.Context, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err == nil && len(found) == 0 {
		err = errors.New("it has no address")
	}
	if err != nil {
		return "", fmt.Errorf("--advertise-host %s: %w", host, err)
	}
	return found[0], nil
}

// serverGossip are this member's part in the gossip; nil if none was asked for.
func (n *Node) serverGossip(ctx context.Context, id, host string) (*agent.GossipOptions, error) {
	if n.config.Listen.Gossip == "" {
		return nil, nil
	}
	bind, text, err := net.SplitHostPort(n.config.Listen.Gossip)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("--listen-gossip: %w", err)
	}
	if ip := net.ParseIP(bind); ip != nil && !ip.IsUnspecified() {
		host = bind
	} else if bind == "" {
		bind = "0.0.0.0"
	}
	key, err := n.authority.GossipKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("the cluster's gossip key: %w", err)
	}
	address := net.JoinHostPort(host, text)
	if _, err := n.core.Put(ctx, n.system, &state.Put{Space: mvcc.SpaceCA, Key: []byte(gossipRows + hexID(n.store.Member())), Value: []byte(address)}); err != nil {
		return nil, fmt.Errorf("telling the others where this member gossips: %w", err)
	}
	return &agent.GossipOptions{
		Bind: bind, Port: int(port), Advertise: host, Key: key,
		Tags: map[string]string{
			"role": "consul", "dc": serverDatacenter, "id": id, "port": n.config.Advertise.Peer[0].Port(), "raft_vsn": "3", "cluster": hexID(n.store.Cluster()),
			"vsn": "2", "vsn_min": "2", "vsn_max": "3", "build": ConsulVersion + ":holdfast", "segment": "",
		},
	}, nil
}

// meetOthers joins the members that gossip and that this one does not see.
func (n *Node) meetOthers(f *face) error {
	ctx, cancel := context.WithTimeout(n.ctx, gossipEvery)
	defer cancel()
	page, err := n.core.Range(ctx, n.system, core.RangeRequest{
		Space: mvcc.SpaceCA, Query: mvcc.Query{Span: storage.Span{Start: []byte(gossipRows), End: []byte(gossipRowsEnd)}, NoCount: true},
	})
	if err != nil {
		return err
	}
	seen := f.agent.Members()
	members, err := n.core.Members(ctx, n.system, false)
	if err != nil {
		return err
	}
	var errs []error
	for _, kv := range page.KVs {
		at := string(kv.Value)
		known := slices.ContainsFunc(seen, func(m agent.Member) bool {
			return m.Status == agent.MemberAlive && net.JoinHostPort(m.Addr, strconv.Itoa(int(m.Port))) == at
		})
		current := slices.ContainsFunc(members, func(m state.Member) bool { return gossipRows+hexID(m.ID) == string(kv.Key) })
		if known || !current {
			continue
		}
		if _, err := f.agent.Join([]string{at}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// discoveryRoots are the cluster's own root.
func (n *Node) discoveryRoots(context.Context) (consulapi.Roots, error) {
	out := consulapi.Roots{Index: 1, TrustDomain: trustDomain("", n.store.Cluster())}
	out.Certificates = append(out.Certificates, n.authority.Root())
	return out, nil
}
