// Package ca makes certificates, revocation lists and join tokens: pure functions over a crypto.Signer.
//
// Job: the shape of every certificate that Holdfast issues (roots, one issuer per role, named authorities, leaves by profile
// or form), policies and the check of a signing request against them, revocation lists, the spellings of PEM, names and
// URIs, and the join token. Non-job: keeping keys, who may ask and recording what was issued (caapi), checking presented
// certificates (authn).
//
// Invariants: no clock, no randomness, no goroutine and no file of its own: a Source brings the instant and the random
// bytes. A certificate says only what its profile, the policy and the caller say: of a signing request count its public
// key and, for named authorities, the subject and names that the policy allows. No policy lets in a weak key, a request
// over a broken hash, or a CA. One issuer serves one role; the issuer's own key usages forbid the certificates of another
// (a client issuer cannot make a server certificate that anybody verifies). What issues leaves has path length 0. No
// certificate outlives its issuer.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Backdate is how far before now a certificate begins, for holders whose clock is behind.
const Backdate = 5 * time.Minute

// Source is the outside world of one call.
type Source struct {
	Now  time.Time // the instant of issue
	Rand io.Reader // cryptographic randomness; crypto/rand.Reader outside tests
}

// Authority is a certificate that may sign, with its key.
type Authority struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
	Role        policy.Role // what an issuer certifies its holders as; RoleNone for a root
}

// ErrAuthority is returned when an Authority may not sign what is asked of it.
var ErrAuthority = errors.New("this authority may not sign that")

// GenerateKey makes a fresh ECDSA P-256 key.
func GenerateKey(rand io.Reader) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, fmt.Errorf("make a P-256 key: %w", err)
	}
	return key, nil
}

// NewSerial returns a random serial number: 128 random bits in 17 octets, whose first is 1, so that it is positive, never
// zero and always of one length (RFC 5280 section 4.1.2.2 allows 20 octets).
func NewSerial(rand io.Reader) (*big.Int, error) {
	b := [17]byte{1}
	if _, err := io.ReadFull(rand, b[1:]); err != nil {
		return nil, fmt.Errorf("read randomness for a serial number: %w", err)
	}
	return new(big.Int).SetBytes(b[:]), nil
}

// NewRoot makes the self-signed root certificate of a cluster for key.
func NewRoot(src Source, key crypto.Signer, cluster uint64, life time.Duration) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Holdfast"}, CommonName: fmt.Sprintf("Holdfast root %016x", cluster)},
		NotAfter:    src.Now.Add(life),
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:        true,
		MaxPathLen:  1,
		ExtKeyUsage: nil,
	}
	return sign(src, t, t, key.Public(), key)
}

// NewIssuer makes the certificate of the issuer for role (Member, Agent, Client, Admin or KMS), signed by root.
func NewIssuer(src Source, root Authority, role policy.Role, key crypto.PublicKey, life time.Duration) (*x509.Certificate, error) {
	name, usages := issuerShape(role)
	if name == "" || root.Certificate == nil || !root.Certificate.IsCA || root.Role != policy.RoleNone || root.Certificate.MaxPathLen < 1 {
		return nil, fmt.Errorf("issuer for role %d: %w", role, ErrAuthority)
	}
	t := &x509.Certificate{
		Subject:        pkix.Name{Organization: []string{"Holdfast"}, CommonName: "Holdfast " + name + " issuer " + rootName(root.Certificate)},
		NotAfter:       src.Now.Add(life),
		KeyUsage:       x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:    usages,
		IsCA:           true,
		MaxPathLenZero: true,
	}
	return sign(src, t, root.Certificate, key, root.Signer)
}

// issuerShape returns an issuer's name and the only extended key usages that it can pass on. Only the member issuer makes
// servers: whoever pins the root and asks for serverAuth can meet nobody but a member.
func issuerShape(role policy.Role) (string, []x509.ExtKeyUsage) {
	switch role {
	case policy.RoleMember:
		return "member", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	case policy.RoleAgent:
		return "agent", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case policy.RoleClient:
		return "client", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case policy.RoleAdmin:
		return "admin", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case policy.RoleKMS:
		return "kms", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case policy.RoleNone:
	}
	return "", nil
}

// rootName tells the issuers of two clusters apart: the last word of the root's common name.
func rootName(root *x509.Certificate) string {
	digest := RootDigest(root)
	return fmt.Sprintf("%x", digest[:4])
}

// sign fills in what every certificate has and signs it.
func sign(src Source, t, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, err
	}
	serial, err := NewSerial(src.Rand)
	if err != nil {
		return nil, err
	}
	keyID, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	t.SerialNumber, t.SubjectKeyId, t.BasicConstraintsValid = serial, keyID, true
	if t.NotBefore.IsZero() {
		t.NotBefore = src.Now.Add(-Backdate)
	}
	if t != parent {
		if parent.NotAfter.Before(t.NotAfter) {
			t.NotAfter = parent.NotAfter
		}
		if parent.NotBefore.After(t.NotBefore) {
			t.NotBefore = parent.NotBefore
		}
	}
	if !t.NotAfter.After(src.Now) {
		return nil, fmt.Errorf("the certificate would be expired (its issuer ends at %s): %w", parent.NotAfter.UTC().Format(time.RFC3339), ErrAuthority)
	}
	der, err := x509.CreateCertificate(src.Rand, t, parent, pub, by)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the signed certificate: %w", err)
	}
	return cert, nil
}

// subjectKeyID is RFC 7093 section 2 method 1: the left-most 160 bits of the SHA-256 of the public key bits.
func subjectKeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	sum := sha256.Sum256(spki.Key.Bytes)
	return sum[:20], nil
}
