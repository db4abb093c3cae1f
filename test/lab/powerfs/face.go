package powerfs

import (
	"errors"
	"maps"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// face is what the kernel asks of a disk.
type face struct {
	fuse.RawFileSystem
	d *Disk
}

// kept is how long the kernel may rely on what it was told: nobody else changes the disk while it is mounted.
const kept = time.Hour

func sortedNames(m map[string]*inode) []string { return slices.Sorted(maps.Keys(m)) }

func (f *face) String() string { return "powerfs" }

func (f *face) lock() func() { f.d.mu.Lock(); return f.d.mu.Unlock }

// dir returns a directory that the kernel knows.
func (f *face) dir(id uint64) (*inode, fuse.Status) {
	n := f.d.known[id]
	switch {
	case n == nil:
		return nil, fuse.ENOENT
	case !n.dir:
		return nil, fuse.ENOTDIR
	}
	return n, fuse.OK
}

func (n *inode) mode() uint32 {
	if n.dir {
		return syscall.S_IFDIR | n.perm
	}
	return syscall.S_IFREG | n.perm
}

func (n *inode) attr(a *fuse.Attr) {
	a.Ino, a.Mode, a.Size, a.Blksize = n.id, n.mode(), uint64(n.size), pageSize
	a.Blocks = uint64(len(n.pages)) * (pageSize / 512)
	a.Nlink = uint32(max(n.names, 0))
	if n.dir {
		a.Nlink = 2
	}
	a.SetTimes(&n.changed, &n.changed, &n.changed)
}

// entry tells the kernel of a node that it will remember.
func (f *face) entry(n *inode, out *fuse.EntryOut) {
	n.lookups++
	f.d.known[n.id] = n
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(kept)
	out.SetAttrTimeout(kept)
	n.attr(&out.Attr)
}

func (f *face) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer f.lock()()
	parent, status := f.dir(h.NodeId)
	if !status.Ok() {
		return status
	}
	n := parent.entries[name]
	if n == nil {
		return fuse.ENOENT
	}
	f.entry(n, out)
	return fuse.OK
}

func (f *face) Forget(id, count uint64) {
	defer f.lock()()
	n := f.d.known[id]
	if n == nil || n == f.d.root {
		return
	}
	n.lookups -= min(n.lookups, count)
	if n.lookups == 0 {
		delete(f.d.known, id)
	}
}

func (f *face) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil {
		return fuse.ENOENT
	}
	out.SetTimeout(kept)
	n.attr(&out.Attr)
	return fuse.OK
}

func (f *face) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil {
		return fuse.ENOENT
	}
	if size, ok := in.GetSize(); ok && !n.dir {
		f.d.used -= n.resize(int64(size), time.Now()) * pageSize
	}
	if perm, ok := in.GetMode(); ok {
		n.perm = perm & 0o7777
	}
	out.SetTimeout(kept)
	n.attr(&out.Attr)
	return fuse.OK
}

// add makes a new node in a directory.
func (f *face) add(parent uint64, name string, dir bool, perm uint32) (*inode, fuse.Status) {
	p, status := f.dir(parent)
	if !status.Ok() {
		return nil, status
	}
	if p.entries[name] != nil {
		return nil, fuse.Status(syscall.EEXIST)
	}
	if f.d.used >= f.d.capacity {
		f.d.full.Add(1)
		return nil, fuse.Status(syscall.ENOSPC)
	}
	f.d.last++
	n := newInode(f.d.last, dir, perm&0o7777, time.Now())
	n.names, p.entries[name], p.changed = 1, n, n.changed
	return n, fuse.OK
}

func (f *face) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer f.lock()()
	n, status := f.add(in.NodeId, name, true, in.Mode)
	if status.Ok() {
		f.entry(n, out)
	}
	return status
}

func (f *face) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer f.lock()()
	n, status := f.add(in.NodeId, name, false, in.Mode)
	if status.Ok() {
		n.opens++
		f.entry(n, &out.EntryOut)
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return status
}

// drop takes a name off a node and frees what nobody can reach any more.
func (f *face) drop(n *inode) {
	n.names--
	f.release(n)
}

func (f *face) release(n *inode) {
	if n.names <= 0 && n.opens == 0 && !n.dir {
		f.d.used -= int64(len(n.pages)) * pageSize
		n.names = math.MinInt32 // once
	}
}

func (f *face) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name, false)
}

func (f *face) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name, true)
}

func (f *face) remove(parent uint64, name string, dir bool) fuse.Status {
	defer f.lock()()
	p, status := f.dir(parent)
	if !status.Ok() {
		return status
	}
	n := p.entries[name]
	switch {
	case n == nil:
		return fuse.ENOENT
	case n.dir && !dir:
		return fuse.Status(syscall.EISDIR)
	case !n.dir && dir:
		return fuse.ENOTDIR
	case len(n.entries) > 0:
		return fuse.Status(syscall.ENOTEMPTY)
	}
	delete(p.entries, name)
	p.changed = time.Now()
	f.drop(n)
	return fuse.OK
}

