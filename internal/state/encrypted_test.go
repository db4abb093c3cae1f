package state

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

func configText(keys ...string) string {
	var list []string
	for _, k := range keys {
		if k == "identity" {
			list = append(list, `{"identity":{}}`)
			continue
		}
		list = append(list, fmt.Sprintf(`{"aesgcm":{"keys":[{"name":"%s","secret":"c2VjcmV0IGlzIHNlY3VyZQ=="}]}}`, k))
	}
	return `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[` + strings.Join(list, ",") + `]}]}`
}

// unsealTest takes away what sealTest put on: the place.
func unsealTest(_, place string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte(place+"|"))
	if !ok {
		return nil, errors.New("sealed for another place")
	}
	return plain, nil
}

// encryptedBench is a bench at the level that knows encryption.
func encryptedBench(t testing.TB) *bench {
	b := newBench(t)
	sys := policy.NewSystem("x")
	for _, m := range threeMembers() {
		if r := b.do(sys, &MemberPublish{ID: m.ID, FeatureLevel: MaxLevel, ClientURLs: []string{"https://c"}}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if r := b.do(sys, &RaiseLevel{Level: EncryptionLevel}); r.Err != nil {
		t.Fatal(r.Err)
	}
	b.machine.unseal = unsealTest
	return b
}

func declare(b *bench, member uint64, text string) *Encryption {
	b.t.Helper()
	c, err := transform.Parse([]byte(text))
	if err != nil {
		b.t.Fatal(err)
	}
	row, err := json.Marshal(EncryptionRow{Prefix: "/registry/", Config: c.Canonical()})
	if err != nil {
		b.t.Fatal(err)
	}
	key := EncryptionKey(member)
	b.must(&Txn{Space: mvcc.SpaceCA, Success: []Op{
		{Put: &Put{Space: mvcc.SpaceCA, Key: key, Value: append([]byte(string(key)+"|"), row...)}},
		{Put: &Put{Space: mvcc.SpaceCA, Key: EncryptionMarkKey(), Value: []byte("/registry/")}},
	}})
	return b.machine.Encryption()
}

func etcdPut(key, value string) *Put {
	return &Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Value: []byte(value)}
}

func refusedWith(t testing.TB, r Result, want *fault.Error) {
	t.Helper()
	if !errors.Is(r.Err, want) {
		t.Errorf("%v, want %v", r.Err, want)
	}
}

const s1 = "/registry/secrets/a/s1"

func (b *bench) encryptedPut(e *Encryption, key, value string) Result {
	b.t.Helper()
	stored, err := e.Set.Encrypt(rand.Reader, []byte(key), []byte(value))
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(policy.NewSystem("x"), &Encrypted{Epoch: e.Epoch, Request: etcdPut(key, string(stored))})
}

func TestEncryptedWritesFollowTheConfiguration(t *testing.T) {
	b := encryptedBench(t)
	sys := policy.NewSystem("x")
	refusedWith(t, b.do(sys, &Encrypted{Epoch: 5, Request: etcdPut(s1, "v")}), ErrEncryptionMoved)
	b.must(etcdPut(s1, "plain"))
	if b.machine.Encryption() != nil {
		t.Fatal("a configuration from nowhere")
	}
	one := declare(b, 1, configText("key1", "identity"))
	if one == nil || one.Epoch == 0 || one.Set == nil || one.Declared != 1 || one.Same != 1 || one.Member != 1 {
		t.Fatalf("%+v", one)
	}
	for _, late := range []Request{
		etcdPut(s1, "plain"), &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Put: etcdPut(s1, "plain")}}},
		&Encrypted{Epoch: one.Epoch - 1, Request: etcdPut(s1, "plain")},
	} {
		refusedWith(t, b.do(sys, late), ErrEncryptionMoved)
	}
	if r := b.encryptedPut(one, s1, "v"); r.Err != nil {
		t.Fatal(r.Err)
	}
	b.must(&Put{Space: mvcc.SpaceConsulKV, Key: []byte("k"), Value: []byte("another space is no business of it")})

	two := declare(b, 2, configText("key2", "key1"))
	if two.Epoch <= one.Epoch || two.Member != 2 || two.Declared != 2 || two.Same != 1 {
		t.Fatalf("%+v", two)
	}
	refusedWith(t, b.encryptedPut(one, s1, "v"), ErrEncryptionMoved)

	// What the newest member withdraws, the one before it says again; then nobody, and what is encrypted is still not served.
	span := storage.KeySpan(EncryptionKey(2))
	b.must(&Delete{Space: mvcc.SpaceCA, Span: span})
	if e := b.machine.Encryption(); e.Epoch != one.Epoch || e.Member != 1 {
		t.Fatalf("%+v", e)
	}
	b.must(&Delete{Space: mvcc.SpaceCA, Span: storage.KeySpan(EncryptionKey(1))})
	e := b.machine.Encryption()
	if e == nil || e.Epoch != 0 || e.Set == nil {
		t.Fatalf("%+v", e)
	}
	b.must(etcdPut(s1, "plain again"))
	refusedWith(t, b.encryptedPut(one, s1, "v"), ErrEncryptionMoved)
}

