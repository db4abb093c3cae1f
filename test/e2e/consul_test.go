package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guidePKI makes a CA and one certificate for every host with openssl, as the guide does, but with SHA-256.
func guidePKI(t *testing.T, dir string) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	check(t, os.WriteFile(filepath.Join(dir, "myca.conf"), []byte(`[ ca ]
default_ca = myca
[ myca ]
unique_subject = no
new_certs_dir = .
certificate = ca.cert
database = certindex
private_key = privkey.pem
serial = serial
default_days = 3650
default_md = sha256
policy = myca_policy
x509_extensions = myca_extensions
[ myca_policy ]
commonName = supplied
stateOrProvinceName = supplied
countryName = supplied
emailAddress = optional
organizationName = supplied
organizationalUnitName = optional
[ myca_extensions ]
basicConstraints = CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
keyUsage = digitalSignature,keyEncipherment
extendedKeyUsage = serverAuth,clientAuth
`), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "serial"), []byte("000a\n"), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "certindex"), nil, 0o600))
	for _, args := range [][]string{
		{"req", "-newkey", "rsa:2048", "-days", "3650", "-x509", "-nodes", "-keyout", "privkey.pem", "-out", "ca.cert", "-subj", "/C=US/ST=New York/L=New York City/O=Example/CN=ConsulCA"},
		{"req", "-newkey", "rsa:2048", "-nodes", "-out", "consul.csr", "-keyout", "consul.key", "-subj", "/C=US/ST=New York/L=New York City/O=Example/CN=*.example.com"},
		{"ca", "-batch", "-config", "myca.conf", "-notext", "-in", "consul.csr", "-out", "consul.cert"},
	} {
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
}

// consulCluster are agents of the guide on one host, each on an address of its own.
type consulCluster struct {
	t                    *testing.T
	dir, key             string
	http, dns, serf, rpc []int // ports
	agents               []*process
	servers              int
}

func newConsulCluster(t *testing.T, servers, clients int) *consulCluster {
	t.Helper()
	n := servers + clients
	c := &consulCluster{t: t, dir: t.TempDir(), servers: servers, http: freePorts(t, n), dns: freePorts(t, n), serf: freePorts(t, n), rpc: freePorts(t, n), agents: make([]*process, n)}
	guidePKI(t, c.dir)
	out, err := runHoldfast(t, "consul", "keygen")
	check(t, err)
	c.key = strings.TrimSpace(out)
	for i := range n {
		c.write(i, nil)
		c.agents[i] = c.spawn(i)
	}
	return c
}

func (c *consulCluster) path(i int) string { return filepath.Join(c.dir, fmt.Sprintf("n%d.json", i+1)) }

// write writes the configuration of agent i, with changes.
func (c *consulCluster) write(i int, change map[string]any) {
	c.t.Helper()
	conf := map[string]any{
		"node_name": fmt.Sprintf("n%d", i+1), "bind_addr": "127.0.0.1", "bootstrap": i == 0, "server": i < c.servers, "datacenter": "nyc2",
		"data_dir": filepath.Join(c.dir, fmt.Sprintf("d%d", i+1)), "encrypt": c.key,
		"ca_file": filepath.Join(c.dir, "ca.cert"), "cert_file": filepath.Join(c.dir, "consul.cert"), "key_file": filepath.Join(c.dir, "consul.key"),
		"verify_incoming": true, "verify_outgoing": true, "log_level": "INFO",
		"ports":      map[string]any{"http": c.http[i], "dns": c.dns[i], "serf_lan": c.serf[i], "server": c.rpc[i]},
		"retry_join": []string{fmt.Sprintf("127.0.0.1:%d", c.serf[0]), fmt.Sprintf("127.0.0.1:%d", c.serf[1])}, "retry_interval": "1s",
	}
	if i >= c.servers {
		delete(conf, "bootstrap")
	}
	for k, v := range change {
		if conf[k] = v; v == nil {
			delete(conf, k)
		}
	}
	data, err := json.Marshal(conf)
	check(c.t, err)
	check(c.t, os.WriteFile(c.path(i), data, 0o600))
}

func (c *consulCluster) spawn(i int) *process {
	c.t.Helper()
	return spawn(c.t, nil, "consul", "agent", "-config-file", c.path(i))
}

func (c *consulCluster) url(i int, path string) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s", c.http[i], path)
}

