package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/ca"
)

// Identity is the live TLS of one side: what it shows, whom it accepts, what is revoked. It follows its files: they are
// looked at on a handshake, at most once a second, and by Tick. Safe for concurrent use.
type Identity struct {
	config   Config
	env      Env
	settings settings
	lookups  *addresses // nil: addresses are not compared on this side
	current  atomic.Pointer[material]

	mu        sync.Mutex
	parts     []*part
	looked    time.Time // when the files were last looked at
	said      map[string]time.Time
	autoWrong string
}

// New reads everything that config names and refuses what is wrong with it.
func New(config Config, env Env) (*Identity, error) {
	s, err := config.check()
	if err != nil {
		return nil, err
	}
	if env.Now == nil || env.Rand == nil || env.Log == nil || env.Registry == nil {
		return nil, fmt.Errorf("%w: clock, randomness, log and registry are required", ErrConfig)
	}
	i := &Identity{config: config, env: env, settings: s, said: map[string]time.Time{}}
	if config.Issued == nil && (config.Side == PeerSide || config.Side == MetricsSide) && !config.SkipClientSANVerify {
		if env.Resolver == nil && config.TrustedCAFile != "" {
			return nil, fmt.Errorf("%w: the peer address check needs a resolver", ErrConfig)
		}
		i.lookups = &addresses{resolver: env.Resolver, now: env.Now}
	}
	if config.Issued != nil {
		m, err := issuedMaterial(config.Issued)
		if err != nil {
			return nil, err
		}
		i.current.Store(m)
		return i, nil
	}
	if config.AutoTLS && config.usesFiles() {
		env.Log.Warn("ignoring "+config.Side.String()+" auto TLS since certs given", "cert-file", config.CertFile)
	}
	if len(s.insecure) > 0 {
		env.Log.Warn("cipher suites that are known to be weak were asked for", "cipher-suites", s.insecure)
	}
	i.parts = i.fileParts()
	i.mu.Lock()
	defer i.mu.Unlock()
	return i, i.firstReadLocked(env.Now())
}

// fileParts lists what is read from files, in an order where later parts may use earlier ones.
func (i *Identity) fileParts() []*part {
	c := &i.config
	var parts []*part
	if c.TrustedCAFile != "" {
		parts = append(parts, &part{what: c.flag("trusted-ca-file"), files: []string{c.TrustedCAFile}, load: func(m *material) error {
			if err := loadAnchors(c.TrustedCAFile, m); err != nil {
				return err
			}
			return c.strongFile(c.TrustedCAFile, m.anchorCerts)
		}})
	}
	if c.RootsFile != "" {
		parts = append(parts, &part{what: c.flag("trusted-ca-file"), files: []string{c.RootsFile}, load: func(m *material) error {
			certs, err := readAnchors(c.RootsFile)
			if err == nil {
				m.roots, m.rootCerts = poolOf(certs), certs
			}
			return errors.Join(err, c.strongFile(c.RootsFile, certs))
		}})
	}
	if c.usesFiles() {
		parts = append(parts, &part{what: c.flag("cert-file"), files: []string{c.CertFile, c.KeyFile}, load: func(m *material) error {
			pair, err := loadPair(c.CertFile, c.KeyFile)
			if err == nil {
				err = c.strongFile(c.CertFile, chainOf(pair))
			}
			if err == nil {
				m.server = []tls.Certificate{pair}
				if c.ClientCertFile == "" {
					m.client = m.server
				}
			}
			return err
		}})
	}
	if c.ClientCertFile != "" {
		parts = append(parts, &part{what: c.flag("client-cert-file"), files: []string{c.ClientCertFile, c.ClientKeyFile}, load: func(m *material) error {
			pair, err := loadPair(c.ClientCertFile, c.ClientKeyFile)
			if err == nil {
				err = c.strongFile(c.ClientCertFile, chainOf(pair))
			}
			if err == nil {
				m.client = []tls.Certificate{pair}
			}
			return err
		}})
	}
	if c.CRLFile != "" {
		parts = append(parts, &part{what: c.flag("client-crl-file"), files: []string{c.CRLFile}, load: func(m *material) error {
			notes, err := loadRevocations(c.CRLFile, m)
			for _, n := range notes {
				i.env.Log.Warn("certificate revocation list", "file", c.CRLFile, "error", n)
			}
			return err
		}})
	}
	return parts
}

// firstReadLocked reads everything and refuses whatever fails.
func (i *Identity) firstReadLocked(now time.Time) error {
	m := &material{}
	for _, p := range i.parts {
		if _, err := p.read(m, now); err != nil {
			return fmt.Errorf("%s side: %w", i.config.Side, err)
		}
	}
	if i.config.selfSigned() {
		pair, _, err := i.loadSelfSigned(now)
		if err != nil {
			return fmt.Errorf("%s side: %w", i.config.Side, err)
		}
		m.server, m.client = []tls.Certificate{pair}, []tls.Certificate{pair}
	}
	i.looked = now
	i.current.Store(m)
	i.warnLocked(m, now)
	return nil
}

