package replica

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// The bounds of a link.
const (
	linkQueueBytes = 64 << 20 // waiting to be written; beyond it messages are dropped
	linkWriteBytes = 256 << 10
	linkKeepBuffer = 1 << 20
	maxBusyCalls   = 256 // calls of one peer that are served at once
	maxMethod      = 128
	callTimeout    = 30 * time.Second // for calls that name none
	callSlack      = time.Second      // the callee gives up later than the caller, who knows best why
	pingEvery      = 2 * time.Second
	linkDeadline   = 10 * time.Second // a peer that says nothing, or takes nothing, for so long is gone
)

// link is one connection on which both sides know who the other is. Messages, proposals, calls and their answers go
// both ways. It has a goroutine that reads and one that writes.
type link struct {
	t      *transport
	conn   net.Conn
	member uint64
	who    policy.Principal
	since  time.Time
	notify chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	served sync.WaitGroup
	ticket uint64 // of the last proposal that came in; the reader's

	mu       sync.Mutex
	out      []outgoing
	outBytes int
	closed   bool
	calls    map[uint64]chan callReply
	forwards map[uint64]bool // tickets of proposals sent and not answered
	nextCall uint64
	busy     int
}

// outgoing is one thing to be written: a message, a proposal, or a whole frame.
type outgoing struct {
	message *pb.Message
	forward *Forward
	frame   []byte
}

type callReply struct {
	payload []byte
	err     error
}

func (t *transport) newLink(ctx context.Context, conn net.Conn, member uint64, who policy.Principal) *link {
	l := &link{t: t, conn: conn, member: member, who: who, since: t.r.o.Clock.Now(), notify: make(chan struct{}, 1), calls: map[uint64]chan callReply{}, forwards: map[uint64]bool{}}
	l.ctx, l.cancel = context.WithCancel(ctx)
	return l
}

// run serves the link until it breaks, and returns why.
func (l *link) run() error {
	stop := context.AfterFunc(l.ctx, func() { _ = l.conn.Close() }) // whoever reads or writes sees the error
	defer stop()
	l.served.Go(func() {
		l.write()
		l.close()
	})
	err := l.read()
	l.close()
	l.served.Wait()
	return err
}

func (l *link) close() {
	l.cancel()
	_ = l.conn.Close() // the link is over either way
	l.mu.Lock()
	l.closed = true
	calls, forwards := l.calls, l.forwards
	l.calls, l.forwards = nil, nil
	l.out, l.outBytes = nil, 0
	l.mu.Unlock()
	if len(forwards) > 0 {
		l.t.r.box.put(event{do: func() {
			for _, ticket := range slices.Sorted(maps.Keys(forwards)) {
				l.t.r.member.Unsure(l.member, ticket)
			}
		}})
	}
	for _, c := range calls {
		c <- callReply{err: ErrUnreachable}
	}
}

// send queues o. It reports false if the link is closed or its queue is full.
func (l *link) send(o outgoing) bool {
	size := len(o.frame)
	switch {
	case o.message != nil:
		size = messageSize(o.message)
	case o.forward != nil:
		size = len(o.forward.Data)
	}
	l.mu.Lock()
	if l.closed || l.outBytes > 0 && l.outBytes+size > linkQueueBytes {
		l.mu.Unlock()
		return false
	}
	if o.forward != nil {
		l.forwards[o.forward.Ticket] = true
	}
	l.out = append(l.out, o)
	l.outBytes += size
	l.mu.Unlock()
	select {
	case l.notify <- struct{}{}:
	default:
	}
	return true
}

// must queues what the other side waits for: without it the link is of no use.
func (l *link) must(frame []byte) {
	if !l.send(outgoing{frame: frame}) {
		l.cancel()
	}
}

// pending reports whether there is something to be written, or will be.
func (l *link) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outBytes > 0 || l.busy > 0
}

func (l *link) write() {
	var out []outgoing
	var buf []byte
	for {
		select {
		case <-l.notify:
		case <-l.ctx.Done():
			return
		case <-l.t.r.o.Clock.After(pingEvery):
			l.must(pingFrame())
			continue
		}
		l.mu.Lock()
		clear(out)
		out, l.out = l.out, out[:0]
		l.mu.Unlock()
		for rest := out; len(rest) > 0; {
			buf, rest = encodeOutgoing(buf[:0], rest)
			if err := l.conn.SetWriteDeadline(l.t.r.o.Clock.Now().Add(linkDeadline)); err != nil {
				return
			}
			if _, err := l.conn.Write(buf); err != nil {
				return
			}
			if cap(buf) > linkKeepBuffer {
				buf = nil
			}
		}
		l.mu.Lock()
		l.outBytes = 0
		for _, o := range l.out { // what came while this was written
			l.outBytes += outgoingSize(o)
		}
		l.mu.Unlock()
	}
}

