package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// world is a kind of server and the certificates that its callers have.
type world struct {
	name  string
	certs []string // that may connect; "" is none
	plain bool
	flavour
	anyCert string         // one that may log in
	wrong   map[string]int // wrong passwords in a row, of each name: several are slowed down
}

// certificate returns who the holder of a certificate is.
func (w *world) certificate(cert string) caller {
	switch {
	case !w.secured:
		return caller{cert: cert}
	case cert == "admin" || cert == "kms":
		return caller{cert: cert, role: cert}
	}
	return caller{cert: cert, role: "client"}
}

func worlds(etcd bool) []world {
	ws := []world{
		{name: "plain", certs: []string{""}, plain: true},
		{name: "names", certs: []string{"alice", "ghost", "root", "bob"}, anyCert: "ghost", flavour: flavour{names: true}},
		{name: "jwt", certs: []string{""}, plain: true, flavour: flavour{jwt: true}},
		{name: "secured", certs: []string{"admin", "alice", "bob", "root", "ghost", "kms"}, anyCert: "ghost", flavour: flavour{secured: true, names: true}},
	}
	if etcd {
		ws = ws[:3]
		for i := range ws {
			ws[i].etcd = true
		}
	}
	for i := range ws {
		ws[i].wrong = map[string]int{}
	}
	return ws
}

// server is a running process.
type server struct {
	world   world
	binary  string
	dir     string
	address string // of clients
	peerURL string
	ports   []int
	cmd     *exec.Cmd
	log     lockedBuffer
	done    chan struct{}
	ca      *authority
	pool    *x509.CertPool
	pairs   map[string]tls.Certificate
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// freePorts asks the kernel for ports.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// memory is a directory that is not on a disk, where there is one: cases wait for each write.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// start runs a server of a world on an empty directory.
func start(w world, binary string, more ...string) (*server, error) {
	dir, err := os.MkdirTemp(memory(), "holdfast-oracle-")
	if err != nil {
		return nil, err
	}
	s := &server{world: w, binary: binary, dir: dir, done: make(chan struct{}), pairs: map[string]tls.Certificate{}}
	if s.ports, err = freePorts(9); err != nil {
		return nil, err
	}
	s.address = fmt.Sprintf("127.0.0.1:%d", s.ports[0])
	args, err := s.arguments()
	for _, flag := range more {
		if flag == "--listen-cfssl" {
			flag += "=swarm=" + s.url("https", 6)
		}
		args = append(args, flag)
	}
	if err == nil {
		err = s.run(args)
	}
	if err == nil && w.secured {
		err = s.issue(w.certs)
	}
	if err == nil && !w.plain {
		var other *authority
		if other, err = newAuthority(dir, "stranger-ca"); err == nil {
			s.pairs["a stranger's root"], err = other.issue("root")
		}
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("%s: %w\n%s", w.name, err, s.tail())
	}
	return s, nil
}

func (s *server) tail() string {
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "\n")
}

func (s *server) path(name ...string) string {
	return filepath.Join(append([]string{s.dir}, name...)...)
}

func (s *server) url(scheme string, port int) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, s.ports[port])
}

func (s *server) arguments() ([]string, error) {
	if s.world.secured {
		s.peerURL = s.url("https", 1)
		return []string{"server", "--name", "m0", "--data-dir", s.path("data"), "--advertise-host", "127.0.0.1",
			"--listen-client", s.url("https", 0), "--listen-peer", s.peerURL, "--listen-public", s.url("https", 2),
			"--listen-consul", s.url("https", 3), "--listen-dns", fmt.Sprintf("127.0.0.1:%d", s.ports[4]),
			"--listen-metrics", s.url("https", 5)}, nil
	}
	scheme := "https"
	if s.world.plain {
		scheme = "http"
	}
	s.peerURL = s.url("http", 1)
	args := []string{"--name", "m0", "--data-dir", s.path("data"), "--listen-client-urls", s.url(scheme, 0), "--advertise-client-urls", s.url(scheme, 0),
		"--listen-peer-urls", s.peerURL, "--initial-advertise-peer-urls", s.peerURL, "--initial-cluster", "m0=" + s.peerURL,
		"--bcrypt-cost", "4", "--max-txn-ops", "128", "--log-level", "error"}
	if !s.world.etcd {
		args = append([]string{"etcd"}, args...)
	}
	var err error
	if !s.world.plain {
		if s.ca, err = newAuthority(s.dir, "ca"); err != nil {
			return nil, err
		}
		s.pool = s.ca.pool()
		if _, err = s.ca.issue("server"); err != nil {
			return nil, err
		}
		for _, name := range s.world.certs {
			if s.pairs[name], err = s.ca.issue(name); err != nil {
				return nil, err
			}
		}
		args = append(args, "--cert-file", s.path("server.pem"), "--key-file", s.path("server-key.pem"), "--client-cert-auth", "--trusted-ca-file", s.path("ca.pem"))
	}
	if s.world.jwt {
		if err = writeKey(s.path("jwt.pem"), s.path("jwt-pub.pem")); err != nil {
			return nil, err
		}
		args = append(args, "--auth-token", fmt.Sprintf("jwt,pub-key=%s,priv-key=%s,sign-method=ES256,ttl=3h", s.path("jwt-pub.pem"), s.path("jwt.pem")))
	}
	return args, nil
}

