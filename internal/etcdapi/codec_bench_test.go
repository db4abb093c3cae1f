package etcdapi

import (
	"fmt"
	"testing"
)

// BenchmarkFill is what getting a buffer for a large answer costs beside writing it.
func BenchmarkFill(b *testing.B) {
	for _, n := range []int{20 << 10, 150 << 10, 600 << 10} {
		b.Run(fmt.Sprint(n>>10, "KiB"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fill(n, func(buf []byte) []byte { return buf[:n] }).Free()
			}
		})
	}
}