func (f *face) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	defer f.lock()()
	p, status := f.dir(in.NodeId)
	if !status.Ok() {
		return status
	}
	q, status := f.dir(in.Newdir)
	if !status.Ok() {
		return status
	}
	n, old := p.entries[from], q.entries[to]
	const noReplace, exchange = 1, 2
	switch {
	case n == nil:
		return fuse.ENOENT
	case in.Flags&exchange != 0:
		return fuse.EINVAL
	case old != nil && in.Flags&noReplace != 0:
		return fuse.Status(syscall.EEXIST)
	case old == n:
		return fuse.OK
	case old != nil && old.dir && !n.dir:
		return fuse.Status(syscall.EISDIR)
	case old != nil && !old.dir && n.dir:
		return fuse.ENOTDIR
	case old != nil && len(old.entries) > 0:
		return fuse.Status(syscall.ENOTEMPTY)
	}
	delete(p.entries, from)
	q.entries[to] = n
	now := time.Now()
	p.changed, q.changed = now, now
	if old != nil {
		f.drop(old)
	}
	return fuse.OK
}

func (f *face) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer f.lock()()
	p, status := f.dir(in.NodeId)
	if !status.Ok() {
		return status
	}
	n := f.d.known[in.Oldnodeid]
	switch {
	case n == nil:
		return fuse.ENOENT
	case n.dir:
		return fuse.EPERM
	case p.entries[name] != nil:
		return fuse.Status(syscall.EEXIST)
	}
	p.entries[name], p.changed = n, time.Now()
	n.names++
	f.entry(n, out)
	return fuse.OK
}

func (f *face) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (f *face) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil {
		return fuse.ENOENT
	}
	if in.Flags&syscall.O_TRUNC != 0 {
		f.d.used -= n.resize(0, time.Now()) * pageSize
	}
	n.opens++
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *face) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	defer f.lock()()
	if n := f.d.known[in.NodeId]; n != nil {
		n.opens--
		f.release(n)
	}
}

func (f *face) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil || n.dir {
		return nil, fuse.EBADF
	}
	return fuse.ReadResultData(n.read(int64(in.Offset), buf)), fuse.OK
}

func (f *face) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil || n.dir {
		return 0, fuse.EBADF
	}
	need := n.missing(int64(in.Offset), len(data)) * pageSize
	if need > 0 && f.d.used+need > f.d.capacity {
		f.d.full.Add(1)
		return 0, fuse.Status(syscall.ENOSPC)
	}
	f.d.used += need
	n.write(int64(in.Offset), data, time.Now())
	return uint32(len(data)), fuse.OK
}

func (f *face) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (f *face) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.sync(cancel, in.NodeId)
}

func (f *face) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.sync(cancel, in.NodeId)
}

// sync makes a node durable.
func (f *face) sync(cancel <-chan struct{}, id uint64) fuse.Status {
	err := f.d.beginSync(cancel)
	defer f.lock()()
	n := f.d.known[id]
	if n == nil {
		return fuse.EBADF
	}
	var code syscall.Errno
	if errors.As(err, &code) {
		if code == syscall.EIO && !n.dir {
			n.failSync()
		}
		return fuse.Status(code)
	}
	n.sync()
	return fuse.OK
}

func (f *face) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	defer f.lock()()
	n := f.d.known[in.NodeId]
	if n == nil || n.dir {
		return fuse.EBADF
	}
	const keepSize = 1
	if in.Mode&^keepSize != 0 {
		return fuse.ENOTSUP // holes are not punched here
	}
	if end := int64(in.Offset + in.Length); in.Mode&keepSize == 0 && end > n.size {
		n.resize(end, time.Now())
	}
	return fuse.OK
}

func (f *face) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	defer f.lock()()
	_, status := f.dir(in.NodeId)
	return status
}

func (f *face) ReleaseDir(*fuse.ReleaseIn) {}

func (f *face) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(name string, n *inode, at uint64) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: name, Mode: n.mode(), Ino: n.id, Off: at})
	})
}

func (f *face) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(name string, n *inode, at uint64) bool {
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Mode: n.mode(), Ino: n.id, Off: at})
		if e == nil {
			return false
		}
		f.entry(n, e)
		return true
	})
}

// list gives the entries of a directory from an offset on. An entry's offset is its node's id plus one, in order of ids, so that
// what is removed while somebody lists moves nothing.
func (f *face) list(in *fuse.ReadIn, add func(string, *inode, uint64) bool) fuse.Status {
	defer f.lock()()
	n, status := f.dir(in.NodeId)
	if !status.Ok() {
		return status
	}
	names := sortedNames(n.entries)
	slices.SortStableFunc(names, func(a, b string) int { return int(n.entries[a].id) - int(n.entries[b].id) })
	for _, name := range names {
		e := n.entries[name]
		if e.id < in.Offset {
			continue
		}
		if !add(name, e, e.id+1) {
			break
		}
	}
	return fuse.OK
}

func (f *face) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	defer f.lock()()
	out.Bsize, out.Frsize, out.NameLen = pageSize, pageSize, 255
	out.Blocks = uint64(f.d.capacity / pageSize)
	out.Bfree = uint64(max(0, f.d.capacity-f.d.used) / pageSize)
	out.Bavail = out.Bfree
	out.Files, out.Ffree = 1<<20, 1<<19
	return fuse.OK
}
