package loadgen

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns what a process has used since it started, user and system together, to the nanosecond: /proc has it in hundredths
// of a second, which is a twentieth of what a cheap load uses in a second. The kernel makes a process's clock of its id.
func cpuTime(pid int) (time.Duration, bool) {
	const ofProcess = 2 // CPUCLOCK_SCHED, not for one thread
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofProcess), &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}
