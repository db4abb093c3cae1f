package state

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// sampleCalls holds every kind of request with every field set somewhere, in spellings that survive the codec.
func sampleCalls() []Call {
	alice := policy.NewHolder("alice", policy.Certificate{Issuer: "ab12", Serial: "01"}, policy.RoleClient, true).WithUser("alice", 300, true)
	sys := policy.NewSystem("expiry")
	key, all := storage.KeySpan([]byte("k")), storage.Span{Start: []byte{0}}
	some := storage.Span{Start: []byte("a"), End: []byte("c")}
	nothing := storage.Span{Start: []byte("a"), End: []byte{}}
	return []Call{
		{alice, &Put{Space: mvcc.SpaceEtcd, Key: []byte("k"), Value: []byte("v"), Lease: -5, PrevKV: true}},
		{alice, &Put{Space: mvcc.SpaceCA, Key: []byte("k"), IgnoreValue: true, IgnoreLease: true}},
		{sys, &Delete{Space: mvcc.SpaceEtcd, Span: some, PrevKV: true}},
		{alice, &Delete{Space: mvcc.SpaceSystem, Span: nothing}},
		{alice, &Txn{
			Space: mvcc.SpaceEtcd,
			Compare: []Compare{
				{Span: key, Target: CompareValue, Result: CompareNotEqual, Value: []byte("x")},
				{Span: all, Target: CompareLease, Result: CompareLess, Number: -9},
			},
			Success: []Op{
				{Range: &mvcc.Query{
					Span: some, Revision: -1, Limit: 7, MaxBytes: 8, KeysOnly: true, CountOnly: true, NoCount: true,
					Target: mvcc.SortByValue, Order: mvcc.SortDescend,
					MinModRevision: 1, MaxModRevision: 2, MinCreateRevision: 3, MaxCreateRevision: 4,
				}},
				{Put: &Put{Space: mvcc.SpaceEtcd, Key: []byte("p"), Value: []byte("q")}},
				{},
			},
			Failure: []Op{
				{Delete: &Delete{Space: mvcc.SpaceEtcd, Span: all}},
				{Txn: &Txn{Space: mvcc.SpaceEtcd, Failure: []Op{{Range: &mvcc.Query{Span: key}}}}},
			},
		}},
		{policy.Principal{}, &Compact{Space: mvcc.SpaceConsulKV, Revision: 1 << 40}},
		{alice, &LeaseGrant{ID: -1, TTL: 9}},
		{sys, &LeaseRevoke{IDs: []int64{1, -2, 3}, Expired: true}},
		{sys, &LeaseCheckpoint{Remaining: map[int64]int64{-7: 1, 9: 2, 300: 3}}},
		{alice, &AuthChange{Op: AuthEnable}},
		{alice, &AuthChange{Op: UserAdd, User: "u", Hash: []byte("h")}},
		{alice, &AuthChange{Op: UserAdd, User: "u", NoPassword: true}},
		{alice, &AuthChange{Op: RoleGrant, Role: "r", Permission: Permission{Span: some, Read: true, Write: true}}},
		{alice, &AlarmChange{Raise: true, Alarm: Alarm{Member: 3, Kind: AlarmCorrupt}}},
		{sys, &MemberPublish{ID: 1 << 63, Name: "n", ClientURLs: []string{"https://c:1", ""}, FeatureLevel: 4}},
		{sys, &RaiseLevel{Level: 2}},
	}
}

func sampleConf() ConfCommand {
	return ConfCommand{
		Proposal: Proposal{Member: 1, Boot: 2, Seq: 3}, Who: policy.NewAnonymous(), MaxLearners: 2, Strict: true,
		Change: ConfChange{Op: ConfAdd, Member: Member{ID: 5, Name: "n", PeerURLs: []string{"http://p"}, ClientURLs: []string{"http://c"}, Learner: true}},
	}
}

func sampleBatch(t testing.TB) []byte {
	data, err := EncodeBatch(Proposal{Member: 1 << 60, Boot: 42, Seq: 700}, sampleCalls())
	if err != nil {
		t.Fatal(err)
	}
	StampBatch(data, 1_790_000_000_123)
	return data
}

func (b Batch) calls() []Call {
	list := make([]Call, len(b.Calls))
	for i, c := range b.Calls {
		list[i] = Call{Who: b.Principals[c.Who], Request: c.Request}
	}
	return list
}

