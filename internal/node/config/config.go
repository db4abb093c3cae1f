// Package config is the one configuration of a Holdfast member, whatever the way in.
//
// Job: name every setting once, with its default, its unit and its bounds; read the strict YAML file of `holdfast
// server`; say what is wrong with a configuration before anything is opened. The comments on the struct fields are the
// reference documentation. Non-job: etcd's flag surface (package etcdflags fills the same Config), opening anything.
//
// Invariants: an unknown key is an error. A zero Config is not valid: start from Server or Etcd. A field tagged
// `yaml:"-"` cannot be reached from the server's file, because it would weaken or split what `holdfast server` decides
// by itself; only `holdfast etcd` fills it.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"go.yaml.in/yaml/v3"
)

// Mode is the way in: it decides the defaults, who may do what while user authentication is off, and the log format.
type Mode string

// The modes.
const (
	ModeServer Mode = "server" // secure with no flags: own CA, mutual TLS everywhere
	ModeEtcd   Mode = "etcd"   // a drop-in for etcd: its flags, its defaults, its rule "auth off = all"
	ModeConsul Mode = "consul" // a drop-in for a Consul agent: its keys, its defaults, its rule "ACL off = all"
)

// Config is the configuration of one member.
type Config struct {
	// Mode is set by the subcommand, never by the file.
	Mode Mode `yaml:"-"`

	// Name is this member's name, as `member list` shows it. Default: the host name (server), "default" (etcd).
	Name string `yaml:"name"`

	// DataDir holds everything this member stores, sealed. Default: holdfast.data (server), NAME.etcd (etcd), in the
	// working directory.
	DataDir string `yaml:"data-dir"`

	// Listen says where this member listens.
	Listen Listen `yaml:"listen"`

	// Advertise says under which URLs others reach this member.
	Advertise Advertise `yaml:"advertise"`

	// Join is the token of an existing cluster that an empty member joins (`holdfast token create` prints one). It is
	// ignored once the member has joined. A token is a secret until it has been used: prefer --join-file or
	// HOLDFAST_JOIN over writing it here.
	Join string `yaml:"join"`

	// Seal says where the key that opens the data directory is.
	Seal Seal `yaml:"seal"`
	// Audit says what of the data is recorded beside what always is.
	Audit Audit `yaml:"audit"`

	// Raft holds consensus timing and membership rules.
	Raft Raft `yaml:"raft"`

	// Limits bounds what clients may ask.
	Limits Limits `yaml:"limits"`

	// Keepalive holds gRPC keep-alive rules.
	Keepalive Keepalive `yaml:"keepalive"`

	// Compaction holds automatic compaction.
	Compaction Compaction `yaml:"compaction"`

	// Auth holds user authentication.
	Auth Auth `yaml:"auth"`

	// TLS holds protocol versions, suites and, under `holdfast etcd`, certificate files.
	TLS TLS `yaml:"tls"`

	// Watch holds watch settings.
	Watch Watch `yaml:"watch"`

	// Checks holds consistency checks between members.
	Checks Checks `yaml:"checks"`

	// Web holds the HTTP side: gateway, metrics, profiling.
	Web Web `yaml:"web"`

	// Log holds logging.
	Log Log `yaml:"log"`

	// Bootstrap says how an empty member of `holdfast etcd` finds its cluster.
	Bootstrap Bootstrap `yaml:"-"`

	// Gates are etcd's feature gates that change something here.
	Gates Gates `yaml:"-"`

	// Consul is the agent of `holdfast consul agent`; nil otherwise.
	Consul *Consul `yaml:"-"`
}

