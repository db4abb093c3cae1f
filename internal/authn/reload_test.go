package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// TestReloadCertificate: a new server certificate is shown on the next handshake; a broken one is not.
func TestReloadCertificate(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	c := l.mutual(a)
	id := l.identity(c)
	s := l.stand(GateOptions{TLS: id})
	me := a.leaf("me", nil)
	shown := func() string {
		conn, _ := s.session(t, clientTLS(a.cert, nil, me))
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := shown(); got != "server" {
		t.Fatal(got)
	}
	l.pair("server", a.leaf("second", nil))
	l.advance(id, reloadEvery)
	if got := shown(); got != "second" {
		t.Fatalf("after reload: %q", got)
	}
	l.log.await(t, "TLS files reloaded", "--cert-file")

	good, _ := os.ReadFile(c.CertFile)
	for want, data := range map[string][]byte{"failed to find any PEM data": []byte("rubbish"), "private key does not match": mustFile(l, a)} {
		l.file("server.crt", data)
		l.advance(id, reloadEvery)
		if got := shown(); got != "second" {
			t.Fatalf("with a broken file: %q", got)
		}
		l.log.await(t, "cannot be used", "--cert-file", want)
	}
	if err := os.Remove(c.CertFile); err != nil {
		t.Fatal(err)
	}
	l.advance(id, reloadEvery)
	l.advance(id, reloadEvery)
	l.log.await(t, "cannot be used", "no such file")
	if n := strings.Count(l.log.String(), "no such file"); n != 1 {
		t.Errorf("the same trouble was logged %d times", n)
	}
	l.file("server.crt", good)
	l.pair("server", a.leaf("third", nil))
	// No tick: the handshake itself looks.
	l.mu.Lock()
	l.now = l.now.Add(reloadEvery)
	l.mu.Unlock()
	if got := shown(); got != "third" {
		t.Fatalf("without tick: %q", got)
	}
}

// mustFile returns a certificate of a as PEM whose key nobody has.
func mustFile(l *lab, a *authority) []byte {
	l.t.Helper()
	return ca.EncodeCertificates(a.leaf("stranger", nil).Leaf)
}

// TestReloadSameSecond: two writes within one tick of the file system's clock and of equal size are both seen.
func TestReloadSameSecond(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	c := l.mutual(a)
	one, two := makeAuthority(t, "CA one"), makeAuthority(t, "CA two")
	onePEM, twoPEM := ca.EncodeCertificates(one.cert), ca.EncodeCertificates(two.cert)
	for len(onePEM) != len(twoPEM) {
		two = makeAuthority(t, "CA two")
		twoPEM = ca.EncodeCertificates(two.cert)
	}
	if err := os.WriteFile(c.TrustedCAFile, onePEM, 0o600); err != nil {
		t.Fatal(err)
	}
	mark := time.Now()
	if err := os.Chtimes(c.TrustedCAFile, mark, mark); err != nil {
		t.Fatal(err)
	}
	id := l.identity(c)
	if err := os.WriteFile(c.TrustedCAFile, twoPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(c.TrustedCAFile, mark, mark); err != nil {
		t.Fatal(err)
	}
	l.advance(id, reloadEvery)
	if got := id.current.Load().anchorCerts[0].Subject.CommonName; got != "CA two" {
		t.Fatal(got)
	}
}

// TestReloadCA: a CA that is added is believed, one that is removed is not, and its connections are cut.
func TestReloadCA(t *testing.T) {
	l := newLab(t)
	old, next := makeAuthority(t, "old CA"), makeAuthority(t, "next CA")
	id := l.identity(l.mutual(old))
	s := l.stand(GateOptions{TLS: id})
	oldMe, nextMe := clientTLS(old.cert, nil, old.leaf("old me", nil)), clientTLS(old.cert, nil, next.leaf("next me", nil))
	if got := s.get(t, nextMe, false); got.err == nil {
		t.Fatal("the next CA is believed already")
	}
	_, ended := s.session(t, oldMe)

	l.file("ca.crt", ca.EncodeCertificates(old.cert, next.cert))
	l.advance(id, reloadEvery)
	if got := s.get(t, nextMe, false); got.err != nil {
		t.Fatal(got.err)
	}
	conn, nextEnded := s.session(t, nextMe)

	l.file("ca.crt", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n"))
	l.advance(id, reloadEvery)
	if got := s.get(t, oldMe, false); got.err != nil {
		t.Fatalf("a broken bundle replaced a good one: %v", got.err)
	}
	l.log.await(t, "cannot be used", "--trusted-ca-file")

	l.file("ca.crt", ca.EncodeCertificates(next.cert))
	l.advance(id, reloadEvery)
	mustEnd(t, ended)
	mustLive(t, conn, nextEnded)
	if got := s.get(t, oldMe, false); got.err == nil {
		t.Fatal("the old CA is believed still")
	}
	l.log.await(t, "cutting a live connection", errAnchorGone.Error(), "CN=old me")
}

// TestReloadCRL: a revocation in a changed list cuts the live connection on every protocol, and nobody else's.
func TestReloadCRL(t *testing.T) {
	for form, encode := range map[string]func([]byte) []byte{"DER": func(b []byte) []byte { return b }, "PEM": func(b []byte) []byte { return crlPEM(b) }} {
		t.Run(form, func(t *testing.T) {
			l := newLab(t)
			a := makeAuthority(t, "CA")
			victim, bystander := a.leaf("victim", nil), a.leaf("bystander", nil)
			c := l.mutual(a)
			c.CRLFile = l.file("crl", encode(a.crl(1, time.Time{}.AddDate(3000, 0, 0))))
			id := l.identity(c)
			s := l.stand(GateOptions{TLS: id, Open: true})
			_, ended := s.session(t, clientTLS(a.cert, nil, victim))
			conn, otherEnded := s.session(t, clientTLS(a.cert, nil, bystander))
			rpc, rpcEnded := grpcStream(t, s, credentials.NewTLS(clientTLS(a.cert, nil, victim)))
			defer rpc()

			l.file("crl", encode(a.crl(2, time.Now().Add(time.Hour), victim)))
			l.advance(id, reloadEvery)
			mustEnd(t, ended)
			mustEnd(t, rpcEnded)
			mustLive(t, conn, otherEnded)
			if got := s.get(t, clientTLS(a.cert, nil, victim), false); got.err == nil {
				t.Fatal("the revoked one came in again")
			}
			l.log.await(t, "cutting a live connection", errRevoked.Error(), "CN=victim", victim.Leaf.SerialNumber.Text(16))
			if n := l.registry.Holders(ca.Name(victim.Leaf, a.cert)); n != 0 {
				t.Errorf("%d connections of the revoked one in the registry", n)
			}

			for why, data := range map[string][]byte{
				"an older list":      encode(a.crl(1, time.Now().Add(time.Hour))),
				"rubbish":            []byte("rubbish"),
				"a list out of date": encode(a.crl(3, time.Now().Add(-time.Hour), victim)),
			} {
				l.file("crl", data)
				l.advance(id, reloadEvery)
				if got := s.get(t, clientTLS(a.cert, nil, victim), false); got.err == nil {
					t.Fatalf("%s freed the revoked one", why)
				}
				if got := s.get(t, clientTLS(a.cert, nil, bystander), false); got.err != nil {
					t.Fatalf("%s locked the bystander out: %v", why, got.err)
				}
			}
			if err := os.Remove(c.CRLFile); err != nil {
				t.Fatal(err)
			}
			l.advance(id, reloadEvery)
			if got := s.get(t, clientTLS(a.cert, nil, victim), false); got.err == nil {
				t.Fatal("a list that is gone freed the revoked one")
			}
			l.log.await(t, "is older than the one in force")
			l.log.await(t, "was to be renewed by")
		})
	}
}

// TestCRLScope: a serial number counts for the issuer that signed the list, and for no other.
func TestCRLScope(t *testing.T) {
	l := newLab(t)
	a, b, impostor := makeAuthority(t, "CA a"), makeAuthority(t, "CA b"), makeAuthority(t, "CA a")
	middle := a.under("middle")
	leafA, leafB := a.leaf("a", nil), b.leaf("b", nil)
	twin := b.leaf("twin", func(c *x509.Certificate) { c.SerialNumber = leafA.Leaf.SerialNumber })
	victim := a.leaf("not revoked by an impostor", nil)
	leafM := middle.leaf("m", nil, middle.cert)
	leafM2 := middle.leaf("m2", nil, middle.cert)
	soon := time.Now().Add(time.Hour)

	c := l.mutual(a)
	c.TrustedCAFile = l.file("ca.crt", ca.EncodeCertificates(a.cert, b.cert))
	c.CRLFile = l.file("crl", crlPEM(a.crl(1, soon, leafA), impostor.crl(9, soon, victim), middle.crl(1, soon, leafM)))
	id := l.identity(c)
	s := l.stand(GateOptions{TLS: id})
	for _, tc := range []struct {
		cert tls.Certificate
		ok   bool
	}{{leafA, false}, {twin, true}, {leafB, true}, {victim, true}, {leafM, false}, {leafM2, true}} {
		if got := s.get(t, clientTLS(a.cert, nil, tc.cert), false); (got.err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.cert.Leaf.Subject, got.err)
		}
	}
	l.log.await(t, "is ignored: it is not signed by the CA of that name")
	if text := strings.Join(id.Weaknesses(), "\n"); !strings.Contains(text, "is ignored") {
		t.Errorf("status does not say that a CRL is ignored:\n%s", text)
	}

	// The intermediate itself revoked: everything below it goes, live connections too.
	_, ended := s.session(t, clientTLS(a.cert, nil, leafM2))
	l.file("crl", crlPEM(a.crl(2, soon, leafA, tls.Certificate{Leaf: middle.cert})))
	l.advance(id, reloadEvery)
	mustEnd(t, ended)
	if got := s.get(t, clientTLS(a.cert, nil, leafM2), false); got.err == nil {
		t.Error("a certificate of a revoked intermediate came in")
	}
}

// TestRevokedHook: the cluster's own revocations refuse and, through the registry, cut; an error refuses.
func TestRevokedHook(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	me := a.leaf("me", nil)
	name := ca.Name(me.Leaf, a.cert)
	answers := make(chan error, 8) // nil: not revoked
	errRow := errors.New("disk on fire")
	env := l.env()
	env.Revoked = func(c policy.Certificate) (bool, error) {
		if c != name {
			t.Errorf("asked about %v, want %v", c, name)
		}
		switch err := <-answers; err {
		case nil:
			return false, nil
		case errRevoked:
			return true, nil
		default:
			return false, err
		}
	}
	s := l.stand(GateOptions{TLS: l.identityIn(l.mutual(a), env)})
	config := clientTLS(a.cert, nil, me)
	answers <- nil
	answers <- nil
	_, ended := s.session(t, config)
	if n := l.registry.Cut(name); n != 1 {
		t.Fatalf("cut %d", n)
	}
	mustEnd(t, ended)
	for say, sequence := range map[string][]error{
		"it was revoked in this cluster":           {errRevoked},
		"whether it is revoked cannot be told now": {errRow},
	} {
		for _, e := range sequence {
			answers <- e
		}
		if got := s.get(t, config, false); got.err == nil {
			t.Errorf("%s: served", say)
		}
		l.log.await(t, "rejected connection", say)
	}
	// Revoked between the handshake and the registry: the second question finds it.
	answers <- nil
	answers <- errRevoked
	if got := s.get(t, config, false); got.err == nil {
		t.Error("a revocation during the handshake was missed")
	}
	until(t, "no connection in the registry", func() bool { all, _ := l.registry.Count(); return all == 0 })
}

// TestRevokedIntermediate: a row that revokes an intermediate keeps out what it signed.
func TestRevokedIntermediate(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	sub := a.under("sub")
	gone := ca.Name(sub.cert, a.cert)
	env := l.env()
	env.Revoked = func(c policy.Certificate) (bool, error) { return c == gone, nil }
	s := l.stand(GateOptions{TLS: l.identityIn(l.mutual(a), env)})
	if got := s.get(t, clientTLS(a.cert, nil, sub.leaf("below", nil, sub.cert)), false); got.err == nil {
		t.Error("a certificate of a revoked intermediate came in")
	}
	if got := s.get(t, clientTLS(a.cert, nil, a.leaf("beside", nil)), false); got.err != nil {
		t.Error(got.err)
	}
}

// TestReplace: a renewed identity is shown at once, and an issuer that is dropped takes its connections along.
func TestReplace(t *testing.T) {
	l := newLab(t)
	h, h2 := newHouse(t), newHouse(t)
	server := h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1", Hosts: []string{"localhost"}})
	id := l.identity(Config{Side: ClientSide, Issued: &Issued{Server: server, Issuers: []Issuer{h.issuer(policy.RoleClient), h.issuer(policy.RoleAdmin)}}})
	s := l.stand(GateOptions{TLS: id})
	client, _ := certificateOf(h.leaf(ca.Request{Profile: ca.ClientProfile, CommonName: "app"}))
	admin, _ := certificateOf(h.leaf(ca.Request{Profile: ca.AdminProfile, CommonName: "boss"}))
	_, ended := s.session(t, clientTLS(h.root.Certificate, nil, client...))
	conn, adminEnded := s.session(t, clientTLS(h.root.Certificate, nil, admin...))
	if err := id.Replace(&Issued{Server: server, Issuers: nil}); err == nil {
		t.Fatal("an identity that trusts nobody was taken")
	}
	next := h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1 renewed", Hosts: []string{"localhost"}})
	if err := id.Replace(&Issued{Server: next, Issuers: []Issuer{h.issuer(policy.RoleAdmin), h2.issuer(policy.RoleClient)}}); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, ended)
	mustLive(t, conn, adminEnded)
	fresh, _ := s.session(t, clientTLS(h.root.Certificate, nil, admin...))
	if got := fresh.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "m1 renewed" {
		t.Error(got)
	}
	if got := s.get(t, clientTLS(h.root.Certificate, nil, client...), false); got.err == nil {
		t.Error("a client of a dropped issuer came in")
	}
}

// TestAutoTLS: made once, kept, renewed at two thirds of its life, and remade when it lacks a host.
func TestAutoTLS(t *testing.T) {
	l := newLab(t)
	store := &memStore{}
	c := Config{Side: ClientSide, AutoTLS: true, AutoTLSHosts: []string{"127.0.0.1", "localhost"}, AutoTLSValidity: 300 * time.Hour, AutoTLSStore: store, MinVersion: "TLS1.2"}
	id := l.identity(c)
	first := id.Certificates()[0]
	s := l.stand(GateOptions{TLS: id, Open: true})
	pinned := clientTLS(id.current.Load().server[0].Leaf, nil)
	if got := s.get(t, pinned, true); got.who != `kind=1 role=0 name="anonymous" open=true` {
		t.Fatalf("%+v", got)
	}
	if again := l.identity(c).Certificates()[0]; again.Serial != first.Serial {
		t.Error("a restart made another certificate")
	}
	l.advance(id, 190*time.Hour)
	if got := id.Certificates()[0]; got.Serial != first.Serial {
		t.Error("renewed too early")
	}
	store.fail = errors.New("disk full")
	l.advance(id, 11*time.Hour)
	if got := id.Certificates()[0]; got.Serial != first.Serial {
		t.Error("a certificate that could not be kept is in use")
	}
	l.log.await(t, "cannot be used", "--auto-tls", "disk full")
	store.fail = nil
	l.advance(id, time.Second)
	renewed := id.Certificates()[0]
	if renewed.Serial == first.Serial || !renewed.NotAfter.After(first.NotAfter) || !renewed.RenewsItself {
		t.Errorf("not renewed: %+v", renewed)
	}
	c.AutoTLSHosts = append(c.AutoTLSHosts, "db.example.com")
	if got := l.identity(c).Certificates()[0]; got.Serial == renewed.Serial || len(got.Hosts) != 3 {
		t.Errorf("a new host: %+v", got)
	}
	store.data["client-auto-tls.pem"] = []byte("damaged")
	if _, err := New(c, l.env()); err == nil {
		t.Error("a damaged store was taken for an empty one")
	}
	if text := strings.Join(id.Weaknesses(), "\n"); !strings.Contains(text, "--auto-tls") || !strings.Contains(text, "clients show no certificate") {
		t.Error(text)
	}
	c.CertFile, c.KeyFile = l.pair("given", makeAuthority(t, "CA").leaf("given", nil))
	if got := l.identity(c).Certificates()[0]; got.Subject != "CN=given" {
		t.Errorf("auto-tls beat given certificates: %+v", got)
	}
	l.log.await(t, "ignoring client auto TLS since certs given")
}
