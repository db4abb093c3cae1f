package etcdflags

import (
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/node/config"
)

// class says what becomes of a flag. The zero class is none, so that a row without one fails the table's test.
type class uint8

const (
	honoured class = iota + 1 // bound to a field that the member obeys
	ignored                   // accepted; setting it logs why it has no effect
	refused                   // setting it to anything but its default ends the start and says what to do instead
	action                    // acts while flags are parsed (--version, --config-file)
)

// flagSpec is one row of the table.
type flagSpec struct {
	name    string
	section string
	class   class
	usage   string
	why     string                       // ignored, refused: the message
	bind    func(*config.Config) binding // honoured
	free    func() *unbound              // the others: how the text is checked; nil: any text
	def     string                       // the others: the default
}

// Sections of the help text, in etcd's order.
const (
	member   = "Member"
	cluster  = "Clustering"
	security = "Security"
	auth     = "Auth"
	profile  = "Profiling and Monitoring"
	logging  = "Logging"
	tracing  = "Distributed tracing"
	features = "Features"
	unsafe   = "Unsafe feature"
	own      = "Holdfast's own"
	legacy   = "" // accepted, not shown
)

func sections() []string {
	return []string{member, cluster, security, auth, profile, logging, tracing, features, unsafe, own}
}

func flagBool() *unbound     { return &unbound{bool: true, check: isBool} }
func flagNumber() *unbound   { return &unbound{check: numeric} }
func flagDuration() *unbound { return &unbound{check: isDuration} }

func flagWords(words ...string) func() *unbound {
	return func() *unbound {
		return &unbound{check: func(s string) error {
			if !slices.Contains(words, s) {
				return fmt.Errorf("invalid value %q", s)
			}
			return nil
		}}
	}
}

// table is every name that etcd 3.7.3 knows, and ours.
func table() []flagSpec {
	return slices.Concat(memberFlags(), clusterFlags(), discoveryFlags(), securityFlags(), observeFlags(), featureFlags(), ownFlags(), legacyFlags())
}

type cfg = config.Config