// Listen says where a member listens. Schemes: http, https, unix, unixs; an http or unix URL is served in the clear and
// is possible under `holdfast etcd` only.
type Listen struct {
	// Client serves the data APIs: gRPC, and the JSON gateway and /health, /metrics, … unless HTTP is set.
	Client URLs `yaml:"client"`
	// HTTP, when set, takes the web side (gateway, /health, /metrics) away from Client.
	HTTP URLs `yaml:"http"`
	// Metrics serves /metrics and /health in addition.
	Metrics URLs `yaml:"metrics"`
	// Peer serves the other members.
	Peer URLs `yaml:"peer"`
	// Public serves what needs no client certificate: the trust root, joining, liveness. `holdfast server` only.
	Public URLs `yaml:"public"`
	// Consul serves Consul's HTTP API over mutual TLS. Default: empty, not served. `holdfast server` only.
	Consul URLs `yaml:"consul"`
	// DNS is the host:port on which the catalog is served over DNS (udp and tcp). Default: empty, not served.
	DNS string `yaml:"dns"`
	// Gossip is the host:port (udp and tcp) of the encrypted gossip by which members and agents notice each other's
	// failure. Its key is made by the cluster. Default: empty, no gossip.
	Gossip string `yaml:"gossip"`
	// CFSSL serves named certificate authorities (`holdfast ca init NAME`) over the CFSSL protocol, as a Docker swarm asks
	// its external CA: the authority's name, then the https URLs. `holdfast server` only.
	CFSSL map[string]URLs `yaml:"cfssl"`
	// ReusePort sets SO_REUSEPORT, ReuseAddress SO_REUSEADDR on every TCP listener.
	ReusePort    bool `yaml:"-"`
	ReuseAddress bool `yaml:"-"`
}

// Advertise says under which URLs others reach this member. Under `holdfast server` a missing URL is made from the
// listen URL and Host.
type Advertise struct {
	// Host is the name or address that others use for this host. It is in the certificates. Default: the address of
	// the first interface that is not loopback, or 127.0.0.1.
	Host string `yaml:"host"`
	// Client and Peer replace what is derived from Host.
	Client URLs `yaml:"client"`
	Peer   URLs `yaml:"peer"`
}

// Seal says where the key that opens the data directory is.
type Seal struct {
	// KEK names the key-encryption key: file:PATH, env:VARIABLE, passphrase-file:PATH, recovery-file:PATH (a recovery code) or credential:NAME (a systemd
	// credential). Default: a file outside the data directory that is created on the first start: under the user's
	// configuration directory (server), DATA-DIR.kek (etcd).
	KEK string `yaml:"kek"`
	// Scrub is the pace of the background scrub in bytes per second; 0 turns it off. Default: 4 MiB.
	ScrubBytesPerSecond int64 `yaml:"scrub-bytes-per-second"`
	// EncryptionConfig is a file that holds an EncryptionConfiguration of Kubernetes: values of the resources in it are stored
	// as it says. Server only. A member declares it to the cluster when it starts; the newest declared one is in force on
	// every member, and a member that is started without one withdraws its own. Default: none.
	EncryptionConfig string `yaml:"encryption-provider-config"`
	// EncryptionPrefix is what the keys of the store begin with that the configuration looks at: kube-apiserver's
	// --etcd-prefix. Default: /registry.
	EncryptionPrefix string `yaml:"encryption-etcd-prefix"`
}

// Audit says what is recorded beside refusals, logins and control operations, which always are.
type Audit struct {
	// Prefixes lists prefixes of keys whose reads and writes are recorded, without their values. Default: none.
	Prefixes []string `yaml:"prefixes"`
}

// Raft holds consensus timing and membership rules.
type Raft struct {
	// Heartbeat is the leader's heartbeat. Default: 100ms.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// Election is how long a follower waits without a heartbeat. At least 5 heartbeats, at most 50s. Default: 1s.
	Election time.Duration `yaml:"election"`
	// SnapshotCount, if not 0, is how many entries may be applied before the state is made durable so that the log can
	// be cut behind them. Default: 0, bytes decide.
	SnapshotCount uint64 `yaml:"snapshot-count"`
	// CatchUpEntries, if not 0, is how many entries behind the cut are kept for slow members. Default: 0, the log is kept
	// up to 128 MiB.
	CatchUpEntries uint64 `yaml:"snapshot-catchup-entries"`
	// StrictReconfig refuses membership changes that would cost the quorum. Default: true.
	StrictReconfig bool `yaml:"strict-reconfig"`
	// MaxLearners bounds the learners of the cluster; 0 takes none. Default: 1.
	MaxLearners int `yaml:"max-learners"`
}

