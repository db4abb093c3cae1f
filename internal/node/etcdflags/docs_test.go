package etcdflags

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write docs/compat/etcd-flags.md from the tables instead of comparing it with them")

// TestFlagsPage keeps docs/compat/etcd-flags.md equal to the tables: a flag that changes its class or its message cannot
// leave the page behind.
func TestFlagsPage(t *testing.T) {
	t.Parallel()
	page := filepath.Join("..", "..", "..", "docs", "compat", "etcd-flags.md")
	want := flagsPage()
	if *rewrite {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) == want {
		return
	}
	have, need := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for i, line := range need {
		if i >= len(have) || have[i] != line {
			t.Errorf("line %d should be:\n%s", i+1, line)
			break
		}
	}
	t.Error("docs/compat/etcd-flags.md does not say what the tables say; run: go test ./internal/node/etcdflags -run TestFlagsPage -rewrite")
}

// TestFlagsPageIsWhole finds every name that a command line may have on the page.
func TestFlagsPageIsWhole(t *testing.T) {
	t.Parallel()
	page := flagsPage()
	newParser(Options{}).set.VisitAll(func(f *flag.Flag) {
		if !strings.Contains(page, "`--"+f.Name+"`") {
			t.Errorf("--%s is not on the page", f.Name)
		}
	})
	for _, g := range knownGates() {
		if !strings.Contains(page, "`"+g.name+"`") {
			t.Errorf("feature gate %s is not on the page", g.name)
		}
	}
}

func className(c class) string {
	switch c {
	case honoured:
		return "honoured"
	case ignored:
		return "ignored"
	case refused:
		return "refused"
	case action:
		return "acts at once"
	}
	return "NO CLASS"
}

// flagsPage is the page as the tables have it.
func flagsPage() string {
	var b strings.Builder
	b.WriteString(flagsHead)
	p := newParser(Options{Stderr: &b})
	for _, section := range append(sections(), legacy) {
		title := section
		if section == legacy {
			title = "Names that etcd accepts in silence"
		}
		fmt.Fprintf(&b, "\n## %s\n\n| flag | class | default | what it does, or what is said when it is set |\n|---|---|---|---|\n", title)
		for _, s := range table() {
			if s.section != section {
				continue
			}
			def := ""
			if v, ok := p.bindings[s.name]; ok && v.String() != "" {
				def = "`" + v.String() + "`"
			}
			text := s.usage
			switch {
			case s.name == "feature-gates":
				text = "See the feature gates below."
			case s.why != "":
				text = s.why
			}
			fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", s.name, className(s.class), cell(def), cell(text))
		}
	}
	b.WriteString("\n## Names of older releases that are taken for another\n\nEach logs a warning that names the flag or gate it was taken for.\n\n| flag | is taken for |\n|---|---|\n")
	for _, a := range aliases() {
		to := "--" + a.name
		if a.gate != "" {
			to = "--feature-gates=" + a.gate + "=VALUE"
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` |\n", a.old, to)
	}
	b.WriteString("\n## Names of older releases that are refused\n\nSetting one ends the start with exit code 2 and this text. (A boolean one may be set to false.)\n\n| flag | text |\n|---|---|\n")
	gone := removed()
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		fmt.Fprintf(&b, "| `--%s` | %s |\n", name, cell(gone[name]))
	}
	b.WriteString("\n## Feature gates\n\nAn unknown gate is an error, as in etcd. `AllAlpha` and `AllBeta` set those that are not named.\n\n| gate | stage | default | here |\n|---|---|---|---|\n")
	for _, g := range knownGates() {
		note := g.note
		if g.set != nil {
			note = "honoured"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %t | %s |\n", g.name, g.stage, g.def, cell(note))
	}
	return b.String()
}

// cell makes text fit into a table.
func cell(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "|", `\|`), "\n", " ")
}

const flagsHead = `# The flags of ` + "`holdfast etcd`" + `

Generated from the tables in internal/node/etcdflags; TestFlagsPage fails when this page and the tables differ. Do not edit it.
Every flag has its ` + "`ETCD_*`" + ` variable and its key in the configuration file, as in etcd (` + "`--data-dir`, `ETCD_DATA_DIR`, `data-dir`" + `);
those of TLS and discovery stand in etcd's sections of the file. ` + "`config-file` and `version`" + ` cannot stand in it.

- **honoured**: it does what etcd's flag of that name does; where the wording differs, the difference is meant.
- **ignored**: accepted. Setting it logs the text as a warning.
- **refused**: setting it to anything but its default ends the start with the text.
`
