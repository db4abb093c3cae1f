package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

// testEvent is a line of `go tool test2json`.
type testEvent struct {
	Action, Test, Output string
	Elapsed              float64
}

// collect reads events, adds the outcome ("pass", "fail", "skip") of each top-level test to results under its name with
// the prefix, prints a line for it, and the output of those that failed. It returns the tests that were begun and not ended,
// as it is when another one has panicked, and what was no event.
func collect(r io.Reader, prefix string, results map[string]string) (unended []string, loose string) {
	outputs := map[string]*strings.Builder{}
	var rest strings.Builder
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e testEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			rest.Write(append(lines.Bytes(), '\n'))
			continue
		}
		top, _, sub := strings.Cut(e.Test, "/")
		switch e.Action {
		case "output":
			if e.Test == "" {
				rest.WriteString(e.Output)
				continue
			}
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
			results[prefix+top] = e.Action
			fmt.Printf("%-4s %6.1fs  %s\n", e.Action, e.Elapsed, prefix+top)
			if e.Action == "fail" {
				fmt.Println(said(outputs[top].String()))
			}
			delete(outputs, top)
		}
	}
	for top := range outputs {
		unended = append(unended, top)
	}
	sort.Strings(unended)
	return unended, tail(rest.String(), 6_000)
}

// said is what a test itself said: its lines are indented, those of the agents that it started are not.
func said(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, " ") && !strings.Contains(line, "CONFIG JSON") || strings.HasPrefix(line, "panic") || strings.HasPrefix(line, "---") {
			b.WriteString(line)
		}
	}
	return tail(b.String(), 6_000)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "[…]\n" + s[len(s)-n:]
}

func failures(results map[string]string) int {
	n := 0
	for _, r := range results {
		if r == "fail" {
			n++
		}
	}
	return n
}

// expectation is a test that is expected to fail, and why.
type expectation struct {
	reason     string
	outOfScope bool // what it tests will not be built: it does not count in the score
}

// readExpected reads lines of "TestName reason …"; # starts a comment. A reason that begins with "out:" says that what is
// tested is out of scope.
func readExpected(path string) (map[string]expectation, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	expected := map[string]expectation{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		reason = strings.TrimSpace(reason)
		out := strings.HasPrefix(reason, "out:")
		if strings.TrimSpace(strings.TrimPrefix(reason, "out:")) == "" {
			return nil, fmt.Errorf("%s:%d: %s has no reason", path, i+1, name)
		}
		if _, twice := expected[name]; twice {
			return nil, fmt.Errorf("%s:%d: %s is there twice", path, i+1, name)
		}
		expected[name] = expectation{reason, out}
	}
	return expected, nil
}

// judge prints the score and returns an error unless the run is what the list promises.
func judge(results map[string]string, expected map[string]expectation, whole bool) error {
	passed, failed, skipped, scope := 0, 0, 0, 0
	var wrong []string
	for name, result := range results {
		e, listed := expected[name]
		if !e.outOfScope {
			scope++
		}
		switch result {
		case "pass":
			passed++
			if listed {
				wrong = append(wrong, name+" passes: take it off the list of expected failures")
			}
		case "fail":
			failed++
			if !listed {
				wrong = append(wrong, name+" failed")
			}
		case "skip":
			skipped++
			if !listed {
				wrong = append(wrong, name+" was skipped without a line in the list of expected failures")
			}
		}
	}
	if whole {
		for name := range expected {
			if _, ran := results[name]; !ran && !strings.HasPrefix(name, "opentofu/") {
				wrong = append(wrong, name+" is on the list of expected failures but no suite has such a test")
			}
		}
	}
	sort.Strings(wrong)
	for _, w := range wrong {
		fmt.Println("WRONG:", w)
	}
	fmt.Printf("score: %d of %d tests pass (%d of them in scope); %d failed, %d skipped\n", passed, len(results), scope, failed, skipped)
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("%d tests are not as expected", len(wrong))
	case passed == 0:
		return errors.New("no test passed")
	}
	return nil
}
