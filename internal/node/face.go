package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/consulapi"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/dnsapi"
	"holdfast.dev/holdfast/internal/policy"
)

// directory is the replicated half of discovery: core, or agentapi's client.
type directory interface {
	Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error)
	Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error)
	RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error)
	Servers(ctx context.Context, who policy.Principal) ([]core.Server, error)
}

// faceOptions say what a face of discovery is.
type faceOptions struct {
	home      *home
	env       Env
	directory directory
	who       policy.Principal // in whose name the agent keeps the catalog and DNS reads it
	binder    binder

	node    catalog.Node
	server  bool
	gossip  *agent.GossipOptions // nil: none
	leader  func() bool
	members func(ctx context.Context) ([]string, error)

	scripts, localScripts bool
	services, checks      []json.RawMessage
	outbound              authn.Outbound // what checks over TLS show and trust
	updateInterval        time.Duration

	http   []faceHTTP
	dns    []string // host:port
	dnsSet dnsapi.Options
	api    consulapi.Options // what is not filled in from the above
	failed func(error)       // a listener or the agent has ended for good
}

// faceHTTP are sockets of the HTTP API with one gate's options.
type faceHTTP struct {
	urls    []string
	gate    authn.GateOptions
	opened  func(path string) error // a unix socket is open
	streams int
}

