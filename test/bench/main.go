// Command bench holds Holdfast against the real etcd, and both against an empty gRPC server: clusters of the same size, the same
// certificates, the same load, in turn in every round, on one machine.
//
// The generator is `holdfast bench`; with -generator etcd it is etcd's own benchmark tool, as a cross-check of puts and
// ranges. The generator shares the machine, so throughput is printed but the figure that counts is CPU per request.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	binary, dir, write, generator     string
	servers, loads, members, clients  string
	rounds                            int
	rate                              float64
	length, warmup                    time.Duration
	keys, valueSize, watchers, limits int
	quick                             bool
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the holdfast binary (required)")
	flag.StringVar(&o.dir, "dir", "", "where the data directories are made (default: the system's directory for temporary files); its file system is what is measured")
	flag.StringVar(&o.write, "write", "", "write the result into the marked section of this page, and as JSON beside it (default: print it)")
	flag.StringVar(&o.generator, "generator", "holdfast", "holdfast, or etcd: etcd's own benchmark tool, for put and range in a closed loop")
	flag.StringVar(&o.servers, "servers", strings.Join(serverNames, ","), "what to measure, in this order in each round")
	flag.StringVar(&o.members, "members", "1,3", "sizes of clusters")
	flag.StringVar(&o.loads, "loads", "put,range,mixed,list,watch", "loads")
	flag.StringVar(&o.clients, "clients", "1,64,1000", "clients of the closed loops; list and watch leave out what is over 64 (empty: no closed loop)")
	flag.Float64Var(&o.rate, "rate", 2000, "requests a second of the open loop; list and watch take a tenth of it (0: no open loop)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds")
	flag.DurationVar(&o.length, "duration", 2*time.Second, "of each measurement")
	flag.DurationVar(&o.warmup, "warmup", 300*time.Millisecond, "before each measurement")
	flag.IntVar(&o.keys, "keys", 10_000, "size of the key space")
	flag.IntVar(&o.valueSize, "value-size", 256, "bytes of a value")
	flag.IntVar(&o.limits, "limit", 500, "keys of a page")
	flag.IntVar(&o.watchers, "watchers", 100, "watchers of the watch load")
	flag.BoolVar(&o.quick, "quick", false, "one round of puts and ranges with 64 clients on one member: under a minute, and worth as much")
	flag.Parse()
	if o.quick {
		o.rounds, o.members, o.loads, o.clients, o.rate = 1, "1", "put,range", "64", 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// point is one load at one strength.
type point struct {
	Load    string  `json:"load"`
	Clients int     `json:"clients,omitempty"` // closed loop
	Rate    float64 `json:"rate,omitempty"`    // open loop
}

func (p point) String() string {
	if p.Rate > 0 {
		return fmt.Sprintf("%s at %g/s", p.Load, p.Rate)
	}
	return fmt.Sprintf("%s, %d clients", p.Load, p.Clients)
}

// points returns what is measured of one server, in order.
func (o *options) points() (out []point, err error) {
	known := []string{"put", "range", "mixed", "list", "watch"}
	for load := range strings.SplitSeq(o.loads, ",") {
		if !slices.Contains(known, load) {
			return nil, fmt.Errorf("-loads: %q is none of %s", load, strings.Join(known, ", "))
		}
		heavy := load == "list" || load == "watch"
		for text := range strings.SplitSeq(o.clients, ",") {
			if text == "" {
				continue
			}
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("-clients: %q is no number of clients", text)
			}
			if !heavy || n <= 64 {
				out = append(out, point{Load: load, Clients: n})
			}
		}
		switch {
		case o.rate > 0 && heavy:
			out = append(out, point{Load: load, Rate: o.rate / 10})
		case o.rate > 0:
			out = append(out, point{Load: load, Rate: o.rate})
		}
	}
	return out, nil
}

