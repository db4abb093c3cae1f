package mvcc

import (
	"testing"

	"holdfast.dev/holdfast/internal/storage"
)

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
