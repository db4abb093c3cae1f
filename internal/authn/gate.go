package authn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Routes says what is served behind a gate.
type Routes uint8

// The routes. A gate serves the peer transport, or gRPC, web or both; the peer transport may have a web route or the agents'
// RPC beside it.
const (
	ServeGRPC Routes = 1 << iota
	ServeWeb
	ServePeer
	ServeAgent
)

// GateOptions say what one listening socket is. The zero value is refused.
type GateOptions struct {
	Side   Side
	Routes Routes
	TLS    *Identity // nil: no TLS on this socket
	Plain  bool      // serve plain text; with TLS too, the first byte of a connection decides
	// Open is `holdfast etcd`: whoever comes without a certificate is Anonymous instead of Nobody, and etcd's rule "auth
	// off = all" holds. On the peer side it makes a member of everybody who gets in.
	Open     bool
	Registry *Registry
	Log      *slog.Logger
	Now      func() time.Time

	// Refused is told of every refused handshake, with or without a certificate, for the audit record. How many there are
	// is up to strangers. Nil: nobody.
	Refused func(Refusal)

	MaxHandshakes, MaxHandshakesPerAddress int // 0: 512 and 128
	// MaxConnections bounds the open connections of this socket, from the first byte to the last. 0: on the public side 512,
	// where anybody may open them and would take the file descriptors of the other ports; elsewhere there is no bound.
	MaxConnections int
}

// Refusal is a handshake that was refused, and the certificate that was shown, if it was that.
type Refusal struct {
	Side                    Side
	Remote, ServerName      string
	Subject, Issuer, Serial string
	Reason                  string // in plain language
	Err                     error
}

// Gate accepts the connections of one socket, finds out who is there, and hands them to the server of their protocol.
type Gate struct {
	options GateOptions
	socket  net.Listener
	admit   admission
	routes  [4]*route
	refused refusalLog
	counts  gateCounts
	open    atomic.Int64 // connections, where they are bounded

	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // handshakes; grows only while Serve runs

	mu      sync.Mutex
	stopped bool
	serving sync.WaitGroup
}

type gateCounts struct {
	accepted, rejected, overflow, grpc, web, peer, agent atomic.Uint64
}

// GateCounts are totals since the start, and what is pending now.
type GateCounts struct {
	Accepted, Rejected, Overflow uint64 // Overflow: closed because too many handshakes were pending
	GRPC, Web, Peer, Agent       uint64 // handed on
	Pending                      int
}

// NewGate returns a gate over socket, which it owns from then on. Serve runs it.
func NewGate(socket net.Listener, o GateOptions) (*Gate, error) {
	switch {
	case o.Side == noSide || o.Side > DiscoverySide || o.Registry == nil || o.Log == nil || o.Now == nil:
		return nil, fmt.Errorf("%w: gate: side, registry, log and clock are required", ErrConfig)
	case o.TLS == nil && !o.Plain:
		return nil, fmt.Errorf("%w: gate: neither TLS nor plain text", ErrConfig)
	case o.Routes == 0 || o.Routes >= 1<<4 || o.Routes&ServePeer != 0 && o.Routes&ServeGRPC != 0 || o.Routes&ServeAgent != 0 && o.Routes != ServePeer|ServeAgent:
		return nil, fmt.Errorf("%w: gate: routes %03b", ErrConfig, o.Routes)
	case o.TLS != nil && len(o.TLS.current.Load().server) == 0:
		return nil, fmt.Errorf("%w: gate: KeyFile and CertFile must both be present[key: , cert: ]", ErrConfig)
	}
	if o.MaxHandshakes <= 0 {
		o.MaxHandshakes = defaultHandshakes
	}
	if o.MaxHandshakesPerAddress <= 0 {
		o.MaxHandshakesPerAddress = defaultPerAddress
	}
	g := &Gate{options: o, socket: socket}
	if o.MaxConnections <= 0 && o.Side == PublicSide {
		o.MaxConnections = defaultStrangers
	}
	g.options.MaxConnections = o.MaxConnections
	g.admit = admission{
		maxActive: o.MaxHandshakes, maxPerAddress: o.MaxHandshakesPerAddress, maxWaiting: o.MaxHandshakes * waitingFactor,
		perAddr: map[string]int{}, running: map[string]int{},
	}
	g.refused = refusalLog{log: o.Log, now: o.Now, side: o.Side, tell: o.Refused}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	for i := range g.routes {
		g.routes[i] = &route{gate: g, conns: make(chan net.Conn), done: make(chan struct{})}
		if o.Routes&(1<<i) == 0 {
			g.routes[i].Close()
		}
	}
	return g, nil
}

