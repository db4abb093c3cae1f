// Command fuzzing is the engine of `make fuzz`: it finds every fuzz target of the main module, runs each for a time, some at once,
// says how far it is, and ends with a table. What it has done it writes down after each target, so that a long run can be
// done in parts. It is run from the module's root.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// target is one fuzz target.
type target struct{ dir, name string }

func (t target) String() string { return t.dir + "." + t.name }

type options struct {
	time    time.Duration
	pattern string
	jobs    int
	file    string
	resume  bool
	list    bool
	seeds   bool
	collect bool
}

func main() {
	var o options
	flag.DurationVar(&o.time, "time", or("FUZZTIME", 30*time.Second, time.ParseDuration), "how long to run each target (FUZZTIME)")
	flag.StringVar(&o.pattern, "run", os.Getenv("FUZZ"), "only targets that this regular expression matches, as internal/ca.FuzzKey (FUZZ)")
	flag.IntVar(&o.jobs, "jobs", or("FUZZJOBS", 2, func(s string) (n int, err error) { _, err = fmt.Sscan(s, &n); return n, err }), "how many targets at once, each on one processor (FUZZJOBS)")
	flag.StringVar(&o.file, "state", "bin/fuzz.json", "where to write down what was run")
	flag.BoolVar(&o.resume, "resume", os.Getenv("RESUME") != "", "go on with what the state says: each target runs for what is left of -time (RESUME=1)")
	flag.BoolVar(&o.list, "list", false, "print the targets and end")
	flag.BoolVar(&o.seeds, "seeds", false, "do not fuzz: run the seeds and the checked-in corpora, and check that each decoder is really run by them")
	flag.BoolVar(&o.collect, "collect", false, "do not fuzz: add to the checked-in corpora the inputs found so far that reach what they do not")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

// or reads a variable, or returns what holds without it.
func or[T any](name string, otherwise T, read func(string) (T, error)) T {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	v, err := read(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "fuzz: %s=%s: %v\n", name, text, err)
		os.Exit(2)
	}
	return v
}

func run(ctx context.Context, o options) error {
	if flag.NArg() > 0 || o.time <= 0 || o.jobs < 1 {
		return errors.New("a time and a number of jobs above 0, and no arguments: see -h")
	}
	targets, err := find(o.pattern)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fmt.Errorf("no target matches %q; -list shows them", o.pattern)
	}
	switch {
	case o.list:
		for _, t := range targets {
			fmt.Println(t)
		}
		return nil
	case o.seeds:
		return seeds(ctx, targets, o.pattern == "")
	}
	work, err := os.MkdirTemp("", "holdfast-fuzz-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.collect {
		return collect(ctx, targets, work)
	}
	return fuzz(ctx, o, targets, work)
}

// find lists the targets, package by package.
func find(pattern string) (all []target, err error) {
	want, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	function := regexp.MustCompile(`(?m)^func (Fuzz[A-Za-z0-9_]*)\(`)
	for _, root := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") || strings.Contains(filepath.ToSlash(path), "internal/archtest/") {
				return err // archtest has some in its examples
			}
			text, err := os.ReadFile(path)
			for _, m := range function.FindAllSubmatch(text, -1) {
				if t := (target{filepath.ToSlash(filepath.Dir(path)), string(m[1])}); want.MatchString(t.String()) {
					all = append(all, t)
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b target) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// gocmd runs the go command, and shows what it said only if it fails.
func gocmd(ctx context.Context, env []string, args ...string) ([]byte, error) {
	name := os.Getenv("GO")
	if name == "" {
		name = "go"
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s%s", strings.Join(args[:min(len(args), 4)], " "), err, out.Bytes(), said.Bytes())
	}
	return out.Bytes(), nil
}

// build compiles the tests of a package once for all its targets.
func build(ctx context.Context, dir, work string, flags ...string) (binary string, err error) {
	binary = filepath.Join(work, strings.ReplaceAll(dir, "/", "_")+".test")
	_, err = gocmd(ctx, nil, append([]string{"test", "-c", "-o", binary}, append(flags, "./"+dir)...)...)
	return binary, err
}

// seeds runs what is checked in. With all targets, archtest checks by the coverage that each decoder was run.
func seeds(ctx context.Context, targets []target, all bool) error {
	var dirs []string
	for _, t := range targets {
		if !slices.Contains(dirs, "./"+t.dir) {
			dirs = append(dirs, "./"+t.dir)
		}
	}
	profile, err := filepath.Abs("bin/fuzz.cover")
	if err != nil {
		return err
	}
	if err := os.MkdirAll("bin", 0o755); err != nil {
		return err
	}
	fmt.Printf("running the seeds and corpora of %d targets in %d packages, with coverage\n", len(targets), len(dirs))
	if _, err := gocmd(ctx, nil, append([]string{"test", "-count=1", "-run", "^Fuzz", "-coverpkg=./internal/...,./cmd/...", "-coverprofile=" + profile}, dirs...)...); err != nil {
		return err
	}
	if !all {
		fmt.Println("all pass")
		return nil
	}
	out, err := gocmd(ctx, []string{"HOLDFAST_FUZZ_COVERAGE=" + profile}, "test", "-count=1", "-v", "-run", "TestEveryDecoderIsFuzzed", "./internal/archtest")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "decoders:") {
			fmt.Print(strings.TrimSpace(line[strings.Index(line, ":")+1:]), "\n")
		}
	}
	fmt.Println("each of them is run by a seed or a corpus that is checked in")
	return nil
}
