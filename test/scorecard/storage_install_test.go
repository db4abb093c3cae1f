package scorecard

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// The steps of docs/formats/raft-log.md, "Receiving a snapshot", that are operations of the receiver's disk.
const (
	stepBuild  = "1 the state is built"
	stepDir    = "2 the directory is synced"
	stepMarker = "5 the marker is switched"
	stepLog    = "6 the log is reset"
	stepFormer = "8 the former state goes"
	stepStream = "on the way"
)

// reception tells to which step an operation belongs. It begins with the first operation on a state directory that was not there.
type reception struct {
	mu      sync.Mutex
	former  string
	begun   bool
	built   bool // the marker has been touched since
	fill    fills
	counted map[string]int64
}

// expect is a reception by a member that has one state.
func (m *member) expect() (*reception, error) {
	names, err := m.disk.mem.List(m.config.DataDir)
	if err != nil {
		return nil, err
	}
	r := &reception{counted: map[string]int64{}}
	for _, name := range names {
		if strings.HasPrefix(name, "state-") {
			if r.former != "" {
				return nil, fmt.Errorf("%s and %s: two states", r.former, name)
			}
			r.former = name
		}
	}
	return r, nil
}

// step names the step of o and counts it; empty: none.
func (r *reception) step(o op) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fill.skip(o) {
		return ""
	}
	dir, base := path.Base(path.Dir(o.path)), path.Base(o.path)
	state := ""
	if strings.HasPrefix(base, "state-") {
		state = base
	} else if strings.HasPrefix(dir, "state-") {
		state = dir
	}
	r.begun = r.begun || state != "" && state != r.former && o.kind != opRemoveAll // what is removed first is only in the way
	step := ""
	switch {
	case !r.begun:
		return ""
	case strings.HasPrefix(base, "CURRENT"):
		r.built, step = true, stepMarker
	case o.kind == opRemoveAll && state == r.former:
		step = stepFormer
	case state != "" && state != r.former:
		step = stepBuild
	case r.built && (dir == "log" || base == "log"):
		step = stepLog
	case o.kind == opSyncDir && state == "":
		step = stepDir
		if r.built {
			step = stepMarker
		}
	default:
		return ""
	}
	r.counted[step]++
	return step
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
	deadline := time.Now().Add(5 * time.Minute) // the machine may be busy
	for l.acked.Load() < target {
		if time.Now().After(deadline) {
			return fmt.Errorf("no progress:\n%s", c.logs())
		}
		pause(time.Millisecond)
	}
	return nil
}

// interruption is one: the n-th operation of a step, or bytes of the stream.
type interruption struct {
	how, step string
	n         int64
}

// plan interrupts each step a number of times, in turns by the ways to do it.
func plan(times int, lengths map[string]int64, rng *rand.Rand) (out []interruption) {
	for i := range times {
		for _, step := range slices.Sorted(maps.Keys(lengths)) {
			out = append(out, interruption{[]string{cutPower, diskError, diskFull}[i%3], step, 1 + rng.Int64N(lengths[step])})
		}
		out = append(out, interruption{cutStream, stepStream, rng.Int64N(60_000)})
	}
	return out
}

// TestInstallInterrupted is row 14: a member that needs a snapshot is interrupted in each step of taking it, at an operation of its
// disk, or on the way of the stream. Started again it converges: everything acknowledged, the same hash.
func TestInstallInterrupted(t *testing.T) {
	notInBrief(t)
	rng := newRand(seed(t), 14)
	var c *cluster
	l := newLedger()
	fresh := func() {
		if c != nil {
			for _, m := range c.members {
				m.drop()
				m.disk = nil
			}
		}
		c, l = newCluster(t, 3, rng), newLedger()
		check(t, c.startAll())
	}
	fresh()
	victim := c.members[0]
	check(t, c.lag(victim, l)) // how long an undisturbed one is
	r, err := victim.expect()
	check(t, err)
	victim.disk.onOp(func(o op) *trouble { r.step(o); return nil })
	check(t, victim.start())
	check(t, installed(victim))
	c.verify(l, -1)
	r.mu.Lock()
	lengths := maps.Clone(r.counted)
	r.mu.Unlock()
	t.Logf("operations of an undisturbed install, by step: %v", lengths)
	if len(lengths) != 5 {
		t.Fatalf("not every step is seen: %v", lengths)
	}
	all := plan(record.Pick(1, part(50)), lengths, rng)
	steps, start, tick := map[string]map[string]int{}, time.Now(), progress(t, len(all))
	for round, x := range all {
		tick()
		if round%16 == 15 {
			fresh()
		}
		if what := c.interrupt(c.members[round%3], l, x, round); what != "" {
			if steps[x.step] == nil {
				steps[x.step] = map[string]int{}
			}
			steps[x.step][what]++
		}
	}
	numbers := map[string]float64{"interruptions": float64(len(all)), "panics": 0, "seconds": time.Since(start).Seconds()}
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		t.Logf("%-28s %v", step, steps[step])
		for _, n := range steps[step] {
			numbers["at "+step] += float64(n)
		}
	}
	record.Row(t, 14, "a snapshot's install interrupted in each step by power loss, an I/O error, a full disk, a cut stream: converges 100 %, equal hashes, panics 0", numbers)
}

