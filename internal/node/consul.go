package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/agentapi"
	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/consulapi"
	"holdfast.dev/holdfast/internal/dnsapi"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
)

// ConsulVersion is the version of Consul whose API and configuration a Consul agent follows.
const ConsulVersion = "1.22.0"

// ConsulHooks are what a Consul agent asks its process.
type ConsulHooks struct {
	// Reread reads the configuration again; nil: there is nothing to read.
	Reread func() (*config.Config, error)
	// SetLevel changes the level of the log; nil: it stays.
	SetLevel func(name string) error
}

// Consul is one running agent of `holdfast consul agent`: gossip, the services and checks of its node, the HTTP API and
// DNS. A server's agent holds a member of the replicated state, once it belongs to a cluster; the others ask servers.
type Consul struct {
	config *config.Config
	hooks  ConsulHooks
	env    Env
	log    *slog.Logger
	system policy.Principal

	home     *home
	registry *authn.Registry
	rpc, web *authn.Identity // nil: that side has no TLS
	gates    []*authn.Gate   // of the port of RPC and replication; none on an agent that is no server
	serving  *agentapi.Server
	client   *agentapi.Client
	face     atomic.Pointer[face] // set before anything runs
	member   atomic.Pointer[Node] // nil until this server belongs to a cluster
	local    atomic.Bool          // the member answers; before, other servers are asked

	ctx    context.Context //nolint:containedctx // the agent's life: ends with Stop or a fault
	cancel context.CancelCauseFunc
	owned  sync.WaitGroup
	ready  chan struct{}
	done   chan struct{}
	pid    string     // the file with the process id, once written
	admits sync.Mutex // one server is taken in at a time

	mu    sync.Mutex
	fault error
}

// errLeft is the cause of an end because leaving was asked for over the API.
var errLeft = errors.New("left")

