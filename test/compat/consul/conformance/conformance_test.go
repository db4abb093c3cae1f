package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	// What is tested: named here so that `go mod tidy` keeps the sums of all that it imports.
	_ "github.com/hashicorp/consul/api"
	_ "github.com/hashicorp/consul/api/watch"
	_ "github.com/hashicorp/consul/sdk/testutil"
)

func TestReadExpected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list.txt")
	for text, ok := range map[string]bool{
		"# comment\n\nTestA because\nTestB out: never\n": true, "TestA\n": false, "TestA out:\n": false, "TestA either:\n": false, "TestA a\nTestA b\n": false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readExpected(path)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if ok && (got["TestA"] != expectation{reason: "because"} || got["TestB"] != expectation{reason: "never", out: true} || len(got) != 2) {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestJudge(t *testing.T) {
	expected := map[string]expectation{
		"TestListed": {reason: "reason"}, "TestOut": {reason: "never", out: true}, "TestEndless": {reason: "never", out: true, skip: true},
		"watch/TestEndless": {reason: "never", out: true, skip: true}, "TestChance": {reason: "chance", either: true},
	}
	if got := endless(expected, ""); got != "^(TestEndless)$" {
		t.Errorf("endless: %s", got)
	}
	if got := endless(expected, "watch/"); got != "^(TestEndless)$" {
		t.Errorf("endless: %s", got)
	}
	for _, c := range []struct {
		name    string
		results map[string]string
		whole   bool
		ok      bool
	}{
		{"as promised", map[string]string{"TestA": "pass", "TestListed": "fail", "TestOut": "skip", "TestChance": "pass"}, true, true},
		{"as promised, the other way", map[string]string{"TestA": "pass", "TestListed": "fail", "TestOut": "fail", "TestChance": "fail"}, true, true},
		{"a failure", map[string]string{"TestA": "pass", "TestB": "fail", "TestListed": "fail", "TestOut": "fail", "TestChance": "pass"}, true, false},
		{"an unlisted skip", map[string]string{"TestA": "pass", "TestB": "skip", "TestListed": "fail", "TestOut": "fail"}, true, false},
		{"a listed one passes", map[string]string{"TestA": "pass", "TestListed": "pass", "TestOut": "fail"}, true, false},
		{"a listed one is gone", map[string]string{"TestA": "pass", "TestOut": "fail"}, true, false},
		{"part of the suite", map[string]string{"TestA": "pass"}, false, true},
		{"nothing passed", map[string]string{"TestListed": "fail"}, false, false},
		{"nothing ran", map[string]string{}, false, false},
	} {
		if err := judge(c.results, expected, c.whole); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCollect(t *testing.T) {
	in := `{"Action":"output","Test":"TestA/x","Output":"boom\n"}
{"Action":"fail","Test":"TestA/x"}
{"Action":"fail","Test":"TestA","Elapsed":1}
not json
{"Action":"pass","Test":"TestB","Elapsed":1}
{"Action":"output","Test":"TestC","Output":"panic\n"}
{"Action":"output","Test":"TestD","Output":"words of an agent --- PASS: TestD (2.04s)\n"}
{"Action":"output","Test":"TestE","Output":"words of an agent --- PASS: TestE (2.04s)\n"}
{"Action":"fail","Test":"TestE"}
`
	results := map[string]string{}
	unended, loose := collect(strings.NewReader(in), "p/", results)
	if results["p/TestA"] != "fail" || results["p/TestB"] != "pass" || results["p/TestD"] != "pass" || results["p/TestE"] != "pass" || len(results) != 4 || len(unended) != 1 || unended[0] != "TestC" || loose != "not json\n" {
		t.Fatalf("collect = %v, %q, %q", results, unended, loose)
	}
}

func TestFirstDay(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range firstDay() {
		if seen[name] || !strings.HasPrefix(name, "TestAPI_") {
			t.Errorf("%q is there twice or is no test", name)
		}
		seen[name] = true
	}
	if len(seen) != 47 {
		t.Errorf("%d tests", len(seen))
	}
}

func TestFixtures(t *testing.T) {
	dir := t.TempDir()
	if err := fixtures(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"client_certs/rootca.crt", "client_certs/server.crt", "client_certs/client.key", "hostname/Alice.crt", "hostname/CertAuth.crt", "ca_path/cert1.crt"} {
		if data, err := os.ReadFile(filepath.Join(dir, f)); err != nil || !strings.HasPrefix(string(data), "-----BEGIN ") {
			t.Errorf("%s: %v", f, err)
		}
	}
}
