package etcdflags

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// fromFile starts again from the defaults and reads the configuration file, which replaces flags and variables.
func (p *parser) fromFile() error {
	file, running := p.file, p.messages[:1]
	p.reset()
	p.file, p.messages = file, running
	data, err := p.o.ReadFile(p.file)
	if err != nil {
		return err
	}
	if err := p.readFile(data); err != nil {
		return fmt.Errorf("%s: %w", p.file, err)
	}
	p.note(slog.LevelInfo, "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided", slog.String("path", p.file))
	return nil
}

func (p *parser) readFile(data []byte) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return errors.New("the file must be a mapping of keys to values")
	}
	return eachKey(doc.Content[0], p.fileKey)
}

// eachKey visits a mapping and refuses a repeated key.
func eachKey(n *yaml.Node, visit func(key string, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		if isNull(n) {
			return nil
		}
		return fmt.Errorf("line %d: expected a mapping", n.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		if seen[key] {
			return fmt.Errorf("line %d: %s is given twice", n.Content[i].Line, key)
		}
		seen[key] = true
		value := n.Content[i+1]
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if err := visit(key, value); err != nil {
			var placed *placedError
			if errors.As(err, &placed) {
				return err // an inner mapping knows the line better
			}
			return &placedError{line: n.Content[i].Line, err: err}
		}
	}
	return nil
}

// placedError says on which line of the file something is wrong.
type placedError struct {
	line int
	err  error
}

func (e *placedError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *placedError) Unwrap() error { return e.err }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (p *parser) fileKey(key string, value *yaml.Node) error {
	switch key {
	case "client-transport-security":
		return eachKey(value, func(k string, v *yaml.Node) error { return p.tlsKey("", k, v) })
	case "peer-transport-security":
		if value.Kind != yaml.MappingNode && !isNull(value) {
			return errors.New("invalid peer-transport-security")
		}
		return eachKey(value, func(k string, v *yaml.Node) error { return p.tlsKey("peer-", k, v) })
	case "discovery-config":
		return eachKey(value, p.discoveryKey)
	case "socket-options":
		return eachKey(value, func(k string, v *yaml.Node) error {
			if k != "reuse-port" && k != "reuse-address" {
				return unknownKey("socket-options."+k, "")
			}
			return p.setKey("socket-"+k, v)
		})
	case "config-file", "version":
		return fmt.Errorf("%s cannot stand in the file", key)
	case "discovery-fallback":
		p.note(slog.LevelWarn, "discovery-fallback has no effect: if discovery fails, the member exits")
		return nil
	}
	if _, ok := p.bindings[key]; ok {
		return p.setKey(key, value)
	}
	for _, a := range aliases() {
		if a.old == key {
			if isNull(value) {
				return nil
			}
			s, err := scalar(value)
			if err != nil {
				return err
			}
			return (&aliasValue{p: p, alias: a}).Set(p.bare(a.name, s))
		}
	}
	if why, ok := removed()[key]; ok {
		p.note(slog.LevelWarn, fmt.Sprintf("%s in the configuration file has no effect: %s", key, why))
		return nil
	}
	return unknownKey(key, "")
}

func unknownKey(key, hint string) error {
	if hint != "" {
		hint = " (" + hint + ")"
	}
	return fmt.Errorf("unknown key %q%s: etcd would ignore it in silence, Holdfast does not", key, hint)
}

// setKey sets the flag of that name. A null keeps the default.
func (p *parser) setKey(name string, n *yaml.Node) error {
	if isNull(n) {
		return nil
	}
	s, err := scalar(n)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s = p.bare(name, s)
	b := p.bindings[name]
	if u, ok := b.(*unbound); ok && s == "" && u.check != nil {
		return nil // an empty text for a number or a word: the default
	}
	if s == "" && keepsDefault(name) {
		return nil
	}
	if err := b.Set(s); err != nil {
		return fmt.Errorf("invalid value %q for %s: %w", redact(name, s), name, err)
	}
	p.explicit[name] = true
	return nil
}

// keepsDefault names the keys whose empty text means "not set" to etcd.
func keepsDefault(name string) bool {
	switch name {
	case "initial-cluster-state", "auto-compaction-mode", "auto-compaction-retention", "cors", "host-whitelist", "tls-min-version",
		"log-outputs", "log-level", "log-format", "auth-token", "metrics", "initial-advertise-peer-urls", "advertise-client-urls",
		"listen-peer-urls", "listen-client-urls", "self-signed-cert-validity":
		return true
	}
	return false
}

// scalar returns a scalar's text, or a list's elements joined with commas.
func scalar(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		return n.Value, nil
	case yaml.SequenceNode:
		var parts []string
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode {
				return "", errors.New("expected a list of plain values")
			}
			parts = append(parts, e.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("expected a plain value or a list of plain values")
}

// bare turns a bare number into nanoseconds where the flag is a duration: that is what etcd's file means by it.
func (p *parser) bare(name, s string) string {
	d, isField := p.bindings[name].(interface{ bareUnit() time.Duration })
	isDuration := isField && d.bareUnit() != 0
	switch name {
	case "backend-batch-interval", "compact-hash-check-time", "downgrade-check-time":
		isDuration = true
	}
	if n, err := strconv.ParseInt(s, 10, 64); isDuration && err == nil {
		return time.Duration(n).String()
	}
	return s
}

// tlsKey reads one key of a transport-security section.
func (p *parser) tlsKey(prefix, key string, n *yaml.Node) error {
	name, section := prefix+key, "peer-transport-security"
	if prefix == "" {
		section = "client-transport-security"
	}
	switch key {
	case "cert-file", "key-file", "client-cert-file", "client-key-file", "client-cert-auth", "trusted-ca-file", "auto-tls":
	case "crl-file":
		if name = "peer-crl-file"; prefix == "" {
			name = "client-crl-file"
		}
	case "allowed-cn", "allowed-cns":
		if name = "peer-cert-allowed-cn"; prefix == "" {
			name = "client-cert-allowed-cn"
		}
	case "allowed-hostname", "allowed-hostnames":
		if name = "peer-cert-allowed-hostname"; prefix == "" {
			name = "client-cert-allowed-hostname"
		}
	case "skip-client-san-verification":
		if prefix == "" {
			p.note(slog.LevelWarn, "client-transport-security.skip-client-san-verification has no effect: client addresses are never compared with their certificates")
			return nil
		}
		name = "peer-skip-client-san-verification"
	case "ca-file":
		p.note(slog.LevelWarn, "ca-file in the configuration file has no effect: use trusted-ca-file")
		return nil
	default:
		return unknownKey(section+"."+key, "")
	}
	return p.setKey(name, n)
}

// discoveryKey reads one key of discovery-config.
func (p *parser) discoveryKey(key string, n *yaml.Node) error {
	switch key {
	case "token", "endpoints", "dial-timeout", "request-timeout", "keepalive-time", "keepalive-timeout":
		return p.setKey("discovery-"+key, n)
	case "max-request-bytes", "max-recv-bytes":
		p.note(slog.LevelWarn, "discovery-config."+key+" has no effect: discovery messages are small")
		return nil
	case "secure":
		return eachKey(n, func(k string, v *yaml.Node) error {
			switch k {
			case "cert", "key", "cacert", "insecure-transport", "insecure-skip-tls-verify":
				return p.setKey("discovery-"+k, v)
			}
			return unknownKey("discovery-config.secure."+k, "")
		})
	case "auth":
		return eachKey(n, func(k string, v *yaml.Node) error {
			switch k {
			case "username":
				return p.setKey("discovery-user", v)
			case "password":
				return p.setKey("discovery-password", v)
			}
			return unknownKey("discovery-config.auth."+k, "")
		})
	}
	return unknownKey("discovery-config."+key, "")
}
