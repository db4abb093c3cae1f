package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestThreeMembers(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	var wg sync.WaitGroup
	for id := uint64(1); id <= 3; id++ {
		wg.Go(func() {
			for i := range 40 {
				c.put(c.nodes[id], fmt.Sprint(id, "/", i))
			}
		})
	}
	wg.Wait()
	c.converge(1, 2, 3)
	if got := len(lead.ledger.list()); got != 120 {
		t.Fatalf("%d batches, want 120", got)
	}
	for id := uint64(1); id <= 3; id++ {
		index, err := c.nodes[id].r.ReadIndex(c.ctx)
		if err != nil || index < 121 || c.nodes[id].ledger.State().Applied < index {
			t.Errorf("member %d: ReadIndex = %d, %v", id, index, err)
		}
	}
	s := lead.r.Status()
	if s.Counters.ForwardedIn == 0 || len(s.Peers) != 2 || s.Peers[0].ActiveSince.IsZero() {
		t.Errorf("status of the leader: %+v", s)
	}
}

func TestFiveMembersTakeTurns(t *testing.T) {
	c := newCluster(t, 5)
	all := []uint64{1, 2, 3, 4, 5}
	want := 0
	for round := range 3 {
		lead := c.leader(all...)
		for i := range 10 {
			c.put(c.nodes[all[i%5]], fmt.Sprint(round, "/", i))
			want++
		}
		to := all[(slices.Index(all, lead.id)+1)%5]
		c.converge(all...)
		if err := c.nodes[all[round]].r.TransferLeader(c.ctx, to); err != nil {
			t.Fatalf("transfer to %d: %v", to, err)
		}
		c.eventually("the transferee leads", func() bool { return c.nodes[to].r.Status().Self })
	}
	c.converge(all...)
	if got := len(c.nodes[1].ledger.list()); got != want {
		t.Errorf("%d batches, want %d", got, want)
	}
}

// TestLeaderContact: who is cut off knows since when.
func TestLeaderContact(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	other := c.nodes[lead.id%3+1]
	c.eventually("both hear of a leader", func() bool {
		return !other.r.Status().LeaderContact.IsZero() && !lead.r.Status().LeaderContact.IsZero()
	})
	for _, n := range []*node{lead, other} {
		first := n.r.Status().LeaderContact
		c.eventually("they go on hearing", func() bool { return n.r.Status().LeaderContact.After(first) })
	}
	c.net.isolate(other.id, lead.id, 6-lead.id-other.id)
	c.eventually("it knows no leader", func() bool { return other.r.Status().Leader == 0 })
	s := other.r.Status()
	if !s.LeaderContact.Before(s.NoLeaderSince) {
		t.Errorf("heard of a leader at %v, lost it at %v", s.LeaderContact, s.NoLeaderSince)
	}
	c.put(lead, "x")
	if again := other.r.Status().LeaderContact; !again.Equal(s.LeaderContact) {
		t.Errorf("it hears of a leader at %v, while it is cut off since %v", again, s.LeaderContact)
	}
}

func TestTransferRefusals(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	if err := lead.r.TransferLeader(c.ctx, 99); !errors.Is(err, ErrBadTransferee) {
		t.Errorf("transfer to a stranger: %v", err)
	}
	other := c.nodes[lead.id%3+1]
	c.eventually("the follower knows the leader", func() bool { return other.r.Status().Leader == lead.id })
	if err := other.r.TransferLeader(c.ctx, 99); !errors.Is(err, ErrBadTransferee) {
		t.Errorf("transfer to a stranger, asked of a follower: %v", err)
	}
}

func TestStopHandsOver(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	c.put(lead, "x")
	c.converge(1, 2, 3)
	ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
	defer cancel()
	if err := lead.r.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc([]uint64{1, 2, 3}, func(id uint64) bool { return id == lead.id })
	c.eventually("somebody else leads at once", func() bool {
		return c.nodes[rest[0]].r.Status().Self || c.nodes[rest[1]].r.Status().Self
	})
	if s := lead.r.Status(); s.Leader == lead.id {
		t.Errorf("stopped as a leader: %+v", s.Leadership)
	}
}

