package seal

import (
	"bytes"
	"compress/zlib"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// openCobblestone opens a whole message with the reader that files use.
func openCobblestone(key, context, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) < saltSize+commitmentSize {
		return nil, ErrCorrupt
	}
	k, commitment, err := newChunkKey(key, ciphertext[:saltSize], context)
	if err != nil {
		return nil, err
	}
	if err := checkCommitment("message", commitment, ciphertext[saltSize:saltSize+commitmentSize]); err != nil {
		return nil, err
	}
	r, err := newChunkReader(bytes.NewReader(ciphertext), "message", k, saltSize+commitmentSize, int64(len(ciphertext)), new(scratchPool))
	if err != nil {
		return nil, err
	}
	out := make([]byte, r.size)
	if n, err := r.ReadAt(out, 0); err != nil && !(err == io.EOF && n == len(out)) {
		return nil, err
	}
	return out, nil
}

// sealCobblestone seals a whole message with the writer that files use.
func sealCobblestone(t *testing.T, key, salt, context, message []byte) []byte {
	t.Helper()
	k, commitment, err := newChunkKey(key, salt, context)
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	w := &objectWriter{file: must(fs.Create("/m", vfs.WriteCategoryUnspecified))(t), path: "/m", key: k, plain: make([]byte, 0, chunkSize)}
	w.out = append(append(w.out, salt...), commitment...)
	if _, err := w.Write(bytes.Clone(message)); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return raw(t, fs, "/m")
}

// TestCobblestoneVectors checks vectors that testdata/cobblestone256.py, which shares no code with this package, derived
// from the specification.
func TestCobblestoneVectors(t *testing.T) {
	t.Parallel()
	var vectors []struct {
		Comment, Key, Salt, Context string
		Length                      int
		Ciphertext                  string // hex, or its SHA-512 if it is long
		Digest                      string
	}
	if err := json.Unmarshal(must(os.ReadFile("testdata/cobblestone256.json"))(t), &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 6 {
		t.Fatalf("%d vectors", len(vectors))
	}
	unhex := func(s string) []byte { return must(hex.DecodeString(s))(t) }
	for _, v := range vectors {
		message := make([]byte, v.Length)
		for i := range message {
			message[i] = byte(i*31 + i>>8)
		}
		got := sealCobblestone(t, unhex(v.Key), unhex(v.Salt), unhex(v.Context), message)
		if v.Ciphertext != "" && !bytes.Equal(got, unhex(v.Ciphertext)) {
			t.Errorf("%s: got %x", v.Comment, got)
		}
		if sum := sha512.Sum512(got); hex.EncodeToString(sum[:]) != v.Digest {
			t.Errorf("%s: the digest differs", v.Comment)
		}
		if back := must(openCobblestone(unhex(v.Key), unhex(v.Context), got))(t); !bytes.Equal(back, message) {
			t.Errorf("%s: it opens to something else", v.Comment)
		}
	}
}

// TestWycheproof runs Project Wycheproof's vectors when a checkout is at hand: WYCHEPROOF=dir go test -run Wycheproof.
func TestWycheproof(t *testing.T) {
	dir := os.Getenv("WYCHEPROOF")
	if dir == "" {
		t.Skip("WYCHEPROOF names no checkout of C2SP/wycheproof")
	}
	var file struct {
		TestGroups []struct {
			Tests []struct {
				TcID                                int
				Comment, Key, Ctx, Ct, Msgsha512, R string
				MsgLength                           int
				Result                              string
			}
		}
	}
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(dir, "testvectors_v1/c2sp_chunked_encryption_aes_256_gcm_test.json")))(t), &file); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, g := range file.TestGroups {
		for _, v := range g.Tests {
			ran++
			unhex := func(s string) []byte { return must(hex.DecodeString(s))(t) }
			ct := must(io.ReadAll(must(zlib.NewReader(bytes.NewReader(unhex(v.Ct))))(t)))(t)
			msg, err := openCobblestone(unhex(v.Key), unhex(v.Ctx), ct)
			if (err == nil) != (v.Result == "valid") {
				t.Errorf("%d %s: %v, want %s", v.TcID, v.Comment, err, v.Result)
			}
			if err != nil {
				continue
			}
			if sum := sha512.Sum512(msg); hex.EncodeToString(sum[:]) != v.Msgsha512 || len(msg) != v.MsgLength {
				t.Errorf("%d %s: another message of %d bytes", v.TcID, v.Comment, len(msg))
			}
			if again := sealCobblestone(t, unhex(v.Key), ct[:saltSize], unhex(v.Ctx), msg); !bytes.Equal(again, ct) {
				t.Errorf("%d %s: sealing it again differs", v.TcID, v.Comment)
			}
		}
	}
	if ran < 30 {
		t.Errorf("%d vectors", ran)
	}
}

