package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

func newFS(t testing.TB) (*vfs.MemFS, *Keyring, *FS) {
	mem, ring := newRing(t)
	if err := mem.MkdirAll("/data/state-1", 0o700); err != nil {
		t.Fatal(err)
	}
	return mem, ring, NewFS(mem, ring, "/data/state-1")
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]kind{
		"LOCK": kindLock, "000001.sst": kindObject, "000001.blob": kindObject, "MANIFEST-000001": kindStream,
		"OPTIONS-000003": kindObject, "temporary.000003.dbtmp": kindObject, "000002.log": kindStream, "000002-001.log": kindStream,
		"marker.manifest.000001.MANIFEST-000001": kindMarker,
		"":                                       0, "KEYRING": 0, "CURRENT": 0, "x.sst": 0, ".sst": 0, "000001.sst.bak": 0, "MANIFEST-": 0, "MANIFEST-1x": 0,
		"OPTIONS-": 0, "temporary.x.dbtmp": 0, "000001": 0, "REMOTE-OBJ-CATALOG-000001": 0, "failover_source": 0, "1-2-3.log": 0, "CURRENT.000001.dbtmp": 0,
	} {
		if got, _ := classify(name); got != want {
			t.Errorf("%q is of kind %d, want %d", name, got, want)
		}
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dir, name, want string }{
		{"/data", "/data/x", "x"}, {"/data", "/data/a/b", "a/b"}, {"/data/", "/data//a/./b", "a/b"}, {"/", "/a", "a"}, {".", "a/b", "a/b"}, {"d", "d/a", "a"},
		{"/data", "/data/a/temporary.000007.dbtmp", "a/OPTIONS-000007"},
		{"/data", "/data", ""}, {"/data", "/database/x", ""}, {"/data", "/data/../x", ""}, {"/data", "x", ""}, {".", "/a", ""}, {".", "../a", ""}, {"/", "a", ""},
	} {
		if got, ok := placeBelow(c.dir, c.name); got != c.want || ok != (c.want != "") {
			t.Errorf("%s under %s: %q, %v", c.name, c.dir, got, ok)
		}
	}
}

