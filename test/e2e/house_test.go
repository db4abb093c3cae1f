package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestHouse: all data of all paths on one running cluster of three at once, members killed in the middle of each path, and
// then: nothing acknowledged is lost, nothing is there twice, the members are equal in every space, what an etcd client
// deletes and compacts is its own, a member that was away gets everything, and nothing of it is readable on a disk or in a
// log. HOLDFAST_HOUSE is the number of rounds; in each, a member is killed in the middle of every path.
func TestHouse(t *testing.T) {
	rounds := 1
	if text := os.Getenv("HOLDFAST_HOUSE"); text != "" {
		var err error
		rounds, err = strconv.Atoi(text)
		check(t, err)
	} else if testing.Short() {
		t.Skip("takes minutes; `make house` runs it in full")
	}
	h := newHouse(t)
	h.run()
	for round := range rounds {
		for i, l := range h.loads {
			h.killDuring(l, (round+i)%2 == 0)
		}
		h.killDuringReencryption(round)
		h.killOthers(round)
		h.killAll()
		for _, l := range h.loads {
			h.progress(l, 3, "after all were killed at once")
		}
	}
	h.rest()
	h.verify("after the kills")
	h.away()
	h.killAll()
	h.verify("after all were killed at once")
	h.rights()
	for _, p := range append(h.members, h.agent, h.plugin) {
		givesNoCore(t, p)
	}
	h.wireControl()
	h.end()
	h.canary()
	for _, l := range h.loads {
		t.Logf("%-14s %6d acknowledged, %4d with unknown outcome; last error: %v", l.name, l.acked.Load(), l.failed.Load(), l.lastError())
	}
	t.Logf("%d kills of members in %d rounds", h.kills, rounds)
}

// house is a cluster of `holdfast server` with everything that it can serve, an agent and a KMS plugin.
type house struct {
	*secured
	given      string // what users write and keep: configurations, identities, certificates
	mark       string // in everything that is written
	args       [][]string
	peer       []int
	consul     []int
	dns        []int
	serf       []int
	cfssl      []int
	agentHTTP  int
	agentArgs  []string
	pluginArgs []string
	agent      *process
	plugin     *process
	all        []*process // that ever ran, for their logs
	tls        *tls.Config
	web        []*http.Client // one for each member
	local      *http.Client   // to the agent, in the clear on loopback
	loads      []*task
	stop       context.CancelFunc
	untend     func()
	running    sync.WaitGroup
	rng        *rand.Rand
	kills      int
	down       int // the member that was killed; -1: none

	store     *storeLoads
	discovery *discoveryLoads
	authority *authorityLoads
	wire      *wire             // what passes between clients, members and the agent; nil: this process may not look
	secrets   map[string][]byte // what must be nowhere, by name
	keys      []string          // of the encryption configuration, oldest first
}

const houseSize = 3

