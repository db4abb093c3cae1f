package state

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

func TestBootstrap(t *testing.T) {
	e := openEngine(t, vfs.NewMem())
	defer e.Close()
	if _, err := Open(e, Options{}); !errors.Is(err, ErrNotBootstrapped) {
		t.Errorf("open of a fresh engine: %v", err)
	}
	if ok, err := Bootstrapped(e); ok || err != nil {
		t.Errorf("bootstrapped %v, %v", ok, err)
	}
	for name, err := range map[string]error{
		"no cluster":   Bootstrap(e, 0, threeMembers(), FirstLevel, true),
		"no member":    Bootstrap(e, 1, nil, FirstLevel, true),
		"no voter":     Bootstrap(e, 1, []Member{{ID: 1, PeerURLs: []string{"a"}, Learner: true}}, FirstLevel, true),
		"twice":        Bootstrap(e, 1, append(threeMembers(), threeMembers()...), FirstLevel, true),
		"no peer URL":  Bootstrap(e, 1, []Member{{ID: 1}}, FirstLevel, true),
		"level beyond": Bootstrap(e, 1, threeMembers(), MaxLevel+1, true),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := Bootstrap(e, 1, threeMembers(), FirstLevel, false); err != nil {
		t.Fatal(err)
	}
	if err := Bootstrap(e, 1, threeMembers(), FirstLevel, false); !errors.Is(err, ErrBootstrapped) {
		t.Errorf("a second time: %v", err)
	}
	m, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	put := &Put{Space: mvcc.SpaceCA, Key: []byte("secret/gossip"), Value: []byte("wrapped")}
	if err := m.Authorize(policy.NewSystem("test"), put); !errors.Is(err, ErrSecretsRefused) {
		t.Errorf("a secret in a cluster without authenticated peers: %v", err)
	}
	if _, ok := m.Member(2); !ok || m.Secure() || m.Space(99) != nil || m.Space(0) != nil {
		t.Error("views")
	}
}

// TestBrokenLog: what cannot be applied ends the machine without a trace, and it says so again.
func TestBrokenLog(t *testing.T) {
	future := func(b *bench) Entry {
		e := b.encode(Call{policy.NewSystem("x"), parse("put a 1").request()})
		e.Data[0] = batchVersion + 1
		return e
	}
	for name, c := range map[string]struct {
		bend func(b *bench) Entry
		want error
	}{
		"gap": {func(b *bench) Entry {
			b.index++
			return b.encode(Call{policy.NewSystem("x"), parse("put a 1").request()})
		}, ErrGap},
		"newer batch":  {future, ErrDecode},
		"damaged":      {func(b *bench) Entry { b.index++; return Entry{Index: b.index, Data: []byte("nonsense")} }, ErrDecode},
		"damaged conf": {func(b *bench) Entry { b.index++; return Entry{Index: b.index, Conf: []byte{1}} }, ErrDecode},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.must(parse("put k v").request())
			before := b.hash()
			good := b.encode(Call{policy.NewSystem("x"), parse("put z 1").request()})
			if _, err := b.machine.Apply([]Entry{good, c.bend(b)}); !errors.Is(err, c.want) {
				t.Fatalf("%v", err)
			}
			if _, err := b.machine.Apply([]Entry{good}); !errors.Is(err, ErrBroken) || !errors.Is(err, c.want) {
				t.Errorf("after it: %v", err)
			}
			if b.hash() != before || b.machine.Applied() != 1 {
				t.Error("a failed Apply left a trace")
			}
			b.reopen()
			b.apply(good)
		})
	}
}

func TestLevelUnknown(t *testing.T) {
	b := newBench(t)
	if _, err := Open(b.engine, Options{MaxLevel: FirstLevel}); err != nil {
		t.Fatal(err)
	}
	for _, m := range threeMembers() {
		b.must(&MemberPublish{ID: m.ID, Name: "n", FeatureLevel: 2})
	}
	b.machine.known = 2
	if got := b.must(&RaiseLevel{Level: 2}).(*PublishResult); got.Level != 2 || b.machine.FeatureLevel() != 2 || b.machine.LowestLevel() != 2 {
		t.Errorf("%+v", got)
	}
	if _, err := Open(b.engine, Options{MaxLevel: FirstLevel}); !errors.Is(err, ErrLevelUnknown) {
		t.Errorf("an older build opens it: %v", err)
	}
	c := newBench(t)
	for _, m := range threeMembers() {
		c.must(&MemberPublish{ID: m.ID, Name: "n", FeatureLevel: 2})
	}
	c.machine.known = FirstLevel
	entry := c.encode(Call{policy.NewSystem("x"), &RaiseLevel{Level: 2}})
	if _, err := c.machine.Apply([]Entry{entry}); !errors.Is(err, ErrLevelUnknown) {
		t.Errorf("an older build goes on: %v", err)
	}
}

