package clustertest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

const (
	clusterID = 0xc1
	dataDir   = "/data"
)

// member is one member of the cluster through all of its runs.
type member struct {
	w      *world
	number int // from 1
	id     uint64
	disk   *disk
	kek    *kek
	skew   time.Duration // of the wall clock: only stamps see it
	tick   time.Duration // between ticks of the log: its quartz is not that of the others
	beat   time.Duration // between ticks of core

	boots   int
	stepper *replica.Stepper // nil: the member is down
	core    *core.Core
	cancel  context.CancelFunc
	keepers sync.WaitGroup
	leads   uint64 // the term in which it was last seen to lead
	touched bool   // the driver has to look at it
	applied uint64 // index
	links   []*link
	ending  bool   // it has heard of its removal
	gone    bool   // removed from the cluster for good
	spoiled bool   // its disk is damaged: it must not start, and is to be replaced
	rotten  bool   // a bit of its disk has flipped
	voter   bool   // as far as the simulation knows
	served  bool   // a write in the end
	listed  bool   // it was seen among the cluster's members
	peerURL string // of one that was invited
	guarded bool   // its disk may fail: steps run on a goroutine that may end
	said    bool   // has published itself in this run

	fatal     fatal
	busy      [numWork]bool
	stalled   time.Duration // the disk stands still until then
	paused    time.Duration // the process stands still until then
	published *operation
}

// The kinds of work that the driver schedules for a member.
const (
	workTurn = iota
	workWrite
	workSync
	workApply
	numWork
)

// fatal is what the storage engine has reported.
type fatal struct {
	mu  sync.Mutex
	err error
}

func (f *fatal) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (m *member) up() bool { return m.stepper != nil }

func (m *member) name() string { return fmt.Sprintf("m%d", m.number) }

func (m *member) url() string {
	if m.peerURL != "" {
		return m.peerURL
	}
	return fmt.Sprintf("https://m%d:2380", m.number)
}

// kek is the key that seals a member's disk. It can be away, or be another one.
type kek struct {
	mask byte
	away bool
}

var errKeyAway = errors.New("the key service does not answer")

// ID implements seal.KEK.
func (k *kek) ID() string { return fmt.Sprintf("sim:%x", k.mask) }

// Wrap implements seal.KEK.
func (k *kek) Wrap(_ context.Context, plaintext, _ []byte) ([]byte, error) {
	if k.away {
		return nil, errKeyAway
	}
	out := slices.Clone(plaintext)
	for i := range out {
		out[i] ^= k.mask
	}
	return out, nil
}

// Unwrap implements seal.KEK.
func (k *kek) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	return k.Wrap(ctx, wrapped, aad)
}

// silent is an audit record that keeps nothing. The record has tests of its own.
type silent struct{}

// Commit implements core.Recorder.
func (silent) Commit(audit.Event) error { return nil }

// Note implements core.Recorder.
func (silent) Note(audit.Event) {}

// Err implements core.Recorder.
func (silent) Err() error { return nil }

// noise reads as random bytes, the same in each run.
type noise struct{ r *rand.ChaCha8 }

// Read implements io.Reader.
func (n noise) Read(b []byte) (int, error) { return n.r.Read(b) }

func (m *member) storeOptions(ring *seal.Keyring) replica.StoreOptions {
	c := &m.w.plan
	return replica.StoreOptions{
		FS: m.disk, Dir: dataDir, Ring: ring, Logger: m.w.logger(m),
		SegmentBytes: c.SegmentBytes, CacheBytes: 64 << 10, KeepEntries: c.KeepEntries, FlushEntries: c.FlushEntries,
	}
}

func (m *member) fs(ring *seal.Keyring) vfs.FS {
	if m.w.plan.Sealed {
		return seal.NewFS(m.disk, ring, dataDir)
	}
	return m.disk
}

func (m *member) engine(ring *seal.Keyring) func(dir string) (*storage.Engine, error) {
	return func(dir string) (*storage.Engine, error) {
		return storage.Open(storage.Options{
			FS: m.fs(ring), Dir: dir, Split: mvcc.Split, CacheBytes: 1 << 20, MemTableBytes: 8 << 20,
			Logger: m.w.logger(m), OnFatal: m.onFatal, Settle: func(path string) error { return seal.Rewrite(m.disk, path) },
		})
	}
}

