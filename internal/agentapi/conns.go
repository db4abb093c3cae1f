package agentapi

import (
	"net"
	"sync"
)

// conns are the open connections of a client.
type conns struct {
	mu     sync.Mutex // a leaf
	open   map[*openConn]struct{}
	closed bool
}

type openConn struct {
	net.Conn
	of *conns
}

// Close closes the connection and forgets it.
func (c *openConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (s *conns) add(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close() // nothing has been sent on it
		return nil, net.ErrClosed
	}
	if s.open == nil {
		s.open = map[*openConn]struct{}{}
	}
	c := &openConn{conn, s}
	s.open[c] = struct{}{}
	return c, nil
}

// close closes every connection, now and later.
func (s *conns) close() {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close() // whoever reads from it sees the error
	}
}