func newHouse(t *testing.T) *house {
	t.Helper()
	base := t.TempDir()
	h := &house{
		secured: &secured{t: t, dir: filepath.Join(base, "sealed")}, given: filepath.Join(base, "given"),
		mark: "canary" + rand32(7), rng: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3)), secrets: map[string][]byte{},
		local: &http.Client{Timeout: 10 * time.Second},
	}
	for _, dir := range []string{"sealed/tmp", "given"} {
		check(t, os.MkdirAll(filepath.Join(base, dir), 0o700))
	}
	ports := freePorts(t, 7*houseSize+3)
	take := func(n int) []int { p := ports[:n:n]; ports = ports[n:]; return p }
	h.client, h.public, h.peer, h.consul, h.dns, h.serf, h.cfssl = take(houseSize), take(houseSize), take(houseSize), take(houseSize), take(houseSize), take(houseSize), take(houseSize)
	h.wire = listenOnWire(t, slices.Concat(h.client, h.public, h.peer, h.consul, h.serf, h.cfssl, ports[2:3])...) // not DNS, nor the agent's own HTTP
	h.newKey()
	conf := filepath.Join(h.given, "server.yaml")
	check(t, os.WriteFile(conf, []byte("raft: {snapshot-count: 1000, snapshot-catchup-entries: 300}\n"), 0o600))
	for i := range houseSize {
		args := []string{
			"server", "--config", conf, "--name", fmt.Sprintf("m%d", i), "--data-dir", h.path(fmt.Sprintf("d%d", i)), "--advertise-host", "127.0.0.1", "--log-level", "debug",
			"--listen-client", h.endpoint(i), "--listen-public", loopback(h.public[i]), "--listen-peer", loopback(h.peer[i]), "--listen-consul", loopback(h.consul[i]),
			"--listen-dns", strings.TrimPrefix(loopback(h.dns[i]), "https://"), "--listen-gossip", strings.TrimPrefix(loopback(h.serf[i]), "https://"),
			"--listen-cfssl", "swarm=" + loopback(h.cfssl[i]), "--encryption-provider-config", h.encryption(i),
		}
		if i > 0 {
			token := strings.TrimSpace(h.must("token", "create"))
			h.secrets[fmt.Sprintf("join token %d", i)] = []byte(token)
			args = append(args, "--join", token)
		}
		h.args, h.members = append(h.args, args), append(h.members, nil)
		h.start(i)
		h.ready(i)
	}
	h.tls, _ = h.issueAside("admin", "boss")
	for range houseSize {
		h.web = append(h.web, &http.Client{Transport: &http.Transport{TLSClientConfig: h.tls.Clone()}, Timeout: 10 * time.Second})
	}
	h.startAgent(take(3))
	h.startPlugin()
	h.store, h.discovery, h.authority = newStoreLoads(h), newDiscoveryLoads(h), newAuthorityLoads(h)
	h.loads = append(append(h.store.loads(), h.discovery.loads()...), h.authority.loads()...)
	ctx, cancel := context.WithCancel(context.Background())
	var tended sync.WaitGroup // what is renewed, also while the loads rest
	tended.Go(func() { h.store.keepAlive(ctx) })
	tended.Go(func() { h.discovery.renew(ctx) })
	h.untend = func() { cancel(); tended.Wait() }
	t.Cleanup(func() {
		h.untend()
		if h.stop != nil {
			h.rest()
		}
		for _, c := range append(h.web, h.local) {
			c.CloseIdleConnections()
		}
	})
	return h
}

// rand32 is n random letters and digits.
func rand32(n int) string {
	text := make([]byte, n)
	for i := range text {
		text[i] = "abcdefghijklmnopqrstuvwxyz234567"[rand.IntN(32)]
	}
	return string(text)
}

func loopback(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }

// encryption is the file of member i's encryption configuration.
func (h *house) encryption(i int) string {
	return filepath.Join(h.given, fmt.Sprintf("encryption%d.yaml", i))
}

// newKey puts a new key first into every member's encryption configuration; it is in force once one of them starts.
func (h *house) newKey() {
	h.t.Helper()
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(rand.Uint32())
	}
	text := base64.StdEncoding.EncodeToString(key)
	h.keys = append(h.keys, text)
	h.secrets[fmt.Sprintf("encryption key %d", len(h.keys))], h.secrets[fmt.Sprintf("encryption key %d, base64", len(h.keys))] = key, []byte(text)
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm:\n      keys:\n")
	for i := len(h.keys); i > 0; i-- {
		fmt.Fprintf(&b, "      - {name: key%d, secret: %s}\n", i, h.keys[i-1])
	}
	b.WriteString("  - identity: {}\n")
	for i := range houseSize {
		check(h.t, os.WriteFile(h.encryption(i), []byte(b.String()), 0o600))
	}
}

