// Command conformance runs HashiCorp's own tests of Consul's Go client (github.com/hashicorp/consul/api), and OpenTofu's
// tests of its consul backend, against a binary that takes Consul's place, and holds the outcome against what is promised.
//
// The tests start `consul` from PATH themselves: a directory with the judged binary under that name stands first in it.
// They are built from the pinned modules and run unmodified; the certificates that some of them read from beside the sources,
// and that the module does not carry, are made anew.
//
//	(default)        the functions for KV, sessions, locks, semaphores, transactions, status and events
//	-all             the whole suite of the client and that of its watch package, scored
//	-opentofu        OpenTofu's consul backend
//
// Every test must pass, save those that the list of expected failures names with a reason; one of those that passes, and one
// that vanished, is a failure too.
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
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	binary, pattern, expect string
	all, opentofu, keep     bool
	parallel                int
	timeout                 time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the binary to judge, put in consul's place (required)")
	flag.StringVar(&o.pattern, "run", "", "only tests whose name matches this regular expression")
	flag.BoolVar(&o.all, "all", false, "the whole suite")
	flag.BoolVar(&o.opentofu, "opentofu", false, "OpenTofu's consul backend")
	flag.StringVar(&o.expect, "expect", "../../../docs/compat/consul-suite-failures.txt", "the list of expected failures: a test's name, white space, a reason")
	flag.BoolVar(&o.keep, "keep", false, "keep the working directory and print its name")
	flag.IntVar(&o.parallel, "parallel", 4, "tests at a time")
	flag.DurationVar(&o.timeout, "timeout", 40*time.Minute, "bound on each suite")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// suite is one package of tests.
type suite struct {
	name    string // put before the names of tests; empty for the client's own
	module  string // directory of the module that pins it
	pkg     string
	pattern string // of the tests to run; empty: all
	skip    string // of those not to run; empty: none
	env     []string
}

func suites(o options) []suite {
	const api = "github.com/hashicorp/consul/api"
	switch {
	case o.opentofu:
		return []suite{{name: "opentofu/", module: "opentofu", pkg: "github.com/opentofu/opentofu/internal/backend/remote-state/consul", pattern: o.pattern, env: []string{"TF_CONSUL_TEST=1"}}}
	case o.all:
		return []suite{{module: ".", pkg: api, pattern: o.pattern}, {name: "watch/", module: ".", pkg: api + "/watch", pattern: o.pattern}}
	case o.pattern != "":
		return []suite{{module: ".", pkg: api, pattern: o.pattern}}
	}
	return []suite{{module: ".", pkg: api, pattern: "^(" + strings.Join(firstDay(), "|") + ")$"}}
}

func run(ctx context.Context, o options) error {
	if o.binary == "" {
		return errors.New("-binary is required: the path of a holdfast binary")
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return err
	}
	expected, err := readExpected(o.expect)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-consul-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("working directory:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	if err := layOut(dir, binary); err != nil {
		return err
	}
	results := map[string]string{}
	for _, s := range suites(o) {
		if err := runSuite(ctx, dir, s, o, expected, results); err != nil {
			return err
		}
	}
	return judge(results, expected, whole(o))
}

// whole reports whether every test of the suites was to run, so that one that is missing has vanished.
func whole(o options) bool { return o.all && o.pattern == "" }

// layOut makes the directory that the tests run in: bin/consul, and the certificates in test/ beside the working directory.
func layOut(dir, binary string) error {
	for _, d := range []string{"bin", "work", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink(binary, filepath.Join(dir, "bin", "consul")); err != nil {
		return err
	}
	out, err := exec.Command(filepath.Join(dir, "bin", "consul"), "version", "-format=json").Output()
	if err != nil || !strings.Contains(string(out), `"Version"`) {
		return fmt.Errorf("%s does not know `consul version -format=json`: %w\n%s", binary, err, out)
	}
	return fixtures(filepath.Join(dir, "test"))
}

// runSuite builds a suite, runs it and adds the outcome of each of its tests to results.
func runSuite(ctx context.Context, dir string, s suite, o options, expected map[string]expectation, results map[string]string) error {
	program := filepath.Join(dir, "bin", filepath.Base(s.module+s.name)+".test")
	fmt.Println("building", s.pkg, "…")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, s.pkg)
	build.Dir = s.module
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", s.pkg, err, out)
	}
	s.skip = endless(expected, s.name)
	pattern := s.pattern
	for {
		unended, err := runOnce(ctx, dir, program, pattern, s, o, results)
		switch {
		case len(unended) == 0 || ctx.Err() != nil:
			return err
		case len(unended) == 1: // it is the one that ended the program
			results[s.name+unended[0]] = "fail"
			return nil
		}
		// A panic of one test ends the others with it: they have another try.
		fmt.Printf("again, after a panic: %d tests\n", len(unended))
		again := "^(" + strings.Join(unended, "|") + ")$"
		if again == pattern {
			return fmt.Errorf("%s does not get on: %w", s.pkg, err)
		}
		pattern = again
	}
}

// runOnce runs a suite's program once, and returns the tests that it began and did not end.
func runOnce(ctx context.Context, dir, program, pattern string, s suite, o options, results map[string]string) ([]string, error) {
	args := []string{"tool", "test2json", "-t", program, "-test.v=test2json", "-test.timeout=" + o.timeout.String(), "-test.parallel=" + strconv.Itoa(o.parallel)}
	if pattern != "" {
		args = append(args, "-test.run="+pattern)
	}
	if s.skip != "" {
		args = append(args, "-test.skip="+s.skip)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(dir, "work")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"), "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.Env = append(cmd.Env, s.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	before := len(results)
	unended, loose := collect(stdout, s.name, results)
	err = cmd.Wait()
	if err != nil && (len(results) == before || failures(results) == 0) {
		return unended, fmt.Errorf("%s ended early: %w\n%s", s.pkg, err, loose)
	}
	return unended, nil
}
