package clustertest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"time"
)

// trace is everything that happened, as a hash, and as text if somebody wants to read it.
type trace struct {
	sum   hash.Hash
	buf   []byte
	out   io.Writer // nil: nobody reads
	lines int
}

func newTrace(out io.Writer) *trace { return &trace{sum: sha256.New(), out: out} }

// line adds a line. Nothing in it may depend on the order of goroutines or on ciphertext.
func (t *trace) line(at time.Duration, format string, args ...any) {
	t.lines++
	t.buf = fmt.Appendf(t.buf[:0], "%d ", int64(at))
	t.buf = fmt.Appendf(t.buf, format, args...)
	t.buf = append(t.buf, '\n')
	t.sum.Write(t.buf)
	if t.out != nil {
		fmt.Fprintf(t.out, "%13.6f %s", at.Seconds(), t.buf[indexByte(t.buf, ' ')+1:])
	}
}

func indexByte(b []byte, c byte) int {
	for i := range b {
		if b[i] == c {
			return i
		}
	}
	return -1
}

func (t *trace) hash() string { return hex.EncodeToString(t.sum.Sum(nil)[:12]) }
