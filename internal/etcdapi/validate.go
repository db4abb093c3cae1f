package etcdapi

import (
	"bytes"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// This file turns requests as they came into requests of core, and refuses in etcd's order what can be seen to be wrong
// without looking at any state.

// spanOf is the only place that knows etcd's spelling of ranges: no end for a single key, the end "\x00" for every key
// from key on. Below it there is only storage.Span, for the right to read and for the read alike.
func spanOf(key, end []byte) storage.Span {
	switch {
	case len(end) == 1 && end[0] == 0:
		return storage.Span{Start: key}
	case len(end) > 0:
		return storage.Span{Start: key, End: end}
	}
	n := len(key)
	if cap(key) > n {
		// The bytes of a request are never written again: if a zero follows the key, that is the end wanted.
		if next := key[:n+1]; next[n] == 0 {
			return storage.Span{Start: next[:n:n], End: next}
		}
	}
	return storage.KeySpan(key)
}

// rangeOf is the reverse of spanOf.
func rangeOf(s storage.Span) (key, end []byte) {
	switch {
	case s.SingleKey():
		return s.Start, nil
	case s.End == nil:
		return s.Start, []byte{0}
	}
	return s.Start, s.End
}

// check returns what is wrong with r by itself.
func (r *rangeRequest) check() error {
	if len(r.key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[r.sortOrder]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[r.sortTarget]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

// checkStream returns what is wrong with r as a RangeStream.
func (r *rangeRequest) checkStream() error {
	if err := r.check(); err != nil {
		return err
	}
	target, order := pb.RangeRequest_SortTarget(r.sortTarget), pb.RangeRequest_SortOrder(r.sortOrder)
	if order != pb.RangeRequest_NONE && (target != pb.RangeRequest_KEY || order != pb.RangeRequest_ASCEND) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.minModRev != 0 || r.maxModRev != 0 || r.minCreate != 0 || r.maxCreate != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

// query returns the read that a checked r asks for. etcd sorts by a target other than the key even if no order is given.
func (r *rangeRequest) query() mvcc.Query {
	q := mvcc.Query{
		Span: spanOf(r.key, r.end), Revision: r.revision, Limit: r.limit, KeysOnly: r.keysOnly, CountOnly: r.countOnly,
		MinModRevision: r.minModRev, MaxModRevision: r.maxModRev,
		MinCreateRevision: r.minCreate, MaxCreateRevision: r.maxCreate,
	}
	switch pb.RangeRequest_SortTarget(r.sortTarget) {
	case pb.RangeRequest_VERSION:
		q.Target = mvcc.SortByVersion
	case pb.RangeRequest_CREATE:
		q.Target = mvcc.SortByCreate
	case pb.RangeRequest_MOD:
		q.Target = mvcc.SortByMod
	case pb.RangeRequest_VALUE:
		q.Target = mvcc.SortByValue
	}
	switch pb.RangeRequest_SortOrder(r.sortOrder) {
	case pb.RangeRequest_ASCEND:
		q.Order = mvcc.SortAscend
	case pb.RangeRequest_DESCEND:
		q.Order = mvcc.SortDescend
	default:
		if q.Target != mvcc.SortByKey {
			q.Order = mvcc.SortAscend
		}
	}
	return q
}

func (r *putRequest) check() error {
	switch {
	case len(r.key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.ignoreValue && len(r.value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.ignoreLease && r.lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func (r *putRequest) put() *state.Put {
	return &state.Put{Space: mvcc.SpaceEtcd, Key: r.key, Value: r.value, Lease: r.lease,
		PrevKV: r.prevKV, IgnoreValue: r.ignoreValue, IgnoreLease: r.ignoreLease}
}

func (r *deleteRequest) check() error {
	if len(r.key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

func (r *deleteRequest) delete() *state.Delete {
	return &state.Delete{Space: mvcc.SpaceEtcd, Span: spanOf(r.key, r.end), PrevKV: r.prevKV}
}

// check returns what is wrong with r by itself. budget is the number of operations allowed here; what the longest list at
// this level uses is not left for the transactions nested in it, so the nesting is bounded too.
func (r *txnRequest) check(budget int) error {
	used := max(len(r.compare), len(r.success), len(r.failure))
	if used > budget {
		return rpctypes.ErrGRPCTooManyOps
	}
	for i := range r.compare {
		if err := r.compare[i].check(); err != nil {
			return err
		}
	}
	for _, ops := range [2][]requestOp{r.success, r.failure} {
		for i := range ops {
			if err := ops[i].check(budget - used); err != nil {
				return err
			}
		}
	}
	return nil
}

// check refuses what etcd refuses, and comparisons outside its enumerations, which etcd takes for ones that always hold.
func (c *compare) check() error {
	if len(c.key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	_, okResult := pb.Compare_CompareResult_name[c.result]
	_, okTarget := pb.Compare_CompareTarget_name[c.target]
	if !okResult || !okTarget {
		return status.Error(codes.InvalidArgument, "etcdserver: invalid comparison in txn request")
	}
	return nil
}

func (o *requestOp) check(budget int) error {
	switch {
	case o.rng != nil:
		return o.rng.check()
	case o.put != nil:
		return o.put.check()
	case o.del != nil:
		return o.del.check()
	case o.txn != nil:
		return o.txn.check(budget)
	}
	return rpctypes.ErrGRPCKeyNotFound // etcd's answer to an empty operation
}

// checkOverlap refuses a list of operations that writes a key twice, as far as etcd does: two puts of a key, or a put of
// a key that a delete covers, in this list and down through nested transactions. The two branches of one transaction
// exclude each other and may share keys; deletes may overlap each other. A delete without upper end is not looked at:
// etcd reads its end as the key "\x00" here, so that clients may clear everything and write anew in one transaction.
func checkOverlap(ops []requestOp) error {
	_, _, err := overlaps(ops)
	return err
}

// keySet is a set of keys; spanSet is a set of disjoint spans in order.
type (
	keySet  map[string]struct{}
	spanSet []storage.Span
)

func overlaps(ops []requestOp) (puts keySet, dels spanSet, err error) {
	writes := 0
	for i := range ops {
		if d := ops[i].del; d != nil {
			dels = append(dels, spanOf(d.key, d.end))
		}
		if ops[i].rng == nil {
			writes++
		}
	}
	if writes <= 1 && len(ops) > 0 && !slices.ContainsFunc(ops, func(o requestOp) bool { return o.txn != nil }) {
		// One write cannot clash here, but the lists around this one need to know it.
		for i := range ops {
			if p := ops[i].put; p != nil {
				puts = keySet{string(p.key): {}}
			}
		}
		return puts, dels.normal(), nil
	}
	dels = dels.normal()
	puts = make(keySet)
	for i := range ops {
		if t := ops[i].txn; t != nil {
			if dels, err = mergeNested(t, puts, dels); err != nil {
				return nil, nil, err
			}
		}
	}
	for i := range ops {
		if p := ops[i].put; p != nil {
			if _, twice := puts[string(p.key)]; twice || dels.contains(p.key) {
				return nil, nil, rpctypes.ErrGRPCDuplicateKey
			}
			puts[string(p.key)] = struct{}{}
		}
	}
	return puts, dels, nil
}

// mergeNested adds what t writes to puts and returns dels with what it deletes.
func mergeNested(t *txnRequest, puts keySet, dels spanSet) (spanSet, error) {
	thenPuts, thenDels, err := overlaps(t.success)
	if err != nil {
		return nil, err
	}
	elsePuts, elseDels, err := overlaps(t.failure)
	if err != nil {
		return nil, err
	}
	for k := range thenPuts {
		if _, twice := puts[k]; twice || dels.contains([]byte(k)) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		puts[k] = struct{}{}
	}
	for k := range elsePuts {
		_, twice := puts[k]
		_, excluded := thenPuts[k]
		if twice && !excluded || dels.contains([]byte(k)) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		puts[k] = struct{}{}
	}
	return slices.Concat(dels, thenDels, elseDels).normal(), nil
}

// normal returns s sorted and merged, without spans that are empty or open.
func (s spanSet) normal() spanSet {
	s = slices.DeleteFunc(s, func(p storage.Span) bool { return p.End == nil || p.Empty() })
	if len(s) < 2 {
		return s
	}
	slices.SortFunc(s, func(a, b storage.Span) int { return bytes.Compare(a.Start, b.Start) })
	out := s[:1]
	for _, p := range s[1:] {
		last := &out[len(out)-1]
		if bytes.Compare(p.Start, last.End) > 0 {
			out = append(out, p)
		} else if bytes.Compare(p.End, last.End) > 0 {
			last.End = p.End
		}
	}
	return out
}

func (s spanSet) contains(key []byte) bool {
	i, found := slices.BinarySearchFunc(s, key, func(p storage.Span, key []byte) int { return bytes.Compare(p.Start, key) })
	return found || i > 0 && s[i-1].Contains(key)
}

// txn returns the transaction that a checked r asks for, and whether etcd would serve it from this member alone: every
// operation is a serializable range, and there is one.
func (r *txnRequest) txn() (t *state.Txn, serializable bool) {
	t = &state.Txn{Space: mvcc.SpaceEtcd}
	if len(r.compare) > 0 {
		t.Compare = make([]state.Compare, len(r.compare))
		for i := range r.compare {
			t.Compare[i] = r.compare[i].compare()
		}
	}
	serializable = len(r.success)+len(r.failure) > 0
	t.Success = opsOf(r.success, &serializable)
	t.Failure = opsOf(r.failure, &serializable)
	return t, serializable
}

func opsOf(ops []requestOp, serializable *bool) []state.Op {
	if len(ops) == 0 {
		return nil
	}
	out := make([]state.Op, len(ops))
	for i := range ops {
		o := &ops[i]
		if o.rng == nil || !o.rng.serializable {
			*serializable = false
		}
		switch {
		case o.rng != nil:
			q := o.rng.query()
			out[i].Range = &q
		case o.put != nil:
			out[i].Put = o.put.put()
		case o.del != nil:
			out[i].Delete = o.del.delete()
		case o.txn != nil:
			out[i].Txn, _ = o.txn.txn()
		}
	}
	return out
}

// compare returns the comparison that a checked c asks for. A union that does not belong to the target counts as zero.
func (c *compare) compare() state.Compare {
	s := state.Compare{Span: spanOf(c.key, c.end)}
	want := unionVersion
	switch pb.Compare_CompareTarget(c.target) {
	case pb.Compare_CREATE:
		s.Target, want = state.CompareCreate, unionCreate
	case pb.Compare_MOD:
		s.Target, want = state.CompareMod, unionMod
	case pb.Compare_VALUE:
		s.Target, want = state.CompareValue, unionValue
	case pb.Compare_LEASE:
		s.Target, want = state.CompareLease, unionLease
	}
	if c.union == want {
		s.Number, s.Value = c.number, c.value
	}
	switch pb.Compare_CompareResult(c.result) {
	case pb.Compare_GREATER:
		s.Result = state.CompareGreater
	case pb.Compare_LESS:
		s.Result = state.CompareLess
	case pb.Compare_NOT_EQUAL:
		s.Result = state.CompareNotEqual
	}
	return s
}
