package core

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Recorder is the audit record. audit.Record implements it.
type Recorder interface {
	// Commit writes an event and returns when it is durable. An operation of control is denied if it fails.
	Commit(e audit.Event) error
	// Note takes an event to be written soon. It does not block on the disk.
	Note(e audit.Event)
	// Err returns why the record cannot be written; nil if it can.
	Err() error
}

// Limits bound what one member holds and accepts. Zero fields take the defaults.
type Limits struct {
	RequestBytes int64 // largest request; 1.5 MiB
	TxnOps       int   // operations in one transaction; 128
	QueueBytes   int64 // requests that wait for the log or its answer; 64 MiB
	StreamBytes  int64 // events queued for one watch stream; 4 MiB
	QuotaBytes   int64 // logical size of SpaceEtcd above which NOSPACE is raised; 2 GiB; negative: none
	ReserveBytes int64 // free disk below which NOSPACE is raised; 128 MiB; negative: none
	MaxLearners  int   // learners of the cluster; 1; negative: none
	Tokens       int   // simple tokens alive on this member; 100,000
	Waiters      int   // lookups of this member that wait for a change; 100,000
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.RequestBytes, 1536<<10)
	def(&l.QueueBytes, 64<<20)
	def(&l.StreamBytes, 4<<20)
	def(&l.QuotaBytes, 2<<30)
	def(&l.ReserveBytes, 128<<20)
	if l.TxnOps == 0 {
		l.TxnOps = 128
	}
	if l.MaxLearners == 0 { // negative: none
		l.MaxLearners = state.DefaultMaxLearners
	}
	if l.Tokens == 0 {
		l.Tokens = 100_000
	}
	if l.Waiters == 0 {
		l.Waiters = 100_000
	}
	return l
}

// Options are what a core needs. Machine, NewEngine, Member, Boot, Clock, Rand and Audit are required.
type Options struct {
	Machine *state.Machine
	// OpenState opens the machine whose rows are in e; used when a snapshot is received. Nil: state.Open.
	OpenState func(e *storage.Engine) (*state.Machine, error)
	// NewEngine creates an engine in a directory that does not exist yet; used to receive a snapshot.
	NewEngine func(dir string) (*storage.Engine, error)

	Member uint64 // this member
	Boot   uint64 // random, new at each start
	Clock  Clock
	Rand   io.Reader // cryptographic
	Logger *slog.Logger
	Audit  Recorder
	Limits Limits

	Election time.Duration // election timeout; 1 s

	ClusterToken string // goes into the ids of new members
	// NoStrictReconfig lets a membership change pass that leaves too few started or connected members.
	NoStrictReconfig bool

	AuthToken  string                            // "simple" (also if empty) or "jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…" as etcd's --auth-token
	ReadFile   func(name string) ([]byte, error) // reads the keys that AuthToken names; nil: it may name none
	TokenTTL   time.Duration                     // of simple tokens, sliding; 300 s
	BcryptCost int                               // 10

	ProgressInterval   time.Duration // between progress notifications; 10 min
	CheckpointInterval time.Duration // between checkpoints of long leases; 0: none
	CorruptInterval    time.Duration // between comparisons of hashes by the leader; 0: none
	Compaction         AutoCompaction
	SweepRows          int // of what was compacted, looked at for one write that removes them; 2000
	// FreeDisk returns the bytes that are free where the data directory is; nil: nobody knows, nothing is raised.
	FreeDisk      func() (int64, error)
	AuditPrefixes [][]byte // reads and writes of keys of SpaceEtcd with these prefixes are audited

	// OnRevoked is told of certificates that were revoked, or whose machine was replaced (nil: look at all). It runs
	// on the applier and must not block.
	OnRevoked func(certs []policy.Certificate)
	// OnMembers is told that some member has changed. It runs on the applier and must not block.
	OnMembers func(members []state.Member)
}

// AutoCompaction is etcd's: Periodic keeps what is younger than Period; Revisions, if not 0, keeps that many.
type AutoCompaction struct {
	Period    time.Duration
	Revisions int64
}

// Core is the only way in. Its methods may be called from any goroutine unless they say otherwise.
type Core struct {
	opt     Options
	limits  Limits
	clock   Clock
	log     *slog.Logger
	audit   Recorder
	member  uint64
	timeout time.Duration // of one request
	system  policy.Principal

	current    atomic.Pointer[generation]
	seen       atomic.Pointer[replica.Status] // the log's at the last tick: good enough for what every request asks
	replog     Log
	peers      Peers
	hubs       [mvcc.SpaceSystem + 1]*hub
	proposals  proposals
	reads      readRounds
	lessor     lessor
	sessions   sessionClock
	lookups    lookups
	tokens     tokenStore
	passwords  passwords
	leadership leadership
	proof      proof
	compactors [3]compactor // of SpaceEtcd, SpaceConsulKV, SpaceCatalog
	janitor    janitor
	alarmAt    time.Time     // the clock's alone: no alarm is proposed before
	disk       diskWatch     // the clock's alone, but for what it inherits
	levelAt    time.Time     // likewise for the feature level
	rights     atomic.Uint64 // one more with every change of who may do what
	installs   atomic.Int64  // how often the machine was replaced
	began      time.Time     // when this core was made
	stopped    atomic.Bool
	stats      counters

	rand     sync.Mutex    // guards opt.Rand; a leaf
	confTurn chan struct{} // capacity 1: one membership change of this member at a time
}