func (h *house) spawn(env []string, args ...string) *process {
	h.t.Helper()
	p := spawn(h.t, append(env, "TMPDIR="+h.path("tmp")), args...)
	h.all = append(h.all, p)
	return p
}

func (h *house) start(i int) {
	h.t.Helper()
	h.members[i] = h.spawn(h.env(i), h.args[i]...)
	h.down = -1
}

func (h *house) ready(i int) {
	h.t.Helper()
	if !h.members[i].log.wait(readyLine, 60*time.Second) {
		h.t.Fatalf("member %d did not get ready:\n%s", i, tail(h.members[i].log.String()))
	}
}

// issueAside makes a certificate whose files are among what users keep.
func (h *house) issueAside(authority, name string, more ...string) (*tls.Config, string) {
	h.t.Helper()
	dir := filepath.Join(h.given, authority+"-"+name)
	h.must(append([]string{"ca", "issue", authority, "--name", name, "--out", dir}, more...)...)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	check(h.t, err)
	h.noteKey(authority+" "+name, cert.PrivateKey)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	check(h.t, err)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: poolOf(h.t, ca), MinVersion: tls.VersionTLS13}, dir
}

// startAgent starts an agent without state, with a certificate of the cluster.
func (h *house) startAgent(ports []int) {
	t := h.t
	t.Helper()
	_, dir := h.issueAside("agent", "web1", "--profile", "agent")
	issuer := filepath.Join(h.given, "members.pem")
	check(t, os.WriteFile(issuer, []byte(h.must("ca", "show", "member", "--output", "pem")), 0o600))
	key := strings.TrimSpace(h.must("consul", "keygen", "-cluster"))
	raw, err := base64.StdEncoding.DecodeString(key)
	check(t, err)
	h.secrets["gossip key"], h.secrets["gossip key, base64"] = raw, []byte(key)
	var join []string
	for _, p := range h.serf {
		join = append(join, fmt.Sprintf("127.0.0.1:%d", p))
	}
	h.agentHTTP = ports[0]
	data, err := json.Marshal(map[string]any{
		"node_name": "web1", "bind_addr": "127.0.0.1", "data_dir": h.path("web1.data"), "encrypt": key, "retry_join": join, "retry_interval": "1s", "log_level": "DEBUG",
		"ports": map[string]any{"http": ports[0], "dns": ports[1], "serf_lan": ports[2]},
		"tls":   map[string]any{"internal_rpc": map[string]any{"ca_file": issuer, "cert_file": filepath.Join(dir, "cert.pem"), "key_file": filepath.Join(dir, "key.pem"), "verify_outgoing": true}},
	})
	check(t, err)
	file := filepath.Join(h.given, "web1.json")
	check(t, os.WriteFile(file, data, 0o600))
	h.agentArgs = []string{"consul", "agent", "-config-file", file}
	h.agent = h.spawn(nil, h.agentArgs...)
}

func (h *house) startPlugin() {
	h.t.Helper()
	h.must("kms", "enroll", "control-plane", "--out", filepath.Join(h.given, "kms"))
	h.pluginArgs = []string{"kms", "--listen", "unix://" + filepath.Join(h.given, "kms.sock"), "--identity", filepath.Join(h.given, "kms"), "--endpoints", strings.Join(h.endpoints(), ",")}
	h.plugin = h.spawn(nil, h.pluginArgs...)
}

func (h *house) endpoints() (all []string) {
	for i := range houseSize {
		all = append(all, h.endpoint(i))
	}
	return all
}

// dial returns an etcd client of the given members, or of all.
func (h *house) dial(members ...int) *clientv3.Client {
	h.t.Helper()
	endpoints := h.endpoints()
	if len(members) > 0 {
		endpoints = nil
		for _, m := range members {
			endpoints = append(endpoints, h.endpoint(m))
		}
	}
	cl, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: h.tls.Clone(), Logger: zap.NewNop()})
	check(h.t, err)
	h.t.Cleanup(func() { cl.Close() })
	return cl
}

