package storage

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Batch collects changes that Engine.Apply makes visible at once. Within a batch the later change of a key wins. It is
// not safe for concurrent use. Keys and values are copied.
type Batch struct {
	b *pebble.Batch
}

// Set stores value under key.
func (b *Batch) Set(key, value []byte) {
	k, v := b.Reserve(len(key), len(value))
	copy(k, key)
	copy(v, value)
}

// Reserve stores a key and value of the given lengths and returns both to be filled in by the caller before the next
// call to the batch: rows that are built in place need no buffer of their own.
func (b *Batch) Reserve(keyLen, valueLen int) (key, value []byte) {
	op := b.b.SetDeferred(keyLen, valueLen)
	return op.Key, op.Value
}

// Delete removes key. It need not exist.
func (b *Batch) Delete(key []byte) { copy(b.b.DeleteDeferred(len(key)).Key, key) }

// DeleteRange removes every key in s.
func (b *Batch) DeleteRange(s Span) {
	if s.Empty() {
		return
	}
	end := s.upper()
	op := b.b.DeleteRangeDeferred(len(s.Start), len(end))
	copy(op.Key, s.Start)
	copy(op.Value, end)
}

// Len returns the number of changes.
func (b *Batch) Len() int { return int(b.b.Count()) }

// Bytes returns the size of the batch as it is held in memory.
func (b *Batch) Bytes() int { return b.b.Len() }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.b.Reset() }

// Close releases the batch.
func (b *Batch) Close() error {
	if err := b.b.Close(); err != nil {
		return fmt.Errorf("storage: close batch: %w", err)
	}
	return nil
}

// upper returns the end of the span as pebble wants it: never nil.
func (s Span) upper() []byte {
	if s.End == nil {
		return []byte{0xff}
	}
	return s.End
}
