package replica

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/seal"
)

// growth is the simulation of a cluster whose members come and go, as sim is of one whose members stay. Each member has a real
// store on a disk that forgets what was not synced, and a machine that forgets what was not flushed; segments are small and
// are cut, so that members need snapshots. It begins with one founder and grows, promotes, removes and replaces members while
// they are killed, lose power, hand over and are cut off. What must hold is checked at each election and at each entry.
type growth struct {
	t       *testing.T
	rng     *rand.Rand
	trace   io.Writer
	members map[uint64]*grown
	ids     []uint64 // of members that exist, in the order of their creation
	net     []any    // *pb.Message, growthSnapshot, simForward, simAnswer

	leaders map[uint64][2]uint64 // term -> who led in it, in which of its runs
	log     []position           // what the cluster applied, from index 2 on
	data    []string
	confs   []uint64 // indexes of the changes that were carried out
	tickets int
	next    uint64 // id of the next member
	counts  struct{ settled, elections, crashes, snapshots, most int }
}

// grown is one member.
type grown struct {
	id      uint64
	fs      *vfs.MemFS
	store   *Store
	ledger  *ledger
	m       *Member
	appends []*pb.Message
	written int // of appends: in the log, but not synced
	applies []*pb.Message
	staged  *received
	due     []*received // staged states for the snapshots in appends
	tickets map[uint64]string
	leads   uint64 // the term in which it was last seen to lead
	cut     bool
	down    bool // crashed, or told of its removal
	removed bool
	runs    uint64
}

// growthSnapshot is a state on its way.
type growthSnapshot struct {
	from, to uint64
	head     snapshotHead
	state    []byte
}

const growthSegment = 4 << 10

func newGrowth(t *testing.T, seed uint64, trace io.Writer) *growth {
	g := &growth{t: t, rng: rand.New(rand.NewPCG(seed, 2)), trace: trace, members: map[uint64]*grown{}, leaders: map[uint64][2]uint64{}, next: 2}
	g.create(1, []Peer{{ID: 1}}, []uint64{1})
	return g
}

func (g *growth) check(err error) {
	if err != nil {
		g.t.Helper()
		g.t.Fatal(err)
	}
}

func (x *grown) options(ring *seal.Keyring) StoreOptions {
	return StoreOptions{FS: x.fs, Dir: dataDir, Ring: ring, SegmentBytes: growthSegment, KeepBytes: growthSegment, CacheBytes: 2 << 10}
}

func (g *growth) create(id uint64, members []Peer, voters []uint64) {
	x := &grown{id: id, fs: vfs.NewCrashableMem()}
	var err error
	x.store, err = Create(x.options(newRing(g.t, x.fs, dataDir)), Bootstrap{Cluster: testCluster, Member: id, Voters: voters},
		func(dir string) error { return buildLedger(x.fs, dir, members) })
	g.check(err)
	g.members[id], g.ids = x, append(g.ids, id)
	g.open(x)
}

// open does what New does.
func (g *growth) open(x *grown) {
	var err error
	x.ledger, err = openLedger(x.fs, x.store.StateDir())
	g.check(err)
	state := x.ledger.State()
	g.check(x.store.log.check(state.Applied))
	x.store.log.setConf(confState(state.Members))
	x.runs++
	x.appends, x.written, x.applies, x.staged, x.due, x.down = nil, 0, nil, nil, nil, false
	x.tickets, x.leads = map[uint64]string{}, 0
	x.m, err = NewMember(MemberConfig{
		ID: x.id, Storage: x.store.log, Applied: state.Applied, ElectionTicks: 10, Intn: g.rng.IntN, Run: x.id<<32 | x.runs,
		Stamp: stampBatch, Logger: quietLogger{},
	})
	g.check(err)
	x.store.log.setSnapshot(state.Applied, x.m.conf)
	fmt.Fprintf(g.trace, "open %d: applied %d commit %d last %d voters %v learners %v\n", x.id, state.Applied, x.m.commit, x.m.last, x.m.conf.GetVoters(), x.m.conf.GetLearners())
}

// crash ends a member: what its machine had not flushed is gone. If power is lost, so is what its log had not synced.
func (g *growth) crash(x *grown, power bool) {
	if x.down {
		return
	}
	fmt.Fprintf(g.trace, "crash %d power %v\n", x.id, power)
	g.counts.crashes++
	x.store.log.preparing.Wait()
	fs := x.fs
	if power {
		fs = x.fs.CrashClone(vfs.CrashCloneCfg{})
	}
	g.check(x.store.log.abandon())
	x.fs, x.down = fs, true
}

