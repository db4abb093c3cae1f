package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/policy"
)

// ErrPEM is returned for PEM input without what it should hold.
var ErrPEM = errors.New("bad PEM")

// EncodeCertificates returns certs as PEM, in their order.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// ParseCertificates reads every certificate of a PEM bundle. Text between blocks is ignored; a block of another kind,
// a bundle without certificate and PEM that ends in the middle are errors.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: a %s where certificates are expected", ErrPEM, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 || bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("%w: no certificate, or one that is cut short", ErrPEM)
	}
	return certs, nil
}

// EncodeKey returns key as PKCS #8 PEM. The result is a secret.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads one PKCS #8 PEM key.
func ParseKey(data []byte) (crypto.Signer, error) {
	der, err := oneBlock(data, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: the key cannot sign", ErrPEM)
	}
	return signer, nil
}

// oneBlock returns the DER inside data, which is a single PEM block of one of types, or DER already.
func oneBlock(data []byte, types ...string) ([]byte, error) {
	if len(data) > 0 && data[0] == 0x30 {
		return data, nil
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%w: neither DER nor PEM", ErrPEM)
	case !slices.Contains(types, block.Type):
		return nil, fmt.Errorf("%w: a %s where a %s is expected", ErrPEM, block.Type, types[0])
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, fmt.Errorf("%w: more than one block", ErrPEM)
	}
	return block.Bytes, nil
}

// RootDigest is the fingerprint of a root that join tokens carry: SHA-256 of its DER.
func RootDigest(root *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(root.Raw) }

// KeyDigest is the spelling of an issuer in policy.Certificate: hex SHA-256 of its SubjectPublicKeyInfo.
func KeyDigest(issuer *x509.Certificate) string {
	sum := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Name names cert by the key that signed it and its serial number.
func Name(cert, issuer *x509.Certificate) policy.Certificate {
	return policy.Certificate{Issuer: KeyDigest(issuer), Serial: cert.SerialNumber.Text(16)}
}
