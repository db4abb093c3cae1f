package scorecard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/test/scorecard/record"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seed is SCORECARD_SEED, or the time; it is logged.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("SCORECARD_SEED"); v != "" {
		var err error
		s, err = strconv.ParseUint(v, 10, 64)
		check(t, err)
	}
	t.Logf("seed %d", s)
	return s
}

func newRand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// notInBrief leaves a test out of `make test`: its short setting takes more than some seconds.
func notInBrief(t *testing.T) {
	t.Helper()
	if testing.Short() && !record.Full() {
		t.Skip("takes longer than `make test` may; `go test ./scorecard` runs it")
	}
}

// part is n, or the share of it that SCORECARD_PART asks for: on a busy machine the full settings take hours.
func part(n int) int {
	v := os.Getenv("SCORECARD_PART")
	if v == "" {
		return n
	}
	share, err := strconv.ParseFloat(v, 64)
	if err != nil || !(share > 0 && share <= 1) {
		panic("SCORECARD_PART=" + v + ": expected a share above 0 and up to 1, for instance 0.1")
	}
	return max(1, int(float64(n)*share))
}

// progress returns what to call after each of total steps: long runs say twice a minute how far they are.
func progress(t *testing.T, total int) func() {
	var mu sync.Mutex
	done, start, last := 0, time.Now(), time.Now()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		done++
		if now := time.Now(); now.Sub(last) > 30*time.Second {
			last = now
			t.Logf("%d of %d after %v", done, total, now.Sub(start).Round(time.Second))
		}
	}
}

// pause waits real time: programs under test have timers of their own.
func pause(d time.Duration) { <-time.After(d) }

// text is all that an error says.
func text(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	if f := fault.From(err); f != nil {
		s += " | " + f.Hint
	}
	return s
}

// tap collects a member's log.
type tap struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *tap) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 1<<20 {
		l.b.Reset()
	}
	return l.b.Write(p)
}

func (l *tap) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// relay carries one member's peer traffic: others know its address only, so that every run of the member can listen at
// another port, and so that traffic can be cut.
type relay struct {
	l      net.Listener
	target atomic.Pointer[string]
	left   atomic.Int64 // bytes that may still pass to the member on one connection; negative: no bound
	mu     sync.Mutex
	conns  map[net.Conn]bool
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	r := &relay{l: l, conns: map[net.Conn]bool{}}
	r.left.Store(-1)
	go r.serve()
	t.Cleanup(func() { l.Close(); r.cut() })
	return r
}

func (r *relay) serve() {
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		target := r.target.Load()
		if target == nil {
			c.Close()
			continue
		}
		b, err := net.Dial("tcp", *target)
		if err != nil {
			c.Close()
			continue
		}
		r.mu.Lock()
		r.conns[c], r.conns[b] = true, true
		r.mu.Unlock()
		end := func() {
			c.Close()
			b.Close()
			r.mu.Lock()
			delete(r.conns, c)
			delete(r.conns, b)
			r.mu.Unlock()
		}
		go func() { defer end(); _, _ = io.Copy(c, b) }()
		go func() { defer end(); r.pass(b, c) }()
	}
}

// pass copies until r.left bytes have gone by.
func (r *relay) pass(to, from net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if left := r.left.Load(); left >= 0 {
			if int64(n) > left {
				r.left.Store(-1)
				_, _ = to.Write(buf[:left])
				return
			}
			r.left.Add(int64(-n))
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends every connection.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// member is one member: its disk and its configuration outlive its runs.
type member struct {
	c      *cluster
	config *config.Config
	relay  *relay
	disk   *disk
	log    *tap
	node   *node.Node
}

// cluster is members of `holdfast etcd` in this process, each on a memory disk.
type cluster struct {
	t       *testing.T
	members []*member
	rng     *rand.Rand
}

// quiet makes logs that nobody reads cheap.
func newCluster(t *testing.T, size int, rng *rand.Rand, change ...func(*config.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, rng: rng}
	dir := t.TempDir()
	var initial []string
	for i := range size {
		m := &member{c: c, config: config.Etcd(), relay: newRelay(t), disk: newDisk(vfs.NewCrashableMem())}
		o := m.config
		o.Name = fmt.Sprintf("m%d", i)
		o.DataDir = "/" + o.Name
		o.Seal.KEK = "file:" + filepath.Join(dir, o.Name+".kek")
		o.Advertise.Peer = config.MustURLs("http://" + m.relay.l.Addr().String())
		o.Raft.Heartbeat, o.Raft.Election = 20*time.Millisecond, 200*time.Millisecond
		o.Raft.SnapshotCount, o.Raft.CatchUpEntries = 60, 32
		o.Seal.ScrubBytesPerSecond = 0
		for _, f := range change {
			f(o)
		}
		c.members = append(c.members, m)
		initial = append(initial, o.Name+"=http://"+m.relay.l.Addr().String())
	}
	for _, m := range c.members {
		m.config.Bootstrap.InitialCluster = strings.Join(initial, ",")
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.abandon()
		}
	})
	return c
}

