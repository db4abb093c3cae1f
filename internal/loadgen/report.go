package loadgen

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run found out. Its JSON names are stable.
type Report struct {
	Load        string    `json:"load"`
	Description string    `json:"description"` // the load in words
	Started     time.Time `json:"started"`
	Endpoints   []string  `json:"endpoints"`
	Clients     int       `json:"clients"`
	Conns       int       `json:"conns"`
	WarmUp      float64   `json:"warmUpSeconds"`
	Seconds     float64   `json:"seconds"` // how long the measurement took, until everything had settled
	Interrupted bool      `json:"interrupted,omitempty"`
	// Prepared is what was written before the warm-up, in words.
	Prepared string   `json:"prepared,omitempty"`
	Series   []Series `json:"series"`
	Open     *Open    `json:"openLoop,omitempty"` // nil: closed loop
	Servers  []Usage  `json:"servers,omitempty"`
	// Cost sums up Servers; nil if no process was watched.
	Cost      *Cost    `json:"cost,omitempty"`
	Generator *Usage   `json:"generator,omitempty"` // what this process used itself
	Notes     []string `json:"notes,omitempty"`
}

// Series is one kind of requests, or of things observed.
type Series struct {
	Name    string `json:"name"`
	Request bool   `json:"request"` // false: observed, not asked for (a delivery, an expiry)
	Count   int64  `json:"count"`   // successes
	// PerSecond is Count over the seconds until the last answer, or until the last observation.
	PerSecond     float64   `json:"perSecond"`
	Latency       *Latency  `json:"latencyMs,omitempty"` // of the successes
	Failed        int64     `json:"failed"`
	FailedLatency *Latency  `json:"failedLatencyMs,omitempty"`
	Failures      []Failure `json:"failures,omitempty"`
	Retries       int64     `json:"retries,omitempty"` // further attempts that the load itself is about (cas)
	PayloadBytes  int64     `json:"payloadBytes"`      // bytes of keys and values that the successes wrote
}

