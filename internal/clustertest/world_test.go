package clustertest

import (
	"container/heap"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// world is one simulation. All of it belongs to the driver except what is under mu.
type world struct {
	plan    plan
	rng     *rand.Rand // of the driver: delays
	began   time.Time
	timer   *time.Timer
	queue   eventQueue
	seq     uint64
	trace   *trace
	verbose io.Writer
	logMu   sync.Mutex
	end     time.Duration
	over    bool

	members []*member // in order of creation
	net     network
	system  policy.Principal

	clients    []*client
	operations int
	pending    []*operation
	touched    []*member
	watches    []*watching
	seen       int64        // revision up to which the whole watch was told everything
	onLeader   bool         // somebody asks what the leader has to answer
	told       func() int64 // up to where the whole watch was told; it is opened again if it has ended
	settledAt  time.Duration
	tidied     bool
	lasts      int
	lastError  error
	removal    bool // a member is being removed, or may have been: until somebody lists the members
	invited    int
	record     history.Recorder

	leaders   map[uint64]*member    // by term: who led in it
	runs      map[uint64]int        // by term: in which of its runs
	committed map[uint64]entryPrint // what was applied, by index
	hashes    map[uint64][sha256.Size]byte

	history    history.History
	violations []string
	leaked     atomic.Bool // some goroutine of a storage engine that met a fault is left
	stats      stats

	mu       sync.Mutex
	finished []*operation
}

// stats count what has happened.
type stats struct {
	Events, Operations, Answered, Unknown, Refused, Elections, Starts, Kills, PowerCuts, Traps, Snapshots, Joined, Spoiled, Faults int

	Entries uint64
}

// entryPrint is what must never change about a committed entry.
type entryPrint struct {
	term uint64
	data [8]byte
}

// event is one thing that will happen.
type event struct {
	at  time.Duration
	seq uint64
	m   *member // to which alone it happens; nil: to whom is not said
	do  func()
}

type eventQueue []event

// Len implements heap.Interface.
func (q eventQueue) Len() int { return len(q) }

// Less implements heap.Interface.
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

// Swap implements heap.Interface.
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *eventQueue) Push(x any) { *q = append(*q, x.(event)) }

// Pop implements heap.Interface.
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

func (w *world) now() time.Duration { return time.Since(w.began) }

// after lets f happen in d from now.
func (w *world) after(d time.Duration, f func()) { w.on(nil, d, f) }

// on lets f happen to a member in d from now.
func (w *world) on(m *member, d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.queue, event{at: w.now() + d, seq: w.seq, m: m, do: f})
}

// touch has the driver look at a member when the event is over.
func (w *world) touch(m *member) {
	if !m.touched {
		m.touched = true
		w.touched = append(w.touched, m)
	}
}

func (w *world) log(format string, args ...any) { w.trace.line(w.now(), format, args...) }

// violate notes that something happened that must not.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.log("VIOLATION %s", text)
	w.violations = append(w.violations, fmt.Sprintf("at %v: %s", w.now(), text))
}

// between draws a duration.
func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)+1))
}

func (w *world) nameOf(id uint64) string {
	for _, m := range w.members {
		if m.id == id {
			return m.name()
		}
	}
	if id == 0 {
		return "nobody"
	}
	return fmt.Sprintf("%x", id)
}

func newWorld(p plan, traceTo, verbose io.Writer) *world {
	w := &world{
		plan: p, rng: rand.New(rand.NewPCG(p.Seed, 1)), began: time.Now(), trace: newTrace(traceTo), verbose: verbose, end: p.Duration,
		system: policy.NewSystem("simulation"), leaders: map[uint64]*member{}, runs: map[uint64]int{},
		committed: map[uint64]entryPrint{}, hashes: map[uint64][sha256.Size]byte{},
	}
	return w
}

