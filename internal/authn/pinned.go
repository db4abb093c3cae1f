package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
)

// DialPinned connects to a server of which nothing is known but its root, as a joining member does: the last certificate
// that the server shows must be a root that pins accepts (given as DER), and the chain up to it is verified for the
// address's host. The connection is not in a registry: it lives for one exchange.
func DialPinned(ctx context.Context, env Env, address string, pins func(root []byte) bool) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	config := clientConfig(env.Now, settings{min: tls.VersionTLS13}, &material{}, func(cs tls.ConnectionState) error {
		return verifyPinned(cs.PeerCertificates, host, env, pins)
	})
	config.ServerName, config.NextProtos = host, []string{protocolHTTP}
	bounded := &conn{Conn: raw, registry: NewRegistry(), budget: handshakeBytes}
	c := tls.Client(bounded, config)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS to %s: %w", address, err)
	}
	bounded.budget = -1
	return c, nil
}

// verifyPinned checks what a pinned server presented.
func verifyPinned(presented []*x509.Certificate, host string, env Env, pins func(root []byte) bool) error {
	if len(presented) < 2 {
		return &refusal{err: errNotAllowed, reason: "the server does not show its root"}
	}
	if err := measure(presented); err != nil {
		return err
	}
	root := presented[len(presented)-1]
	if !pins(root.Raw) {
		return &refusal{err: errNotAllowed, reason: "the server's root is not the pinned one", cert: root}
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: env.Now(), DNSName: host,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	opts.Roots.AddCert(root)
	for _, c := range presented[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := presented[0].Verify(opts); err != nil {
		return fmt.Errorf("tls: failed to verify certificate: %w", err)
	}
	return nil
}
