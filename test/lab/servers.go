package main

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
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

type member3 = pb.Member

// dial returns an official client of one endpoint that asks nothing twice and comes back quickly.
func dial(endpoint string, conf *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, TLS: conf.Clone(), Logger: zap.NewNop(), MaxUnaryRetries: 1,
		DialKeepAliveTime: 3 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithDisableRetry(), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: 2 * time.Second})},
	})
}

// house is `holdfast server`: its own authorities, mutual TLS on every port, sealed disks, tokens to join.
type house struct{ binary string }

func (h house) prepare(c *cluster) error {
	return os.WriteFile(filepath.Join(c.dir, "server.yaml"), []byte("raft: {snapshot-count: 1000, snapshot-catchup-entries: 300}\n"), 0o600)
}

func (h house) command(c *cluster, m *member) (string, []string, []string) {
	address := c.net.address(m.slot)
	args := []string{"server", "--config", filepath.Join(c.dir, "server.yaml"), "--name", m.name, "--data-dir", filepath.Join(m.mount, "data"), "--advertise-host", address,
		"--listen-client", c.endpoint(m), "--listen-peer", "https://" + address + ":2380", "--listen-public", "https://" + address + ":2378",
		"--listen-consul", "https://" + address + ":8500"}
	return h.binary, append(args, m.join...), nil
}

func (h house) found(ctx context.Context, c *cluster) error {
	first := c.all()[0]
	if err := c.up(first); err != nil {
		return err
	}
	identity := filepath.Join(c.dir, "admin")
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end) && ctx.Err() == nil; wait(ctx, 200*time.Millisecond) {
		if _, err = h.run(ctx, c, "ca", "issue", "admin", "--name", "laboratory", "--out", identity); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(first.log))
	}
	if c.tls, err = loadIdentity(identity); err != nil {
		return err
	}
	if err := c.ready(ctx, first, time.Minute); err != nil {
		return err
	}
	for _, m := range c.all()[1:] {
		if err := h.add(ctx, c, m); err != nil {
			return err
		}
	}
	return nil
}

// run runs a command of the binary as the user who started the first member, against whoever answers.
func (h house) run(ctx context.Context, c *cluster, args ...string) (string, error) {
	args = append(args, "--endpoints", strings.Join(c.endpoints(), ","))
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(c.dir, "m1", "home")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// loadIdentity reads what `holdfast ca issue` wrote.
func loadIdentity(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}, nil
}

// add gives a member a token; it joins as a learner and becomes a voter by itself.
func (h house) add(ctx context.Context, c *cluster, m *member) error {
	token, err := h.run(ctx, c, "token", "create")
	if err != nil {
		return err
	}
	m.join = []string{"--join", strings.TrimSpace(token)}
	if err := c.up(m); err != nil {
		return err
	}
	return c.voting(ctx, m, func(*clientv3.Client, uint64) {})
}

// voting waits until a member that was started to join votes; meanwhile promote is called now and then.
func (c *cluster) voting(ctx context.Context, m *member, promote func(*clientv3.Client, uint64)) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for ; ctx.Err() == nil; wait(ctx, 100*time.Millisecond) {
		for _, other := range c.all() {
			if other == m {
				continue
			}
			cl, err := c.client(other.slot)
			if err != nil {
				return err
			}
			call, done := context.WithTimeout(ctx, 2*time.Second)
			list, err := cl.MemberList(call)
			done()
			if err != nil {
				continue
			}
			i := slices.IndexFunc(list.Members, func(x *pb.Member) bool { return x.Name == m.name })
			if i < 0 {
				break
			}
			if !list.Members[i].IsLearner {
				return c.ready(ctx, m, time.Minute)
			}
			promote(cl, list.Members[i].ID)
			break
		}
	}
	return fmt.Errorf("%s does not become a voter:\n%s", m.name, tail(m.log))
}

// foreign is etcd, or Holdfast in its place: etcd's flags, certificates of a CA of our own, members that are named to each other.
type foreign struct {
	binary string
	first  []string // before the flags
	ca     authority
}