// TestEveryMethod calls what pebble may call, where it must refuse and where it must work.
func TestEveryMethod(t *testing.T) {
	t.Parallel()
	mem, _, fs := newFS(t)
	const dir = "/data/state-1/"
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was not refused", what)
		}
	}
	create := func(name string) error {
		f, err := fs.Create(dir+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		return f.Close()
	}
	for _, name := range []string{"CURRENT", "foo", "LOCK", "KEYRING", "000001.sst.tmp"} {
		refused("creating "+name, create(name))
	}
	refused("creating outside root", func() error {
		_, err := fs.Create("/data/000001.sst", vfs.WriteCategoryUnspecified)
		return err
	}())
	_, err := fs.OpenReadWrite(dir+"000001.sst", vfs.WriteCategoryUnspecified)
	refused("OpenReadWrite", err)
	_, err = fs.Open(dir + "foo")
	refused("opening an unknown name", err)
	_, err = fs.Open(dir + "000009.sst")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	_, err = fs.Stat(dir + "000009.sst")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	refused("removing the keyring", fs.Remove("/data/KEYRING"))
	refused("removing all", fs.RemoveAll("/data"))
	outer := NewFS(mem, fs.ring, "/data")
	refused("removing the keyring", outer.Remove("/data/KEYRING"))
	refused("removing all", outer.RemoveAll("/data"))
	if _, err := fs.Lock(dir + "LOCK"); err != nil {
		t.Error(err)
	}
	_, err = fs.Lock(dir + "000001.sst")
	refused("locking a table", err)
	if info := must(fs.Stat(dir + "LOCK"))(t); info.Size() != 0 {
		t.Error("the lock has content")
	}
	if info := must(fs.Stat(dir))(t); !info.IsDir() {
		t.Error("the directory is none")
	}

	// A table: linked it is refused so that pebble copies, and the copy opens.
	data := fill(40000)
	writeTable(t, fs, dir+"000001.sst", data)
	err = fs.Link(dir+"000001.sst", dir+"000002.sst")
	if err == nil || errors.Is(err, os.ErrExist) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Errorf("link: %v", err)
	}
	if err := vfs.LinkOrCopy(fs, dir+"000001.sst", dir+"000002.sst"); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, fs, dir+"000002.sst"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy: %v", err)
	}
	refused("renaming a table", fs.Rename(dir+"000001.sst", dir+"000003.sst"))
	f := must(fs.Open(dir + "000001.sst"))(t)
	_, err = f.Write([]byte("x"))
	refused("writing to a file opened for reading", err)
	_, err = f.WriteAt([]byte("x"), 0)
	refused("WriteAt", err)
	for _, r := range [][2]int64{{0, 0}, {0, 1}, {39999, 1}, {100, 1 << 40}} {
		if err := f.Prefetch(r[0], r[1]); err != nil {
			t.Error(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	w := must(fs.Create(dir+"000004.sst", vfs.WriteCategoryUnspecified))(t)
	_, err = w.WriteAt([]byte("x"), 0)
	refused("WriteAt", err)
	_, err = w.Read(make([]byte, 1))
	refused("reading a file that is being written", err)
	if w.Fd() == vfs.InvalidFd {
		t.Error("InvalidFd makes pebble sync, and so seal, a table that it still writes")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}

	// The OPTIONS file is written under a temporary name.
	o := must(fs.Create(dir+"temporary.000005.dbtmp", vfs.WriteCategoryUnspecified))(t)
	if _, err := o.Write([]byte("options")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Sync(), o.Close()); err != nil {
		t.Fatal(err)
	}
	refused("renaming to another number", fs.Rename(dir+"temporary.000005.dbtmp", dir+"OPTIONS-000006"))
	if err := fs.Rename(dir+"temporary.000005.dbtmp", dir+"OPTIONS-000005"); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, fs, dir+"OPTIONS-000005"); err != nil || string(got) != "options" {
		t.Errorf("got %q, %v", got, err)
	}

	// A log is never reused.
	if err := create("000006.log"); err != nil {
		t.Fatal(err)
	}
	l := must(fs.ReuseForWrite(dir+"000006.log", dir+"000007.log", vfs.WriteCategoryUnspecified))(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Stat(dir + "000006.log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old log: %v", err)
	}
	if vfs.Root(fs) != vfs.FS(mem) {
		t.Error("Unwrap does not lead to the bottom")
	}
}

// TestManifestWhileOpen reads a stream that is open for append, as Checkpoint does, at many sizes of reads and writes.
func TestManifestWhileOpen(t *testing.T) {
	t.Parallel()
	_, _, fs := newFS(t)
	const name = "/data/state-1/MANIFEST-000001"
	w := must(fs.Create(name, vfs.WriteCategoryUnspecified))(t)
	rng := rand.New(rand.NewPCG(10, 11))
	var all []byte
	for i := range 60 {
		p := fill(rng.IntN(3000))
		if i == 30 {
			p = fill(3 << 20)
		}
		if _, err := w.Write(bytes.Clone(p)); err != nil {
			t.Fatal(err)
		}
		all = append(all, p...)
		if i%3 == 0 {
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if i%10 != 9 {
			continue
		}
		r := must(fs.Open(name, vfs.SequentialReadsOption))(t)
		if info := must(r.Stat())(t); info.Size() != int64(len(all)) {
			t.Fatalf("size %d, want %d", info.Size(), len(all))
		}
		if info := must(fs.Stat(name))(t); info.Size() != int64(len(all)) {
			t.Fatalf("size %d, want %d", info.Size(), len(all))
		}
		limit := rng.IntN(len(all))
		if got := must(io.ReadAll(io.LimitReader(r, int64(limit))))(t); !bytes.Equal(got, all[:limit]) {
			t.Fatal("the limited copy differs")
		}
		for range 20 {
			off, n := rng.IntN(len(all)), rng.IntN(5000)
			p := make([]byte, n)
			got, err := r.ReadAt(p, int64(off))
			if want := min(n, len(all)-off); got != want || !bytes.Equal(p[:got], all[off:off+got]) || err != nil && err != io.EOF {
				t.Fatalf("ReadAt(%d, %d) = %d, %v", n, off, got, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestManifestTampered flips bytes of the MANIFEST of a real store. Pebble stops reading a MANIFEST silently at the
// first record that it does not like; it must not get that far.
func TestManifestTampered(t *testing.T) {
	t.Parallel()
	mem, _, fs := newFS(t)
	db := must(pebble.Open("/data/state-1", pebbleOptions(fs, false)))(t)
	for i := range 5 {
		if err := errors.Join(db.Set(canaryKey(i), []byte("v"), pebble.NoSync), db.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	names := must(mem.List("/data/state-1"))(t)
	i := slices.IndexFunc(names, func(n string) bool { k, c := classify(n); return k == kindStream && c == classManifest })
	path := "/data/state-1/" + names[i]
	good := raw(t, mem, path)
	end := int64(len(good))
	for frameAt := int64(preambleSize); frameAt < end; { // find where the last frame, which attests the one before, begins
		next := frameAt + frameSize(int64(good[frameAt+2])<<8|int64(good[frameAt+3]))
		if next >= int64(len(good)) {
			end = frameAt
			break
		}
		frameAt = next
	}
	for at := range end {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		put(t, mem, path, b)
		if _, err := readAll(t, fs, path); err == nil {
			t.Fatalf("a flip at byte %d of %d was not noticed", at, end)
		}
		if at%97 == 0 {
			if db, err := pebble.Open("/data/state-1", pebbleOptions(fs, false)); err == nil {
				db.Close()
				t.Fatalf("pebble opened with byte %d flipped", at)
			}
		}
	}
}

func TestMarkers(t *testing.T) {
	t.Parallel()
	mem, _, fs := newFS(t)
	const dir = "/data/state-1"
	m, value, err := atomicfs.LocateMarker(fs, dir, "manifest")
	if err != nil || value != "" {
		t.Fatal(value, err)
	}
	for i := 1; i < 5; i++ {
		if err := m.Move(fmt.Sprintf("MANIFEST-%06d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if v := must(atomicfs.ReadMarker(fs, dir, "manifest"))(t); v != "MANIFEST-000004" {
		t.Errorf("the marker says %s", v)
	}
	const name = "marker.manifest.000004.MANIFEST-000004"
	good := raw(t, mem, dir+"/"+name)
	if len(good) != markerSize {
		t.Errorf("%d bytes", len(good))
	}
	forged := dir + "/marker.manifest.000009.MANIFEST-000001"
	put(t, mem, forged, good)
	_, err = fs.List(dir)
	oneOf(t, err, ErrTampered)
	if _, err := pebble.Open(dir, pebbleOptions(fs, false)); err == nil {
		t.Error("pebble opened with a forged marker")
	}

	// What a crash leaves is left out, and the marker before it counts.
	for _, n := range []int{0, 1, 64, 120, markerSize - 1} {
		for _, b := range [][]byte{good[:n], append(bytes.Clone(good[:n]), make([]byte, markerSize-n)...)} {
			put(t, mem, forged, b)
			if v := must(atomicfs.ReadMarker(fs, dir, "manifest"))(t); v != "MANIFEST-000004" {
				t.Errorf("the marker says %s", v)
			}
		}
	}
	if err := mem.Remove(forged); err != nil {
		t.Fatal(err)
	}
	missed := 0
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		put(t, mem, dir+"/"+name, b)
		names, err := fs.List(dir)
		if err == nil && !slices.Contains(names, name) {
			missed++ // its last byte became zero: it looks unfinished, and is not used
			continue
		}
		oneOf(t, err, ErrTampered, ErrCorrupt)
	}
	if missed > 1 {
		t.Errorf("%d flips look like a crash", missed)
	}

	// A store whose marker is gone is not a new store.
	put(t, mem, dir+"/"+name, good)
	writeTable(t, NewFS(mem, fs.ring, "/data"), dir+"/000010.sst", nil)
	if _, err := fs.List(dir); err != nil {
		t.Error(err)
	}
	if err := mem.Remove(dir + "/" + name); err != nil {
		t.Fatal(err)
	}
	_, err = fs.List(dir)
	oneOf(t, err, ErrTampered)
	if _, err := pebble.Open(dir, pebbleOptions(fs, false)); err == nil {
		t.Error("pebble started afresh in a store whose marker was removed")
	}
	f := must(fs.Create(dir+"/marker.x.000001.y", vfs.WriteCategoryUnspecified))(t)
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a marker has content")
	}
}

func TestScrub(t *testing.T) {
	t.Parallel()
	mem, ring, fs := newFS(t)
	const dir = "/data/state-1/"
	scrub := func() map[string]string {
		t.Helper()
		found := map[string]string{}
		if err := Scrub(t.Context(), mem, ring, "/data", 1<<40, func(f Finding) { found[f.Path] = f.Kind; _ = f.Err.Error() }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	writeTable(t, fs, dir+"000001.sst", fill(100000))
	open := must(fs.Create(dir+"000002.sst", vfs.WriteCategoryUnspecified))(t) // being written: left alone
	if _, err := open.Write(fill(100000)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(mem, ring, "/data/CURRENT", []byte("state-1")); err != nil {
		t.Fatal(err)
	}
	w := must(CreateStream(mem, ring, "/data/seg-1", StreamOptions{Segment: 1, Preallocate: 1 << 16}))(t)
	appendFrames(t, w, 0, 20)
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
	must(fs.Lock(dir + "LOCK"))(t)
	put(t, mem, "/data/left.tmp", []byte("a crash"))
	put(t, mem, "/data/blank", make([]byte, 5000))
	if found := scrub(); len(found) != 0 {
		t.Errorf("found %v in a sound store", found)
	}
	flip := func(path string, at int) {
		b := raw(t, mem, path)
		b[at] ^= 1
		put(t, mem, path, b)
	}
	flip(dir+"000001.sst", 50000)
	flip("/data/CURRENT", 10)
	flip("/data/seg-1", 400)
	flip("/data/KEYRING", 250)
	put(t, mem, dir+"000003.sst", []byte("plain text"))
	want := map[string]string{dir + "000001.sst": "tampered", "/data/CURRENT": "corrupt", "/data/seg-1": "corrupt", "/data/KEYRING": "tampered", dir + "000003.sst": "unsealed"}
	got := scrub()
	for path, k := range want {
		if got[path] != k {
			t.Errorf("%s: found %q, want %q", path, got[path], k)
		}
	}
	if len(got) != len(want) {
		t.Errorf("found %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Scrub(ctx, mem, ring, "/data", 1, func(Finding) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled scrub: %v", err)
	}
}

// TestScrubSegments damages the last frame of an older segment in a file that was not zeroed, where only the next segment
// tells it from a torn tail, and takes a segment away. A finished segment is looked at while its writer is open.
func TestScrubSegments(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	var ends []PrevSegment
	var prev PrevSegment
	for i := 1; i <= 3; i++ {
		w := must(CreateStream(mem, ring, fmt.Sprintf("/data/%d.seg", i), StreamOptions{Segment: uint64(i), Prev: prev}))(t)
		appendFrames(t, w, 0, 5)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		prev = w.End()
		ends = append(ends, prev)
		if i == 2 {
			w.Finish()
			defer w.Close()
			if _, err := w.Append(nil); err == nil {
				t.Error("a frame was appended to a finished segment")
			}
			continue
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	scrub := func(want ...string) {
		t.Helper()
		var found []string
		if err := Scrub(t.Context(), mem, ring, "/data", 1<<40, func(f Finding) { found = append(found, f.Path) }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(found, want) {
			t.Errorf("found %v, want %v", found, want)
		}
	}
	scrub()
	for i := 1; i <= 2; i++ {
		path := fmt.Sprintf("/data/%d.seg", i)
		good := raw(t, mem, path)
		bad := bytes.Clone(good)
		bad[ends[i-1].EndOffset-20] ^= 1
		put(t, mem, path, bad)
		scrub(path)
		put(t, mem, path, good[:ends[i-1].EndOffset-20])
		scrub(path)
		put(t, mem, path, good)
	}
	if err := mem.Remove("/data/2.seg"); err != nil {
		t.Fatal(err)
	}
	scrub("/data/3.seg")
}

func TestScrubPace(t *testing.T) {
	t.Parallel()
	mem, ring, fs := newFS(t)
	writeTable(t, fs, "/data/state-1/000001.sst", fill(200000))
	start := time.Now()
	if err := Scrub(t.Context(), mem, ring, "/data", 2000000, func(f Finding) { t.Error(f) }); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 80*time.Millisecond {
		t.Errorf("200,000 bytes at 2,000,000 bytes a second took %v", d)
	}
}

// TestAgainstPlain runs the same random operations over the sealed and a plain file system and compares what they say.
func TestAgainstPlain(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(12, seed))
		_, _, sealed := newFS(t)
		plain := vfs.NewMem()
		if err := plain.MkdirAll("/data/state-1", 0o700); err != nil {
			t.Fatal(err)
		}
		both := []vfs.FS{sealed, plain}
		name := func() string {
			return fmt.Sprintf("/data/state-1/%s", []string{"000001.sst", "000002.sst", "000003.blob", "MANIFEST-000004", "000005.log", "OPTIONS-000006"}[rng.IntN(6)])
		}
		for step := range 60 {
			n, size := name(), rng.IntN(70000)
			switch op := rng.IntN(5); op {
			case 0, 1:
				for _, fs := range both {
					f := must(fs.Create(n, vfs.WriteCategoryUnspecified))(t)
					for _, part := range [][]byte{fill(size / 3), fill(size)} {
						if _, err := f.Write(part); err != nil {
							t.Fatal(err)
						}
					}
					if err := errors.Join(f.Sync(), f.Close()); err != nil {
						t.Fatal(err)
					}
				}
			case 2:
				a, b := sealed.Remove(n), plain.Remove(n)
				if (a == nil) != (b == nil) || errors.Is(a, os.ErrNotExist) != errors.Is(b, os.ErrNotExist) {
					t.Fatalf("seed %d step %d: remove %s: %v and %v", seed, step, n, a, b)
				}
			case 3:
				a, errA := readAll(t, sealed, n)
				b, errB := readAll(t, plain, n)
				if !bytes.Equal(a, b) || (errA == nil) != (errB == nil) || errors.Is(errA, os.ErrNotExist) != errors.Is(errB, os.ErrNotExist) {
					t.Fatalf("seed %d step %d: read %s: %d and %d bytes, %v and %v", seed, step, n, len(a), len(b), errA, errB)
				}
			case 4:
				a, errA := sealed.Stat(n)
				b, errB := plain.Stat(n)
				if (errA == nil) != (errB == nil) || errA == nil && a.Size() != b.Size() {
					t.Fatalf("seed %d step %d: stat %s: %v and %v", seed, step, n, errA, errB)
				}
			}
		}
		a, b := must(sealed.List("/data/state-1"))(t), must(plain.List("/data/state-1"))(t)
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Fatalf("seed %d: %v and %v", seed, a, b)
		}
	}
}
