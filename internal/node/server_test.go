package node_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/contexts"
)

// server lays out a member of `holdfast server`.
func server(t *testing.T, name string) *member {
	t.Helper()
	dir := t.TempDir()
	c := config.Server()
	c.Name, c.DataDir, c.Advertise.Host = name, filepath.Join(dir, "data"), "127.0.0.1"
	for _, u := range []config.URLs{c.Listen.Client, c.Listen.Peer, c.Listen.Public} {
		u[0].Host = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	}
	c.Raft.Heartbeat, c.Raft.Election = 20*time.Millisecond, 200*time.Millisecond
	return &member{t: t, config: c, user: filepath.Join(dir, "user")}
}

// clientTLS is what the member wrote for the user who started it.
func (m *member) clientTLS() *tls.Config {
	m.t.Helper()
	f, err := contexts.Load(m.user)
	check(m.t, err)
	c, err := f.Get("")
	check(m.t, err)
	now := time.Now
	if m.now != nil {
		now = m.now
	}
	conf, err := authn.OutboundConfig(authn.Outbound{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile}, authn.Env{Now: now, Rand: rand.Reader})
	check(m.t, err)
	return conf
}

func (m *member) client() *clientv3.Client {
	return connect(m.t, clientv3.Config{Endpoints: m.config.Listen.Client.Strings(), TLS: m.clientTLS()})
}

// admin calls Holdfast's own administration with the member's client context.
func (m *member) admin(method, path, body string, into any) int {
	m.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: m.clientTLS(), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.config.Listen.Client[0].String()+"/holdfast/v1/"+path, strings.NewReader(body))
	check(m.t, err)
	resp, err := c.Do(req)
	check(m.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	check(m.t, err)
	if into != nil && resp.StatusCode == http.StatusOK {
		check(m.t, json.Unmarshal(data, into))
	}
	return resp.StatusCode
}

func (m *member) token() string {
	m.t.Helper()
	var answer struct{ Token string }
	if code := m.admin(http.MethodPost, "tokens", "{}", &answer); code != http.StatusOK {
		m.t.Fatalf("no token: %d", code)
	}
	return answer.Token
}

