package config

import (
	"encoding/json"
	"time"
)

// Consul is an agent of `holdfast consul agent`; package consulconf fills it from Consul's own keys and flags.
type Consul struct {
	// Datacenter is the name of this data center. Default: dc1.
	Datacenter string
	// Domain is what DNS answers for. Default: consul.
	Domain string
	// AltDomain is a second one; empty: none.
	AltDomain string
	// NodeID is a UUID; empty: one is drawn at the first start and kept.
	NodeID string
	// NodeMeta and TaggedAddresses are shown in the catalog.
	NodeMeta, TaggedAddresses map[string]string

	// Server makes this agent hold a member of the replicated state.
	Server bool
	// Found makes an empty server the founder of a cluster of one.
	Found bool
	// Expect, if not 0, has that many servers found a cluster when they have seen each other.
	Expect int

	// Bind is the address of gossip and RPC; Host is the one that others use.
	Bind, Host string
	// Gossip and RPC are what this agent listens on, host:port.
	Gossip, RPC string
	// GossipPort and RPCPort are the ports that others use.
	GossipPort, RPCPort int
	// HTTP and HTTPS serve the HTTP API, as http://, https:// and unix:// URLs; DNS is host:port.
	HTTP, HTTPS []string
	DNS         []string
	// Sockets says to whom unix sockets belong.
	Sockets Sockets

	// Join lists the agents that must be reached at start; Retry those that are tried until one is.
	Join, Retry []string
	// RetryInterval is between two attempts.
	RetryInterval time.Duration

	// GossipKey is 16, 24 or 32 bytes in base64; empty: gossip is plain text.
	GossipKey string
	// RPCFiles and HTTPSFiles are the TLS of the two sides.
	RPCFiles, HTTPSFiles ConsulTLS
	// AllowPlaintext serves gossip, RPC and HTTP in the clear on addresses that other hosts reach.
	AllowPlaintext bool

	// Scripts lets anybody who may register a check name a program that this agent runs; LocalScripts only its own files.
	Scripts, LocalScripts bool
	// ChecksWithTLS has http checks show the certificate of the HTTPS side.
	ChecksWithTLS bool
	// LeaveOnTerm and LeaveOnInt leave the cluster at SIGTERM and SIGINT.
	LeaveOnTerm, LeaveOnInt bool
	// PidFile is written at start and removed at the end.
	PidFile string

	// OnlyPassing leaves instances with warnings out of DNS answers.
	OnlyPassing bool
	// NodeTTL and ServiceTTL (by service name, * for the others) are the TTLs of DNS answers. UDPAnswers bounds answers over
	// UDP to clients without EDNS.
	NodeTTL    time.Duration
	ServiceTTL map[string]time.Duration
	UDPAnswers int
	// Recursors answer for other domains.
	Recursors []string

	// MaxStale is how old a DNS answer may be; 0: any. Truncate sets TC when an answer was cut to UDPAnswers.
	MaxStale time.Duration
	Truncate bool
	// UpdateInterval is how long a changed output of a check of unchanged status may wait; 0: 5m.
	UpdateInterval time.Duration

	// Connect answers connect/ca/roots; ConnectID is the trust domain there, empty: made from the cluster.
	Connect   bool
	ConnectID string

	// Services and Checks are definitions in the form of the HTTP API.
	Services, Checks []json.RawMessage
}

// Sockets says to whom unix sockets belong; empty fields change nothing.
type Sockets struct {
	User, Group, Mode string
}

// ConsulTLS is the TLS of one side of a Consul agent.
type ConsulTLS struct {
	CAFile, CertFile, KeyFile string
	// VerifyIncoming asks those who connect for a certificate.
	VerifyIncoming bool
	// VerifyOutgoing: whom this side connects to must be certified by CAFile. With CAFile that always holds.
	VerifyOutgoing bool
	// ServerName, if not empty, is the name that servers' certificates must be for.
	ServerName   string
	MinVersion   string // TLS1.2 or TLS1.3
	CipherSuites []string
}

// Given reports whether this side has TLS.
func (t ConsulTLS) Given() bool { return t.CAFile != "" || t.CertFile != "" }
