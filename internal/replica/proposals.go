package replica

import (
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
)

// proposals follows every proposal from where it was made to its entry, so that what is lost is told soon, and as
// exactly as it can be known.
type proposals struct {
	unplaced  []proposal // accepted by raft on this leader since the last Ready
	inLog     []proposal // own ones whose place in the leader's log is known
	forwarded []forwarded
}

type proposal struct {
	from, ticket uint64 // from 0: this member's own
	position
}

type forwarded struct{ to, ticket uint64 }

// Propose takes a batch of this member. It reports whether it went anywhere; if not, it is in no log.
func (m *Member) Propose(ticket uint64, data []byte) bool {
	if m.Leads() {
		return m.append(proposal{ticket: ticket}, data)
	}
	if !m.Accepts() {
		return false
	}
	m.props.forwarded = append(m.props.forwarded, forwarded{m.lead, ticket})
	m.out.Forwards = append(m.out.Forwards, Forward{To: m.lead, Ticket: ticket, Data: data})
	return true
}

// Forwarded takes a batch that another member forwarded. It is answered at once if it is refused, otherwise with its
// place in the log.
func (m *Member) Forwarded(from, ticket uint64, data []byte) bool {
	if m.Leads() && m.append(proposal{from: from, ticket: ticket}, data) {
		return true
	}
	m.out.Answers = append(m.out.Answers, Answer{To: from, Ticket: ticket})
	return false
}

func (m *Member) append(p proposal, data []byte) bool {
	if len(data) == 0 || !m.cfg.Stamp(data) {
		m.cfg.Logger.Warningf("a proposal of %x is not a batch", p.from)
		return false
	}
	if err := m.rn.Propose(data); err != nil {
		return false
	}
	p.term = m.term
	m.props.unplaced = append(m.props.unplaced, p)
	return true
}

// Answered takes the leader's answer to a Forward: the place in its log, or a zero index for a refusal.
func (m *Member) Answered(from, ticket, index, term uint64) {
	i := slices.Index(m.props.forwarded, forwarded{from, ticket})
	if i < 0 {
		return // given up before
	}
	m.props.forwarded = slices.Delete(m.props.forwarded, i, i+1)
	if index == 0 {
		m.out.Lost = append(m.out.Lost, LostProposal{ticket, true})
		return
	}
	if index > m.applied {
		m.props.inLog = append(m.props.inLog, proposal{ticket: ticket, position: position{index, term}})
		return
	}
	switch there, err := m.cfg.Storage.Term(index); { // it was applied before the answer came
	case err != nil:
		m.out.Lost = append(m.out.Lost, LostProposal{ticket, false})
	case there != term:
		m.out.Lost = append(m.out.Lost, LostProposal{ticket, true})
	default:
		m.out.Settled = append(m.out.Settled, ticket)
	}
}

// Unsure says that the answer to a Forward will not come any more: the connection broke.
func (m *Member) Unsure(to, ticket uint64) {
	m.props.give(&m.out, func(x forwarded) bool { return x == forwarded{to, ticket} })
}

// sinceReady returns how many proposals raft has accepted that Ready has not shown.
func (p *proposals) sinceReady() int { return len(p.unplaced) }

// placed finds the proposals accepted since the last Ready among its entries.
func (p *proposals) placed(entries []*pb.Entry, out *Effects) {
	for _, e := range entries {
		if len(p.unplaced) == 0 {
			return
		}
		x := p.unplaced[0]
		if e.GetType() != pb.EntryNormal || len(e.GetData()) == 0 || e.GetTerm() != x.term {
			continue
		}
		p.unplaced = p.unplaced[1:]
		x.index = e.GetIndex()
		if x.from != 0 {
			out.Answers = append(out.Answers, Answer{x.from, x.ticket, x.index, x.term})
		} else {
			p.inLog = append(p.inLog, x)
		}
	}
	for _, x := range p.unplaced { // a new leader replaced them before they were written anywhere
		if x.from != 0 {
			out.Answers = append(out.Answers, Answer{To: x.from, Ticket: x.ticket})
		} else {
			out.Lost = append(out.Lost, LostProposal{x.ticket, true})
		}
	}
	p.unplaced = nil
}

// applied settles what was waiting for the entries.
func (p *proposals) applied(entries []*pb.Entry, out *Effects) {
	first, last := entries[0].GetIndex(), entries[len(entries)-1].GetIndex()
	p.inLog = slices.DeleteFunc(p.inLog, func(x proposal) bool {
		switch {
		case x.index > last:
			return false
		case x.index < first:
			out.Lost = append(out.Lost, LostProposal{x.ticket, false})
		case entries[x.index-first].GetTerm() != x.term:
			out.Lost = append(out.Lost, LostProposal{x.ticket, true})
		default:
			out.Settled = append(out.Settled, x.ticket)
		}
		return true
	})
}

// skippedTo gives up what a snapshot may or may not hold.
func (p *proposals) skippedTo(index uint64, out *Effects) {
	p.inLog = slices.DeleteFunc(p.inLog, func(x proposal) bool {
		if x.index > index {
			return false
		}
		out.Lost = append(out.Lost, LostProposal{x.ticket, false})
		return true
	})
}

// leaderChanged gives up what was on its way to another leader and not answered. While there is no leader, the former
// one may still answer.
func (p *proposals) leaderChanged(lead uint64, out *Effects) {
	if lead == 0 {
		return
	}
	p.give(out, func(x forwarded) bool { return x.to != lead })
}

func (p *proposals) give(out *Effects, match func(forwarded) bool) {
	p.forwarded = slices.DeleteFunc(p.forwarded, func(x forwarded) bool {
		if !match(x) {
			return false
		}
		out.Lost = append(out.Lost, LostProposal{x.ticket, false})
		return true
	})
}
