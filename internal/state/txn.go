package state

import (
	"bytes"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
)

// txn decides a transaction: the path through its branches from the state before it, the checks along the path, then the
// operations. After the first write nothing can fail but the storage.
func (a *application) txn(t *Txn) (any, *fault.Error, error) {
	w := a.writer(t.Space)
	path, err := choose(w, t, nil)
	if err != nil {
		return nil, nil, err
	}
	return a.follow(w, t, path)
}

// follow is txn from where the path is known.
func (a *application) follow(w *mvcc.Writer, t *Txn, path []bool) (any, *fault.Error, error) {
	c := pathCheck{v: w}
	if f, err := a.checkPath(&c, w, t, path); f != nil || err != nil {
		return nil, f, err
	}
	w.Begin()
	x := execution{a: a, w: w, space: t.Space, before: w.Revision(), pages: c.reads.pages}
	result, _, err := x.run(t, path)
	revision := w.End()
	if err != nil {
		return nil, nil, err
	}
	a.read += x.read
	result.Revision = revision
	return result, nil, nil
}

// view reads the present state: a Writer in Apply, what readers see for a transaction that only reads.
type view interface {
	Read(q mvcc.Query) (mvcc.Page, error)
	Get(key []byte, withValue bool) (mvcc.KV, bool, error)
	Revision() int64
	CompactRevision() int64
	Lease(id int64) (mvcc.Lease, bool, error)
}

// choose appends to path whether t succeeds and, in order, the same for the transactions nested in the branch taken.
func choose(v view, t *Txn, path []bool) ([]bool, error) {
	holds := true
	for i := range t.Compare {
		var err error
		if holds, err = compare(v, &t.Compare[i]); err != nil {
			return nil, err
		}
		if !holds {
			break
		}
	}
	path = append(path, holds)
	ops := t.branch(holds)
	for i := range ops {
		if ops[i].Txn == nil {
			continue
		}
		var err error
		if path, err = choose(v, ops[i].Txn, path); err != nil {
			return nil, err
		}
	}
	return path, nil
}

func (t *Txn) branch(success bool) []Op {
	if success {
		return t.Success
	}
	return t.Failure
}

// comparePage and comparePageBytes bound what a comparison over a range reads at once.
const (
	comparePage      = 512
	comparePageBytes = 1 << 20
)

func compare(v view, c *Compare) (bool, error) {
	if o, ok := v.(opening); ok {
		var err error
		if c, err = o.wanted(c); err != nil {
			return false, err
		}
	}
	if c.Span.SingleKey() {
		kv, ok, err := v.Get(c.Span.Start, c.Target == CompareValue)
		if err != nil {
			return false, err
		}
		return holdsFor(c, &kv, ok), nil
	}
	span, found := c.Span, false
	for !span.Empty() {
		page, err := v.Read(mvcc.Query{
			Span: span, Limit: comparePage, MaxBytes: comparePageBytes, NoCount: true, KeysOnly: c.Target != CompareValue && c.Target != CompareLease,
		})
		if err != nil {
			return false, err
		}
		for i := range page.KVs {
			found = true
			if !holdsFor(c, &page.KVs[i], true) {
				return false, nil
			}
		}
		if !page.More || len(page.KVs) == 0 {
			break
		}
		last := page.KVs[len(page.KVs)-1].Key
		span.Start = append(append(make([]byte, 0, len(last)+1), last...), 0)
	}
	return found || holdsFor(c, &mvcc.KV{}, false), nil
}

// holdsFor judges one version; without a key it is a zero one, and a comparison of values is false.
func holdsFor(c *Compare, kv *mvcc.KV, exists bool) bool {
	order := 0
	switch c.Target {
	case CompareVersion:
		order = compareInt64(kv.Version, c.Number)
	case CompareCreate:
		order = compareInt64(kv.CreateRevision, c.Number)
	case CompareMod:
		order = compareInt64(kv.ModRevision, c.Number)
	case CompareLease:
		order = compareInt64(kv.Lease, c.Number)
	case CompareValue:
		if !exists {
			return false
		}
		order = bytes.Compare(kv.Value, c.Value)
	}
	switch c.Result {
	case CompareEqual:
		return order == 0
	case CompareGreater:
		return order > 0
	case CompareLess:
		return order < 0
	default:
		return order != 0
	}
}

