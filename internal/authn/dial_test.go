package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// TestDialVerifies: an outgoing connection believes its CA, for the right host, within dates, for servers, unrevoked.
func TestDialVerifies(t *testing.T) {
	l := newLab(t)
	a, other := makeAuthority(t, "CA"), makeAuthority(t, "CA")
	revoked := a.leaf("revoked", nil)
	crl := l.file("crl", a.crl(1, time.Now().Add(time.Hour), revoked))
	base := l.mutual(a)
	base.Side = PeerSide
	serve := func(cert tls.Certificate) *stand {
		c := base
		c.CertFile, c.KeyFile = l.pair("serve"+cert.Leaf.SerialNumber.Text(16), cert)
		return l.stand(GateOptions{Side: PeerSide, TLS: l.identity(c), Routes: ServeWeb})
	}
	mine := base
	mine.CRLFile = crl
	mine.ClientCertFile, mine.ClientKeyFile = l.pair("client", a.leaf("dialler", nil))
	id := l.identity(mine)
	byName := mine
	byName.AllowedCNs = []string{"known"}
	picky := l.identity(byName)
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		cert tls.Certificate
		id   *Identity
		host string
		want string // in the error; empty: accepted
	}{
		"good":           {a.leaf("server", nil), id, "", ""},
		"good by name":   {a.leaf("server", nil), id, "localhost", ""},
		"allowed CN":     {a.leaf("known", nil), picky, "", ""},
		"other CN":       {a.leaf("unknown", nil), picky, "", "client certificate authentication failed"},
		"other CA":       {other.leaf("server", nil), id, "", "unknown authority"},
		"other host":     {a.leaf("server", nil), id, "db.example.com", "not db.example.com"},
		"other address":  {a.leaf("server", func(c *x509.Certificate) { c.IPAddresses = nil }), id, "", "doesn't contain any IP SANs"},
		"expired":        {a.leaf("old", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-3*day), time.Now().Add(-day) }), id, "", "expired"},
		"client's":       {a.leaf("c", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), id, "", "incompatible key usage"},
		"revoked by CRL": {revoked, id, "", "revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(tc.cert)
			c, err := tc.id.Dial(t.Context(), nil, s.address, Target{Host: tc.host, Protocols: []string{"http/1.1"}})
			if err == nil {
				defer c.Close()
				if live, ok := Inspect(c); !ok || !live.Outbound || live.Certificates[0] != ca.Name(tc.cert.Leaf, a.cert) {
					t.Errorf("%+v", live)
				}
				if _, _, ok := PeerIdentity(c); ok {
					t.Error("a foreign certificate names a member")
				}
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v; want %q", err, tc.want)
			}
			host := tc.host
			if host == "" {
				host = "127.0.0.1"
			}
			config := tc.id.ClientConfig(Target{Host: host})
			if got := s.get(t, config, false); (got.err == nil) != (tc.want == "") {
				t.Errorf("ClientConfig: %v; want %q", got.err, tc.want)
			} else if got.err == nil && got.who != `kind=3 role=3 name="dialler" open=false` {
				t.Errorf("the client certificate was not shown: %+v", got)
			}
		})
	}
	t.Run("no host", func(t *testing.T) {
		t.Parallel()
		s := serve(a.leaf("server", nil))
		c, err := (&tls.Dialer{Config: id.ClientConfig(Target{})}).DialContext(t.Context(), "tcp", s.address)
		if err == nil {
			c.Close()
			t.Error("a server was believed without a host to compare")
		}
	})
}