// Limits bounds what clients may ask.
type Limits struct {
	// QuotaBytes is the logical size (live and not yet compacted) beyond which the NOSPACE alarm is raised; 0 means
	// 2 GiB, a negative number none.
	QuotaBytes int64 `yaml:"quota-bytes"`
	// ReserveBytes is the free disk below which the NOSPACE alarm is raised; it is lowered again at twice that. 0 means
	// 128 MiB, a negative number turns it off.
	ReserveBytes int64 `yaml:"reserve-bytes"`
	// MaxTxnOps bounds the operations of one transaction. Default: 128.
	MaxTxnOps uint `yaml:"max-txn-ops"`
	// MaxRequestBytes bounds one request. Default: 1572864.
	MaxRequestBytes uint `yaml:"max-request-bytes"`
	// MaxConcurrentStreams bounds the open streams of one connection. Default: 10000; etcd's, for `holdfast etcd`, is 4294967295.
	MaxConcurrentStreams uint32 `yaml:"max-concurrent-streams"`
}

// Keepalive holds gRPC keep-alive rules.
type Keepalive struct {
	// MinTime is the shortest interval at which a client may ping. Default: 5s.
	MinTime time.Duration `yaml:"min-time"`
	// Interval is how long a connection may be silent before the server pings it; 0 turns it off. Default: 2h.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long the answer to a ping may take; 0 turns it off. Default: 20s.
	Timeout time.Duration `yaml:"timeout"`
}

// Compaction holds automatic compaction.
type Compaction struct {
	// Mode is periodic or revision. Default: periodic.
	Mode string `yaml:"mode"`
	// Retention is how much history is kept: a duration (or a number of hours) with periodic, a number of revisions
	// with revision. Default: 0, no automatic compaction.
	Retention string `yaml:"retention"`
	// BatchLimit, if not 0, is how many rows of what was compacted are looked at for one write that removes them.
	// Default: 0, which stands for 2000.
	BatchLimit uint64 `yaml:"batch-limit"`
}

// Auth holds user authentication.
type Auth struct {
	// Token is simple, or jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION. Default: simple.
	Token string `yaml:"token"`
	// TokenTTL is the life of a simple token in seconds. Default: 300.
	TokenTTL uint `yaml:"token-ttl"`
	// BcryptCost is the cost of hashing a password, 4 to 31. Default: 10.
	BcryptCost uint `yaml:"bcrypt-cost"`
}

// TLS holds protocol versions, suites and certificate files.
type TLS struct {
	// MinVersion is TLS1.2 or TLS1.3. Default: TLS1.3 (server), TLS1.2 (etcd).
	MinVersion string `yaml:"min-version"`
	// MaxVersion is TLS1.2 or TLS1.3; empty: the newest. Default: empty.
	MaxVersion string `yaml:"max-version"`
	// CipherSuites restricts the suites of TLS 1.2, by Go's names. Default: Go's choice.
	CipherSuites []string `yaml:"cipher-suites"`
	// Client and Peer are the files of the two sides; AutoTLS uses certificates that the member makes itself.
	Client TLSFiles `yaml:"-"`
	Peer   TLSFiles `yaml:"-"`
	// SelfSignedYears is the life of the certificates that AutoTLS makes, in years. Default: 1.
	SelfSignedYears uint `yaml:"-"`
}

// TLSFiles names the PEM files of one side and who may connect to it. All of them are read again when they change.
type TLSFiles struct {
	CertFile, KeyFile             string   // what the listener shows
	ClientCertFile, ClientKeyFile string   // what this member shows as a client; empty: CertFile, KeyFile
	ClientCertAuth                bool     // demand a client certificate
	TrustedCAFile                 string   // the pool; setting it alone also demands a client certificate
	CRLFile                       string   // PEM or DER, several lists possible
	AllowedCNs                    []string // common names that may connect; empty: all
	AllowedHostnames              []string // subject alternative names that may connect; empty: all
	SkipClientSANVerify           bool     // peer side: do not compare the certificate's SANs with the remote address
	AutoTLS                       bool     // make and use an own certificate if none is given
}

