package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// peerSide is how this member is reached by the others and reaches them.
type peerSide struct {
	n     *Node
	gates []*authn.Gate
	joint *jointListener
	web   *http.Server   // etcd's way to ask for the members, for those that join a running cluster; nil under server
	rpc   *jointListener // the agents' RPC, under server
	work  sync.WaitGroup
}

// bindPeers opens the peer sockets.
func (n *Node) bindPeers(ctx context.Context) error {
	p := &peerSide{n: n}
	n.peers = p
	if n.lent != nil {
		p.joint = joinListeners(routesOf(n.lent.gates, (*authn.Gate).Peer))
		return nil
	}
	open := n.config.Mode == config.ModeEtcd
	routes := authn.ServePeer
	if open {
		routes |= authn.ServeWeb
		mux := http.NewServeMux()
		mux.HandleFunc("GET /members", p.serveMembers)
		p.web = &http.Server{Handler: mux, ConnContext: authn.ConnContext, ReadHeaderTimeout: 5 * time.Second, ErrorLog: quiet(n.log)}
	}
	var err error
	if n.config.Mode == config.ModeServer {
		routes |= authn.ServeAgent
	}
	p.gates, err = n.bind(ctx, n.config.Listen.Peer, authn.GateOptions{Side: authn.PeerSide, Routes: routes, TLS: n.ids.peer, Open: open})
	if err != nil {
		return err
	}
	p.joint = joinListeners(routesOf(p.gates, (*authn.Gate).Peer))
	if routes&authn.ServeAgent != 0 {
		p.rpc = joinListeners(routesOf(p.gates, (*authn.Gate).Agent))
	}
	return nil
}

// routesOf lists one route of each gate.
func routesOf(gates []*authn.Gate, route func(*authn.Gate) net.Listener) (out []net.Listener) {
	for _, g := range gates {
		out = append(out, route(g))
	}
	return out
}

// bind opens the sockets of urls, each behind a gate of its own.
func (n *Node) bind(ctx context.Context, urls config.URLs, o authn.GateOptions) ([]*authn.Gate, error) {
	b := binder{registry: n.registry, log: n.log, now: n.env.Now, refused: n.refusals.add, sockets: n.listenConfig()}
	return b.bind(ctx, urls.Strings(), o)
}

// listenConfig sets the socket options that were asked for.
func (n *Node) listenConfig() *net.ListenConfig {
	reusePort, reuseAddress := n.config.Listen.ReusePort, n.config.Listen.ReuseAddress
	if !reusePort && !reuseAddress {
		return nil
	}
	return &net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		var inner error
		err := c.Control(func(fd uintptr) { inner = setReuse(fd, reusePort, reuseAddress) })
		return errors.Join(err, inner)
	}}
}

// serve starts the gates.
func (p *peerSide) serve() {
	for _, g := range p.gates {
		p.work.Go(func() { p.n.watchGate(g.Serve()) })
		if p.web != nil {
			p.work.Go(func() { p.n.watchWeb(p.web.Serve(g.Web())) })
		}
	}
}

func (p *peerSide) listener() net.Listener { return p.joint }

func (p *peerSide) close() error {
	var errs []error
	for _, g := range p.gates {
		errs = append(errs, ignoreClosed(g.Close()))
	}
	if p.joint != nil {
		errs = append(errs, ignoreClosed(p.joint.Close()))
	}
	if p.rpc != nil {
		errs = append(errs, ignoreClosed(p.rpc.Close()))
	}
	if p.web != nil {
		errs = append(errs, p.web.Close())
	}
	p.work.Wait()
	return errors.Join(errs...)
}

// dial connects to a member at one of its peer URLs.
func (p *peerSide) dial(ctx context.Context, member uint64, rawURL string) (net.Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if local := p.n.localAddress(); local != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	network, address := config.Socket(*u)
	if network == "unix" {
		dialer.LocalAddr = nil
	}
	if !config.Secure(*u) {
		if p.n.config.Mode == config.ModeServer {
			return nil, fmt.Errorf("peer URL %s is plaintext: a member of `holdfast server` is reached over TLS only", rawURL)
		}
		return authn.DialPlain(ctx, dialer, authn.PlainTarget{Network: network, Address: address, Registry: p.n.registry})
	}
	if p.n.ids.peer == nil {
		return nil, fmt.Errorf("peer %s: %w (--peer-cert-file, --peer-key-file)", rawURL, errNoTLS)
	}
	return p.n.ids.peer.Dial(ctx, dialer, address, authn.Target{Network: network, Host: u.Hostname(), Member: member, Protocols: []string{authn.PeerProtocol}})
}

// localAddress is where peers are dialled from under the feature gate SetMemberLocalAddr.
func (n *Node) localAddress() string {
	if !n.config.Gates.SetMemberLocalAddr {
		return ""
	}
	for _, u := range n.config.Advertise.Peer {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			return a.String()
		}
	}
	return ""
}

