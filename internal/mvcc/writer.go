package mvcc

import (
	"holdfast.dev/holdfast/internal/storage"
)

// PutOptions modify a Put.
type PutOptions struct {
	Lease       int64 // 0: none
	PrevKV      bool  // return the replaced version
	IgnoreValue bool  // keep the present value; the key must exist
	IgnoreLease bool  // keep the present lease; the key must exist
}

// Writer collects the changes that one batch of requests makes to one space. A request sees what the requests before it
// did. Keys and values handed to it must not change any more: the events and answers it returns refer to them. After an
// error other than a fault (ErrKeyNotFound, ErrLeaseNotFound, …) the batch must be given up. It is not safe for
// concurrent use.
type Writer struct {
	s    *Space
	r    storage.Reader
	b    *storage.Batch
	base meta // of the engine
	m    meta // as of now in the batch

	sub      uint32 // changes of the running request
	dirty    bool   // the meta row has to be written
	finished bool

	overlay overlay
	leases  map[int64]leaseState
	history []revisionEnd // of the revisions made in the batch, in order: they are consecutive
	events  []Event
	lastLen int // of events, in the batch before: what to allocate

	point *storage.Iterator // for lookups: unbounded
	walk  *storage.Iterator // for walks
	scan  scanner
	index indexReader
	seek  []byte
}

// revisionEnd closes a revision of the batch.
type revisionEnd struct {
	events  int   // end of its events
	garbage int64 // meta.garbage after it
}

// NewWriter returns a writer over the engine's newest state that writes into b. A space has one writer at a time: the
// next takes its memory over, after Publish or when the batch was given up.
func (s *Space) NewWriter(r storage.Reader, b *storage.Batch) *Writer {
	w := &s.writer
	w.close()
	w.s, w.r, w.b, w.base, w.m = s, r, b, s.meta, s.meta
	w.sub, w.dirty, w.finished = 0, false, false
	w.overlay.reset()
	clear(w.leases)
	w.history = w.history[:0]
	w.events = nil
	return w
}

// close gives the iterators back.
func (w *Writer) close() error {
	var err error
	for _, it := range []**storage.Iterator{&w.point, &w.walk} {
		if *it != nil {
			if cerr := (*it).Close(); err == nil {
				err = cerr
			}
			*it = nil
		}
	}
	return err
}

// Revision returns the revision of the last request that ended.
func (w *Writer) Revision() int64 { return w.m.revision }

// CompactRevision returns the compact revision as of now in the batch.
func (w *Writer) CompactRevision() int64 { return w.m.compacted }

// Bytes returns the logical size as of now in the batch.
func (w *Writer) Bytes() int64 { return w.m.bytes() }

// Begin starts a request.
func (w *Writer) Begin() { w.sub = 0 }

// End ends a request and returns its revision: a new one only if something changed since Begin.
func (w *Writer) End() (revision int64) {
	if w.sub > 0 {
		w.sub = 0
		w.m.revision++
		w.history = append(w.history, revisionEnd{len(w.events), w.m.garbage})
	}
	return w.m.revision
}

// current returns the revision that reads of the running request show.
func (w *Writer) current() int64 {
	if w.sub > 0 {
		return w.m.revision + 1
	}
	return w.m.revision
}

func (w *Writer) pointIter() (*storage.Iterator, error) {
	if w.point == nil {
		it, err := w.r.NewIter(storage.Span{})
		if err != nil {
			return nil, err
		}
		w.point = it
	}
	return w.point, nil
}

func (w *Writer) walkIter() (*storage.Iterator, error) {
	if w.walk == nil {
		it, err := w.r.NewIter(storage.Span{})
		if err != nil {
			return nil, err
		}
		w.walk = it
	}
	return w.walk, nil
}

// touch returns the index of key's overlay entry, looking the key up in the engine the first time. With withValue the
// newest version's value is there too.
func (w *Writer) touch(key []byte, withValue bool) (int32, error) {
	n, hash := w.overlay.find(key)
	if n >= 0 {
		if t := &w.overlay.entries[n]; !withValue || t.head != 0 || t.base.hasValue || !t.base.live {
			return n, nil
		}
	}
	it, err := w.pointIter()
	if err != nil {
		return 0, err
	}
	var rec record
	w.seek = appendNewestKey(w.seek[:0], w.s.id, key, w.base.revision)
	if err := lookup(it, &rec, w.seek); err != nil {
		return 0, err
	}
	if withValue && rec.live {
		rec.value = append([]byte{}, rec.value...)
	} else {
		rec.value, rec.hasValue = nil, false
	}
	if n >= 0 {
		w.overlay.entries[n].base = rec
		return n, nil
	}
	return w.overlay.insert(key, hash, rec), nil
}

