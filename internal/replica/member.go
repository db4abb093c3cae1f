package replica

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/internal/fault"
)

// MemberConfig is what a Member starts from.
type MemberConfig struct {
	ID      uint64
	Storage raft.Storage // its InitialState's configuration is the one at Applied
	Applied uint64

	ElectionTicks int
	Intn          func(n int) int // randomness: election jitter
	Run           uint64          // different for every run of the member: reads of one run never match answers to another's
	Stamp         func(data []byte) bool
	Logger        raft.Logger
}

// Member is the deterministic step machine: events go in through its methods, effects come out of Take. It has no
// goroutine, clock, disk, network or randomness of its own, and is not safe for concurrent use.
type Member struct {
	cfg MemberConfig
	rn  *raft.RawNode

	ticks    int
	elapsed  int // ticks since a leader was heard of, or a vote given
	timeout  int
	heard    bool // a leader was heard of, or this member led, since the driver last looked
	term     uint64
	vote     uint64
	commit   uint64
	last     uint64
	lead     uint64
	role     raft.StateType
	applied  uint64
	conf     *pb.ConfState
	announce Leadership // as last put into Effects

	termStart   uint64 // index of the first entry of the present term, if this member leads; 0: not appended yet
	transferee  uint64
	transferEnd int
	confIndex   uint64 // a configuration change may be proposed once this index is applied
	restored    uint64 // index of the newest snapshot that raft has taken: its configuration is raft's at once, installed or not

	asking []asking
	reads  reads
	props  proposals
	out    Effects
}

// asking are the requests of a candidate for votes, which wait until its own term and vote are durable. Raft would let them
// go at once: enough others elect a leader that has nothing on disk. After a crash it could be elected in the same term again,
// and give other entries the places of those that it has sent before.
type asking struct {
	vote     *pb.Message // the append that carries term and vote
	requests []*pb.Message
}

// Effects is what must follow, in this order: Leadership, Lost, Reads and Answers are told; Forwards and Messages are
// sent at once; each of Append is written to the log, in order, and then given to Appended; each of Apply is applied, in
// order, and then given to Applied.
type Effects struct {
	Messages   []*pb.Message
	Append     []*pb.Message
	Apply      []*pb.Message
	Forwards   []Forward
	Answers    []Answer
	Reads      []ReadDone
	Lost       []LostProposal
	Settled    []uint64 // tickets of proposals that were applied, or of which nothing more will be known
	Leadership *Leadership
}

// Forward is a proposal to be sent to the leader.
type Forward struct {
	To, Ticket uint64
	Data       []byte
}

// Answer is what becomes of a proposal that another member forwarded. A zero Index: it is in no log.
type Answer struct {
	To, Ticket  uint64
	Index, Term uint64
}

// ReadDone confirms that every write acknowledged before the tickets' reads is at or below Index.
type ReadDone struct {
	Index   uint64
	Tickets []uint64
}

// LostProposal is a proposal that will not be applied (Certain), or that may or may not be.
type LostProposal struct {
	Ticket  uint64
	Certain bool
}

// The limits of raft. A message is cut at maxMessage unless its first entry is larger; apply work that is out is
// bounded by maxApplying bytes, and the log's uncommitted tail by maxUncommitted.
const (
	maxMessage     = 1 << 20
	maxInflight    = 256
	maxInflightLen = 64 << 20
	maxApplying    = 16 << 20
	maxUncommitted = 256 << 20
)

// NewMember returns a member at the state that its log and its machine are in.
func NewMember(c MemberConfig) (*Member, error) {
	hard, conf, err := c.Storage.InitialState()
	if err != nil {
		return nil, err
	}
	last, err := c.Storage.LastIndex()
	if err != nil {
		return nil, err
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: c.ID, Storage: c.Storage, Applied: c.Applied, Logger: c.Logger,
		// Elections are timed by Tick below. Raft's own timer never fires: a follower's clock is only moved by
		// TickQuiesced, because raft draws its jitter from crypto/rand and gives no way to inject another source.
		ElectionTick: c.ElectionTicks, HeartbeatTick: 1,
		AsyncStorageWrites: true, PreVote: true, CheckQuorum: true, StepDownOnRemoval: true,
		ReadOnlyOption: raft.ReadOnlySafe, DisableProposalForwarding: true,
		MaxSizePerMsg: maxMessage, MaxInflightMsgs: maxInflight, MaxInflightBytes: maxInflightLen,
		MaxCommittedSizePerReady: maxApplying, MaxUncommittedEntriesSize: maxUncommitted,
	})
	if err != nil {
		return nil, err
	}
	m := &Member{
		cfg: c, rn: rn, last: last, applied: c.Applied, conf: conf,
		term: hard.GetTerm(), vote: hard.GetVote(), commit: hard.GetCommit(),
	}
	m.resetTimer()
	return m, nil
}