func (g *growth) restart(x *grown) {
	ring, err := seal.OpenKeyring(x.fs, dataDir, thinKEK{})
	g.check(err)
	if x.store, err = Open(x.options(ring)); err != nil {
		g.t.Fatalf("member %d: %v", x.id, err)
	}
	g.open(x)
}

// write puts what waits into the log; sync makes it count.
func (g *growth) write(x *grown) {
	for x.written < len(x.appends) && g.rng.IntN(4) > 0 {
		m := x.appends[x.written]
		if m.GetSnapshot() != nil {
			if x.written == 0 {
				g.install(x, m)
			}
			return
		}
		g.check(x.store.log.append(hardOf(m), m.GetEntries()))
		x.store.log.preparing.Wait()
		x.written++
	}
}

func (g *growth) sync(x *grown) {
	g.check(x.store.log.sync())
	for _, m := range x.appends[:x.written] {
		x.m.Appended(m)
	}
	x.appends, x.written = x.appends[x.written:], 0
	g.collect(x)
}

// install does what Replica.install does, and may crash after each of its steps.
func (g *growth) install(x *grown, message *pb.Message) {
	for len(x.applies) > 0 && !x.down {
		g.apply(x)
	}
	if x.down {
		return
	}
	rec := x.due[0]
	m := x.store.marker
	m.state, m.start, m.voters, m.learners = rec.number, rec.head.position, rec.head.voters, rec.head.learners
	m.segment = x.store.log.newest()
	for i, step := range []func() error{
		func() error { return x.store.writeMarker(m) },
		func() error { return x.store.log.reset(rec.head.position, hardOf(message)) },
		rec.staged.Install,
	} {
		if g.rng.IntN(30) == 0 {
			fmt.Fprintf(g.trace, "%d: before step %d of an installation\n", x.id, i)
			g.crash(x, g.rng.IntN(2) == 0)
			return
		}
		g.check(step())
		x.store.log.preparing.Wait()
	}
	fmt.Fprintf(g.trace, "%d: installed %v\n", x.id, rec.head.position)
	g.counts.snapshots++
	x.appends, x.due = x.appends[1:], x.due[1:]
	x.m.Appended(message)
	x.store.log.setSnapshot(x.m.applied, x.m.conf)
	g.collect(x)
	if slices.Contains(x.ledger.State().Removed, x.id) {
		g.remove(x)
	}
}

func (g *growth) remove(x *grown) {
	if !x.down {
		fmt.Fprintf(g.trace, "%d: removed\n", x.id)
		x.store.log.preparing.Wait()
		g.check(x.store.log.abandon())
	}
	x.down, x.removed = true, true
}

func (g *growth) apply(x *grown) {
	m := x.applies[0]
	x.applies = x.applies[1:]
	var decisions []Decision
	for _, e := range m.GetEntries() {
		one := Entry{Index: e.GetIndex(), Term: e.GetTerm(), Data: e.GetData()}
		if e.GetType() != pb.EntryNormal {
			_, context, err := decodeConf(e)
			g.check(err)
			_, one.Conf = splitConfContext(context)
			one.Data = nil
		}
		d, err := x.ledger.Apply([]Entry{one})
		g.check(err)
		decisions = append(decisions, d...)
		if one.Conf != nil {
			fmt.Fprintf(g.trace, "%d: applies change %v at %d: %v\n", x.id, one.Conf, one.Index, d)
		}
		at, data := position{e.GetIndex(), e.GetTerm()}, string(e.GetData())
		switch i := int(at.index) - 2; {
		case i < len(g.log):
			if g.log[i] != at || g.data[i] != data {
				g.t.Fatalf("member %d applies %v %q where another applied %v %q", x.id, at, data, g.log[i], g.data[i])
			}
		default:
			g.log, g.data = append(g.log, at), append(g.data, data)
			if len(d) > 0 && d[0].Err == nil {
				g.confs = append(g.confs, at.index)
			}
		}
	}
	_, err := x.m.Applied(m, decisions)
	g.check(err)
	x.store.log.setSnapshot(x.m.applied, x.m.conf)
	state := x.ledger.State()
	if x.m.restored > state.Applied {
		// raft has the configuration of the snapshot that comes next
	} else if got, want := x.m.conf.GetVoters(), confState(state.Members).Voters; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		g.t.Fatalf("member %d: raft has the voters %v, the machine %v", x.id, got, want)
	}
	g.collect(x)
	for _, p := range state.Members { // whoever is invited comes, sooner or later
		if g.members[p.ID] == nil {
			g.create(p.ID, nil, nil)
		}
	}
	if slices.Contains(state.Removed, x.id) {
		g.remove(x)
	}
}

