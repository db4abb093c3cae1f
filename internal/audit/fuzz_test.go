package audit

import (
	"bytes"
	"encoding/json"
	"io"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/seal"
)

// FuzzFrame: what a frame says comes back from a frame that says it.
func FuzzFrame(f *testing.F) {
	frame, err := encode([]Event{{Action: "a"}, {Action: "b", Subject: "c", Who: "x", Outcome: "y"}}, 7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add(append(slices.Clone(frame), "{}"...))
	f.Add([]byte{frameVersion, '{', '"'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, len(b), func() {
			var first, again []Event
			if err := decode(b, func(e Event) error { first = append(first, e); return nil }); err != nil {
				fuzztest.Typed(t, err)
				return
			}
			for i := range first { // encode numbers them anew
				out, err := encode(first[i:i+1], first[i].Seq)
				if err != nil {
					return // a time that JSON cannot hold
				}
				if err := decode(out, func(e Event) error { again = append(again, e); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			one, err1 := json.Marshal(first)
			two, err2 := json.Marshal(again)
			if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
				t.Errorf("%s became %s", one, two)
			}
		})
	})
}

// FuzzRecord: bytes of a record's file are changed, in one place or all of it. What is still read is what was written, from the
// beginning, and a change before the end is noticed.
func FuzzRecord(f *testing.F) {
	mem := vfs.NewMem()
	fix := recordIn(f, mem)
	var want []Event
	if _, err := Read(mem, fix.ring, "/data/audit", func(e Event) error { want = append(want, e); return nil }); err != nil {
		f.Fatal(err)
	}
	names, err := list(mem, "/data/audit")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	good := wholeFile(f, mem, names[0])
	f.Add(uint32(100), []byte{1})
	f.Add(uint32(0), []byte("x"))
	f.Add(uint32(len(good)), []byte{0})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		data := slices.Clone(good)
		for i, c := range change {
			if p := int(at) + i; p < len(data) {
				data[p] ^= c
			} else if p < len(good)+1<<16 {
				data = append(data, c)
			}
		}
		fs := vfs.NewMem()
		if ok, err := vfs.Clone(mem, fs, "/data", "/data"); err != nil || !ok {
			t.Fatal(ok, err)
		}
		replaceFile(t, fs, names[0], data)
		var got []Event
		_, err := Read(fs, fix.ring, "/data/audit", func(e Event) error { got = append(got, e); return nil })
		if err != nil {
			fuzztest.Typed(t, err)
		}
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("%d events that nobody wrote: %+v", len(got), got)
		}
		if err == nil && bytes.Equal(data, good) && len(got) != len(want) {
			t.Fatal("an untouched record has lost events")
		}
	})
}

func recordIn(f *testing.F, fs vfs.FS) *fixture {
	ring, err := seal.CreateKeyring(fs, "/data", plainKEK{})
	if err != nil {
		f.Fatal(err)
	}
	fix := &fixture{fs: fs, ring: ring, now: time.Unix(1_700_000_000, 0)}
	r, err := Open(Options{FS: fs, Dir: "/data/audit", Ring: ring, Now: func() time.Time { return fix.now }})
	if err != nil {
		f.Fatal(err)
	}
	for _, action := range []string{"put", "revoke", "member add"} {
		if err := r.Commit(Event{Action: action, Who: "alice", Subject: path.Join("a", action)}); err != nil {
			f.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		f.Fatal(err)
	}
	return fix
}

func wholeFile(t testing.TB, fs vfs.FS, name string) []byte {
	file, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func replaceFile(t testing.TB, fs vfs.FS, name string, data []byte) {
	file, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}
