package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"

	"holdfast.dev/holdfast/internal/ca"
)

// Outbound is the TLS of a client that brings its own dialer and talks to servers outside this cluster.
type Outbound struct {
	CertFile, KeyFile string // PEM; both or none
	CAFile            string // PEM bundle; empty: the system's
	SkipVerify        bool   // accept anybody; its user says so in the log
}

// OutboundConfig returns the configuration of such a client. Go's own verification holds.
func OutboundConfig(o Outbound, env Env) (*tls.Config, error) {
	config := foreignConfig(env.Now, o.SkipVerify)
	if o.CertFile != "" || o.KeyFile != "" {
		pair, err := loadPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if o.CAFile != "" {
		data, err := readFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		certs, err := ca.ParseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.CAFile, err)
		}
		config.RootCAs = x509.NewCertPool()
		for _, c := range certs {
			config.RootCAs.AddCert(c)
		}
	}
	return config, nil
}

// SecureForeign finishes TLS as a client on a connection to a server outside this cluster. t.Host is the name that its
// certificate must be for, unless o.SkipVerify. On error the connection is the caller's to close.
func SecureForeign(ctx context.Context, c net.Conn, o Outbound, t Target, env Env) (net.Conn, error) {
	config, err := OutboundConfig(o, env)
	if err != nil {
		return nil, err
	}
	config.ServerName, config.NextProtos = t.Host, t.Protocols
	secured := tls.Client(c, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return secured, nil
}
