package etcdflags

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"

	"holdfast.dev/holdfast/internal/node/config"
)

// Version is the etcd release whose behaviour and flags Holdfast takes the place of.
const Version = "3.7.3"

const envPrefix = "ETCD_"

// Options are the surroundings of one invocation.
type Options struct {
	Environ []string  // NAME=value, as os.Environ
	Stdout  io.Writer // version and help
	Stderr  io.Writer // usage errors
	// ReadFile reads the configuration file.
	ReadFile func(path string) ([]byte, error)
	// DefaultHost names this host's address on its default route, for advertise URLs when the listen URL is a
	// wildcard; ok is false if there is none.
	DefaultHost func() (host string, ok bool)
	// Build names the source revision for --version; empty: unknown.
	Build string
}

// Message is something to log once the log is open.
type Message struct {
	Level slog.Level
	Text  string
	Attrs []slog.Attr
}

// Result is what an invocation asks for.
type Result struct {
	Config   *config.Config
	Messages []Message
	Settings []slog.Attr // every flag with its effective value, secrets left out, for the log
}

// ExitError ends the invocation with a code; what there was to say has been printed.
type ExitError struct{ Code int }

// Error says which code.
func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// parser is one invocation under way.
type parser struct {
	o        Options
	config   *config.Config
	set      *flag.FlagSet
	specs    map[string]flagSpec
	bindings map[string]binding
	explicit map[string]bool
	messages []Message
	file     string
	version  bool
}

// Parse reads args (without the program's name) and the environment. An ExitError means that everything has been said;
// any other error is to be logged as a refusal, exit code 1. The Result is there even then, so that the log can be
// opened as asked.
func Parse(args []string, o Options) (*Result, error) {
	p := newParser(o)
	err := p.run(args)
	var exit ExitError
	if errors.As(err, &exit) {
		return nil, err
	}
	return &Result{Config: p.config, Messages: p.messages, Settings: p.settings()}, err
}

func newParser(o Options) *parser {
	p := &parser{o: o}
	p.reset()
	return p
}

// reset starts again from the defaults.
func (p *parser) reset() {
	*p = parser{o: p.o, config: config.Etcd(), specs: map[string]flagSpec{}, bindings: map[string]binding{}, explicit: map[string]bool{}}
	p.set = flag.NewFlagSet("etcd", flag.ContinueOnError)
	p.set.SetOutput(p.o.Stderr)
	p.set.Usage = func() {} // the help has it already
	for _, s := range table() {
		p.specs[s.name] = s
		switch {
		case s.name == "config-file":
			p.set.StringVar(&p.file, s.name, "", s.usage)
		case s.name == "version":
			p.set.BoolVar(&p.version, s.name, false, s.usage)
		default:
			p.bindings[s.name] = s.binding(p.config)
			p.set.Var(p.bindings[s.name], s.name, s.usage)
		}
	}
	for _, a := range aliases() {
		p.set.Var(&aliasValue{p: p, alias: a}, a.old, "")
	}
	for name, why := range removed() {
		p.set.Var(removedValue{why: why, bool: name == "enable-v2" || name == "debug"}, name, "")
	}
}

func (s flagSpec) binding(c *config.Config) binding {
	if s.bind != nil {
		return s.bind(c)
	}
	u := &unbound{}
	if s.free != nil {
		u = s.free()
	}
	u.value = s.def
	return u
}

func (p *parser) run(args []string) error {
	p.note(slog.LevelInfo, "Running: ", slog.Any("args", append([]string{"etcd"}, redactArgs(args)...)))
	if err := p.set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(p.o.Stdout, Help())
			return ExitError{0}
		}
		fmt.Fprint(p.o.Stderr, usageLine)
		return ExitError{2}
	}
	if p.set.NArg() > 0 {
		return fmt.Errorf("%q is not a valid flag", p.set.Arg(0))
	}
	if p.version {
		fmt.Fprint(p.o.Stdout, VersionText(p.o.Build))
		return ExitError{0}
	}
	env := environ(p.o.Environ)
	if p.file == "" {
		p.file = env["ETCD_CONFIG_FILE"]
	}
	var err error
	if p.file != "" {
		err = p.fromFile()
	} else {
		p.set.Visit(func(f *flag.Flag) { p.explicit[f.Name] = true })
		err = p.fromEnv(env)
	}
	if err != nil {
		return err
	}
	if err := p.judge(); err != nil {
		return err
	}
	p.derive()
	warnings, err := p.config.Validate()
	for _, w := range warnings {
		p.note(slog.LevelWarn, w)
	}
	return err
}