// elected checks what an election must not break.
func (g *growth) elected(x *grown) {
	term := x.m.term
	fmt.Fprintf(g.trace, "%d leads in term %d, voters %v\n", x.id, term, x.m.conf.GetVoters())
	g.counts.elections++
	self := [2]uint64{x.id, x.runs}
	if other, ok := g.leaders[term]; ok && other != self {
		g.t.Fatalf("both %v and %v (member, run) lead in term %d", other, self, term)
	}
	g.leaders[term] = self
	at := max(x.ledger.State().Applied, x.m.applied)
	behind := 0
	for _, index := range g.confs {
		if index > at {
			behind++
		}
	}
	if behind > 1 {
		g.t.Fatalf("member %d is elected at index %d with the voters %v, which is %d changes old", x.id, at, x.m.conf.GetVoters(), behind)
	}
	// It has everything that anybody has applied, and so everything that was acknowledged.
	if n := len(g.log); n > 0 {
		want := g.log[n-1]
		term, err := x.store.log.Term(want.index)
		if errors.Is(err, raft.ErrCompacted) {
			return
		}
		if err != nil || term != want.term {
			g.t.Fatalf("member %d leads in term %d without %v, which was applied: term %d, %v", x.id, x.m.term, want, term, err)
		}
	}
}

func (g *growth) collect(x *grown) {
	out := x.m.Take()
	if x.m.role == raft.StateLeader && x.leads != x.m.term {
		x.leads = x.m.term
		g.elected(x)
	}
	for _, l := range out.Lost {
		delete(x.tickets, l.Ticket)
	}
	for _, ticket := range out.Settled {
		if d := x.tickets[ticket]; !x.ledger.has(d) {
			g.t.Fatalf("member %d: %q is settled, but was not applied", x.id, d)
		}
		delete(x.tickets, ticket)
		g.counts.settled++
	}
	for _, a := range out.Answers {
		g.net = append(g.net, simAnswer{x.id, a})
	}
	for _, f := range out.Forwards {
		g.net = append(g.net, simForward{x.id, f})
	}
	for _, m := range out.Messages {
		if m.GetType() == pb.MsgSnap {
			g.pin(x, m)
			continue
		}
		g.net = append(g.net, m)
	}
	for _, m := range out.Append {
		if m.GetSnapshot() != nil {
			x.due, x.staged = append(x.due, x.staged), nil
		}
	}
	x.appends = append(x.appends, out.Append...)
	x.applies = append(x.applies, out.Apply...)
	x.staged = nil
	x.m.Clear()
}

// pin sends the state of a leader.
func (g *growth) pin(x *grown, m *pb.Message) {
	s, err := x.ledger.Snapshot()
	g.check(err)
	state := s.State()
	at := position{index: state.Applied}
	if at.term, err = x.store.log.Term(at.index); err != nil || g.rng.IntN(10) == 0 {
		g.net = append(g.net, growthSnapshot{from: x.id, to: 0})
		x.m.SnapshotSent(m.GetTo(), false)
		g.collect(x)
		return
	}
	conf := confState(state.Members)
	g.net = append(g.net, growthSnapshot{x.id, m.GetTo(), snapshotHead{max(m.GetTerm(), at.term), at, conf.Voters, conf.Learners}, s.(*pinnedLedger).data})
}

// arrive does what receive, stage and offer do. It reports whether the snapshot was offered to raft.
func (g *growth) arrive(x *grown, s *growthSnapshot) bool {
	if s.head.index <= x.m.commit || s.head.term < x.m.term || len(x.due) > 0 {
		return false
	}
	rec := &received{number: x.store.marker.state + 1, head: s.head, done: make(chan error, 1)}
	dir := x.store.stateDir(rec.number)
	if err := x.fs.RemoveAll(dir); err != nil && !isNotExist(err) {
		g.t.Fatal(err)
	}
	var err error
	rec.staged, err = x.ledger.Stage(dir, strings.NewReader(string(s.state)))
	g.check(err)
	g.check(syncDir(x.fs, dataDir))
	x.staged = rec
	index, term := s.head.index, s.head.position.term
	g.check(x.m.Step(&pb.Message{
		Type: pb.MsgSnap.Enum(), From: &s.from, To: &x.id, Term: &rec.head.term,
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &index, Term: &term, ConfState: rec.head.conf()}},
	}))
	return true
}

