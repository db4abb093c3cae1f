package dnsapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Directory is the catalog: core, or agentapi's client where there is no core.
type Directory interface {
	Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error)
}

// The bounds of a server.
const (
	maxUDP       = 4 << 10 // bytes of a UDP message, either way
	maxQueries   = 1 << 10 // under way at a time
	maxConns     = 256     // open TCP connections
	maxPerConn   = 1 << 10 // queries on one TCP connection
	queryTime    = 4 * time.Second
	readTime     = 2 * time.Second
	idleTime     = 10 * time.Second
	recursorTime = 2 * time.Second
	defaultStale = 10 * 365 * 24 * time.Hour
	defaultUDP   = 3
)

// Options say what is answered. Directory, Domain, Datacenter, Intn and Now are required.
type Options struct {
	Directory  Directory
	Who        policy.Principal // in whose name the directory is asked
	Domain     string           // of our names: "consul"
	AltDomain  string           // a second one; empty: none
	Datacenter string

	NodeTTL    time.Duration            // of answers about nodes
	ServiceTTL map[string]time.Duration // of answers about services: by name, by a prefix with *, or * for the rest
	// OnlyPassing leaves out instances with a check in warning; those with a critical one are always left out.
	OnlyPassing bool
	UDPAnswers  int           // answers over UDP to askers without EDNS; 0: 3
	MaxStale    time.Duration // how old an answer may be; 0: ten years, as in Consul
	// Truncate sets TC on an answer that UDPAnswers has cut, too.
	Truncate  bool
	Recursors []string // host or host:port of those who answer for other domains; empty: other domains are refused

	Intn func(n int) int // draws from [0, n); called from many goroutines
	Now  func() time.Time
	Log  *slog.Logger
}

// Server answers DNS.
type Server struct {
	o       Options
	domains []string
	room    chan struct{} // one token for each query under way
}

// ErrOptions is what New says of options that cannot be.
var ErrOptions = fault.New(fault.Invalid, "DNS cannot be served so")

// New returns a server that Serve makes answer.
func New(o Options) (*Server, error) {
	s := &Server{o: o, room: make(chan struct{}, maxQueries)}
	if o.Directory == nil || o.Intn == nil || o.Now == nil {
		return nil, fmt.Errorf("dnsapi: directory, randomness and clock are required: %w", ErrOptions)
	}
	for _, d := range []string{o.Domain, o.AltDomain} {
		if d == "" && len(s.domains) > 0 {
			continue
		}
		if !isHostName(d) || d == "." {
			return nil, ErrOptions.WithHint("domain and alt_domain are domain names such as consul, of letters, digits and hyphens")
		}
		s.domains = append(s.domains, dns.Fqdn(d))
	}
	if o.Datacenter == "" {
		return nil, ErrOptions.WithHint("a data center has a name")
	}
	if o.NodeTTL < 0 || o.UDPAnswers < 0 || o.MaxStale < 0 {
		return nil, ErrOptions.WithHint("node_ttl, udp_answer_limit and max_stale are not negative")
	}
	for _, ttl := range o.ServiceTTL {
		if ttl < 0 {
			return nil, ErrOptions.WithHint("service_ttl is not negative")
		}
	}
	s.o.Recursors = make([]string, 0, len(o.Recursors))
	for _, r := range o.Recursors {
		address, err := recursorAddress(r)
		if err != nil {
			return nil, err
		}
		s.o.Recursors = append(s.o.Recursors, address)
	}
	if s.o.UDPAnswers == 0 {
		s.o.UDPAnswers = defaultUDP
	}
	if s.o.MaxStale == 0 {
		s.o.MaxStale = defaultStale
	}
	if s.o.Log == nil {
		s.o.Log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// Serve answers on both sockets until ctx ends or one of them fails. It closes them, and returns once every query has been
// answered. It may run for several pairs.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handle := func(network string) dns.Handler {
		return dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { s.handle(ctx, w, m, network) })
	}
	servers := []*dns.Server{
		{PacketConn: udp, UDPSize: maxUDP, Handler: handle("udp"), ReadTimeout: readTime},
		{
			Listener: &bounded{Listener: tcp, room: make(chan struct{}, maxConns)}, Handler: handle("tcp"), ReadTimeout: readTime,
			WriteTimeout: readTime, MaxTCPQueries: maxPerConn, IdleTimeout: func() time.Duration { return idleTime },
		},
	}
	errs := make([]error, len(servers))
	var started, running sync.WaitGroup
	for i, server := range servers {
		started.Add(1)
		server.NotifyStartedFunc = started.Done
		running.Go(func() {
			defer cancel()
			errs[i] = server.ActivateAndServe()
		})
	}
	started.Wait()
	<-ctx.Done()
	for _, server := range servers {
		_ = server.Shutdown() // one that has failed is not running any more
	}
	running.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("dns: %w", err)
		}
	}
	return nil
}

// handle answers one query.
func (s *Server) handle(ctx context.Context, w dns.ResponseWriter, m *dns.Msg, network string) {
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	default:
		if network == "tcp" {
			_ = w.Close() // the asker sees that nothing comes
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	if err := w.WriteMsg(s.reply(ctx, m, network)); err != nil {
		s.o.Log.Debug("an answer of DNS did not leave", "network", network, "error", err)
	}
}

// reply makes the answer to a query, fit for the network that it came by.
func (s *Server) reply(ctx context.Context, m *dns.Msg, network string) *dns.Msg {
	r := new(dns.Msg).SetReply(m)
	r.Compress = true
	r.RecursionAvailable = len(s.o.Recursors) > 0
	opt := m.IsEdns0()
	switch {
	case opt != nil && opt.Version() != 0:
		r.SetEdns0(maxUDP, false)
		r.Rcode = dns.RcodeBadVers
		return r
	case len(m.Question) != 1:
		r.Rcode = dns.RcodeFormatError
		return r
	case m.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
	case m.Question[0].Qclass != dns.ClassINET && m.Question[0].Qclass != dns.ClassANY:
		r.Rcode = dns.RcodeRefused
	default:
		s.answer(ctx, m, r, network)
	}
	if opt != nil {
		r.SetEdns0(maxUDP, false)
	}
	s.fit(r, opt, network)
	return r
}

// bounded is a listener that closes connections beyond its room.
type bounded struct {
	net.Listener
	room chan struct{}
}

// Accept returns the next connection for which there is room.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.room })}, nil
		default:
			_ = c.Close() // its asker may try again
		}
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close closes the connection and makes room.
func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