// VersionText is what --version prints: etcd's four lines, so that scripts and etcd's suite can read them.
func VersionText(build string) string {
	if build == "" {
		build = "Not provided (use ./build instead of go build)"
	}
	return fmt.Sprintf("etcd Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\n",
		Version, build, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (p *parser) note(level slog.Level, text string, attrs ...slog.Attr) {
	p.messages = append(p.messages, Message{level, text, attrs})
}

func environ(list []string) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return m
}

// fromEnv sets what the command line did not from ETCD_* variables.
func (p *parser) fromEnv(env map[string]string) error {
	used := map[string]bool{"ETCD_CONFIG_FILE": true, "ETCD_UNSUPPORTED_ARCH": true, "ETCD_VERIFY": true}
	if v := env["ETCD_VERSION"]; v != "" {
		p.note(slog.LevelWarn, "cannot set special environment variable", slog.String("key", "ETCD_VERSION"), slog.String("value", v))
		used["ETCD_VERSION"] = true
	}
	var shadowed []string
	var failed error
	p.set.VisitAll(func(f *flag.Flag) {
		key := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, there := env[key]
		if !there || used[key] {
			return
		}
		used[key] = true
		switch {
		case p.explicit[f.Name]:
			shadowed = append(shadowed, key)
		case value != "":
			if err := p.set.Set(f.Name, value); err != nil {
				failed = errors.Join(failed, fmt.Errorf("invalid value %q for %s: %w", redact(f.Name, value), key, err))
				return
			}
			p.explicit[f.Name] = true
			p.note(slog.LevelInfo, "recognized and used environment variable", slog.String("variable-name", key), slog.String("variable-value", redact(f.Name, value)))
		}
	})
	if failed != nil {
		return failed
	}
	if len(shadowed) > 0 {
		return &ShadowedError{Variable: shadowed[0]}
	}
	for _, key := range slices.Sorted(maps.Keys(env)) {
		if strings.HasPrefix(key, envPrefix) && !used[key] {
			p.note(slog.LevelWarn, "unrecognized environment variable", slog.String("environment-variable", key+"="+redact(key, env[key])))
		}
	}
	return nil
}

// ShadowedError says that a variable and its flag were both set.
type ShadowedError struct{ Variable string }

// Error is etcd's text.
func (e *ShadowedError) Error() string {
	return "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))"
}

// judge refuses and comments what was set by what its class says.
func (p *parser) judge() error {
	for _, name := range slices.Sorted(maps.Keys(p.explicit)) {
		s, ok := p.specs[name]
		if !ok {
			continue // an alias: it has spoken when it was set
		}
		switch s.class {
		case refused:
			if v := p.bindings[name].String(); v != s.def && !(s.def == "" && v == "false") {
				return fmt.Errorf("--%s is refused: %s", name, s.why)
			}
		case ignored:
			p.note(slog.LevelWarn, s.why)
		}
	}
	if g, ok := p.bindings["feature-gates"].(*gates); ok {
		for _, w := range g.warnings() {
			p.note(slog.LevelWarn, w)
		}
	}
	return nil
}

// derive fills in what etcd derives from other settings.
func (p *parser) derive() {
	c := p.config
	fresh := config.Etcd()
	if p.file == "" && p.explicit["listen-client-urls"] && !p.explicit["advertise-client-urls"] {
		c.Advertise.Client = nil
	}
	discovers := c.Bootstrap.SRVDomain != "" || len(c.Bootstrap.Discovery.Endpoints) > 0
	if !p.explicit["advertise-client-urls"] {
		p.useDefaultHost(c.Listen.Client, c.Advertise.Client)
	}
	if !p.explicit["initial-advertise-peer-urls"] {
		p.useDefaultHost(c.Listen.Peer, c.Advertise.Peer)
	}
	switch {
	case p.explicit["initial-cluster"] && (!discovers || c.Bootstrap.InitialCluster != fresh.Bootstrap.InitialCluster):
	case discovers:
		c.Bootstrap.InitialCluster = ""
	default:
		var parts []string
		for _, u := range c.Advertise.Peer.Strings() {
			parts = append(parts, c.Name+"="+u)
		}
		c.Bootstrap.InitialCluster = strings.Join(parts, ",")
	}
	if c.DataDir == "" {
		c.DataDir = c.Name + ".etcd"
		p.note(slog.LevelWarn, "'data-dir' was empty; using default", slog.String("data-dir", c.DataDir))
	}
}

// useDefaultHost replaces the host of a default advertise URL when the listen URL is a wildcard.
func (p *parser) useDefaultHost(listen, advertise config.URLs) {
	if p.o.DefaultHost == nil || len(listen) == 0 || len(advertise) != 1 || listen[0].Hostname() != "0.0.0.0" {
		return
	}
	host, ok := p.o.DefaultHost()
	if !ok {
		p.note(slog.LevelInfo, "failed to detect default host")
		return
	}
	advertise[0].Host = host + ":" + listen[0].Port()
	p.note(slog.LevelInfo, "detected default host for advertise", slog.String("host", host))
}

// settings lists every flag with its effective value.
func (p *parser) settings() []slog.Attr {
	var out []slog.Attr
	for _, s := range table() {
		b, ok := p.bindings[s.name]
		if !ok || s.section == legacy {
			continue
		}
		if isSecret(s.name) {
			if b.String() != "" {
				out = append(out, slog.String(s.name, "(set, not shown)"))
			}
			continue
		}
		out = append(out, slog.Any(s.name, shown(b)))
	}
	return out
}

func shown(b binding) any {
	if n, ok := b.(interface{ isNumber() bool }); ok && n.isNumber() {
		return json.Number(b.String())
	}
	switch t := b.target().(type) {
	case *bool:
		return *t
	case *uint64:
		return *t
	case *int64:
		return *t
	case *uint32:
		return *t
	case *uint:
		return *t
	case *int:
		return *t
	case *[]string:
		return *t
	case *config.URLs:
		return t.Strings()
	}
	return b.String()
}

func isSecret(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasSuffix(name, "discovery-password") || strings.HasSuffix(name, "discovery-user") || strings.HasSuffix(name, "seal-kek")
}

func redact(name, value string) string {
	if isSecret(name) {
		return "(not shown)"
	}
	return value
}

// redactArgs returns args with the values of secret flags replaced.
func redactArgs(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || !isSecret(name) {
			continue
		}
		if hasValue {
			out[i] = "--" + name + "=(not shown)"
		} else if i+1 < len(out) {
			out[i+1] = "(not shown)"
		}
	}
	return out
}