func TestBatchRoundTrip(t *testing.T) {
	data := sampleBatch(t)
	batch, err := DecodeBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	if batch.Proposal != (Proposal{Member: 1 << 60, Boot: 42, Seq: 700}) || batch.Time != 1_790_000_000_123 || len(batch.Principals) != 3 {
		t.Errorf("%+v", batch)
	}
	want := sampleCalls()
	for i, c := range batch.calls() {
		if !reflect.DeepEqual(c, want[i]) {
			t.Errorf("request %d:\n%#v\nwant\n%#v", i, c.Request, want[i].Request)
		}
	}
	conf, err := EncodeConf(sampleConf())
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeConf(conf); err != nil || !reflect.DeepEqual(back, sampleConf()) {
		t.Errorf("%+v, %v", back, err)
	}
}

// TestGolden holds the format still: these bytes are in the logs of clusters.
func TestGolden(t *testing.T) {
	conf, err := EncodeConf(sampleConf())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []struct {
		file string
		data []byte
	}{{"testdata/batch-v1.hex", sampleBatch(t)}, {"testdata/conf-v1.hex", conf}} {
		text, err := os.ReadFile(g.file)
		if err != nil {
			if os.Getenv("HOLDFAST_WRITE_GOLDEN") == "" {
				t.Fatal(err)
			}
			if err := os.WriteFile(g.file, []byte(hex.Dump(g.data)), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if hex.Dump(g.data) != string(text) {
			t.Errorf("%s: the format has changed; now\n%s", g.file, hex.Dump(g.data))
		}
	}
}

// TestDecodeDamaged cuts and bends a good batch at each byte: no panic, and nothing accepted that is not its own form.
func TestDecodeDamaged(t *testing.T) {
	data := sampleBatch(t)
	for n := range data {
		if _, err := DecodeBatch(data[:n]); !errors.Is(err, ErrDecode) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := DecodeBatch(append(bytes.Clone(data), 0)); !errors.Is(err, ErrDecode) {
		t.Errorf("one byte more: %v", err)
	}
	for i := range data {
		for _, mask := range []byte{1, 0x80, 0xff} {
			bent := bytes.Clone(data)
			bent[i] ^= mask
			checkCanonical(t, bent)
		}
	}
}

func checkCanonical(t *testing.T, data []byte) {
	t.Helper()
	batch, err := DecodeBatch(data)
	if err != nil {
		return
	}
	again, err := EncodeBatch(batch.Proposal, batch.calls())
	if err != nil {
		t.Fatalf("%x decodes but does not encode: %v", data, err)
	}
	StampBatch(again, batch.Time)
	if !bytes.Equal(again, data) {
		t.Fatalf("another form:\n%x\n%x", data, again)
	}
	for i, c := range batch.Calls {
		if n := Size(c.Request); n < 0 {
			t.Fatalf("request %d: size %d", i, n)
		}
		if Validate(c.Request) == nil {
			if x, ok := c.Request.(*Txn); ok && CheckOps(x, 1<<20) != nil {
				t.Fatal("a valid transaction has more operations than bytes")
			}
		}
	}
}

func TestSizeIsAnUpperBound(t *testing.T) {
	for _, c := range sampleCalls() {
		b, err := appendRequest(nil, c.Request)
		if err != nil {
			t.Fatal(err)
		}
		if len(b)+2 > Size(c.Request) {
			t.Errorf("%T takes %d bytes, Size says %d", c.Request, len(b)+2, Size(c.Request))
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	p := Proposal{Member: 1, Seq: 1}
	deep := &Txn{Space: mvcc.SpaceEtcd}
	for range maxDepth {
		deep = &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Txn: deep}}}
	}
	two := &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Put: &Put{Key: []byte("k")}, Range: &mvcc.Query{Span: storage.KeySpan([]byte("k"))}}}}
	for name, r := range map[string]Request{"nil": nil, "deep": deep, "two": two} {
		if _, err := EncodeBatch(p, []Call{{Request: r}}); !errors.Is(err, ErrEncode) {
			t.Errorf("%s: %v", name, err)
		}
		if r != nil && Validate(r) == nil {
			t.Errorf("%s: Validate passes what has no encoding", name)
		}
	}
	if _, err := EncodeBatch(Proposal{Member: 1}, nil); !errors.Is(err, ErrEncode) {
		t.Error("a proposal without a sequence has an encoding")
	}
	if _, err := EncodeConf(ConfCommand{}); !errors.Is(err, ErrEncode) {
		t.Error("a change without a proposal has an encoding")
	}
}