// run is the whole simulation. It is called inside a bubble.
func (w *world) run() {
	w.timer = time.NewTimer(time.Hour)
	defer w.timer.Stop()
	w.record.Begin(fmt.Sprintf("seed %d", w.plan.Seed), history.Initial{})
	if err := w.found(); err != nil {
		w.violate("the cluster cannot be founded: %v", err)
		return
	}
	for _, f := range w.plan.Faults {
		w.after(f.At, func() { w.fault(f) })
	}
	w.startClients()
	for w.now() < w.end && len(w.violations) == 0 {
		w.step()
	}
	if len(w.violations) == 0 {
		w.recover()
	}
	w.finish()
}

// step does the next event and what follows from it at once.
func (w *world) step() {
	e := heap.Pop(&w.queue).(event)
	if d := e.at - w.now(); d > 0 {
		w.timer.Reset(d)
		<-w.timer.C
		synctest.Wait() // whatever other timer fired on the way: it shows when something happens to its member
	}
	w.stats.Events++
	e.do()
	synctest.Wait()
	if e.m != nil {
		w.touch(e.m)
	} else {
		for _, m := range w.members {
			w.touch(m)
		}
	}
	w.settle()
}

// found makes the first members and starts them.
func (w *world) found() error {
	for i := range w.plan.Members {
		w.newMember(uint64(0x1000 + i + 1))
	}
	var founders []state.Member
	for _, m := range w.members {
		m.voter = true
		founders = append(founders, state.Member{ID: m.id, PeerURLs: []string{m.url()}})
	}
	for _, m := range w.members {
		if err := m.create(founders, true); err != nil {
			return err
		}
		w.start(m)
	}
	return nil
}

func (w *world) newMember(id uint64) *member {
	m := &member{w: w, number: len(w.members) + 1, id: id}
	drift := rand.New(rand.NewPCG(w.plan.Seed, uint64(1000+m.number)))
	m.tick = w.plan.Heartbeat * time.Duration(980+drift.IntN(41)) / 1000
	m.beat = w.plan.Beat * time.Duration(980+drift.IntN(41)) / 1000
	w.members = append(w.members, m)
	return m
}

// start runs a member that is down.
func (w *world) start(m *member) {
	if m.up() || m.gone || m.spoiled {
		return
	}
	var err error
	w.guard(func() { err = m.start() })
	w.stats.Starts++
	w.log("%s starts (run %d): %s", m.name(), m.boots, plain(err))
	if err != nil {
		w.refusedStart(m, err)
		return
	}
	run := m.boots
	alive := func() bool { return m.up() && m.boots == run }
	var tick, beat, announce func()
	tick = func() {
		if !alive() {
			return
		}
		w.on(m, m.tick, tick)
		w.do(m, "", func() error { return m.stepper.Turn(true) })
	}
	beat = func() {
		if !alive() {
			return
		}
		w.on(m, m.beat, beat)
		if w.now() >= m.paused {
			w.do(m, "", func() error { m.core.Tick(time.Now()); return nil })
		}
	}
	announce = func() {
		if alive() && !w.announce(m) {
			w.after(2*time.Second, announce)
		}
	}
	w.on(m, w.between(0, m.tick), tick)
	w.on(m, w.between(0, m.beat), beat)
	w.after(time.Second, announce)
	w.net.memberStarted(w, m)
}

// guard runs f on a goroutine of its own, so that a storage engine that meets a fault ends that one. It reports whether f
// returned.
func (w *world) guard(f func()) bool {
	done := make(chan bool, 1)
	go func() {
		ok := false
		defer func() { done <- ok }()
		f()
		ok = true
	}()
	return <-done
}

// do takes a step of a member, unless its process stands still: then it takes it when it goes on.
func (w *world) do(m *member, what string, f func() error) {
	if d := m.paused - w.now(); d > 0 {
		run := m.boots
		w.on(m, d, func() {
			if m.up() && m.boots == run {
				w.do(m, what, f)
			}
		})
		return
	}
	if what != "" {
		w.log("%s %s", m.name(), what)
	}
	var err error
	if !m.guarded {
		err = f()
	} else if !w.guard(func() { err = f() }) {
		return // the engine has told of a fault: settle sees it
	}
	if err != nil {
		w.log("%s: %s", m.name(), plain(err))
	}
}

