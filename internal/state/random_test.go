package state

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

func drawKey(t *rapid.T) []byte {
	return []byte(rapid.SampledFrom([]string{"a", "b", "ba", "c", "d", "e\x00", "\x00", "\xff\xff"}).Draw(t, "key"))
}

func drawSpan(t *rapid.T) storage.Span {
	start := drawKey(t)
	switch rapid.IntRange(0, 3).Draw(t, "span") {
	case 0, 1:
		return storage.KeySpan(start)
	case 2:
		return storage.Span{Start: start}
	}
	return storage.Span{Start: start, End: drawKey(t)}
}

func drawPut(t *rapid.T) *Put {
	p := &Put{Space: mvcc.SpaceEtcd, Key: drawKey(t), PrevKV: rapid.Bool().Draw(t, "prev")}
	if p.IgnoreValue = rapid.IntRange(0, 7).Draw(t, "ignore value") == 0; !p.IgnoreValue {
		p.Value = []byte(rapid.SampledFrom([]string{"", "1", "2", "long value"}).Draw(t, "value"))
	}
	if p.IgnoreLease = rapid.IntRange(0, 7).Draw(t, "ignore lease") == 0; !p.IgnoreLease {
		p.Lease = rapid.SampledFrom([]int64{0, 0, 0, 1, 2, -3}).Draw(t, "lease")
	}
	return p
}

func drawQuery(t *rapid.T) *mvcc.Query {
	return &mvcc.Query{
		Span: drawSpan(t), Revision: rapid.SampledFrom([]int64{0, 0, 0, 2, 5, 9, 20, 1000, -1}).Draw(t, "revision"),
		Limit: rapid.SampledFrom([]int64{0, 0, 1, 2}).Draw(t, "limit"), CountOnly: rapid.IntRange(0, 5).Draw(t, "count") == 0,
		Target:         mvcc.SortTarget(rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 4}).Draw(t, "target")),
		Order:          mvcc.SortOrder(rapid.IntRange(0, 2).Draw(t, "order")),
		MinModRevision: rapid.SampledFrom([]int64{0, 0, 0, 4}).Draw(t, "min"), MaxCreateRevision: rapid.SampledFrom([]int64{0, 0, 0, 6}).Draw(t, "max"),
	}
}

func drawTxn(t *rapid.T, depth int) *Txn {
	x := &Txn{Space: mvcc.SpaceEtcd}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		c := Compare{Span: drawSpan(t), Target: CompareTarget(rapid.IntRange(0, 4).Draw(t, "target")), Result: CompareResult(rapid.IntRange(0, 3).Draw(t, "result"))}
		if c.Target == CompareValue {
			c.Value = []byte(rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value"))
		} else {
			c.Number = rapid.SampledFrom([]int64{0, 1, 2, 5}).Draw(t, "number")
		}
		x.Compare = append(x.Compare, c)
	}
	for _, ops := range []*[]Op{&x.Success, &x.Failure} {
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			var op Op
			switch rapid.IntRange(0, 4+depth).Draw(t, "op") {
			case 0, 1:
				op.Put = drawPut(t)
			case 2:
				op.Delete = &Delete{Space: mvcc.SpaceEtcd, Span: drawSpan(t), PrevKV: rapid.Bool().Draw(t, "prev")}
			case 3:
				op.Range = drawQuery(t)
			default:
				if depth >= 2 {
					op.Range = drawQuery(t)
				} else {
					op.Txn = drawTxn(t, depth+1)
				}
			}
			*ops = append(*ops, op)
		}
	}
	return x
}

func drawRequest(t *rapid.T, revision int64) Request {
	switch rapid.IntRange(0, 19).Draw(t, "request") {
	case 0, 1, 2, 3, 4, 5:
		return drawPut(t)
	case 6, 7, 8:
		return &Delete{Space: mvcc.SpaceEtcd, Span: drawSpan(t), PrevKV: rapid.Bool().Draw(t, "prev")}
	case 9:
		return &Compact{Space: mvcc.SpaceEtcd, Revision: max(revision+rapid.Int64Range(-6, 2).Draw(t, "compact"), 0)}
	case 10, 11:
		return &LeaseGrant{ID: rapid.SampledFrom([]int64{1, 2, -3}).Draw(t, "lease"), TTL: 60}
	case 12:
		return &LeaseRevoke{IDs: []int64{rapid.SampledFrom([]int64{1, 2, -3}).Draw(t, "lease")}}
	case 13:
		return &LeaseRevoke{IDs: []int64{2, 1}, Expired: true}
	case 14:
		return &AlarmChange{Raise: rapid.IntRange(0, 3).Draw(t, "raise") == 0, Alarm: Alarm{Member: 1, Kind: AlarmNoSpace}}
	default:
		return drawTxn(t, 0)
	}
}

