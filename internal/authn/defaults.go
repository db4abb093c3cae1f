package authn

import (
	"crypto/tls"
	"time"
)

// This file holds every tls.Config of Holdfast. What is not set here is Go's default on purpose: key exchange with
// X25519MLKEM768 where the client has it, and Go's order of cipher suites.

const (
	// PeerProtocol is the ALPN name of Holdfast's peer transport.
	PeerProtocol = "holdfast-peer/1"
	// AgentProtocol is that of the RPC of agents without state; package agentapi speaks it.
	AgentProtocol = "holdfast-agent/1"

	protocolH2   = "h2"
	protocolHTTP = "http/1.1"

	handshakeLimit = 10 * time.Second
	// handshakeBytes bounds what one handshake may send. A post-quantum ClientHello has about 2 KB, a chain of four RSA
	// certificates about 8 KB.
	handshakeBytes = 96 << 10
	// What a chain may hold before anything in it is verified: crafted chains cost quadratic work (golang/go#78282).
	maxChainCertificates = 8
	maxChainBytes        = 64 << 10
	maxChainNames        = 1024 // subject alternative names and name constraints, summed over the chain
)

// serverConfig builds the configuration of one accepted connection.
func serverConfig(now func() time.Time, s settings, m *material, protocols []string) *tls.Config {
	auth := tls.NoClientCert
	if s.demandCert {
		auth = tls.RequireAnyClientCert // verified in VerifyConnection
	}
	return &tls.Config{
		Time:                   now,
		MinVersion:             s.min,
		MaxVersion:             s.max,
		CipherSuites:           s.suites,
		Certificates:           m.server,
		ClientAuth:             auth,
		ClientCAs:              m.anchors, // only to tell the client which issuers are accepted
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
	}
}

// clientConfig builds the configuration of one outgoing connection. Go's own verification is switched off because it
// runs before the chain was measured and cannot follow a reload; verify, set as VerifyConnection, takes its place.
func clientConfig(now func() time.Time, s settings, m *material, verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		Time:                   now,
		MinVersion:             s.min,
		MaxVersion:             s.max,
		CipherSuites:           s.suites,
		Certificates:           m.client,
		InsecureSkipVerify:     true,
		VerifyConnection:       verify,
		SessionTicketsDisabled: true,
	}
}

// helloConfig reads the ClientHello, by which choose builds the configuration of the connection with serverConfig.
func helloConfig(now func() time.Time, choose func(*tls.ClientHelloInfo) (*tls.Config, error)) *tls.Config {
	return &tls.Config{Time: now, MinVersion: tls.VersionTLS12, GetConfigForClient: choose, SessionTicketsDisabled: true}
}

// foreignConfig is the start of a configuration for servers outside the cluster. Its user sets the server's name later, so
// Go's own verification holds; skip switches it off.
func foreignConfig(now func() time.Time, skip bool) *tls.Config {
	return &tls.Config{Time: now, MinVersion: tls.VersionTLS12, InsecureSkipVerify: skip, SessionTicketsDisabled: true}
}
