package consulconf

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/config"
)

// Refusals with advice.
var (
	// ErrPlaintext means that what agents say to each other would be readable and writable for everybody on the way.
	ErrPlaintext = fault.New(fault.Invalid, "this agent would speak in the clear to other hosts")
	// ErrNoDataDir means that data_dir is missing.
	ErrNoDataDir = fault.New(fault.Invalid, "data_dir cannot be empty")
)

// finish derives the configuration from the settings and says what is wrong with it.
func (r *reader) finish(o Options) (*Result, error) {
	s := r.settings
	c := config.ConsulAgent()
	c.Name = cmp.Or(s.nodeName, c.Name)
	c.DataDir = s.dataDir
	c.Seal.KEK = s.sealKEK
	a := c.Consul
	for _, step := range []func(*settings, *config.Config, Options) error{
		r.names, r.formation, r.addresses, r.join, r.tls, r.logging, r.raft, r.definitions, r.plaintext,
	} {
		if err := step(s, c, o); err != nil {
			return nil, err
		}
	}
	a.Scripts, a.LocalScripts, a.ChecksWithTLS = s.scripts, s.scripts || s.localScripts, s.checksWithTLS
	a.PidFile, a.OnlyPassing, a.NodeTTL, a.ServiceTTL = s.pidFile, s.onlyPassing, s.nodeTTL, s.serviceTTL
	a.UDPAnswers, a.Recursors = s.udpAnswers, s.recursors
	a.MaxStale, a.Truncate, a.UpdateInterval, a.Connect, a.ConnectID = s.maxStale, s.truncate, s.updateInterval, s.connect, s.connectID
	a.LeaveOnTerm = s.leaveOnTerm
	a.LeaveOnInt = !s.server
	if s.skipLeaveOnInt != nil {
		a.LeaveOnInt = !*s.skipLeaveOnInt
	}
	return &Result{Config: c, Warnings: r.warnings}, nil
}

func (r *reader) names(s *settings, c *config.Config, _ Options) error {
	word := regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
	label := regexp.MustCompile(`^[A-Za-z0-9\-]+$`)
	id := regexp.MustCompile(`^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$`)
	a := c.Consul
	a.Datacenter = strings.ToLower(s.datacenter)
	primary := strings.ToLower(cmp.Or(s.primaryDatacenter, s.aclDatacenter))
	switch {
	case s.dataDir == "":
		return ErrNoDataDir.WithHint("set data_dir in the file, or -data-dir PATH")
	case !word.MatchString(a.Datacenter):
		return fmt.Errorf("datacenter can only contain lowercase alphanumeric, - or _ characters: %q", s.datacenter)
	case primary != "" && primary != a.Datacenter:
		return fmt.Errorf("primary_datacenter %q is not this data center (%q): data centers are not federated in this build", primary, a.Datacenter)
	case s.nodeID != "" && !id.MatchString(s.nodeID):
		return fmt.Errorf("node_id %q is no UUID", s.nodeID)
	case strings.TrimSpace(c.Name) == "":
		return errors.New("node_name cannot be empty")
	}
	if !label.MatchString(c.Name) {
		r.warn("", fmt.Sprintf("node name %q is no DNS label: it will not be discoverable via DNS", c.Name))
	}
	for k, v := range s.nodeMeta {
		if k == "" || len(k) > 128 || len(v) > 512 || strings.HasPrefix(k, "consul-") || !word.MatchString(k) {
			return fmt.Errorf("node_meta %q: keys are at most 128 letters, digits, - and _, do not begin with consul-, and values have at most 512 bytes", k)
		}
	}
	a.NodeID, a.NodeMeta, a.TaggedAddresses = strings.ToLower(s.nodeID), s.nodeMeta, s.taggedAddresses
	a.Domain, a.AltDomain = strings.Trim(s.domain, "."), strings.Trim(s.altDomain, ".")
	return nil
}

func (r *reader) formation(s *settings, c *config.Config, _ Options) error {
	switch {
	case s.bootstrap && !s.server:
		return errors.New("bootstrap requires server")
	case s.bootstrapExpect != 0 && !s.server:
		return errors.New("bootstrap_expect requires server")
	case s.bootstrap && s.bootstrapExpect != 0:
		return errors.New("bootstrap and bootstrap_expect cannot be used together")
	case s.bootstrapExpect < 0:
		return fmt.Errorf("bootstrap_expect cannot be %d", s.bootstrapExpect)
	}
	a := c.Consul
	a.Server, a.Found, a.Expect = s.server, s.bootstrap || s.bootstrapExpect == 1, s.bootstrapExpect
	if a.Found {
		a.Expect = 0
	}
	if s.bootstrapExpect == 2 {
		r.warn("", "bootstrap_expect=2: a cluster of two servers does not survive the loss of one")
	}
	return nil
}