// StartConsul opens an agent and runs it. It returns when its sockets are open; Ready says when it knows a leader.
func StartConsul(ctx context.Context, c *config.Config, env Env, hooks ConsulHooks) (*Consul, error) {
	a := &Consul{
		config: c, hooks: hooks, env: env, log: env.Log, system: policy.NewSystem("holdfast"), registry: authn.NewRegistry(),
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	a.ctx, a.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := inOrder(ctx, a.openHome, a.openTLS, a.openRPC, a.openFace, a.openMember, a.ensureRoot, a.writePid); err != nil {
		a.cancel(err)
		return nil, errors.Join(advise(err), a.closeParts())
	}
	printWeaknesses(a.log, a.weaknesses())
	a.run()
	return a, nil
}

func (a *Consul) openHome(context.Context) (err error) {
	a.home, err = openHome(a.config, a.env)
	return err
}

func (a *Consul) authnEnv() authn.Env {
	return authn.Env{Now: a.env.Now, Rand: a.env.Rand, Log: a.log, Registry: a.registry, Resolver: net.DefaultResolver}
}

// openTLS reads the files of both sides.
func (a *Consul) openTLS(context.Context) (err error) {
	c := a.config.Consul
	if t := c.RPCFiles; t.Given() {
		s := consulTLS(authn.PeerSide, "tls.internal_rpc", t)
		s.ServerName, s.AnyServer = t.ServerName, t.ServerName == ""
		if a.rpc, err = authn.New(s, a.authnEnv()); err != nil {
			return err
		}
	}
	if t := c.HTTPSFiles; len(c.HTTPS) > 0 {
		if a.web, err = authn.New(consulTLS(authn.DiscoverySide, "tls.https", t), a.authnEnv()); err != nil {
			return err
		}
	}
	return nil
}

// consulTLS translates the keys of one side.
func consulTLS(side authn.Side, block string, t config.ConsulTLS) authn.Config {
	s := authn.Config{
		Side: side, CertFile: t.CertFile, KeyFile: t.KeyFile, SkipClientSANVerify: true, RefuseWeak: true,
		MinVersion: t.MinVersion, CipherSuites: t.CipherSuites,
		Flag: func(name string) string {
			keys := map[string]string{"trusted-ca-file": "ca_file", "cert-file": "cert_file and key_file", "client-cert-auth": "verify_incoming"}
			if k := keys[name]; k != "" {
				return block + "." + k
			}
			return block + " (" + name + ")"
		},
	}
	if t.VerifyIncoming {
		s.TrustedCAFile, s.ClientCertAuth = t.CAFile, true
	} else {
		s.RootsFile = t.CAFile
	}
	return s
}

func (a *Consul) binder() binder {
	return binder{registry: a.registry, log: a.log, now: a.env.Now, refused: func(r authn.Refusal) {
		if n := a.member.Load(); n != nil {
			n.refusals.add(r)
		}
	}}
}

// openRPC opens the port of RPC and replication on a server, and makes the client of other servers' RPC.
func (a *Consul) openRPC(ctx context.Context) (err error) {
	a.client = agentapi.NewClient(agentapi.ClientOptions{
		Servers: a.otherServers, Dial: a.dialRPC, Intn: mrand.IntN, Now: a.env.Now, After: time.After, Log: a.log,
	})
	if !a.config.Consul.Server {
		return nil
	}
	a.gates, err = a.binder().bind(ctx, a.config.Listen.Peer.Strings(), authn.GateOptions{
		Side: authn.PeerSide, Routes: authn.ServePeer | authn.ServeAgent, TLS: a.rpc, Open: true,
	})
	a.serving = agentapi.NewServer(agentapi.ServerOptions{Directory: own{a}, Principal: principalOf, Join: a.admit, Log: a.log})
	return err
}

// principalOf is who is at the other end of a connection that a gate handed on.
func principalOf(c net.Conn) policy.Principal {
	live, _ := authn.Inspect(c)
	return live.Principal
}

// dialRPC connects to the RPC of a server.
func (a *Consul) dialRPC(ctx context.Context, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if a.rpc == nil {
		return authn.DialPlain(ctx, dialer, authn.PlainTarget{Network: "tcp", Address: address, Registry: a.registry})
	}
	return a.rpc.Dial(ctx, dialer, address, authn.Target{Protocols: []string{authn.AgentProtocol}})
}

// otherServers are the servers that gossip knows to be alive, apart from this one.
func (a *Consul) otherServers() (out []string) {
	for _, m := range a.serversSeen() {
		out = append(out, m.address)
	}
	return out
}

// serverSeen is a server as gossip shows it.
type serverSeen struct {
	name, id, address string
	expect            int
}

func (a *Consul) serversSeen() (out []serverSeen) {
	f := a.face.Load()
	if f == nil {
		return nil
	}
	for _, m := range f.agent.Members() {
		if m.Status != agent.MemberAlive || m.Tags["role"] != "consul" || m.Name == a.config.Name {
			continue
		}
		if port, err := strconv.ParseUint(m.Tags["port"], 10, 16); err == nil {
			expect, _ := strconv.Atoi(m.Tags["expect"]) // without the tag: none
			out = append(out, serverSeen{m.Name, m.Tags["id"], net.JoinHostPort(m.Addr, strconv.FormatUint(port, 10)), expect})
		}
	}
	return out
}

// openFace opens gossip, HTTP and DNS.
func (a *Consul) openFace(ctx context.Context) error {
	c := a.config.Consul
	id, err := nodeID(a.home, a.env, c.NodeID)
	if err != nil {
		return fmt.Errorf("this node's id: %w", err)
	}
	c.NodeID = id
	gossip, err := a.gossip()
	if err != nil {
		return err
	}
	meta := map[string]string{"consul-network-segment": "", "consul-version": ConsulVersion}
	maps.Copy(meta, c.NodeMeta)
	o := faceOptions{
		home: a.home, env: a.env, directory: seat{a}, who: a.system, binder: a.binder(), server: c.Server, gossip: gossip,
		node:    catalog.Node{ID: id, Name: a.config.Name, Address: c.Host, Datacenter: c.Datacenter, Meta: meta, TaggedAddresses: taggedAddresses(c.Host, c.TaggedAddresses)},
		scripts: c.Scripts, localScripts: c.LocalScripts, services: c.Services, checks: c.Checks, updateInterval: c.UpdateInterval,
		dns: c.DNS, failed: func(err error) { a.fail(err) },
		dnsSet: dnsapi.Options{
			Domain: c.Domain, AltDomain: c.AltDomain, NodeTTL: c.NodeTTL, ServiceTTL: c.ServiceTTL, OnlyPassing: c.OnlyPassing, UDPAnswers: c.UDPAnswers,
			MaxStale: c.MaxStale, Truncate: c.Truncate, Recursors: c.Recursors,
		},
		api: consulapi.Options{Version: ConsulVersion, DefaultPolicy: "allow", Debug: a.debug, Left: func() { a.cancel(errLeft) }},
		http: []faceHTTP{
			{urls: c.HTTP, gate: authn.GateOptions{Side: authn.DiscoverySide, Routes: authn.ServeWeb, Plain: true, Open: true}, streams: webStreams, opened: func(path string) error { return ownSocket(path, c.Sockets) }},
			{urls: c.HTTPS, gate: authn.GateOptions{Side: authn.DiscoverySide, Routes: authn.ServeWeb, TLS: a.web, Open: true}, streams: webStreams},
		},
	}
	if a.hooks.Reread != nil {
		o.api.Reload = a.Reload
	}
	if c.Connect {
		o.api.Roots = a.roots
	}
	if c.ChecksWithTLS {
		o.outbound = authn.Outbound{CertFile: c.HTTPSFiles.CertFile, KeyFile: c.HTTPSFiles.KeyFile, CAFile: c.HTTPSFiles.CAFile}
	}
	if c.Server {
		o.leader = func() bool { n := a.member.Load(); return n != nil && a.local.Load() && n.replica.Status().Self }
		o.members = a.memberNames
	}
	f, err := openFace(ctx, o)
	a.face.Store(f)
	return err
}

// others leaves out this agent itself: whoever has joined only himself has joined nobody.
func (a *Consul) others(addresses []string) []string {
	c := a.config.Consul
	self := []string{net.JoinHostPort(c.Host, strconv.Itoa(c.GossipPort)), c.Gossip}
	return slices.DeleteFunc(slices.Clone(addresses), func(at string) bool {
		if _, _, err := net.SplitHostPort(at); err != nil {
			at = net.JoinHostPort(strings.Trim(at, "[]"), strconv.Itoa(c.GossipPort))
		}
		return slices.Contains(self, at)
	})
}

// gossip are this agent's part in the gossip.
func (a *Consul) gossip() (*agent.GossipOptions, error) {
	c := a.config.Consul
	g := &agent.GossipOptions{
		Bind: c.Bind, Port: c.GossipPort, Advertise: c.Host, StartJoin: c.Join, RetryJoin: a.others(c.Retry), RetryInterval: c.RetryInterval,
		Plaintext: c.GossipKey == "",
		Tags:      map[string]string{"role": "node", "dc": c.Datacenter, "id": c.NodeID, "vsn": "2", "vsn_min": "2", "vsn_max": "3", "build": ConsulVersion + ":holdfast", "segment": ""},
	}
	if c.Server {
		g.Tags["role"], g.Tags["port"], g.Tags["raft_vsn"] = "consul", strconv.Itoa(c.RPCPort), "3"
		if c.Expect > 0 {
			g.Tags["expect"] = strconv.Itoa(c.Expect)
		}
		if c.Found {
			g.Tags["bootstrap"] = "1"
		}
	}
	if c.GossipKey == "" {
		return g, nil
	}
	var err error
	g.Key, err = agent.ParseGossipKey(c.GossipKey)
	return g, err
}

// openMember starts the member of a server that has one already, or that founds a cluster now.
func (a *Consul) openMember(ctx context.Context) error {
	c := a.config.Consul
	switch {
	case !c.Server:
		return nil
	case !a.home.fresh:
		return a.startMember(ctx, nil)
	case c.Found:
		return a.foundAlone(ctx)
	}
	return nil
}

// run starts what lives as long as the agent.
func (a *Consul) run() {
	a.face.Load().run()
	for _, g := range a.gates {
		a.owned.Go(func() { a.ended(g.Serve()) })
	}
	if len(a.gates) > 0 {
		rpc := joinListeners(routesOf(a.gates, (*authn.Gate).Agent))
		a.owned.Go(func() { a.ended(a.serving.Serve(a.ctx, rpc)) })
		a.owned.Go(a.belong)
	}
	a.owned.Go(a.settle)
	a.owned.Go(a.keepTime)
	go func() {
		defer close(a.done)
		<-a.ctx.Done()
		err := a.end()
		a.mu.Lock()
		a.fault = err
		a.mu.Unlock()
	}()
}

// ended ends the agent when something that must not end does.
func (a *Consul) ended(err error) {
	if err = ignoreClosed(err); err != nil {
		a.fail(err)
	}
}

func (a *Consul) fail(err error) {
	if a.ctx.Err() == nil {
		a.log.Error("the agent cannot go on", "error", err)
		a.cancel(err)
	}
}

// settle waits until a leader is known, says so, and closes ready.
func (a *Consul) settle() {
	look := time.NewTicker(clockPeriod)
	defer look.Stop()
	for {
		servers, err := seat{a}.Servers(a.ctx, a.system)
		if err == nil && slices.ContainsFunc(servers, isLeader) {
			break
		}
		select {
		case <-a.ctx.Done():
			return
		case <-look.C:
		}
	}
	a.log.Info("Consul agent running!", "node", a.config.Name, "node-id", a.config.Consul.NodeID, "datacenter", a.config.Consul.Datacenter, "server", a.config.Consul.Server,
		"http", a.config.Consul.HTTP, "https", a.config.Consul.HTTPS, "dns", a.config.Consul.DNS)
	close(a.ready)
}

// keepTime looks after files and certificates.
func (a *Consul) keepTime() {
	tick := time.NewTicker(slowPeriod)
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
			a.tickTLS()
		}
	}
}

