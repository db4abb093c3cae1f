package consulapi

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// waiters counts the blocking queries that are held, per client and in all.
type waiters struct {
	mu   sync.Mutex
	held map[string]int
	all  int
}

// enter counts one more for client; release ends it. Beyond a limit it refuses.
func (w *waiters) enter(client string, each, all int) (release func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[client] >= each || w.all >= all {
		return nil, refuse(http.StatusTooManyRequests, "Too many blocking queries at once: this agent holds up to %d of one client and %d in all", each, all)
	}
	w.held[client]++
	w.all++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all--
		if w.held[client]--; w.held[client] == 0 {
			delete(w.held, client)
		}
	}, nil
}

// client names who a limit is for: the certificate of the connection, or else its address.
func (c *call) client() string {
	if cert, ok := c.who.Certificate(); ok {
		return cert.Issuer + "/" + cert.Serial
	}
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		return c.r.RemoteAddr
	}
	return host
}

// jittered adds up to a 32nd of wait, so that watchers that came together do not come back together. Consul allows
// itself a 16th, and clients (Patroni) allow not much more: the other half is for the way.
func (a *API) jittered(wait time.Duration) time.Duration {
	span := uint64(wait / 32)
	var b [8]byte
	if _, err := io.ReadFull(a.o.Rand, b[:]); err != nil || span == 0 {
		return wait
	}
	return wait + time.Duration(binary.LittleEndian.Uint64(b[:])%span)
}
