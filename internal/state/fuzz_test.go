package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// FuzzTwoEntries: members that get the same two batches, together or one by one with a restart in between, end in the same state
// and have given the same answers.
func FuzzTwoEntries(f *testing.F) {
	encode := func(texts ...string) []byte {
		var calls []Call
		for _, text := range texts {
			calls = append(calls, Call{policy.NewSystem("x"), parse(text).request()})
		}
		data, err := EncodeBatch(Proposal{Member: 1, Boot: 1, Seq: 1}, calls)
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	_, discovery := sampleDiscovery(f)
	f.Add(encode("put a 1 lease=1 prev", "del a.. prev"), encode("txn if(val a..z = 1) then(put a 1) else(del a..c)"))
	f.Add(encode("grant 7 5", "put x 1 lease=7"), encode("revoke 7 1", "compact 2"))
	f.Add(encode("user-add root x", "user-grant root root", "auth-on"), encode("put a 2"))
	f.Add(encode("put revoked/a/b x space=ca"), encode("role-grant r rw a..", "publish 1 n"))
	f.Add(discovery, sampleBatch(f))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var entries []Entry
		for _, data := range [][]byte{first, second} {
			batch, err := DecodeBatch(data)
			if err != nil || raises(&batch) {
				return
			}
			entries = append(entries, Entry{Data: data})
		}
		one, many := newBench(t), newBench(t)
		for _, b := range []*bench{one, many} {
			for _, text := range []string{"put a 1", "put b 2", "grant 1 5", "put c 3 lease=1", "role-add r"} {
				b.must(parse(text).request())
			}
		}
		for i := range entries {
			entries[i].Index, entries[i].Term = many.index+1+uint64(i), 1
		}
		together, err := many.machine.Apply(entries)
		if err != nil {
			t.Fatal(err)
		}
		var apart []any
		for _, e := range entries {
			out, err := one.machine.Apply([]Entry{e})
			if err != nil {
				t.Fatal(err)
			}
			for i := range out.Batches {
				apart = append(apart, out.Batches[i].Results)
			}
			one.reopen()
		}
		var joined []any
		for i := range together.Batches {
			joined = append(joined, together.Batches[i].Results)
		}
		if !reflect.DeepEqual(apart, joined) {
			t.Fatalf("apart  %+v\njoined %+v", apart, joined)
		}
		if one.hash() != many.hash() {
			t.Fatal("the members differ")
		}
	})
}

// raises finds a level that this build does not know: it ends the member, by design.
func raises(b *Batch) bool {
	for _, c := range b.Calls {
		if r, ok := c.Request.(*RaiseLevel); ok && r.Level > FirstLevel {
			return true
		}
	}
	return false
}

// frameOf is one frame of a stream.
func frameOf(b []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(b))), b...) }

// FuzzSnapshotRows: a peer sends a stream that is whole and right in its digest, with rows that no machine wrote. What opens in
// the end answers, applies and hashes; what does not is refused.
func FuzzSnapshotRows(f *testing.F) {
	b := newBench(f)
	for _, text := range []string{"put a 1", "grant 1 5", "put c 3 lease=1", "role-add r", "user-add u p"} {
		b.must(parse(text).request())
	}
	type row struct{ key, value []byte }
	var rows []row
	it, err := b.engine.NewIter(storage.Span{})
	if err != nil {
		f.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		rows = append(rows, row{bytes.Clone(it.Key()), bytes.Clone(it.Value())})
		if len(rows)%3 == 0 { // each costs an engine
			f.Add(bytes.Clone(it.Key()), bytes.Clone(it.Value()))
		}
	}
	if err := it.Close(); err != nil {
		f.Fatal(err)
	}
	info, err := readInfo(b.engine)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if len(key) == 0 {
			return
		}
		changed := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return bytes.Equal(r.key, key) })
		changed = append(changed, row{key, value})
		slices.SortFunc(changed, func(a, b row) int { return bytes.Compare(a.key, b.key) })
		var all bytes.Buffer
		out := &streamWriter{w: &all, digest: sha256.New()}
		write := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		write(out.write(append([]byte(streamMagic), streamVersion)))
		write(out.write(frameOf(info.append(nil))))
		for _, r := range changed {
			write(out.row(r.key, r.value))
		}
		write(out.flush())
		write(out.write(binary.AppendUvarint([]byte{0}, out.rows)))
		all.Write(out.digest.Sum(nil))

		e := openEngine(t, vfs.NewMem())
		defer e.Close()
		fuzztest.Bounded(t, all.Len(), func() {
			if _, err := ReadSnapshot(bytes.NewReader(all.Bytes()), e); err != nil {
				return
			}
			m, err := Open(e, Options{})
			if err != nil {
				return
			}
			defer m.Close()
			if _, err := m.Hash(); err != nil {
				return
			}
			data, err := EncodeBatch(Proposal{Member: 1, Boot: 9, Seq: 1}, []Call{{policy.NewSystem("x"), parse("put a 9 prev").request()}, {policy.NewSystem("x"), parse("del a.. prev").request()}})
			write(err)
			_, _ = m.Apply([]Entry{{Index: m.Applied() + 1, Term: 9, Data: data}}) // an error ends the member; a panic is what is looked for
		})
	})
}

