package clustertest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is a file system in memory that knows what was synced. It stands for one member's disk, through all of its runs.
//
// What a power cut leaves: of a file, everything up to its last sync, and of each block of 512 bytes written since either
// the new bytes or the old ones; of a directory, everything up to its last sync and some beginning of what was done since, in
// order, as a journal keeps it.
type disk struct {
	mu    sync.Mutex
	root  *inode
	locks map[string]bool
	trap  *trap
	taken *disk // what the trap has left: the member has died in the middle of something
	used  int64 // bytes of files
	limit int64 // 0: none
	ops   [numClasses]int
	bad   []flipped
}

// flipped is a bit that is not as it was written.
type flipped struct {
	n   *inode
	bit int64
}

// opClass groups operations that change something by what they are about; within a class their order is always the same.
type opClass uint8

const (
	opLog   opClass = iota // the segments of the log
	opMark                 // markers, keyrings: whatever seal.WriteFile writes
	opState                // the tables and manifests of the storage engine
	numClasses
)

func (c opClass) String() string { return [...]string{"log", "marker", "state"}[c] }

// trapKind is what happens at an operation.
type trapKind uint8

const (
	trapKill  trapKind = iota // the process dies after it
	trapPower                 // power is lost after it
	trapError                 // it fails and was not done
	trapLate                  // it fails although it was done
)

func (k trapKind) String() string {
	return [...]string{"kill", "power", "error", "late error"}[k]
}

// trap goes off at the n-th operation of a class from now.
type trap struct {
	class opClass
	kind  trapKind
	left  int
	seed  uint64
	sync  bool // only syncs count
	err   error
}

const blockSize = 512

type inode struct {
	dir      bool
	children map[string]*inode
	journal  []dirOp // since the last sync

	data   []byte
	synced int64            // size at the last sync
	dirty  map[int64][]byte // blocks written since, as they were
	clean  map[int64][]byte // blocks that a failed sync did not write, as they are on the disk; none will, unless they are written again
	mod    time.Time
}

// dirOp undoes one step: the names and what they stood for before it.
type dirOp struct {
	names  []string
	before []*inode // nil: nothing
}

func newDisk() *disk {
	return &disk{root: &inode{dir: true, children: map[string]*inode{}}, locks: map[string]bool{}}
}

// cloneLocked returns the disk as a dead process leaves it: everything that was written is there, synced or not.
func (d *disk) cloneLocked() *disk {
	copied := map[*inode]*inode{}
	var deep func(n *inode) *inode
	deep = func(n *inode) *inode {
		if n == nil {
			return nil
		}
		if c := copied[n]; c != nil {
			return c
		}
		c := &inode{dir: n.dir, synced: n.synced, mod: n.mod}
		copied[n] = c
		if !n.dir {
			c.data = slices.Clone(n.data)
			c.dirty, c.clean = maps.Clone(n.dirty), maps.Clone(n.clean) // blocks never change once kept
			return c
		}
		c.children = make(map[string]*inode, len(n.children))
		for name, child := range n.children {
			c.children[name] = deep(child)
		}
		for _, op := range n.journal {
			o := dirOp{names: op.names}
			for _, b := range op.before {
				o.before = append(o.before, deep(b))
			}
			c.journal = append(c.journal, o)
		}
		return c
	}
	out := newDisk()
	out.root, out.limit = deep(d.root), d.limit
	out.used = out.count(out.root)
	for _, f := range d.bad {
		if n := copied[f.n]; n != nil {
			out.bad = append(out.bad, flipped{n, f.bit})
		}
	}
	return out
}

func (d *disk) count(n *inode) (size int64) {
	size = int64(len(n.data))
	for _, c := range n.children {
		size += d.count(c)
	}
	return size
}

