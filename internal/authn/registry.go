package authn

import (
	"crypto/x509/pkix"
	"net"
	"sync"

	"holdfast.dev/holdfast/internal/policy"
)

// Registry knows every live connection that came through a gate or was dialled with an Identity, by the certificates of
// the other end. Safe for concurrent use.
type Registry struct {
	mu     sync.Mutex
	conns  map[*conn]struct{}
	byCert map[policy.Certificate]map[*conn]struct{}
}

// Live describes one live connection.
type Live struct {
	Side         Side
	Outbound     bool // dialled by this member
	Principal    policy.Principal
	Certificates []policy.Certificate // leaf first, then the intermediates; empty without a certificate
	Member       uint64               // the member that the certificate names; 0: none
	Expired      bool                 // accepted past its end because its key is pinned: for Raft and renewal only
	ServerName   string               // what the client asked for (SNI)
	Subject      pkix.Name            // of the certificate that was shown
	Remote       net.Addr
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{conns: map[*conn]struct{}{}, byCert: map[policy.Certificate]map[*conn]struct{}{}}
}

// Cut closes every live connection whose other end showed cert, as leaf or as intermediate, and returns how many.
func (r *Registry) Cut(cert policy.Certificate) int {
	r.mu.Lock()
	victims := make([]*conn, 0, len(r.byCert[cert]))
	for c := range r.byCert[cert] {
		victims = append(victims, c)
	}
	r.mu.Unlock()
	return closeAll(victims)
}

// CutAll closes every live connection that match names, and returns how many. match must not call the registry.
func (r *Registry) CutAll(match func(Live) bool) int {
	return r.cut(func(c *conn) bool { return match(c.live) })
}

func (r *Registry) cut(match func(*conn) bool) int {
	r.mu.Lock()
	all := make([]*conn, 0, len(r.conns))
	for c := range r.conns {
		all = append(all, c)
	}
	r.mu.Unlock()
	victims := all[:0]
	for _, c := range all {
		if match(c) {
			victims = append(victims, c)
		}
	}
	return closeAll(victims)
}

// Count returns the number of live connections, and how many of them hold a certificate.
func (r *Registry) Count() (all, certified int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		if len(c.live.Certificates) > 0 {
			certified++
		}
	}
	return len(r.conns), certified
}

// Holders returns the number of live connections whose other end showed cert.
func (r *Registry) Holders(cert policy.Certificate) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byCert[cert])
}

// closeAll closes the sockets themselves: a close_notify could block, and a revoked peer is owed none.
func closeAll(conns []*conn) int {
	for _, c := range conns {
		c.Close()
	}
	return len(conns)
}

// add enters c, whose live description must not change any more. A connection that was closed already stays out.
func (r *Registry) add(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.closed.Load() {
		return
	}
	r.conns[c] = struct{}{}
	for _, cert := range c.live.Certificates {
		m := r.byCert[cert]
		if m == nil {
			m = map[*conn]struct{}{}
			r.byCert[cert] = m
		}
		m[c] = struct{}{}
	}
}

func (r *Registry) remove(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.conns[c]; !ok {
		return // never entered: its handshake may still be writing c.live
	}
	delete(r.conns, c)
	for _, cert := range c.live.Certificates {
		if m := r.byCert[cert]; m != nil {
			delete(m, c)
			if len(m) == 0 {
				delete(r.byCert, cert)
			}
		}
	}
}