// TestServer starts with nothing but a name and ports: mutual TLS works at once with the context that it wrote, and
// nothing else does.
func TestServer(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	cl := m.client()
	put(t, cl, "k", "v")
	wantKey(t, cl, "k", "v")

	var s node.Status
	if code := m.admin(http.MethodGet, "status", "", &s); code != http.StatusOK {
		t.Fatalf("status: %d", code)
	}
	if len(s.Weakenings) != 0 || s.Mode != "server" || s.Leader != s.Member || s.Sealing.Fingerprint == "" || len(s.Certificates) == 0 {
		t.Errorf("status: %+v", s)
	}
	for _, c := range s.Certificates {
		if !c.RenewsItself || time.Until(c.NotAfter) < 20*24*time.Hour {
			t.Errorf("certificate: %+v", c)
		}
	}
	// Without a certificate nothing is served on the data port, and the public port serves no data.
	bare := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it is the refusal that is tested
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: bare, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	if resp, err := plain.Get(m.config.Listen.Client[0].String() + "/version"); err == nil {
		resp.Body.Close()
		t.Errorf("the data port answered without a certificate: %s", resp.Status)
	}
	public := m.config.Listen.Public[0].String()
	for path, want := range map[string]int{"/livez": 200, "/v1/root": 200, "/version": 404, "/holdfast/v1/status": 404, "/v3/kv/range": 404, "/metrics": 404} {
		resp, err := plain.Get(public + path)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("public %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	m.stop()
	m.start()
	wantKey(t, m.client(), "k", "v")
	if key, err := filepath.Glob(filepath.Join(m.user, "holdfast", "kek", "*.kek")); err != nil || len(key) != 1 {
		t.Errorf("the sealing key is not under the user's configuration directory: %v %v", key, err)
	}
}

// TestNeverInTheClear: what a secured member left never starts as `holdfast etcd`, which would serve it to everybody, even if
// the files that say who made it are gone.
func TestNeverInTheClear(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	m.stop()
	m.config.Mode = config.ModeEtcd
	key, err := filepath.Glob(filepath.Join(m.user, "holdfast", "kek", "*.kek"))
	if err != nil || len(key) != 1 {
		t.Fatal(key, err)
	}
	m.config.Seal.KEK = "file:" + key[0]
	m.refuses("`holdfast server`")
	check(t, os.Remove(filepath.Join(m.config.DataDir, "pki", "member")))
	m.refuses("no card")
	check(t, os.RemoveAll(filepath.Join(m.config.DataDir, "audit"))) // as if it had crashed before it wrote its card
	m.refuses("`holdfast server`")
	check(t, os.RemoveAll(filepath.Join(m.config.DataDir, "pki")))
	m.refuses("`holdfast server`")
	if _, err := os.Stat(filepath.Join(m.config.DataDir, "pki", "member")); err == nil {
		t.Error("the refused start left a card")
	}
}

// TestJoin takes a second and a third member in with tokens.
func TestJoin(t *testing.T) {
	t.Parallel()
	one, two := server(t, "one"), server(t, "two")
	one.start()
	cl := one.client()
	put(t, cl, "k", "v")
	two.config.Join = one.token()
	two.start()
	wantKey(t, two.client(), "k", "v")
	f, err := contexts.Load(two.user)
	check(t, err)
	c, err := f.Get("")
	check(t, err)
	if want := append(two.config.Listen.Client.Strings(), one.config.Listen.Client.Strings()...); !slices.Equal(c.Endpoints, want) {
		t.Errorf("the context of the second member has the endpoints %v, want %v", c.Endpoints, want)
	}
	list, err := cl.MemberList(timeout(t))
	check(t, err)
	if len(list.Members) != 2 {
		t.Fatalf("members: %v", list.Members)
	}
	for _, m := range list.Members {
		if m.IsLearner || m.Name == "" {
			t.Errorf("not a voter, or without a name: %v", m)
		}
	}
	// The token is used up, and one of another cluster does not fit.
	three := server(t, "three")
	three.config.Join = two.config.Join
	three.refuses("unknown, used up or expired")
	other := server(t, "other")
	other.start()
	at := strings.Index(two.config.Join, "@")
	foreign := other.token()
	three.config.Join = foreign[:strings.Index(foreign, "@")] + two.config.Join[at:]
	three.refuses("") // its checksum covers the endpoints
	// A joined member restarts without its token's help, and its own users are admins too.
	two.stop()
	two.start()
	put(t, two.client(), "k2", "v2")
	wantKey(t, cl, "k2", "v2")
	three.config.Join = two.token()
	three.start()
	wantKey(t, three.client(), "k2", "v2")
}

// TestRenewal moves the clock past two thirds of the certificates' lives.
func TestRenewal(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	var ahead atomic.Int64
	m.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	m.start()
	before := m.serial()
	ahead.Store(int64(25 * 24 * time.Hour))
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for m.serial() == before {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not renewed\n%s", m.log)
		}
	}
	put(t, m.client(), "k", "v")
}

// serial is that of the certificate on the data port.
func (m *member) serial() string {
	m.t.Helper()
	var serial string
	conf := m.clientTLS()
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		serial = cs.PeerCertificates[0].SerialNumber.String()
		return nil
	}
	conf.InsecureSkipVerify = true
	d := tls.Dialer{Config: conf}
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", m.config.Listen.Client[0].Host)
	check(m.t, err)
	c.Close()
	return serial
}

// TestNoPlaintextSecrets looks for private keys in the data directory.
func TestNoPlaintextSecrets(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	put(t, m.client(), "canary-key", "canary-value")
	m.stop()
	err := filepath.WalkDir(m.config.DataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, mark := range []string{"PRIVATE KEY", "canary", "issuer"} {
			if strings.Contains(string(data), mark) {
				t.Errorf("%s holds %q in the clear", path, mark)
			}
		}
		return nil
	})
	check(t, err)
}

