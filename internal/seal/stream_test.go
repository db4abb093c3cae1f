package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const logPath = "/data/log"

func payloadOf(i int) []byte { return fmt.Appendf(fill(i*37%700), "frame %d", i) }

// appendFrames writes frames from to to-1.
func appendFrames(t testing.TB, w *StreamWriter, from, to int) (refs []FrameRef) {
	t.Helper()
	for i := from; i < to; i++ {
		refs = append(refs, must(w.Append(payloadOf(i)))(t))
	}
	return refs
}

// drain reads a stream to its end and checks that it holds frames from 0 on.
func drain(t testing.TB, r *StreamReader) (n int, err error) {
	t.Helper()
	for {
		p, ref, err := r.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if !bytes.Equal(p, payloadOf(n)) {
			t.Fatalf("frame %d is another one", n)
		}
		if again := must(r.ReadFrame(ref))(t); !bytes.Equal(again, p) {
			t.Fatalf("ReadFrame(%+v) differs", ref)
		}
		n++
	}
}

// readStream opens the newest segment at logPath and drains it.
func readStream(t testing.TB, fs vfs.FS, ring *Keyring) (int, error) {
	t.Helper()
	r, err := OpenStream(fs, ring, logPath, true)
	if err != nil {
		return 0, err
	}
	n, err := drain(t, r)
	if closeErr := r.Close(); closeErr != nil {
		t.Fatal(closeErr)
	}
	return n, err
}

func TestStream(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 1 << 16, 1 << 20} {
		mem, ring := newRing(t)
		prev := PrevSegment{Segment: 6, EndOffset: 1234, LastTag: [16]byte{1, 2, 3}}
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 7, Prev: prev, Context: []byte("member 5"), Preallocate: pre}))(t)
		if _, err := CreateStream(mem, ring, logPath, StreamOptions{Segment: 8}); err == nil {
			t.Error("a stream was created over another")
		}
		refs := appendFrames(t, w, 0, 500)
		for _, i := range []int{0, 250, 499} {
			if p := must(w.ReadFrame(refs[i]))(t); !bytes.Equal(p, payloadOf(i)) {
				t.Errorf("frame %d is another one", i)
			}
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		r := must(OpenStream(mem, ring, logPath, true))(t)
		if r.Segment() != 7 || r.Prev() != prev || string(r.Context()) != "member 5" {
			t.Errorf("segment %d, %+v, %q", r.Segment(), r.Prev(), r.Context())
		}
		if n, err := drain(t, r); n != 500 || err != nil {
			t.Errorf("read %d frames: %v", n, err)
		}
		if end := must(r.End())(t); end != w.End() || end.EndOffset != w.Size() {
			t.Errorf("the reader ends at %+v, the writer at %+v", end, w.End())
		}
		bad := refs[250]
		bad.Number++
		_, err := r.ReadFrame(bad)
		oneOf(t, err, ErrTampered)
		bad = refs[250]
		bad.PrevTag[0]++
		_, err = r.ReadFrame(bad)
		oneOf(t, err, ErrTampered)
		bad = refs[250]
		bad.Offset += 8
		_, err = r.ReadFrame(bad)
		oneOf(t, err, ErrCorrupt)
		bad = refs[250]
		bad.Length++
		_, err = r.ReadFrame(bad)
		oneOf(t, err, ErrTampered, ErrCorrupt)
		if err := errors.Join(r.Close(), w.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Append(nil); err == nil {
			t.Error("appended after Close")
		}
	}
}

func TestStreamBigAndEmptyFrames(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1}))(t)
	sizes := []int{0, 1, 7, 8, 9, windowSize - 1, windowSize, 3 * windowSize, 6 << 20, 0, 5}
	for _, n := range sizes {
		must(w.Append(fill(n)))(t)
	}
	if _, err := w.Append(make([]byte, maxPayload+1)); err == nil {
		t.Error("a frame that is too large was taken")
	}
	must(w.Append([]byte("after a refusal")))(t)
	r := must(OpenStream(mem, ring, logPath, true))(t)
	for _, n := range sizes {
		if p, _, err := r.Next(); err != nil || !bytes.Equal(p, fill(n)) {
			t.Fatalf("%d bytes: got %d, %v", n, len(p), err)
		}
	}
	if p, _, err := r.Next(); err != nil || string(p) != "after a refusal" {
		t.Errorf("got %q, %v", p, err)
	}
}