// Tick moves the clock by one heartbeat interval.
func (m *Member) Tick() {
	m.ticks++
	if m.transferee != 0 && m.ticks >= m.transferEnd {
		m.transferee = 0
	}
	if m.role == raft.StateLeader {
		m.rn.Tick()
		m.heard = true
	} else {
		m.rn.TickQuiesced()
		m.elapsed++
		if m.elapsed >= m.timeout || m.sole() && m.elapsed > 1 {
			m.Campaign()
		}
	}
	m.reads.retry(m.ticks - max(m.cfg.ElectionTicks/4, 2))
}

// Campaign starts an election now, if this member is a voter that may.
func (m *Member) Campaign() {
	m.resetTimer()
	if m.role == raft.StateLeader || !slices.Contains(m.conf.GetVoters(), m.cfg.ID) {
		return
	}
	if err := m.rn.Campaign(); err != nil {
		m.cfg.Logger.Warningf("campaign: %v", err)
	}
}

func (m *Member) resetTimer() {
	m.elapsed, m.timeout = 0, m.cfg.ElectionTicks+m.cfg.Intn(m.cfg.ElectionTicks)
}

// sole reports whether this member is the only voter.
func (m *Member) sole() bool {
	v := m.conf.GetVoters()
	return len(v) == 1 && v[0] == m.cfg.ID && len(m.conf.GetVotersOutgoing()) == 0
}

// alone reports whether this member is the only one: the voter of a cluster without learners.
func (m *Member) alone() bool { return m.sole() && len(m.conf.GetLearners()) == 0 }

// Step takes a message of another member. An error is fatal: the leader counts on entries that this log has lost.
func (m *Member) Step(msg *pb.Message) error {
	if msg.GetTerm() >= m.term {
		switch msg.GetType() {
		case pb.MsgHeartbeat:
			if msg.GetTerm() == m.term && msg.GetCommit() > m.last {
				return ErrRolledBack.WithHint("this member has acknowledged entry %d, but its log ends at %d; %s", msg.GetCommit(), m.last, rejoinHint)
			}
			m.elapsed, m.heard = 0, true
		case pb.MsgApp, pb.MsgSnap:
			m.elapsed, m.heard = 0, true
		}
	}
	if err := m.rn.Step(msg); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) && !errors.Is(err, raft.ErrProposalDropped) {
		m.cfg.Logger.Warningf("%s of %x: %v", msg.GetType(), msg.GetFrom(), err)
	}
	if msg.GetType() == pb.MsgSnap {
		m.takeReady() // whatever is applied from here on has to know of the snapshot
	}
	return nil
}

// Leads reports whether this member is the leader, and not handing over.
func (m *Member) Leads() bool { return m.role == raft.StateLeader && m.transferee == 0 }

// Accepts reports whether a proposal has somewhere to go.
func (m *Member) Accepts() bool {
	return m.Leads() || m.role != raft.StateLeader && m.lead != 0 && m.lead != m.cfg.ID
}

// Transfer hands leadership to another voter. It reports whether it was begun: this member leads and to is a voter.
func (m *Member) Transfer(to uint64) bool {
	if m.role != raft.StateLeader || !slices.Contains(m.conf.GetVoters(), to) || to == m.cfg.ID {
		return false
	}
	m.transferee, m.transferEnd = to, m.ticks+m.cfg.ElectionTicks+1
	m.rn.TransferLeader(to)
	return true
}

// pendingBatches counts the batches that are between Propose and an append of this member.
func (m *Member) pendingBatches() int { return len(m.props.unplaced) + len(m.props.forwarded) }

// BestTransferee returns the voter that could take over soonest, or 0.
func (m *Member) BestTransferee() (best uint64) {
	var match uint64
	m.Progress(func(id uint64, p tracker.Progress) {
		if id != m.cfg.ID && !p.IsLearner && p.RecentActive && p.State == tracker.StateReplicate && p.Match >= match {
			best, match = id, p.Match
		}
	})
	return best
}

// Progress calls visit with what the leader knows of each member, in order of their ids; on others it does nothing.
func (m *Member) Progress(visit func(id uint64, p tracker.Progress)) {
	if m.role == raft.StateLeader {
		m.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) { visit(id, p) })
	}
}

