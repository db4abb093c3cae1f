package clustertest

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
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
	history    history.History
	lines      int
}

// simulate runs a plan in a bubble of its own.
func simulate(t *testing.T, p plan, traceTo, verbose io.Writer) (r result) {
	r.seed = p.Seed
	defer watchdog(p.Seed)()
	var w *world
	defer func() {
		if w != nil {
			r.hash, r.stats, r.history, r.lines = w.trace.hash(), w.stats, w.history, w.trace.lines
			r.violations = append(w.violations, r.violations...)
		}
		if p := recover(); p != nil {
			if text := fmt.Sprint(p); w == nil || !w.leaked.Load() || !strings.Contains(text, "main bubble goroutine has exited") {
				r.violations = append(r.violations, "panic: "+text)
			}
		}
		if w != nil {
			report := history.Check(w.history, history.Options{
				SettledAt: int64(w.settledAt), Locks: []string{"k/"}, WakeAllowance: 2 * time.Minute,
			})
			for _, v := range report.Violations {
				r.violations = append(r.violations, v.Judge+": "+v.Rule+": "+v.Words)
			}
			r.violations = append(r.violations, report.Undecided...)
		}
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

// TestSeeds runs seeds one after the other: SIM_SEEDS of them, from SIM_FIRST on.
func TestSeeds(t *testing.T) {
	first, count := number(t, "SIM_FIRST", 1), number(t, "SIM_SEEDS", 20)
	var total stats
	for seed := first; seed < first+count; seed++ {
		r := simulate(t, planOf(seed), nil, nil)
		if testing.Verbose() {
			t.Logf("seed %d: %s %+v", seed, r.hash, r.stats)
		}
		for _, v := range r.violations {
			t.Errorf("seed %d: %s\nreplay: SIM_SEED=%d go test -run TestSeed$ -v ./internal/clustertest", seed, v, seed)
		}
		total.add(r.stats)
	}
	t.Logf("%d seeds: %+v", count, total)
}

func (s *stats) add(o stats) {
	s.events += o.events
	s.operations += o.operations
	s.answered += o.answered
	s.unknown += o.unknown
	s.refused += o.refused
	s.elections += o.elections
	s.starts += o.starts
	s.kills += o.kills
	s.powerCuts += o.powerCuts
	s.snapshots += o.snapshots
	s.faults += o.faults
	s.entries += o.entries
}

// TestSeed replays the seed SIM_SEED and prints its trace.
func TestSeed(t *testing.T) {
	seed := number(t, "SIM_SEED", 0)
	if seed == 0 {
		t.Skip("SIM_SEED names no seed")
	}
	var out, verbose io.Writer
	if name := os.Getenv("SIM_TRACE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out, verbose = f, f
	}
	r := simulate(t, planOf(seed), out, verbose)
	t.Logf("seed %d: trace hash %s, %+v", seed, r.hash, r.stats)
	for _, v := range r.violations {
		t.Error(v)
	}
}

// TestSame runs seeds twice: they must do the same thing.
func TestSame(t *testing.T) {
	for seed := uint64(1); seed <= number(t, "SIM_SAME", 3); seed++ {
		a, b := simulate(t, planOf(seed), nil, nil), simulate(t, planOf(seed), nil, nil)
		if a.hash != b.hash || a.lines != b.lines {
			t.Errorf("seed %d: %s (%d lines) and %s (%d lines)", seed, a.hash, a.lines, b.hash, b.lines)
		}
	}
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
