package authn

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// TestTurnsCountFrames: frames are counted as golang.org/x/net/http2 reads them, wherever reads end.
func TestTurnsCountFrames(t *testing.T) {
	t.Parallel()
	var stream bytes.Buffer
	stream.WriteString(http2Preface)
	f := http2.NewFramer(&stream, nil)
	want := 0
	write := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
		want++
	}
	write(f.WriteSettings())
	for i := range uint32(300) {
		write(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: make([]byte, i%40), EndHeaders: true}))
		write(f.WriteData(2*i+1, false, make([]byte, i*i%9000)))
		write(f.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	for _, size := range []int{1, 2, 7, 8, 9, 10, 64, 4096, 1 << 20} {
		c, got := takeTurns(nil), 0
		for rest := stream.Bytes(); len(rest) > 0; {
			n := min(size, len(rest))
			got += c.count(rest[:n])
			rest = rest[n:]
		}
		if got != want || c.left != 0 || c.have != 0 {
			t.Errorf("reads of %d bytes: %d frames, %d and %d bytes left; want %d frames", size, got, c.left, c.have, want)
		}
	}
}

// FuzzTurns: whatever a connection sends, however it comes, the same frames are counted, and not more than there is room for.
func FuzzTurns(f *testing.F) {
	f.Add([]byte(http2Preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), 1)
	f.Add([]byte(http2Preface+"\x00\x00\x02\x00\x00\x00\x00\x00\x01ab\x00\x00\x00\x08"), 7)
	f.Add([]byte(http2Preface+"\xff\xff\xff\x00\x00\x00\x00\x00\x01ab"), 30)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		size = 1 + int(uint(size)%uint(len(data)+1))
		whole, parts, inParts := takeTurns(nil), takeTurns(nil), 0
		atOnce := whole.count(data)
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			inParts += parts.count(rest[:n])
			rest = rest[n:]
		}
		if atOnce != inParts || whole.left != parts.left || whole.have != parts.have {
			t.Errorf("%d frames at once, %d in parts of %d", atOnce, inParts, size)
		}
		if room := max(len(data)-len(http2Preface), 0) / frameHeader; atOnce > room {
			t.Errorf("%d frames in %d bytes", atOnce, len(data))
		}
	})
}

// TestTurnsReadEverything: what is read is what was sent; a crowd of small frames comes in small reads, a large frame in large ones.
func TestTurnsReadEverything(t *testing.T) {
	t.Parallel()
	var sent bytes.Buffer
	sent.WriteString(http2Preface)
	f := http2.NewFramer(&sent, nil)
	for i := range uint32(10_000) {
		if err := f.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	crowd := sent.Len()
	if err := f.WriteData(1, false, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c := takeTurns(whole{from: bytes.NewReader(sent.Bytes())})
	var got []byte
	b := make([]byte, 32<<10)
	small, large := 0, 0
	for {
		n, err := c.Read(b)
		got = append(got, b[:n]...)
		switch {
		case err == io.EOF:
			if !bytes.Equal(got, sent.Bytes()) {
				t.Error("what was read is not what was sent")
			}
			if small == 0 || large == 0 {
				t.Errorf("%d small reads in the crowd, %d large ones after it", small, large)
			}
			return
		case err != nil:
			t.Fatal(err)
		case len(got) <= crowd && n <= smallRead:
			small++
		case len(got) > crowd && n == len(b):
			large++
		}
	}
}

// TestTurnsEnd: many small frames end a turn, sooner while many goroutines wait; one large frame does not, however long it is.
func TestTurnsEnd(t *testing.T) {
	t.Parallel()
	const frames = 10_000
	var crowd, large bytes.Buffer
	crowd.WriteString(http2Preface)
	large.WriteString(http2Preface)
	f := http2.NewFramer(&crowd, nil)
	for i := range uint32(frames) {
		if err := f.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	if err := http2.NewFramer(&large, nil).WriteData(1, false, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	perRead := smallRead/(frameHeader+4) + 1 // a turn ends with a read
	for _, test := range []struct {
		name  string
		sent  []byte
		many  bool
		least int
		most  int
	}{
		{"frames, nobody waits", crowd.Bytes(), false, frames / (framesPerTurn + 2*perRead), frames / framesPerTurn},
		{"frames, many wait", crowd.Bytes(), true, frames / (framesPerLook + 2*perRead), frames / framesPerLook},
		{"one frame, many wait", large.Bytes(), true, 0, 0},
	} {
		c, turns := takeTurns(whole{from: bytes.NewReader(test.sent)}), 0
		c.queue, c.yield = newRunQueue(), func() { turns++ }
		c.queue.looked.Store(1 << 62) // it has looked
		c.queue.many.Store(test.many)
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
			t.Fatal(err)
		}
		if turns < test.least || turns > test.most {
			t.Errorf("%s: %d turns, want %d to %d", test.name, turns, test.least, test.most)
		}
	}
}

// TestRunQueue: it is long while more goroutines wait for a processor than a few, and short again when they are gone.
func TestRunQueue(t *testing.T) { // not in parallel: it is about the whole process
	procs := runtime.GOMAXPROCS(0)
	q := newRunQueue()
	look := func() bool {
		q.looked.Store(-int64(queueLook))
		return q.long()
	}
	if look() {
		t.Error("long before anything was done")
	}
	var end atomic.Bool
	var work sync.WaitGroup
	for range 4 * queuePerCPU * procs {
		work.Go(func() {
			for !end.Load() {
				runtime.Gosched()
			}
		})
	}
	if !look() {
		t.Error("not long while thousands wait")
	}
	end.Store(true)
	work.Wait()
	if look() {
		t.Error("long after all have gone")
	}
}

// whole is a connection from which everything can be read at once.
type whole struct {
	net.Conn
	from *bytes.Reader
}

func (w whole) Read(b []byte) (int, error) { return w.from.Read(b) }
