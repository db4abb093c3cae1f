// Package storagetest is the contract of package storage as a test suite, to be run over every FS that an engine is given.
//
// Job: what callers of storage rely on, checked against a sorted map. Non-job: the faults of a particular FS.
package storagetest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

// Split is the key shape of the suite: what follows the first '/' is the suffix, except in keys that begin with 'w', which
// are whole. '/' itself belongs to the prefix, so that no prefix with suffixes is the beginning of another.
func Split(key []byte) int {
	if len(key) > 0 && key[0] == 'w' {
		return len(key)
	}
	if i := bytes.IndexByte(key, '/'); i >= 0 {
		return i + 1
	}
	return len(key)
}

// Run runs the suite. newFS returns an empty file system each time.
func Run(t *testing.T, newFS func(t *testing.T) vfs.FS) {
	tests := []struct {
		name string
		run  func(*testing.T, *harness)
	}{
		{"batches", testBatches},
		{"reuse of a batch", testBatchReuse},
		{"iterator", testIterator},
		{"fresh iterators", testFreshness},
		{"snapshot", testSnapshot},
		{"durable", testDurable},
		{"random", testRandom},
		{"large batch", testLargeBatch},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := &harness{t: t, fs: newFS(t)}
			h.open()
			defer func() { h.e.Close() }()
			test.run(t, h)
		})
	}
}

type harness struct {
	t  *testing.T
	fs vfs.FS
	e  *storage.Engine
}

