package consulconf

import (
	"encoding/json"
	"slices"
	"time"
)

// class says what becomes of a key. The zero class is none, so that a row without one fails the table's test.
type class uint8

const (
	obeyed  class = iota + 1
	renamed       // obeyed, with a warning that names the key to use
	silent        // accepted: what it asks for holds anyway, or is nothing that Holdfast does
	idle          // accepted with a warning: it has no effect
	refused       // ends the start unless its value is one of those in only
)

// key is one row of the table. Nested keys are written with dots.
type key struct {
	name  string
	class class
	what  string                // obeyed: what it does; otherwise: why it is as it is, and what to do instead
	bind  func(s *settings) any // obeyed, renamed: a pointer to where the value goes; its type is the value's type
	only  []any                 // refused: values that ask for nothing and are accepted
}

// settings are the values of all obeyed keys, as written. What was not written is as defaults leaves it.
type settings struct {
	nodeName, nodeID, datacenter, dataDir  string
	primaryDatacenter, aclDatacenter       string
	domain, altDomain                      string
	nodeMeta, taggedAddresses              map[string]string
	server, bootstrap                      bool
	bootstrapExpect                        int
	bind, advertise, client                string
	addrHTTP, addrHTTPS, addrDNS           string
	portDNS, portHTTP, portHTTPS, portSerf int
	portServer                             int
	sockets                                struct{ user, group, mode string }
	startJoin, retryJoin                   []string
	retryInterval                          time.Duration
	encrypt                                string
	flat                                   tlsBlock // the old flat keys
	flatVerifyRPC, flatVerifyHTTPS         bool
	defaults, rpc, https                   tlsBlock
	scripts, localScripts, checksWithTLS   bool
	leaveOnTerm                            bool
	skipLeaveOnInt                         *bool
	pidFile                                string
	logLevel, logFile                      string
	logJSON, syslog                        bool
	syslogFacility                         string
	logRotateBytes, logRotateMax           int
	raftMultiplier                         int
	onlyPassing                            bool
	nodeTTL                                time.Duration
	serviceTTL                             map[string]time.Duration
	udpAnswers                             int
	recursors                              []string
	services, checks                       []map[string]any
	maxStale, updateInterval               time.Duration
	truncate                               bool
	connect                                bool
	connectID                              string
	allowPlaintext                         bool
	sealKEK                                string
}

// tlsBlock is one block of TLS keys. Nil: not written.
type tlsBlock struct {
	caFile, certFile, keyFile, minVersion, suites *string
	verifyIncoming, verifyOutgoing, verifyName    *bool
}

func defaults() *settings {
	return &settings{
		datacenter: "dc1", domain: "consul", bind: "0.0.0.0", client: "127.0.0.1",
		portDNS: 8600, portHTTP: 8500, portHTTPS: -1, portSerf: 8301, portServer: 8300,
		retryInterval: 30 * time.Second, logLevel: "info", syslogFacility: "LOCAL0", raftMultiplier: 1, udpAnswers: 3, connect: true,
	}
}

// table is every key that may be written.
func table() []key {
	return slices.Concat(agentKeys(), addressKeys(), joinKeys(), tlsKeys(), logKeys(), dnsKeys(), checkKeys(), aclKeys(), raftKeys(), otherKeys())
}