func (f *foreign) prepare(c *cluster) error {
	var err error
	if f.ca, err = newAuthority(c.dir); err != nil {
		return err
	}
	var addresses []net.IP
	for i := range c.net.slots {
		addresses = append(addresses, net.ParseIP(c.net.address(i)))
	}
	return errors.Join(f.ca.issue("server", addresses...), f.ca.issue("client"))
}

func (f *foreign) command(c *cluster, m *member) (string, []string, []string) {
	peer := func(m *member) string { return "https://" + c.net.address(m.slot) + ":2380" }
	join := m.join
	if join == nil {
		var initial []string
		for _, x := range c.all() {
			initial = append(initial, x.name+"="+peer(x))
		}
		m.join = []string{"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", "laboratory"}
		join = m.join
	}
	file := func(name string) string { return filepath.Join(c.dir, name) }
	args := append(slices.Clone(f.first), "--name", m.name, "--data-dir", filepath.Join(m.mount, "data"), "--listen-client-urls", c.endpoint(m), "--advertise-client-urls", c.endpoint(m),
		"--listen-peer-urls", peer(m), "--initial-advertise-peer-urls", peer(m), "--snapshot-count", "1000",
		"--cert-file", file("server.pem"), "--key-file", file("server-key.pem"), "--client-cert-auth", "--trusted-ca-file", file("ca.pem"),
		"--peer-cert-file", file("server.pem"), "--peer-key-file", file("server-key.pem"), "--peer-client-cert-auth", "--peer-trusted-ca-file", file("ca.pem"))
	return f.binary, append(args, join...), nil
}

func (f *foreign) found(ctx context.Context, c *cluster) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "client.pem"), filepath.Join(c.dir, "client-key.pem"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.cert)
	c.tls = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS12}
	for _, m := range c.all() {
		if err := c.up(m); err != nil {
			return err
		}
	}
	for _, m := range c.all() {
		if err := c.ready(ctx, m, time.Minute); err != nil {
			return err
		}
	}
	return nil
}

func (f *foreign) add(ctx context.Context, c *cluster, m *member) error {
	peer := "https://" + c.net.address(m.slot) + ":2380"
	var initial []string
	var err error
	for _, other := range c.all() {
		if other == m {
			continue
		}
		cl, cerr := c.client(other.slot)
		if cerr != nil {
			return cerr
		}
		var added *clientv3.MemberAddResponse
		if added, err = cl.MemberAddAsLearner(ctx, []string{peer}); err != nil {
			continue
		}
		for _, x := range added.Members {
			name := x.Name
			if x.ID == added.Member.ID {
				name, m.id = m.name, x.ID
			}
			for _, u := range x.PeerURLs {
				initial = append(initial, name+"="+u)
			}
		}
		break
	}
	if err != nil {
		return fmt.Errorf("adding %s: %w", m.name, err)
	}
	m.join = []string{"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", "laboratory", "--initial-cluster-state", "existing"}
	if err := c.up(m); err != nil {
		return err
	}
	return c.voting(ctx, m, func(cl *clientv3.Client, id uint64) {
		call, done := context.WithTimeout(ctx, 2*time.Second)
		defer done()
		_, _ = cl.MemberPromote(call, id) // refused until it has caught up; the member list tells
	})
}

// authority is a CA of the laboratory's own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(dir string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "laboratory"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{cert, key, dir}, errors.Join(err, writePEM(filepath.Join(dir, "ca.pem"), "CERTIFICATE", der))
}

// issue writes NAME.pem and NAME-key.pem.
func (a authority) issue(name string, addresses ...net.IP) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: addresses}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	return errors.Join(err, writePEM(filepath.Join(a.dir, name+".pem"), "CERTIFICATE", der), writePEM(filepath.Join(a.dir, name+"-key.pem"), "PRIVATE KEY", keyDER))
}

func writePEM(name, kind string, der []byte) error {
	return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
