package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/lab"
)

// readWaiter is one caller of ReadIndex.
type readWaiter struct {
	done  chan uint64 // capacity 1; the index
	index uint64      // confirmed, waiting to be applied
	gone  bool        // the caller has left; under Replica.mu
}

// ReadIndex returns an index that is at or above every write acknowledged anywhere before the call, once a quorum has
// confirmed it and this member's machine has applied it. It waits through changes of leader until ctx ends.
func (r *Replica) ReadIndex(ctx context.Context) (uint64, error) {
	if r.solo.Load() || lab.LocalRead.Planted() {
		return r.applied.Load(), nil
	}
	w := &readWaiter{done: make(chan uint64, 1)}
	r.mu.Lock()
	first := len(r.reading) == 0
	r.reading = append(r.reading, w)
	r.mu.Unlock()
	if first {
		r.box.wake()
	}
	select {
	case index := <-w.done:
		return index, nil
	case <-ctx.Done():
	case <-r.done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.gone = true
	gone := func(x *readWaiter) bool { return x.gone }
	r.reading, r.indexed = slices.DeleteFunc(r.reading, gone), slices.DeleteFunc(r.indexed, gone)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return 0, ErrStopped
}

// takeReaders makes those who wait part of the next round.
func (r *Replica) takeReaders() {
	r.mu.Lock()
	readers := r.reading
	r.reading = nil
	r.mu.Unlock()
	if len(readers) == 0 {
		return
	}
	ticket := r.member.Read()
	group := append(r.groups[ticket], readers...)
	if len(group) >= 1024 && r.member.lead == 0 { // nobody is served for as long as there is no leader
		r.mu.Lock()
		group = slices.DeleteFunc(group, func(w *readWaiter) bool { return w.gone })
		r.mu.Unlock()
	}
	r.groups[ticket] = group
}

func (r *Replica) readsDone(d ReadDone) {
	r.mu.Lock()
	defer r.mu.Unlock()
	applied := r.applied.Load()
	r.counters.ReadRounds++
	for _, t := range d.Tickets {
		for _, w := range r.groups[t] {
			r.counters.Reads++
			w.index = d.Index
			switch {
			case w.gone:
			case d.Index <= applied:
				w.done <- d.Index
			default:
				r.indexed = append(r.indexed, w)
			}
		}
		delete(r.groups, t)
	}
}

// appliedTo lets those go who waited for index to be applied. It is called by whoever has applied.
func (r *Replica) appliedTo(index uint64) {
	r.applied.Store(index)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.indexed) == 0 {
		return
	}
	r.indexed = slices.DeleteFunc(r.indexed, func(w *readWaiter) bool {
		if w.index > index {
			return false
		}
		w.done <- w.index
		return true
	})
}

// updateSolo notes whether reads need no round: this member is the only voter and leads, and has applied an entry of its
// term, and with it everything that was acknowledged before. Nobody else can commit anything without its vote, which it
// gives on the loop after having left this state.
func (r *Replica) updateSolo() { r.solo.Store(r.member.sole() && r.member.leadership().Self) }

// confID names one proposed configuration change: the run of the member that proposed it, and a number.
type confID struct{ run, number uint64 }

type confWaiter struct {
	id     confID
	change Change
	done   chan confDone // capacity 1
	gone   <-chan struct{}
	term   uint64 // in which it was proposed
}

type confDone struct {
	index uint64
	err   error
}

func (id confID) context(data []byte) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16+len(data)), id.run)
	return append(binary.BigEndian.AppendUint64(b, id.number), data...)
}

// splitConfContext returns what ProposeConf put in front of the change's data, and the data, which is never nil.
func splitConfContext(context []byte) (confID, []byte) {
	if len(context) < 16 {
		return confID{}, []byte{}
	}
	return confID{binary.BigEndian.Uint64(context), binary.BigEndian.Uint64(context[8:])}, context[16:]
}

