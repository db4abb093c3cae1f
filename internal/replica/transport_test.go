package replica

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// knock opens a raw connection to a member and says something.
func (c *cluster) knock(to uint64, what []byte) net.Conn {
	c.t.Helper()
	conn, err := c.net.dial(90)(c.ctx, to, urlOf(to))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := conn.Write(what); err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// closed waits until the other side has hung up.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func goodHello() hello {
	return hello{version: peerVersion, kind: linkMessages, cluster: testCluster, from: 90, to: 1}
}

func TestHelloRefusals(t *testing.T) {
	c := newCluster(t, 1)
	cases := map[string]struct {
		change func(*hello)
		want   verdict
	}{
		"another cluster": {func(h *hello) { h.cluster++ }, refusedCluster},
		"another member":  {func(h *hello) { h.to = 2 }, refusedMember},
		"itself":          {func(h *hello) { h.from = 1 }, refusedMember},
		"fine":            {func(h *hello) {}, welcome},
	}
	for name, x := range cases {
		t.Run(name, func(t *testing.T) {
			h := goodHello()
			x.change(&h)
			conn := c.knock(1, h.encode())
			v, text, err := readVerdict(conn)
			if err != nil || v != x.want {
				t.Errorf("answer %v %q, %v; want %v", v, text, err, x.want)
			}
			if v != welcome {
				closed(t, conn)
			}
		})
	}
	garbage := append([]byte("GET / HTTP/1.1\r\nHost: x\r\n"), make([]byte, 40)...)
	closed(t, c.knock(1, garbage[:helloSize]))
}

func TestIdentityDecides(t *testing.T) {
	c := emptyCluster(t)
	c.tune = func(n *node) {
		n.opts.Identify = func(_ net.Conn, member uint64) (policy.Principal, error) {
			return policy.Principal{}, errors.New("the certificate names somebody else")
		}
	}
	c.create(1, []Peer{{ID: 1}}, []uint64{1}).start()
	conn := c.knock(1, goodHello().encode())
	if v, _, err := readVerdict(conn); err != nil || v != refusedIdentity {
		t.Errorf("answer %v, %v", v, err)
	}
	closed(t, conn)

	// No Identify at all is not an open door.
	c2 := emptyCluster(t)
	c2.tune = func(n *node) { n.opts.Identify = nil }
	c2.create(1, []Peer{{ID: 1}}, []uint64{1}).start()
	if v, _, err := readVerdict(c2.knock(1, goodHello().encode())); err != nil || v != refusedIdentity {
		t.Errorf("without Identify: answer %v, %v", v, err)
	}
}

// welcomed opens a link as member 90.
func (c *cluster) welcomed() net.Conn {
	c.t.Helper()
	conn := c.knock(1, goodHello().encode())
	if v, text, err := readVerdict(conn); err != nil || v != welcome {
		c.t.Fatalf("%v %s %v", v, text, err)
	}
	return conn
}

func messagesFrame(m ...*pb.Message) []byte {
	var out []outgoing
	for _, x := range m {
		out = append(out, outgoing{message: x})
	}
	b, _ := encodeOutgoing(nil, out)
	return b
}

func TestFalseNamesAreDropped(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader(1)
	term := n.r.Status().Term
	conn := c.welcomed()
	// 90 says that 1 itself, and that 77, are the leader of a later term.
	for _, from := range []uint64{1, 77} {
		m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &from, To: new(uint64(1)), Term: new(term + 10)}
		if _, err := conn.Write(messagesFrame(m)); err != nil {
			t.Fatal(err)
		}
	}
	// A message under its own name is taken: the term goes up, so the order of the two shows that the former were not.
	c.put(n, "x")
	if got := n.r.Status().Term; got != term {
		t.Errorf("term %d after messages under false names, was %d", got, term)
	}
	m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(uint64(90)), To: new(uint64(1)), Term: new(term + 3)}
	if _, err := conn.Write(messagesFrame(m)); err != nil {
		t.Fatal(err)
	}
	c.eventually("the message under its own name", func() bool { return n.r.Status().Term >= term+3 })
	if got := n.r.Status().Term; got >= term+10 {
		t.Errorf("term %d: a message under a false name was taken", got)
	}
}

func TestBadFramesEndTheLink(t *testing.T) {
	huge := binary.BigEndian.AppendUint32(nil, 1<<31)
	cases := map[string][]byte{
		"too large":         append(huge, byte(frameMessages)),
		"no type":           {0, 0, 0, 0, 0},
		"unknown type":      {0, 0, 0, 1, 99},
		"broken messages":   {0, 0, 0, 3, byte(frameMessages), 1, 0},
		"broken reply":      {0, 0, 0, 2, byte(frameReply), 1},
		"a chunk":           {0, 0, 0, 2, byte(frameChunk), 1},
		"a repeated ticket": append(forwardFrame(5), forwardFrame(5)...),
	}
	c := newCluster(t, 1)
	n := c.leader(1)
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			conn := c.welcomed()
			go io.Copy(io.Discard, conn)
			if _, err := conn.Write(bad); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Fatal(err)
			}
			// More than any buffer holds: the writes must fail because the other side has hung up.
			for range 100 {
				if _, err := conn.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
			t.Error("the link is still open")
		})
	}
	c.put(n, "still here")
}

func forwardFrame(ticket uint64) []byte {
	b, at := beginFrame(nil, frameForward)
	b = binary.AppendUvarint(b, ticket)
	return endFrame(append(b, batch("f")...), at)
}

