package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/lab"
)

// Replica runs one member: it drives a Member with a log, a machine and connections.
type Replica struct {
	o      Options
	store  *Store
	log    *raftLog
	member *Member // owned by the loop
	peers  *transport
	logger *slog.Logger
	rand   *rand.Rand // under randMu
	run    uint64
	randMu sync.Mutex

	box      *mailbox
	appends  *queue[appendWork]
	applies  *queue[applyWork]
	stop     chan struct{} // closed by halt
	stopOnce sync.Once
	done     chan struct{} // closed when Run has ended, or will never begin
	fatal    error         // set once, before stop is closed

	started   atomic.Bool
	receiving atomic.Bool // a snapshot
	solo      atomic.Bool // this member alone decides, and has applied what it must have: reads need no round
	applied   atomic.Uint64

	// owned by the loop
	events     []event // the ones being handled
	tickets    uint64
	held       map[uint64][]byte // batches whose fate is open, by ticket
	heldBytes  int
	origins    map[forwarded]*link // where the proposals of others came from, until they are answered
	appending  int                 // appends handed to the appender and not taken back
	applying   int
	staged     *received // a received snapshot that raft is being told of
	groups     map[uint64][]*readWaiter
	confs      map[confID]*confWaiter
	confQueue  []*confWaiter
	confSeq    uint64
	flushing   bool
	sinceCut   int    // bytes
	trimmed    uint64 // index that was applied when the log was last trimmed
	leadSince  time.Time
	lostSince  time.Time
	heardAt    time.Time // when a leader was last heard of
	leadership Leadership

	mu       sync.Mutex
	reading  []*readWaiter // wait for the loop to take them into a group
	indexed  []*readWaiter // wait for index to be applied
	status   Status
	counters Counters
	members  []Peer
}

// New returns a replica that has not started. It refuses a store whose log and machine do not fit together. The store
// belongs to the replica from now on.
func New(s *Store, o Options) (*Replica, error) {
	if o.Machine == nil || o.Source == nil || o.Stamp == nil || o.Clock == nil || o.Rand == nil {
		return nil, fault.New(fault.Internal, "replica: Machine, Source, Stamp, Clock and Rand are required")
	}
	if o.Tick <= 0 {
		o.Tick = 100 * time.Millisecond
	}
	orDefault(&o.ElectionTicks, 10)
	orDefault(&o.BatchBytes, 1<<20)
	orDefault(&o.EntryBytes, 64<<20)
	orDefault(&o.AppendsPending, 2)
	state := o.Machine.State()
	if err := s.log.check(state.Applied); err != nil {
		return nil, err
	}
	s.log.setConf(confState(state.Members))
	r := &Replica{
		o: o, store: s, log: s.log, logger: orDiscard(o.Logger), rand: rand.New(o.Rand),
		box: newMailbox(), appends: newQueue[appendWork](), applies: newQueue[applyWork](),
		stop: make(chan struct{}), done: make(chan struct{}),
		held: map[uint64][]byte{}, origins: map[forwarded]*link{}, groups: map[uint64][]*readWaiter{}, confs: map[confID]*confWaiter{},
		members: state.Members, lostSince: o.Clock.Now(),
	}
	r.run = r.rand.Uint64()
	r.applied.Store(state.Applied)
	member, err := NewMember(MemberConfig{
		ID: s.Member(), Storage: s.log, Applied: state.Applied, ElectionTicks: o.ElectionTicks, Intn: r.intn, Run: r.run,
		Stamp: o.Stamp, Logger: raftLogger{r.logger},
	})
	if err != nil {
		return nil, err
	}
	r.member = member
	r.log.setSnapshot(state.Applied, member.conf)
	r.peers = newTransport(r)
	r.peers.update(state)
	r.handleInternal()
	r.publish()
	return r, nil
}

func (r *Replica) intn(n int) int {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	return r.rand.IntN(n)
}

// Run is the member's life. It returns nil after ctx ended or Stop was called, ErrRemoved if the cluster has removed the
// member, and otherwise the fault that ended it, after which the process must not go on using the data directory.
func (r *Replica) Run(ctx context.Context) error {
	if !r.started.CompareAndSwap(false, true) {
		return errors.New("replica: Run is called once")
	}
	defer close(r.done)
	var workers sync.WaitGroup
	workers.Go(r.runAppender)
	workers.Go(r.runApplier)
	r.peers.start(ctx)
	halted := context.AfterFunc(ctx, func() { r.halt(nil) })
	defer halted()

	if err := r.loop(); err != nil {
		r.halt(err)
	}
	r.box.close()
	r.peers.close()
	r.appends.close()
	r.applies.close()
	workers.Wait()
	r.failWaiters()
	err := r.fatal
	if err == nil || errors.Is(err, ErrRemoved) {
		return errors.Join(err, r.log.close())
	}
	return errors.Join(err, r.log.abandon())
}

