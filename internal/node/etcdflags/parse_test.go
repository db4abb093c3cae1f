package etcdflags

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	goparser "go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

type call struct {
	args   []string
	env    []string
	file   string
	stdout bytes.Buffer
	stderr bytes.Buffer
	host   string
}

func (c *call) parse() (*Result, error) {
	return Parse(c.args, Options{
		Environ: c.env, Stdout: &c.stdout, Stderr: &c.stderr,
		ReadFile:    func(string) ([]byte, error) { return []byte(c.file), nil },
		DefaultHost: func() (string, bool) { return c.host, c.host != "" },
	})
}

func mustParse(t *testing.T, args ...string) *Result {
	t.Helper()
	r, err := (&call{args: args}).parse()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return r
}

func (r *Result) says(text string) bool {
	for _, m := range r.Messages {
		if strings.Contains(m.Text, text) {
			return true
		}
	}
	return false
}

// TestNoFlagIsDropped: every row has a class; an honoured one is bound to a Config field that code outside the
// configuration packages reads; any other one has a message, and setting it produces that message or a refusal.
func TestNoFlagIsDropped(t *testing.T) {
	t.Parallel()
	read := fieldsRead(t)
	seen := map[string]bool{}
	for _, s := range table() {
		if seen[s.name] {
			t.Errorf("%s is in the table twice", s.name)
		}
		seen[s.name] = true
		c := config.Etcd()
		switch s.class {
		case honoured:
			b := s.bind(c)
			path := fieldPath(reflect.ValueOf(c).Elem(), b.target())
			if len(path) == 0 {
				t.Errorf("%s is honoured but bound to no field of Config", s.name)
				continue
			}
			if !read[path[len(path)-1]] {
				t.Errorf("%s is honoured by Config.%s, which nothing reads", s.name, strings.Join(path, "."))
			}
		case ignored, refused:
			checkMessage(t, s)
		case action:
		default:
			t.Errorf("%s has no class", s.name)
		}
	}
}

func checkMessage(t *testing.T, s flagSpec) {
	t.Helper()
	if s.why == "" {
		t.Errorf("%s has no message", s.name)
		return
	}
	value := map[string]string{"v2-deprecation": "gone", "logger": "zap", "discovery-fallback": "exit"}[s.name]
	if value == "" {
		value = "1"
		if _, err := time.ParseDuration(s.def); err == nil && strings.HasSuffix(s.def, "s") {
			value = "1s"
		}
	}
	r, err := (&call{args: []string{"--" + s.name + "=" + value}}).parse()
	switch s.class {
	case refused:
		if err == nil || !strings.Contains(err.Error(), s.why) {
			t.Errorf("--%s=%s: error %v, want the refusal %q", s.name, value, err, s.why)
		}
	case ignored:
		if err != nil || !r.says(s.why) {
			t.Errorf("--%s=%s: no message (error %v)", s.name, value, err)
		}
	}
}

// fieldPath finds the field that p points at.
func fieldPath(v reflect.Value, p any) []string {
	if v.Kind() != reflect.Struct || p == nil {
		return nil
	}
	for i := range v.NumField() {
		f := v.Field(i)
		name := v.Type().Field(i).Name
		if f.Addr().Interface() == p {
			return []string{name}
		}
		if rest := fieldPath(f, p); rest != nil {
			return append([]string{name}, rest...)
		}
	}
	return nil
}

// fieldsRead lists every name that a selector outside the configuration packages names.
func fieldsRead(t *testing.T) map[string]bool {
	t.Helper()
	read := map[string]bool{}
	for _, dir := range []string{"..", "../logs"} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := goparser.ParseFile(token.NewFileSet(), name, nil, goparser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					read[s.Sel.Name] = true
				}
				return true
			})
		}
	}
	read["Retention"] = read["Keep"] // read by Compaction.Keep
	return read
}

