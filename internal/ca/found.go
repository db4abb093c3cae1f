package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"
)

// KeyKinds are the keys that an authority can have. Not Ed25519: OpenSSL 1.0, Docker Swarm and others do not take it from
// a CA, and a long revocation list could not be signed piece by piece.
func KeyKinds() []string { return []string{"p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096"} }

// GenerateKeyOf makes a fresh key of a kind among KeyKinds.
func GenerateKeyOf(src Source, kind string) (crypto.Signer, error) {
	curve, bits := elliptic.Curve(nil), 0
	switch kind {
	case "p256":
		curve = elliptic.P256()
	case "p384":
		curve = elliptic.P384()
	case "p521":
		curve = elliptic.P521()
	case "rsa2048":
		bits = 2048
	case "rsa3072":
		bits = 3072
	case "rsa4096":
		bits = 4096
	default:
		return nil, ErrWeakKey.WithHint("%q is none of %v", kind, KeyKinds())
	}
	if curve != nil {
		key, err := ecdsa.GenerateKey(curve, src.Rand)
		if err != nil {
			return nil, fmt.Errorf("make a %s key: %w", kind, err)
		}
		return key, nil
	}
	key, err := rsa.GenerateKey(src.Rand, bits)
	if err != nil {
		return nil, fmt.Errorf("make a %s key: %w", kind, err)
	}
	return key, nil
}

// NewSelfSigned makes the certificate of an authority that is its own root. It makes leaves only.
func NewSelfSigned(src Source, key crypto.Signer, subject DN, life time.Duration) (*x509.Certificate, error) {
	return newCA(src, Authority{Signer: key}, key.Public(), subject, 0, life)
}

// NewServicesRoot makes the root above the internal authorities of a cluster. It is not the root above its members: what an
// internal authority certifies can never be taken for a member.
func NewServicesRoot(src Source, key crypto.Signer, cluster uint64, life time.Duration) (*x509.Certificate, error) {
	return newCA(src, Authority{Signer: key}, key.Public(), DN{{"organizationName", "Holdfast"}, {fieldCommon, fmt.Sprintf("Holdfast services root %016x", cluster)}}, 1, life)
}

// NewInternal makes the certificate of an authority below root. It makes leaves only.
func NewInternal(src Source, root Authority, key crypto.PublicKey, subject DN, life time.Duration) (*x509.Certificate, error) {
	if root.Certificate == nil || root.Certificate.MaxPathLen < 1 {
		return nil, ErrAuthority
	}
	return newCA(src, root, key, subject, 0, life)
}

func newCA(src Source, by Authority, key crypto.PublicKey, subject DN, pathLen int, life time.Duration) (*x509.Certificate, error) {
	if err := subject.check(); err != nil {
		return nil, err
	}
	if len(subject) == 0 {
		return nil, ErrBadName.WithHint("an authority needs a subject")
	}
	if life <= 0 {
		return nil, ErrBadName.WithHint("an authority needs a life")
	}
	raw, err := subject.encode()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		RawSubject: raw, NotBefore: src.Now.Add(-longBackdate), NotAfter: src.Now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
	}
	if t.SignatureAlgorithm, err = algorithm(by.Signer.Public(), 0); err != nil {
		return nil, err
	}
	parent := by.Certificate
	if parent == nil {
		parent = t
	}
	return sign(src, t, parent, key, by.Signer)
}

// NewRequest makes the request that an external authority's operator takes to the CA above it. DER.
func NewRequest(src Source, key crypto.Signer, subject DN) ([]byte, error) {
	if err := subject.check(); err != nil {
		return nil, err
	}
	raw, err := subject.encode()
	if err != nil {
		return nil, err
	}
	extensions, err := requestExtensions()
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(src.Rand, &x509.CertificateRequest{RawSubject: raw, ExtraExtensions: extensions}, key)
}

// NewLeafRequest makes the request of somebody who wants a certificate for key. DER. It is signed over SHA-512, which is above
// the floor of every policy.
func NewLeafRequest(src Source, key crypto.Signer, subject DN, hosts []string) ([]byte, error) {
	if err := subject.check(); err != nil {
		return nil, err
	}
	raw, err := subject.encode()
	if err != nil {
		return nil, err
	}
	names, err := parseHosts(hosts)
	if err != nil {
		return nil, err
	}
	alg, err := algorithm(key.Public(), crypto.SHA512)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(src.Rand, &x509.CertificateRequest{SignatureAlgorithm: alg, RawSubject: raw, DNSNames: names.dns, IPAddresses: names.ips}, key)
}

// CheckChain judges what the CA above an external authority made of its request: chain is the authority's certificate
// first, then, as far as it goes, the certificates above it.
func CheckChain(now time.Time, chain []*x509.Certificate, key crypto.PublicKey) error {
	bad := func(format string, args ...any) error { return ErrBadChain.WithHint(format, args...) }
	if len(chain) == 0 || len(chain) > 6 {
		return bad("a chain has 1 to 6 certificates, the authority's own first; this one has %d", len(chain))
	}
	own := chain[0]
	if k, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(own.PublicKey) {
		return bad("the first certificate, %q, is for another key than that of the request; its own certificate comes first, then those above it", own.Subject)
	}
	for i, c := range chain {
		switch {
		case now.Before(c.NotBefore):
			return bad("the certificate of %q is not valid before %s", c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
		case now.After(c.NotAfter):
			return bad("the certificate of %q ended at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
		case !c.BasicConstraintsValid || !c.IsCA:
			return bad("the certificate of %q is no CA's: basicConstraints CA:TRUE is missing (openssl x509 -req … -extfile with basicConstraints=critical,CA:TRUE,pathlen:0)", c.Subject)
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return bad("the certificate of %q may not sign certificates: keyUsage lacks keyCertSign", c.Subject)
		case i == 0 && c.KeyUsage&x509.KeyUsageCRLSign == 0:
			return bad("the certificate of %q may not sign revocation lists: keyUsage lacks cRLSign", c.Subject)
		case c.MaxPathLen >= 0 && c.MaxPathLen < i: // -1: no bound
			return bad("the certificate of %q allows %d CAs below it (pathlen:%d), and %d are below it in this chain", c.Subject, c.MaxPathLen, c.MaxPathLen, i)
		case weakSignature(c.SignatureAlgorithm) && !bytes.Equal(c.RawSubject, c.RawIssuer):
			return bad("the certificate of %q is signed with %s, whose hash is broken", c.Subject, c.SignatureAlgorithm)
		}
		if err := CheckKey(c.PublicKey); err != nil {
			return err
		}
		if i+1 < len(chain) {
			if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
				return bad("the certificate of %q is not signed by the next one, %q: %v", c.Subject, chain[i+1].Subject, err)
			}
		}
	}
	return nil
}

// IsRoot reports whether a certificate is its own issuer.
func IsRoot(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// SubjectOf returns the subject of a certificate.
func SubjectOf(c *x509.Certificate) (DN, error) { return parseRawDN(c.RawSubject) }