// Get returns the newest version of key as of now in the batch, without its value unless withValue is set. It is the
// cheapest read. Page-less: KV.Key is key itself.
func (w *Writer) Get(key []byte, withValue bool) (kv KV, ok bool, err error) {
	n, err := w.touch(key, withValue)
	if err != nil {
		return KV{}, false, err
	}
	rec := w.overlay.current(&w.overlay.entries[n])
	if !rec.live {
		return KV{}, false, nil
	}
	kv = rec.kv(key)
	if !withValue {
		kv.Value = nil
	}
	return kv, true, nil
}

// Read answers q as of now in the batch. Page.Revision is the request's own if it has changed something.
func (w *Writer) Read(q Query) (Page, error) {
	rev, err := readRevision(q.Revision, w.current(), w.m.compacted)
	if err != nil {
		return Page{}, err
	}
	page := Page{Revision: w.current()}
	if q.Span.Empty() {
		return page, nil
	}
	if q.Span.SingleKey() {
		err := w.readKey(&q, rev, &page)
		return page, err
	}
	count := func() (int64, error) { return w.countAt(q.Span, rev) }
	if q.CountOnly {
		if !q.NoCount {
			page.Count, err = count()
		}
		return page, err
	}
	m, err := w.merged(q.Span, rev)
	if err != nil {
		return page, err
	}
	err = collect(&page, &m, &q, count)
	return page, err
}

// readKey answers a query for one key.
func (w *Writer) readKey(q *Query, rev int64, page *Page) error {
	key := q.Span.Start
	if rev == w.current() {
		n, err := w.touch(key, !q.KeysOnly && !q.CountOnly)
		if err != nil {
			return err
		}
		page.single(q, key, w.overlay.current(&w.overlay.entries[n]))
		return nil
	}
	if n, _ := w.overlay.find(key); n >= 0 {
		if rec, found := w.overlay.visible(&w.overlay.entries[n], rev); found {
			page.single(q, key, rec)
			return nil
		}
	}
	it, err := w.pointIter()
	if err != nil {
		return err
	}
	return w.s.readKey(it, q, rev, page)
}

// merged returns a walk over span at rev. It is good until the next walk.
func (w *Writer) merged(span storage.Span, rev int64) (merger, error) {
	it, err := w.walkIter()
	if err != nil {
		return merger{}, err
	}
	w.scan.id, w.scan.it, w.scan.rev = w.s.id, it, rev
	w.scan.start(span)
	m := merger{scan: &w.scan}
	if len(w.history) > 0 || w.sub > 0 {
		m.w, m.touched = w, w.overlay.ordered(span.Start, span.End)
	}
	return m, nil
}

// countAt counts the keys of span at rev.
func (w *Writer) countAt(span storage.Span, rev int64) (int64, error) {
	it, err := w.walkIter()
	if err != nil {
		return 0, err
	}
	it.SetBounds(storage.Span{})
	w.index.id, w.index.it, w.index.root = w.s.id, it, w.base.root
	count, err := w.index.countAt(span, &w.base, min(rev, w.base.revision))
	if err != nil || rev <= w.base.revision {
		return count, err
	}
	for c := w.overlay.ordered(span.Start, span.End); ; c.Next() {
		i, ok := c.Value()
		if !ok {
			return count, nil
		}
		t := &w.overlay.entries[i]
		if rec, found := w.overlay.visible(t, rev); found && rec.live != t.base.live {
			if rec.live {
				count++
			} else {
				count--
			}
		}
	}
}

// Put writes one key. prev is nil unless asked for and there was one. On error nothing has changed: ErrKeyNotFound,
// ErrLeaseNotFound.
func (w *Writer) Put(key, value []byte, o PutOptions) (prev *KV, err error) {
	n, err := w.touch(key, o.PrevKV || o.IgnoreValue)
	if err != nil {
		return nil, err
	}
	cur := *w.overlay.current(&w.overlay.entries[n])
	if (o.IgnoreValue || o.IgnoreLease) && !cur.live {
		return nil, ErrKeyNotFound
	}
	rec := record{
		mod: w.m.revision + 1, sub: w.sub, version: 1, lease: o.Lease, live: true, hasValue: true, value: value,
	}
	rec.create = rec.mod
	if o.IgnoreValue {
		rec.value = cur.value
	}
	if o.IgnoreLease {
		rec.lease = cur.lease
	}
	if rec.lease != 0 && rec.lease != cur.lease {
		if _, ok, err := w.Lease(rec.lease); err != nil {
			return nil, err
		} else if !ok {
			return nil, ErrLeaseNotFound
		}
	}
	if rec.value == nil {
		rec.value = []byte{} // nil is for answers that leave values out
	}
	rec.valueLen = len(rec.value)
	if cur.live {
		rec.create, rec.version = cur.create, cur.version+1
		w.m.garbage += versionBytes(key, cur.valueLen)
		if o.PrevKV {
			kv := cur.kv(key)
			prev = &kv
		}
	}
	w.m.written += versionBytes(key, rec.valueLen)
	w.writeVersion(key, &rec, &cur)
	w.overlay.push(&w.overlay.entries[n], rec)
	return prev, nil
}

