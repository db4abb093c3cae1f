package authn

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// TestDialPinned: a joiner talks to a server under the pinned root only, and for the address that it dialled.
func TestDialPinned(t *testing.T) {
	l := newLab(t)
	h, other := newHouse(t), newHouse(t)
	server := func(h *house, withRoot bool, hosts ...string) *stand {
		p := h.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1", Hosts: hosts})
		if withRoot {
			p.Chain = append(p.Chain, h.root.Certificate)
		}
		return l.stand(GateOptions{Side: PublicSide, Routes: ServeWeb, TLS: l.identity(Config{Side: PublicSide, Issued: &Issued{NoClientCert: true, Server: p}})})
	}
	// An impostor that owns another root and shows the pinned one behind its own chain.
	forged := other.leaf(ca.Request{Profile: ca.ServerProfile, CommonName: "m1", Hosts: []string{"127.0.0.1"}})
	forged.Chain = append(forged.Chain, other.root.Certificate, h.root.Certificate)
	impostor := l.stand(GateOptions{Side: PublicSide, Routes: ServeWeb, TLS: l.identity(Config{Side: PublicSide, Issued: &Issued{NoClientCert: true, Server: forged}})})
	// A client of the cluster that plays server.
	client := h.leaf(ca.Request{Profile: ca.ClientProfile, CommonName: "app"})
	client.Chain = append(client.Chain, h.root.Certificate)
	clientServer := l.stand(GateOptions{Side: PublicSide, Routes: ServeWeb, TLS: l.identity(Config{Side: PublicSide, Issued: &Issued{NoClientCert: true, Server: client}})})

	pins := func(der []byte) bool { return slices.Equal(der, h.root.Certificate.Raw) }
	for name, tc := range map[string]struct {
		s  *stand
		ok bool
	}{
		"good": {server(h, true, "127.0.0.1"), true}, "no root": {server(h, false, "127.0.0.1"), false}, "other host": {server(h, true, "10.0.0.1"), false},
		"other root": {server(other, true, "127.0.0.1"), false}, "impostor": {impostor, false}, "a client": {clientServer, false},
	} {
		c, err := DialPinned(t.Context(), l.env(), tc.s.address, pins)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// TestDialPlain: a peer over plain text is in the registry, and nobody in particular.
func TestDialPlain(t *testing.T) {
	l := newLab(t)
	s := l.stand(GateOptions{Side: PeerSide, Plain: true, Routes: ServePeer, Open: true})
	c, err := DialPlain(t.Context(), nil, PlainTarget{Network: "tcp", Address: s.address, Registry: l.registry})
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Peer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := PeerIdentity(c); ok {
		t.Error("a plain connection names a member")
	}
	if n := l.registry.CutAll(func(v Live) bool { return v.Principal.Kind() == policy.Member }); n != 2 {
		t.Errorf("cut %d of both ends", n)
	}
	for _, end := range []net.Conn{c, in} {
		if _, err := end.Read(make([]byte, 1)); err == nil {
			t.Error("a cut connection reads")
		}
	}
}

// TestOutboundConfig: servers outside the cluster are verified for their host unless the operator gives that up.
func TestOutboundConfig(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), Routes: ServeWeb})
	certFile, keyFile := l.pair("me", a.leaf("me", nil))
	caFile := l.file("ca.crt", ca.EncodeCertificates(a.cert))
	otherCA := l.file("other.crt", ca.EncodeCertificates(makeAuthority(t, "CA").cert))
	ask := func(o Outbound) error {
		config, err := OutboundConfig(o, l.env())
		if err != nil {
			return err
		}
		return s.get(t, config, false).err
	}
	if err := ask(Outbound{certFile, keyFile, caFile, false}); err != nil {
		t.Error(err)
	}
	if err := ask(Outbound{certFile, keyFile, otherCA, true}); err != nil {
		t.Error(err)
	}
	for want, o := range map[string]Outbound{
		"unknown authority": {certFile, keyFile, otherCA, false}, "no such file": {certFile, "", caFile, false},
		"no certificate": {certFile, keyFile, keyFile + "x", false}, "certificate signed": {certFile, keyFile, "", false},
	} {
		if want == "no certificate" {
			o.CAFile = l.file("empty", nil)
		}
		if err := ask(o); err == nil || !strings.Contains(err.Error(), want) && want != "no such file" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestManyWebRequests: connections are reused, and the principal stays with each.
func TestManyWebRequests(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), Open: true})
	for _, name := range []string{"alice", "bob"} {
		tr := &http.Transport{TLSClientConfig: clientTLS(a.cert, nil, a.leaf(name, nil)), ForceAttemptHTTP2: true}
		for range 20 {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.address+"/", nil)
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if who := res.Header.Get("who"); !strings.Contains(who, `name="`+name+`"`) {
				t.Fatal(who)
			}
		}
		tr.CloseIdleConnections()
	}
	until(t, "two connections", func() bool { return s.Counts().Web == 2 })
}

// TestPossession: a stolen certificate without its key makes no principal, registers nothing and is refused.
func TestPossession(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	id := l.identity(l.mutual(a))
	s := l.stand(GateOptions{TLS: id, Open: true})
	stolen := a.leaf("boss", nil)
	thief, err := ca.GenerateKey(l.env().Rand)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := clientTLS(a.cert, nil, tls.Certificate{Certificate: stolen.Certificate, PrivateKey: thief})
		config.MinVersion, config.MaxVersion = version, version
		if got := s.get(t, config, false); got.err == nil {
			t.Errorf("version %x: served as %s", version, got.who)
		}
	}
	until(t, "two refusals", func() bool { return s.Counts().Rejected == 2 })
	if all, _ := l.registry.Count(); all != 0 || s.Counts().Web != 0 {
		t.Error("a thief came through")
	}
}