// GRPC is what a grpc-go server with Credentials serves. A route that is not among Routes is closed from the start.
func (g *Gate) GRPC() net.Listener { return g.routes[0] }

// Web is what an http.Server with ConnContext serves: HTTP/1.1, and HTTP/2 of clients that also offer http/1.1. Its
// handler must pass application/grpc on to the gRPC server's ServeHTTP.
func (g *Gate) Web() net.Listener { return g.routes[1] }

// Peer is what the peer transport serves; the dialling side must speak first, and not with an HTTP method.
func (g *Gate) Peer() net.Listener { return g.routes[2] }

// Agent is what the agents' RPC serves.
func (g *Gate) Agent() net.Listener { return g.routes[3] }

// Addr is the address of the socket.
func (g *Gate) Addr() net.Addr { return g.socket.Addr() }

// Counts returns totals.
func (g *Gate) Counts() GateCounts {
	return GateCounts{
		Accepted: g.counts.accepted.Load(), Rejected: g.counts.rejected.Load(), Overflow: g.counts.overflow.Load(),
		GRPC: g.counts.grpc.Load(), Web: g.counts.web.Load(), Peer: g.counts.peer.Load(), Agent: g.counts.agent.Load(), Pending: g.admit.pending(),
	}
}

// Weaknesses says what is weaker about this socket than what Holdfast does by itself; those of its Identity are apart.
func (g *Gate) Weaknesses() []string {
	if !g.options.Plain {
		return nil
	}
	if g.options.Side == PeerSide {
		return []string{fmt.Sprintf("peer side: %s is plain text: anyone reaching the peer port is root, and anyone on the way reads and changes everything", g.Addr())}
	}
	return []string{fmt.Sprintf("%s side: %s is plain text: anyone on the way reads and changes everything", g.options.Side, g.Addr())}
}

// Serve accepts until Close, or until the socket fails for good. It returns nil after Close. Call Close after it anyway:
// it waits for the handshakes.
func (g *Gate) Serve() error {
	g.mu.Lock()
	if g.stopped {
		g.mu.Unlock()
		return nil
	}
	g.serving.Add(1)
	g.mu.Unlock()
	defer g.serving.Done()
	defer g.stop()
	pause := 5 * time.Millisecond
	for {
		raw, err := g.socket.Accept()
		if g.ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("%s socket %s: %w", g.options.Side, g.Addr(), err)
			}
			// Out of file descriptors, or a client that was gone already: neither ends the service.
			g.options.Log.Warn("cannot accept a connection", "side", g.options.Side.String(), "error", err)
			select {
			case <-time.After(pause):
			case <-g.ctx.Done():
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		g.counts.accepted.Add(1)
		c := &conn{Conn: raw, registry: g.options.Registry, budget: handshakeBytes}
		if g.full(c) {
			continue
		}
		switch g.admit.enter(c) {
		case start:
			g.begin(c)
		case refuse:
			g.counts.overflow.Add(1)
			g.refused.add(c, errOverflow)
			c.Close()
		case wait:
		}
	}
}

var errOverflow = errors.New("too many connections are waiting for their handshake")