// Tick looks at the files, renews what is due and cuts connections that are no longer good. Call it about once a second.
func (i *Identity) Tick(now time.Time) {
	i.mu.Lock()
	changed := i.lookLocked(now)
	i.mu.Unlock()
	if changed {
		i.recheck()
	}
}

// fresh returns the material for one handshake, looking at the files if nobody did within the last second.
func (i *Identity) fresh() *material {
	if len(i.parts) > 0 && i.mu.TryLock() {
		now, changed := i.env.Now(), false
		if d := now.Sub(i.looked); d >= reloadEvery || d < 0 {
			changed = i.lookLocked(now)
		}
		i.mu.Unlock()
		if changed {
			i.recheck()
		}
	}
	return i.current.Load()
}

// lookLocked reloads what changed, part by part; a part that fails stays as it was.
func (i *Identity) lookLocked(now time.Time) (changed bool) {
	i.looked = now
	next := *i.current.Load()
	for _, p := range i.parts {
		did, err := p.read(&next, now)
		changed = changed || did
		i.reportLocked(&p.wrong, p.what, err, did)
	}
	if i.config.selfSigned() && !now.Before(renewAt(next.server[0].Leaf)) {
		pair, did, err := i.loadSelfSigned(now)
		if err == nil && did {
			next.server, next.client, changed = []tls.Certificate{pair}, []tls.Certificate{pair}, true
		}
		i.reportLocked(&i.autoWrong, i.config.flag("auto-tls"), err, did)
	}
	if changed {
		i.current.Store(&next)
	}
	i.warnLocked(&next, now)
	return changed
}

// reportLocked logs a failure once for each different text, and the recovery.
func (i *Identity) reportLocked(last *string, what string, err error, did bool) {
	switch {
	case err != nil && err.Error() != *last:
		*last = err.Error()
		i.env.Log.Warn("a changed TLS file cannot be used; what was read before stays in force",
			"side", i.config.Side.String(), "flag", what, "error", err)
	case err == nil && did:
		*last = ""
		i.env.Log.Info("TLS files reloaded", "side", i.config.Side.String(), "flag", what)
	}
}

// warnLocked says once a day what an operator has to act on.
func (i *Identity) warnLocked(m *material, now time.Time) {
	once := func(text string) {
		if t, ok := i.said[text]; !ok || now.Sub(t) >= 24*time.Hour {
			if len(i.said) > 256 {
				clear(i.said)
			}
			i.said[text] = now
			i.env.Log.Warn(text, "side", i.config.Side.String())
		}
	}
	for _, text := range m.crls.complaints(m.anchorCerts, now) {
		once(text)
	}
	for _, pairs := range [][]tls.Certificate{m.server, m.client} {
		for _, p := range pairs {
			life := p.Leaf.NotAfter.Sub(p.Leaf.NotBefore)
			if left := p.Leaf.NotAfter.Sub(now); left < min(life/10, 7*24*time.Hour) {
				once(fmt.Sprintf("the certificate of %q ends at %s", p.Leaf.Subject, p.Leaf.NotAfter.UTC().Format(time.RFC3339)))
			}
		}
	}
}

// Replace puts a new issued identity in force, for connections from now on, and cuts those that it no longer accepts.
func (i *Identity) Replace(issued *Issued) error {
	if i.config.Issued == nil {
		return fmt.Errorf("%w: this identity follows files", ErrConfig)
	}
	c := i.config
	c.Issued = issued
	if _, err := c.check(); err != nil {
		return err
	}
	if issued.NoClientCert != i.config.Issued.NoClientCert {
		return fmt.Errorf("%w: a side cannot start or stop asking for certificates while it runs", ErrConfig)
	}
	m, err := issuedMaterial(issued)
	if err != nil {
		return err
	}
	i.current.Store(m)
	i.recheck()
	return nil
}

// recheck cuts the live connections of this identity whose certificate is revoked or whose CA is trusted no longer.
func (i *Identity) recheck() {
	m := i.current.Load()
	i.env.Registry.cut(func(c *conn) bool {
		if c.identity != i || len(c.chain) == 0 {
			return false
		}
		err := m.still(c)
		if err != nil {
			i.env.Log.Warn("cutting a live connection", "side", i.config.Side.String(), "remote-addr", c.live.Remote.String(),
				"subject", c.chain[0].Subject.String(), "issuer", c.chain[0].Issuer.String(), "serial", c.chain[0].SerialNumber.Text(16), "error", err)
		}
		return err != nil
	})
}

var errAnchorGone = errors.New("its CA is not trusted any more")

// still reports whether what was accepted for c would be accepted now; dates apart, which count at the handshake.
func (m *material) still(c *conn) error {
	if m.crls.revoked(c.chain) != nil {
		return errRevoked
	}
	if c.live.Outbound {
		return nil // RootCAs may be the system's; the next dial verifies again
	}
	anchor := ca.KeyDigest(c.chain[len(c.chain)-1])
	for _, a := range m.anchorCerts {
		if ca.KeyDigest(a) == anchor {
			return nil
		}
	}
	return errAnchorGone
}