// TestEntriesWithoutCalls: entries of raft's own and batches replayed move the index only.
func TestEntriesWithoutCalls(t *testing.T) {
	b := newBench(t)
	put := b.encode(Call{policy.NewSystem("x"), parse("put a 1").request()})
	if out := b.apply(put, Entry{Index: 2, Term: 3}); out.Applied != 2 || len(out.Batches) != 1 {
		t.Errorf("%+v", out)
	}
	if out := b.apply(put, Entry{Index: 2, Term: 3}); out.Applied != 2 || len(out.Batches) != 0 {
		t.Errorf("replayed: %+v", out)
	}
	if out := b.apply(); out.Applied != 2 {
		t.Errorf("nothing: %+v", out)
	}
	value, ok, err := b.engine.Durable(AppliedKey())
	if err != nil {
		t.Fatal(err)
	}
	if index, _, err := DecodeApplied(value); ok && (err != nil || index > 2) {
		t.Errorf("durable %d, %v", index, err)
	}
	if err := b.engine.Flush(); err != nil {
		t.Fatal(err)
	}
	if value, _, err = b.engine.Durable(AppliedKey()); err != nil {
		t.Fatal(err)
	}
	if index, term, err := DecodeApplied(value); index != 2 || term != 3 || err != nil {
		t.Errorf("durable after a flush: %d %d %v", index, term, err)
	}
}

func TestTimeNeverDecreases(t *testing.T) {
	b := newBench(t)
	b.time = 5000
	first := b.encode(Call{policy.NewSystem("x"), parse("put a 1").request()})
	b.time = 100
	second := b.encode(Call{policy.NewSystem("x"), parse("put a 1").request()})
	if out := b.apply(first); out.Time != 5001 {
		t.Errorf("time %d", out.Time)
	}
	b.reopen()
	if out := b.apply(second); out.Time != 5001 {
		t.Errorf("time went back to %d", out.Time)
	}
}

// TestRemovedMember: what a removed member had proposed is dropped, and nothing of it is remembered.
func TestRemovedMember(t *testing.T) {
	b := newBench(t)
	from2 := func(seq uint64) Entry {
		data, err := EncodeBatch(Proposal{Member: 2, Boot: 1, Seq: seq}, []Call{{policy.NewSystem("x"), parse("put late 1").request()}})
		if err != nil {
			t.Fatal(err)
		}
		b.index++
		return Entry{Index: b.index, Term: 1, Data: data}
	}
	if out := b.apply(from2(1)); len(out.Batches) != 1 {
		t.Fatal("refused a member")
	}
	b.apply(confEntry(b, "admin remove 2"))
	if out := b.apply(from2(2)); len(out.Batches) != 0 {
		t.Error("a removed member still writes")
	}
	err := readRows(b.engine, tableWindow, func(rest, _ []byte) error {
		if rest[7] == 2 {
			return errors.New("a window of a removed member")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if !b.machine.Removed(2) || b.machine.Removed(1) {
		t.Error("Removed")
	}
	seq := b.seq
	first := confEntry(b, "admin update 3 url=http://x")
	b.seq = seq
	again := confEntry(b, "admin update 3 url=http://x")
	out := b.apply(first, again)
	if out.Confs[0].Err != nil || !errors.Is(out.Confs[1].Err, ErrDuplicate) || out.Confs[1].Proposal != (Proposal{}) {
		t.Errorf("%+v", out.Confs)
	}
}

// TestCompareManyKeys compares over more keys than are read at once.
func TestCompareManyKeys(t *testing.T) {
	b := newBench(t)
	const keys = 2*comparePage + 3
	var list []Call
	for i := range keys {
		list = append(list, Call{policy.NewSystem("x"), &Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "k%05d", i), Value: []byte("v")}})
	}
	b.apply(b.encode(list...))
	for _, odd := range []int{0, comparePage - 1, comparePage, 2*comparePage + 2} {
		key := fmt.Appendf(nil, "k%05d", odd)
		for value, want := range map[string]bool{"v": true, "x": false} {
			b.must(&Put{Space: mvcc.SpaceEtcd, Key: key, Value: []byte(value)})
			x := &Txn{Space: mvcc.SpaceEtcd, Compare: []Compare{{Span: storage.Span{Start: []byte("k")}, Target: CompareValue, Value: []byte("v")}}}
			if got := b.must(x).(*TxnResult).Succeeded; got != want {
				t.Errorf("key %d is %s: all are v: %v", odd, value, got)
			}
			if got, err := b.machine.ReadTxn(x); err != nil || got.Succeeded != want {
				t.Errorf("key %d is %s, read only: all are v: %v %v", odd, value, got, err)
			}
		}
		b.must(&Put{Space: mvcc.SpaceEtcd, Key: key, Value: []byte("v")})
	}
}

// TestSnapshotDamaged flips each byte of a stream and cuts it at each place: nothing of it is taken for a state.
func TestSnapshotDamaged(t *testing.T) {
	b := newBench(t)
	b.must(parse("put a 1").request())
	b.must(parse("user-add u x").request())
	var stream bytes.Buffer
	if _, err := b.machine.WriteSnapshot(&stream); err != nil {
		t.Fatal(err)
	}
	good := stream.Bytes()
	read := func(data []byte) error {
		e := openEngine(t, vfs.NewMem())
		defer e.Close()
		_, err := ReadSnapshot(bytes.NewReader(data), e)
		if err != nil {
			if ok, _ := Bootstrapped(e); ok {
				t.Error("a damaged stream left a state")
			}
		}
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bent := bytes.Clone(good)
		bent[i] ^= 1 << (i % 8)
		if read(bent) == nil {
			t.Fatalf("byte %d of %d flipped, and accepted", i, len(good))
		}
		if err := read(good[:i]); !errors.Is(err, ErrStream) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := ReadSnapshot(bytes.NewReader(good), b.engine); !errors.Is(err, ErrNotFresh) {
		t.Errorf("into an engine with rows: %v", err)
	}
	info, err := ReadSnapshotInfo(bytes.NewReader(good))
	if err != nil || info.Index != 2 || info.Cluster != 77 || len(info.Voters) != 3 {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestSnapshotLarge goes over many frames, beside writes.
func TestSnapshotLarge(t *testing.T) {
	b := newBench(t)
	value := bytes.Repeat([]byte("v"), 3000)
	for i := range 40 {
		var list []Call
		for j := range 20 {
			list = append(list, Call{policy.NewSystem("x"), &Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "k%d/%d", i, j), Value: value}})
		}
		b.apply(b.encode(list...))
	}
	want := b.hash()
	s, err := b.machine.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	b.must(parse("put later 1").request())
	var stream bytes.Buffer
	if err := s.Write(&stream); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	e := openEngine(t, vfs.NewMem())
	defer e.Close()
	if info, err := ReadSnapshot(&stream, e); err != nil || info.Index != 40 || s.Info().Index != 40 {
		t.Fatalf("%+v, %v", info, err)
	}
	m, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := m.Hash(); err != nil || got != want {
		t.Errorf("hash differs: %v", err)
	}
	if err := (&Snapshot{rows: b.engine.NewSnapshot()}).failing(); err == nil {
		t.Error("a writer's error is swallowed")
	}
}

// failing writes to a writer that takes a few bytes only.
func (s *Snapshot) failing() error {
	defer s.Close()
	return s.Write(&limited{left: 600 << 10})
}

type limited struct{ left int }

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, errors.New("full")
	}
	return len(b), nil
}