// TestEncryptionWithinOneEntry: a configuration counts from the very next request on.
func TestEncryptionWithinOneEntry(t *testing.T) {
	b := encryptedBench(t)
	sys := policy.NewSystem("x")
	key := EncryptionKey(1)
	row := append([]byte(string(key)+"|"), `{"prefix":"/registry","config":`+configText("key1")+`}`...)
	out := b.apply(b.encode(
		Call{sys, etcdPut("k", "v")},
		Call{sys, &Put{Space: mvcc.SpaceCA, Key: EncryptionMarkKey(), Value: []byte("/registry/")}},
		Call{sys, &Put{Space: mvcc.SpaceCA, Key: key, Value: row}},
		Call{sys, etcdPut("k", "v")},
	))
	results := out.Batches[0].Results
	if results[0].Err != nil || !errors.Is(results[3].Err, ErrEncryptionMoved) {
		t.Errorf("%+v", results)
	}
	before := b.machine.Encryption().Epoch
	b.machine.unseal = nil
	b.reopen()
	e := b.machine.Encryption()
	if e == nil || e.Epoch != before || e.Set != nil || e.Why == nil {
		t.Errorf("without the cluster's secret: %+v", e)
	}
	txn := &Txn{Space: mvcc.SpaceEtcd, Compare: []Compare{{Span: storage.KeySpan([]byte("k")), Target: CompareValue, Value: []byte("v")}}}
	refusedWith(t, b.do(sys, &Encrypted{Epoch: before, Request: txn}), ErrEncryptionClosed)
	refusedWith(t, b.do(sys, &Encrypted{Epoch: before, Request: &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Txn: txn}}}}), ErrEncryptionClosed)
	// What compares no value is applied as by the members that can open it.
	absent := Compare{Span: storage.KeySpan([]byte("/registry/secrets/a")), Target: CompareMod}
	blind := &Txn{Space: mvcc.SpaceEtcd, Compare: []Compare{absent}, Success: []Op{{Put: &Put{Space: mvcc.SpaceEtcd, Key: []byte("/registry/secrets/a"), Value: []byte("sealed")}}}}
	if r := b.do(sys, &Encrypted{Epoch: before, Request: blind}); r.Err != nil || !r.Value.(*TxnResult).Succeeded {
		t.Errorf("a transaction without comparison of values: %+v", r)
	}
}

