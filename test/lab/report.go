package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// print writes the figures for people.
func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %d members, seed %d, %.0f s, %d rounds\n", r.Program, r.Members, r.Seed, r.Seconds, r.Rounds)
	fmt.Fprintf(w, "  faults         %d:", r.total())
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(w, " %s %d", kind, r.Faults[kind])
	}
	fmt.Fprintf(w, "\n  operations     %d answered, %d refused, %d with unknown outcome; %d events told by watches of all keys\n", r.Operations["answered"], r.Operations["refused"], r.Operations["unknown"], r.Events)
	fmt.Fprintf(w, "  judged        ")
	for _, name := range slices.Sorted(maps.Keys(r.Judged)) {
		fmt.Fprintf(w, " %s %d;", name, r.Judged[name])
	}
	fmt.Fprintf(w, "\n  power cuts     %d, which took bytes of %d files and names of %d directories that were not synced\n", r.PowerCuts, r.LostFiles, r.LostNames)
	fmt.Fprintf(w, "  members equal  at the end of %d rounds; %d ended by themselves, %d after faults that may do that\n", r.Hashes, len(r.Fell), r.Excused)
	fmt.Fprintf(w, "  VIOLATIONS     %d: lost %d, doubled %d, not linearizable %d, watches %d, other %d; undecided %d\n", r.Violations, r.Lost, r.Doubled, r.NonLinearizable, r.WatchGaps, r.Other, len(r.Undecided))
	for _, text := range append(append(slices.Clone(r.Words), r.Undecided...), r.Fell...) {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(text, "\n", "\n      "))
	}
	if r.Recoveries > 0 {
		fmt.Fprintf(w, "  recovery       after %d deaths of a leader: p50 %.2f s, max %.2f s to the first acknowledged write\n", r.Recoveries, r.RecoveryP50, r.RecoveryMax)
	}
}

// sideBySide compares the servers of a run.
func sideBySide(w io.Writer, results []result) {
	if len(results) < 2 {
		return
	}
	fmt.Fprintf(w, "\n%-42s %10s %10s %10s %10s %10s\n", "", "faults", "answered", "violations", "p50", "max")
	for _, r := range results {
		fmt.Fprintf(w, "%-42s %10d %10d %10d %8.2f s %8.2f s\n", r.Program, r.total(), r.Operations["answered"], r.Violations, r.RecoveryP50, r.RecoveryMax)
	}
}

// tail is the end of a log, each line cut.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const keep = 16 << 10
	if s, err := f.Stat(); err == nil && s.Size() > keep {
		_, _ = f.Seek(-keep, io.SeekEnd) // from the begin, if it cannot: longer, and just as true
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line[:min(len(line), 500)], "\n")
		if !slices.Contains(lines, line) { // what cannot start says the same again and again
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// clean removes what laboratories that were killed have left: that of processes which are no more.
func clean() error {
	tags := map[string]bool{}
	names, _ := filepath.Glob("/var/run/netns/hfl-*")
	for _, n := range names {
		tags[strings.Split(filepath.Base(n), "-")[1]] = true
	}
	links, _ := filepath.Glob("/sys/class/net/hfb*")
	for _, n := range links {
		tags[strings.TrimPrefix(filepath.Base(n), "hfb")] = true
	}
	var err error
	for tag := range tags {
		pid, perr := strconv.Atoi(tag)
		if perr != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		fmt.Printf("removing what process %d left\n", pid)
		err = errors.Join(err, removeNetwork(tag))
	}
	mounts, merr := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "powerfs" {
			continue
		}
		if _, serr := os.Stat(fields[1]); errors.Is(serr, syscall.ENOTCONN) { // its server is gone
			fmt.Printf("unmounting %s\n", fields[1])
			err = errors.Join(err, command("umount", "-l", fields[1]))
		}
	}
	return errors.Join(err, merr)
}
