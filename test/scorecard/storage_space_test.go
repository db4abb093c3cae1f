package scorecard

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/test/scorecard/record"
)

// full makes every operation that needs space fail from the n-th one on, until there is space again.
type full struct {
	n     int64
	syncs bool // a sync finds out, as on file systems that give out space late
	seen  atomic.Int64
	room  atomic.Bool
	hit   atomic.Bool
	fill  fills
}

func (f *full) on(d *disk) {
	d.onOp(func(o op) *trouble {
		switch {
		case f.room.Load() || f.fill.skip(o) || !o.kind.needsSpace() || o.kind == opRename || !f.syncs && (o.kind == opSync || o.kind == opSyncDir):
			return nil
		case f.seen.Add(1) < f.n:
			return nil
		}
		f.hit.Store(true)
		return &trouble{err: syscall.ENOSPC}
	})
}

// spaceTally counts what members do on a full disk.
type spaceTally struct {
	mu                              sync.Mutex
	ended, refused, alive, startsOn int
	slowest                         time.Duration
}

// oneFull lets the disk run full at one operation of a lifetime, sees what the member does then, and gives it space again.
func (m *member) oneFull(base *vfs.MemFS, l *ledger, f *full, y *spaceTally, kek seal.KEK) {
	t := m.c.t
	l = l.copy()
	m.disk = newDisk(image(base))
	f.on(m.disk)
	lives := m.start() == nil
	if lives {
		cl, err := dial(m)
		check(t, err)
		done := make(chan error, 1)
		go func() { done <- lifetime(cl, l.writer(uint64(f.n))) }()
		select {
		case <-done:
		case <-m.node.Ending():
			lives = false
			cl.Close()
			<-done
		}
		cl.Close()
	}
	if lives {
		select {
		case <-m.node.Ending():
			lives = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	if !f.hit.Load() {
		m.abandon()
		return
	}
	y.mu.Lock()
	switch {
	case lives:
		y.alive++
	case m.node == nil:
		y.refused++
	default:
		y.ended++
	}
	y.mu.Unlock()
	old := m.disk
	if !lives { // whoever restarts it finds a full disk again: that must damage nothing
		m.abandon()
		old.kill(errPower)
		m.disk = newDisk(old.mem)
		again := &full{n: 1, syncs: f.syncs}
		again.on(m.disk)
		if m.start() == nil {
			y.mu.Lock()
			y.startsOn++
			y.mu.Unlock()
		}
		m.abandon()
		m.disk.kill(errPower)
		old = m.disk
	}
	f.room.Store(true)
	start := time.Now()
	if !lives {
		m.disk = newDisk(old.mem)
		if err := m.start(); err != nil {
			t.Errorf("full at operation %d: with space again it does not start: %s", f.n, text(err))
			m.abandon()
			return
		}
	}
	cl, err := dial(m)
	check(t, err)
	defer cl.Close()
	for !putsAgain(t.Context(), cl, l) {
		if time.Since(start) > 30*time.Second {
			t.Errorf("full at operation %d: with space again writes do not go on\n%s", f.n, tail(m.log))
			break
		}
		pause(5 * time.Millisecond)
	}
	y.mu.Lock()
	y.slowest = max(y.slowest, time.Since(start))
	y.mu.Unlock()
	got, _, err := readAll(cl)
	if err != nil {
		t.Errorf("full at operation %d: no read afterwards: %v", f.n, err)
	} else if wrong := l.settle(got); len(wrong) > 0 {
		t.Errorf("full at operation %d: %d keys are wrong afterwards: %v", f.n, len(wrong), wrong[:min(3, len(wrong))])
	}
	if err := m.stop(); err != nil {
		t.Errorf("full at operation %d: the end afterwards: %s", f.n, text(err))
	}
	if found, err := scrub(m.disk.mem, m.config.DataDir, kek); err != nil || len(found) > 0 {
		t.Errorf("full at operation %d: the scrub afterwards: %v, %v", f.n, found, err)
	}
}

// TestDiskFullAnywhere is row 11, its hard part: the disk runs full at every operation of a lifetime in turn, without a reserve.
func TestDiskFullAnywhere(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	pool := twins(t, record.Pick(2, 6), newRand(s, 11))
	m := pool[0]
	l := newLedger()
	m.mustStart()
	cl, err := dial(m)
	check(t, err)
	check(t, lifetime(cl, l.writer(s)))
	cl.Close()
	check(t, m.stop())
	kek, err := seal.FileKEK(strings.TrimPrefix(m.config.Seal.KEK, "file:"), false)
	check(t, err)
	base := image(m.disk.mem)
	m.disk = newDisk(image(base))
	count := &full{n: 1 << 40, syncs: true}
	count.on(m.disk)
	m.mustStart()
	cl, err = dial(m)
	check(t, err)
	probe := l.copy()
	check(t, lifetime(cl, probe.writer(s)))
	cl.Close()
	check(t, m.stop())
	length := count.seen.Load()
	var y spaceTally
	queue, step := make(chan *full), progress(t, int(2*length))
	var wait sync.WaitGroup
	for _, o := range pool {
		wait.Go(func() {
			for f := range queue {
				o.oneFull(base, l, f, &y, kek)
				step()
			}
		})
	}
	tried, start := 0, time.Now()
	for n := int64(1); n <= length; n += int64(record.Pick(61, 1)) {
		for _, syncs := range []bool{false, true} {
			if record.Full() || syncs == (n%2 == 0) {
				queue <- &full{n: n, syncs: syncs}
				tried++
			}
		}
	}
	close(queue)
	wait.Wait()
	record.Row(t, 11, "the disk full at every operation that needs space, without a reserve: acknowledged writes lost 0, nothing damaged; the member ends (reads with it) and serves again after a start with space, no disarming", map[string]float64{
		"positions": float64(tried), "ended": float64(y.ended), "refused at start": float64(y.refused), "went on": float64(y.alive), "served after a restart on the full disk": float64(y.startsOn),
		"longest from space to a write, restart included, s": y.slowest.Seconds(), "seconds": time.Since(start).Seconds(),
	})
}

// TestReserve is row 11 as it goes in daily life: free space falls below the reserve on one member, of one and of three. Writes are
// refused, reads, deletes and compactions work; with space again writes go on by themselves.
func TestReserve(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	for _, size := range []int{1, 3} {
		c := newCluster(t, size, newRand(s, uint64(size)))
		check(t, c.startAll())
		l := newLedger()
		cl, err := dial(c.members...)
		check(t, err)
		var raise, resume time.Duration
		rounds := record.Pick(1, 25)
		for round := range rounds {
			victim := c.members[round%size]
			w := l.writer(s)
			for range 30 {
				w.one(t.Context(), cl)
			}
			little := vfs.DiskUsage{AvailBytes: 100 << 20, TotalBytes: 100 << 30, UsedBytes: 99 << 30}
			plenty := victim.disk.usage.Load()
			victim.disk.usage.Store(&little)
			start := time.Now()
			for {
				_, err := cl.Put(t.Context(), "probe", "x")
				l.begin("probe", "x")
				if err == nil {
					l.end("probe", "x")
				} else if strings.Contains(err.Error(), "database space exceeded") {
					break
				} else {
					t.Fatalf("round %d: refused with %v", round, err)
				}
				if time.Since(start) > 20*time.Second {
					t.Fatalf("round %d: writes go on although the disk is nearly full", round)
				}
				pause(5 * time.Millisecond)
			}
			raise = max(raise, time.Since(start))
			check(t, whileFull(cl, l))
			victim.disk.usage.Store(plenty)
			start = time.Now()
			for !putsAgain(t.Context(), cl, l) {
				if time.Since(start) > 30*time.Second {
					t.Fatalf("round %d: writes are still refused", round)
				}
				pause(5 * time.Millisecond)
			}
			resume = max(resume, time.Since(start))
		}
		cl.Close()
		c.verify(l, rounds)
		record.Row(t, 11, "free disk below the reserve: reads, deletes, compaction and defragmentation work, writes are refused, and go on by themselves when there is space", map[string]float64{
			"members": float64(size), "rounds": float64(rounds), "longest until writes are refused, s": raise.Seconds(), "longest from space to a write, s": resume.Seconds(),
		})
		for _, m := range c.members {
			m.drop()
		}
	}
}

// putsAgain reports whether a put is taken: a delete would be while the disk is full.
func putsAgain(ctx context.Context, cl *clientv3.Client, l *ledger) bool {
	l.begin("probe", "y")
	if _, err := cl.Put(ctx, "probe", "y"); err != nil {
		return false
	}
	l.end("probe", "y")
	return true
}

// whileFull does what has to work while writes are refused.
func whileFull(cl *clientv3.Client, l *ledger) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	got, rev, err := readAll(cl)
	if err != nil {
		return err
	}
	n := 0
	for key := range got {
		if n++; n > 5 || key == "probe" {
			continue
		}
		l.begin(key, "")
		if _, err := cl.Delete(ctx, key); err != nil {
			return err
		}
		l.end(key, "")
	}
	if _, err := cl.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	for _, e := range cl.Endpoints() {
		if _, err := cl.Defragment(ctx, e); err != nil {
			return err
		}
	}
	if _, err := cl.Put(ctx, "probe", "x"); err == nil {
		return errors.New("a write is taken while the alarm is up")
	}
	return nil
}
