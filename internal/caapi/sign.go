package caapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// RepeatWindow is how long the same request gets the same certificate again: clients repeat what they had no answer to, and
// Docker Swarm sends each request twice.
const RepeatWindow = time.Minute

// SignRequest asks an authority for one certificate.
type SignRequest struct {
	Authority string
	Profile   string   // ca.FormOf knows it; for a role's issuer the role's word or nothing
	CSR       []byte   // PKCS #10, PEM or DER: what counts of it is its key, and names unless they are given here
	Subject   ca.DN    // nil: the request's
	Hosts     []string // names and addresses; nil: the request's
	Life      time.Duration
}

// Signed is a certificate that was issued, after the record of it is committed.
type Signed struct {
	Chain    []*x509.Certificate // leaf first, then the issuers below the root
	Notes    []string            // what of the request is not in the certificate, for people
	Repeated bool                // the same was asked a moment ago: this is the certificate from then
}

// Sign has an authority issue a certificate for an admin: policy decides, the record is committed, then it is released.
// The same request within RepeatWindow gets the same certificate.
func (a *Authority) Sign(ctx context.Context, who policy.Principal, r SignRequest) (*Signed, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if err := a.mayAdminister(who, actionIssue); err != nil {
		return nil, err
	}
	return a.sign(ctx, who, r)
}

// Enrol is Sign for an edge that has established by its own means (a CFSSL token, a manager's certificate) that who may have
// this certificate; it is recorded as issued by who. A principal whose certificate is revoked gets none, and nobody gets one
// of the cluster's own issuers this way.
func (a *Authority) Enrol(ctx context.Context, who policy.Principal, r SignRequest) (*Signed, error) {
	if a.roleNamed(r.Authority) != nil {
		a.o.Core.RecordRefusal(who, actionIssue, errNotAdmin)
		return nil, errNotAdmin
	}
	return a.sign(ctx, who, r)
}

// repeatRecord is the row of a request that was answered.
type repeatRecord struct {
	Serial string    `json:"serial"`
	At     time.Time `json:"at"`
}

const (
	requestPrefix = "request/"
	requestEnd    = "request0"
	issuedPrefix  = "issued/"
)

func issuedKey(issuer, serial string) []byte { return []byte(issuedPrefix + issuer + "/" + serial) }

// issuedSpan holds the rows of everything that an issuer issued, from a serial number on.
func issuedSpan(issuer, from string) storage.Span {
	return storage.Span{Start: issuedKey(issuer, from), End: []byte(issuedPrefix + issuer + "0")}
}

func (a *Authority) sign(ctx context.Context, who policy.Principal, r SignRequest) (*Signed, error) {
	csr, err := ca.ParseRequest(r.CSR)
	if err != nil {
		a.o.Core.RecordRefusal(who, actionIssue, err)
		return nil, err
	}
	for range 5 {
		out, again, err := a.signOnce(ctx, who, r, csr)
		if err != nil {
			a.o.Core.RecordRefusal(who, actionIssue, err)
			return nil, err
		}
		if !again {
			return out, nil
		}
	}
	return nil, ErrMoved
}

func (a *Authority) signOnce(ctx context.Context, who policy.Principal, r SignRequest, csr *x509.CertificateRequest) (out *Signed, again bool, err error) {
	n, err := a.Lookup(ctx, r.Authority)
	if err != nil {
		return nil, false, err
	}
	form, err := n.profile(r.Profile)
	if err != nil {
		return nil, false, err
	}
	key, err := a.signer(ctx, n)
	if err != nil {
		return nil, false, err
	}
	issuer := ca.KeyDigest(n.Certificate())
	asked := requestKey(issuer, r, csr)
	known, err := a.kv(ctx, asked)
	if err != nil {
		return nil, false, err
	}
	if out, err := a.repeated(ctx, n, known); err != nil || out != nil {
		return out, false, err
	}
	made, err := n.Policy.Certify(ca.Source{Now: a.o.Now(), Rand: a.o.Rand}, ca.Authority{Certificate: n.Certificate(), Signer: key},
		ca.Order{Form: form, Request: csr, Subject: r.Subject, Hosts: r.Hosts, Life: r.Life, CRLURLs: n.CRLURLs})
	if err != nil {
		return nil, false, err
	}
	serial := made.Leaf.SerialNumber.Text(16)
	record := newRecord(made.Leaf, form.Name, who)
	record.DN, record.Subject, record.Hosts = made.Subject.String(), made.Subject.CommonName(), made.Names
	row, err := putJSON(issuedKey(issuer, serial), record)
	if err != nil {
		return nil, false, err
	}
	repeat, err := putJSON(asked, repeatRecord{Serial: serial, At: a.o.Now()})
	if err != nil {
		return nil, false, err
	}
	if err := a.o.Core.RecordControl(who, actionIssue, fmt.Sprintf("%s certificate %s/%s of %v by the authority %s", form.Name, issuer, serial, made.Subject, n.Name)); err != nil {
		return nil, false, err
	}
	conditions := []state.Compare{absent(row.Key), unchanged(asked, revisionOf(known))}
	if n.Mode != ModeRole {
		conditions = append(conditions, unchanged(authorityKey(n.Name), n.revision))
	}
	done, err := a.commit(ctx, who, conditions, row, repeat)
	if err != nil || !done {
		return nil, !done, err
	}
	return &Signed{Chain: below(made.Leaf, n.Chain), Notes: made.Notes}, false, nil
}