func (a *Consul) tickTLS() {
	for _, i := range []*authn.Identity{a.rpc, a.web} {
		if i != nil {
			i.Tick(a.env.Now())
		}
	}
}

// Ready is closed when the agent knows a leader.
func (a *Consul) Ready() <-chan struct{} { return a.ready }

// Ending is closed when the agent has begun to end, wanted or not.
func (a *Consul) Ending() <-chan struct{} { return a.ctx.Done() }

// Done is closed when the agent has ended; Wait tells why.
func (a *Consul) Done() <-chan struct{} { return a.done }

// Wait returns when the agent has ended: nil after Stop, or the fault that ended it.
func (a *Consul) Wait() error {
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fault
}

// Stop ends the agent. With leave the others are told that it goes for good: its node leaves the catalog, and a server
// gives its vote up.
func (a *Consul) Stop(ctx context.Context, leave bool) error {
	if leave && a.ctx.Err() == nil {
		a.log.Info("leaving the cluster", "node", a.config.Name)
		if err := a.face.Load().agent.Leave(ctx); err != nil {
			a.log.Warn("the others could not be told", "error", err)
		}
	}
	a.cancel(errStopped)
	return a.Wait()
}

// end closes everything in order, and returns why the agent ended.
func (a *Consul) end() error {
	cause := context.Cause(a.ctx)
	a.log.Info("closing the agent", "node", a.config.Name, "data-dir", a.home.dir)
	a.face.Load().drain()
	if errors.Is(cause, errStopped) || errors.Is(cause, errLeft) {
		cause = nil
	}
	return errors.Join(advise(cause), a.closeParts())
}

