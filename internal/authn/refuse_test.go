package authn

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// TestRefusals: who must not come in, on every protocol of a mutual TLS port, and what the log says.
func TestRefusals(t *testing.T) {
	l := newLab(t)
	a, other := makeAuthority(t, "trusted CA"), makeAuthority(t, "other CA")
	revoked := a.leaf("revoked", nil)
	c := l.mutual(a)
	c.CRLFile = l.file("crl.pem", crlPEM(a.crl(1, time.Now().Add(time.Hour), revoked)))
	s := l.stand(GateOptions{TLS: l.identity(c), Open: true, Now: l.bursts})
	day := 24 * time.Hour
	plain := a.leaf("not a CA", nil)
	sub := &authority{t: t, cert: plain.Leaf, key: plain.PrivateKey.(*ecdsa.PrivateKey)}

	crowd := a.leaf("crowd", func(c *x509.Certificate) {
		for i := range maxChainNames + 1 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("n%d.example.com", i))
		}
	})
	long := a.leaf("long", nil)
	for range maxChainCertificates {
		long.Certificate = append(long.Certificate, a.under("filler").cert.Raw)
	}
	for name, tc := range map[string]struct {
		certs []tls.Certificate
		say   string // in the log
	}{
		"none":           {nil, "client didn't provide a certificate"},
		"other CA":       {[]tls.Certificate{other.leaf("mallory", nil)}, "no CA that is trusted here signed it"},
		"same name CA":   {[]tls.Certificate{makeAuthority(t, "trusted CA").leaf("mallory", nil)}, "no CA that is trusted here signed it"},
		"expired":        {[]tls.Certificate{a.leaf("old", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-3*day), time.Now().Add(-day) })}, "it expired at"},
		"not yet valid":  {[]tls.Certificate{a.leaf("young", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(day), time.Now().Add(3*day) })}, "it is not valid before"},
		"server only":    {[]tls.Certificate{a.leaf("server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, "lacks clientAuth"},
		"revoked":        {[]tls.Certificate{revoked}, "its CA revoked it"},
		"too many names": {[]tls.Certificate{crowd}, "its chain has 1 certificates"},
		"too long":       {[]tls.Certificate{long}, "its chain has 9 certificates"},
		"signed by leaf": {[]tls.Certificate{sub.leaf("child", nil, sub.cert)}, "no CA that is trusted here signed it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for proto, got := range map[string]answer{
				"http/1.1": s.get(t, clientTLS(a.cert, nil, tc.certs...), false),
				"h2 web":   s.get(t, clientTLS(a.cert, nil, tc.certs...), true),
				"gRPC":     s.call(t, credentials.NewTLS(clientTLS(a.cert, nil, tc.certs...))),
				"TLS 1.2":  s.get(t, tls12(clientTLS(a.cert, nil, tc.certs...)), false),
			} {
				if got.err == nil {
					t.Errorf("%s: served as %s", proto, got.who)
				}
			}
			l.log.await(t, "rejected connection on client endpoint", "remote-addr=127.0.0.1:", "server-name=localhost", "error=", tc.say)
			if len(tc.certs) > 0 {
				l.log.await(t, tc.say, "subject=\"CN="+strings.SplitN(tc.certs[0].Leaf.Subject.CommonName, " ", 2)[0],
					"serial="+tc.certs[0].Leaf.SerialNumber.Text(16), "issuer=")
			}
		})
	}
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		good := clientTLS(a.cert, nil, a.leaf("alice", nil))
		want := `kind=2 role=0 name="alice" open=true`
		if got := s.get(t, good, false); got.err != nil || got.who != want {
			t.Errorf("web: %+v", got)
		}
		if got := s.call(t, credentials.NewTLS(good)); got.err != nil || got.who != want {
			t.Errorf("gRPC: %+v", got)
		}
	})
	t.Cleanup(func() {
		if n, _ := l.registry.Count(); n > 2 {
			t.Errorf("%d connections stayed in the registry", n)
		}
	})
}

func tls12(c *tls.Config) *tls.Config { c.MaxVersion = tls.VersionTLS12; return c }

