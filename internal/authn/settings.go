package authn

import (
	"crypto/tls"
	"fmt"
	"time"
)

// settings are the parts of a Config that never reload.
type settings struct {
	min, max   uint16
	suites     []uint16
	insecure   []string // names of insecure suites that were asked for
	demandCert bool     // listeners of this side ask for a client certificate and refuse without
	cnIsUser   bool
}

// flag spells a flag as the user wrote it.
func (c *Config) flag(name string) string {
	if c.Flag != nil {
		return c.Flag(name)
	}
	if c.Side != PeerSide {
		return "--" + name
	}
	switch name {
	case "client-crl-file":
		return "--peer-crl-file"
	case "client-cert-allowed-hostname":
		return "--peer-cert-allowed-hostname"
	case "client-cert-allowed-cn":
		return "--peer-cert-allowed-cn"
	}
	return "--peer-" + name
}

// usesFiles reports whether certificates come from files, as opposed to auto-tls or an issued identity.
func (c *Config) usesFiles() bool { return c.CertFile != "" || c.KeyFile != "" }

// selfSigned reports whether the certificate is one of auto-tls.
func (c *Config) selfSigned() bool { return c.AutoTLS && !c.usesFiles() }

// check refuses what can never work and returns what was derived.
func (c *Config) check() (settings, error) {
	bad := func(format string, args ...any) (settings, error) {
		return settings{}, fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	switch {
	case c.Side == noSide || c.Side > DiscoverySide:
		return bad("no side is set")
	case c.Issued != nil:
		return c.checkIssued()
	case (c.CertFile == "") != (c.KeyFile == ""):
		return bad("KeyFile and CertFile must both be present[key: %v, cert: %v]", c.KeyFile, c.CertFile)
	case (c.ClientCertFile == "") != (c.ClientKeyFile == ""):
		return bad("ClientKeyFile and ClientCertFile must both be present or both absent: key: %v, cert: %v]", c.ClientKeyFile, c.ClientCertFile)
	case len(c.AllowedCNs) > 0 && len(c.AllowedHostnames) > 0:
		return bad("AllowedCNs and AllowedHostnames are mutually exclusive (cns=%q, hostnames=%q)", c.AllowedCNs, c.AllowedHostnames)
	case c.ClientCertAuth && c.TrustedCAFile == "":
		return bad("%s without %s would accept a certificate of any public authority; name the CA whose clients may come in",
			c.flag("client-cert-auth"), c.flag("trusted-ca-file"))
	case c.CRLFile != "" && c.TrustedCAFile == "":
		return bad("%s without %s revokes nothing, since no certificate is asked for", c.flag("client-crl-file"), c.flag("trusted-ca-file"))
	case (len(c.AllowedCNs) > 0 || len(c.AllowedHostnames) > 0) && c.TrustedCAFile == "":
		return bad("allowed names without %s restrict nothing, since no certificate is asked for", c.flag("trusted-ca-file"))
	case c.RootsFile != "" && c.TrustedCAFile != "":
		return bad("roots for servers only, and a CA for both directions")
	case c.ServerName != "" && c.AnyServer:
		return bad("one server name, and any")
	case c.selfSigned() && c.AutoTLSStore == nil:
		return bad("%s has no place to keep its certificate", c.flag("auto-tls"))
	case c.AutoTLSValidity < 0:
		return bad("selfSignedCertValidity is invalid,it should be greater than 0")
	}
	s, err := c.protocol()
	s.demandCert = c.TrustedCAFile != ""
	s.cnIsUser = c.ClientCertAuth
	return s, err
}

func (c *Config) checkIssued() (settings, error) {
	i := c.Issued
	bad := func(why string) (settings, error) {
		return settings{}, fmt.Errorf("%w: issued identity: %s", ErrConfig, why)
	}
	switch {
	case c.RootsFile != "" || c.ServerName != "" || c.AnyServer:
		return bad("it excludes roots and names of servers: the issuers decide")
	case c.usesFiles() || c.ClientCertFile != "" || c.TrustedCAFile != "" || c.CRLFile != "" || c.AutoTLS || c.ClientCertAuth:
		return bad("it excludes certificate files and auto-tls")
	case len(c.AllowedCNs) > 0 || len(c.AllowedHostnames) > 0:
		return bad("it excludes allowed names: the issuer decides")
	case i.NoClientCert && c.Side != PublicSide:
		return bad("only the public side may serve without client certificates")
	case i.NoClientCert && len(i.Issuers) > 0:
		return bad("issuers without client certificates")
	case len(i.Server.Chain) > 0 && !i.NoClientCert && len(i.Issuers) == 0:
		return bad("no issuer is trusted, so nobody could come in")
	}
	for _, iss := range i.Issuers {
		if iss.Certificate == nil || !iss.Certificate.IsCA || (iss.Role == 0) != (c.Side == SigningSide) {
			return bad("an issuer that is no CA, has no role, or one on the signing side, where nobody has")
		}
	}
	s, err := c.protocol()
	s.demandCert, s.cnIsUser = !i.NoClientCert, true
	return s, err
}

// protocol reads versions and cipher suites.
func (c *Config) protocol() (settings, error) {
	s := settings{min: tls.VersionTLS13}
	var err error
	if c.MinVersion != "" {
		if s.min, err = tlsVersion(c.MinVersion); err != nil {
			return s, err
		}
	}
	if s.max, err = tlsVersion(c.MaxVersion); err != nil {
		return s, err
	}
	if s.max != 0 && s.max < s.min {
		return s, fmt.Errorf("%w: min version (%s) is greater than max version (%s)", ErrConfig, c.MinVersion, c.MaxVersion)
	}
	if len(c.CipherSuites) > 0 && s.min == tls.VersionTLS13 {
		return s, fmt.Errorf("%w: cipher suites may not be configured when only TLS1.3 is enabled", ErrConfig)
	}
	for _, name := range c.CipherSuites {
		id, insecure, err := cipherSuite(name)
		if err != nil {
			return s, err
		}
		if insecure && !c.InsecureCipherSuites {
			return s, fmt.Errorf("%w: cipher suite %s is insecure", ErrConfig, name)
		}
		if insecure {
			s.insecure = append(s.insecure, name)
		}
		s.suites = append(s.suites, id)
	}
	return s, nil
}

func tlsVersion(name string) (uint16, error) {
	switch name {
	case "":
		return 0, nil
	case "TLS1.2":
		return tls.VersionTLS12, nil
	case "TLS1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%w: unexpected TLS version %q (must be one of: TLS1.2, TLS1.3)", ErrConfig, name)
}

// cipherSuite knows Go's names and the two older spellings that etcd takes.
func cipherSuite(name string) (id uint16, insecure bool, err error) {
	switch name {
	case "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305":
		return tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, false, nil
	case "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305":
		return tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, false, nil
	}
	for _, s := range tls.CipherSuites() {
		if s.Name == name {
			return s.ID, false, nil
		}
	}
	for _, s := range tls.InsecureCipherSuites() {
		if s.Name == name {
			return s.ID, true, nil
		}
	}
	return 0, false, fmt.Errorf("%w: unexpected TLS cipher suite %q", ErrConfig, name)
}

const (
	defaultAutoTLSValidity = 365 * 24 * time.Hour
	reloadEvery            = time.Second
)
