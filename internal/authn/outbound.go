package authn

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

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