// FuzzSnapshotHeader: the beginning of a stream says what it holds, or that it is none.
func FuzzSnapshotHeader(f *testing.F) {
	b := newBench(f)
	var stream bytes.Buffer
	info, err := b.machine.WriteSnapshot(&stream)
	if err != nil {
		f.Fatal(err)
	}
	head := append(append([]byte(streamMagic), streamVersion), frameOf(info.append(nil))...)
	if !bytes.HasPrefix(stream.Bytes(), head) {
		f.Fatal("the header is not where it is looked for")
	}
	f.Add(head)
	f.Add(append(append([]byte(streamMagic), streamVersion), 0xff, 0xff, 0xff, 0x1f))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			info, err := ReadSnapshotInfo(bytes.NewReader(data))
			if err != nil {
				if !errors.Is(err, ErrStream) {
					t.Error(err)
				}
				return
			}
			if again, err := decodeInfo(info.append(nil)); err != nil || !reflect.DeepEqual(again, info) {
				t.Errorf("%+v became %+v (%v)", info, again, err)
			}
		})
	})
}

// FuzzEncryptionRow: the row that holds the encryption configuration, as it comes out of its seal. Whatever it says, the machine goes on:
// with a configuration in force, or with the reason why there is none.
func FuzzEncryptionRow(f *testing.F) {
	f.Add([]byte(`{"prefix":"/registry/","config":"e30="}`))
	row, err := json.Marshal(EncryptionRow{Prefix: "/registry/", Config: []byte(configText("key1", "identity"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(row)
	f.Add([]byte("["))
	f.Fuzz(func(t *testing.T, row []byte) {
		fuzztest.Bounded(t, len(row), func() {
			b := encryptedBench(t)
			key := EncryptionKey(1)
			b.must(&Txn{Space: mvcc.SpaceCA, Success: []Op{
				{Put: &Put{Space: mvcc.SpaceCA, Key: key, Value: append([]byte(string(key)+"|"), row...)}},
				{Put: &Put{Space: mvcc.SpaceCA, Key: EncryptionMarkKey(), Value: []byte("/registry/")}},
			}})
			e := b.machine.Encryption()
			if e == nil || (e.Set == nil) == (e.Why == nil) {
				t.Fatalf("%s: %+v", row, e)
			}
			kv := &mvcc.KV{Key: key, Value: append([]byte(string(key)+"|"), row...)}
			if _, err := b.machine.openRow(kv); err != nil && e.Why == nil {
				t.Fatalf("%s is in force although %v", row, err)
			}
			if r := b.do(policy.NewSystem("x"), &Encrypted{Epoch: e.Epoch, Request: etcdPut("other/key", "v")}); r.Err != nil && e.Why == nil {
				t.Fatalf("%s is in force and ends writes elsewhere: %v", row, r.Err)
			}
		})
	})
}

// FuzzAppliedRow: the row that recovery begins with.
func FuzzAppliedRow(f *testing.F) {
	f.Add(appliedRow{index: 9, term: 3, time: -1}.encode())
	f.Fuzz(func(t *testing.T, value []byte) {
		index, term, err := DecodeApplied(value)
		row, err2 := decodeApplied(value)
		if (err == nil) != (err2 == nil) || err == nil && (index != row.index || term != row.term) {
			t.Errorf("%x is %d %d (%v) and %+v (%v)", value, index, term, err, row, err2)
		}
	})
}