// identify says who the other end of a peer connection is. Under `holdfast server` its certificate must name cluster
// and member; etcd's certificates name neither, so there whoever got through the gate is believed.
func (p *peerSide) identify(c net.Conn, member uint64) (policy.Principal, error) {
	live, ok := authn.Inspect(c)
	if !ok {
		return policy.Principal{}, errors.New("the connection did not come through a gate")
	}
	cluster, named, ok := authn.PeerIdentity(c)
	switch {
	case ok && (cluster != p.n.store.Cluster() || named != member):
		return policy.Principal{}, fmt.Errorf("its certificate names member %x of cluster %x, it says it is %x", named, cluster, member)
	case !ok && p.n.config.Mode == config.ModeServer:
		return policy.Principal{}, errors.New("its certificate names no member")
	case live.Principal.Kind() != policy.Member:
		return policy.Principal{}, errors.New("it is no peer")
	}
	return live.Principal, nil
}

// peerMember is one row of what GET /members on a peer URL answers, in etcd's form.
type peerMember struct {
	ID         string   `json:"id"` // decimal: JSON numbers lose it
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
}

const clusterHeader = "X-Etcd-Cluster-ID"

// serveMembers answers a member that joins a running cluster and does not know its id yet.
func (p *peerSide) serveMembers(w http.ResponseWriter, r *http.Request) {
	if authn.PrincipalFromContext(r.Context()).Kind() != policy.Member {
		http.Error(w, "only members may ask", http.StatusForbidden)
		return
	}
	members, err := p.n.core.Members(r.Context(), p.n.system, false)
	if err != nil {
		http.Error(w, "no answer now", http.StatusServiceUnavailable)
		return
	}
	list := make([]peerMember, len(members))
	for i, m := range members {
		list[i] = peerMember{ID: strconv.FormatUint(m.ID, 10), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner}
	}
	w.Header().Set(clusterHeader, strconv.FormatUint(p.n.store.Cluster(), 16))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(list); err != nil {
		p.n.log.Debug("a member list could not be sent", "error", err)
	}
}

// askMembers asks a running member for its cluster.
func (n *Node) askMembers(ctx context.Context, u url.URL) (cluster uint64, members []state.Member, err error) {
	network, address := config.Socket(u)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := &net.Dialer{Timeout: 5 * time.Second}
		if !config.Secure(u) {
			return d.DialContext(ctx, network, address)
		}
		if n.ids.peer == nil {
			return nil, errNoTLS
		}
		return n.ids.peer.Dial(ctx, d, address, authn.Target{Network: network, Host: u.Hostname(), Protocols: []string{"http/1.1"}})
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	ask := url.URL{Scheme: "http", Host: "member", Path: "/members"}
	if network == "tcp" {
		ask.Host = address
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask.String(), nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, nil, fmt.Errorf("it answered %s", resp.Status)
	}
	if cluster, err = strconv.ParseUint(resp.Header.Get(clusterHeader), 16, 64); err != nil {
		return 0, nil, fmt.Errorf("it named no cluster: %w", err)
	}
	var list []peerMember
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&list); err != nil {
		return 0, nil, fmt.Errorf("its answer: %w", err)
	}
	for _, m := range list {
		id, err := strconv.ParseUint(m.ID, 10, 64)
		if err != nil {
			return 0, nil, fmt.Errorf("its answer: %w", err)
		}
		members = append(members, state.Member{ID: id, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner})
	}
	return cluster, members, nil
}

// foundExisting finds this member in a running cluster to which it has been added.
func (n *Node) foundExisting(ctx context.Context) (*founding, error) {
	peers, err := config.ParseInitialCluster(n.config.Bootstrap.InitialCluster)
	if err != nil {
		return nil, err
	}
	own := slices.IndexFunc(peers, func(p config.Peer) bool { return p.Name == n.config.Name })
	if own < 0 {
		return nil, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", n.config.Name)
	}
	if err := checkAdvertised(n.config, peers[own]); err != nil {
		return nil, err
	}
	var lastErr error
	for _, p := range peers {
		if p.Name == n.config.Name {
			continue
		}
		for _, u := range p.URLs {
			cluster, members, err := n.askMembers(ctx, u)
			if err != nil {
				n.log.Warn("failed to get the members from a peer", "url", u.String(), "error", err)
				lastErr = err
				continue
			}
			return n.placeSelf(cluster, members, peers, own)
		}
	}
	return nil, errors.Join(errors.New("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"), lastErr)
}

// placeSelf compares the running cluster with what this member was told, as etcd does.
func (n *Node) placeSelf(cluster uint64, members []state.Member, peers []config.Peer, own int) (*founding, error) {
	if len(members) != len(peers) {
		return nil, fmt.Errorf("error validating peerURLs %v: member count is unequal", n.config.Bootstrap.InitialCluster)
	}
	f := &founding{members: members, level: state.MaxLevel}
	f.Cluster, f.Token = cluster, n.config.Bootstrap.Token
	for _, p := range peers {
		want := slices.Sorted(slices.Values(p.URLs.Strings()))
		i := slices.IndexFunc(members, func(m state.Member) bool {
			return slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), want)
		})
		if i < 0 {
			return nil, fmt.Errorf("error validating peerURLs %v: unmatched member while checking PeerURLs %v", n.config.Bootstrap.InitialCluster, want)
		}
		if p.Name == peers[own].Name {
			f.Member = members[i].ID
		}
	}
	return f, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
