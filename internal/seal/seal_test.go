package seal

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// testKEK returns a key of its own for each name.
func testKEK(t testing.TB, name string) KEK {
	t.Helper()
	key := make([]byte, keySize)
	for i := range key {
		key[i] = byte(i * 7)
	}
	copy(key, name)
	k, err := newSymmetricKEK("test", "test key "+name, key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newRing makes a store in a crashable file system at /data.
func newRing(t testing.TB) (*vfs.MemFS, *Keyring) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	ring, err := CreateKeyring(fs, "/data", testKEK(t, "k"))
	if err != nil {
		t.Fatal(err)
	}
	return fs, ring
}

func reopenRing(t testing.TB, fs vfs.FS) *Keyring {
	t.Helper()
	ring, err := OpenKeyring(fs, "/data", testKEK(t, "k"))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// raw reads a file past the seal.
func raw(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put writes a file past the seal.
func put(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	if err := writeWhole(fs, path, bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// fill returns n bytes that differ from place to place.
func fill(n int) []byte {
	b := make([]byte, n)
	x := uint32(n) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// diskFS returns the real file system with a store in a temporary directory.
func diskFS(t testing.TB) (vfs.FS, string, *Keyring) {
	t.Helper()
	dir := t.TempDir() + "/data"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return vfs.Default, dir, must(CreateKeyring(vfs.Default, dir, testKEK(t, "k")))(t)
}