// TestDialCut: a revocation cuts a connection that this member dialled.
func TestDialCut(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	c := l.mutual(a)
	c.Side = PeerSide
	c.CRLFile = l.file("crl", a.crl(1, time.Now().Add(time.Hour)))
	id := l.identity(c)
	other := &lab{t: t, dir: t.TempDir(), registry: NewRegistry(), log: l.log, now: l.now}
	oc := other.mutual(a)
	oc.Side = PeerSide
	s := other.stand(GateOptions{Side: PeerSide, TLS: other.identity(oc), Routes: ServeWeb})
	conn, err := id.Dial(t.Context(), nil, s.address, Target{Host: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	l.file("crl", a.crl(2, time.Now().Add(time.Hour), tls.Certificate{Leaf: server}))
	l.advance(id, reloadEvery)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the dialled connection to a revoked server lives")
	}
	if all, _ := l.registry.Count(); all != 0 {
		t.Errorf("%d in the registry", all)
	}
}

// TestPeerAutoTLS: peers with auto-tls connect, and status says what that is worth.
func TestPeerAutoTLS(t *testing.T) {
	l := newLab(t)
	side := func() *Identity {
		return l.identity(Config{Side: PeerSide, AutoTLS: true, AutoTLSHosts: []string{"127.0.0.1"}, AutoTLSStore: &memStore{}, MinVersion: "TLS1.2"})
	}
	one, two := side(), side()
	s := l.stand(GateOptions{Side: PeerSide, TLS: one, Routes: ServeWeb, Open: true})
	c, err := two.Dial(t.Context(), nil, s.address, Target{Protocols: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if text := strings.Join(one.Weaknesses(), "\n"); !strings.Contains(text, "anyone reaching the peer port is root") || !strings.Contains(text, "--peer-auto-tls") {
		t.Error(text)
	}
	// The client side of the same flags still verifies nobody away: auto-tls with a CA verifies.
	a := makeAuthority(t, "CA")
	strict := l.identity(Config{Side: PeerSide, AutoTLS: true, AutoTLSHosts: []string{"127.0.0.1"}, AutoTLSStore: &memStore{},
		TrustedCAFile: l.file("ca.crt", ca.EncodeCertificates(a.cert)), MinVersion: "TLS1.2"})
	if c, err := strict.Dial(t.Context(), nil, s.address, Target{}); err == nil {
		c.Close()
		t.Error("with a CA an impostor was believed")
	}
}

// names is a Resolver of a test. It counts the questions.
type names struct {
	reverse, forward map[string][]string
	asked            int
	hang             bool
}

func (n *names) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	n.asked++
	if n.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if found, ok := n.reverse[addr]; ok {
		return found, nil
	}
	return nil, errors.New("no such address")
}

func (n *names) LookupHost(ctx context.Context, host string) ([]string, error) {
	n.asked++
	if n.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if found, ok := n.forward[host]; ok {
		return found, nil
	}
	return nil, errors.New("no such host")
}

// TestAddressCheck: etcd's comparison of a peer's address with the names in its certificate.
func TestAddressCheck(t *testing.T) {
	t.Parallel()
	dns := &names{
		reverse: map[string][]string{"10.0.0.1": {"m1.example.com."}, "10.0.0.2": {"evil.example.org."}},
		forward: map[string][]string{"m3.example.net": {"10.0.0.3", "10.0.0.4"}},
	}
	clock := time.Now()
	a := &addresses{resolver: dns, now: func() time.Time { return clock }}
	check := func(c *x509.Certificate, ip string) error {
		return a.check(t.Context(), c, &net.TCPAddr{IP: net.ParseIP(ip)})
	}
	for _, tc := range []struct {
		cert x509.Certificate
		ip   string
		want string
	}{
		{x509.Certificate{}, "10.0.0.9", ""},
		{x509.Certificate{IPAddresses: []net.IP{net.ParseIP("10.0.0.9")}}, "10.0.0.9", ""},
		{x509.Certificate{IPAddresses: []net.IP{net.ParseIP("10.0.0.9")}}, "10.0.0.8", "10.0.0.8"},
		{x509.Certificate{DNSNames: []string{"m1.example.com"}}, "10.0.0.1", ""},
		{x509.Certificate{DNSNames: []string{"*.example.com"}}, "10.0.0.1", ""},
		{x509.Certificate{DNSNames: []string{"m1.example.com"}}, "10.0.0.2", `tls: "10.0.0.2" does not match any of DNSNames ["m1.example.com"]`},
		{x509.Certificate{DNSNames: []string{"*.example.com"}}, "10.0.0.2", "does not match"},
		{x509.Certificate{DNSNames: []string{"m3.example.net"}}, "10.0.0.4", ""},
		{x509.Certificate{DNSNames: []string{"m3.example.net"}, IPAddresses: []net.IP{net.ParseIP("10.0.0.9")}}, "10.0.0.3", ""},
		{x509.Certificate{DNSNames: []string{"gone.example.net"}}, "10.0.0.4", "no such host"},
	} {
		err := check(&tc.cert, tc.ip)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v %v from %s: %v", tc.cert.DNSNames, tc.cert.IPAddresses, tc.ip, err)
		}
	}
	known := &x509.Certificate{DNSNames: []string{"m1.example.com"}}
	before := dns.asked
	for range 5 {
		if err := check(known, "10.0.0.1"); err != nil {
			t.Fatal(err)
		}
	}
	if dns.asked != before {
		t.Error("a known answer was asked for again")
	}
	clock = clock.Add(lookupKept)
	dns.reverse["10.0.0.1"] = nil
	if err := check(known, "10.0.0.1"); err == nil {
		t.Error("an answer was believed for ever")
	}
	dns.hang = true
	start := time.Now()
	if err := check(&x509.Certificate{DNSNames: []string{"slow.example.com"}}, "10.0.0.5"); err == nil || time.Since(start) > 4*lookupLimit {
		t.Errorf("a name server that hangs: %v after %s", err, time.Since(start))
	}
	dns.hang = false
	for i := range 3 * maxLookups {
		check(&x509.Certificate{DNSNames: []string{"x.example.com"}}, net.IPv4(10, 1, byte(i>>8), byte(i)).String())
	}
	if n := len(a.kept); n > maxLookups {
		t.Errorf("%d answers are kept", n)
	}
}

// TestAddressCheckOnGate: it holds on the peer side, not on the client side, and not when it is switched off.
func TestAddressCheckOnGate(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	stranger := clientTLS(a.cert, nil, a.leaf("elsewhere", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = []net.IP{net.IPv4(10, 9, 9, 9)}, nil }))
	for _, tc := range []struct {
		side Side
		skip bool
		ok   bool
	}{{PeerSide, false, false}, {PeerSide, true, true}, {ClientSide, false, true}, {MetricsSide, false, false}} {
		c := l.mutual(a)
		c.Side, c.SkipClientSANVerify = tc.side, tc.skip
		id := l.identity(c)
		s := l.stand(GateOptions{Side: tc.side, TLS: id, Routes: ServeWeb})
		if got := s.get(t, stranger, false); (got.err == nil) != tc.ok {
			t.Errorf("%s side, skip %v: %v", tc.side, tc.skip, got.err)
		}
		if said := strings.Contains(strings.Join(id.Weaknesses(), "\n"), "skip-client-san"); said != tc.skip {
			t.Errorf("%s side: %q", tc.side, id.Weaknesses())
		}
	}
	l.log.await(t, "rejected connection on peer endpoint", "it is not for the address that the peer connects from")
}

