package mvcc

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

// TestSweepOfALargeRevision: a revision with more rows than the budget, compacted at and then passed by the next compaction,
// is swept in bounded steps, and nothing of it stays. Between the steps the compact revision may move.
func TestSweepOfALargeRevision(t *testing.T) {
	t.Parallel()
	const keys, budget = 50, 7
	for _, moves := range []bool{false, true} {
		x := openInstance(t, vfs.NewMem(), indexLimits{4, 4})
		batch := func(lines string) {
			t.Helper()
			if _, err := x.transcribe(lines); err != nil {
				t.Fatal(err)
			}
		}
		for i := range keys {
			batch(fmt.Sprintf("put k%02d 1", i))
		}
		batch("delete k l") // one revision of 50 rows
		large := x.s.Revision()
		batch(fmt.Sprint("compact ", large))
		steps := func(limit int) {
			t.Helper()
			for range limit {
				more, err := x.s.Sweep(x.e, budget)
				if err != nil {
					t.Fatal(err)
				}
				if !more {
					return
				}
			}
			if limit == 1 {
				return
			}
			t.Fatalf("a sweep of %d rows is not done after %d steps of %d", 2*keys, limit, budget)
		}
		if moves {
			for range 9 {
				steps(1) // into the middle of the large revision
			}
		} else {
			steps(100)
		}
		batch("put z 1")
		batch(fmt.Sprint("compact ", x.s.Revision()))
		steps(100)
		it, err := x.e.NewIter(storage.Span{Start: []byte{byte(SpaceEtcd), tableVersions}, End: []byte{byte(SpaceEtcd), tableVersions + 1}})
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for ok := it.First(); ok; ok = it.Next() {
			rows++
		}
		if err := it.Close(); err != nil || rows != 1 {
			t.Errorf("moves=%v: %d rows of versions are left, want the one of z (%v)", moves, rows, err)
		}
		x.close(t)
	}
}