// TestHandshakeBytes: a chain too long to be honest is cut off before it is parsed.
func TestHandshakeBytes(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a))})
	huge := a.leaf("huge", nil)
	for len(huge.Certificate)*len(a.cert.Raw) < handshakeBytes+10_000 {
		huge.Certificate = append(huge.Certificate, a.cert.Raw)
	}
	if got := s.get(t, clientTLS(a.cert, nil, huge), false); got.err == nil {
		t.Fatal("served")
	}
	l.log.await(t, "rejected connection", errHandshakeTooLong.Error())
}

// TestConfigRefused: settings that etcd would take and that open a hole, and plain mistakes.
func TestConfigRefused(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	good := l.mutual(a)
	for want, edit := range map[string]func(*Config){
		"no side is set": func(c *Config) { c.Side = noSide },
		"--client-cert-auth without --trusted-ca-file":          func(c *Config) { c.TrustedCAFile = "" },
		"--client-crl-file without --trusted-ca-file":           func(c *Config) { c.CRLFile, c.TrustedCAFile, c.ClientCertAuth = "x", "", false },
		"--peer-crl-file without --peer-trusted-ca-file":        func(c *Config) { c.Side, c.CRLFile, c.TrustedCAFile, c.ClientCertAuth = PeerSide, "x", "", false },
		"allowed names without --trusted-ca-file":               func(c *Config) { c.AllowedCNs, c.TrustedCAFile, c.ClientCertAuth = []string{"a"}, "", false },
		"KeyFile and CertFile must both be present":             func(c *Config) { c.KeyFile = "" },
		"ClientKeyFile and ClientCertFile must both be present": func(c *Config) { c.ClientCertFile = "x" },
		`AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a"], hostnames=["b"])`: func(c *Config) {
			c.AllowedCNs, c.AllowedHostnames = []string{"a"}, []string{"b"}
		},
		`unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`: func(c *Config) { c.MinVersion = "TLS1.1" },
		"is greater than max version":                                      func(c *Config) { c.MinVersion, c.MaxVersion = "TLS1.3", "TLS1.2" },
		"cipher suites may not be configured when only TLS1.3 is enabled":  func(c *Config) { c.MinVersion = ""; c.CipherSuites = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"} },
		`unexpected TLS cipher suite "a"`:                                  func(c *Config) { c.CipherSuites = []string{"a"} },
		"cipher suite TLS_RSA_WITH_3DES_EDE_CBC_SHA is insecure":           func(c *Config) { c.CipherSuites = []string{"TLS_RSA_WITH_3DES_EDE_CBC_SHA"} },
		"--auto-tls has no place to keep its certificate":                  func(c *Config) { c.AutoTLS, c.CertFile, c.KeyFile = true, "", "" },
		"no such file":                     func(c *Config) { c.TrustedCAFile += "x" },
		"no certificate":                   func(c *Config) { c.TrustedCAFile = l.file("empty.crt", []byte("nothing")) },
		"a PRIVATE KEY where certificates": func(c *Config) { c.TrustedCAFile = c.KeyFile },
		"private key does not match":       func(c *Config) { _, c.KeyFile = l.pair("another", a.leaf("x", nil)) },
		"no CRL in it":                     func(c *Config) { c.CRLFile = c.CertFile },
		"it excludes certificate files":    func(c *Config) { c.Issued = &Issued{} },
	} {
		c := good
		edit(&c)
		if _, err := New(c, l.env()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for name, i := range map[string]*Issued{
		"no issuer":           {Server: Pair{Chain: []*x509.Certificate{a.cert}, Key: a.key}},
		"open client side":    {NoClientCert: true},
		"issuer without role": {Issuers: []Issuer{{Certificate: a.cert}}},
		"issuer is a leaf":    {Issuers: []Issuer{{Certificate: a.leaf("x", nil).Leaf, Role: policy.RoleClient}}},
		"wrong key":           {Server: Pair{Chain: []*x509.Certificate{a.leaf("x", nil).Leaf}, Key: a.key}, Issuers: []Issuer{{a.cert, policy.RoleClient}}},
	} {
		if _, err := New(Config{Side: ClientSide, Issued: i}, l.env()); err == nil {
			t.Errorf("issued, %s: accepted", name)
		}
	}
	for name, o := range map[string]GateOptions{
		"zero":      {},
		"no TLS":    {Side: ClientSide, Routes: ServeGRPC},
		"no routes": {Side: ClientSide, Plain: true},
		"peer+gRPC": {Side: ClientSide, Plain: true, Routes: ServePeer | ServeGRPC},
	} {
		o.Registry, o.Log, o.Now = l.registry, l.log.logger(), l.clock
		if _, err := NewGate(nil, o); !errors.Is(err, ErrConfig) {
			t.Errorf("gate, %s: %v", name, err)
		}
	}
}

// TestTrustedCAAlone: the CA file alone demands a certificate, and its common name is then no user name.
func TestTrustedCAAlone(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	c := l.mutual(a)
	c.ClientCertAuth = false
	s := l.stand(GateOptions{TLS: l.identity(c), Open: true})
	if got := s.get(t, clientTLS(a.cert, nil), false); got.err == nil {
		t.Fatalf("served without certificate: %+v", got)
	}
	if got := s.get(t, clientTLS(a.cert, nil, a.leaf("root", nil)), false); got.who != `kind=2 role=0 name="" open=true` {
		t.Fatalf("%+v", got)
	}
}

func TestAllowedNames(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	byCN, byHost := l.mutual(a), l.mutual(a)
	byCN.AllowedCNs = []string{"alice", "bob"}
	byHost.AllowedHostnames = []string{"db.example.com", "10.0.0.7"}
	cn, host := l.stand(GateOptions{TLS: l.identity(byCN)}), l.stand(GateOptions{TLS: l.identity(byHost)})
	wild := a.leaf("w", func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} })
	address := a.leaf("w", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 7)} })
	for _, tc := range []struct {
		s    *stand
		cert tls.Certificate
		ok   bool
	}{
		{cn, a.leaf("bob", nil), true}, {cn, a.leaf("Bob", nil), false}, {cn, a.leaf("", nil), false},
		{host, wild, true}, {host, address, true}, {host, a.leaf("db.example.com", nil), false},
	} {
		if got := tc.s.get(t, clientTLS(a.cert, nil, tc.cert), false); (got.err == nil) != tc.ok {
			t.Errorf("%s %v: %v", tc.cert.Leaf.Subject, tc.cert.Leaf.DNSNames, got.err)
		}
	}
	l.log.await(t, "client certificate authentication failed", `common name \"Bob\" is not among`)
}

