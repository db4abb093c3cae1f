package scorecard

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// lastWrite is the newest write to one kind of file, and the world in the moment before it.
type lastWrite struct {
	name   string // of the kind, and when
	path   string
	before *vfs.MemFS
	data   []byte // what was to be written
	at     int64
	known  *ledger
}

// watchWrites keeps the newest write of every kind of file.
func watchWrites(m *member, l *ledger, when string, into map[string]*lastWrite) {
	var mu sync.Mutex
	m.disk.onOp(func(o op) *trouble {
		if o.kind != opWrite || len(bytes.Trim(o.data, "\x00")) == 0 { // room that is prepared holds nothing
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		name := o.class() + ", " + when
		w := &lastWrite{name: name, path: o.path, before: image(m.disk.mem), data: slices.Clone(o.data), at: o.at, known: l.copy()}
		if w.at < 0 {
			if b, err := w.before.UnsafeGetFileDataBuffer(o.path); err == nil {
				w.at = int64(len(b))
			}
		}
		into[name] = w
		return nil
	})
}

// The ways to tear a write at a byte: what comes behind is not there, is zeros, or is anything. Disks that write whole sectors
// leave the first two. Anything else behind the tear cannot be told from damage to what was synced, so a refusal that says so
// is right there, and is counted.
var tears = []string{"cut off", "zeros", "garbage"}

// torn is the world after a power cut in the middle of w.
func (w *lastWrite) torn(at int, how string) *vfs.MemFS {
	mem := image(w.before)
	old, err := mem.UnsafeGetFileDataBuffer(w.path)
	if err != nil {
		panic(err)
	}
	b := append(slices.Clone(old[:min(int64(len(old)), w.at)]), w.data[:at]...)
	rest := make([]byte, len(w.data)-at)
	switch how {
	case "cut off":
		rest = nil
		if w.at+int64(len(w.data)) <= int64(len(old)) { // in room that was there before: what was there stays
			rest = old[w.at+int64(at) : w.at+int64(len(w.data))]
		}
	case "garbage":
		rng := rand.New(rand.NewPCG(uint64(at), 1))
		for i := range rest {
			rest[i] = byte(1 + rng.UintN(255))
		}
	}
	b = append(b, rest...)
	if len(b) < len(old) {
		b = append(b, old[len(b):]...)
	}
	overwrite(mem, w.path, b)
	return mem
}

// overwrite replaces what a file holds.
func overwrite(mem *vfs.MemFS, path string, b []byte) {
	f, err := mem.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		panic(err)
	}
	if _, err := f.Write(b); err != nil {
		panic(err)
	}
	if err := f.Sync(); err != nil {
		panic(err)
	}
	_ = f.Close()
}

// hole is the world in which one sector of w did not get to the disk, though later ones did.
func (w *lastWrite) hole(sector int64) *vfs.MemFS {
	mem := image(w.before)
	old, err := mem.UnsafeGetFileDataBuffer(w.path)
	if err != nil {
		panic(err)
	}
	b := slices.Clone(old)
	if grow := w.at + int64(len(w.data)) - int64(len(b)); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	for i, v := range w.data {
		if (w.at+int64(i))/512 != sector {
			b[w.at+int64(i)] = v
		}
	}
	overwrite(mem, w.path, b)
	return mem
}

