package scorecard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/test/scorecard/record"
)

var errEIO = errors.New("input/output error")

// strike makes the n-th operation of a disk fail.
type strike struct {
	n    int64
	done float64 // how much of it is done before it fails
	stay bool    // and every later one on the same file

	at    atomic.Pointer[time.Time]
	where atomic.Pointer[op]
	seen  atomic.Int64
	fill  fills
	ended atomic.Pointer[time.Time] // when the member began to end, if somebody looked
}

func (s *strike) on(d *disk, err error) {
	d.onOp(func(o op) *trouble {
		if s.fill.skip(o) {
			return nil
		}
		if s.seen.Add(1) == s.n {
			now := time.Now()
			o.data = nil
			s.where.Store(&o)
			s.at.Store(&now)
			return &trouble{err: err, done: s.done}
		}
		if w := s.where.Load(); s.stay && w != nil && w.path == o.path {
			return &trouble{err: err}
		}
		return nil
	})
}

// String is what was struck.
func (s *strike) String() string {
	w := s.where.Load()
	if w == nil {
		return "nothing"
	}
	return fmt.Sprintf("operation %d, %s of %s (%s)", s.n, w.kind, w.path, w.class())
}

// lifetime is what a member does between a start and an end: writes, a compaction, a flush of the store, and more writes, so that
// it meets every kind of file. It ends at the first call that fails.
func lifetime(cl *clientv3.Client, w *writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second) // the machine may be busy
	defer cancel()
	write := func(n int) error {
		for range n {
			if !w.one(ctx, cl) {
				return errors.New("a write was not answered")
			}
		}
		return nil
	}
	if err := write(20); err != nil {
		return err
	}
	got, err := cl.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if _, err := cl.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	if _, err := cl.Defragment(ctx, cl.Endpoints()[0]); err != nil {
		return err
	}
	return write(20)
}

// survivable are the failed operations after which a member may go on, because nothing that was promised rests on them.
func survivable(o *op) bool {
	switch o.kind {
	case opRead, opOpen, opOpenDir, opList, opStat, opUsage, opRemove, opRemoveAll:
		return true
	}
	return o.class() == "prepared segment" || o.class() == "audit segment" || o.class() == "LOCK"
}

// tally counts what came of faults.
type tally struct {
	mu      sync.Mutex
	counts  map[string]int
	survive map[string]int
	slowest time.Duration // from the fault until the member began to end
	within  int           // ended within a second
	ended   int
}

func (y *tally) add(what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.counts == nil {
		y.counts, y.survive = map[string]int{}, map[string]int{}
	}
	y.counts[what]++
}

func (y *tally) survived(o *op) {
	y.add("went on")
	y.mu.Lock()
	y.survive[string(o.kind)+" of "+o.class()]++
	y.mu.Unlock()
}

func (y *tally) ending(took time.Duration) {
	y.add("ended by itself")
	y.mu.Lock()
	defer y.mu.Unlock()
	y.ended++
	y.slowest = max(y.slowest, took)
	if took <= time.Second {
		y.within++
	}
}

func (y *tally) log(t *testing.T) {
	for _, k := range slices.Sorted(maps.Keys(y.counts)) {
		t.Logf("%-40s %d", k, y.counts[k])
	}
	for _, k := range slices.Sorted(maps.Keys(y.survive)) {
		t.Logf("  went on after %-35s %d", k, y.survive[k])
	}
}

