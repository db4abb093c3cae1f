package mvcc

import (
	"errors"
	"sync"
	"sync/atomic"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/storage"
)

// ErrKeyNotFound answers a Put that wants to keep the value or lease of a key that does not exist.
var ErrKeyNotFound = fault.New(fault.Invalid, "key not found")

var errTODO = errors.New("not built yet")

// published is what readers may see of a space, replaced whole by Publish.
type published struct {
	revision, compactRevision, bytes int64
}

// Space is one revisioned keyspace. Reads may run beside each other and beside one Writer.
type Space struct {
	id  SpaceID
	now atomic.Pointer[published]

	sweepMu sync.Mutex
}

// OpenSpace reads the space's few meta rows. In a fresh engine the space has revision 1 and compact revision -1.
func OpenSpace(r storage.Reader, id SpaceID) (*Space, error) { return nil, errTODO }

// ID returns which space it is.
func (s *Space) ID() SpaceID { return s.id }

// Revision returns the newest revision that readers may see.
func (s *Space) Revision() int64 { return s.now.Load().revision }

// CompactRevision returns the lowest revision that can be read, -1 if nothing was compacted yet.
func (s *Space) CompactRevision() int64 { return s.now.Load().compactRevision }

// Bytes returns the logical size.
func (s *Space) Bytes() int64 { return s.now.Load().bytes }

// BytesInUse returns the logical size without what could be given back; see the package comment.
func (s *Space) BytesInUse() int64 { return s.now.Load().bytes }

// Read answers q from r.
func (s *Space) Read(r storage.Reader, q Query) (Page, error) { return Page{}, errTODO }

// KeyAt returns the version of key that was written at modRevision; false if it is compacted or never was.
func (s *Space) KeyAt(r storage.Reader, key []byte, modRevision int64) (KV, bool, error) {
	return KV{}, false, errTODO
}

// Events returns what happened to the keys in span at the revisions from <= rev <= to. next is the first revision not
// looked at.
func (s *Space) Events(r storage.Reader, span storage.Span, from, to int64, maxRevs, maxBytes int) (events []RevisionEvents, next int64, err error) {
	return nil, 0, errTODO
}

// Sweep removes what compaction made unreachable, at most budget log rows in one call.
func (s *Space) Sweep(e *storage.Engine, budget int) (more bool, err error) { return false, errTODO }

// Hash returns a checksum over what can be read at revisions up to rev (<= 0: the newest).
func (s *Space) Hash(r storage.Reader, rev int64) (hash uint32, current, compacted int64, err error) {
	return 0, 0, 0, errTODO
}

// Lease is one lease as the log knows it. Times are in seconds.
type Lease struct {
	ID        int64
	TTL       int64
	Remaining int64 // last checkpoint; 0: none, the whole TTL
}

// Leases returns up to limit leases with ID >= from, by ID. limit <= 0: all.
func (s *Space) Leases(r storage.Reader, from int64, limit int) ([]Lease, error) { return nil, errTODO }

// LeaseInfo returns one lease.
func (s *Space) LeaseInfo(r storage.Reader, id int64) (Lease, bool, error) {
	return Lease{}, false, errTODO
}

// LeaseKeys returns the keys attached to a lease, in key order.
func (s *Space) LeaseKeys(r storage.Reader, id int64) ([][]byte, error) { return nil, errTODO }

// Split cuts the revision off a version row's key; see storage.Options.
func Split(key []byte) int { return len(key) }

// PutOptions modify a Put.
type PutOptions struct {
	Lease       int64
	PrevKV      bool // return the replaced version
	IgnoreValue bool // keep the present value; the key must exist
	IgnoreLease bool // keep the present lease; the key must exist
}

// Writer collects the changes of one batch of requests to one space. Requests see what earlier ones of the batch did.
// Slices handed to it must not change before Finish. It is not safe for concurrent use.
type Writer struct{ s *Space }

// NewWriter returns a writer over the state e, which must be the newest, that writes into b. A space has at most one
// writer at a time: the next may be taken after Publish.
func (s *Space) NewWriter(e storage.Reader, b *storage.Batch) *Writer { return &Writer{s: s} }

// Revision returns the revision of the last request that ended.
func (w *Writer) Revision() int64 { return 0 }

// CompactRevision returns the compact revision as of now in the batch.
func (w *Writer) CompactRevision() int64 { return 0 }

// Bytes returns the logical size as of now in the batch.
func (w *Writer) Bytes() int64 { return 0 }

// Begin starts a request.
func (w *Writer) Begin() {}

// End ends a request and returns its revision: a new one only if something changed since Begin.
func (w *Writer) End() (revision int64) { return 0 }

// Read answers q as of now in the batch. Page.Revision is that of the request if it has changed something.
func (w *Writer) Read(q Query) (Page, error) { return Page{}, errTODO }

// Get returns the newest version of key as of now in the batch, without its value unless withValue is set. It is the
// cheapest read.
func (w *Writer) Get(key []byte, withValue bool) (kv KV, ok bool, err error) {
	return KV{}, false, errTODO
}

// Put writes one key. prev is nil unless asked for and there was one. On error nothing has changed.
func (w *Writer) Put(key, value []byte, o PutOptions) (prev *KV, err error) { return nil, errTODO }

// DeleteSpan deletes every key in span, in key order, and returns how many there were and, if asked for, their versions.
func (w *Writer) DeleteSpan(span storage.Span, wantPrev bool) (prev []KV, deleted int64, err error) {
	return nil, 0, errTODO
}

// GrantLease creates a lease: ErrLeaseExists.
func (w *Writer) GrantLease(id, ttl int64) error { return errTODO }

// RevokeLease removes a lease and deletes its keys, in key order, all in the revision of the request: ErrLeaseNotFound.
func (w *Writer) RevokeLease(id int64) (deleted int64, err error) { return 0, errTODO }

// CheckpointLease records the seconds a lease has left: ErrLeaseNotFound.
func (w *Writer) CheckpointLease(id, remaining int64) error { return errTODO }

// Lease returns a lease as of now in the batch.
func (w *Writer) Lease(id int64) (Lease, bool, error) { return Lease{}, false, errTODO }

// LeaseKeys returns the keys attached to a lease as of now in the batch, in key order.
func (w *Writer) LeaseKeys(id int64) ([][]byte, error) { return nil, errTODO }

// Compact makes revisions below rev unreadable: ErrCompacted if that is so already, ErrFutureRevision.
func (w *Writer) Compact(rev int64) error { return errTODO }

// Finish completes the batch and returns its events. The writer must not be used afterwards but for Publish.
func (w *Writer) Finish() ([]RevisionEvents, error) { return nil, errTODO }

// Publish shows readers the state that w finished, once the batch has been applied.
func (s *Space) Publish(w *Writer) {}
