package mvcc

import (
	"fmt"
	"sync"
	"sync/atomic"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/storage"
)

// ErrKeyNotFound answers a Put that wants to keep the value or lease of a key that does not exist.
var ErrKeyNotFound = fault.New(fault.Invalid, "key not found")

// published is what readers may see of a space, replaced whole by Publish.
type published struct {
	revision, compacted, bytes, keys int64
}

// Space is one revisioned keyspace. Reads may run beside each other, beside one Writer and beside Sweep.
type Space struct {
	id     SpaceID
	now    atomic.Pointer[published]
	meta   meta // as of the last Publish; the Writer's starting point
	writer Writer
	limits indexLimits

	readers sync.Pool // *pageReader
	sweepMu sync.Mutex
}

// OpenSpace reads the space's meta row. In a fresh engine the space has revision 1 and compact revision -1.
func OpenSpace(r storage.Reader, id SpaceID) (*Space, error) {
	s := &Space{id: id, meta: freshMeta(), limits: indexLimits{maxLeaf, maxFanout}}
	s.readers.New = func() any { return new(pageReader) }
	var buf [3]byte
	row, ok, err := r.Get(appendMetaKey(buf[:0], id, 'r'), nil)
	if err == nil && ok {
		err = s.meta.decode(row)
	}
	if err != nil {
		return nil, fmt.Errorf("mvcc: open space %d: %w", id, err)
	}
	s.publish()
	return s, nil
}

func (s *Space) publish() {
	m := &s.meta
	s.now.Store(&published{revision: m.revision, compacted: m.compacted, bytes: m.bytes(), keys: m.root.count})
}

// ID returns which space it is.
func (s *Space) ID() SpaceID { return s.id }

// Revision returns the newest revision that readers may see.
func (s *Space) Revision() int64 { return s.now.Load().revision }

// CompactRevision returns the revision of the last compaction, which is the lowest that can be read; -1 if there was
// none.
func (s *Space) CompactRevision() int64 { return s.now.Load().compacted }

// Bytes returns the logical size; see the package comment.
func (s *Space) Bytes() int64 { return s.now.Load().bytes }

// BytesInUse returns the logical size less free space, of which there is none; see the package comment.
func (s *Space) BytesInUse() int64 { return s.now.Load().bytes }

// Keys returns the number of keys at Revision.
func (s *Space) Keys() int64 { return s.now.Load().keys }

// Publish shows readers the state that w finished, once its batch has been applied.
func (s *Space) Publish(w *Writer) {
	if w.s != s || !w.finished {
		panic("mvcc: Publish of a writer that did not finish")
	}
	w.finished = false
	s.meta = w.m
	s.publish()
}
