package seal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const keyFileText = `# Holdfast key encryption key. Together with the data directory it opens everything in it; without it nothing does.
# Keep a copy where the data directory's backups are not.
`

// fileKEK is a key in a file outside the data directory.
type fileKEK struct {
	*symmetricKEK
	path string
}

// FileKEK reads the key file at path. With create, a missing file is made first, mode 0400, with a fresh key; an
// existing one is never overwritten. A file that others may read, or that another user owns, is refused.
func FileKEK(path string, create bool) (KEK, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	text, err := readKeyFile(abs)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := makeKeyFile(abs); err != nil {
			return nil, fmt.Errorf("creating the key file %s: %w", abs, err)
		}
		text, err = readKeyFile(abs)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key file %s does not exist; put it back from its copy, or open the keyring with another key that it has a slot for: %w", abs, err)
	}
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", abs, err)
	}
	sym, err := newSymmetricKEK("file", "key file "+abs, key)
	if err != nil {
		return nil, err
	}
	return &fileKEK{symmetricKEK: sym, path: abs}, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, not of the path a second time
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("key file %s is not a regular file", path)
	}
	if extra := info.Mode().Perm() &^ 0o400; extra != 0 {
		return nil, fmt.Errorf("key file %s has mode %04o, which is wider than 0400; run: chmod 0400 %s", path, info.Mode().Perm(), path)
	}
	if err := checkOwner(info); err != nil {
		return nil, fmt.Errorf("key file %s %w", path, err)
	}
	return io.ReadAll(io.LimitReader(f, keyTextMax+1))
}

// makeKeyFile writes a new key beside path and links it into place, so that path is either absent or whole and a file
// that somebody else made meanwhile stays.
func makeKeyFile(path string) error {
	key := make([]byte, keySize)
	_, _ = rand.Read(key)
	suffix := make([]byte, 8)
	_, _ = rand.Read(suffix)
	dir := filepath.Dir(path)
	if err := MakeDir(vfs.Default, dir); err != nil {
		return err
	}
	tmp := path + ".tmp-" + hex.EncodeToString(suffix)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	_, err = f.WriteString(keyFileText + formatKey(key) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
