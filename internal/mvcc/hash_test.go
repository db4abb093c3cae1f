package mvcc

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestHashOutlivesCompaction: what a compaction leaves readable at its own revision has the hash it had before, as etcd's
// suite demands, also when nothing is left.
func TestHashOutlivesCompaction(t *testing.T) {
	t.Parallel()
	for _, keys := range []string{"a", "a b"} {
		x := openInstance(t, vfs.NewMem(), indexLimits{4, 4})
		batch := func(lines ...string) {
			t.Helper()
			if _, err := x.transcribe(strings.Join(lines, "\n")); err != nil {
				t.Fatal(err)
			}
		}
		for _, value := range []string{"1", "2", "3"} {
			for key := range strings.SplitSeq(keys, " ") {
				batch("put " + key + " " + value)
			}
		}
		batch("delete a")
		rev := x.s.Revision()
		before, _, _, err := x.s.Hash(x.e, rev)
		if err != nil {
			t.Fatal(err)
		}
		batch("put a 4")
		if other, _, _, err := x.s.Hash(x.e, 0); err != nil || other == before {
			t.Errorf("a write does not change the hash: %v", err)
		}
		batch(fmt.Sprint("compact ", rev))
		batch("put z 1")
		if _, err := x.s.Sweep(x.e, 1000); err != nil {
			t.Fatal(err)
		}
		after, _, _, err := x.s.Hash(x.e, rev)
		if err != nil || before != after {
			t.Errorf("%q at %d: %x before, %x after, %v", keys, rev, before, after, err)
		}
		x.close(t)
	}
}
