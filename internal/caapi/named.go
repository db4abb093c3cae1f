package caapi

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Mode says what a named authority's certificate rests on.
type Mode string

// The modes.
const (
	ModeRole       Mode = "role"        // one of the cluster's own role issuers: member, admin, client, agent …
	ModeInternal   Mode = "internal"    // an issuing CA under the cluster's services root
	ModeSelfSigned Mode = "self-signed" // a root of its own
	ModeExternal   Mode = "external"    // an issuing CA that somebody else's CA certified
)

// Faults of named authorities.
var (
	ErrNoSuchAuthority = fault.New(fault.NotFound, "there is no authority of that name")
	ErrAuthorityExists = fault.New(fault.Conflict, "an authority of that name exists")
	ErrWaiting         = fault.New(fault.Conflict, "the authority has no certificate yet")
	ErrMembersOnly     = fault.New(fault.Denied, "certificates of members are issued by joining")
	ErrMoved           = fault.New(fault.Unavailable, "the authority changed meanwhile; try again")
)

// Named is a named authority as it is now.
type Named struct {
	Name    string
	Mode    Mode
	Chain   []*x509.Certificate // its own certificate, then those above it up to the root; empty while it waits for one
	Request []byte              // an external authority's signing request, DER
	Policy  ca.Policy
	CRLURLs []string
	CRLLife time.Duration
	Created time.Time

	form     ca.Form // of a role's issuer: its only profile
	certify  bool    // issues on command
	revision int64   // of its row; 0: a role's issuer
}

// Certificate returns the authority's own certificate, which signs; nil while an external one waits for it.
func (n *Named) Certificate() *x509.Certificate {
	if len(n.Chain) == 0 {
		return nil
	}
	return n.Chain[0]
}

// profile finds a profile of this authority.
func (n *Named) profile(name string) (ca.Form, error) {
	f, ok := ca.FormOf(name)
	if n.Mode == ModeRole {
		f, ok = n.form, name == n.form.Name || name == ""
	}
	switch {
	case !n.certify && n.Mode == ModeRole:
		return f, ErrMembersOnly.WithHint("create a join token: holdfast token create")
	case name == "" && n.Mode != ModeRole:
		return f, ca.ErrPolicy.WithHint("say what the certificate is for, with --profile: %s", strings.Join(n.Policy.Profiles, ", "))
	case !ok:
		return f, ca.ErrPolicy.WithHint("the authority %s has no profile %q, but %s", n.Name, name, strings.Join(n.Policy.Profiles, ", "))
	}
	return f, nil
}

// authorityRecord is the row of a named authority.
type authorityRecord struct {
	Mode    Mode        `json:"mode"`
	Created time.Time   `json:"created"`
	By      string      `json:"by"`
	Chain   [][]byte    `json:"chain,omitempty"`   // DER, its own certificate first
	Request []byte      `json:"request,omitempty"` // DER
	Policy  ca.Policy   `json:"policy"`
	CRLURLs []string    `json:"crlURLs,omitempty"`
	CRLLife ca.Duration `json:"crlLife"`
}

const (
	authorityPrefix     = "authority/"
	authorityEnd        = "authority0"
	authorityKeyPurpose = "authority key"
	servicesName        = "services"
	defaultCRLLife      = 7 * 24 * time.Hour
)

func authorityKey(name string) []byte { return []byte(authorityPrefix + name) }

// validName reports whether a new authority may have this name: it stands in keys, paths and file names.
func validName(name string) bool {
	if len(name) == 0 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') })
}

// ready refuses what a cluster without an authority of its own cannot do.
func (a *Authority) ready() error {
	if a.Root() == nil {
		return ErrNoAuthority.WithHint("only a cluster that was made by `holdfast server` has one")
	}
	return nil
}

// Lookup returns the authority of that name. What it returns is public.
func (a *Authority) Lookup(ctx context.Context, name string) (*Named, error) {
	return a.lookup(ctx, name, false)
}

func (a *Authority) lookup(ctx context.Context, name string, serializable bool) (*Named, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if n := a.roleNamed(name); n != nil {
		return n, nil
	}
	if !validName(name) {
		return nil, ErrNoSuchAuthority.WithHint("see: holdfast ca list")
	}
	kv, err := a.look(ctx, authorityKey(name), serializable)
	if err != nil {
		return nil, err
	}
	if kv == nil {
		return nil, ErrNoSuchAuthority.WithHint("see: holdfast ca list; make one: holdfast ca init NAME")
	}
	return parseNamed(kv)
}

func parseNamed(kv *mvcc.KV) (*Named, error) {
	name := strings.TrimPrefix(string(kv.Key), authorityPrefix)
	var r authorityRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("the row of the authority %s: %w", name, err)
	}
	n := &Named{
		Name: name, Mode: r.Mode, Request: r.Request, Policy: r.Policy, CRLURLs: r.CRLURLs, CRLLife: time.Duration(r.CRLLife), Created: r.Created,
		certify: true, revision: kv.ModRevision,
	}
	for _, der := range r.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate of the authority %s: %w", name, err)
		}
		n.Chain = append(n.Chain, c)
	}
	return n, nil
}

