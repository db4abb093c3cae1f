package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

type options struct {
	binary, against, etcd, worlds, replay string
	seed                                  uint64
	cases                                 int
	stop                                  bool
	shrink                                time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the holdfast binary (required unless -against etcd)")
	flag.StringVar(&o.against, "against", "holdfast", "holdfast, or etcd: the same cases and the same model against the real one")
	flag.StringVar(&o.etcd, "etcd", "", "the etcd binary, for -against etcd (default: built from its Go module)")
	flag.StringVar(&o.worlds, "world", "", "only these, comma-separated: plain, names, jwt, secured, house")
	flag.StringVar(&o.replay, "replay", "", "a JSON list of cases, as a difference prints them; needs one -world")
	flag.Uint64Var(&o.seed, "seed", 1, "the same seed makes the same cases")
	flag.IntVar(&o.cases, "cases", 100_000, "cases in all worlds together")
	flag.DurationVar(&o.shrink, "shrink", 30*time.Second, "time to shorten one difference")
	flag.BoolVar(&o.stop, "stop", false, "end a world at its first difference")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	binary := o.binary
	if o.against == "etcd" {
		binary = o.etcd
	}
	if binary == "" && o.against == "etcd" {
		dir, err := os.MkdirTemp("", "holdfast-oracle-etcd-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "etcd")
		if out, err := exec.Command("go", "-C", "compat/etcd", "build", "-o", binary, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil {
			return fmt.Errorf("building etcd (from the directory test): %w\n%s", err, out)
		}
	}
	if binary == "" {
		return fmt.Errorf("-binary is required")
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	var chosen []*runner
	for _, w := range worlds(o.against == "etcd") {
		if o.worlds == "" || slices.Contains(strings.Split(o.worlds, ","), w.name) {
			chosen = append(chosen, &runner{world: w, binary: binary, seed: o.seed, shrink: o.shrink, tally: map[string]int{}, skip: map[string]bool{}})
		}
	}
	var house *houseRunner
	if o.against != "etcd" && (o.worlds == "" || strings.Contains(o.worlds, "house")) {
		w := world{name: "house", flavour: flavour{secured: true}}
		house = &houseRunner{runner: &runner{world: w, binary: binary, seed: o.seed, tally: map[string]int{}, skip: map[string]bool{}}, clients: map[string]*http.Client{}}
	}
	if o.replay != "" {
		return again(chosen, o.replay)
	}
	begun := time.Now()
	var wait sync.WaitGroup
	play := map[*runner]func() error{}
	for _, r := range chosen {
		play[r] = r.run
	}
	if house != nil {
		chosen = append(chosen, house.runner)
		play[house.runner] = house.run
	}
	errs := make([]error, len(chosen))
	for i, r := range chosen {
		r.cases, r.most = o.cases/len(chosen), 8
		if o.stop {
			r.most = 1
		}
		wait.Go(func() { errs[i] = play[r]() })
	}
	wait.Wait()
	return report(o, chosen, errs, time.Since(begun))
}

func report(o options, chosen []*runner, errs []error, took time.Duration) error {
	differences, total := 0, 0
	for i, r := range chosen {
		fmt.Printf("%-8s %7d cases, %7d looks at all that there is", r.world.name, r.played, r.audits)
		for _, k := range sortedNames(r.tally) {
			fmt.Printf(", %d %s", r.tally[k], k)
		}
		fmt.Println()
		for _, f := range r.reports {
			differences++
			fmt.Println(f)
		}
		if errs[i] != nil {
			return errs[i]
		}
		total += r.played
	}
	fmt.Printf("%d cases, seed %d, against %s: %d differences, %s\n", total, o.seed, o.against, differences, took.Round(time.Second/10))
	if differences > 0 {
		return fmt.Errorf("%d differences", differences)
	}
	return nil
}

// again plays cases that somebody has kept.
func again(chosen []*runner, text string) error {
	var cases []Case
	if len(chosen) != 1 {
		return fmt.Errorf("-replay needs one -world")
	}
	if err := json.Unmarshal([]byte(text), &cases); err != nil {
		return err
	}
	r := chosen[0]
	l, err := r.lane()
	if err != nil {
		return err
	}
	defer r.server.stop()
	n, d := l.replay(cases)
	if d != "" {
		return fmt.Errorf("case %d: %s", n, d)
	}
	fmt.Printf("%d cases, no difference\n", n)
	return nil
}
