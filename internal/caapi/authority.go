package caapi

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Faults of the authority.
var (
	ErrNoAuthority = fault.New(fault.Unsupported, "this cluster has no certificate authority of its own")
	ErrBadToken    = fault.New(fault.Denied, "the join token is unknown, used up or expired")
	ErrBadRequest  = fault.New(fault.Invalid, "malformed request")
)

// errNotAdmin is etcd's text for a right that is missing.
var errNotAdmin = fault.New(fault.Denied, "permission denied")

const issuerKeyPurpose = "issuer key"

// Lives of what the authority issues.
const (
	LeafLife   = 30 * 24 * time.Hour       // members and the admin; renewed by their holders
	IssuerLife = 5 * 365 * 24 * time.Hour  // issuers
	RootLife   = 15 * 365 * 24 * time.Hour // the root
	TokenLife  = time.Hour                 // a token's default
)

// Secrets seals secrets that are kept in replicated rows, under a key that every voter holds. *seal.Box is one.
type Secrets interface {
	Seal(purpose, place string, secret []byte) ([]byte, error)
	Open(purpose, place string, sealed []byte) ([]byte, error)
}

// Options are what an Authority needs; all are required.
type Options struct {
	Core    *core.Core
	Secrets Secrets
	System  policy.Principal // the clockwork: it writes the rows
	Cluster uint64
	Member  uint64
	Now     func() time.Time
	Rand    io.Reader
	Log     *slog.Logger
	// Principal returns who is at the other end of a request's connection.
	Principal func(context.Context) policy.Principal
	// Secret returns the cluster secret for a member that is admitted.
	Secret func() []byte
	// Endpoints returns the HOST:PORT of public listeners, for tokens.
	Endpoints func() []string
	// Recovery adds a recovery code to this member's keyring and returns it.
	Recovery func() (string, error)
	// Status describes this member for people and machines.
	Status func(ctx context.Context, who policy.Principal) (any, error)
}

// Authority is the cluster's certificate authority as one member sees it. Safe for concurrent use.
type Authority struct {
	o Options

	mu      sync.Mutex
	root    *x509.Certificate
	issuers map[policy.Role]ca.Authority
	keys    map[string]heldKey // of named authorities, opened

	lists chan struct{} // turns of those who write large revocation lists to strangers
	kept  struct {
		sync.Mutex
		lists map[string]keptList // by issuer
	}
}

// New returns an authority that has not read its rows yet.
func New(o Options) *Authority {
	return &Authority{o: o, issuers: map[policy.Role]ca.Authority{}, keys: map[string]heldKey{}, lists: make(chan struct{}, listTurns)}
}

// Roles lists the roles that have an issuer of their own, with the word that rows and messages use.
func Roles() map[policy.Role]string {
	return map[policy.Role]string{
		policy.RoleMember: "member", policy.RoleAdmin: "admin", policy.RoleClient: "client", policy.RoleAgent: "agent",
		policy.RoleKMS: "kms",
	}
}

// Seed is a new authority before its rows exist.
type Seed struct {
	Root    *x509.Certificate
	RootKey crypto.Signer
	Issuers []ca.Authority
}

// NewSeed makes a root and one issuer for each role.
func NewSeed(src ca.Source, cluster uint64) (Seed, error) {
	var s Seed
	key, err := ca.GenerateKey(src.Rand)
	if err != nil {
		return s, err
	}
	s.RootKey = key
	if s.Root, err = ca.NewRoot(src, key, cluster, RootLife); err != nil {
		return s, err
	}
	root := ca.Authority{Certificate: s.Root, Signer: key}
	for _, role := range []policy.Role{policy.RoleMember, policy.RoleAdmin, policy.RoleClient, policy.RoleAgent, policy.RoleKMS} {
		key, err := ca.GenerateKey(src.Rand)
		if err != nil {
			return s, err
		}
		cert, err := ca.NewIssuer(src, root, role, key.Public(), IssuerLife)
		if err != nil {
			return s, err
		}
		s.Issuers = append(s.Issuers, ca.Authority{Certificate: cert, Signer: key, Role: role})
	}
	return s, nil
}

// Issuer returns the seed's issuer for role.
func (s Seed) Issuer(role policy.Role) ca.Authority {
	for _, i := range s.Issuers {
		if i.Role == role {
			return i
		}
	}
	return ca.Authority{}
}

func rootKey(name string) []byte   { return []byte("root/" + name) }
func secretKey(name string) []byte { return []byte("secret/" + name) }
func pinKey(member uint64) []byte  { return fmt.Appendf(nil, "pin/%016x", member) }
func tokenKey(id uint64) []byte    { return fmt.Appendf(nil, tokenPrefix+"%016x", id) }

const (
	tokenPrefix = "token/"
	tokenEnd    = "token0"
)

