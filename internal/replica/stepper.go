package replica

import (
	"errors"
	"fmt"
	"math"
	"net"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Stepper is a Replica whose loop, appender and applier do a step when a simulation says so, and whose links hand their
// frames to the simulation. It takes the place of Run. What still runs by itself are goroutines that wait for those steps:
// callers, handlers of calls, the sender and the receiver of a snapshot, a flush of the machine.
//
// The methods are called from one goroutine. An error means that the member has ended, as the end of Run would.
type Stepper struct {
	r       *Replica
	pending []appendWork // taken from the appender's queue
	written []*pb.Message
}

// NewStepper is New for a simulation. The Replica's Listener is not used; its Dial is, for connections that bring a
// snapshot.
func NewStepper(s *Store, o Options) (*Stepper, error) {
	r, err := New(s, o)
	if err != nil {
		return nil, err
	}
	r.started.Store(true)
	return &Stepper{r: r}, nil
}

// Replica returns the member. Run must not be called.
func (s *Stepper) Replica() *Replica { return s.r }

// Begin is what Run does first.
func (s *Stepper) Begin() error {
	return s.step(func() error {
		s.r.begin()
		return s.r.turn(false)
	})
}

// Turn lets the loop handle what waits for it, after a tick of the clock if ticked is set.
func (s *Stepper) Turn(ticked bool) error {
	select {
	case <-s.r.box.notify:
	default:
	}
	return s.step(func() error { return s.r.turn(ticked) })
}

// Waiting reports whether something waits for the loop.
func (s *Stepper) Waiting() bool {
	select {
	case <-s.r.box.notify:
		s.r.box.wake()
		return true
	default:
		return false
	}
}

// Appends, Unsynced and Applies count what waits to be written to the log, what was written and not synced, and what waits to
// be applied.
func (s *Stepper) Appends() int { return len(s.pending) + s.r.appends.len() }

// Unsynced is described at Appends.
func (s *Stepper) Unsynced() int { return len(s.written) }

// Applies is described at Appends.
func (s *Stepper) Applies() int { return s.r.applies.len() }

// Write writes the first of the appends to the log, or does the other work that the appender has been given. A snapshot is
// installed at once, after everything that waits has been synced and applied.
func (s *Stepper) Write() error {
	if len(s.pending) == 0 {
		s.pending = s.r.appends.poll(math.MaxInt)
	}
	if len(s.pending) == 0 {
		return nil
	}
	w := s.pending[0]
	if w.message != nil && w.message.GetSnapshot() == nil {
		s.pending = s.pending[1:]
		s.written = append(s.written, w.message)
		return s.step(func() error { return s.r.log.append(hardOf(w.message), w.message.GetEntries()) })
	}
	if err := s.Sync(); err != nil {
		return err
	}
	if w.do == nil {
		if err := s.Apply(math.MaxInt); err != nil {
			return err
		}
	}
	s.pending = s.pending[1:]
	return s.step(func() error {
		if w.do != nil {
			return w.do()
		}
		return s.r.installStaged(&w)
	})
}

// Sync makes durable what was written.
func (s *Stepper) Sync() error {
	if len(s.written) == 0 {
		return nil
	}
	return s.step(func() error {
		s.r.log.preparing.Wait()
		if err := s.r.syncLog(); err != nil {
			return err
		}
		for _, m := range s.written {
			s.r.box.put(event{appended: m})
		}
		s.written = nil
		return nil
	})
}

// Apply applies the first n of what waits for the applier.
func (s *Stepper) Apply(n int) error {
	work := s.r.applies.poll(n)
	if len(work) == 0 {
		return nil
	}
	return s.step(func() error {
		done, err := s.r.applyAll(work)
		if err != nil {
			return err
		}
		for i := range done {
			s.r.box.put(event{applied: &done[i]})
		}
		return nil
	})
}

// step does f unless the member has ended, and ends it if f fails.
func (s *Stepper) step(f func() error) error {
	if ended, err := s.Ended(); ended {
		return err
	}
	err := func() (err error) {
		defer recovered(&err)
		return f()
	}()
	if err != nil {
		s.r.halt(err)
	}
	if ended, err := s.Ended(); ended {
		return err
	}
	return nil
}

// Ended reports whether the member has ended, and why: ErrRemoved, what was fatal, or ErrStopped.
func (s *Stepper) Ended() (bool, error) {
	select {
	case <-s.r.stop:
		if s.r.fatal == nil {
			return true, ErrStopped
		}
		return true, s.r.fatal
	default:
		return false, nil
	}
}

// Accept serves a connection that another member's Dial has made. It returns when the connection has ended.
func (s *Stepper) Accept(conn net.Conn) {
	t := s.r.peers
	t.mu.Lock()
	t.handling++
	t.mu.Unlock()
	t.serve(conn)
}

// Kill ends the member as the death of its process would: nothing more is written, and whoever waits is told that it has
// ended. It returns when no goroutine of the member is left.
func (s *Stepper) Kill() error {
	r := s.r
	r.halt(nil)
	r.box.close()
	r.appends.close()
	r.applies.close()
	select {
	case <-r.done:
		return nil
	default:
		close(r.done)
	}
	t := r.peers
	t.mu.Lock()
	var links []*link
	for _, p := range t.peers {
		if p.link != nil {
			links = append(links, p.link)
		}
	}
	for _, l := range t.inbound {
		links = append(links, l)
	}
	t.mu.Unlock()
	for _, l := range links {
		l.close()
	}
	t.cancel()
	t.workers.Wait()
	r.failWaiters()
	r.log.preparing.Wait()
	return r.log.abandon()
}

// errSevered is why a link of a simulation ends.
var errSevered = errors.New("severed")

// Wire is one end of a link between two members of a simulation.
type Wire struct {
	link   *link
	dialed bool
}

// Parcel is one thing that a member sends over a link.
type Parcel struct {
	Text  string // for a trace: what it is, without data
	Raft  bool   // a message of raft: it may be lost, doubled or late by itself; anything else only with its link
	kind  frameType
	bytes []byte // the frame's payload
}

// Size returns the bytes of the parcel.
func (p Parcel) Size() int { return len(p.bytes) }

// Connect makes the two ends of a link that dialer has dialed. Either may have a link to the other already, which
// ends: its wires are Closed.
func Connect(dialer, acceptor *Stepper) (at, to *Wire, err error) {
	from, id := dialer.r.peers, acceptor.r.peers.self
	from.mu.Lock()
	p := from.peers[id]
	from.mu.Unlock()
	if p == nil || p.leaving {
		return nil, nil, ErrUnknownMember
	}
	near, far := net.Pipe() // what Identify looks at; nothing is written to it
	who, err := from.r.o.Identify(near, id)
	if err != nil {
		return nil, nil, err
	}
	v, whence, text := acceptor.r.peers.judge(far, hello{version: peerVersion, kind: linkMessages, cluster: from.cluster, from: from.self, to: id})
	if v == refusedRemoved {
		from.r.halt(ErrRemoved)
	}
	if v != welcome {
		return nil, nil, errors.New(text)
	}
	at = &Wire{link: from.newLink(from.ctx, near, id, who), dialed: true}
	from.mu.Lock()
	former := p.link
	p.link = at.link
	from.mu.Unlock()
	if former != nil {
		former.cancel()
	}
	from.r.box.wake()
	to = &Wire{link: acceptor.r.peers.newLink(acceptor.r.peers.ctx, far, from.self, whence)}
	acceptor.r.peers.takeInbound(to.link)
	return at, to, nil
}

// Closed reports whether the member has given this end up.
func (w *Wire) Closed() bool { return w.link.ctx.Err() != nil }

// Sever ends the link at this end.
func (w *Wire) Sever() {
	l, t := w.link, w.link.t
	l.close()
	t.mu.Lock()
	if p := t.peers[l.member]; p != nil && p.link == l {
		p.link = nil
	}
	if t.inbound[l.member] == l {
		delete(t.inbound, l.member)
	}
	t.mu.Unlock()
	t.unreachable(l.member)
}

// Take returns what the member has sent since the last call.
func (w *Wire) Take() []Parcel {
	l := w.link
	l.mu.Lock()
	out := l.out
	l.out, l.outBytes = nil, 0
	l.mu.Unlock()
	parcels := make([]Parcel, 0, len(out))
	for i := range out {
		parcels = append(parcels, parcelOf(out[i:i+1]))
	}
	return parcels
}

func parcelOf(one []outgoing) Parcel {
	b, _ := encodeOutgoing(nil, one)
	p := Parcel{kind: frameType(b[4]), bytes: b[frameHeader:]}
	if m := one[0].message; m != nil {
		p.Raft = true
		p.Text = fmt.Sprintf("%s term %d log %d/%d entries %d commit %d reject %v", m.GetType(), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), len(m.GetEntries()), m.GetCommit(), m.GetReject())
	} else {
		p.Text = fmt.Sprintf("frame %d, %d bytes", p.kind, len(p.bytes))
	}
	return p
}

// Deliver hands a parcel that the other end has sent to this end's member. An error means that the link is of no more use.
func (w *Wire) Deliver(p Parcel) error {
	if w.Closed() {
		return errSevered
	}
	return w.link.dispatch(p.kind, append([]byte(nil), p.bytes...))
}