// TestManyPrincipals goes through both ways to find a principal in the table.
func TestManyPrincipals(t *testing.T) {
	var calls []Call
	for i := range 40 {
		who := policy.NewHolder(strings.Repeat("x", i%20), policy.Certificate{}, policy.RoleClient, false)
		calls = append(calls, Call{who, &RaiseLevel{Level: uint32(i)}})
	}
	data, err := EncodeBatch(Proposal{Member: 1, Seq: 1}, calls)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := DecodeBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(batch.Principals) != 20 || !reflect.DeepEqual(batch.calls(), calls) {
		t.Errorf("%d principals", len(batch.Principals))
	}
}

// TestPrincipalTwice: the table holds each principal once, in the order of their first requests.
func TestPrincipalTwice(t *testing.T) {
	for name, build := range map[string]func(who []byte) []byte{
		"twice": func(who []byte) []byte { return append([]byte{2}, append(bytes.Clone(who), who...)...) },
		"unused": func(who []byte) []byte {
			return append([]byte{2}, append(bytes.Clone(who), policy.NewSystem("x").AppendBinary(nil)...)...)
		},
		"none": func([]byte) []byte { return []byte{0} },
	} {
		data := append(make([]byte, timeEnd), appendProposal(nil, Proposal{Member: 1, Seq: 1})...)
		data[0] = batchVersion
		data = append(data, build(policy.NewAnonymous().AppendBinary(nil))...)
		data = append(data, 1, 0, byte(kindRaiseLevel), 1)
		if _, err := DecodeBatch(data); !errors.Is(err, ErrDecode) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDecodeAllocates bounds the memory that a few bytes can ask for.
func TestDecodeAllocates(t *testing.T) {
	head := append(make([]byte, timeEnd), bytes.Repeat([]byte{1}, 17)...)
	head[0] = batchVersion
	for _, tail := range []string{
		"\x00\xff\xff\xff\xff\x0f",                 // calls
		"\xff\xff\xff\xff\x0f",                     // principals
		"\x00\x01\x00\x01\x01\x00\xff\xff\xff\x7f", // a key
	} {
		data := append(bytes.Clone(head), tail...)
		allocated := testing.AllocsPerRun(10, func() {
			if _, err := DecodeBatch(data); err == nil {
				t.Error("accepted")
			}
		})
		if allocated > 10 {
			t.Errorf("%v allocations for %x", allocated, tail)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(sampleBatch(f))
	for _, c := range sampleCalls() {
		data, err := EncodeBatch(Proposal{Member: 1, Seq: 1}, []Call{c, c})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { fuzztest.Bounded(t, len(data), func() { checkCanonical(t, data) }) })
}

func FuzzDecodeConf(f *testing.F) {
	data, err := EncodeConf(sampleConf())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeConf(data)
		if err != nil {
			return
		}
		if again, err := EncodeConf(c); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("another form: %v\n%x\n%x", err, data, again)
		}
	})
}

func FuzzRows(f *testing.F) {
	u := &user{name: "u", hash: []byte("h"), since: 3, roles: []string{"a", "b"}}
	f.Add(u.encode())
	f.Add((&role{name: "r", perms: []Permission{{Span: storage.KeySpan([]byte("k")), Read: true}}}).encode())
	f.Add((&window{high: 2000}).append(nil))
	f.Add(memberRow{Member: sampleConf().Change.Member, level: 1}.encode())
	f.Add(appliedRow{index: 9, term: 3, time: -1}.encode())
	f.Fuzz(func(t *testing.T, value []byte) {
		if u, err := decodeUser("u", value); err == nil && !bytes.Equal(u.encode(), value) {
			t.Errorf("user %x", value)
		}
		if r, err := decodeRole("r", value); err == nil && !bytes.Equal(r.encode(), value) {
			t.Errorf("role %x", value)
		}
		if m, err := decodeMember(value); err == nil && !bytes.Equal(m.encode(), value) {
			t.Errorf("member %x", value)
		}
		if a, err := decodeApplied(value); err == nil && !bytes.Equal(a.encode(), value) {
			t.Errorf("applied %x", value)
		}
		if c, err := decodeCluster(value); err == nil && !bytes.Equal(c.encode(), value) {
			t.Errorf("cluster %x", value)
		}
		if a, err := decodeAuth(value); err == nil && !bytes.Equal(a.encode(), value) {
			t.Errorf("auth %x", value)
		}
		key := make([]byte, 16)
		if w, err := decodeWindow(key, value); err == nil {
			if again, err := decodeWindow(key, w.append(nil)); err != nil || *again != *w {
				t.Errorf("window %x", value)
			}
		}
		if i, err := decodeInfo(value); err == nil && !bytes.Equal(i.append(nil), value) {
			t.Errorf("info %x", value)
		}
	})
}
