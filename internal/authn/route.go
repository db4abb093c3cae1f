package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
)

// route is the listener of one protocol behind a gate.
type route struct {
	gate  *Gate
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// Accept returns the next connection of this protocol.
func (r *route) Accept() (net.Conn, error) {
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.done:
		return nil, net.ErrClosed
	}
}

// Close ends this route only: the gate goes on serving the others.
func (r *route) Close() error {
	r.once.Do(func() { close(r.done) })
	return nil
}

// Addr is the address of the gate's socket.
func (r *route) Addr() net.Addr { return r.gate.Addr() }

var errNotServed = errors.New("the protocol is not served here")

// errEnded is our own doing: the server behind a route has ended, as it does when the member stops, before the gate has.
var errEnded = errors.New("the server behind this port has ended")

func (r *route) deliver(ctx context.Context, c net.Conn) error {
	select {
	case r.conns <- c:
		switch r {
		case r.gate.routes[0]:
			r.gate.counts.grpc.Add(1)
		case r.gate.routes[1]:
			r.gate.counts.web.Add(1)
		case r.gate.routes[3]:
			r.gate.counts.agent.Add(1)
		default:
			r.gate.counts.peer.Add(1)
		}
		return nil
	case <-r.done:
		return errEnded
	case <-ctx.Done():
		return fmt.Errorf("no server takes the connection: %w", ctx.Err())
	}
}

func (g *Gate) serves(r Routes) bool { return g.options.Routes&r != 0 }

// protocols are the ALPN names on offer.
func (g *Gate) protocols() []string {
	switch {
	case g.serves(ServePeer) && g.serves(ServeWeb):
		return []string{PeerProtocol, protocolH2, protocolHTTP}
	case g.serves(ServeAgent):
		return []string{PeerProtocol, AgentProtocol}
	case g.serves(ServePeer):
		return []string{PeerProtocol}
	case g.serves(ServeWeb):
		return []string{protocolH2, protocolHTTP}
	}
	return []string{protocolH2}
}

// secureRoute decides by what the client offered: h2 alone is gRPC; a client that also offers http/1.1 is a web client; no
// ALPN is HTTP/1.1.
func (g *Gate) secureRoute(negotiated string, offered []string) (*route, error) {
	web := slices.Contains(offered, protocolHTTP)
	switch {
	case negotiated == PeerProtocol:
		return g.routes[2], nil
	case negotiated == AgentProtocol:
		return g.routes[3], nil
	case g.serves(ServePeer) && !g.serves(ServeWeb):
		return nil, fmt.Errorf("%w: it offered %q, this port speaks %s", errNotServed, offered, PeerProtocol)
	case g.serves(ServePeer):
		return g.routes[1], nil
	case negotiated == protocolH2 && g.serves(ServeGRPC) && (!web || !g.serves(ServeWeb)):
		return g.routes[0], nil
	case g.serves(ServeWeb):
		return g.routes[1], nil
	}
	return nil, fmt.Errorf("%w: it offered %q, this port speaks gRPC (h2) only", errNotServed, offered)
}

const (
	tlsHandshakeRecord = 0x16
	http2Preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// plainRoute looks at the first bytes where the protocol is not known beforehand.
func (g *Gate) plainRoute(ctx context.Context, c *conn) (*route, error) {
	switch g.options.Routes {
	case ServeGRPC:
		return g.routes[0], nil
	case ServeWeb:
		return g.routes[1], nil
	case ServePeer:
		return g.routes[2], nil
	case ServeGRPC | ServeWeb:
		head, err := sniff(ctx, c, func(b []byte) bool { return len(b) < len(http2Preface) && strings.HasPrefix(http2Preface, string(b)) })
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(head, []byte(http2Preface)) {
			return g.routes[0], nil
		}
		return g.routes[1], nil
	}
	head, err := sniff(ctx, c, func(b []byte) bool { return len(b) == 0 })
	if err != nil {
		return nil, err
	}
	if head[0] >= 'A' && head[0] <= 'Z' { // every HTTP method begins so, and so does HTTP/2
		if g.serves(ServeAgent) {
			return g.routes[3], nil
		}
		return g.routes[1], nil
	}
	return g.routes[2], nil
}

// sniff reads ahead while undecided says so, and leaves what it read to be read again.
func sniff(ctx context.Context, c *conn, undecided func([]byte) bool) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	head := c.head
	c.head = nil
	var buf [len(http2Preface)]byte
	for undecided(head) {
		n, err := c.Read(buf[:len(buf)-len(head)])
		head = append(head, buf[:n]...)
		if err != nil && undecided(head) {
			if errors.Is(err, io.EOF) && len(head) == 0 {
				return nil, errSilent
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("nothing to tell its protocol by came within %s: %w", handshakeLimit, err)
			}
			return nil, err
		}
	}
	c.head = head
	if !stop() && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return head, nil
}

// errSilent is a connection that was closed before it said anything: a probe.
var errSilent = errors.New("closed without a word")