func TestRemovedMemberDeclaresNothing(t *testing.T) {
	b := encryptedBench(t)
	declare(b, 2, configText("key1"))
	if declare(b, 99, configText("key9")).Member != 2 {
		t.Error("a stranger declares")
	}
	data, err := EncodeConf(ConfCommand{
		Proposal: Proposal{Member: 1, Boot: 9, Seq: 5000}, Who: policy.NewSystem("x"), Change: ConfChange{Op: ConfRemove, Member: Member{ID: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.index++
	b.apply(Entry{Index: b.index, Term: 2, Conf: data})
	if e := b.machine.Encryption(); e == nil || e.Epoch != 0 || e.Declared != 0 {
		t.Errorf("%+v", e)
	}
}

func TestValueComparisonsOfEncryptedKeys(t *testing.T) {
	b := encryptedBench(t)
	sys := policy.NewSystem("x")
	e := declare(b, 1, configText("key1", "identity"))
	if r := b.encryptedPut(e, s1, "v1"); r.Err != nil {
		t.Fatal(r.Err)
	}
	sealed := func(key, value string) []byte {
		stored, err := e.Set.Encrypt(rand.Reader, []byte(key), []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	ask := func(c Compare) Result {
		return b.do(sys, &Encrypted{Epoch: e.Epoch, Request: &Txn{Space: mvcc.SpaceEtcd, Compare: []Compare{c}}})
	}
	for want, value := range map[bool]string{true: "v1", false: "v2"} {
		r := ask(Compare{Span: storage.KeySpan([]byte(s1)), Target: CompareValue, Value: sealed(s1, value)})
		if r.Err != nil || r.Value.(*TxnResult).Succeeded != want {
			t.Errorf("%s: %+v", value, r)
		}
		got, err := b.machine.ReadTxn(&Txn{Space: mvcc.SpaceEtcd, Compare: []Compare{
			{Span: storage.KeySpan([]byte(s1)), Target: CompareValue, Value: []byte(value)}}})
		if err != nil || got.Succeeded != want {
			t.Errorf("reading, %s: %+v %v", value, got, err)
		}
	}
	all := storage.Span{Start: []byte("/registry/"), End: []byte("/registry0")}
	refusedWith(t, ask(Compare{Span: all, Target: CompareValue, Value: []byte("v")}), ErrValueRange)
	if r := ask(Compare{Span: all, Target: CompareMod, Result: CompareGreater}); r.Err != nil || !r.Value.(*TxnResult).Succeeded {
		t.Errorf("revisions of a range: %+v", r)
	}
	// A value to compare with that was made for another key, and one that the configuration of today cannot open.
	r := ask(Compare{Span: storage.KeySpan([]byte(s1)), Target: CompareValue, Value: sealed("/registry/secrets/a/s2", "v1")})
	refusedWith(t, r, fault.New(fault.Corrupt, "cipher: message authentication failed"))
	before := b.hash()
	e = declare(b, 1, configText("key2"))
	r = b.do(sys, &Encrypted{Epoch: e.Epoch, Request: &Txn{Space: mvcc.SpaceEtcd,
		Compare: []Compare{{Span: storage.KeySpan([]byte(s1)), Target: CompareValue, Result: CompareNotEqual, Value: sealed(s1, "v1")}},
		Success: []Op{{Put: etcdPut(s1, "x")}}}})
	refusedWith(t, r, fault.New(fault.Corrupt, "no matching key was found for the provided AES transformer"))
	if before == [32]byte{} {
		t.Fatal("no hash")
	}
	if page, err := b.machine.Space(mvcc.SpaceEtcd).Read(b.engine, mvcc.Query{Span: storage.KeySpan([]byte(s1))}); err != nil || page.KVs[0].Version != 1 {
		t.Errorf("a refused transaction left a trace: %+v %v", page, err)
	}
}

func TestEncryptedForm(t *testing.T) {
	inner := etcdPut("k", "k8s:enc:x")
	for _, r := range []*Encrypted{
		{Epoch: 77, Request: inner}, {Request: &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Put: inner}}}}, {Epoch: 1 << 50, Request: inner},
	} {
		data, err := EncodeBatch(Proposal{Member: 1, Boot: 1, Seq: 1}, []Call{{policy.NewSystem("x"), r}})
		if err != nil {
			t.Fatal(err)
		}
		batch, err := DecodeBatch(data)
		if err != nil {
			t.Fatal(err)
		}
		again, err := EncodeBatch(Proposal{Member: 1, Boot: 1, Seq: 1}, []Call{{policy.NewSystem("x"), batch.Calls[0].Request}})
		if err != nil || !bytes.Equal(data, again) || len(data) > 64+160+Size(r) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []Request{
		&Encrypted{Request: &Delete{Space: mvcc.SpaceEtcd}}, &Encrypted{Request: &Encrypted{Request: inner}},
		&Encrypted{Request: &Put{Space: mvcc.SpaceCA, Key: []byte("k")}}, &Encrypted{},
	} {
		if _, err := EncodeBatch(Proposal{Member: 1, Boot: 1, Seq: 1}, []Call{{policy.NewSystem("x"), r}}); err == nil || Validate(r) == nil {
			t.Errorf("%+v is taken", r)
		}
		b := newBench(t)
		if err := b.machine.Authorize(policy.NewSystem("x"), r); !errors.Is(err, ErrPermissionDenied) {
			t.Errorf("%+v is allowed: %v", r, err)
		}
	}
	b := newBench(t)
	refusedWith(t, b.do(policy.NewSystem("x"), &Encrypted{Request: inner}), ErrFeatureLevel)
	if err := b.machine.Authorize(policy.NewHolder("n", policy.Certificate{Issuer: "a", Serial: "1"}, policy.RoleClient, false), &Encrypted{Request: inner}); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("a client writes: %v", err)
	}
}

// TestEncryptedGolden: kind 13 does not change.
func TestEncryptedGolden(t *testing.T) {
	calls := []Call{
		{policy.NewSystem("x"), &Encrypted{Epoch: 77, Request: etcdPut("k", "k8s:enc:")}},
		{policy.NewSystem("x"), &Encrypted{Request: &Txn{Space: mvcc.SpaceEtcd, Success: []Op{{Put: etcdPut("k", "v")}}}}},
	}
	data, err := EncodeBatch(Proposal{Member: 1, Boot: 2, Seq: 3}, calls)
	if err != nil {
		t.Fatal(err)
	}
	const want = "01000000000000000000000000000000010000000000000002030104000001780000000002000d9a01010100016b086b38733a656e633a000d00030100010200016b017600"
	if got := fmt.Sprintf("%x", data); got != want {
		t.Errorf("%s", got)
	}
}
