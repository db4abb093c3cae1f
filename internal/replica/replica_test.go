package replica

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestSingleMember(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader(1)
	for i := range 50 {
		c.put(n, fmt.Sprint("a", i))
	}
	index, err := n.r.ReadIndex(c.ctx)
	if err != nil || index < 51 {
		t.Fatalf("ReadIndex = %d, %v", index, err)
	}
	if s := n.r.Status(); s.Counters.Inline == 0 || s.Counters.Syncs == 0 || s.Leader != 1 {
		t.Errorf("status %+v", s)
	}
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.restart(n, n.fs); err != nil {
		t.Fatal(err)
	}
	n = c.leader(1)
	if got := len(n.ledger.list()); got != 50 {
		t.Errorf("%d batches after a restart", got)
	}
	c.put(n, "more")
}

func TestSingleMemberCrash(t *testing.T) {
	c := newCluster(t, 1)
	for round := range 8 {
		n := c.leader(1)
		for i := range 23 {
			c.put(n, fmt.Sprint(round, "-", i))
		}
		crashed := n.fs.CrashClone(vfs.CrashCloneCfg{})
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
		if err := c.restart(n, crashed); err != nil {
			t.Fatal(err)
		}
		n = c.leader(1)
		if got := len(n.ledger.list()); got != 23*(round+1) {
			t.Fatalf("round %d: %d batches after a crash, %d were acknowledged", round, got, 23*(round+1))
		}
	}
}
