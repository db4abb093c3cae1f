package storage_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/storage/storagetest"
)

func TestContract(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		storagetest.Run(t, func(*testing.T) vfs.FS { return vfs.NewMem() })
	})
	t.Run("os", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) vfs.FS {
			t.Chdir(t.TempDir())
			return vfs.Default
		})
	})
}

func open(t *testing.T, fs vfs.FS, onFatal func(error)) *storage.Engine {
	t.Helper()
	e, err := storage.Open(storage.Options{FS: fs, Dir: "engine", MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFatal: onFatal})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestCrash takes crash images while batches and flushes go on: each image must hold the state after some batch, not
// older than the last finished flush, whatever part of the unsynced bytes reached the disk.
func TestCrash(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { crash(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

// crashKeys is the number of keys of TestCrash; the value of each is the last batch that wrote it.
const crashKeys = 20

func crash(t *testing.T, r *rand.Rand) {
	fs := vfs.NewCrashableMem()
	var states [][crashKeys]int // after each batch
	states = append(states, [crashKeys]int{})
	flushed := 0
	e := open(t, fs, func(err error) { t.Error(err) })
	padding := make([]byte, 500)
	for n := 1; n <= 300; n++ {
		state := states[n-1]
		b := e.NewBatch()
		b.Set([]byte("n"), fmt.Append(nil, n))
		for range 1 + r.IntN(8) {
			k := r.IntN(crashKeys)
			state[k] = n
			b.Set(fmt.Appendf(nil, "k%02d", k), fmt.Appendf(nil, "%d %x", n, padding))
		}
		if err := e.Apply(b); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		states = append(states, state)
		if r.IntN(30) == 0 {
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = n
		}
		if r.IntN(40) == 0 {
			image := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
			checkImage(t, image, states, flushed)
		}
	}
	// Go on from an image: what was lost is written again.
	image := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: r})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, image, func(err error) { t.Error(err) })
	b := e.NewBatch()
	b.Set([]byte("after"), []byte("crash"))
	if err := errors.Join(e.Apply(b), b.Close(), e.Flush(), e.Close()); err != nil {
		t.Fatal(err)
	}
	checkImage(t, image, states, flushed)
}

func checkImage(t *testing.T, image vfs.FS, states [][crashKeys]int, flushed int) {
	t.Helper()
	e := open(t, image, func(err error) { t.Error(err) })
	defer e.Close()
	n := 0
	if v, ok, err := e.Get([]byte("n"), nil); err != nil {
		t.Fatal(err)
	} else if ok {
		fmt.Sscan(string(v), &n)
	}
	if n < flushed {
		t.Fatalf("batch %d was flushed, the image ends at %d", flushed, n)
	}
	for k, want := range states[n] {
		got := 0
		if v, ok, err := e.Get(fmt.Appendf(nil, "k%02d", k), nil); err != nil {
			t.Fatal(err)
		} else if ok {
			fmt.Sscan(string(v), &got)
		}
		if got != want {
			t.Fatalf("key %d holds batch %d, after batch %d it was %d", k, got, n, want)
		}
	}
}

// TestSyncFailure: a flush whose sync fails is fatal and told to the owner.
func TestSyncFailure(t *testing.T) {
	var broken atomic.Bool
	injected := errors.New("injected")
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) && strings.HasSuffix(op.Path, ".sst") {
			return injected
		}
		return nil
	}))
	fatal := make(chan error, 1)
	e := open(t, fs, func(err error) { fatal <- err })
	b := e.NewBatch()
	b.Set([]byte("k"), []byte("v"))
	if err := e.Apply(b); err != nil {
		t.Fatal(err)
	}
	b.Close()
	broken.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush() }()
	if err := <-fatal; !errors.Is(err, injected) {
		t.Fatalf("fatal error %v", err)
	}
	broken.Store(false) // the engine tries again, so that the test can end; a real owner has stopped the process
	if err := <-flushed; err != nil {
		t.Logf("flush: %v", err)
	}
	e.Close()
}

// TestCorruptTable: a damaged block is never served, and the owner is told.
func TestCorruptTable(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, fs, func(err error) { t.Error(err) })
	b := e.NewBatch()
	for i := range 100 {
		b.Set(fmt.Appendf(nil, "key-%03d", i), fmt.Appendf(nil, "value-%03d", i))
	}
	if err := errors.Join(e.Apply(b), b.Close(), e.Flush(), e.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("engine")
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			damage(t, fs, fs.PathJoin("engine", name), 100)
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatal("no table was written")
	}
	var told atomic.Pointer[error]
	e = open(t, fs, func(err error) { told.Store(&err) })
	defer e.Close()
	v, ok, err := e.Get([]byte("key-050"), nil)
	if err == nil || !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("got %q %v %v", v, ok, err)
	}
	if p := told.Load(); p == nil || !errors.Is(*p, storage.ErrCorrupt) {
		t.Fatal("the owner was not told")
	}
	it, err := e.NewIter(storage.Span{})
	if err != nil {
		t.Fatal(err)
	}
	if it.First() {
		t.Fatalf("served %q", it.Key())
	}
	if err := it.Close(); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("iterator: %v", err)
	}
}

// damage flips one bit.
func damage(t *testing.T, fs vfs.FS, path string, offset int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSpan(t *testing.T) {
	s := storage.KeySpan([]byte("a"))
	if !s.SingleKey() || s.Empty() || !s.Contains([]byte("a")) || s.Contains([]byte("a\x00")) || s.Contains([]byte("")) {
		t.Error("KeySpan")
	}
	all := storage.Span{}
	if all.SingleKey() || all.Empty() || !all.Contains([]byte("\xff\xff")) || !all.Overlaps(s) {
		t.Error("the span of everything")
	}
	empty := storage.Span{Start: []byte("b"), End: []byte("a")}
	if !empty.Empty() || empty.Overlaps(all) || (storage.Span{End: []byte{}}).Contains(nil) {
		t.Error("empty spans")
	}
}
