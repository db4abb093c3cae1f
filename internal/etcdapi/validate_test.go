package etcdapi

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

func TestSpanOf(t *testing.T) {
	zeroAfter := append([]byte("a"), 0)[:1]
	oneAfter := append([]byte("a"), 1)[:1]
	for _, c := range []struct {
		name     string
		key, end []byte
		has, not []string
	}{
		{"single key", []byte("a"), nil, []string{"a"}, []string{"", "a\x00", "b"}},
		{"single key, empty end", []byte("a"), []byte{}, []string{"a"}, []string{"a\x00"}},
		{"single key in a buffer with a zero after it", zeroAfter, nil, []string{"a"}, []string{"a\x00", "b"}},
		{"single key in a buffer with something after it", oneAfter, nil, []string{"a"}, []string{"a\x00", "a\x01", "b"}},
		{"range", []byte("a"), []byte("c"), []string{"a", "b", "b\xff"}, []string{"c", "A"}},
		{"from key", []byte("a"), []byte{0}, []string{"a", "z", "\xff\xff"}, []string{"A", ""}},
		{"everything", []byte{0}, []byte{0}, []string{"\x00", "a", "\xff"}, nil},
		{"backwards", []byte("c"), []byte("a"), nil, []string{"a", "b", "c"}},
	} {
		s := spanOf(c.key, c.end)
		for _, k := range c.has {
			if !s.Contains([]byte(k)) {
				t.Errorf("%s: %q is not in %q", c.name, k, s)
			}
		}
		for _, k := range c.not {
			if s.Contains([]byte(k)) {
				t.Errorf("%s: %q is in %q", c.name, k, s)
			}
		}
		key, end := rangeOf(s)
		if string(key) != string(c.key) || string(end) != string(c.end) {
			t.Errorf("%s: goes back as %q %q", c.name, key, end)
		}
	}
}

func TestRangeOrder(t *testing.T) {
	for _, c := range []struct {
		order, target int32
		want          mvcc.SortOrder
		target2       mvcc.SortTarget
	}{
		{0, 0, mvcc.SortNone, mvcc.SortByKey}, {1, 0, mvcc.SortAscend, mvcc.SortByKey}, {2, 0, mvcc.SortDescend, mvcc.SortByKey},
		{0, 1, mvcc.SortAscend, mvcc.SortByVersion}, {0, 2, mvcc.SortAscend, mvcc.SortByCreate}, {2, 3, mvcc.SortDescend, mvcc.SortByMod},
		{0, 4, mvcc.SortAscend, mvcc.SortByValue},
	} {
		q := (&rangeRequest{key: []byte("k"), sortOrder: c.order, sortTarget: c.target}).query()
		if q.Order != c.want || q.Target != c.target2 {
			t.Errorf("order %d target %d: got %d %d", c.order, c.target, q.Order, q.Target)
		}
	}
}

