package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Options say how strictly to judge. The zero value is the usual: no expiry is late, clocks do not drift.
type Options struct {
	Timeout             time.Duration // for porcupine, in all; 0 is one minute. What is not decided by then is reported as undecided
	ClockTolerance      time.Duration // by how much the observer's clock and the cluster's may disagree over the life of a lease
	ExpiryAllowance     time.Duration // how long after its TTL a lease may live on; 0: not judged
	RevocationAllowance time.Duration // how long after its acknowledgement a revocation may still be taking hold
	WakeAllowance       time.Duration // how long after a write was acknowledged a blocking query of Consul may go on waiting; 0 is one second
	AutoCompaction      bool          // the cluster compacts by itself, so that a previous value may be missing although nobody asked for a compaction
	SettledAt           int64         // from this time on the cluster was well and nothing was asked for, long enough for every open watch to be told everything; 0: not judged
	Locks               []string      // prefixes of the keys of locks, one for each lock (etcd's concurrency.Mutex: the name with a slash)
	MaxViolations       int           // of one rule in the report; 0 is 10. All are counted
}

// Violation is one thing that a correct cluster cannot have shown.
type Violation struct {
	Judge      string `json:"judge"` // linearizability, serializable, watch, lease, lock, consul, revocation
	Rule       string `json:"rule"`  // a name in a few words, the same for all violations of its kind
	Words      string `json:"words"`
	Operations []int  `json:"operations,omitempty"` // numbers in History.Operations (in History.Consul if the judge is consul)
	Watches    []int  `json:"watches,omitempty"`    // numbers in History.Watches
}

// Report is what the judges found.
type Report struct {
	Violations []Violation    `json:"violations,omitempty"`
	More       map[string]int `json:"more,omitempty"`      // violations of a rule that are not listed
	Undecided  []string       `json:"undecided,omitempty"` // what could not be judged, and why
	Counts     map[string]int `json:"counts"`              // what was judged
}

// OK reports whether everything was judged and nothing is wrong.
func (r Report) OK() bool { return len(r.Violations) == 0 && len(r.Undecided) == 0 }

// String is the report as text.
func (r Report) String() string {
	var b strings.Builder
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "VIOLATION %s: %s\n  %s\n", v.Judge, v.Rule, strings.ReplaceAll(v.Words, "\n", "\n  "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.More)) {
		fmt.Fprintf(&b, "and %d more of %s\n", r.More[name], name)
	}
	for _, words := range r.Undecided {
		fmt.Fprintf(&b, "UNDECIDED %s\n", words)
	}
	if r.OK() {
		b.WriteString("No violation. What was judged:\n")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Counts)) {
		fmt.Fprintf(&b, "  %-72s %9d\n", name, r.Counts[name])
	}
	return b.String()
}

// The judges.
const (
	linearizable = "linearizability"
	serializing  = "serializable"
	watching     = "watch"
	leasing      = "lease"
	locking      = "lock"
	consul       = "consul"
	revoking     = "revocation"
)

// verdict collects what the judges find.
type verdict struct {
	h     *History
	o     Options
	r     *Report
	tally map[string]int
}

func (v *verdict) found(judge, rule, words string, operations, watches []int) {
	name := judge + ": " + rule
	v.tally[name]++
	if v.tally[name] > cmp.Or(v.o.MaxViolations, 10) {
		if v.r.More == nil {
			v.r.More = map[string]int{}
		}
		v.r.More[name]++
		return
	}
	v.r.Violations = append(v.r.Violations, Violation{judge, rule, words, operations, watches})
}

func (v *verdict) undecided(words string) { v.r.Undecided = append(v.r.Undecided, words) }

func (v *verdict) counts(what string, n int) { v.r.Counts[what] += n }

// Check judges the history. Porcupine decides on linearizability only if the direct judges have found nothing wrong with
// keys: they say more precisely what is wrong, and what porcupine is given then rests on what they found right.
func Check(h History, o Options) Report {
	r := Report{Counts: map[string]int{"operations": len(h.Operations), "watches": len(h.Watches)}}
	v := &verdict{h: &h, o: o, r: &r, tally: map[string]int{}}
	l := newLedger(v)
	sights := l.sights()
	times := l.times(sights)
	l.replay(times)
	l.reads()
	l.realTime(sights)
	l.doubled()
	if len(r.Violations) == 0 {
		l.linear(times)
	}
	l.watches()
	l.leases()
	l.locks()
	v.consul()
	v.revocations()
	v.counts("milliseconds observed", int(h.End/int64(time.Millisecond)))
	return r
}
