package seal

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	tempSuffix   = ".tmp"
	maxSmallFile = 64 << 20
)

// WriteFile replaces the sealed file at path, which lies below the keyring's directory, by one with data: in full or,
// after a crash, not at all. It is durable when WriteFile returns. The file opens under its own path only; an older
// version of it that is put back later does open, so a reader that cares keeps a counter in it and elsewhere.
func WriteFile(fs vfs.FS, ring *Keyring, path string, data []byte) error {
	if len(data) > maxSmallFile {
		return fmt.Errorf("write %s: %d bytes are too many for a small file", path, len(data))
	}
	place, err := ring.place(path)
	if err != nil {
		return err
	}
	tmp := path + tempSuffix
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w, err := newObjectWriter(ring, f, path, place, classSmall)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = w.Write(data)
	if err == nil {
		err = w.sync(f.Sync)
	}
	if err := errors.Join(err, w.close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(path))
}

// ReadFile returns what WriteFile wrote at path.
func ReadFile(fs vfs.FS, ring *Keyring, path string) (data []byte, err error) {
	place, err := ring.place(path)
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := f.Close(); closeErr != nil {
			data, err = nil, errors.Join(err, closeErr)
		}
	}()
	r, err := openObject(ring, f, path, place, classSmall)
	if err != nil {
		return nil, err
	}
	if r.size > maxSmallFile {
		return nil, damaged(ErrCorrupt, path, 0, "it is larger than a small file can be")
	}
	data = make([]byte, r.size)
	if n, err := r.ReadAt(data, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(data)) {
		return nil, err
	}
	return data, nil
}