// run starts the process and waits until its client port takes connections.
func (s *server) run(args []string) error {
	s.cmd = exec.Command(s.binary, args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.path("home")}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		s.cmd.Wait() //nolint:errcheck // it is killed
		close(s.done)
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(60 * time.Second); time.Now().Before(limit); {
		select {
		case <-s.done:
			return fmt.Errorf("it ended")
		case <-tick.C:
		}
		if c, err := net.Dial("tcp", s.address); err == nil {
			return c.Close()
		}
	}
	return fmt.Errorf("it does not serve")
}

func (s *server) stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		s.cmd.Process.Kill()
		<-s.done
	}
	os.RemoveAll(s.dir)
}

// holdfast runs a command as the user who started the server.
func (s *server) holdfast(args ...string) (string, error) {
	cmd := exec.Command(s.binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.path("home")}
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("holdfast %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// issue has the server's own issuers certify the callers.
func (s *server) issue(names []string) error {
	for _, name := range names {
		role := s.world.certificate(name).role
		if err := s.certify(role, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) certify(role, name string) error { return s.certifyAs(role, name, name) }

// certifyAs writes the certificate of name into the directory file, whose name it has here.
func (s *server) certifyAs(role, name, file string) error {
	var err error
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range 50 { // it may not lead yet
		if _, err = s.holdfast("ca", "issue", role, "--name", name, "--out", s.path(file)); err == nil {
			break
		}
		<-tick.C
	}
	if err != nil {
		return err
	}
	if s.pairs[file], err = tls.LoadX509KeyPair(s.path(file, "cert.pem"), s.path(file, "key.pem")); err != nil {
		return err
	}
	if s.pool == nil {
		root, err := os.ReadFile(s.path(file, "ca.pem"))
		if err != nil {
			return err
		}
		s.pool = x509.NewCertPool()
		s.pool.AppendCertsFromPEM(root)
	}
	return nil
}

// tls returns what the holder of a certificate connects with.
func (s *server) tls(cert string) *tls.Config {
	conf := &tls.Config{RootCAs: s.pool, MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1"}
	if p, ok := s.pairs[cert]; ok {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p, nil }
	}
	return conf
}

// endpoint returns the client port.
func (s *server) endpoint() *endpoint {
	if s.world.plain {
		return newEndpoint(s.address, nil)
	}
	return newEndpoint(s.address, s.tls)
}

// authority is a CA of the oracle's own.
type authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{dir: dir, cert: cert, key: key, serial: 1}, writePEM(filepath.Join(dir, name+".pem"), "CERTIFICATE", der, 0o644)
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) issue(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	a.serial++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err == nil {
		err = writePEM(filepath.Join(a.dir, name+"-key.pem"), "PRIVATE KEY", keyDER, 0o600)
	}
	if err == nil {
		err = writePEM(filepath.Join(a.dir, name+".pem"), "CERTIFICATE", der, 0o644)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeKey makes the keys that JWTs are signed with.
func writeKey(private, public string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(private, "EC PRIVATE KEY", der, 0o600); err != nil {
		return err
	}
	return writePEM(public, "PUBLIC KEY", pub, 0o644)
}