type counters struct {
	watchers, slowWatchers, refusals, tooMany, timeouts atomic.Int64
}

// Counters are the numbers of a core that an operator watches. All but Watchers, Waiters and QueuedBytes only grow.
type Counters struct {
	Watchers        int64 // open now
	Waiters         int64 // lookups that wait for a change now
	SlowWatchers    int64 // times that a watch fell behind because its stream was not read
	Refusals        int64
	TooManyRequests int64
	Timeouts        int64
	QueuedBytes     int64 // of requests that wait for the log or its answer
}

// Counters returns the core's numbers.
func (c *Core) Counters() Counters {
	return Counters{
		Watchers: c.stats.watchers.Load(), SlowWatchers: c.stats.slowWatchers.Load(), Refusals: c.stats.refusals.Load(),
		TooManyRequests: c.stats.tooMany.Load(), Timeouts: c.stats.timeouts.Load(), QueuedBytes: c.proposals.queuedBytes(),
		Waiters: c.lookups.count.Load(),
	}
}

// New makes a core over an open machine. It serves nothing until Attach.
func New(o Options) (*Core, error) {
	switch {
	case o.Machine == nil, o.Clock == nil, o.Rand == nil, o.Audit == nil, o.Member == 0:
		return nil, errors.New("core: Machine, Clock, Rand, Audit and Member are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Election == 0 {
		o.Election = time.Second
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = 300 * time.Second
	}
	if o.SweepRows <= 0 {
		o.SweepRows = sweepRows
	}
	if o.ProgressInterval == 0 {
		o.ProgressInterval = 10 * time.Minute
	}
	c := &Core{
		opt: o, limits: o.Limits.withDefaults(), clock: o.Clock, log: o.Logger, audit: o.Audit, member: o.Member,
		timeout: 5*time.Second + 2*o.Election, system: policy.NewSystem("holdfast"),
	}
	if c.opt.OpenState == nil {
		c.opt.OpenState = func(e *storage.Engine) (*state.Machine, error) { return state.Open(e, state.Options{}) }
	}
	c.current.Store(newGeneration(o.Machine))
	for _, id := range mvcc.Spaces() {
		c.hubs[id] = newHub(c, id, o.Machine.Space(id).Revision())
	}
	c.proposals.setup(state.Proposal{Member: o.Member, Boot: o.Boot}, c.limits.QueueBytes)
	c.lessor.setup(o.Election, o.CheckpointInterval)
	c.sessions.demoteLocked()
	c.lookups.setup(c.limits.Waiters)
	c.setupCompaction()
	c.began = c.clock()
	c.leadership.setup()
	c.confTurn = make(chan struct{}, 1)
	if err := c.setupAuth(); err != nil {
		return nil, err
	}
	return c, nil
}

// Attach gives the core its log. It must be called once, before anything else and before the log runs.
func (c *Core) Attach(log Log, peers Peers) {
	c.replog, c.peers = log, peers
	c.observe(c.clock())
	peers.Handle(methodLease, c.serveLease)
	peers.Handle(methodSession, c.serveSession)
	peers.Handle(methodToken, c.serveToken)
	peers.Handle(methodPromote, c.servePromote)
	peers.Handle(methodHash, c.serveHash)
}

// Close refuses new calls and answers those that wait with ErrStopped. The machine stays open for the log until Release.
func (c *Core) Close() {
	if c.stopped.Swap(true) {
		return
	}
	c.proposals.stop(ErrStopped)
	c.reads.stop()
	c.lookups.move()
	for _, h := range c.hubs {
		if h == nil {
			continue
		}
		for _, s := range h.all() {
			s.Close()
		}
	}
}

// Release waits until no call reads the machine any more and hands it to the caller, who closes its engine. The log must
// have ended, and Close must have been called.
func (c *Core) Release() *state.Machine {
	g := c.current.Load()
	g.retire()
	<-g.drained
	return g.machine
}

// Header returns who answers, the term, and the revision of a space as this member has applied it.
func (c *Core) Header(space mvcc.SpaceID) Header {
	g := c.acquire()
	defer g.release()
	return Header{Cluster: g.machine.ClusterID(), Member: c.member, Term: c.seen.Load().Term, Revision: g.machine.Space(space).Revision()}
}

// checkRunning returns ErrStopped once Close has been called, and the context's error if it has ended.
func (c *Core) checkRunning(ctx context.Context) error {
	if c.stopped.Load() {
		return ErrStopped
	}
	return ctx.Err()
}