func outgoingSize(o outgoing) int {
	switch {
	case o.message != nil:
		return messageSize(o.message)
	case o.forward != nil:
		return len(o.forward.Data)
	}
	return len(o.frame)
}

// encodeOutgoing appends frames until b is worth writing, and returns what is left. Messages that follow each other share
// a frame.
func encodeOutgoing(b []byte, out []outgoing) ([]byte, []outgoing) {
	for len(out) > 0 && len(b) < linkWriteBytes {
		switch o := out[0]; {
		case o.frame != nil:
			b = append(b, o.frame...)
			out = out[1:]
		case o.forward != nil:
			var at int
			b, at = beginFrame(b, frameForward)
			b = binary.AppendUvarint(b, o.forward.Ticket)
			b = endFrame(append(b, o.forward.Data...), at)
			out = out[1:]
		default:
			n, size := 0, 0
			for n < len(out) && out[n].message != nil && (n == 0 || size < linkWriteBytes) {
				size += messageSize(out[n].message)
				n++
			}
			b = appendMessages(b, out[:n], size)
			out = out[n:]
		}
	}
	return b, out
}

func appendMessages(b []byte, out []outgoing, size int) []byte {
	if need := len(b) + size + 16*len(out) + 16; cap(b) < need {
		b = append(make([]byte, 0, need), b...)
	}
	b, at := beginFrame(b, frameMessages)
	b = binary.AppendUvarint(b, uint64(len(out)))
	for _, o := range out {
		// Four bytes for the length leave room to write the message in place.
		mark := len(b)
		b = append(b, 0, 0, 0, 0)
		b = appendMessage(b, o.message)
		binary.BigEndian.PutUint32(b[mark:], uint32(len(b)-mark-4))
	}
	return endFrame(b, at)
}

// decodeMessages calls f with each message of a frame.
func decodeMessages(b []byte, f func(m *pb.Message, size int) error) error {
	r := reader{b: b}
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		if len(r.b) < 4 {
			return fmt.Errorf("messages: %w", errMalformed)
		}
		size := binary.BigEndian.Uint32(r.b)
		if uint64(size) > uint64(len(r.b)-4) {
			return fmt.Errorf("messages: %w", errMalformed)
		}
		m, err := decodeMessage(r.b[4 : 4+size : 4+size])
		if err != nil {
			return err
		}
		r.b = r.b[4+size:]
		if err := f(m, int(size)); err != nil {
			return err
		}
	}
	return r.end("messages")
}

func (l *link) read() error {
	in := bufio.NewReaderSize(l.conn, 64<<10)
	limit := l.t.r.o.EntryBytes + 2*maxMessage
	for {
		if err := l.conn.SetReadDeadline(l.t.r.o.Clock.Now().Add(linkDeadline)); err != nil {
			return err
		}
		t, payload, err := readFrame(in, limit)
		if err != nil {
			return err
		}
		if err := l.dispatch(t, payload); err != nil {
			return err
		}
	}
}

func (l *link) dispatch(t frameType, payload []byte) error {
	r := reader{b: payload}
	switch t {
	case framePing:
		return nil
	case frameMessages:
		return decodeMessages(payload, l.deliver)
	case frameForward:
		f := &Forward{To: l.member, Ticket: r.uvarint(), Data: r.b}
		if r.bad || f.Ticket <= l.ticket {
			// The same proposal twice could be taken once and refused once, and the refusal would be a lie.
			return fmt.Errorf("forward: %w", errMalformed)
		}
		l.ticket = f.Ticket
		l.t.r.box.put(event{forward: f, link: l, size: len(f.Data) + entryOverhead})
		return nil
	case frameAnswer:
		a := &Answer{To: l.member, Ticket: r.uvarint(), Index: r.uvarint(), Term: r.uvarint()}
		if err := r.end("answer"); err != nil {
			return err
		}
		l.mu.Lock()
		asked := l.forwards[a.Ticket]
		delete(l.forwards, a.Ticket)
		l.mu.Unlock()
		if !asked {
			return fmt.Errorf("answer to a proposal that was not forwarded: %w", errMalformed)
		}
		l.t.r.box.put(event{answer: a})
		return nil
	case frameCall:
		return l.serveCall(&r)
	case frameReply:
		return l.takeReply(&r)
	}
	return fmt.Errorf("frame of type %d: %w", t, errMalformed)
}

