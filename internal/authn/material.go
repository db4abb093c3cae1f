package authn

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// material is one consistent, immutable set of certificates, anchors and revocations.
type material struct {
	server, client []tls.Certificate // at most one each
	anchors        *x509.CertPool    // who may come in; nil when nobody is asked
	anchorCerts    []*x509.Certificate
	roots          *x509.CertPool      // who may be connected to; nil: the system's
	rootCerts      []*x509.Certificate // those of RootsFile
	roles          map[string]policy.Role
	crls           *revocations
	issued         *Issued
}

const maxFile = 64 << 20

// readFile reads a file of the operator's, bounded.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	return data, nil
}

// part is a group of files that make sense only together. It remembers what they looked like when they were last read
// well, so that a part that failed is tried again at every look.
type part struct {
	what  string // for messages: "certificate and key", …
	files []string
	load  func(into *material) error

	seen   []fileMark
	stable bool   // the files had rested when they were read, so equal marks mean equal content
	wrong  string // what was last logged
}

type fileMark struct {
	modified time.Time
	size     int64
	id       os.FileInfo
}

// look returns the marks of p's files and whether they differ from those that were read well.
func (p *part) look() (marks []fileMark, changed bool, err error) {
	for _, name := range p.files {
		info, err := os.Stat(name)
		if err != nil {
			return nil, true, err
		}
		marks = append(marks, fileMark{info.ModTime(), info.Size(), info})
	}
	if len(p.seen) != len(marks) || !p.stable {
		return marks, true, nil
	}
	for i, m := range marks {
		s := p.seen[i]
		if !m.modified.Equal(s.modified) || m.size != s.size || !os.SameFile(m.id, s.id) {
			return marks, true, nil
		}
	}
	return marks, false, nil
}

// read loads p's files into m if they changed. On error m keeps what it had.
func (p *part) read(m *material, now time.Time) (changed bool, err error) {
	marks, changed, err := p.look()
	if err != nil || !changed {
		return false, err
	}
	next := *m
	if err := p.load(&next); err != nil {
		return false, fmt.Errorf("%s: %w", p.what, err)
	}
	*m, p.seen, p.stable = next, marks, true
	for _, f := range marks {
		if d := now.Sub(f.modified); d < 2*time.Second && d > -2*time.Second {
			p.stable = false // a second write within the clock tick of the file system would look the same
		}
	}
	return true, nil
}

// loadPair reads a certificate chain and its key.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

// loadAnchors reads the CA bundle.
func loadAnchors(file string, m *material) error {
	certs, err := readAnchors(file)
	if err != nil {
		return err
	}
	m.setAnchors(certs)
	m.roots = m.anchors
	return nil
}

func readAnchors(file string) ([]*x509.Certificate, error) {
	data, err := readFile(file)
	if err != nil {
		return nil, err
	}
	certs, err := ca.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return certs, nil
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// chainOf parses a pair's chain again: tls.X509KeyPair keeps the leaf only.
func chainOf(pair tls.Certificate) (out []*x509.Certificate) {
	for _, der := range pair.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil {
			out = append(out, c)
		}
	}
	return out
}

func (m *material) setAnchors(certs []*x509.Certificate) {
	m.anchorCerts, m.anchors = certs, poolOf(certs)
}

// loadRevocations reads the CRL file; lists older than those in force do not replace them.
func loadRevocations(file string, m *material) (notes []string, err error) {
	data, err := readFile(file)
	if err != nil {
		return nil, err
	}
	next, err := parseRevocations(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	m.crls, notes = mergeNewer(m.crls, next, m.anchorCerts)
	return notes, nil
}

// issuedMaterial builds the set of an issued identity.
func issuedMaterial(i *Issued) (*material, error) {
	m := &material{issued: i, roles: map[string]policy.Role{}}
	var err error
	if m.server, err = certificateOf(i.Server); err != nil {
		return nil, fmt.Errorf("issued server certificate: %w", err)
	}
	if m.client, err = certificateOf(i.Client); err != nil {
		return nil, fmt.Errorf("issued client certificate: %w", err)
	}
	var accepted []*x509.Certificate
	roots := i.Roots
	for _, iss := range i.Issuers {
		key := ca.KeyDigest(iss.Certificate)
		if r, known := m.roles[key]; known && r != iss.Role {
			return nil, errors.New("one issuer key has two roles")
		}
		m.roles[key] = iss.Role
		accepted = append(accepted, iss.Certificate)
		if len(i.Roots) == 0 && iss.Role == policy.RoleMember {
			roots = append(roots, iss.Certificate)
		}
	}
	if !i.NoClientCert {
		m.setAnchors(accepted)
	}
	m.roots = x509.NewCertPool() // never the system's
	for _, c := range roots {
		m.roots.AddCert(c)
	}
	return m, nil
}

func certificateOf(p Pair) ([]tls.Certificate, error) {
	if len(p.Chain) == 0 {
		return nil, nil
	}
	pub, ok := p.Chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || p.Key == nil || !pub.Equal(p.Key.Public()) {
		return nil, errors.New("the key is not the certificate's")
	}
	c := tls.Certificate{PrivateKey: p.Key, Leaf: p.Chain[0]}
	for _, cert := range p.Chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return []tls.Certificate{c}, nil
}
