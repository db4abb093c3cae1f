package history

import (
	"fmt"
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
	names := make([]string, 0, len(r.Counts))
	for name := range r.Counts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%s: %d\n", name, r.Counts[name])
	}
	return b.String()
}

// Check judges the history.
func Check(h History, o Options) Report {
	return Report{Counts: map[string]int{"operations": len(h.Operations)}}
}