// ports gives out ports below those that the kernel takes by itself.
var ports sync.Map

func freePort(t *testing.T) int {
	t.Helper()
	for range 100_000 {
		port := 10_000 + rand.IntN(20_000)
		if _, taken := ports.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			check(t, l.Close())
			return port
		}
		ports.Delete(port)
	}
	t.Fatal("no free port")
	return 0
}

// launch starts the member over its disk and returns when its listeners are open, or it refuses. A port that another program
// takes meanwhile is no refusal.
func (m *member) launch() error {
	m.c.t.Helper()
	for {
		if err := m.launchOnce(); err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
}

func (m *member) launchOnce() error {
	o := *m.config
	client, peer := freePort(m.c.t), freePort(m.c.t)
	o.Listen.Client = config.MustURLs(fmt.Sprintf("http://127.0.0.1:%d", client))
	o.Advertise.Client = o.Listen.Client
	o.Listen.Peer = config.MustURLs(fmt.Sprintf("http://127.0.0.1:%d", peer))
	target := fmt.Sprintf("127.0.0.1:%d", peer)
	m.relay.target.Store(&target)
	m.log = &tap{}
	level := slog.LevelInfo
	if os.Getenv("SCORECARD_DEBUG") != "" {
		level = slog.LevelDebug
	}
	env := node.System(slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: level})))
	env.FS, env.Mounts, env.UserConfigDir = m.disk, nil, ""
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := node.Start(ctx, &o, env)
	m.node = n
	ports.Delete(client)
	ports.Delete(peer)
	return err
}

// errSlow means that a member did not get ready in time.
var errSlow = errors.New("not ready in time")

// ready waits until the member serves.
func (m *member) ready(limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-m.node.Ready():
		return nil
	case <-m.node.Done():
		return fmt.Errorf("ended: %w", m.node.Wait())
	case <-t.C:
		return errSlow
	}
}

// readyLimit is how long a member may take to serve on a busy machine.
const readyLimit = 3 * time.Minute

// start launches the member and waits until it serves.
func (m *member) start() error {
	if err := m.launch(); err != nil {
		return err
	}
	return m.ready(readyLimit)
}

// mustStart is start, and failing is the end of the test.
func (m *member) mustStart() {
	m.c.t.Helper()
	if err := m.start(); err != nil {
		m.c.t.Fatalf("%s does not start: %s\n%s", m.config.Name, text(err), tail(m.log))
	}
}

func tail(l *tap) string {
	s := l.String()
	return s[max(0, len(s)-6000):]
}

// stop ends the member in order and returns why it had ended before, if it had.
func (m *member) stop() error {
	if m.node == nil {
		return nil
	}
	ctx, cancel := node.StopContext()
	defer cancel()
	err := m.node.Stop(ctx)
	m.node = nil
	return err
}

// drop ends the member in no order: what it still does is of no account, because its disk is not the one that is used.
func (m *member) drop() {
	if m.node == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	stopped := make(chan struct{})
	n := m.node
	go func() { _ = n.Stop(ctx); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		m.c.t.Errorf("%s stands still: a stop does not come back\n%s", m.config.Name, tail(m.log))
		if f, err := os.CreateTemp("", "scorecard-goroutines-"); err == nil {
			_ = pprof.Lookup("goroutine").WriteTo(f, 1)
			_ = f.Close()
			m.c.t.Logf("its goroutines: %s", f.Name())
		}
	}
	m.node = nil
}

// abandon is drop without waiting: nothing that the member still does can reach the next run of it.
func (m *member) abandon() { m.leave(false) }

// release is abandon, and what the disk holds is let go when the member has ended: one that stands still for good would keep it in
// memory.
func (m *member) release() { m.leave(true) }

func (m *member) leave(wipe bool) {
	if n := m.node; n != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		mem, dir := m.disk.mem, m.config.DataDir
		go func() {
			_ = n.Stop(ctx)
			if wipe {
				_ = mem.RemoveAll(dir) // an error leaves it to the collector
			}
		}()
	}
	m.node = nil
}

// startAll starts every member and waits until all serve.
func (c *cluster) startAll() error {
	errs := make([]error, len(c.members))
	var wait sync.WaitGroup
	for i, m := range c.members {
		wait.Go(func() { errs[i] = m.start() })
	}
	wait.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("%s: %w", c.members[i].config.Name, err)
		}
	}
	return nil
}

func (c *cluster) logs() string {
	var b strings.Builder
	for _, m := range c.members {
		if m.log != nil {
			fmt.Fprintf(&b, "--- %s\n%s", m.config.Name, tail(m.log))
		}
	}
	return b.String()
}

// dial connects to the running members that are given.
func dial(members ...*member) (*clientv3.Client, error) {
	var endpoints []string
	for _, m := range members {
		if m.node != nil {
			for _, a := range m.node.Address() {
				endpoints = append(endpoints, strings.TrimPrefix(a, "http://"))
			}
		}
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
}

// image is a copy of a memory file system as it is, with what was not synced.
func image(mem *vfs.MemFS) *vfs.MemFS {
	return mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}
