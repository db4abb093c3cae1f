package authn

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// TestOnePort: every kind of client finds its server on one TLS port and on one plain port, as the same principal.
func TestOnePort(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	me := a.leaf("me", nil)
	secure := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), Open: true})
	plain := l.stand(GateOptions{Plain: true, Open: true})
	both := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), Plain: true, Open: true})
	holder, anonymous := `kind=2 role=0 name="me" open=true`, `kind=1 role=0 name="anonymous" open=true`

	for _, s := range []*stand{secure, both} {
		before := s.Counts()
		for _, tc := range []struct {
			name, proto string
			got         answer
		}{
			{"HTTP/1.1 by ALPN", "HTTP/1.1", s.get(t, clientTLS(a.cert, []string{"http/1.1"}, me), false)},
			{"HTTP/1.1 without ALPN", "HTTP/1.1", s.get(t, clientTLS(a.cert, nil, me), false)},
			{"HTTP/2 web client", "HTTP/2.0", s.get(t, clientTLS(a.cert, nil, me), true)},
			{"grpc-go", "", s.call(t, credentials.NewTLS(clientTLS(a.cert, nil, me)))},
			{"gRPC that offers http/1.1 too", "", s.call(t, credentials.NewTLS(clientTLS(a.cert, []string{"h2", "http/1.1"}, me)))},
		} {
			if tc.got.err != nil || tc.got.who != holder || tc.got.proto != tc.proto {
				t.Errorf("%s: %+v", tc.name, tc.got)
			}
		}
		until(t, "five connections", func() bool { n := s.Counts(); return n.GRPC-before.GRPC+n.Web-before.Web == 5 })
		if n := s.Counts().GRPC - before.GRPC; n != 1 {
			t.Errorf("%d connections went to grpc-go's own server; want 1", n)
		}
	}
	for _, s := range []*stand{plain, both} {
		if got := s.get(t, nil, false); got.who != anonymous || got.proto != "HTTP/1.1" {
			t.Errorf("plain HTTP: %+v", got)
		}
		if got := s.call(t, plainCreds()); got.err != nil || got.who != anonymous {
			t.Errorf("plain gRPC: %+v", got)
		}
		until(t, "plain gRPC on grpc-go's own server", func() bool { return s.Counts().GRPC > 0 })
	}
	closed := l.stand(GateOptions{Plain: true})
	if got := closed.get(t, nil, false); got.who != describe(policy.Principal{}) {
		t.Errorf("plain text without Open is somebody: %+v", got)
	}
	if got := secure.get(t, nil, false); got.err == nil && got.who != "" {
		t.Errorf("plain text on a TLS port: %+v", got)
	}
	if got := plain.get(t, clientTLS(a.cert, nil, me), false); got.err == nil {
		t.Errorf("TLS on a plain port: %+v", got)
	}
}

// TestCurl: the real curl, with each of its HTTP versions.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl here")
	}
	l := newLab(t)
	a := makeAuthority(t, "CA")
	c := l.mutual(a)
	certFile, keyFile := l.pair("me", a.leaf("me", nil))
	secure, plain := l.stand(GateOptions{TLS: l.identity(c), Open: true}), l.stand(GateOptions{Plain: true, Open: true})
	for _, version := range []string{"--http1.1", "--http2", ""} {
		for url, want := range map[string]string{
			"https://" + secure.address: `who: kind=2 role=0 name="me"`,
			"http://" + plain.address:   `who: kind=1 role=0 name="anonymous"`,
		} {
			args := []string{"-sSi", "--max-time", "10", "--cacert", c.TrustedCAFile, "--cert", certFile, "--key", keyFile, url}
			if version != "" {
				args = append(args, version)
			}
			out, err := exec.CommandContext(t.Context(), curl, args...).CombinedOutput()
			if err != nil || !strings.Contains(strings.ToLower(string(out)), strings.ToLower(want)) {
				t.Errorf("%s %s: %v\n%s", version, url, err, out)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), curl, "-sSk", "--max-time", "10", "https://"+secure.address).CombinedOutput()
	if err == nil {
		t.Errorf("curl without certificate: %s", out)
	}
	l.log.await(t, "rejected connection on client endpoint", "didn't provide a certificate")
}