func TestCrashesLoseNothing(t *testing.T) {
	c := newCluster(t, 3)
	all := []uint64{1, 2, 3}
	acked := 0
	for round := range 6 {
		c.leader(all...)
		for i := range 15 {
			c.put(c.nodes[all[i%3]], fmt.Sprint(round, "/", i))
			acked++
		}
		// Every disk is cloned as of one moment, with nothing that was not synced; then everybody crashes.
		clones := map[uint64]*vfs.MemFS{}
		for _, id := range all {
			clones[id] = c.nodes[id].fs.CrashClone(vfs.CrashCloneCfg{})
		}
		for _, id := range all {
			if err := c.nodes[id].kill(); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range all {
			if err := c.restart(c.nodes[id], clones[id]); err != nil {
				t.Fatal(err)
			}
		}
		lead := c.leader(all...)
		if got := len(lead.ledger.list()); got != acked {
			t.Fatalf("round %d: %d batches after the crash, %d were acknowledged", round, got, acked)
		}
		c.converge(all...)
	}
}

// A crash clone is taken at every sync of one follower, with a part of what was not synced: each must open, and hold what
// was acknowledged up to then by that disk's own promise, a prefix of the log.
func TestCrashCloneAtEverySync(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader(1)
	type shot struct {
		fs    *vfs.MemFS
		acked int
	}
	var shots []shot
	rng := newTestRand()
	for i := range 30 {
		c.put(n, fmt.Sprint("k", i))
		shots = append(shots, shot{n.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: (i % 3) * 50, RNG: rng}), i + 1})
	}
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range shots {
		if err := c.restart(n, s.fs); err != nil {
			t.Fatalf("after %d: %v", s.acked, err)
		}
		c.leader(1)
		if got := len(n.ledger.list()); got < s.acked {
			t.Fatalf("%d batches, %d were acknowledged", got, s.acked)
		}
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPartition(t *testing.T) {
	c := newCluster(t, 3)
	all := []uint64{1, 2, 3}
	old := c.leader(all...)
	c.put(old, "before")
	c.converge(all...)
	rest := slices.DeleteFunc(slices.Clone(all), func(id uint64) bool { return id == old.id })
	c.net.isolate(old.id, rest...)

	// What the deposed leader is given while it does not know yet is not acknowledged.
	ctx, cancel := context.WithTimeout(c.ctx, 300*time.Millisecond)
	defer cancel()
	lostWrite := old.desk.start("lost")
	if index, err := old.r.ReadIndex(ctx); err == nil {
		t.Errorf("an isolated leader served a read at %d", index)
	}
	lead := c.leader(rest...)
	c.put(lead, "meanwhile")
	select {
	case err := <-lostWrite:
		if err == nil {
			t.Error("an isolated leader acknowledged a write")
		}
	default:
	}
	c.net.heal()
	c.put(old, "after")
	c.converge(all...)
	if slices.Contains(lead.ledger.list(), "lost") {
		t.Error("the isolated write came back")
	}
	if err := old.desk.wait(c.ctx, lostWrite, "lost"); !errors.Is(err, ErrDropped) {
		t.Errorf("the isolated write's waiter heard %v", err)
	}
	if _, err := old.r.ReadIndex(c.ctx); err != nil {
		t.Error(err)
	}
}

func TestReadsSurviveALeaderChange(t *testing.T) {
	c := newCluster(t, 3)
	all := []uint64{1, 2, 3}
	old := c.leader(all...)
	c.put(old, "x")
	rest := slices.DeleteFunc(slices.Clone(all), func(id uint64) bool { return id == old.id })
	reader := c.nodes[rest[0]]
	c.net.isolate(old.id, rest...)
	got := make(chan error, 1)
	go func() {
		_, err := reader.r.ReadIndex(c.ctx)
		got <- err
	}()
	if err := <-got; err != nil {
		t.Errorf("a read that began before the election: %v", err)
	}
}

func TestMembership(t *testing.T) {
	c := newCluster(t, 1)
	lead := c.leader(1)
	for i := range 30 {
		c.put(lead, fmt.Sprint("a", i))
	}
	// A joiner's address is known before it starts.
	two := Peer{ID: 2, URLs: []string{urlOf(2)}, Learner: true}
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(AddLearner, two)); err != nil {
		t.Fatal(err)
	}
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(AddLearner, two)); !errors.Is(err, errRefusedChange) {
		t.Errorf("adding a member twice: %v", err)
	}
	c.create(2, nil, nil).start()
	c.converge(1, 2)
	c.eventually("the learner knows what it is", func() bool { s := c.nodes[2].r.Status(); return s.Learner && s.Leader == 1 })
	if lead.r.Status().Counters.SnapshotsSent == 0 {
		t.Error("a joiner must start from a snapshot")
	}
	two.Learner = false
	// Asked of the learner, which forwards it.
	if err := c.nodes[2].r.ProposeConf(c.ctx, ledgerChange(AddVoter, two)); err != nil {
		t.Fatal(err)
	}
	c.eventually("a voter", func() bool { return !c.nodes[2].r.Status().Learner })
	c.put(c.nodes[2], "from two")
	three := Peer{ID: 3, URLs: []string{urlOf(3)}}
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(AddVoter, three)); err != nil {
		t.Fatal(err)
	}
	c.create(3, nil, nil).start()
	c.put(c.nodes[3], "from three")
	c.converge(1, 2, 3)

	// The leader itself goes.
	lead = c.leader(1, 2, 3)
	asked := c.nodes[lead.id%3+1]
	if err := asked.r.ProposeConf(c.ctx, ledgerChange(Remove, Peer{ID: lead.id})); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-lead.ended:
		lead.cancel = nil
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("the removed leader ended with %v", err)
		}
	case <-c.ctx.Done():
		t.Fatal("the removed leader goes on")
	}
	rest := slices.DeleteFunc([]uint64{1, 2, 3}, func(id uint64) bool { return id == lead.id })
	c.leader(rest...)
	c.put(c.nodes[rest[0]], "without it")
	c.converge(rest...)

	// A follower that is away when it is removed hears of it when it comes back.
	follower := c.nodes[rest[0]]
	if follower.r.Status().Self {
		follower = c.nodes[rest[1]]
	}
	other := c.nodes[rest[0]+rest[1]-follower.id]
	four := Peer{ID: 4, URLs: []string{urlOf(4)}}
	if err := other.r.ProposeConf(c.ctx, ledgerChange(AddVoter, four)); err != nil {
		t.Fatal(err)
	}
	c.create(4, nil, nil).start()
	c.converge(other.id, 4)
	c.net.isolate(follower.id, other.id, 4)
	lead = c.leader(other.id, 4)
	if err := lead.r.ProposeConf(c.ctx, ledgerChange(Remove, Peer{ID: follower.id})); err != nil {
		t.Fatal(err)
	}
	c.net.heal()
	select {
	case err := <-follower.ended:
		follower.cancel = nil
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("the removed follower ended with %v", err)
		}
	case <-c.ctx.Done():
		t.Fatal("the removed follower goes on")
	}
}

