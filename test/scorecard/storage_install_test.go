package scorecard

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// stepOf names the step of docs/formats/raft-log.md, "Receiving a snapshot", that an operation of the receiver belongs to.
func stepOf(o op) string {
	dir := path.Base(path.Dir(o.path))
	base := path.Base(o.path)
	switch {
	case o.kind == opRemoveAll && strings.HasPrefix(base, "state-"):
		return "8 the former state goes"
	case strings.HasPrefix(dir, "state-"), strings.HasPrefix(base, "state-"):
		return "1 the state is built"
	case strings.HasPrefix(base, "CURRENT"):
		return "5 the marker is switched"
	case dir == "log", base == "log":
		return "6 the log is reset, or written"
	case o.kind == opSyncDir:
		return "2 the directory is synced"
	}
	return "start, and other"
}

// The ways to interrupt.
const (
	cutStream = "stream cut"
	cutPower  = "power lost"
	diskError = "I/O error"
	diskFull  = "disk full"
)

// lag makes the victim miss so much that it needs a snapshot.
func (c *cluster) lag(victim *member, l *ledger) error {
	old := victim.disk
	victim.drop()
	victim.disk = newDisk(old.mem)
	var others []*member
	for _, m := range c.members {
		if m != victim {
			others = append(others, m)
		}
	}
	cl, err := dial(others...)
	if err != nil {
		return err
	}
	defer cl.Close()
	target := l.acked.Load() + 260
	stop := l.load(cl, 4, c.rng.Uint64()) // few at once: entries, not bytes, make the log go
	defer stop()
	deadline := time.Now().Add(60 * time.Second)
	for l.acked.Load() < target {
		if time.Now().After(deadline) {
			return fmt.Errorf("no progress:\n%s", c.logs())
		}
		pause(time.Millisecond)
	}
	return nil
}

// TestInstallInterrupted is row 14: a member that needs a snapshot is interrupted at an operation of its disk, or on the way of the
// stream. Started again it converges: everything acknowledged, the same hash.
func TestInstallInterrupted(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	rng := newRand(s, 14)
	ways := []string{cutPower, diskError, cutStream, diskFull}
	perWay := record.Pick(1, part(50))
	steps, installs, itself := map[string]map[string]int{}, 0, 0
	var c *cluster
	l := newLedger()
	length := int64(0)
	start, tick := time.Now(), progress(t, perWay*len(ways))
	for round := range perWay * len(ways) {
		if round%16 == 0 {
			if c != nil {
				for _, m := range c.members {
					m.drop()
					m.disk = nil
				}
			}
			c, l = newCluster(t, 3, rng), newLedger()
			check(t, c.startAll())
		}
		tick()
		how := ways[round%len(ways)]
		victim := c.members[round%3]
		if err := c.lag(victim, l); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if length == 0 { // how long an undisturbed one is
			check(t, victim.start())
			if err := installed(victim); err != nil {
				t.Fatal(err)
			}
			length = victim.disk.count.Load()
			c.verify(l, round)
			if err := c.lag(victim, l); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		k := &strike{n: 40 + rng.Int64N(length-40), done: []float64{0, 1, 0.5}[rng.IntN(3)]}
		step := ""
		switch how {
		case cutStream:
			victim.relay.left.Store(rng.Int64N(60_000))
			step = "on the way"
		case diskFull:
			k.stay = true
			k.on(victim.disk, syscall.ENOSPC)
		case diskError:
			k.on(victim.disk, errEIO)
		}
		var powered chan struct{}
		if how == cutPower { // the operation is the last one that is done
			powered = make(chan struct{})
			victim.disk.onOp(func(o op) *trouble {
				switch n := k.seen.Add(1); {
				case n == k.n:
					o.data = nil
					k.where.Store(&o)
					close(powered)
				case n > k.n:
					return &trouble{err: errPower}
				}
				return nil
			})
		}
		_ = victim.launch()
		c.waitForIt(victim, k, powered)
		if w := k.where.Load(); w != nil {
			step = stepOf(*w)
		}
		if step != "" {
			if steps[step] == nil {
				steps[step] = map[string]int{}
			}
			steps[step][how]++
		}
		if strings.Contains(victim.log.String(), "installed a snapshot") {
			installs++
		}
		if strings.Contains(victim.log.String(), "panic") {
			t.Errorf("round %d, %s at %s: a panic:\n%s", round, how, k, tail(victim.log))
		}
		victim.relay.left.Store(-1)
		if how == cutStream { // it comes to itself without a restart
			if err := victim.ready(readyLimit); err == nil {
				itself++
			}
			c.verify(l, round)
			continue
		}
		old := victim.disk
		victim.drop()
		old.kill(errPower)
		if how == cutPower {
			keep := []int{0, 0, 40, 80}[rng.IntN(4)]
			victim.disk = newDisk(old.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: newRand(rng.Uint64(), 1)}))
		} else {
			victim.disk = newDisk(old.mem)
		}
		if err := victim.start(); err != nil {
			t.Fatalf("round %d, %s at %s: no unaided start afterwards: %s\n%s", round, how, k, text(err), c.logs())
		}
		c.verify(l, round)
	}
	numbers := map[string]float64{"interruptions": float64(perWay * len(ways)), "of them after the switch was complete": float64(installs), "operations of an install": float64(length), "panics": 0, "seconds": time.Since(start).Seconds()}
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		t.Logf("%-32s %v", step, steps[step])
		for _, n := range steps[step] {
			numbers["at "+step] += float64(n)
		}
	}
	record.Row(t, 14, "a snapshot's install interrupted by power loss, an I/O error, a full disk, a cut stream: converges 100 %, equal hashes, panics 0", numbers)
}

// waitForIt waits until the interruption has come, or the member is through.
func (c *cluster) waitForIt(m *member, k *strike, powered chan struct{}) {
	if m.node == nil {
		return // it met it at the start
	}
	deadline := time.After(3 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-powered:
			return
		case <-m.node.Ending():
			return
		case <-deadline:
			return
		case <-tick.C:
			if k.at.Load() != nil && time.Since(*k.at.Load()) > 150*time.Millisecond {
				return
			}
			if strings.Contains(m.log.String(), "installed a snapshot") && k.where.Load() == nil && powered == nil {
				return
			}
		}
	}
}

// installed waits until the member has installed a snapshot.
func installed(m *member) error {
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(m.log.String(), "installed a snapshot") {
		if time.Now().After(deadline) {
			return fmt.Errorf("no snapshot was needed:\n%s", tail(m.log))
		}
		pause(time.Millisecond)
	}
	return nil
}
