package agentapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// authority issues certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, nil, key)
	return a
}

func (a *authority) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = serial, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), true
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// identity is the TLS of an agent with a certificate of a, which trusts trusted.
func (a *authority) identity(name string, trusted *authority) *authn.Identity {
	a.t.Helper()
	key, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key)
	keyPEM, err := ca.EncodeKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	config := authn.Config{
		Side: authn.PeerSide, ClientCertAuth: true, SkipClientSANVerify: true, AnyServer: true,
		CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), TrustedCAFile: filepath.Join(dir, "ca"),
	}
	for name, data := range map[string][]byte{
		config.CertFile: ca.EncodeCertificates(cert), config.KeyFile: keyPEM, config.TrustedCAFile: ca.EncodeCertificates(trusted.cert),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	id, err := authn.New(config, authn.Env{
		Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler), Registry: authn.NewRegistry(), Resolver: net.DefaultResolver,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return id
}

// secured runs a server behind a gate, beside the peer protocol.
func secured(t *testing.T, id *authn.Identity, d *directory) (address string) {
	t.Helper()
	g, err := authn.NewGate(listen(t), authn.GateOptions{
		Side: authn.PeerSide, Routes: authn.ServePeer | authn.ServeAgent, Open: true, TLS: id, Registry: authn.NewRegistry(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Serve(); err != nil {
			t.Errorf("gate: %v", err)
		}
	})
	t.Cleanup(func() { g.Close(); running.Wait() })
	serve(t, g.Agent(), ServerOptions{Directory: d, Principal: func(c net.Conn) policy.Principal {
		live, _ := authn.Inspect(c)
		return live.Principal
	}})
	return g.Addr().String()
}

// TestCertificatesDecide: behind a gate with mutual TLS, only a certificate of the cluster's CA gets through, and each end
// proves itself to the other.
func TestCertificatesDecide(t *testing.T) {
	house, stranger := newAuthority(t), newAuthority(t)
	d := &directory{}
	address := secured(t, house.identity("server", house), d)
	ask := func(dial func(context.Context, string) (net.Conn, error)) error {
		o := impatient(options(address))
		o.Dial = dial
		c := client(t, o)
		_, err := c.Lookup(t.Context(), anybody, question1())
		if _, err2 := c.Discover(t.Context(), anybody, set()); (err == nil) != (err2 == nil) {
			t.Errorf("a question ends with %v, a write with %v", err, err2)
		}
		return err
	}
	with := func(id *authn.Identity) func(context.Context, string) (net.Conn, error) {
		return func(ctx context.Context, address string) (net.Conn, error) {
			return id.Dial(ctx, nil, address, authn.Target{Protocols: []string{Protocol}})
		}
	}
	if Protocol != authn.AgentProtocol {
		t.Fatalf("the gate offers %q", authn.AgentProtocol)
	}
	bare := func(ctx context.Context, address string) (net.Conn, error) {
		return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}}}).DialContext(ctx, "tcp", address)
	}
	for name, dial := range map[string]func(context.Context, string) (net.Conn, error){
		"no certificate": bare, "no TLS": dialPlain,
		"a certificate of another CA": with(stranger.identity("agent", house)),
		"a server of another CA":      with(house.identity("agent", stranger)),
	} {
		if err := ask(dial); err == nil {
			t.Errorf("%s: it was answered", name)
		}
	}
	if n := d.calls.Load(); n != 0 {
		t.Fatalf("%d calls of strangers reached the directory", n)
	}
	if err := ask(with(house.identity("agent-7", house))); err != nil {
		t.Fatal(err, fault.From(err).Hint)
	}
	if len(d.whos) != 2 || d.whos[0] != "agent-7" || d.whos[1] != "agent-7" {
		t.Errorf("the directory was asked by %q", d.whos)
	}
}

// raw is an HTTP/2 client without our client's manners.
func raw(t *testing.T) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func post(t *testing.T, address, path string, body io.Reader) []byte {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	response, err := raw(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// refused reads an answer that must be a refusal before anything was done.
func refused(t *testing.T, what string, answer []byte, want error) {
	t.Helper()
	if len(answer) == 0 || answer[0] != answerRefused {
		t.Errorf("%s: answer %q; want a refusal", what, answer)
		return
	}
	f, err := decodeFault(answer[1:])
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	mustFail(t, what, f, want)
}

// never is a body that does not come.
type never struct {
	closed chan struct{}
	once   sync.Once
}

func (n *never) Read([]byte) (int, error) {
	<-n.closed
	return 0, io.ErrUnexpectedEOF
}

func (n *never) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

func TestNobodyIsRefused(t *testing.T) {
	for name, principal := range map[string]func(net.Conn) policy.Principal{
		"nobody says who it is": nil, "it is nobody": func(net.Conn) policy.Principal { return policy.Principal{} },
	} {
		d := &directory{}
		address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: principal})
		c := client(t, options(address))
		_, err := c.Lookup(t.Context(), anybody, question1())
		mustFail(t, name, err, ErrNobody)
		_, err = c.Discover(t.Context(), anybody, set())
		mustFail(t, name, err, ErrNobody)
		_, err = c.Join(t.Context(), JoinRequest{Name: "x"})
		mustFail(t, name, err, ErrNobody)
		// It is answered although its body never comes.
		refused(t, name, post(t, address, pathLookup, &never{closed: make(chan struct{})}), ErrNobody)
		if d.calls.Load() != 0 {
			t.Errorf("%s: the directory was asked", name)
		}
	}
}