// writeTable writes name through FS in pieces of random size.
func writeTable(t testing.TB, fs *FS, name string, data []byte) {
	t.Helper()
	f := must(fs.Create(name, vfs.WriteCategoryUnspecified))(t)
	rng := rand.New(rand.NewPCG(5, uint64(len(data))))
	for rest := bytes.Clone(data); len(rest) > 0; {
		n := min(len(rest), 1+rng.IntN(40<<10))
		if _, err := f.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func TestObjectSizes(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	for _, n := range []int{0, 1, 15, 16, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 5*chunkSize + 7, 20*chunkSize - 1} {
		data := fill(n)
		writeTable(t, fs, "/data/000001.sst", data)
		if size := len(raw(t, mem, "/data/000001.sst")); size != preambleSize+n/chunkSize*sealedChunk+n%chunkSize+tagSize {
			t.Errorf("%d bytes take %d", n, size)
		}
		if got, err := readAll(t, fs, "/data/000001.sst"); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: got %d, %v", n, len(got), err)
		}
		if info := must(fs.Stat("/data/000001.sst"))(t); info.Size() != int64(n) {
			t.Errorf("%d bytes: Stat says %d", n, info.Size())
		}
		f := must(fs.Open("/data/000001.sst"))(t)
		if info := must(f.Stat())(t); info.Size() != int64(n) {
			t.Errorf("%d bytes: File.Stat says %d", n, info.Size())
		}
		rng := rand.New(rand.NewPCG(6, uint64(n)))
		for range 200 {
			off := rng.IntN(n + 2)
			p := make([]byte, rng.IntN(n+2))
			got, err := f.ReadAt(p, int64(off))
			want := min(len(p), max(0, n-off))
			if got != want || (err == io.EOF) != (got < len(p)) || err != nil && err != io.EOF || !bytes.Equal(p[:got], data[min(off, n):min(off, n)+got]) {
				t.Fatalf("%d bytes: ReadAt(%d, %d) = %d, %v", n, len(p), off, got, err)
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
			t.Errorf("a negative offset: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectEveryByte(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	const name = "/data/000001.sst"
	writeTable(t, fs, name, fill(300))
	good := raw(t, mem, name)
	for i := range good {
		for _, mask := range []byte{1, 0x80, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= mask
			put(t, mem, name, b)
			_, err := readAll(t, fs, name)
			oneOf(t, err, ErrTampered, ErrCorrupt)
			if i < headerSize && i >= 8 { // whoever flips a header byte can also fix its checksum
				binary.BigEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli()))
				if bytes.Equal(b, good) {
					continue
				}
				put(t, mem, name, b)
				_, err := readAll(t, fs, name)
				oneOf(t, err, ErrTampered, ErrCorrupt, ErrRolledBack)
			}
		}
		put(t, mem, name, good[:i])
		_, err := readAll(t, fs, name)
		oneOf(t, err, ErrCorrupt, ErrTampered)
		put(t, mem, name, append(bytes.Clone(good), good[:i+1]...))
		_, err = readAll(t, fs, name)
		oneOf(t, err, ErrCorrupt, ErrTampered)
	}
}

func TestObjectMoved(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	for _, dir := range []string{"/data/state-1", "/data/state-2"} {
		if err := mem.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	data := fill(5 * chunkSize)
	writeTable(t, fs, "/data/state-1/000001.sst", data)
	writeTable(t, fs, "/data/state-1/000002.sst", fill(5*chunkSize))
	one, two := raw(t, mem, "/data/state-1/000001.sst"), raw(t, mem, "/data/state-1/000002.sst")
	refused := func(name string, b []byte, what string) {
		t.Helper()
		put(t, mem, name, b)
		_, err := readAll(t, fs, name)
		if err == nil {
			t.Fatalf("%s was not noticed", what)
		}
		oneOf(t, err, ErrTampered, ErrCorrupt)
	}
	refused("/data/state-1/000002.sst", one, "a file under another's name")
	refused("/data/state-2/000001.sst", one, "a file in another directory")
	refused("/data/state-1/000001.blob", one, "a file with another extension")
	refused("/data/state-1/OPTIONS-000001", one, "a file of another class")
	refused("/data/state-1/MANIFEST-000001", one, "a file of another format")
	chunk := func(b []byte, i int) []byte { return b[preambleSize+i*sealedChunk:][:sealedChunk] }
	spliced := bytes.Clone(one)
	copy(chunk(spliced, 1), chunk(two, 1))
	refused("/data/state-1/000001.sst", spliced, "a chunk of another file")
	swapped := bytes.Clone(one)
	copy(chunk(swapped, 1), chunk(one, 2))
	copy(chunk(swapped, 2), chunk(one, 1))
	refused("/data/state-1/000001.sst", swapped, "swapped chunks")
	refused("/data/state-1/000001.sst", one[:preambleSize+3*sealedChunk], "truncation between chunks")
	refused("/data/state-1/000001.sst", append(bytes.Clone(one[:preambleSize+3*sealedChunk]), one[len(one)-tagSize:]...), "truncation with the last chunk moved up")
	refused("/data/state-1/000001.sst", data, "plain text")
	refused("/data/state-1/000001.sst", nil, "an empty file")
	refused("/data/state-1/000001.sst", make([]byte, 1000), "zeros")

	otherMem, otherRing := newRing(t)
	writeTable(t, NewFS(otherMem, otherRing, "/data"), "/data/000001.sst", data)
	refused("/data/000001.sst", raw(t, otherMem, "/data/000001.sst"), "a file of another store")

	put(t, mem, "/data/state-1/000001.sst", one)
	if got, err := readAll(t, fs, "/data/state-1/000001.sst"); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the original: %v", err)
	}
}

// TestTamperedBlockIsNotServed reads around a damaged chunk: other chunks are served, nothing of that one.
func TestTamperedBlockIsNotServed(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	data := fill(10 * chunkSize)
	writeTable(t, fs, "/data/000001.sst", data)
	b := raw(t, mem, "/data/000001.sst")
	b[preambleSize+3*sealedChunk+100] ^= 1
	put(t, mem, "/data/000001.sst", b)
	f := must(fs.Open("/data/000001.sst"))(t)
	p := make([]byte, 2*chunkSize)
	if n, err := f.ReadAt(p, chunkSize); err != nil || !bytes.Equal(p[:n], data[chunkSize:3*chunkSize]) {
		t.Errorf("an untouched chunk: %v", err)
	}
	clear(p)
	n, err := f.ReadAt(p, 2*chunkSize+5)
	oneOf(t, err, ErrTampered)
	if n != 0 || bytes.Contains(p, data[3*chunkSize:3*chunkSize+64]) {
		t.Errorf("served %d bytes", n)
	}
	if !strings.Contains(err.Error(), "/data/000001.sst") || !strings.Contains(err.Error(), "chunk 3") {
		t.Errorf("%v does not say where", err)
	}
	var found []Finding
	if err := Scrub(t.Context(), mem, ring, "/data", 1<<40, func(f Finding) { found = append(found, f) }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Path != "/data/000001.sst" || found[0].Kind != "tampered" || found[0].Offset != preambleSize+3*sealedChunk {
		t.Errorf("scrub found %+v", found)
	}
}

func TestWriteAfterSeal(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	fs := NewFS(mem, ring, "/data")
	for _, seal := range []func(vfs.File) error{vfs.File.Sync, vfs.File.SyncData} {
		f := must(fs.Create("/data/000001.sst", vfs.WriteCategoryUnspecified))(t)
		if _, err := f.Write(fill(10)); err != nil {
			t.Fatal(err)
		}
		if full, err := f.SyncTo(10); full || err != nil {
			t.Errorf("SyncTo: %v, %v", full, err)
		}
		if _, err := f.Write(fill(10)); err != nil {
			t.Errorf("SyncTo sealed the file: %v", err)
		}
		if err := seal(f); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(fill(10)); !errors.Is(err, errSealed) {
			t.Errorf("a write after the seal: %v", err)
		}
		before := raw(t, mem, "/data/000001.sst")
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, raw(t, mem, "/data/000001.sst")) {
			t.Error("a second sync changed the file")
		}
		if err := f.Close(); err == nil {
			t.Error("closed twice")
		}
	}
}

// TestObjectWriteError: after a failed write or sync the handle stays failed.
func TestObjectWriteError(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	bad := &failing{FS: mem}
	fs := NewFS(bad, ring, "/data")
	f := must(fs.Create("/data/000001.sst", vfs.WriteCategoryUnspecified))(t)
	bad.fail = true
	if err := f.Sync(); !errors.Is(err, errDisk) {
		t.Errorf("sync: %v", err)
	}
	bad.fail = false
	if err := f.Sync(); !errors.Is(err, errDisk) {
		t.Errorf("a second sync forgot the failure: %v", err)
	}
	if err := f.Close(); !errors.Is(err, errDisk) {
		t.Errorf("close forgot the failure: %v", err)
	}
}

var errDisk = errors.New("the disk is broken")

// failing is a file system whose files fail to write and sync while fail is set.
type failing struct {
	vfs.FS
	fail bool
}

type failingFile struct {
	vfs.File
	fs *failing
}

func (s *failing) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return failingFile{f, s}, err
}

func (s *failing) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, c, o...)
	return failingFile{f, s}, err
}

