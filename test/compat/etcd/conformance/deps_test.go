package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	// What the suite's test files import beyond its framework: named here so that `go mod tidy` keeps their sums.
	_ "github.com/stretchr/testify/require"
	_ "go.etcd.io/etcd/tests/v3/framework/e2e"
	_ "go.etcd.io/etcd/tests/v3/framework/integration"
)

func TestReadSkips(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skips.txt")
	if err := os.WriteFile(path, []byte("# comment\n\nTestA because\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readSkips(path)
	if err != nil || got["TestA"] != "because" || len(got) != 1 {
		t.Fatalf("readSkips = %v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("TestA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSkips(path); err == nil {
		t.Fatal("a skip without a reason was accepted")
	}
}

func TestJudge(t *testing.T) {
	skips := map[string]string{"TestSkipped": "reason"}
	for _, c := range []struct {
		name    string
		results map[string]string
		whole   bool
		ok      bool
	}{
		{"as promised", map[string]string{"TestA": "pass", "TestSkipped": "skip"}, true, true},
		{"a failure", map[string]string{"TestA": "pass", "TestB": "fail", "TestSkipped": "skip"}, true, false},
		{"unlisted skip", map[string]string{"TestA": "pass", "TestB": "skip", "TestSkipped": "skip"}, true, false},
		{"listed test passes", map[string]string{"TestA": "pass", "TestSkipped": "pass"}, true, false},
		{"listed test is gone", map[string]string{"TestA": "pass"}, true, false},
		{"part of the suite", map[string]string{"TestA": "pass"}, false, true},
		{"nothing ran", map[string]string{}, false, false},
	} {
		if err := judge(c.results, skips, c.whole, nil); (err == nil) != c.ok {
			t.Errorf("%s (%v): judge = %v", c.name, slices.Sorted(maps.Keys(c.results)), err)
		}
	}
}

func TestCollect(t *testing.T) {
	in := `{"Action":"output","Test":"TestA/x","Output":"boom\n"}
{"Action":"fail","Test":"TestA/x"}
{"Action":"fail","Test":"TestA","Elapsed":1}
not json
{"Action":"pass","Test":"TestB","Elapsed":1}
`
	got, loose := collect(strings.NewReader(in))
	if got["TestA"] != "fail" || got["TestB"] != "pass" || len(got) != 2 || loose != "not json\n" {
		t.Fatalf("collect = %v, %q", got, loose)
	}
}
