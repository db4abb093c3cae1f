package e2e

import (
	"crypto/x509"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHardeningGuideCommands follows the command lines of the etcd hardening guides: a server certificate, client
// authentication, a wildcard beside its own loopback address, and etcdctl with all three files.
func TestHardeningGuideCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, stranger := newAuthority(t, dir, "ca"), newAuthority(t, dir, "stranger")
	server, client := ca.issue("server", nil), ca.issue("client", nil)
	expired := ca.issue("expired", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	serverOnly := ca.issue("server-only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	revoked := ca.issue("revoked", nil)
	foreign := stranger.issue("foreign", nil)
	crl := filepath.Join(dir, "ca.crl")
	ca.crl(crl, revoked)
	ports := freePorts(t, 2)
	url := fmt.Sprintf("https://127.0.0.1:%d", ports[0])

	p := start(t, nil, "etcd", "--name", "infra0", "--data-dir", filepath.Join(dir, "infra0"),
		"--cert-file", server.cert, "--key-file", server.key, "--client-cert-auth", "--trusted-ca-file", ca.path,
		"--client-crl-file", crl,
		"--listen-client-urls", fmt.Sprintf("https://0.0.0.0:%d,%s", ports[0], url), "--advertise-client-urls", url,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		"--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		"--initial-cluster", fmt.Sprintf("infra0=http://127.0.0.1:%d", ports[1]))

	ctl := func(c pair, args ...string) (string, error) {
		all := append([]string{"--endpoints", url, "--cacert", ca.path, "--dial-timeout=3s", "--command-timeout=3s"}, args...)
		if c.cert != "" {
			all = append(all, "--cert", c.cert, "--key", c.key)
		}
		out, err := exec.Command(build(t).etcdctl, all...).CombinedOutput()
		return string(out), err
	}
	if out, err := ctl(client, "put", "foo", "bar"); err != nil || strings.TrimSpace(out) != "OK" {
		t.Fatalf("put with a good certificate: %v\n%s", err, out)
	}
	if out, err := ctl(client, "get", "foo"); err != nil || out != "foo\nbar\n" {
		t.Fatalf("get with a good certificate: %v\n%q", err, out)
	}
	for _, c := range []struct {
		name string
		pair pair
		log  string // what the server's log must say of it
	}{
		{"no certificate", pair{}, "certificate"},
		{"a certificate of another CA", foreign, "foreign"},
		{"an expired certificate", expired, "expired"},
		{"a revoked certificate", revoked, "revoked"},
		{"a serverAuth-only certificate", serverOnly, "server-only"},
	} {
		if out, err := ctl(c.pair, "get", "foo"); err == nil || strings.Contains(out, "bar") {
			t.Errorf("%s was served:\n%s", c.name, out)
		}
		if !p.log.wait(c.log, 5*time.Second) {
			t.Errorf("%s: the log does not say who and why (%q):\n%s", c.name, c.log, tail(p.log.String()))
		}
	}
	if out, err := ctl(client, "get", "foo"); err != nil || out != "foo\nbar\n" {
		t.Fatalf("the server is not well after the refusals: %v\n%s", err, out)
	}
	out, err := exec.Command("curl", "--silent", "--max-time", "5", "--cacert", ca.path, "--cert", client.cert, "--key", client.key,
		url+"/v3/kv/range", "-X", "POST", "-d", `{"key":"Zm9v"}`).CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"value":"YmFy"`) {
		t.Errorf("the gateway over the guide's curl line: %v\n%s", err, out)
	}
	if err := p.stop(); err != nil {
		t.Errorf("the server did not end cleanly: %v", err)
	}
}

// TestTwoMemberPeerTLS is the guides' two-member cluster with peer certificates, and one with --auto-tls.
func TestTwoMemberPeerTLS(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.mustCtl("put", "foo", "bar")
	if out := c.mustCtl("get", "foo", "--print-value-only"); out != "bar\n" {
		t.Fatalf("get = %q", out)
	}
	// A peer port refuses a stranger's certificate and a client without one.
	stranger := newAuthority(t, t.TempDir(), "stranger").issue("stranger", nil)
	for _, args := range [][]string{{}, {"--cert", stranger.cert, "--key", stranger.key}} {
		all := append([]string{"--silent", "--show-error", "--max-time", "5", "--cacert", c.ca.path,
			fmt.Sprintf("https://127.0.0.1:%d/version", c.peerPorts[0])}, args...)
		if out, err := exec.Command("curl", all...).CombinedOutput(); err == nil {
			t.Errorf("curl %v reached the peer port: %s", args, out)
		}
	}
	if !c.members[0].log.wait("rejected connection on peer endpoint", 5*time.Second) {
		t.Errorf("the log does not tell of the refused peer:\n%s", tail(c.members[0].log.String()))
	}
}

func TestAutoTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ports := freePorts(t, 4)
	initial := fmt.Sprintf("a=https://127.0.0.1:%d,b=https://127.0.0.1:%d", ports[2], ports[3])
	for i, name := range []string{"a", "b"} {
		client, peer := fmt.Sprintf("https://127.0.0.1:%d", ports[i]), fmt.Sprintf("https://127.0.0.1:%d", ports[2+i])
		p := spawn(t, nil, "etcd", "--name", name, "--data-dir", filepath.Join(dir, name), "--auto-tls", "--peer-auto-tls",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", initial)
		defer func() {
			if !p.log.wait(readyLine, time.Second) {
				t.Errorf("not ready:\n%s", tail(p.log.String()))
			}
		}()
	}
	var out []byte
	var err error
	for range 20 { // the client's own timeout paces the tries
		out, err = exec.Command(build(t).etcdctl, "--insecure-transport=false", "--insecure-skip-tls-verify", "--command-timeout=2s",
			"--endpoints", fmt.Sprintf("https://127.0.0.1:%d", ports[0]), "put", "foo", "bar").CombinedOutput()
		if err == nil {
			return
		}
	}
	t.Fatalf("put over auto-TLS: %v\n%s", err, out)
}
