package mvcc

import (
	"bytes"
	"cmp"
	"slices"

	"holdfast.dev/holdfast/internal/storage"
)

// Read answers q from r: the Engine for the newest state, or a Snapshot. The keys and values of the answer belong to the
// caller; a single key is the query's own slice.
func (s *Space) Read(r storage.Reader, q Query) (Page, error) {
	if _, live := r.(*storage.Engine); live && q.Span.SingleKey() {
		return s.readNewest(r, &q)
	}
	return s.readState(r, q)
}

// readNewest reads one key from the engine, trusting what is published instead of looking up the meta row.
func (s *Space) readNewest(r storage.Reader, q *Query) (Page, error) {
	now := s.now.Load()
	for {
		rev, err := readRevision(q.Revision, now.revision, now.compacted)
		if err != nil {
			return Page{}, err
		}
		it, err := r.NewIter(storage.Span{})
		if err != nil {
			return Page{}, err
		}
		// A sweep that the iterator shows followed the publication of its compaction, so this sees the compaction.
		if then := s.now.Load(); rev < then.compacted {
			now = then
			if err := it.Close(); err != nil {
				return Page{}, err
			}
			continue
		}
		page := Page{Revision: now.revision}
		err = s.readKey(it, q, rev, &page)
		if cerr := it.Close(); err == nil {
			err = cerr
		}
		return page, err
	}
}

// readRevision returns the revision that a query is answered at.
func readRevision(want, current, compacted int64) (int64, error) {
	switch {
	case want <= 0:
		return current, nil
	case want > current:
		return 0, ErrFutureRevision
	case want < compacted:
		return 0, ErrCompacted
	}
	return want, nil
}

// readKey answers a query for one key.
func (s *Space) readKey(it *storage.Iterator, q *Query, rev int64, page *Page) error {
	var rec record
	it.Scratch = appendNewestKey(it.Scratch[:0], s.id, q.Span.Start, rev)
	if err := lookup(it, &rec, it.Scratch); err != nil {
		return err
	}
	page.single(q, q.Span.Start, &rec)
	return nil
}

// single fills in the answer for the only key of the span.
func (p *Page) single(q *Query, key []byte, rec *record) {
	if !rec.live {
		return
	}
	if !q.NoCount {
		p.Count = 1
	}
	if q.CountOnly || !q.accepts(rec) {
		return
	}
	kv := rec.kv(key)
	if q.KeysOnly {
		kv.Value, kv.Lease = nil, 0
	} else {
		kv.Value = append(make([]byte, 0, len(rec.value)), rec.value...)
	}
	p.KVs = []KV{kv}
}

// accepts reports whether the bounds on revisions let a version through.
func (q *Query) accepts(r *record) bool {
	return (q.MinModRevision == 0 || r.mod >= q.MinModRevision) &&
		(q.MaxModRevision == 0 || r.mod <= q.MaxModRevision) &&
		(q.MinCreateRevision == 0 || r.create >= q.MinCreateRevision) &&
		(q.MaxCreateRevision == 0 || r.create <= q.MaxCreateRevision)
}

func (q *Query) filtered() bool {
	return q.MinModRevision != 0 || q.MaxModRevision != 0 || q.MinCreateRevision != 0 || q.MaxCreateRevision != 0
}

// readState answers q from whatever state r holds.
func (s *Space) readState(r storage.Reader, q Query) (Page, error) {
	published := s.now.Load().revision // before the state is taken, so that an engine shows all of it
	it, err := r.NewIter(storage.Span{})
	if err != nil {
		return Page{}, err
	}
	p := s.readers.Get().(*pageReader)
	page, err := p.read(s.id, it, &q, published)
	p.release()
	s.readers.Put(p)
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return page, err
}

// pageReader answers queries over many keys; its buffers are used again.
type pageReader struct {
	index indexReader
	scan  scanner
	merge merger
}

func (p *pageReader) release() {
	p.index.it, p.scan.it, p.scan.rec = nil, nil, record{}
}

func (p *pageReader) read(id SpaceID, it *storage.Iterator, q *Query, published int64) (Page, error) {
	m, err := readMeta(it, id)
	if err != nil {
		return Page{}, err
	}
	current := min(published, m.revision)
	if current < m.compacted { // compacted while the batch that did it is not published yet
		current = m.revision
	}
	rev, err := readRevision(q.Revision, current, m.compacted)
	if err != nil {
		return Page{}, err
	}
	p.index.id, p.index.it, p.index.root = id, it, m.root
	p.scan.id, p.scan.it, p.scan.rev = id, it, rev
	page := Page{Revision: current}
	if q.Span.Empty() {
		return page, nil
	}
	count := func() (int64, error) {
		it.SetBounds(storage.Span{})
		return p.index.countAt(q.Span, &m, rev)
	}
	if q.CountOnly {
		if !q.NoCount {
			page.Count, err = count()
		}
		return page, err
	}
	p.merge = merger{scan: &p.scan}
	p.scan.start(q.Span)
	err = collect(&page, &p.merge, q, count)
	return page, err
}