// TestNoResumption: no session ticket is given, so a second handshake is a full one and meets a revocation.
func TestNoResumption(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	bad := false
	env := l.env()
	env.Revoked = func(policy.Certificate) (bool, error) { return bad, nil }
	s := l.stand(GateOptions{TLS: l.identityIn(l.mutual(a), env)})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := clientTLS(a.cert, nil, a.leaf("alice", nil))
		config.MinVersion, config.MaxVersion = version, version
		config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		for range 3 {
			c, _ := s.session(t, config)
			if c.ConnectionState().DidResume {
				t.Fatalf("version %x: a session was resumed", version)
			}
		}
		bad = true
		if got := s.get(t, config, false); got.err == nil {
			t.Fatalf("version %x: served a revoked certificate", version)
		}
		bad = false
	}
}

// TestIssuedRoles: an issued identity accepts its issuers only, and what a holder is follows from its issuer.
func TestIssuedRoles(t *testing.T) {
	l := newLab(t)
	h := newHouse(t)
	id := l.identity(Config{Side: ClientSide, Issued: &Issued{
		Cluster: h.cluster, Server: h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1", Hosts: []string{"localhost"}}),
		Issuers: []Issuer{h.issuer(policy.RoleClient), h.issuer(policy.RoleAdmin)},
	}})
	s := l.stand(GateOptions{TLS: id})
	try := func(p Pair) answer {
		certs, err := certificateOf(p)
		if err != nil {
			t.Fatal(err)
		}
		return s.get(t, clientTLS(h.root.Certificate, nil, certs...), false)
	}
	if got := try(h.leaf(ca.Request{Profile: ca.AdminProfile, CommonName: "boss"})); got.who != `kind=2 role=2 name="boss" open=false` {
		t.Errorf("admin: %+v", got)
	}
	if got := try(h.leaf(ca.Request{Profile: ca.ClientProfile, CommonName: "app"})); got.who != `kind=2 role=1 name="app" open=false` {
		t.Errorf("client: %+v", got)
	}
	for name, p := range map[string]Pair{
		"peer":              h.leaf(ca.Request{Profile: ca.PeerProfile, CommonName: "m2", Cluster: h.cluster, Member: 2}),
		"agent":             h.leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "agent"}),
		"server":            h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m2"}),
		"issuer itself":     {Chain: []*x509.Certificate{h.issuers[policy.RoleClient].Certificate}, Key: h.issuers[policy.RoleClient].Signer},
		"root":              {Chain: []*x509.Certificate{h.root.Certificate}, Key: h.root.Signer},
		"another cluster":   newHouse(t).leaf(ca.Request{Profile: ca.AdminProfile, CommonName: "boss"}),
		"chain with a root": {Chain: append(h.leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "x"}).Chain, h.root.Certificate), Key: nil},
	} {
		if p.Key == nil {
			fresh := h.leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "x"})
			p = Pair{Chain: append(fresh.Chain, h.root.Certificate), Key: fresh.Key}
		}
		if got := try(p); got.err == nil {
			t.Errorf("%s: served as %s", name, got.who)
		}
	}
}

