package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// copies of a data directory: what a member left at a moment.
func keepCopy(t *testing.T, dir, name string) string {
	t.Helper()
	to := dir + "." + name
	check(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func replaceBy(t *testing.T, dir, copied, name string) {
	t.Helper()
	check(t, os.RemoveAll(filepath.Join(dir, name)))
	if info, err := os.Stat(filepath.Join(copied, name)); err == nil && !info.IsDir() {
		data, err := os.ReadFile(filepath.Join(copied, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		return
	}
	check(t, os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(copied, name))))
}

// TestRollback puts an older copy of each part of a data directory back. A start refuses it and says what to do, or, where
// nothing is lost by it, serves every acknowledged write.
func TestRollback(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "--snapshot-count", "300", "--snapshot-catchup-entries", "100")
	dir := c.dataDir(0)
	first := startLoad(c, "first", 4, 500)
	first.more(600)
	first.stop(0)
	c.members[0].kill()
	old := keepCopy(t, dir, "old")
	if out, err := runHoldfast(t, "seal", "recovery", "create", "--made-by", "etcd", "--data-dir", dir); err != nil { // a newer KEYRING
		t.Fatalf("%v\n%s", err, out)
	}
	c.restart(0)
	c.ready(0)
	second := startLoad(c, "second", 4, 500)
	second.more(1500)
	second.stop(0)
	wait(context.Background(), 1500*time.Millisecond) // the log is cut
	c.mustCtl("defrag")
	c.members[0].kill()
	now := keepCopy(t, dir, "now")

	for name, parts := range map[string][]string{
		"log": {"log"}, "state": {"state-1"}, "KEYRING": {"KEYRING"}, "CURRENT": {"CURRENT"}, "log and CURRENT": {"log", "CURRENT"},
		"state and CURRENT": {"state-1", "CURRENT"}, "log and state": {"log", "state-1"}, "all but KEYRING": {"log", "state-1", "CURRENT"},
	} {
		check(t, os.RemoveAll(dir))
		check(t, os.CopyFS(dir, os.DirFS(now)))
		for _, p := range parts {
			replaceBy(t, dir, old, p)
		}
		c.restart(0)
		p := c.members[0]
		if p.log.wait(readyLine, startLimit) {
			lost := !c.holds(first) || !c.holds(second)
			switch {
			case name == "CURRENT" && !lost: // everything else is newer, and knows it
			case name == "all but KEYRING" && lost: // to one member alone an old directory looks like an old moment: docs/formats/raft-log.md
			default:
				t.Errorf("%s: served; acknowledged writes lost: %v", name, lost)
			}
			p.kill()
			continue
		}
		select {
		case <-p.done:
		case <-time.After(time.Second):
			t.Errorf("%s: neither serves nor ends", name)
		}
		lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
		if last := lines[len(lines)-1]; p.err == nil || !strings.Contains(last, `"hint"`) {
			t.Errorf("%s: refused without saying what to do: %s", name, last)
		} else {
			_, why, _ := strings.Cut(last, `"msg":`)
			t.Logf("%s: refused: %.330s", name, why)
		}
		p.kill()
	}
	check(t, os.RemoveAll(dir))
	check(t, os.CopyFS(dir, os.DirFS(now)))
	c.restart(0)
	c.ready(0)
	first.verify(0)
	second.verify(0)
}

// holds reports whether member 0 has every acknowledged key.
func (c *cluster) holds(l *load) bool {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cl := c.dial(0)
	for _, keys := range l.keys {
		for _, k := range keys {
			resp, err := cl.Get(ctx, k)
			check(c.t, err)
			if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != l.value(k) {
				return false
			}
		}
	}
	return true
}

// TestOldDirectoryInACluster starts one member of three on an older copy of its whole directory. The leader, which counts on
// what that member had confirmed, is how it finds out: it ends and says how to go on. The others lose nothing.
func TestOldDirectoryInACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	l := startLoad(c, "load", 4, 300)
	l.more(200)
	victim := (c.leaderIndex() + 1) % 3
	c.members[victim].kill()
	dir := c.dataDir(victim)
	old := keepCopy(t, dir, "old")
	c.restart(victim)
	c.ready(victim)
	l.more(300)
	wait(context.Background(), 500*time.Millisecond) // the leader hears how far it is
	c.members[victim].kill()
	check(t, os.RemoveAll(dir))
	check(t, os.Rename(old, dir))
	c.restart(victim)
	p := c.members[victim]
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on with an old directory:\n%s", tail(p.log.String()))
	}
	if log := p.log.String(); p.err == nil || !strings.Contains(log, "older than the rest") || !strings.Contains(log, "join as a new member") || strings.Contains(log, "goroutine ") {
		t.Errorf("it ended (%v) without saying what to do:\n%s", p.err, tail(log))
	}
	l.more(100)
	others := []int{(victim + 1) % 3, (victim + 2) % 3}
	l.stop(others...)
}

// leaderIndex returns which member leads.
func (c *cluster) leaderIndex() int {
	c.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		for i := range c.members {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			st, err := c.dial(i).Status(ctx, c.endpoint(i))
			cancel()
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				return i
			}
		}
		wait(context.Background(), 50*time.Millisecond)
	}
	c.t.Fatal("nobody leads")
	return 0
}
