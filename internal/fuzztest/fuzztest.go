// Package fuzztest holds what fuzz targets ask of every decoder besides not to panic.
//
// Job: bounds on memory and time for one input, and what an error must look like. Non-job: inputs, which are the targets' own.
//
// Invariants: the bounds are far above what a decoder needs and far below what hurts a member: they find sizes that are believed
// before bytes have come, and work that grows faster than its input, not slowness.
package fuzztest

import (
	"errors"
	"runtime/metrics"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/fault"
)

const (
	roomAnyway  = 4 << 20         // bytes that one call may allocate whatever its input: buffers, tables that are made once, other goroutines
	roomPerByte = 1 << 10         // and beside that for each byte of it
	timeAnyway  = 5 * time.Second // on a machine that has other work
)

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// Bounded calls decode, which was given size bytes, and fails the test if that took memory or time out of proportion.
func Bounded(t testing.TB, size int, decode func()) {
	t.Helper()
	start, before := time.Now(), allocated()
	decode()
	if got, room := allocated()-before, uint64(roomAnyway+roomPerByte*size); got > room {
		t.Errorf("%d bytes of input allocated %d bytes; %d would be much", size, got, room)
	}
	if took := time.Since(start); took > timeAnyway {
		t.Errorf("%d bytes of input took %s", size, took)
	}
}

// Typed fails the test unless err has a fault in its chain that tells a caller what is wrong: not internal, with a reason.
func Typed(t testing.TB, err error) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind == fault.Internal || f.Reason == "" {
		t.Errorf("the error is no fault that a user could be told: %#v", err)
	}
}

// Hinted fails the test unless err is typed and says what to do.
func Hinted(t testing.TB, err error) {
	t.Helper()
	Typed(t, err)
	if f := fault.From(err); f != nil && f.Hint == "" {
		t.Errorf("the error has no hint: %v", err)
	}
}
