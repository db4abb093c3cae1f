package mvcc

import (
	"bytes"
	"testing"
)

// FuzzRows feeds the decoders with anything: rows may come from a snapshot that a peer sent. What decodes is encoded
// again to the same bytes, if it was in its shortest form.
func FuzzRows(f *testing.F) {
	f.Add([]byte{1, 'd', 'a', 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff}, []byte{0, 0, 1, 'v'})
	f.Add([]byte{1, 'd', 0, 0xff, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff}, []byte{1})
	f.Add([]byte{1, 'l', 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0}, []byte{3, 5, 1, 0, 'k'})
	f.Add([]byte{1, 'd'}, []byte{2, 3})
	f.Add([]byte{1, 'n', 0, 1}, []byte{2, 3})
	f.Add([]byte{1, 'm', 'r'}, []byte{1, 2, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if n := Split(key); n < 0 || n > len(key) || len(key) > 0 && n == 0 {
			t.Fatalf("Split(%x) = %d", key, n)
		}
		var rec record
		mod, sub := versionStamp(key) // a walk looks at it before it decodes the row
		if decodeVersion(&rec, key, value) == nil {
			if rec.mod != mod || rec.sub != sub {
				t.Fatalf("%x is of %d.%d, and of %d.%d", key, mod, sub, rec.mod, rec.sub)
			}
			user := userKey(nil, key)
			if again := appendVersionKey(nil, SpaceID(key[0]), user, rec.mod, rec.sub); Split(key) == len(key)-suffixLen && key[1] == 'd' && Split(again) != len(again)-suffixLen {
				t.Fatalf("key %x became %x", key, again)
			}
			if rec.live {
				row := appendVersionValue(nil, &rec)
				if len(row) != versionValueLen(&rec) {
					t.Fatal("length of a version")
				}
				var back record
				if err := decodeVersion(&back, key, row); err != nil || !bytes.Equal(back.value, rec.value) || back.create != rec.create || back.lease != rec.lease {
					t.Fatalf("%+v became %+v: %v", rec, back, err)
				}
			}
		}
		var l logRow
		if l.decode(key, value) == nil {
			row := l.appendValue(nil)
			var back logRow
			if err := back.decode(key, row); err != nil || len(row) != l.valueLen() || back.prevRev != l.prevRev || back.garbage != l.garbage || !bytes.Equal(back.key, l.key) {
				t.Fatalf("%+v became %+v: %v", l, back, err)
			}
		}
		var b birthRow
		if b.decode(value) == nil && len(b.appendValue(nil)) != b.valueLen() {
			t.Fatal("length of a birth")
		}
		var n node
		var m meta
		var mark sweepMark
		var lease Lease
		for _, err := range []error{n.decode(key, value), m.decode(value), mark.decode(value), lease.decode(key, value)} {
			_ = err
		}
	})
}