// interrupt has the victim need a snapshot, interrupts the reception, and wants it to converge. It returns how it was
// interrupted; empty: it got through before.
func (c *cluster) interrupt(victim *member, l *ledger, x interruption, round int) string {
	t := c.t
	t.Helper()
	check(t, c.lag(victim, l))
	r, err := victim.expect()
	check(t, err)
	k := &strike{}
	var seen atomic.Int64
	var cut atomic.Bool
	powered := make(chan struct{})
	if x.how == cutStream {
		victim.relay.left.Store(x.n)
	} else {
		victim.disk.onOp(func(o op) *trouble {
			if cut.Load() {
				return &trouble{err: errPower}
			}
			hit := r.step(o) == x.step && seen.Add(1) == x.n
			if hit {
				now := time.Now()
				o.data = nil
				k.where.Store(&o)
				k.at.Store(&now)
			}
			switch {
			case x.how == cutPower && hit: // the last operation that is done
				cut.Store(true)
				close(powered)
			case x.how == diskError && hit:
				return &trouble{err: errEIO}
			case x.how == diskFull && k.at.Load() != nil && o.kind.needsSpace() && o.kind != opRename:
				return &trouble{err: syscall.ENOSPC}
			}
			return nil
		})
	}
	_ = victim.launch()
	c.waitForIt(victim, k, powered)
	if strings.Contains(victim.log.String(), "panic") {
		t.Errorf("round %d, %v: a panic:\n%s", round, x, tail(victim.log))
	}
	victim.relay.left.Store(-1)
	if x.how == cutStream { // it comes to itself without a restart
		if err := victim.ready(readyLimit); err != nil {
			t.Errorf("round %d, %v: %s\n%s", round, x, text(err), c.logs())
		}
		c.verify(l, round)
		return x.how
	}
	old := victim.disk
	victim.drop()
	old.kill(errPower)
	if x.how == cutPower {
		keep := []int{0, 0, 40, 80}[c.rng.IntN(4)]
		victim.disk = newDisk(old.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: newRand(c.rng.Uint64(), 1)}))
	} else {
		victim.disk = newDisk(old.mem)
	}
	if err := victim.start(); err != nil {
		t.Fatalf("round %d, %v, %v: no unaided start afterwards: %s\n%s", round, x, k.where.Load(), text(err), c.logs())
	}
	c.verify(l, round)
	if k.where.Load() == nil {
		return ""
	}
	return x.how
}

// waitForIt waits until the interruption has come, or the member is through.
func (c *cluster) waitForIt(m *member, k *strike, powered chan struct{}) {
	if m.node == nil {
		return // it met it at the start
	}
	never := time.Now().Add(time.Hour)
	deadline, through := time.After(10*time.Second), never
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
			if k.at.Load() == nil && time.Since(through) > 200*time.Millisecond {
				return
			}
			if through.Equal(never) && strings.Contains(m.log.String(), "installed a snapshot") {
				through = time.Now()
			}
		}
	}
}

// installed waits until the member has installed a snapshot.
func installed(m *member) error {
	deadline := time.Now().Add(2 * time.Minute)
	for !strings.Contains(m.log.String(), "installed a snapshot") {
		if time.Now().After(deadline) {
			return fmt.Errorf("no snapshot was needed:\n%s", tail(m.log))
		}
		pause(time.Millisecond)
	}
	return nil
}
