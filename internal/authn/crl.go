package authn

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/ca"
)

// revocations are the CRLs of one file. Policy:
//   - a list counts for a certificate only if it is signed by the very key that issued the certificate;
//   - a list past its nextUpdate goes on refusing what it names, and is warned about;
//   - a list older than one already in force, by CRL number or date, does not replace it (mergeNewer);
//   - a delta list adds to the full one; an entry "remove from CRL" revokes nothing; an indirect list is not used.
type revocations struct {
	lists []*revocationList
}

type revocationList struct {
	list    *x509.RevocationList
	serials map[string]struct{} // big-endian bytes

	mu     sync.Mutex
	signed map[string]bool // by the issuer's KeyDigest: whether that key signed this list
}

const (
	reasonRemoveFromCRL = 8
	maxCRLs             = 256
)

var errNoCRL = errors.New("no CRL in it")

// parseRevocations reads CRLs: one in DER, or any number in PEM.
func parseRevocations(data []byte) (*revocations, error) {
	var r revocations
	if len(data) > 0 && data[0] == 0x30 {
		l, err := parseList(data)
		if err != nil {
			return nil, err
		}
		r.lists = append(r.lists, l)
		return &r, nil
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "X509 CRL" {
			continue
		}
		if len(r.lists) == maxCRLs {
			return nil, fmt.Errorf("more than %d CRLs", maxCRLs)
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CRL %d: %w", len(r.lists)+1, err)
		}
		r.lists = append(r.lists, l)
	}
	if len(r.lists) == 0 || bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, errNoCRL
	}
	return &r, nil
}

func parseList(der []byte) (*revocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		if e.Critical && !e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 27}) && !e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}) {
			return nil, fmt.Errorf("critical extension %s is not understood", e.Id)
		}
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}) && indirect(e.Value) {
			return nil, errors.New("an indirect CRL (certificates of other issuers) is not supported")
		}
	}
	l := &revocationList{list: list, serials: make(map[string]struct{}, len(list.RevokedCertificateEntries)), signed: map[string]bool{}}
	for _, e := range list.RevokedCertificateEntries {
		if e.ReasonCode != reasonRemoveFromCRL {
			l.serials[string(e.SerialNumber.Bytes())] = struct{}{}
		}
	}
	list.RevokedCertificateEntries, list.Raw = nil, nil // a list may name millions; the serial numbers are enough
	return l, nil
}

// indirect reads the indirectCRL flag of an IssuingDistributionPoint; one that cannot be read counts as indirect.
func indirect(value []byte) bool {
	var point struct {
		Name       asn1.RawValue  `asn1:"optional,tag:0"`
		OnlyUser   bool           `asn1:"optional,tag:1"`
		OnlyCA     bool           `asn1:"optional,tag:2"`
		OnlySome   asn1.BitString `asn1:"optional,tag:3"`
		Indirect   bool           `asn1:"optional,tag:4"`
		OnlyAttrib bool           `asn1:"optional,tag:5"`
	}
	_, err := asn1.Unmarshal(value, &point)
	return err != nil || point.Indirect
}

// by reports whether issuer signed l. A CA without the cRLSign usage is believed: its word makes things stricter only.
func (l *revocationList) by(issuer *x509.Certificate) bool {
	if !bytes.Equal(l.list.RawIssuer, issuer.RawSubject) {
		return false
	}
	key := ca.KeyDigest(issuer)
	l.mu.Lock()
	defer l.mu.Unlock()
	ok, known := l.signed[key]
	if !known {
		ok = issuer.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) == nil
		if len(l.signed) < 16 { // far more keys of one name than a rotation has
			l.signed[key] = ok
		}
	}
	return ok
}

// revoked returns the certificate of chain (leaf first, each followed by its issuer) that a list names, or nil.
func (r *revocations) revoked(chain []*x509.Certificate) *x509.Certificate {
	if r == nil {
		return nil
	}
	for i, c := range chain {
		issuer := c // an anchor can be named by its own list only
		if i+1 < len(chain) {
			issuer = chain[i+1]
		}
		for _, l := range r.lists {
			if _, listed := l.serials[string(c.SerialNumber.Bytes())]; listed && l.by(issuer) {
				return c
			}
		}
	}
	return nil
}

// complaints says what is wrong with the lists as seen with the CAs of the bundle, for the log and for status.
func (r *revocations) complaints(anchors []*x509.Certificate, now time.Time) []string {
	if r == nil {
		return nil
	}
	var out []string
	for _, l := range r.lists {
		named, signed := false, false
		for _, a := range anchors {
			named = named || bytes.Equal(l.list.RawIssuer, a.RawSubject)
			signed = signed || l.by(a)
		}
		switch {
		case named && !signed:
			out = append(out, fmt.Sprintf("the CRL of %q is ignored: it is not signed by the CA of that name", l.list.Issuer))
		case !named:
			out = append(out, fmt.Sprintf("the CRL of %q has no CA in the bundle: it counts only for certificates that bring that issuer along", l.list.Issuer))
		}
		if end := l.list.NextUpdate; !end.IsZero() && now.After(end) {
			out = append(out, fmt.Sprintf("the CRL of %q was to be renewed by %s: what it lists stays refused, later revocations are unknown",
				l.list.Issuer, end.UTC().Format(time.RFC3339)))
		}
	}
	return out
}

// mergeNewer returns next, but with the lists of old instead of older ones by the same signer, and says which.
func mergeNewer(old, next *revocations, anchors []*x509.Certificate) (*revocations, []string) {
	if old == nil || next == nil {
		return next, nil
	}
	merged := &revocations{lists: append([]*revocationList(nil), next.lists...)}
	var notes []string
	for i, n := range merged.lists {
		for _, o := range old.lists {
			if sameSigner(o, n, anchors) && older(n.list, o.list) {
				n, merged.lists[i] = o, o
				notes = append(notes, fmt.Sprintf("the CRL of %q is older than the one in force, which stays", n.list.Issuer))
			}
		}
	}
	return merged, notes
}

// sameSigner compares the two lists' issuers by name, scope and, where the bundle tells, key.
func sameSigner(a, b *revocationList, anchors []*x509.Certificate) bool {
	if !bytes.Equal(a.list.RawIssuer, b.list.RawIssuer) || delta(a.list) != delta(b.list) {
		return false
	}
	for _, c := range anchors {
		if a.by(c) && b.by(c) {
			return true
		}
	}
	return false
}

func delta(l *x509.RevocationList) bool {
	for _, e := range l.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 27}) {
			return true
		}
	}
	return false
}

func older(a, than *x509.RevocationList) bool {
	if a.Number != nil && than.Number != nil && a.Number.Cmp(than.Number) != 0 {
		return a.Number.Cmp(than.Number) < 0
	}
	return a.ThisUpdate.Before(than.ThisUpdate)
}
