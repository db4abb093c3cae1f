package scorecard

import (
	"bytes"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// opKind is what is done to a file system.
type opKind string

const (
	opCreate, opOpen, opOpenDir, opRemove, opRemoveAll opKind = "create", "open", "open directory", "remove", "remove all"
	opRename, opMkdir, opList, opStat, opUsage         opKind = "rename", "make directory", "list", "stat", "disk usage"
	opRead, opWrite, opSync, opSyncDir, opPreallocate  opKind = "read", "write", "fsync", "fsync directory", "preallocate"
	opLink                                             opKind = "link"
)

// changes reports whether an operation of this kind changes what is on the disk.
func (k opKind) changes() bool {
	switch k {
	case opOpen, opOpenDir, opList, opStat, opUsage, opRead:
		return false
	}
	return true
}

// needsSpace reports whether a full disk may refuse it.
func (k opKind) needsSpace() bool {
	switch k {
	case opCreate, opWrite, opMkdir, opPreallocate, opSync, opSyncDir, opRename, opLink:
		return true
	}
	return false
}

// op is one operation.
type op struct {
	kind opKind
	path string
	data []byte // of a write
	at   int64  // offset of a write; -1: where the file stands
}

// class is what kind of file an operation is about.
func (o op) class() string { return classOf(o.path) }

// classOf names the kind of a file by its path.
func classOf(name string) string {
	dir, base := path.Split(name)
	dir = path.Base(dir)
	switch {
	case strings.HasSuffix(base, ".seg"):
		return "log segment"
	case base == "next.zero":
		return "prepared segment"
	case strings.HasSuffix(base, ".sst"):
		return "table"
	case strings.HasSuffix(base, ".blob"):
		return "blob"
	case strings.HasPrefix(base, "MANIFEST-"):
		return "MANIFEST"
	case strings.HasPrefix(base, "OPTIONS-"), strings.HasPrefix(base, "temporary."):
		return "OPTIONS"
	case strings.HasPrefix(base, "marker."):
		return "marker"
	case strings.HasPrefix(base, "KEYRING"):
		return "KEYRING"
	case strings.HasPrefix(base, "CURRENT"):
		return "CURRENT"
	case strings.HasPrefix(base, "CREATING"):
		return "CREATING"
	case strings.HasSuffix(base, ".audit"):
		return "audit segment"
	case base == "LOCK":
		return "LOCK"
	case strings.HasSuffix(base, ".log"):
		return "pebble's empty log"
	case dir == "pki":
		return "pki"
	}
	return "directory"
}

// fills counts the writes that fill a new segment with zeros, page after page: they are all alike and many, so that of them only each
// sixteenth counts as an operation.
type fills struct{ seen atomic.Int64 }

func (f *fills) skip(o op) bool {
	return o.kind == opWrite && len(o.data) > 0 && len(bytes.Trim(o.data, "\x00")) == 0 && f.seen.Add(1)%16 != 1
}

// trouble is what comes of an operation instead of success.
type trouble struct {
	err  error
	done float64 // how much of it is done all the same: 0 nothing, 1 everything, between for writes
}

// disk is one member's file system: memory that remembers what was synced, behind a gate through which every operation goes.
// It is a vfs.FS; every run of a member gets one of its own over the memory of the run before.
type disk struct {
	mem   *vfs.MemFS
	count atomic.Int64 // operations, all kinds
	hook  atomic.Pointer[func(op) *trouble]

	gate  sync.RWMutex // held for reading by each operation, for writing while the power is cut
	dead  error        // guarded by gate: what every operation returns
	locks sync.Map
	usage atomic.Pointer[vfs.DiskUsage]
}

func newDisk(mem *vfs.MemFS) *disk {
	d := &disk{mem: mem}
	d.usage.Store(&vfs.DiskUsage{AvailBytes: 64 << 30, TotalBytes: 100 << 30, UsedBytes: 36 << 30})
	return d
}

// onOp has f asked before every operation; nil: nobody.
func (d *disk) onOp(f func(op) *trouble) {
	if f == nil {
		d.hook.Store(nil)
		return
	}
	d.hook.Store(&f)
}

// do runs one operation through the gate. run gets how much of it to do.
func (d *disk) do(o op, run func(part float64) error) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	if d.dead != nil {
		return &os.PathError{Op: string(o.kind), Path: o.path, Err: d.dead}
	}
	d.count.Add(1)
	if h := d.hook.Load(); h != nil {
		if f := (*h)(o); f != nil {
			if f.done > 0 {
				if err := run(f.done); err != nil {
					return err
				}
			}
			return &os.PathError{Op: string(o.kind), Path: o.path, Err: f.err}
		}
	}
	return run(1)
}

// kill makes every later operation fail with err. What is under way is done first.
func (d *disk) kill(err error) {
	d.gate.Lock()
	d.dead = err
	d.gate.Unlock()
}

func (d *disk) open(o op, run func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := d.do(o, func(float64) (err error) { f, err = run(); return err })
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, err
	}
	return &diskFile{d: d, f: f, path: o.path, dir: o.kind == opOpenDir}, nil
}

func (d *disk) simple(k opKind, name string, run func() error) error {
	return d.do(op{kind: k, path: name, at: -1}, func(float64) error { return run() })
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(op{kind: opCreate, path: name}, func() (vfs.File, error) { return d.mem.Create(name, c) })
}

