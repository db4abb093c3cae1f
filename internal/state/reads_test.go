package state

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"pgregory.net/rapid"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// nested returns a transaction of n transactions, each with one range over key.
func nested(key string, n int) *Txn {
	t := &Txn{Space: mvcc.SpaceEtcd}
	for range n {
		t.Success = append(t.Success, Op{Txn: &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Range: &mvcc.Query{Span: storage.KeySpan([]byte(key))}}}}})
	}
	return t
}

// TestNestedRanges: a few kilobytes of nested ranges of one large key must not take gigabytes, on any member.
func TestNestedRanges(t *testing.T) {
	b := discoveryBench(t)
	b.must(&Put{Space: mvcc.SpaceEtcd, Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 1<<20)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	refusedWith(t, b.do(policy.NewSystem("x"), nested("k", 2048)), ErrReadTooMuch)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 512<<20 {
		t.Errorf("a refused transaction took %d MB", took>>20)
	}
	wide := &Txn{Space: mvcc.SpaceEtcd, Success: make([]Op, 200)}
	for i := range wide.Success {
		wide.Success[i] = Op{Range: &mvcc.Query{Span: storage.Span{Start: []byte("a")}}}
	}
	if _, err := b.machine.ReadTxn(wide); !errors.Is(err, ErrReadTooMuch) {
		t.Errorf("a transaction that only reads: %v", err)
	}
	wide.Success = wide.Success[:100]
	if r, err := b.machine.ReadTxn(wide); err != nil || len(r.Results) != 100 || len(r.Results[99].Range.KVs) != 1 {
		t.Errorf("what has room is refused: %v", err)
	}
	if r := b.do(policy.NewSystem("x"), nested("k", 100)); r.Err != nil || len(r.Value.(*TxnResult).Results[99].Txn.Results[0].Range.KVs) != 1 {
		t.Errorf("what has room is refused: %v", r.Err)
	}
	// Of three that would have room alone, an entry takes two.
	out := b.apply(b.encode(Call{policy.NewSystem("x"), nested("k", 120)}, Call{policy.NewSystem("x"), nested("k", 120)},
		Call{policy.NewSystem("x"), nested("k", 120)}, Call{policy.NewSystem("x"), nested("k", 5)},
		Call{policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{{Verb: catalog.KVGetOrEmpty, Pair: &catalog.Pair{Key: "a"}}}}},
		Call{policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{kvSet("a", "1")}}}))
	for i, want := range []error{nil, nil, ErrEntryReadTooMuch, nil, ErrEntryReadTooMuch, nil} {
		if err := out.Batches[0].Results[i].Err; !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("request %d of the entry: %v", i, err)
		}
	}
	if r := b.do(policy.NewSystem("x"), nested("k", 120)); r.Err != nil {
		t.Errorf("the next entry: %v", r.Err)
	}
}

// TestReadsOfAnOlderLevel: a cluster with older members decides as they do.
func TestReadsOfAnOlderLevel(t *testing.T) {
	b := newBench(t)
	b.machine.limits = readLimits{100, 100}
	b.must(&Put{Space: mvcc.SpaceEtcd, Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 200)})
	if r := b.do(policy.NewSystem("x"), nested("k", 3)); r.Err != nil {
		t.Error(r.Err)
	}
	if r := b.do(policy.NewSystem("x"), &Delete{Space: mvcc.SpaceEtcd, Span: storage.KeySpan([]byte("k")), PrevKV: true}); r.Err != nil {
		t.Error(r.Err)
	}
}

// TestReadLimits holds a machine with little room against one with much, under random transactions: an answer is the same
// and fits, or the request is refused and leaves no trace; what fits without counting anything twice is not refused.
func TestReadLimits(t *testing.T) {
	refusals, answers := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		tight, wide := discoveryBench(t), discoveryBench(t)
		limit := rapid.SampledFrom([]int64{100, 250, 400, 1000}).Draw(rt, "limit")
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			r := drawRequest(rt, tight.machine.Space(mvcc.SpaceEtcd).Revision())
			if _, ok := r.(*AlarmChange); ok || Validate(r) != nil {
				continue
			}
			tight.machine.limits = readLimits{limit, 10 * limit}
			before := tight.machine.Space(mvcc.SpaceEtcd).Revision()
			out := tight.apply(tight.encode(Call{policy.NewSystem("x"), r}))
			got := out.Batches[0].Results[0]
			if errors.Is(got.Err, ErrReadTooMuch) {
				refusals++
				if out.Events != nil || tight.machine.Space(mvcc.SpaceEtcd).Revision() != before {
					rt.Fatalf("a refused request left a trace")
				}
				tight.machine.limits = readLimits{MaxTxnRead, MaxEntryRead}
				got = tight.do(policy.NewSystem("x"), r)
			} else if n := answerBytes(got.Value); n > limit {
				rt.Fatalf("%+v answers %d bytes, the limit is %d", r, n, limit)
			} else if n > 0 {
				answers++
			}
			if want := wide.do(policy.NewSystem("x"), r); !reflect.DeepEqual(got, want) {
				rt.Fatalf("%+v\nanswers   %+v\nshould be %+v", r, got, want)
			}
		}
	})
	if refusals == 0 || answers == 0 {
		t.Errorf("%d refusals, %d answers: the test has lost its teeth", refusals, answers)
	}
}

// answerBytes counts what a Txn or Delete answers.
func answerBytes(value any) int64 {
	sum := int64(0)
	switch v := value.(type) {
	case *DeleteResult:
		sum = pageBytes(v.Prev)
	case *TxnResult:
		for _, r := range v.Results {
			if r.Range != nil {
				sum += pageBytes(r.Range.KVs)
			}
			if r.Put != nil && r.Put.Prev != nil {
				sum += kvBytes(r.Put.Prev)
			}
			if r.Delete != nil {
				sum += pageBytes(r.Delete.Prev)
			}
			if r.Txn != nil {
				sum += answerBytes(r.Txn)
			}
		}
	}
	return sum
}

// TestKeepWhatIsGone: a delete without upper end, then a put that keeps the value of a key that the delete took, is
// refused before anything is done, however the two are nested; it used to end every member.
func TestKeepWhatIsGone(t *testing.T) {
	b := newBench(t)
	for _, text := range []string{
		"txn then(del a..; put k ignore-value)", "txn then(del a..; txn then(put k ignore-lease))",
		"txn then(txn then(del a..); put k ignore-value)", "txn then(put z 1; txn then(del a..); txn then(put k ignore-value))",
	} {
		b.must(parse("put k 1").request())
		rev := b.machine.Space(mvcc.SpaceEtcd).Revision()
		r := parse(text).request()
		if f := Validate(r); f != nil {
			t.Fatalf("%s is refused as it is written: %v", text, f)
		}
		refusedWith(t, b.do(policy.NewSystem("x"), r), ErrKeyNotFound)
		if b.machine.Space(mvcc.SpaceEtcd).Revision() != rev {
			t.Errorf("%s left a trace", text)
		}
	}
	for i, text := range []string{"txn then(put k ignore-value; del a..)", "txn then(del l..; put k ignore-value)", "txn then(del a..; put k 2)"} {
		b.must(parse("put k 1").request())
		if r := b.do(policy.NewSystem("x"), parse(text).request()); r.Err != nil {
			t.Error(fmt.Sprint(i, text), r.Err)
		}
	}
}