// roleNamed describes one of the role issuers; nil if name is none of them.
func (a *Authority) roleNamed(name string) *Named {
	for role, word := range Roles() {
		if word != name {
			continue
		}
		a.mu.Lock()
		issuer, root := a.issuers[role], a.root
		a.mu.Unlock()
		if issuer.Certificate == nil {
			return nil
		}
		n := &Named{
			Name: name, Mode: ModeRole, Chain: []*x509.Certificate{issuer.Certificate, root}, CRLLife: defaultCRLLife,
			Created: issuer.Certificate.NotBefore.Add(ca.Backdate),
		}
		n.Policy, n.form, n.certify = ca.RolePolicy(role, name)
		return n
	}
	return nil
}

// All returns every authority, the roles' issuers first. What it returns is public.
func (a *Authority) All(ctx context.Context) ([]*Named, error) { return a.all(ctx, false) }

func (a *Authority) all(ctx context.Context, serializable bool) ([]*Named, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	var list []*Named
	for _, name := range slices.Sorted(maps.Values(Roles())) {
		if n := a.roleNamed(name); n != nil {
			list = append(list, n)
		}
	}
	err := a.scan(ctx, storage.Span{Start: []byte(authorityPrefix), End: []byte(authorityEnd)}, serializable, func(kv *mvcc.KV) error {
		n, err := parseNamed(kv)
		list = append(list, n)
		return err
	})
	return list, err
}

const scanPage = 500

// scan calls each with the rows of a span, in order, a page at a time.
func (a *Authority) scan(ctx context.Context, span storage.Span, serializable bool, each func(*mvcc.KV) error) error {
	for {
		page, err := a.o.Core.Range(ctx, a.o.System, core.RangeRequest{
			Space: mvcc.SpaceCA, Serializable: serializable, Query: mvcc.Query{Span: span, Limit: scanPage, NoCount: true},
		})
		if err != nil {
			return err
		}
		for i := range page.KVs {
			if err := each(&page.KVs[i]); err != nil {
				return err
			}
		}
		if !page.More || len(page.KVs) == 0 {
			return nil
		}
		span.Start, serializable = append(bytes.Clone(page.KVs[len(page.KVs)-1].Key), 0), true
	}
}

// heldKey is the key of a named authority as this member has it open.
type heldKey struct {
	certificate []byte // whose key it is: the public key, DER
	signer      crypto.Signer
}

// signer opens the key of an authority.
func (a *Authority) signer(ctx context.Context, n *Named) (crypto.Signer, error) {
	cert := n.Certificate()
	if cert == nil {
		return nil, ErrWaiting.WithHint("have its request signed (holdfast ca show %s --output csr), then: holdfast ca accept %s --cert chain.pem", n.Name, n.Name)
	}
	a.mu.Lock()
	for role, word := range Roles() {
		if n.Mode == ModeRole && word == n.Name {
			defer a.mu.Unlock()
			return a.issuers[role].Signer, nil
		}
	}
	held, ok := a.keys[n.Name]
	a.mu.Unlock()
	if ok && bytes.Equal(held.certificate, cert.RawSubjectPublicKeyInfo) {
		return held.signer, nil
	}
	key, err := a.openKey(ctx, "authority/"+n.Name)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[n.Name] = heldKey{cert.RawSubjectPublicKeyInfo, key}
	return key, nil
}

// openKey opens a key that is kept below secret/.
func (a *Authority) openKey(ctx context.Context, place string) (crypto.Signer, error) {
	wrapped, err := a.row(ctx, secretKey(place))
	if err != nil {
		return nil, err
	}
	pem, err := a.o.Secrets.Open(authorityKeyPurpose, place, wrapped)
	if err != nil {
		return nil, fmt.Errorf("the key of %s: %w", place, err)
	}
	return ca.ParseKey(pem)
}

// sealKey is openKey's other half.
func (a *Authority) sealKey(place string, key crypto.Signer) (*state.Put, error) {
	pem, err := ca.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	wrapped, err := a.o.Secrets.Seal(authorityKeyPurpose, place, pem)
	if err != nil {
		return nil, err
	}
	return put(secretKey(place), wrapped), nil
}

func put(key, value []byte) *state.Put {
	return &state.Put{Space: mvcc.SpaceCA, Key: key, Value: value}
}

func putJSON(key []byte, v any) (*state.Put, error) {
	data, err := json.Marshal(v)
	return put(key, data), err
}

// unchanged holds while a row is as it was read; revision 0: while there is none.
func unchanged(key []byte, revision int64) state.Compare {
	c := absent(key)
	if revision != 0 {
		c.Target, c.Number = state.CompareMod, revision
	}
	return c
}

// commit writes rows if the conditions hold, for who: a principal whose certificate is revoked by then writes nothing.
func (a *Authority) commit(ctx context.Context, who policy.Principal, conditions []state.Compare, puts ...*state.Put) (bool, error) {
	txn := &state.Txn{Space: mvcc.SpaceCA, Compare: conditions}
	cert, holds := who.Certificate()
	if holds {
		txn.Compare = append(slices.Clone(conditions), absent(state.RevokedKey(cert)))
	}
	for _, p := range puts {
		txn.Success = append(txn.Success, state.Op{Put: p})
	}
	res, err := a.o.Core.Txn(ctx, a.o.System, txn, false)
	if err != nil || res.Succeeded {
		return err == nil, err
	}
	if holds {
		gone, err := a.row(ctx, state.RevokedKey(cert))
		if err != nil {
			return false, err
		}
		if gone != nil {
			a.o.Core.RecordRefusal(who, actionIssue, state.ErrRevoked)
			return false, state.ErrRevoked
		}
	}
	return false, nil
}
