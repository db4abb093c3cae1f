package powerfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// mounted returns a disk, or skips where none can be mounted.
func mounted(t *testing.T, capacity int64) (*Disk, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("this kernel has no FUSE: ", err)
	}
	dir := t.TempDir()
	d, err := New(dir, capacity)
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	return d, dir
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name string, off int64, data []byte, sync bool) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	defer f.Close()
	_, err = f.WriteAt(data, off)
	check(t, err)
	if sync {
		check(t, f.Sync())
	}
}

func syncDir(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	defer f.Close()
	check(t, f.Sync())
}

func cut(t *testing.T, d *Disk, mode Mode) Loss {
	t.Helper()
	loss, err := d.Cut(mode, rand.New(rand.NewPCG(1, 2)))
	check(t, err)
	return loss
}

func content(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	check(t, err)
	return data
}

func TestWhatWasSyncedStays(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	name := filepath.Join(dir, "a")
	old := bytes.Repeat([]byte("o"), 10_000)
	write(t, name, 0, old, true)
	syncDir(t, dir)
	write(t, name, 5_000, bytes.Repeat([]byte("n"), 20_000), false)
	if got := content(t, name); len(got) != 25_000 || got[4_999] != 'o' || got[5_000] != 'n' {
		t.Fatalf("before the cut a reader does not see what was written: %d bytes", len(got))
	}
	if loss := cut(t, d, Drop); loss != (Loss{Files: 1}) {
		t.Errorf("lost %+v, want one file", loss)
	}
	if got := content(t, name); !bytes.Equal(got, old) {
		t.Errorf("after the cut %d bytes, not the %d that were synced", len(got), len(old))
	}
	if loss := cut(t, d, Drop); loss != (Loss{}) {
		t.Errorf("a cut with nothing unsynced lost %+v", loss)
	}
}

func TestNamesAreSyncedApart(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	write(t, filepath.Join(dir, "kept"), 0, []byte("1"), true)
	write(t, filepath.Join(dir, "old"), 0, []byte("2"), true)
	check(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	syncDir(t, dir)
	write(t, filepath.Join(dir, "forgotten"), 0, []byte("3"), true)         // the file is synced, its name is not
	write(t, filepath.Join(dir, "sub", "forgotten"), 0, []byte("4"), true)  // the same below
	check(t, os.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "n"))) // not synced
	check(t, os.Remove(filepath.Join(dir, "kept")))                         // not synced
	if loss := cut(t, d, Drop); loss != (Loss{Names: 2}) {
		t.Errorf("lost %+v, want the names of two directories", loss)
	}
	names, err := os.ReadDir(dir)
	check(t, err)
	var got []string
	for _, e := range names {
		got = append(got, e.Name())
	}
	if len(got) != 3 || string(content(t, filepath.Join(dir, "old"))) != "2" || string(content(t, filepath.Join(dir, "kept"))) != "1" {
		t.Errorf("after the cut there is %q", got)
	}
	check(t, os.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "new")))
	syncDir(t, dir)
	cut(t, d, Drop)
	if string(content(t, filepath.Join(dir, "new"))) != "2" {
		t.Error("a rename that was synced is gone")
	}
}

func TestTornWritesEndAtSectors(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	name := filepath.Join(dir, "a")
	lengths := map[int]bool{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		write(t, name, 0, nil, true)
		check(t, os.Truncate(name, 0))
		write(t, name, 0, nil, true)
		syncDir(t, dir)
		write(t, name, 0, bytes.Repeat([]byte("x"), 3_000), false)
		_, err := d.Cut(Tear, rng)
		check(t, err)
		got := content(t, name)
		if len(got) != 3_000 && len(got)%sectorSize != 0 {
			t.Fatalf("%d bytes are left, not a number of sectors", len(got))
		}
		if !bytes.Equal(got, bytes.Repeat([]byte("x"), len(got))) {
			t.Fatalf("what is left is not a beginning of what was written: %q", got)
		}
		lengths[len(got)] = true
	}
	if len(lengths) < 3 {
		t.Errorf("20 cuts left only lengths %v", lengths)
	}
}

func TestScatteredSectors(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	name := filepath.Join(dir, "a")
	write(t, name, 0, bytes.Repeat([]byte("o"), 64*sectorSize), true)
	syncDir(t, dir)
	write(t, name, 0, bytes.Repeat([]byte("n"), 64*sectorSize), false)
	cut(t, d, Scatter)
	got := content(t, name)
	count := map[byte]int{}
	for at := 0; at < len(got); at += sectorSize {
		if !bytes.Equal(got[at:at+sectorSize], bytes.Repeat(got[at:at+1], sectorSize)) {
			t.Fatalf("the sector at %d is torn", at)
		}
		count[got[at]]++
	}
	if count['o'] < 10 || count['n'] < 10 {
		t.Errorf("sectors kept and lost: %v", count)
	}
}

func TestAFailedSyncIsNotMadeGoodByAnother(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	name := filepath.Join(dir, "a")
	write(t, name, 0, []byte("old"), true)
	syncDir(t, dir)
	d.FailSyncs(1)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("new"), 0)
	check(t, err)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("the sync that was to fail: %v", err)
	}
	check(t, f.Sync()) // as Linux does: nothing is dirty any more
	check(t, f.Close())
	if got := string(content(t, name)); got != "new" {
		t.Errorf("a program reads %q before the cut", got)
	}
	cut(t, d, Drop)
	if got := string(content(t, name)); got != "old" {
		t.Errorf("after the cut %q is there, which no sync has written", got)
	}
}

func TestFullAndSlow(t *testing.T) {
	d, dir := mounted(t, 1<<30)
	name := filepath.Join(dir, "a")
	write(t, name, 0, make([]byte, 8192), true)
	d.Fill(4096)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4096), 8192); err != nil {
		t.Errorf("the last page that is free: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 12288); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a full disk refuses what needs no room: %v", err)
	}
	d.Free(1 << 30)
	if _, err := f.WriteAt(make([]byte, 4096), 12288); err != nil {
		t.Errorf("after there was room again: %v", err)
	}
	d.Slow(200 * time.Millisecond)
	start := time.Now()
	check(t, f.Sync())
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("a slow sync took %v", took)
	}
	if d.Used() != 4*4096 {
		t.Errorf("%d bytes are used, want four pages", d.Used())
	}
	check(t, os.Remove(name))
	check(t, f.Close())
	for end := time.Now().Add(5 * time.Second); d.Used() != 0; <-time.After(10 * time.Millisecond) { // the kernel says later that it has let go
		if time.Now().After(end) {
			t.Fatalf("%d bytes are used after the only file was removed", d.Used())
		}
	}
}
