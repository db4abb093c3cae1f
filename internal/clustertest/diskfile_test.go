package clustertest

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// handle is an open file or directory of a disk.
type handle struct {
	disk  *disk
	name  string
	n     *inode
	at    int64
	write bool
}

// Close implements vfs.File.
func (h *handle) Close() error { return nil }

// Read implements vfs.File.
func (h *handle) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.at)
	h.at += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// ReadAt implements vfs.File.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Write implements vfs.File.
func (h *handle) Write(p []byte) (int, error) {
	n, err := h.put(p, h.at)
	h.at += int64(n)
	return n, err
}

// WriteAt implements vfs.File.
func (h *handle) WriteAt(p []byte, off int64) (int, error) { return h.put(p, off) }

func (h *handle) put(p []byte, off int64) (int, error) {
	d := h.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if !h.write {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: fs.ErrPermission}
	}
	after, err := d.beginLocked("write", h.name, nil)
	if err != nil {
		return 0, err
	}
	if err := h.growLocked(off + int64(len(p))); err != nil {
		return 0, err
	}
	h.n.touch(off, int64(len(p)))
	copy(h.n.data[off:], p)
	if err := after(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// growLocked makes the file at least so long.
func (h *handle) growLocked(size int64) error {
	more := size - int64(len(h.n.data))
	if more <= 0 {
		return nil
	}
	if h.disk.limit > 0 && h.disk.used+more > h.disk.limit && standsStill(h.name) {
		if h.disk.taken == nil {
			h.disk.taken = h.disk.cloneLocked()
		}
		h.disk.limit = 0
	}
	if h.disk.limit > 0 && h.disk.used+more > h.disk.limit {
		return &fs.PathError{Op: "write", Path: h.name, Err: errNoSpace}
	}
	h.n.touch(int64(len(h.n.data)), more)
	old := len(h.n.data)
	h.n.data = slices.Grow(h.n.data, int(more))[:size]
	clear(h.n.data[old:])
	h.disk.used += more
	return nil
}

// Preallocate implements vfs.File: the file is as long as that, with zeros.
func (h *handle) Preallocate(offset, length int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	return h.growLocked(offset + length)
}

// Stat implements vfs.File.
func (h *handle) Stat() (vfs.FileInfo, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	return h.n.info(h.name), nil
}

// Sync implements vfs.File.
func (h *handle) Sync() error {
	d := h.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	after, err := d.beginLocked("sync", h.name, h.n)
	if err != nil {
		return err
	}
	h.n.journal = nil
	h.n.synced = int64(len(h.n.data))
	clear(h.n.dirty)
	return after()
}

// SyncData implements vfs.File.
func (h *handle) SyncData() error { return h.Sync() }

// SyncTo implements vfs.File: it promises nothing, as sync_file_range does.
func (h *handle) SyncTo(int64) (bool, error) { return false, nil }

// Prefetch implements vfs.File.
func (h *handle) Prefetch(int64, int64) error { return nil }

// Fd implements vfs.File.
func (h *handle) Fd() uintptr { return vfs.InvalidFd }

type info struct {
	name string
	size int64
	dir  bool
	mod  time.Time
}

func (n *inode) info(name string) info {
	return info{path.Base(name), int64(len(n.data)), n.dir, n.mod}
}

// Name implements fs.FileInfo.
func (i info) Name() string { return i.name }

// Size implements fs.FileInfo.
func (i info) Size() int64 { return i.size }

// Mode implements fs.FileInfo.
func (i info) Mode() os.FileMode {
	if i.dir {
		return 0o700 | os.ModeDir
	}
	return 0o600
}

// ModTime implements fs.FileInfo.
func (i info) ModTime() time.Time { return i.mod }

// IsDir implements fs.FileInfo.
func (i info) IsDir() bool { return i.dir }

// Sys implements fs.FileInfo.
func (i info) Sys() any { return nil }

// DeviceID implements vfs.FileInfo.
func (i info) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// files lists every file with its size, by name.
func (d *disk) files() (names []string, sizes []int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var walk func(n *inode, name string)
	walk = func(n *inode, name string) {
		if !n.dir {
			names, sizes = append(names, name), append(sizes, int64(len(n.data)))
			return
		}
		for _, child := range slices.Sorted(maps.Keys(n.children)) {
			walk(n.children[child], name+"/"+child)
		}
	}
	walk(d.root, "")
	return names, sizes
}

// rot flips one bit.
func (d *disk) rot(name string, bit int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, err := d.findLocked(name); err == nil && bit/8 < int64(len(n.data)) {
		n.data[bit/8] ^= 1 << (bit % 8)
		d.bad = append(d.bad, flipped{n, bit})
	}
}

// listing is for messages: names and sizes.
func (d *disk) listing() string {
	names, _ := d.files()
	return strings.Join(names, " ")
}
