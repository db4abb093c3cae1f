package caapi

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// Lives of named authorities.
const (
	InternalLife   = 5 * 365 * 24 * time.Hour
	SelfSignedLife = 10 * 365 * 24 * time.Hour
)

const (
	actionFound  = "authority create"
	actionAccept = "authority accept certificate"
)

// FoundRequest asks for a new authority.
type FoundRequest struct {
	Name    string
	Mode    Mode
	Subject ca.DN         // nil: /CN=NAME
	KeyKind string        // among ca.KeyKinds; empty: p256
	Life    time.Duration // of its certificate; 0: InternalLife or SelfSignedLife; not for ModeExternal
	Policy  *ca.Policy    // nil: ca.DefaultPolicy
	CRLURLs []string      // where relying parties will find the revocation list
	CRLLife time.Duration // 0: 7 days
}

func (r *FoundRequest) check() error {
	switch {
	case !validName(r.Name):
		return ErrBadRequest.WithHint("a name is 1 to 63 characters: a-z, 0-9 and - inside")
	case r.Name == "root" || r.Name == servicesName || r.Name == "kms":
		return ErrBadRequest.WithHint("the name %s is the cluster's own", r.Name)
	case r.Mode != ModeInternal && r.Mode != ModeSelfSigned && r.Mode != ModeExternal:
		return ErrBadRequest.WithHint("the mode %q is none of internal, self-signed and external", r.Mode)
	case r.Mode == ModeExternal && r.Life != 0:
		return ErrBadRequest.WithHint("the life of an external authority's certificate is decided by the CA that signs it")
	case r.Life < 0 || r.CRLLife < 0 || r.CRLLife != 0 && r.CRLLife < time.Hour:
		return ErrBadRequest.WithHint("lives are positive, and a revocation list lives an hour at least")
	}
	for _, word := range Roles() {
		if r.Name == word {
			return ErrAuthorityExists.WithHint("%s is one of the cluster's own issuers", r.Name)
		}
	}
	for _, text := range r.CRLURLs {
		if u, err := url.Parse(text); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(text, " \t\n") {
			return ErrBadRequest.WithHint("the CRL URL %q is not http://… or https://…", text)
		}
	}
	if len(r.CRLURLs) > 4 {
		return ErrBadRequest.WithHint("at most 4 CRL URLs")
	}
	return nil
}

// Found makes a new authority. Its key is made here, sealed under the cluster secret, and leaves the cluster never.
func (a *Authority) Found(ctx context.Context, who policy.Principal, r FoundRequest) (*Named, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if err := a.mayAdminister(who, actionFound); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.Policy == nil {
		p := ca.DefaultPolicy()
		r.Policy = &p
	}
	if err := r.Policy.Check(); err != nil {
		return nil, err
	}
	if r.Subject == nil {
		r.Subject = ca.DN{{Name: "commonName", Value: r.Name}}
	}
	if r.KeyKind == "" {
		r.KeyKind = "p256"
	}
	if r.CRLLife == 0 {
		r.CRLLife = defaultCRLLife
	}
	if there, err := a.row(ctx, authorityKey(r.Name)); err != nil || there != nil {
		if err == nil {
			err = ErrAuthorityExists.WithHint("see: holdfast ca show %s", r.Name)
		}
		return nil, err
	}
	if err := a.o.Core.RecordControl(who, actionFound, fmt.Sprintf("%s, %s, %v", r.Name, r.Mode, r.Subject)); err != nil {
		return nil, err
	}
	return a.found(ctx, who, r)
}

