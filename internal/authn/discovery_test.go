package authn

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// arrival is a connection that a port of members and agents handed on.
type arrival struct {
	agent bool
	who   string
}

// agents collects what comes out of a gate's two routes.
func (l *lab) agents(s *stand) func() (arrival, bool) {
	l.t.Helper()
	out := make(chan arrival, 8)
	var work sync.WaitGroup
	for _, r := range []struct {
		l     net.Listener
		agent bool
	}{{s.Peer(), false}, {s.Agent(), true}} {
		work.Go(func() {
			for {
				c, err := r.l.Accept()
				if err != nil {
					return
				}
				live, _ := Inspect(c)
				out <- arrival{r.agent, describe(live.Principal)}
				l.t.Cleanup(func() { c.Close() })
			}
		})
	}
	l.t.Cleanup(func() { s.Close(); work.Wait() })
	return func() (arrival, bool) {
		select {
		case a := <-out:
			return a, true
		case <-time.After(300 * time.Millisecond):
			return arrival{}, false
		}
	}
}

// TestSharedPortIssued: on the members' port of `holdfast server` an agent's certificate opens the agents' RPC only, a
// member's the members' protocol only, and the protocol is chosen by ALPN.
func TestSharedPortIssued(t *testing.T) {
	l := newLab(t)
	h := newHouse(t)
	peer := h.leaf(ca.Request{Profile: ca.PeerProfile, CommonName: "m1", Hosts: []string{"localhost"}, Cluster: h.cluster, Member: 1})
	id := l.identity(Config{Side: PeerSide, Issued: &Issued{Cluster: h.cluster, Server: peer, Client: peer, Issuers: []Issuer{h.issuer(policy.RoleMember), h.issuer(policy.RoleAgent)}}})
	s := l.stand(GateOptions{Side: PeerSide, TLS: id, Routes: ServePeer | ServeAgent})
	next := l.agents(s)
	try := func(protocol string, p Pair) (arrival, bool) {
		certs, err := certificateOf(p)
		if err != nil {
			t.Fatal(err)
		}
		var protocols []string
		if protocol != "" {
			protocols = []string{protocol}
		}
		c, err := tls.Dial("tcp", s.address, clientTLS(h.root.Certificate, protocols, certs...))
		if err != nil {
			return arrival{}, false
		}
		t.Cleanup(func() { c.Close() })
		return next()
	}
	member := h.leaf(ca.Request{Profile: ca.PeerProfile, CommonName: "m2", Cluster: h.cluster, Member: 2})
	agent := h.leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "web1"})
	if got, ok := try(AgentProtocol, agent); !ok || got != (arrival{true, `kind=2 role=4 name="web1" open=false`}) {
		t.Errorf("an agent at the agents' RPC: %+v %v", got, ok)
	}
	if got, ok := try(PeerProtocol, member); !ok || got != (arrival{false, `kind=3 role=3 name="m2" open=false`}) {
		t.Errorf("a member at the members' protocol: %+v %v", got, ok)
	}
	for name, refused := range map[string]struct {
		protocol string
		pair     Pair
	}{
		"an agent at the members' protocol": {PeerProtocol, agent},
		"a member at the agents' RPC":       {AgentProtocol, member},
		"an admin":                          {AgentProtocol, h.leaf(ca.Request{Profile: ca.AdminProfile, CommonName: "boss"})},
		"no protocol":                       {"", agent},
		"another cluster's agent":           {AgentProtocol, newHouse(t).leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "web1"})},
		"nobody":                            {AgentProtocol, Pair{}},
	} {
		if got, ok := try(refused.protocol, refused.pair); ok {
			t.Errorf("%s came in: %+v", name, got)
		}
	}
}

// consulTLS is the TLS of a Consul agent with files of one CA.
func (l *lab) consulTLS(a *authority, name string, cert tls.Certificate) Config {
	c := Config{Side: PeerSide, SkipClientSANVerify: true, RefuseWeak: true, MinVersion: "TLS1.2"}
	c.CertFile, c.KeyFile = l.pair(name, cert)
	c.TrustedCAFile = l.file("ca.crt", ca.EncodeCertificates(a.cert))
	return c
}

