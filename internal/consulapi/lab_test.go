package consulapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// directory is the real catalog over an engine in memory, without a log in between.
type directory struct {
	engine  *storage.Engine
	kv, cat *mvcc.Space

	mu      sync.Mutex
	changed chan struct{}
	lookups []core.LookupRequest
	err     error // answered instead
	stale   time.Duration
	judge   func(who policy.Principal, op *catalog.Op) error // nil op: a read
}

func (d *directory) judged(who policy.Principal, ops ...catalog.Op) error {
	if d.err != nil || d.judge == nil {
		return d.err
	}
	if len(ops) == 0 {
		return d.judge(who, nil)
	}
	for i := range ops {
		if err := d.judge(who, &ops[i]); err != nil {
			return err
		}
	}
	return nil
}

func newDirectory(t testing.TB) *directory {
	t.Helper()
	e, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "state", Split: mvcc.Split, CacheBytes: 4 << 20, MemTableBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	d := &directory{engine: e, changed: make(chan struct{})}
	for id, s := range map[mvcc.SpaceID]**mvcc.Space{mvcc.SpaceConsulKV: &d.kv, mvcc.SpaceCatalog: &d.cat} {
		if *s, err = mvcc.OpenSpace(e, id); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// Discover applies ops at once.
func (d *directory) Discover(_ context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.judged(who, ops...); err != nil {
		return catalog.Outcome{}, err
	}
	ops, err := catalog.DecodeOps(catalog.AppendOps(nil, ops)) // as through the log
	if err != nil {
		return catalog.Outcome{}, err
	}
	b := d.engine.NewBatch()
	defer b.Close()
	kv, cat := d.kv.NewWriter(d.engine, b), d.cat.NewWriter(d.engine, b)
	out, err := catalog.Apply(kv, cat, catalog.Batch{Ops: ops, Time: time.Now().UnixMilli()}, false)
	if err != nil || len(out.Failures) > 0 {
		return out, err
	}
	for _, w := range []*mvcc.Writer{kv, cat} {
		if _, err := w.Finish(); err != nil {
			return catalog.Outcome{}, err
		}
	}
	if err := d.engine.Apply(b); err != nil {
		return catalog.Outcome{}, err
	}
	d.kv.Publish(kv)
	d.cat.Publish(cat)
	close(d.changed)
	d.changed = make(chan struct{})
	return out, nil
}

// Lookup answers, or waits as core does.
func (d *directory) Lookup(ctx context.Context, _ policy.Principal, r core.LookupRequest) (core.Found, error) {
	over := time.After(r.Wait)
	d.mu.Lock()
	d.lookups = append(d.lookups, r)
	d.mu.Unlock()
	for {
		d.mu.Lock()
		changed, err := d.changed, d.err
		found := core.Found{KnownLeader: true}
		if r.Serializable {
			found.LastContact = d.stale
		}
		if err == nil {
			found.Answer, err = catalog.Look(d.engine, d.kv, d.cat, r.Query)
		}
		d.mu.Unlock()
		if err != nil || r.MinIndex == 0 || r.Wait == 0 || found.Index > r.MinIndex {
			return found, err
		}
		select {
		case <-changed:
		case <-over:
			return found, nil
		case <-ctx.Done():
			return core.Found{}, ctx.Err()
		}
	}
}

// RenewSession finds a session.
func (d *directory) RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error) {
	found, err := d.Lookup(ctx, who, core.LookupRequest{Query: catalog.Query{Kind: catalog.QuerySession, Name: id}})
	if err != nil {
		return catalog.Session{}, err
	}
	if len(found.Sessions) == 0 {
		return catalog.Session{}, fault.New(fault.NotFound, "session not found")
	}
	return found.Sessions[0], nil
}

// Servers are three.
func (d *directory) Servers(_ context.Context, who policy.Principal) ([]core.Server, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return []core.Server{{ID: 3, Name: "c", Address: "127.0.0.3:8300", Voter: true}, {ID: 1, Name: "a", Address: "127.0.0.1:8300", Leader: true, Voter: true}, {ID: 2, Name: "b"}}, d.judged(who)
}

// memoryStore keeps an agent's documents.
type memoryStore struct {
	mu   sync.Mutex
	docs map[string][]byte
}

func (m *memoryStore) Load(name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.docs[name]
	return d, ok, nil
}

func (m *memoryStore) Save(name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.docs[name] = bytes.Clone(data)
	return nil
}

func (m *memoryStore) Delete(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.docs, name)
	return nil
}