// collect fills in the answer for a query over many keys. count is asked only if the walk did not see them all.
func collect(page *Page, m *merger, q *Query, count func() (int64, error)) error {
	order := q.Order
	if q.Target != SortByKey && order == SortNone {
		order = SortAscend
	}
	// As in etcd: with the order left open the limit is applied to the walk by key, even if the target says to sort.
	all := q.filtered() || !(q.Order == SortNone || (q.Target == SortByKey && q.Order == SortAscend))
	sorts := q.Target != SortByKey || order == SortDescend

	c := collector{q: q, sorts: sorts, compare: comparison(q.Target, order)}
	seen, walked := int64(0), true
	for m.next() {
		if !all && c.full() {
			walked = false
			break
		}
		seen++
		if q.accepts(&m.rec) {
			c.add(m.key, &m.rec)
			if all && sorts && q.Limit > 0 {
				c.trim()
			}
		}
	}
	if err := m.err; err != nil {
		return err
	}
	c.finish(page)
	if !walked && !c.quirk() {
		page.More = true
	}
	if q.NoCount {
		return nil
	}
	page.Count = seen
	if !walked {
		var err error
		page.Count, err = count()
		return err
	}
	return nil
}

// collector gathers the versions of an answer.
type collector struct {
	q       *Query
	sorts   bool
	compare func(a, b *KV) int
	kvs     []KV
	bytes   int64
	cut     bool // something was left out
	arena   arena
}

// quirk reports whether the order was left open but the target asks for a sort: then one key above the limit takes part
// in the sort, as in etcd.
func (c *collector) quirk() bool { return c.sorts && c.q.Order == SortNone && !c.q.filtered() }

// full reports whether a walk in the order of the answer may end: there is another key, and no room for it.
func (c *collector) full() bool {
	if c.quirk() {
		return c.q.Limit > 0 && int64(len(c.kvs)) > c.q.Limit
	}
	return (c.q.Limit > 0 && int64(len(c.kvs)) >= c.q.Limit) || (c.q.MaxBytes > 0 && c.bytes >= c.q.MaxBytes)
}

func (c *collector) add(key []byte, rec *record) {
	if c.kvs == nil && c.q.Limit > 0 {
		c.kvs = make([]KV, 0, min(c.q.Limit+1, 1024))
	}
	kv := KV{
		Key: c.arena.copy(key), CreateRevision: rec.create, ModRevision: rec.mod, Version: rec.version, Lease: rec.lease,
	}
	if !c.q.KeysOnly || c.q.Target == SortByValue {
		kv.Value = c.arena.copy(rec.value)
	}
	c.bytes += int64(len(key) + len(kv.Value))
	c.kvs = append(c.kvs, kv)
}

// trim drops what cannot be in the answer any more, so that a small limit over many keys takes little memory.
func (c *collector) trim() {
	if int64(len(c.kvs)) < 2*c.q.Limit+512 {
		return
	}
	c.sort()
	clear(c.kvs[c.q.Limit:])
	c.kvs, c.cut = c.kvs[:c.q.Limit], true
}

// sort is stable: equal targets stay in key order.
func (c *collector) sort() {
	slices.SortStableFunc(c.kvs, func(a, b KV) int { return c.compare(&a, &b) })
}

func (c *collector) finish(page *Page) {
	if c.sorts {
		c.sort()
	}
	if c.q.Limit > 0 && int64(len(c.kvs)) > c.q.Limit {
		c.kvs, c.cut = c.kvs[:c.q.Limit], true
	}
	total := int64(0)
	for i := range c.kvs {
		if c.q.KeysOnly {
			c.kvs[i].Value, c.kvs[i].Lease = nil, 0
		}
		total += int64(len(c.kvs[i].Key) + len(c.kvs[i].Value))
		if c.q.MaxBytes > 0 && total >= c.q.MaxBytes && i+1 < len(c.kvs) {
			c.kvs, c.cut = c.kvs[:i+1], true
			break
		}
	}
	page.KVs, page.More = c.kvs, c.cut
}

func comparison(target SortTarget, order SortOrder) func(a, b *KV) int {
	var f func(a, b *KV) int
	switch target {
	case SortByVersion:
		f = func(a, b *KV) int { return cmp.Compare(a.Version, b.Version) }
	case SortByCreate:
		f = func(a, b *KV) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case SortByMod:
		f = func(a, b *KV) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case SortByValue:
		f = func(a, b *KV) int { return bytes.Compare(a.Value, b.Value) }
	default:
		f = func(a, b *KV) int { return bytes.Compare(a.Key, b.Key) }
	}
	if order == SortDescend {
		return func(a, b *KV) int { return f(b, a) }
	}
	return f
}

// arena hands out copies that share allocations: an answer of many keys takes few.
type arena struct {
	free []byte
	next int
}

const (
	minChunk = 1 << 10
	maxChunk = 64 << 10
)

// copy returns a copy of b that cannot grow into its neighbour. A nil slice becomes an empty one.
func (a *arena) copy(b []byte) []byte {
	if len(b) == 0 {
		return []byte{}
	}
	if len(b) > len(a.free) {
		if len(b) > maxChunk/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		a.next = min(max(2*a.next, minChunk), maxChunk)
		for a.next < len(b) {
			a.next *= 2
		}
		a.free = make([]byte, a.next)
	}
	out := a.free[:len(b):len(b)]
	copy(out, b)
	a.free = a.free[len(b):]
	return out
}