// halt ends Run, with the first error that anybody gives.
func (r *Replica) halt(err error) {
	r.stopOnce.Do(func() {
		r.fatal = err
		close(r.stop)
	})
}

// Stop hands leadership over if this member leads and another voter is fit, and then ends Run, at the latest when ctx
// ends. It returns when Run has.
func (r *Replica) Stop(ctx context.Context) error {
	if !r.started.Load() {
		return errors.New("replica: Stop before Run")
	}
	err := r.handOver(ctx)
	r.halt(nil)
	<-r.done
	return err
}

// Wake says that Source has something to give. It never blocks.
func (r *Replica) Wake() { r.box.wake() }

// loop handles events until the member stops. Raft panics when its assumptions are broken: that is fatal like any other
// fault, but the other goroutines are ended in order.
func (r *Replica) loop() (err error) {
	defer recovered(&err)
	r.begin()
	tick := r.o.Clock.After(r.o.Tick)
	for {
		ticked := false
		select {
		case <-r.stop:
			return nil
		case <-r.box.notify:
		case <-tick:
			tick, ticked = r.o.Clock.After(r.o.Tick), true
		}
		if err := r.turn(ticked); err != nil {
			return err
		}
	}
}

// recovered makes an error of a panic.
func recovered(err *error) {
	if p := recover(); p != nil {
		if lab.Failpoint(p) {
			panic(p)
		}
		*err = fmt.Errorf("replica: %v\n%s", p, debug.Stack())
	}
}

// begin is what the loop does first.
func (r *Replica) begin() {
	if r.member.sole() {
		r.member.Campaign()
	}
}

// turn handles what waits for the loop, and what follows from it.
func (r *Replica) turn(ticked bool) error {
	if ticked {
		r.member.Tick()
	}
	r.events = r.box.take(r.events)
	for i := range r.events {
		if err := r.handle(&r.events[i]); err != nil {
			return err
		}
	}
	r.takeReaders()
	if ticked {
		r.everyTick()
	}
	return r.advance()
}

// inlineRounds is how often advance may append and apply before the loop looks at the clock and at its mailbox again.
const inlineRounds = 32

// advance carries out effects and pulls proposals until there is nothing left to do without a new event.
func (r *Replica) advance() error {
	for range inlineRounds {
		more, err := r.carryOut(r.pull())
		if err != nil {
			return err
		}
		if !more && !r.member.hasWork() {
			return nil
		}
	}
	r.box.wake()
	return nil
}

func (r *Replica) handle(e *event) error {
	switch {
	case e.message != nil:
		return r.member.Step(e.message)
	case e.appended != nil:
		r.appending--
		r.member.Appended(e.appended)
	case e.applied != nil:
		r.applying--
		return r.takeApplied(e.applied)
	case e.forward != nil:
		r.origins[forwarded{e.forward.To, e.forward.Ticket}] = e.link
		ok := r.member.Forwarded(e.forward.To, e.forward.Ticket, e.forward.Data)
		r.count(func(c *Counters) {
			if ok {
				c.ForwardedIn++
			} else {
				c.RefusedForwarders++
			}
		})
	case e.answer != nil:
		r.member.Answered(e.answer.To, e.answer.Ticket, e.answer.Index, e.answer.Term)
	case e.installed != nil:
		r.appending--
		r.takeInstalled(e.installed)
	case e.do != nil:
		e.do()
	}
	return nil
}

// maxHeld bounds the bytes of batches whose fate is open; inlineBytes is the largest batch for which a sole voter
// appends and applies on the loop.
const (
	maxHeld     = 64 << 20
	inlineBytes = 16 << 10
)