// full counts c among the open connections, or closes it when there are too many.
func (g *Gate) full(c *conn) bool {
	if g.options.MaxConnections <= 0 {
		return false
	}
	if g.open.Add(1) > int64(g.options.MaxConnections) {
		g.open.Add(-1)
		g.counts.overflow.Add(1)
		g.refused.add(c, errCrowded)
		c.Close()
		return true
	}
	c.ended = func() { g.open.Add(-1) }
	return false
}

var errCrowded = errors.New("too many connections are open")

// begin runs c's handshake, and then those that waited for its turn, in one goroutine that Close waits for.
func (g *Gate) begin(c *conn) {
	g.work.Go(func() {
		for ; c != nil; c = g.admit.leave(c) {
			g.admitOne(c)
		}
	})
}

// Close stops accepting, ends every unfinished handshake and waits for them. Connections that were handed on live until
// their servers or the registry end them.
func (g *Gate) Close() error {
	err := g.stop()
	g.serving.Wait()
	for _, c := range g.admit.drain() {
		c.Close()
	}
	g.work.Wait()
	return err
}

func (g *Gate) stop() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return nil
	}
	g.stopped = true
	g.cancel()
	for _, r := range g.routes {
		r.Close()
	}
	return g.socket.Close()
}

// admitOne takes c from the first byte to the server that will serve it.
func (g *Gate) admitOne(c *conn) {
	defer func() {
		if r := recover(); r != nil { // crypto code fed by strangers: one connection, not the server
			g.options.Log.Error("panic in a handshake", "side", g.options.Side.String(), "error", fmt.Sprint(r))
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(g.ctx, handshakeLimit)
	defer cancel()
	to, served, err := g.welcome(ctx, c)
	if err == nil {
		err = to.deliver(ctx, served)
	}
	if err != nil {
		if g.ctx.Err() == nil {
			g.counts.rejected.Add(1)
			g.refused.add(c, err)
		}
		c.Close()
	}
}

// welcome finds out what c speaks and who it is.
func (g *Gate) welcome(ctx context.Context, c *conn) (*route, net.Conn, error) {
	secure := g.options.TLS != nil
	if secure && g.options.Plain {
		first, err := sniff(ctx, c, func(b []byte) bool { return len(b) == 0 })
		if err != nil {
			return nil, nil, err
		}
		secure = first[0] == tlsHandshakeRecord
	}
	if secure {
		return g.welcomeTLS(ctx, c)
	}
	return g.welcomePlain(ctx, c)
}

func (g *Gate) welcomePlain(ctx context.Context, c *conn) (*route, net.Conn, error) {
	to, err := g.plainRoute(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	c.live = Live{Side: g.options.Side, Principal: g.stranger(to), Remote: c.RemoteAddr()}
	c.budget = -1
	g.options.Registry.add(c)
	return to, c, nil
}

// stranger is who comes without a certificate.
func (g *Gate) stranger(to *route) policy.Principal {
	switch {
	case !g.options.Open || g.options.Side == PublicSide:
		return policy.Principal{}
	case g.options.Side == PeerSide && to != g.routes[3]:
		return unauthenticatedPeer()
	}
	return policy.NewAnonymous()
}

// welcomeTLS does the handshake. The certificate is verified in VerifyConnection; who the client is counts only after.
func (g *Gate) welcomeTLS(ctx context.Context, c *conn) (*route, net.Conn, error) {
	var offered []string
	var p *proof
	id := g.options.TLS
	m := id.fresh()
	secured := tls.Server(c, helloConfig(id.env.Now, func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c.serverName, offered = hello.ServerName, hello.SupportedProtos
		config := serverConfig(id.env.Now, id.settings, m, g.protocols())
		config.VerifyConnection = func(cs tls.ConnectionState) error {
			var err error
			p, err = id.verifyClient(ctx, m, cs, c.RemoteAddr())
			return err
		}
		return config, nil
	}))
	if err := secured.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil && g.ctx.Err() == nil {
			err = fmt.Errorf("the handshake took longer than %s: %w", handshakeLimit, err)
		}
		return nil, nil, err
	}
	to, err := g.secureRoute(secured.ConnectionState().NegotiatedProtocol, offered)
	if err != nil {
		return nil, nil, err
	}
	c.budget, c.identity, c.encrypted = -1, id, true
	c.live = Live{Side: g.options.Side, Principal: g.stranger(to), Remote: c.RemoteAddr(), ServerName: c.serverName}
	if p == nil {
		g.options.Registry.add(c)
		return to, secured, nil
	}
	c.chain, c.cluster = p.chain, p.cluster
	c.live.Certificates, c.live.Member, c.live.Expired = p.names, p.member, p.expired
	if err := g.belongs(p, to); err != nil {
		return nil, nil, err
	}
	c.live.Principal, c.live.Subject = g.principal(p, to), p.chain[0].Subject
	g.options.Registry.add(c)
	if err := id.current.Load().still(c); err != nil {
		return nil, nil, &refusal{err: err, reason: "it was revoked or its CA removed during the handshake", cert: p.chain[0]}
	}
	return to, secured, id.revoked(p)
}

// principal is who a proof stands for on this gate. A holder whose common name may not be a user name (etcd without
// --client-cert-auth) has the empty name.
func (g *Gate) principal(p *proof, to *route) policy.Principal {
	name := ""
	if g.options.TLS.settings.cnIsUser {
		name = p.chain[0].Subject.CommonName
	}
	switch {
	case g.options.Side != PeerSide || to == g.routes[3]:
		return policy.NewHolder(name, p.names[0], p.role, g.options.Open)
	case p.member != 0 || g.options.TLS.config.Issued == nil:
		return policy.NewMember(p.chain[0].Subject.CommonName, p.names[0])
	}
	return policy.Principal{} // a member certificate that names no member
}

// belongs refuses a certificate that is good, but not for the protocol that was chosen: on a port that members and agents
// share, an issued certificate is for one of the two, and servers of a certain name are told from agents by it.
func (g *Gate) belongs(p *proof, to *route) error {
	if g.options.Routes&ServePeer == 0 {
		return nil
	}
	config, leaf := &g.options.TLS.config, p.chain[0]
	switch {
	case config.Issued != nil && to == g.routes[3] && p.role != policy.RoleAgent:
		return &refusal{err: errNotAllowed, reason: "it is no agent's certificate, and this is the agents' RPC", cert: leaf}
	case config.Issued != nil && to != g.routes[3] && p.role != policy.RoleMember:
		return &refusal{err: errNotAllowed, reason: "it is no member's certificate, and this is the members' protocol", cert: leaf}
	case config.ServerName != "" && to == g.routes[2] && leaf.VerifyHostname(config.ServerName) != nil:
		return &refusal{err: errNotAllowed, reason: fmt.Sprintf("it is not for %s, so its holder is no server", config.ServerName), cert: leaf}
	}
	return nil
}

// unauthenticatedPeer is the other end of a peer connection that proves nothing: in the clear, or under auto-tls.
func unauthenticatedPeer() policy.Principal {
	return policy.NewMember("unauthenticated peer", policy.Certificate{})
}

// verifyClient is the VerifyConnection of accepted connections.
func (i *Identity) verifyClient(ctx context.Context, m *material, cs tls.ConnectionState, remote net.Addr) (*proof, error) {
	if !i.settings.demandCert {
		return nil, nil
	}
	if len(cs.PeerCertificates) == 0 {
		return nil, errNotAllowed
	}
	p, err := m.verify(cs.PeerCertificates, i.env.Now(), usage(false))
	if err != nil {
		return nil, err
	}
	if err := i.config.strong(p.chain); err != nil {
		return nil, err
	}
	if err := i.config.allowed(p.chain[0]); err != nil {
		return nil, err
	}
	if i.lookups != nil {
		if err := i.lookups.check(ctx, p.chain[0], remote); err != nil {
			return nil, err
		}
	}
	return p, i.revoked(p) // here so that the client is told; asked again once the connection is in the registry
}
