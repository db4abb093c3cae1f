package clustertest

import (
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// result is what came of one simulation.
type result struct {
	seed       uint64
	hash       string
	violations []string
	stats      stats
	lines      int
	judged     map[string]int // by history: what, how often
}

// simulate runs a plan in a bubble of its own, and judges what was seen.
func simulate(t *testing.T, p plan, traceTo, verbose io.Writer) (r result) {
	defer watchdog(p.Seed)()
	r.seed = p.Seed
	var w *world
	func() {
		defer func() {
			p := recover()
			if p == nil || w != nil && w.leaked.Load() && strings.Contains(fmt.Sprint(p), "main bubble goroutine has exited") {
				return
			}
			buf := make([]byte, 1<<20)
			r.violations = append(r.violations, fmt.Sprintf("panic: %v\n%s", p, buf[:runtime.Stack(buf, true)]))
		}()
		synctest.Test(t, func(*testing.T) {
			w = newWorld(p, traceTo, verbose)
			defer func() {
				if p := recover(); p != nil {
					w.leaked.Store(true)
					w.violate("panic: %v\n%s", p, debug.Stack())
				}
			}()
			w.run()
		})
	}()
	if w == nil {
		return r
	}
	r.hash, r.stats, r.lines = w.trace.hash(), w.stats, w.trace.lines
	r.violations = append(w.violations, r.violations...)
	report := history.Check(w.history, history.Options{
		SettledAt: int64(w.settledAt), Locks: []string{"k/"}, WakeAllowance: wakeTime,
	})
	for _, v := range report.Violations {
		r.violations = append(r.violations, v.Judge+": "+v.Rule+": "+v.Words)
	}
	r.violations = append(r.violations, report.Undecided...)
	r.judged = report.Counts
	if name := os.Getenv("SIM_HISTORY"); name != "" {
		if err := w.history.Save(name); err != nil {
			r.violations = append(r.violations, err.Error())
		}
	}
	return r
}

func number(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, text, err)
	}
	return n
}

// replay says how to see a seed again.
func replay(seed uint64) string {
	return fmt.Sprintf("SIM_SEED=%d SIM_TRACE=/tmp/trace go test -run 'TestSeed$' -v ./internal/clustertest", seed)
}

// TestSeed replays the seed SIM_SEED, or the schedule in the file SIM_SCHEDULE, and prints its trace into the file SIM_TRACE.
func TestSeed(t *testing.T) {
	seed, file := number(t, "SIM_SEED", 0), os.Getenv("SIM_SCHEDULE")
	if seed == 0 && file == "" {
		t.Skip("neither SIM_SEED nor SIM_SCHEDULE is set")
	}
	p := planOf(seed)
	if file != "" {
		var err error
		if p, err = loadPlan(file); err != nil {
			t.Fatal(err)
		}
	}
	var out io.Writer
	if name := os.Getenv("SIM_TRACE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out = f
	}
	r := simulate(t, p, out, out)
	t.Logf("seed %d: trace hash %s, %s; judged: %s", p.Seed, r.hash, r.stats, judgedText(r.judged))
	for _, v := range r.violations {
		t.Error(v)
	}
}

// judgedText lists what was judged, by name.
func judgedText(judged map[string]int) string {
	var words []string
	for _, what := range slices.Sorted(maps.Keys(judged)) {
		words = append(words, fmt.Sprintf("%d %s", judged[what], what))
	}
	return strings.Join(words, ", ")
}

// watchdog ends the process when a simulation does not: the driver waits for somebody who waits for something outside, or
// something goes on for ever without time passing.
func watchdog(seed uint64) (stop func()) {
	t := time.AfterFunc(patience, func() {
		buf := make([]byte, 1<<20)
		fmt.Printf("seed %d: does not end within %v\n%s\n", seed, patience, buf[:runtime.Stack(buf, true)])
		os.Exit(3)
	})
	return func() { t.Stop() }
}

// patience is how much real time a simulation may take; a second is usual.
const patience = 2 * time.Minute

func (s *stats) add(o stats) {
	s.Events += o.Events
	s.Operations += o.Operations
	s.Answered += o.Answered
	s.Unknown += o.Unknown
	s.Refused += o.Refused
	s.Elections += o.Elections
	s.Starts += o.Starts
	s.Kills += o.Kills
	s.PowerCuts += o.PowerCuts
	s.Traps += o.Traps
	s.Snapshots += o.Snapshots
	s.Joined += o.Joined
	s.Spoiled += o.Spoiled
	s.Faults += o.Faults
	s.Entries += o.Entries
}

// String is the stats in words.
func (s stats) String() string {
	return fmt.Sprintf("%d events, %d operations (%d answered, %d refused, %d of unknown outcome), %d entries, %d faults (%d kills, %d of them with a power cut, %d in the middle of something), "+
		"%d starts, %d elections, %d snapshots sent, %d members joined, %d found damaged",
		s.Events, s.Operations, s.Answered, s.Refused, s.Unknown, s.Entries, s.Faults, s.Kills, s.PowerCuts, s.Traps, s.Starts, s.Elections, s.Snapshots, s.Joined, s.Spoiled)
}

// wakeTime is how long a blocking query may wait on after a change was acknowledged: its member may be cut off until it notices
// that it has no leader, and stand still for 30 s on top.
const wakeTime = 30 * time.Second
