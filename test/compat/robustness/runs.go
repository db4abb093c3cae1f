package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The kinds of lines in the list of scenarios.
const (
	kindRun   = "run"
	kindQuick = "quick" // is also run by -quick
	kindOut   = "out"   // is left out, for a reason
)

type scenario struct{ name, kind, reason string }

func (s scenario) lazyfs() bool { return strings.HasSuffix(s.name, "/LazyFS") }

// readList reads lines of "Test/Scenario kind reason …"; # starts a comment.
func readList(path string) ([]scenario, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []scenario
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 3 || !slices.Contains([]string{kindRun, kindQuick, kindOut}, fields[1]) {
			return nil, fmt.Errorf("%s:%d: want NAME run|quick|out REASON", path, i+1)
		}
		list = append(list, scenario{fields[0], fields[1], strings.Join(fields[2:], " ")})
	}
	return list, nil
}

type outcome string

const (
	passed outcome = "passed"
	failed outcome = "failed"
	idle   outcome = "idle" // too little traffic for the suite to judge
)

type result struct {
	outcome   outcome
	failpoint string
	why       string
	snapshot  bool // some member received one
	took      time.Duration
}

// event is a line of `go tool test2json`.
type event struct{ Action, Test, Output string }

// once runs a scenario in a process of its own.
func (b *bench) once(ctx context.Context, s scenario, timeout time.Duration) result {
	start := time.Now()
	name := fmt.Sprintf("%s-%d", strings.ReplaceAll(s.name, "/", "_"), start.UnixNano())
	kept := filepath.Join(b.results, name)
	logPath := b.path("run.log")
	log, err := os.Create(logPath)
	if err != nil {
		return result{outcome: failed, why: err.Error()}
	}
	defer log.Close()
	bin := b.path("bin")
	if s.lazyfs() {
		bin = b.path("bin-lazyfs")
	}
	var pattern []string
	for _, part := range strings.Split(s.name, "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "./robustness.test", "-test.v=test2json", "-test.timeout="+timeout.String(),
		"-test.run="+strings.Join(pattern, "/"), "-bin-dir="+bin)
	cmd.Dir = b.path("tests", "robustness")
	cmd.Env = append(os.Environ(), "RESULTS_DIR="+kept, "HOLDFAST_SUITE_KEK="+b.key, "HOLDFAST_SUITE_BINARY="+b.path("bin", "holdfast"), "TMPDIR="+b.path())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	defer b.sweep(cmd)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return result{outcome: failed, why: err.Error()}
	}
	r := judge(io.TeeReader(stdout, log), s)
	runErr := cmd.Wait()
	if r.outcome == passed && runErr != nil {
		r = result{outcome: failed, failpoint: r.failpoint, why: fmt.Sprintf("the suite ended early: %v", runErr), snapshot: r.snapshot}
	}
	r.took = time.Since(start)
	if r.outcome != failed {
		_ = os.RemoveAll(kept) // of a run that nobody looks at
		return r
	}
	if err := b.keep(kept, logPath); err != nil {
		r.why += "\n" + err.Error()
	}
	r.why += "\nkept in " + kept
	return r
}

// sweep ends what a run that was cut short has left: members, which hold ports, and mounted file systems.
func (b *bench) sweep(cmd *exec.Cmd) {
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // there is nobody left, as a rule
	}
	for _, pid := range b.members() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "lazyfs" && strings.HasPrefix(f[1], b.dir) {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "TestRobustness") {
			_ = os.RemoveAll(b.path(e.Name()))
		}
	}
}

// members returns the processes whose program is in the directory of this run: each has a session of its own.
func (b *bench) members() (pids []int) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(line), b.path("bin")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// keep puts what one needs to look into a failed run beside its report: the log and the key of the data directories.
func (b *bench) keep(dir, log string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(copyFile(filepath.Join(dir, "run.log"), log), os.WriteFile(filepath.Join(dir, "KEK"), []byte(b.key+"\n"), 0o600))
}

var (
	// complaint is where a test says what is wrong.
	complaint = regexp.MustCompile(`^\s+([a-z_]+\.go:\d+: |Error:|Error Trace:|panic:)`)
	tooIdle   = "for test results to be reliable, got"
	gap       = regexp.MustCompile(`Read the log of a member.*"missing": [1-9]`) // entries that the member never had
	panicked  = regexp.MustCompile(`^(panic: |fatal error: )`)
)

// judge reads the events of one run.
func judge(events io.Reader, s scenario) result {
	r := result{outcome: failed}
	ended := map[string]string{}
	var complaints, tail []string
	idleSaid, follows := false, 0
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e) != nil {
			continue
		}
		if rest, ok := strings.CutPrefix(e.Test, s.name+"/"); ok {
			r.failpoint = rest
		}
		switch e.Action {
		case "pass", "fail", "skip":
			ended[e.Test] = e.Action
		case "output":
			r.snapshot = r.snapshot || gap.MatchString(e.Output)
			if strings.Contains(e.Output, tooIdle) {
				idleSaid = true
			} else if complains(e.Output) {
				complaints, follows = append(complaints, strings.TrimRight(e.Output, "\n")), 4
			} else if follows > 0 && strings.HasPrefix(e.Output, "        ") {
				complaints, follows = append(complaints, strings.TrimRight(e.Output, "\n")), follows-1
			} else {
				follows = 0
			}
			if tail = append(tail, strings.TrimRight(e.Output, "\n")); len(tail) > 30 {
				tail = tail[1:]
			}
		}
	}
	switch ended[s.name] {
	case "pass":
		r.outcome = passed
	case "skip":
		r.why = "the suite skipped it:\n" + strings.Join(tail, "\n")
	case "fail":
		if idleSaid && len(complaints) == 0 {
			r.outcome = idle
			return r
		}
		r.why = strings.Join(complaints, "\n")
	default:
		r.why = "it did not end:\n" + strings.Join(append(complaints, tail...), "\n")
	}
	return r
}

// complains reports whether a line of output says what is wrong. The suite's own log, and what the members print, come through the same
// stream with "logger.go" and the like in front.
func complains(line string) bool {
	if panicked.MatchString(line) {
		return true
	}
	m := complaint.FindStringSubmatch(line)
	if m == nil {
		return false
	}
	for _, harmless := range []string{"logger.go:", "testing.go:", "network.go:"} {
		if strings.HasPrefix(m[1], harmless) {
			return false
		}
	}
	return true
}