// TestPublicSide: no certificate is asked for, and nobody is anybody.
func TestPublicSide(t *testing.T) {
	l := newLab(t)
	h := newHouse(t)
	id := l.identity(Config{Side: PublicSide, Issued: &Issued{NoClientCert: true, Server: h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1", Hosts: []string{"localhost"}})}})
	for _, open := range []bool{false, true} {
		s := l.stand(GateOptions{Side: PublicSide, TLS: id, Routes: ServeWeb, Open: open})
		certs, _ := certificateOf(h.leaf(ca.Request{Profile: ca.AdminProfile, CommonName: "boss"}))
		if got := s.get(t, clientTLS(h.root.Certificate, nil, certs...), true); got.who != describe(policy.Principal{}) {
			t.Errorf("open=%v: %+v", open, got)
		}
	}
}

// house is a cluster's own CA.
type house struct {
	t       *testing.T
	born    time.Time
	cluster uint64
	root    ca.Authority
	issuers map[policy.Role]ca.Authority
}

func newHouse(t *testing.T) *house { t.Helper(); return newHouseAt(t, time.Now()) }

// newHouseAt is a house founded at born.
func newHouseAt(t *testing.T, born time.Time) *house {
	t.Helper()
	h := &house{t: t, born: born, cluster: 0xc1, issuers: map[policy.Role]ca.Authority{}}
	key := h.key()
	cert, err := ca.NewRoot(h.source(), key, h.cluster, 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	h.root = ca.Authority{Certificate: cert, Signer: key}
	for _, role := range []policy.Role{policy.RoleMember, policy.RoleAgent, policy.RoleClient, policy.RoleAdmin} {
		key := h.key()
		cert, err := ca.NewIssuer(h.source(), h.root, role, key.Public(), 900*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		h.issuers[role] = ca.Authority{Certificate: cert, Signer: key, Role: role}
	}
	return h
}

func (h *house) source() ca.Source { return ca.Source{Now: h.born, Rand: rand.Reader} }

func (h *house) issuer(role policy.Role) Issuer {
	return Issuer{Certificate: h.issuers[role].Certificate, Role: role}
}

func (h *house) key() *ecdsa.PrivateKey {
	h.t.Helper()
	k, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	return k
}

func (h *house) leaf(r ca.Request) Pair { return h.leafAt(r, time.Now(), 100*time.Hour) }

// leafAt issues a certificate, with its issuer in the chain, as of now.
func (h *house) leafAt(r ca.Request, now time.Time, life time.Duration) Pair {
	h.t.Helper()
	role := map[ca.Profile]policy.Role{
		ca.ServerProfile: policy.RoleMember, ca.PeerProfile: policy.RoleMember, ca.AgentProfile: policy.RoleAgent,
		ca.AdminProfile: policy.RoleAdmin, ca.ClientProfile: policy.RoleClient,
	}[r.Profile]
	key := h.key()
	r.Key, r.Life = key.Public(), life
	cert, err := ca.Issue(ca.Source{Now: now, Rand: rand.Reader}, h.issuers[role], r)
	if err != nil {
		h.t.Fatal(err)
	}
	return Pair{Chain: []*x509.Certificate{cert, h.issuers[role].Certificate}, Key: key}
}