// revoked asks the hook; an error counts as a refusal.
func (i *Identity) revoked(p *proof) error {
	if i.env.Revoked == nil {
		return nil
	}
	for k, name := range p.names { // an intermediate that was revoked takes with it what it signed
		yes, err := i.env.Revoked(name)
		switch {
		case err != nil:
			return &refusal{err: fmt.Errorf("tls: revocation could not be looked up: %w", err), reason: "whether it is revoked cannot be told now", cert: p.chain[k]}
		case yes:
			return &refusal{err: errRevoked, reason: "it was revoked in this cluster", cert: p.chain[k]}
		}
	}
	return nil
}

// Authorities are the certificates by which this side verifies others now; empty: the system's.
func (i *Identity) Authorities() []*x509.Certificate {
	m := i.current.Load()
	if len(m.anchorCerts) > 0 {
		return append([]*x509.Certificate(nil), m.anchorCerts...)
	}
	return append([]*x509.Certificate(nil), m.rootCerts...)
}

// CertificateStatus is one certificate that this side shows.
type CertificateStatus struct {
	Side                Side
	Use                 string // "server" or "client"
	Subject, Issuer     string
	Serial              string // hex
	Hosts               []string
	NotBefore, NotAfter time.Time
	RenewsItself        bool
}

// Certificates returns what this side shows now, for status.
func (i *Identity) Certificates() []CertificateStatus {
	m := i.current.Load()
	var out []CertificateStatus
	add := func(use string, pairs []tls.Certificate) {
		for _, p := range pairs {
			l := p.Leaf
			s := CertificateStatus{
				Side: i.config.Side, Use: use, Subject: l.Subject.String(), Issuer: l.Issuer.String(), Serial: l.SerialNumber.Text(16),
				Hosts: append([]string(nil), l.DNSNames...), NotBefore: l.NotBefore, NotAfter: l.NotAfter,
				RenewsItself: m.issued != nil || i.config.selfSigned(),
			}
			for _, ip := range l.IPAddresses {
				s.Hosts = append(s.Hosts, ip.String())
			}
			out = append(out, s)
		}
	}
	add("server", m.server)
	if len(m.client) > 0 && (len(m.server) == 0 || !m.client[0].Leaf.Equal(m.server[0].Leaf)) {
		add("client", m.client)
	}
	return out
}

// Weaknesses says, one line each, everything about this side that is weaker than what Holdfast does by itself.
func (i *Identity) Weaknesses() []string {
	c, m := &i.config, i.current.Load()
	var out []string
	add := func(format string, args ...any) {
		out = append(out, c.Side.String()+" side: "+fmt.Sprintf(format, args...))
	}
	if c.selfSigned() {
		add("%s encrypts, but nobody can tell this server from an impostor", c.flag("auto-tls"))
	}
	switch {
	case i.settings.demandCert || c.Side == PublicSide:
	case c.Side == PeerSide:
		add("peers show no certificate: anyone reaching the peer port is root")
	case c.Side == MetricsSide:
		add("clients show no certificate: anyone reaching the port may read health and metrics")
	default:
		add("clients show no certificate: only user authentication, if it is on, tells them apart")
	}
	if c.AnyServer {
		add("any certificate of %s passes for a server: verify_server_hostname is off", c.flag("trusted-ca-file"))
	} else if c.Side == PeerSide && c.Issued == nil && i.settings.demandCert && c.ServerName == "" {
		add("any certificate of %s is a full member: its certificates name no member", c.flag("trusted-ca-file"))
		if c.SkipClientSANVerify {
			add("--peer-skip-client-san-verification: a peer's certificate works from any address")
		}
	}
	if i.settings.min < tls.VersionTLS13 {
		add("TLS 1.2 is accepted")
	}
	if i.settings.max == tls.VersionTLS12 {
		add("TLS 1.3 is switched off, and post-quantum key exchange with it")
	}
	if len(i.settings.insecure) > 0 {
		add("weak cipher suites are on: %q", i.settings.insecure)
	}
	for _, f := range []string{c.KeyFile, c.ClientKeyFile} {
		if info, err := os.Stat(f); f != "" && err == nil && info.Mode().Perm()&0o077 != 0 {
			add("the key file %s can be read by others (mode %04o)", f, info.Mode().Perm())
		}
	}
	for _, p := range append(append([]tls.Certificate(nil), m.server...), m.client...) {
		if err := ca.CheckKey(p.Leaf.PublicKey); err != nil {
			add("the certificate of %q: %v", p.Leaf.Subject, err)
		}
	}
	for _, a := range m.anchorCerts {
		if err := ca.CheckKey(a.PublicKey); err != nil {
			add("the CA %q: %v", a.Subject, err)
		}
	}
	for _, text := range m.crls.complaints(m.anchorCerts, i.env.Now()) {
		add("%s", text)
	}
	return out
}

// usage returns the extended key usage that the other end must have.
func usage(outbound bool) x509.ExtKeyUsage {
	if outbound {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}
