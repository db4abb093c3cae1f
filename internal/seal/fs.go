package seal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the file system that pebble runs on: what pebble writes goes to the inner file system sealed, by the name of
// the file. A name that no rule covers is an error, never plain text. Every method is written out: embedding the inner
// file system would let a method that a later pebble adds write around the seal.
type FS struct {
	inner vfs.FS
	ring  *Keyring
	root  string

	mu   sync.Mutex
	made map[string]bool // directories in which this FS made tables: pebble lists them before their markers exist
}

var _ vfs.FS = (*FS)(nil)

// NewFS returns a sealed view of inner. Files live below root, which is the keyring's directory or below it; each is
// bound to its path under the keyring's directory, so it opens nowhere else and under no other name.
func NewFS(inner vfs.FS, ring *Keyring, root string) *FS {
	return &FS{inner: inner, ring: ring, root: root, made: map[string]bool{}}
}

// kind is how a file is sealed.
type kind uint8

const (
	kindUnknown kind = iota
	kindLock         // empty and plain; exists to be locked
	kindObject       // format 1
	kindMarker       // format 1 with no content: the name is the content
	kindStream       // format 2
)

// classify says how pebble's files are sealed, by base name.
func classify(base string) (kind, class) {
	switch {
	case base == lockName:
		return kindLock, 0
	case strings.HasPrefix(base, "MANIFEST-") && allDigits(base[len("MANIFEST-"):]):
		return kindStream, classManifest
	case strings.HasPrefix(canonicalBase(base), "OPTIONS-") && allDigits(canonicalBase(base)[len("OPTIONS-"):]):
		return kindObject, classSmall
	case strings.HasPrefix(base, "marker."):
		return kindMarker, classSmall
	}
	stem, ext, _ := strings.Cut(base, ".")
	switch {
	case (ext == "sst" || ext == "blob") && allDigits(stem):
		return kindObject, classTable
	case ext == "log" && allDigits(strings.Replace(stem, "-", "", 1)):
		return kindStream, classWAL
	}
	return kindUnknown, 0
}

// sealedFile is what FS knows of a file from its path.
type sealedFile struct {
	path  string
	place string
	kind  kind
	class class
}

func (s *FS) resolve(op, name string) (sealedFile, error) {
	if _, ok := placeBelow(s.root, name); !ok {
		return sealedFile{}, fmt.Errorf("%s %s: it is not below %s, where sealed files live", op, name, s.root)
	}
	place, err := s.ring.place(name)
	if err != nil {
		return sealedFile{}, err
	}
	k, c := classify(s.inner.PathBase(name))
	if k == kindUnknown {
		return sealedFile{}, fmt.Errorf("%s %s: no rule says how to seal a file of this name", op, name)
	}
	return sealedFile{path: name, place: place, kind: k, class: c}, nil
}

// Create starts a new sealed file and replaces an old one of that name.
func (s *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	sf, err := s.resolve("create", name)
	if err != nil {
		return nil, err
	}
	if sf.kind == kindLock {
		return nil, fmt.Errorf("create %s: a lock file is only locked", name)
	}
	f, err := s.inner.Create(name, category)
	if err != nil {
		return nil, err
	}
	if sf.kind == kindStream {
		w, err := newStreamWriter(s.ring, f, sf.path, sf.place, sf.class, StreamOptions{}, 0)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		w.write = func(frame []byte, _ int64) error { _, err := f.Write(frame); return err }
		if err := w.start(StreamOptions{}, 0); err != nil {
			return nil, errors.Join(err, w.Close())
		}
		return &streamFile{w: w}, nil
	}
	w, err := newObjectWriter(s.ring, f, sf.path, sf.place, sf.class)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.ring.beginWriting(sf.place)
	if sf.class == classTable {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.made[s.inner.PathDir(name)] = true
	}
	return &objectFile{w: w, ring: s.ring, place: sf.place, marker: sf.kind == kindMarker}, nil
}

// Link refuses: a sealed file opens under its own path only. The error is none of those that keep pebble from copying,
// and a copy is sealed anew for its place.
func (s *FS) Link(oldname, newname string) error {
	if _, err := s.resolve("link", oldname); err != nil {
		return err
	}
	if _, err := s.resolve("link", newname); err != nil {
		return err
	}
	return fmt.Errorf("link %s to %s: %w: a sealed file opens under its own path only", oldname, newname, vfs.ErrUnsupported)
}

// Open opens a sealed file for reading. Its header, the commitment to its key and its length are authenticated when
// Open returns; a stream is verified as a whole.
func (s *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	sf, err := s.resolve("open", name)
	if err != nil {
		return nil, err
	}
	if sf.kind == kindLock {
		return nil, fmt.Errorf("open %s: a lock file is only locked", name)
	}
	if sf.kind == kindStream {
		return s.openStreamFile(sf)
	}
	f, err := s.inner.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	r, err := openObject(s.ring, f, sf.path, sf.place, sf.class)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &readFile{inner: f, name: name, src: r, size: r.size, physical: objectOffset}, nil
}

