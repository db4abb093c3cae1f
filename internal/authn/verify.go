package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// proof is what a verified chain says about the other end. It holds only once the handshake is over.
type proof struct {
	chain           []*x509.Certificate // leaf first, ends with the anchor
	names           []policy.Certificate
	role            policy.Role // RoleNone for foreign issuers
	cluster, member uint64
	expired         bool
}

// refusal is why a certificate was refused. Its Error is for logs; reason is the same in plain language.
type refusal struct {
	err    error
	reason string
	cert   *x509.Certificate // nil if there is none to name
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

var (
	errChainSize   = errors.New("tls: certificate chain is too large")
	errRevoked     = errors.New("tls: certificate is revoked")
	errNotAllowed  = errors.New("client certificate authentication failed")
	errWrongMember = errors.New("tls: certificate names another member")
)

// measure refuses a chain that nothing honest sends, before anything in it is verified.
func measure(presented []*x509.Certificate) error {
	size, names := 0, 0
	for _, c := range presented {
		size += len(c.Raw)
		names += len(c.DNSNames) + len(c.EmailAddresses) + len(c.IPAddresses) + len(c.URIs) +
			len(c.PermittedDNSDomains) + len(c.ExcludedDNSDomains) + len(c.PermittedIPRanges) + len(c.ExcludedIPRanges) +
			len(c.PermittedEmailAddresses) + len(c.ExcludedEmailAddresses) + len(c.PermittedURIDomains) + len(c.ExcludedURIDomains)
	}
	if len(presented) > maxChainCertificates || size > maxChainBytes || names > maxChainNames {
		return &refusal{
			err:    errChainSize,
			reason: fmt.Sprintf("its chain has %d certificates, %d bytes and %d names; allowed are %d, %d and %d", len(presented), size, names, maxChainCertificates, maxChainBytes, maxChainNames),
			cert:   presented[0],
		}
	}
	return nil
}

// verify checks the chain that the other end presented for usage and finds who it is.
func (m *material) verify(presented []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) (*proof, error) {
	if err := measure(presented); err != nil {
		return nil, err
	}
	leaf, pool := presented[0], m.anchors
	if usage == x509.ExtKeyUsageServerAuth {
		pool = m.roots
	} else if pool == nil {
		return nil, errNotAllowed // a nil pool would mean the system's CAs
	}
	opts := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	if m.issued == nil || len(m.issued.Roots) > 0 {
		for _, c := range presented[1:] {
			opts.Intermediates.AddCert(c)
		}
	}
	chains, err := leaf.Verify(opts)
	expired := false
	if err != nil && m.pinned(leaf, now) {
		// Within its own life, so that everything but the date is still verified; its issuer may have ended with it.
		opts.CurrentTime = leaf.NotAfter.Add(-time.Second)
		if again, err2 := leaf.Verify(opts); err2 == nil {
			chains, err, expired = again, nil, true
		}
	}
	if err != nil {
		return nil, &refusal{err: fmt.Errorf("tls: failed to verify certificate: %w", err), reason: plain(err, leaf, now, usage), cert: leaf}
	}
	chain, err := m.unrevoked(chains)
	if err != nil {
		return nil, err
	}
	p := &proof{chain: chain, names: namesOf(chain), expired: expired}
	if m.issued != nil {
		if err := m.identify(p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// pinned reports whether leaf is the expired certificate of a current member whose key replicated state knows.
func (m *material) pinned(leaf *x509.Certificate, now time.Time) bool {
	if m.issued == nil || m.issued.Pinned == nil || !now.After(leaf.NotAfter) {
		return false
	}
	cluster, member, ok := memberOf(leaf)
	return ok && cluster == m.issued.Cluster && m.issued.Pinned(member, sha256.Sum256(leaf.RawSubjectPublicKeyInfo))
}

// unrevoked returns the first chain that no CRL breaks.
func (m *material) unrevoked(chains [][]*x509.Certificate) ([]*x509.Certificate, error) {
	var first *x509.Certificate
	for _, chain := range chains {
		c := m.crls.revoked(chain)
		if c == nil {
			return chain, nil
		}
		if first == nil {
			first = c
		}
	}
	return nil, &refusal{err: errRevoked, reason: "its CA revoked it: a CRL in force lists its serial number", cert: first}
}

// identify maps the chain of an issued identity to role and member.
func (m *material) identify(p *proof) error {
	leaf := p.chain[0]
	if len(p.chain) < 2 {
		return &refusal{err: errNotAllowed, reason: "it is the issuer's own certificate, not one that the issuer made", cert: leaf}
	}
	p.role = m.roles[ca.KeyDigest(p.chain[1])]
	cluster, member, ok := memberOf(leaf)
	switch {
	case p.role == policy.RoleMember && ok && cluster != m.issued.Cluster:
		return &refusal{err: errWrongMember, reason: fmt.Sprintf("it belongs to cluster %016x, this is %016x", cluster, m.issued.Cluster), cert: leaf}
	case p.role == policy.RoleMember && ok:
		p.cluster, p.member = cluster, member
	}
	return nil
}

// memberOf reads the one member URI of a peer certificate.
func memberOf(leaf *x509.Certificate) (cluster, member uint64, ok bool) {
	if len(leaf.URIs) != 1 {
		return 0, 0, false
	}
	return ca.ParseMemberURI(leaf.URIs[0])
}

// namesOf names every certificate of chain but the anchor; a leaf that is its own anchor is named by its own key.
func namesOf(chain []*x509.Certificate) []policy.Certificate {
	if len(chain) == 1 {
		return []policy.Certificate{ca.Name(chain[0], chain[0])}
	}
	names := make([]policy.Certificate, 0, len(chain)-1)
	for i := range len(chain) - 1 {
		names = append(names, ca.Name(chain[i], chain[i+1]))
	}
	return names
}

// allowed applies the allowed common names or host names.
func (c *Config) allowed(leaf *x509.Certificate) error {
	switch {
	case len(c.AllowedCNs) > 0:
		if slices.Contains(c.AllowedCNs, leaf.Subject.CommonName) {
			return nil
		}
		return &refusal{err: errNotAllowed, cert: leaf,
			reason: fmt.Sprintf("its common name %q is not among those that %s allows", leaf.Subject.CommonName, c.flag("client-cert-allowed-cn"))}
	case len(c.AllowedHostnames) > 0:
		for _, h := range c.AllowedHostnames {
			if leaf.VerifyHostname(h) == nil {
				return nil
			}
		}
		return &refusal{err: errNotAllowed, cert: leaf,
			reason: fmt.Sprintf("it is not for any host that %s allows", c.flag("client-cert-allowed-hostname"))}
	}
	return nil
}

// strong refuses a chain with a key or a signature that can be forged, where that was asked for.
func (c *Config) strong(chain []*x509.Certificate) error {
	if !c.RefuseWeak {
		return nil
	}
	for _, cert := range chain {
		if err := ca.CheckKey(cert.PublicKey); err != nil {
			return &refusal{err: fmt.Errorf("tls: a key in the chain is weak: %w", err), reason: "a key in its chain is weak", cert: chain[0]}
		}
	}
	return nil // crypto/x509 has refused signatures with SHA-1 and MD5
}

// strongFile does the same for what stands in a file, and says what to use instead.
func (c *Config) strongFile(file string, certs []*x509.Certificate) error {
	if !c.RefuseWeak {
		return nil
	}
	for _, cert := range certs {
		if err := ca.CheckKey(cert.PublicKey); err != nil {
			return fmt.Errorf("%s: the certificate of %q: %w", file, cert.Subject, err)
		}
		switch cert.SignatureAlgorithm { //nolint:exhaustive // the others are good
		case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.MD5WithRSA, x509.MD2WithRSA:
			return fmt.Errorf("%s: %w", file, ErrWeakSignature.WithHint(
				"the certificate of %q is signed with %s, which can be forged: sign it anew with -sha256 (openssl ca: default_md = sha256)", cert.Subject, cert.SignatureAlgorithm))
		}
	}
	return nil
}

// plain says in plain language why verification failed.
func plain(err error, leaf *x509.Certificate, now time.Time, usage x509.ExtKeyUsage) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("no CA that is trusted here signed it; its issuer is %q", leaf.Issuer)
	case errors.As(err, &host):
		return "it is for another host"
	case errors.As(err, &invalid):
		return plainInvalid(invalid, leaf, now, usage)
	}
	return "it could not be verified"
}

func plainInvalid(invalid x509.CertificateInvalidError, leaf *x509.Certificate, now time.Time, usage x509.ExtKeyUsage) string {
	whose := "it"
	if invalid.Cert != nil && !invalid.Cert.Equal(leaf) {
		whose = fmt.Sprintf("the certificate of its issuer %q", invalid.Cert.Subject)
	}
	switch invalid.Reason {
	case x509.Expired:
		c := leaf
		if invalid.Cert != nil {
			c = invalid.Cert
		}
		if now.Before(c.NotBefore) {
			return fmt.Sprintf("%s is not valid before %s; is a clock wrong?", whose, c.NotBefore.UTC().Format(time.RFC3339))
		}
		return fmt.Sprintf("%s expired at %s", whose, c.NotAfter.UTC().Format(time.RFC3339))
	case x509.IncompatibleUsage:
		if usage == x509.ExtKeyUsageClientAuth {
			return "it may not be used by a client: its extended key usage lacks clientAuth"
		}
		return "it may not be used by a server: its extended key usage lacks serverAuth"
	case x509.NotAuthorizedToSign:
		return "it was signed by a certificate that is no CA"
	}
	return whose + " is not acceptable: " + strings.TrimPrefix(invalid.Error(), "x509: ")
}
