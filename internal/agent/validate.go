package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

// The three states of a check.
const (
	Passing  = catalog.Passing
	Warning  = catalog.Warning
	Critical = catalog.Critical
)

// The kinds of checks, as the catalog's Type shows them.
const (
	typeTTL         = "ttl"
	typeHTTP        = "http"
	typeTCP         = "tcp"
	typeUDP         = "udp"
	typeGRPC        = "grpc"
	typeScript      = "script"
	typeAlias       = "alias"
	typeMaintenance = "maintenance"
)

const (
	minInterval        = time.Second // shorter ones are raised to it
	minDeregisterAfter = time.Minute // shorter ones are raised to it
	defaultOutputSize  = 4096
	maxWeight          = 65535
	maxMetaPairs       = 64
	maxMetaKey         = 128
	maxMetaValue       = 512
)

func invalid(format string, args ...any) *Error {
	return &Error{Kind: fault.Invalid, Text: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) *Error {
	return &Error{Kind: fault.Unsupported, Text: fmt.Sprintf(format, args...)}
}

// scriptsRefused is the answer to a script from a way for which scripts were not asked for.
func scriptsRefused(local bool) *Error {
	text := "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
	if local {
		text = "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true"
	}
	return &Error{Kind: fault.Denied, Text: text, Hint: "whoever may register a script may run any command on this host"}
}

// service turns a definition into the catalog's service and its checks, or says in Consul's words what is wrong with it.
func (a *Agent) service(def ServiceDefinition, local bool) (*catalog.Service, []*CheckDefinition, error) {
	if err := refuseService(def); err != nil {
		return nil, nil, err
	}
	if def.ID == "" {
		def.ID = def.Name
	}
	s := &catalog.Service{
		Node: a.o.Node.Name, ID: def.ID, Name: def.Name, Tags: slices.Clone(def.Tags), Address: def.Address,
		SocketPath: def.SocketPath, Port: def.Port, TaggedAddresses: maps.Clone(def.TaggedAddresses),
		Meta: maps.Clone(def.Meta), Weights: catalog.Weights{Passing: 1, Warning: 1}, EnableTagOverride: def.EnableTagOverride,
	}
	if def.Weights != nil {
		s.Weights = *def.Weights
	}
	if def.Locality != nil {
		s.Extra, _ = json.Marshal(map[string]*Locality{"Locality": def.Locality}) // two strings: it cannot fail
	}
	addLocalAddresses(s)
	var given []CheckDefinition
	if def.Check != nil && !def.Check.empty() {
		given = append(given, *def.Check)
	}
	given = append(given, def.Checks...)
	checks := make([]*CheckDefinition, 0, len(given))
	seen := map[string]bool{}
	for i := range given {
		c := given[i]
		c.ServiceID = def.ID
		c.ID = c.id()
		if c.ID == "" {
			c.ID = "service:" + def.ID
			if len(given) > 1 {
				c.ID = fmt.Sprintf("service:%s:%d", def.ID, i+1)
			}
		}
		if c.Name == "" {
			c.Name = fmt.Sprintf("Service '%s' check", def.Name)
		}
		if err := a.check(&c, local); err != nil {
			return nil, nil, prefixed("Invalid check: ", err)
		}
		if seen[c.ID] {
			return nil, nil, invalid("Invalid check: two checks of one service have the ID %q", c.ID)
		}
		seen[c.ID] = true
		checks = append(checks, &c)
	}
	return s, checks, nil
}

// prefixed puts words before a refusal, except before that of a script, which Consul's clients know as it is.
func prefixed(words string, err *Error) *Error {
	if err.Kind == fault.Denied {
		return err
	}
	return &Error{Kind: err.Kind, Text: words + err.Text, Hint: err.Hint}
}

func refuseService(def ServiceDefinition) error {
	if err := refuseForeign("service", def.Namespace, def.Partition, def.Token); err != nil {
		return err
	}
	switch {
	case def.Name == "":
		return invalid("Missing service name")
	case def.Kind != "":
		return unsupported("Service kind %q belongs to the service mesh, which Holdfast does not have", def.Kind)
	case !hollow(def.Connect, false):
		return unsupported("Connect belongs to the service mesh, which Holdfast does not have")
	case !hollow(def.Proxy, true):
		return unsupported("Proxy belongs to the service mesh, which Holdfast does not have")
	case !hollow(def.Ports, false):
		return unsupported("Ports (several named ports of one service) is not supported: register one service for each port")
	case strings.ContainsFunc(def.Name+def.ID, unicode.IsControl):
		return invalid("Invalid service: its name and ID must not hold control characters")
	case def.Port < 0 || def.Port > 65535:
		return invalid("Invalid service: port %d is not between 0 and 65535", def.Port)
	case def.SocketPath != "" && (def.Port != 0 || def.Address != ""):
		return invalid("SocketPath is mutually exclusive with Address and Port")
	case net.ParseIP(def.Address).IsUnspecified():
		return invalid("Invalid service address")
	}
	for name, addr := range def.TaggedAddresses {
		if addr.Address == "" || net.ParseIP(addr.Address).IsUnspecified() || addr.Port < 0 || addr.Port > 65535 {
			return invalid("Invalid service tagged address %q: %s:%d", name, addr.Address, addr.Port)
		}
	}
	if w := def.Weights; w != nil {
		switch {
		case w.Passing < 1:
			return invalid("Invalid Weights: Passing must be greater than 0")
		case w.Warning < 0:
			return invalid("Invalid Weights: Warning must be greater or equal than 0")
		case w.Passing > maxWeight || w.Warning > maxWeight:
			return invalid("Invalid Weights: DNS Weight must be between 0 and 65535")
		}
	}
	return refuseMeta(def.Meta)
}

func refuseForeign(what, namespace, partition, token string) error {
	switch {
	case namespace != "" && namespace != "default":
		return invalid("Invalid %s: namespaces are a feature of Consul Enterprise: there is only \"default\"", what)
	case partition != "" && partition != "default":
		return invalid("Invalid %s: partitions are a feature of Consul Enterprise: there is only \"default\"", what)
	case token != "":
		return unsupported("Invalid %s: a token of its own is not supported: this build has no Consul ACLs", what)
	}
	return nil
}

func refuseMeta(meta map[string]string) error {
	if len(meta) > maxMetaPairs {
		return invalid("Invalid Service Meta: Node metadata cannot contain more than %d key/value pairs", maxMetaPairs)
	}
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		ok := k != "" && !strings.ContainsFunc(k, func(r rune) bool {
			return r != '-' && r != '_' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
		})
		switch {
		case !ok:
			return invalid("Invalid Service Meta: Couldn't load metadata pair ('%s', '%s'): Key contains invalid characters", k, meta[k])
		case len(k) > maxMetaKey:
			return invalid("Invalid Service Meta: Couldn't load metadata pair ('%s', …): Key is too long (limit: %d characters)", k, maxMetaKey)
		case len(meta[k]) > maxMetaValue:
			return invalid("Invalid Service Meta: Couldn't load metadata pair ('%s', …): Value is too long (limit: %d characters)", k, maxMetaValue)
		}
	}
	return nil
}

