package authn

import (
	"encoding/binary"
	"net"
	"runtime"
)

// turns is a gRPC connection whose reader lets others run after some frames. A frame of a few bytes starts a goroutine, or work
// for a second one; a reader that always has more to read would start thousands before any of them had its turn, which costs
// memory, and every other connection its time: a client that opens and resets streams as fast as it can would be served, and
// nobody else. It belongs to the one goroutine that reads.
type turns struct {
	net.Conn
	left    uint32 // bytes of the preface or of a frame's payload that have not come yet
	head    [frameHeader]byte
	have    int // bytes of head
	frames  int // since others had their turn
	crowded bool
}

const (
	frameHeader   = 9
	framesPerTurn = 32
	crowdedFrame  = 256     // bytes a frame below which reads are kept small: there are more frames in them than a turn has
	crowdedRead   = 2 << 10 // bytes
)

func takeTurns(c net.Conn) *turns { return &turns{Conn: c, left: uint32(len(http2Preface))} }

// Read reads, and before that lets others run if what was read last gave work to many of them.
func (t *turns) Read(b []byte) (int, error) {
	if t.frames >= framesPerTurn {
		t.frames = 0
		runtime.Gosched()
	}
	if t.crowded {
		b = b[:min(len(b), crowdedRead)]
	}
	n, err := t.Conn.Read(b)
	frames := t.count(b[:n])
	t.frames += frames
	t.crowded = frames > 1 && frames*crowdedFrame > n
	return n, err
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
