package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const suite = "go.etcd.io/etcd/tests/v3"

// bench is everything that a run needs, in a directory of its own.
type bench struct {
	dir     string // of the run
	results string
	key     string // opens every data directory
	lazyfs  string
	plant   string // the bug that the members have
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// step runs a command and says what it printed if it failed.
func step(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func moduleDir(ctx context.Context, module string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// prepare builds the server with failpoints, the suite with our reader of logs, and lays out the tree that the suite expects.
func (b *bench) prepare(ctx context.Context, source string) error {
	for _, d := range []string{b.path("bin"), b.path("tests", "robustness"), b.results} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var key [32]byte
	rand.Read(key[:])
	b.key = hex.EncodeToString(key[:])
	fmt.Println("building Holdfast with failpoints …")
	if err := b.buildServer(ctx, source); err != nil {
		return err
	}
	fmt.Println("building the suite …")
	if err := b.buildSuite(ctx); err != nil {
		return err
	}
	if err := step(ctx, "", "go", "build", "-o", b.path("bin", "etcdctl"), "go.etcd.io/etcd/etcdctl/v3"); err != nil {
		return err
	}
	if b.lazyfs == "" {
		return nil
	}
	// Where the suite finds a lazyfs it runs the scenarios on it beside the others: so only where they are wanted.
	abs, err := filepath.Abs(b.lazyfs)
	if err != nil {
		return err
	}
	if err := os.CopyFS(b.path("bin-lazyfs"), os.DirFS(b.path("bin"))); err != nil {
		return err
	}
	return os.Symlink(abs, b.path("bin-lazyfs", "lazyfs"))
}

var failpoint = regexp.MustCompile(`(?m)^\s*// gofail: var (\w+) `)

// failpoints returns the names of the failpoints in a source tree by the directory they are in.
func failpoints(source string) (map[string][]string, error) {
	found := map[string][]string{}
	err := filepath.WalkDir(filepath.Join(source, "internal"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range failpoint.FindAllStringSubmatch(string(text), -1) {
			found[filepath.Dir(path)] = append(found[filepath.Dir(path)], m[1])
		}
		return nil
	})
	return found, err
}

// launcher starts a member. The suite takes a revision for an entry of the log when it says how long the log may get, and when it
// waits until a member needs a snapshot. An entry of ours holds several requests, so a tenth as many entries are kept.
const launcher = `#!/bin/sh
export HOLDFAST_LAB_KEEP_LOG=1 HOLDFAST_LAB_PLANT=%s HOLDFAST_SUITE_KEK=%s ETCD_SEAL_KEK=env:HOLDFAST_SUITE_KEK
for arg; do
	shift
	case $arg in
	--snapshot-count=* | --snapshot-catchup-entries=*) arg=${arg%%%%=*}=$(((${arg#*=} + 9) / 10)) ;;
	esac
	set -- "$@" "$arg"
done
exec %s etcd "$@"
`

// buildServer copies the source tree, turns the comments into failpoints, and builds a laboratory build of it, which keeps
// the log that it cuts. The suite starts it through a script that gives it what the suite's own environment does not hold.
func (b *bench) buildServer(ctx context.Context, source string) error {
	tree := b.path("holdfast")
	for _, d := range []string{"cmd", "internal"} {
		if err := os.CopyFS(filepath.Join(tree, d), os.DirFS(filepath.Join(source, d))); err != nil {
			return err
		}
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		if err := copyFile(filepath.Join(tree, f), filepath.Join(source, f)); err != nil {
			return err
		}
	}
	places, err := failpoints(tree)
	if err != nil {
		return err
	}
	tool, err := exec.CommandContext(ctx, "go", "tool", "-n", "go.etcd.io/gofail").Output()
	if err != nil {
		return fmt.Errorf("building gofail: %w", err)
	}
	enable := []string{"enable"}
	for dir := range places {
		enable = append(enable, dir)
	}
	if err := step(ctx, tree, strings.TrimSpace(string(tool)), enable...); err != nil {
		return err
	}
	if err := b.requireGofail(ctx, tree); err != nil {
		return err
	}
	binary := b.path("bin", "holdfast")
	if err := step(ctx, tree, "go", "build", "-trimpath", "-tags", "laboratory", "-o", binary, "./cmd/holdfast"); err != nil {
		return err
	}
	script := fmt.Sprintf(launcher, b.plant, b.key, binary)
	return os.WriteFile(b.path("bin", "etcd"), []byte(script), 0o755)
}

// requireGofail adds gofail's runtime, in the version of this module, to the copy's go.mod.
func (b *bench) requireGofail(ctx context.Context, tree string) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "go.etcd.io/gofail").Output()
	if err != nil {
		return fmt.Errorf("finding gofail's version: %w", err)
	}
	if err := step(ctx, tree, "go", "mod", "edit", "-require=go.etcd.io/gofail@"+strings.TrimSpace(string(out))); err != nil {
		return err
	}
	ours, err := os.ReadFile("go.sum")
	if err != nil {
		return err
	}
	sums, err := os.OpenFile(filepath.Join(tree, "go.sum"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(ours)) {
		if strings.HasPrefix(line, "go.etcd.io/gofail ") {
			if _, err := sums.WriteString(line); err != nil {
				return err
			}
		}
	}
	return sums.Close()
}

// edits are what is changed in the suite's sources. Everything else is as it is published.
var edits = []struct{ file, from, to string }{
	// Our own ReadWAL takes this one's place.
	{"robustness/report/wal.go", "func ReadWAL(", "func readEtcdWAL("},
	// An entry of ours holds many requests.
	{"robustness/report/wal.go", "\tfor _, e := range entries {\n\t\tif e.GetType() != raftpb.EntryNormal {", "\tfor _, e := range holdfastRequests(entries) {\n\t\tif e.GetType() != raftpb.EntryNormal {"},
}

// buildSuite copies the suite's module, edits it, and builds its test binary.
func (b *bench) buildSuite(ctx context.Context) error {
	from, err := moduleDir(ctx, suite)
	if err != nil {
		return err
	}
	tree := b.path("suite")
	if err := os.CopyFS(tree, os.DirFS(from)); err != nil {
		return err
	}
	if err := step(ctx, "", "chmod", "-R", "u+w", tree); err != nil {
		return err
	}
	if err := edit(tree); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(tree, "robustness", "report", "holdfast.go"), filepath.Join("testdata", "report", "holdfast.go")); err != nil {
		return err
	}
	mod := b.path("suite.mod")
	if err := copyFile(mod, "go.mod"); err != nil {
		return err
	}
	if err := copyFile(b.path("suite.sum"), "go.sum"); err != nil {
		return err
	}
	if err := step(ctx, "", "go", "mod", "edit", "-replace="+suite+"="+tree, mod); err != nil {
		return err
	}
	if err := step(ctx, "", "go", "test", "-c", "-modfile", mod, "-o", b.path("tests", "robustness", "robustness.test"), suite+"/robustness"); err != nil {
		return err
	}
	fixtures := b.path("tests", "fixtures")
	if err := os.Rename(filepath.Join(tree, "fixtures"), fixtures); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(fixtures, "*.key*"))
	for _, k := range keys {
		if err == nil {
			err = os.Chmod(k, 0o600)
		}
	}
	return err
}

func edit(tree string) error {
	for _, e := range edits {
		path := filepath.Join(tree, filepath.FromSlash(e.file))
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(text), e.from); n != 1 {
			return fmt.Errorf("%s: %q is there %d times: the suite has changed, look at what to edit now", e.file, e.from, n)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), e.from, e.to, 1)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
