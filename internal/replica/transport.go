package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/policy"
)

// The timing of connections.
const (
	helloTimeout   = 5 * time.Second
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second
	lingerTime     = time.Second // of the connections to a member that was removed
	maxHandshaking = 64          // accepted connections that have not said hello yet
)

// transport is the connections to the other members. Each member dials every other, and what it has to say goes over the
// link that it has dialed: to the addresses that the other has published, through whatever stands in front of them. Over a
// link that the other has dialed go the answers to what came over it, and everything else only while no address of the
// other is known: a member that has just joined knows nobody's.
type transport struct {
	r        *Replica
	self     uint64
	cluster  uint64
	logger   *slog.Logger
	handlers map[string]Handler // not changed after start
	workers  sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc

	mu       sync.Mutex
	started  bool
	peers    map[uint64]*peer
	inbound  map[uint64]*link
	removed  map[uint64]bool
	handling int
}

// peer is one other member, and the goroutine that keeps a link to it.
type peer struct {
	id      uint64
	cancel  context.CancelFunc
	kick    chan struct{} // dial now
	urls    []string      // under transport.mu, like what follows
	link    *link
	dropped uint64
	sending bool // a snapshot
	said    string
	leaving bool // the member was removed: do not dial it again
}

func newTransport(r *Replica) *transport {
	t := &transport{
		r: r, self: r.store.Member(), cluster: r.store.Cluster(), logger: r.logger, handlers: map[string]Handler{},
		peers: map[uint64]*peer{}, inbound: map[uint64]*link{}, removed: map[uint64]bool{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// start begins to dial and to accept.
func (t *transport) start(ctx context.Context) {
	t.mu.Lock()
	t.started = true
	for _, p := range t.peers {
		t.runPeerLocked(p)
	}
	t.mu.Unlock()
	if l := t.r.o.Listener; l != nil {
		t.workers.Go(func() { t.accept(l) })
		context.AfterFunc(t.ctx, func() { _ = l.Close() }) // accept sees the error
	}
}

// close ends every connection, after what is queued has been written or a moment has passed.
func (t *transport) close() {
	deadline := t.r.o.Clock.After(500 * time.Millisecond)
	for t.anyPending() {
		select {
		case <-t.r.o.Clock.After(5 * time.Millisecond):
			continue
		case <-deadline:
		}
		break
	}
	t.cancel()
	t.workers.Wait()
}

func (t *transport) anyPending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		if p.link != nil && p.link.pending() {
			return true
		}
	}
	for _, l := range t.inbound {
		if l.pending() {
			return true
		}
	}
	return false
}

// update brings the peers to what the state says.
func (t *transport) update(s State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range s.Removed {
		if !t.removed[id] {
			t.removed[id] = true
			if l := t.inbound[id]; l != nil {
				t.soonLocked(l.cancel)
			}
		}
	}
	for id, p := range t.peers {
		if !slices.ContainsFunc(s.Members, func(m Peer) bool { return m.ID == id }) {
			p.leaving = true
			t.soonLocked(p.cancel)
			delete(t.peers, id)
		}
	}
	for _, m := range s.Members {
		if m.ID == t.self {
			continue
		}
		p := t.peers[m.ID]
		if p == nil {
			p = &peer{id: m.ID, kick: make(chan struct{}, 1), cancel: func() {}}
			t.peers[m.ID] = p
			p.urls = m.URLs
			if t.started {
				t.runPeerLocked(p)
			}
		} else if !slices.Equal(p.urls, m.URLs) {
			p.urls = m.URLs
			if p.link != nil {
				p.link.cancel()
			}
			p.dialNow()
		}
	}
}

// soonLocked calls cancel after a moment, in which calls under way are answered: the one that asked for the removal may
// be among them.
func (t *transport) soonLocked(cancel func()) {
	t.workers.Go(func() {
		select {
		case <-t.r.o.Clock.After(lingerTime):
		case <-t.ctx.Done():
		}
		cancel()
	})
}

func (t *transport) runPeerLocked(p *peer) {
	ctx, cancel := context.WithCancel(t.ctx)
	p.cancel = cancel
	t.workers.Go(func() { t.keepLink(ctx, p) })
}

func (p *peer) dialNow() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// keepLink dials a peer again and again, and serves the link while there is one.
func (t *transport) keepLink(ctx context.Context, p *peer) {
	backoff := minBackoff
	for ctx.Err() == nil {
		l, err := t.dialPeer(ctx, p)
		if err == nil {
			t.said(p, "connected")
			t.mu.Lock()
			p.link = l
			t.mu.Unlock()
			t.r.box.wake() // proposals may have waited for it
			err = l.run()
			t.mu.Lock()
			p.link = nil
			leaving := p.leaving
			t.mu.Unlock()
			t.unreachable(p.id)
			if leaving {
				return
			}
			backoff = minBackoff
		}
		if ctx.Err() != nil {
			return
		}
		t.said(p, err.Error())
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			backoff = minBackoff
		case <-t.r.o.Clock.After(backoff/2 + time.Duration(t.r.intn(int(backoff/2)))):
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// said logs how it stands with a peer when that has changed.
func (t *transport) said(p *peer, what string) {
	t.mu.Lock()
	same := p.said == what
	p.said = what
	t.mu.Unlock()
	if !same {
		t.logger.Info("peer", "peer", hex(p.id), "state", what)
	}
}

func (t *transport) dialPeer(ctx context.Context, p *peer) (*link, error) {
	conn, who, err := t.dial(ctx, p, linkMessages)
	if err != nil {
		return nil, err
	}
	return t.newLink(ctx, conn, p.id, who), nil
}

var errNoAddress = errors.New("no address known")

// dial connects to one of a peer's addresses, says hello, and makes sure that it is the peer.
func (t *transport) dial(ctx context.Context, p *peer, kind byte) (net.Conn, policy.Principal, error) {
	t.mu.Lock()
	urls := p.urls
	t.mu.Unlock()
	err := errNoAddress
	if t.r.o.Dial == nil || t.r.o.Identify == nil {
		return nil, policy.Principal{}, err
	}
	for _, url := range urls {
		conn, who, e := t.dialURL(ctx, p.id, url, kind)
		if e == nil {
			return conn, who, nil
		}
		err = fmt.Errorf("%s: %w", url, e)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, policy.Principal{}, err
}

func (t *transport) dialURL(ctx context.Context, id uint64, url string, kind byte) (net.Conn, policy.Principal, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := t.r.o.Dial(ctx, id, url)
	if err != nil {
		return nil, policy.Principal{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the hello below
	who, err := t.greet(conn, id, kind)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // the greeting's error is the one that counts
		return nil, policy.Principal{}, err
	}
	return conn, who, nil
}

// greet says hello on a dialed connection and hears the answer.
func (t *transport) greet(conn net.Conn, id uint64, kind byte) (policy.Principal, error) {
	who, err := t.r.o.Identify(conn, id)
	if err != nil {
		return policy.Principal{}, fmt.Errorf("it is not member %x: %w", id, err)
	}
	h := hello{version: peerVersion, kind: kind, cluster: t.cluster, from: t.self, to: id}
	if _, err := conn.Write(h.encode()); err != nil {
		return policy.Principal{}, err
	}
	v, text, err := readVerdict(conn)
	if err != nil {
		return policy.Principal{}, err
	}
	if v == refusedRemoved {
		t.logger.Warn("a peer says that this member has been removed from the cluster", "peer", hex(id))
		t.r.halt(ErrRemoved)
	}
	if v != welcome {
		return policy.Principal{}, fmt.Errorf("refused: %s: %s", v, text)
	}
	return who, nil
}

// link returns the link to a member, or nil.
func (t *transport) link(id uint64) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.linkLocked(id)
}

// linkLocked returns the dialed link. While it is down, the one that the peer has dialed does not stand in for it: that one
// may pass where the way to the peer is cut, and would keep alive what should be seen as isolated.
func (t *transport) linkLocked(id uint64) *link {
	if p := t.peers[id]; p != nil && len(p.urls) > 0 {
		return p.link
	}
	return t.inbound[id]
}

// send queues a message of raft, or drops it: raft sends again what matters.
func (t *transport) send(m *pb.Message) {
	id := m.GetTo()
	if l := t.link(id); l != nil && l.send(outgoing{message: m}) {
		return
	}
	t.mu.Lock()
	if p := t.peers[id]; p != nil {
		p.dropped++
	}
	t.mu.Unlock()
	if m.GetType() == pb.MsgApp {
		t.unreachable(id)
	}
}

func (t *transport) unreachable(id uint64) {
	t.r.box.put(event{do: func() { t.r.member.Unreachable(id) }})
}

// forward sends a proposal to the leader. It reports false if it did not leave. When the link breaks before an answer has
// come, the proposal is given up: see Member.Unsure.
func (t *transport) forward(f Forward) bool {
	l := t.link(f.To)
	return l != nil && l.send(outgoing{forward: &f})
}

func (t *transport) status(member Peer) PeerStatus {
	s := PeerStatus{Peer: member}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[member.ID]; p != nil {
		s.Dropped = p.dropped
	}
	if l := t.linkLocked(member.ID); l != nil {
		s.ActiveSince = l.since
	}
	return s
}
