package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFileIsStrict(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nam: x":                             "nam",
		"name: a\nname: b":                   "already",
		"listen: {client: http://nowhere}":   "host:port",
		"listen: {clients: []}":              "clients",
		"name: a\n---\nname: b":              "more than one",
		"raft: {heartbeat: soon}":            "soon",
		"bootstrap: {forcenewcluster: true}": "bootstrap",
		"tls: {client: {certfile: x}}":       "client",
		"mode: etcd":                         "mode",
		"limits: {max-txn-ops: -1}":          "cannot unmarshal",
	} {
		c := Server()
		if err := c.read([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestPrintedConfigurationReadsBack(t *testing.T) {
	t.Parallel()
	c := Server()
	c.Name, c.Join, c.Raft.Heartbeat = "x", "HF1-secret", 50*time.Millisecond
	data, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "HF1-secret") {
		t.Error("the join token is printed")
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	back := Server()
	if err := back.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	back.Join = c.Join
	again, err := back.YAML()
	if err != nil || string(again) != string(data) {
		t.Errorf("printed again: %v\n%s\n%s", err, data, again)
	}
	if err := Server().ReadFile(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestServerServesNoPlaintext(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"client":        func(c *Config) { c.Listen.Client = MustURLs("http://127.0.0.1:2379") },
		"peer":          func(c *Config) { c.Listen.Peer = MustURLs("http://127.0.0.1:2380") },
		"public":        func(c *Config) { c.Listen.Public = MustURLs("http://127.0.0.1:2378") },
		"http":          func(c *Config) { c.Listen.HTTP = MustURLs("unix://x") },
		"metrics wide":  func(c *Config) { c.Listen.Metrics = MustURLs("http://0.0.0.0:2377") },
		"no client":     func(c *Config) { c.Listen.Client = nil },
		"host name":     func(c *Config) { c.Listen.Client = MustURLs("https://example.com:1") },
		"slow election": func(c *Config) { c.Raft.Election = time.Hour },
	} {
		c := Server()
		change(c)
		if _, err := c.Validate(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	c := Server()
	c.Listen.Metrics = MustURLs("http://127.0.0.1:2377")
	if _, err := c.Validate(); err != nil {
		t.Errorf("the defaults with loopback metrics: %v", err)
	}
}

// TestIgnoredTLS: TLS settings that plaintext URLs leave without effect are spoken of, on each side and by their flags.
func TestIgnoredTLS(t *testing.T) {
	t.Parallel()
	files := TLSFiles{CertFile: "c", KeyFile: "k"}
	auth := TLSFiles{CertFile: "c", KeyFile: "k", ClientCertAuth: true, TrustedCAFile: "ca", CRLFile: "crl", AllowedCNs: []string{"x"}}
	for name, test := range map[string]struct {
		client, peer       string
		tlsClient, tlsPeer TLSFiles
		want               []string
	}{
		"none":   {"http://127.0.0.1:1", "http://127.0.0.1:2", TLSFiles{}, TLSFiles{}, nil},
		"secure": {"https://127.0.0.1:1", "https://127.0.0.1:2", auth, auth, nil},
		"files": {"http://127.0.0.1:1", "http://127.0.0.1:2", files, files, []string{
			"scheme is http or unix while key and cert files are present; ignoring key and cert files (client-url http://127.0.0.1:1)",
			"scheme is HTTP while key and cert files are present; ignoring key and cert files (peer-url http://127.0.0.1:2)",
		}},
		"client": {"unix://s", "https://127.0.0.1:2", auth, auth, []string{
			"key and cert files are present", "--client-cert-auth is enabled", "--trusted-ca-file, --client-crl-file, --client-cert-allowed-cn is set",
		}},
		"peer": {"https://127.0.0.1:1", "http://127.0.0.1:2", auth, auth, []string{
			"key and cert files are present", "--peer-client-cert-auth is enabled", "--peer-trusted-ca-file, --peer-crl-file, --peer-cert-allowed-cn is set",
		}},
	} {
		c := Etcd()
		c.Listen.Client, c.Listen.Peer = MustURLs(test.client), MustURLs(test.peer)
		c.Advertise.Client, c.Advertise.Peer = MustURLs("http://127.0.0.1:1"), MustURLs("http://127.0.0.1:2")
		c.Bootstrap.InitialCluster = "default=http://127.0.0.1:2"
		c.TLS.Client, c.TLS.Peer = test.tlsClient, test.tlsPeer
		warnings, err := c.Validate()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, w := range warnings {
			if strings.HasPrefix(w, "scheme is ") {
				got = append(got, w)
			}
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
			continue
		}
		for i, w := range test.want {
			if !strings.Contains(got[i], w) {
				t.Errorf("%s: %q, want %q", name, got[i], w)
			}
		}
	}
}

// TestJudgingFlagsAreNamed: a refusal names flags that exist.
func TestJudgingFlagsAreNamed(t *testing.T) {
	t.Parallel()
	bad := TLSFiles{CertFile: "c", KeyFile: "k", AllowedCNs: []string{"x"}}
	for prefix, want := range map[string]string{
		"": "--client-cert-allowed-cn, --client-cert-allowed-hostname and", "peer-": "--peer-cert-allowed-cn, --peer-cert-allowed-hostname and",
	} {
		if err := bad.validate(prefix); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", prefix, err, want)
		}
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		mode, text string
		period     time.Duration
		revisions  int64
		bad        bool
	}{
		{"periodic", "0", 0, 0, false},
		{"periodic", "5m", 5 * time.Minute, 0, false},
		{"periodic", "2", 2 * time.Hour, 0, false},
		{"revision", "1000", 0, 1000, false},
		{"revision", "-1", 0, 0, true},
		{"periodic", "soon", 0, 0, true},
		{"", "0", 0, 0, true},
	} {
		p, r, err := (Compaction{Mode: test.mode, Retention: test.text}).Keep()
		if p != test.period || r != test.revisions || (err != nil) != test.bad {
			t.Errorf("%s %s: %v %v %v", test.mode, test.text, p, r, err)
		}
	}
}

func TestInitialCluster(t *testing.T) {
	t.Parallel()
	peers, err := ParseInitialCluster("b=http://127.0.0.1:2,a=http://127.0.0.1:1,b=http://127.0.0.1:3")
	if err != nil || len(peers) != 2 || peers[0].Name != "a" || len(peers[1].URLs) != 2 {
		t.Errorf("%+v %v", peers, err)
	}
	for _, bad := range []string{"", "a", "a=", "a=ftp://x:1", "a=http://127.0.0.1:1,b=http://127.0.0.1:1"} {
		if peers, err := ParseInitialCluster(bad); err == nil {
			t.Errorf("%q: %+v", bad, peers)
		}
	}
}

// TestURLsThatAreNone: an error shows the way out where people go wrong most.
func TestURLsThatAreNone(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"127.0.0.1:2379":       "write https://127.0.0.1:2379",
		"localhost:2379":       "write https://localhost:2379",
		":2379":                "write https://:2379",
		"https://a:1,[::1]:99": "write https://[::1]:99",
		"//a:1":                "URL scheme must be http, https, unix, or unixs",
		"tcp://a:1":            "URL scheme must be http, https, unix, or unixs",
		"https://a":            `"host:port"`,
		"https://a:1/path":     "must not contain a path",
	} {
		if urls, err := ParseURLs(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, urls, err, want)
		}
	}
	for _, text := range []string{"unix:/tmp/a.sock", "unix:///tmp/a.sock", "unixs:/a:1"} {
		if _, err := ParseURLs(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseURLs(f *testing.F) {
	for _, s := range []string{"", "http://127.0.0.1:1", "unix://a:1,unixs://b", "https://[::1]:2379,x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		urls, err := ParseURLs(s)
		if err != nil {
			return
		}
		again, err := ParseURLs(urls.String())
		if err != nil || again.String() != urls.String() {
			t.Errorf("%q reads as %q, which reads as %q (%v)", s, urls, again, err)
		}
	})
}
