package consulconf

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"holdfast.dev/holdfast/internal/node/config"
)

// names translates the keys of definitions in files into those of the HTTP API. The value is the API's name; below says
// what is inside.
type names map[string]inner

type inner struct {
	api   string
	below names  // nil: taken as it is
	any   bool   // below holds what every key of a map is made of
	list  bool   // a list of below
	why   string // refused, because
}

func checkNames() names {
	return names{
		"id": {api: "CheckID"}, "check_id": {api: "CheckID"}, "name": {api: "Name"}, "notes": {api: "Notes"}, "service_id": {api: "ServiceID"}, "status": {api: "Status"},
		"args": {api: "Args"}, "script_args": {api: "Args"}, "http": {api: "HTTP"}, "header": {api: "Header"}, "method": {api: "Method"}, "body": {api: "Body"},
		"disable_redirects": {api: "DisableRedirects"}, "tcp": {api: "TCP"}, "tcp_use_tls": {api: "TCPUseTLS"}, "udp": {api: "UDP"}, "grpc": {api: "GRPC"}, "grpc_use_tls": {api: "GRPCUseTLS"},
		"h2ping": {api: "H2PING"}, "h2ping_use_tls": {api: "H2PingUseTLS"}, "os_service": {api: "OSService"},
		"alias_node": {api: "AliasNode"}, "alias_service": {api: "AliasService"}, "interval": {api: "Interval"}, "timeout": {api: "Timeout"}, "ttl": {api: "TTL"},
		"tls_server_name": {api: "TLSServerName"}, "tls_skip_verify": {api: "TLSSkipVerify"}, "output_max_size": {api: "OutputMaxSize"},
		"success_before_passing": {api: "SuccessBeforePassing"}, "failures_before_warning": {api: "FailuresBeforeWarning"}, "failures_before_critical": {api: "FailuresBeforeCritical"},
		"deregister_critical_service_after": {api: "DeregisterCriticalServiceAfter"},
		"docker_container_id":               {why: "checks inside containers are not in this build"}, "shell": {why: "checks inside containers are not in this build"},
		"script": {why: "use args, a list that no shell reads"}, "token": {why: "ACLs are not in this build yet"},
	}
}

func serviceNames() names {
	address := names{"address": {api: "Address"}, "port": {api: "Port"}}
	return names{
		"id": {api: "ID"}, "name": {api: "Name"}, "tags": {api: "Tags"}, "address": {api: "Address"}, "port": {api: "Port"}, "socket_path": {api: "SocketPath"},
		"meta": {api: "Meta"}, "tagged_addresses": {api: "TaggedAddresses", below: address, any: true}, "enable_tag_override": {api: "EnableTagOverride"},
		"weights": {api: "Weights", below: names{"passing": {api: "Passing"}, "warning": {api: "Warning"}}},
		"check":   {api: "Check", below: checkNames()}, "checks": {api: "Checks", below: checkNames(), list: true},
		"kind": {why: "the service mesh is not in this build"}, "connect": {why: "the service mesh is not in this build"}, "proxy": {why: "the service mesh is not in this build"},
		"token": {why: "ACLs are not in this build yet"}, "locality": {why: "nothing is routed by locality"}, "ports": {why: "services with several named ports are not in this build"},
	}
}

// definitions turns services and checks into the form of the HTTP API.
func (r *reader) definitions(s *settings, c *config.Config, _ Options) error {
	for _, d := range []struct {
		what  string
		from  []map[string]any
		names names
		to    *[]json.RawMessage
	}{{"service", s.services, serviceNames(), &c.Consul.Services}, {"check", s.checks, checkNames(), &c.Consul.Checks}} {
		for i, m := range d.from {
			api, err := d.names.translate(m)
			if err != nil {
				return fmt.Errorf("%s %d: %w", d.what, i+1, err)
			}
			if api["Name"] == nil && !(d.what == "check" && api["CheckID"] != nil) {
				return fmt.Errorf("%s %d has no name", d.what, i+1)
			}
			data, err := json.Marshal(api)
			if err != nil {
				return err
			}
			*d.to = append(*d.to, data)
		}
	}
	return nil
}

func (n names) translate(m map[string]any) (map[string]any, error) {
	out := map[string]any{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := m[k]
		to, ok := n[k]
		switch {
		case !ok:
			return nil, fmt.Errorf("invalid config key %s", k)
		case to.why != "" && !empty(v):
			return nil, fmt.Errorf("%s is refused: %s", k, to.why)
		case v == nil || to.why != "":
			continue
		}
		if _, twice := out[to.api]; twice {
			return nil, fmt.Errorf("%s says what another key says already", k)
		}
		inside, err := to.inside(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		out[to.api] = inside
	}
	return out, nil
}

// inside translates a value that has keys of its own.
func (i inner) inside(v any) (any, error) {
	if i.below == nil {
		return v, nil
	}
	if i.list {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		var out []any
		for _, e := range list {
			m, ok := e.(map[string]any)
			if !ok {
				return nil, fmt.Errorf("%w: expected an object", errKind)
			}
			t, err := i.below.translate(m)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
		return out, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w: expected an object", errKind)
	}
	if !i.any {
		return i.below.translate(m)
	}
	out := map[string]any{}
	for k, e := range m {
		em, ok := e.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: %w: expected an object", k, errKind)
		}
		t, err := i.below.translate(em)
		if err != nil {
			return nil, err
		}
		out[k] = t
	}
	return out, nil
}

// empty reports whether a refused key asks for nothing.
func empty(v any) bool { return v == nil || v == "" || v == false }