func (h *harness) open() {
	h.t.Helper()
	e, err := storage.Open(storage.Options{
		FS: h.fs, Dir: "engine", Split: Split, MemTableBytes: 256 << 10, CacheBytes: 1 << 20,
		OnFatal: func(err error) { h.t.Errorf("fatal: %v", err) },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.e = e
}

func (h *harness) reopen() {
	h.t.Helper()
	h.must(h.e.Close())
	h.open()
}

func (h *harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) apply(f func(b *storage.Batch)) {
	h.t.Helper()
	b := h.e.NewBatch()
	f(b)
	h.must(h.e.Apply(b))
	h.must(b.Close())
}

func (h *harness) get(r storage.Reader, key string) string {
	h.t.Helper()
	v, ok, err := r.Get([]byte(key), nil)
	h.must(err)
	if !ok {
		return "<none>"
	}
	return string(v)
}

func (h *harness) want(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Fatalf("%s: got %q, want %q", what, got, want)
	}
}

// all lists a span as key=value pairs.
func (h *harness) all(r storage.Reader, s storage.Span) string {
	h.t.Helper()
	it, err := r.NewIter(s)
	h.must(err)
	out := ""
	for ok := it.First(); ok; ok = it.Next() {
		out += fmt.Sprintf("%s=%s ", it.Key(), it.Value())
	}
	h.must(it.Close())
	return out
}

func set(b *storage.Batch, key, value string) { b.Set([]byte(key), []byte(value)) }

func testBatches(t *testing.T, h *harness) {
	h.apply(func(b *storage.Batch) {
		set(b, "a", "1")
		set(b, "a", "2")
		set(b, "b", "1")
		b.Delete([]byte("b"))
		b.Delete([]byte("missing"))
		k, v := b.Reserve(1, 2)
		copy(k, "c")
		copy(v, "cc")
		set(b, "empty", "")
		if b.Len() != 7 || b.Bytes() == 0 {
			t.Errorf("batch of %d changes, %d bytes", b.Len(), b.Bytes())
		}
	})
	h.want("a", h.get(h.e, "a"), "2")
	h.want("b", h.get(h.e, "b"), "<none>")
	h.want("c", h.get(h.e, "c"), "cc")
	h.want("empty", h.get(h.e, "empty"), "")
	v, ok, err := h.e.Get([]byte("c"), []byte("overwritten"))
	if string(v) != "cc" || !ok || err != nil {
		t.Fatal("Get into a buffer", v, ok, err)
	}
	h.apply(func(b *storage.Batch) {
		b.DeleteRange(storage.Span{Start: []byte("a"), End: []byte("c")})
		b.DeleteRange(storage.Span{Start: []byte("x"), End: []byte("c")})
	})
	h.want("after DeleteRange", h.all(h.e, storage.Span{}), "c=cc empty= ")
	h.apply(func(b *storage.Batch) { b.DeleteRange(storage.Span{Start: []byte("d")}) })
	h.want("after an open DeleteRange", h.all(h.e, storage.Span{}), "c=cc ")
}

func testBatchReuse(t *testing.T, h *harness) {
	b := h.e.NewBatch()
	set(b, "first", "1")
	h.must(h.e.Apply(b))
	b.Reset()
	if b.Len() != 0 {
		t.Fatal("Reset left something")
	}
	h.apply(func(b *storage.Batch) { b.Delete([]byte("first")) })
	set(b, "second", "2")
	h.must(h.e.Apply(b))
	h.must(b.Close())
	h.want("both", h.all(h.e, storage.Span{}), "second=2 ")
}

func testIterator(t *testing.T, h *harness) {
	h.apply(func(b *storage.Batch) {
		for _, k := range []string{"a/1", "a/2", "a/3", "b/1", "bb", "c/2", "w/1", "w/2"} {
			set(b, k, "v"+k)
		}
	})
	it, err := h.e.NewIter(storage.Span{Start: []byte("a"), End: []byte("x")})
	h.must(err)
	at := func(ok bool) string {
		if ok != it.Valid() {
			t.Fatal("a move and Valid disagree")
		}
		if !ok {
			h.must(it.Err())
			return "end"
		}
		if string(it.Value()) != "v"+string(it.Key()) {
			t.Fatalf("%s has the value %s", it.Key(), it.Value())
		}
		return string(it.Key())
	}
	h.want("SeekGE", at(it.SeekGE([]byte("a/2"))), "a/2")
	h.want("NextPrefix", at(it.NextPrefix()), "b/1")
	h.want("NextPrefix", at(it.NextPrefix()), "bb")
	h.want("Prev", at(it.Prev()), "b/1")
	h.want("SeekPrefixGE", at(it.SeekPrefixGE([]byte("a/2"))), "a/2")
	h.want("Next in the prefix", at(it.Next()), "a/3")
	h.want("Next at its end", at(it.Next()), "end")
	h.want("SeekPrefixGE absent", at(it.SeekPrefixGE([]byte("a/9"))), "end")
	h.want("SeekPrefixGE of a whole key", at(it.SeekPrefixGE([]byte("w/1"))), "w/1")
	h.want("SeekPrefixGE absent", at(it.SeekPrefixGE([]byte("q/"))), "end")
	h.want("SeekLT", at(it.SeekLT([]byte("b/1"))), "a/3")
	h.want("Last", at(it.Last()), "w/2")
	h.want("NextPrefix at the end", at(it.NextPrefix()), "end")
	h.want("First", at(it.First()), "a/1")
	it.SetBounds(storage.Span{Start: []byte("b"), End: []byte("c/")})
	h.want("First in bounds", at(it.First()), "b/1")
	h.want("Last in bounds", at(it.Last()), "bb")
	it.SetBounds(storage.Span{})
	h.want("First without bounds", at(it.First()), "a/1")
	h.must(it.Close())
}

// testFreshness: iterators are used again inside the engine, which nobody may notice.
func testFreshness(t *testing.T, h *harness) {
	for i := range 50 {
		old, err := h.e.NewIter(storage.Span{Start: []byte("k")})
		h.must(err)
		bounded, err := h.e.NewIter(storage.Span{Start: []byte("z")})
		h.must(err)
		h.apply(func(b *storage.Batch) { set(b, "k", fmt.Sprint(i)) })
		if i%7 == 0 {
			h.must(h.e.Flush())
		}
		h.want("new iterator", h.all(h.e, storage.Span{}), fmt.Sprintf("k=%d ", i))
		if ok := old.First(); ok != (i > 0) || ok && string(old.Value()) != fmt.Sprint(i-1) {
			t.Fatalf("an iterator from before change %d shows %v", i, ok)
		}
		h.must(old.Close())
		h.must(bounded.Close())
		h.want("again", h.all(h.e, storage.Span{}), fmt.Sprintf("k=%d ", i))
	}
}

func testSnapshot(_ *testing.T, h *harness) {
	h.apply(func(b *storage.Batch) { set(b, "k", "old"); set(b, "gone", "x") })
	s := h.e.NewSnapshot()
	h.apply(func(b *storage.Batch) { set(b, "k", "new"); b.Delete([]byte("gone")) })
	h.must(h.e.Flush())
	h.want("snapshot", h.all(s, storage.Span{}), "gone=x k=old ")
	h.want("get", h.get(s, "k"), "old")
	h.want("engine", h.all(h.e, storage.Span{}), "k=new ")
	h.must(s.Close())
}

func testDurable(t *testing.T, h *harness) {
	durable := func(key string) string {
		v, ok, err := h.e.Durable([]byte(key))
		h.must(err)
		if !ok {
			return "<none>"
		}
		return string(v)
	}
	h.want("fresh", durable("k"), "<none>")
	h.apply(func(b *storage.Batch) { set(b, "k", "1") })
	h.want("before the flush", durable("k"), "<none>")
	h.must(h.e.Flush())
	h.want("after the flush", durable("k"), "1")
	h.apply(func(b *storage.Batch) { set(b, "k", "2") })
	h.want("before the second flush", durable("k"), "1")
	h.want("a key that continues it", durable("kk"), "<none>")
	h.reopen()
	h.want("what was not flushed", h.get(h.e, "k"), "1")
	if h.e.DiskBytes() <= 0 {
		t.Error("no bytes on disk")
	}
}

func testLargeBatch(_ *testing.T, h *harness) {
	value := bytes.Repeat([]byte("v"), 1000)
	h.apply(func(b *storage.Batch) {
		for i := range 2000 { // several times the memtable
			b.Set(fmt.Appendf(nil, "k%05d", i), value)
		}
	})
	h.apply(func(b *storage.Batch) { set(b, "k00001", "later") })
	h.want("first", h.get(h.e, "k00000"), string(value))
	h.want("changed", h.get(h.e, "k00001"), "later")
	h.must(h.e.Flush())
	h.reopen()
	h.want("last", h.get(h.e, "k01999"), string(value))
	h.want("changed", h.get(h.e, "k00001"), "later")
}

// testRandom compares with a sorted map.
func testRandom(t *testing.T, h *harness) {
	r := rand.New(rand.NewPCG(5, 6))
	m := map[string]string{}
	key := func() string {
		k := fmt.Sprintf("%c%c/%d", "abw"[r.IntN(3)], "xyz"[r.IntN(3)], r.IntN(30))
		return k[:1+r.IntN(len(k))]
	}
	for range 400 {
		h.apply(func(b *storage.Batch) {
			for range r.IntN(20) {
				switch k := key(); r.IntN(8) {
				case 0:
					b.Delete([]byte(k))
					delete(m, k)
				case 1:
					s := storage.Span{Start: []byte(k), End: []byte(key())}
					b.DeleteRange(s)
					maps.DeleteFunc(m, func(k, _ string) bool { return s.Contains([]byte(k)) })
				default:
					v := fmt.Sprint(r.IntN(1000))
					set(b, k, v)
					m[k] = v
				}
			}
		})
		switch r.IntN(20) {
		case 0:
			h.must(h.e.Flush())
		case 1:
			h.must(h.e.Compact(t.Context(), storage.Span{Start: []byte("a")}))
		case 2:
			h.must(h.e.Flush())
			h.reopen()
		}
		h.compare(r, m, key)
	}
}

// compare makes random moves over the engine and over the sorted keys of m.
func (h *harness) compare(r *rand.Rand, m map[string]string, key func() string) {
	t := h.t
	keys := slices.Sorted(maps.Keys(m))
	it, err := h.e.NewIter(storage.Span{})
	h.must(err)
	pos := -1
	search := func(k string) int { i, _ := slices.BinarySearch(keys, k); return i }
	for range 12 {
		k := key()
		var ok bool
		move := r.IntN(6)
		if !it.Valid() && move < 3 {
			move += 3
		}
		switch move {
		case 0:
			ok, pos = it.Next(), pos+1
		case 1:
			ok, pos = it.Prev(), pos-1
		case 2:
			ok = it.NextPrefix()
			p := keys[pos][:Split([]byte(keys[pos]))]
			for pos < len(keys) && keys[pos][:Split([]byte(keys[pos]))] == p {
				pos++
			}
		case 3:
			ok, pos = it.SeekGE([]byte(k)), search(k)
		case 4:
			ok, pos = it.SeekLT([]byte(k)), search(k)-1
		case 5:
			found := it.SeekPrefixGE([]byte(k))
			p := k[:Split([]byte(k))]
			i := search(k)
			if want := i < len(keys) && keys[i][:Split([]byte(keys[i]))] == p; found != want || found && string(it.Key()) != keys[i] {
				t.Fatalf("SeekPrefixGE(%q): %v, want %v", k, found, want)
			}
			ok, pos = it.SeekGE([]byte(k)), i
		}
		if want := pos >= 0 && pos < len(keys); ok != want || ok && (string(it.Key()) != keys[pos] || string(it.Value()) != m[keys[pos]]) {
			t.Fatalf("move %d (key %q): %v, want %v", move, k, ok, want)
		}
	}
	h.must(it.Close())
}
