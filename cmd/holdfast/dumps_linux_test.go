package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestKeepOutOfDumps looks at a process of its own: the tests' stays as it is.
func TestKeepOutOfDumps(t *testing.T) {
	if os.Getenv("HOLDFAST_TEST_DUMPS") != "" {
		keepOutOfDumps()
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 {
			t.Errorf("core files of %d bytes, %v", limit.Cur, err)
		}
		if d, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0); d != 0 {
			t.Errorf("dumpable is %d", d)
		}
		if _, err := os.Executable(); err != nil {
			t.Error(err)
		}
		if _, err := os.ReadDir("/proc/self/fd"); err != nil {
			t.Errorf("its own files: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKeepOutOfDumps$", "-test.v")
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_DUMPS=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
