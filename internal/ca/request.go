package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"holdfast.dev/holdfast/internal/fault"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // what crypto/tls is willing to verify
	maxCSR     = 64 << 10
)

// Faults of requests, policies and names.
var (
	// ErrRequest is returned for a signing request that no policy could accept.
	ErrRequest = fault.New(fault.Invalid, "bad certificate signing request")
	// ErrWeakKey is returned for a public key below the floor: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521,
	// Ed25519.
	ErrWeakKey = fault.New(fault.Denied, "key is too weak or of an unsupported kind")
	// ErrWeakHash is returned for a request that is signed over MD5 or SHA-1.
	ErrWeakHash = fault.New(fault.Denied, "request is signed with a broken hash")
	// ErrForged is returned for a request whose signature is not by its key.
	ErrForged = fault.New(fault.Denied, "request is not signed by its own key")
	// ErrPolicy is returned for a request that the authority's policy does not allow; the hint says why.
	ErrPolicy = fault.New(fault.Denied, "the authority's policy refuses this request")
	// ErrBadPolicy is returned for a policy that cannot be.
	ErrBadPolicy = fault.New(fault.Invalid, "bad policy")
	// ErrBadName is returned for a name that no certificate may have.
	ErrBadName = fault.New(fault.Invalid, "bad name")
	// ErrBadChain is returned for a certificate that cannot be put in force for an authority; the hint says why.
	ErrBadChain = fault.New(fault.Invalid, "the certificate cannot be put in force for this authority")
)

const adviceKey = "use ECDSA on P-256 (openssl ecparam -name prime256v1 -genkey -noout), or RSA of at least 2048 bits"

// CheckKey refuses a public key below the floor.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return weakKey("RSA of %d bits (allowed: %d to %d)", n, minRSABits, maxRSABits)
		}
		if k.E < 3 || k.E%2 == 0 {
			return weakKey("RSA with exponent %d", k.E)
		}
		return nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return weakKey("ECDSA on %s (allowed: P-256, P-384, P-521)", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return weakKey("%T", pub)
}

func weakKey(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	return fmt.Errorf("%s: %w", what, ErrWeakKey.WithHint("the key is %s: %s", what, adviceKey))
}

// ParseRequest reads a PKCS #10 request (DER, or PEM with exactly one request), checks that its sender holds the key
// and that neither key nor signature is weak. What the request asks for in names is the caller's to judge.
func ParseRequest(data []byte) (*x509.CertificateRequest, error) {
	bad := func(format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		return fmt.Errorf("%w: %s", ErrRequest.WithHint("%s", text), text)
	}
	if len(data) > maxCSR {
		return nil, bad("%d bytes, allowed are %d", len(data), maxCSR)
	}
	der, err := oneBlock(data, "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
	if err != nil {
		return nil, bad("%v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, bad("%v", err)
	}
	// The key first: who has both a weak key and a weak hash has to begin with a new key.
	if err := CheckKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrRequest)
	}
	if weakSignature(csr.SignatureAlgorithm) {
		return nil, fmt.Errorf("%w: %w", ErrWeakHash.WithHint("the request is signed with %s, whose hash is broken: make it again with openssl req -sha256", csr.SignatureAlgorithm), ErrRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForged.WithHint("the signature does not verify (%v): the request was changed, or its sender does not hold the key", err), ErrRequest)
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
