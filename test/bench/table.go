package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// labels say what the names of servers stand for.
var labels = map[string]string{
	"floor":           "empty handler, plain text",
	"floor-mtls":      "empty handler, mTLS",
	"etcd":            "etcd, plain text",
	"etcd-mtls":       "etcd, mTLS",
	"etcd-mtls-split": "etcd, mTLS, HTTP apart",
	"holdfast":        "**Holdfast, mTLS, sealed**",
}

// what says what a load is, and what its columns count.
func (b *bench) what(load string) string {
	switch load {
	case "put":
		return fmt.Sprintf("Puts of %d bytes on %d keys.", b.valueSize, b.keys)
	case "range":
		return fmt.Sprintf("Linearizable reads of one of %d keys with %d bytes.", b.keys, b.valueSize)
	case "mixed":
		return fmt.Sprintf("Three reads to each put, %d bytes on %d keys. Both count as requests; the latency is that of the puts.", b.valueSize, b.keys)
	case "list":
		return fmt.Sprintf("Linearizable lists of %d keys with %d bytes in pages of %d, a count before each list. The latency is that of a page, and pages are what is counted a second; CPU is per request, counts among them.", b.keys, b.valueSize, b.limits)
	default:
		return fmt.Sprintf("%d watchers that all hear of each put. Clients and rate are those of the puts; what is counted a second, the latency (from the sending of the put to the watcher) and CPU are per delivery.", b.watchers)
	}
}

// page returns the generated section.
func (b *bench) page(ctx context.Context, took time.Duration) string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s\n", b.machine(ctx, took))
	b.restTable(&w)
	var seen []string
	for _, s := range b.samples {
		name := fmt.Sprintf("%d %s", s.Members, s.Load)
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		members := "one member"
		if s.Members > 1 {
			members = fmt.Sprintf("%d members", s.Members)
		}
		fmt.Fprintf(&w, "### %s, %s\n\n%s\n\n", s.Load, members, b.what(s.Load))
		b.loadTable(&w, s.Members, s.Load)
	}
	b.failures(&w)
	return w.String()
}

// strength is how hard a point is, in words.
func (p point) strength() string {
	switch {
	case p.Rate > 0:
		return fmt.Sprintf("%g/s, open loop", p.Rate)
	case p.Clients == 1:
		return "1 client"
	}
	return fmt.Sprintf("%d clients", p.Clients)
}

