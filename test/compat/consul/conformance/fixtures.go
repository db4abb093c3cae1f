package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// fixtures makes the certificates that the tests read from ../test and that their module does not carry.
func fixtures(dir string) error {
	for _, d := range []string{"client_certs", "hostname", "ca_path"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	clients, err := newAuthority(filepath.Join(dir, "client_certs", "rootca.crt"), 1)
	if err != nil {
		return err
	}
	hosts, err := newAuthority(filepath.Join(dir, "hostname", "CertAuth.crt"), 2)
	if err != nil {
		return err
	}
	for i, name := range []string{"cert1.crt", "cert2.crt"} {
		if _, err := newAuthority(filepath.Join(dir, "ca_path", name), int64(3+i)); err != nil {
			return err
		}
	}
	for _, f := range []error{
		clients.issue(filepath.Join(dir, "client_certs", "server"), "server.dc1.consul", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth),
		clients.issue(filepath.Join(dir, "client_certs", "client"), "client.dc1.consul", x509.ExtKeyUsageClientAuth),
		hosts.issue(filepath.Join(dir, "hostname", "Alice"), "server.dc1.consul", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth),
	} {
		if f != nil {
			return f
		}
	}
	return nil
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(file string, serial int64) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "CA of tests", SerialNumber: big.NewInt(serial).String()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key}, writePEM(file, "CERTIFICATE", der)
}

// issue writes base.crt and base.key.
func (a *authority) issue(base, name string, usages ...x509.ExtKeyUsage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, "consul.test", "localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(23 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages, BasicConstraintsValid: true,
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(base+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return writePEM(base+".key", "PRIVATE KEY", private)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
