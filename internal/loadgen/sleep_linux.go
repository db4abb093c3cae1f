package loadgen

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper waits for moments. Go's own timers are up to a millisecond late on an idle machine, because the poller that they
// hang on counts in milliseconds; that would be most of the latency of a fast server. A thread of its own that the kernel wakes is
// late by some ten microseconds.
type sleeper struct{}

func newSleeper() *sleeper {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // a nanosecond in place of 50 us; without it, 50 us late
	return &sleeper{}
}

func (*sleeper) close() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0: the default
	runtime.UnlockOSThread()
}

// sleep returns after d; it looks at ctx every tenth of a second.
func (*sleeper) sleep(ctx context.Context, d time.Duration) {
	const slice = 100 * time.Millisecond
	for end := time.Now().Add(d); ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		ts := unix.NsecToTimespec(int64(min(left, slice)))
		_ = unix.Nanosleep(&ts, nil) // a signal ends it early: the loop goes on
	}
}
