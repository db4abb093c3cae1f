package authn

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// lab is one test's clock, log, registry and files.
type lab struct {
	t        *testing.T
	dir      string
	registry *Registry
	log      *logBook

	mu    sync.Mutex
	now   time.Time
	burst time.Duration
}

func newLab(t *testing.T) *lab {
	t.Helper()
	t.Parallel()
	return &lab{t: t, dir: t.TempDir(), registry: NewRegistry(), log: &logBook{grown: make(chan struct{}, 1)}, now: time.Now()}
}

func (l *lab) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// bursts is a clock that goes on a second at each look: a gate with it logs every refusal.
func (l *lab) bursts() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.burst += time.Second
	return l.now.Add(l.burst)
}

// advance moves the clock and ticks id.
func (l *lab) advance(id *Identity, d time.Duration) {
	l.mu.Lock()
	l.now = l.now.Add(d)
	l.mu.Unlock()
	id.Tick(l.clock())
}

func (l *lab) env() Env {
	return Env{Now: l.clock, Rand: rand.Reader, Log: l.log.logger(), Registry: l.registry, Resolver: noNames{}}
}

type noNames struct{}

func (noNames) LookupAddr(context.Context, string) ([]string, error) { return nil, nil }
func (noNames) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

func (l *lab) file(name string, data []byte) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func (l *lab) identity(c Config) *Identity {
	l.t.Helper()
	return l.identityIn(c, l.env())
}

func (l *lab) identityIn(c Config, env Env) *Identity {
	l.t.Helper()
	if c.Side == noSide {
		c.Side = ClientSide
	}
	id, err := New(c, env)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// logBook collects log lines and wakes those who wait for one.
type logBook struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{}
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	select {
	case b.grown <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (b *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits for a line that holds all of parts.
func (b *logBook) await(t *testing.T, parts ...string) {
	t.Helper()
	late := time.After(5 * time.Second)
	for {
		for line := range strings.SplitSeq(b.String(), "\n") {
			all := true
			for _, p := range parts {
				all = all && strings.Contains(line, p)
			}
			if all {
				return
			}
		}
		select {
		case <-b.grown:
		case <-late:
			text := b.String()
			t.Fatalf("no log line with %q in:\n%s", parts, text[max(0, len(text)-3000):])
		}
	}
}

// authority is a CA of a test, outside Holdfast's own profiles.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func makeAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key, _ = ca.GenerateKey(rand.Reader)
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, a.key)
	return a
}

// under makes an intermediate of a.
func (a *authority) under(name string) *authority {
	a.t.Helper()
	b := &authority{t: a.t}
	b.key, _ = ca.GenerateKey(rand.Reader)
	b.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, a.cert, b.key)
	return b
}

