package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// smallDisk mounts a memory file system of the given size, in MiB, for member 0, and returns a function that mounts it
// again with other options.
func smallDisk(t *testing.T, c *cluster, mib int) func(options string) {
	t.Helper()
	dir := c.dataDir(0)
	check(t, os.MkdirAll(dir, 0o700))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "none", dir).CombinedOutput(); err != nil {
		t.Skipf("needs the right to mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			if m != nil {
				m.kill()
			}
		}
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return func(options string) {
		t.Helper()
		if out, err := exec.Command("mount", "-o", "remount,"+options, dir).CombinedOutput(); err != nil {
			t.Fatalf("mount -o remount,%s: %v\n%s", options, err, out)
		}
	}
}

// endsOrRefuses waits until the member has ended or tells its writers that there is no space. It reports whether it lives.
func endsOrRefuses(t *testing.T, c *cluster, l *load) bool {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-c.members[0].done:
			saysNoSpace(t, c.members[0])
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if p := l.last.Load(); p != nil && strings.Contains((*p).Error(), "database space exceeded") {
			return true
		}
	}
	t.Fatalf("neither ended nor refused:\n%s", tail(c.members[0].log.String()))
	return false
}

// saysNoSpace wants an ended member to have ended for want of space, and to say so.
func saysNoSpace(t *testing.T, p *process) {
	t.Helper()
	if log := p.log.String(); p.err == nil || !strings.Contains(log, "no space left on device") || strings.Contains(log, "goroutine ") {
		t.Errorf("it ended (%v), and not with the reason alone:\n%s", p.err, tail(log))
	}
}

// TestDiskFull lets a disk run full, slowly by what is written and at once by somebody else's file. The member refuses writes
// with NOSPACE or ends with the reason; with room again it serves everything that it acknowledged, and takes writes.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes on a busy machine; `make e2e` runs it")
	}
	for _, how := range []string{"slowly", "at once", "slowly, without a reserve", "at once, without a reserve"} {
		t.Run(how, func(t *testing.T) {
			var extra []string
			if strings.Contains(how, "without") {
				extra = []string{"--disk-reserve-bytes", "-1"}
			}
			c := layOutCluster(t, 1, extra...)
			remount := smallDisk(t, c, 200)
			c.restart(0)
			c.ready(0)
			l := startLoad(c, "load", 4, 64<<10)
			l.more(100)
			ballast := filepath.Join(c.dataDir(0), "lost+found", "ballast")
			if strings.HasPrefix(how, "at once") {
				check(t, os.Mkdir(filepath.Dir(ballast), 0o700))
				f, err := os.Create(ballast)
				check(t, err)
				for block := make([]byte, 1<<20); err == nil; {
					_, err = f.Write(block)
				}
				check(t, f.Close())
			}
			lives := endsOrRefuses(t, c, l)
			if lives && extra != nil {
				t.Error("it refuses writes although nothing watches the disk")
			}
			l.cancel()
			l.done.Wait()
			if lives {
				l.verify(0) // reads go on
				c.members[0].kill()
			}
			for range 2 { // without room a start serves or refuses, and damages nothing
				c.restart(0)
				c.members[0].log.wait(readyLine, 15*time.Second)
				select {
				case <-c.members[0].done: // before it was ready or soon after
					saysNoSpace(t, c.members[0])
				case <-time.After(2 * time.Second):
					l.verify(0)
					c.members[0].kill()
				}
			}
			check(t, os.RemoveAll(filepath.Dir(ballast)))
			remount("size=1g")
			c.restart(0)
			c.ready(0)
			l.verify(0)
			deadline := time.Now().Add(20 * time.Second)
			for cl := c.dial(); ; {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err := cl.Put(ctx, "after", "room again")
				cancel()
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("writes are still refused: %v", err)
				}
				c.mustCtl("alarm", "disarm")
				wait(context.Background(), 100*time.Millisecond)
			}
			check(t, c.members[0].stop())
			out, err := runHoldfast(t, "debug", "scrub", "--made-by", "etcd", "--data-dir", c.dataDir(0))
			if err != nil {
				t.Errorf("the scrub finds damage: %v\n%s", err, out)
			}
			t.Logf("alive when full: %v; %d writes acknowledged", lives, l.acked.Load())
		})
	}
}

// TestReadOnlyDisk starts on a file system that takes no writes, and has one turn read-only under a running member.
func TestReadOnlyDisk(t *testing.T) {
	c := layOutCluster(t, 1)
	remount := smallDisk(t, c, 200)
	c.restart(0)
	c.ready(0)
	l := startLoad(c, "load", 2, 1000)
	l.more(100)
	l.cancel()
	l.done.Wait()
	check(t, c.members[0].stop())
	remount("ro")
	c.restart(0)
	select {
	case <-c.members[0].done:
	case <-time.After(15 * time.Second):
		t.Fatalf("it neither serves nor ends:\n%s", tail(c.members[0].log.String()))
	}
	if log := c.members[0].log.String(); c.members[0].err == nil || !strings.Contains(log, "read-only file system") {
		t.Errorf("it ended (%v) without the reason:\n%s", c.members[0].err, tail(log))
	}
	remount("rw")
	c.restart(0)
	c.ready(0)
	l.verify(0)
}
