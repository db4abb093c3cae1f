// Package e2e runs the shipped binary as its users do: real processes, real files, real clients. It knows nothing of
// the inside. HOLDFAST_BIN names the binary; without it the package builds one.
package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// programs are the binaries under test and the real clients, built once for the package.
type programs struct{ holdfast, etcdctl string }

var builtPrograms = sync.OnceValues(func() (programs, error) {
	dir, err := os.MkdirTemp("", "holdfast-e2e-bin-")
	if err != nil {
		return programs{}, err
	}
	p := programs{holdfast: os.Getenv("HOLDFAST_BIN"), etcdctl: filepath.Join(dir, "etcdctl")}
	if p.holdfast == "" {
		p.holdfast = filepath.Join(dir, "holdfast")
		cmd := exec.Command("go", "build", "-o", p.holdfast, "./cmd/holdfast")
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			return programs{}, fmt.Errorf("building holdfast: %w\n%s", err, out)
		}
	}
	if out, err := exec.Command("go", "build", "-o", p.etcdctl, "go.etcd.io/etcd/etcdctl/v3").CombinedOutput(); err != nil {
		return programs{}, fmt.Errorf("building etcdctl: %w\n%s", err, out)
	}
	return p, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := builtPrograms(); err == nil {
		os.RemoveAll(filepath.Dir(p.etcdctl))
	}
	os.Exit(code)
}