// TestStreamEveryByte flips every byte of a stream whose frames all are attested by a later one, and the tail too.
func TestStreamEveryByte(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 8192} {
		mem, ring := newRing(t)
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Preallocate: pre}))(t)
		var lastStart int64
		for i := range 6 {
			lastStart = w.Size()
			appendFrames(t, w, i, i+1)
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		end := w.Size()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		good := raw(t, mem, logPath)
		missed := 0
		for i := range good[:end] {
			b := bytes.Clone(good)
			b[i] ^= 1 << (i % 8)
			put(t, mem, logPath, b)
			n, err := readStream(t, mem, ring)
			switch {
			case err != nil:
				oneOf(t, err, ErrTampered, ErrCorrupt)
			case int64(i) < lastStart:
				t.Fatalf("a flip at byte %d of a synced frame was taken for a torn tail: %d frames", i, n)
			case pre > 0:
				missed++
			}
			// What somebody does who knows the format and fixes the checksums.
			if f := frameStartingBefore(good, int64(i)); f >= preambleSize && int64(i) >= f+frameHead && int64(i) < f+frameHead+int64(binary.BigEndian.Uint32(good[f:])) {
				fix := b[f : f+frameHead+int64(binary.BigEndian.Uint32(good[f:]))]
				seed := binary.BigEndian.Uint32(good[headerSize+saltSize:])
				crc := crc32.Update(seed, castagnoli(), fix[:4])
				binary.BigEndian.PutUint32(fix[4:], crc32.Update(crc, castagnoli(), fix[8:]))
				put(t, mem, logPath, b)
				_, err := readStream(t, mem, ring)
				oneOf(t, err, ErrTampered)
			}
		}
		if missed > 0 {
			t.Errorf("%d flips in the last frame of a preallocated stream were taken for a torn tail", missed)
		}
		put(t, mem, logPath, good)
		if n, err := readStream(t, mem, ring); n != 6 || err != nil {
			t.Fatalf("the original: %d frames, %v", n, err)
		}
	}
}

// frameStartingBefore walks the heads of an undamaged stream.
func frameStartingBefore(b []byte, at int64) int64 {
	last, f := int64(-1), int64(preambleSize)
	for f <= at && f+frameHead <= int64(len(b)) {
		last = f
		n := int64(binary.BigEndian.Uint32(b[f:]))
		if n == 0 {
			break
		}
		f += frameSize(n)
	}
	return last
}

// TestTornTail cuts a stream at every byte after what was synced, in each way that a disk may leave it. What was synced
// is always read, and nothing is called damage.
func TestTornTail(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 16 << 10} {
		mem, ring := newRing(t)
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Preallocate: pre}))(t)
		appendFrames(t, w, 0, 3)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		synced := w.Size()
		appendFrames(t, w, 3, 8)
		end := w.Size()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		good := raw(t, mem, logPath)
		check := func(b []byte, at int64, how string) {
			t.Helper()
			put(t, mem, logPath, b)
			n, err := readStream(t, mem, ring)
			if err != nil || n < 3 {
				t.Fatalf("preallocated %d, %s at byte %d: %d frames, %v", pre, how, at, n, err)
			}
		}
		stale := fill(int(end))
		for at := synced; at <= end; at++ {
			check(good[:at], at, "cut")
			b := bytes.Clone(good)
			clear(b[at:])
			check(b, at, "zeros from")
			if pre == 0 {
				copy(b[at:], stale[at:])
				check(b[:end], at, "stale bytes from")
			}
		}
		for at := synced / sectorSize * sectorSize; at < end; at += sectorSize { // a sector that never arrived
			b := bytes.Clone(good)
			clear(b[max(at, synced):min(at+sectorSize, end)])
			check(b, at, "a missing sector")
		}
	}
}

