package seal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// goldenDir holds a store as the first version of each format wrote it. It must open for ever: a format that changes
// gets a version of its own and a directory beside this one. HOLDFAST_WRITE_GOLDEN=1 writes it where it is missing.
const (
	goldenDir    = "testdata/golden/v1"
	goldenPhrase = "golden pass phrase"
	goldenCode   = "0123-4567-89AB-CDEF-GHJK-MNPQ-RSTV-WXYZ-"
)

func goldenKEKs(t testing.TB) []KEK {
	t.Helper()
	phrase := must(PassphraseKEK(NewSecret([]byte(goldenPhrase))))(t).(*passphraseKEK)
	phrase.passes, phrase.memory, phrase.lanes = 1, 64, 1
	rawCode := must(recoveryEncoding().DecodeString("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))(t)
	return []KEK{testKEK(t, "golden"), phrase, must(RecoveryKEK(NewSecret([]byte(goldenCode + recoverySum(rawCode)))))(t)}
}

func writeGolden(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	ring := must(CreateKeyring(vfs.Default, goldenDir, goldenKEKs(t)...))(t)
	sealed := must(ring.SealBytes("golden", "blob", []byte("sealed bytes")))(t)
	if err := os.WriteFile(filepath.Join(goldenDir, "blob"), sealed, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteFile(vfs.Default, ring, goldenDir+"/CURRENT", []byte("state-1")), os.MkdirAll(goldenDir+"/state-1", 0o755)); err != nil {
		t.Fatal(err)
	}
	fs := NewFS(vfs.Default, ring, goldenDir+"/state-1")
	writeTable(t, fs, goldenDir+"/state-1/000001.sst", fill(20000))
	marker := must(fs.Create(goldenDir+"/state-1/marker.manifest.000001.MANIFEST-000002", vfs.WriteCategoryUnspecified))(t)
	manifest := must(fs.Create(goldenDir+"/state-1/MANIFEST-000002", vfs.WriteCategoryUnspecified))(t)
	_, err := manifest.Write([]byte("manifest"))
	if err := errors.Join(err, manifest.Sync(), manifest.Close(), marker.Close()); err != nil {
		t.Fatal(err)
	}
	var prev PrevSegment
	for _, name := range []string{"/1.seg", "/2.seg"} {
		w := must(CreateStream(vfs.Default, ring, goldenDir+name, StreamOptions{Segment: prev.Segment + 1, Prev: prev, Context: []byte("golden"), Preallocate: 4096}))(t)
		appendFrames(t, w, 0, 5)
		prev = w.End()
		if err := errors.Join(w.Sync(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(goldenDir + "/KEYRING"); errors.Is(err, os.ErrNotExist) && os.Getenv("HOLDFAST_WRITE_GOLDEN") != "" {
		writeGolden(t)
	}
	for _, kek := range goldenKEKs(t) {
		ring := must(OpenKeyring(vfs.Default, goldenDir, kek))(t)
		if ring.Generation() != 2 || len(ring.Slots()) != 3 {
			t.Errorf("generation %d, slots %v", ring.Generation(), ring.Slots())
		}
		blob := must(os.ReadFile(goldenDir + "/blob"))(t)
		if b := must(ring.OpenBytes("golden", "blob", blob))(t); string(b) != "sealed bytes" {
			t.Errorf("bytes %q", b)
		}
		if b := must(ReadFile(vfs.Default, ring, goldenDir+"/CURRENT"))(t); string(b) != "state-1" {
			t.Errorf("CURRENT %q", b)
		}
		fs := NewFS(vfs.Default, ring, goldenDir+"/state-1")
		if len(must(fs.List(goldenDir+"/state-1"))(t)) != 3 {
			t.Error("the marker is not listed")
		}
		if b, err := readAll(t, fs, goldenDir+"/state-1/000001.sst"); err != nil || !bytes.Equal(b, fill(20000)) {
			t.Errorf("the table: %v", err)
		}
		if b, err := readAll(t, fs, goldenDir+"/state-1/MANIFEST-000002"); err != nil || string(b) != "manifest" {
			t.Errorf("the manifest: %q, %v", b, err)
		}
		readers, stale, err := OpenChain(vfs.Default, ring, []string{goldenDir + "/1.seg", goldenDir + "/2.seg"})
		if err != nil || stale != "" {
			t.Fatal(stale, err)
		}
		for _, r := range readers {
			if n, err := drain(t, r); n != 5 || err != nil || string(r.Context()) != "golden" {
				t.Errorf("%d frames, %v", n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// fuzzStore opens the golden store in memory: fuzzing runs in several processes, whose files and keys must be the same.
func fuzzStore(f *testing.F) *Keyring {
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/data", 0o700); err != nil {
		f.Fatal(err)
	}
	put(f, mem, "/data/KEYRING", goldenFile(f, "KEYRING"))
	return must(OpenKeyring(mem, "/data", testKEK(f, "golden")))(f)
}

func goldenFile(t testing.TB, name string) []byte {
	return must(os.ReadFile(filepath.Join(goldenDir, name)))(t)
}

func FuzzHeader(f *testing.F) {
	f.Add(goldenFile(f, "CURRENT"))
	f.Add(goldenFile(f, "1.seg")[:headerSize])
	f.Add([]byte(magicFile))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader("x", b)
		if err == nil && !bytes.Equal(h.encode(), b[:headerSize]) {
			t.Errorf("%x has a second encoding", b)
		}
	})
}

func FuzzKeyring(f *testing.F) {
	good := goldenFile(f, "KEYRING")
	f.Add(good)
	f.Add(good[:keyringHead])
	f.Fuzz(func(t *testing.T, b []byte) {
		parsed, body, _, err := parseRing(b)
		if err == nil && !bytes.Equal(parsed.encode(), body) {
			t.Errorf("%x has a second encoding", b)
		}
		fs := vfs.NewMem()
		if err := fs.MkdirAll("/data", 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, fs, "/data/KEYRING", b)
		if _, err := OpenKeyring(fs, "/data", testKEK(t, "golden")); (err == nil) != bytes.Equal(b, good) {
			t.Errorf("opening gave %v", err)
		}
	})
}

func FuzzObject(f *testing.F) {
	ring := fuzzStore(f)
	const name = "/data/state-1/000001.sst"
	good, data := goldenFile(f, "state-1/000001.sst"), fill(20000)
	f.Add(good)
	f.Add(good[:preambleSize+tagSize])
	f.Add(append(bytes.Clone(good), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := NewFS(vfs.NewMem(), ring, "/data")
		if err := fs.MkdirAll("/data/state-1", 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, fs.inner, name, b)
		got, err := readAll(t, fs, name)
		if (err == nil) != bytes.Equal(b, good) || !bytes.HasPrefix(data, got) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	})
}

func FuzzStream(f *testing.F) {
	ring := fuzzStore(f)
	const name = "/data/1.seg"
	good := goldenFile(f, "1.seg")
	f.Add(good, true)
	f.Add(good[:preambleSize+50], false)
	f.Add(append(bytes.Clone(good), make([]byte, 100)...), true)
	f.Add(append(bytes.Clone(good[:900]), good...), true)
	f.Fuzz(func(t *testing.T, b []byte, newest bool) {
		fs := vfs.NewMem()
		if err := fs.MkdirAll("/data", 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, fs, name, b)
		r, err := OpenStream(fs, ring, name, newest)
		if err != nil {
			return
		}
		defer r.Close()
		for n := 0; ; n++ {
			p, _, err := r.Next()
			if errors.Is(err, io.EOF) || errors.Is(err, ErrTampered) || errors.Is(err, ErrCorrupt) {
				return
			}
			if err != nil || !bytes.Equal(p, payloadOf(n)) {
				t.Fatalf("frame %d: %d bytes that nobody wrote, %v", n, len(p), err)
			}
		}
	})
}