// oneStrike runs a lifetime over a copy of base with one operation failing, and starts the member again on what is left: on
// everything that was written, or on what was synced only.
func (m *member) oneStrike(base *vfs.MemFS, l *ledger, s *strike, y *tally) {
	t := m.c.t
	l = l.copy()
	m.disk = newDisk(image(base))
	s.on(m.disk, errEIO)
	err := m.start()
	switch {
	case err != nil && s.where.Load() == nil:
		t.Errorf("the start fails without a fault: %s", text(err))
		return
	case errors.Is(err, errSlow):
		t.Errorf("%s: neither serves nor ends\n%s", s, tail(m.log))
	case err != nil:
		y.add("the start failed")
	default:
		cl, err := dial(m)
		check(t, err)
		done := make(chan error, 1)
		go func() { done <- lifetime(cl, l.writer(uint64(s.n))) }()
		ending := m.node.Ending()
		go func() {
			<-ending
			now := time.Now()
			s.ended.CompareAndSwap(nil, &now)
			cl.Close()
		}()
		<-done
		cl.Close()
		if s.where.Load() == nil { // the end of this life is shorter
			m.stop()
			if s.where.Load() == nil {
				y.add("not reached")
				return
			}
		}
		m.judge(s, y)
	}
	old := m.disk
	m.abandon()
	old.kill(errPower)
	if s.n%2 == 0 {
		m.disk = newDisk(old.mem)
	} else {
		m.disk = newDisk(old.mem.CrashClone(vfs.CrashCloneCfg{}))
		check(t, old.mem.RemoveAll(m.config.DataDir))
	}
	if err := m.start(); err != nil {
		t.Errorf("%s: no unaided start afterwards: %s", s, text(err))
		m.abandon()
		return
	}
	cl, err := dial(m)
	check(t, err)
	defer cl.Close()
	got, _, err := readAll(cl)
	if err != nil {
		t.Errorf("%s: no read afterwards: %v", s, err)
	} else if wrong := l.settle(got); len(wrong) > 0 {
		t.Errorf("%s: %d keys are wrong afterwards: %v", s, len(wrong), wrong[:min(3, len(wrong))])
	}
	m.release()
}

// judge decides what came of a fault that a running member met.
func (m *member) judge(s *strike, y *tally) {
	if m.node == nil { // it was struck while it ended
		y.add("struck while it ended")
		return
	}
	limit := time.NewTimer(max(time.Millisecond, time.Until(s.at.Load().Add(500*time.Millisecond))))
	defer limit.Stop()
	select {
	case <-m.node.Ending():
	case <-limit.C:
	}
	select {
	case <-m.node.Ending():
		now := time.Now()
		s.ended.CompareAndSwap(nil, &now)
		y.ending(s.ended.Load().Sub(*s.at.Load()))
	default:
		y.survived(s.where.Load())
		if !survivable(s.where.Load()) {
			m.c.t.Errorf("%s: the member goes on\n%s", s, tail(m.log))
		}
	}
}

// TestIOErrors is row 7 on one member: every single operation of a long run of its disk fails once, in a run of its own.
// What was acknowledged is there at the next start, which needs no help. The run is cut into lifetimes: each is repeated
// from a copy of the disk with its first operation failing, its second, and so on.
func TestIOErrors(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	workers := record.Pick(2, 6) // they mostly wait
	var pool []*member
	for i := range workers {
		pool = append(pool, newCluster(t, 1, newRand(s, uint64(i))).members[0])
	}
	m := pool[0]
	for _, o := range pool[1:] { // they take turns with the same disk: it opens with the same key
		o.config.Seal, o.config.DataDir, o.config.Name = m.config.Seal, m.config.DataDir, m.config.Name
		o.config.Advertise, o.config.Bootstrap = m.config.Advertise, m.config.Bootstrap
	}
	l := newLedger()
	goal, step := int64(record.Pick(40, part(10_000))), int64(record.Pick(37, 1))
	var y tally
	var operations, strikes int64
	start, tick := time.Now(), progress(t, int(goal/step))
	for lives := 1; operations < goal; lives++ {
		if lives%5 == 0 { // each start leaves files: a disk does not get old here
			m.disk, l = newDisk(vfs.NewCrashableMem()), newLedger()
		}
		base, known := image(m.disk.mem), l.copy()
		m.disk = newDisk(image(base))
		life := &strike{n: -1}
		life.on(m.disk, nil)
		m.mustStart()
		cl, err := dial(m)
		check(t, err)
		check(t, lifetime(cl, l.writer(s)))
		cl.Close()
		check(t, m.stop())
		length := life.seen.Load()
		next := m.disk.mem
		queue := make(chan int64)
		var wait sync.WaitGroup
		for _, o := range pool {
			wait.Go(func() {
				for n := range queue {
					o.oneStrike(base, known, &strike{n: n, done: []float64{0, 0, 1, 0.5}[n%4], stay: n%3 == 0}, &y)
					tick()
				}
			})
		}
		for n := int64(1); n <= length; n += step {
			queue <- n
			strikes++
		}
		close(queue)
		wait.Wait()
		m.disk = newDisk(next)
		operations += length
		if t.Failed() {
			break
		}
	}
	y.log(t)
	record.Row(t, 7, "each operation of a member's disk fails once: acknowledged writes lost 0, unaided starts 100 %; slowest end is an upper bound", map[string]float64{
		"operations": float64(operations), "faults": float64(strikes), "refused at start": float64(y.counts["the start failed"]), "ended by itself": float64(y.ended),
		"of them within a second": float64(y.within), "slowest end, s": y.slowest.Seconds(), "went on": float64(y.counts["went on"]), "seconds": time.Since(start).Seconds(),
	})
}

