package authn

import (
	"encoding/binary"
	"net"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// turns is a gRPC connection whose reader lets others run after some frames, and sooner while many wait for a processor. A frame
// of a few bytes starts a goroutine, or work for one; a reader that always has more to read would start thousands before any of
// them had its turn, which costs memory, and every other connection its time: a client that opens and resets streams as fast as
// it can would be served, and nobody else. It belongs to the one goroutine that reads.
type turns struct {
	net.Conn
	queue *runQueue
	yield func() // lets others run

	left   uint32 // bytes of the preface or of a frame's payload that have not come yet
	head   [frameHeader]byte
	have   int // bytes of head
	frames int // since the last turn of others
	looked int // frames at the last look at who waits
	small  bool
}

const (
	frameHeader   = 9
	framesPerTurn = 256     // a millisecond of pings: the scheduler itself would let a reader go on for ten
	framesPerLook = 32      // after which many goroutines that wait end the turn
	smallFrame    = 256     // bytes a frame below which reads are kept small: there are many frames in them
	smallRead     = 2 << 10 // bytes
)

func takeTurns(c net.Conn) *turns {
	return &turns{Conn: c, queue: queue, yield: runtime.Gosched, left: uint32(len(http2Preface))}
}

// Read reads; before that it lets others run if it has had its turn.
func (t *turns) Read(b []byte) (int, error) {
	if t.frames-t.looked >= framesPerLook {
		if t.looked = t.frames; t.frames >= framesPerTurn || t.queue.long() {
			t.frames, t.looked = 0, 0
			t.yield()
		}
	}
	if t.small {
		b = b[:min(len(b), smallRead)]
	}
	n, err := t.Conn.Read(b)
	frames := t.count(b[:n])
	t.frames += frames
	t.small = frames > 1 && frames*smallFrame > n
	return n, err
}

// runQueue knows whether more goroutines than usual wait for a processor. To yield as often when there are few costs a tenth of
// the time of small requests: answers are no longer written together.
type runQueue struct {
	start  time.Time
	looked atomic.Int64 // nanoseconds after start
	many   atomic.Bool
}

const (
	queueLook     = time.Millisecond // between looks
	queuePerCPU   = 500              // goroutines: some ten milliseconds of work, some ten megabytes of stacks
	queueRunnable = "/sched/goroutines/runnable:goroutines"
)

var queue = newRunQueue() // the process has one

func newRunQueue() *runQueue { return &runQueue{start: time.Now()} }

func (q *runQueue) long() bool {
	now, looked := int64(time.Since(q.start)), q.looked.Load()
	if now-looked >= int64(queueLook) && q.looked.CompareAndSwap(looked, now) {
		sample := []metrics.Sample{{Name: queueRunnable}}
		metrics.Read(sample)
		q.many.Store(sample[0].Value.Uint64() > uint64(queuePerCPU*runtime.GOMAXPROCS(0)))
	}
	return q.many.Load()
}

// count returns how many frames end their header in b, the next bytes of the connection.
func (t *turns) count(b []byte) (frames int) {
	for len(b) > 0 {
		if skip := min(uint64(t.left), uint64(len(b))); skip > 0 {
			t.left -= uint32(skip)
			b = b[skip:]
			continue
		}
		n := copy(t.head[t.have:], b)
		t.have += n
		b = b[n:]
		if t.have == frameHeader {
			t.have, t.left = 0, binary.BigEndian.Uint32(t.head[:4])>>8
			frames++
		}
	}
	return frames
}
