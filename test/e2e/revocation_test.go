package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// held is one live connection that a revocation is to cut, or to leave alone.
type held struct {
	kind   string
	member int
	end    chan struct{} // closed when it has ended
	at     time.Time     // when
	close  func()
}

func (h *held) ended() { h.at = time.Now(); close(h.end) }

func (h *held) live() bool {
	select {
	case <-h.end:
		return false
	default:
		return true
	}
}

// connections holds live connections of one certificate.
type connections struct {
	s      *secured
	consul []int // ports of Consul's API
	conf   *tls.Config
	all    []*held
	work   sync.WaitGroup
}

// open opens n connections, spread over the members and over what there is: a gRPC watch, a watch over the JSON gateway,
// an HTTP connection that waits between two requests, a TLS connection on which nothing was asked yet, a blocking query over
// Consul's API.
func (s *secured) open(n int, consul []int, conf *tls.Config) *connections {
	s.t.Helper()
	c := &connections{s: s, consul: consul, conf: conf}
	kinds := []func(int) *held{c.watchGRPC, c.watchHTTP, c.idleHTTP, c.idleTLS, c.blockConsul}
	for i := range n {
		c.all = append(c.all, kinds[i%len(kinds)](i/len(kinds)%len(s.client)))
	}
	s.t.Cleanup(c.close)
	return c
}

func (c *connections) close() {
	for _, h := range c.all {
		h.close()
	}
	c.work.Wait()
}

// follow ends h when read fails.
func (c *connections) follow(h *held, read func() error) *held {
	h.end = make(chan struct{})
	c.work.Go(func() {
		for read() == nil { //nolint:revive // until it ends
		}
		h.ended()
	})
	return h
}

func (c *connections) watchGRPC(member int) *held {
	conn, err := grpc.NewClient(strings.TrimPrefix(c.s.endpoint(member), "https://"), grpc.WithTransportCredentials(credentials.NewTLS(c.conf.Clone())))
	check(c.s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	check(c.s.t, err)
	check(c.s.t, w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}))
	_, err = w.Recv()
	check(c.s.t, err)
	return c.follow(&held{kind: "grpc watch", member: member, close: func() { cancel(); conn.Close() }}, func() error { _, err := w.Recv(); return err })
}

func (c *connections) dial(member int) *tls.Conn {
	return c.dialTo(strings.TrimPrefix(c.s.endpoint(member), "https://"))
}

func (c *connections) dialTo(address string) *tls.Conn {
	conf := c.conf.Clone()
	conf.ServerName, conf.NextProtos = "127.0.0.1", []string{"http/1.1"}
	conn, err := tls.Dial("tcp", address, conf)
	check(c.s.t, err)
	return conn
}

// blockConsul waits for a key that nobody writes. That the server is at it is known from the answer to a query on the same
// connection before.
func (c *connections) blockConsul(member int) *held {
	conn := c.dialTo(fmt.Sprintf("127.0.0.1:%d", c.consul[member]))
	r := bufio.NewReader(conn)
	fmt.Fprint(conn, "GET /v1/kv/nobody HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	check(c.s.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	check(c.s.t, err)
	if resp.StatusCode != http.StatusNotFound || resp.Header.Get("X-Consul-Index") == "" {
		c.s.t.Fatalf("a key that is not there: %s, %v", resp.Status, resp.Header)
	}
	ask := func() {
		fmt.Fprintf(conn, "GET /v1/kv/nobody?index=%s&wait=600s HTTP/1.1\r\nHost: x\r\n\r\n", resp.Header.Get("X-Consul-Index"))
	}
	ask()
	return c.follow(&held{kind: "blocking query", member: member, close: func() { conn.Close() }}, func() error {
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, a.Body)
		if a.StatusCode == http.StatusNotFound { // on a busy machine a member can lose its leader for a while, and says so
			c.s.t.Error("a blocking query was answered although nothing changed")
		}
		wait(context.Background(), 20*time.Millisecond)
		ask()
		return err
	})
}