func memberFlags() []flagSpec {
	return []flagSpec{
		{name: "name", section: member, class: honoured, usage: "Human-readable name for this member.", bind: func(c *cfg) binding { return text(&c.Name) }},
		{name: "data-dir", section: member, class: honoured, usage: "Path to the data directory (default: ${name}.etcd). Everything in it is sealed.", bind: func(c *cfg) binding { return text(&c.DataDir) }},
		{name: "wal-dir", section: member, class: refused, usage: "Refused: the Raft log lives in DATA-DIR/log.", why: "the Raft log is sealed together with the data directory and lives in DATA-DIR/log; to put it on another device, mount that device there"},
		{name: "snapshot-count", section: member, class: honoured, usage: "Number of applied entries after which the Raft log is cut (left out: 10000 is shown, and bytes decide).", bind: func(c *cfg) binding { return entries(&c.Raft.SnapshotCount, 10000) }},
		{name: "heartbeat-interval", section: member, class: honoured, usage: "Time (in milliseconds) of a heartbeat interval.", bind: func(c *cfg) binding { return milliseconds(&c.Raft.Heartbeat) }},
		{name: "election-timeout", section: member, class: honoured, usage: "Time (in milliseconds) for an election to timeout.", bind: func(c *cfg) binding { return milliseconds(&c.Raft.Election) }},
		{name: "initial-election-tick-advance", section: member, class: ignored, def: "true", free: flagBool, usage: "Ignored: a sole member leads at once; the others wait for a leader first.", why: "--initial-election-tick-advance has no effect: a sole member leads at once, and a member of a larger cluster waits for a leader first"},
		{name: "listen-peer-urls", section: member, class: honoured, usage: "List of URLs to listen on for peer traffic.", bind: func(c *cfg) binding { return urlList(&c.Listen.Peer) }},
		{name: "listen-client-urls", section: member, class: honoured, usage: "List of URLs to listen on for client grpc traffic, and for http as long as --listen-client-http-urls is not specified.", bind: func(c *cfg) binding { return urlList(&c.Listen.Client) }},
		{name: "listen-client-http-urls", section: member, class: honoured, usage: "List of URLs to listen on for http only client traffic. Enabling this flag removes http services from --listen-client-urls.", bind: func(c *cfg) binding { return urlList(&c.Listen.HTTP) }},
		{name: "max-snapshots", section: member, class: ignored, def: "5", free: flagNumber, usage: "Ignored: there are no snapshot files.", why: "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."},
		{name: "max-wals", section: member, class: ignored, def: "5", free: flagNumber, usage: "Ignored: the log is cut as soon as it is not needed.", why: "--max-wals has no effect: the log is cut as soon as neither this member nor a slow follower needs it"},
		{name: "memory-mlock", section: member, class: ignored, def: "false", free: flagBool, usage: "Ignored: no page of the store is mapped into memory.", why: "--memory-mlock has no effect: no page of the store is mapped into memory"},
		{name: "quota-backend-bytes", section: member, class: honoured, usage: "Logical size (live and not yet compacted) beyond which the NOSPACE alarm is raised. 0: 2GiB; negative: none.", bind: func(c *cfg) binding { return number(&c.Limits.QuotaBytes) }},
		{name: "backend-bbolt-freelist-type", section: member, class: ignored, def: "map", usage: "Ignored: the store is not bbolt.", why: "--backend-bbolt-freelist-type has no effect: the store is not bbolt"},
		{name: "backend-batch-interval", section: member, class: ignored, def: "0s", free: flagDuration, usage: "Ignored: the log alone decides durability, and requests are batched as they come.", why: "--backend-batch-interval has no effect: requests are batched as they come, and each is durable when it is acknowledged"},
		{name: "backend-batch-limit", section: member, class: ignored, def: "0", free: flagNumber, usage: "Ignored: see --backend-batch-interval.", why: "--backend-batch-limit has no effect: requests are batched as they come, and each is durable when it is acknowledged"},
		{name: "max-txn-ops", section: member, class: honoured, usage: "Maximum number of operations permitted in a transaction.", bind: func(c *cfg) binding { return number(&c.Limits.MaxTxnOps) }},
		{name: "max-request-bytes", section: member, class: honoured, usage: "Maximum client request size in bytes the server will accept.", bind: func(c *cfg) binding { return number(&c.Limits.MaxRequestBytes) }},
		{name: "max-concurrent-streams", section: member, class: honoured, usage: "Maximum concurrent streams that each client can open at a time.", bind: func(c *cfg) binding { return number(&c.Limits.MaxConcurrentStreams) }},
		{name: "grpc-keepalive-min-time", section: member, class: honoured, usage: "Minimum duration interval that a client should wait before pinging server.", bind: func(c *cfg) binding { return duration(&c.Keepalive.MinTime) }},
		{name: "grpc-keepalive-interval", section: member, class: honoured, usage: "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).", bind: func(c *cfg) binding { return duration(&c.Keepalive.Interval) }},
		{name: "grpc-keepalive-timeout", section: member, class: honoured, usage: "Additional duration of wait before closing a non-responsive connection (0 to disable).", bind: func(c *cfg) binding { return duration(&c.Keepalive.Timeout) }},
		{name: "socket-reuse-port", section: member, class: honoured, usage: "Enable to set socket option SO_REUSEPORT on listeners allowing rebinding of a port already in use.", bind: func(c *cfg) binding { return boolean(&c.Listen.ReusePort) }},
		{name: "socket-reuse-address", section: member, class: honoured, usage: "Enable to set socket option SO_REUSEADDR on listeners allowing binding to an address in TIME_WAIT state.", bind: func(c *cfg) binding { return boolean(&c.Listen.ReuseAddress) }},
		{name: "enable-grpc-gateway", section: member, class: honoured, usage: "Enable the JSON gateway.", bind: func(c *cfg) binding { return boolean(&c.Web.Gateway) }},
		{name: "raft-read-timeout", section: member, class: ignored, def: "5s", free: flagDuration, usage: "Ignored: a peer connection that is silent for 10s is given up.", why: "--raft-read-timeout has no effect: a peer connection that is silent for 10s is given up"},
		{name: "raft-write-timeout", section: member, class: ignored, def: "5s", free: flagDuration, usage: "Ignored: a peer connection that takes nothing for 10s is given up.", why: "--raft-write-timeout has no effect: a peer connection that takes nothing for 10s is given up"},
		{name: "feature-gates", section: member, class: honoured, usage: gatesUsage(), bind: func(c *cfg) binding { return &gates{config: c} }},
	}
}

