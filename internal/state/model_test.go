package state

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// model is the naive machine: every revision of SpaceEtcd as a whole map, and rules written down a second time, as simply
// as they can be. Rights are not its subject.
type model struct {
	revision, compacted int64
	history             map[int64]map[string]mvcc.KV // what is at each revision that can be read
	leases              map[int64]int64
	noSpace             bool
}

func newModel() *model {
	return &model{revision: 1, compacted: -1, history: map[int64]map[string]mvcc.KV{1: {}}, leases: map[int64]int64{}}
}

// change is one request in the making: the state that it sees and leaves.
type change struct {
	m       *model
	now     map[string]mvcc.KV
	changed bool
	gone    []storage.Span // deleted by operations that were checked
}

func (m *model) begin() *change { return &change{m: m, now: maps.Clone(m.history[m.revision])} }

func (c *change) revision() int64 {
	if c.changed {
		return c.m.revision + 1
	}
	return c.m.revision
}

func (c *change) end() int64 {
	if c.changed {
		c.m.revision++
		c.m.history[c.m.revision] = c.now
	}
	return c.m.revision
}

func (m *model) apply(r Request) Result {
	value, err := m.decide(r)
	if err != nil {
		return Result{Err: err}
	}
	return Result{Value: value}
}

func (m *model) decide(r Request) (any, error) {
	switch r := r.(type) {
	case *Put:
		if m.noSpace {
			return nil, ErrNoSpace
		}
		return m.write(func(c *change) (any, error) { return c.put(r, true) })
	case *Delete:
		return m.write(func(c *change) (any, error) { return c.delete(r), nil })
	case *Txn:
		if naiveOverlap(r.Success) || naiveOverlap(r.Failure) {
			return nil, ErrDuplicateKey
		}
		if m.noSpace && naiveCost(r) {
			return nil, ErrNoSpace
		}
		return m.txn(r)
	case *Compact:
		switch {
		case r.Revision <= m.compacted:
			return nil, mvcc.ErrCompacted
		case r.Revision > m.revision:
			return nil, mvcc.ErrFutureRevision
		}
		m.compacted = r.Revision
		maps.DeleteFunc(m.history, func(rev int64, _ map[string]mvcc.KV) bool { return rev < m.compacted })
		return &CompactResult{Revision: m.revision}, nil
	case *LeaseGrant:
		if m.noSpace {
			return nil, ErrNoSpace
		}
		if _, ok := m.leases[r.ID]; ok {
			return nil, mvcc.ErrLeaseExists
		}
		m.leases[r.ID] = r.TTL
		return &LeaseResult{ID: r.ID, TTL: r.TTL}, nil
	case *LeaseRevoke:
		return m.revoke(r)
	case *AlarmChange:
		result := &AlarmResult{}
		if r.Raise || m.noSpace {
			result.Alarms = []Alarm{{Member: 1, Kind: AlarmNoSpace}}
		}
		m.noSpace = r.Raise
		return result, nil
	}
	panic(fmt.Sprintf("%T", r))
}

func (m *model) write(f func(*change) (any, error)) (any, error) {
	c := m.begin()
	value, err := f(c)
	if err != nil {
		return nil, err
	}
	c.end()
	return value, nil
}

func (m *model) revoke(r *LeaseRevoke) (any, error) {
	for _, id := range r.IDs {
		if _, ok := m.leases[id]; !ok && !r.Expired {
			return nil, mvcc.ErrLeaseNotFound
		}
	}
	result := &RevokeResult{}
	for _, id := range r.IDs {
		if _, ok := m.leases[id]; !ok {
			continue
		}
		delete(m.leases, id)
		result.Leases++
		c := m.begin()
		for key, kv := range c.now {
			if kv.Lease == id {
				delete(c.now, key)
				c.changed = true
				result.Keys++
			}
		}
		c.end()
	}
	result.Revision = m.revision
	return result, nil
}

