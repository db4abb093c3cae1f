package scorecard

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// errPower is what a disk says after its power was cut.
var errPower = errors.New("the power is cut")

// cutPower stops all given disks at one moment, waits a little for answers that are on their way, and returns what each disk
// holds when power comes back: what was synced, and of the rest keep percent of its blocks and names. While the disks stand
// still nothing may be acknowledged that is not durable; whoever acknowledges early is caught here. With dead the disks stay
// dead; otherwise whatever runs on them runs on, in a world that nobody looks at.
func (c *cluster) cutPower(members []*member, l *ledger, keep int, dead bool) {
	for _, m := range members {
		m.disk.gate.Lock()
	}
	pause(3 * time.Millisecond)
	if !dead {
		l.freeze(true)
	}
	next := make([]*disk, len(members))
	for i, m := range members {
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: keep}
		if keep > 0 {
			cfg.RNG = newRand(c.rng.Uint64(), 5)
		}
		next[i] = newDisk(m.disk.mem.CrashClone(cfg))
	}
	for _, m := range members {
		if dead {
			m.disk.dead = errPower
		}
		m.disk.gate.Unlock()
	}
	for _, m := range members {
		m.drop()
	}
	for i, m := range members {
		m.disk = next[i]
	}
}

// after returns a channel that is closed at the n-th operation of any of the members' disks from now on.
func after(members []*member, n int64) <-chan struct{} {
	reached := make(chan struct{})
	var once sync.Once
	base := int64(0)
	for _, m := range members {
		base += m.disk.count.Load()
	}
	for _, m := range members {
		m.disk.onOp(func(op) *trouble {
			var sum int64
			for _, o := range members {
				sum += o.disk.count.Load()
			}
			if sum-base >= n {
				once.Do(func() { close(reached) })
			}
			return nil
		})
	}
	return reached
}

// powerRound is one power cut of all members: start, load, cut at a random operation (now and then while they start), start
// again, and everything acknowledged is there, on every member the same.
func (c *cluster) powerRound(l *ledger, round int) {
	t := c.t
	keep := []int{0, 0, 20, 50, 90}[c.rng.IntN(5)]
	if c.rng.IntN(5) == 0 { // while they start
		reached := after(c.members, 1+c.rng.Int64N(int64(150*len(c.members))))
		started := make(chan error, 1)
		go func() { started <- c.startAll() }()
		select {
		case <-reached:
		case err := <-started:
			check(t, err)
			started <- nil
		}
		var mems []*disk
		for _, m := range c.members { // the clone is taken now, the start goes on in the old world
			m.disk.gate.Lock()
		}
		for _, m := range c.members {
			cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: newRand(c.rng.Uint64(), 6)}
			mems = append(mems, newDisk(m.disk.mem.CrashClone(cfg)))
		}
		for _, m := range c.members {
			m.disk.gate.Unlock()
		}
		if err := <-started; err != nil {
			t.Fatalf("round %d: the start that was to be interrupted fails: %s\n%s", round, text(err), c.logs())
		}
		for i, m := range c.members {
			m.drop()
			m.disk = mems[i]
		}
	}
	if err := c.startAll(); err != nil {
		t.Fatalf("round %d: a member does not start unaided after a power cut: %s\n%s", round, text(err), c.logs())
	}
	c.verify(l, round)
	cl, err := dial(c.members...)
	check(t, err)
	defer cl.Close()
	l.freeze(false)
	if round%7 == 0 {
		check(t, l.trim(cl, 300))
	}
	stop := l.load(cl, 6, c.rng.Uint64())
	select {
	case <-after(c.members, 1+c.rng.Int64N(int64(400*len(c.members)))):
	case <-time.After(20 * time.Second):
		t.Errorf("round %d: nothing goes on\n%s", round, c.logs())
	}
	c.cutPower(c.members, l, keep, false)
	stop()
}

