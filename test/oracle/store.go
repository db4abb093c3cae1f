package main

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

type (
	pbOp    = etcdserverpb.RequestOp
	pbRange = etcdserverpb.RangeRequest
	pbPut   = etcdserverpb.PutRequest
	pbDel   = etcdserverpb.DeleteRangeRequest
	pbTxn   = etcdserverpb.TxnRequest
)

// Refusals that have nothing to do with rights.
const (
	noKey        = "etcdserver: key is not provided"
	keyNotFound  = "etcdserver: key not found"
	valueGiven   = "etcdserver: value is provided"
	leaseGiven   = "etcdserver: lease is provided"
	noLease      = "etcdserver: requested lease not found"
	leaseExists  = "etcdserver: lease already exists"
	compacted    = "etcdserver: mvcc: required revision has been compacted"
	future       = "etcdserver: mvcc: required revision is a future revision"
	tooManyOps   = "etcdserver: too many operations in txn request"
	duplicateKey = "etcdserver: duplicate key given in txn request"
)

type lease struct {
	ttl  int64
	keys map[string]bool
}

func (l *lease) sorted() []string { return slices.Sorted(maps.Keys(l.keys)) }

// change is one event.
type change struct {
	revision int64
	kv       *mvccpb.KeyValue // of a deletion only key and revision
	prev     *mvccpb.KeyValue // at the revision before
	deleted  bool
}

// keptRevisions is how many former revisions the model remembers.
const keptRevisions = 64

// store is the keyspace: whole maps, one for each revision.
type store struct {
	revision, base, compacted int64 // base: nothing before it is known
	now                       map[string]*mvccpb.KeyValue
	past                      map[int64]map[string]*mvccpb.KeyValue
	leases                    map[int64]*lease
	changes                   []change
}

func newStore(revision int64) *store {
	s := &store{revision: revision, base: revision, compacted: -1, now: map[string]*mvccpb.KeyValue{}, leases: map[int64]*lease{}}
	s.past = map[int64]map[string]*mvccpb.KeyValue{revision: {}}
	return s
}

// writing collects what one request changes; it becomes one revision.
type writing struct {
	s       *store
	changed []change
}

func (s *store) begin() *writing { return &writing{s: s} }

func (w *writing) revision() int64 {
	if len(w.changed) > 0 {
		return w.s.revision + 1
	}
	return w.s.revision
}

// end makes a revision of what was written.
func (w *writing) end() {
	if len(w.changed) == 0 {
		return
	}
	s := w.s
	s.revision++
	s.changes = append(s.changes, w.changed...)
	s.past[s.revision] = maps.Clone(s.now)
	delete(s.past, s.revision-keptRevisions)
	s.base = max(s.base, s.revision-keptRevisions+1)
}

func (w *writing) detach(kv *mvccpb.KeyValue) {
	if l := w.s.leases[kv.Lease]; l != nil {
		delete(l.keys, string(kv.Key))
	}
}

func (w *writing) put(r *pbPut) *etcdserverpb.PutResponse {
	s, prev := w.s, w.s.now[string(r.Key)]
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, ModRevision: s.revision + 1, CreateRevision: s.revision + 1, Version: 1}
	if prev != nil {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
		if r.IgnoreValue {
			kv.Value = prev.Value
		}
		if r.IgnoreLease {
			kv.Lease = prev.Lease
		}
		w.detach(prev)
	}
	if l := s.leases[kv.Lease]; l != nil {
		l.keys[string(r.Key)] = true
	}
	s.now[string(r.Key)] = kv
	c := change{revision: s.revision + 1, kv: kv}
	if kv.Version > 1 { // nothing was before the first version, also where one was deleted just before
		c.prev = s.past[s.revision][string(r.Key)]
	}
	w.changed = append(w.changed, c)
	resp := &etcdserverpb.PutResponse{}
	if r.PrevKv {
		resp.PrevKv = prev
	}
	return resp
}

func (w *writing) remove(r *pbDel) *etcdserverpb.DeleteRangeResponse {
	s, resp := w.s, &etcdserverpb.DeleteRangeResponse{}
	for _, k := range sortedNames(s.now) {
		if !within(k, string(r.Key), string(r.RangeEnd)) {
			continue
		}
		prev := s.now[k]
		delete(s.now, k)
		w.detach(prev)
		w.changed = append(w.changed, change{revision: s.revision + 1, deleted: true, kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: s.revision + 1}, prev: s.past[s.revision][k]})
		resp.Deleted++
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, prev)
		}
	}
	return resp
}

