package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// fault is one thing that is done to the cluster. Whom it hits is said in words and decided when it comes (who leads then), and
// by its own seed, so that a schedule means the same on any run.
type fault struct {
	At       time.Duration `json:"at"` // since the begin of faults; the next waits for the end of this one
	Kind     string        `json:"kind"`
	For      time.Duration `json:"for"`            // until it is taken back
	Seed     uint64        `json:"seed"`           // of every choice that it makes
	Also     string        `json:"also,omitempty"` // a second fault in the middle of it
	AlsoAt   time.Duration `json:"also_at,omitempty"`
	AlsoFor  time.Duration `json:"also_for,omitempty"`
	AlsoSeed uint64        `json:"also_seed,omitempty"`
}

// trait says of a kind of fault what it needs and how long it takes.
type trait struct {
	kind     string
	what     string
	shortest time.Duration
	longest  time.Duration
	weight   int
	size     int  // members that there have to be
	process  bool // it may come in the middle of another
}

// traits are all the kinds, in the order in which help lists them.
func traits() []trait {
	const ms, s = time.Millisecond, time.Second
	return []trait{
		{"kill-leader", "SIGKILL to the leader", 0, 4 * s, 10, 1, true},
		{"kill-one", "SIGKILL to one member", 0, 4 * s, 6, 1, true},
		{"kill-majority", "SIGKILL to more than half of the members at once", 0, 3 * s, 3, 3, false},
		{"kill-all", "SIGKILL to all members at once", 0, 2 * s, 3, 1, false},
		{"restart", "SIGTERM to one member after the other", 0, 1 * s, 3, 1, false},
		{"pause-leader", "SIGSTOP to the leader, SIGCONT later", 100 * ms, 30 * s, 6, 1, false},
		{"pause-one", "SIGSTOP to one member", 100 * ms, 10 * s, 3, 1, true},
		{"pause-majority", "SIGSTOP to more than half", 100 * ms, 6 * s, 2, 3, false},
		{"cut-halves", "two groups of members that do not hear each other", 2 * s, 12 * s, 4, 3, false},
		{"cut-leader", "the leader hears no other member and no other hears it; clients reach all", 2 * s, 12 * s, 4, 3, false},
		{"cut-ring", "each member hears its two neighbours only", 2 * s, 12 * s, 3, 4, false},
		{"cut-bridge", "two groups that share one member", 2 * s, 12 * s, 4, 3, false},
		{"cut-one-way", "one member is heard by the others and does not hear them, or the other way round", 2 * s, 12 * s, 4, 3, false},
		{"cut-flapping", "a cut that comes and goes every 0.1 to 2 s", 4 * s, 12 * s, 3, 3, false},
		{"cut-answers", "clients' requests reach a member, its answers do not reach them", 1 * s, 5 * s, 3, 1, false},
		{"slow-links", "all links 20 to 300 ms late, with jitter", 3 * s, 12 * s, 3, 3, false},
		{"lossy-links", "links of one member lose 5 to 30 % and double 10 %", 3 * s, 12 * s, 3, 3, false},
		{"narrow-link", "one member can send 256 kbit/s (tc, tbf)", 3 * s, 10 * s, 2, 3, false},
		{"power-one", "the power of one member goes: SIGKILL, and what was not synced is gone", 0, 4 * s, 5, 1, true},
		{"power-leader", "the same, the leader", 0, 4 * s, 5, 1, true},
		{"power-majority", "the power of more than half goes at once", 0, 3 * s, 3, 3, false},
		{"power-all", "the power of all members goes at once", 0, 2 * s, 6, 1, false},
		{"disk-full", "the disk of one member is full", 2 * s, 10 * s, 3, 1, false},
		{"disk-slow", "each sync of one member takes 0.1 to 2 s longer", 3 * s, 10 * s, 3, 1, false},
		{"disk-error", "a sync of one member fails (EIO)", 1 * s, 3 * s, 2, 1, false},
		{"clock-step", "the wall clock of one or all members is off by up to an hour", 2 * s, 15 * s, 4, 1, false},
		{"clock-drift", "the wall clock of one or all members runs off by 10 % and back", 4 * s, 15 * s, 2, 1, false},
		{"descriptors", "one member can open no more files", 2 * s, 8 * s, 3, 1, false},
		{"transfer", "the leadership is moved five times", 1 * s, 4 * s, 4, 3, false},
		{"replace", "a member is removed for good and another one joins", 1 * s, 2 * s, 4, 3, false},
		{"compact", "everything but the last thousand revisions is compacted, members are defragmented", 0, 1 * s, 4, 1, true},
	}
}