// sample is one measurement.
type sample struct {
	Round   int    `json:"round"`
	Members int    `json:"members"`
	Server  string `json:"server"`
	point
	PerSecond float64          `json:"perSecond"` // requests, or deliveries of the watch load
	P50       float64          `json:"p50Ms"`
	P99       float64          `json:"p99Ms"`
	P999      float64          `json:"p999Ms"`
	CPU       float64          `json:"cpuUs"` // of all members per request, or per delivery
	PeakMiB   float64          `json:"peakMiB"`
	Written   *float64         `json:"writtenPerPayloadByte,omitempty"`
	Failed    int64            `json:"failed,omitempty"`
	Failures  map[string]int64 `json:"failures,omitempty"`
	Late      int64            `json:"late,omitempty"` // open loop: started late
	Generator float64          `json:"generatorCPUUs,omitempty"`
}

type bench struct {
	options
	work, etcd, tool string
	samples          []sample
	rest             []rest
	beside           string // what the machine did besides
}

// rest is the memory of a member that has just started and has nothing to do.
type rest struct {
	Round   int     `json:"round"`
	Members int     `json:"members"`
	Server  string  `json:"server"`
	MiB     float64 `json:"mib"`
}

func (b *bench) file(name string) string { return filepath.Join(b.work, name) }

func run(ctx context.Context, o options) error {
	if o.binary == "" {
		return errors.New("-binary is required")
	}
	points, err := o.points()
	if err != nil {
		return err
	}
	sizes, err := numbers(o.members)
	if err != nil {
		return fmt.Errorf("-members: %w", err)
	}
	work, err := os.MkdirTemp(o.dir, "holdfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := &bench{options: o, work: work, etcd: filepath.Join(work, "etcd"), tool: filepath.Join(work, "benchmark")}
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := b.certificates(); err != nil {
		return err
	}
	begin, beside := time.Now(), watchOthers()
	for round := range o.rounds {
		for _, members := range sizes {
			for server := range strings.SplitSeq(o.servers, ",") {
				if err := b.turn(ctx, turn{round + 1, members, server}, points); err != nil {
					return fmt.Errorf("%s, %d members: %w", server, members, err)
				}
			}
		}
	}
	b.beside = beside.words()
	page := b.page(ctx, time.Since(begin))
	if o.write == "" {
		fmt.Print("\n" + page)
		return nil
	}
	return b.publish(page)
}

func numbers(list string) (out []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number", text)
		}
		out = append(out, n)
	}
	return out, nil
}

// build makes the binaries that are not given.
func (b *bench) build(ctx context.Context) error {
	builds := [][]string{{"-C", "../compat/etcd", "build", "-o", b.etcd, "go.etcd.io/etcd/server/v3"}}
	switch b.generator {
	case "holdfast":
	case "etcd":
		builds = append(builds, []string{"build", "-o", b.tool, "go.etcd.io/etcd/v3/tools/benchmark"})
	default:
		return fmt.Errorf("-generator %q: holdfast or etcd", b.generator)
	}
	for _, args := range builds {
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// turn is one server's turn in a round.
type turn struct {
	round, members int
	server         string
}

// turn starts a fresh cluster, measures every point on it, and ends it.
func (b *bench) turn(ctx context.Context, t turn, points []point) error {
	floor := strings.HasPrefix(t.server, "floor")
	if floor && t.members > 1 {
		return nil // nothing is replicated: one is all there is
	}
	c, err := b.start(ctx, t)
	if err != nil {
		return err
	}
	defer c.stop()
	mib, err := c.atRest(ctx)
	if err != nil {
		return err
	}
	b.rest = append(b.rest, rest{t.round, t.members, t.server, mib})
	for _, p := range points {
		if floor && p.Load != "put" && p.Load != "range" || b.generator == "etcd" && (p.Rate > 0 || p.Load != "put" && p.Load != "range") {
			continue
		}
		s, err := b.measure(ctx, c, p)
		if err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		s.Round, s.Members, s.Server, s.point = t.round, t.members, t.server, p
		b.samples = append(b.samples, s)
		fmt.Fprintf(os.Stderr, "round %d  %d x %-16s %-20s %8.1f us  %9.0f/s  p50 %8.3f ms  p99 %8.3f ms  %4.0f MiB  failed %d\n", t.round, t.members, t.server, p, s.CPU, s.PerSecond, s.P50, s.P99, s.PeakMiB, s.Failed)
	}
	return nil
}
