package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// tally is what came of one scenario.
type tally struct {
	scenario   scenario
	out        string // why it was left out
	counts     map[outcome]int
	failpoints map[string]int
	snapshots  int
}

func (t *tally) add(r result) {
	if t.counts == nil {
		t.counts, t.failpoints = map[outcome]int{}, map[string]int{}
	}
	t.counts[r.outcome]++
	if r.snapshot && r.outcome != idle {
		t.snapshots++
	}
	if r.failpoint != "" && r.outcome != idle {
		t.failpoints[r.failpoint]++
	}
}

// wrong says why t is not as it should be, or nothing.
func (t *tally) wrong() string {
	switch {
	case t.out != "":
		return ""
	case t.counts[failed] > 0:
		return fmt.Sprintf("%d runs failed", t.counts[failed])
	case t.counts[passed] == 0:
		return "no run had enough traffic to be judged"
	}
	return ""
}

// report prints the table and returns an error if something is not as it should be.
func report(w io.Writer, table []*tally, results string) error {
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "scenario\tpassed\tfailed\tnot judged\twith a snapshot\tfailpoints drawn, or why it was left out")
	var wrong []string
	for _, t := range table {
		if t.out != "" {
			fmt.Fprintf(tw, "%s\t-\t-\t-\t-\tleft out: %s\n", t.scenario.name, t.out)
			continue
		}
		var drawn []string
		for name, n := range t.failpoints {
			drawn = append(drawn, fmt.Sprintf("%s %d", name, n))
		}
		slices.Sort(drawn)
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%s\n", t.scenario.name, t.counts[passed], t.counts[failed], t.counts[idle], t.snapshots, strings.Join(drawn, ", "))
		if why := t.wrong(); why != "" {
			wrong = append(wrong, t.scenario.name+": "+why)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, line := range wrong {
		fmt.Fprintln(w, "WRONG:", line)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d scenarios are not as they should be; reports are in %s", len(wrong), results)
	}
	return nil
}
