// Command conformance runs etcd's own black-box suite (go.etcd.io/etcd/tests/v3/common, tag e2e) against a binary that
// takes etcd's place, and holds the outcome against the list of expected skips.
//
// It builds what it needs from the pinned modules, lays out the tree that the suite expects in a temporary directory,
// runs the suite there and judges: every test must pass, save those that the suite itself skips and that
// the list of skips names with a reason. A listed test that would pass, an unlisted skip and a test that vanished are failures.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

const suite = "go.etcd.io/etcd/tests/v3/common"

func main() {
	var (
		binary  = flag.String("binary", "", "the server to judge: a Holdfast binary, put in etcd's place (required); \"etcd\" builds and judges the real one")
		pattern = flag.String("run", "", "only tests whose name matches this regular expression; the list of skips is then not held against the run")
		minimal = flag.Bool("minimal", false, "only the smaller set of cluster shapes (E2E_TEST_MINIMAL)")
		expect  = flag.String("skips", "../../../docs/compat/etcd-suite-skips.txt", "the list of expected skips: a test name, white space, a reason")
		keep    = flag.Bool("keep", false, "keep the working directory and print its name")
		timeout = flag.Duration("timeout", 60*time.Minute, "bound on the whole run")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, options{binary: *binary, pattern: *pattern, minimal: *minimal, skips: *expect, keep: *keep, timeout: *timeout})
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

type options struct {
	binary, pattern, skips string
	minimal, keep          bool
	timeout                time.Duration
}

func run(ctx context.Context, o options) error {
	if o.binary == "" {
		return errors.New("-binary is required: the path of a holdfast binary, or \"etcd\" for the real one")
	}
	skips, err := readSkips(o.skips)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-conformance-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("working directory:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	fmt.Println("building the suite and its clients …")
	if err := layOut(ctx, dir, o.binary); err != nil {
		return err
	}
	results, output, err := runSuite(ctx, dir, o)
	if err != nil && len(results) == 0 {
		return fmt.Errorf("the suite did not run: %w\n%s", err, output)
	}
	return judge(results, skips, o.pattern == "", err)
}

// layOut builds the programs into dir/bin and copies the fixtures to where the suite looks for them.
func layOut(ctx context.Context, dir, binary string) error {
	bin, common := filepath.Join(dir, "bin"), filepath.Join(dir, "tests", "common")
	for _, d := range []string{bin, common} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	builds := [][]string{
		{"build", "-o", filepath.Join(bin, "etcdctl"), "go.etcd.io/etcd/etcdctl/v3"},
		{"build", "-o", filepath.Join(bin, "etcdutl"), "go.etcd.io/etcd/etcdutl/v3"},
		{"test", "-c", "-tags", "e2e", "-o", filepath.Join(common, "common.test"), suite},
	}
	if binary == "etcd" {
		builds = append(builds, []string{"build", "-o", filepath.Join(bin, "etcd"), "go.etcd.io/etcd/server/v3"})
	} else if err := copyFile(filepath.Join(bin, "etcd"), binary, 0o755); err != nil {
		return err
	}
	for _, args := range builds {
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "go.etcd.io/etcd/tests/v3").Output()
	if err != nil {
		return fmt.Errorf("finding the suite's fixtures: %w", err)
	}
	from, to := filepath.Join(strings.TrimSpace(string(out)), "fixtures"), filepath.Join(dir, "tests", "fixtures")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		mode := os.FileMode(0o644)
		if strings.Contains(e.Name(), ".key") {
			mode = 0o600
		}
		if err := copyFile(filepath.Join(to, e.Name()), filepath.Join(from, e.Name()), mode); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}

// testEvent is a line of `go tool test2json`.
type testEvent struct {
	Action, Test, Output string
	Elapsed              float64
}

// runSuite returns the outcome ("pass", "fail", "skip") of each top-level test.
func runSuite(ctx context.Context, dir string, o options) (map[string]string, string, error) {
	args := []string{"tool", "test2json", "-t", "./common.test", "-test.v=test2json", "-test.timeout=" + o.timeout.String()}
	if o.pattern != "" {
		args = append(args, "-test.run="+o.pattern)
	}
	args = append(args, "-bin-dir="+filepath.Join(dir, "bin"))
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(dir, "tests", "common")
	cmd.Env = os.Environ()
	if o.minimal {
		cmd.Env = append(cmd.Env, "E2E_TEST_MINIMAL=true")
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	results, loose := collect(stdout)
	return results, loose, cmd.Wait()
}

// collect reads events, prints a line for each finished top-level test and the output of those that failed.
func collect(r io.Reader) (map[string]string, string) {
	results := map[string]string{}
	outputs := map[string]*strings.Builder{}
	var loose strings.Builder
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e testEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			loose.Write(append(lines.Bytes(), '\n'))
			continue
		}
		top, _, sub := strings.Cut(e.Test, "/")
		switch e.Action {
		case "output":
			b := outputs[top]
			if b == nil {
				b = &strings.Builder{}
				outputs[top] = b
			}
			b.WriteString(e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" || sub {
				continue
			}
			results[top] = e.Action
			fmt.Printf("%-4s %6.1fs  %s\n", e.Action, e.Elapsed, top)
			if e.Action == "fail" {
				fmt.Println(tail(outputs[top].String(), 12_000))
			}
			delete(outputs, top)
		}
	}
	return results, loose.String()
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "[…]\n" + s[len(s)-n:]
}

// readSkips reads lines of "TestName reason …"; # starts a comment.
func readSkips(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	skips := map[string]string{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		if strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: %s has no reason", path, i+1, name)
		}
		skips[name] = strings.TrimSpace(reason)
	}
	return skips, nil
}

// judge prints the totals and returns an error unless the run is what the list of skips promises.
func judge(results map[string]string, skips map[string]string, whole bool, runErr error) error {
	counts := map[string]int{}
	var wrong []string
	for name, result := range results {
		counts[result]++
		_, listed := skips[name]
		switch {
		case result == "fail":
			wrong = append(wrong, name+" failed")
		case result == "skip" && !listed:
			wrong = append(wrong, name+" was skipped without a line in the list of skips")
		case result == "pass" && listed:
			wrong = append(wrong, name+" passes: take it off the list of skips")
		}
	}
	if whole {
		for name := range skips {
			if _, ran := results[name]; !ran {
				wrong = append(wrong, name+" is on the list of skips but the suite has no such test")
			}
		}
	}
	sort.Strings(wrong)
	for _, w := range wrong {
		fmt.Println("WRONG:", w)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", counts["pass"], counts["fail"], counts["skip"])
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("%d tests are not as expected", len(wrong))
	case runErr != nil:
		return fmt.Errorf("the suite ended early: %w", runErr)
	case counts["pass"] == 0:
		return errors.New("no test passed")
	}
	return nil
}