// lose takes away what a power cut takes. percent is how much of what was not synced is there all the same.
func (d *disk) lose(seed uint64, percent int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := map[*inode]bool{}
	var walk func(n *inode, name string)
	walk = func(n *inode, name string) {
		if seen[n] {
			return
		}
		seen[n] = true
		h := fnv.New64a()
		io.WriteString(h, name)
		rng := rand.New(rand.NewPCG(seed, h.Sum64()))
		if !n.dir {
			n.lose(rng, percent)
			return
		}
		keep := len(n.journal)
		if keep > 0 && rng.IntN(100) >= percent {
			keep = rng.IntN(keep + 1)
		}
		for i := len(n.journal) - 1; i >= keep; i-- {
			for k, name := range n.journal[i].names {
				if b := n.journal[i].before[k]; b != nil {
					n.children[name] = b
				} else {
					delete(n.children, name)
				}
			}
		}
		n.journal = nil
		for _, child := range slices.Sorted(maps.Keys(n.children)) {
			walk(n.children[child], name+"/"+child)
		}
	}
	walk(d.root, "")
	d.used = d.count(d.root)
}

func (n *inode) lose(rng *rand.Rand, percent int) {
	size := n.synced
	for _, b := range slices.Sorted(maps.Keys(n.dirty)) {
		old := n.dirty[b]
		at := b * blockSize
		if at >= int64(len(n.data)) {
			continue
		}
		end := min(at+blockSize, int64(len(n.data)))
		if rng.IntN(100) < percent {
			size = max(size, end)
			continue
		}
		n.revert(b, old)
	}
	for b, old := range n.clean {
		n.revert(b, old)
	}
	n.data = n.data[:min(size, int64(len(n.data)))]
	n.synced, n.dirty, n.clean = int64(len(n.data)), nil, nil
}

// revert puts a block back to what it was; zeros where it was not.
func (n *inode) revert(b int64, old []byte) {
	at := min(b*blockSize, int64(len(n.data)))
	end := min(at+blockSize, int64(len(n.data)))
	clear(n.data[at:end])
	copy(n.data[at:end], old)
}

// forget is a sync that failed, after which the kernel takes for written what was not.
func (n *inode) forget() {
	if n.clean == nil {
		n.clean = map[int64][]byte{}
	}
	maps.Copy(n.clean, n.dirty)
	clear(n.dirty)
}

// touch keeps the blocks that a write of [at, at+size) changes, as they are now.
func (n *inode) touch(at, size int64) {
	if n.dirty == nil {
		n.dirty = map[int64][]byte{}
	}
	for b := at / blockSize; b*blockSize < at+size; b++ {
		if _, kept := n.dirty[b]; kept {
			continue
		}
		if old, kept := n.clean[b]; kept {
			n.dirty[b] = old
			delete(n.clean, b)
			continue
		}
		from := b * blockSize
		if from >= int64(len(n.data)) {
			n.dirty[b] = nil
			continue
		}
		n.dirty[b] = slices.Clone(n.data[from:min(from+blockSize, int64(len(n.data)))])
	}
}

// set arms a trap; nil disarms.
func (d *disk) set(t *trap) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trap = t
}

// setLimit leaves room for so many more bytes; negative: no limit.
func (d *disk) setLimit(room int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = 0
	if room >= 0 {
		d.limit = d.used + room + 1
	}
	if d.taken != nil {
		d.taken.setLimit(room)
	}
}

// armed reports whether an operation may fail.
func (d *disk) armed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trap != nil || d.limit > 0
}

// short reports whether there is little room.
func (d *disk) short() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.limit > 0 || d.taken != nil && d.taken.limit > 0
}

// dead returns what is left of the disk if the trap has ended the process.
func (d *disk) dead() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken
}

// leave makes what is on the disk now what the next run finds, unless that was decided before; whatever the present run
// still does counts no more.
func (d *disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.taken == nil {
		d.taken = d.cloneLocked()
	}
	d.trap, d.limit = nil, 0  // what is left keeps its limit
	for _, f := range d.bad { // and its damage: the storage engine tries again and again what met with it
		if f.bit/8 < int64(len(f.n.data)) {
			f.n.data[f.bit/8] ^= 1 << (f.bit % 8)
		}
	}
	d.bad = nil
}