func clusterFlags() []flagSpec {
	return []flagSpec{
		{name: "initial-advertise-peer-urls", section: cluster, class: honoured, usage: "List of this member's peer URLs to advertise to the rest of the cluster.", bind: func(c *cfg) binding { return urlList(&c.Advertise.Peer) }},
		{name: "initial-cluster", section: cluster, class: honoured, usage: "Initial cluster configuration for bootstrapping.", bind: func(c *cfg) binding { return text(&c.Bootstrap.InitialCluster) }},
		{name: "initial-cluster-state", section: cluster, class: honoured, usage: "Initial cluster state ('new' when bootstrapping a new cluster or 'existing' when adding new members to an existing cluster). Ignored on restarts.", bind: func(c *cfg) binding { return choice(&c.Bootstrap.State, "new", "existing") }},
		{name: "initial-cluster-token", section: cluster, class: honoured, usage: "Initial cluster token for the cluster during bootstrap; it tells clusters with the same URLs apart.", bind: func(c *cfg) binding { return text(&c.Bootstrap.Token) }},
		{name: "advertise-client-urls", section: cluster, class: honoured, usage: "List of this member's client URLs to advertise to the public.", bind: func(c *cfg) binding { return urlList(&c.Advertise.Client) }},
		{name: "strict-reconfig-check", section: cluster, class: honoured, usage: "Reject reconfiguration requests that would cause quorum loss.", bind: func(c *cfg) binding { return boolean(&c.Raft.StrictReconfig) }},
		{name: "pre-vote", section: cluster, class: ignored, def: "true", free: flagBool, usage: "Ignored: pre-vote is always on.", why: "--pre-vote has no effect: pre-vote and the check of the quorum are always on"},
		{name: "auto-compaction-retention", section: cluster, class: honoured, usage: "Auto compaction retention length. 0 means disable auto compaction.", bind: func(c *cfg) binding { return text(&c.Compaction.Retention) }},
		{name: "auto-compaction-mode", section: cluster, class: honoured, usage: "Interpret 'auto-compaction-retention' one of: periodic|revision.", bind: func(c *cfg) binding { return text(&c.Compaction.Mode) }},
		{name: "v2-deprecation", section: cluster, class: ignored, def: v2Default, free: flagWords(v2Default, "write-only-skip-check", "write-only-drop-data", "gone"), usage: "Ignored: there is no v2 store.", why: "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input."},
	}
}

const v2Default = "write-only"