func agentKeys() []key {
	return []key{
		{name: "node_name", class: obeyed, what: "the name of this agent's node; default: the host name", bind: func(s *settings) any { return &s.nodeName }},
		{name: "node_id", class: obeyed, what: "the node's UUID; default: drawn once and kept in the data directory", bind: func(s *settings) any { return &s.nodeID }},
		{name: "node_meta", class: obeyed, what: "metadata of the node in the catalog", bind: func(s *settings) any { return &s.nodeMeta }},
		{name: "tagged_addresses", class: obeyed, what: "more addresses of the node in the catalog", bind: func(s *settings) any { return &s.taggedAddresses }},
		{name: "disable_host_node_id", class: silent, what: "the node's id is always drawn, never made from the host's hardware"},
		{name: "datacenter", class: obeyed, what: "the name of the data center; default dc1", bind: func(s *settings) any { return &s.datacenter }},
		{name: "primary_datacenter", class: obeyed, what: "must be this data center: there is no federation in this build", bind: func(s *settings) any { return &s.primaryDatacenter }},
		{name: "data_dir", class: obeyed, what: "the data directory. Everything in it is sealed; its key is the file DATA_DIR.kek unless -seal-kek says otherwise", bind: func(s *settings) any { return &s.dataDir }},
		{name: "server", class: obeyed, what: "this agent holds a replicated member of the state", bind: func(s *settings) any { return &s.server }},
		{name: "bootstrap", class: obeyed, what: "an empty server founds a cluster of one, which others join", bind: func(s *settings) any { return &s.bootstrap }},
		{name: "bootstrap_expect", class: obeyed, what: "that many servers found a cluster once they see each other: the one with the lowest node id founds it, the others join", bind: func(s *settings) any { return &s.bootstrapExpect }},
		{name: "pid_file", class: obeyed, what: "written at start, removed at the end", bind: func(s *settings) any { return &s.pidFile }},
		{name: "leave_on_terminate", class: obeyed, what: "SIGTERM leaves the cluster; default: no", bind: func(s *settings) any { return &s.leaveOnTerm }},
		{name: "skip_leave_on_interrupt", class: obeyed, what: "SIGINT does not leave the cluster; default: true for servers, false for others", bind: func(s *settings) any { return &s.skipLeaveOnInt }},
		{name: "partition", class: refused, only: []any{"", "default"}, what: "admin partitions are not in this build; leave it out"},
		{name: "locality", class: idle, what: "nothing is routed by locality"},
		{name: "version", class: silent, what: "the version is the binary's"},
		{name: "disable_update_check", class: silent, what: "Holdfast never asks anybody for updates"},
		{name: "disable_anonymous_signature", class: silent, what: "Holdfast never asks anybody for updates"},
		{name: "experiments", class: idle, what: "none of Consul's experiments is in this build"},
		{name: "enable_debug", class: idle, what: "no profiles are served"},
	}
}

func addressKeys() []key {
	return []key{
		{name: "bind_addr", class: obeyed, what: "the IP address of gossip and RPC; default 0.0.0.0", bind: func(s *settings) any { return &s.bind }},
		{name: "advertise_addr", class: obeyed, what: "the IP address that others use; default: bind_addr, or the address on the default route", bind: func(s *settings) any { return &s.advertise }},
		{name: "client_addr", class: obeyed, what: "the addresses of HTTP, HTTPS and DNS, separated by spaces; default 127.0.0.1", bind: func(s *settings) any { return &s.client }},
		{name: "addresses.http", class: obeyed, what: "the addresses of the HTTP API, separated by spaces; unix://PATH is a unix socket; default: client_addr", bind: func(s *settings) any { return &s.addrHTTP }},
		{name: "addresses.https", class: obeyed, what: "the addresses of the HTTPS API, separated by spaces; default: client_addr", bind: func(s *settings) any { return &s.addrHTTPS }},
		{name: "addresses.dns", class: obeyed, what: "the addresses of DNS, separated by spaces; default: client_addr", bind: func(s *settings) any { return &s.addrDNS }},
		{name: "addresses.grpc", class: idle, what: "there is no gRPC port: the service mesh is not in this build"},
		{name: "addresses.grpc_tls", class: idle, what: "there is no gRPC port: the service mesh is not in this build"},
		{name: "ports.http", class: obeyed, what: "the port of the HTTP API, 8500; -1: none", bind: func(s *settings) any { return &s.portHTTP }},
		{name: "ports.https", class: obeyed, what: "the port of the HTTPS API; default -1, none. Without a certificate it is not opened, with a warning", bind: func(s *settings) any { return &s.portHTTPS }},
		{name: "ports.dns", class: obeyed, what: "the port of DNS over udp and tcp, 8600; -1: none", bind: func(s *settings) any { return &s.portDNS }},
		{name: "ports.serf_lan", class: obeyed, what: "the port of gossip, 8301", bind: func(s *settings) any { return &s.portSerf }},
		{name: "ports.server", class: obeyed, what: "the port of RPC and replication, 8300", bind: func(s *settings) any { return &s.portServer }},
		{name: "ports.serf_wan", class: silent, what: "there is no second gossip pool: data centers are not federated, so nothing listens there"},
		{name: "ports.grpc", class: silent, what: "nothing listens there: the service mesh is not in this build"},
		{name: "ports.grpc_tls", class: silent, what: "nothing listens there: the service mesh is not in this build"},
		{name: "ports.proxy_min_port", class: silent, what: "only the service mesh has proxies"},
		{name: "ports.proxy_max_port", class: silent, what: "only the service mesh has proxies"},
		{name: "ports.sidecar_min_port", class: silent, what: "only the service mesh has proxies"},
		{name: "ports.sidecar_max_port", class: silent, what: "only the service mesh has proxies"},
		{name: "ports.expose_min_port", class: silent, what: "only the service mesh has proxies"},
		{name: "ports.expose_max_port", class: silent, what: "only the service mesh has proxies"},
		{name: "unix_sockets.user", class: obeyed, what: "the owner (number) of unix sockets", bind: func(s *settings) any { return &s.sockets.user }},
		{name: "unix_sockets.group", class: obeyed, what: "the group (number) of unix sockets", bind: func(s *settings) any { return &s.sockets.group }},
		{name: "unix_sockets.mode", class: obeyed, what: "the mode of unix sockets, octal", bind: func(s *settings) any { return &s.sockets.mode }},
		{name: "serf_lan", class: refused, only: []any{""}, what: "gossip listens on bind_addr"},
		{name: "serf_lan_allowed_cidrs", class: refused, what: "gossip is restricted by its key; use a packet filter for addresses"},
		{name: "serf_wan", class: silent, what: "there is no second gossip pool"},
		{name: "advertise_addr_wan", class: silent, what: "there is no second gossip pool"},
		{name: "translate_wan_addrs", class: refused, only: []any{false}, what: "data centers are not federated in this build"},
		{name: "use_streaming_backend", class: silent, what: "blocking queries wake for exactly what they ask"},
	}
}

