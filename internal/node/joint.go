package node

import (
	"errors"
	"net"
	"sync"
)

// jointListener makes one listener of several.
type jointListener struct {
	inner []net.Listener
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	work  sync.WaitGroup
}

func joinListeners(inner []net.Listener) *jointListener {
	j := &jointListener{inner: inner, conns: make(chan net.Conn), done: make(chan struct{})}
	for _, l := range inner {
		j.work.Go(func() { j.pump(l) })
	}
	return j
}

func (j *jointListener) pump(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // a route ends only by being closed
		}
		select {
		case j.conns <- c:
		case <-j.done:
			c.Close()
			return
		}
	}
}

// Accept returns the next connection of any of them.
func (j *jointListener) Accept() (net.Conn, error) {
	select {
	case c := <-j.conns:
		return c, nil
	case <-j.done:
		return nil, net.ErrClosed
	}
}

// Close closes all of them.
func (j *jointListener) Close() error {
	var errs []error
	j.once.Do(func() {
		close(j.done)
		for _, l := range j.inner {
			errs = append(errs, ignoreClosed(l.Close()))
		}
		j.work.Wait()
	})
	return errors.Join(errs...)
}

// Addr is the address of the first.
func (j *jointListener) Addr() net.Addr {
	if len(j.inner) == 0 {
		return &net.TCPAddr{}
	}
	return j.inner[0].Addr()
}