func (f failingFile) Write(p []byte) (int, error) {
	if f.fs.fail {
		return 0, errDisk
	}
	return f.File.Write(p)
}

func (f failingFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fs.fail {
		return 0, errDisk
	}
	return f.File.WriteAt(p, off)
}

func (f failingFile) Sync() error {
	if f.fs.fail {
		return errDisk
	}
	return f.File.Sync()
}

func (f failingFile) SyncData() error {
	if f.fs.fail {
		return errDisk
	}
	return f.File.SyncData()
}

func TestChunkNonces(t *testing.T) {
	t.Parallel()
	k := &chunkKey{}
	for i := range k.base {
		k.base[i] = byte(0xf0 + i)
	}
	seen := map[[nonceSize]byte]int64{}
	for _, i := range []int64{0, 1, 2, 255, 256, 257, 65535, 65536, 1 << 24, 1<<32 - 1, 1 << 32, 1<<38 - 1} {
		var n [nonceSize]byte
		k.nonce(&n, i)
		if at, ok := seen[n]; ok {
			t.Errorf("chunks %d and %d have one nonce", at, i)
		}
		seen[n] = i
		if !bytes.Equal(n[:7], k.base[:7]) {
			t.Errorf("chunk %d changes the front of the nonce", i)
		}
	}
}