// TestWeaknesses: everything weaker than the default is said; a good configuration says nothing.
func TestWeaknesses(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	good := l.mutual(a)
	good.MinVersion = ""
	if w := l.identity(good).Weaknesses(); len(w) != 0 {
		t.Errorf("a good configuration: %q", w)
	}
	bad := good
	bad.MinVersion, bad.MaxVersion = "TLS1.2", "TLS1.2"
	bad.CipherSuites, bad.InsecureCipherSuites = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_3DES_EDE_CBC_SHA"}, true
	bad.TrustedCAFile, bad.ClientCertAuth = "", false
	text := strings.Join(l.identity(bad).Weaknesses(), "\n")
	for _, want := range []string{"TLS 1.2 is accepted", "TLS 1.3 is switched off", `["TLS_RSA_WITH_3DES_EDE_CBC_SHA"]`, "clients show no certificate"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not said in:\n%s", want, text)
		}
	}
	l.log.await(t, "cipher suites that are known to be weak were asked for")
	if w := l.stand(GateOptions{Plain: true}).Weaknesses(); len(w) != 1 || !strings.Contains(w[0], "plain text") {
		t.Error(w)
	}
}

// TestPostQuantum: the key exchange is X25519MLKEM768 where the client has it, and floors and suites hold.
func TestPostQuantum(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	me := a.leaf("me", nil)
	c := l.mutual(a)
	c.CipherSuites = []string{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"}
	s := l.stand(GateOptions{TLS: l.identity(c)})
	conn, _ := s.session(t, clientTLS(a.cert, nil, me))
	if cs := conn.ConnectionState(); cs.CurveID != tls.X25519MLKEM768 || cs.Version != tls.VersionTLS13 {
		t.Errorf("%v %x", cs.CurveID, cs.Version)
	}
	old := tls12(clientTLS(a.cert, nil, me))
	old.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	if got := s.get(t, old, false); got.err == nil {
		t.Error("a cipher suite that was not asked for")
	}
	old.CipherSuites = append(old.CipherSuites, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
	if got := s.get(t, old, false); got.err != nil {
		t.Error(got.err)
	}
	ancient := clientTLS(a.cert, nil, me)
	ancient.MinVersion, ancient.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if got := s.get(t, ancient, false); got.err == nil {
		t.Error("TLS 1.1 was served")
	}
	strict := c
	strict.MinVersion, strict.CipherSuites = "", nil
	if got := l.stand(GateOptions{TLS: l.identity(strict)}).get(t, tls12(clientTLS(a.cert, nil, me)), false); got.err == nil {
		t.Error("TLS 1.2 was served although the default floor is 1.3")
	}
}

// TestDialAutoTLSPeer: under --peer-auto-tls nothing is proved on either end, and both ends take the other for a peer.
func TestDialAutoTLSPeer(t *testing.T) {
	l := newLab(t)
	id := l.identity(Config{Side: PeerSide, AutoTLS: true, AutoTLSStore: &memStore{}, AutoTLSHosts: []string{"127.0.0.1"}, MinVersion: "TLS1.2"})
	s := l.stand(GateOptions{Side: PeerSide, TLS: id, Routes: ServePeer, Open: true})
	c, err := id.Dial(t.Context(), nil, s.address, Target{Protocols: []string{PeerProtocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	live, ok := Inspect(c)
	if !ok || live.Principal.Kind() != policy.Member {
		t.Errorf("the other end is %v", live.Principal)
	}
	if cert, ok := live.Principal.Certificate(); ok {
		t.Errorf("it holds a certificate that nobody verified: %v", cert)
	}
}
