package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

func (t *transport) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close() // too late
			}
			return
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				t.r.halt(fmt.Errorf("the peer listener was closed: %w", err))
				return
			}
			t.logger.Warn("accept a peer", "err", err)
			select {
			case <-t.r.o.Clock.After(minBackoff):
			case <-t.ctx.Done():
			}
			continue
		}
		t.mu.Lock()
		full := t.handling >= maxHandshaking
		if !full {
			t.handling++
		}
		t.mu.Unlock()
		if full {
			_ = conn.Close() // unidentified connections crowd out others; peers come again
			continue
		}
		t.workers.Go(func() { t.serve(conn) })
	}
}

// serve answers the hello on an accepted connection and serves it.
func (t *transport) serve(conn net.Conn) {
	stop := context.AfterFunc(t.ctx, func() { _ = conn.Close() }) // ends whatever reads or writes
	defer stop()
	defer conn.Close()
	h, who, err := t.hearHello(conn)
	t.mu.Lock()
	t.handling--
	t.mu.Unlock()
	if err != nil && t.ctx.Err() != nil {
		return // our own end closed it
	}
	if err != nil {
		t.logger.Warn("refused a peer connection", "addr", addrOf(conn), "err", err)
		return
	}
	if h.kind == linkSnapshots {
		t.r.receiveSnapshot(conn, h.from)
		return
	}
	l := t.newLink(t.ctx, conn, h.from, who)
	t.takeInbound(l)
	if err := l.run(); err != nil && t.ctx.Err() == nil {
		t.logger.Debug("a peer's connection ended", "peer", hex(h.from), "err", err)
	}
	t.mu.Lock()
	if t.inbound[h.from] == l {
		delete(t.inbound, h.from)
	}
	t.mu.Unlock()
	t.unreachable(h.from)
}

// takeInbound makes l the link that its member has dialed.
func (t *transport) takeInbound(l *link) {
	t.mu.Lock()
	old := t.inbound[l.member]
	t.inbound[l.member] = l
	p := t.peers[l.member]
	removed := t.removed[l.member]
	t.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	if p != nil {
		p.dialNow() // it is there
	}
	if removed {
		l.cancel() // since the hello
	}
	t.r.box.wake()
}

func addrOf(conn net.Conn) string {
	if a := conn.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

// hearHello reads a hello, decides, and answers.
func (t *transport) hearHello(conn net.Conn) (hello, policy.Principal, error) {
	if err := conn.SetDeadline(t.r.o.Clock.Now().Add(helloTimeout)); err != nil {
		return hello{}, policy.Principal{}, err
	}
	buf := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return hello{}, policy.Principal{}, err
	}
	h, err := decodeHello(buf)
	if err != nil {
		return hello{}, policy.Principal{}, err
	}
	v, who, text := t.judge(conn, h)
	if _, err := conn.Write(encodeVerdict(v, text)); err != nil {
		return hello{}, policy.Principal{}, err
	}
	if v != welcome {
		return hello{}, policy.Principal{}, fmt.Errorf("%s: %s", v, text)
	}
	return h, who, conn.SetDeadline(time.Time{})
}

func (t *transport) judge(conn net.Conn, h hello) (verdict, policy.Principal, string) {
	var nobody policy.Principal
	if h.cluster != t.cluster {
		return refusedCluster, nobody, fmt.Sprintf("member %x of cluster %x came to cluster %x", h.from, h.cluster, t.cluster)
	}
	if h.to != t.self || h.from == t.self {
		return refusedMember, nobody, fmt.Sprintf("this is member %x, not %x", t.self, h.to)
	}
	if t.r.o.Identify == nil {
		return refusedIdentity, nobody, "this member accepts nobody"
	}
	who, err := t.r.o.Identify(conn, h.from)
	if err != nil {
		t.logger.Warn("a connection is not who it says", "claims", hex(h.from), "addr", addrOf(conn), "err", err)
		return refusedIdentity, nobody, ""
	}
	t.mu.Lock()
	removed := t.removed[h.from]
	t.mu.Unlock()
	if removed {
		return refusedRemoved, nobody, hex(h.from)
	}
	return welcome, who, ""
}