func discoveryFlags() []flagSpec {
	d := func(f func(*config.Discovery) binding) func(*cfg) binding {
		return func(c *cfg) binding { return f(&c.Bootstrap.Discovery) }
	}
	type dd = config.Discovery
	removed := "v2 discovery was removed in etcd 3.6/3.7; use --discovery-endpoints and --discovery-token"
	return []flagSpec{
		{name: "discovery", section: cluster, class: refused, usage: "Refused: v2 discovery is gone; use --discovery-endpoints and --discovery-token.", why: removed},
		{name: "discovery-proxy", section: cluster, class: refused, usage: "Refused: v2 discovery is gone.", why: removed},
		{name: "discovery-fallback", section: cluster, class: ignored, def: "exit", free: fallbackWords, usage: "Ignored: the only behaviour is 'exit'.", why: "--discovery-fallback has no effect: if discovery fails, the member exits"},
		{name: "discovery-token", section: cluster, class: honoured, usage: "V3 discovery: discovery token for the cluster to be bootstrapped.", bind: d(func(d *dd) binding { return text(&d.Token) })},
		{name: "discovery-endpoints", section: cluster, class: honoured, usage: "V3 discovery: List of gRPC endpoints of the discovery service.", bind: d(func(d *dd) binding { return list(&d.Endpoints) })},
		{name: "discovery-dial-timeout", section: cluster, class: honoured, usage: "V3 discovery: dial timeout for client connections.", bind: d(func(d *dd) binding { return duration(&d.DialTimeout) })},
		{name: "discovery-request-timeout", section: cluster, class: honoured, usage: "V3 discovery: timeout for discovery requests (excluding dial timeout).", bind: d(func(d *dd) binding { return duration(&d.RequestTimeout) })},
		{name: "discovery-keepalive-time", section: cluster, class: honoured, usage: "V3 discovery: keepalive time for client connections.", bind: d(func(d *dd) binding { return duration(&d.KeepaliveTime) })},
		{name: "discovery-keepalive-timeout", section: cluster, class: honoured, usage: "V3 discovery: keepalive timeout for client connections.", bind: d(func(d *dd) binding { return duration(&d.KeepaliveTimeout) })},
		{name: "discovery-insecure-transport", section: cluster, class: honoured, usage: "V3 discovery: disable transport security for client connections; it has no say over an https endpoint.", bind: d(func(d *dd) binding { return boolean(&d.InsecureTransport) })},
		{name: "discovery-insecure-skip-tls-verify", section: cluster, class: honoured, usage: "V3 discovery: skip server certificate verification (CAUTION: this option should be enabled only for testing purposes).", bind: d(func(d *dd) binding { return boolean(&d.InsecureSkipVerify) })},
		{name: "discovery-cert", section: cluster, class: honoured, usage: "V3 discovery: identify secure client using this TLS certificate file.", bind: d(func(d *dd) binding { return text(&d.CertFile) })},
		{name: "discovery-key", section: cluster, class: honoured, usage: "V3 discovery: identify secure client using this TLS key file.", bind: d(func(d *dd) binding { return text(&d.KeyFile) })},
		{name: "discovery-cacert", section: cluster, class: honoured, usage: "V3 discovery: verify certificates of TLS-enabled secure servers using this CA bundle.", bind: d(func(d *dd) binding { return text(&d.CACertFile) })},
		{name: "discovery-user", section: cluster, class: honoured, usage: "V3 discovery: username[:password] for authentication.", bind: d(func(d *dd) binding { return text(&d.User) })},
		{name: "discovery-password", section: cluster, class: honoured, usage: "V3 discovery: password for authentication (if this option is used, --discovery-user shouldn't include password).", bind: d(func(d *dd) binding { return text(&d.Password) })},
		{name: "discovery-srv", section: cluster, class: honoured, usage: "DNS srv domain used to bootstrap the cluster.", bind: func(c *cfg) binding { return text(&c.Bootstrap.SRVDomain) }},
		{name: "discovery-srv-name", section: cluster, class: honoured, usage: "Suffix to the dns srv name queried when bootstrapping.", bind: func(c *cfg) binding { return text(&c.Bootstrap.SRVName) }},
	}
}

// fallbackWords knows the word that etcd once had and now refuses.
func fallbackWords() *unbound {
	return &unbound{check: func(s string) error {
		switch s {
		case "exit":
			return nil
		case "proxy":
			return fmt.Errorf("v2 proxy is deprecated, and --discovery-fallback can't be configured as %q", s)
		}
		return fmt.Errorf("invalid value %q", s)
	}}
}

