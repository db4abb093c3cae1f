package replica

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// Wall is the machine's own clock.
type Wall struct{}

// Now implements Clock.
func (Wall) Now() time.Time { return time.Now() }

// After implements Clock.
func (Wall) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Status returns what the member knows, at most one tick old except for Leadership, which is current.
func (r *Replica) Status() Status {
	r.mu.Lock()
	s := r.status
	s.Counters = r.counters
	s.Peers = slices.Clone(s.Peers)
	r.mu.Unlock()
	s.Applied = r.applied.Load()
	disk, cached, c := r.log.size()
	s.Counters.LogBytes, s.Counters.Cached, s.Counters.QueuedBytes = uint64(disk), uint64(cached), uint64(r.box.queued())
	s.Counters.Appends, s.Counters.AppendBytes, s.Counters.Syncs, s.Counters.SegmentsCut = c.appends, c.bytes, c.syncs, c.cut
	return s
}

// publish makes Status up to date. The loop calls it.
func (r *Replica) publish() {
	m := r.member
	s := Status{
		Leadership: r.leadership, Vote: m.vote, Transferee: m.transferee, Committed: m.commit, Last: m.last,
		Learner:     slices.Contains(m.conf.GetLearners(), m.cfg.ID),
		LeaderSince: r.leadSince, NoLeaderSince: r.lostSince,
	}
	if m.heard {
		m.heard, r.heardAt = false, r.o.Clock.Now()
	}
	s.LeaderContact = r.heardAt
	s.First, _ = r.log.FirstIndex() // never fails
	r.mu.Lock()
	members := r.members
	r.mu.Unlock()
	for _, p := range members {
		if p.ID != m.cfg.ID {
			s.Peers = append(s.Peers, r.peers.status(p))
		}
	}
	m.Progress(func(id uint64, p tracker.Progress) {
		if i := slices.IndexFunc(s.Peers, func(x PeerStatus) bool { return x.ID == id }); i >= 0 {
			x := &s.Peers[i]
			x.Match, x.Active, x.Snapshot = p.Match, p.RecentActive, p.State == tracker.StateSnapshot
		}
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	s.LeaderChanges = r.status.LeaderChanges
	if r.status.Leader != s.Leader && s.Leader != 0 {
		s.LeaderChanges++
	}
	r.status = s
}

func (r *Replica) leadershipChanged(l Leadership) {
	before := r.leadership
	r.leadership = l
	now := r.o.Clock.Now()
	switch {
	case l.Leader == 0 && before.Leader != 0:
		r.leadSince, r.lostSince = time.Time{}, now
		r.logger.Warn("lost the leader", "former", hex(before.Leader), "term", l.Term)
	case l.Leader != 0 && l.Leader != before.Leader:
		r.leadSince, r.lostSince = now, time.Time{}
		r.logger.Info("leader", "leader", hex(l.Leader), "term", l.Term, "self", l.Leader == r.store.Member())
	}
	r.updateSolo()
	r.failConfs()
	r.publish()
	if r.o.OnLeader != nil {
		r.o.OnLeader(l)
	}
}

func hex(id uint64) string { return fmt.Sprintf("%x", id) }

// onLoop runs f on the loop and waits for it.
func (r *Replica) onLoop(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if !r.box.put(event{do: func() { f(); close(ran) }}) {
		return ErrStopped
	}
	select {
	case <-ran:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return ErrStopped
	}
}

// TransferLeader hands leadership to a voter and waits until it leads. A member that does not lead asks the leader to.
func (r *Replica) TransferLeader(ctx context.Context, to uint64) error {
	lead := r.Status().Leader
	switch lead {
	case 0:
		return ErrNoLeader
	case to:
		return nil
	case r.store.Member():
		return r.transferHere(ctx, to)
	}
	return r.callTransfer(ctx, lead, to)
}

func (r *Replica) transferHere(ctx context.Context, to uint64) error {
	err := ErrBadTransferee
	if e := r.onLoop(ctx, func() {
		switch {
		case r.member.role != raft.StateLeader:
			err = errNotLeader
		case r.member.Transfer(to):
			err = nil
		}
	}); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	return r.waitLeader(ctx, func(l Leadership) (bool, error) {
		switch l.Leader {
		case to:
			return true, nil
		case 0, r.store.Member():
			return false, nil
		}
		return true, ErrLeaderChanged // somebody else won
	})
}

// waitLeader waits until f says that it has seen enough.
func (r *Replica) waitLeader(ctx context.Context, f func(Leadership) (bool, error)) error {
	for {
		if done, err := f(r.Status().Leadership); done {
			return err
		}
		select {
		case <-r.o.Clock.After(r.o.Tick / 4):
		case <-ctx.Done():
			return ctx.Err()
		case <-r.done:
			return ErrStopped
		}
	}
}

// handOver gives leadership to the fittest voter before a stop. It is not an error that there is none.
func (r *Replica) handOver(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var to uint64
	if err := r.onLoop(ctx, func() {
		if r.member.Leads() {
			to = r.member.BestTransferee()
		}
	}); err != nil || to == 0 {
		return nil // stopping already, or nothing to hand over
	}
	r.logger.Info("handing leadership over", "to", hex(to))
	return r.transferHere(ctx, to)
}

// setConf sets the configuration that InitialState returns.
func (l *raftLog) setConf(conf *pb.ConfState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conf = conf
}

func confState(members []Peer) *pb.ConfState {
	conf := pb.EnsureConfState(nil)
	for _, p := range members {
		if p.Learner {
			conf.Learners = append(conf.Learners, p.ID)
		} else {
			conf.Voters = append(conf.Voters, p.ID)
		}
	}
	slices.Sort(conf.Voters)
	slices.Sort(conf.Learners)
	return conf
}

// raftLogger is raft's log, as far as people want to read it. What raft would panic about, it panics about: the loop
// turns it into the fault that ends the member.
type raftLogger struct{ l *slog.Logger }

func (r raftLogger) log(level slog.Level, v []any) {
	if r.l.Enabled(context.Background(), level) {
		r.l.Log(context.Background(), level, "raft: "+fmt.Sprint(v...))
	}
}

func (r raftLogger) logf(level slog.Level, format string, v []any) {
	if r.l.Enabled(context.Background(), level) {
		r.l.Log(context.Background(), level, "raft: "+fmt.Sprintf(format, v...))
	}
}

// Raft tells of every vote at level info; here that is debug.
func (r raftLogger) Debug(v ...any)                 {}
func (r raftLogger) Debugf(format string, v ...any) {}
func (r raftLogger) Info(v ...any)                  { r.log(slog.LevelDebug, v) }
func (r raftLogger) Infof(format string, v ...any)  { r.logf(slog.LevelDebug, format, v) }
func (r raftLogger) Warning(v ...any)               { r.log(slog.LevelWarn, v) }
func (r raftLogger) Warningf(f string, v ...any)    { r.logf(slog.LevelWarn, f, v) }
func (r raftLogger) Error(v ...any)                 { r.log(slog.LevelError, v) }
func (r raftLogger) Errorf(format string, v ...any) { r.logf(slog.LevelError, format, v) }
func (r raftLogger) Fatal(v ...any)                 { panic(fmt.Sprint(v...)) }
func (r raftLogger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (r raftLogger) Panic(v ...any)                 { panic(fmt.Sprint(v...)) }
func (r raftLogger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
