package mvcc

import (
	"bytes"
	"hash/maphash"

	"holdfast.dev/holdfast/internal/ordered"
)

// overlay holds what the requests of one batch did so far, by key: later requests of the batch look here first. Its
// memory is used again by the next batch.
type overlay struct {
	entries  []touched
	versions []version
	slots    []int32 // open addressing; 0: free, otherwise index+1 into entries
	seed     maphash.Seed
	sorted   ordered.Set[int32] // entries in key order, as far as they were there at the last ordered access
}

// touched is one key that the batch looked at or changed.
type touched struct {
	key  []byte
	hash uint64
	base record // newest version in the engine; its value only if it was asked for
	head int32  // newest version of the batch: index+1 into versions; 0: unchanged
}

// version is one version that the batch wrote.
type version struct {
	record
	before int32 // the one before it in the batch: index+1; 0: the engine's
}

func (o *overlay) reset() {
	const keep = 1024           // slots that are worth clearing each time
	const keepEntries = 1 << 16 // a batch beyond this is rare: its memory is given back
	if cap(o.entries) > keepEntries || cap(o.versions) > keepEntries {
		*o = overlay{seed: o.seed}
		return
	}
	if len(o.slots) > keep && len(o.slots) > 16*len(o.entries) {
		o.slots = nil
	}
	clear(o.slots)
	clear(o.entries)
	clear(o.versions)
	o.entries, o.versions = o.entries[:0], o.versions[:0]
	o.sorted.Reset()
}

// find returns the index of key's entry, or -1 and the hash to insert it with.
func (o *overlay) find(key []byte) (int32, uint64) {
	if o.seed == (maphash.Seed{}) {
		o.seed = maphash.MakeSeed()
	}
	h := maphash.Bytes(o.seed, key)
	if len(o.slots) == 0 {
		return -1, h
	}
	mask := uint64(len(o.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := o.slots[i]
		if n == 0 {
			return -1, h
		}
		if t := &o.entries[n-1]; t.hash == h && bytes.Equal(t.key, key) {
			return n - 1, h
		}
	}
}

// insert adds an entry for a key that find did not find.
func (o *overlay) insert(key []byte, hash uint64, base record) int32 {
	if 2*(len(o.entries)+1) > len(o.slots) {
		o.slots = make([]int32, max(64, 2*len(o.slots)))
		for i := range o.entries {
			o.place(o.entries[i].hash, int32(i+1))
		}
	}
	o.entries = append(o.entries, touched{key: key, hash: hash, base: base})
	n := int32(len(o.entries))
	o.place(hash, n)
	return n - 1
}

func (o *overlay) place(hash uint64, n int32) {
	mask := uint64(len(o.slots) - 1)
	i := hash & mask
	for o.slots[i] != 0 {
		i = (i + 1) & mask
	}
	o.slots[i] = n
}

// current returns the newest version of t. The pointer is good until the next push.
func (o *overlay) current(t *touched) *record {
	if t.head != 0 {
		return &o.versions[t.head-1].record
	}
	return &t.base
}

// push adds a version.
func (o *overlay) push(t *touched, r record) {
	o.versions = append(o.versions, version{record: r, before: t.head})
	t.head = int32(len(o.versions))
}

// visible returns the batch's version of t as of rev; false if the batch has none that old.
func (o *overlay) visible(t *touched, rev int64) (*record, bool) {
	for n := t.head; n != 0; n = o.versions[n-1].before {
		if v := &o.versions[n-1]; v.mod <= rev {
			return &v.record, true
		}
	}
	return nil, false
}

// ordered returns a walk over the entries in [start, end) in key order; a nil end is no bound.
func (o *overlay) ordered(start, end []byte) ordered.Cursor[int32] {
	below := func(key []byte) func(int32) bool {
		return func(i int32) bool { return bytes.Compare(o.entries[i].key, key) < 0 }
	}
	for i := o.sorted.Len(); i < len(o.entries); i++ {
		o.sorted.Insert(int32(i), below(o.entries[i].key))
	}
	if end == nil {
		return o.sorted.Walk(below(start), nil)
	}
	return o.sorted.Walk(below(start), below(end))
}