// readable returns the refusal of a revision.
func (s *store) readable(revision int64) string {
	switch {
	case revision > s.revision:
		return future
	case revision > 0 && revision < s.compacted:
		return compacted
	}
	return granted
}

func (w *writing) read(r *pbRange) *etcdserverpb.RangeResponse {
	from := w.s.now
	if r.Revision > 0 && r.Revision < w.revision() {
		from = w.s.past[r.Revision]
	}
	resp := &etcdserverpb.RangeResponse{}
	var found []*mvccpb.KeyValue
	for _, k := range sortedNames(from) {
		if !within(k, string(r.Key), string(r.RangeEnd)) {
			continue
		}
		resp.Count++
		kv := from[k]
		if r.MinModRevision != 0 && kv.ModRevision < r.MinModRevision || r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
			r.MinCreateRevision != 0 && kv.CreateRevision < r.MinCreateRevision || r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision {
			continue
		}
		found = append(found, kv)
	}
	if r.CountOnly {
		return resp
	}
	sortKVs(found, r)
	if r.Limit > 0 && int64(len(found)) > r.Limit {
		found, resp.More = found[:r.Limit], true
	}
	for _, kv := range found {
		if r.KeysOnly {
			kv = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version}
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp
}

// sortKVs sorts as r asks. Cases sort by nothing that two keys may have in common.
func sortKVs(kvs []*mvccpb.KeyValue, r *pbRange) {
	if r.SortTarget == etcdserverpb.RangeRequest_KEY && r.SortOrder != etcdserverpb.RangeRequest_DESCEND {
		return
	}
	slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int {
		c := cmp.Compare(a.ModRevision, b.ModRevision)
		if r.SortTarget == etcdserverpb.RangeRequest_KEY {
			c = bytes.Compare(a.Key, b.Key)
		}
		if r.SortOrder == etcdserverpb.RangeRequest_DESCEND {
			return -c
		}
		return c
	})
}

// holds decides a comparison.
func (s *store) holds(c *etcdserverpb.Compare) bool {
	found := false
	for _, k := range sortedNames(s.now) {
		if !within(k, string(c.Key), string(c.RangeEnd)) {
			continue
		}
		found = true
		if !compareOne(c, s.now[k]) {
			return false
		}
	}
	if !found {
		return c.Target != etcdserverpb.Compare_VALUE && compareOne(c, &mvccpb.KeyValue{})
	}
	return true
}

func compareOne(c *etcdserverpb.Compare, kv *mvccpb.KeyValue) bool {
	var result int
	switch c.Target {
	case etcdserverpb.Compare_VALUE:
		result = bytes.Compare(kv.Value, c.GetValue())
	case etcdserverpb.Compare_CREATE:
		result = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case etcdserverpb.Compare_MOD:
		result = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case etcdserverpb.Compare_LEASE:
		result = cmp.Compare(kv.Lease, c.GetLease())
	default:
		result = cmp.Compare(kv.Version, c.GetVersion())
	}
	switch c.Result {
	case etcdserverpb.Compare_GREATER:
		return result > 0
	case etcdserverpb.Compare_LESS:
		return result < 0
	case etcdserverpb.Compare_NOT_EQUAL:
		return result != 0
	}
	return result == 0
}

// path is which branch each transaction of a tree takes, decided before anything is done.
type path struct {
	then  bool
	below map[*pbOp]*path
}

func (p *path) ops(t *pbTxn) []*pbOp {
	if p.then {
		return t.Success
	}
	return t.Failure
}

func (s *store) decide(t *pbTxn) *path {
	p := &path{then: true, below: map[*pbOp]*path{}}
	for _, c := range t.Compare {
		p.then = p.then && s.holds(c)
	}
	for _, op := range p.ops(t) {
		if n := op.GetRequestTxn(); n != nil {
			p.below[op] = s.decide(n)
		}
	}
	return p
}

// possible returns the refusal of what a transaction would do on its path.
func (s *store) possible(t *pbTxn, p *path) string {
	for _, op := range p.ops(t) {
		refusal := granted
		switch {
		case op.GetRequestRange() != nil:
			refusal = s.readable(op.GetRequestRange().Revision)
		case op.GetRequestPut() != nil:
			refusal = s.puttable(op.GetRequestPut())
		case op.GetRequestTxn() != nil:
			refusal = s.possible(op.GetRequestTxn(), p.below[op])
		}
		if refusal != granted {
			return refusal
		}
	}
	return granted
}

