package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// What may be checked in of what fuzzing found.
const (
	maxInput  = 2 << 10 // bytes of one file
	maxCorpus = 6 << 10 // bytes of all files of a target
	maxTried  = 40      // inputs of a target that are tried: each is a process
)

// input is a candidate for a corpus.
type input struct {
	name   string
	data   []byte
	blocks []string // of the package, that it runs
}

// collect adds to each target's checked-in corpus the fewest, smallest inputs that run what it does not run yet.
func collect(ctx context.Context, targets []target, work string) error {
	out, err := gocmd(ctx, nil, "env", "GOCACHE")
	if err != nil {
		return err
	}
	cache := filepath.Join(strings.TrimSpace(string(out)), "fuzz", "holdfast.dev", "holdfast")
	for _, t := range targets {
		found, err := candidates(filepath.Join(cache, t.dir, t.name))
		if err != nil {
			return err
		}
		added, size := 0, 0
		if len(found) > 0 {
			if added, size, err = enrich(ctx, t, found, work); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
		}
		fmt.Printf("%-53s %4d found, %d added, %d bytes\n", t, len(found), added, size)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// candidates are the small inputs in a directory, the smallest first.
func candidates(dir string) (all []input, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if len(data) <= maxInput {
			all = append(all, input{name: e.Name(), data: data})
		}
	}
	slices.SortFunc(all, func(a, b input) int { return cmp.Or(len(a.data)-len(b.data), strings.Compare(a.name, b.name)) })
	if n := len(all); n > maxTried { // of all sizes
		for i := range maxTried {
			all[i] = all[i*n/maxTried]
		}
		all = all[:maxTried]
	}
	return all, nil
}

func enrich(ctx context.Context, t target, found []input, work string) (added, size int, err error) {
	binary := filepath.Join(work, strings.ReplaceAll(t.dir, "/", "_")+".test")
	if _, err := os.Stat(binary); err != nil {
		if binary, err = build(ctx, t.dir, work, "-cover"); err != nil {
			return 0, 0, err
		}
	}
	place, err := mirror(t, filepath.Join(work, "place"))
	if err != nil {
		return 0, 0, err
	}
	corpus := filepath.Join(place, "testdata", "fuzz", t.name)
	kept := filepath.Join(t.dir, "testdata", "fuzz", t.name)
	have, err := covered(ctx, binary, place, "^"+t.name+"$")
	if err != nil {
		return 0, 0, err
	}
	known := map[string]bool{}
	for _, b := range have {
		known[b] = true
	}
	if entries, err := os.ReadDir(kept); err == nil {
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				size += int(info.Size())
			}
		}
	}
	if err := os.MkdirAll(corpus, 0o755); err != nil {
		return 0, 0, err
	}
	for i := range found {
		name := filepath.Join(corpus, found[i].name)
		if err := os.WriteFile(name, found[i].data, 0o644); err != nil {
			return 0, 0, err
		}
		found[i].blocks, err = covered(ctx, binary, place, "^"+t.name+"$/^"+found[i].name+"$")
		if err := errors.Join(err, os.Remove(name)); err != nil {
			return added, size, err
		}
	}
	for {
		best, gain := -1, 0
		for i, in := range found {
			n := 0
			for _, b := range in.blocks {
				if !known[b] {
					n++
				}
			}
			if n > gain && size+len(in.data) <= maxCorpus {
				best, gain = i, n
			}
		}
		if best < 0 {
			return added, size, nil
		}
		for _, b := range found[best].blocks {
			known[b] = true
		}
		if err := errors.Join(os.MkdirAll(kept, 0o755), os.WriteFile(filepath.Join(kept, found[best].name), found[best].data, 0o644)); err != nil {
			return added, size, err
		}
		added, size = added+1, size+len(found[best].data)
	}
}

// mirror makes a directory that looks like the package's, with a testdata that may be written to.
func mirror(t target, place string) (string, error) {
	if err := os.RemoveAll(place); err != nil {
		return "", err
	}
	if err := os.MkdirAll(place, 0o755); err != nil {
		return "", err
	}
	dir, err := filepath.Abs(t.dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "testdata")); err == nil {
		if err := os.CopyFS(filepath.Join(place, "testdata"), os.DirFS(filepath.Join(dir, "testdata"))); err != nil {
			return "", err
		}
	}
	return place, nil
}

// covered runs some inputs and lists the blocks that they ran.
func covered(ctx context.Context, binary, dir, run string) (blocks []string, err error) {
	profile := filepath.Join(filepath.Dir(binary), "cover")
	cmd := exec.CommandContext(ctx, binary, "-test.run="+run, "-test.coverprofile="+profile)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	data, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if block, count, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.Contains(block, ":") && !strings.HasSuffix(count, " 0") {
			blocks = append(blocks, block)
		}
	}
	return blocks, nil
}
