package consulconf

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

// Result is a configuration that was read.
type Result struct {
	Config   *config.Config
	Warnings []string // in the order in which they should be said
}

// Options are what Parse needs of its process.
type Options struct {
	Stderr   io.Writer
	ReadFile func(string) ([]byte, error)
	ReadDir  func(string) ([]fs.DirEntry, error)
	// DefaultHost names the address of this host on its default route.
	DefaultHost func() (host string, ok bool)
}

// System are the Options of a process; the default host is the caller's to set.
func System() Options {
	return Options{Stderr: os.Stderr, ReadFile: os.ReadFile, ReadDir: os.ReadDir}
}

// ErrHelp is returned when the arguments asked for help, which has been printed.
var ErrHelp = flag.ErrHelp

// Parse reads the arguments of `consul agent`, the files that they name in their order, and the flags over them.
func Parse(args []string, o Options) (*Result, error) {
	r := newReader()
	var later []func() error // flags win over files, wherever they stand
	set := flag.NewFlagSet("agent", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, f := range flags() {
		set.Func(f.name, f.what, func(text string) error {
			switch {
			case f.file:
				return r.path(text, o)
			case f.refused != "":
				return errors.New(f.refused)
			}
			later = append(later, func() error { return f.set(r, text) })
			return nil
		})
	}
	for _, f := range switches() {
		set.BoolFunc(f.name, f.what, func(text string) error {
			if f.refused != "" {
				return errors.New(f.refused)
			}
			later = append(later, func() error { return f.set(r, text) })
			return nil
		})
	}
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(o.Stderr, Help())
		}
		return nil, err
	}
	if set.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	for _, f := range later {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return r.finish(o)
}

// ParseFiles reads files and directories alone: `consul validate` and a reload use it.
func ParseFiles(paths []string, o Options) (*Result, error) {
	r := newReader()
	for _, p := range paths {
		if err := r.path(p, o); err != nil {
			return nil, err
		}
	}
	return r.finish(o)
}

// path reads a file, or the files of a directory in the order of their names.
func (r *reader) path(name string, o Options) error {
	entries, err := o.ReadDir(name)
	if err == nil {
		for _, e := range entries {
			switch ext := filepath.Ext(e.Name()); {
			case e.IsDir(), strings.HasPrefix(e.Name(), "."):
			case ext == ".json":
				if err := r.read(filepath.Join(name, e.Name()), o); err != nil {
					return err
				}
			case ext == ".hcl":
				return errHCL(filepath.Join(name, e.Name()))
			}
		}
		return nil
	}
	if filepath.Ext(name) == ".hcl" {
		return errHCL(name)
	}
	return r.read(name, o)
}

func errHCL(name string) error {
	return fmt.Errorf("%s: HCL is not read in this build; write the same keys as JSON", name)
}

func (r *reader) read(name string, o Options) error {
	data, err := o.ReadFile(name)
	if err != nil {
		return err
	}
	return r.file(name, data)
}

// flagSpec is one flag of the command line.
type flagSpec struct {
	name, what string
	key        string // the key that it writes
	refused    string
	file       bool
	set        func(r *reader, text string) error
}

