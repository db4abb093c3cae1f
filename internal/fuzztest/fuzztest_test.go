package fuzztest

import (
	"errors"
	"fmt"
	"testing"

	"holdfast.dev/holdfast/internal/fault"
)

// recorder is a test that may fail without failing this one.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestBounded(t *testing.T) {
	var sink []byte
	for size, want := range map[int]bool{roomAnyway / 2: false, 2 * roomAnyway: true} {
		r := &recorder{TB: t}
		Bounded(r, 16, func() { sink = make([]byte, size) })
		if r.failed != want || len(sink) != size {
			t.Errorf("%d bytes for an input of 16: failed is %v", size, r.failed)
		}
	}
}

func TestFaults(t *testing.T) {
	plain, hinted := fault.New(fault.Invalid, "x"), fault.New(fault.Invalid, "x").WithHint("do y")
	for _, c := range []struct {
		err           error
		typed, hinted bool
	}{
		{nil, false, false}, {errors.New("x"), false, false}, {fault.New(fault.Internal, "x").WithHint("y"), false, false},
		{plain, true, false}, {fmt.Errorf("a: %w", hinted), true, true},
	} {
		r := &recorder{TB: t}
		Typed(r, c.err)
		if r.failed == c.typed {
			t.Errorf("%v: typed", c.err)
		}
		r = &recorder{TB: t}
		Hinted(r, c.err)
		if r.failed == c.hinted {
			t.Errorf("%v: hinted", c.err)
		}
	}
}
