package authn

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"testing"

	"holdfast.dev/holdfast/internal/policy"
)

// TestSigningSide: certificates of the one authority come in, with their subject and without a role; nobody else does.
func TestSigningSide(t *testing.T) {
	l := newLab(t)
	swarm, other := makeAuthority(t, "swarm"), makeAuthority(t, "other")
	server := swarm.leaf("ca.example", func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	issued := func(a *authority, role policy.Role) *Issued {
		pair := Pair{Chain: []*x509.Certificate{server.Leaf, swarm.cert}, Key: server.PrivateKey.(crypto.Signer)}
		return &Issued{Server: pair, Issuers: []Issuer{{Certificate: a.cert, Role: role}}}
	}
	if _, err := New(Config{Side: SigningSide, Issued: issued(swarm, policy.RoleAdmin)}, l.env()); err == nil {
		t.Error("an issuer with a role was taken on the signing side")
	}
	if _, err := New(Config{Side: ClientSide, Issued: issued(swarm, policy.RoleNone)}, l.env()); err == nil {
		t.Error("an issuer without a role was taken on the client side")
	}
	id := l.identity(Config{Side: SigningSide, Issued: issued(swarm, policy.RoleNone)})
	s := l.stand(GateOptions{Side: SigningSide, TLS: id, Routes: ServeWeb})
	manager := swarm.leaf("node1", func(c *x509.Certificate) {
		c.Subject.Organization, c.Subject.OrganizationalUnit = []string{"cluster"}, []string{"swarm-manager"}
	})
	got := s.get(t, clientTLS(swarm.cert, nil, manager), false)
	if want := fmt.Sprintf(`kind=%d role=0 name="node1" open=false`, policy.Holder); got.err != nil || got.who != want {
		t.Errorf("the manager is %+v; want %s", got, want)
	}
	transport := &http.Transport{TLSClientConfig: clientTLS(swarm.cert, nil, manager)}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Get("https://" + s.address)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if want := manager.Leaf.Subject.String(); r.Header.Get("subject") != want || want == "" {
		t.Errorf("the subject is %q; want %q", r.Header.Get("subject"), want)
	}
	if got := s.get(t, clientTLS(swarm.cert, nil, other.leaf("x", nil)), false); got.err == nil {
		t.Errorf("a certificate of another CA came in: %+v", got)
	}
	if got := s.get(t, clientTLS(swarm.cert, nil), false); got.err == nil {
		t.Errorf("nobody came in: %+v", got)
	}
}