// TestSplitPorts: gRPC-only and web-only listeners (--listen-client-http-urls) serve the one and refuse the other.
func TestSplitPorts(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	id := l.identity(l.mutual(a))
	me := a.leaf("me", nil)
	rpc, web := l.stand(GateOptions{TLS: id, Routes: ServeGRPC, Open: true}), l.stand(GateOptions{TLS: id, Routes: ServeWeb, Open: true})
	for _, protocols := range [][]string{{"h2"}, {"h2", "http/1.1"}} {
		if got := rpc.call(t, credentials.NewTLS(clientTLS(a.cert, protocols, me))); got.err != nil {
			t.Errorf("gRPC offering %q on the gRPC port: %v", protocols, got.err)
		}
	}
	until(t, "two connections", func() bool { return rpc.Counts().GRPC == 2 })
	if got := rpc.get(t, clientTLS(a.cert, []string{"http/1.1"}, me), false); got.err == nil {
		t.Errorf("HTTP/1.1 on the gRPC port: %+v", got)
	}
	l.log.await(t, "rejected connection", "this port speaks gRPC (h2) only")
	for _, h2 := range []bool{false, true} {
		if got := web.get(t, clientTLS(a.cert, nil, me), h2); got.err != nil {
			t.Error(got.err)
		}
	}
	if got := rpc.call(t, credentials.NewTLS(clientTLS(a.cert, nil))); got.err == nil {
		t.Error("the gRPC port took a client without certificate")
	}
	if got := web.get(t, clientTLS(a.cert, nil), true); got.err == nil {
		t.Error("the web port took a client without certificate")
	}
}

// TestHalfOpen: connections that say nothing are bounded in number, do not keep others of other addresses out, and end.
func TestHalfOpen(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), MaxHandshakes: 8, MaxHandshakesPerAddress: 3, Now: l.bursts})
	var silent []net.Conn
	const many = 3*waitingFactor + 5
	for range many {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	// The ones too many are closed at once.
	ended := make(chan int, many)
	for i, c := range silent {
		go func() {
			io.Copy(io.Discard, c)
			ended <- i
		}()
	}
	for range 5 {
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("the overflow was not closed")
		}
	}
	l.log.await(t, "rejected connection", errOverflow.Error())
	if n := s.Counts(); n.Overflow != 5 || n.Pending != many-5 {
		t.Fatalf("%+v", n)
	}
	// Another address comes through at once.
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := (&tls.Dialer{NetDialer: from, Config: clientTLS(a.cert, nil, a.leaf("me", nil))}).DialContext(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	b := make([]byte, 64)
	if n, err := c.Read(b); err != nil || !bytes.HasPrefix(b[:n], []byte("HTTP/1.1 200")) {
		t.Fatalf("%q, %v", b[:n], err)
	}
	// And so does this address, when the silent ones give up.
	for _, c := range silent {
		c.Close()
	}
	until(t, "no handshake pending", func() bool { return s.Counts().Pending == 0 })
	if got := s.get(t, clientTLS(a.cert, nil, a.leaf("me", nil)), false); got.err != nil {
		t.Fatal(got.err)
	}
}

// TestMaxConnections: where strangers connect, their open connections are bounded, and an ended one makes room.
func TestMaxConnections(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), MaxConnections: 2, Now: l.bursts})
	config := clientTLS(a.cert, nil, a.leaf("me", nil))
	one, _ := s.session(t, config)
	s.session(t, config)
	if got := s.get(t, config, false); got.err == nil {
		t.Fatal("a third connection was served")
	}
	l.log.await(t, "rejected connection", errCrowded.Error())
	one.Close()
	until(t, "there is room again", func() bool { return s.open.Load() == 1 })
	if got := s.get(t, config, false); got.err != nil {
		t.Fatal(got.err)
	}
	if g, err := NewGate(s.socket, GateOptions{Side: PublicSide, Routes: ServeWeb, Plain: true, Registry: l.registry, Log: l.log.logger(), Now: l.clock}); err != nil || g.options.MaxConnections == 0 {
		t.Errorf("the public side has no bound (%v)", err)
	}
}