// TestForeignCertificate: a certificate of another authority, here that of another cluster, does not come in.
func TestForeignCertificate(t *testing.T) {
	t.Parallel()
	one, other := server(t, "one"), server(t, "other")
	one.start()
	other.start()
	conf := other.clientTLS()
	conf.RootCAs = one.clientTLS().RootCAs
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := c.Get(one.config.Listen.Client[0].String() + "/version")
	if err == nil {
		resp.Body.Close()
		t.Fatalf("it came in: %s", resp.Status)
	}
	one.logs("rejected connection on client endpoint") // in TLS 1.3 the client knows before the server has said so
}

// TestRecoveryCode opens a data directory whose key was lost.
func TestRecoveryCode(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	put(t, m.client(), "k", "v")
	var answer struct{ Code string }
	if code := m.admin(http.MethodPost, "recovery", "{}", &answer); code != http.StatusOK || answer.Code == "" {
		t.Fatalf("no code: %d", code)
	}
	m.stop()
	check(t, os.RemoveAll(filepath.Join(m.user, "holdfast", "kek")))
	m.refuses("does not exist")
	paper := filepath.Join(t.TempDir(), "paper")
	check(t, os.WriteFile(paper, []byte(strings.ToLower(answer.Code)+"\n"), 0o600))
	m.config.Seal.KEK = "recovery-file:" + paper
	m.start()
	wantKey(t, m.client(), "k", "v")
}

// TestDirectory looks into a directory whose member does not run, and is kept out while it does.
func TestDirectory(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	put(t, m.client(), "k", "v")
	env := node.System(slog.New(slog.DiscardHandler))
	env.UserConfigDir = m.user
	c := *m.config
	if d, err := node.OpenDirectory(&c, env); err == nil {
		d.Close()
		t.Fatal("opened while the member runs")
	}
	m.stop()
	d, err := node.OpenDirectory(&c, env)
	check(t, err)
	if s := d.Sealing(); s.Fingerprint == "" || len(s.Slots) != 1 {
		t.Errorf("sealing: %+v", s)
	}
	check(t, d.Close())
}

// TestPublicBadInput sends what a careless or hostile stranger would to the one port that asks for no certificate.
func TestPublicBadInput(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second} //nolint:gosec // a stranger does not verify
	defer c.CloseIdleConnections()
	post := func(body string) (int, string) {
		t.Helper()
		resp, err := c.Post(m.config.Listen.Public[0].String()+"/v1/join", "application/json", strings.NewReader(body))
		check(t, err)
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		check(t, err)
		return resp.StatusCode, string(data)
	}
	for body, want := range map[string]int{
		"":                              http.StatusBadRequest,
		"{":                             http.StatusBadRequest,
		"[]":                            http.StatusBadRequest,
		`{"surprise":1}`:                http.StatusBadRequest,
		`{}`:                            http.StatusForbidden,
		`{"token":"HF1-nonsense"}`:      http.StatusForbidden,
		`{"token":"` + m.token() + `"}`: http.StatusBadRequest, // no signing requests
		`{"token":"` + strings.Repeat("x", 2<<20) + `"}`: http.StatusBadRequest,
	} {
		code, answer := post(body)
		if code != want || !strings.Contains(answer, `"error"`) {
			t.Errorf("%.60q: %d %s, want %d", body, code, answer, want)
		}
	}
	put(t, m.client(), "k", "v")
	list, err := m.client().MemberList(timeout(t))
	check(t, err)
	if len(list.Members) != 1 {
		t.Errorf("a stranger made members: %v", list.Members)
	}
}

// TestTokensNeedAdmin: a client certificate is not enough to make tokens or recovery codes.
func TestTokensNeedAdmin(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1)[0]
	m.start()
	for _, path := range []string{"tokens", "recovery"} {
		resp, err := http.Post(m.config.Listen.Client[0].String()+"/holdfast/v1/"+path, "application/json", strings.NewReader("{}"))
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
