package mvcc

import (
	"bytes"
	"encoding/binary"
	"slices"

	"holdfast.dev/holdfast/internal/storage"
)

// Lease is one lease as the log knows it. Times are in seconds.
type Lease struct {
	ID        int64
	TTL       int64
	Remaining int64 // last checkpoint; 0: none, the whole TTL
}

func (l *Lease) append(dst []byte) []byte {
	return binary.AppendVarint(binary.AppendVarint(dst, l.TTL), l.Remaining)
}

func (l *Lease) decode(row, value []byte) error {
	if len(row) != 10 {
		return corrupt(tableLeases, "key")
	}
	ttl, n := binary.Varint(value)
	if n <= 0 {
		return corrupt(tableLeases, "ttl")
	}
	remaining, m := binary.Varint(value[n:])
	if m <= 0 {
		return corrupt(tableLeases, "remaining")
	}
	*l = Lease{ID: int64(binary.BigEndian.Uint64(row[2:]) ^ (1 << 63)), TTL: ttl, Remaining: remaining}
	return nil
}

// leaseState is a lease as of now in a batch.
type leaseState struct {
	Lease
	exists bool
}

// Leases returns up to limit leases with ID >= from, by ID. limit <= 0: all of them.
func (s *Space) Leases(r storage.Reader, from int64, limit int) (leases []Lease, err error) {
	it, err := r.NewIter(tableSpan(s.id, tableLeases))
	if err != nil {
		return nil, err
	}
	for ok := it.SeekGE(appendLeaseKey(nil, s.id, from)); ok && (limit <= 0 || len(leases) < limit); ok = it.NextPrefix() {
		var l Lease
		if err = l.decode(it.Key(), it.Value()); err != nil {
			break
		}
		leases = append(leases, l)
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return leases, err
}

// LeaseInfo returns one lease.
func (s *Space) LeaseInfo(r storage.Reader, id int64) (Lease, bool, error) {
	key := appendLeaseKey(nil, s.id, id)
	row, ok, err := r.Get(key, nil)
	if err != nil || !ok {
		return Lease{}, false, err
	}
	var l Lease
	err = l.decode(key, row)
	return l, err == nil, err
}

// LeaseKeys returns the keys attached to a lease, in key order.
func (s *Space) LeaseKeys(r storage.Reader, id int64) ([][]byte, error) {
	it, err := r.NewIter(storage.Span{})
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	var a arena
	err = s.attached(it, id, func(key []byte) { keys = append(keys, a.copy(key)) })
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return keys, err
}

// attached calls f for every key attached to a lease in the iterator's state. It leaves bounds on the iterator.
func (s *Space) attached(it *storage.Iterator, id int64, f func(key []byte)) error {
	start := appendAttachedKey(nil, s.id, id, nil)
	it.SetBounds(storage.Span{Start: start, End: prefixEnd(start)})
	for ok := it.First(); ok; ok = it.NextPrefix() {
		f(it.Key()[len(start):])
	}
	return it.Err()
}

// prefixEnd returns the first key above all that begin with p, which must hold a byte below 0xff.
func prefixEnd(p []byte) []byte {
	end := slices.Clone(p)
	for end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	end[len(end)-1]++
	return end
}

// Lease returns a lease as of now in the batch.
func (w *Writer) Lease(id int64) (Lease, bool, error) {
	if l, ok := w.leases[id]; ok {
		return l.Lease, l.exists, nil
	}
	it, err := w.pointIter()
	if err != nil {
		return Lease{}, false, err
	}
	state := leaseState{}
	w.seek = appendLeaseKey(w.seek[:0], w.s.id, id)
	if it.SeekPrefixGE(w.seek) {
		if err := state.decode(it.Key(), it.Value()); err != nil {
			return Lease{}, false, err
		}
		state.exists = true
	} else if err := it.Err(); err != nil {
		return Lease{}, false, err
	}
	w.remember(id, state)
	return state.Lease, state.exists, nil
}

func (w *Writer) remember(id int64, state leaseState) {
	if w.leases == nil {
		w.leases = make(map[int64]leaseState)
	}
	w.leases[id] = state
}

func (w *Writer) writeLease(l Lease) {
	w.remember(l.ID, leaseState{l, true})
	w.b.Set(appendLeaseKey(nil, w.s.id, l.ID), l.append(nil))
}

// GrantLease creates a lease: ErrLeaseExists. It takes no revision.
func (w *Writer) GrantLease(id, ttl int64) error {
	if _, ok, err := w.Lease(id); err != nil {
		return err
	} else if ok {
		return ErrLeaseExists
	}
	w.writeLease(Lease{ID: id, TTL: ttl})
	return nil
}

// CheckpointLease records the seconds that a lease has left: ErrLeaseNotFound. It takes no revision.
func (w *Writer) CheckpointLease(id, remaining int64) error {
	l, ok, err := w.Lease(id)
	if err != nil {
		return err
	}
	if !ok {
		return ErrLeaseNotFound
	}
	l.Remaining = remaining
	w.writeLease(l)
	return nil
}

// RevokeLease removes a lease and deletes its keys, in key order, all in the revision of the request: ErrLeaseNotFound.
func (w *Writer) RevokeLease(id int64) (deleted int64, err error) {
	_, ok, err := w.Lease(id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, ErrLeaseNotFound
	}
	keys, err := w.LeaseKeys(id)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		n, err := w.touch(key, false)
		if err != nil {
			return 0, err
		}
		if !w.overlay.current(&w.overlay.entries[n]).live {
			return 0, corrupt(tableAttached, "key does not exist")
		}
		w.deleteEntry(n)
	}
	w.remember(id, leaseState{})
	w.b.Delete(appendLeaseKey(nil, w.s.id, id))
	return int64(len(keys)), nil
}

// LeaseKeys returns the keys attached to a lease as of now in the batch, in key order.
func (w *Writer) LeaseKeys(id int64) ([][]byte, error) {
	it, err := w.walkIter()
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	var a arena
	err = w.s.attached(it, id, func(key []byte) {
		if n, _ := w.overlay.find(key); n < 0 || w.overlay.entries[n].head == 0 {
			keys = append(keys, a.copy(key))
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range w.overlay.entries {
		if t := &w.overlay.entries[i]; t.head != 0 && w.overlay.current(t).lease == id {
			keys = append(keys, t.key)
		}
	}
	slices.SortFunc(keys, bytes.Compare)
	return keys, nil
}

// moveLease writes the attachment of key anew: from and to may be 0.
func (w *Writer) moveLease(key []byte, from, to int64) {
	if from != 0 {
		w.seek = appendAttachedKey(w.seek[:0], w.s.id, from, key)
		w.b.Delete(w.seek)
	}
	if to != 0 {
		k, _ := w.b.Reserve(2+8+len(key), 0)
		appendAttachedKey(k[:0], w.s.id, to, key)
	}
}

func compareKeys(a, b []byte) int { return bytes.Compare(a, b) }