// settle looks at what has happened: results of operations, what members have to do and to say, and who has died.
func (w *world) settle() {
	w.collect()
	for len(w.touched) > 0 {
		slices.SortFunc(w.touched, func(a, b *member) int { return a.number - b.number })
		list := w.touched
		w.touched = nil
		for _, m := range list {
			m.touched = false
			if m.up() {
				w.bury(m)
			}
			w.collectWatches(m)
			w.net.collect(w, m)
			if m.up() {
				w.schedule(m)
			}
		}
	}
	w.net.collectSnapshots(w)
}

// schedule lets a member do what it has to do.
func (w *world) schedule(m *member) {
	p := &w.plan
	plan := func(work int, low, high time.Duration, what string, f func() error) {
		if m.busy[work] {
			return
		}
		m.busy[work] = true
		run := m.boots
		d := w.between(low, high)
		if work != workTurn {
			d = max(d, m.stalled-w.now())
		}
		w.on(m, d, func() {
			if m.up() && m.boots == run {
				w.do(m, what, func() error { m.busy[work] = false; return f() })
			}
		})
	}
	s := m.stepper
	if s.Waiting() {
		plan(workTurn, 0, p.TurnDelay, "", func() error { return s.Turn(false) })
	}
	if s.Appends() > 0 {
		plan(workWrite, p.DiskDelay/10, p.DiskDelay/2, "writes", func() error {
			err := s.Write()
			m.applied = s.Replica().Status().Applied // a snapshot may have been installed
			return err
		})
	}
	if s.Unsynced() > 0 {
		plan(workSync, p.DiskDelay/2, p.DiskDelay, "syncs", s.Sync)
	}
	if s.Applies() > 0 {
		plan(workApply, 0, p.ApplyDelay, "", func() error { return s.Apply(1) })
	}
}

// bury ends the run of a member that has died.
func (w *world) bury(m *member) {
	ended, why := m.stepper.Ended()
	switch fault := m.fatal.get(); {
	case fault != nil:
		w.log("%s ends: %s", m.name(), plain(fault))
		w.died(m, fault)
	case m.disk.dead() != nil:
		w.log("%s dies in the middle of something", m.name())
		w.stats.Traps++
		w.died(m, nil)
	case ended && errors.Is(why, replica.ErrRemoved):
		if !m.ending { // it still says what it had to say
			m.ending = true
			run := m.boots
			w.on(m, time.Second/2, func() {
				if m.up() && m.boots == run {
					w.log("%s ends: %s", m.name(), plain(why))
					w.died(m, why)
				}
			})
		}
	case ended:
		w.log("%s ends: %s", m.name(), plain(why))
		w.died(m, why)
	}
}

// kill ends a member's process.
func (w *world) kill(m *member) {
	if !m.up() {
		return
	}
	w.net.memberStopped(m)
	w.forget(m)
	m.stop()
}

// applied checks an entry that a member has applied against what others have.
func (w *world) applied(m *member, e *replica.Entry) {
	sum := sha256.New()
	sum.Write(e.Data)
	sum.Write(e.Conf)
	print := entryPrint{term: e.Term}
	copy(print.data[:], sum.Sum(nil))
	w.log("%s applies %d of term %d: %x", m.name(), e.Index, e.Term, print.data)
	switch known, ok := w.committed[e.Index]; {
	case !ok:
		w.committed[e.Index] = print
		w.stats.Entries = max(w.stats.Entries, e.Index)
	case known != print:
		w.violate("%s applies another entry %d than others: term %d against %d, %x against %x", m.name(), e.Index, print.term, known.term, print.data, known.data)
	}
}