func TestSmallFiles(t *testing.T) {
	t.Parallel()
	mem, ring := newRing(t)
	if _, err := ReadFile(mem, ring, "/data/CURRENT"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	rng := rand.New(rand.NewPCG(7, 8))
	for i, n := range []int{0, 1, 100, chunkSize, 100000} {
		if err := WriteFile(mem, ring, "/data/CURRENT", fill(n)); err != nil {
			t.Fatal(err)
		}
		for _, fs := range []vfs.FS{mem, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})} {
			if got := must(ReadFile(fs, reopenRing(t, fs), "/data/CURRENT"))(t); !bytes.Equal(got, fill(n)) {
				t.Errorf("%d: got %d bytes of %d", i, len(got), n)
			}
		}
	}
	if err := WriteFile(mem, ring, "/elsewhere", nil); err == nil {
		t.Error("sealed outside the directory of the keyring")
	}
	if err := mem.MkdirAll("/data/pki", 0o700); err != nil {
		t.Fatal(err)
	}
	b := raw(t, mem, "/data/CURRENT")
	put(t, mem, "/data/pki/CURRENT", b)
	_, err := ReadFile(mem, ring, "/data/pki/CURRENT")
	oneOf(t, err, ErrTampered)
	put(t, mem, "/data/CURRENT", []byte("state-1"))
	_, err = ReadFile(mem, ring, "/data/CURRENT")
	oneOf(t, err, ErrCorrupt)
}
