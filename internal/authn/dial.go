package authn

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"holdfast.dev/holdfast/internal/policy"
)

// Target is the other end of an outgoing connection, and what it has to prove.
type Target struct {
	Network string // "tcp" or "unix"; empty: "tcp"
	Host    string // name or address that its certificate must be for; not looked at when Member is set
	// Member is the member that it must be; with an issued identity its certificate must name it. 0: any.
	Member    uint64
	Protocols []string // ALPN, in order of preference
}

// Dial connects to address and proves both ends. The connection is in the registry: revoking the other end's certificate
// cuts it. A nil dialer is a plain net.Dialer.
func (i *Identity) Dial(ctx context.Context, dialer *net.Dialer, address string, t Target) (net.Conn, error) {
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	if t.Network == "" {
		t.Network = "tcp"
	}
	if t.Host == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", address, err)
		}
		t.Host = host
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	raw, err := dialer.DialContext(ctx, t.Network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, registry: i.env.Registry, budget: handshakeBytes, identity: i, encrypted: true}
	secured, err := i.secure(ctx, c, t)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("TLS to %s: %w", address, err)
	}
	return secured, nil
}

// secure does the handshake of an outgoing connection.
func (i *Identity) secure(ctx context.Context, c *conn, t Target) (net.Conn, error) {
	var p *proof
	config := clientConfig(i.env.Now, i.settings, i.fresh(), func(cs tls.ConnectionState) error {
		var err error
		p, err = i.verifyServer(cs, t)
		return err
	})
	config.ServerName, config.NextProtos = t.Host, t.Protocols
	secured := tls.Client(c, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c.budget = -1
	c.live = Live{Side: i.config.Side, Outbound: true, Remote: c.RemoteAddr()}
	if p == nil { // auto-tls: encrypted, not authenticated; the peer is believed, as the weakening says
		if i.config.Side == PeerSide {
			c.live.Principal = unauthenticatedPeer()
		}
		i.env.Registry.add(c)
		return secured, nil
	}
	c.chain, c.cluster = p.chain, p.cluster
	c.live.Certificates, c.live.Member, c.live.Expired = p.names, p.member, p.expired
	if i.config.Side == PeerSide {
		c.live.Principal = policy.NewMember(p.chain[0].Subject.CommonName, p.names[0])
	}
	i.env.Registry.add(c)
	if err := i.current.Load().still(c); err != nil {
		return nil, err
	}
	return secured, i.revoked(p)
}

// ClientConfig returns a configuration for one connection to t, for clients that bring their own dialer (an http.Transport,
// a gRPC client). It is verified like Dial's, but the connection is not in the registry. Ask for a new one per connection
// where a change of files matters.
func (i *Identity) ClientConfig(t Target) *tls.Config {
	config := clientConfig(i.env.Now, i.settings, i.fresh(), func(cs tls.ConnectionState) error {
		want := t
		if want.Host == "" {
			want.Host = cs.ServerName
		}
		p, err := i.verifyServer(cs, want)
		if err == nil && p != nil {
			err = i.revoked(p)
		}
		return err
	})
	config.ServerName, config.NextProtos = t.Host, t.Protocols
	return config
}

// verifyServer is the VerifyConnection of outgoing connections. Under auto-tls without a CA it accepts anybody.
func (i *Identity) verifyServer(cs tls.ConnectionState, t Target) (*proof, error) {
	if i.config.selfSigned() && i.config.TrustedCAFile == "" {
		return nil, nil
	}
	if len(cs.PeerCertificates) == 0 {
		return nil, errNotAllowed
	}
	p, err := i.current.Load().verify(cs.PeerCertificates, i.env.Now(), usage(true))
	if err != nil {
		return nil, err
	}
	leaf := p.chain[0]
	if err := i.config.strong(p.chain); err != nil {
		return nil, err
	}
	if t.Member != 0 && i.config.Issued != nil {
		if p.member != t.Member {
			return nil, &refusal{err: errWrongMember, reason: fmt.Sprintf("it names member %016x, wanted is %016x", p.member, t.Member), cert: leaf}
		}
		return p, nil
	}
	host := cmp.Or(i.config.ServerName, t.Host)
	if host == "" {
		return nil, fmt.Errorf("%w: no host to verify", ErrConfig)
	}
	if i.config.AnyServer {
		return p, i.config.allowed(leaf)
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return nil, &refusal{err: fmt.Errorf("tls: failed to verify certificate: %w", err), reason: "it is for another host", cert: leaf}
	}
	return p, i.config.allowed(leaf)
}