func revisionOf(kv *mvcc.KV) int64 {
	if kv == nil {
		return 0
	}
	return kv.ModRevision
}

// below is a leaf and the issuers that a relying party with the root does not have.
func below(leaf *x509.Certificate, chain []*x509.Certificate) []*x509.Certificate {
	out := []*x509.Certificate{leaf}
	for _, c := range chain {
		if !ca.IsRoot(c) {
			out = append(out, c)
		}
	}
	return out
}

// requestKey names a request by everything that decides what becomes of it.
func requestKey(issuer string, r SignRequest, csr *x509.CertificateRequest) []byte {
	h := sha256.New()
	for _, part := range []string{issuer, r.Profile, string(csr.Raw), r.Subject.String(), fmt.Sprint(r.Subject == nil, r.Hosts == nil), strings.Join(r.Hosts, ","), r.Life.String()} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return []byte(requestPrefix + hex.EncodeToString(h.Sum(nil)))
}

// repeated finds the certificate that the same request got a moment ago; nil if there is none.
func (a *Authority) repeated(ctx context.Context, n *Named, known *mvcc.KV) (*Signed, error) {
	if known == nil {
		return nil, nil
	}
	var r repeatRecord
	if err := json.Unmarshal(known.Value, &r); err != nil {
		return nil, fmt.Errorf("the row %s: %w", known.Key, err)
	}
	if since := a.o.Now().Sub(r.At); since > RepeatWindow || since < 0 {
		return nil, nil
	}
	issuer := ca.KeyDigest(n.Certificate())
	revoked, err := a.row(ctx, state.RevokedKey(policy.Certificate{Issuer: issuer, Serial: r.Serial}))
	if err != nil || revoked != nil {
		return nil, err
	}
	data, err := a.row(ctx, issuedKey(issuer, r.Serial))
	if err != nil || data == nil {
		return nil, err
	}
	var record issuedRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, fmt.Errorf("the row of the certificate %s: %w", r.Serial, err)
	}
	leaf, err := x509.ParseCertificate(record.DER)
	if err != nil {
		return nil, fmt.Errorf("the row of the certificate %s: %w", r.Serial, err)
	}
	return &Signed{Chain: below(leaf, n.Chain), Repeated: true}, nil
}

// forget removes the rows of requests that no repetition can meet any more.
func (a *Authority) forget(ctx context.Context) error {
	var old []*mvcc.KV
	err := a.scan(ctx, storage.Span{Start: []byte(requestPrefix), End: []byte(requestEnd)}, true, func(kv *mvcc.KV) error {
		var r repeatRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return fmt.Errorf("the row %s: %w", kv.Key, err)
		}
		if since := a.o.Now().Sub(r.At); since > RepeatWindow {
			old = append(old, kv)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.remove(ctx, old)
}

// remove deletes rows that are still as they were read.
func (a *Authority) remove(ctx context.Context, rows []*mvcc.KV) error {
	for _, kv := range rows {
		_, err := a.o.Core.Txn(ctx, a.o.System, &state.Txn{
			Space: mvcc.SpaceCA, Compare: []state.Compare{unchanged(kv.Key, kv.ModRevision)},
			Success: []state.Op{{Delete: &state.Delete{Space: mvcc.SpaceCA, Span: storage.KeySpan(kv.Key)}}},
		}, false)
		if err != nil {
			return err
		}
	}
	return nil
}