func TestBodies(t *testing.T) {
	d := &directory{}
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	for _, path := range []string{pathDiscover, pathLookup, pathRenew, pathServers, pathJoin} {
		refused(t, path+" too large", post(t, address, path, bytes.NewReader(make([]byte, maxRequest+1))), ErrTooLarge)
		refused(t, path+" garbage", post(t, address, path, strings.NewReader("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")), ErrMalformed)
		// A length far beyond what comes.
		refused(t, path+" a lying length", post(t, address, path, strings.NewReader("\x00\x00\x00\xff\xff\xff\xff\x0fweb")), ErrMalformed)
	}
	whole := appendLookup(nil, question1())
	for i := range whole {
		refused(t, "a question cut off", post(t, address, pathLookup, bytes.NewReader(whole[:i])), ErrMalformed)
	}
	refused(t, "bytes after the end", post(t, address, pathLookup, bytes.NewReader(append(whole, 0))), ErrMalformed)
	refused(t, "an unknown flag", post(t, address, pathLookup, bytes.NewReader(append([]byte{2}, whole[1:]...))), ErrMalformed)
	long := question1()
	long.Wait = maxWait + 1
	refused(t, "a wait without end", post(t, address, pathLookup, bytes.NewReader(appendLookup(nil, long))), ErrMalformed)
	if n := d.calls.Load(); n != 0 {
		t.Errorf("%d calls reached the directory", n)
	}
}

// TestSlowLargeBodies: what comes slowly takes no more memory than a few requests, and keeps no small one out.
func TestSlowLargeBodies(t *testing.T) {
	d := &directory{}
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	client := raw(t)
	busy := make(chan []byte, 2*largeBodies)
	for range 2 * largeBodies {
		body := &never{closed: make(chan struct{})}
		context.AfterFunc(ctx, func() { body.Close() })
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+pathDiscover, io.MultiReader(bytes.NewReader(make([]byte, smallBody+1)), body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		sending.Go(func() {
			response, err := client.Do(r)
			if err != nil {
				return // cut off at the end
			}
			defer response.Body.Close()
			if answer, err := io.ReadAll(response.Body); err == nil {
				busy <- answer
			}
		})
	}
	for range largeBodies {
		refused(t, "one more large body", <-busy, ErrBusy)
	}
	refused(t, "a large body while others come", post(t, address, pathDiscover, bytes.NewReader(make([]byte, smallBody+1))), ErrBusy)
	refused(t, "a small body", post(t, address, pathDiscover, strings.NewReader("garbage")), ErrMalformed)
}

// TestCutOffBody: what breaks off before its declared end is not done.
func TestCutOffBody(t *testing.T) {
	d := &directory{}
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	ctx, cancel := context.WithCancel(t.Context())
	body, w := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+pathDiscover, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.ContentLength = 1000
	var gone sync.WaitGroup
	gone.Go(func() {
		if response, err := raw(t).Do(r); err == nil {
			t.Error("half a write was answered")
			response.Body.Close()
		}
	})
	if _, err := w.Write(appendJoin(nil, JoinRequest{Name: "half"})); err != nil {
		t.Fatal(err)
	}
	cancel()
	gone.Wait()
	w.Close()
	c := client(t, options(address))
	if _, err := c.Servers(t.Context(), anybody); err != nil { // the server is well after it
		t.Fatal(err)
	}
	if n := d.calls.Load(); n != 1 {
		t.Errorf("%d calls reached the directory", n)
	}
}

// TestForeignProtocols: what is not HTTP/2 gets no answer, what is not ours a refusal.
func TestForeignProtocols(t *testing.T) {
	address, _ := serve(t, listen(t), ServerOptions{Directory: &directory{}, Principal: open})
	conn, err := dialPlain(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); len(answer) != 0 { // hung up on, with a reset perhaps
		t.Errorf("HTTP/1.1: %q, %v", answer, err)
	}
	response, err := raw(t).Post("http://"+address+pathServers, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "JSON", answer, ErrMalformed)
}