func (g *growth) deliver() {
	i := 0
	if g.rng.IntN(4) == 0 {
		i = g.rng.IntN(len(g.net))
	}
	what := g.net[i]
	_, again := what.(*pb.Message)
	if !again || g.rng.IntN(20) > 0 {
		g.net = slices.Delete(g.net, i, i+1)
	}
	var from, to uint64
	switch m := what.(type) {
	case *pb.Message:
		from, to = m.GetFrom(), m.GetTo()
	case growthSnapshot:
		from, to = m.from, m.to
	case simForward:
		from, to = m.from, m.f.To
	case simAnswer:
		from, to = m.from, m.a.To
	}
	x, sender := g.members[to], g.members[from]
	lost := x == nil || x.down || x.cut || sender.cut || g.rng.IntN(25) == 0
	if s, ok := what.(growthSnapshot); ok {
		ok := !lost && g.arrive(x, &s)
		if ok {
			g.collect(x)
		}
		if !sender.down {
			sender.m.SnapshotSent(to, ok)
			g.collect(sender)
		}
		return
	}
	if lost {
		return
	}
	switch m := what.(type) {
	case *pb.Message:
		m, err := decodeMessage(appendMessage(nil, m))
		g.check(err)
		fmt.Fprintln(g.trace, raft.DescribeMessage(m, nil))
		if err := x.m.Step(m); err != nil {
			g.t.Fatal(err)
		}
	case simForward:
		fmt.Fprintf(g.trace, "forward %d->%d ticket %d\n", from, to, m.f.Ticket)
		x.m.Forwarded(from, m.f.Ticket, slices.Clone(m.f.Data))
	case simAnswer:
		fmt.Fprintf(g.trace, "answer %d->%d ticket %d: %d of term %d\n", from, to, m.a.Ticket, m.a.Index, m.a.Term)
		x.m.Answered(from, m.a.Ticket, m.a.Index, m.a.Term)
	}
	g.collect(x)
}

// change proposes a change of the membership to a leader.
func (g *growth) change(x *grown) {
	if x.m.role != raft.StateLeader {
		return
	}
	members := x.ledger.State().Members
	some := members[g.rng.IntN(len(members))]
	var kind ChangeKind
	switch k := g.rng.IntN(10); {
	case k < 3 && len(members) < 6:
		kind, some = AddVoter, Peer{ID: g.next}
	case k < 5 && len(members) < 6:
		kind, some = AddLearner, Peer{ID: g.next, Learner: true}
	case k < 7:
		kind, some = AddVoter, Peer{ID: some.ID}
	case k < 9:
		kind = Remove
		voters := slices.DeleteFunc(slices.Clone(members), func(p Peer) bool { return p.Learner || p.ID == some.ID })
		if len(voters) == 0 {
			return // the machine of a server refuses it
		}
	default:
		kind = Update
	}
	c := ledgerChange(kind, some)
	err := x.m.ProposeConf(c, confID{x.id<<32 | x.runs, uint64(g.tickets)}.context(c.Data))
	fmt.Fprintf(g.trace, "%d: change %d of %d: %v\n", x.id, kind, some.ID, err)
	if err == nil && some.ID == g.next {
		g.next++
	}
	g.collect(x)
}