// ask sends one request to agent i; the answer is empty when there is none.
func (c *consulCluster) ask(i int, method, path, body string) (int, string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, c.url(i, path), strings.NewReader(body))
	check(c.t, err)
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, ""
	}
	defer a.Body.Close()
	data, err := io.ReadAll(a.Body)
	if err != nil {
		return 0, ""
	}
	return a.StatusCode, string(data)
}

// await asks until the answer is as wanted.
func (c *consulCluster) await(limit time.Duration, what string, i int, path string, good func(status int, body string) bool) string {
	c.t.Helper()
	end := time.Now().Add(limit)
	for {
		status, body := c.ask(i, http.MethodGet, path, "")
		if good(status, body) {
			return body
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s: agent n%d answers %d %s\n%s", what, i+1, status, body, tail(c.agents[i].log.String()))
		}
		wait(c.t.Context(), 50*time.Millisecond)
	}
}

func contains(parts ...string) func(int, string) bool {
	return func(_ int, body string) bool {
		for _, p := range parts {
			if !strings.Contains(body, p) {
				return false
			}
		}
		return true
	}
}

// formed waits until every server is a voter that every agent knows.
func (c *consulCluster) formed() {
	c.t.Helper()
	for i := range c.agents {
		c.await(90*time.Second, "the cluster", i, "/v1/status/peers", func(_ int, body string) bool {
			return strings.Count(body, "127.0.0.1:") == c.servers
		})
		c.await(30*time.Second, "a leader", i, "/v1/status/leader", contains("127.0.0.1:"))
	}
	for i := range c.servers {
		if !c.agents[i].log.wait(readyLine, 30*time.Second) {
			c.t.Fatalf("server n%d is not ready:\n%s", i+1, tail(c.agents[i].log.String()))
		}
	}
}

// resolver asks the DNS of agent i.
func (c *consulCluster) resolver(i int) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", c.dns[i]))
	}}
}

// TestConsulGuide is the guide end to end: three servers and a client with certificates of openssl and a gossip key.
func TestConsulGuide(t *testing.T) {
	t.Parallel()
	c := newConsulCluster(t, 3, 1)
	c.formed()
	const client, canary = 3, "a-canary-that-nobody-else-writes"
	if status, body := c.ask(client, http.MethodPut, "/v1/kv/app/secret", canary); status != 200 || body != "true" {
		t.Fatalf("put: %d %s", status, body)
	}
	for i := range c.agents {
		c.await(5*time.Second, "the pair", i, "/v1/kv/app/secret?raw", contains(canary))
	}
	out, err := runHoldfast(t, "consul", "members", "-http-addr", fmt.Sprintf("127.0.0.1:%d", c.http[client]))
	check(t, err)
	for i, kind := range []string{"server", "server", "server", "client"} {
		if !strings.Contains(out, fmt.Sprintf("n%d ", i+1)) || strings.Count(out, "alive") != 4 || !strings.Contains(out, kind) {
			t.Errorf("members:\n%s", out)
		}
	}
	c.services(client)
	c.strangers()
	c.survives(client)
	// Everything that is on a disk is sealed.
	check(t, filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(path) == c.dir {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && (bytes.Contains(data, []byte(canary)) || bytes.Contains(data, []byte(c.key))) {
			t.Errorf("%s holds a value or the gossip key in the clear", path)
		}
		return err
	}))
	for i := range c.agents {
		began := time.Now()
		c.agents[i].cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-c.agents[i].done:
			if c.agents[i].err != nil {
				t.Errorf("n%d ends with %v:\n%s", i+1, c.agents[i].err, tail(c.agents[i].log.String()))
			}
		case <-time.After(10 * time.Second):
			t.Errorf("n%d has not ended %s after SIGINT:\n%s", i+1, time.Since(began), tail(c.agents[i].log.String()))
		}
	}
}