// TestSharedPortFiles: with files, as in Consul, every certificate of the CA may do RPC; with a server name only its holders
// are servers, for those who dial and for those who come in.
func TestSharedPortFiles(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "guide")
	named := func(name string) tls.Certificate {
		return a.leaf("*.example.com", func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil; c.DNSNames = []string{name} })
	}
	server, client := named("server.dc1.consul"), named("client.dc1.consul")
	for _, strict := range []bool{false, true} {
		judge := func(c Config) Config {
			if c.AnyServer = !strict; strict {
				c.ServerName = "server.dc1.consul"
			}
			return c
		}
		s := l.stand(GateOptions{Side: PeerSide, TLS: l.identity(judge(l.consulTLS(a, "server", server))), Routes: ServePeer | ServeAgent, Open: true})
		next := l.agents(s)
		mine := l.identity(judge(l.consulTLS(a, "client", client)))
		dial := func(protocol string) (arrival, bool) {
			c, err := mine.Dial(t.Context(), nil, s.address, Target{Protocols: []string{protocol}})
			if err != nil {
				return arrival{}, false
			}
			t.Cleanup(func() { c.Close() })
			return next()
		}
		if got, ok := dial(AgentProtocol); !ok || got != (arrival{true, `kind=2 role=0 name="" open=true`}) {
			t.Errorf("strict=%v: an agent: %+v %v", strict, got, ok)
		}
		if got, ok := dial(PeerProtocol); ok == strict {
			t.Errorf("strict=%v: an agent's certificate at the members' protocol: %+v %v", strict, got, ok)
		}
		// The other way round: whoever pretends to be a server with an agent's certificate.
		fake := l.stand(GateOptions{Side: PeerSide, TLS: l.identity(judge(l.consulTLS(a, "fake", client))), Routes: ServePeer | ServeAgent, Open: true})
		if c, err := mine.Dial(t.Context(), nil, fake.address, Target{Protocols: []string{AgentProtocol}}); (err == nil) == strict {
			t.Errorf("strict=%v: an agent's certificate passes for a server's: %v", strict, err)
		} else if err == nil {
			c.Close()
		}
		for name, c := range map[string]*tls.Config{"without a certificate": clientTLS(a.cert, []string{AgentProtocol}),
			"of another CA": clientTLS(a.cert, []string{AgentProtocol}, makeAuthority(t, "other").leaf("x", nil))} {
			c.ServerName = "server.dc1.consul"
			if conn, err := tls.Dial("tcp", s.address, c); err == nil {
				t.Cleanup(func() { conn.Close() })
				if got, ok := next(); ok {
					t.Errorf("%s: %+v", name, got)
				}
			}
		}
	}
}

