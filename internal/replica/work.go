package replica

import (
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// appendWork is one thing for the appender: a message of raft, or do.
type appendWork struct {
	message  *pb.Message
	received *received // the staged state that belongs to message's snapshot
	do       func() error
}

// applyWork is one thing for the applier: a message of raft, or do, which must not run beside Machine.Apply.
type applyWork struct {
	message *pb.Message
	do      func()
	quiet   bool // do is not the loop's: it does not wait for it
}

// applied is a message of raft that the machine has applied.
type applied struct {
	message   *pb.Message
	decisions []Decision
	state     *State // after a configuration change
	do        bool   // it was not a message, but a do
}

// installed is a snapshot that has become the machine's state.
type installed struct {
	message *pb.Message
	state   State
}

// runAppender writes to the log. It takes everything that waits, writes a frame for each message and syncs once.
func (r *Replica) runAppender() {
	var work []appendWork
	var messages []*pb.Message
	for {
		var ok bool
		if work, ok = r.appends.take(work); !ok {
			return
		}
		messages = messages[:0]
		for i := range work {
			w := &work[i]
			if w.message != nil && w.message.GetSnapshot() == nil {
				messages = append(messages, w.message)
				continue
			}
			if !r.appendBatch(messages) {
				return
			}
			messages = messages[:0]
			if err := r.special(w); err != nil {
				r.halt(err)
				return
			}
		}
		if !r.appendBatch(messages) {
			return
		}
	}
}

func (r *Replica) appendBatch(messages []*pb.Message) bool {
	if len(messages) == 0 {
		return true
	}
	if err := r.appendAll(messages); err != nil {
		r.halt(err)
		return false
	}
	for _, m := range messages {
		r.box.put(event{appended: m})
	}
	return true
}

func (r *Replica) special(w *appendWork) error {
	if w.do != nil {
		return w.do()
	}
	idle := make(chan struct{})
	r.applies.put(applyWork{do: func() { close(idle) }, quiet: true})
	select {
	case <-idle:
	case <-r.stop:
		return ErrStopped
	}
	return r.installStaged(w)
}

// installStaged installs a received state. The applier has nothing to do.
func (r *Replica) installStaged(w *appendWork) error {
	state, err := r.install(w)
	if err != nil {
		return fmt.Errorf("install a snapshot: %w", err)
	}
	r.box.put(event{installed: &installed{w.message, state}})
	return nil
}

// appendAll makes messages durable: one frame for each that needs one, one sync for all.
func (r *Replica) appendAll(messages []*pb.Message) error {
	// gofail: var raftBeforeSave struct{}

	for _, m := range messages {
		if err := r.log.append(hardOf(m), m.GetEntries()); err != nil {
			return err
		}
	}
	return r.syncLog()
}

func (r *Replica) syncLog() error {
	if r.log.synced {
		return nil
	}
	begin := r.o.Clock.Now()
	if err := r.log.sync(); err != nil {
		return err
	}
	took := r.o.Clock.Now().Sub(begin)
	r.count(func(c *Counters) { c.SyncSeconds += took.Seconds() })
	if took > slowSync {
		r.logger.Warn("the log's disk is slow", "sync", took)
	}
	// gofail: var raftAfterSave struct{}
	return nil
}

// slowSync is how long a sync may take before it is logged; a heartbeat's time spent in it endangers leadership.
const slowSync = 500 * time.Millisecond

// hardOf returns the hard state that an append carries, or nil.
func hardOf(m *pb.Message) *hardState {
	if m.Vote == nil {
		return nil // raft sets term, vote and commit together
	}
	return &hardState{m.GetTerm(), m.GetVote(), m.GetCommit()}
}

// runApplier applies. Whatever waits is applied at once, except that configuration changes go alone.
func (r *Replica) runApplier() {
	var work []applyWork
	for {
		var ok bool
		if work, ok = r.applies.take(work); !ok {
			return
		}
		done, err := r.applyAll(work)
		if err != nil {
			r.halt(err)
			return
		}
		for i := range done {
			r.box.put(event{applied: &done[i]})
		}
	}
}

func (r *Replica) applyAll(work []applyWork) ([]applied, error) {
	done := make([]applied, 0, len(work))
	var run []Entry
	for i := range work {
		w := &work[i]
		if !w.quiet {
			done = append(done, applied{message: w.message, do: w.message == nil})
		}
		if w.do != nil {
			if err := r.applyRun(run); err != nil {
				return nil, err
			}
			run = nil
			w.do()
			continue
		}
		for _, e := range w.message.GetEntries() {
			if e.GetType() == pb.EntryNormal {
				run = append(run, Entry{Index: e.GetIndex(), Term: e.GetTerm(), Data: e.GetData()})
				continue
			}
			if err := r.applyRun(run); err != nil {
				return nil, err
			}
			run = nil
			if err := r.applyConf(e, &done[len(done)-1]); err != nil {
				return nil, err
			}
		}
	}
	return done, r.applyRun(run)
}

func (r *Replica) applyRun(run []Entry) error {
	if len(run) == 0 {
		return nil
	}
	_, err := r.apply(run)
	return err
}

// applyConf gives the machine one configuration change and notes what it decides.
func (r *Replica) applyConf(e *pb.Entry, done *applied) error {
	if e.GetType() != pb.EntryConfChangeV2 {
		return fmt.Errorf("entry %d is of type %s, which no member proposes", e.GetIndex(), e.GetType())
	}
	_, context, err := decodeConf(e)
	if err != nil {
		return err
	}
	_, data := splitConfContext(context)
	// gofail: var beforeApplyOneConfChange struct{}
	decisions, err := r.apply([]Entry{{Index: e.GetIndex(), Term: e.GetTerm(), Conf: data}})
	if err != nil {
		return err
	}
	done.decisions = append(done.decisions, decisions...)
	state := r.o.Machine.State()
	done.state = &state
	return nil
}

func (r *Replica) apply(entries []Entry) ([]Decision, error) {
	decisions, err := r.o.Machine.Apply(entries)
	if err != nil {
		return nil, fmt.Errorf("apply entries [%d,%d]: %w", entries[0].Index, entries[len(entries)-1].Index, err)
	}
	r.count(func(c *Counters) { c.Applies++; c.Applied += uint64(len(entries)) })
	r.appliedTo(entries[len(entries)-1].Index)
	return decisions, nil
}

// takeApplied brings raft and the connections up to date with what was applied.
func (r *Replica) takeApplied(a *applied) error {
	if a.do {
		return nil
	}
	changed, err := r.member.Applied(a.message, a.decisions)
	if err != nil {
		return err
	}
	r.confsApplied(a)
	if a.state != nil {
		r.setMembers(*a.state)
		if changed {
			r.logger.Info("configuration changed", "configuration", raft.DescribeConfState(r.member.conf))
		}
	}
	r.log.setSnapshot(r.member.applied, r.member.conf)
	r.updateSolo()
	for _, e := range a.message.GetEntries() {
		r.sinceCut += len(e.GetData()) + entryOverhead
	}
	return nil
}

func (r *Replica) setMembers(s State) {
	r.mu.Lock()
	r.members = s.Members
	r.mu.Unlock()
	r.peers.update(s)
	for _, id := range s.Removed {
		if id == r.store.Member() {
			r.logger.Warn("this member has been removed from the cluster")
			r.halt(ErrRemoved)
		}
	}
}

// everyTick does what needs doing now and then.
func (r *Replica) everyTick() {
	r.proposeConfs()
	r.publish()
	limits := r.log.limits
	many := limits.keepEntries > 0 && r.applied.Load() >= r.trimmed+max(leastEntries(), min(limits.flushEntries, limits.keepEntries)/2)
	if r.member.ticks%10 == 0 || many || r.sinceCut > int(limits.segment) {
		r.sinceCut, r.trimmed = 0, r.applied.Load()
		r.trim()
	}
}

// trim cuts the log below what the machine says is durable, and asks the machine to flush if the log has grown to twice
// what is kept because it has not.
func (r *Replica) trim() {
	disk, _, _ := r.log.size()
	limits := r.log.limits
	if r.member.alone() {
		limits.keep = min(limits.keep, limits.segment) // nobody lags, and who joins receives a snapshot
	}
	if disk <= limits.keep && limits.keepEntries == 0 {
		return
	}
	durable := r.o.Machine.State().Durable
	r.appending++
	r.appends.put(appendWork{do: func() error {
		defer r.box.put(event{do: func() { r.appending-- }})
		return r.log.cut(durable, limits.keep)
	}})
	stale := limits.keepEntries > 0 && r.applied.Load() >= durable+max(limits.flushEntries, 1)
	if (disk > 2*limits.keep || stale) && !r.flushing {
		r.flushing = true
		r.peers.workers.Go(func() {
			if err := r.o.Machine.Flush(); err != nil {
				r.halt(fmt.Errorf("flush the state: %w", err))
			}
			r.box.put(event{do: func() {
				r.flushing = false
				if limits.keepEntries > 0 {
					r.trim() // what it made durable may go at once
				}
			}})
		})
	}
}