func FuzzReadSnapshot(f *testing.F) {
	b := newBench(f)
	b.must(parse("put a 1").request())
	var stream bytes.Buffer
	if _, err := b.machine.WriteSnapshot(&stream); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		e := openEngine(t, vfs.NewMem())
		defer e.Close()
		if _, err := ReadSnapshot(bytes.NewReader(data), e); err != nil {
			return
		}
		if m, err := Open(e, Options{}); err == nil {
			m.Close()
		}
	})
}

// TestIdentity compares with ids that etcd 3.7 gives to the same members.
func TestIdentity(t *testing.T) {
	a := MemberID([]string{"http://127.0.0.1:2380"}, "etcd-cluster")
	b := MemberID([]string{"http://127.0.0.1:2381", "http://127.0.0.1:2382"}, "etcd-cluster")
	if b != MemberID([]string{"http://127.0.0.1:2382", "http://127.0.0.1:2381"}, "etcd-cluster") {
		t.Error("the order of URLs matters")
	}
	if ClusterID([]uint64{a, b}) != ClusterID([]uint64{b, a}) {
		t.Error("the order of members matters")
	}
	if a == MemberID([]string{"http://127.0.0.1:2380"}, "other") || a == MemberIDAt([]string{"http://127.0.0.1:2380"}, "etcd-cluster", 1) {
		t.Error("token or time do not matter")
	}
	// `etcd` started with its defaults under the name default, as its log prints it.
	if id := MemberID([]string{"http://localhost:2380"}, "etcd-cluster"); id != 0x8e9e05c52164694d {
		t.Errorf("%x", id)
	}
	if id := ClusterID([]uint64{0x8e9e05c52164694d}); id != 0xcdf818194e3a8c32 {
		t.Errorf("%x", id)
	}
}

func BenchmarkApplyPuts(b *testing.B) {
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			m := newBench(b)
			who := policy.NewHolder("client", policy.Certificate{Issuer: "i", Serial: "1"}, policy.RoleNone, true)
			value := bytes.Repeat([]byte("v"), 256)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				list := make([]Call, size)
				for i := range list {
					n++
					list[i] = Call{who, &Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "key/%08d", n%50000), Value: value}}
				}
				m.apply(m.encode(list...))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/put")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	m := newBench(b)
	list := make([]Call, 100)
	for i := range list {
		list[i] = Call{policy.NewAnonymous(), &Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "key/%08d", i), Value: make([]byte, 256)}}
	}
	data := m.encode(list...).Data
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeBatch(data); err != nil {
			b.Fatal(err)
		}
	}
}
