package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
)

// conn is the socket below every accepted or dialled connection. Until its handshake is over it belongs to one goroutine;
// after that live, chain and identity do not change.
type conn struct {
	net.Conn
	registry *Registry
	closed   atomic.Bool
	ended    func() // called once when it is closed; nil: nobody asked

	head   []byte // read while sniffing, not yet handed on
	budget int    // bytes that may still be read before the handshake is over; negative: no bound

	live       Live
	chain      []*x509.Certificate // verified, leaf first, ends with the anchor; nil without a certificate
	identity   *Identity           // that verified chain
	cluster    uint64              // named by a peer certificate of Holdfast's own member issuer
	encrypted  bool
	serverName string // what the client asked for (SNI)
}

var errHandshakeTooLong = errors.New("the handshake is longer than any honest one")

// Read serves what was read ahead first.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		if c.head = c.head[n:]; len(c.head) == 0 {
			c.head = nil
		}
		return n, nil
	}
	if c.budget < 0 {
		return c.Conn.Read(b)
	}
	if c.budget == 0 {
		return 0, errHandshakeTooLong
	}
	n, err := c.Conn.Read(b[:min(len(b), c.budget)])
	c.budget -= n
	return n, err
}

// Close closes the socket and forgets the connection.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := c.Conn.Close()
	c.registry.remove(c)
	if c.ended != nil {
		c.ended()
	}
	return err
}

// underlying finds the conn below what a server was given.
func underlying(c net.Conn) (*conn, bool) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	own, ok := c.(*conn)
	return own, ok
}

// Inspect describes a connection that came through a gate or from Dial; ok is false for any other.
func Inspect(c net.Conn) (Live, bool) {
	own, ok := underlying(c)
	if !ok {
		return Live{}, false
	}
	return own.live, true
}

// PeerIdentity returns the cluster and member that the other end proved to be with a certificate of the cluster's own
// member issuer. ok is false for every other connection: etcd's peer certificates, auto-tls and plain text prove no id.
func PeerIdentity(c net.Conn) (cluster, member uint64, ok bool) {
	own, found := underlying(c)
	if !found || own.live.Member == 0 {
		return 0, 0, false
	}
	return own.cluster, own.live.Member, true
}