// ProposeConf proposes a change of the membership, on the leader, and waits until it is applied there and here. The
// machine's refusal is returned as it is. While there is no leader, or another change is under way, it waits.
// ErrLeaderChanged, ErrUnreachable and errors of ctx leave the outcome unknown.
func (r *Replica) ProposeConf(ctx context.Context, c Change) error {
	for {
		var index uint64
		var err error = errNotLeader
		switch lead := r.Status().Leader; {
		case lead == r.store.Member():
			index, err = r.proposeHere(ctx, c)
		case lead != 0 && r.peers.link(lead) != nil:
			index, err = r.callConf(ctx, lead, c)
		}
		if !errors.Is(err, errNotLeader) {
			if err != nil {
				return err
			}
			return r.waitApplied(ctx, index)
		}
		if err := r.waitTick(ctx); err != nil {
			return err
		}
	}
}

// errNotLeader is what a member answers that was taken for the leader. Nothing has been done.
var errNotLeader = fault.New(fault.Conflict, "not leader")

func (r *Replica) proposeHere(ctx context.Context, c Change) (uint64, error) {
	w := &confWaiter{change: c, done: make(chan confDone, 1), gone: ctx.Done()}
	if !r.box.put(event{do: func() { r.confQueue = append(r.confQueue, w); r.proposeConfs() }}) {
		return 0, ErrStopped
	}
	select {
	case d := <-w.done:
		return d.index, d.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-r.done:
		return 0, ErrStopped
	}
}

// proposeConfs proposes the changes that wait, as far as raft takes them: one at a time.
func (r *Replica) proposeConfs() {
	r.confQueue = slices.DeleteFunc(r.confQueue, func(w *confWaiter) bool {
		select {
		case <-w.gone:
			return true
		default:
		}
		r.confSeq++
		w.id, w.term = confID{r.run, r.confSeq}, r.member.term
		err := r.member.ProposeConf(w.change, w.id.context(w.change.Data))
		switch {
		case errors.Is(err, ErrBusy):
			return false
		case errors.Is(err, ErrNoLeader), errors.Is(err, ErrDropped):
			w.done <- confDone{err: errNotLeader}
		case err != nil:
			w.done <- confDone{err: err}
		default:
			r.confs[w.id] = w
		}
		return true
	})
}

// confsApplied answers the callers whose changes were applied, and proposes the next one.
func (r *Replica) confsApplied(a *applied) {
	if a.state == nil {
		return
	}
	for _, e := range a.message.GetEntries() {
		if e.GetType() == pb.EntryNormal {
			continue
		}
		_, context, err := decodeConf(e)
		if err != nil {
			continue // applyConf has refused it before
		}
		id, _ := splitConfContext(context)
		w := r.confs[id]
		if w == nil {
			continue
		}
		delete(r.confs, id)
		d := confDone{index: e.GetIndex(), err: errUndecided}
		if i := slices.IndexFunc(a.decisions, func(d Decision) bool { return d.Index == e.GetIndex() }); i >= 0 {
			d.err = a.decisions[i].Err
		}
		w.done <- d
	}
	r.proposeConfs()
}

var errUndecided = fault.New(fault.Internal, "the machine did not decide on a configuration change")

// failConfs tells the callers whose changes were proposed in an earlier term that their fate is open.
func (r *Replica) failConfs() {
	for id, w := range r.confs {
		if w.term != r.member.term || !r.member.Leads() {
			w.done <- confDone{err: ErrLeaderChanged}
			delete(r.confs, id)
		}
	}
	r.proposeConfs()
}

// waitApplied waits until this member has applied index.
func (r *Replica) waitApplied(ctx context.Context, index uint64) error {
	w := &readWaiter{done: make(chan uint64, 1), index: index}
	r.mu.Lock()
	if r.applied.Load() >= index {
		r.mu.Unlock()
		return nil
	}
	r.indexed = append(r.indexed, w)
	r.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	case <-r.done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.indexed = slices.DeleteFunc(r.indexed, func(x *readWaiter) bool { return x == w })
	if err := ctx.Err(); err != nil {
		return err
	}
	return ErrStopped
}

func (r *Replica) waitTick(ctx context.Context) error {
	select {
	case <-r.o.Clock.After(r.o.Tick):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return ErrStopped
	}
}

// failWaiters gives back every batch whose fate is open. Callers that wait see that Run has ended.
func (r *Replica) failWaiters() {
	for ticket := range r.held {
		data, _ := r.settle(ticket)
		r.lost(data, ErrLeaderChanged)
	}
}