// TestHandshakeDeadline: a client that stops in the middle is closed after handshakeLimit, and the log says so.
func TestHandshakeDeadline(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the 10 seconds of the limit")
	}
	l := newLab(t)
	a := makeAuthority(t, "CA")
	for _, s := range []*stand{l.stand(GateOptions{TLS: l.identity(l.mutual(a))}), l.stand(GateOptions{Plain: true})} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		t.Run("", func(t *testing.T) {
			t.Parallel()
			c.Write([]byte("P")) // neither a TLS record nor enough of any protocol
			c.SetReadDeadline(time.Now().Add(3 * handshakeLimit))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("never closed")
			}
			l.log.await(t, "rejected connection", "10s")
		})
	}
}

// TestGateEnds: Close ends the handshakes and every goroutine; what was handed on lives until its server ends it.
func TestGateEnds(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), MaxHandshakes: 1, MaxHandshakesPerAddress: 1})
	conn, ended := s.session(t, clientTLS(a.cert, nil, a.leaf("me", nil)))
	var half []net.Conn
	for range 3 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		half = append(half, c)
	}
	until(t, "4 connections", func() bool { return s.Counts().Accepted == 4 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range half {
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
	}
	if n := s.Counts().Pending; n != 0 {
		t.Errorf("%d handshakes are pending after Close", n)
	}
	mustLive(t, conn, ended)
	if _, err := s.GRPC().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := s.Serve(); err != nil {
		t.Error(err)
	}
	if n := l.registry.CutAll(func(v Live) bool { return v.Principal.Name() == "me" }); n != 1 {
		t.Errorf("cut %d", n)
	}
	mustEnd(t, ended)
}

// TestRefusalLogBounded: a flood of refusals writes a bounded number of lines, and the next one says how many are missing.
func TestRefusalLogBounded(t *testing.T) {
	l := newLab(t)
	var told int
	r := refusalLog{log: l.log.logger(), now: l.clock, side: ClientSide, tell: func(Refusal) { told++ }}
	a := makeAuthority(t, "CA")
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	err := &refusal{err: errRevoked, reason: "because", cert: a.leaf("x", nil).Leaf}
	for range 100 {
		r.add(&conn{Conn: left}, err)
	}
	if n := strings.Count(l.log.String(), "rejected connection"); n != refusalsPerSecond {
		t.Errorf("%d lines", n)
	}
	l.now = l.now.Add(time.Second)
	r.add(&conn{Conn: left}, err)
	l.log.await(t, "more-refused=80")
	if told != 101 {
		t.Errorf("the audit record heard of %d of 101", told)
	}
}

// TestPrincipalNowhere: a context from anywhere else is nobody, and a gRPC server takes no connection past a gate.
func TestPrincipalNowhere(t *testing.T) {
	t.Parallel()
	if p := PrincipalFromContext(context.Background()); p != (policy.Principal{}) {
		t.Error(p)
	}
	foreign := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{}})
	if p := PrincipalFromContext(foreign); p != (policy.Principal{}) {
		t.Error(p)
	}
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	if _, _, err := Credentials().ServerHandshake(left); err == nil {
		t.Error("a connection that no gate saw was taken")
	}
	if _, _, err := Credentials().ClientHandshake(context.Background(), "", left); err == nil {
		t.Error("server credentials used by a client")
	}
	if ConnContext(context.Background(), left) != context.Background() {
		t.Error("a foreign connection has a principal")
	}
	if _, _, ok := PeerIdentity(left); ok {
		t.Error("a foreign connection is a member")
	}
}