// offsets are the places where a write of n bytes is torn: each byte of a short one, and of a long one each sector's bounds and
// the bytes beside, its head and its end, and some more.
func offsets(n int, exhaustive bool, rng *rand.Rand) []int {
	set := map[int]bool{0: true, n: true, n - 1: true, n / 2: true}
	if exhaustive {
		for i := 0; i <= n; i++ {
			if n <= 1500 || i < 128 || i > n-128 || i%512 <= 1 || i%512 == 511 {
				set[i] = true
			}
		}
		for range 64 {
			set[rng.IntN(n+1)] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// boots starts the member on mem and reads everything. It returns what is wrong, in words.
func (m *member) boots(mem *vfs.MemFS, l *ledger) string {
	m.disk = newDisk(mem)
	defer m.release()
	if err := m.start(); err != nil {
		return "it does not start: " + text(err)
	}
	cl, err := dial(m)
	if err != nil {
		return err.Error()
	}
	defer cl.Close()
	got, _, err := readAll(cl)
	if err != nil {
		return "it cannot be read: " + text(err)
	}
	if wrong := l.copy().settle(got); len(wrong) > 0 {
		return fmt.Sprintf("%d keys are wrong: %v", len(wrong), wrong[:min(3, len(wrong))])
	}
	return ""
}

// twins are members that open copies of one disk, one at a time each.
func twins(t *testing.T, n int, rng *rand.Rand) []*member {
	t.Helper()
	var pool []*member
	for range n {
		pool = append(pool, newCluster(t, 1, rng).members[0])
	}
	for _, o := range pool[1:] {
		o.config.Seal, o.config.DataDir, o.config.Name = pool[0].config.Seal, pool[0].config.DataDir, pool[0].config.Name
		o.config.Advertise, o.config.Bootstrap = pool[0].config.Advertise, pool[0].config.Bootstrap
	}
	return pool
}

// TestTornWrites is row 6: power fails in the middle of a write. The newest write to every kind of file, at a first start, in
// a life and at an end, is torn at every byte, in three ways, and each of its sectors is left out. The member starts, and has
// every acknowledged write.
func TestTornWrites(t *testing.T) {
	s := seed(t)
	rng := newRand(s, 6)
	pool := twins(t, record.Pick(2, 3), rng)
	m := pool[0]
	l := newLedger()
	writes := map[string]*lastWrite{}
	watchWrites(m, l, "first start", writes)
	m.mustStart()
	cl, err := dial(m)
	check(t, err)
	check(t, lifetime(cl, l.writer(s)))
	cl.Close()
	check(t, m.stop())
	m.disk = newDisk(m.disk.mem)
	watchWrites(m, l, "later", writes)
	m.mustStart()
	cl, err = dial(m)
	check(t, err)
	check(t, lifetime(cl, l.writer(s)))
	cl.Close()
	check(t, m.stop())

	start := time.Now()
	var boots atomic.Int64
	type job struct {
		w       *lastWrite
		mem     func() *vfs.MemFS
		what    string
		garbage bool
	}
	var garbage, refused atomic.Int64
	queue, step := make(chan job), progress(t, len(writes))
	var wait sync.WaitGroup
	for _, o := range pool {
		wait.Go(func() {
			for j := range queue {
				boots.Add(1)
				wrong := o.boots(j.mem(), j.w.known)
				if j.garbage {
					garbage.Add(1)
					if strings.Contains(wrong, "the file that is named is damaged") {
						refused.Add(1)
						continue
					}
				}
				if wrong != "" {
					t.Errorf("%s (%s): %s: %s", j.w.name, j.w.path, j.what, wrong)
				}
			}
		})
	}
	kinds := slices.Sorted(maps.Keys(writes))
	for i, name := range kinds {
		w := writes[name]
		places := offsets(len(w.data), record.Full(), rng)
		if !record.Full() {
			places = places[i%len(places) : i%len(places)+1]
		}
		for _, at := range places {
			for k, how := range tears {
				if record.Full() && rng.IntN(1000) < part(1000) || !record.Full() && (i+at)%3 == k {
					queue <- job{w, func() *vfs.MemFS { return w.torn(at, how) }, fmt.Sprintf("torn at %d of %d, then %s", at, len(w.data), how), how == "garbage"}
				}
			}
		}
		for sector := w.at / 512; record.Full() && sector <= (w.at+int64(len(w.data))-1)/512; sector++ {
			queue <- job{w, func() *vfs.MemFS { return w.hole(sector) }, fmt.Sprintf("without sector %d", sector), false}
		}
		step()
		t.Logf("%-36s %6d bytes, %d places", name, len(w.data), len(places))
	}
	close(queue)
	wait.Wait()
	torn := boots.Load() - garbage.Load()
	record.Row(t, 6, "the newest write to every kind of file torn at every byte, with nothing, the old bytes or zeros behind, and without each of its sectors: starts 100 %, acknowledged writes lost 0", map[string]float64{
		"kinds of files": float64(len(kinds)), "starts": float64(torn), "seconds": time.Since(start).Seconds(),
	})
	record.Row(t, 6, "the same with random bytes behind the tear: acknowledged writes lost 0; some are refused as damage, with what to do", map[string]float64{
		"starts": float64(garbage.Load()), "refused": float64(refused.Load()),
	})
}
