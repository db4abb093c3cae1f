package authn

import (
	"context"
	"net"
)

// PlainTarget is the other end of an outgoing connection in the clear.
type PlainTarget struct {
	Network, Address string // "tcp" with host:port, or "unix" with a path
	Registry         *Registry
}

// DialPlain connects to a peer in the clear, as `holdfast etcd` does for http peer URLs. Nobody proves anything: the
// other end is a member because it was reached, which is what status says of such a cluster.
func DialPlain(ctx context.Context, dialer *net.Dialer, t PlainTarget) (net.Conn, error) {
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	raw, err := dialer.DialContext(ctx, t.Network, t.Address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, registry: t.Registry, budget: -1}
	c.live = Live{Side: PeerSide, Outbound: true, Principal: unauthenticatedPeer(), Remote: c.RemoteAddr()}
	t.Registry.add(c)
	return c, nil
}
