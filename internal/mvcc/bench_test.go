package mvcc

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

type benchSpace struct {
	e *storage.Engine
	s *Space
	r *rand.Rand
}

func openBench(b *testing.B) *benchSpace {
	b.Helper()
	e, err := storage.Open(storage.Options{FS: vfs.Default, Dir: b.TempDir(), Split: Split})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	s, err := OpenSpace(e, SpaceEtcd)
	if err != nil {
		b.Fatal(err)
	}
	return &benchSpace{e, s, rand.New(rand.NewPCG(1, 2))}
}

func benchKey(i int) []byte { return fmt.Appendf(nil, "/registry/pods/default/%09d", i*7919%1_000_003) }

// batches runs n requests in batches of size.
func (x *benchSpace) batches(b testing.TB, n, size int, f func(w *Writer, i int)) {
	batch := x.e.NewBatch()
	defer batch.Close()
	for i := 0; i < n; {
		w := x.s.NewWriter(x.e, batch)
		for range min(size, n-i) {
			w.Begin()
			f(w, i)
			w.End()
			i++
		}
		if _, err := w.Finish(); err != nil {
			b.Fatal(err)
		}
		if err := x.e.Apply(batch); err != nil {
			b.Fatal(err)
		}
		x.s.Publish(w)
		batch.Reset()
	}
}

func (x *benchSpace) value() []byte {
	v := make([]byte, 256)
	for i := range v {
		v[i] = byte(x.r.Uint32())
	}
	return v
}

func (x *benchSpace) fill(b testing.TB, n int) {
	x.batches(b, n, 500, func(w *Writer, i int) {
		if _, err := w.Put(benchKey(i), x.value(), PutOptions{}); err != nil {
			b.Fatal(err)
		}
	})
}

func (x *benchSpace) settle(b testing.TB) {
	if err := x.e.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := x.e.Compact(b.Context(), storage.Span{Start: []byte{1}, End: []byte{2}}); err != nil {
		b.Fatal(err)
	}
}

func (x *benchSpace) compact(b testing.TB) {
	batch := x.e.NewBatch()
	defer batch.Close()
	w := x.s.NewWriter(x.e, batch)
	if err := w.Compact(x.s.Revision()); err != nil {
		b.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		b.Fatal(err)
	}
	if err := x.e.Apply(batch); err != nil {
		b.Fatal(err)
	}
	x.s.Publish(w)
	for more := true; more; {
		var err error
		if more, err = x.s.Sweep(x.e, 10_000); err != nil {
			b.Fatal(err)
		}
	}
}

func (x *benchSpace) logDisk(b testing.TB, when string, payload int64) {
	m := x.e.Metrics()
	b.Logf("%s: %.2f of the payload on disk; %+v", when, float64(m.DiskBytes-m.ObsoleteTableBytes)/float64(payload), m)
}

func BenchmarkPut(b *testing.B) {
	for _, keys := range []int{10_000, 1_000_000} {
		for _, size := range []int{1, 64, 500} {
			b.Run(fmt.Sprintf("overwrite/keys=%d/batch=%d", keys, size), func(b *testing.B) {
				x := openBench(b)
				x.fill(b, keys)
				x.settle(b)
				v := x.value()
				b.ReportAllocs()
				b.ResetTimer()
				x.batches(b, b.N, size, func(w *Writer, i int) {
					w.Put(benchKey(x.r.IntN(keys)), v, PutOptions{})
				})
			})
		}
	}
	b.Run("create/keys=1000000/batch=64", func(b *testing.B) {
		x := openBench(b)
		x.fill(b, 1_000_000)
		x.settle(b)
		v := x.value()
		b.ReportAllocs()
		b.ResetTimer()
		x.batches(b, b.N, 64, func(w *Writer, i int) {
			w.Put(fmt.Appendf(nil, "/registry/pods/default/%09d-%d", x.r.IntN(1_000_000), i), v, PutOptions{})
		})
	})
}

// BenchmarkRead measures reads of a space of 1,000,000 keys.
func BenchmarkRead(b *testing.B) {
	const keys = 1_000_000
	x := openBench(b)
	x.fill(b, keys)
	payload := int64(keys) * 288
	x.logDisk(b, "before compaction", payload)
	x.compact(b)
	x.settle(b)
	x.logDisk(b, "after compaction", payload)

	get := func(b *testing.B, hot int) {
		b.ReportAllocs()
		for range b.N {
			p, err := x.s.Read(x.e, Query{Span: storage.KeySpan(benchKey(x.r.IntN(hot)))})
			if err != nil || len(p.KVs) != 1 {
				b.Fatal(err, p)
			}
		}
	}
	page := func(b *testing.B, q Query) {
		b.ReportAllocs()
		for range b.N {
			q.Span = storage.Span{Start: benchKey(x.r.IntN(keys / 2)), End: []byte("/registry/pods/default/\xff")}
			q.Limit = 500
			p, err := x.s.Read(x.e, q)
			if err != nil || !p.More && len(p.KVs) == 500 {
				b.Fatal(err, len(p.KVs))
			}
		}
	}
	b.Run("get/all", func(b *testing.B) { get(b, keys) })
	b.Run("get/hot=10000", func(b *testing.B) { get(b, 10_000) })
	b.Run("page=500", func(b *testing.B) { page(b, Query{}) })
	b.Run("count", func(b *testing.B) { page(b, Query{CountOnly: true}) })

	old := x.s.Revision()
	x.batches(b, 100_000, 500, func(w *Writer, i int) { w.Put(benchKey(x.r.IntN(keys)), x.value(), PutOptions{}) })
	x.batches(b, 10_000, 500, func(w *Writer, i int) {
		w.Put(fmt.Appendf(nil, "/registry/pods/default/%09d+", x.r.IntN(keys)), x.value(), PutOptions{})
	})
	b.Run("page=500/old", func(b *testing.B) { page(b, Query{Revision: old}) })
	b.Run("page=500/after", func(b *testing.B) { page(b, Query{}) })
	hot := []byte("/registry/pods/default/000500000")
	x.batches(b, 100_000, 500, func(w *Writer, i int) { w.Put(hot, x.value(), PutOptions{}) })
	for _, when := range []string{"memtable", "compacted"} {
		b.Run("hot-key/page/"+when, func(b *testing.B) {
			for range b.N {
				if _, err := x.s.Read(x.e, Query{Span: storage.Span{Start: []byte("/registry/pods/default/000499800"), End: []byte("/s")}, Limit: 500}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("hot-key/get/"+when, func(b *testing.B) {
			for range b.N {
				if _, err := x.s.Read(x.e, Query{Span: storage.KeySpan(hot)}); err != nil {
					b.Fatal(err)
				}
			}
		})
		x.settle(b)
	}
}

// BenchmarkGetSmall measures reads of single keys that are in memory.
func BenchmarkGetSmall(b *testing.B) {
	x := openBench(b)
	x.fill(b, 10_000)
	keys := make([]storage.Span, 10000)
	for i := range keys {
		keys[i] = storage.KeySpan(benchKey(i))
	}
	for _, when := range []string{"memtable", "tables"} {
		b.Run(when, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if p, err := x.s.Read(x.e, Query{Span: keys[i%len(keys)]}); err != nil || p.Count != 1 {
					b.Fatal(err)
				}
			}
		})
		x.settle(b)
	}
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if p, err := x.s.Read(x.e, Query{Span: keys[i%len(keys)]}); err != nil || p.Count != 1 {
					b.Fatal(err)
				}
			}
		})
	})
}
