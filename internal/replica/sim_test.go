package replica

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// sim drives members on one goroutine: ticks, deliveries, appends and applies happen in an order that a seed decides, and
// messages are lost, doubled and late. Everything a member may do wrong is checked as it goes.
type sim struct {
	t       *testing.T
	rng     *rand.Rand
	trace   io.Writer
	members []*simMember
	net     []any // *pb.Message, simForward, simAnswer

	log      []string // what the cluster applied: the data of index i+2
	tickets  int
	acked    uint64 // highest index that a settled proposal had
	fate     map[string]string
	reads    map[string]uint64 // read -> acked when it was asked
	settled  int
	readDone int
}

type simMember struct {
	id      uint64
	m       *Member
	storage *raft.MemoryStorage
	runs    uint64
	appends []*pb.Message
	applies []*pb.Message
	applied uint64
	tickets map[uint64]string
	at      map[string]uint64 // index of what was applied here
	pending map[uint64][]string
	cut     bool
}

type simForward struct {
	from uint64
	f    Forward
}

type simAnswer struct {
	from uint64
	a    Answer
}

func newSim(t *testing.T, n int, seed uint64, trace io.Writer) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 1)), trace: trace, fate: map[string]string{}, reads: map[string]uint64{}}
	var voters []uint64
	for id := uint64(1); id <= uint64(n); id++ {
		voters = append(voters, id)
	}
	for _, id := range voters {
		x := &simMember{id: id, storage: raft.NewMemoryStorage(), applied: 1}
		one := uint64(1)
		if err := x.storage.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &one, Term: &one, ConfState: &pb.ConfState{Voters: voters}}}); err != nil {
			t.Fatal(err)
		}
		if err := x.storage.SetHardState(&pb.HardState{Term: &one, Commit: &one, Vote: new(uint64)}); err != nil {
			t.Fatal(err)
		}
		s.members = append(s.members, x)
		s.boot(x)
	}
	return s
}

