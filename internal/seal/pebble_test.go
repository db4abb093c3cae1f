package seal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func pebbleOptions(fs vfs.FS, wal bool) *pebble.Options {
	o := &pebble.Options{
		FS: fs, DisableWAL: !wal, FormatMajorVersion: pebble.FormatNewest, MemTableSize: 256 << 10,
		Logger: quiet{}, BytesPerSync: 128 << 10,
	}
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{Enabled: true, MinimumSize: 512, MaxBlobReferenceDepth: 10, TargetGarbageRatio: 1}
	}
	return o
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, args ...any) {
	panic(fmt.Sprintf(f, args...))
}

const canary = "CANARY-a-secret-that-must-not-be-on-disk-"

func canaryKey(i int) []byte { return fmt.Appendf(nil, "%skey-%06d", canary, i) }

func canaryValue(i int) []byte {
	v := fmt.Appendf(nil, "%svalue-%06d-", canary, i)
	return append(v, bytes.Repeat([]byte{byte(i)}, i%2000)...)
}

func checkPebble(t *testing.T, db *pebble.DB, n int) {
	t.Helper()
	for i := range n {
		v, closer, err := db.Get(canaryKey(i))
		if err != nil || !bytes.Equal(v, canaryValue(i)) {
			t.Fatalf("key %d: %d bytes, %v", i, len(v), err)
		}
		closer.Close()
	}
}

// runPebble writes n keys with flushes and compactions, reopens, takes a checkpoint, and opens that.
func runPebble(t *testing.T, inner vfs.FS, ring *Keyring, dir string, wal bool) {
	fs := NewFS(inner, ring, dir)
	const n = 6000
	db := must(pebble.Open(dir+"/state-1", pebbleOptions(fs, wal)))(t)
	for i := range n {
		if err := db.Set(canaryKey(i), canaryValue(i), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if i%1500 == 1499 {
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Compact(t.Context(), []byte(canary), []byte(canary+"z"), true); err != nil {
		t.Fatal(err)
	}
	checkPebble(t, db, n)
	if err := db.Checkpoint(dir + "/checkpoint"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"/state-1", "/checkpoint"} {
		db = must(pebble.Open(dir+at, pebbleOptions(fs, wal)))(t)
		checkPebble(t, db, n)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	noPlaintext(t, inner, dir)
	if err := Scrub(t.Context(), inner, ring, dir, 1<<40, func(f Finding) { t.Errorf("scrub: %+v", f) }); err != nil {
		t.Fatal(err)
	}
}

// noPlaintext looks for what only plaintext has in every file below dir.
func noPlaintext(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	files := 0
	var walk func(string)
	walk = func(dir string) {
		for _, name := range must(fs.List(dir))(t) {
			path := fs.PathJoin(dir, name)
			info := must(fs.Stat(path))(t)
			if info.IsDir() {
				walk(path)
				continue
			}
			files++
			b := raw(t, fs, path)
			for _, word := range []string{"CANARY", "secret", "[Version]", "pebble", "leveldb.BytewiseComparator", "rocksdb"} {
				if i := bytes.Index(b, []byte(word)); i >= 0 {
					t.Errorf("%s holds %q in plain text at byte %d", path, word, i)
				}
			}
			if name == lockName {
				if len(b) != 0 {
					t.Errorf("%s holds %d bytes", path, len(b))
				}
				continue
			}
			if name != keyringName && !strings.HasPrefix(string(b), magicFile) {
				t.Errorf("%s is not a sealed file", path)
			}
		}
	}
	walk(dir)
	if files < 10 {
		t.Errorf("looked at %d files only", files)
	}
}

func TestPebbleInMemory(t *testing.T) {
	t.Parallel()
	for _, wal := range []bool{false, true} {
		fs, ring := newRing(t)
		runPebble(t, fs, ring, "/data", wal)
	}
}

func TestPebbleOnDisk(t *testing.T) {
	t.Parallel()
	fs, dir, ring := diskFS(t)
	runPebble(t, fs, ring, dir, false)
}

// TestPebbleCrash reopens the store as it may be after a crash at many moments, with any part of what was not synced.
// What was flushed must be there, and nothing may be taken for tampering.
func TestPebbleCrash(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	db := must(pebble.Open("/data/state-1", pebbleOptions(fs, false)))(t)
	if d := must(mem.OpenDir("/data"))(t); true {
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	flushed := 0
	for i := range 1200 {
		if err := db.Set(canaryKey(i), canaryValue(i), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if i%200 == 199 {
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = i + 1
		}
		if i%40 != 39 {
			continue
		}
		crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		ring := reopenRing(t, crashed)
		again, err := pebble.Open("/data/state-1", pebbleOptions(NewFS(crashed, ring, "/data"), false))
		if err != nil {
			t.Fatalf("after %d keys: %v", i, err)
		}
		checkPebble(t, again, flushed)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