func (s *store) puttable(r *pbPut) string {
	if r.Lease != 0 && s.leases[r.Lease] == nil {
		return noLease
	}
	if (r.IgnoreValue || r.IgnoreLease) && s.now[string(r.Key)] == nil {
		return keyNotFound
	}
	return granted
}

func (w *writing) txn(t *pbTxn, p *path) *etcdserverpb.TxnResponse {
	resp := &etcdserverpb.TxnResponse{Succeeded: p.then}
	for _, op := range p.ops(t) {
		out := &etcdserverpb.ResponseOp{}
		switch {
		case op.GetRequestRange() != nil:
			out.Response = &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: w.read(op.GetRequestRange())}
		case op.GetRequestPut() != nil:
			out.Response = &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: w.put(op.GetRequestPut())}
		case op.GetRequestDeleteRange() != nil:
			out.Response = &etcdserverpb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: w.remove(op.GetRequestDeleteRange())}
		case op.GetRequestTxn() != nil:
			out.Response = &etcdserverpb.ResponseOp_ResponseTxn{ResponseTxn: w.txn(op.GetRequestTxn(), p.below[op])}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp
}

// The form of requests, before anybody looks at who asks.

func rangeForm(r *pbRange) string {
	if len(r.Key) == 0 {
		return noKey
	}
	return granted
}

func putForm(r *pbPut) string {
	switch {
	case len(r.Key) == 0:
		return noKey
	case r.IgnoreValue && len(r.Value) != 0:
		return valueGiven
	case r.IgnoreLease && r.Lease != 0:
		return leaseGiven
	}
	return granted
}

func txnForm(t *pbTxn, budget int) string {
	used := max(len(t.Compare), len(t.Success), len(t.Failure))
	if used > budget {
		return tooManyOps
	}
	for _, c := range t.Compare {
		if len(c.Key) == 0 {
			return noKey
		}
	}
	for _, op := range slices.Concat(t.Success, t.Failure) {
		refusal := keyNotFound
		switch {
		case op.GetRequestRange() != nil:
			refusal = rangeForm(op.GetRequestRange())
		case op.GetRequestPut() != nil:
			refusal = putForm(op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			refusal = granted
			if len(op.GetRequestDeleteRange().Key) == 0 {
				refusal = noKey
			}
		case op.GetRequestTxn() != nil:
			refusal = txnForm(op.GetRequestTxn(), budget-used)
		}
		if refusal != granted {
			return refusal
		}
	}
	return granted
}

// clashes reports whether a list of operations writes a key twice, as etcd sees it: it looks at the transactions below
// first, and takes a deletion without upper end for one of nothing.
func clashes(ops []*pbOp) (puts map[string]bool, dels []*pbDel, clash bool) {
	puts = map[string]bool{}
	deleted := func(k string) bool {
		return slices.ContainsFunc(dels, func(d *pbDel) bool {
			end := string(d.RangeEnd)
			return end == "" && k == string(d.Key) || end != "" && k >= string(d.Key) && k < end
		})
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			dels = append(dels, d)
		}
	}
	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		thenPuts, thenDels, bad := clashes(t.Success)
		elsePuts, elseDels, worse := clashes(t.Failure)
		clash = clash || bad || worse
		for k := range thenPuts {
			clash = clash || puts[k] || deleted(k)
			puts[k] = true
		}
		for k := range elsePuts {
			clash = clash || puts[k] && !thenPuts[k] || deleted(k)
			puts[k] = true
		}
		dels = slices.Concat(dels, thenDels, elseDels)
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			clash = clash || puts[string(p.Key)] || deleted(string(p.Key))
			puts[string(p.Key)] = true
		}
	}
	return puts, dels, clash
}

// head returns the oldest key of a queue.
func (s *store) head(name string) *mvccpb.KeyValue {
	var oldest *mvccpb.KeyValue
	for k, kv := range s.now {
		if strings.HasPrefix(k, name+"/") && (oldest == nil || kv.CreateRevision < oldest.CreateRevision) {
			oldest = kv
		}
	}
	return oldest
}
