package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // what crypto/tls is willing to verify
	maxCSR     = 64 << 10
)

// ErrRequest is returned for a signing request that no policy could accept.
var ErrRequest = errors.New("bad certificate signing request")

// ErrWeakKey is returned for a public key below the floor: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521,
// Ed25519.
var ErrWeakKey = errors.New("key is too weak or of an unsupported kind")

// CheckKey refuses a public key below the floor.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA of %d bits (allowed: %d to %d): %w", n, minRSABits, maxRSABits, ErrWeakKey)
		}
		if k.E < 3 || k.E%2 == 0 {
			return fmt.Errorf("RSA with exponent %d: %w", k.E, ErrWeakKey)
		}
		return nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("ECDSA on %s (allowed: P-256, P-384, P-521): %w", k.Curve.Params().Name, ErrWeakKey)
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("%T: %w", pub, ErrWeakKey)
}

// ParseRequest reads a PKCS #10 request (DER, or PEM with exactly one request), checks that its sender holds the key
// and that neither key nor signature is weak. What the request asks for in names is the caller's to judge.
func ParseRequest(data []byte) (*x509.CertificateRequest, error) {
	if len(data) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, allowed are %d", ErrRequest, len(data), maxCSR)
	}
	der, err := oneBlock(data, "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if weakSignature(csr.SignatureAlgorithm) {
		return nil, fmt.Errorf("%w: signed with %s", ErrRequest, csr.SignatureAlgorithm)
	}
	if err := CheckKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: its signature is not by its key: %w", ErrRequest, err)
	}
	return csr, nil
}

// weakSignature names the algorithms that rest on MD2, MD5 or SHA-1, and DSA.
func weakSignature(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.DSAWithSHA256,
		x509.UnknownSignatureAlgorithm:
		return true
	}
	return false
}