// TestUnstartedSegment tears a segment while it is created.
func TestUnstartedSegment(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 4096} {
		mem, ring := newRing(t)
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Preallocate: pre, Context: []byte("context")}))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		good := raw(t, mem, logPath)
		end := int64(preambleSize+frameHead) + int64(binary.BigEndian.Uint32(good[preambleSize:]))
		for at := range end {
			b := bytes.Clone(good)
			clear(b[at:])
			for _, b := range [][]byte{good[:at], b} {
				put(t, mem, logPath, b)
				_, err := readStream(t, mem, ring)
				if bytes.Equal(b, good) {
					continue // the last byte was zero anyway
				}
				oneOf(t, err, ErrIncomplete)
				_, err = OpenStream(mem, ring, logPath, false)
				oneOf(t, err, ErrCorrupt, ErrTampered)
			}
		}
		put(t, mem, logPath, good)
		if n, err := readStream(t, mem, ring); n != 0 || err != nil {
			t.Errorf("the original: %d, %v", n, err)
		}
	}
}

// TestStreamCrash runs appends and syncs at random, takes crash clones, and reads them.
func TestStreamCrash(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(9, seed))
		mem, ring := newRing(t)
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Preallocate: int64(rng.IntN(3)) * 40000}))(t)
		n, synced := 0, 0
		for range 40 {
			k := rng.IntN(6)
			appendFrames(t, w, n, n+k)
			n += k
			if rng.IntN(2) == 0 {
				if err := w.Sync(); err != nil {
					t.Fatal(err)
				}
				synced = n
			}
			crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			got, err := readStream(t, crashed, reopenRing(t, crashed))
			if err != nil || got < synced || got > n {
				t.Fatalf("seed %d: %d frames after a crash with %d of %d synced: %v", seed, got, synced, n, err)
			}
		}
	}
}

// TestSyncedFrameLost damages a synced frame that later frames attest: it is never taken for a torn tail.
func TestSyncedFrameLost(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 64 << 10} {
		mem, ring := newRing(t)
		w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Preallocate: pre}))(t)
		var at []int64
		for i := range 40 {
			at = append(at, w.Size())
			appendFrames(t, w, i, i+1)
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		at = append(at, w.Size())
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		good := raw(t, mem, logPath)
		for i := range 39 {
			b := bytes.Clone(good)
			clear(b[at[i]:at[i+1]]) // as if the sectors had never been written
			put(t, mem, logPath, b)
			n, err := readStream(t, mem, ring)
			if !errors.Is(err, ErrCorrupt) || n != i {
				t.Fatalf("frame %d is gone: %d frames, %v", i, n, err)
			}
			// Frames that are shuffled or repeated have a good checksum elsewhere only.
			copy(b[at[i]:], good[at[0]:min(at[1], at[0]+at[i+1]-at[i])])
			put(t, mem, logPath, b)
			if n, err := readStream(t, mem, ring); i > 0 && (err == nil || n != i) {
				t.Fatalf("frame 0 in place of frame %d: %d frames, %v", i, n, err)
			}
		}
	}
}

