package core

import (
	"sync"

	"holdfast.dev/holdfast/internal/mvcc"
)

// eventOverhead is what one event costs in a queue beside its key and value.
const eventOverhead = 160

// prevReader finds the version that an event replaced.
type prevReader interface {
	keyAt(key []byte, revision int64) (mvcc.KV, bool, error)     // the version that was written at revision
	keyBefore(key []byte, revision int64) (mvcc.KV, bool, error) // the newest one of the revisions before
}

// SharedEvent is one event as all of its watchers share it: the version it replaced is read at most once, and each of its
// two encodings is made at most once.
type SharedEvent struct {
	mvcc.Event

	source prevReader
	weight int64 // in a queue; fixed, although open may change the value
	mu     sync.Mutex
	opened bool // shows what was written, not what is stored
	looked bool
	prev   *mvcc.KV
	wire   [2][]byte
}

// Prev returns the version that the event replaced; nil if there was none or if it has been compacted.
func (e *SharedEvent) Prev() (*mvcc.KV, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.prevLocked()
}

func (e *SharedEvent) prevLocked() (*mvcc.KV, error) {
	if e.looked || e.PrevRevision == 0 || e.source == nil {
		return e.prev, nil
	}
	look, at := e.source.keyAt, e.PrevRevision
	if at == e.KV.ModRevision {
		// What the same transaction has written was never seen: the version before it counts.
		look = e.source.keyBefore
	}
	kv, ok, err := look(e.KV.Key, at)
	if err != nil {
		return nil, err
	}
	e.looked = true
	if ok {
		e.prev = &kv
	}
	return e.prev, nil
}

// Wire returns the event as encode makes it, with the replaced version if withPrev is set. encode is called once for each
// of the two forms, whatever the number of watchers, so every adapter of a space must pass the same one. The caller must
// not change the bytes.
func (e *SharedEvent) Wire(withPrev bool, encode func(e *SharedEvent, prev *mvcc.KV) []byte) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	form := 0
	var prev *mvcc.KV
	if withPrev {
		form = 1
		var err error
		if prev, err = e.prevLocked(); err != nil {
			return nil, err
		}
	}
	if e.wire[form] == nil {
		e.wire[form] = encode(e, prev)
	}
	return e.wire[form], nil
}

// newSharedEvent returns the event as it is stored.
func newSharedEvent(e mvcc.Event, source prevReader) *SharedEvent {
	return &SharedEvent{Event: e, source: source, weight: int64(len(e.KV.Key)+len(e.KV.Value)) + eventOverhead}
}

func (e *SharedEvent) size() int64 { return e.weight }