// flags are those with a value.
func flags() []flagSpec {
	text := func(name, key, what string) flagSpec {
		return flagSpec{name: name, key: key, what: what, set: func(r *reader, v string) error { return r.flag(key, v) }}
	}
	number := func(name, key, what string) flagSpec {
		return flagSpec{name: name, key: key, what: what, set: func(r *reader, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil {
				return fmt.Errorf("-%s: %q is no number", name, v)
			}
			return r.flag(key, n)
		}}
	}
	return []flagSpec{
		{name: "config-file", what: "a JSON file of Consul's keys; may be repeated, later ones win", file: true},
		{name: "config-dir", what: "a directory of them, read in the order of their names", file: true},
		text("node", "node_name", "the name of this agent's node"),
		text("node-id", "node_id", "the node's UUID"),
		text("datacenter", "datacenter", "the name of the data center"),
		text("data-dir", "data_dir", "the data directory"),
		text("bind", "bind_addr", "the IP address of gossip and RPC"),
		text("advertise", "advertise_addr", "the IP address that others use"),
		text("client", "client_addr", "the addresses of HTTP, HTTPS and DNS"),
		text("domain", "domain", "the domain that DNS answers for"),
		text("encrypt", "encrypt", "the gossip key in base64 (arguments can be seen by others: prefer a file)"),
		text("join", "start_join", "an agent to join"),
		text("retry-join", "retry_join", "an agent to join, tried until it answers"),
		text("pid-file", "pid_file", "written at start"),
		text("log-level", "log_level", "trace, debug, info, warn or err"),
		text("log-file", "log_file", "also log to this file"),
		text("recursor", "recursors", "a server that answers for other domains"),
		number("bootstrap-expect", "bootstrap_expect", "that many servers found a cluster once they see each other"),
		number("http-port", "ports.http", "the port of the HTTP API"),
		number("https-port", "ports.https", "the port of the HTTPS API"),
		number("dns-port", "ports.dns", "the port of DNS"),
		number("serf-lan-port", "ports.serf_lan", "the port of gossip"),
		number("server-port", "ports.server", "the port of RPC and replication"),
		{name: "retry-interval", key: "retry_interval", what: "the time between attempts to join", set: func(r *reader, v string) (err error) {
			r.settings.retryInterval, err = time.ParseDuration(v)
			return err
		}},
		{name: "node-meta", key: "node_meta", what: "KEY:VALUE; may be repeated", set: func(r *reader, v string) error {
			k, val, ok := strings.Cut(v, ":")
			if !ok {
				return fmt.Errorf("-node-meta %q: expected KEY:VALUE", v)
			}
			return assign(&r.settings.nodeMeta, map[string]any{k: val})
		}},
		{name: "seal-kek", what: "Holdfast's own: where the key is that opens the data directory (default: file:DATA_DIR.kek)", set: func(r *reader, v string) error {
			r.settings.sealKEK = v
			return nil
		}},
		{name: "config-format", what: "json", set: func(_ *reader, v string) error {
			if v != "json" {
				return fmt.Errorf("-config-format %s: only json is read in this build", v)
			}
			return nil
		}},
	}
}

// switches are those without a value.
func switches() []flagSpec {
	sw := func(name, key, what string) flagSpec {
		return flagSpec{name: name, key: key, what: what, set: func(r *reader, v string) error {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return fmt.Errorf("-%s: %w", name, err)
			}
			return r.flag(key, b)
		}}
	}
	return []flagSpec{
		sw("server", "server", "this agent holds a replicated member of the state"),
		sw("bootstrap", "bootstrap", "an empty server founds a cluster of one"),
		sw("syslog", "enable_syslog", "also log to this host's syslog"),
		sw("log-json", "log_json", "one JSON object a line"),
		sw("enable-script-checks", "enable_script_checks", "anybody who may register a check names a program that this agent runs"),
		sw("enable-local-script-checks", "enable_local_script_checks", "only this agent's own files name programs"),
		sw("disable-host-node-id", "disable_host_node_id", "accepted: the node's id is always drawn"),
		{name: "insecure-allow-plaintext", what: "Holdfast's own: serve gossip, RPC and HTTP without TLS on addresses that other hosts reach", set: func(r *reader, v string) (err error) {
			r.settings.allowPlaintext, err = strconv.ParseBool(v)
			return err
		}},
		{name: "dev", what: "refused", refused: "an agent without a data directory is not in this build; give -data-dir and -bootstrap -server -bind 127.0.0.1"},
		{name: "ui", what: "refused", refused: "there is no web interface"},
		{name: "rejoin", what: "refused", refused: "an agent that has left joins again by -retry-join"},
	}
}

// flag writes the value of a flag over what the files say.
func (r *reader) flag(name string, v any) error {
	k, ok := r.keys[name]
	if !ok {
		return fmt.Errorf("the flag's key %s is not in the table", name)
	}
	if k.bind == nil {
		return nil
	}
	to := k.bind(r.settings)
	switch v := v.(type) {
	case int:
		*to.(*int) = v //nolint:forcetypeassert // TestFlags writes every flag
		return nil
	default:
		return assign(to, v)
	}
}

// Help describes the flags.
func Help() string {
	var b strings.Builder
	b.WriteString("Usage: holdfast consul agent [flags]\n\nA Consul agent: Consul's own flags and keys (docs/compat/consul-config.md lists every key).\n\n")
	all := slices.Concat(flags(), switches())
	slices.SortFunc(all, func(a, b flagSpec) int { return strings.Compare(a.name, b.name) })
	for _, f := range all {
		if f.refused != "" {
			continue
		}
		fmt.Fprintf(&b, "  -%s\n      %s\n", f.name, f.what)
	}
	return b.String()
}
