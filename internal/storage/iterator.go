package storage

import (
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Reader is a state of the engine to read from: the Engine (the newest at each call) or a Snapshot.
type Reader interface {
	// Get looks key up. The value is appended to buf[:0]; ok is false if there is none.
	Get(key, buf []byte) (value []byte, ok bool, err error)
	// NewIter returns an iterator over s, not yet positioned, of one state. It must be closed.
	NewIter(s Span) (*Iterator, error)
}

// Iterator walks the keys of a Span in order. It is not safe for concurrent use. Key and Value stay valid until the next
// move. The moves report whether the iterator then stands on a key; when one says no, Err says whether that was an error.
type Iterator struct {
	it      *pebble.Iterator
	e       *Engine
	gen     uint64
	pooled  bool // may go back to the engine's pool
	bounded bool
	err     error

	// Scratch is for its user to build seek keys in, from Scratch[:0]; its memory outlives the use of the iterator.
	Scratch []byte
}

// iteratorOptions: absent prefixes are common (creations), so filters are asked in the last level too.
func iteratorOptions(s Span) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: s.Start, UpperBound: s.End, UseL6Filters: true}
}

// NewIter returns an iterator over s that shows the newest state.
func (e *Engine) NewIter(s Span) (*Iterator, error) {
	gen := e.generation.Load() // before the state is taken: too old a number only wastes a reuse
	if it := e.pool.take(gen); it != nil {
		it.err = nil
		it.SetBounds(s)
		return it, nil
	}
	pit, err := e.db.NewIter(iteratorOptions(s))
	if err != nil {
		return nil, fmt.Errorf("storage: iterator: %w", e.check(err))
	}
	return &Iterator{it: pit, e: e, gen: gen, pooled: true, bounded: s.Start != nil || s.End != nil}, nil
}

// SetBounds moves the iterator to another span of the same state. It is then not positioned.
func (it *Iterator) SetBounds(s Span) {
	if s.Start == nil && s.End == nil && !it.bounded {
		return
	}
	it.bounded = s.Start != nil || s.End != nil
	it.it.SetBounds(s.Start, s.End)
}

// First moves to the first key.
func (it *Iterator) First() bool { return it.it.First() }

// Last moves to the last key.
func (it *Iterator) Last() bool { return it.it.Last() }

// SeekGE moves to the first key at or after key.
func (it *Iterator) SeekGE(key []byte) bool { return it.it.SeekGE(key) }

// SeekPrefixGE moves to the first key at or after key that has key's prefix. Filters make it cheap where there is none.
// Until the next absolute move Next stays inside the prefix.
func (it *Iterator) SeekPrefixGE(key []byte) bool { return it.it.SeekPrefixGE(key) }

// SeekLT moves to the last key before key.
func (it *Iterator) SeekLT(key []byte) bool { return it.it.SeekLT(key) }

// Next moves to the next key.
func (it *Iterator) Next() bool { return it.it.Next() }

// NextPrefix moves to the first key whose prefix is above the current one, however many keys share the current one.
func (it *Iterator) NextPrefix() bool { return it.it.NextPrefix() }

// Prev moves to the key before.
func (it *Iterator) Prev() bool { return it.it.Prev() }

// Valid reports whether the iterator stands on a key.
func (it *Iterator) Valid() bool { return it.it.Valid() }

// Key returns the current key.
func (it *Iterator) Key() []byte { return it.it.Key() }

// Value returns the current value. If it cannot be read it is nil and Err tells why.
func (it *Iterator) Value() []byte {
	v, err := it.it.ValueAndErr()
	if err != nil {
		it.err = err
		return nil
	}
	return v
}

// Err returns the first error met.
func (it *Iterator) Err() error {
	if it.err != nil {
		return it.e.check(it.err)
	}
	return it.e.check(it.it.Error())
}

// Close ends the use of the iterator and returns Err.
func (it *Iterator) Close() error {
	if it.pooled && it.err == nil && it.it.Error() == nil && it.e.pool.put(it) {
		return nil
	}
	err := it.err
	if cerr := it.it.Close(); err == nil {
		err = cerr
	}
	return it.e.check(err)
}

// maxPooled bounds the iterators that wait for reuse: more readers than this at once open their own.
const maxPooled = 32

// iteratorPool keeps iterators of the newest state: opening one costs more than what most readers do with it.
type iteratorPool struct {
	mu   sync.Mutex
	free []*Iterator
}

// take returns an iterator of generation gen, or nil.
func (p *iteratorPool) take(gen uint64) *Iterator {
	p.mu.Lock()
	n := len(p.free)
	if n == 0 {
		p.mu.Unlock()
		return nil
	}
	it := p.free[n-1]
	if it.gen == gen {
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return it
	}
	p.mu.Unlock()
	p.drain()
	return nil
}

// put keeps it for reuse, if it still shows the newest state and there is room.
func (p *iteratorPool) put(it *Iterator) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) >= maxPooled || it.gen != it.e.generation.Load() {
		return false
	}
	p.free = append(p.free, it)
	return true
}

// drain closes the iterators of former generations.
func (p *iteratorPool) drain() {
	p.mu.Lock()
	var stale [maxPooled]*Iterator
	n, kept := 0, p.free[:0]
	for _, it := range p.free {
		if it.gen == it.e.generation.Load() {
			kept = append(kept, it)
		} else {
			stale[n] = it
			n++
		}
	}
	clear(p.free[len(kept):])
	p.free = kept
	p.mu.Unlock()
	for _, it := range stale[:n] {
		if err := it.it.Close(); err != nil {
			it.e.log.Warn("closing an idle iterator", "error", it.e.check(err))
		}
	}
}

// Snapshot is the state of the engine at one moment. It keeps replaced bytes on disk until it is closed.
type Snapshot struct {
	s *pebble.Snapshot
	e *Engine
}

// NewSnapshot returns the present state. It must be closed.
func (e *Engine) NewSnapshot() *Snapshot { return &Snapshot{s: e.db.NewSnapshot(), e: e} }

// Get looks key up. The value is appended to buf[:0]; ok is false if there is none.
func (s *Snapshot) Get(key, buf []byte) (value []byte, ok bool, err error) {
	value, ok, err = get(s.s, key, buf)
	return value, ok, s.e.check(err)
}

// NewIter returns an iterator over span that shows the snapshot's state.
func (s *Snapshot) NewIter(span Span) (*Iterator, error) {
	pit, err := s.s.NewIter(iteratorOptions(span))
	if err != nil {
		return nil, fmt.Errorf("storage: iterator: %w", s.e.check(err))
	}
	return &Iterator{it: pit, e: s.e, bounded: true}, nil
}

// Close releases the snapshot.
func (s *Snapshot) Close() error {
	if err := s.s.Close(); err != nil {
		return fmt.Errorf("storage: close snapshot: %w", err)
	}
	return nil
}
