package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
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
	endings := map[string]string{} // of tests whose last line an agent has written into: test2json does not see those
	ending := regexp.MustCompile(`--- (PASS|FAIL|SKIP): (Test\w+) \(`)
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
			if ended := ending.FindStringSubmatch(e.Output); ended != nil {
				endings[ended[2]] = strings.ToLower(ended[1])
			}
		case "pass", "fail", "skip":
			if e.Test == "" || sub {
				continue
			}
			if own := endings[top]; own != "" {
				e.Action = own
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
		if own := endings[top]; own != "" {
			results[prefix+top] = own
			fmt.Printf("%-4s          %s\n", own, prefix+top)
			continue
		}
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

// expectation is what is known of a test that does not simply pass, and why.
type expectation struct {
	reason string
	out    bool // what it tests will not be built: it does not count in the score
	skip   bool // it never ends, and is not started
	either bool // whether it passes is up to chance
}

// readExpected reads lines of "TestName reason …"; # starts a comment. A reason may begin with "out:", "endless:" (which is
// out too) or "either:".
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
		name, rest, _ := strings.Cut(line, " ")
		e := expectation{reason: strings.TrimSpace(rest)}
		if word, reason, ok := strings.Cut(e.reason, ":"); ok {
			e.out, e.skip, e.either = word == "out" || word == "endless", word == "endless", word == "either"
			if e.out || e.either {
				e.reason = strings.TrimSpace(reason)
			}
		}
		if e.reason == "" {
			return nil, fmt.Errorf("%s:%d: %s has no reason", path, i+1, name)
		}
		if _, twice := expected[name]; twice {
			return nil, fmt.Errorf("%s:%d: %s is there twice", path, i+1, name)
		}
		expected[name] = e
	}
	return expected, nil
}

// endless are the tests of the suite with the prefix that are not to be started, as a pattern; empty: none.
func endless(expected map[string]expectation, prefix string) string {
	var names []string
	for name, e := range expected {
		if own, ok := strings.CutPrefix(name, prefix); ok && e.skip && !strings.Contains(own, "/") {
			names = append(names, own)
		}
	}
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return "^(" + strings.Join(names, "|") + ")$"
}

// judge prints the score and returns an error unless the run is what the list promises.
func judge(results map[string]string, expected map[string]expectation, whole bool) error {
	passed, failed, skipped, scope := 0, 0, 0, 0
	var wrong []string
	for name, result := range results {
		e, listed := expected[name]
		if !e.out {
			scope++
		}
		switch result {
		case "pass":
			passed++
			if listed && !e.either {
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
		for name, e := range expected {
			if _, ran := results[name]; !ran && !e.skip && !strings.HasPrefix(name, "opentofu/") {
				wrong = append(wrong, name+" is on the list of expected failures but no suite has such a test")
			}
		}
	}
	sort.Strings(wrong)
	for _, w := range wrong {
		fmt.Println("WRONG:", w)
	}
	fmt.Printf("score: %d of %d tests in scope pass; %d of %d in all; %d failed, %d skipped\n", passed, scope, passed, len(results), failed, skipped)
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("%d tests are not as expected", len(wrong))
	case passed == 0:
		return errors.New("no test passed")
	}
	return nil
}