func joinKeys() []key {
	return []key{
		{name: "start_join", class: renamed, what: "use retry_join", bind: func(s *settings) any { return &s.startJoin }},
		{name: "retry_join", class: obeyed, what: "agents to join, tried until one answers; HOST or HOST:PORT", bind: func(s *settings) any { return &s.retryJoin }},
		{name: "retry_interval", class: obeyed, what: "the time between attempts, 30s", bind: func(s *settings) any { return &s.retryInterval }},
		{name: "retry_max", class: refused, only: []any{json.Number("0")}, what: "attempts go on until one succeeds; use a supervisor to give up"},
		{name: "start_join_wan", class: refused, what: "data centers are not federated in this build"},
		{name: "retry_join_wan", class: refused, what: "data centers are not federated in this build"},
		{name: "rejoin_after_leave", class: idle, what: "an agent that has left joins again by retry_join"},
		{name: "encrypt", class: obeyed, what: "the gossip key: 16, 24 or 32 bytes in base64 (`holdfast consul keygen`)", bind: func(s *settings) any { return &s.encrypt }},
		{name: "encrypt_verify_incoming", class: refused, only: []any{true}, what: "an agent with a gossip key takes encrypted gossip only; give the key to every agent"},
		{name: "encrypt_verify_outgoing", class: refused, only: []any{true}, what: "an agent with a gossip key sends encrypted gossip only; give the key to every agent"},
		{name: "disable_keyring_file", class: refused, only: []any{false}, what: "the gossip keyring is kept sealed in the data directory"},
	}
}

func logKeys() []key {
	return []key{
		{name: "log_level", class: obeyed, what: "trace (as debug), debug, info, warn, err or error; default info; a reload changes it", bind: func(s *settings) any { return &s.logLevel }},
		{name: "log_json", class: obeyed, what: "one JSON object a line", bind: func(s *settings) any { return &s.logJSON }},
		{name: "log_file", class: obeyed, what: "also log to this file (a name that ends with / gets holdfast.log)", bind: func(s *settings) any { return &s.logFile }},
		{name: "log_rotate_bytes", class: obeyed, what: "size at which log_file is rotated, rounded up to whole MiB", bind: func(s *settings) any { return &s.logRotateBytes }},
		{name: "log_rotate_max_files", class: obeyed, what: "rotated files that are kept; 0: all", bind: func(s *settings) any { return &s.logRotateMax }},
		{name: "log_rotate_duration", class: idle, what: "log_file is rotated by size (log_rotate_bytes)"},
		{name: "enable_syslog", class: obeyed, what: "also log to this host's syslog", bind: func(s *settings) any { return &s.syslog }},
		{name: "syslog_facility", class: obeyed, what: "LOCAL0 (default) to LOCAL7, DAEMON, USER, AUTH …", bind: func(s *settings) any { return &s.syslogFacility }},
		{name: "telemetry.*", class: idle, what: "the metrics of this build are those of `holdfast server`"},
		{name: "audit.enabled", class: silent, what: "the audit record is always written, sealed, in the data directory"},
	}
}
