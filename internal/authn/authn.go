// Package authn turns a socket into a Principal or a refusal. It is the only builder of tls.Config (defaults.go), the
// only reader of presented certificates, and one of two makers of Principals.
//
// Job: TLS settings of etcd's flags and of Holdfast's own issued identities; hot reload of certificates, keys, CA bundles
// and CRLs; verification; gates, which accept connections, bound their handshakes and hand them to the gRPC, web or peer
// server; turns of gRPC's readers, so that one busy connection leaves time to others; the registry of live connections, so
// that a revocation cuts them. Non-job: issuing certificates (ca), rights
// (policy, core), passwords and tokens (core), serving requests.
//
// Invariants:
//   - A certificate is verified in tls.Config.VerifyConnection and nowhere else, after its chain was measured; session
//     tickets are off, so no handshake goes around it. VerifyConnection runs before the client has proved that it holds
//     the key: a Principal is made only after the handshake is over.
//   - A connection is in the registry before revocation is looked up for the last time, so a revocation that comes in
//     between is seen by one of the two.
//   - A reload that fails leaves the last good set in force, and says what is wrong. A certificate that stood on a list in
//     force is never accepted because the list became unreadable, older or out of date.
//   - The zero Config, GateOptions and Principal open nothing.
//
// Lock order: Identity.mu, then Registry.mu. No lock is held while a socket, a file of another identity or a hook is used,
// except Identity.mu around the files of that identity.
package authn

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"time"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Side says for whom a listener or an identity is; it decides which principals come out and the words in messages.
type Side uint8

// The sides. The zero value is none and is refused.
const (
	noSide        Side = iota
	ClientSide         // data APIs: etcd's client URLs
	PeerSide           // member to member: etcd's peer URLs
	MetricsSide        // health and metrics for machines that watch
	PublicSide         // `holdfast server`: what may be reached without a certificate; its principals are Nobody
	SigningSide        // who asks a named authority for certificates, with one of that authority: its principals have no role
	DiscoverySide      // Consul's HTTP API
)

// String returns the word that messages use.
func (s Side) String() string {
	switch s {
	case ClientSide:
		return "client"
	case PeerSide:
		return "peer"
	case MetricsSide:
		return "metrics"
	case PublicSide:
		return "public"
	case SigningSide:
		return "signing"
	case DiscoverySide:
		return "discovery"
	case noSide:
	}
	return "no side"
}

// Config is the TLS of one side: etcd's flags of the same names (with the prefix peer- on the peer side), or Issued.
// The zero Config is refused.
type Config struct {
	Side Side

	CertFile, KeyFile             string // PEM; what this side shows
	ClientCertFile, ClientKeyFile string // PEM; what it shows when it connects to others; empty: CertFile and KeyFile
	ClientCertAuth                bool   // demand a client certificate, and let its common name be a user name
	TrustedCAFile                 string // PEM bundle; alone it demands a client certificate too, as in etcd
	CRLFile                       string // one or more CRLs, PEM or DER
	AllowedCNs, AllowedHostnames  []string
	SkipClientSANVerify           bool // peer side: do not compare a peer's address with its certificate

	AutoTLS         bool          // make a self-signed certificate; ignored, with a warning, when CertFile is set
	AutoTLSHosts    []string      // the host names and addresses in it
	AutoTLSValidity time.Duration // zero: one year
	AutoTLSStore    Store         // where it is kept; required with AutoTLS

	CipherSuites         []string // Go's names of TLS 1.2 suites; empty: Go's choice
	InsecureCipherSuites bool     // take suites that Go calls insecure, with a warning (etcd does); otherwise they are refused
	MinVersion           string   // "TLS1.2" or "TLS1.3"; empty: TLS1.3
	MaxVersion           string   // likewise; empty: no bound

	// RootsFile is a PEM bundle that verifies whom this side connects to while nobody who comes in is asked for a
	// certificate; it excludes TrustedCAFile, which does both.
	RootsFile string
	// ServerName, if not empty, is the name that servers' certificates must be for, instead of the host that was dialled;
	// on the peer side, also those that come in on the peer protocol. AnyServer takes every server that the CA certifies.
	ServerName string
	AnyServer  bool
	// RefuseWeak refuses RSA keys under 2048 bits and signatures with SHA-1 or MD5: in the files, and of whoever connects.
	RefuseWeak bool
	// Flag spells a setting as its user wrote it, from etcd's name of it on the client side; nil: as etcd does.
	Flag func(name string) string

	Issued *Issued // the identity that the cluster's own CA issued; excludes every file above
}

// Issued is an identity in memory, from the cluster's own role issuers.
type Issued struct {
	Cluster uint64
	Server  Pair // shown to those who connect
	Client  Pair // shown when connecting to others; may be empty

	// Issuers are the only ones that this side accepts, each with what it certifies its holders as.
	Issuers []Issuer
	// Roots verify those whom this side connects to; empty: the Issuers for RoleMember.
	Roots []*x509.Certificate
	// NoClientCert serves without asking for a certificate: PublicSide only.
	NoClientCert bool
	// Pinned, on the peer side, reports whether key (SHA-256 of SubjectPublicKeyInfo) is that of a current member
	// according to replicated state: its expired certificate is then accepted. Nil: never.
	Pinned func(member uint64, key [32]byte) bool
}

// Pair is a certificate chain, leaf first, with the leaf's key.
type Pair struct {
	Chain []*x509.Certificate
	Key   crypto.Signer
}

// Issuer is an issuing certificate and what its holders are.
type Issuer struct {
	Certificate *x509.Certificate
	Role        policy.Role
}

// Store keeps what auto-tls makes. Names are short file names; the content is PEM and holds a private key.
type Store interface {
	// Load returns what Save stored under name, or an error that is fs.ErrNotExist.
	Load(name string) ([]byte, error)
	Save(name string, pem []byte) error
}

// Resolver looks up names for the peer address check; *net.Resolver is one.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupHost(ctx context.Context, host string) ([]string, error)
}

// Env is the outside world of an Identity. All fields but Revoked and Resolver are required.
type Env struct {
	Now      func() time.Time
	Rand     io.Reader
	Log      *slog.Logger
	Registry *Registry
	Resolver Resolver // required on the peer side when addresses are checked
	// Revoked is asked about each certificate of an accepted chain but the anchor, after its connection is in the registry:
	// one point read. An error refuses the connection. Nil: the cluster keeps no revocations.
	Revoked func(policy.Certificate) (bool, error)
}

// ErrConfig is in the chain of every error about a Config that can never work.
var ErrConfig = errors.New("TLS configuration")

// ErrWeakSignature means that a certificate in a file is signed with SHA-1 or MD5.
var ErrWeakSignature = fault.New(fault.Invalid, "a certificate's signature is weak")