// TestPeers: the transport learns which member is there from the certificate, in both directions; the web beside it works.
func TestPeers(t *testing.T) {
	l := newLab(t)
	h, stranger := newHouseAt(t, time.Now().Add(-100*time.Hour)), newHouse(t)
	pinned := map[uint64]bool{}
	peerOf := func(h *house, member uint64, life time.Duration, born time.Time) *Identity {
		p := h.leafAt(ca.Request{Profile: ca.PeerProfile, CommonName: fmt.Sprintf("m%d", member), Hosts: []string{"localhost"}, Cluster: h.cluster, Member: member}, born, life)
		return l.identity(Config{Side: PeerSide, Issued: &Issued{
			Cluster: h.cluster, Server: p, Client: p, Issuers: []Issuer{h.issuer(policy.RoleMember)},
			Pinned: func(m uint64, _ [32]byte) bool { return pinned[m] },
		}})
	}
	now := time.Now()
	s := l.stand(GateOptions{Side: PeerSide, TLS: peerOf(h, 1, time.Hour, now), Routes: ServePeer | ServeWeb})
	accepted := make(chan net.Conn, 8)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := s.Peer().Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	t.Cleanup(func() { s.Close(); accepting.Wait() })
	dial := func(id *Identity, member uint64) (net.Conn, error) {
		c, err := id.Dial(t.Context(), nil, s.address, Target{Member: member, Protocols: []string{PeerProtocol}})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_, err = c.Write([]byte("x"))
		}
		return c, err
	}
	two := peerOf(h, 2, time.Hour, now)
	out, err := dial(two, 1)
	if err != nil {
		t.Fatal(err)
	}
	in := <-accepted
	for _, side := range []struct {
		c      net.Conn
		member uint64
	}{{out, 1}, {in, 2}} {
		cluster, member, ok := PeerIdentity(side.c)
		live, _ := Inspect(side.c)
		if !ok || cluster != h.cluster || member != side.member || live.Principal.Kind() != policy.Member || live.Expired {
			t.Errorf("%x %x %v %+v", cluster, member, ok, live)
		}
	}
	if _, err := dial(two, 7); err == nil || !strings.Contains(err.Error(), errWrongMember.Error()) {
		t.Errorf("another member than wanted: %v", err)
	}
	certs, _ := certificateOf(two.config.Issued.Client)
	if got := s.get(t, clientTLS(h.root.Certificate, nil, certs...), true); got.who != `kind=3 role=3 name="m2" open=false` {
		t.Errorf("web beside the peers: %+v", got)
	}
	server, _ := certificateOf(h.leaf(ca.Request{Profile: ca.AgentProfile, CommonName: "agent"}))
	if got := s.get(t, clientTLS(h.root.Certificate, nil, server...), true); got.err == nil {
		t.Error("an agent came in as a peer")
	}
	if _, err := dial(peerOf(stranger, 3, time.Hour, now), 1); err == nil {
		t.Error("a member of another cluster trusts this one")
	}
	// A member that was off past its certificate's end: in only while its key is pinned, and marked.
	old := peerOf(h, 4, 2*time.Hour, now.Add(-24*time.Hour))
	if c, err := dial(old, 1); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("an expired certificate came in")
		}
	}
	l.log.await(t, "rejected connection on peer endpoint", "it expired at")
	pinned[4] = true
	if _, err := dial(old, 1); err != nil {
		t.Fatal(err)
	}
	select {
	case in := <-accepted:
		if live, _ := Inspect(in); live.Member != 4 || !live.Expired {
			t.Fatalf("%+v", live)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("the pinned member was not let in:\n%s", l.log)
	}
	// Cut by certificate: both ends of a connection are in the registry, each under the other's name.
	if n := l.registry.Cut(ca.Name(two.config.Issued.Client.Chain[0], h.issuers[policy.RoleMember].Certificate)); n < 1 {
		t.Errorf("cut %d", n)
	}
	if _, err := in.Read(make([]byte, 2)); err == nil {
		_, err = in.Read(make([]byte, 2))
		if err == nil {
			t.Error("a cut peer connection still reads")
		}
	}
}