func TestOnlyOneChangeAtATime(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	var wg sync.WaitGroup
	for id := uint64(10); id < 14; id++ {
		wg.Go(func() {
			if err := lead.r.ProposeConf(c.ctx, ledgerChange(AddLearner, Peer{ID: id, Learner: true})); err != nil {
				t.Errorf("add %d: %v", id, err)
			}
		})
	}
	wg.Wait()
	c.eventually("all know", func() bool {
		for id := uint64(1); id <= 3; id++ {
			if len(c.nodes[id].ledger.State().Members) != 7 {
				return false
			}
		}
		return true
	})
}

func TestLaggardGetsASnapshot(t *testing.T) {
	c := newCluster(t, 3)
	all := []uint64{1, 2, 3}
	c.leader(all...)
	c.put(c.nodes[1], "first")
	c.converge(all...)
	if err := c.nodes[3].kill(); err != nil {
		t.Fatal(err)
	}
	lead := c.leader(1, 2)
	big := string(make([]byte, 8<<10))
	for i := range 80 {
		c.put(lead, fmt.Sprint("big", i, big))
	}
	c.eventually("the log is cut", func() bool { return lead.r.Status().First > 20 })
	if err := c.restart(c.nodes[3], c.nodes[3].fs); err != nil {
		t.Fatal(err)
	}
	c.converge(all...)
	s := c.nodes[3].r.Status()
	if s.Counters.SnapshotsTaken == 0 {
		t.Error("the laggard caught up without a snapshot")
	}
	c.put(c.nodes[3], "back")
	// The new state is what a restart opens.
	if err := c.nodes[3].kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.restart(c.nodes[3], c.nodes[3].fs); err != nil {
		t.Fatal(err)
	}
	c.put(c.nodes[3], "again")
	c.converge(all...)
}