// lab is the API over HTTP, with the directory and the agent behind it.
type lab struct {
	t     testing.TB
	dir   *directory
	agent *agent.Agent
	api   *API
	url   string
	log   *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const ownNodeID = "bf0b901d-f9b5-7c92-62fa-796d6b1574af"

// start returns a lab whose node dev1 is registered and healthy. change may be nil.
func start(t testing.TB, change func(o *Options)) *lab { t.Helper(); return startWith(t, nil, change) }

// startWith is start with gossip.
func startWith(t testing.TB, gossip *agent.GossipOptions, change func(o *Options)) *lab {
	t.Helper()
	l := &lab{t: t, dir: newDirectory(t), log: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	who := policy.NewAnonymous()
	self := catalog.Node{ID: ownNodeID, Name: "dev1", Address: "127.0.0.1", Datacenter: "dc1", Meta: map[string]string{"consul-version": "1.22.0"},
		TaggedAddresses: map[string]string{"lan": "127.0.0.1", "lan_ipv4": "127.0.0.1", "wan": "127.0.0.1", "wan_ipv4": "127.0.0.1"}}
	var err error
	l.agent, err = agent.New(agent.Options{Node: self, Directory: l.dir, Who: who, Store: &memoryStore{docs: map[string][]byte{}}, Log: log, Now: time.Now, Rand: rand.Reader, Server: true, Gossip: gossip})
	if err != nil {
		t.Fatal(err)
	}
	l.must(catalog.Op{Verb: catalog.NodeSet, Node: &self}, catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "dev1", ID: "serfHealth",
		Name: "Serf Health Status", Status: "passing", Output: "Agent alive and reachable"}})
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := l.agent.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	o := Options{Directory: l.dir, Agent: l.agent, Principal: func(context.Context) policy.Principal { return who }, Rand: rand.Reader, Log: log,
		Node: "dev1", NodeID: ownNodeID, Datacenter: "dc1", Version: "1.22.0", Server: true, DefaultPolicy: "allow"}
	if change != nil {
		change(&o)
	}
	l.api = New(o)
	srv := httptest.NewServer(l.api.Handler())
	l.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		ended.Wait()
	})
	return l
}

// must does operations that may not fail.
func (l *lab) must(ops ...catalog.Op) {
	l.t.Helper()
	out, err := l.dir.Discover(l.t.Context(), policy.NewAnonymous(), ops)
	if err != nil || len(out.Failures) > 0 {
		l.t.Fatalf("%v %+v", err, out.Failures)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) index(t *testing.T) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(a.header.Get("X-Consul-Index"), 10, 64)
	if err != nil || n == 0 {
		t.Fatalf("X-Consul-Index %q: %v", a.header.Get("X-Consul-Index"), err)
	}
	return n
}

// into decodes the body.
func (a answer) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

// do sends a request; headers are "Name: value".
func (l *lab) do(method, path, body string, headers ...string) answer {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), method, l.url+path, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

func (l *lab) get(path string) answer { l.t.Helper(); return l.do("GET", path, "") }

// ok is do that must be answered 200.
func (l *lab) ok(method, path, body string) answer {
	l.t.Helper()
	a := l.do(method, path, body)
	if a.status != http.StatusOK {
		l.t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	return a
}

// exchange is one request with what must come back.
type exchange struct {
	method, path, body string
	status             int
	want               string // the body, to the letter
}

func (l *lab) run(all []exchange) {
	l.t.Helper()
	for _, x := range all {
		a := l.do(x.method, x.path, x.body)
		if a.status != x.status || a.body != x.want {
			l.t.Errorf("%s %s %s\n got %d %q\nwant %d %q", x.method, x.path, x.body, a.status, a.body, x.status, x.want)
		}
	}
}

// sameJSON compares documents without regard to space, indexes apart.
func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%v in %s", err, want)
	}
	dropIndexes(g)
	dropIndexes(w)
	gs, _ := json.MarshalIndent(g, "", " ")
	ws, _ := json.MarshalIndent(w, "", " ")
	if string(gs) != string(ws) {
		t.Errorf("got %s\nwant %s", gs, ws)
	}
}

// dropIndexes sets the indexes of a document to 0, after seeing that they are there.
func dropIndexes(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			if k == "CreateIndex" || k == "ModifyIndex" {
				v[k] = 0
			}
			dropIndexes(v[k])
		}
	case []any:
		for _, e := range v {
			dropIndexes(e)
		}
	}
}