// addresses finds where this agent listens and what others call it.
func (r *reader) addresses(s *settings, c *config.Config, o Options) error {
	a := c.Consul
	bind, err := netip.ParseAddr(s.bind)
	if err != nil {
		return fmt.Errorf("bind_addr %q: expected an IP address", s.bind)
	}
	a.Bind = bind.String()
	switch {
	case s.advertise != "":
		host, err := netip.ParseAddr(s.advertise)
		if err != nil || host.IsUnspecified() {
			return fmt.Errorf("advertise_addr %q: expected an IP address that others reach", s.advertise)
		}
		a.Host = host.String()
	case !bind.IsUnspecified():
		a.Host = a.Bind
	default:
		host, ok := o.DefaultHost()
		if !ok {
			return errors.New("this host has no address on a default route: set advertise_addr or bind_addr")
		}
		a.Host = host
	}
	for _, p := range []struct {
		key  string
		port int
		off  bool
	}{{"ports.serf_lan", s.portSerf, false}, {"ports.server", s.portServer, !s.server}, {"ports.http", s.portHTTP, true}, {"ports.https", s.portHTTPS, true}, {"ports.dns", s.portDNS, true}} {
		if p.port > 65535 || p.port < 1 && !p.off {
			return fmt.Errorf("%s: %d is no port", p.key, p.port)
		}
	}
	a.GossipPort, a.RPCPort = s.portSerf, s.portServer
	a.Gossip = net.JoinHostPort(a.Bind, strconv.Itoa(s.portSerf))
	if s.server {
		a.RPC = net.JoinHostPort(a.Bind, strconv.Itoa(s.portServer))
	}
	if a.HTTP, err = r.listen("addresses.http", "http", cmp.Or(s.addrHTTP, s.client), s.portHTTP); err != nil {
		return err
	}
	if a.HTTPS, err = r.listen("addresses.https", "https", cmp.Or(s.addrHTTPS, s.client), s.portHTTPS); err != nil {
		return err
	}
	dns, err := r.listen("addresses.dns", "dns", cmp.Or(s.addrDNS, s.client), s.portDNS)
	for _, u := range dns {
		a.DNS = append(a.DNS, strings.TrimPrefix(u, "dns://"))
	}
	a.Sockets = config.Sockets{User: s.sockets.user, Group: s.sockets.group, Mode: s.sockets.mode}
	return err
}

// listen makes URLs of addresses and a port; a port below 1 switches it off.
func (r *reader) listen(key, scheme, addresses string, port int) (out []string, err error) {
	if port < 1 {
		return nil, nil
	}
	for _, a := range strings.Fields(addresses) {
		if path, ok := strings.CutPrefix(a, "unix://"); ok {
			if scheme == "dns" || path == "" {
				return nil, fmt.Errorf("%s: %q is no address for it", key, a)
			}
			if scheme == "https" {
				return nil, fmt.Errorf("%s: a unix socket is served without TLS; name it in addresses.http", key)
			}
			out = append(out, a)
			continue
		}
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return nil, fmt.Errorf("%s %q: expected an IP address or unix://PATH", key, a)
		}
		out = append(out, scheme+"://"+net.JoinHostPort(ip.String(), strconv.Itoa(port)))
	}
	return out, nil
}

func (r *reader) join(s *settings, c *config.Config, _ Options) error {
	a := c.Consul
	for _, l := range [][]string{s.startJoin, s.retryJoin} {
		for _, addr := range l {
			switch {
			case strings.TrimSpace(addr) == "":
				return errors.New("an address to join is empty")
			case strings.Contains(addr, "provider="):
				return fmt.Errorf("retry_join %q: machines are not looked up at cloud providers in this build; name their addresses", addr)
			case strings.Contains(addr, "{{"):
				return fmt.Errorf("retry_join %q: templates are not in this build; name addresses", addr)
			}
		}
	}
	if s.retryInterval <= 0 {
		return errors.New("retry_interval must be positive")
	}
	a.Join, a.Retry, a.RetryInterval = s.startJoin, s.retryJoin, s.retryInterval
	if s.encrypt != "" {
		key, err := base64.StdEncoding.DecodeString(s.encrypt)
		if err != nil || !slices.Contains([]int{16, 24, 32}, len(key)) {
			return errors.New("encrypt: expected 16, 24 or 32 bytes in base64 (`holdfast consul keygen` makes a key)") // the key itself is in no message
		}
	}
	a.GossipKey = s.encrypt
	return nil
}