// Latency is in milliseconds.
type Latency struct {
	Min  float64 `json:"min"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Failure is one kind of failures.
type Failure struct {
	Kind    string `json:"kind"`
	Count   int64  `json:"count"`
	Example string `json:"example"` // the whole text of the first
}

// Open is how an open loop went.
type Open struct {
	Rate       float64 `json:"rate"`       // asked for, a second
	Due        int64   `json:"due"`        // requests whose time came
	Late       int64   `json:"late"`       // started more than a millisecond after it
	LatestMs   float64 `json:"latestMs"`   // the latest start, in milliseconds after its time
	NotStarted int64   `json:"notStarted"` // never started; counted as failed too
}

// Cost is what all servers used together.
type Cost struct {
	CPUPerRequest  float64 `json:"cpuPerRequestUs"`            // microseconds, user and system, over every answered or failed request
	CPUPerObserved float64 `json:"cpuPerObservedUs,omitempty"` // the same over everything observed
	Cores          float64 `json:"cores"`                      // busy on average
	// WrittenPerPayload is bytes sent to storage per byte of payload written; nil if nothing was, or if it is not known.
	WrittenPerPayload *float64 `json:"writtenPerPayloadByte,omitempty"`
}

// requests returns how many requests were answered and how many failed or not started; observed how much was seen.
func (r *Report) requests() (answered, failed, observed int64) {
	for _, s := range r.Series {
		if s.Request {
			answered, failed = answered+s.Count, failed+s.Failed
		} else {
			observed += s.Count
		}
	}
	return answered, failed, observed
}

// Failed reports whether not one request was answered, or something was wrong in an answer.
func (r *Report) Failed() bool {
	answered, _, _ := r.requests()
	for _, s := range r.Series {
		for _, f := range s.Failures {
			if strings.HasPrefix(f.Kind, wrongAnswer("").Error()) {
				return true
			}
		}
	}
	return answered == 0
}

// sum fills in Cost.
func (r *Report) sum() {
	if len(r.Servers) == 0 || r.Seconds == 0 {
		return
	}
	var cpu float64
	var written, payload int64
	known := true
	for _, s := range r.Servers {
		cpu += s.UserSeconds + s.SystemSeconds
		if s.WrittenBytes == nil {
			known = false
			continue
		}
		written += *s.WrittenBytes
	}
	answered, failed, observed := r.requests()
	failed -= r.notStarted()
	for _, s := range r.Series {
		payload += s.PayloadBytes
	}
	c := &Cost{Cores: cpu / r.Seconds}
	if n := answered + failed; n > 0 {
		c.CPUPerRequest = cpu * 1e6 / float64(n)
	}
	if observed > 0 {
		c.CPUPerObserved = cpu * 1e6 / float64(observed)
	}
	if known && payload > 0 {
		v := float64(written) / float64(payload)
		c.WrittenPerPayload = &v
	}
	r.Cost = c
}

func (r *Report) notStarted() int64 {
	if r.Open == nil {
		return 0
	}
	return r.Open.NotStarted
}

// Table prints the report for people.
func (r *Report) Table(w io.Writer) error {
	loop := fmt.Sprintf("closed loop, %d clients on %d connections", r.Clients, r.Conns)
	if r.Open != nil {
		loop = fmt.Sprintf("open loop, %g a second, at most %d under way on %d connections", r.Open.Rate, r.Clients, r.Conns)
	}
	fmt.Fprintf(w, "%s: %s\n%s; %.1f s after %.1f s of warm-up\n%s\n\n", r.Load, r.Description, loop, r.Seconds, r.WarmUp, strings.Join(r.Endpoints, " "))
	if r.Interrupted {
		fmt.Fprintf(w, "INTERRUPTED: figures are of the part that was run\n\n")
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "latency in ms\tcount\tper second\tmin\tp50\tp90\tp99\tp99.9\tmax\tfailed\t")
	for _, s := range r.Series {
		l := s.Latency
		if l == nil && !s.Request && s.Failed == 0 {
			continue // nothing to observe, as handshakes in plain text
		}
		if l == nil {
			fmt.Fprintf(tw, "%s\t0\t-\t-\t-\t-\t-\t-\t-\t%d\t\n", s.Name, s.Failed)
			continue
		}
		fmt.Fprintf(tw, "%s\t%d\t%.1f\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", s.Name, s.Count, s.PerSecond, millis(l.Min), millis(l.P50), millis(l.P90), millis(l.P99), millis(l.P999), millis(l.Max), s.Failed)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, s := range r.Series {
		if s.Retries > 0 {
			fmt.Fprintf(w, "%s: %d further attempts, %.2f a success\n", s.Name, s.Retries, float64(s.Retries)/float64(max(s.Count, 1)))
		}
	}
	if o := r.Open; o != nil {
		fmt.Fprintf(w, "\nopen loop: %d were due, %d started more than 1 ms late (the latest %s ms), %d not started\n", o.Due, o.Late, millis(o.LatestMs), o.NotStarted)
	}
	r.failures(w)
	r.usage(w)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	return nil
}

func (r *Report) failures(w io.Writer) {
	for _, s := range r.Series {
		for _, f := range s.Failures {
			fmt.Fprintf(w, "\nFAILED %s: %d times %s\n", s.Name, f.Count, f.Kind)
			if f.Example != f.Kind {
				fmt.Fprintf(w, "  for example: %s\n", f.Example)
			}
		}
		if l := s.FailedLatency; l != nil {
			fmt.Fprintf(w, "  after %s ms at the median, %s ms at most\n", millis(l.P50), millis(l.Max))
		}
	}
}

func (r *Report) usage(w io.Writer) {
	fmt.Fprintln(w)
	for _, s := range r.Servers {
		fmt.Fprintf(w, "server %s\n", s.words(r.Seconds))
	}
	if c := r.Cost; c != nil {
		fmt.Fprintf(w, "cost: %.1f us of server CPU per request", c.CPUPerRequest)
		if c.CPUPerObserved > 0 {
			fmt.Fprintf(w, ", %.1f us per observation", c.CPUPerObserved)
		}
		fmt.Fprintf(w, "; %.2f cores busy", c.Cores)
		if c.WrittenPerPayload != nil {
			fmt.Fprintf(w, "; %.2f bytes to storage per byte of payload", *c.WrittenPerPayload)
		}
		fmt.Fprintln(w)
	}
	if r.Generator != nil {
		answered, failed, _ := r.requests()
		cpu := r.Generator.UserSeconds + r.Generator.SystemSeconds
		fmt.Fprintf(w, "generator: %.1f us of CPU per request, %.2f cores\n", cpu*1e6/float64(max(answered+failed, 1)), cpu/max(r.Seconds, 1e-9))
	}
}

// millis prints milliseconds with three digits that count.
func millis(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