func classOf(name string) opClass {
	switch {
	case strings.Contains(name, "/log/"):
		return opLog
	case strings.Contains(name, "/state-"):
		return opState
	}
	return opMark
}

// standsStill reports whether the storage engine stands still, holding its locks, after it has told of an error of this file:
// the process ends then, which is what happens here at once. internal/storage has the tests of the telling.
func standsStill(name string) bool {
	dir, base := split(name)
	return classOf(name) == opState && (strings.HasPrefix(base, "MANIFEST") || strings.HasPrefix(base, "marker.") || dir == dataDir)
}

// beginLocked is called before an operation, and returns what has to be called when it is done, or why it fails. synced is the file
// or directory of a sync, nil if it is none.
func (d *disk) beginLocked(op, name string, synced *inode) (after func() error, err error) {
	class := classOf(name)
	if strings.HasSuffix(name, "next.zero") {
		return nothing, nil // prepared beside everything else: no order
	}
	d.ops[class]++
	t := d.trap
	if t == nil || t.class != class || t.sync && synced == nil || d.taken != nil {
		return nothing, nil
	}
	t.left--
	if t.left > 0 {
		return nothing, nil
	}
	d.trap = nil
	if t.kind == trapError && synced != nil && t.seed%2 == 0 {
		synced.forget()
	}
	if t.kind >= trapError && standsStill(name) {
		if t.kind == trapError {
			d.taken = d.cloneLocked()
			return nothing, nil
		}
		return func() error { d.taken = d.cloneLocked(); return nil }, nil
	}
	switch t.kind {
	case trapError:
		return nil, &fs.PathError{Op: op, Path: name, Err: t.err}
	case trapLate:
		return func() error { return &fs.PathError{Op: op, Path: name, Err: t.err} }, nil
	}
	return func() error {
		d.taken = d.cloneLocked()
		if t.kind == trapPower {
			d.taken.lose(t.seed, int(t.seed%4)*30)
		}
		return nil
	}, nil
}

func nothing() error { return nil }

var errNoSpace = syscall.ENOSPC

func split(name string) (dir, base string) {
	dir, base = path.Split(path.Clean("/" + name))
	return path.Clean(dir), base
}

func (d *disk) findLocked(name string) (*inode, error) {
	n := d.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		if !n.dir || n.children[part] == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = n.children[part]
	}
	return n, nil
}

func (d *disk) parentLocked(name string) (*inode, string, error) {
	dir, base := split(name)
	n, err := d.findLocked(dir)
	if err == nil && !n.dir {
		err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	return n, base, err
}

// put changes names of a directory.
func (n *inode) put(names []string, to []*inode) {
	op := dirOp{names: names}
	for i, name := range names {
		op.before = append(op.before, n.children[name])
		if to[i] == nil {
			delete(n.children, name)
		} else {
			n.children[name] = to[i]
		}
	}
	n.journal = append(n.journal, op)
}

// change does f on a name between beginLocked and what it returns.
func (d *disk) change(op, name string, f func(dir *inode, base string) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	after, err := d.beginLocked(op, name, nil)
	if err != nil {
		return err
	}
	dir, base, err := d.parentLocked(name)
	if err != nil {
		return err
	}
	if err := f(dir, base); err != nil {
		return err
	}
	return after()
}

// Create implements vfs.FS.
func (d *disk) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	n := &inode{mod: time.Now()}
	err := d.change("create", name, func(dir *inode, base string) error {
		if old := dir.children[base]; old != nil {
			d.used -= int64(len(old.data))
		}
		dir.put([]string{base}, []*inode{n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &handle{disk: d, name: name, n: n, write: true}, nil
}

// Link implements vfs.FS.
func (d *disk) Link(oldname, newname string) error {
	return d.change("link", newname, func(dir *inode, base string) error {
		n, err := d.findLocked(oldname)
		if err != nil {
			return err
		}
		if dir.children[base] != nil {
			return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: fs.ErrExist}
		}
		dir.put([]string{base}, []*inode{n})
		return nil
	})
}

// Open implements vfs.FS.
func (d *disk) Open(name string, _ ...vfs.OpenOption) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked(name)
	if err != nil {
		return nil, err
	}
	return &handle{disk: d, name: name, n: n}, nil
}

// OpenReadWrite implements vfs.FS.
func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	d.mu.Lock()
	n, err := d.findLocked(name)
	d.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return d.Create(name, c)
	}
	if err != nil {
		return nil, err
	}
	return &handle{disk: d, name: name, n: n, write: true}, nil
}