// closeParts closes what is open, in reverse.
func (a *Consul) closeParts() error {
	var errs []error
	if n := a.member.Load(); n != nil {
		stop, cancel := StopContext()
		errs = append(errs, ignoreRemoved(n.Stop(stop)))
		cancel()
	}
	for _, g := range a.gates {
		errs = append(errs, ignoreClosed(g.Close()))
	}
	if f := a.face.Load(); f != nil {
		errs = append(errs, f.close())
	}
	if a.client != nil {
		a.client.Close()
	}
	a.owned.Wait()
	if a.pid != "" {
		errs = append(errs, os.Remove(a.pid))
	}
	if a.home != nil {
		errs = append(errs, a.home.close())
	}
	return errors.Join(errs...)
}

func ignoreRemoved(err error) error {
	if errors.Is(err, replica.ErrRemoved) {
		return nil
	}
	return err
}

// ErrNoReload means that a reload was refused.
var ErrNoReload = fault.New(fault.Invalid, "the configuration cannot be reloaded")

// Reload reads the configuration again: services, checks, the level of the log, and TLS files are taken. What else has
// changed needs a restart and is named in the log.
func (a *Consul) Reload(ctx context.Context) error {
	if a.hooks.Reread == nil {
		return ErrNoReload.WithHint("the agent was started without configuration files")
	}
	c, err := a.hooks.Reread()
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if err := a.face.Load().reload(ctx, c.Consul.Services, c.Consul.Checks); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if a.hooks.SetLevel != nil {
		if err := a.hooks.SetLevel(c.Log.Level); err != nil {
			return err
		}
	}
	a.tickTLS()
	a.log.Info("reloaded services, checks, the log's level and TLS files; anything else needs a restart")
	return nil
}