// ProposeConf proposes one change with a context. It fails with ErrNoLeader if this member does not lead and with
// ErrBusy while an earlier change is not applied.
func (m *Member) ProposeConf(c Change, context []byte) error {
	if !m.Leads() {
		return ErrNoLeader
	}
	if m.applied < m.confIndex || m.termStart == 0 || m.applied < m.termStart {
		return ErrBusy
	}
	kind, ok := confKind(c.Kind)
	if !ok || c.Member == 0 || raft.IsLocalMsgTarget(c.Member) {
		return fault.New(fault.Invalid, "not a change of the membership")
	}
	data, err := proto.Marshal(&pb.ConfChangeV2{Changes: []*pb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &c.Member}}, Context: context})
	if err != nil {
		return fmt.Errorf("encode a configuration change: %w", err)
	}
	entries := []*pb.Entry{{Type: pb.EntryConfChangeV2.Enum(), Data: data}}
	if err := m.rn.Step(&pb.Message{Type: pb.MsgProp.Enum(), From: &m.cfg.ID, Entries: entries}); err != nil {
		return ErrDropped
	}
	m.confIndex = m.last + uint64(m.props.sinceReady()) + 1
	if entries[0].GetType() != pb.EntryConfChangeV2 { // raft puts an empty entry in the place of what it refuses
		return ErrBusy
	}
	return nil
}

func confKind(k ChangeKind) (pb.ConfChangeType, bool) {
	switch k {
	case AddVoter:
		return pb.ConfChangeAddNode, true
	case AddLearner:
		return pb.ConfChangeAddLearnerNode, true
	case Remove:
		return pb.ConfChangeRemoveNode, true
	case Update:
		return pb.ConfChangeUpdateNode, true
	}
	return 0, false
}

// Unreachable says that messages to a peer may have been lost.
func (m *Member) Unreachable(id uint64) { m.rn.ReportUnreachable(id) }

// hasWork reports whether Take would return something.
func (m *Member) hasWork() bool { return m.rn.HasReady() }

// SnapshotSent says how sending a snapshot ended.
func (m *Member) SnapshotSent(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	m.rn.ReportSnapshot(id, status)
}

// Appended takes back a message of Effects.Append whose entries, hard state or snapshot are durable now.
func (m *Member) Appended(msg *pb.Message) {
	for _, r := range msg.GetResponses() {
		if r.GetTo() != m.cfg.ID {
			m.out.Messages = append(m.out.Messages, r)
			continue
		}
		m.local(r)
	}
	m.asking = slices.DeleteFunc(m.asking, func(a asking) bool {
		if a.vote == msg {
			m.out.Messages = append(m.out.Messages, a.requests...)
		}
		return a.vote == msg
	})
	if s := msg.GetSnapshot(); s != nil {
		index := s.GetMetadata().GetIndex()
		m.applied, m.last = max(m.applied, index), max(m.last, index)
		m.conf = s.GetMetadata().GetConfState()
		m.props.skippedTo(index, &m.out)
	}
}

func (m *Member) local(r *pb.Message) {
	if err := m.rn.Step(r); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
		m.cfg.Logger.Warningf("%s: %v", r.GetType(), err)
	}
}

// Applied takes back a message of Effects.Apply, with the machine's decisions on the configuration changes in it, and
// returns whether the configuration has changed. An error is fatal: the machine decided what raft cannot do.
func (m *Member) Applied(msg *pb.Message, decisions []Decision) (changed bool, err error) {
	entries := msg.GetEntries()
	for _, e := range entries {
		if e.GetType() == pb.EntryNormal {
			continue
		}
		ok, err := m.applyConf(e, decisions)
		if err != nil {
			return false, err
		}
		changed = changed || ok
	}
	for _, r := range msg.GetResponses() {
		m.local(r)
	}
	m.applied = max(m.applied, entries[len(entries)-1].GetIndex())
	m.props.applied(entries, &m.out)
	return changed, nil
}

func (m *Member) applyConf(e *pb.Entry, decisions []Decision) (bool, error) {
	i := slices.IndexFunc(decisions, func(d Decision) bool { return d.Index == e.GetIndex() })
	if i < 0 || decisions[i].Err != nil {
		return false, nil
	}
	if e.GetIndex() <= m.restored {
		// Raft has the configuration of a snapshot that is being installed, and in it what came of this change later: it must
		// not be done again, or it would bring back a member that was removed, or make a learner of a voter.
		return true, nil
	}
	cc, _, err := decodeConf(e)
	if err != nil {
		return false, err
	}
	voters := slices.Clone(m.conf.GetVoters())
	for _, c := range cc.GetChanges() {
		if c.GetType() == pb.ConfChangeAddNode {
			voters = append(voters, c.GetNodeId())
		}
		if c.GetType() == pb.ConfChangeRemoveNode || c.GetType() == pb.ConfChangeAddLearnerNode {
			voters = slices.DeleteFunc(voters, func(id uint64) bool { return id == c.GetNodeId() })
		}
	}
	if len(voters) == 0 && len(m.conf.GetVoters()) > 0 {
		return false, fmt.Errorf("the machine allowed the change at index %d, which leaves no voter", e.GetIndex())
	}
	m.conf = m.rn.ApplyConfChange(cc)
	if lead := m.lead; lead != 0 && lead != m.cfg.ID && !slices.Contains(voters, lead) {
		m.electSoon()
	}
	return true, nil
}

