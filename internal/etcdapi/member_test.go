package etcdapi

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// member is one real core behind one real API, over a log that commits at once.
type member struct {
	t    testing.TB
	core *core.Core
	api  *API
	log  *instantLog
	grpc *grpc.Server
	addr string // of gRPC
	web  *httptest.Server

	who atomic.Pointer[policy.Principal] // who every connection is
}

const testMember = 0xabc

type memberOptions struct {
	api  func(*Options)
	core func(*core.Options)
	web  func(*WebOptions)
}

func startMember(t testing.TB, o memberOptions) *member {
	t.Helper()
	engine, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "state", Split: mvcc.Split, Logger: discard()})
	must(t, err)
	must(t, state.Bootstrap(engine, 0x123, []state.Member{{ID: testMember, Name: "m1", PeerURLs: []string{"http://127.0.0.1:2380"},
		ClientURLs: []string{"http://127.0.0.1:2379"}}}, state.MaxLevel, true))
	machine, err := state.Open(engine, state.Options{})
	must(t, err)
	co := core.Options{
		Machine: machine, Member: testMember, Boot: 1, Clock: time.Now, Rand: rand.Reader, Audit: noAudit{}, Logger: discard(), BcryptCost: 4,
		ProgressInterval: 200 * time.Millisecond,
	}
	if o.core != nil {
		o.core(&co)
	}
	c, err := core.New(co)
	must(t, err)
	m := &member{t: t, core: c, log: newInstantLog(c)}
	anonymous := policy.NewAnonymous()
	m.who.Store(&anonymous)
	c.Attach(m.log, noPeers{})
	m.log.start()
	ao := Options{Core: c, Principal: func(context.Context) policy.Principal { return *m.who.Load() }, Logger: discard(), Report: m.report}
	if o.api != nil {
		o.api(&ao)
	}
	m.api, err = New(ao)
	must(t, err)
	m.grpc = m.api.NewGRPCServer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	m.addr = l.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := m.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	wo := WebOptions{GRPC: m.grpc, CORS: []string{"*"}, HostWhitelist: []string{"*"}}
	if o.web != nil {
		o.web(&wo)
	}
	h, err := m.api.NewWebHandler(wo)
	must(t, err)
	m.web = httptest.NewServer(h)
	t.Cleanup(func() {
		m.web.CloseClientConnections()
		m.web.Close()
		m.grpc.Stop()
		serving.Wait()
		m.api.Wait()
		c.Close()
		m.log.stop()
		c.Release()
		if err := engine.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func (m *member) report() core.Status {
	st, err := m.core.Status(context.Background(), policy.NewSystem("test"))
	if err != nil {
		m.t.Errorf("status: %v", err)
	}
	return st
}

// client returns a client of its own of the member.
func (m *member) client(change ...func(*clientv3.Config)) *clientv3.Client {
	m.t.Helper()
	cfg := clientv3.Config{Endpoints: []string{m.addr}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	for _, f := range change {
		f(&cfg)
	}
	c, err := clientv3.New(cfg)
	must(m.t, err)
	m.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			m.t.Logf("client: %v", err)
		}
	})
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// short returns a context that ends a test which hangs.
func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// noAudit records nothing.
type noAudit struct{}

func (noAudit) Commit(audit.Event) error { return nil }
func (noAudit) Note(audit.Event)         {}
func (noAudit) Err() error               { return nil }

// noPeers are the peers of a cluster of one.
type noPeers struct{}

func (noPeers) Call(context.Context, uint64, string, []byte) ([]byte, error) {
	return nil, core.ErrNoLeader
}
func (noPeers) Handle(string, replica.Handler) {}

// instantLog is a log of one member that commits and applies whatever is proposed.
type instantLog struct {
	core    *core.Core
	wake    chan struct{}
	done    chan struct{}
	running sync.WaitGroup

	mu       sync.Mutex // held while applying
	index    atomic.Uint64
	since    time.Time
	leader   atomic.Bool
	noLeader atomic.Pointer[time.Time]
}

func newInstantLog(c *core.Core) *instantLog {
	l := &instantLog{core: c, wake: make(chan struct{}, 1), done: make(chan struct{}), since: time.Now()}
	l.leader.Store(true)
	return l
}

// start runs the applier and the clock.
func (l *instantLog) start() {
	l.running.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.wake:
				l.drain()
			case now := <-tick.C:
				l.core.Tick(now)
				l.drain()
			case <-l.done:
				return
			}
		}
	})
}

func (l *instantLog) stop() {
	close(l.done)
	l.running.Wait()
}

func (l *instantLog) drain() {
	if !l.leader.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		data, ok := l.core.Next(1 << 20)
		if !ok {
			return
		}
		state.StampBatch(data, time.Now().UnixMilli())
		if _, err := l.applyLocked(replica.Entry{Data: data}); err != nil {
			panic(err)
		}
	}
}

func (l *instantLog) applyLocked(e replica.Entry) ([]replica.Decision, error) {
	e.Index, e.Term = l.index.Add(1), 2
	return l.core.Apply([]replica.Entry{e})
}

func (l *instantLog) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *instantLog) ReadIndex(ctx context.Context) (uint64, error) {
	if !l.leader.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.Load(), nil
}

func (l *instantLog) ProposeConf(_ context.Context, c replica.Change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	decisions, err := l.applyLocked(replica.Entry{Conf: c.Data})
	if err != nil {
		return err
	}
	return decisions[0].Err
}

func (l *instantLog) TransferLeader(context.Context, uint64) error { return nil }

// loseLeader makes the member see no leader any more.
func (l *instantLog) loseLeader() {
	now := time.Now()
	l.noLeader.Store(&now)
	l.leader.Store(false)
}

func (l *instantLog) Status() replica.Status {
	index := l.index.Load()
	s := replica.Status{Leadership: replica.Leadership{Term: 2}, Committed: index, Applied: index}
	if l.leader.Load() {
		s.Leader, s.Self, s.LeaderSince = testMember, true, l.since
	} else {
		s.NoLeaderSince = *l.noLeader.Load()
	}
	return s
}

// get fetches a page of the web side.
func (m *member) get(path string) (int, string) {
	m.t.Helper()
	resp, err := http.Get(m.web.URL + path)
	must(m.t, err)
	return readBody(m.t, resp)
}