// TestIOErrorsOfOne is row 7 on one member of three under load: the others go on, and the struck one comes back by itself.
func TestIOErrorsOfOne(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	var y tally
	rounds := record.Pick(3, part(700))
	var worst time.Duration
	n, acked := int64(1), int64(0)
	var c *cluster
	l, step := newLedger(), progress(t, rounds)
	for round := range rounds {
		if round%25 == 0 {
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
		victim := c.members[round%3]
		cl, err := dial(c.members...)
		check(t, err)
		if round%10 == 9 {
			check(t, l.trim(cl, 300))
		}
		k := &strike{n: n, done: []float64{0, 0, 1, 0.5}[n%4], stay: n%3 == 0}
		n = n%700 + int64(record.Pick(61, 1))
		if n%2 == 0 { // from the start on
			victim.drop()
			old := victim.disk
			old.kill(errPower)
			victim.disk = newDisk(old.mem)
			k.on(victim.disk, errEIO)
			if err := victim.launch(); err != nil {
				y.add("the start failed")
			}
		} else {
			k.on(victim.disk, errEIO)
		}
		stop := l.load(cl, 4, c.rng.Uint64())
		deadline := time.Now().Add(2 * time.Minute)
		for k.at.Load() == nil && time.Now().Before(deadline) {
			pause(time.Millisecond)
		}
		if k.at.Load() == nil {
			t.Fatalf("round %d: operation %d is never reached\n%s", round, k.n, c.logs())
		}
		before := time.Now()
		c.goesOn(l, cl, round)
		worst = max(worst, time.Since(before))
		stop()
		cl.Close()
		if victim.node != nil {
			victim.judge(k, &y)
		}
		old := victim.disk
		victim.drop()
		old.kill(errPower)
		if round%2 == 0 {
			victim.disk = newDisk(old.mem)
		} else {
			victim.disk = newDisk(old.mem.CrashClone(vfs.CrashCloneCfg{}))
		}
		if err := victim.start(); err != nil {
			t.Fatalf("round %d, %s: no unaided start afterwards: %s\n%s", round, k, text(err), c.logs())
		}
		c.verify(l, round)
		step()
	}
	y.log(t)
	record.Row(t, 7, "one member of three is struck under load: acknowledged writes lost 0, unaided starts 100 %, the others go on", map[string]float64{
		"faults": float64(rounds), "ended by itself": float64(y.ended), "of them within a second": float64(y.within), "went on": float64(y.counts["went on"]),
		"refused at start": float64(y.counts["the start failed"]), "acknowledged": float64(acked + l.acked.Load()), "longest until 5 more writes, s": worst.Seconds(),
	})
}