// face is discovery as clients see it: this node's agent with its gossip, the HTTP API and DNS.
type face struct {
	o      faceOptions
	agent  *agent.Agent
	gates  []*authn.Gate
	webs   []*http.Server
	names  *dnsapi.Server
	pairs  []dnsPair
	ctx    context.Context //nolint:containedctx // ends with close
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// dnsPair is one address of DNS.
type dnsPair struct {
	udp net.PacketConn
	tcp net.Listener
}

// openFace opens the sockets and makes the agent. Nothing is served before run.
func openFace(ctx context.Context, o faceOptions) (f *face, err error) {
	f = &face{o: o}
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	services, checks, err := definitions(o.services, o.checks)
	if err != nil {
		return f, err
	}
	f.agent, err = agent.New(agent.Options{
		Node: o.node, Directory: o.directory, Who: o.who, Store: agentStore{o.home}, Log: o.env.Log, Now: o.env.Now, Rand: o.env.Rand,
		Gossip: o.gossip, Scripts: o.scripts, LocalScripts: o.localScripts, Secure: f.secure, Services: services, Checks: checks,
		UpdateInterval: o.updateInterval, Server: o.server, IsLeader: o.leader, RaftMembers: o.members,
	})
	if err != nil {
		return f, err
	}
	api := o.api
	api.Directory, api.Agent, api.Principal, api.Rand, api.Log = o.directory, f.agent, authn.PrincipalFromContext, o.env.Rand, o.env.Log
	api.Node, api.NodeID, api.Datacenter, api.Server = o.node.Name, o.node.ID, o.node.Datacenter, o.server
	// A page that a browser shows must not act with the rights of who looks at it.
	handler := http.NewCrossOriginProtection().Handler(consulapi.New(api).Handler())
	for _, h := range o.http {
		served := handler
		if h.gate.Plain { // with TLS, a browser has verified the name
			served = consulapi.RefusePages(handler, o.node.Name)
		}
		if err := f.bindHTTP(ctx, h, served); err != nil {
			return f, err
		}
	}
	return f, f.bindDNS(ctx)
}

// bindHTTP opens sockets of the HTTP API.
func (f *face) bindHTTP(ctx context.Context, h faceHTTP, handler http.Handler) error {
	gates, err := f.o.binder.bind(ctx, h.urls, h.gate)
	if err != nil {
		return err
	}
	for _, g := range gates {
		f.gates = append(f.gates, g)
		f.webs = append(f.webs, newWebServer(handler, h.gate.Side, h.streams, f.o.env.Log))
	}
	for _, u := range h.urls {
		if path, ok := strings.CutPrefix(u, "unix://"); ok && h.opened != nil {
			if err := h.opened(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *face) bindDNS(ctx context.Context) error {
	if len(f.o.dns) == 0 {
		return nil
	}
	o := f.o.dnsSet
	o.Directory, o.Who, o.Log, o.Now = f.o.directory, f.o.who, f.o.env.Log, f.o.env.Now
	o.Datacenter, o.Intn = f.o.node.Datacenter, rand.IntN
	var err error
	if f.names, err = dnsapi.New(o); err != nil {
		return err
	}
	var lc net.ListenConfig
	for _, address := range f.o.dns {
		udp, err := lc.ListenPacket(ctx, "udp", address)
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		tcp, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return errors.Join(fmt.Errorf("dns: %w", err), udp.Close())
		}
		f.pairs = append(f.pairs, dnsPair{udp, tcp})
	}
	return nil
}

// run serves until close.
func (f *face) run() {
	f.work.Go(func() { f.ended(f.agent.Run(f.ctx)) })
	for i, g := range f.gates {
		f.work.Go(func() {
			if err := f.webs[i].Serve(g.Web()); !errors.Is(err, http.ErrServerClosed) {
				f.ended(ignoreClosed(err))
			}
		})
		f.work.Go(func() { f.ended(g.Serve()) })
	}
	for _, p := range f.pairs {
		f.work.Go(func() { f.ended(f.names.Serve(f.ctx, p.udp, p.tcp)) })
	}
	f.pairs = nil // Serve closes them
}

// ended reports what must not end before close.
func (f *face) ended(err error) {
	if err != nil && f.ctx.Err() == nil {
		f.o.failed(err)
	}
}

// drain stops taking connections.
func (f *face) drain() {
	for _, g := range f.gates {
		if err := ignoreClosed(g.Close()); err != nil {
			f.o.env.Log.Debug("closing a socket", "error", err)
		}
	}
}

// close ends everything.
func (f *face) close() error {
	f.cancel()
	var errs []error
	for _, g := range f.gates {
		errs = append(errs, ignoreClosed(g.Close()))
	}
	for _, w := range f.webs {
		errs = append(errs, w.Close())
	}
	for _, p := range f.pairs {
		errs = append(errs, ignoreClosed(p.udp.Close()), ignoreClosed(p.tcp.Close()))
	}
	f.work.Wait()
	if f.agent != nil {
		errs = append(errs, f.agent.Close())
	}
	return errors.Join(errs...)
}

// secure finishes TLS on the connection of a check.
func (f *face) secure(ctx context.Context, c net.Conn, t agent.TLSTarget) (net.Conn, error) {
	o := f.o.outbound
	o.SkipVerify = t.SkipVerify
	host := t.ServerName
	if host == "" {
		host, _, _ = net.SplitHostPort(c.RemoteAddr().String())
	}
	return authn.SecureForeign(ctx, c, o, authn.Target{Host: host, Protocols: t.Protocols}, authn.Env{Now: f.o.env.Now, Rand: f.o.env.Rand, Log: f.o.env.Log})
}

// weaknesses lists what is weaker about this face than what Holdfast does by itself.
func (f *face) weaknesses() (out []string) {
	for _, g := range f.gates {
		out = append(out, g.Weaknesses()...)
	}
	if f.o.gossip != nil && f.o.gossip.Key == nil {
		out = append(out, "gossip: it is plain text: anyone on the way reads it, and whoever reaches the port is a member of it")
	}
	if f.o.scripts {
		out = append(out, "checks: enable_script_checks is on: whoever may register a check runs programs as this user")
	}
	for _, a := range f.o.dns {
		if host, _, err := net.SplitHostPort(a); err == nil && !net.ParseIP(host).IsLoopback() {
			out = append(out, "dns: "+a+" answers everybody who reaches it: DNS knows neither encryption nor rights")
		}
	}
	return out
}

// definitions decodes what configuration files define.
func definitions(services, checks []json.RawMessage) (s []agent.ServiceDefinition, c []agent.CheckDefinition, err error) {
	s, c = make([]agent.ServiceDefinition, len(services)), make([]agent.CheckDefinition, len(checks))
	for i, data := range services {
		if err := json.Unmarshal(data, &s[i]); err != nil {
			return nil, nil, fmt.Errorf("service %d: %w", i+1, err)
		}
	}
	for i, data := range checks {
		if err := json.Unmarshal(data, &c[i]); err != nil {
			return nil, nil, fmt.Errorf("check %d: %w", i+1, err)
		}
	}
	return s, c, nil
}

// agentStore keeps an agent's documents sealed in the data directory.
type agentStore struct{ home *home }

// Load implements agent.Store.
func (s agentStore) Load(name string) ([]byte, bool, error) { return s.home.load(name) }

// Save implements agent.Store.
func (s agentStore) Save(name string, data []byte) error { return s.home.store(name, data) }

// Delete implements agent.Store.
func (s agentStore) Delete(name string) error { return s.home.remove(name) }

// nodeIDName is the sealed file with the id that this node has in the catalog.
const nodeIDName = "node-id"

// nodeID is the node's UUID: as configured, as kept, or drawn now.
func nodeID(h *home, env Env, configured string) (string, error) {
	data, ok, err := h.load(nodeIDName)
	if err != nil {
		return "", err
	}
	id := configured
	switch {
	case id != "" && ok && string(data) == id:
		return id, nil
	case id == "" && ok:
		return string(data), nil
	case id == "":
		if id, err = drawUUID(env.Rand); err != nil {
			return "", err
		}
	}
	return id, h.store(nodeIDName, []byte(id))
}

// drawUUID draws a random UUID.
func drawUUID(from io.Reader) (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(from, b); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// taggedAddresses are those that Consul gives a node.
func taggedAddresses(host string, more map[string]string) map[string]string {
	out := map[string]string{"lan": host, "wan": host}
	family := "_ipv4"
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		family = "_ipv6"
	}
	out["lan"+family], out["wan"+family] = host, host
	for k, v := range more {
		out[k] = v
	}
	return out
}

// reload takes new definitions.
func (f *face) reload(ctx context.Context, services, checks []json.RawMessage) error {
	s, c, err := definitions(services, checks)
	if err != nil {
		return err
	}
	return f.agent.Reload(ctx, s, c)
}