// weaknesses lists what is weaker than what Holdfast does by itself.
func (a *Consul) weaknesses() []string {
	out := []string{"Consul's rule holds: ACLs are off, and whoever reaches the HTTP API or the RPC may do everything"}
	for _, i := range []*authn.Identity{a.rpc, a.web} {
		if i != nil {
			out = append(out, i.Weaknesses()...)
		}
	}
	for _, g := range a.gates {
		out = append(out, g.Weaknesses()...)
	}
	if f := a.face.Load(); f != nil {
		out = append(out, f.weaknesses()...)
	}
	if a.rpc == nil && !a.config.Consul.Server {
		out = append(out, "rpc: servers are asked in plain text: anyone on the way reads and changes everything")
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// debug is what agent/self shows of the configuration. It holds no secret.
func (a *Consul) debug() map[string]any {
	c := a.config.Consul
	return map[string]any{
		"AdvertiseAddrLAN": c.Host, "BindAddr": c.Bind, "Bootstrap": c.Found, "BootstrapExpect": c.Expect, "Datacenter": c.Datacenter, "DataDir": a.home.dir,
		"DNSDomain": c.Domain + ".", "DNSAddrs": c.DNS, "HTTPAddrs": c.HTTP, "HTTPSAddrs": c.HTTPS, "EnableRemoteScriptChecks": c.Scripts, "EnableLocalScriptChecks": c.LocalScripts,
		"LeaveOnTerm": c.LeaveOnTerm, "SkipLeaveOnInt": !c.LeaveOnInt, "NodeID": c.NodeID, "NodeName": a.config.Name, "ServerMode": c.Server, "SerfPortLAN": c.GossipPort, "ServerPort": c.RPCPort,
		"SerfAdvertiseAddrLAN": "tcp://" + net.JoinHostPort(c.Host, strconv.Itoa(c.GossipPort)),
		"EncryptedGossip":      a.face.Load().agent.Encrypted(), "EncryptedRPC": a.rpc != nil, "Weakenings": a.weaknesses(),
		"ConsulConfig": "docs/compat/consul-config.md",
	}
}

// trustDomain is the name of this cluster in SPIFFE ids.
func trustDomain(configured string, cluster uint64) string {
	if configured == "" {
		sum := sha256.Sum256(fmt.Appendf(nil, "holdfast trust domain %016x", cluster))
		h := hex.EncodeToString(sum[:16])
		configured = h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	return configured + ".consul"
}

// writePid writes the process id where other programs look for it.
func (a *Consul) writePid(context.Context) error {
	name := a.config.Consul.PidFile
	if name == "" {
		return nil
	}
	if err := os.WriteFile(name, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return fmt.Errorf("pid_file: %w", err)
	}
	a.pid = name
	return nil
}

// ownSocket gives a unix socket to whom the configuration says.
func ownSocket(path string, s config.Sockets) error {
	number := func(text string) (int, error) {
		if text == "" {
			return -1, nil
		}
		return strconv.Atoi(text)
	}
	uid, err := number(s.User)
	if err != nil {
		return fmt.Errorf("unix_sockets.user: %w", err)
	}
	gid, err := number(s.Group)
	if err != nil {
		return fmt.Errorf("unix_sockets.group: %w", err)
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Chown(path, uid, gid); err != nil {
			return fmt.Errorf("unix_sockets: %w", err)
		}
	}
	if s.Mode == "" {
		return nil
	}
	mode, err := strconv.ParseUint(s.Mode, 8, 9)
	if err != nil {
		return fmt.Errorf("unix_sockets.mode: %w", err)
	}
	return os.Chmod(path, os.FileMode(mode))
}
