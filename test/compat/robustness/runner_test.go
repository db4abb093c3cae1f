package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func suiteFile(t *testing.T, name string) string {
	t.Helper()
	dir, err := moduleDir(context.Background(), suite)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestListIsTheSuites: a scenario that the suite gains or loses has to be noticed.
func TestListIsTheSuites(t *testing.T) {
	list, err := readList("../../../docs/compat/robustness-scenarios.txt")
	if err != nil {
		t.Fatal(err)
	}
	var listed, has []string
	for _, s := range list {
		listed = append(listed, s.name)
	}
	text := suiteFile(t, "robustness/scenarios/scenarios.go")
	for _, m := range regexp.MustCompile(`Name:\s+"(\w+)"`).FindAllStringSubmatch(text, -1) {
		if strings.HasPrefix(m[1], "Issue") {
			has = append(has, "TestRobustnessRegression/"+m[1])
			continue
		}
		for _, shape := range []string{"ClusterOfSize1", "ClusterOfSize3", "ClusterOfSize1/LazyFS"} {
			has = append(has, "TestRobustnessExploratory/"+m[1]+"/"+shape)
		}
	}
	slices.Sort(listed)
	slices.Sort(has)
	if !slices.Equal(listed, has) {
		t.Errorf("the list has\n%s\nand the suite\n%s", strings.Join(listed, "\n"), strings.Join(has, "\n"))
	}
}

// TestFailpoints: the page lists every failpoint in the source, no other, and the suite knows each of them.
func TestFailpoints(t *testing.T) {
	places, err := failpoints("../../..")
	if err != nil {
		t.Fatal(err)
	}
	here := map[string]bool{}
	for dir, names := range places {
		for _, n := range names {
			if here[n] {
				t.Errorf("%s is there twice, also in %s", n, dir)
			}
			here[n] = true
		}
	}
	page, err := os.ReadFile("../../../docs/compat/robustness.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		listed[m[1]] = true
	}
	if len(here) == 0 || !maps.Equal(here, listed) {
		t.Errorf("in the source: %v\non the page:   %v", slices.Sorted(maps.Keys(here)), slices.Sorted(maps.Keys(listed)))
	}
	known := suiteFile(t, "robustness/failpoint/gofail.go")
	for n := range here {
		if !strings.Contains(known, fmt.Sprintf("%q", n)) {
			t.Errorf("the suite does not know %s", n)
		}
	}
}

// TestEdits: what is changed in the suite is still there to be changed.
func TestEdits(t *testing.T) {
	tree := t.TempDir()
	for _, e := range edits {
		path := filepath.Join(tree, e.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(suiteFile(t, e.file)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := edit(tree); err != nil {
		t.Fatal(err)
	}
	if err := edit(tree); err == nil {
		t.Error("what was edited can be edited again")
	}
}

func TestReadList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	for text, ok := range map[string]bool{
		"# comment\n\nTestA/B run because it is\nTestC out not here\n": true,
		"TestA/B run\n":        false,
		"TestA/B maybe what\n": false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := readList(path)
		if (err == nil) != ok || ok && (len(list) != 2 || list[0] != scenario{"TestA/B", kindRun, "because it is"}) {
			t.Errorf("%q: %v, %v", text, list, err)
		}
	}
}

func TestJudge(t *testing.T) {
	const name = "T/S"
	output := func(s string) string { return fmt.Sprintf(`{"Action":"output","Test":"T/S/p","Output":%q}`, s) }
	end := func(action string) string {
		return `{"Action":"` + action + `","Test":"T/S/p"}` + "\n" + `{"Action":"` + action + `","Test":"T/S"}`
	}
	idleLine := output("    traffic.go:178: Requiring minimal 100.0 qps before failpoint injection for test results to be reliable, got 80 qps\n")
	for _, c := range []struct {
		what  string
		lines []string
		want  outcome
	}{
		{"passes", []string{output("    logger.go:146: INFO\n"), end("pass")}, passed},
		{"too little traffic", []string{idleLine, end("fail")}, idle},
		{"too little traffic and a violation", []string{idleLine, output("    main_test.go:118: linearization: Failure: illegal\n"), end("fail")}, failed},
		{"a violation", []string{output("    main_test.go:118: linearization: Failure: illegal\n"), end("fail")}, failed},
		{"a failure without a word", []string{end("fail")}, failed},
		{"skipped", []string{end("skip")}, failed},
		{"cut short", []string{output("x\n")}, failed},
		{"a panic after too little traffic", []string{idleLine, output("panic: test timed out\n"), end("fail")}, failed},
		{"nothing ran", nil, failed},
	} {
		r := judge(strings.NewReader(strings.Join(c.lines, "\n")), scenario{name: name})
		if r.outcome != c.want {
			t.Errorf("%s: %s, want %s", c.what, r.outcome, c.want)
		}
		if len(c.lines) > 0 && r.failpoint != "p" && c.what != "nothing ran" {
			t.Errorf("%s: failpoint %q", c.what, r.failpoint)
		}
	}
}

func TestReport(t *testing.T) {
	good, bad, slow, out := &tally{scenario: scenario{name: "good"}}, &tally{scenario: scenario{name: "bad"}}, &tally{scenario: scenario{name: "slow"}}, &tally{scenario: scenario{name: "out"}, out: "because"}
	good.add(result{outcome: passed})
	bad.add(result{outcome: passed})
	bad.add(result{outcome: failed})
	slow.add(result{outcome: idle})
	if err := report(io.Discard, []*tally{good, out}, ""); err != nil {
		t.Error(err)
	}
	for _, wrong := range []*tally{bad, slow} {
		if err := report(io.Discard, []*tally{good, wrong}, ""); err == nil {
			t.Errorf("%s is as it should be", wrong.scenario.name)
		}
	}
}