// TestGatesAreRead: a gate that sets something sets a field that is read.
func TestGatesAreRead(t *testing.T) {
	t.Parallel()
	read := fieldsRead(t)
	gates := reflect.TypeFor[config.Gates]()
	for i := range gates.NumField() {
		if name := gates.Field(i).Name; !read[name] {
			t.Errorf("nothing reads Gates.%s", name)
		}
	}
	for _, g := range knownGates() {
		before, after := config.Etcd(), config.Etcd()
		switch {
		case (g.set == nil) == (g.note == ""):
			t.Errorf("%s: either it sets something or its message says that it does not", g.name)
		case g.set != nil:
			g.set(after, !g.def)
			if before.Gates == after.Gates {
				t.Errorf("%s sets no gate", g.name)
			}
		}
	}
}

// TestEveryEtcdFlagIsKnown holds the names of etcd 3.7.3 apart from the table, so that a lost row shows.
func TestEveryEtcdFlagIsKnown(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/etcd-3.7.3-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range table() {
		known[s.name] = true
	}
	names := strings.Fields(string(data))
	if len(names) < 120 {
		t.Fatalf("only %d names in the list", len(names))
	}
	for _, name := range names {
		if !known[name] {
			t.Errorf("etcd 3.7.3 has --%s; the table does not", name)
		}
	}
}

func TestAliasesLeadSomewhere(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, s := range table() {
		known[s.name] = true
	}
	for _, a := range aliases() {
		if a.gate == "" && !known[a.name] {
			t.Errorf("--%s leads to --%s, which does not exist", a.old, a.name)
		}
		if known[a.old] {
			t.Errorf("--%s is an alias and a flag", a.old)
		}
	}
	r := mustParse(t, "--experimental-watch-progress-notify-interval=5s", "--experimental-initial-corrupt-check")
	if r.Config.Watch.ProgressInterval != 5*time.Second || !r.says("feature gate InitialCorruptCheck has no effect") {
		t.Errorf("the aliases did not take effect: %+v", r.Config.Watch)
	}
	if !r.says("--experimental-watch-progress-notify-interval was removed") {
		t.Error("no warning")
	}
}

func TestSyntax(t *testing.T) {
	t.Parallel()
	r := mustParse(t, "-name", "a", "--strict-reconfig-check=false", "--snapshot-catchup-entries", "7", "--heartbeat-interval=10", "--election-timeout=50",
		"--listen-client-urls=https://127.0.0.1:1,http://127.0.0.1:2", "--advertise-client-urls=http://127.0.0.1:2", "--cert-file=c", "--key-file=k")
	c := r.Config
	if c.Name != "a" || c.Raft.StrictReconfig || c.Raft.CatchUpEntries != 7 || c.Raft.Heartbeat != 10*time.Millisecond || len(c.Listen.Client) != 2 {
		t.Errorf("parsed %+v", c)
	}
	if c.Bootstrap.InitialCluster != "a=http://localhost:2380" {
		t.Errorf("initial cluster %q", c.Bootstrap.InitialCluster)
	}
	if c.DataDir != "a.etcd" {
		t.Errorf("data dir %q", c.DataDir)
	}
	dump := map[string]any{}
	for _, a := range r.Settings {
		dump[a.Key] = a.Value.Any()
	}
	if dump["snapshot-catchup-entries"] != json.Number("7") || dump["snapshot-count"] != json.Number("10000") || dump["v2-deprecation"] != "write-only" {
		t.Errorf("settings %v", dump)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"x"}, `"x" is not a valid flag`},
		{[]string{"--listen-client-urls=http://127.0.0.1:1"}, "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{[]string{"--heartbeat-interval=100", "--election-timeout=400"}, "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{[]string{"--election-timeout=60000"}, "is too long, and should be set less than 50000ms"},
		{[]string{"--listen-peer-urls=http://example.com:2380"}, "expected IP in URL for binding"},
		{[]string{"--discovery-srv=x", "--initial-cluster=a=http://127.0.0.1:1"}, `Choose one of "initial-cluster", "discovery" or "discovery-srv"`},
		{[]string{"--discovery-token=x"}, "both --discovery-token and --discovery-endpoints must be set"},
		{[]string{"--discovery=https://discovery.etcd.io/x"}, "use --discovery-endpoints and --discovery-token"},
		{[]string{"--unsafe-no-fsync"}, "--unsafe-no-fsync is refused"},
		{[]string{"--wal-dir=/x"}, "--wal-dir is refused"},
		{[]string{"--tls-min-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{[]string{"--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"}, "min version (TLS1.3) is greater than max version (TLS1.2)"},
		{[]string{"--client-cert-auth"}, "--client-cert-auth needs --trusted-ca-file"},
		{[]string{"--listen-metrics-urls=https://localhost:1"}, "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url"},
		{[]string{"--auto-compaction-mode=x"}, `unknown auto-compaction-mode "x"`},
		{[]string{"--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"}, "AllowedCNs and AllowedHostnames are mutually exclusive"},
	} {
		_, err := (&call{args: test.args}).parse()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: error %v, want %q", test.args, err, test.want)
		}
	}
}