// TestStaleFrames: bytes of another segment behind the end are no frames and no tampering.
func TestStaleFrames(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	for _, path := range []string{"/data/old", logPath} {
		w := must(CreateStream(mem, ring, path, StreamOptions{Segment: 1}))(t)
		appendFrames(t, w, 0, 20)
		if err := errors.Join(w.Sync(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	old, own := raw(t, mem, "/data/old"), raw(t, mem, logPath)
	for cut := 0; cut < 3000; cut += 8 {
		end := must(endOf(t, mem, ring, own))(t)
		put(t, mem, logPath, append(bytes.Clone(own[:end]), old[cut:]...))
		if n, err := readStream(t, mem, ring); n != 20 || err != nil {
			t.Fatalf("stale bytes from %d: %d frames, %v", cut, n, err)
		}
	}
	// The same bytes with the preamble of the other segment are another file.
	put(t, mem, logPath, old)
	_, err := readStream(t, mem, ring)
	oneOf(t, err, ErrTampered)
}

func endOf(t testing.TB, fs vfs.FS, ring *Keyring, b []byte) (int64, error) {
	put(t, fs, logPath, b)
	r, err := OpenStream(fs, ring, logPath, true)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	end, err := r.End()
	return end.EndOffset, err
}

func segmentPath(i int) string { return fmt.Sprintf("/data/seg-%d", i) }

// buildChain writes segments 1 to n with ten frames each, as restarts after crashes would: the tail of each is torn.
func buildChain(t testing.TB, mem *vfs.MemFS, ring *Keyring, n int, pre int64) (paths []string) {
	t.Helper()
	var prev PrevSegment
	for i := 1; i <= n; i++ {
		w := must(CreateStream(mem, ring, segmentPath(i), StreamOptions{Segment: uint64(i), Prev: prev, Preallocate: pre}))(t)
		appendFrames(t, w, 0, 10)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		prev = w.End()
		appendFrames(t, w, 10, 12)
		end := w.Size()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b := raw(t, mem, segmentPath(i))
		clear(b[prev.EndOffset+100 : end])
		put(t, mem, segmentPath(i), b)
		paths = append(paths, segmentPath(i))
	}
	return paths
}

func drainChain(t testing.TB, fs vfs.FS, ring *Keyring, paths []string) (n int, stale string, err error) {
	t.Helper()
	readers, stale, err := OpenChain(fs, ring, paths)
	for _, r := range readers {
		if err == nil {
			var k int
			k, err = drain(t, r)
			n += k
		}
		r.Close()
	}
	return n, stale, err
}

func TestChain(t *testing.T) {
	t.Parallel()
	for _, pre := range []int64{0, 16 << 10} {
		mem, ring := newRing(t)
		paths := buildChain(t, mem, ring, 4, pre)
		if n, stale, err := drainChain(t, mem, ring, paths); n != 40 || stale != "" || err != nil {
			t.Fatalf("%d frames, %q, %v", n, stale, err)
		}
		if n, _, err := drainChain(t, mem, ring, nil); n != 0 || err != nil {
			t.Errorf("an empty chain: %v", err)
		}
		wrong := func(what string, paths []string) {
			t.Helper()
			_, _, err := drainChain(t, mem, ring, paths)
			if err == nil {
				t.Fatalf("%s was not noticed", what)
			}
			oneOf(t, err, ErrTampered, ErrCorrupt)
		}
		wrong("a missing segment", []string{paths[0], paths[2], paths[3]})
		wrong("swapped segments", []string{paths[1], paths[0]})
		wrong("a repeated segment", []string{paths[0], paths[0]})
		second := raw(t, mem, paths[1])
		end := must(endOf2(t, mem, ring, paths[1]))(t)
		put(t, mem, paths[1], second[:end-40])
		wrong("a shortened older segment", paths)
		b := bytes.Clone(second)
		b[end-20] ^= 1
		put(t, mem, paths[1], b)
		wrong("a damaged last frame of an older segment", paths)
		put(t, mem, paths[1], second)

		// The newest one was being created when the power went.
		last := raw(t, mem, paths[3])
		put(t, mem, paths[3], last[:50])
		if n, stale, err := drainChain(t, mem, ring, paths); n != 30 || stale != paths[3] || err != nil {
			t.Errorf("%d frames, %q, %v", n, stale, err)
		}
		if err := mem.Remove(paths[3]); err != nil {
			t.Fatal(err)
		}
		readers, _, err := OpenChain(mem, ring, paths[:3])
		if err != nil {
			t.Fatal(err)
		}
		prev := must(readers[2].End())(t)
		w := must(CreateStream(mem, ring, paths[3], StreamOptions{Segment: 4, Prev: prev}))(t)
		appendFrames(t, w, 0, 10)
		if n, _, err := drainChain(t, mem, ring, paths); n != 40 || err != nil {
			t.Errorf("after a restart: %d frames, %v", n, err)
		}
	}
}

// endOf2 returns where the synced part of a segment of buildChain ends.
func endOf2(t testing.TB, fs vfs.FS, ring *Keyring, path string) (int64, error) {
	r, err := OpenStream(fs, ring, path, true)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for range 10 {
		if _, _, err := r.Next(); err != nil {
			return 0, err
		}
	}
	return r.offset, nil
}

func TestPreparedStream(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	if err := PrepareStream(mem, "/data/next.tmp", 3<<20+5); err != nil {
		t.Fatal(err)
	}
	w := must(CreateStream(mem, ring, logPath, StreamOptions{Segment: 1, Prepared: "/data/next.tmp"}))(t)
	appendFrames(t, w, 0, 10)
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if n, err := readStream(t, mem.CrashClone(vfs.CrashCloneCfg{}), ring); n != 10 || err != nil {
		t.Errorf("%d frames, %v", n, err)
	}
	if len(raw(t, mem, logPath)) != 3<<20+5 {
		t.Error("the prepared file was not used")
	}
	if names := must(mem.List("/data"))(t); slices.Contains(names, "next.tmp") {
		t.Error("the prepared file is still there")
	}
	if _, err := CreateStream(mem, ring, "/data/other", StreamOptions{Segment: 2, Prepared: "/data/none"}); err == nil {
		t.Error("a prepared file that does not exist")
	}
}

// TestStreamWriteError: a failure is final, because nobody knows what is on disk.
func TestStreamWriteError(t *testing.T) {
	t.Parallel()
	for _, appendFails := range []bool{true, false} {
		mem, ring := newRing(t)
		bad := &failing{FS: mem}
		w := must(CreateStream(bad, ring, logPath, StreamOptions{Segment: 1}))(t)
		appendFrames(t, w, 0, 2)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		appendFrames(t, w, 2, 3)
		bad.fail = true
		var err error
		if appendFails {
			_, err = w.Append([]byte("x"))
		} else {
			err = w.Sync()
		}
		oneOf(t, err, errDisk)
		bad.fail = false
		_, err = w.Append([]byte("x"))
		oneOf(t, err, errDisk)
		oneOf(t, w.Sync(), errDisk)
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// TestSettle: the sync of the last frames failed, so they are in the page cache and never on the disk, whoever syncs again. What a
// start finds there has to be on the disk before a next segment attests it; without Settle the power cut below makes damage of it.
func TestSettle(t *testing.T) {
	t.Parallel()
	for _, settle := range []bool{true, false} {
		mem, ring := newRing(t)
		disk := &forgetful{FS: mem, path: segmentPath(1), cached: map[int64]int64{}}
		w := must(CreateStream(disk, ring, segmentPath(1), StreamOptions{Segment: 1, Preallocate: 64 << 10}))(t)
		appendFrames(t, w, 0, 20)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		appendFrames(t, w, 20, 25)
		disk.fail = true
		oneOf(t, w.Sync(), errDisk)
		disk.fail = false
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}

		readers, stale, err := OpenChain(disk, ring, []string{segmentPath(1)})
		if err != nil || stale != "" {
			t.Fatal(stale, err)
		}
		r := readers[0]
		if err := r.Settle(disk); err == nil {
			t.Error("a segment was settled before its end was known")
		}
		if n, err := drain(t, r); n != 25 || err != nil {
			t.Fatalf("%d frames are in the cache, %v", n, err)
		}
		if settle {
			err = r.Settle(disk)
		} else {
			err = disk.sync() // what a plain sync does
		}
		if err != nil {
			t.Fatal(err)
		}
		next := must(CreateStream(disk, ring, segmentPath(2), StreamOptions{Segment: 2, Prev: must(r.End())(t)}))(t)
		if err := errors.Join(r.Close(), next.Close()); err != nil {
			t.Fatal(err)
		}

		put(t, mem, segmentPath(1), disk.durable)
		n, _, err := drainChain(t, mem, ring, []string{segmentPath(1), segmentPath(2)})
		if settle && (n != 25 || err != nil) {
			t.Errorf("after the power cut: %d frames, %v", n, err)
		}
		if !settle && !errors.Is(err, ErrCorrupt) {
			t.Errorf("the disk forgets nothing, so this test shows nothing: %d frames, %v", n, err)
		}
	}
}

// forgetful is a disk that, of the file at path, forgets what a failed sync should have written, as kernels do: it is in the page
// cache, clean.
type forgetful struct {
	vfs.FS
	path    string
	fail    bool
	cached  map[int64]int64 // written since the last sync: from, to
	durable []byte
	whole   func() []byte
}

type forgetfulFile struct {
	vfs.File
	d *forgetful
}

func (d *forgetful) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	if err != nil || name != d.path {
		return f, err
	}
	d.whole = func() []byte {
		b, err := d.FS.(*vfs.MemFS).UnsafeGetFileDataBuffer(name)
		if err != nil {
			panic(err)
		}
		return b
	}
	return forgetfulFile{f, d}, nil
}

func (f forgetfulFile) Write(p []byte) (int, error) {
	at := int64(len(f.d.whole()))
	f.d.cached[at] = at + int64(len(p))
	return f.File.Write(p)
}

func (f forgetfulFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.cached[off] = max(f.d.cached[off], off+int64(len(p)))
	return f.File.WriteAt(p, off)
}

func (f forgetfulFile) Sync() error     { return f.d.sync() }
func (f forgetfulFile) SyncData() error { return f.d.sync() }

func (d *forgetful) sync() error {
	defer clear(d.cached)
	if d.fail {
		return errDisk
	}
	now := d.whole()
	d.durable = append(d.durable, make([]byte, len(now)-len(d.durable))...)
	for from, to := range d.cached {
		copy(d.durable[from:to], now[from:to])
	}
	return nil
}

// TestStreamNonces collects every nonce and every salt over restarts and a copied directory where both copies go on.
func TestStreamNonces(t *testing.T) {
	t.Parallel()
	nonces, salts := map[string]bool{}, map[string]bool{}
	collect := func(b []byte) {
		t.Helper()
		if s := string(b[headerSize : headerSize+saltSize]); salts[s] {
			t.Fatal("a salt was used twice")
		} else {
			salts[s] = true
		}
		for f := int64(preambleSize); f+frameHead <= int64(len(b)); {
			n := int64(binary.BigEndian.Uint32(b[f:]))
			if s := string(b[f+frameHead : f+frameHead+nonceSize]); nonces[s] {
				t.Fatal("a nonce was used twice")
			} else {
				nonces[s] = true
			}
			f += frameSize(n)
		}
	}
	mem, _ := newRing(t)
	for i := range 20 {
		for _, fs := range []*vfs.MemFS{mem.CrashClone(vfs.CrashCloneCfg{}), mem} { // the copy, then the original
			w := must(CreateStream(fs, reopenRing(t, fs), segmentPath(i), StreamOptions{Segment: uint64(i)}))(t)
			appendFrames(t, w, 0, 200)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			collect(raw(t, fs, segmentPath(i)))
		}
	}
	if len(nonces) != 20*2*201 {
		t.Errorf("%d nonces", len(nonces))
	}
}

// TestAppendDoesNotAllocate guards the hot path of the Raft log.
func TestAppendDoesNotAllocate(t *testing.T) {
	fs, dir, ring := diskFS(t)
	w := must(CreateStream(fs, ring, dir+"/log", StreamOptions{Segment: 1, Preallocate: 4 << 20}))(t)
	p := fill(4000)
	must(w.Append(p))(t)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := w.Append(p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for each Append", n)
	}
	if n := testing.AllocsPerRun(5, func() {
		must(w.Append(p))(t)
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for each Append and Sync", n)
	}
}
