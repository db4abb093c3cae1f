package main

import (
	"fmt"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// result is what a run found, as it is written down.
type result struct {
	Server     string         `json:"server"`
	Program    string         `json:"program"`
	Members    int            `json:"members"`
	Clients    int            `json:"clients"`
	Seed       uint64         `json:"seed"`
	Seconds    float64        `json:"seconds"`
	Rounds     int            `json:"rounds"`
	Faults     map[string]int `json:"faults"`
	Operations map[string]int `json:"operations"` // by outcome
	Events     int            `json:"events"`     // told by watches of all keys, each counted once
	Judged     map[string]int `json:"judged"`
	Hashes     int            `json:"equal_hashes"` // times that all members were found equal

	Lost            int      `json:"lost"`             // acknowledged writes that the events do not show
	Doubled         int      `json:"doubled"`          // writes that the events show twice
	NonLinearizable int      `json:"non_linearizable"` // and reads of revisions that never were
	WatchGaps       int      `json:"watch_gaps"`       // and whatever else watches promise
	Other           int      `json:"other"`            // everything else that must not be
	Violations      int      `json:"violations"`       // all of these
	Words           []string `json:"words,omitempty"`  // the first of them
	Undecided       []string `json:"undecided,omitempty"`
	Fell            []string `json:"fell,omitempty"`    // members that ended by themselves though nothing was done to them that may make them
	Excused         int      `json:"excused,omitempty"` // the same after something that may: no disk, no descriptors
	Kept            []string `json:"kept,omitempty"`    // histories

	PowerCuts   int       `json:"power_cuts"` // of members
	LostFiles   int       `json:"power_cut_files"`
	LostNames   int       `json:"power_cut_directories"`
	Recoveries  int       `json:"recoveries"`
	RecoveryP50 float64   `json:"recovery_p50_seconds,omitempty"`
	RecoveryMax float64   `json:"recovery_max_seconds,omitempty"`
	Recovered   []float64 `json:"recovery_seconds,omitempty"`
}

// mostWords is how many violations are put in words; all are counted.
const mostWords = 50

func newResult() result {
	return result{Faults: map[string]int{}, Operations: map[string]int{}, Judged: map[string]int{}}
}

func (r *result) total() (n int) {
	for _, k := range r.Faults {
		n += k
	}
	return n
}

// bad reports whether the run shows that something is wrong, or could not be judged.
func (r *result) bad() bool { return r.Violations > 0 || len(r.Undecided) > 0 || len(r.Fell) > 0 }

func (r *result) add(v history.Violation) {
	r.Violations++
	switch v.Judge {
	case ledgerLost:
		r.Lost++
	case ledgerDoubled:
		r.Doubled++
	case "linearizability", "serializable":
		r.NonLinearizable++
	case "watch":
		r.WatchGaps++
	default:
		r.Other++
	}
	if len(r.Words) < mostWords {
		r.Words = append(r.Words, v.Judge+": "+v.Rule+": "+v.Words)
	}
}

func (r *result) recovered(took []time.Duration) {
	r.Recoveries = len(took)
	if len(took) == 0 {
		return
	}
	for _, d := range took {
		r.Recovered = append(r.Recovered, d.Seconds())
	}
	r.RecoveryP50, r.RecoveryMax = took[len(took)/2].Seconds(), took[len(took)-1].Seconds()
}

// The judges of the ledger.
const (
	ledgerLost    = "lost"
	ledgerDoubled = "doubled"
)

// count adds up a history, and holds the acknowledged writes against the events without any model: each value is written once,
// so each acknowledged one is told exactly once, at its revision, and none is told twice. What was not told is looked up: stored
// returns the value of a key at a revision; nil if there is nobody to ask.
func (r *result) count(h history.History, stored func(key string, revision int64) string) (found []history.Violation) {
	for _, o := range h.Operations {
		r.Operations[o.Outcome.String()]++
	}
	told := map[string][]int64{} // value to revisions
	seen := map[[2]string]bool{}
	reached := int64(0)
	for _, w := range h.Watches {
		if w.Key != allKeys[0] || w.End != allKeys[1] || w.NoPut || w.NoDelete {
			continue
		}
		for _, a := range w.Responses {
			for _, e := range a.Events {
				at := [2]string{e.KV.Key, fmt.Sprint(e.KV.Mod)}
				if reached = max(reached, e.KV.Mod); seen[at] {
					continue
				}
				seen[at] = true
				r.Events++
				if e.Type == history.PutEvent && e.KV.Value != "" {
					told[e.KV.Value] = append(told[e.KV.Value], e.KV.Mod)
				}
			}
		}
	}
	for number, o := range h.Operations {
		for _, w := range written(o) {
			if slices.Contains(told[w.Value], o.Response.Revision) || o.Response.Revision > reached {
				continue
			}
			v := history.Violation{Judge: ledgerLost, Rule: "an acknowledged write is there", Operations: []int{number},
				Words: fmt.Sprintf("operation %d wrote %q = %q at revision %d; watches of all keys were told up to %d and have it at %v", number, w.Key, w.Value, o.Response.Revision, reached, told[w.Value])}
			if stored != nil && stored(w.Key, o.Response.Revision) == w.Value {
				v.Judge, v.Rule, v.Words = "watch", "an acknowledged write is told", v.Words+"; the store has it there"
			}
			found = append(found, v)
		}
	}
	for v, at := range told {
		if len(at) > 1 {
			found = append(found, history.Violation{Judge: ledgerDoubled, Rule: "a write happens once", Words: fmt.Sprintf("%q, which was asked for once, was written at revisions %v", v, at)})
		}
	}
	return found
}

// written are the puts that an answered operation has certainly done.
func written(o history.Operation) []history.Request {
	if o.Outcome != history.Answered {
		return nil
	}
	return writtenBy(o.Request, o.Response)
}

func writtenBy(r history.Request, a history.Response) (all []history.Request) {
	switch r.Kind {
	case history.Put:
		return []history.Request{r}
	case history.Txn:
		branch := r.Then
		if !a.Succeeded {
			branch = r.Else
		}
		for i, inner := range branch {
			if i < len(a.Responses) {
				all = append(all, writtenBy(inner, a.Responses[i])...)
			}
		}
	}
	return all
}