// Given reports whether a certificate or key was named.
func (t TLSFiles) Given() bool { return t.CertFile != "" || t.KeyFile != "" }

// Watch holds watch settings.
type Watch struct {
	// ProgressInterval is the time between progress notifications. Default: 10m.
	ProgressInterval time.Duration `yaml:"progress-interval"`
}

// Checks holds consistency checks between members and the warnings about slow requests.
type Checks struct {
	// CorruptCheckInterval is the time between comparisons of the members' hashes; 0 turns them off. Default: 0.
	CorruptCheckInterval time.Duration `yaml:"corrupt-check-interval"`
	// WarnUnary is how long a unary request may take before it is logged. Default: 300ms.
	WarnUnary time.Duration `yaml:"warn-unary"`
	// WarnApply is how long applying may take before it is logged. Default: 100ms.
	WarnApply time.Duration `yaml:"warn-apply"`
}

// Web holds the HTTP side.
type Web struct {
	// Gateway serves the JSON gateway under /v3. Default: true.
	Gateway bool `yaml:"gateway"`
	// Pprof serves /debug/pprof. Default: false.
	Pprof bool `yaml:"pprof"`
	// MetricsLevel is basic or extensive (adds latency histograms of the gRPC methods). Default: basic.
	MetricsLevel string `yaml:"metrics-level"`
	// CORS lists the origins that browsers may send from; * is all. Empty: all for `holdfast etcd`, otherwise none but the
	// port itself.
	CORS []string `yaml:"-"`
	// HostWhitelist lists the host names that plaintext HTTP requests may name; * or empty: all.
	HostWhitelist []string `yaml:"-"`
}

// Log holds logging.
type Log struct {
	// Level is debug, info, warn or error (etcd's panic and fatal are taken for error). Default: info.
	Level string `yaml:"level"`
	// Format is text (server's default), json (etcd's default) or console.
	Format string `yaml:"format"`
	// Outputs lists stderr, stdout, default (stderr) and files. Default: stderr.
	Outputs []string `yaml:"outputs"`
	// Rotate turns on the rotation of one output file, as Rotation says.
	Rotate bool `yaml:"-"`
	// Rotation is etcd's rotation object as JSON.
	Rotation string `yaml:"-"`
	// Syslog is the facility (LOCAL0, DAEMON, …) under which records also go to this host's syslog; empty: they do not.
	Syslog string `yaml:"-"`
}

// Bootstrap says how an empty member of `holdfast etcd` finds its cluster.
type Bootstrap struct {
	// InitialCluster is name=url,name=url,…
	InitialCluster string
	// State is new or existing.
	State string
	// Token tells clusters with equal URLs apart.
	Token string
	// ForceNewCluster makes this member the only one of its cluster, keeping its data.
	ForceNewCluster bool
	// Discovery is etcd's v3 discovery through another cluster.
	Discovery Discovery
	// SRVDomain and SRVName find the cluster through DNS SRV records.
	SRVDomain, SRVName string
}

// Discovery is etcd's v3 discovery through another cluster.
type Discovery struct {
	Endpoints                             []string
	Token                                 string
	DialTimeout, RequestTimeout           time.Duration
	KeepaliveTime, KeepaliveTimeout       time.Duration
	InsecureTransport, InsecureSkipVerify bool
	CertFile, KeyFile, CACertFile         string
	User, Password                        string
}

// Gates are etcd's feature gates that change something here.
type Gates struct {
	// SetMemberLocalAddr dials peers from the first advertised address that is not loopback.
	SetMemberLocalAddr bool
	// NotServingOnDefrag lets the gRPC health service say NOT_SERVING while a defragmentation runs.
	NotServingOnDefrag bool
}