// TestRandom holds machines against the model and against each other. One machine gets each entry alone and is reopened and
// swept now and then, another gets many at once, a third starts from a snapshot stream of the first.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		one, many, naive := newBench(t), newBench(t), newModel()
		var pending []Entry
		var want []Result
		events := map[int64][]mvcc.Event{}
		flush := func() {
			if len(pending) == 0 {
				return
			}
			var got []Result
			out := many.apply(pending...)
			for _, b := range out.Batches {
				got = append(got, b.Results...)
			}
			for _, re := range out.Events[mvcc.SpaceEtcd] {
				if fmt.Sprint(re.Events) != fmt.Sprint(events[re.Revision]) {
					rt.Fatalf("events of %d: %v, alone %v", re.Revision, re.Events, events[re.Revision])
				}
			}
			compareResults(rt, "grouped", got, want)
			pending, want = nil, nil
		}
		for range rapid.IntRange(1, 25).Draw(rt, "entries") {
			var list []Call
			var results []Result
			for range rapid.IntRange(1, 4).Draw(rt, "requests") {
				r := drawRequest(rt, naive.revision)
				list = append(list, Call{policy.NewSystem("test"), r})
				results = append(results, naive.apply(r))
			}
			entry := one.encode(list...)
			out := one.apply(entry)
			compareResults(rt, "alone", out.Batches[0].Results, results)
			for _, re := range out.Events[mvcc.SpaceEtcd] {
				events[re.Revision] = re.Events
			}
			pending, want = append(pending, entry), append(want, results...)
			switch rapid.IntRange(0, 9).Draw(rt, "then") {
			case 0, 1:
				flush()
			case 2:
				one.reopen()
			case 3:
				sweep(rt, one)
			case 4:
				copied := one.copy()
				if copied.hash() != one.hash() {
					rt.Fatal("a copy has another hash")
				}
				one.close()
				one = copied
			}
			checkReaders(rt, one, naive)
		}
		flush()
		if one.hash() != many.hash() {
			rt.Fatalf("hashes differ after %d entries", one.machine.Applied())
		}
		many.reopen()
		if one.hash() != many.hash() {
			rt.Fatal("hashes differ after reopening")
		}
		one.close()
		many.close()
	})
}

func compareResults(t *rapid.T, name string, got, want []Result) {
	if len(got) != len(want) {
		t.Fatalf("%s: %d results, want %d", name, len(got), len(want))
	}
	for i := range got {
		if err := same(got[i], want[i]); err != nil {
			t.Fatalf("%s, request %d: %v", name, i, err)
		}
	}
}

func sweep(t *rapid.T, b *bench) {
	before := b.hash()
	for {
		more, err := b.machine.Space(mvcc.SpaceEtcd).Sweep(b.engine, 3)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
	}
	if b.hash() != before {
		t.Fatal("sweeping changed the hash")
	}
}

// checkReaders reads everything at the newest revision, at the oldest and without the log in a transaction.
func checkReaders(t *rapid.T, b *bench, naive *model) {
	all := storage.Span{Start: []byte{0}}
	space := b.machine.Space(mvcc.SpaceEtcd)
	if space.Revision() != naive.revision || space.CompactRevision() != naive.compacted {
		t.Fatalf("revision %d compacted %d, want %d %d", space.Revision(), space.CompactRevision(), naive.revision, naive.compacted)
	}
	for _, rev := range []int64{0, max(naive.compacted, 1)} {
		q := mvcc.Query{Span: all, Revision: rev}
		page, err := space.Read(b.engine, q)
		if err != nil {
			t.Fatal(err)
		}
		want := naive.begin().find(&q)
		if err := same(Result{Value: &page}, Result{Value: want}); err != nil {
			t.Fatalf("read at %d: %v", rev, err)
		}
	}
	x := drawTxn(t, 3)
	for _, ops := range []*[]Op{&x.Success, &x.Failure} {
		*ops = slices.DeleteFunc(*ops, func(op Op) bool { return op.Range == nil })
	}
	value, err := naive.txn(x)
	got, gotErr := b.machine.ReadTxn(x)
	want := Result{Value: value, Err: err}
	if err := same(Result{Value: got, Err: gotErr}, want); err != nil {
		t.Fatalf("read transaction: %v", err)
	}
}

// copy streams the machine into a fresh engine.
func (b *bench) copy() *bench {
	b.t.Helper()
	var stream bytes.Buffer
	info, err := b.machine.WriteSnapshot(&stream)
	if err != nil {
		b.t.Fatal(err)
	}
	c := &bench{t: b.t, fs: vfs.NewMem(), seq: b.seq, time: b.time}
	c.engine = openEngine(b.t, c.fs)
	got, err := ReadSnapshot(&stream, c.engine)
	if err != nil {
		b.t.Fatal(err)
	}
	if got.Index != b.machine.Applied() || fmt.Sprint(got) != fmt.Sprint(info) || stream.Len() != 0 {
		b.t.Fatalf("snapshot info %v, want %v; %d bytes left", got, info, stream.Len())
	}
	c.open()
	b.t.Cleanup(c.close)
	return c
}
