package state

import (
	"math"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// What answers of the log may hold is bounded, because every member makes them, and a few bytes of a request can ask for
// the same keys again and again. The numbers are part of what Apply means: all members must have the same.
const (
	MaxTxnRead   = 128 << 20 // bytes of keys and values in the answer of one Txn, or of one Delete that returns what it deletes
	MaxEntryRead = 256 << 20 // the same for all requests of an entry of the log
)

// answerOverhead is what a version in an answer is charged beside its key and value.
const answerOverhead = 64

func kvBytes(kv *mvcc.KV) int64 { return answerOverhead + int64(len(kv.Key)+len(kv.Value)) }

func pageBytes(kvs []mvcc.KV) int64 {
	sum := int64(0)
	for i := range kvs {
		sum += kvBytes(&kvs[i])
	}
	return sum
}

// readLimits are MaxTxnRead and MaxEntryRead; tests lower them.
type readLimits struct {
	txn, entry int64
}

// room returns how many bytes the next answer of the entry may hold, and the fault of one that holds more.
func (a *application) room() (int64, *fault.Error) {
	limits := a.m.limits
	if left := limits.entry - a.read; left < limits.txn {
		return max(left, 0), ErrEntryReadTooMuch // alone in an entry it might have had room
	}
	return limits.txn, ErrReadTooMuch
}

// checkDiscovery checks that there is room for what operations on the catalog read; catalog.Apply bounds each batch.
func (a *application) checkDiscovery(r *Discovery) *fault.Error {
	if left, _ := a.room(); left >= catalog.MaxResultBytes {
		return nil
	}
	for i := range r.Ops {
		if !r.Ops[i].Verb.Writes() {
			return ErrEntryReadTooMuch
		}
	}
	return nil
}

// checkPath checks what t will do along path, and that its answer has room. While the whole space, read by each of its
// operations, would not fill it, nothing is measured.
func (a *application) checkPath(c *pathCheck, w *mvcc.Writer, t *Txn, path []bool) (*fault.Error, error) {
	if a.cluster.level >= levelReads {
		left, full := a.room()
		n, written, _ := answering(t, path)
		c.measure = n > 0 && w.Bytes()+written > left/n
		c.reads = reads{left: left, full: full}
	}
	f, _, err := c.check(t, path)
	return f, err
}

// checkDelete checks that there is room for what a delete returns.
func (a *application) checkDelete(w *mvcc.Writer, d *Delete) (*fault.Error, error) {
	if !d.PrevKV || a.cluster.level < levelReads {
		return nil, nil
	}
	left, full := a.room()
	if w.Bytes() <= left {
		return nil, nil
	}
	r := reads{left: left, full: full}
	_, f, err := r.page(w, mvcc.Query{Span: d.Span, NoCount: true})
	return f, err
}

// answering returns how many operations along path answer with keys, and an upper bound of the bytes that path puts. It
// returns how many elements of path t took.
func answering(t *Txn, path []bool) (n, written int64, used int) {
	ops, used := t.branch(path[0]), 1
	for i := range ops {
		switch op := &ops[i]; {
		case op.Range != nil:
			n++
		case op.Put != nil:
			written += putCost(op.Put)
			if op.Put.PrevKV {
				n++
			}
		case op.Delete != nil && op.Delete.PrevKV:
			n++
		case op.Txn != nil:
			inner, puts, took := answering(op.Txn, path[used:])
			n, written, used = n+inner, written+puts, used+took
		}
	}
	return n, written, used
}

// pathCheck checks the operations that will run against the state before the first of them, so that nothing can fail after
// the first write.
type pathCheck struct {
	v       view
	measure bool // what the operations answer is measured
	reads   reads

	cleared []storage.Span // deletes so far whose spans may hold a key that is put afterwards
	written []*Put         // so far, if it is measured
	changed int64          // keys put or deleted so far, if it is measured
}

// check returns how many elements of path t took.
func (c *pathCheck) check(t *Txn, path []bool) (*fault.Error, int, error) {
	ops, used := t.branch(path[0]), 1
	for i := range ops {
		var f *fault.Error
		var err error
		switch op := &ops[i]; {
		case op.Range != nil:
			if f = checkRevision(c.v, op.Range.Revision); f == nil && c.measure {
				f, err = c.find(op.Range)
			}
		case op.Put != nil:
			f, err = c.put(t.Space, op.Put)
		case op.Delete != nil:
			f, err = c.remove(op.Delete)
		case op.Txn != nil:
			var n int
			f, n, err = c.check(op.Txn, path[used:])
			used += n
		}
		if f != nil || err != nil {
			return f, 0, err
		}
	}
	return nil, used, nil
}

// put checks a put. Validation has made sure that no other put of the path has its key; but a delete without upper end may
// come before it, and then there is no value or lease left to keep.
func (c *pathCheck) put(space mvcc.SpaceID, p *Put) (*fault.Error, error) {
	if f, err := checkPutNow(c.v, space, p); f != nil || err != nil {
		return f, err
	}
	if p.IgnoreValue || p.IgnoreLease {
		for i := range c.cleared {
			if c.cleared[i].Contains(p.Key) {
				return ErrKeyNotFound, nil
			}
		}
	}
	if !c.measure {
		return nil, nil
	}
	c.written = append(c.written, p)
	c.changed++
	if !p.PrevKV {
		return nil, nil
	}
	kv, _, err := c.v.Get(p.Key, true)
	if err != nil {
		return nil, err
	}
	return c.reads.take(kvBytes(&kv)), nil
}

func (c *pathCheck) remove(d *Delete) (*fault.Error, error) {
	if d.Span.End == nil {
		c.cleared = append(c.cleared, d.Span)
	}
	if !c.measure {
		return nil, nil
	}
	count, err := c.v.Read(mvcc.Query{Span: d.Span, CountOnly: true})
	if err != nil {
		return nil, err
	}
	c.changed += count.Count
	if !d.PrevKV {
		return nil, nil
	}
	page, f, err := c.reads.page(c.v, mvcc.Query{Span: d.Span, NoCount: true})
	if f != nil || err != nil {
		return f, err
	}
	return c.reads.take(pageBytes(page.KVs) + c.own(d.Span)), nil
}

// find measures the answer of a range. Before the first change it is the answer itself, and is kept. After n of them the
// answer is made of what was put and of versions that, before, were among as many as are asked for and n more.
func (c *pathCheck) find(q *mvcc.Query) (*fault.Error, error) {
	before := *q
	if c.changed > 0 {
		before.MaxBytes = 0
		if before.Limit > 0 {
			more := c.changed + 1 // one more for the quirk of a sort without order
			before.Limit = min(before.Limit, math.MaxInt64-more) + more
		}
	}
	page, f, err := c.reads.page(c.v, before)
	if f != nil || err != nil {
		return f, err
	}
	if c.changed == 0 {
		c.reads.keep(q, &page)
	}
	return c.reads.take(pageBytes(page.KVs) + c.own(q.Span)), nil
}

// own returns an upper bound of what the puts so far add to an answer about span.
func (c *pathCheck) own(span storage.Span) int64 {
	sum := int64(0)
	for _, p := range c.written {
		if span.Contains(p.Key) {
			sum += putCost(p)
		}
	}
	return sum
}

// reads is the room that answers have left.
type reads struct {
	left  int64
	full  *fault.Error // when there is none
	pages map[*mvcc.Query]*mvcc.Page
}

func (r *reads) take(n int64) *fault.Error {
	if n > r.left {
		return r.full
	}
	r.left -= n
	return nil
}

func (r *reads) keep(q *mvcc.Query, page *mvcc.Page) {
	if r.pages == nil {
		r.pages = map[*mvcc.Query]*mvcc.Page{}
	}
	r.pages[q] = page
}

// page answers q as it will be answered, but holds no more in memory than there is room for: then it is refused. Sorting
// needs all of the span at once, so there the span is measured first.
func (r *reads) page(v view, q mvcc.Query) (mvcc.Page, *fault.Error, error) {
	if !q.CountOnly && (q.Target != mvcc.SortByKey || q.Order == mvcc.SortDescend) && !q.Span.SingleKey() {
		all := mvcc.Query{Span: q.Span, Revision: q.Revision, NoCount: true, KeysOnly: q.KeysOnly && q.Target != mvcc.SortByValue}
		if _, f, err := r.page(v, all); f != nil || err != nil {
			return mvcc.Page{}, f, err
		}
		page, err := v.Read(q)
		return page, nil, err
	}
	if most := r.left + 1; q.MaxBytes <= 0 || q.MaxBytes > most {
		q.MaxBytes = most
	}
	if most := r.left/answerOverhead + 1; q.Limit <= 0 || q.Limit > most {
		q.Limit = most
	}
	page, err := v.Read(q)
	if err == nil && pageBytes(page.KVs) > r.left {
		return mvcc.Page{}, r.full, nil
	}
	return page, nil, err
}