// TestRootsOnly: with roots for servers only, nobody is asked for a certificate, and servers are verified all the same.
func TestRootsOnly(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "guide")
	c := l.consulTLS(a, "server", a.leaf("server", nil))
	c.RootsFile, c.TrustedCAFile, c.AnyServer = c.TrustedCAFile, "", true
	id := l.identity(c)
	s := l.stand(GateOptions{Side: PeerSide, TLS: id, Routes: ServePeer | ServeAgent, Open: true})
	next := l.agents(s)
	bare := l.identity(Config{Side: PeerSide, RootsFile: c.RootsFile, AnyServer: true})
	conn, err := bare.Dial(t.Context(), nil, s.address, Target{Protocols: []string{AgentProtocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, ok := next(); !ok || got != (arrival{true, `kind=1 role=0 name="anonymous" open=true`}) {
		t.Errorf("%+v %v", got, ok)
	}
	other := makeAuthority(t, "other")
	wrong := l.identity(Config{Side: PeerSide, RootsFile: l.file("other.crt", ca.EncodeCertificates(other.cert)), AnyServer: true})
	if c, err := wrong.Dial(t.Context(), nil, s.address, Target{Protocols: []string{AgentProtocol}}); err == nil {
		c.Close()
		t.Error("a server of another CA is believed")
	}
	if _, err := New(Config{Side: PeerSide, RootsFile: "x", TrustedCAFile: "y"}, l.env()); err == nil {
		t.Error("two CAs were taken")
	}
}

// TestSharedPortPlain: without TLS the first byte decides; everybody is somebody on the agents' RPC, as Consul has it.
func TestSharedPortPlain(t *testing.T) {
	l := newLab(t)
	for open, want := range map[bool]string{true: `kind=1 role=0 name="anonymous" open=true`, false: `kind=0 role=0 name="" open=false`} {
		s := l.stand(GateOptions{Side: PeerSide, Plain: true, Routes: ServePeer | ServeAgent, Open: open})
		next := l.agents(s)
		for first, agent := range map[string]bool{"PRI * HTTP/2.0\r\n": true, "POST /x HTTP/1.1\r\n": true, "\x01hello": false} {
			c, err := net.Dial("tcp", s.address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Write([]byte(first)); err != nil {
				t.Fatal(err)
			}
			if got, ok := next(); !ok || got.agent != agent || agent && got.who != want {
				t.Errorf("open=%v %q: %+v %v", open, first, got, ok)
			}
		}
	}
	for _, r := range []Routes{ServeAgent, ServeAgent | ServeWeb, ServeAgent | ServePeer | ServeWeb} {
		if _, err := NewGate(nil, GateOptions{Side: PeerSide, Plain: true, Routes: r, Registry: l.registry, Log: l.log.logger(), Now: l.clock}); err == nil {
			t.Errorf("routes %04b were taken", r)
		}
	}
}

// TestWeakRefused: files with keys and signatures that can be forged are refused with their name and what to use.
func TestWeakRefused(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "guide")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := ca.NewSerial(rand.Reader)
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "weak"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, weak.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	key, err := x509.MarshalPKCS8PrivateKey(weak)
	if err != nil {
		t.Fatal(err)
	}
	good := l.consulTLS(a, "good", a.leaf("good", nil))
	bad := good
	bad.CertFile = l.file("weak.crt", ca.EncodeCertificates(leaf))
	bad.KeyFile = l.file("weak.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	_, err = New(bad, l.env())
	var f *fault.Error
	if err == nil || !strings.Contains(err.Error(), bad.CertFile) || !strings.Contains(err.Error(), "1024") {
		t.Errorf("%v", err)
	} else if f = fault.From(err); f == nil || f.Hint == "" {
		t.Errorf("no hint: %v", err)
	}
	if bad.RefuseWeak = false; func() error { _, err := New(bad, l.env()); return err }() != nil {
		t.Error("etcd's way takes weak keys, with a warning")
	}
	// Somebody comes with the weak certificate.
	s := l.stand(GateOptions{Side: DiscoverySide, TLS: l.identity(func() Config { c := good; c.Side = DiscoverySide; return c }()), Routes: ServeWeb, Open: true})
	if got := s.get(t, clientTLS(a.cert, nil, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: weak, Leaf: leaf}), false); got.err == nil {
		t.Errorf("a weak certificate came in: %+v", got)
	}
	if got := s.get(t, clientTLS(a.cert, nil, a.leaf("x", nil)), false); got.err != nil {
		t.Errorf("a good one did not: %v", got.err)
	}
	sha1 := *leaf
	sha1.SignatureAlgorithm = x509.SHA1WithRSA
	sha1.PublicKey = a.cert.PublicKey
	if err := good.strongFile("f.crt", []*x509.Certificate{&sha1}); err == nil || !strings.Contains(err.Error(), "f.crt") || !strings.Contains(fault.From(err).Hint, "-sha256") {
		t.Errorf("SHA-1: %v", err)
	}
}

// TestSecureOutgoing: a check's connection is verified unless it says otherwise.
func TestSecureOutgoing(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "guide")
	c := l.mutual(a)
	c.RootsFile, c.TrustedCAFile, c.ClientCertAuth = c.TrustedCAFile, "", false
	s := l.stand(GateOptions{TLS: l.identity(c), Routes: ServeWeb, Open: true})
	roots := l.file("roots.crt", ca.EncodeCertificates(a.cert))
	for _, test := range []struct {
		name string
		o    Outbound
		ok   bool
	}{
		{"localhost", Outbound{CAFile: roots}, true},
		{"other.example", Outbound{CAFile: roots}, false},
		{"localhost", Outbound{}, false}, // the system's roots
		{"other.example", Outbound{SkipVerify: true}, true},
	} {
		raw, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		secured, err := SecureForeign(context.Background(), raw, test.o, Target{Host: test.name, Protocols: []string{"http/1.1"}}, l.env())
		if (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
		if err == nil {
			secured.Close()
		} else {
			raw.Close()
		}
	}
}