func (c *change) put(p *Put, check bool) (*PutResult, error) {
	old, ok := c.now[string(p.Key)]
	if check {
		if _, known := c.m.leases[p.Lease]; p.Lease != 0 && !known {
			return nil, mvcc.ErrLeaseNotFound
		}
		if (p.IgnoreLease || p.IgnoreValue) && !ok {
			return nil, ErrKeyNotFound
		}
	}
	c.changed = true
	kv := mvcc.KV{Key: p.Key, Value: p.Value, Lease: p.Lease, CreateRevision: c.revision(), ModRevision: c.revision(), Version: 1}
	if ok {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	if p.IgnoreLease {
		kv.Lease = old.Lease
	}
	if p.IgnoreValue {
		kv.Value = old.Value
	}
	c.now[string(p.Key)] = kv
	result := &PutResult{Revision: c.revision()}
	if p.PrevKV && ok {
		result.Prev = &old
	}
	return result, nil
}

func (c *change) delete(d *Delete) *DeleteResult {
	result := &DeleteResult{}
	for _, key := range slices.Sorted(maps.Keys(c.now)) {
		if !d.Span.Contains([]byte(key)) {
			continue
		}
		if d.PrevKV {
			result.Prev = append(result.Prev, c.now[key])
		}
		delete(c.now, key)
		c.changed = true
		result.Deleted++
	}
	result.Revision = c.revision()
	return result
}

// find answers a query from the state at the revision that it asks for.
func (c *change) find(q *mvcc.Query) *mvcc.Page {
	at := c.now
	if q.Revision > 0 && (q.Revision < c.revision() || !c.changed) {
		at = c.m.history[q.Revision]
	}
	page := &mvcc.Page{Revision: c.revision()}
	var kvs []mvcc.KV
	for _, key := range slices.Sorted(maps.Keys(at)) {
		if kv := at[key]; q.Span.Contains(kv.Key) {
			page.Count++
			if (q.MinModRevision == 0 || kv.ModRevision >= q.MinModRevision) && (q.MaxCreateRevision == 0 || kv.CreateRevision <= q.MaxCreateRevision) {
				kvs = append(kvs, kv)
			}
		}
	}
	if q.CountOnly {
		return page
	}
	if q.Order == mvcc.SortNone && q.MinModRevision == 0 && q.MaxCreateRevision == 0 && q.Limit > 0 && int64(len(kvs)) > q.Limit+1 {
		kvs = kvs[:q.Limit+1] // etcd's quirk: a target without an order sorts what the limit has cut already
	}
	by := map[mvcc.SortTarget]func(a, b mvcc.KV) int{
		mvcc.SortByKey:     func(a, b mvcc.KV) int { return bytes.Compare(a.Key, b.Key) },
		mvcc.SortByVersion: func(a, b mvcc.KV) int { return cmp.Compare(a.Version, b.Version) },
		mvcc.SortByCreate:  func(a, b mvcc.KV) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		mvcc.SortByMod:     func(a, b mvcc.KV) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		mvcc.SortByValue:   func(a, b mvcc.KV) int { return bytes.Compare(a.Value, b.Value) },
	}[q.Target]
	slices.SortStableFunc(kvs, func(a, b mvcc.KV) int {
		if q.Order == mvcc.SortDescend {
			return by(b, a)
		}
		return by(a, b)
	})
	if q.Limit > 0 && int64(len(kvs)) > q.Limit {
		kvs, page.More = kvs[:q.Limit], true
	}
	page.KVs = kvs
	return page
}

func (m *model) txn(t *Txn) (any, error) {
	c := m.begin()
	var path []bool
	c.path(t, &path)
	rest := path
	if err := c.check(t, &rest); err != nil {
		return nil, err
	}
	rest = path
	result := c.run(t, &rest)
	result.Revision = c.end()
	return result, nil
}

func (c *change) path(t *Txn, path *[]bool) {
	holds := true
	for i := range t.Compare {
		holds = holds && c.holds(&t.Compare[i])
	}
	*path = append(*path, holds)
	for _, op := range t.branch(holds) {
		if op.Txn != nil {
			c.path(op.Txn, path)
		}
	}
}

func (c *change) holds(x *Compare) bool {
	found := false
	for _, kv := range c.now {
		if x.Span.Contains(kv.Key) {
			found = true
			if !naiveHolds(x, kv) {
				return false
			}
		}
	}
	return found || x.Target != CompareValue && naiveHolds(x, mvcc.KV{})
}

func naiveHolds(x *Compare, kv mvcc.KV) bool {
	order := bytes.Compare(kv.Value, x.Value)
	if number, ok := map[CompareTarget]int64{
		CompareVersion: kv.Version, CompareCreate: kv.CreateRevision, CompareMod: kv.ModRevision, CompareLease: kv.Lease,
	}[x.Target]; ok {
		order = cmp.Compare(number, x.Number)
	}
	return map[CompareResult]bool{
		CompareEqual: order == 0, CompareGreater: order > 0, CompareLess: order < 0, CompareNotEqual: order != 0,
	}[x.Result]
}

func (c *change) check(t *Txn, path *[]bool) error {
	holds := (*path)[0]
	*path = (*path)[1:]
	for _, op := range t.branch(holds) {
		var err error
		switch {
		case op.Range != nil && op.Range.Revision != 0:
			if op.Range.Revision > c.m.revision {
				err = mvcc.ErrFutureRevision
			} else if op.Range.Revision < c.m.compacted {
				err = mvcc.ErrCompacted
			}
		case op.Put != nil:
			probe := &change{m: c.m, now: maps.Clone(c.now)}
			for _, s := range c.gone {
				maps.DeleteFunc(probe.now, func(key string, _ mvcc.KV) bool { return s.Contains([]byte(key)) })
			}
			_, err = probe.put(op.Put, true)
		case op.Delete != nil:
			c.gone = append(c.gone, op.Delete.Span)
		case op.Txn != nil:
			err = c.check(op.Txn, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *change) run(t *Txn, path *[]bool) *TxnResult {
	result := &TxnResult{Succeeded: (*path)[0]}
	*path = (*path)[1:]
	for _, op := range t.branch(result.Succeeded) {
		var r OpResult
		switch {
		case op.Range != nil:
			r.Range = c.find(op.Range)
		case op.Put != nil:
			r.Put, _ = c.put(op.Put, false)
		case op.Delete != nil:
			r.Delete = c.delete(op.Delete)
		case op.Txn != nil:
			r.Txn = c.run(op.Txn, path)
		}
		result.Results = append(result.Results, r)
	}
	return result
}

// naiveOverlap is etcd's rule for a list of operations, over the finite set of keys that the test uses.
func naiveOverlap(ops []Op) bool {
	_, _, bad := naiveWrites(ops)
	return bad
}

func naiveWrites(ops []Op) (puts map[string]bool, dels []storage.Span, bad bool) {
	puts = map[string]bool{}
	deleted := func(key string) bool {
		return slices.ContainsFunc(dels, func(s storage.Span) bool { return s.Contains([]byte(key)) })
	}
	for _, op := range ops {
		if op.Delete != nil && op.Delete.Span.End != nil { // etcd does not look at a delete without upper end
			dels = append(dels, op.Delete.Span)
		}
	}
	for _, op := range ops {
		if op.Txn == nil {
			continue
		}
		then, thenDels, bad1 := naiveWrites(op.Txn.Success)
		other, otherDels, bad2 := naiveWrites(op.Txn.Failure)
		if bad1 || bad2 {
			return nil, nil, true
		}
		maps.Copy(then, other)
		for key := range then {
			if puts[key] || deleted(key) {
				return nil, nil, true
			}
		}
		maps.Copy(puts, then)
		dels = append(append(dels, thenDels...), otherDels...)
	}
	for _, op := range ops {
		if op.Put == nil {
			continue
		}
		if key := string(op.Put.Key); puts[key] || deleted(key) {
			return nil, nil, true
		} else {
			puts[key] = true
		}
	}
	return puts, dels, false
}

func naiveCost(t *Txn) bool {
	for _, op := range slices.Concat(t.Success, t.Failure) {
		if op.Put != nil || op.Txn != nil && naiveCost(op.Txn) {
			return true
		}
	}
	return false
}

// same compares two results, telling nil from empty nowhere.
func same(got, want Result) error {
	switch {
	case (got.Err == nil) != (want.Err == nil) || want.Err != nil && !errors.Is(got.Err, want.Err):
		return fmt.Errorf("error %v, want %v", got.Err, want.Err)
	case want.Err != nil:
		return nil
	}
	var g, w bytes.Buffer
	showValue(&g, got.Value, "")
	showValue(&w, want.Value, "")
	if g.String() != w.String() {
		return fmt.Errorf("\n%s\nwant\n%s", strings.TrimSpace(g.String()), strings.TrimSpace(w.String()))
	}
	return nil
}
