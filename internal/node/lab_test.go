package node_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
)

// logBuffer collects a member's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		// Below the range that the kernel takes for outgoing connections: one of those must not come first.
		port := 10_000 + mathrand.IntN(20_000)
		if _, taken := ports.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			check(t, l.Close())
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// ports have been given out: each goes to one test only.
var ports sync.Map

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// member is one member under test: its configuration outlives its runs.
type member struct {
	t      *testing.T
	config *config.Config
	user   string // user configuration directory
	log    *logBuffer
	node   *node.Node
	now    func() time.Time
}

func (m *member) env() node.Env {
	m.log = &logBuffer{}
	env := node.System(slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	env.UserConfigDir = m.user
	if m.now != nil {
		env.Now = m.now
	}
	return env
}

// start starts the member and waits until it serves.
func (m *member) start() {
	m.t.Helper()
	m.launch()
	m.ready()
}

// launch starts the member without waiting.
func (m *member) launch() {
	m.t.Helper()
	c := *m.config
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	n, err := node.Start(ctx, &c, m.env())
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", c.Name, err, m.log)
	}
	m.node = n
	m.t.Cleanup(m.stop)
}

func (m *member) ready() {
	m.t.Helper()
	select {
	case <-m.node.Ready():
	case <-m.node.Done():
		m.t.Fatalf("%s ended: %v\n%s", m.config.Name, m.node.Wait(), m.log)
	case <-time.After(30 * time.Second):
		m.t.Fatalf("%s did not get ready\n%s", m.config.Name, m.log)
	}
}

// logs waits until the member's log holds text.
func (m *member) logs(text string) {
	m.t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(m.log.String(), text) {
		select {
		case <-tick.C:
		case <-deadline.C:
			m.t.Fatalf("the log does not hold %q:\n%s", text, m.log)
		}
	}
}

func (m *member) stop() {
	if m.node == nil {
		return
	}
	ctx, cancel := node.StopContext()
	defer cancel()
	if err := m.node.Stop(ctx); err != nil {
		m.t.Errorf("%s: stop: %v\n%s", m.config.Name, err, m.log)
	}
	m.node = nil
}

// refuses starts the member and wants an error that says want.
func (m *member) refuses(want string) {
	m.t.Helper()
	c := *m.config
	n, err := node.Start(m.t.Context(), &c, m.env())
	if err == nil {
		m.node = n
		m.stop()
		m.t.Fatalf("%s started; want a refusal with %q", c.Name, want)
	}
	if !strings.Contains(fullText(err), want) {
		m.t.Fatalf("%s refused with %q, want %q", c.Name, fullText(err), want)
	}
}

// etcdCluster lays out size members of `holdfast etcd`, in the clear unless secure changes them.
func etcdCluster(t *testing.T, size int, change ...func(i int, c *config.Config)) []*member {
	t.Helper()
	dir := t.TempDir()
	var members []*member
	var initial []string
	for i := range size {
		c := config.Etcd()
		c.Name = fmt.Sprintf("m%d", i)
		c.DataDir = filepath.Join(dir, c.Name)
		c.Listen.Client = config.MustURLs(fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))
		c.Listen.Peer = config.MustURLs(fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))
		c.Raft.Heartbeat, c.Raft.Election = 20*time.Millisecond, 200*time.Millisecond
		for _, f := range change {
			f(i, c)
		}
		c.Advertise.Client, c.Advertise.Peer = c.Listen.Client, c.Listen.Peer
		for _, u := range c.Advertise.Peer.Strings() {
			initial = append(initial, c.Name+"="+u)
		}
		members = append(members, &member{t: t, config: c})
	}
	for _, m := range members {
		m.config.Bootstrap.InitialCluster = strings.Join(initial, ",")
	}
	return members
}

func startAll(members []*member) {
	for _, m := range members {
		m.t.Helper()
		m.launch()
	}
	for _, m := range members {
		m.ready()
	}
}

// dial connects to the members in the clear.
func dial(t *testing.T, members ...*member) *clientv3.Client {
	t.Helper()
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.config.Advertise.Client.Strings()...)
	}
	return connect(t, clientv3.Config{Endpoints: endpoints})
}

func connect(t *testing.T, c clientv3.Config) *clientv3.Client {
	t.Helper()
	c.DialTimeout, c.Logger = 10*time.Second, zap.NewNop()
	cl, err := clientv3.New(c)
	check(t, err)
	t.Cleanup(func() { cl.Close() })
	return cl
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