// loadTable writes one load's table: by strength, and by server in the order of the command line.
func (b *bench) loadTable(w *strings.Builder, members int, load string) {
	fmt.Fprintln(w, "| | server | CPU us | (min to max) | per second | p50 ms | p99 ms | p99.9 ms | peak MiB | written per byte |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	var strengths []point
	groups := map[point]map[string][]sample{}
	for _, s := range b.samples {
		if s.Members != members || s.Load != load {
			continue
		}
		if groups[s.point] == nil {
			groups[s.point] = map[string][]sample{}
			strengths = append(strengths, s.point)
		}
		groups[s.point][s.Server] = append(groups[s.point][s.Server], s)
	}
	for _, p := range strengths {
		for server := range strings.SplitSeq(b.servers, ",") {
			all := groups[p][server]
			if len(all) == 0 {
				continue
			}
			low, cpu, high := spread(all, func(s sample) float64 { return s.CPU })
			mid := func(f func(sample) float64) float64 { _, m, _ := spread(all, f); return m }
			written := "-"
			if all[0].Written != nil {
				written = fmt.Sprintf("%.1f", mid(func(s sample) float64 {
					if s.Written == nil {
						return 0
					}
					return *s.Written
				}))
			}
			peak := "-"
			if m := mid(func(s sample) float64 { return s.PeakMiB }); m > 0 {
				peak = fmt.Sprintf("%.0f", m)
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s to %s | %.0f | %s | %s | %s | %s | %s |\n", p.strength(), labels[server], digits(cpu), digits(low), digits(high), mid(func(s sample) float64 { return s.PerSecond }),
				digits(mid(func(s sample) float64 { return s.P50 })), digits(mid(func(s sample) float64 { return s.P99 })), digits(mid(func(s sample) float64 { return s.P999 })), peak, written)
		}
	}
	fmt.Fprintln(w)
}

func (b *bench) restTable(w *strings.Builder) {
	fmt.Fprintf(w, "Memory at rest (resident, the largest member, %v after it was ready):\n\n| server | members | MiB |\n|---|---:|---:|\n", settleBefore)
	type row struct {
		members int
		server  string
	}
	by := map[row][]float64{}
	var order []row
	for _, r := range b.rest {
		k := row{r.Members, r.Server}
		if by[k] == nil {
			order = append(order, k)
		}
		by[k] = append(by[k], r.MiB)
	}
	for _, k := range order {
		slices.Sort(by[k])
		fmt.Fprintf(w, "| %s | %d | %.0f |\n", labels[k.server], k.members, by[k][len(by[k])/2])
	}
	fmt.Fprintln(w)
}

// failures lists every failure there was: a table that leaves them out would lie.
func (b *bench) failures(w *strings.Builder) {
	var lines []string
	for _, s := range b.samples {
		for kind, n := range s.Failures {
			lines = append(lines, fmt.Sprintf("- %s, %d members, %v, round %d: %d times %s\n", labels[s.Server], s.Members, s.point, s.Round, n, kind))
		}
	}
	if len(lines) == 0 {
		fmt.Fprint(w, "No request failed.\n")
		return
	}
	slices.Sort(lines)
	fmt.Fprintf(w, "### Failures\n\nRequests that failed; they are in no figure of latency.\n\n%s", strings.Join(lines, ""))
}

// spread returns the smallest, the median and the largest of f over s.
func spread(s []sample, f func(sample) float64) (low, mid, high float64) {
	var v []float64
	for _, x := range s {
		v = append(v, f(x))
	}
	slices.Sort(v)
	return v[0], v[len(v)/2], v[len(v)-1]
}

// digits prints three digits that count.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// machine says where and how the figures were made.
func (b *bench) machine(ctx context.Context, took time.Duration) string {
	out := func(name string, args ...string) string {
		text, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(text))
	}
	commit := out("git", "rev-parse", "--short=12", "HEAD")
	if dirty := out("git", "status", "--porcelain", "--untracked-files=no"); dirty != "" {
		commit += " with local changes"
	}
	etcd, _, _ := strings.Cut(out(b.etcd, "--version"), "\n")
	flags := ""
	for _, a := range os.Args[1:] {
		if !strings.Contains(a, "/") { // not the paths of this machine
			flags += " " + a
		}
	}
	flags = strings.ReplaceAll(strings.ReplaceAll(flags, " -binary", ""), " -write", "")
	rows := [][2]string{
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"machine", fmt.Sprintf("%s, %d cores, %s", field("/proc/cpuinfo", "model name"), runtime.NumCPU(), field("/proc/meminfo", "MemTotal"))},
		{"system", fmt.Sprintf("Linux %s, data on %s", strings.TrimSpace(read("/proc/sys/kernel/osrelease")), fileSystem(out("df", "--output=fstype", b.work)))},
		{"Holdfast", "commit " + commit + ", " + runtime.Version()},
		{"etcd", etcd + ", built from its Go module, " + runtime.Version()},
		{"command", "`make bench`" + optional(flags)},
		{"rounds", fmt.Sprintf("%d, of %v each after %v of warm-up; medians, and the smallest and largest of CPU", b.rounds, b.length, b.warmup)},
		{"took", took.Round(time.Second).String()},
		{"other processes", b.beside},
	}
	var w strings.Builder
	fmt.Fprint(&w, "| | |\n|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&w, "| %s | %s |\n", r[0], r[1])
	}
	return w.String()
}

// fileSystem takes the last line of what df says.
func fileSystem(df string) string {
	return strings.TrimSpace(df[strings.LastIndexByte(df, '\n')+1:])
}

func optional(flags string) string {
	if flags == "" {
		return ""
	}
	return ", with `" + strings.TrimSpace(flags) + "`"
}

func read(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return "unknown"
	}
	return string(data)
}

// field returns what stands after "name:" in the first such line of a file of /proc.
func field(file, name string) string {
	s := bufio.NewScanner(strings.NewReader(read(file)))
	for s.Scan() {
		if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// The section of the page that is generated.
const (
	beginMark = "<!-- bench: generated from here -->"
	endMark   = "<!-- bench: generated to here -->"
)

// publish puts the section into the page, and everything measured beside it as JSON.
func (b *bench) publish(section string) error {
	old, err := os.ReadFile(b.write)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(old, []byte(beginMark))
	_, tail, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no %q and %q", b.write, beginMark, endMark)
	}
	page := fmt.Sprintf("%s%s\n\n%s\n%s%s", head, beginMark, section, endMark, tail)
	if err := os.WriteFile(b.write, []byte(page), 0o644); err != nil {
		return err
	}
	data, err := json.MarshalIndent(map[string]any{"date": time.Now().UTC().Format(time.RFC3339), "rounds": b.rounds, "keys": b.keys, "valueSize": b.valueSize, "watchers": b.watchers, "pageLimit": b.limits,
		"seconds": b.length.Seconds(), "generator": b.generator, "samples": b.samples, "atRest": b.rest}, "", " ")
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(b.write, filepath.Ext(b.write)) + ".json"
	return os.WriteFile(name, append(data, '\n'), 0o644)
}
