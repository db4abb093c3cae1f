package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = "# A guide\n\n```console\n$ echo one; echo two\none\ntwo\n$ cat <<'EOF' >f\n> x\n> EOF\n$ cat f \\\n  f\nx\nx\n$ false\n[exit 1]\n```\n\ntext\n\n<!-- background: server -->\n\n```console\n$ sleep 60\n```\n"

func TestParse(t *testing.T) {
	t.Parallel()
	p, err := parse("sample", sample)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.steps) != 5 {
		t.Fatalf("%d steps: %+v", len(p.steps), p.steps)
	}
	if p.steps[1].command != "cat <<'EOF' >f\nx\nEOF" || p.steps[2].command != "cat f \\\n  f" || p.steps[3].exit != 1 || p.steps[4].background != "server" {
		t.Errorf("%+v", p.steps)
	}
	for _, bad := range []string{"no block", "```console\n$ x\n", "```console\nout\n```\n", "<!-- backgroud: x -->\n<!-- background: X Y -->\n```console\n$ x\n```\n", "```console\n$ cat <<EOF\nx\n```\n"} {
		if _, err := parse("bad", bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want, got string
		ok        bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "", false}, {"", "a", false}, {"", "", true},
		{"a…", "abc", true}, {"a…c", "abc", true}, {"a…c", "abd", false}, {"…b…", "abc", true}, {"…x…", "abc", false},
		{"…", "", true}, {"…", "a\nb", true}, {"…\nb", "a\nb", true}, {"…\nb", "a\nc", false}, {"a\n…\nd", "a\nb\nc\nd", true}, {"a…a", "a", false},
	} {
		if got := match(split(c.want), split(c.got)); got != c.ok {
			t.Errorf("want %q, got %q: %v", c.want, c.got, got)
		}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "holdfast")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho \"I am $1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, fault string }{
		"good":     {"```console\n$ cd \"$HOME\" && X=1\n$ echo $X; holdfast server\n1\nI am …\n```\n<!-- background: bg -->\n```console\n$ echo up >up; sleep 600\n```\n<!-- wait -->\n```console\n$ cat up\nup\n```\n", ""},
		"output":   {"```console\n$ echo a\nb\n```\n", "promises"},
		"status":   {"```console\n$ echo a; false\na\n```\n", "status 1"},
		"no stdin": {"```console\n$ cat\n```\n", ""},
		"silent":   {"```console\n$ true\nsomething\n```\n", "promises"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := parse(name, c.text)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err = run(t.Context(), p, options{binary: bin, out: &out})
			if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}
