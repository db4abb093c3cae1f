package main

import "syscall"

// keepOutOfDumps sees to it that what is in this process's memory, keys among it, gets into no core file: the kernel writes none,
// hands none to a collector, and lets nobody but root look in. A core file that is not wanted is no reason not to start, so
// errors count for nothing. Programs that this one starts may ask for core files again.
func keepOutOfDumps() {
	limit := syscall.Rlimit{}
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err == nil {
		limit.Cur = 0
		_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &limit)
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0)
}