// services registers one with an http and a ttl check at agent i, and finds it over HTTP and DNS.
func (c *consulCluster) services(i int) {
	t := c.t
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "well") }))
	t.Cleanup(web.Close)
	def := fmt.Sprintf(`{"Name": "web", "Tags": ["v1"], "Port": 8080, "Checks": [{"CheckID": "alive", "Name": "alive", "HTTP": %q, "Interval": "200ms"}, {"CheckID": "beat", "Name": "beat", "TTL": "60s"}]}`, web.URL)
	if status, body := c.ask(i, http.MethodPut, "/v1/agent/service/register", def); status != 200 {
		t.Fatalf("register: %d %s", status, body)
	}
	for at := range c.agents {
		c.await(5*time.Second, "the service, critical", at, "/v1/health/service/web", contains(`"Service":"web"`, `"Status":"critical"`))
	}
	if status, body := c.ask(i, http.MethodPut, "/v1/agent/check/pass/beat", ""); status != 200 {
		t.Fatalf("pass: %d %s", status, body)
	}
	for at := range c.agents {
		c.await(10*time.Second, "the service, passing", at, "/v1/health/service/web?passing", contains(`"Service":"web"`))
		hosts, err := c.resolver(at).LookupHost(t.Context(), "web.service.consul.")
		if err != nil || len(hosts) != 1 || hosts[0] != "127.0.0.1" {
			t.Errorf("DNS of n%d: %v %v", at+1, hosts, err)
		}
		_, records, err := c.resolver(at).LookupSRV(t.Context(), "web", "v1", "service.consul.")
		if err != nil || len(records) != 1 || records[0].Port != 8080 || records[0].Target != "n4.node.nyc2.consul." {
			t.Errorf("SRV of n%d: %+v %v", at+1, records, err)
		}
	}
}

// strangers try to get in.
func (c *consulCluster) strangers() {
	t := c.t
	t.Helper()
	caPEM, err := os.ReadFile(filepath.Join(c.dir, "ca.cert"))
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "consul.cert"), filepath.Join(c.dir, "consul.key"))
	check(t, err)
	stranger := newAuthority(t, t.TempDir(), "other").issue("stranger", nil)
	foreign, err := tls.LoadX509KeyPair(stranger.cert, stranger.key)
	check(t, err)
	rpc := func(certs ...tls.Certificate) error {
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"holdfast-agent/1"}}
		if len(certs) > 0 {
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
		}
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.rpc[0]), conf)
		if err != nil {
			return err
		}
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	if err := rpc(pair); err != nil {
		t.Errorf("RPC with the guide's certificate: %v", err)
	}
	if err := rpc(); err == nil {
		t.Error("RPC without a certificate is answered")
	}
	if err := rpc(foreign); err == nil {
		t.Error("RPC with a certificate of another CA is answered")
	}
	plain, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.rpc[0]))
	check(t, err)
	defer plain.Close()
	fmt.Fprint(plain, "POST /agent/1/servers HTTP/1.1\r\nHost: x\r\n\r\n")
	check(t, plain.SetDeadline(time.Now().Add(5*time.Second)))
	if data, err := io.ReadAll(plain); err == nil && bytes.HasPrefix(data, []byte("HTTP/")) {
		t.Errorf("RPC in the clear is answered: %q", data)
	}
	// Gossip without the key, and with another one.
	for name, key := range map[string]any{"plain": nil, "other": base64.StdEncoding.EncodeToString(make([]byte, 32))} {
		ports := freePorts(t, 3)
		conf := map[string]any{"node_name": name, "datacenter": "nyc2", "bind_addr": "127.0.0.1", "data_dir": filepath.Join(t.TempDir(), "d"), "start_join": []string{fmt.Sprintf("127.0.0.1:%d", c.serf[0])},
			"ports": map[string]any{"http": ports[0], "dns": ports[1], "serf_lan": ports[2]}}
		if key != nil {
			conf["encrypt"] = key
		}
		data, err := json.Marshal(conf)
		check(t, err)
		file := filepath.Join(t.TempDir(), "c.json")
		check(t, os.WriteFile(file, data, 0o600))
		p := spawn(t, nil, "consul", "agent", "-config-file", file)
		select {
		case <-p.done:
			if p.err == nil || !strings.Contains(p.log.String(), "joining") {
				t.Errorf("gossip %s: %v\n%s", name, p.err, tail(p.log.String()))
			}
		case <-time.After(30 * time.Second):
			t.Errorf("gossip %s: the agent was let in:\n%s", name, tail(p.log.String()))
		}
		if _, body := c.ask(0, http.MethodGet, "/v1/agent/members", ""); strings.Contains(body, fmt.Sprintf("%q", name)) {
			t.Errorf("gossip %s: %s", name, body)
		}
	}
}