// onFatal is called by the storage engine. Whatever the engine still does counts no more: it sees a disk that works again, on
// which nothing that it writes will be found.
func (m *member) onFatal(err error) {
	m.fatal.mu.Lock()
	if m.fatal.err == nil {
		m.fatal.err = err
	}
	m.fatal.mu.Unlock()
	m.disk.leave()
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "storage.logAdapter.Fatalf") || strings.HasSuffix(f.Function, "storage.(*directory).Sync") {
			m.w.leaked.Store(true)
			runtime.Goexit() // the engine would stand still here, with its locks
		}
		if !more {
			return
		}
	}
}

// create makes the member's disk. A founder knows all founders and is a voter, a joiner knows the members that there are.
func (m *member) create(members []state.Member, founder bool) error {
	m.disk, m.kek = newDisk(), &kek{mask: 0x5a}
	if err := m.disk.MkdirAll(dataDir, 0o700); err != nil {
		return err
	}
	root, err := m.disk.OpenDir("/")
	if err == nil {
		err = root.Sync() // a data directory that exists before it is used: an operator's business
	}
	if err != nil {
		return err
	}
	ring, err := seal.CreateKeyring(m.disk, dataDir, m.kek)
	if err != nil {
		return err
	}
	var voters []uint64
	for i := range members {
		if founder {
			voters = append(voters, members[i].ID)
		}
	}
	boot := replica.Bootstrap{Cluster: clusterID, Member: m.id, Voters: voters}
	store, err := replica.Create(m.storeOptions(ring), boot, func(dir string) error {
		e, err := m.engine(ring)(dir)
		if err != nil {
			return err
		}
		return errors.Join(m.found(e, members, founder), e.Close())
	})
	if err != nil {
		return err
	}
	return store.Close()
}

// found does what node does for a new member.
func (m *member) found(e *storage.Engine, members []state.Member, founder bool) error {
	if err := state.Bootstrap(e, clusterID, members, m.w.plan.Level, true); err != nil {
		return err
	}
	if founder {
		machine, err := state.Open(e, state.Options{})
		if err != nil {
			return err
		}
		_, err = machine.Apply([]state.Entry{{Index: 1, Term: 1}})
		if err = errors.Join(err, machine.Close()); err != nil {
			return err
		}
	}
	return e.Flush()
}

// start runs the member, as node does.
func (m *member) start() (err error) {
	w := m.w
	if fresh := m.disk.dead(); fresh != nil {
		m.disk = fresh
	}
	m.fatal.err, m.guarded = nil, m.rotten
	ring, err := seal.OpenKeyring(m.disk, dataDir, m.kek)
	if err != nil {
		return err
	}
	store, err := replica.Open(m.storeOptions(ring))
	if err != nil {
		return err
	}
	e, err := m.engine(ring)(store.StateDir())
	if err != nil {
		return errors.Join(err, store.Close())
	}
	machine, err := state.Open(e, state.Options{})
	if err != nil {
		return errors.Join(err, e.Close(), store.Close())
	}
	m.boots++
	seed := w.plan.Seed<<16 ^ uint64(m.number)<<8 ^ uint64(m.boots)
	rng := rand.New(rand.NewPCG(seed, 77))
	m.core, err = core.New(core.Options{
		Machine: machine, NewEngine: m.engine(ring), Member: m.id, Boot: rng.Uint64(), Clock: time.Now, Logger: w.logger(m),
		Rand: noise{rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "core %d", seed)))}, Audit: silent{},
		Limits:     core.Limits{ReserveBytes: w.plan.ReserveBytes, MaxLearners: 2},
		BcryptCost: 4, Election: w.plan.Election, ClusterToken: "sim", ProgressInterval: time.Minute, CheckpointInterval: w.plan.Checkpoint,
		Compaction: core.AutoCompaction{Revisions: w.plan.KeepRevisions}, FreeDisk: func() (int64, error) { return m.disk.free(), nil },
	})
	if err != nil {
		return errors.Join(err, machine.Close(), e.Close(), store.Close())
	}
	stepper, err := replica.NewStepper(store, replica.Options{
		Machine: &watched{m, m.core}, Source: m.core, Stamp: core.Stamp(func() time.Time { return time.Now().Add(m.skew) }),
		Clock: replica.Wall{}, Rand: rand.NewPCG(seed, 78), Logger: w.logger(m), Tick: w.plan.Heartbeat,
		ElectionTicks: int(w.plan.Election / w.plan.Heartbeat), Dial: m.dial, Identify: identify, OnLeader: m.onLeader,
	})
	if err != nil {
		m.core.Close()
		return errors.Join(err, m.core.Release().Close(), e.Close(), store.Close())
	}
	m.core.Attach(stepper.Replica(), stepper.Replica())
	m.stepper, m.busy, m.said, m.ending, m.leads, m.stalled, m.paused = stepper, [numWork]bool{}, false, false, 0, 0, 0
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.keepers.Go(func() { _ = m.core.Housekeep(ctx) }) // it ends with ctx only
	m.applied = stepper.Replica().Status().Applied
	return stepper.Begin()
}