func (s *sim) boot(x *simMember) {
	x.runs++
	hard, _, err := x.storage.InitialState()
	if err != nil {
		s.t.Fatal(err)
	}
	if hard.GetCommit() < x.applied { // as raftLog.check does
		hard = &pb.HardState{Term: new(hard.GetTerm()), Vote: new(hard.GetVote()), Commit: &x.applied}
		if err := x.storage.SetHardState(hard); err != nil {
			s.t.Fatal(err)
		}
	}
	x.appends, x.applies, x.tickets, x.pending = nil, nil, map[uint64]string{}, map[uint64][]string{}
	x.at = map[string]uint64{}
	x.m, err = NewMember(MemberConfig{
		ID: x.id, Storage: x.storage, Applied: x.applied, ElectionTicks: 10, Intn: s.rng.IntN, Run: x.id<<32 | x.runs,
		Stamp: func([]byte) bool { return true }, Logger: quietLogger{},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// quietLogger panics where raft does, and is silent otherwise.
type quietLogger struct{ raftLogger }

func (quietLogger) Info(...any)             {}
func (quietLogger) Infof(string, ...any)    {}
func (quietLogger) Warning(...any)          {}
func (quietLogger) Warningf(string, ...any) {}
func (quietLogger) Error(...any)            {}
func (quietLogger) Errorf(string, ...any)   {}

func (s *sim) crash(x *simMember) {
	fmt.Fprintf(s.trace, "crash %d\n", x.id)
	// What was not acknowledged as appended is gone; what was applied may be gone from the machine, down to some index.
	for _, d := range x.tickets {
		s.fate[d] = "unknown"
	}
	if s.rng.IntN(2) == 0 {
		x.applied -= uint64(s.rng.IntN(int(min(x.applied-1, 4)) + 1))
	}
	s.boot(x)
}

func (s *sim) append(x *simMember) {
	m := x.appends[0]
	x.appends = x.appends[1:]
	if h := hardOf(m); h != nil {
		if err := x.storage.SetHardState(&pb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := x.storage.Append(m.GetEntries()); err != nil {
		s.t.Fatal(err)
	}
	x.m.Appended(m)
	s.collect(x)
}

func (s *sim) apply(x *simMember) {
	m := x.applies[0]
	x.applies = x.applies[1:]
	for _, e := range m.GetEntries() {
		if e.GetIndex() != x.applied+1 {
			s.t.Fatalf("member %d applies %d after %d", x.id, e.GetIndex(), x.applied)
		}
		x.applied = e.GetIndex()
		data := fmt.Sprintf("%d:%s", e.GetTerm(), e.GetData())
		switch i := int(e.GetIndex()) - 2; {
		case i < len(s.log):
			if s.log[i] != data {
				s.t.Fatalf("member %d applies %q at %d where another applied %q", x.id, data, e.GetIndex(), s.log[i])
			}
		default:
			s.log = append(s.log, data)
		}
		if d := string(e.GetData()); d != "" {
			if s.fate[d] == "dropped" {
				s.t.Fatalf("%s was reported as in no log, and is applied at %d", d, e.GetIndex())
			}
			x.at[d] = e.GetIndex()
		}
	}
	if _, err := x.m.Applied(m, nil); err != nil {
		s.t.Fatal(err)
	}
	s.collect(x)
}

// collect takes a member's effects. Unlike a Replica, it may leave appends and applies for later.
func (s *sim) collect(x *simMember) {
	out := x.m.Take()
	if out.Leadership != nil {
		fmt.Fprintf(s.trace, "%d: leader %d term %d self %v\n", x.id, out.Leadership.Leader, out.Leadership.Term, out.Leadership.Self)
	}
	for _, l := range out.Lost {
		d := x.tickets[l.Ticket]
		delete(x.tickets, l.Ticket)
		fmt.Fprintf(s.trace, "%d: lost %s %v\n", x.id, d, l.Certain)
		s.fate[d] = map[bool]string{true: "dropped", false: "unknown"}[l.Certain]
		if i := slices.IndexFunc(s.log, func(e string) bool { return d != "" && strings.HasSuffix(e, ":"+d) }); l.Certain && i >= 0 {
			s.t.Fatalf("%s was lost for certain, but is at index %d", d, i+2)
		}
	}
	for _, ticket := range out.Settled {
		d := x.tickets[ticket]
		delete(x.tickets, ticket)
		index, ok := x.at[d]
		if !ok {
			s.t.Fatalf("member %d: %s is settled, but was not applied", x.id, d)
		}
		s.acked = max(s.acked, index)
		fmt.Fprintf(s.trace, "%d: settled %s at %d\n", x.id, d, index)
		s.settled++
	}
	for _, r := range out.Reads {
		for _, ticket := range r.Tickets {
			for _, name := range x.pending[ticket] {
				if r.Index < s.reads[name] {
					s.t.Fatalf("read %s is confirmed at %d, but %d was acknowledged before it was asked", name, r.Index, s.reads[name])
				}
				fmt.Fprintf(s.trace, "%d: read %s at %d\n", x.id, name, r.Index)
				s.readDone++
			}
			delete(x.pending, ticket)
		}
	}
	for _, a := range out.Answers {
		s.net = append(s.net, simAnswer{x.id, a})
	}
	for _, f := range out.Forwards {
		s.net = append(s.net, simForward{x.id, f})
	}
	for _, m := range out.Messages {
		s.net = append(s.net, m)
	}
	x.appends = append(x.appends, out.Append...)
	x.applies = append(x.applies, out.Apply...)
	x.m.Clear()
}

func (s *sim) deliver() {
	i := s.rng.IntN(len(s.net))
	if s.rng.IntN(4) > 0 {
		i = 0 // mostly in order
	}
	what := s.net[i]
	_, once := what.(simForward)    // a link delivers a proposal once: see link.dispatch
	if once || s.rng.IntN(20) > 0 { // otherwise it stays, and comes again
		s.net = slices.Delete(s.net, i, i+1)
	}
	var from, to uint64
	switch m := what.(type) {
	case *pb.Message:
		from, to = m.GetFrom(), m.GetTo()
	case simForward:
		from, to = m.from, m.f.To
	case simAnswer:
		from, to = m.from, m.a.To
	}
	x := s.members[to-1]
	if s.rng.IntN(25) == 0 || x.cut || s.members[from-1].cut {
		return // lost
	}
	switch m := what.(type) {
	case *pb.Message:
		fmt.Fprintln(s.trace, raft.DescribeMessage(m, nil))
		if m.GetType() == pb.MsgSnap {
			s.t.Fatal("a snapshot, though no log is cut")
		}
		b := appendMessage(nil, m)
		m, err := decodeMessage(b)
		if err != nil {
			s.t.Fatalf("a message that members do send is refused: %v", err)
		}
		if err := x.m.Step(m); err != nil {
			s.t.Fatal(err)
		}
	case simForward:
		fmt.Fprintf(s.trace, "forward %d->%d %s\n", from, to, m.f.Data)
		x.m.Forwarded(from, m.f.Ticket, m.f.Data)
	case simAnswer:
		fmt.Fprintf(s.trace, "answer %d->%d %d at %d/%d\n", from, to, m.a.Ticket, m.a.Term, m.a.Index)
		x.m.Answered(from, m.a.Ticket, m.a.Index, m.a.Term)
	}
	s.collect(x)
}

func (s *sim) step() {
	x := s.members[s.rng.IntN(len(s.members))]
	switch k := s.rng.IntN(1000); {
	case k < 150:
		x.m.Tick()
		s.collect(x)
	case k < 600:
		if len(s.net) > 0 {
			s.deliver()
		}
	case k < 740:
		if len(x.appends) > 0 {
			s.append(x)
		}
	case k < 880:
		if len(x.applies) > 0 {
			s.apply(x)
		}
	case k < 920:
		s.tickets++
		d := fmt.Sprint("p", s.tickets)
		x.tickets[uint64(s.tickets)] = d
		if !x.m.Propose(uint64(s.tickets), []byte(d)) {
			delete(x.tickets, uint64(s.tickets))
			s.fate[d] = "dropped"
		}
		s.collect(x)
	case k < 960:
		s.tickets++
		name := fmt.Sprint("r", s.tickets)
		s.reads[name] = s.acked
		fmt.Fprintf(s.trace, "%d: asks to read %s\n", x.id, name)
		ticket := x.m.Read()
		x.pending[ticket] = append(x.pending[ticket], name)
		s.collect(x)
	case k < 964:
		other := s.members[s.rng.IntN(len(s.members))]
		x.m.Transfer(other.id)
		s.collect(x)
	case k < 966:
		s.crash(x)
	case k < 969:
		x.cut = !x.cut
	case k < 975:
		x.m.Unreachable(s.members[s.rng.IntN(len(s.members))].id)
		if f := x.m.props.forwarded; len(f) > 0 {
			f := f[s.rng.IntN(len(f))]
			x.m.Unsure(f.to, f.ticket)
		}
		s.collect(x)
	case k < 977:
		if !s.members[0].cut {
			for _, y := range s.members {
				y.cut = false
			}
		}
	}
	if len(s.net) > 200 {
		s.net = s.net[100:]
	}
}

func TestSimulation(t *testing.T) {
	current := uint64(0)
	defer func() {
		if p := recover(); p != nil || t.Failed() {
			t.Logf("seed %d: REPLICA_SEED=%d prints its trace; %v", current, current, p)
			t.Fail()
		}
	}()
	seeds := 150
	if testing.Short() {
		seeds = 10
	}
	if n, err := strconv.Atoi(os.Getenv("REPLICA_SEEDS")); err == nil {
		seeds = n
	}
	settled, reads := 0, 0
	for seed := range uint64(seeds) {
		current = seed
		n := 1 + 2*int(seed%3)
		var hashes [2]uint64
		for i := range hashes {
			h := fnv.New64a()
			var trace io.Writer = h
			if os.Getenv("REPLICA_SEED") == fmt.Sprint(seed) {
				trace = io.MultiWriter(h, os.Stderr)
			}
			s := newSim(t, n, seed, trace)
			for range 6000 {
				s.step()
			}
			hashes[i] = h.Sum64()
			if seed%20 != 0 {
				hashes[1] = hashes[0]
				settled, reads = settled+s.settled, reads+s.readDone
				break
			}
		}
		if hashes[0] != hashes[1] {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
	if settled < 100*seeds/10 || reads < 100*seeds/10 {
		t.Errorf("only %d proposals and %d reads got through in %d runs: the simulation is too harsh to show anything", settled, reads, seeds)
	}
}
