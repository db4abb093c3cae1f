package mvcc

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"holdfast.dev/holdfast/internal/storage"
)

// model is the naive twin of a Space: everything in memory, nothing clever.
type model struct {
	rev, compacted int64
	versions       map[string][]modelVersion // by key, oldest first
	log            []RevisionEvents
	leases         map[int64]Lease

	pending []Event
}

type modelVersion struct {
	KV
	sub     int
	deleted bool
}

func newModel() *model {
	return &model{rev: 1, compacted: -1, versions: map[string][]modelVersion{}, leases: map[int64]Lease{}}
}

func (m *model) current() int64 {
	if len(m.pending) > 0 {
		return m.rev + 1
	}
	return m.rev
}

func (m *model) end() int64 {
	if len(m.pending) > 0 {
		m.rev++
		m.log = append(m.log, RevisionEvents{m.rev, m.pending})
		m.pending = nil
	}
	return m.rev
}

func (m *model) at(key string, rev int64) (KV, bool) {
	vs := m.versions[key]
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].ModRevision <= rev {
			return vs[i].KV, !vs[i].deleted
		}
	}
	return KV{}, false
}

func (m *model) live(span storage.Span, rev int64) []KV {
	var out []KV
	for _, key := range slices.Sorted(maps.Keys(m.versions)) {
		if kv, ok := m.at(key, rev); ok && span.Contains([]byte(key)) {
			out = append(out, kv)
		}
	}
	return out
}

func (m *model) put(key, value []byte, o PutOptions) (*KV, error) {
	prev, ok := m.at(string(key), m.current())
	if (o.IgnoreLease || o.IgnoreValue) && !ok {
		return nil, ErrKeyNotFound
	}
	if value == nil {
		value = []byte{}
	}
	kv := KV{Key: key, Value: value, Lease: o.Lease, ModRevision: m.rev + 1, CreateRevision: m.rev + 1, Version: 1}
	e := Event{Type: EventPut}
	if o.IgnoreValue {
		kv.Value = prev.Value
	}
	if o.IgnoreLease {
		kv.Lease = prev.Lease
	}
	if _, exists := m.leases[kv.Lease]; kv.Lease != 0 && !exists {
		return nil, ErrLeaseNotFound
	}
	if ok {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
		e.PrevRevision = prev.ModRevision
	}
	m.push(kv, e)
	if ok && o.PrevKV {
		return &prev, nil
	}
	return nil, nil
}

func (m *model) push(kv KV, e Event) {
	v := modelVersion{KV: kv, sub: len(m.pending), deleted: e.Type == EventDelete}
	m.versions[string(kv.Key)] = append(m.versions[string(kv.Key)], v)
	e.KV = kv
	m.pending = append(m.pending, e)
}

func (m *model) delete(kvs []KV) {
	for _, kv := range kvs {
		m.push(KV{Key: kv.Key, ModRevision: m.rev + 1}, Event{Type: EventDelete, PrevRevision: kv.ModRevision})
	}
}

func (m *model) leaseKeys(id int64) []KV {
	return slices.DeleteFunc(m.live(storage.Span{}, m.current()), func(kv KV) bool { return kv.Lease != id })
}

func (m *model) compact(rev int64) error {
	if rev <= m.compacted {
		return ErrCompacted
	}
	if rev > m.rev {
		return ErrFutureRevision
	}
	m.compacted = rev
	return nil
}

// size adds up what is readable: every version that is newer than the compact revision or the newest at it.
func (m *model) size() int64 {
	total := int64(0)
	for key, vs := range m.versions {
		for i, v := range vs {
			last := i == len(vs)-1 || vs[i+1].ModRevision > m.compacted
			if v.ModRevision > m.compacted || (last && !v.deleted) {
				total += versionBytes([]byte(key), len(v.Value))
			}
		}
	}
	return total
}

func (m *model) read(q Query) (Page, error) {
	rev := q.Revision
	if rev <= 0 {
		rev = m.current()
	}
	if rev > m.current() {
		return Page{}, ErrFutureRevision
	}
	if q.Revision > 0 && rev < m.compacted {
		return Page{}, ErrCompacted
	}
	all := m.live(q.Span, rev)
	p := Page{Revision: m.current()}
	if !q.NoCount {
		p.Count = int64(len(all))
	}
	if q.CountOnly {
		return p, nil
	}
	simple := q.Order == SortNone || (q.Target == SortByKey && q.Order == SortAscend)
	if q.filtered() || !simple {
		all = slices.DeleteFunc(all, func(kv KV) bool {
			return !q.accepts(&record{mod: kv.ModRevision, create: kv.CreateRevision})
		})
	} else if q.Limit > 0 && int64(len(all)) > q.Limit {
		all = all[:q.Limit+1]
	}
	order := q.Order
	if q.Target != SortByKey && order == SortNone {
		order = SortAscend
	}
	c := comparison(q.Target, order)
	slices.SortStableFunc(all, func(a, b KV) int { return c(&a, &b) })
	if q.Limit > 0 && int64(len(all)) > q.Limit {
		all, p.More = all[:q.Limit], true
	}
	size := int64(0)
	for i := range all {
		if q.KeysOnly {
			all[i].Value, all[i].Lease = nil, 0
		}
		size += int64(len(all[i].Key) + len(all[i].Value))
		if q.MaxBytes > 0 && size >= q.MaxBytes && i+1 < len(all) {
			all, p.More = all[:i+1], true
			break
		}
	}
	p.KVs = all
	return p, nil
}

func (m *model) events(span storage.Span, from, to int64) []RevisionEvents {
	var out []RevisionEvents
	for _, r := range m.log {
		if r.Revision < from || r.Revision > to {
			continue
		}
		keep := slices.DeleteFunc(slices.Clone(r.Events), func(e Event) bool { return !span.Contains(e.KV.Key) })
		if len(keep) > 0 {
			out = append(out, RevisionEvents{r.Revision, keep})
		}
	}
	return out
}

// keyAt finds a version that is readable at some revision.
func (m *model) keyAt(key string, mod int64) (KV, bool) {
	vs := m.versions[key]
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].ModRevision == mod {
			gone := i < len(vs)-1 && vs[i+1].ModRevision <= m.compacted
			return vs[i].KV, !vs[i].deleted && !gone
		}
	}
	return KV{}, false
}

func showKV(kv KV) string {
	value := "-"
	if kv.Value != nil {
		value = fmt.Sprintf("%q", kv.Value)
	}
	return fmt.Sprintf("%q=%s c%d m%d v%d l%d", kv.Key, value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
}

func showPage(p Page, err error) string {
	var b bytes.Buffer
	if err != nil {
		return "error: " + err.Error()
	}
	for _, kv := range p.KVs {
		fmt.Fprintln(&b, showKV(kv))
	}
	fmt.Fprintf(&b, "count=%d more=%v revision=%d", p.Count, p.More, p.Revision)
	return b.String()
}

func showEvents(rs []RevisionEvents) string {
	var b bytes.Buffer
	for _, r := range rs {
		fmt.Fprintf(&b, "%d:\n", r.Revision)
		for _, e := range r.Events {
			kind := "put"
			if e.Type == EventDelete {
				kind = "delete"
			}
			fmt.Fprintf(&b, "  %s %s prev=%d\n", kind, showKV(e.KV), e.PrevRevision)
		}
	}
	return b.String()
}