func (d *disk) Link(from, to string) error {
	return d.simple(opLink, to, func() error { return d.mem.Link(from, to) })
}

func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.open(op{kind: opOpen, path: name}, func() (vfs.File, error) { return d.mem.Open(name) })
	for _, o := range opts {
		if err == nil {
			o.Apply(f)
		}
	}
	return f, err
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	kind := opOpen
	if _, err := d.mem.Stat(name); err != nil {
		kind = opCreate
	}
	f, err := d.open(op{kind: kind, path: name}, func() (vfs.File, error) { return d.mem.OpenReadWrite(name, c) })
	for _, o := range opts {
		if err == nil {
			o.Apply(f)
		}
	}
	return f, err
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	return d.open(op{kind: opOpenDir, path: name}, func() (vfs.File, error) { return d.mem.OpenDir(name) })
}

func (d *disk) Remove(name string) error {
	return d.simple(opRemove, name, func() error { return d.mem.Remove(name) })
}

func (d *disk) RemoveAll(name string) error {
	return d.simple(opRemoveAll, name, func() error { return d.mem.RemoveAll(name) })
}

func (d *disk) Rename(from, to string) error {
	return d.simple(opRename, to, func() error { return d.mem.Rename(from, to) })
}

func (d *disk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(op{kind: opCreate, path: to}, func() (vfs.File, error) { return d.mem.ReuseForWrite(from, to, c) })
}

func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	return d.simple(opMkdir, name, func() error { return d.mem.MkdirAll(name, perm) })
}

// Lock is this run's alone: a run whose disk is dead holds nothing any more.
func (d *disk) Lock(name string) (io.Closer, error) {
	var c io.Closer
	err := d.simple(opCreate, name, func() error {
		if _, taken := d.locks.LoadOrStore(name, true); taken {
			return os.ErrExist
		}
		f, err := d.mem.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		c = closer(func() error { d.locks.Delete(name); return f.Close() })
		return nil
	})
	return c, err
}

type closer func() error

func (c closer) Close() error { return c() }

func (d *disk) List(name string) (names []string, err error) {
	err = d.simple(opList, name, func() (err error) { names, err = d.mem.List(name); return err })
	return names, err
}

func (d *disk) Stat(name string) (info vfs.FileInfo, err error) {
	err = d.simple(opStat, name, func() (err error) { info, err = d.mem.Stat(name); return err })
	return info, err
}

func (d *disk) PathBase(p string) string       { return d.mem.PathBase(p) }
func (d *disk) PathJoin(elem ...string) string { return d.mem.PathJoin(elem...) }
func (d *disk) PathDir(p string) string        { return d.mem.PathDir(p) }
func (d *disk) Unwrap() vfs.FS                 { return d.mem }

func (d *disk) GetDiskUsage(name string) (u vfs.DiskUsage, err error) {
	err = d.simple(opUsage, name, func() error { u = *d.usage.Load(); return nil })
	return u, err
}

// diskFile is an open file of a disk.
type diskFile struct {
	d    *disk
	f    vfs.File
	path string
	dir  bool
}

func (f *diskFile) Close() error { return f.f.Close() }

func (f *diskFile) Read(p []byte) (n int, err error) {
	gate := f.d.do(op{kind: opRead, path: f.path, at: -1}, func(float64) error { n, err = f.f.Read(p); return nil })
	if gate != nil {
		return 0, gate
	}
	return n, err
}

func (f *diskFile) ReadAt(p []byte, off int64) (n int, err error) {
	gate := f.d.do(op{kind: opRead, path: f.path, at: off}, func(float64) error { n, err = f.f.ReadAt(p, off); return nil })
	if gate != nil {
		return 0, gate
	}
	return n, err
}

func (f *diskFile) Write(p []byte) (n int, err error) {
	err = f.d.do(op{kind: opWrite, path: f.path, data: p, at: -1}, func(part float64) (err error) {
		n, err = f.f.Write(p[:int(float64(len(p))*part)])
		return err
	})
	return n, err
}

func (f *diskFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.d.do(op{kind: opWrite, path: f.path, data: p, at: off}, func(part float64) (err error) {
		n, err = f.f.WriteAt(p[:int(float64(len(p))*part)], off)
		return err
	})
	return n, err
}

func (f *diskFile) sync(run func() error) error {
	kind := opSync
	if f.dir {
		kind = opSyncDir
	}
	return f.d.do(op{kind: kind, path: f.path}, func(float64) error { return run() })
}

func (f *diskFile) Sync() error     { return f.sync(f.f.Sync) }
func (f *diskFile) SyncData() error { return f.sync(f.f.SyncData) }

// SyncTo promises nothing: the memory file system's does nothing either.
func (f *diskFile) SyncTo(length int64) (full bool, err error) {
	err = f.sync(func() (err error) { full, err = f.f.SyncTo(length); return err })
	return full, err
}

func (f *diskFile) Preallocate(off, length int64) error {
	return f.d.do(op{kind: opPreallocate, path: f.path}, func(float64) error { return f.f.Preallocate(off, length) })
}

func (f *diskFile) Stat() (vfs.FileInfo, error)      { return f.f.Stat() }
func (f *diskFile) Prefetch(off, length int64) error { return f.f.Prefetch(off, length) }
func (f *diskFile) Fd() uintptr                      { return f.f.Fd() }

var _ vfs.FS = (*disk)(nil)
