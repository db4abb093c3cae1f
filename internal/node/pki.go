package node

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/seal"
)

const secretSize = 32

// Sealed files below pki/ that only `holdfast server` has.
const (
	identityName = "identity"
	secretName   = "secret"
	seedName     = "seed"
	rootKeyName  = "root-key"
	joiningName  = "joining"
)

// pki is the authority of `holdfast server` as one member holds it.
type pki struct {
	n         *Node
	secret    seal.Secret // the cluster secret
	authority *caapi.Authority
	busy      atomic.Bool // a renewal is under way
	tending   atomic.Bool // the authority's own work is under way
	looked    time.Time

	mu    sync.Mutex
	ident ident
}

// ident is what this member shows and whom it trusts.
type ident struct {
	root    *x509.Certificate
	issuers map[policy.Role]*x509.Certificate
	peer    authn.Pair
	serve   authn.Pair
}

// identFile is ident as it is stored.
type identFile struct {
	Root     []byte            `json:"root"`
	Issuers  map[string][]byte `json:"issuers"`
	Peer     [][]byte          `json:"peer"`
	PeerKey  []byte            `json:"peerKey"`
	Serve    [][]byte          `json:"serve"`
	ServeKey []byte            `json:"serveKey"`
}

// seedFile holds what a new cluster's founder keeps until it is in the log.
type seedFile struct {
	Keys map[string][]byte `json:"keys"` // issuers' keys by role
}

func (n *Node) storeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return n.home.store(name, data)
}

func (n *Node) loadJSON(name string, v any) (ok bool, err error) {
	data, ok, err := n.home.load(name)
	if err != nil || !ok {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s/%s: %w", pkiName, name, err)
	}
	return true, nil
}

func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("an empty certificate chain")
	}
	return out, nil
}

func (f *identFile) open() (ident, error) {
	var id ident
	var err error
	if id.root, err = x509.ParseCertificate(f.Root); err != nil {
		return id, err
	}
	id.issuers = map[policy.Role]*x509.Certificate{}
	for role, name := range caapi.Roles() {
		if id.issuers[role], err = x509.ParseCertificate(f.Issuers[name]); err != nil {
			return id, fmt.Errorf("%s issuer: %w", name, err)
		}
	}
	pair := func(chain [][]byte, key []byte) (authn.Pair, error) {
		c, err := parseChain(chain)
		if err != nil {
			return authn.Pair{}, err
		}
		k, err := ca.ParseKey(key)
		return authn.Pair{Chain: c, Key: k}, err
	}
	if id.peer, err = pair(f.Peer, f.PeerKey); err != nil {
		return id, err
	}
	id.serve, err = pair(f.Serve, f.ServeKey)
	return id, err
}

func (id *ident) file() (*identFile, error) {
	f := &identFile{Root: id.root.Raw, Issuers: map[string][]byte{}, Peer: ders(id.peer.Chain), Serve: ders(id.serve.Chain)}
	for role, name := range caapi.Roles() {
		f.Issuers[name] = id.issuers[role].Raw
	}
	var err error
	if f.PeerKey, err = ca.EncodeKey(id.peer.Key); err != nil {
		return nil, err
	}
	f.ServeKey, err = ca.EncodeKey(id.serve.Key)
	return f, err
}

func ders(chain []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range chain {
		out = append(out, c.Raw)
	}
	return out
}

// openPKI loads this member's certificates and the cluster secret, and makes the identities of every side.
func (n *Node) openPKI(context.Context) error {
	if n.config.Mode != config.ModeServer {
		return nil
	}
	p := &pki{n: n}
	var f identFile
	ok, err := n.loadJSON(identityName, &f)
	if err != nil || !ok {
		return errors.Join(err, ErrDamaged.WithHint("%s has no certificates of its own (pki/identity)", n.home.dir))
	}
	if p.ident, err = f.open(); err != nil {
		return fmt.Errorf("this member's certificates: %w", err)
	}
	key, ok, err := n.home.load(secretName)
	if err != nil || !ok || len(key) != secretSize {
		return errors.Join(err, ErrDamaged.WithHint("%s has no cluster secret (pki/secret)", n.home.dir))
	}
	p.secret = seal.NewSecret(key)
	n.pki = p
	return p.openIdentities()
}

func (p *pki) openIdentities() error {
	n := p.n
	min, max := n.config.TLS.MinVersion, n.config.TLS.MaxVersion
	for _, s := range []struct {
		side authn.Side
		into **authn.Identity
	}{{authn.ClientSide, &n.ids.client}, {authn.PeerSide, &n.ids.peer}, {authn.MetricsSide, &n.ids.metrics}, {authn.PublicSide, &n.ids.public}, {authn.DiscoverySide, &n.ids.discovery}} {
		id, err := authn.New(authn.Config{Side: s.side, Issued: p.issued(s.side), MinVersion: min, MaxVersion: max}, n.authnEnv())
		if err != nil {
			return fmt.Errorf("%v identity: %w", s.side, err)
		}
		*s.into = id
	}
	return nil
}

// issued is what one side shows and trusts now: a listener's pool holds only the issuers of its role.
func (p *pki) issued(side authn.Side) *authn.Issued {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := &p.ident
	issuer := func(roles ...policy.Role) (out []authn.Issuer) {
		for _, r := range roles {
			out = append(out, authn.Issuer{Certificate: id.issuers[r], Role: r})
		}
		return out
	}
	i := &authn.Issued{Cluster: p.n.store.Cluster(), Server: id.serve}
	switch side {
	case authn.PeerSide:
		i.Server, i.Client, i.Issuers, i.Pinned = id.peer, id.peer, issuer(policy.RoleMember, policy.RoleAgent), p.pinned
	case authn.DiscoverySide:
		i.Issuers = issuer(policy.RoleAdmin, policy.RoleClient, policy.RoleAgent)
	case authn.MetricsSide:
		i.Issuers = issuer(policy.RoleAdmin, policy.RoleClient)
	case authn.PublicSide:
		i.NoClientCert = true
		i.Server.Chain = append(slices.Clone(id.serve.Chain), id.root) // a joiner knows nothing but the root's digest
	default:
		i.Issuers = issuer(policy.RoleAdmin, policy.RoleClient, policy.RoleKMS)
	}
	return i
}

func (p *pki) pinned(member uint64, key [32]byte) bool {
	return p.authority != nil && p.authority.Pinned(member, key)
}

// newKey makes a key and its signing request.
func (n *Node) newKey() (crypto.Signer, error) { return ca.GenerateKey(n.env.Rand) }

func (n *Node) source() ca.Source { return ca.Source{Now: n.env.Now(), Rand: n.env.Rand} }

// hosts are the names and addresses in this member's certificates.
func (n *Node) hosts() []string {
	hosts := hostsOf(slices.Concat(n.config.Advertise.Client, n.config.Advertise.Peer))
	for _, h := range []string{n.config.Advertise.Host, n.config.Name} {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return slices.DeleteFunc(hosts, func(h string) bool { return !ca.ValidHost(h) })
}

func (n *Node) randomID() (uint64, error) {
	for {
		id, err := n.seed()
		if err != nil || id != 0 {
			return id, err
		}
	}
}

// makeSecret draws the cluster secret.
func (n *Node) makeSecret() ([]byte, error) {
	key := make([]byte, secretSize)
	if _, err := io.ReadFull(n.env.Rand, key); err != nil {
		return nil, err
	}
	return key, nil
}
