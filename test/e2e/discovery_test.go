package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestServerDiscovery: three members of `holdfast server` serve discovery with certificates instead of ACLs, gossip under
// the cluster's own key, and answer an agent that has a certificate of the cluster.
func TestServerDiscovery(t *testing.T) {
	t.Parallel()
	const n = 3
	ports := freePorts(t, 3*n+3)
	api, dns, serf := ports[:n], ports[n:2*n], ports[2*n:3*n]
	s := newSecured(t, n, func(i int) []string {
		return []string{"--listen-consul", fmt.Sprintf("https://127.0.0.1:%d", api[i]), "--listen-dns", fmt.Sprintf("127.0.0.1:%d", dns[i]), "--listen-gossip", fmt.Sprintf("127.0.0.1:%d", serf[i])}
	})
	ask := func(i int, conf *tls.Config, method, path, body string) (int, string) {
		tr := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}
		defer tr.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("https://127.0.0.1:%d%s", api[i], path), strings.NewReader(body))
		check(t, err)
		a, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer a.Body.Close()
		data, _ := io.ReadAll(a.Body)
		return a.StatusCode, string(data)
	}
	admin, _ := s.issue("admin", "boss")
	holder, _ := s.issue("client", "app")
	await := func(what string, i int, path string, parts ...string) {
		t.Helper()
		var status int
		var body string
		for end := time.Now().Add(60 * time.Second); time.Now().Before(end); wait(t.Context(), 100*time.Millisecond) {
			if status, body = ask(i, admin, http.MethodGet, path, ""); status == 200 && contains(parts...)(status, body) {
				return
			}
		}
		t.Fatalf("%s: member %d answers %d %s\n%s", what, i, status, body, tail(s.members[i].log.String()))
	}
	for i := range n {
		await("the gossip", i, "/v1/catalog/nodes", `"m0"`, `"m1"`, `"m2"`)
		await("the health", i, "/v1/health/state/passing", `"m0"`, `"m1"`, `"m2"`)
	}
	if status, body := ask(0, admin, http.MethodPut, "/v1/kv/x", "y"); status != 200 || !strings.Contains(body, "true") {
		t.Errorf("the admin: %d %s", status, body)
	}
	for name, refused := range map[string]*tls.Config{"nobody": {InsecureSkipVerify: true}, "a client": holder} {
		if status, body := ask(0, refused, http.MethodPut, "/v1/kv/x", "z"); status == 200 {
			t.Errorf("%s writes: %s", name, body)
		}
		if status, body := ask(0, refused, http.MethodGet, "/v1/catalog/nodes", ""); status == 200 && strings.Contains(body, "m0") {
			t.Errorf("%s reads: %s", name, body)
		}
	}
	// An agent: its certificate, the members' issuer, and the gossip key, which only an admin is told.
	s.must("ca", "issue", "agent", "--profile", "agent", "--name", "web1", "--out", "web1")
	issuer := filepath.Join(s.dir, "member.pem")
	check(t, os.WriteFile(issuer, []byte(s.must("ca", "show", "member", "--output", "pem")), 0o600))
	key := strings.TrimSpace(s.must("consul", "keygen", "-cluster"))
	conf := map[string]any{
		"node_name": "web1", "bind_addr": "127.0.0.1", "data_dir": filepath.Join(s.dir, "web1.data"), "encrypt": key, "retry_join": []string{fmt.Sprintf("127.0.0.1:%d", serf[1])}, "retry_interval": "1s",
		"ports":    map[string]any{"http": ports[3*n], "dns": ports[3*n+1], "serf_lan": ports[3*n+2]},
		"tls":      map[string]any{"internal_rpc": map[string]any{"ca_file": issuer, "cert_file": filepath.Join(s.dir, "web1", "cert.pem"), "key_file": filepath.Join(s.dir, "web1", "key.pem"), "verify_outgoing": true}},
		"services": []any{map[string]any{"name": "db", "port": 5432}},
	}
	data, err := json.Marshal(conf)
	check(t, err)
	file := filepath.Join(s.dir, "web1.json")
	check(t, os.WriteFile(file, data, 0o600))
	agent := spawn(t, nil, "consul", "agent", "-config-file", file)
	await("the agent's service", 2, "/v1/catalog/service/db", `"web1"`)
	put := func(path, body string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("http://127.0.0.1:%d%s", ports[3*n], path), strings.NewReader(body))
		check(t, err)
		a, err := http.DefaultClient.Do(r)
		check(t, err)
		defer a.Body.Close()
		data, _ := io.ReadAll(a.Body)
		return a.StatusCode, string(data)
	}
	if status, body := put("/v1/catalog/register", `{"Node": "m0", "Address": "10.9.8.7"}`); status != 403 {
		t.Errorf("the agent changes another node: %d %s", status, body)
	}
	if status, body := put("/v1/kv/x", "z"); status != 403 {
		t.Errorf("the agent writes keys: %d %s", status, body)
	}
	c := &consulCluster{t: t, dns: dns}
	if hosts, err := c.resolver(1).LookupHost(t.Context(), "db.service.consul."); err != nil || len(hosts) != 1 {
		t.Errorf("DNS: %v %v", hosts, err)
	}
	// Revoked, the agent is cut off and gets in no more.
	s.must("ca", "revoke", "agent", "--cert", filepath.Join("web1", "cert.pem"))
	gone := false
	for end := time.Now().Add(20 * time.Second); !gone && time.Now().Before(end); wait(t.Context(), 100*time.Millisecond) {
		status, _ := put("/v1/agent/service/register", `{"Name": "late"}`)
		_, body := ask(0, admin, http.MethodGet, "/v1/catalog/service/late", "")
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/catalog/nodes", ports[3*n]))
		check(t, err)
		r.Body.Close()
		gone = status != 0 && !strings.Contains(body, "late") && r.StatusCode != 200
	}
	if !gone {
		t.Errorf("a revoked agent is still answered:\n%s", tail(agent.log.String()))
	}
	if raw, err := os.ReadFile(filepath.Join(s.dir, "web1.data", "KEYRING")); err != nil || bytes.Contains(raw, []byte(key)) {
		t.Errorf("the agent's directory: %v", err)
	}
}
