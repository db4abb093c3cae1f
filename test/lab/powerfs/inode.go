package powerfs

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	pageSize   = 4096
	sectorSize = 512 // what a disk writes whole or not at all
)

// inode is one file or directory, as programs see it and as it would be after a loss of power.
type inode struct {
	id      uint64
	dir     bool
	perm    uint32
	changed time.Time
	lookups uint64 // of the kernel
	opens   int
	names   int // that programs see

	size    int64
	pages   map[int64][]byte // by number; a missing one is zeros
	durable int64            // the size
	before  map[int64][]byte // what is durable of the pages that were written since the last sync; nil: zeros
	failed  map[int64][]byte // the same of pages whose sync failed: no later sync writes them, unless they are written again
	writes  []extent         // since the last sync, in order

	entries map[string]*inode
	synced  map[string]*inode
}

type extent struct{ from, to int64 }

func newInode(id uint64, dir bool, perm uint32, now time.Time) *inode {
	n := &inode{id: id, dir: dir, perm: perm, changed: now}
	if dir {
		n.entries, n.synced = map[string]*inode{}, map[string]*inode{}
	} else {
		n.pages, n.before, n.failed = map[int64][]byte{}, map[int64][]byte{}, map[int64][]byte{}
	}
	return n
}

// page returns a page for writing; what is durable of it is kept apart first.
func (n *inode) page(i int64) (p []byte, fresh bool) {
	p = n.pages[i]
	if _, kept := n.before[i]; !kept {
		n.keep(i)
		if p != nil {
			p = slices.Clone(p)
			n.pages[i] = p
		}
	}
	if p == nil {
		p = make([]byte, pageSize)
		n.pages[i] = p
		return p, true
	}
	return p, false
}

// keep notes what is durable of a page that is about to change.
func (n *inode) keep(i int64) {
	old, failed := n.failed[i]
	if !failed {
		old = n.pages[i]
	}
	n.before[i] = old
}

// missing counts the pages that a write needs and the file does not have.
func (n *inode) missing(off int64, length int) (count int64) {
	for i := off / pageSize; i*pageSize < off+int64(length); i++ {
		if n.pages[i] == nil {
			count++
		}
	}
	return count
}

func (n *inode) write(off int64, data []byte, now time.Time) {
	n.note(off, off+int64(len(data)))
	for at := off; len(data) > 0; {
		p, _ := n.page(at / pageSize)
		c := copy(p[at%pageSize:], data)
		data, at = data[c:], at+int64(c)
		n.size = max(n.size, at)
	}
	n.changed = now
}

// note remembers a write; one that goes on where the last one ended lengthens it up to a megabyte.
func (n *inode) note(from, to int64) {
	if l := len(n.writes); l > 0 && n.writes[l-1].to == from && to-n.writes[l-1].from <= 1<<20 {
		n.writes[l-1].to = to
		return
	}
	n.writes = append(n.writes, extent{from, to})
}

func (n *inode) read(off int64, buf []byte) []byte {
	if off >= n.size {
		return nil
	}
	buf = buf[:min(int64(len(buf)), n.size-off)]
	for at := 0; at < len(buf); {
		in := (off + int64(at)) % pageSize
		part := buf[at:min(len(buf), at+pageSize-int(in))]
		if p := n.pages[(off+int64(at))/pageSize]; p != nil {
			copy(part, p[in:])
		} else {
			clear(part)
		}
		at += len(part)
	}
	return buf
}

// resize cuts or lengthens a file and returns by how many pages it has shrunk.
func (n *inode) resize(size int64, now time.Time) (freed int64) {
	if size < n.size {
		if size%pageSize != 0 && n.pages[size/pageSize] != nil {
			p, _ := n.page(size / pageSize)
			clear(p[size%pageSize:])
		}
		for i := range n.pages {
			if i*pageSize >= size {
				if _, kept := n.before[i]; !kept {
					n.keep(i)
				}
				delete(n.pages, i)
				freed++
			}
		}
	}
	n.size, n.changed = size, now
	return freed
}

// sync makes all that was written durable.
func (n *inode) sync() {
	if n.dir {
		n.synced = maps.Clone(n.entries)
		return
	}
	n.durable, n.writes = n.size, nil
	for i := range n.before {
		delete(n.failed, i)
	}
	clear(n.before)
}

// failSync is a sync that the disk refused: the kernel takes the pages for clean, and a sync that goes through later does not
// write them.
func (n *inode) failSync() {
	for i, old := range n.before {
		if _, failed := n.failed[i]; !failed {
			n.failed[i] = old
		}
	}
	n.writes = nil
	clear(n.before)
}

// Mode is what a loss of power leaves of what was not synced.
type Mode string

// The modes.
const (
	Drop    Mode = "drop"    // nothing
	Tear    Mode = "tear"    // the first writes of each file, the last of them up to a random sector
	Scatter Mode = "scatter" // each sector of 512 bytes by chance
)

// cut makes n what it is after the power came back, and says whether that differs from what programs saw.
func (n *inode) cut(mode Mode, rng *rand.Rand) (lost bool) {
	if n.dir {
		if mode != Drop && rng.IntN(2) == 0 {
			n.synced = maps.Clone(n.entries) // the file system had written its journal
		}
		lost = !maps.Equal(n.entries, n.synced)
		n.entries = maps.Clone(n.synced)
		return lost
	}
	lost = len(n.before)+len(n.failed) > 0 || n.size != n.durable
	kept := n.kept(mode, rng)
	seen, size := n.pages, n.durable
	n.pages = maps.Clone(n.pages)
	for _, old := range []map[int64][]byte{n.failed, n.before} {
		for i, p := range old {
			if p == nil {
				delete(n.pages, i)
			} else {
				n.pages[i] = p
			}
		}
		clear(old)
	}
	n.size, n.writes = n.durable, nil
	for _, e := range kept {
		if p := seen[e.from/pageSize]; p != nil {
			whole, _ := n.page(e.from / pageSize)
			in := e.from % pageSize
			copy(whole[in:in+e.to-e.from], p[in:in+e.to-e.from])
			size = max(size, e.to)
		}
	}
	n.size = size
	n.sync()
	return lost
}

// kept chooses the sectors that reached the disk though nobody waited for them, none longer than a sector.
func (n *inode) kept(mode Mode, rng *rand.Rand) (kept []extent) {
	if mode == Drop || len(n.writes) == 0 {
		return nil
	}
	whole := rng.IntN(len(n.writes) + 1) // tear: so many writes, and a part of the next
	for w, e := range n.writes {
		if mode == Tear && w > whole {
			break
		}
		end := min(e.to, n.size)
		if mode == Tear && w == whole {
			end = e.from + rng.Int64N(max(1, end-e.from+1))
			end -= end % sectorSize
		}
		for at := e.from; at < end; {
			next := min(end, at-at%sectorSize+sectorSize)
			if mode == Tear || rng.IntN(2) == 0 {
				kept = append(kept, extent{at, next})
			}
			at = next
		}
	}
	return kept
}
