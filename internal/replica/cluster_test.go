package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/seal"
)

// thinKEK hides nothing worth mentioning: the tests are about the log, not about keys.
type thinKEK struct{}

func (thinKEK) ID() string { return "thin" }

func (thinKEK) Wrap(_ context.Context, plaintext, _ []byte) ([]byte, error) {
	wrapped := make([]byte, len(plaintext))
	for i, b := range plaintext {
		wrapped[i] = b ^ 0x5a
	}
	return wrapped, nil
}

func (k thinKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	return k.Wrap(ctx, wrapped, aad)
}

const dataDir = "/data"

func newRing(t testing.TB, fs vfs.FS, dir string) *seal.Keyring {
	t.Helper()
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(fs, fs.PathDir(dir)); err != nil {
		t.Fatal(err)
	}
	ring, err := seal.CreateKeyring(fs, dir, thinKEK{})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// network is an in-memory network that can be cut.
type network struct {
	mu    sync.Mutex
	hosts map[string]*host
	cut   map[[2]uint64]bool // directions that are cut
	conns map[net.Conn][2]uint64
}

type host struct {
	net    *network
	id     uint64
	accept chan net.Conn
	done   chan struct{}
	once   sync.Once
}

func newNetwork() *network {
	return &network{hosts: map[string]*host{}, cut: map[[2]uint64]bool{}, conns: map[net.Conn][2]uint64{}}
}

func urlOf(id uint64) string { return fmt.Sprintf("mem://%d", id) }

func (n *network) listen(id uint64) *host {
	h := &host{net: n, id: id, accept: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[urlOf(id)] = h
	return h
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.accept:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *host) Addr() net.Addr { return &net.UnixAddr{Name: urlOf(h.id)} }

func (n *network) dial(from uint64) func(context.Context, uint64, string) (net.Conn, error) {
	return func(ctx context.Context, to uint64, url string) (net.Conn, error) {
		n.mu.Lock()
		h := n.hosts[url]
		if h == nil || n.cut[[2]uint64{from, to}] {
			n.mu.Unlock()
			return nil, errors.New("unreachable")
		}
		a, b := net.Pipe()
		n.conns[a] = [2]uint64{from, to}
		n.mu.Unlock()
		select {
		case h.accept <- b:
			return a, nil
		case <-h.done:
			return nil, errors.New("refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isolate cuts a member off, both ways.
func (n *network) isolate(id uint64, others ...uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range others {
		n.cut[[2]uint64{id, o}], n.cut[[2]uint64{o, id}] = true, true
	}
	for c, ends := range n.conns {
		if n.cut[ends] {
			c.Close()
			delete(n.conns, c)
		}
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// node is one member of a test cluster.
type node struct {
	t      testing.TB
	id     uint64
	fs     *vfs.MemFS
	wrap   func(vfs.FS) vfs.FS // nil: fs as it is
	ring   *seal.Keyring
	ledger *ledger
	desk   *desk
	r      *Replica
	store  StoreOptions
	opts   Options
	cancel context.CancelFunc
	ended  chan error

	opened        uint64 // number of the state directory that was opened
	openedApplied uint64
}

type cluster struct {
	t     testing.TB
	net   *network
	nodes map[uint64]*node
	ctx   context.Context
	tune  func(*node)

	opened func(*Store) // on restart
}

const testCluster = 0xc1

func newCluster(t testing.TB, n int) *cluster {
	t.Helper()
	c := emptyCluster(t)
	var members []Peer
	var voters []uint64
	for id := uint64(1); id <= uint64(n); id++ {
		members = append(members, Peer{ID: id, URLs: []string{urlOf(id)}})
		voters = append(voters, id)
	}
	for _, id := range voters {
		c.create(id, members, voters).start()
	}
	return c
}

func emptyCluster(t testing.TB) *cluster {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	c := &cluster{t: t, net: newNetwork(), nodes: map[uint64]*node{}, ctx: ctx}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.kill()
		}
		cancel()
	})
	return c
}

func testLogger(id uint64) *slog.Logger {
	if os.Getenv("REPLICA_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", id)
}

func (c *cluster) create(id uint64, members []Peer, voters []uint64) *node {
	c.t.Helper()
	n := &node{t: c.t, id: id, fs: vfs.NewCrashableMem()}
	c.nodes[id] = n
	n.ring = newRing(c.t, n.fs, dataDir)
	c.options(n)
	s, err := Create(n.store, Bootstrap{Cluster: testCluster, Member: id, Voters: voters}, func(dir string) error {
		return buildLedger(n.store.FS, dir, members)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	n.open(s)
	return n
}

func (c *cluster) options(n *node) {
	n.store = StoreOptions{FS: n.disk(), Dir: dataDir, Ring: n.ring, Logger: testLogger(n.id), SegmentBytes: 64 << 10, KeepBytes: 256 << 10, CacheBytes: 32 << 10}
	n.opts = Options{
		Stamp: stampBatch, Clock: Wall{}, Rand: rand.NewPCG(n.id, 7), Logger: testLogger(n.id), Tick: 10 * time.Millisecond,
		Dial: c.net.dial(n.id), Listener: c.net.listen(n.id),
		Identify: func(net.Conn, uint64) (policy.Principal, error) { return policy.Principal{}, nil },
	}
	if c.tune != nil {
		c.tune(n)
	}
}

func (n *node) disk() vfs.FS {
	if n.wrap != nil {
		return n.wrap(n.fs)
	}
	return n.fs
}

func (n *node) open(s *Store) {
	n.t.Helper()
	var err error
	if n.ledger, err = openLedger(n.store.FS, s.StateDir()); err != nil {
		n.t.Fatal(err)
	}
	n.ledger.flushEvery = 7
	n.opened, n.openedApplied = s.marker.state, n.ledger.state.Applied
	n.desk = newDesk()
	n.ledger.onApply = n.desk.applied
	n.opts.Machine, n.opts.Source = n.ledger, n.desk
	if n.r, err = New(s, n.opts); err != nil {
		n.t.Fatal(err)
	}
	n.desk.wake = n.r.Wake
}

func (n *node) start() *node {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan error, 1)
	r, ended := n.r, n.ended
	go func() { ended <- r.Run(ctx) }()
	return n
}

// kill ends the member and waits for it. It may be called again.
func (n *node) kill() error {
	if n.cancel == nil {
		return nil
	}
	n.cancel()
	err := <-n.ended
	n.cancel = nil
	return err
}

// restart opens the member again from fs, which may be a crash clone.
func (c *cluster) restart(n *node, fs *vfs.MemFS) error {
	c.t.Helper()
	n.fs = fs
	ring, err := seal.OpenKeyring(fs, dataDir, thinKEK{})
	if err != nil {
		c.t.Fatal(err)
	}
	n.ring = ring
	c.options(n)
	s, err := Open(n.store)
	if err != nil {
		return err
	}
	if c.opened != nil {
		c.opened(s)
	}
	n.open(s)
	n.start()
	return nil
}

func (c *cluster) restartClean(n *node) error {
	if err := n.kill(); err != nil {
		return err
	}
	return c.restart(n, n.fs)
}

// eventually waits for f. It polls: the members have no common event to wait for.
func (c *cluster) eventually(what string, f func() bool) {
	c.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			c.t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (c *cluster) leader(among ...uint64) *node {
	c.t.Helper()
	var lead *node
	c.eventually("a leader", func() bool {
		for _, id := range among {
			if c.nodes[id].r.Status().Self {
				lead = c.nodes[id]
				return true
			}
		}
		return false
	})
	return lead
}

// put proposes through n until it is applied: an unknown outcome is asked again under the same id, which applies once.
func (c *cluster) put(n *node, id string) {
	c.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
		err := n.desk.propose(ctx, id)
		cancel()
		if err == nil || n.ledger.has(id) {
			return
		}
		if c.ctx.Err() != nil {
			c.t.Fatalf("put %s: %v", id, err)
		}
	}
}

func (c *cluster) converge(ids ...uint64) {
	c.t.Helper()
	c.eventually("equal ledgers", func() bool {
		first := c.nodes[ids[0]].ledger.list()
		for _, id := range ids[1:] {
			if fmt.Sprint(c.nodes[id].ledger.list()) != fmt.Sprint(first) {
				return false
			}
		}
		return true
	})
}