// addLocalAddresses gives a service with an IP address the tagged addresses that clients ask for.
func addLocalAddresses(s *catalog.Service) {
	ip, err := netip.ParseAddr(s.Address)
	if err != nil {
		return
	}
	family := "v6"
	if ip.Unmap().Is4() {
		family = "v4"
	}
	if s.TaggedAddresses == nil {
		s.TaggedAddresses = map[string]catalog.Address{}
	}
	for _, scope := range []string{"lan_ip", "wan_ip"} {
		if _, ok := s.TaggedAddresses[scope+family]; !ok {
			s.TaggedAddresses[scope+family] = catalog.Address{Address: s.Address, Port: s.Port}
		}
	}
}

func (c *CheckDefinition) id() string {
	if c.ID != "" {
		return c.ID
	}
	return c.CheckID
}

// empty reports whether nothing was defined, as "Check": {} does.
func (c *CheckDefinition) empty() bool { return reflect.ValueOf(*c).IsZero() }

func (c *CheckDefinition) refusedKind() string {
	switch {
	case c.DockerContainerID != "":
		return "Docker checks"
	case c.H2PING != "":
		return "H2PING checks"
	case c.OSService != "":
		return "OSService checks"
	case c.Script != "" || c.Shell != "":
		return "checks by a shell (Script, Shell)"
	}
	return ""
}