func TestForce(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader(1, 2, 3)
	for i := range 20 {
		c.put(lead, fmt.Sprint("a", i))
	}
	c.converge(1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		if err := c.nodes[id].kill(); err != nil {
			t.Fatal(err)
		}
	}
	c.opened = func(s *Store) {
		changes := []Change{ledgerChange(Remove, Peer{ID: 2}), ledgerChange(Remove, Peer{ID: 3})}
		if err := s.Force(changes); err != nil {
			t.Fatal(err)
		}
	}
	n := c.nodes[1]
	if err := c.restart(n, n.fs); err != nil {
		t.Fatal(err)
	}
	c.leader(1)
	c.put(n, "alone")
	if got := n.ledger.list(); len(got) != 21 {
		t.Errorf("%d batches, want 21", len(got))
	}
	if s := n.ledger.State(); len(s.Members) != 1 || s.Members[0].ID != 1 {
		t.Errorf("members %v", s.Members)
	}
	entries := 0
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	c.opened = func(s *Store) {
		if err := ReadLog(s.fs, s.dir, s.ring, func(e Logged) error {
			if !e.Committed {
				t.Errorf("entry %d is not committed", e.Index)
			}
			if len(e.Data) > 0 || e.Conf != nil {
				entries++
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if err := c.restart(n, n.fs); err != nil {
		t.Fatal(err)
	}
	if entries < 23 {
		t.Errorf("ReadLog showed %d batches and changes, want at least 23", entries)
	}
}

func TestEntryLimits(t *testing.T) {
	c := emptyCluster(t)
	c.tune = func(n *node) { n.store.KeepEntries, n.store.FlushEntries = 20, 10 }
	c.create(1, []Peer{{ID: 1, URLs: []string{urlOf(1)}}}, []uint64{1}).start()
	n := c.leader(1)
	for i := range 200 {
		c.put(n, fmt.Sprint("a", i))
	}
	c.eventually("a short log", func() bool {
		s := n.r.Status()
		return s.Last-s.First <= 60 && s.Applied > 200
	})
	if err := c.restartClean(n); err != nil {
		t.Fatal(err)
	}
	c.leader(1)
	if got := len(n.ledger.list()); got != 200 {
		t.Errorf("%d batches after a restart", got)
	}
}

// TestFounderDoesNotElectItself: a founder that was the only voter once, crashes after others have become voters, and comes
// back from what was synced, knows of them: it must not lead alone by the configuration that it was made with.
func TestFounderDoesNotElectItself(t *testing.T) {
	c := newCluster(t, 1)
	lead := c.leader(1)
	c.put(lead, "alone")
	for id := uint64(2); id <= 3; id++ {
		if err := lead.r.ProposeConf(c.ctx, ledgerChange(AddVoter, Peer{ID: id, URLs: []string{urlOf(id)}})); err != nil {
			t.Fatal(err)
		}
		c.create(id, nil, nil).start()
		c.put(c.nodes[id], fmt.Sprint("from ", id))
	}
	c.converge(1, 2, 3)
	clone := lead.fs.CrashClone(vfs.CrashCloneCfg{})
	if err := lead.kill(); err != nil {
		t.Fatal(err)
	}
	c.leader(2, 3)
	c.put(c.nodes[2], "without the founder")
	c.net.isolate(1, 2, 3)
	if err := c.restart(lead, clone); err != nil {
		t.Fatal(err)
	}
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(time.Second); time.Now().Before(end); <-look.C {
		if s := lead.r.Status(); s.Self {
			t.Fatalf("the founder has elected itself in term %d, although two others are voters", s.Term)
		}
	}
	c.net.heal()
	c.converge(1, 2, 3)
	if !slices.Contains(lead.ledger.list(), "without the founder") {
		t.Error("what was acknowledged without the founder is lost")
	}
}