func TestExits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args        []string
		code        int
		out, errOut string
	}{
		{[]string{"--nope"}, 2, "", "flag provided but not defined: -nope"},
		{[]string{"--v2-deprecation=not-yet"}, 2, "", `invalid value "not-yet" for flag -v2-deprecation: invalid value "not-yet"`},
		{[]string{"--enable-v2"}, 2, "", "the v2 API was removed"},
		{[]string{"--feature-gates=Nope=true"}, 2, "", "unrecognized feature gate: Nope"},
		{[]string{"--initial-cluster-state=maybe"}, 2, "", `invalid value "maybe"`},
		{[]string{"--version"}, 0, "etcd Version: 3.7.3\n", ""},
		{[]string{"--help"}, 0, "--initial-cluster-token 'etcd-cluster'", ""},
	} {
		c := &call{args: test.args}
		_, err := c.parse()
		var exit ExitError
		if !errors.As(err, &exit) || exit.Code != test.code || !strings.Contains(c.stdout.String(), test.out) || !strings.Contains(c.stderr.String(), test.errOut) {
			t.Errorf("%v: %v\nstdout %s\nstderr %s", test.args, err, c.stdout.String(), c.stderr.String())
		}
	}
}

func TestDeprecationLines(t *testing.T) {
	t.Parallel()
	r := mustParse(t, "--max-snapshots=3", "--v2-deprecation=gone")
	for _, want := range []string{
		"--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
		"--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
	} {
		found := false
		for _, m := range r.Messages {
			found = found || m.Text == want && m.Level == slog.LevelWarn
		}
		if !found {
			t.Errorf("no line %q", want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	c := &call{env: []string{"ETCD_NAME=e", "ETCD_STRICT_RECONFIG_CHECK=false", "ETCD_NONSENSE=1", "PATH=/bin", "ETCD_UNSUPPORTED_ARCH=arm"}}
	r, err := c.parse()
	if err != nil || r.Config.Name != "e" || r.Config.Raft.StrictReconfig {
		t.Fatalf("%v %+v", err, r.Config)
	}
	if !r.says("recognized and used environment variable") || !r.says("unrecognized environment variable") {
		t.Errorf("messages %+v", r.Messages)
	}
	_, err = (&call{args: []string{"--name=x"}, env: []string{"ETCD_NAME=e"}}).parse()
	var shadowed *ShadowedError
	if !errors.As(err, &shadowed) || shadowed.Variable != "ETCD_NAME" {
		t.Errorf("both set: %v", err)
	}
	_, err = (&call{env: []string{"ETCD_STRICT_RECONFIG_CHECK=maybe"}}).parse()
	if err == nil || !strings.Contains(err.Error(), "ETCD_STRICT_RECONFIG_CHECK") {
		t.Errorf("bad value: %v", err)
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	t.Parallel()
	r, err := (&call{args: []string{"--discovery-password", "hush", "--discovery-user=u:hush"}, env: []string{"ETCD_DISCOVERY_TOKEN=", "ETCD_XDISCOVERY_PASSWORD=hush"}}).parse()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	for _, m := range r.Messages {
		log.LogAttrs(t.Context(), m.Level, m.Text, m.Attrs...)
	}
	log.LogAttrs(t.Context(), slog.LevelInfo, "settings", r.Settings...)
	if strings.Contains(b.String(), "hush") {
		t.Errorf("a secret is in the log: %s", b.String())
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	c := &call{args: []string{"--config-file=x", "--name=ignored"}, env: []string{"ETCD_DATA_DIR=ignored"}, file: `
name: filed
data-dir:
wal-dir: ''
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
max-snapshots: 5
listen-client-urls: http://localhost:2379
advertise-client-urls: http://localhost:2379
discovery-fallback: 'proxy'
discovery-proxy:
enable-v2: true
proxy: 'off'
proxy-failure-wait: 5000
experimental-initial-corrupt-check: true
watch-progress-notify-interval: 5000000000
cors:
client-transport-security:
  cert-file: c.pem
  key-file: k.pem
  client-cert-auth: true
  trusted-ca-file: ca.pem
  crl-file: crl.pem
  auto-tls: false
  allowed-cn: [a, b]
peer-transport-security:
  auto-tls: true
log-outputs: [stderr]
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
auto-compaction-retention: "1"
force-new-cluster: false
discovery-config:
  dial-timeout: 3000000000
  secure: {insecure-transport: false}
`}
	r, err := c.parse()
	if err != nil {
		t.Fatal(err)
	}
	got := r.Config
	if got.Name != "filed" || got.DataDir != "filed.etcd" || got.Watch.ProgressInterval != 5*time.Second {
		t.Errorf("%+v", got)
	}
	if got.TLS.Client.CRLFile != "crl.pem" || len(got.TLS.Client.AllowedCNs) != 2 || !got.TLS.Peer.AutoTLS || len(got.TLS.CipherSuites) != 2 {
		t.Errorf("%+v", got.TLS)
	}
	if d := got.Bootstrap.Discovery; d.DialTimeout != 3*time.Second || d.InsecureTransport {
		t.Errorf("%+v", d)
	}
	for _, want := range []string{"enable-v2 in the configuration file has no effect", "proxy in the configuration file", "--max-snapshots is deprecated", "discovery-fallback has no effect"} {
		if !r.says(want) {
			t.Errorf("no message %q", want)
		}
	}
	for file, want := range map[string]string{
		"nonsense: 1":                                 `unknown key "nonsense"`,
		"client-transport-security: {x: 1}":           `unknown key "client-transport-security.x"`,
		"peer-transport-security: {x: 1}":             `unknown key "peer-transport-security.x"`,
		"peer-transport-security: 7":                  "invalid peer-transport-security",
		"name: a\nname: b":                            "given twice",
		"unsafe-no-fsync: true":                       "is refused",
		"- a":                                         "must be a mapping",
		"heartbeat-interval: soon":                    "invalid value",
		"watch-progress-notify-interval: [1, {a: b}]": "plain values",
	} {
		if _, err := (&call{args: []string{"--config-file=x"}, file: file}).parse(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", file, err, want)
		}
	}
}

func TestDefaultHost(t *testing.T) {
	t.Parallel()
	r, err := (&call{host: "192.0.2.7", args: []string{"--listen-peer-urls=http://0.0.0.0:2390"}}).parse()
	if err != nil || r.Config.Advertise.Peer.String() != "http://192.0.2.7:2390" || r.Config.Bootstrap.InitialCluster != "default=http://192.0.2.7:2390" {
		t.Errorf("%v %v %v", err, r.Config.Advertise, r.Config.Bootstrap.InitialCluster)
	}
}
