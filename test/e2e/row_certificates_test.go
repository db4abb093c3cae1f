package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// refusesTLS reports whether a listener turns a certificate down: in the handshake, or, as TLS 1.3 lets a client think for a
// moment that it was taken, before anything is answered.
func (c *cluster) refusesTLS(port int, p pair, maxVersion uint16) bool {
	c.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	conf := &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12, MaxVersion: maxVersion, NextProtos: []string{"http/1.1"}}
	if p.cert != "" {
		cert, err := tls.LoadX509KeyPair(p.cert, p.key)
		check(c.t, err)
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil } // also if the server did not ask for this issuer
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", port), conf)
	if err != nil {
		return true
	}
	defer conn.Close()
	check(c.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return true
	}
	answer := make([]byte, 1)
	n, _ := conn.Read(answer)
	return n == 0
}

// replace puts new contents in the place of a file at once, as a certificate manager does.
func replace(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	check(t, err)
	info, err := os.Stat(from)
	check(t, err)
	check(t, os.WriteFile(to+".new", data, info.Mode()))
	check(t, os.Rename(to+".new", to))
}

// TestRowCertificates is row 22: certificates and the CRL are exchanged under load, and every listener of every member refuses
// every kind of bad one.
func TestRowCertificates(t *testing.T) {
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	c := layOutCluster(t, 3)
	crl := filepath.Join(c.dir, "cluster.crl")
	revoked := c.ca.issue("revoked", nil)
	c.ca.crl(crl, revoked)
	c.extra = []string{"--client-crl-file", crl, "--peer-crl-file", crl}
	for i := range 3 {
		c.members[i] = spawn(t, c.env(), c.args(i)...)
	}
	for i := range 3 {
		c.ready(i)
	}
	stranger := newAuthority(t, c.dir, "stranger")
	bad := map[string]pair{
		"none": {}, "of another CA": stranger.issue("foreign", nil), "revoked": revoked,
		"expired": c.ca.issue("expired", func(x *x509.Certificate) {
			x.NotBefore, x.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"not yet valid": c.ca.issue("early", func(x *x509.Certificate) { x.NotBefore = time.Now().Add(time.Hour) }),
		"serverAuth only": c.ca.issue("server-only", func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
	}
	elsewhere := c.ca.issue("elsewhere", func(x *x509.Certificate) { x.DNSNames, x.IPAddresses = nil, []net.IP{net.IPv4(192, 0, 2, 1)} })
	tried, passed := 0, 0
	try := func(name string, p pair, ports []int) {
		for _, port := range ports {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				tried++
				if !c.refusesTLS(port, p, version) {
					passed++
					t.Errorf("a certificate that is %s was taken on port %d", name, port)
				}
			}
		}
	}
	matrix := func() {
		for name, p := range bad {
			try(name, p, c.clientPorts)
			try(name, p, c.peerPorts)
		}
		try("for another address", elsewhere, c.peerPorts) // clients have no address to be held to
		for _, port := range c.clientPorts {
			if c.refusesTLS(port, c.client, tls.VersionTLS13) {
				t.Errorf("a good certificate was refused on port %d", port)
			}
		}
	}
	matrix()

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	load, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	var asked, failed, connections atomic.Int64
	for i := range 6 {
		work.Go(func() {
			for load.Err() == nil {
				conf := c.config([]string{c.endpoint(i % 3)})
				conf.DialOptions = append(conf.DialOptions, grpc.WithDisableRetry())
				cl, err := clientv3.New(conf)
				if err != nil {
					if load.Err() == nil {
						failed.Add(1)
						t.Errorf("connect: %v", err)
					}
					continue
				}
				connections.Add(1)
				for range 20 + 2000*(i%2) { // half of the clients stay for long, half come and go
					if load.Err() != nil {
						break
					}
					asked.Add(1)
					if _, err := cl.Put(load, fmt.Sprintf("k%d", i), "v"); err != nil && load.Err() == nil {
						failed.Add(1)
						t.Errorf("put: %v", err)
					}
				}
				cl.Close()
			}
		})
	}
	rotations := record.Pick(3, 50)
	for i := range rotations {
		server, peer, gone := c.ca.issue(fmt.Sprintf("server-%d", i), nil), c.ca.issue(fmt.Sprintf("peer-%d", i), nil), c.ca.issue(fmt.Sprintf("gone-%d", i), nil)
		c.ca.crl(crl+".made", revoked, gone)
		for _, move := range [][2]string{{server.key, c.server.key}, {server.cert, c.server.cert}, {peer.key, c.peer.key}, {peer.cert, c.peer.cert}, {crl + ".made", crl}} {
			replace(t, move[0], move[1])
		}
		for _, port := range append(append([]int{}, c.clientPorts...), c.peerPorts...) {
			want := server.leaf
			if slices.Contains(c.peerPorts, port) {
				want = peer.leaf
			}
			if !c.shows(port, want, 15*time.Second) {
				t.Fatalf("port %d does not show its new certificate:\n%s", port, tail(c.members[0].log.String()))
			}
		}
		for deadline := time.Now().Add(15 * time.Second); !c.refusesTLS(c.clientPorts[0], gone, tls.VersionTLS13); {
			if time.Now().After(deadline) {
				t.Fatal("the new CRL is not obeyed")
			}
		}
	}
	stop()
	work.Wait()
	matrix()
	record.Row(t, 22, fmt.Sprintf("%d exchanges of leaf certificates and CRL on three members under load: %d of %d requests over %d connections failed; %d handshakes with bad certificates on every listener, %d taken",
		rotations, failed.Load(), asked.Load(), connections.Load(), tried, passed),
		map[string]float64{"rotations": float64(rotations), "requests": float64(asked.Load()), "failed": float64(failed.Load()), "bad_handshakes": float64(tried), "taken": float64(passed)})
}

// shows reports whether a listener comes to present a certificate within limit.
func (c *cluster) shows(port int, want *x509.Certificate, limit time.Duration) bool {
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	cert, err := tls.LoadX509KeyPair(c.client.cert, c.client.key)
	check(c.t, err)
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
		if err != nil {
			continue
		}
		shown := conn.ConnectionState().PeerCertificates[0]
		conn.Close()
		if shown.Equal(want) {
			return true
		}
	}
	return false
}