func (c *connections) watchHTTP(member int) *held {
	conn := c.dial(member)
	body := `{"create_request":{"key":"aw=="}}`
	fmt.Fprintf(conn, "POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	check(c.s.t, err)
	if resp.StatusCode != http.StatusOK {
		c.s.t.Fatalf("watch over the gateway: %s", resp.Status)
	}
	lines := bufio.NewReader(resp.Body)
	_, err = lines.ReadString('\n')
	check(c.s.t, err)
	return c.follow(&held{kind: "gateway watch", member: member, close: func() { conn.Close() }}, func() error { _, err := lines.ReadString('\n'); return err })
}

func (c *connections) idleHTTP(member int) *held {
	conn := c.dial(member)
	fmt.Fprint(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	check(c.s.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	check(c.s.t, err)
	return c.follow(&held{kind: "idle http", member: member, close: func() { conn.Close() }}, func() error { _, err := r.ReadByte(); return err })
}

// idleTLS finishes a handshake as a gRPC client does and then waits. What the server sends (its settings) is read.
func (c *connections) idleTLS(member int) *held {
	conf := c.conf.Clone()
	conf.ServerName, conf.NextProtos = "127.0.0.1", []string{"h2"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.s.endpoint(member), "https://"), conf)
	check(c.s.t, err)
	_, err = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	check(c.s.t, err)
	b := make([]byte, 512)
	_, err = conn.Read(b) // the other end serves it
	check(c.s.t, err)
	return c.follow(&held{kind: "idle h2", member: member, close: func() { conn.Close() }}, func() error { _, err := conn.Read(b); return err })
}

// admin calls the administration over one connection that is kept, so that what is measured is the revocation.
type admin struct {
	s    *secured
	http *http.Client
}

func (s *secured) admin(conf *tls.Config) *admin {
	a := &admin{s, &http.Client{Transport: &http.Transport{TLSClientConfig: conf.Clone()}, Timeout: 30 * time.Second}}
	s.t.Cleanup(a.http.CloseIdleConnections)
	return a
}

func (a *admin) revoke(authority, name string) (answered time.Duration) {
	a.s.t.Helper()
	resp, err := a.http.Get(a.s.endpoint(0) + "/holdfast/v1/ca/authorities") // the connection is up
	check(a.s.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	check(a.s.t, err)
	resp.Body.Close()
	body, err := json.Marshal(map[string]string{"commonName": name, "reason": "keyCompromise"})
	check(a.s.t, err)
	start := time.Now()
	resp, err = a.http.Post(a.s.endpoint(0)+"/holdfast/v1/ca/authorities/"+authority+"/revoke", "application/json", bytes.NewReader(body))
	check(a.s.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	check(a.s.t, err)
	if resp.StatusCode != http.StatusOK {
		a.s.t.Fatalf("revoke: %s %s", resp.Status, data)
	}
	return time.Since(start)
}

// revokeOnce opens connections of a certificate, revokes it, and returns how long after the call the last one had ended.
func (s *secured) revokeOnce(a *admin, consul []int, run, connections int) (last, answered time.Duration) {
	s.t.Helper()
	name := fmt.Sprintf("leaver%d", run)
	conf, _ := s.issue("admin", name)
	victims := s.open(connections, consul, conf)
	for _, h := range victims.all {
		if !h.live() {
			s.t.Fatalf("%s on member %d ended before anything was revoked", h.kind, h.member)
		}
	}
	start := time.Now()
	answered = a.revoke("admin", name)
	deadline := time.After(30 * time.Second)
	for _, h := range victims.all {
		select {
		case <-h.end:
			last = max(last, h.at.Sub(start))
		case <-deadline:
			s.t.Fatalf("%s on member %d is still open 30 s after its certificate was revoked", h.kind, h.member)
		}
	}
	for i := range s.client { // and nobody comes in again
		conn, err := (&tls.Dialer{Config: conf, NetDialer: &net.Dialer{Timeout: 5 * time.Second}}).Dial("tcp", strings.TrimPrefix(s.endpoint(i), "https://"))
		if err == nil {
			check(s.t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
			if _, err = conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
				s.t.Errorf("member %d lets the revoked certificate in: %v", i, err)
			}
			conn.Close()
		}
	}
	return last, answered
}

// TestRevocation: live connections of a revoked certificate end on every member, whatever they speak; those of other
// certificates go on. With HOLDFAST_REVOCATION=1 it is 200 connections, 20 times, and within a second.
func TestRevocation(t *testing.T) {
	t.Parallel()
	runs, count := 1, 25
	measure := os.Getenv("HOLDFAST_REVOCATION") != ""
	if measure {
		runs, count = 20, 200
	}
	consul := freePorts(t, 3)
	s := newSecured(t, 3, func(i int) []string {
		return []string{"--listen-consul", fmt.Sprintf("https://127.0.0.1:%d", consul[i])}
	})
	bystander, _ := s.issue("admin", "bystander")
	others := s.open(25, consul, bystander)
	operator, _ := s.issue("admin", "operator")
	a := s.admin(operator)
	var lasts, answers []time.Duration
	for run := range runs {
		last, answered := s.revokeOnce(a, consul, run, count)
		lasts, answers = append(lasts, last), append(answers, answered)
	}
	for _, h := range others.all {
		if !h.live() {
			t.Errorf("%s of another certificate on member %d was cut", h.kind, h.member)
		}
	}
	// They not only look alive: an event reaches every watch.
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{s.endpoint(1)}, TLS: bystander, DialTimeout: 5 * time.Second})
	check(t, err)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = cl.Put(ctx, "k", "v")
	check(t, err)
	slices.Sort(lasts)
	slices.Sort(answers)
	t.Logf("%d connections over %d members, %d runs: the last was cut after p50 %v, max %v; the call was answered after p50 %v, max %v",
		count, len(s.client), runs, lasts[len(lasts)/2], lasts[len(lasts)-1], answers[len(answers)/2], answers[len(answers)-1])
	if worst := lasts[len(lasts)-1]; measure && worst > time.Second {
		t.Errorf("the last connection lived for %v", worst)
	}
}
