package seal

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func BenchmarkReadBlock(b *testing.B) {
	fs, dir, ring := diskFS(b)
	sealed := NewFS(fs, ring, dir)
	writeTable(b, sealed, dir+"/000001.sst", fill(8<<20))
	f := must(sealed.Open(dir+"/000001.sst", vfs.RandomReadsOption))(b)
	defer f.Close()
	p := make([]byte, 32<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := f.ReadAt(p, int64(i*33333)%(8<<20-32<<10)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	fs, dir, ring := diskFS(b)
	w := must(CreateStream(fs, ring, dir+"/log", StreamOptions{Segment: 1, Preallocate: 64 << 20}))(b)
	defer w.Close()
	p := fill(16 << 10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Append(p); err != nil {
			b.Fatal(err)
		}
		if w.offset > 60<<20 { // stay where the file is filled; nobody reads this one
			w.offset = preambleSize
		}
	}
}
