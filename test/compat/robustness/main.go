// Command robustness runs etcd's robustness suite (go.etcd.io/etcd/tests/v3/robustness) against Holdfast, and holds the
// outcome against the list of scenarios.
//
// It builds a copy of this source tree with its failpoints turned on, and a copy of the suite in which the reader of etcd's
// write-ahead log is replaced by one that asks `holdfast debug raft-log`; everything else of the suite is as it is published.
// Each run of a scenario is a process of its own. The suite refuses to judge a run with too little traffic: such a
// run is told apart and made again, because a busy machine is not a defect. docs/compat/robustness.md says the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

type options struct {
	source, list, results, lazyfs, run, plant string
	runs, tries                               int
	quick, keep                               bool
	timeout                                   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.source, "source", "../../..", "the source tree of Holdfast to judge")
	flag.StringVar(&o.list, "scenarios", "../../../docs/compat/robustness-scenarios.txt", "the list of scenarios: a name, run or quick or out, a reason")
	flag.StringVar(&o.results, "results", "", "where the reports of failed runs are kept (default: a temporary directory)")
	flag.StringVar(&o.lazyfs, "lazyfs", "", "the lazyfs program; without it the scenarios on LazyFS are left out")
	flag.StringVar(&o.run, "run", "", "only scenarios whose name matches this regular expression")
	flag.StringVar(&o.plant, "plant", "", "plant this bug of internal/lab (drop-event, local-read, …) in every member, to see that the suite finds it")
	flag.IntVar(&o.runs, "runs", 3, "judged runs of each scenario")
	flag.IntVar(&o.tries, "tries", 4, "runs for one that is judged: those with too little traffic are made again")
	flag.BoolVar(&o.quick, "quick", false, "only the scenarios that the list marks as quick, one run each")
	flag.BoolVar(&o.keep, "keep", false, "keep the working directory and print its name")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "bound on one run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "robustness:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	list, err := readList(o.list)
	if err != nil {
		return err
	}
	pick, err := regexp.Compile(o.run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.quick {
		o.runs = 1
	}
	dir, err := os.MkdirTemp("", "holdfast-robustness-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("working directory:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	if o.results == "" {
		if o.results, err = os.MkdirTemp("", "holdfast-robustness-results-"); err != nil {
			return err
		}
	}
	if o.results, err = filepath.Abs(o.results); err != nil {
		return err
	}
	b := &bench{dir: dir, results: o.results, lazyfs: o.lazyfs, plant: o.plant}
	if err := b.prepare(ctx, o.source); err != nil {
		return err
	}
	var table []*tally
	for _, s := range list {
		if !pick.MatchString(s.name) {
			continue
		}
		t := &tally{scenario: s}
		table = append(table, t)
		switch {
		case s.kind == kindOut:
			t.out = s.reason
		case o.quick && s.kind != kindQuick:
			t.out = "not quick"
		case s.lazyfs() && o.lazyfs == "":
			t.out = "no -lazyfs given"
		default:
			b.repeat(ctx, t, o)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(table) == 0 {
		return errors.New("no scenario matches")
	}
	return report(os.Stdout, table, b.results)
}

// repeat runs a scenario until it has been judged often enough.
func (b *bench) repeat(ctx context.Context, t *tally, o options) {
	for range o.runs {
		for range o.tries {
			r := b.once(ctx, t.scenario, o.timeout)
			t.add(r)
			fmt.Printf("%-10s %6.1fs  %s  %s  snapshot %v\n", r.outcome, r.took.Seconds(), t.scenario.name, r.failpoint, r.snapshot)
			if r.outcome == failed {
				fmt.Println(r.why)
			}
			if r.outcome != idle || ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}