func (a *Authority) found(ctx context.Context, who policy.Principal, r FoundRequest) (*Named, error) {
	src := ca.Source{Now: a.o.Now(), Rand: a.o.Rand}
	key, err := ca.GenerateKeyOf(src, r.KeyKind)
	if err != nil {
		return nil, err
	}
	record := authorityRecord{Mode: r.Mode, Created: src.Now, By: who.String(), Policy: *r.Policy, CRLURLs: r.CRLURLs, CRLLife: ca.Duration(r.CRLLife)}
	var chain []*x509.Certificate
	switch r.Mode {
	case ModeExternal:
		if record.Request, err = ca.NewRequest(src, key, r.Subject); err != nil {
			return nil, err
		}
	case ModeSelfSigned:
		cert, err := ca.NewSelfSigned(src, key, r.Subject, orLife(r.Life, SelfSignedLife))
		if err != nil {
			return nil, err
		}
		chain = []*x509.Certificate{cert}
	case ModeInternal:
		root, err := a.servicesRoot(ctx, who)
		if err != nil {
			return nil, err
		}
		cert, err := ca.NewInternal(src, root, key.Public(), r.Subject, orLife(r.Life, InternalLife))
		if err != nil {
			return nil, err
		}
		chain = []*x509.Certificate{cert, root.Certificate}
	}
	record.Chain = ders(chain)
	row, err := putJSON(authorityKey(r.Name), record)
	if err != nil {
		return nil, err
	}
	secret, err := a.sealKey("authority/"+r.Name, key)
	if err != nil {
		return nil, err
	}
	done, err := a.commit(ctx, who, []state.Compare{absent(row.Key)}, row, secret)
	if err != nil {
		return nil, err
	}
	if !done {
		return nil, ErrAuthorityExists
	}
	a.o.Log.Info("made an authority", "name", r.Name, "mode", string(r.Mode), "by", who.String())
	n, err := a.Lookup(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	a.tryRenewCRL(ctx, n)
	return n, nil
}

func orLife(asked, usual time.Duration) time.Duration {
	if asked == 0 {
		return usual
	}
	return asked
}

// servicesRoot opens the root above the internal authorities; the first one makes it.
func (a *Authority) servicesRoot(ctx context.Context, who policy.Principal) (ca.Authority, error) {
	place := "root/" + servicesName
	for {
		der, err := a.row(ctx, rootKey(servicesName))
		if err != nil {
			return ca.Authority{}, err
		}
		if der != nil {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return ca.Authority{}, fmt.Errorf("the services root in the cluster's state: %w", err)
			}
			key, err := a.openKey(ctx, place)
			return ca.Authority{Certificate: cert, Signer: key}, err
		}
		src := ca.Source{Now: a.o.Now(), Rand: a.o.Rand}
		var key crypto.Signer
		if key, err = ca.GenerateKeyOf(src, "p256"); err != nil {
			return ca.Authority{}, err
		}
		cert, err := ca.NewServicesRoot(src, key, a.o.Cluster, RootLife)
		if err != nil {
			return ca.Authority{}, err
		}
		secret, err := a.sealKey(place, key)
		if err != nil {
			return ca.Authority{}, err
		}
		if _, err := a.commit(ctx, who, []state.Compare{absent(rootKey(servicesName))}, put(rootKey(servicesName), cert.Raw), secret); err != nil {
			return ca.Authority{}, err
		}
	}
}

// Accept puts in force what an external authority's own CA made of its request: first its certificate, then those above it.
// The same authority may be certified anew, for the same key and subject.
func (a *Authority) Accept(ctx context.Context, who policy.Principal, name string, chain []*x509.Certificate) (*Named, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if err := a.mayAdminister(who, actionAccept); err != nil {
		return nil, err
	}
	n, err := a.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	if n.Mode != ModeExternal {
		return nil, ca.ErrBadChain.WithHint("%s is not an external authority: its mode is %s", name, n.Mode)
	}
	request, err := x509.ParseCertificateRequest(n.Request)
	if err != nil {
		return nil, fmt.Errorf("the request of the authority %s: %w", name, err)
	}
	if err := ca.CheckChain(a.o.Now(), chain, request.PublicKey); err != nil {
		return nil, err
	}
	if own := n.Certificate(); own != nil && string(own.RawSubject) != string(chain[0].RawSubject) {
		return nil, ca.ErrBadChain.WithHint("the certificate names %q, the one in force %q: what was issued would lose its issuer", chain[0].Subject, own.Subject)
	}
	if err := a.o.Core.RecordControl(who, actionAccept, fmt.Sprintf("%s, issued by %v, until %s", name, chain[0].Issuer, chain[0].NotAfter.UTC().Format(time.RFC3339))); err != nil {
		return nil, err
	}
	record := authorityRecord{
		Mode: n.Mode, Created: n.Created, By: who.String(), Chain: ders(chain), Request: n.Request, Policy: n.Policy, CRLURLs: n.CRLURLs, CRLLife: ca.Duration(n.CRLLife),
	}
	row, err := putJSON(authorityKey(name), record)
	if err != nil {
		return nil, err
	}
	done, err := a.commit(ctx, who, []state.Compare{unchanged(row.Key, n.revision)}, row)
	if err != nil {
		return nil, err
	}
	if !done {
		return nil, ErrMoved
	}
	a.o.Log.Info("put the certificate of an authority in force", "name", name, "issuer", chain[0].Issuer.String(), "by", who.String())
	if n, err = a.Lookup(ctx, name); err != nil {
		return nil, err
	}
	a.tryRenewCRL(ctx, n)
	return n, nil
}