// OpenDir implements vfs.FS.
func (d *disk) OpenDir(name string) (vfs.File, error) { return d.Open(name) }

// Remove implements vfs.FS.
func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, base, err := d.parentLocked(name)
	if err != nil {
		return err
	}
	n := dir.children[base]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if len(n.children) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	d.used -= int64(len(n.data))
	dir.put([]string{base}, []*inode{nil})
	return nil
}

// RemoveAll implements vfs.FS.
func (d *disk) RemoveAll(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, base, err := d.parentLocked(name)
	if err != nil || dir.children[base] == nil {
		return nil // as os.RemoveAll
	}
	d.used -= d.count(dir.children[base])
	dir.put([]string{base}, []*inode{nil})
	return nil
}

// Rename implements vfs.FS.
func (d *disk) Rename(oldname, newname string) error {
	return d.change("rename", newname, func(dir *inode, base string) error {
		from, old, err := d.parentLocked(oldname)
		if err != nil {
			return err
		}
		n := from.children[old]
		if n == nil {
			return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: fs.ErrNotExist}
		}
		if was := dir.children[base]; was != nil && was != n {
			d.used -= int64(len(was.data))
		}
		if from != dir {
			from.put([]string{old}, []*inode{nil})
			dir.put([]string{base}, []*inode{n})
			return nil
		}
		dir.put([]string{old, base}, []*inode{nil, n})
		return nil
	})
}

// ReuseForWrite implements vfs.FS.
func (d *disk) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.Rename(oldname, newname); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked(newname)
	if err != nil {
		return nil, err
	}
	return &handle{disk: d, name: newname, n: n, write: true}, nil
}

// MkdirAll implements vfs.FS.
func (d *disk) MkdirAll(name string, _ os.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		if n.children[part] == nil {
			n.put([]string{part}, []*inode{{dir: true, children: map[string]*inode{}}})
		}
		n = n.children[part]
		if !n.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
	}
	return nil
}

// Lock implements vfs.FS.
func (d *disk) Lock(name string) (io.Closer, error) {
	f, err := d.Create(name, "lock")
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[name] {
		return nil, fmt.Errorf("lock %s: held", name)
	}
	d.locks[name] = true
	return unlock{d, name}, nil
}

type unlock struct {
	d    *disk
	name string
}

// Close implements io.Closer.
func (u unlock) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locks, u.name)
	return nil
}

// List implements vfs.FS.
func (d *disk) List(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked(name)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.children)), nil
}

// Stat implements vfs.FS.
func (d *disk) Stat(name string) (vfs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked(name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

// PathBase implements vfs.FS.
func (d *disk) PathBase(p string) string { return path.Base(p) }

// PathJoin implements vfs.FS.
func (d *disk) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir implements vfs.FS.
func (d *disk) PathDir(p string) string { return path.Dir(p) }

// GetDiskUsage implements vfs.FS.
func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	free := d.free()
	return vfs.DiskUsage{AvailBytes: uint64(free), TotalBytes: 1 << 40, UsedBytes: 1<<40 - uint64(free)}, nil
}

// free returns how many bytes can still be written.
func (d *disk) free() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit == 0 {
		return 1 << 40
	}
	return max(d.limit-d.used, 0)
}

// Unwrap implements vfs.FS.
func (d *disk) Unwrap() vfs.FS { return nil }