// choose returns the kinds that the comma-separated list allows and that make sense for so many members. A minus before a
// name leaves it out; a name matches every kind that begins with it.
func choose(list string, members int, holdfast bool) ([]trait, error) {
	var all []trait
	for _, t := range traits() {
		if members >= t.size && (holdfast || !strings.HasPrefix(t.kind, "clock-")) {
			all = append(all, t)
		}
	}
	var named, without []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		minus := strings.HasPrefix(name, "-")
		name = strings.TrimPrefix(name, "-")
		if name == "" {
			continue
		}
		if !slices.ContainsFunc(traits(), func(t trait) bool { return strings.HasPrefix(t.kind, name) }) {
			return nil, fmt.Errorf("no fault is called %q; lab -h lists them", name)
		}
		if minus {
			without = append(without, name)
		} else {
			named = append(named, name)
		}
	}
	begins := func(t trait, names []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(t.kind, n) })
	}
	all = slices.DeleteFunc(all, func(t trait) bool { return begins(t, without) || len(named) > 0 && !begins(t, named) })
	return all, nil
}

// plan makes a schedule for so long: same seed and kinds, same schedule.
func plan(seed uint64, kinds []trait, length time.Duration) (faults []fault) {
	rng := rand.New(rand.NewPCG(seed, 0x1ab))
	total, middles := 0, []trait{}
	for _, t := range kinds {
		total += t.weight
		if t.process {
			middles = append(middles, t)
		}
	}
	if total == 0 {
		return nil
	}
	for at := time.Second; at < length; {
		t := weighted(kinds, rng.IntN(total))
		f := fault{At: at, Kind: t.kind, For: between(rng, t), Seed: rng.Uint64()}
		if len(middles) > 0 && !t.process && f.For > 200*time.Millisecond && rng.IntN(4) == 0 {
			m := middles[rng.IntN(len(middles))]
			f.Also, f.AlsoAt, f.AlsoFor, f.AlsoSeed = m.kind, time.Duration(rng.Int64N(int64(f.For))), min(between(rng, m), 3*time.Second), rng.Uint64()
		}
		faults = append(faults, f)
		at += f.For + 500*time.Millisecond + time.Duration(rng.Int64N(int64(3500*time.Millisecond)))
	}
	return faults
}

func weighted(kinds []trait, n int) trait {
	for _, t := range kinds {
		if n -= t.weight; n < 0 {
			return t
		}
	}
	return kinds[len(kinds)-1]
}

// between draws a time, short ones more often than long ones.
func between(rng *rand.Rand, t trait) time.Duration {
	x := rng.Float64()
	return (t.shortest + time.Duration(x*x*float64(t.longest-t.shortest))).Round(time.Millisecond)
}

// readSchedule reads what writeSchedule writes: a fault a line.
func readSchedule(r io.Reader) (faults []fault, err error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		d := json.NewDecoder(strings.NewReader(lines.Text()))
		d.DisallowUnknownFields()
		var f fault
		if err := d.Decode(&f); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		for _, kind := range []string{f.Kind, f.Also} {
			if kind != "" && !slices.ContainsFunc(traits(), func(t trait) bool { return t.kind == kind }) {
				return nil, fmt.Errorf("line %d: no fault is called %q", n, kind)
			}
		}
		faults = append(faults, f)
	}
	return faults, lines.Err()
}

func writeSchedule(w io.Writer, faults []fault) error {
	e := json.NewEncoder(w)
	for _, f := range faults {
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	return nil
}