// verify reads everything through every member and compares it with the ledger, and the members' hashes with each other.
func (c *cluster) verify(l *ledger, round int) {
	t := c.t
	t.Helper()
	var hashes []uint32
	var at int64
	for i, m := range c.members {
		cl, err := dial(m)
		check(t, err)
		got, rev, err := readAll(cl)
		if err != nil {
			t.Fatalf("round %d: %s cannot be read: %v\n%s", round, m.config.Name, err, c.logs())
		}
		if wrong := l.settle(got); len(wrong) > 0 {
			t.Fatalf("round %d: %s: %d keys are wrong: %v; of %d, rev %d\n%s", round, m.config.Name, len(wrong), wrong[:min(3, len(wrong))], len(l.keys), rev, c.logs())
		}
		if i == 0 {
			at = rev
		}
		h, err := cl.HashKV(t.Context(), cl.Endpoints()[0], at)
		check(t, err)
		hashes = append(hashes, h.Hash)
		cl.Close()
	}
	if len(slices.Compact(hashes)) > 1 {
		t.Fatalf("round %d: the members' hashes differ", round)
	}
}

// TestPowerLoss is row 5: the power of a whole cluster is cut, again and again, at a random operation of its disks, and what
// was not synced is dropped, all of it or a random part.
func TestPowerLoss(t *testing.T) {
	s := seed(t)
	for _, size := range []int{1, 3} {
		rounds, acked, start := record.Pick(6/size, part(1000)), int64(0), time.Now()
		step := progress(t, rounds)
		for done := 0; done < rounds; {
			c := newCluster(t, size, newRand(s, uint64(done+size)))
			l := newLedger()
			some := min(25, rounds-done) // each start leaves files: a cluster does not get old here
			for round := range some {
				c.powerRound(l, done+round)
				step()
			}
			done += some
			check(t, c.startAll())
			c.verify(l, done)
			acked += l.acked.Load()
			for _, m := range c.members {
				m.drop()
				m.disk = nil
			}
		}
		record.Row(t, 5, "power cuts of a whole cluster; acknowledged writes lost 0; started unaided 100 %", map[string]float64{
			"members": float64(size), "cuts": float64(rounds), "acknowledged": float64(acked), "lost": 0, "seconds": time.Since(start).Seconds(),
		})
	}
}

// TestPowerLossOfSome is row 5 too: one member of three, then two, lose their power under load while the others run on.
func TestPowerLossOfSome(t *testing.T) {
	s := seed(t)
	rounds := record.Pick(2, part(300))
	var c *cluster
	step := progress(t, rounds)
	l, acked := newLedger(), int64(0)
	for round := range rounds {
		if round%25 == 0 { // each start leaves files: a cluster does not get old here
			if c != nil {
				for _, m := range c.members {
					m.drop()
					m.disk = nil
				}
			}
			acked += l.acked.Load()
			c, l = newCluster(t, 3, newRand(s, uint64(round))), newLedger()
			check(t, c.startAll())
		}
		victims := slices.Clone(c.members)
		c.rng.Shuffle(3, func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		victims = victims[:1+c.rng.IntN(2)]
		cl, err := dial(c.members...)
		check(t, err)
		if round%7 == 0 {
			check(t, l.trim(cl, 300))
		}
		stop := l.load(cl, 6, c.rng.Uint64())
		select {
		case <-after(c.members, 1+c.rng.Int64N(1000)):
		case <-time.After(20 * time.Second):
			t.Errorf("round %d: nothing goes on\n%s", round, c.logs())
		}
		c.cutPower(victims, l, []int{0, 0, 30, 70}[c.rng.IntN(4)], true)
		if len(victims) == 1 { // the others must go on
			c.goesOn(l, cl, round)
		}
		stop()
		cl.Close()
		for _, m := range victims {
			if err := m.launch(); err != nil {
				t.Fatalf("round %d: %s does not start unaided: %s\n%s", round, m.config.Name, text(err), tail(m.log))
			}
		}
		for _, m := range c.members {
			if err := m.ready(readyLimit); err != nil {
				t.Fatalf("round %d: %s: %s\n%s", round, m.config.Name, text(err), c.logs())
			}
		}
		c.verify(l, round)
		step()
	}
	record.Row(t, 5, "power cuts of one or two members of three under load; acknowledged writes lost 0; started unaided 100 %", map[string]float64{
		"members": 3, "cuts": float64(rounds), "acknowledged": float64(acked + l.acked.Load()), "lost": 0,
	})
}

// goesOn waits for further acknowledged writes.
func (c *cluster) goesOn(l *ledger, _ *clientv3.Client, round int) {
	c.t.Helper()
	target, deadline := l.acked.Load()+5, time.Now().Add(2*time.Minute)
	for l.acked.Load() < target {
		if time.Now().After(deadline) {
			c.t.Fatalf("round %d: the others do not go on\n%s", round, c.logs())
		}
		pause(2 * time.Millisecond)
	}
}