func (a *authority) sign(t, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	if parent == nil {
		parent = t
	}
	if t.SerialNumber == nil {
		t.SerialNumber, _ = ca.NewSerial(rand.Reader)
	}
	if t.NotAfter.IsZero() {
		t.NotBefore, t.NotAfter = time.Now().Add(-24*time.Hour), time.Now().Add(90*24*time.Hour)
	}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// leaf makes a certificate for 127.0.0.1 and localhost, both usages, changed by edit.
func (a *authority) leaf(name string, edit func(*x509.Certificate), chain ...*x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, _ := ca.GenerateKey(rand.Reader)
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	if edit != nil {
		edit(t)
	}
	c := a.sign(t, a.cert, key)
	pair := tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
	for _, i := range chain {
		pair.Certificate = append(pair.Certificate, i.Raw)
	}
	return pair
}

// crl lists certs, as DER.
func (a *authority) crl(number int64, next time.Time, certs ...tls.Certificate) []byte {
	a.t.Helper()
	var lines []ca.Revocation
	for _, c := range certs {
		lines = append(lines, ca.Revocation{Serial: c.Leaf.SerialNumber, At: time.Now()})
	}
	der, err := ca.SignCRL(ca.Source{Now: time.Now().Add(-48 * time.Hour), Rand: rand.Reader}, ca.Authority{Certificate: a.cert, Signer: a.key}, big.NewInt(number), next, lines)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func crlPEM(ders ...[]byte) []byte {
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return b
}

// pair writes a certificate and its key to files.
func (l *lab) pair(name string, c tls.Certificate) (certFile, keyFile string) {
	l.t.Helper()
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := ca.EncodeKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		l.t.Fatal(err)
	}
	return l.file(name+".crt", chain), l.file(name+".key", key)
}

// mutual is a Config that shows a certificate of a and accepts clients of a.
func (l *lab) mutual(a *authority) Config {
	l.t.Helper()
	c := Config{Side: ClientSide, ClientCertAuth: true, MinVersion: "TLS1.2"}
	c.CertFile, c.KeyFile = l.pair("server", a.leaf("server", nil))
	c.TrustedCAFile = l.file("ca.crt", ca.EncodeCertificates(a.cert))
	return c
}

// stand is a gate with a gRPC server and a web server behind it. Both say who asks: in the header "who".
type stand struct {
	*Gate
	address string
}

func (l *lab) stand(o GateOptions) *stand {
	l.t.Helper()
	socket, err := (&net.ListenConfig{}).Listen(l.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	return l.standOn(socket, o)
}

func (l *lab) standOn(socket net.Listener, o GateOptions) *stand {
	l.t.Helper()
	if o.Side == noSide {
		o.Side = ClientSide
	}
	if o.Routes == 0 {
		o.Routes = ServeGRPC | ServeWeb
	}
	o.Registry, o.Log = l.registry, l.log.logger()
	if o.Now == nil {
		o.Now = l.clock
	}
	g, err := NewGate(socket, o)
	if err != nil {
		l.t.Fatal(err)
	}
	rpc := grpc.NewServer(grpc.Creds(Credentials()), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			grpc.SetHeader(ctx, metadata.Pairs("who", describe(PrincipalFromContext(ctx))))
			return next(ctx, req)
		}))
	healthpb.RegisterHealthServer(rpc, health.NewServer())
	web := &http.Server{ConnContext: ConnContext, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				rpc.ServeHTTP(w, r)
				return
			}
			w.Header().Set("who", describe(PrincipalFromContext(r.Context())))
			if name, ok := SubjectFromContext(r.Context()); ok {
				w.Header().Set("subject", name.String())
			}
			fmt.Fprint(w, r.Proto)
		})}
	var running sync.WaitGroup
	running.Go(func() { rpc.Serve(g.GRPC()) })
	running.Go(func() { web.Serve(g.Web()) })
	running.Go(func() {
		if err := g.Serve(); err != nil {
			l.t.Error(err)
		}
	})
	l.t.Cleanup(func() {
		g.Close()
		rpc.Stop()
		web.Close()
		running.Wait()
	})
	return &stand{Gate: g, address: socket.Addr().String()}
}

func describe(p policy.Principal) string {
	return fmt.Sprintf("kind=%d role=%d name=%q open=%v", p.Kind(), p.Role(), p.Name(), p.OpenWhenAuthOff())
}

// answer is what a client got.
type answer struct {
	who, proto string
	err        error
}

// clientTLS trusts roots and shows certs.
func clientTLS(root *x509.Certificate, protocols []string, certs ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	config := &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: protocols}
	if len(certs) > 0 { // shown whatever issuers the server names
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return config
}

// get asks over HTTP; config nil is plain text; h2 lets the client use HTTP/2.
func (s *stand) get(t *testing.T, config *tls.Config, h2 bool) answer {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: h2, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	scheme := "https"
	if config == nil {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+s.address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{who: res.Header.Get("who"), proto: string(body), err: err}
}

// call asks over gRPC with grpc-go.
func (s *stand) call(t *testing.T, creds credentials.TransportCredentials) answer {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	var md metadata.MD
	_, err = healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.Header(&md))
	return answer{who: strings.Join(md.Get("who"), ","), err: err}
}

func plainCreds() credentials.TransportCredentials { return insecure.NewCredentials() }

// session opens a connection, proves that it is served, and returns it with a channel that is closed when it ends.
func (s *stand) session(t *testing.T, config *tls.Config) (*tls.Conn, <-chan struct{}) {
	t.Helper()
	c, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	b := make([]byte, 4096)
	if n, err := c.Read(b); err != nil || !bytes.HasPrefix(b[:n], []byte("HTTP/1.1 200")) {
		t.Fatalf("first answer: %q, %v", b[:n], err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, c)
	}()
	return c.(*tls.Conn), ended
}

// mustEnd waits for a session to be cut.
func mustEnd(t *testing.T, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the connection was not cut")
	}
}

// mustLive proves that a session still serves.
func mustLive(t *testing.T, c *tls.Conn, ended <-chan struct{}) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatalf("the connection was cut: %v", err)
	}
	select {
	case <-ended:
		t.Fatal("the connection was cut")
	default:
	}
}

// until waits for something that happens soon in another goroutine and that nothing announces.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(5 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// memStore is a Store in memory.
type memStore struct {
	mu   sync.Mutex
	data map[string][]byte
	fail error
}

func (s *memStore) Load(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.data[name]; ok {
		return d, nil
	}
	return nil, fs.ErrNotExist
}

func (s *memStore) Save(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.data == nil {
		s.data = map[string][]byte{}
	}
	s.data[name] = data
	return nil
}
