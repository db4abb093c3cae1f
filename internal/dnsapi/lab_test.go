package dnsapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// book is a catalog in memory.
type book struct {
	mu          sync.Mutex
	nodes       []catalog.Node
	services    []catalog.Service
	checks      []catalog.Check
	lastContact time.Duration // of stale reads
	fail        error
	calls       atomic.Int64
	fresh       atomic.Int64 // reads that were not stale ones
}

func (b *book) node(name, address string, meta map[string]string) {
	b.nodes = append(b.nodes, catalog.Node{Name: name, Address: address, Datacenter: "dc1", Meta: meta})
}

func (b *book) service(node, name, address string, port int, tags ...string) *catalog.Service {
	b.services = append(b.services, catalog.Service{
		Node: node, ID: name, Name: name, Address: address, Port: port, Tags: tags, Weights: catalog.Weights{Passing: 1, Warning: 1},
	})
	return &b.services[len(b.services)-1]
}

func (b *book) check(node, service, status string) {
	b.checks = append(b.checks, catalog.Check{Node: node, ID: "check:" + service, ServiceID: service, Status: status})
}

func (b *book) Lookup(_ context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls.Add(1)
	f := core.Found{KnownLeader: true}
	switch {
	case who.Kind() != policy.System || r.Wait != 0 || r.MinIndex != 0:
		return f, errors.New("asked in the wrong way")
	case b.fail != nil:
		return f, b.fail
	case r.Serializable:
		f.LastContact = b.lastContact
	default:
		b.fresh.Add(1)
	}
	named := func(name string) bool { return lower(name) == lower(r.Query.Name) }
	switch r.Query.Kind {
	case catalog.QueryNodes:
		f.Nodes = b.nodes
	case catalog.QueryServiceNames:
		f.Services = b.services
	case catalog.QueryNode:
		for _, n := range b.nodes {
			if named(n.Name) {
				f.Nodes = append(f.Nodes, n)
			}
		}
	case catalog.QueryInstances:
		for _, s := range b.services {
			if !named(s.Name) {
				continue
			}
			i := catalog.Instance{Service: s}
			for _, n := range b.nodes {
				if n.Name == s.Node {
					i.Node = n
				}
			}
			for _, c := range b.checks {
				if c.Node == s.Node && (c.ServiceID == "" || c.ServiceID == s.ID) {
					i.Checks = append(i.Checks, c)
				}
			}
			f.Instances = append(f.Instances, i)
		}
	default:
		return f, fmt.Errorf("unexpected query %+v", r.Query)
	}
	return f, nil
}

// probed is the catalog that the real Consul had when it was probed.
func probed() *book {
	b := &book{}
	version := map[string]string{"consul-version": "1.21.0", "consul-network-segment": ""}
	b.node("dev1", "127.0.0.1", version)
	b.service("dev1", "consul", "", 8300)
	b.service("dev1", "web", "", 80)
	b.service("dev1", "web2", "", 81)
	b.check("dev1", "web2", "critical")
	for i := 1; i <= 40; i++ {
		n := fmt.Sprintf("n%d", i)
		b.node(n, fmt.Sprintf("10.20.0.%d", i), nil)
		if i%2 == 1 {
			b.service(n, "big", "", 9000+i, "t1", "all")
		} else {
			b.service(n, "big", "", 9000+i, "all")
		}
	}
	b.node("v6", "2001:db8::6", map[string]string{"k": "v", "rfc1035-x": "raw txt"})
	b.node("cn", "host.example.com", nil)
	b.service("cn", "cnsvc", "", 67)
	return b
}

func options(d Directory) Options {
	return Options{
		Directory: d, Who: policy.NewSystem("dns"), Domain: "consul", Datacenter: "dc1", Intn: rand.IntN,
		Now: func() time.Time { return time.Unix(1795299608, 0) },
	}
}

// stand runs a server on both sockets and returns their address.
func stand(t *testing.T, o Options) string {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := sockets(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(ctx, udp, tcp); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return tcp.Addr().String()
}

// sockets opens a UDP and a TCP socket on one port.
func sockets(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", tcp.Addr().String())
		if err == nil {
			t.Cleanup(func() { udp.Close(); tcp.Close() })
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// how a question is asked.
type how struct {
	tcp  bool
	edns uint16 // 0: none
}

var (
	edns   = how{edns: 1232}
	noEDNS = how{}
	tcp    = how{tcp: true, edns: 1232}
)

func ask(t *testing.T, address, name string, qtype uint16, h how) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	if h.edns != 0 {
		m.SetEdns0(h.edns, false)
	}
	return send(t, address, m, h)
}

func send(t *testing.T, address string, m *dns.Msg, h how) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: "udp", Timeout: 5 * time.Second}
	if h.tcp {
		c.Net = "tcp"
	}
	r, _, err := c.ExchangeContext(t.Context(), m, address)
	if err != nil {
		t.Fatalf("%s %v: %v", m.Question[0].Name, h, err)
	}
	return r
}

func lines(records []dns.RR) []string {
	var all []string
	for _, rr := range records {
		if rr.Header().Rrtype != dns.TypeOPT {
			all = append(all, rr.String())
		}
	}
	return all
}