// TestPlainPeers: HTTP beside the peer protocol on a plain port; under Open everybody is a member, otherwise nobody.
func TestPlainPeers(t *testing.T) {
	l := newLab(t)
	for open, kind := range map[bool]policy.Kind{true: policy.Member, false: policy.Nobody} {
		s := l.stand(GateOptions{Side: PeerSide, Plain: true, Routes: ServePeer | ServeWeb, Open: open})
		if got := s.get(t, nil, false); got.err != nil || got.proto != "HTTP/1.1" {
			t.Errorf("%+v", got)
		}
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{1, 2, 3})
		in, err := s.Peer().Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		b := make([]byte, 3)
		if _, err := io.ReadFull(in, b); err != nil || !bytes.Equal(b, []byte{1, 2, 3}) {
			t.Errorf("%v %v", b, err)
		}
		live, _ := Inspect(in)
		if live.Principal.Kind() != kind {
			t.Errorf("open=%v: %v", open, live.Principal.Kind())
		}
		if _, _, ok := PeerIdentity(in); ok {
			t.Error("a plain connection names a member")
		}
		if w := s.Weaknesses(); len(w) != 1 || !strings.Contains(w[0], "is root") {
			t.Error(w)
		}
	}
}

// TestUnixSocket: TLS and plain over a unix socket; a stale file is replaced, a live socket and a foreign file are not.
func TestUnixSocket(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	plan, err := PlanSockets([]string{"unixs://" + path})
	if err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if _, err := plan[0].Listen(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("a live socket was taken over: %v", err)
	}
	stale.Close()
	socket, err := plan[0].Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.standOn(socket, GateOptions{TLS: l.identity(l.mutual(a)), Open: true})
	tr := &http.Transport{TLSClientConfig: clientTLS(a.cert, nil, a.leaf("me", nil)), DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost/", nil)
	res, err := tr.RoundTrip(req)
	if err != nil || !strings.Contains(res.Header.Get("who"), `name="me"`) {
		t.Fatalf("%v %v", res, err)
	}
	res.Body.Close()
	file := Socket{Network: "unix", Address: l.file("precious", []byte("data")), URLs: []string{"unix://precious"}}
	if _, err := file.Listen(t.Context(), nil); err == nil {
		t.Fatal("a file was replaced by a socket")
	}
	if b, _ := os.ReadFile(file.Address); string(b) != "data" {
		t.Fatal("the file is gone")
	}
}

// TestSilentProbe: a connection that closes without a word is no refusal in the log.
func TestSilentProbe(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a)), Plain: true})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	until(t, "the end of the probe", func() bool { return s.Counts().Rejected == 1 })
	if strings.Contains(l.log.String(), "rejected connection") {
		t.Error(l.log.String())
	}
}

// TestServerEndsFirst: whoever is still shaking hands when the server behind its route ends was not refused; a stranger who
// comes at that moment was.
func TestServerEndsFirst(t *testing.T) {
	l := newLab(t)
	a := makeAuthority(t, "CA")
	s := l.stand(GateOptions{TLS: l.identity(l.mutual(a))})
	if err := s.Web().Close(); err != nil {
		t.Fatal(err)
	}
	known := clientTLS(a.cert, nil, a.leaf("me", nil))
	if got := s.get(t, known, false); got.err == nil {
		t.Fatal("an ended server answered")
	}
	if got := s.get(t, clientTLS(a.cert, nil), false); got.err == nil {
		t.Fatal("a stranger was answered")
	}
	l.log.await(t, "rejected connection on client endpoint", "didn't provide a certificate")
	until(t, "no handshake pending", func() bool { return s.Counts().Pending == 0 })
	if n := strings.Count(l.log.String(), "rejected connection"); n != 1 {
		t.Error(l.log.String())
	}
}