// kind returns what a definition asks for; empty: nothing, or several things at once.
func (c *CheckDefinition) kind() string {
	kinds := make([]string, 0, 1)
	for _, k := range []struct {
		kind string
		is   bool
	}{
		{typeTTL, c.TTL != 0}, {typeHTTP, c.HTTP != ""}, {typeTCP, c.TCP != ""}, {typeUDP, c.UDP != ""}, {typeGRPC, c.GRPC != ""},
		{typeScript, len(c.Args)+len(c.ScriptArgs) > 0}, {typeAlias, c.AliasNode != "" || c.AliasService != ""},
	} {
		if k.is {
			kinds = append(kinds, k.kind)
		}
	}
	if len(kinds) != 1 {
		return ""
	}
	return kinds[0]
}

// check completes and judges a definition whose ID and Name are set.
func (a *Agent) check(c *CheckDefinition, local bool) *Error {
	if err := refuseForeign("check", c.Namespace, c.Partition, c.Token); err != nil {
		return err.(*Error)
	}
	if kind := c.refusedKind(); kind != "" {
		return unsupported("%s are not supported", kind)
	}
	if c.Interval != 0 && c.TTL != 0 {
		return invalid("Interval and TTL cannot both be specified")
	}
	kind := c.kind()
	if err := c.refuseNumbers(kind); err != nil {
		return err
	}
	switch kind {
	case typeScript:
		if !a.o.Scripts && !(local && a.o.LocalScripts) {
			return scriptsRefused(local)
		}
		if len(c.Args) == 0 {
			c.Args, c.ScriptArgs = c.ScriptArgs, nil
		}
	case typeHTTP:
		u, err := url.Parse(c.HTTP)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return invalid("HTTP must be a URL of http or https")
		}
		if u.Scheme == "https" && a.o.Secure == nil {
			return unsupported("checks over TLS are not set up on this agent")
		}
	case typeTCP, typeUDP, typeGRPC:
		address, _, _ := strings.Cut(c.TCP+c.UDP+c.GRPC, "/")
		if _, _, err := net.SplitHostPort(address); err != nil {
			return invalid("%s must be host:port: %v", strings.ToUpper(kind), err)
		}
		if (c.TCPUseTLS || c.GRPCUseTLS) && a.o.Secure == nil {
			return unsupported("checks over TLS are not set up on this agent")
		}
	}
	if c.Status == "" {
		c.Status = Critical
	}
	if !validStatus(c.Status) {
		return invalid("Status must be 'passing', 'warning', or 'critical'")
	}
	return nil
}

func (c *CheckDefinition) refuseNumbers(kind string) *Error {
	several := 0
	for _, is := range []bool{c.TTL != 0, c.HTTP != "", c.TCP != "", c.UDP != "", c.GRPC != "", len(c.Args)+len(c.ScriptArgs) > 0, c.AliasNode != "" || c.AliasService != ""} {
		if is {
			several++
		}
	}
	switch {
	case several > 1:
		return invalid("only one of TTL, HTTP, TCP, UDP, GRPC, Args and AliasNode or AliasService can be specified")
	case c.TTL < 0 || kind == "" && c.Interval == 0:
		return invalid("TTL must be > 0 for TTL checks")
	case kind == "":
		return invalid("Interval is given, but nothing to check: HTTP, TCP, UDP, GRPC or Args")
	case kind != typeTTL && kind != typeAlias && c.Interval <= 0:
		return invalid("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	case c.Timeout < 0 || c.Interval < 0 || c.DeregisterCriticalServiceAfter < 0:
		return invalid("Timeout, Interval and DeregisterCriticalServiceAfter must not be negative")
	case c.OutputMaxSize < 0:
		return invalid("OutputMaxSize must be positive")
	case c.SuccessBeforePassing < 0 || c.FailuresBeforeWarning < 0 || c.FailuresBeforeCritical < 0:
		return invalid("SuccessBeforePassing, FailuresBeforeWarning and FailuresBeforeCritical must not be negative")
	case c.FailuresBeforeWarning > c.FailuresBeforeCritical && c.FailuresBeforeCritical > 0:
		return invalid("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
	}
	return nil
}

func validStatus(status string) bool {
	return status == Passing || status == Warning || status == Critical
}