func (g *growth) step() {
	x := g.members[g.ids[g.rng.IntN(len(g.ids))]]
	if x.removed {
		return
	}
	if x.down {
		if g.rng.IntN(30) == 0 {
			g.restart(x)
		}
		return
	}
	switch k := g.rng.IntN(1000); {
	case k < 130:
		x.m.Tick()
		g.collect(x)
	case k < 580:
		if len(g.net) > 0 {
			g.deliver()
		}
	case k < 680:
		g.write(x)
	case k < 760:
		g.sync(x)
	case k < 890:
		if len(x.applies) > 0 {
			g.apply(x)
		}
	case k < 930:
		g.tickets++
		d := fmt.Sprint("p", g.tickets, strings.Repeat(".", g.rng.IntN(200)))
		x.tickets[uint64(g.tickets)] = d
		if !x.m.Propose(uint64(g.tickets), batch(d)) {
			delete(x.tickets, uint64(g.tickets))
		}
		g.collect(x)
	case k < 945:
		g.change(x)
	case k < 950:
		x.m.Transfer(g.ids[g.rng.IntN(len(g.ids))])
		g.collect(x)
	case k < 953:
		g.crash(x, g.rng.IntN(2) == 0)
	case k < 959:
		x.cut = !x.cut
	case k < 965:
		for _, id := range g.ids {
			g.members[id].cut = false
		}
	case k < 975:
		x.m.Unreachable(g.ids[g.rng.IntN(len(g.ids))])
		g.collect(x)
	case k < 980:
		g.check(x.ledger.Flush())
	case k < 985:
		g.check(x.store.log.cut(x.ledger.State().Durable, 0))
	}
	if len(g.net) > 200 {
		g.net = g.net[100:]
	}
	g.counts.most = max(g.counts.most, len(x.m.conf.GetVoters()))
}

// TestGrowth lets clusters grow from one founder, shrink and be replaced under crashes. REPLICA_SEEDS sets how many;
// REPLICA_SEED prints the trace of one.
func TestGrowth(t *testing.T) {
	current := uint64(0)
	defer func() {
		if p := recover(); p != nil || t.Failed() {
			t.Logf("seed %d: REPLICA_SEED=%d prints its trace; %v", current, current, p)
			t.Fail()
		}
	}()
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	if n, err := strconv.Atoi(os.Getenv("REPLICA_SEEDS")); err == nil {
		seeds = n
	}
	first, last := uint64(0), uint64(seeds)
	if n, err := strconv.ParseUint(os.Getenv("REPLICA_SEED"), 10, 64); err == nil {
		first, last = n, n+1
	}
	var settled, elections, crashes, snapshots, changes, most int
	for seed := first; seed < last; seed++ {
		current = seed
		var hashes []uint64
		runs := 1
		if seed%20 == 0 {
			runs = 2
		}
		for range runs {
			h := fnv.New64a()
			var trace io.Writer = h
			if first+1 == last {
				trace = io.MultiWriter(h, os.Stderr)
			}
			g := newGrowth(t, seed, trace)
			for range 15000 {
				g.step()
			}
			hashes = append(hashes, h.Sum64())
			settled, elections, crashes = settled+g.counts.settled, elections+g.counts.elections, crashes+g.counts.crashes
			snapshots, changes, most = snapshots+g.counts.snapshots, changes+len(g.confs), max(most, g.counts.most)
			for _, id := range g.ids {
				if x := g.members[id]; !x.down {
					x.store.log.preparing.Wait()
					g.check(x.store.log.abandon())
				}
			}
		}
		if hashes[0] != hashes[len(hashes)-1] {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
	t.Logf("%d proposals settled, %d elections, %d crashes, %d snapshots, %d changes, up to %d voters", settled, elections, crashes, snapshots, changes, most)
	if n := int(last - first); n >= 10 && (settled < 10*n || changes < 2*n || snapshots < n/5 || most < 4) {
		t.Error("too little got through to show anything")
	}
}

// TestVoteIsDurableFirst: a candidate asks for votes when its own is durable, not before: two others could elect it, and after
// a crash elect it again in the same term, with other entries in the places of the former ones.
func TestVoteIsDurableFirst(t *testing.T) {
	s := newSim(t, 3, 1, io.Discard)
	x := s.members[0]
	one, two, term := uint64(1), uint64(2), uint64(2)
	asks := func() (n int) {
		for _, m := range s.net {
			if m, ok := m.(*pb.Message); ok && m.GetType() == pb.MsgVote {
				n++
			}
		}
		return n
	}
	x.m.Campaign()
	s.collect(x)
	if err := x.m.Step(&pb.Message{Type: pb.MsgPreVoteResp.Enum(), From: &two, To: &one, Term: &term}); err != nil {
		t.Fatal(err)
	}
	s.collect(x)
	if n := asks(); n != 0 || len(x.appends) == 0 {
		t.Fatalf("%d requests for votes before the vote is written, %d appends", n, len(x.appends))
	}
	for len(x.appends) > 0 {
		s.append(x)
	}
	if hard, _, err := x.storage.InitialState(); err != nil || hard.GetTerm() != 2 || hard.GetVote() != 1 || asks() != 2 {
		t.Fatalf("%v, %d requests, %v", hard, asks(), err)
	}
}