// writeVersion adds the rows and the event of a change: rec follows cur.
func (w *Writer) writeVersion(key []byte, rec, cur *record) {
	id := w.s.id
	if rec.live {
		k, v := w.b.Reserve(versionKeyLen(key), versionValueLen(rec))
		appendVersionKey(k[:0], id, key, rec.mod, rec.sub)
		appendVersionValue(v[:0], rec)
	} else {
		k, v := w.b.Reserve(versionKeyLen(key), 1)
		appendVersionKey(k[:0], id, key, rec.mod, rec.sub)
		v[0] = flagTombstone
	}
	row := logRow{
		rev: rec.mod, sub: rec.sub, deleted: !rec.live, hasPrev: cur.live, prevRev: cur.mod, prevSub: cur.sub,
		garbage: w.m.garbage, key: key,
	}
	k, v := w.b.Reserve(2+stampLen, row.valueLen())
	appendStampKey(k[:0], id, tableLog, rec.mod, rec.sub)
	row.appendValue(v[:0])

	if rec.live != cur.live {
		w.m.ordinal++
		birth := birthRow{created: rec.live, ordinal: w.m.ordinal, key: key}
		k, v := w.b.Reserve(2+stampLen, birth.valueLen())
		appendStampKey(k[:0], id, tableBirths, rec.mod, rec.sub)
		birth.appendValue(v[:0])
	}

	if w.events == nil {
		w.events = make([]Event, 0, max(w.lastLen, 4))
	}
	w.events = append(w.events, eventOf(key, rec, cur))
	w.sub++
	w.dirty = true
}

func eventOf(key []byte, rec, prev *record) Event {
	e := Event{KV: KV{Key: key, ModRevision: rec.mod}, Type: EventDelete}
	if rec.live {
		e.Type, e.KV = EventPut, rec.kv(key)
	}
	if prev.live {
		e.PrevRevision = prev.mod
	}
	return e
}

// deleteEntry deletes the key of an entry, which must be live.
func (w *Writer) deleteEntry(n int32) {
	t := &w.overlay.entries[n]
	cur := *w.overlay.current(t)
	rec := record{mod: w.m.revision + 1, sub: w.sub}
	w.m.written += versionBytes(t.key, 0)
	w.m.garbage += versionBytes(t.key, 0) + versionBytes(t.key, cur.valueLen)
	w.writeVersion(t.key, &rec, &cur)
	w.overlay.push(t, rec)
}

// DeleteSpan deletes every key in span, in key order, and returns how many there were and, if asked for, their versions.
func (w *Writer) DeleteSpan(span storage.Span, wantPrev bool) (prev []KV, deleted int64, err error) {
	if span.Empty() {
		return nil, 0, nil
	}
	found, err := w.liveIn(span, wantPrev)
	if err != nil {
		return nil, 0, err
	}
	for _, n := range found {
		if wantPrev {
			t := &w.overlay.entries[n]
			prev = append(prev, w.overlay.current(t).kv(t.key))
		}
		w.deleteEntry(n)
	}
	return prev, int64(len(found)), nil
}

// liveIn returns the entries of all live keys of span in key order.
func (w *Writer) liveIn(span storage.Span, withValue bool) ([]int32, error) {
	if span.SingleKey() {
		n, err := w.touch(span.Start, withValue)
		if err != nil || !w.overlay.current(&w.overlay.entries[n]).live {
			return nil, err
		}
		return []int32{n}, nil
	}
	m, err := w.merged(span, w.current())
	if err != nil {
		return nil, err
	}
	var found []int32 // entries added on the way come into order only at the next walk
	var keys arena
	for m.next() {
		n, hash := w.overlay.find(m.key)
		if n < 0 {
			rec := m.rec
			if withValue {
				rec.value = keys.copy(rec.value)
			} else {
				rec.value, rec.hasValue = nil, false
			}
			n = w.overlay.insert(keys.copy(m.key), hash, rec)
		} else if t := &w.overlay.entries[n]; withValue && t.head == 0 && !t.base.hasValue {
			t.base.value, t.base.hasValue = keys.copy(m.rec.value), true
		}
		found = append(found, n)
	}
	return found, m.err
}