// deliver hands a message to the loop. One that claims another sender than the link's is dropped.
func (l *link) deliver(m *pb.Message, size int) error {
	if m.GetFrom() != l.member || m.GetTo() != l.t.self {
		l.t.logger.Warn("dropped a message under a false name", "peer", hex(l.member), "from", hex(m.GetFrom()), "to", hex(m.GetTo()), "type", m.GetType().String())
		return nil
	}
	l.t.r.box.put(event{message: m, size: size + entryOverhead})
	return nil
}

func answerFrame(a Answer) []byte {
	b, at := beginFrame(nil, frameAnswer)
	for _, v := range [...]uint64{a.Ticket, a.Index, a.Term} {
		b = binary.AppendUvarint(b, v)
	}
	return endFrame(b, at)
}

// call sends a request and waits for its answer.
func (l *link) call(ctx context.Context, method string, payload []byte) ([]byte, error) {
	done := make(chan callReply, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrUnreachable
	}
	l.nextCall++
	id := l.nextCall
	l.calls[id] = done
	l.mu.Unlock()
	timeout := callTimeout
	if d, ok := ctx.Deadline(); ok {
		timeout = d.Sub(l.t.r.o.Clock.Now()) + callSlack
	}
	b, at := beginFrame(make([]byte, 0, len(payload)+len(method)+32), frameCall)
	b = binary.AppendUvarint(b, id)
	b = binary.AppendUvarint(b, uint64(max(timeout.Milliseconds(), 1)))
	b = appendBytes(b, []byte(method))
	b = endFrame(append(b, payload...), at)
	forget := func() {
		l.mu.Lock()
		delete(l.calls, id)
		l.mu.Unlock()
	}
	if !l.send(outgoing{frame: b}) {
		forget()
		return nil, ErrUnreachable
	}
	select {
	case reply := <-done:
		return reply.payload, reply.err
	case <-ctx.Done():
		forget()
		return nil, ctx.Err()
	}
}

func (l *link) takeReply(r *reader) error {
	id, failed := r.uvarint(), r.byte()
	var reply callReply
	switch failed {
	case 0:
		reply.payload = r.b
	case 1:
		reply.err = r.fault()
	default:
		r.bad = true
	}
	if r.bad {
		return fmt.Errorf("reply: %w", errMalformed)
	}
	l.mu.Lock()
	done := l.calls[id]
	delete(l.calls, id)
	l.mu.Unlock()
	if done != nil { // nil: the caller has left
		done <- reply
	}
	return nil
}

// errCallTimeout is what a peer gets whose call was given up by its handler.
var errCallTimeout = fault.New(fault.Unavailable, "request timed out")

// errBusyCalls is what a peer gets that asks too much at once.
var errBusyCalls = fault.New(fault.Exhausted, "too many requests")

func (l *link) serveCall(r *reader) error {
	id, ms := r.uvarint(), r.uvarint()
	method := r.bytes(maxMethod)
	payload := r.b
	if r.bad {
		return fmt.Errorf("call: %w", errMalformed)
	}
	h := l.t.handlers[string(method)]
	l.mu.Lock()
	busy := l.busy >= maxBusyCalls
	if !busy && h != nil {
		l.busy++
	}
	l.mu.Unlock()
	switch {
	case h == nil:
		l.must(replyFrame(id, nil, fault.New(fault.Unsupported, "the member does not know this request")))
		return nil
	case busy:
		l.must(replyFrame(id, nil, errBusyCalls))
		return nil
	}
	timeout := min(time.Duration(min(ms, 1<<31))*time.Millisecond, 10*time.Minute)
	l.t.workers.Go(func() { // not one of served: a slow handler must not hold up the next link
		ctx, cancel := context.WithTimeout(context.WithValue(l.ctx, callerKey{}, l.member), timeout)
		defer cancel()
		answer, err := h(ctx, l.who, payload)
		l.must(replyFrame(id, answer, err))
		l.mu.Lock()
		l.busy--
		l.mu.Unlock()
	})
	return nil
}

func replyFrame(id uint64, payload []byte, err error) []byte {
	b, at := beginFrame(make([]byte, 0, len(payload)+32), frameReply)
	b = binary.AppendUvarint(b, id)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = errCallTimeout
	}
	if err != nil {
		b = appendFault(append(b, 1), err)
	} else {
		b = append(append(b, 0), payload...)
	}
	return endFrame(b, at)
}

type callerKey struct{}

// Caller returns the id of the member whose call a Handler's ctx belongs to.
func Caller(ctx context.Context) uint64 {
	id, _ := ctx.Value(callerKey{}).(uint64)
	return id
}