// block merges blocks of TLS keys; what is written in an earlier one wins.
func block(blocks ...tlsBlock) (out tlsBlock) {
	for _, b := range blocks {
		out.caFile = cmp.Or(out.caFile, b.caFile)
		out.certFile = cmp.Or(out.certFile, b.certFile)
		out.keyFile = cmp.Or(out.keyFile, b.keyFile)
		out.minVersion = cmp.Or(out.minVersion, b.minVersion)
		out.suites = cmp.Or(out.suites, b.suites)
		out.verifyIncoming = cmp.Or(out.verifyIncoming, b.verifyIncoming)
		out.verifyOutgoing = cmp.Or(out.verifyOutgoing, b.verifyOutgoing)
		out.verifyName = cmp.Or(out.verifyName, b.verifyName)
	}
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (r *reader) tls(s *settings, c *config.Config, _ Options) error {
	a, yes := c.Consul, true
	rpc, https := s.rpc, s.https
	if s.flatVerifyRPC {
		rpc.verifyIncoming = cmp.Or(rpc.verifyIncoming, &yes)
	}
	if s.flatVerifyHTTPS {
		https.verifyIncoming = cmp.Or(https.verifyIncoming, &yes)
	}
	for _, side := range []struct {
		name string
		b    tlsBlock
		to   *config.ConsulTLS
	}{{"tls.internal_rpc", block(rpc, s.defaults, s.flat), &a.RPCFiles}, {"tls.https", block(https, s.defaults, s.flat), &a.HTTPSFiles}} {
		t := config.ConsulTLS{
			CAFile: value(side.b.caFile), CertFile: value(side.b.certFile), KeyFile: value(side.b.keyFile),
			VerifyIncoming: value(side.b.verifyIncoming), VerifyOutgoing: value(side.b.verifyOutgoing), MinVersion: "TLS1.2",
		}
		switch v := value(side.b.minVersion); v {
		case "", "tls12", "TLSv1_2", "TLS_AUTO":
		case "tls13", "TLSv1_3":
			t.MinVersion = "TLS1.3"
		default:
			return fmt.Errorf("%s.tls_min_version %q: expected TLSv1_2 or TLSv1_3; older versions are not spoken", side.name, v)
		}
		if suites := value(side.b.suites); suites != "" && t.MinVersion == "TLS1.2" {
			t.CipherSuites = strings.Split(strings.ReplaceAll(suites, " ", ""), ",")
		}
		switch {
		case (t.CertFile == "") != (t.KeyFile == ""):
			return fmt.Errorf("%s: cert_file and key_file belong together", side.name)
		case t.VerifyIncoming && t.CAFile == "":
			return fmt.Errorf("VerifyIncoming set but no CA certificates were provided (%s.ca_file)", side.name)
		case t.VerifyIncoming && t.CertFile == "" && c.Consul.Server:
			return fmt.Errorf("VerifyIncoming set, and no Cert/Key pair provided (%s.cert_file, %s.key_file)", side.name, side.name)
		case t.VerifyOutgoing && t.CAFile == "":
			return fmt.Errorf("VerifyOutgoing set, and no CA certificate provided (%s.ca_file)", side.name)
		case t.CertFile != "" && t.CAFile == "" && side.to == &a.RPCFiles && c.Consul.Server:
			return fmt.Errorf("%s: a certificate without ca_file proves nothing to other servers; name the CA", side.name)
		}
		if value(side.b.verifyName) {
			if t.CAFile == "" {
				return fmt.Errorf("%s.verify_server_hostname needs %s.ca_file", side.name, side.name)
			}
			t.ServerName = "server." + a.Datacenter + "." + a.Domain
		}
		if t.CAFile != "" && !t.VerifyOutgoing && side.to == &a.RPCFiles {
			r.warn("", "verify_outgoing is off, but whom this agent connects to is verified all the same: with ca_file Holdfast never falls back to plain text")
		}
		*side.to = t
	}
	if len(a.HTTPS) > 0 && a.HTTPSFiles.CertFile == "" {
		r.warn("", "ports.https is set but there is no certificate for it (tls.https.cert_file): the HTTPS port is not opened")
		a.HTTPS = nil
	}
	return nil
}

func (r *reader) logging(s *settings, c *config.Config, _ Options) error {
	switch l := strings.ToLower(s.logLevel); l {
	case "trace", "debug":
		c.Log.Level = "debug"
	case "info", "warn":
		c.Log.Level = l
	case "err", "error":
		c.Log.Level = "error"
	default:
		return fmt.Errorf("log_level %q: expected trace, debug, info, warn or err", s.logLevel)
	}
	if s.logJSON {
		c.Log.Format = "json"
	}
	if s.logFile != "" {
		name := s.logFile
		if strings.HasSuffix(name, "/") {
			name += "holdfast.log"
		}
		c.Log.Outputs = append(c.Log.Outputs, name)
		if s.logRotateBytes > 0 {
			c.Log.Rotate = true
			c.Log.Rotation = fmt.Sprintf(`{"maxsize": %d, "maxage": 0, "maxbackups": %d, "localtime": false, "compress": false}`,
				(s.logRotateBytes+1<<20-1)>>20, max(s.logRotateMax, 0))
		}
	}
	if s.syslog {
		c.Log.Syslog = strings.ToUpper(s.syslogFacility)
	}
	return nil
}

func (r *reader) raft(s *settings, c *config.Config, _ Options) error {
	if s.raftMultiplier < 1 || s.raftMultiplier > 10 {
		return fmt.Errorf("performance.raft_multiplier cannot be %d: 1 to 10", s.raftMultiplier)
	}
	c.Raft.Heartbeat *= time.Duration(s.raftMultiplier)
	c.Raft.Election *= time.Duration(s.raftMultiplier)
	c.Raft.MaxLearners = 8 // servers that join at the same time
	a := c.Consul
	if !a.Server {
		return nil
	}
	scheme := "http"
	if a.RPCFiles.Given() {
		scheme = "https"
	}
	var err error
	if c.Listen.Peer, err = config.ParseURLs(scheme + "://" + a.RPC); err != nil {
		return err
	}
	c.Advertise.Host = a.Host
	c.Advertise.Peer, err = config.ParseURLs(scheme + "://" + net.JoinHostPort(a.Host, strconv.Itoa(a.RPCPort)))
	return err
}

// plaintext refuses what would be read and changed by everybody on the way.
func (r *reader) plaintext(s *settings, c *config.Config, _ Options) error {
	a := c.Consul
	a.AllowPlaintext = s.allowPlaintext
	if s.allowPlaintext {
		return nil
	}
	reachable := func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return err != nil || !ip.IsLoopback()
	}
	var clear []string
	if reachable(a.Bind) || reachable(a.Host) {
		if a.GossipKey == "" {
			clear = append(clear, "gossip on "+a.Gossip+" (set encrypt to a key of `holdfast consul keygen`)")
		}
		if !a.RPCFiles.Given() || a.Server && a.RPCFiles.CertFile == "" {
			clear = append(clear, "RPC (set ca_file, cert_file, key_file, verify_incoming and verify_outgoing)")
		}
	}
	for _, u := range a.HTTP {
		if addr, ok := strings.CutPrefix(u, "http://"); ok {
			if host, _, err := net.SplitHostPort(addr); err != nil || reachable(host) {
				clear = append(clear, "the HTTP API on "+addr+" (keep it on 127.0.0.1 and serve others with ports.https)")
			}
		}
	}
	if len(clear) == 0 {
		return nil
	}
	return ErrPlaintext.WithHint("in the clear would be %s. Or bind everything to 127.0.0.1, or insist with -insecure-allow-plaintext", strings.Join(clear, "; "))
}

// definitions checks what services and checks are made of; the agent checks what they mean.
func (r *reader) definitions(s *settings, c *config.Config, _ Options) error {
	for i, m := range s.services {
		data, err := define(m, new(agent.ServiceDefinition))
		if err != nil {
			return fmt.Errorf("service %d: %w", i+1, err)
		}
		c.Consul.Services = append(c.Consul.Services, data)
	}
	for i, m := range s.checks {
		data, err := define(m, new(agent.CheckDefinition))
		if err != nil {
			return fmt.Errorf("check %d: %w", i+1, err)
		}
		c.Consul.Checks = append(c.Consul.Checks, data)
	}
	return nil
}

func define(m map[string]any, into any) (json.RawMessage, error) {
	data, err := json.Marshal(m)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	return data, err
}