// OpenReadWrite refuses: no sealed file is changed in place.
func (s *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, fmt.Errorf("open %s for reading and writing: %w: no sealed file is changed in place", name, vfs.ErrUnsupported)
}

// OpenDir opens a directory, to sync it.
func (s *FS) OpenDir(name string) (vfs.File, error) { return s.inner.OpenDir(name) }

// Remove removes a file or an empty directory below root. It does not remove the keyring.
func (s *FS) Remove(name string) error {
	if err := s.removable("remove", name); err != nil {
		return err
	}
	return s.inner.Remove(name)
}

// RemoveAll removes a file or directory below root with everything in it. It does not remove the keyring.
func (s *FS) RemoveAll(name string) error {
	if err := s.removable("remove", name); err != nil {
		return err
	}
	return s.inner.RemoveAll(name)
}

func (s *FS) removable(op, name string) error {
	if _, ok := placeBelow(s.root, name); !ok {
		return fmt.Errorf("%s %s: it is not below %s, where sealed files live", op, name, s.root)
	}
	clean := path.Clean(filepath.ToSlash(name))
	if ring := path.Clean(filepath.ToSlash(s.ring.path)); clean == ring || strings.HasPrefix(ring, clean+"/") {
		return fmt.Errorf("%s %s: the keyring is in it", op, name)
	}
	return nil
}

// Rename renames a file to the name that it was sealed for, which only temporary.N.dbtmp has to wait for.
func (s *FS) Rename(oldname, newname string) error {
	from, err := s.resolve("rename", oldname)
	if err != nil {
		return err
	}
	to, err := s.resolve("rename", newname)
	if err != nil {
		return err
	}
	if from.place != to.place || from.kind != to.kind {
		return fmt.Errorf("rename %s to %s: %w: a sealed file opens under its own path only", oldname, newname, vfs.ErrUnsupported)
	}
	return s.inner.Rename(oldname, newname)
}

// ReuseForWrite creates newname and removes oldname: the bytes of a sealed file are of no use to another one.
func (s *FS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if _, err := s.resolve("reuse", oldname); err != nil {
		return nil, err
	}
	if _, err := s.inner.Stat(oldname); err != nil {
		return nil, err
	}
	f, err := s.Create(newname, category)
	if err != nil {
		return nil, err
	}
	if err := s.Remove(oldname); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// MkdirAll creates directories. Their names are not secret.
func (s *FS) MkdirAll(dir string, perm os.FileMode) error { return s.inner.MkdirAll(dir, perm) }

// Lock locks a file named LOCK, the only plain one.
func (s *FS) Lock(name string) (io.Closer, error) {
	sf, err := s.resolve("lock", name)
	if err != nil {
		return nil, err
	}
	if sf.kind != kindLock {
		return nil, fmt.Errorf("lock %s: only a file named %s is locked", name, lockName)
	}
	return s.inner.Lock(name)
}

// List lists a directory. Markers, whose names are data, are authenticated: one that a crash left unfinished is left
// out, one that was forged is an error, and so is a directory with tables but without the marker that names its MANIFEST.
func (s *FS) List(dir string) ([]string, error) {
	names, err := s.inner.List(dir)
	if err != nil {
		return nil, err
	}
	return s.checkMarkers(dir, names)
}

// Stat describes a file by its plaintext size.
func (s *FS) Stat(name string) (vfs.FileInfo, error) {
	info, err := s.inner.Stat(name)
	if err != nil || info.IsDir() {
		return info, err
	}
	sf, err := s.resolve("stat", name)
	if err != nil {
		return nil, err
	}
	switch sf.kind {
	case kindLock:
		return info, nil
	case kindStream:
		f, err := s.openStreamFile(sf)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		return info, errors.Join(err, f.Close())
	}
	size, ok := plainSize(info.Size() - preambleSize)
	if !ok {
		return nil, damaged(ErrCorrupt, name, info.Size(), "it is truncated, or was never finished")
	}
	return sizedInfo{FileInfo: info, size: size}, nil
}

// PathBase returns the last element of a path.
func (s *FS) PathBase(p string) string { return s.inner.PathBase(p) }

// PathJoin joins path elements.
func (s *FS) PathJoin(elem ...string) string { return s.inner.PathJoin(elem...) }

// PathDir returns all but the last element of a path.
func (s *FS) PathDir(p string) string { return s.inner.PathDir(p) }

// GetDiskUsage returns the space of the device below.
func (s *FS) GetDiskUsage(p string) (vfs.DiskUsage, error) { return s.inner.GetDiskUsage(p) }

// Unwrap returns the inner file system, for whoever looks for the real one at the bottom.
func (s *FS) Unwrap() vfs.FS { return s.inner }

// sizedInfo is the FileInfo of the file below with another size.
type sizedInfo struct {
	vfs.FileInfo
	size int64
}

func (i sizedInfo) Size() int64 { return i.size }
