package replica

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// ends waits for a member to end and returns why.
func (c *cluster) ends(n *node) error {
	c.t.Helper()
	select {
	case err := <-n.ended:
		n.cancel = nil
		return err
	case <-c.ctx.Done():
		c.t.Fatal("the member goes on")
		return nil
	}
}

func TestFailedSyncIsFatal(t *testing.T) {
	for _, members := range []int{1, 3} { // on the loop, and on the appender
		failing := make(chan struct{})
		errDisk := errors.New("input/output error")
		c := emptyCluster(t)
		c.tune = func(n *node) {
			n.store.FS = errorfs.Wrap(n.fs, errorfs.InjectorFunc(func(o errorfs.Op) error {
				select {
				case <-failing:
					if n.id == 1 && o.Kind == errorfs.OpFileSyncData && strings.HasSuffix(o.Path, segmentSuffix) {
						return errDisk
					}
				default:
				}
				return nil
			}))
		}
		var peers []Peer
		var ids []uint64
		for id := uint64(1); id <= uint64(members); id++ {
			peers, ids = append(peers, Peer{ID: id, URLs: []string{urlOf(id)}}), append(ids, id)
		}
		for _, id := range ids {
			c.create(id, peers, ids).start()
		}
		c.leader(ids...)
		n := c.nodes[1]
		c.put(n, "fine")
		close(failing)
		fate := n.desk.start("not durable here")
		if err := c.ends(n); !errors.Is(err, errDisk) {
			t.Errorf("%d members: ended with %v", members, err)
		}
		if members == 1 {
			if err := <-fate; !errors.Is(err, ErrLeaderChanged) {
				t.Errorf("the waiter heard %v", err)
			}
			if n.ledger.has("not durable here") {
				t.Error("applied without being durable")
			}
		}
	}
}

func TestFailedApplyIsFatal(t *testing.T) {
	for _, members := range []int{1, 3} {
		c := newCluster(t, members)
		ids := []uint64{1, 2, 3}[:members]
		c.leader(ids...)
		n := c.nodes[1]
		errApply := errors.New("the state is broken")
		n.ledger.mu.Lock()
		n.ledger.failing = errApply
		n.ledger.mu.Unlock()
		n.desk.start("x")
		if err := c.ends(n); !errors.Is(err, errApply) {
			t.Errorf("%d members: ended with %v", members, err)
		}
	}
}

// A follower whose disk has forgotten what it acknowledged must not go on as if nothing had happened.
func TestForgetfulDiskIsNoticed(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	n := c.nodes[lead.id%3+1]
	c.put(n, "a")
	c.converge(1, 2, 3)
	old := n.fs.CrashClone(vfs.CrashCloneCfg{})
	for _, id := range []string{"b", "c", "d"} {
		c.put(n, id)
	}
	c.converge(1, 2, 3)
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.restart(n, old); err != nil {
		t.Fatal(err)
	}
	if err := c.ends(n); !errors.Is(err, ErrRolledBack) {
		t.Errorf("ended with %v", err)
	}
}

func TestCallsAfterTheEnd(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader(1)
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	n.r.solo.Store(false)
	if _, err := n.r.ReadIndex(c.ctx); !errors.Is(err, ErrStopped) {
		t.Errorf("ReadIndex: %v", err)
	}
	if err := n.r.ProposeConf(c.ctx, ledgerChange(AddLearner, Peer{ID: 5, Learner: true})); !errors.Is(err, ErrStopped) {
		t.Errorf("ProposeConf: %v", err)
	}
	n.r.Wake()
}