func identify(_ net.Conn, id uint64) (policy.Principal, error) {
	return policy.NewMember(fmt.Sprintf("%x", id), policy.Certificate{}), nil
}

func (m *member) onLeader(l replica.Leadership) {
	m.w.log("%s sees leader %s in term %d self %v", m.name(), m.w.nameOf(l.Leader), l.Term, l.Self)
	if l.Self && m.leads != l.Term {
		m.leads = l.Term
		m.w.elected(m, l.Term)
	}
}

// stop ends the run as the death of the process does. What is on the disk now, or was when its trap went off, is what the next
// run finds.
func (m *member) stop() {
	m.disk.leave()
	s, c := m.stepper, m.core
	m.stepper, m.core = nil, nil
	closed := make(chan error, 1)
	go func() {
		m.cancel()
		m.keepers.Wait()
		err := s.Kill()
		c.Close()
		machine := c.Release()
		closed <- errors.Join(err, machine.Close(), machine.Engine().Close())
	}()
	synctest.Wait()
	select {
	case <-closed: // an error is that of a run whose disk does not count any more
	default:
		m.w.leaked.Store(true) // an engine that met a fault does not close
	}
}

// watched is the machine of a member, with the invariants of all members checked at each entry.
type watched struct {
	m *member
	*core.Core
}

// Apply implements replica.Machine. Where the state is hashed, entries are cut.
func (x *watched) Apply(entries []replica.Entry) (decisions []replica.Decision, err error) {
	w := x.m.w
	synctest.Wait() // who has waited for the entries before looks at the state before
	for len(entries) > 0 {
		n := len(entries)
		every := w.plan.HashEvery
		if room := every - (entries[0].Index-1)%every; uint64(n) > room {
			n = int(room)
		}
		d, err := x.Core.Apply(entries[:n])
		if err != nil {
			return decisions, err
		}
		decisions = append(decisions, d...)
		for i := range entries[:n] {
			if x.m.disk.dead() == nil { // else it is no more than a dream of a process that has died
				w.applied(x.m, &entries[i])
			}
		}
		x.m.applied = entries[n-1].Index
		if last := entries[n-1].Index; last%every == 0 && x.m.disk.dead() == nil {
			w.compare(x.m, last)
		}
		entries = entries[n:]
		synctest.Wait() // who was woken looks at this state, not at the next
	}
	return decisions, nil
}

// lines writes log lines of members to where the trace is printed.
type lines struct {
	w *world
	m *member
}

// Write implements io.Writer.
func (l lines) Write(b []byte) (int, error) {
	l.w.logMu.Lock()
	defer l.w.logMu.Unlock()
	fmt.Fprintf(l.w.verbose, "%13.6f   %s: %s", l.w.now().Seconds(), l.m.name(), b)
	return len(b), nil
}

func (w *world) logger(m *member) *slog.Logger {
	if w.verbose == nil {
		return slog.New(slog.DiscardHandler)
	}
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(io.Writer(lines{w, m}), &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: drop}))
}