func compareInt64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// checkRevision is etcd's: inside a transaction a negative revision is taken for what it says.
func checkRevision(v view, revision int64) *fault.Error {
	switch {
	case revision == 0:
		return nil
	case revision > v.Revision():
		return mvcc.ErrFutureRevision
	case revision < v.CompactRevision():
		return mvcc.ErrCompacted
	}
	return nil
}

func checkPutNow(v view, space mvcc.SpaceID, p *Put) (*fault.Error, error) {
	if p.Lease != 0 {
		if space != mvcc.SpaceEtcd {
			return mvcc.ErrLeaseNotFound, nil
		}
		if _, ok, err := v.Lease(p.Lease); err != nil {
			return nil, err
		} else if !ok {
			return mvcc.ErrLeaseNotFound, nil
		}
	}
	if p.IgnoreValue || p.IgnoreLease {
		if _, ok, err := v.Get(p.Key, false); err != nil {
			return nil, err
		} else if !ok {
			return ErrKeyNotFound, nil
		}
	}
	return nil, nil
}

// execution runs the operations of a transaction that passed every check.
type execution struct {
	a       *application
	w       *mvcc.Writer
	space   mvcc.SpaceID
	before  int64 // revision before the transaction
	changed bool
	pages   map[*mvcc.Query]*mvcc.Page // answers that the check has read already
	read    int64                      // bytes of the answers
}

func (x *execution) revision() int64 {
	if x.changed {
		return x.before + 1
	}
	return x.before
}

// run returns the result and how many elements of path t took. As in etcd, only the outermost result has a revision.
func (x *execution) run(t *Txn, path []bool) (*TxnResult, int, error) {
	ops, used := t.branch(path[0]), 1
	result := &TxnResult{Succeeded: path[0]}
	if len(ops) > 0 {
		result.Results = make([]OpResult, len(ops))
	}
	for i := range ops {
		var err error
		switch op, r := &ops[i], &result.Results[i]; {
		case op.Range != nil:
			r.Range, err = x.find(op.Range)
		case op.Put != nil:
			r.Put, err = x.put(op.Put)
		case op.Delete != nil:
			r.Delete, err = x.delete(op.Delete)
		case op.Txn != nil:
			var n int
			r.Txn, n, err = x.run(op.Txn, path[used:])
			used += n
		}
		if err != nil {
			return nil, 0, err
		}
	}
	return result, used, nil
}

func (x *execution) find(q *mvcc.Query) (*mvcc.Page, error) {
	page := x.pages[q]
	if page == nil {
		read, err := x.w.Read(*q)
		if err != nil {
			return nil, err
		}
		page = &read
	}
	page.Revision = x.revision()
	x.read += pageBytes(page.KVs)
	return page, nil
}

func (x *execution) put(p *Put) (*PutResult, error) {
	prev, err := x.w.Put(p.Key, p.Value, putOptions(p))
	if err != nil {
		return nil, err
	}
	x.changed = true
	x.a.wrote(x.space, p.Key)
	if prev != nil {
		x.read += kvBytes(prev)
	}
	return &PutResult{Revision: x.revision(), Prev: prev}, nil
}

func (x *execution) delete(d *Delete) (*DeleteResult, error) {
	prev, deleted, err := x.w.DeleteSpan(d.Span, d.PrevKV)
	if err != nil {
		return nil, err
	}
	if deleted > 0 {
		x.changed = true
		x.a.wrote(x.space, nil)
	}
	x.read += pageBytes(prev)
	return &DeleteResult{Revision: x.revision(), Deleted: deleted, Prev: prev}, nil
}