func build(t *testing.T) programs {
	t.Helper()
	p, err := builtPrograms()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// authority is a CA made for one test.
type authority struct {
	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	dir    string
	path   string // PEM of the CA's certificate
	serial int64
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	a := &authority{t: t, cert: cert, key: key, dir: dir, path: filepath.Join(dir, name+"-ca.pem"), serial: 1}
	check(t, os.WriteFile(a.path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	return a
}

// pair is a certificate and its key, as files.
type pair struct {
	cert, key string
	leaf      *x509.Certificate
}

// issue signs a certificate for 127.0.0.1 and localhost with both EKUs; change may alter the template.
func (a *authority) issue(name string, change func(*x509.Certificate)) pair {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	a.serial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	check(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(a.t, err)
	leaf, err := x509.ParseCertificate(der)
	check(a.t, err)
	p := pair{cert: filepath.Join(a.dir, name+".pem"), key: filepath.Join(a.dir, name+"-key.pem"), leaf: leaf}
	check(a.t, os.WriteFile(p.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	check(a.t, os.WriteFile(p.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return p
}

// crl writes a DER CRL that lists the given certificates.
func (a *authority) crl(path string, revoked ...pair) {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, p := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: p.leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	check(a.t, err)
	check(a.t, os.WriteFile(path, der, 0o644))
}

// process is one running server. Its output is kept, and searched by tests.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
	err  error
}

// logBuffer collects output and wakes whoever waits for a line.
type logBuffer struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  bytes.Buffer
	end  bool
}

func newLogBuffer() *logBuffer { b := &logBuffer{}; b.cond = sync.NewCond(&b.mu); return b }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cond.Broadcast()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.buf.String() }

func (b *logBuffer) finish() { b.mu.Lock(); b.end = true; b.cond.Broadcast(); b.mu.Unlock() }

// wait blocks until the output holds text, the process has ended, or the deadline has passed.
func (b *logBuffer) wait(text string, limit time.Duration) bool {
	timer := time.AfterFunc(limit, func() { b.mu.Lock(); b.end = true; b.cond.Broadcast(); b.mu.Unlock() })
	defer timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	for !strings.Contains(b.buf.String(), text) {
		if b.end {
			return false
		}
		b.cond.Wait()
	}
	if timer.Stop() {
		b.end = false
	}
	return true
}

const readyLine = "ready to serve client requests"

// start runs the binary and waits until it serves.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := spawn(t, env, args...)
	if !p.log.wait(readyLine, 60*time.Second) {
		t.Fatalf("holdfast %s did not get ready:\n%s", strings.Join(args, " "), tail(p.log.String()))
	}
	return p
}

// spawn runs the binary without waiting.
func spawn(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(build(t).holdfast, args...), log: newLogBuffer(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	check(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		p.log.finish()
		close(p.done)
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) kill() {
	p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

// stop ends the process as an init system would and returns its exit error.
func (p *process) stop() error {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.kill()
		p.t.Fatalf("the server did not end after SIGTERM:\n%s", tail(p.log.String()))
	}
	return p.err
}

// tail is the end of a log, without the lines that say only that a request took long, and each line cut.
func tail(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if !strings.Contains(line, `"msg":"request stats"`) {
			lines = append(lines, strings.TrimRight(line[:min(len(line), 400)], "\n"))
		}
	}
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// freePorts returns n ports that were free a moment ago, below the range that the kernel takes for outgoing connections, and
// that no other test of this process has got.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range 1000 {
		if len(ports) == n {
			return ports
		}
		port := 10_000 + mathrand.IntN(20_000)
		if _, taken := takenPorts.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			check(t, l.Close())
			ports = append(ports, port)
		}
	}
	t.Fatal("no free ports")
	return nil
}

var takenPorts sync.Map

// cluster is one or more members under `holdfast etcd`, with mutual TLS on every port.
type cluster struct {
	t                    *testing.T
	dir                  string
	ca                   *authority
	server, peer, client pair
	clientPorts          []int
	peerPorts            []int
	extra                []string
	members              []*process
}

// newCluster starts n members with mutual TLS for clients and peers.
func newCluster(t *testing.T, n int, extra ...string) *cluster {
	t.Helper()
	c := layOutCluster(t, n, extra...)
	for i := range n {
		c.members[i] = spawn(t, c.env(), c.args(i)...)
	}
	for i := range n {
		c.ready(i)
	}
	return c
}

// layOutCluster makes certificates and chooses ports without starting anything.
func layOutCluster(t *testing.T, n int, extra ...string) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t, dir: dir, ca: newAuthority(t, dir, "cluster"), extra: extra, members: make([]*process, n)}
	c.server, c.peer, c.client = c.ca.issue("server", nil), c.ca.issue("peer", nil), c.ca.issue("client", nil)
	ports := freePorts(t, 2*n)
	c.clientPorts, c.peerPorts = ports[:n], ports[n:]
	return c
}

func (c *cluster) env() []string { return nil }

func (c *cluster) dataDir(i int) string { return filepath.Join(c.dir, fmt.Sprintf("m%d", i)) }

func (c *cluster) endpoint(i int) string {
	return fmt.Sprintf("https://127.0.0.1:%d", c.clientPorts[i])
}

func (c *cluster) endpoints() (all []string) {
	for i := range c.clientPorts {
		all = append(all, c.endpoint(i))
	}
	return all
}

func (c *cluster) args(i int) []string {
	var initial []string
	for j, p := range c.peerPorts {
		initial = append(initial, fmt.Sprintf("m%d=https://127.0.0.1:%d", j, p))
	}
	peerURL := fmt.Sprintf("https://127.0.0.1:%d", c.peerPorts[i])
	args := []string{
		"etcd", "--name", fmt.Sprintf("m%d", i), "--data-dir", c.dataDir(i),
		"--listen-client-urls", c.endpoint(i), "--advertise-client-urls", c.endpoint(i),
		"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", "e2e",
		"--cert-file", c.server.cert, "--key-file", c.server.key, "--client-cert-auth", "--trusted-ca-file", c.ca.path,
		"--peer-cert-file", c.peer.cert, "--peer-key-file", c.peer.key, "--peer-client-cert-auth", "--peer-trusted-ca-file", c.ca.path,
	}
	return append(args, c.extra...)
}

func (c *cluster) ready(i int) {
	c.t.Helper()
	if !c.members[i].log.wait(readyLine, 60*time.Second) {
		c.t.Fatalf("member %d did not get ready:\n%s", i, tail(c.members[i].log.String()))
	}
}

// restart starts member i again on its data directory.
func (c *cluster) restart(i int) {
	c.t.Helper()
	c.members[i] = spawn(c.t, c.env(), c.args(i)...)
}

func (c *cluster) tls(p pair) *tls.Config {
	c.t.Helper()
	cert, err := tls.LoadX509KeyPair(p.cert, p.key)
	check(c.t, err)
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// config is a client's, which says nothing by itself: what matters is an error that a test sees.
func (c *cluster) config(endpoints []string) clientv3.Config {
	return clientv3.Config{
		Endpoints: endpoints, TLS: c.tls(c.client), DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithBlock()}, //nolint:staticcheck // block: a test wants the error here
	}
}

// dial returns a client of the given members, or of all.
func (c *cluster) dial(members ...int) *clientv3.Client {
	c.t.Helper()
	endpoints := c.endpoints()
	if len(members) > 0 {
		endpoints = nil
		for _, m := range members {
			endpoints = append(endpoints, c.endpoint(m))
		}
	}
	cl, err := clientv3.New(c.config(endpoints))
	check(c.t, err)
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

// etcdctl runs the real etcdctl with the cluster's client certificate.
func (c *cluster) etcdctl(args ...string) (string, error) {
	return c.etcdctlAs(c.client, args...)
}

func (c *cluster) etcdctlAs(p pair, args ...string) (string, error) {
	all := append([]string{"--endpoints", strings.Join(c.endpoints(), ","), "--cacert", c.ca.path, "--dial-timeout=3s", "--command-timeout=10s"}, args...)
	if p.cert != "" {
		all = append(all, "--cert", p.cert, "--key", p.key)
	}
	out, err := exec.Command(build(c.t).etcdctl, all...).CombinedOutput()
	return string(out), err
}

func (c *cluster) mustCtl(args ...string) string {
	c.t.Helper()
	out, err := c.etcdctl(args...)
	if err != nil {
		c.t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// hashes returns the HashKV of every member at the same revision.
func (c *cluster) hashes() []uint32 {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl := c.dial()
	got, err := cl.Get(ctx, "x")
	check(c.t, err)
	var all []uint32
	for i := range c.clientPorts {
		one := c.dial(i)
		_, err := one.Get(ctx, "x") // linearizable: this member has applied the revision
		check(c.t, err)
		h, err := one.HashKV(ctx, c.endpoint(i), got.Header.Revision)
		check(c.t, err)
		all = append(all, h.Hash)
	}
	return all
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runHoldfast runs a command of the binary to its end.
func runHoldfast(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(build(t).holdfast, args...).CombinedOutput()
	return string(out), err
}