// statusError is an answer that is not 200.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.status, e.body) }

// ask sends one request; into takes the JSON of a good answer, or a *[]byte the answer as it is.
func ask(ctx context.Context, c *http.Client, method, url string, body, into any) (http.Header, error) {
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		payload = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, payload)
	if err != nil {
		return nil, err
	}
	a, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	data, err := io.ReadAll(a.Body)
	if err != nil {
		return nil, err
	}
	if a.StatusCode != http.StatusOK {
		return nil, &statusError{a.StatusCode, strings.TrimSpace(string(data))}
	}
	switch into := into.(type) {
	case nil:
		return a.Header, nil
	case *[]byte:
		*into = data
		return a.Header, nil
	}
	return a.Header, json.Unmarshal(data, into)
}

// onConsul asks member i over Consul's HTTP API.
func (h *house) onConsul(ctx context.Context, i int, method, path string, body, into any) (http.Header, error) {
	return ask(ctx, h.web[i], method, loopback(h.consul[i])+path, body, into)
}

// onAdmin asks member i's administration.
func (h *house) onAdmin(ctx context.Context, i int, method, path string, body, into any) error {
	_, err := ask(ctx, h.web[i], method, h.endpoint(i)+"/holdfast/v1/"+path, body, into)
	return err
}

// task is what one path is given to do, again and again.
type task struct {
	name   string
	pause  time.Duration
	step   func(ctx context.Context, n int) error           // nil: it was acknowledged
	verify func(t testing.TB, ctx context.Context, who int) // holds what was acknowledged against what member who has
	next   int
	acked  atomic.Int64
	failed atomic.Int64
	last   atomic.Pointer[error]
}

func (l *task) lastError() error {
	if p := l.last.Load(); p != nil {
		return *p
	}
	return nil
}

func (l *task) run(ctx context.Context) {
	for ctx.Err() == nil {
		call, done := context.WithTimeout(context.Background(), 15*time.Second)
		err := l.step(call, l.next)
		done()
		l.next++
		if err == nil {
			l.acked.Add(1)
			wait(ctx, l.pause)
			continue
		}
		l.failed.Add(1)
		l.last.Store(&err)
		wait(ctx, max(l.pause, 20*time.Millisecond))
	}
}

// run starts every load.
func (h *house) run() {
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	for _, l := range h.loads {
		h.running.Go(func() { l.run(ctx) })
	}
	h.running.Go(func() { h.store.follow(ctx) })
	h.running.Go(func() { h.discovery.follow(ctx) })
}

// rest ends the loads after what they are doing.
func (h *house) rest() {
	h.stop()
	h.stop = nil
	h.running.Wait()
}

// progress waits until a load has got n more acknowledgements.
func (h *house) progress(l *task, n int64, when string) {
	h.t.Helper()
	target := l.acked.Load() + n
	for end := time.Now().Add(90 * time.Second); l.acked.Load() < target; wait(h.t.Context(), 5*time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("%s %s: nothing was acknowledged for 90 s; last error: %v\n%s", l.name, when, l.lastError(), h.tails())
		}
		h.alive()
	}
}

// alive fails the test when a member has ended by itself.
func (h *house) alive() {
	h.t.Helper()
	for i, m := range h.members {
		if i == h.down {
			continue
		}
		select {
		case <-m.done:
			h.t.Fatalf("member %d has ended by itself: %v\n%s", i, m.err, tail(m.log.String()))
		default:
		}
	}
}

func (h *house) tails() string {
	var b strings.Builder
	for i, m := range h.members {
		var told []string
		for line := range strings.Lines(m.log.String()) {
			if !strings.Contains(line, " debug ") {
				told = append(told, line)
			}
		}
		fmt.Fprintf(&b, "member %d:\n%s\n", i, tail(strings.Join(told, "")))
	}
	return b.String()
}