// pull takes batches from Source while there is room for them, and returns the bytes.
func (r *Replica) pull() (bytes int) {
	// What Source makes of Status must be what the member is: a change of leadership is told first.
	for r.member.leadership() == r.leadership && r.member.Accepts() && r.reachesLeader() && r.appending+r.member.pendingBatches() < r.o.AppendsPending && r.heldBytes < maxHeld {
		data, ok := r.o.Source.Next(r.o.BatchBytes)
		if !ok {
			return bytes
		}
		r.count(func(c *Counters) { c.Proposals++; c.ProposalBytes += uint64(len(data)) })
		r.tickets++
		if !r.member.Propose(r.tickets, data) {
			r.lost(data, ErrDropped)
			return bytes // raft knows something that its next Ready will say: that this member leads no more, or has too much to commit
		}
		r.held[r.tickets] = data
		r.heldBytes += len(data)
		bytes += len(data)
	}
	return bytes
}

// reachesLeader reports whether a proposal could be sent; otherwise requests wait in Source.
func (r *Replica) reachesLeader() bool {
	return r.member.Leads() || r.peers.link(r.member.lead) != nil
}

func (r *Replica) lost(data []byte, err error) {
	r.count(func(c *Counters) { c.ProposalsLost++ })
	r.o.Source.Lost(data, err)
}

func (r *Replica) settle(ticket uint64) ([]byte, bool) {
	data, ok := r.held[ticket]
	delete(r.held, ticket)
	r.heldBytes -= len(data)
	return data, ok
}

// carryOut does what the member's effects ask for. It reports whether doing so was an event itself. pulled is the size of
// the batches that were pulled just before.
func (r *Replica) carryOut(pulled int) (more bool, err error) {
	out := r.member.Take()
	if out.Leadership != nil {
		r.leadershipChanged(*out.Leadership)
		r.box.wake() // what waits in Source may go now
	}
	for _, l := range out.Lost {
		if data, ok := r.settle(l.Ticket); ok {
			reason := ErrLeaderChanged
			if l.Certain {
				reason = ErrDropped
			}
			r.lost(data, reason)
		}
	}
	for _, t := range out.Settled {
		r.settle(t)
	}
	for _, d := range out.Reads {
		r.readsDone(d)
	}
	for _, a := range out.Answers {
		key := forwarded{a.To, a.Ticket}
		if l := r.origins[key]; l != nil {
			l.must(answerFrame(a)) // if it cannot be told, the link breaks, and the proposer gives up by itself
		}
		delete(r.origins, key)
	}
	for _, f := range out.Forwards {
		if !r.peers.forward(f) {
			r.box.put(event{answer: &Answer{To: f.To, Ticket: f.Ticket}}) // never left: certain
		}
	}
	if r.member.role == raft.StateLeader {
		// gofail: var raftBeforeLeaderSend struct{}
	} else {
		// gofail: var raftBeforeFollowerSend struct{}
	}
	for _, m := range out.Messages {
		r.send(m)
	}
	inline := r.member.sole() && r.appending == 0 && r.applying == 0 && pulled <= inlineBytes
	appends, applies := out.Append, out.Apply
	if inline && (len(appends) > 0 || len(applies) > 0) && !carriesSnapshot(appends) {
		return true, r.carryOutInline(appends, applies)
	}
	for _, m := range appends {
		w := appendWork{message: m}
		if m.GetSnapshot() != nil {
			w.received, r.staged = r.staged, nil
		}
		r.appending++
		r.appends.put(w)
	}
	for _, m := range applies {
		r.applying++
		r.applies.put(applyWork{message: m})
	}
	r.member.Clear()
	r.discardStaged()
	return false, nil
}

func carriesSnapshot(appends []*pb.Message) bool {
	for _, m := range appends {
		if m.GetSnapshot() != nil {
			return true
		}
	}
	return false
}

// carryOutInline appends and applies on the loop. Neither worker has anything to do, and only the loop gives them work.
func (r *Replica) carryOutInline(appends, applies []*pb.Message) error {
	work := make([]applyWork, 0, 1)
	for _, m := range applies {
		work = append(work, applyWork{message: m})
	}
	todo := append(make([]*pb.Message, 0, 1), appends...)
	r.member.Clear()
	r.discardStaged()
	if len(todo) > 0 {
		if err := r.appendAll(todo); err != nil {
			return err
		}
		for _, m := range todo {
			if len(m.GetEntries()) > 0 {
				r.count(func(c *Counters) { c.Inline++ })
			}
			r.member.Appended(m)
		}
	}
	if len(work) == 0 {
		return nil
	}
	done, err := r.applyAll(work)
	if err != nil {
		return err
	}
	for i := range done {
		if err := r.takeApplied(&done[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) count(f func(*Counters)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.counters)
}