// Server returns the defaults of `holdfast server`.
func Server() *Config {
	c := common()
	c.Mode = ModeServer
	c.Name = hostName()
	c.DataDir = "holdfast.data"
	c.Listen.Client = MustURLs("https://0.0.0.0:2379")
	c.Listen.Peer = MustURLs("https://0.0.0.0:2380")
	c.Listen.Public = MustURLs("https://0.0.0.0:2378")
	c.TLS.MinVersion = "TLS1.3"
	c.Seal.EncryptionPrefix = "/registry"
	c.Limits.MaxConcurrentStreams = 10_000
	c.Web.CORS = nil
	c.Log.Format = "text"
	return c
}

// Etcd returns the defaults of `holdfast etcd`, which are etcd's.
func Etcd() *Config {
	c := common()
	c.Mode = ModeEtcd
	c.Name = DefaultName
	c.Listen.Client = MustURLs(defaultClientURL)
	c.Listen.Peer = MustURLs(defaultPeerURL)
	c.Advertise.Client = MustURLs(defaultClientURL)
	c.Advertise.Peer = MustURLs(defaultPeerURL)
	c.TLS.MinVersion = "TLS1.2"
	c.Log.Format = "json"
	c.Log.Outputs = []string{"default"}
	c.Bootstrap.State = "new"
	c.Bootstrap.Token = "etcd-cluster"
	c.Bootstrap.InitialCluster = DefaultName + "=" + defaultPeerURL
	return c
}

const (
	defaultClientURL = "http://localhost:2379"
	defaultPeerURL   = "http://localhost:2380"

	// DefaultName is etcd's name for a member that was not given one.
	DefaultName = "default"
)

func common() *Config {
	return &Config{
		Seal: Seal{ScrubBytesPerSecond: 4 << 20},
		Raft: Raft{
			Heartbeat: 100 * time.Millisecond, Election: time.Second, StrictReconfig: true, MaxLearners: 1,
		},
		Limits: Limits{MaxTxnOps: 128, MaxRequestBytes: 1572864, MaxConcurrentStreams: math.MaxUint32},
		Keepalive: Keepalive{
			MinTime: 5 * time.Second, Interval: 2 * time.Hour, Timeout: 20 * time.Second,
		},
		Compaction: Compaction{Mode: "periodic", Retention: "0"},
		Auth:       Auth{Token: "simple", TokenTTL: 300, BcryptCost: 10},
		TLS:        TLS{SelfSignedYears: 1},
		Watch:      Watch{ProgressInterval: 10 * time.Minute},
		Checks:     Checks{WarnUnary: 300 * time.Millisecond, WarnApply: 100 * time.Millisecond},
		Web:        Web{Gateway: true, MetricsLevel: "basic", CORS: []string{"*"}, HostWhitelist: []string{"*"}},
		Log: Log{
			Level: "info", Outputs: []string{"stderr"},
			Rotation: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`,
		},
		Bootstrap: Bootstrap{Discovery: Discovery{
			DialTimeout: 2 * time.Second, RequestTimeout: 5 * time.Second,
			KeepaliveTime: 2 * time.Second, KeepaliveTimeout: 6 * time.Second, InsecureTransport: true,
		}},
	}
}

// ConsulAgent returns the defaults of `holdfast consul agent` that do not depend on its own keys.
func ConsulAgent() *Config {
	c := common()
	c.Mode = ModeConsul
	c.Name = hostName()
	c.TLS.MinVersion = "TLS1.2"
	c.Log.Format = "text"
	c.Log.Outputs = []string{"stdout"}
	c.Consul = &Consul{}
	return c
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return DefaultName
	}
	return name
}

// ReadFile reads the YAML file of `holdfast server` over c. An unknown or repeated key is an error that names it.
func (c *Config) ReadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := c.read(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (c *Config) read(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var second any
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document in the file")
	}
	return nil
}

// YAML returns the effective configuration in the form that ReadFile reads. A join token is left out.
func (c *Config) YAML() ([]byte, error) {
	shown := *c
	if shown.Join != "" {
		shown.Join = "(set, not shown)"
	}
	return yaml.Marshal(&shown)
}