func securityFlags() []flagSpec {
	flags := []flagSpec{
		{name: "client-crl-file", section: security, class: honoured, usage: "Path to the client certificate revocation list file (PEM or DER, read again when it changes).", bind: func(c *cfg) binding { return text(&c.TLS.Client.CRLFile) }},
		{name: "client-cert-allowed-hostname", section: security, class: honoured, usage: "Comma-separated list of SAN hostnames for client cert authentication.", bind: func(c *cfg) binding { return list(&c.TLS.Client.AllowedHostnames) }},
		{name: "client-cert-allowed-cn", section: security, class: honoured, usage: "Comma-separated list of allowed CNs for client cert authentication.", bind: func(c *cfg) binding { return list(&c.TLS.Client.AllowedCNs) }},
	}
	flags = append(flags, sideFlags("", func(c *cfg) *config.TLSFiles { return &c.TLS.Client })...)
	flags = append(flags, sideFlags("peer-", func(c *cfg) *config.TLSFiles { return &c.TLS.Peer })...)
	return append(flags, []flagSpec{
		{name: "peer-crl-file", section: security, class: honoured, usage: "Path to the peer certificate revocation list file (PEM or DER, read again when it changes).", bind: func(c *cfg) binding { return text(&c.TLS.Peer.CRLFile) }},
		{name: "peer-cert-allowed-cn", section: security, class: honoured, usage: "Comma-separated list of allowed CNs for inter-peer TLS authentication.", bind: func(c *cfg) binding { return list(&c.TLS.Peer.AllowedCNs) }},
		{name: "peer-cert-allowed-hostname", section: security, class: honoured, usage: "Comma-separated list of allowed SAN hostnames for inter-peer TLS authentication.", bind: func(c *cfg) binding { return list(&c.TLS.Peer.AllowedHostnames) }},
		{name: "peer-skip-client-san-verification", section: security, class: honoured, usage: "Skip verification of SAN field in client certificate for peer connections.", bind: func(c *cfg) binding { return boolean(&c.TLS.Peer.SkipClientSANVerify) }},
		{name: "self-signed-cert-validity", section: security, class: honoured, usage: "The validity period of the certificates that --auto-tls and --peer-auto-tls make, in years.", bind: func(c *cfg) binding { return number(&c.TLS.SelfSignedYears) }},
		{name: "cipher-suites", section: security, class: honoured, usage: "Comma-separated list of supported TLS 1.2 cipher suites between client/server and peers (empty: Go's choice).", bind: func(c *cfg) binding { return list(&c.TLS.CipherSuites) }},
		{name: "tls-min-version", section: security, class: honoured, usage: "Minimum TLS version. Possible values: TLS1.2, TLS1.3.", bind: func(c *cfg) binding { return text(&c.TLS.MinVersion) }},
		{name: "tls-max-version", section: security, class: honoured, usage: "Maximum TLS version. Possible values: TLS1.2, TLS1.3 (empty: the newest).", bind: func(c *cfg) binding { return text(&c.TLS.MaxVersion) }},
		{name: "cors", section: security, class: honoured, usage: "Comma-separated whitelist of origins for CORS, or cross-origin resource sharing, (empty or * means allow all).", bind: func(c *cfg) binding { return list(&c.Web.CORS) }},
		{name: "host-whitelist", section: security, class: honoured, usage: "Acceptable hostnames from HTTP client requests, if server is not secure (empty or * means allow all).", bind: func(c *cfg) binding { return list(&c.Web.HostWhitelist) }},
		{name: "auth-token", section: auth, class: honoured, usage: "Specify a v3 authentication token type and its options ('simple' or 'jwt').", bind: func(c *cfg) binding { return text(&c.Auth.Token) }},
		{name: "bcrypt-cost", section: auth, class: honoured, usage: "Specify the cost / strength of the bcrypt algorithm for hashing auth passwords. Valid values are between 4 and 31.", bind: func(c *cfg) binding { return number(&c.Auth.BcryptCost) }},
		{name: "auth-token-ttl", section: auth, class: honoured, usage: "Time (in seconds) of the auth-token-ttl.", bind: func(c *cfg) binding { return number(&c.Auth.TokenTTL) }},
	}...)
}

// sideFlags are the flags that the client and the peer side have in common.
func sideFlags(prefix string, files func(*cfg) *config.TLSFiles) []flagSpec {
	side := "client server"
	if prefix != "" {
		side = "peer server"
	}
	auto := prefix + "auto-tls"
	return []flagSpec{
		{name: prefix + "cert-file", section: security, class: honoured, usage: "Path to the " + side + " TLS cert file.", bind: func(c *cfg) binding { return text(&files(c).CertFile) }},
		{name: prefix + "key-file", section: security, class: honoured, usage: "Path to the " + side + " TLS key file.", bind: func(c *cfg) binding { return text(&files(c).KeyFile) }},
		{name: prefix + "client-cert-auth", section: security, class: honoured, usage: "Enable " + prefix + "client cert authentication.", bind: func(c *cfg) binding { return boolean(&files(c).ClientCertAuth) }},
		{name: prefix + "client-cert-file", section: security, class: honoured, usage: "Path to the TLS cert file that this member shows as a client; otherwise the cert file is used.", bind: func(c *cfg) binding { return text(&files(c).ClientCertFile) }},
		{name: prefix + "client-key-file", section: security, class: honoured, usage: "Path to the TLS key file that this member uses as a client; otherwise the key file is used.", bind: func(c *cfg) binding { return text(&files(c).ClientKeyFile) }},
		{name: prefix + "trusted-ca-file", section: security, class: honoured, usage: "Path to the " + side + " TLS trusted CA cert file (read again when it changes).", bind: func(c *cfg) binding { return text(&files(c).TrustedCAFile) }},
		{name: auto, section: security, class: honoured, usage: "TLS using certificates that the member makes itself: encryption without authentication.", bind: func(c *cfg) binding { return boolean(&files(c).AutoTLS) }},
	}
}
