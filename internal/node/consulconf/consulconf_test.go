package consulconf

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write docs/compat/consul-config.md from the tables instead of comparing it with them")

// parse reads files with the given contents, in order, below the given flags.
func parse(t *testing.T, args []string, files ...string) (*Result, error) {
	t.Helper()
	dir := t.TempDir()
	for i, content := range files {
		name := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"-config-file", name}, args...)
	}
	return Parse(args, options())
}

func options() Options {
	return Options{Stderr: io.Discard, ReadFile: os.ReadFile, ReadDir: os.ReadDir, DefaultHost: func() (string, bool) { return "192.0.2.7", true }}
}

const minimal = `{"data_dir": "/d", "bind_addr": "127.0.0.1"}`

// the keys that the guide writes on its first server.
const guide = `{"bootstrap": true, "server": true, "datacenter": "nyc2", "data_dir": "/var/consul", "encrypt": "X4SYOinf2pTAcAHRhpj7dA==",
 "ca_file": "/etc/consul.d/ssl/ca.cert", "cert_file": "/etc/consul.d/ssl/consul.cert", "key_file": "/etc/consul.d/ssl/consul.key",
 "verify_incoming": true, "verify_outgoing": true, "log_level": "INFO", "enable_syslog": true}`

func TestGuide(t *testing.T) {
	t.Parallel()
	r, err := parse(t, nil, guide)
	if err != nil {
		t.Fatal(err)
	}
	c, a := r.Config, r.Config.Consul
	if !a.Server || !a.Found || a.Datacenter != "nyc2" || c.DataDir != "/var/consul" || a.GossipKey == "" || c.Log.Syslog != "LOCAL0" || c.Log.Level != "info" {
		t.Errorf("%+v", a)
	}
	if a.Host != "192.0.2.7" || c.Listen.Peer.String() != "https://0.0.0.0:8300" || c.Advertise.Peer.String() != "https://192.0.2.7:8300" {
		t.Errorf("%s %s %s", a.Host, c.Listen.Peer, c.Advertise.Peer)
	}
	if f := a.RPCFiles; !f.VerifyIncoming || f.CAFile != "/etc/consul.d/ssl/ca.cert" || f.KeyFile != "/etc/consul.d/ssl/consul.key" || f.ServerName != "" || f.MinVersion != "TLS1.2" {
		t.Errorf("%+v", f)
	}
	if !slices.Equal(a.HTTP, []string{"http://127.0.0.1:8500"}) || !slices.Equal(a.DNS, []string{"127.0.0.1:8600"}) || len(a.HTTPS) != 0 {
		t.Errorf("%v %v %v", a.HTTP, a.DNS, a.HTTPS)
	}
	// One warning for each of the five old keys, and none for the others.
	if len(r.Warnings) != 5 {
		t.Errorf("%d warnings: %q", len(r.Warnings), r.Warnings)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	with := func(more string) string { return strings.TrimSuffix(minimal, "}") + ", " + more + "}" }
	for content, want := range map[string]string{
		`{"bind_addr": "127.0.0.1"}`:                                     "data_dir cannot be empty",
		with(`"bootstrp": true`):                                         "invalid config key bootstrp",
		with(`"ports": {"htttp": 1}`):                                    "invalid config key ports.htttp",
		with(`"tls": {"defaults": {"ca": "x"}}`):                         "invalid config key tls.defaults.ca",
		with(`"node_name": 3`):                                           "node_name: wrong type",
		with(`"server": "true"`):                                         "server: wrong type",
		with(`"ports": 3`):                                               "ports: expected an object",
		with(`"ports": {"http": 70000}`):                                 "is no port",
		with(`"ports": {"http": 1.5}`):                                   "no whole number",
		with(`"data_dir": "/e"`):                                         "written twice",
		with(`"acl": {"enabled": true}`):                                 "acl.enabled is refused",
		with(`"acl_default_policy": "deny"`):                             "acl_default_policy is refused",
		with(`"partition": "x"`):                                         "partition is refused",
		with(`"segments": []`):                                           "segments is refused",
		with(`"encrypt": "short"`):                                       "16, 24 or 32 bytes",
		with(`"encrypt_verify_incoming": false`):                         "encrypt_verify_incoming is refused",
		with(`"limits": {"http_max_conns_per_client": 1}`):               "is refused",
		with(`"http_config": {"block_endpoints": ["/v1/kv"]}`):           "http_config.block_endpoints is refused",
		with(`"bootstrap": true`):                                        "bootstrap requires server",
		with(`"server": true, "bootstrap": true, "bootstrap_expect": 3`): "cannot be used together",
		with(`"verify_incoming": true`):                                  "VerifyIncoming set but no CA",
		with(`"verify_outgoing": true`):                                  "VerifyOutgoing set",
		with(`"cert_file": "x"`):                                         "belong together",
		with(`"tls_min_version": "tls10"`):                               "older versions are not spoken",
		with(`"primary_datacenter": "dc2"`):                              "not federated",
		with(`"retry_join": ["provider=aws tag_key=x"]`):                 "cloud providers",
		with(`"advertise_addr": "0.0.0.0"`):                              "advertise_addr",
		with(`"performance": {"raft_multiplier": 11}`):                   "raft_multiplier",
		with(`"log_level": "loud"`):                                      "log_level",
		with(`"node_id": "1"`):                                           "UUID",
		with(`"services": [{"name": "a", "prot": 1}]`):                   `unknown field "prot"`,
		with(`"retry_max": 3`):                                           "retry_max is refused",
		with(`"check": {"name": "c", "interval": "soon"}`):               "check 1",
		with(`"node_meta": {"consul-x": "y"}`):                           "node_meta",
		`[]`:                                                             "cannot unmarshal",
		`{} {}`:                                                          "there is more",
		with(`"node_name": "a`):                                          "unexpected EOF",
		`{"data_dir": "/d"}`:                                             "in the clear to other hosts",
		with(`"telemetri": {}`):                                          "invalid config key telemetri",
		with(`"connection": {}`):                                         "invalid config key connection",
		with(`"watches": [{}]`):                                          "watches is refused",
		with(`"ui_config": true`):                                        "ui_config: expected an object",
	} {
		_, err := parse(t, nil, content)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
	if _, err := parse(t, []string{"-dev"}, minimal); err == nil || !strings.Contains(err.Error(), "data directory") {
		t.Errorf("-dev: %v", err)
	}
	if _, err := parse(t, []string{"-nope"}, minimal); err == nil {
		t.Error("an unknown flag is accepted")
	}
	if _, err := parse(t, []string{"extra"}, minimal); err == nil {
		t.Error("an argument is accepted")
	}
	if _, err := Parse([]string{"-config-file", "a.hcl"}, options()); err == nil || !strings.Contains(err.Error(), "HCL") {
		t.Errorf("HCL: %v", err)
	}
}

// TestPlaintext: other hosts are spoken to in the clear only when somebody insists.
func TestPlaintext(t *testing.T) {
	t.Parallel()
	key, tls := `"encrypt": "X4SYOinf2pTAcAHRhpj7dA=="`, `"ca_file": "c", "cert_file": "d", "key_file": "e"`
	for content, ok := range map[string]bool{
		`{"data_dir": "/d", "bind_addr": "127.0.0.2"}`:                                true,
		`{"data_dir": "/d", "bind_addr": "127.0.0.1", "advertise_addr": "192.0.2.1"}`: false,
		`{"data_dir": "/d"}`:                                                     false,
		`{"data_dir": "/d", ` + key + `}`:                                        false,
		`{"data_dir": "/d", ` + tls + `}`:                                        false,
		`{"data_dir": "/d", ` + key + `, ` + tls + `}`:                           true,
		`{"data_dir": "/d", ` + key + `, "ca_file": "c"}`:                        true,
		`{"data_dir": "/d", "server": true, ` + key + `, "ca_file": "c"}`:        false,
		`{"data_dir": "/d", ` + key + `, ` + tls + `, "client_addr": "0.0.0.0"}`: false,
		`{"data_dir": "/d", ` + key + `, ` + tls + `, "client_addr": "0.0.0.0", "ports": {"http": -1, "https": 8501}}`:   true,
		`{"data_dir": "/d", ` + key + `, ` + tls + `, "addresses": {"http": "unix:///s 127.0.0.1", "dns": "192.0.2.1"}}`: true,
		`{"data_dir": "/d", ` + key + `, ` + tls + `, "addresses": {"http": "192.0.2.1"}}`:                               false,
	} {
		if _, err := parse(t, nil, content); (err == nil) != ok {
			t.Errorf("%s: %v", content, err)
		}
		if _, err := parse(t, []string{"-insecure-allow-plaintext"}, content); err != nil {
			t.Errorf("%s, insisted: %v", content, err)
		}
	}
}

func TestMerging(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a.json": `{"node_name": "a", "retry_join": ["1.1.1.1"], "node_meta": {"x": "1", "y": "1"}, "service": {"name": "one"}}`,
		"b.json": `{"node_name": "b", "retry_join": "2.2.2.2", "node_meta": {"y": "2"}, "services": [{"name": "two", "checks": [{"ttl": "3s"}], "tagged_addresses": {"lan": {"address": "q", "port": 1}}}]}`,
		"note":   `this is not read`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Parse([]string{"-node-meta", "z:3", "-config-dir", dir, "-data-dir=/d", "-bind", "127.0.0.1", "-retry-join", "3.3.3.3", "-http-port", "1", "-join", "4.4.4.4", "-server", "-bootstrap"}, options())
	if err != nil {
		t.Fatal(err)
	}
	a := r.Config.Consul
	if r.Config.Name != "b" || !slices.Equal(a.Retry, []string{"1.1.1.1", "2.2.2.2", "3.3.3.3"}) || !slices.Equal(a.Join, []string{"4.4.4.4"}) || !a.Found ||
		!reflect.DeepEqual(a.NodeMeta, map[string]string{"x": "1", "y": "2", "z": "3"}) || a.HTTP[0] != "http://127.0.0.1:1" {
		t.Errorf("%s %+v", r.Config.Name, a)
	}
	if len(a.Services) != 2 || string(a.Services[1]) != `{"checks":[{"ttl":"3s"}],"name":"two","tagged_addresses":{"lan":{"address":"q","port":1}}}` {
		t.Errorf("%s", a.Services)
	}
}

// TestTLSBlocks: a value in a block wins over defaults, which win over the old flat keys.
func TestTLSBlocks(t *testing.T) {
	t.Parallel()
	r, err := parse(t, nil, `{"data_dir": "/d", "bind_addr": "127.0.0.1", "server": true, "ports": {"https": 1}, "ca_file": "flat", "cert_file": "c", "key_file": "k", "verify_incoming": true,
		"tls": {"defaults": {"ca_file": "default", "tls_min_version": "TLSv1_3"}, "internal_rpc": {"verify_server_hostname": true}, "https": {"ca_file": "own", "verify_incoming": false}}}`)
	if err != nil {
		t.Fatal(err)
	}
	rpc, https := r.Config.Consul.RPCFiles, r.Config.Consul.HTTPSFiles
	if rpc.CAFile != "default" || !rpc.VerifyIncoming || rpc.ServerName != "server.dc1.consul" || rpc.MinVersion != "TLS1.3" || rpc.CertFile != "c" {
		t.Errorf("%+v", rpc)
	}
	if https.CAFile != "own" || https.VerifyIncoming || https.ServerName != "" {
		t.Errorf("%+v", https)
	}
}

// TestTable: every row can be taken, and does what its class says.
func TestTable(t *testing.T) {
	t.Parallel()
	seen, pointers := map[string]bool{}, map[any]string{}
	shared := map[string]bool{"services": true, "checks": true}
	s := defaults()
	for _, k := range table() {
		if seen[k.name] {
			t.Errorf("%s stands twice in the table", k.name)
		}
		seen[k.name] = true
		if k.what == "" || k.class == 0 || (k.bind != nil) != (k.class == obeyed || k.class == renamed) || len(k.only) > 0 && k.class != refused {
			t.Errorf("%s: %+v", k.name, k)
		}
		if k.bind == nil {
			continue
		}
		p := k.bind(s)
		if other := pointers[p]; other != "" && !shared[k.name] {
			t.Errorf("%s and %s write the same place", k.name, other)
		}
		pointers[p] = k.name
		if err := assign(p, sample(p)); err != nil {
			t.Errorf("%s takes no value: %v", k.name, err)
		}
	}
	for _, f := range slices.Concat(flags(), switches()) {
		if f.key == "" {
			continue
		}
		if !seen[f.key] {
			t.Errorf("-%s writes %s, which is no key", f.name, f.key)
			continue
		}
		text := "1"
		if f.name == "node-meta" {
			text = "a:b"
		} else if f.name == "retry-interval" {
			text = "1s"
		}
		if err := f.set(newReader(), text); err != nil {
			t.Errorf("-%s: %v", f.name, err)
		}
	}
}

func sample(to any) any {
	switch to.(type) {
	case *bool, **bool:
		return true
	case *int:
		return json.Number("7")
	case *map[string]string:
		return map[string]any{"a": "b"}
	case *[]map[string]any:
		return map[string]any{"name": "x"}
	}
	if reflect.TypeOf(to).Elem().Kind() == reflect.Int64 {
		return "7s"
	}
	if reflect.TypeOf(to).Elem().Kind() == reflect.Map {
		return map[string]any{"a": "7s"}
	}
	return "x"
}

// TestSuite: what HashiCorp's own test server writes is accepted.
func TestSuite(t *testing.T) {
	t.Parallel()
	const conf = `{"node_name":"node-1","node_id":"11111111-2222-3333-4444-555555555555","node_meta":{"a":"b"},"performance":{"raft_multiplier":1},"bootstrap":true,"server":true,
	"data_dir":"/d","segments":null,"disable_update_check":true,"log_level":"debug","bind_addr":"127.0.0.1","addresses":{},"ports":{"dns":1,"http":2,"https":3,"serf_lan":4,"serf_wan":5,"server":6,"grpc":7,"grpc_tls":8},
	"acl":{"tokens":{}},"connect":{"ca_config":{"cluster_id":"11111111-2222-3333-4444-555555555555"},"enabled":true},"skip_leave_on_interrupt":true,"peering":{"enabled":true},"version":"1.22.0"}`
	r, err := parse(t, nil, conf)
	if err != nil {
		t.Fatal(err)
	}
	if r.Config.Consul.LeaveOnInt || r.Config.Consul.RPC != "127.0.0.1:6" {
		t.Errorf("%+v", r.Config.Consul)
	}
}

// TestPage keeps docs/compat/consul-config.md equal to the tables.
func TestPage(t *testing.T) {
	t.Parallel()
	page := filepath.Join("..", "..", "..", "docs", "compat", "consul-config.md")
	want := keysPage()
	if *rewrite {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(want)) {
		t.Error("docs/compat/consul-config.md does not say what the tables say; run: go test ./internal/node/consulconf -run TestPage -rewrite")
	}
}

func keysPage() string {
	var b strings.Builder
	b.WriteString(`# Consul's configuration keys

What ` + "`holdfast consul agent`" + ` does with each key of Consul's configuration files. This page is made from the tables of internal/node/consulconf and a test
keeps the two equal. A key that is not here ends the start with its name. Files are JSON (HCL is refused); several files and directories are merged in the order of the command line:
later values win, lists grow, maps are merged, flags win over files.

| class | meaning |
|---|---|
| obeyed | it does what the third column says |
| renamed | obeyed, with a warning that names the newer key |
| silent | accepted: what it asks for holds anyway, or there is nothing for it to change |
| no effect | accepted with a warning |
| refused | ends the start, unless the value is one of those in the third column |

| key | class | what |
|---|---|---|
`)
	keys := table()
	slices.SortStableFunc(keys, func(a, b key) int { return strings.Compare(a.name, b.name) })
	for _, k := range keys {
		word := map[class]string{obeyed: "obeyed", renamed: "renamed", silent: "silent", idle: "no effect", refused: "refused"}[k.class]
		what := k.what
		if len(k.only) > 0 {
			var vs []string
			for _, o := range k.only {
				v, _ := json.Marshal(o)
				vs = append(vs, "`"+string(v)+"`")
			}
			what += " (accepted: " + strings.Join(vs, ", ") + ")"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.name, word, what)
	}
	b.WriteString("\n## Definitions of services and checks\n\nThe values of `service`, `services`, `check` and `checks` have the keys of the HTTP API's registrations, in either spelling (`TaggedAddresses`, `tagged_addresses`).\n" +
		"An unknown key ends the start, and so does one that asks for what is not in this build (mesh, containers, tokens).\n")
	b.WriteString("\n## Flags\n\n| flag | key | what |\n|---|---|---|\n")
	all := slices.Concat(flags(), switches())
	slices.SortFunc(all, func(a, b flagSpec) int { return strings.Compare(a.name, b.name) })
	for _, f := range all {
		k := ""
		if f.key != "" {
			k = "`" + f.key + "`"
		}
		what := f.what
		if f.refused != "" {
			what = "refused: " + f.refused
		}
		fmt.Fprintf(&b, "| `-%s` | %s | %s |\n", f.name, k, what)
	}
	return b.String()
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(guide))
	f.Add([]byte(`{"ports":{"http":1},"a":[{"b":{"c":1}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := options()
		o.ReadFile = func(string) ([]byte, error) { return data, nil }
		o.ReadDir = func(string) ([]fs.DirEntry, error) { return nil, fs.ErrNotExist }
		if r, err := ParseFiles([]string{"x.json"}, o); err == nil && r.Config.DataDir == "" {
			t.Error("a configuration without a data directory is accepted")
		}
	})
}