// electSoon is for when the leader has been removed: it leads no more, so nobody needs to wait for it as long as if it had
// only fallen silent.
func (m *Member) electSoon() {
	if err := m.rn.ForgetLeader(); err != nil {
		m.cfg.Logger.Warningf("forget the leader: %v", err)
	}
	m.elapsed, m.timeout = 0, 1+m.cfg.Intn(max(m.cfg.ElectionTicks/3, 1))
}

// decodeConf returns a configuration change and its context.
func decodeConf(e *pb.Entry) (*pb.ConfChangeV2, []byte, error) {
	cc := new(pb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, nil, fmt.Errorf("configuration change at index %d: %w", e.GetIndex(), err)
	}
	return cc, cc.GetContext(), nil
}

// Take returns what must follow from the events since the last call. The slices are valid until the next call of any
// method.
func (m *Member) Take() *Effects {
	m.startReads()
	m.takeReady()
	if l := m.leadership(); l != m.announce {
		m.announce = l
		m.out.Leadership = &l
	}
	return &m.out
}

func (m *Member) takeReady() {
	for m.rn.HasReady() {
		m.take(m.rn.Ready())
		m.startReads()
	}
}

// Clear forgets the effects that Take returned.
func (m *Member) Clear() {
	o := &m.out
	clear(o.Messages)
	clear(o.Append)
	clear(o.Apply)
	clear(o.Forwards)
	*o = Effects{Messages: o.Messages[:0], Append: o.Append[:0], Apply: o.Apply[:0], Forwards: o.Forwards[:0],
		Answers: o.Answers[:0], Reads: o.Reads[:0], Lost: o.Lost[:0], Settled: o.Settled[:0]}
}

func (m *Member) leadership() Leadership {
	return Leadership{Leader: m.lead, Term: m.term, Self: m.role == raft.StateLeader && m.termStart != 0 && m.applied >= m.termStart}
}

func (m *Member) take(rd raft.Ready) {
	lead, term, role := m.lead, m.term, m.role
	if rd.SoftState != nil {
		m.lead, m.role = rd.SoftState.Lead, rd.SoftState.RaftState
	}
	if h := rd.HardState; !raft.IsEmptyHardState(h) {
		if h.GetVote() != m.vote && h.GetVote() != m.cfg.ID {
			m.elapsed = 0
		}
		m.term, m.vote, m.commit = h.GetTerm(), h.GetVote(), h.GetCommit()
	}
	if m.term != term || m.role != role {
		m.resetTimer()
		m.termStart, m.transferee = 0, 0
	}
	if m.lead != lead || m.term != term {
		m.reads.restart()
		m.props.leaderChanged(m.lead, &m.out)
	}
	if s := rd.Snapshot; !raft.IsEmptySnap(s) {
		m.last = s.GetMetadata().GetIndex()
		m.restored = m.last
	}
	if n := len(rd.Entries); n > 0 {
		m.last = rd.Entries[n-1].GetIndex()
		if m.role == raft.StateLeader && m.termStart == 0 {
			if i := slices.IndexFunc(rd.Entries, func(e *pb.Entry) bool { return e.GetTerm() == m.term }); i >= 0 {
				m.termStart = rd.Entries[i].GetIndex()
				m.confIndex = max(m.confIndex, m.termStart)
			}
		}
	}
	m.props.placed(rd.Entries, &m.out)
	for _, s := range rd.ReadStates {
		m.reads.done(m.cfg.Run, s, &m.out)
	}
	var vote asking
	for _, msg := range rd.Messages {
		switch {
		case msg.GetTo() == raft.LocalAppendThread:
			vote.vote = msg
			m.out.Append = append(m.out.Append, msg)
		case msg.GetTo() == raft.LocalApplyThread:
			m.out.Apply = append(m.out.Apply, msg)
		case msg.GetType() == pb.MsgVote:
			vote.requests = append(vote.requests, msg)
		default:
			m.out.Messages = append(m.out.Messages, msg)
		}
	}
	switch {
	case len(vote.requests) == 0:
	case vote.vote == nil || vote.vote.Vote == nil: // raft gives both at once; if it did not, another election would follow
		m.cfg.Logger.Warningf("requests for votes that come without the vote to be written are dropped")
	default:
		m.asking = append(m.asking, vote)
	}
}