// Establish writes the rows of a new authority, once: if the cluster has one already, nothing happens.
func (a *Authority) Establish(ctx context.Context, s Seed) error {
	txn := &state.Txn{Space: mvcc.SpaceCA, Compare: []state.Compare{absent(rootKey("root"))}}
	put := func(key, value []byte) {
		txn.Success = append(txn.Success, state.Op{Put: &state.Put{Space: mvcc.SpaceCA, Key: key, Value: value}})
	}
	put(rootKey("root"), s.Root.Raw)
	for _, i := range s.Issuers {
		name := Roles()[i.Role]
		key, err := ca.EncodeKey(i.Signer)
		if err != nil {
			return err
		}
		wrapped, err := a.o.Secrets.Seal(issuerKeyPurpose, "issuer/"+name, key)
		if err != nil {
			return err
		}
		put(rootKey(name), i.Certificate.Raw)
		put(secretKey("issuer/"+name), wrapped)
	}
	_, err := a.o.Core.Txn(ctx, a.o.System, txn, false)
	return err
}

func absent(key []byte) state.Compare {
	return state.Compare{Span: storage.KeySpan(key), Target: state.CompareCreate, Result: state.CompareEqual, Number: 0}
}

// Load reads the authority from its rows. It returns ErrNoAuthority if there are none.
func (a *Authority) Load(ctx context.Context) error {
	der, err := a.row(ctx, rootKey("root"))
	if err != nil {
		return err
	}
	if der == nil {
		return ErrNoAuthority
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("the root in the cluster's state: %w", err)
	}
	issuers := map[policy.Role]ca.Authority{}
	for role, name := range Roles() {
		i, err := a.loadIssuer(ctx, role, name)
		if err != nil {
			return err
		}
		issuers[role] = i
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.root, a.issuers = root, issuers
	return nil
}

func (a *Authority) loadIssuer(ctx context.Context, role policy.Role, name string) (ca.Authority, error) {
	der, err := a.row(ctx, rootKey(name))
	if err != nil {
		return ca.Authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return ca.Authority{}, fmt.Errorf("the %s issuer in the cluster's state: %w", name, err)
	}
	wrapped, err := a.row(ctx, secretKey("issuer/"+name))
	if err != nil {
		return ca.Authority{}, err
	}
	pem, err := a.o.Secrets.Open(issuerKeyPurpose, "issuer/"+name, wrapped)
	if err != nil {
		return ca.Authority{}, fmt.Errorf("the key of the %s issuer: %w", name, err)
	}
	key, err := ca.ParseKey(pem)
	if err != nil {
		return ca.Authority{}, fmt.Errorf("the key of the %s issuer: %w", name, err)
	}
	return ca.Authority{Certificate: cert, Signer: key, Role: role}, nil
}

// row reads one row, linearizably; nil if there is none.
func (a *Authority) row(ctx context.Context, key []byte) ([]byte, error) {
	kv, err := a.kv(ctx, key)
	if err != nil || kv == nil {
		return nil, err
	}
	return kv.Value, nil
}

func (a *Authority) kv(ctx context.Context, key []byte) (*mvcc.KV, error) {
	return a.look(ctx, key, false)
}

// page reads one row.
func (a *Authority) page(ctx context.Context, key []byte, serializable bool) (mvcc.Page, error) {
	return a.o.Core.Range(ctx, a.o.System, core.RangeRequest{
		Space: mvcc.SpaceCA, Serializable: serializable, Query: mvcc.Query{Span: storage.KeySpan(key), Limit: 1, NoCount: true},
	})
}

// Root returns the cluster's root; nil before Load.
func (a *Authority) Root() *x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.root
}

// Issuers returns the issuing certificates by role.
func (a *Authority) Issuers() map[policy.Role]*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[policy.Role]*x509.Certificate{}
	for role, i := range a.issuers {
		out[role] = i.Certificate
	}
	return out
}

// issuedRecord is the row of one issued certificate.
type issuedRecord struct {
	Profile   string    `json:"profile"`
	Subject   string    `json:"subject"` // its common name
	DN        string    `json:"dn,omitempty"`
	Hosts     []string  `json:"hosts,omitempty"`
	Member    string    `json:"member,omitempty"` // whose it is, or on whose host it is
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	By        string    `json:"by"`
	DER       []byte    `json:"der,omitempty"`
}

func newRecord(leaf *x509.Certificate, profile string, by policy.Principal) issuedRecord {
	return issuedRecord{Profile: profile, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, By: by.String(), DER: leaf.Raw}
}

// The profiles of members' certificates, as rows name them.
const (
	profileServer = "server"
	profilePeer   = "peer"
)

func profileName(p ca.Profile) (string, policy.Role) {
	switch p {
	case ca.ServerProfile:
		return profileServer, policy.RoleMember
	case ca.PeerProfile:
		return profilePeer, policy.RoleMember
	case ca.AdminProfile:
		return "admin", policy.RoleAdmin
	case ca.ClientProfile:
		return "client", policy.RoleClient
	case ca.AgentProfile:
		return "agent", policy.RoleAgent
	case ca.KMSProfile:
		return "kms", policy.RoleKMS
	}
	return "", policy.RoleNone
}

