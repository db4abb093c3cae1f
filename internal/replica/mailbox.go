package replica

import (
	"slices"
	"sync"

	pb "go.etcd.io/raft/v3/raftpb"
)

// event is one thing that the loop must handle. Exactly one field besides link and size is set.
type event struct {
	message   *pb.Message // of another member
	forward   *Forward    // of another member: To is the sender
	link      *link       // that forward came on; its answer goes there
	answer    *Answer     // of the leader: To is the sender
	appended  *pb.Message
	installed *installed
	applied   *applied
	do        func()
	size      int // bytes that count against the mailbox's limit
}

// mailbox is where everybody leaves events for the loop. Events of other members wait while it is full; the member's
// own never do, their number is bounded by what the loop has handed out.
type mailbox struct {
	notify chan struct{} // one token while there is something to take

	mu     sync.Mutex
	room   sync.Cond
	events []event
	bytes  int
	closed bool
}

// mailboxBytes bounds the messages of other members that wait for the loop.
const mailboxBytes = 64 << 20

func newMailbox() *mailbox {
	b := &mailbox{notify: make(chan struct{}, 1)}
	b.room.L = &b.mu
	return b
}

// put adds an event. It reports false after close.
func (b *mailbox) put(e event) bool {
	b.mu.Lock()
	for e.size > 0 && b.bytes > mailboxBytes && !b.closed {
		b.room.Wait()
	}
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.events = append(b.events, e)
	b.bytes += e.size
	b.mu.Unlock()
	b.wake()
	return true
}

func (b *mailbox) wake() {
	select {
	case b.notify <- struct{}{}:
	default:
	}
}

// take returns every event and leaves buf in their place, to be filled.
func (b *mailbox) take(buf []event) []event {
	clear(buf)
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events, b.bytes = buf[:0], 0
	b.room.Broadcast()
	return events
}

func (b *mailbox) queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

func (b *mailbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.room.Broadcast()
}

// queue hands work from the loop to one worker, without a bound and without blocking: what may be in it is bounded by
// raft.
type queue[T any] struct {
	mu     sync.Mutex
	ready  sync.Cond
	items  []T
	closed bool
}

func newQueue[T any]() *queue[T] {
	q := new(queue[T])
	q.ready.L = &q.mu
	return q
}

func (q *queue[T]) put(items ...T) {
	q.mu.Lock()
	q.items = append(q.items, items...)
	q.mu.Unlock()
	q.ready.Signal()
}

// take waits for work and returns all of it, leaving buf in its place. ok is false when the queue is closed; what was
// left in it is not done.
func (q *queue[T]) take(buf []T) (items []T, ok bool) {
	clear(buf)
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return nil, false
	}
	items, q.items = q.items, buf[:0]
	return items, true
}

// poll returns what waits, at most n, without waiting for it.
func (q *queue[T]) poll(n int) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := slices.Clone(q.items[:min(n, len(q.items))])
	q.items = slices.Delete(q.items, 0, len(items))
	return items
}

func (q *queue[T]) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func (q *queue[T]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}