// survives kills the leader, works on without it, and starts it again.
func (c *consulCluster) survives(client int) {
	t := c.t
	t.Helper()
	_, leader := c.ask(client, http.MethodGet, "/v1/status/leader", "")
	victim := -1
	for i := range c.servers {
		if strings.Contains(leader, fmt.Sprintf(":%d", c.rpc[i])) {
			victim = i
		}
	}
	if victim < 0 {
		t.Fatalf("nobody leads: %s", leader)
	}
	c.agents[victim].kill()
	written := false
	for end := time.Now().Add(30 * time.Second); !written && time.Now().Before(end); wait(t.Context(), 100*time.Millisecond) {
		status, body := c.ask(client, http.MethodPut, "/v1/kv/app/after", "the kill")
		written = status == 200 && strings.TrimSpace(body) == "true"
	}
	if !written {
		t.Fatalf("no write through the client after the leader was killed:\n%s", tail(c.agents[client].log.String()))
	}
	c.await(30*time.Second, "the killed server", client, fmt.Sprintf("/v1/health/node/n%d", victim+1), contains(`"serfHealth"`, `"critical"`))
	c.agents[victim] = c.spawn(victim)
	c.await(30*time.Second, "the server that came back", victim, "/v1/kv/app/after?raw&stale", contains("the kill"))
	c.await(30*time.Second, "its health", client, fmt.Sprintf("/v1/health/node/n%d", victim+1), contains(`"serfHealth"`, `"passing"`))
	c.await(30*time.Second, "the service after the kill", victim, "/v1/health/service/web?passing", contains(`"Service":"web"`))
}

// TestConsulExpect: servers with bootstrap_expect found one cluster together; one that leaves gives its vote up.
func TestConsulExpect(t *testing.T) {
	t.Parallel()
	c := newConsulCluster(t, 0, 3)
	for _, p := range c.agents {
		p.kill()
	}
	c.servers = 3
	for i := range c.agents {
		check(t, os.RemoveAll(filepath.Join(c.dir, fmt.Sprintf("d%d", i+1))))
		c.write(i, map[string]any{"bootstrap": nil, "bootstrap_expect": 3})
		c.agents[i] = c.spawn(i)
	}
	c.formed()
	if status, body := c.ask(1, http.MethodPut, "/v1/kv/x", "y"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	_, err := runHoldfast(t, "consul", "leave", "-http-addr", fmt.Sprintf("127.0.0.1:%d", c.http[2]))
	check(t, err)
	<-c.agents[2].done
	c.servers = 2
	c.await(30*time.Second, "the vote of the server that left", 0, "/v1/status/peers", func(_ int, body string) bool { return strings.Count(body, "127.0.0.1:") == 2 })
	c.await(30*time.Second, "the node that left", 0, "/v1/catalog/nodes", func(_ int, body string) bool { return !strings.Contains(body, `"n3"`) })
}

// TestConsulReload: SIGHUP takes services and the log's level anew; an error leaves the old ones in force.
func TestConsulReload(t *testing.T) {
	t.Parallel()
	c := newConsulCluster(t, 1, 1)
	c.write(0, map[string]any{"service": map[string]any{"name": "one", "port": 1}, "retry_join": nil})
	c.await(60*time.Second, "a leader", 0, "/v1/status/leader", contains("127.0.0.1:"))
	hup := func(line string) {
		t.Helper()
		check(t, c.agents[0].cmd.Process.Signal(syscall.SIGHUP))
		if !c.agents[0].log.wait(line, 10*time.Second) {
			t.Fatalf("no %q in:\n%s", line, tail(c.agents[0].log.String()))
		}
	}
	hup("reloaded services")
	c.await(10*time.Second, "the service", 1, "/v1/catalog/service/one", contains(`"ServiceName":"one"`))
	check(t, os.WriteFile(c.path(0), []byte(`{"data_dri": 1}`), 0o600))
	hup("invalid config key data_dri")
	c.await(10*time.Second, "the service", 1, "/v1/catalog/service/one", contains(`"ServiceName":"one"`))
	c.write(0, map[string]any{"service": map[string]any{"name": "two", "port": 2}})
	if status, body := c.ask(0, http.MethodPut, "/v1/agent/reload", ""); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	c.await(10*time.Second, "the other service", 1, "/v1/catalog/service/two", contains(`"ServiceName":"two"`))
	c.await(10*time.Second, "the service that is gone", 1, "/v1/catalog/service/one", contains("[]"))
}
