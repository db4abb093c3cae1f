package authn

import (
	"net"
	"sync"
)

// admission bounds the connections that have not proved anything yet: so many at once, so many of one address, and a
// bounded queue behind them that holds no goroutine. Whoever does not fit is closed.
type admission struct {
	maxActive, maxPerAddress, maxWaiting int

	mu      sync.Mutex
	active  int
	perAddr map[string]int // active and waiting
	running map[string]int // active
	waiting []*conn
}

const (
	defaultHandshakes = 512
	defaultPerAddress = 128
	defaultStrangers  = 512
	waitingFactor     = 8 // that many connections may wait for each that is active
)

// verdict is what admission decided about a new connection.
type verdict uint8

const (
	refuse verdict = iota
	start
	wait
)

// enter decides about c.
func (a *admission) enter(c *conn) verdict {
	addr := addressOf(c)
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := a.maxPerAddress
	if addr == "" {
		limit = a.maxActive
	}
	switch {
	case a.active < a.maxActive && a.running[addr] < limit:
		a.active++
		a.running[addr]++
		a.perAddr[addr]++
		return start
	case len(a.waiting) < a.maxWaiting && a.perAddr[addr] < limit*waitingFactor:
		a.perAddr[addr]++
		a.waiting = append(a.waiting, c)
		return wait
	}
	return refuse
}

// leave ends c's turn and returns the next connection to start, if any.
func (a *admission) leave(c *conn) *conn {
	addr := addressOf(c)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active--
	dec(a.running, addr)
	dec(a.perAddr, addr)
	for i, w := range a.waiting {
		from := addressOf(w)
		if from != "" && a.running[from] >= a.maxPerAddress {
			continue
		}
		a.waiting = append(a.waiting[:i], a.waiting[i+1:]...)
		a.active++
		a.running[from]++
		return w
	}
	return nil
}

// drain returns everybody who waits, and forgets them.
func (a *admission) drain() []*conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.waiting
	a.waiting = nil
	for _, c := range all {
		dec(a.perAddr, addressOf(c))
	}
	return all
}

// pending returns how many connections have not finished their handshake.
func (a *admission) pending() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.active + len(a.waiting)
}

func dec(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// addressOf is the key of the bound per address: the IP address, a /64 of IPv6; empty for unix sockets.
func addressOf(c net.Conn) string {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	if v4 := tcp.IP.To4(); v4 != nil {
		return string(v4)
	}
	return string(tcp.IP.Mask(net.CIDRMask(64, 128)))
}