// Issue signs a certificate for this member or on its host, commits the record of it, and only then returns the chain, leaf
// first.
func (a *Authority) Issue(ctx context.Context, by policy.Principal, r ca.Request) ([]*x509.Certificate, error) {
	return a.issueTo(ctx, by, a.o.Member, r)
}

// issueTo is Issue for the member holder.
func (a *Authority) issueTo(ctx context.Context, by policy.Principal, holder uint64, r ca.Request) ([]*x509.Certificate, error) {
	name, role := profileName(r.Profile)
	a.mu.Lock()
	issuer := a.issuers[role]
	a.mu.Unlock()
	if issuer.Certificate == nil {
		return nil, ErrNoAuthority
	}
	if r.Life == 0 {
		r.Life = LeafLife
	}
	leaf, err := ca.Issue(ca.Source{Now: a.o.Now(), Rand: a.o.Rand}, issuer, r)
	if err != nil {
		return nil, err
	}
	record := newRecord(leaf, name, by)
	record.Subject, record.Hosts = r.CommonName, r.Hosts
	if err := a.record(ctx, by, holder, leaf, issuer.Certificate, record); err != nil {
		return nil, err
	}
	if r.Profile == ca.PeerProfile {
		if err := a.pin(ctx, r.Member, leaf); err != nil {
			return nil, err
		}
	}
	return []*x509.Certificate{leaf, issuer.Certificate}, nil
}

// Issued is a certificate that was made before there was a log.
type Issued struct {
	Leaf, Issuer *x509.Certificate
	Profile      ca.Profile
	Member       uint64 // of a peer certificate
}

// Record commits what the founder issued before there was a log, and its pin.
func (a *Authority) Record(ctx context.Context, i Issued) error {
	name, _ := profileName(i.Profile)
	record := newRecord(i.Leaf, name, a.o.System)
	record.Subject, record.Hosts = i.Leaf.Subject.CommonName, i.Leaf.DNSNames
	if err := a.record(ctx, a.o.System, a.o.Member, i.Leaf, i.Issuer, record); err != nil {
		return err
	}
	if i.Profile != ca.PeerProfile {
		return nil
	}
	return a.pin(ctx, i.Member, i.Leaf)
}

// pin keeps the digest of a member's public key.
func (a *Authority) pin(ctx context.Context, member uint64, leaf *x509.Certificate) error {
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	_, err := a.o.Core.Put(ctx, a.o.System, &state.Put{Space: mvcc.SpaceCA, Key: pinKey(member), Value: sum[:]})
	return err
}

// record commits the record of a certificate of holder's host; those that name it as a member go with it.
func (a *Authority) record(ctx context.Context, by policy.Principal, holder uint64, leaf, issuer *x509.Certificate, r issuedRecord) error {
	n := ca.Name(leaf, issuer)
	r.Member = memberName(holder)
	subject, err := ca.SubjectOf(leaf)
	if err != nil {
		return err
	}
	r.DN = subject.String()
	row, err := putJSON(issuedKey(n.Issuer, n.Serial), r)
	if err != nil {
		return err
	}
	if err := a.o.Core.RecordControl(by, actionIssue, fmt.Sprintf("%s certificate %s/%s of %q", r.Profile, n.Issuer, n.Serial, r.Subject)); err != nil {
		return err
	}
	puts := []*state.Put{row}
	if r.Profile == profilePeer || r.Profile == profileServer {
		puts = append(puts, put(heldByKey(holder, n), nil))
	}
	_, err = a.commit(ctx, a.o.System, nil, puts...)
	return err
}

// Pinned reports whether key is the pinned key of a current member, from what this member has applied.
func (a *Authority) Pinned(member uint64, key [sha256.Size]byte) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	page, err := a.o.Core.Range(ctx, a.o.System, core.RangeRequest{
		Space: mvcc.SpaceCA, Serializable: true, Query: mvcc.Query{Span: storage.KeySpan(pinKey(member)), Limit: 1, NoCount: true},
	})
	if err != nil || len(page.KVs) == 0 || len(page.KVs[0].Value) != sha256.Size {
		return false
	}
	members, err := a.o.Core.Members(ctx, a.o.System, false)
	if err != nil {
		return false
	}
	for _, m := range members {
		if m.ID == member {
			return [sha256.Size]byte(page.KVs[0].Value) == key
		}
	}
	return false
}

// What the authority does, in the audit record's words.
const (
	actionIssue    = "certificate issue"
	actionToken    = "join token create"
	actionAdmit    = "join token use"
	actionRecovery = "recovery code create"
)

// mayAdminister reports whether who may change the authority: the one right that all of it needs. A refusal is recorded.
func (a *Authority) mayAdminister(who policy.Principal, action string) error {
	if !who.IsAdmin() {
		a.o.Core.RecordRefusal(who, action, errNotAdmin)
		return errNotAdmin
	}
	return nil
}
