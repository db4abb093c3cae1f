package clustertest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// A schedule is a plan as a text: a seed, and what of its plan is left. "seed", "duration", "clients" and "fault" are the words
// with which its lines begin; what is not said is as the seed has it.

// savePlan writes a plan as a schedule.
func savePlan(p plan, about string) []byte {
	var b bytes.Buffer
	for line := range strings.SplitSeq(strings.TrimSpace(about), "\n") {
		fmt.Fprintf(&b, "# %s\n", line)
	}
	fmt.Fprintf(&b, "seed %d\nduration %v\nclients %s\n", p.Seed, p.Duration, strings.Join(p.Clients, " "))
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "fault %v %s %x\n", f.At, f.Kind, f.Arg)
	}
	return b.Bytes()
}

// loadPlan reads a schedule.
func loadPlan(name string) (plan, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return plan{}, err
	}
	var p plan
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "seed":
			var seed uint64
			if _, err = fmt.Sscan(rest, &seed); err == nil {
				p = planOf(seed)
				p.Faults, p.Clients = nil, nil
			}
		case "duration":
			p.Duration, err = time.ParseDuration(rest)
		case "clients":
			p.Clients = strings.Fields(rest)
		case "fault":
			var f scheduled
			var at string
			if _, err = fmt.Sscanf(rest, "%s %s %x", &at, &f.Kind, &f.Arg); err == nil {
				f.At, err = time.ParseDuration(at)
			}
			p.Faults = append(p.Faults, f)
		default:
			err = fmt.Errorf("nobody knows the word %q", word)
		}
		if err != nil {
			return plan{}, fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if p.Seed == 0 {
		return plan{}, fmt.Errorf("%s: no seed", name)
	}
	return p, nil
}

// TestSchedules replays what failed once: every file of testdata/schedules.
func TestSchedules(t *testing.T) {
	files, err := filepath.Glob("testdata/schedules/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			p, err := loadPlan(name)
			if err != nil {
				t.Fatal(err)
			}
			r := simulate(t, p, nil, nil)
			for _, v := range r.violations {
				t.Errorf("%s\nreplay: SIM_SCHEDULE=%s SIM_TRACE=/tmp/trace go test -run 'TestSeed$' -v ./internal/clustertest", v, name)
			}
		})
	}
}

// TestScheduleText reads what savePlan writes.
func TestScheduleText(t *testing.T) {
	p := planOf(7)
	p.Duration, p.Clients, p.Faults = 5*time.Minute, p.Clients[:2], p.Faults[:3]
	name := filepath.Join(t.TempDir(), "x.txt")
	if err := os.WriteFile(name, savePlan(p, "a test"), 0o600); err != nil {
		t.Fatal(err)
	}
	q, err := loadPlan(name)
	if err != nil {
		t.Fatal(err)
	}
	if q.Duration != p.Duration || !slices.Equal(q.Clients, p.Clients) || !slices.Equal(q.Faults, p.Faults) || q.NetDelay != p.NetDelay {
		t.Fatalf("wrote %+v, read %+v", p, q)
	}
	if err := os.WriteFile(name, []byte("seed 1\nfrobnicate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadPlan(name); err == nil {
		t.Fatal("a word that nobody knows is taken")
	}
}

// TestShrink looks for a small schedule that fails as the seed SIM_SHRINK does, and writes it into testdata/schedules. It
// runs simulations one after the other for some minutes.
func TestShrink(t *testing.T) {
	seed := number(t, "SIM_SHRINK", 0)
	if seed == 0 {
		t.Skip("SIM_SHRINK names no seed")
	}
	p := planOf(seed)
	first := simulate(t, p, nil, nil)
	if len(first.violations) == 0 {
		t.Fatalf("seed %d does not fail", seed)
	}
	kind := violationKind(first.violations[0])
	t.Logf("seed %d fails: %s", seed, first.violations[0])
	small, runs := shrink(t, p, kind)
	name := fmt.Sprintf("testdata/schedules/seed-%d.txt", seed)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, savePlan(small, kind), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d runs: %d of %d faults, %d of %d clients, %v of %v are left: %s", runs, len(small.Faults), len(p.Faults), working(small), working(p), small.Duration, p.Duration, name)
}

// working counts the clients that do something.
func working(p plan) (n int) {
	for _, kind := range p.Clients {
		if kind != "nobody" {
			n++
		}
	}
	return n
}

// violationKind is what a violation is called, without when and with what.
func violationKind(text string) string {
	if rest, ok := strings.CutPrefix(text, "at "); ok {
		_, text, _ = strings.Cut(rest, ": ")
	}
	text, _, _ = strings.Cut(text, "\n")
	cut := strings.IndexAny(text, "0123456789")
	if parts := strings.SplitN(text, ": ", 3); len(parts) == 3 {
		return parts[0] + ": " + parts[1]
	}
	if cut > 0 {
		return text[:cut]
	}
	return text
}

// shrink cuts the end off, then takes faults out, then clients, as long as a simulation still fails in the same way.
func shrink(t *testing.T, p plan, kind string) (plan, int) {
	runs := 0
	fails := func(q plan) bool {
		runs++
		r := simulate(t, q, nil, nil)
		return slices.ContainsFunc(r.violations, func(v string) bool { return violationKind(v) == kind })
	}
	cut := func(d time.Duration) plan {
		q := p
		q.Duration = d
		q.Faults = slices.DeleteFunc(slices.Clone(p.Faults), func(f scheduled) bool { return f.At >= d })
		return q
	}
	low, high := time.Duration(0), p.Duration
	for high-low > 15*time.Second {
		if middle := (low + high) / 2; fails(cut(middle)) {
			high = middle
		} else {
			low = middle
		}
	}
	p = cut(high)
	all := p.Faults
	pick := func(keep []bool) (q plan) {
		q = p
		q.Faults = nil
		for i, k := range keep {
			if k {
				q.Faults = append(q.Faults, all[i])
			}
		}
		return q
	}
	p = pick(history.Shrink(len(all), func(keep []bool) bool { return fails(pick(keep)) }))
	for i := len(p.Clients) - 1; i >= 0; i-- {
		q := p
		q.Clients = slices.Clone(p.Clients)
		q.Clients[i] = "nobody" // the others keep their numbers, and so their dice
		if fails(q) {
			p = q
		}
	}
	return p, runs
}