// Shorthands for operations.
func opPut(key string) requestOp { return requestOp{put: &putRequest{key: []byte(key)}} }
func opGet(key string) requestOp { return requestOp{rng: &rangeRequest{key: []byte(key)}} }
func opDel(key, end string) requestOp {
	return requestOp{del: &deleteRequest{key: []byte(key), end: []byte(end)}}
}
func opTxn(then, otherwise []requestOp) requestOp {
	return requestOp{txn: &txnRequest{success: then, failure: otherwise}}
}
func ops(o ...requestOp) []requestOp { return o }

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		name string
		ops  []requestOp
		dup  bool
	}{
		{"nothing", nil, false},
		{"one put", ops(opPut("a")), false},
		{"two puts", ops(opPut("a"), opPut("b")), false},
		{"put twice", ops(opPut("a"), opPut("a")), true},
		{"put and get", ops(opPut("a"), opGet("a")), false},
		{"put then delete", ops(opPut("a"), opDel("a", "")), true},
		{"delete then put", ops(opDel("a", ""), opPut("a")), true},
		{"delete of a range then put in it", ops(opDel("a", "c"), opPut("b")), true},
		{"put at the end of the range", ops(opDel("a", "c"), opPut("c")), false},
		{"deletes overlap", ops(opDel("a", "c"), opDel("b", "d"), opDel("a", "z")), false},
		{"put in the second of merged deletes", ops(opDel("a", "c"), opDel("b", "d"), opPut("c")), true},
		{"put behind disjoint deletes", ops(opDel("a", "b"), opDel("x", "y"), opPut("m")), false},
		{"clear everything, write anew", ops(opDel("\x00", "\x00"), opPut("a")), false},
		{"backwards delete", ops(opDel("z", "a"), opPut("m")), false},
		{"both branches put", ops(opTxn(ops(opPut("a")), ops(opPut("a")))), false},
		{"nested and outer put", ops(opTxn(ops(opPut("a")), nil), opPut("a")), true},
		{"nested in the other branch and outer put", ops(opTxn(nil, ops(opPut("a"))), opPut("a")), true},
		{"two nested puts", ops(opTxn(ops(opPut("a")), nil), opTxn(nil, ops(opPut("a")))), true},
		{"outer delete, nested put", ops(opTxn(ops(opPut("b")), nil), opDel("a", "c")), true},
		{"outer delete, nested put in the other branch", ops(opDel("a", "c"), opTxn(nil, ops(opPut("b")))), true},
		{"nested delete, outer put", ops(opTxn(ops(opDel("a", "c")), nil), opPut("b")), true},
		{"nested put twice", ops(opTxn(ops(opPut("a"), opPut("a")), nil)), true},
		{"three deep", ops(opTxn(ops(opTxn(ops(opPut("a")), nil)), nil), opPut("a")), true},
		{"a lone put in a nested one and a get", ops(opTxn(ops(opPut("a"), opGet("x")), nil), opPut("b")), false},
	} {
		err := checkOverlap(c.ops)
		if (err != nil) != c.dup || err != nil && err.Error() != rpctypes.ErrGRPCDuplicateKey.Error() {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestTxnCheck(t *testing.T) {
	many := func(n int) []requestOp {
		var o []requestOp
		for range n {
			o = append(o, opGet("k"))
		}
		return o
	}
	for _, c := range []struct {
		name string
		r    txnRequest
		want error
	}{
		{"empty", txnRequest{}, nil},
		{"as many as allowed", txnRequest{success: many(4), failure: many(4)}, nil},
		{"too many", txnRequest{failure: many(5)}, rpctypes.ErrGRPCTooManyOps},
		{"too many compares", txnRequest{compare: make([]compare, 5)}, rpctypes.ErrGRPCTooManyOps},
		{"too many nested", txnRequest{success: ops(opTxn(many(4), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"nested within the rest", txnRequest{success: ops(opTxn(many(3), nil))}, nil},
		{"compare without key", txnRequest{compare: []compare{{}}}, rpctypes.ErrGRPCEmptyKey},
		{"empty operation", txnRequest{success: []requestOp{{}}}, rpctypes.ErrGRPCKeyNotFound},
		{"put without key", txnRequest{failure: ops(opPut(""))}, rpctypes.ErrGRPCEmptyKey},
		{"value and ignore_value", txnRequest{success: ops(requestOp{put: &putRequest{key: []byte("k"), value: []byte("v"), ignoreValue: true}})}, rpctypes.ErrGRPCValueProvided},
		{"lease and ignore_lease", txnRequest{success: ops(requestOp{put: &putRequest{key: []byte("k"), lease: 1, ignoreLease: true}})}, rpctypes.ErrGRPCLeaseProvided},
		{"sort order", txnRequest{success: ops(requestOp{rng: &rangeRequest{key: []byte("k"), sortOrder: 3}})}, rpctypes.ErrGRPCInvalidSortOption},
		{"sort target", txnRequest{success: ops(requestOp{rng: &rangeRequest{key: []byte("k"), sortTarget: -1}})}, rpctypes.ErrGRPCInvalidSortOption},
	} {
		if got := c.r.check(4); (got == nil) != (c.want == nil) || got != nil && got.Error() != c.want.Error() {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	odd := txnRequest{compare: []compare{{key: []byte("k"), result: 4}}}
	if status.Code(odd.check(4)) != codes.InvalidArgument {
		t.Error("a comparison outside the enumeration passed")
	}
}

func TestTxnOf(t *testing.T) {
	r := txnRequest{
		compare: []compare{
			{key: []byte("k"), target: 2, result: 3, union: unionMod, number: 9},
			{key: []byte("k"), target: 1, union: unionMod, number: 9},
			{key: []byte("k"), end: []byte{0}, target: 3, result: 1, union: unionValue, value: []byte("v")},
		},
		success: ops(requestOp{rng: &rangeRequest{key: []byte("k"), serializable: true}}),
	}
	got, serializable := r.txn()
	if !serializable {
		t.Error("serializable ranges only, and yet not serializable")
	}
	want := []state.Compare{
		{Target: state.CompareMod, Result: state.CompareNotEqual, Number: 9},
		{Target: state.CompareCreate},
		{Target: state.CompareValue, Result: state.CompareGreater, Value: []byte("v")},
	}
	for i, c := range got.Compare {
		w := want[i]
		if c.Target != w.Target || c.Result != w.Result || c.Number != w.Number || string(c.Value) != string(w.Value) {
			t.Errorf("compare %d: %+v", i, c)
		}
	}
	if got.Compare[0].Span.SingleKey() != true || got.Compare[2].Span.End != nil {
		t.Error("spans of the comparisons")
	}
	if _, serializable := (&txnRequest{compare: r.compare}).txn(); serializable {
		t.Error("a transaction that only compares must not be read from one member alone")
	}
	r.failure = ops(opTxn(nil, nil))
	if _, serializable := r.txn(); serializable {
		t.Error("a nested transaction is not a serializable range")
	}
}