// aliasValue sets what a renamed flag is called now.
type aliasValue struct {
	p     *parser
	alias alias
}

func (a *aliasValue) String() string { return "" }

// IsBoolFlag lets an alias of a boolean flag stand without a value.
func (a *aliasValue) IsBoolFlag() bool {
	if a.p == nil {
		return false
	}
	if a.alias.gate != "" {
		return true
	}
	b, ok := a.p.bindings[a.alias.name].(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

func (a *aliasValue) Set(s string) error {
	old := "--" + a.alias.old
	if a.alias.gate != "" {
		a.p.note(slog.LevelWarn, fmt.Sprintf("%s was removed in etcd 3.7; it is taken for --feature-gates=%s=%s", old, a.alias.gate, s))
		return a.p.bindings["feature-gates"].(*gates).add(a.alias.gate, s)
	}
	a.p.note(slog.LevelWarn, fmt.Sprintf("%s was removed in etcd 3.7; it is taken for --%s", old, a.alias.name))
	if s == "" {
		return nil
	}
	a.p.explicit[a.alias.name] = true
	return a.p.bindings[a.alias.name].Set(s)
}

// removedValue refuses a flag of an older release.
type removedValue struct {
	why  string
	bool bool
}

func (r removedValue) String() string   { return "" }
func (r removedValue) IsBoolFlag() bool { return r.bool }
func (r removedValue) Set(s string) error {
	if r.bool && s == "false" {
		return nil
	}
	return errors.New(r.why)
}