// A proposal that another member forwarded twice, on two links, is appended twice and applied once; what is not a batch
// is refused.
func TestForwardedProposals(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader(1)
	send := func(frame []byte) Answer {
		conn := c.welcomed()
		defer conn.Close()
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		for {
			kind, payload, err := readFrame(in, 1<<10)
			if err != nil {
				t.Fatal(err)
			}
			if kind == frameAnswer {
				r := reader{b: payload}
				return Answer{Ticket: r.uvarint(), Index: r.uvarint(), Term: r.uvarint()}
			}
		}
	}
	first, second := send(forwardFrame(1)), send(forwardFrame(1))
	if first.Index == 0 || second.Index <= first.Index {
		t.Fatalf("answers %+v and %+v", first, second)
	}
	c.eventually("both are applied", func() bool { return n.ledger.State().Applied >= second.Index })
	if n.ledger.dups != 1 || len(n.ledger.list()) != 1 {
		t.Errorf("applied %q, %d duplicates", n.ledger.list(), n.ledger.dups)
	}
	b, at := beginFrame(nil, frameForward)
	if a := send(endFrame(append(b, 9, 'x'), at)); a.Index != 0 || a.Ticket != 9 {
		t.Errorf("what is no batch was answered with %+v", a)
	}
}

func TestCalls(t *testing.T) {
	c := emptyCluster(t)
	errOdd := fault.New(fault.Conflict, "odd").WithHint("make it even")
	members := []Peer{{ID: 1, URLs: []string{urlOf(1)}}, {ID: 2, URLs: []string{urlOf(2)}}}
	hold := make(chan struct{})
	for _, id := range []uint64{1, 2} {
		n := c.create(id, members, []uint64{1, 2})
		n.r.Handle("echo", func(ctx context.Context, _ policy.Principal, payload []byte) ([]byte, error) {
			return append([]byte{byte(Caller(ctx))}, payload...), nil
		})
		n.r.Handle("odd", func(context.Context, policy.Principal, []byte) ([]byte, error) { return nil, errOdd })
		n.r.Handle("secret", func(context.Context, policy.Principal, []byte) ([]byte, error) {
			return nil, errors.New("the password is x")
		})
		n.r.Handle("hold", func(ctx context.Context, _ policy.Principal, _ []byte) ([]byte, error) {
			select {
			case <-hold:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		n.start()
	}
	defer close(hold)
	one := c.nodes[1].r
	c.leader(1, 2)
	c.eventually("a link", func() bool { return one.peers.link(2) != nil })
	big := strings.Repeat("y", 3<<20)
	if got, err := one.Call(c.ctx, 2, "echo", []byte(big)); err != nil || string(got) != "\x01"+big {
		t.Errorf("echo: %d bytes, %v", len(got), err)
	}
	_, err := one.Call(c.ctx, 2, "odd", nil)
	if f := fault.From(err); !errors.Is(err, errOdd) || f.Hint != errOdd.Hint {
		t.Errorf("a fault arrives as %v", err)
	}
	if _, err := one.Call(c.ctx, 2, "secret", nil); fault.From(err).Kind != fault.Internal || strings.Contains(err.Error(), "password") {
		t.Errorf("an internal error arrives as %v", err)
	}
	if _, err := one.Call(c.ctx, 2, "nothing", nil); fault.From(err).Kind != fault.Unsupported {
		t.Errorf("an unknown method: %v", err)
	}
	if _, err := one.Call(c.ctx, 7, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a stranger: %v", err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := one.Call(ctx, 2, "hold", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call past its deadline: %v", err)
	}
	broken := make(chan error, 1)
	go func() {
		_, err := one.Call(c.ctx, 2, "hold", nil)
		broken <- err
	}()
	c.eventually("the call is being served", func() bool {
		l := one.peers.link(2)
		if l == nil {
			return false
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.calls) > 0
	})
	c.net.isolate(1, 2)
	if err := <-broken; !errors.Is(err, ErrUnreachable) {
		t.Errorf("a call whose link breaks: %v", err)
	}
}

func TestAddressChange(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	other := c.nodes[lead.id%3+1]
	// Another address for a member that goes on running: the new one leads nowhere, so the leader loses its link.
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(Update, Peer{ID: other.id, URLs: []string{"mem://nowhere"}})); err != nil {
		t.Fatal(err)
	}
	c.eventually("the old address is dialed no more", func() bool {
		lead.r.peers.mu.Lock()
		defer lead.r.peers.mu.Unlock()
		return lead.r.peers.peers[other.id].link == nil
	})
	// The link that the member has dialed is up. It carries nothing to the member: whoever cannot be reached is isolated, and
	// does not believe for long that it has a leader.
	c.eventually("nothing reaches it", func() bool { return other.r.Status().Leader == 0 })
	lead.r.peers.mu.Lock()
	inbound := lead.r.peers.inbound[other.id]
	lead.r.peers.mu.Unlock()
	if inbound == nil || lead.r.peers.link(other.id) != nil {
		t.Errorf("inbound link %v, link in use %v; want one that is not used", inbound, lead.r.peers.link(other.id))
	}
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(Update, Peer{ID: other.id, URLs: []string{urlOf(other.id)}})); err != nil {
		t.Fatal(err)
	}
	c.eventually("the new one is", func() bool {
		lead.r.peers.mu.Lock()
		defer lead.r.peers.mu.Unlock()
		return lead.r.peers.peers[other.id].link != nil
	})
}
