//go:build laboratory

package lab

import (
	"time"
	"unsafe"
)

// Step returns t as a clock shows it that was stepped by Skew: its wall time is off, its monotonic reading is not. Package
// time has no way to say that, so this writes to the fields of time.Time, whose layout has been the same since Go 1.9; where
// it finds another one, the wall time comes without a monotonic reading.
func Step(t time.Time) time.Time { return step(t, Skew()) }

func step(t time.Time, skew time.Duration) time.Time {
	if skew == 0 {
		return t
	}
	want := t.Round(0).Add(skew)
	const monotonic = 1 << 63 // of wall: 33 bits of seconds and 30 of nanoseconds follow
	raw := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	if raw.wall&monotonic == 0 {
		return want
	}
	since := want.Unix() - time.Date(1885, time.January, 1, 0, 0, 0, 0, time.UTC).Unix()
	if since < 0 || since >= 1<<33 {
		return want
	}
	raw.wall = monotonic | uint64(since)<<30 | uint64(want.Nanosecond())
	if !t.Round(0).Equal(want) {
		return want
	}
	return t
}
