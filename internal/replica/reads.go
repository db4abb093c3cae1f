package replica

import (
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"
)

// Read asks for a confirmed index. The answer comes as a ReadDone with the ticket that it returns, also after a change
// of leader. Reads that are asked before a round begins for them share the round and the ticket.
func (m *Member) Read() (ticket uint64) {
	if m.reads.open == 0 {
		m.reads.tickets++
		m.reads.open = m.reads.tickets
		m.reads.waiting = append(m.reads.waiting, m.reads.open)
	}
	return m.reads.open
}

// startReads begins a round for everybody who waits, if one may begin.
func (m *Member) startReads() {
	if len(m.reads.waiting) == 0 || len(m.reads.rounds) >= maxReadRounds || m.lead == 0 {
		return
	}
	// Raft answers a sole voter at once, even before it has committed an entry of its term; but until then it may not
	// know of everything that was acknowledged before a restart.
	if m.role == raft.StateLeader && (m.termStart == 0 || m.commit < m.termStart) {
		return
	}
	m.rn.ReadIndex(m.reads.start(m.cfg.Run, m.ticks))
}

const maxReadRounds = 4

// reads are the tickets that wait for a round, and the rounds under way.
type reads struct {
	waiting []uint64
	rounds  []readRound
	number  uint64
	tickets uint64
	open    uint64 // the ticket that reads asked now join; 0: a new one
}

type readRound struct {
	number  uint64
	started int
	tickets []uint64
}

func (r *reads) start(run uint64, now int) (context []byte) {
	r.number++
	r.rounds = append(r.rounds, readRound{r.number, now, r.waiting})
	r.waiting, r.open = nil, 0
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, run), r.number)
}

// restart makes every ticket wait for a new round, with a new number.
func (r *reads) restart() { r.retry(int(^uint(0) >> 1)) }

// retry does so for the rounds that began at or before a tick.
func (r *reads) retry(until int) {
	r.rounds = slices.DeleteFunc(r.rounds, func(x readRound) bool {
		if x.started > until {
			return false
		}
		r.waiting = append(r.waiting, x.tickets...)
		return true
	})
}

// done ends the round that s confirms. An answer to an earlier run of this member is not taken for one to this run.
func (r *reads) done(run uint64, s raft.ReadState, out *Effects) {
	if len(s.RequestCtx) != 16 || binary.BigEndian.Uint64(s.RequestCtx) != run {
		return
	}
	number := binary.BigEndian.Uint64(s.RequestCtx[8:])
	for i, x := range r.rounds {
		if x.number == number {
			out.Reads = append(out.Reads, ReadDone{s.Index, x.tickets})
			r.rounds = slices.Delete(r.rounds, i, i+1)
			return
		}
	}
}
