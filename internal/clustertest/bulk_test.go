package clustertest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// verdict is what a child process says of one seed, on a line of its own.
type verdict struct {
	Seed       uint64
	Begun      bool // no more than that
	Hash       string
	Stats      stats
	Judged     map[string]int
	Violations []string
}

const verdictMark = "@@ "

// TestSeeds runs SIM_SEEDS seeds from SIM_FIRST on, in SIM_PROCS processes at a time; with SIM_STOP=1 until one fails. A seed
// that does not do the same thing twice fails as well: every tenth is run again in another process.
func TestSeeds(t *testing.T) {
	if os.Getenv("SIM_CHILD") != "" {
		runSeeds(t)
		return
	}
	first, count := number(t, "SIM_FIRST", 1), number(t, "SIM_SEEDS", 12)
	total, judged, failed := bulk(t, os.Args[0], os.Environ(), first, count)
	t.Logf("%d seeds from %d on, %d failed: %s\njudged: %s", count, first, len(failed), total, judgedText(judged))
}

// runSeeds is a child.
func runSeeds(t *testing.T) {
	first, count := number(t, "SIM_FIRST", 1), number(t, "SIM_SEEDS", 1)
	say := func(v verdict) {
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s%s\n", verdictMark, line)
	}
	for seed := first; seed < first+count; seed++ {
		say(verdict{Seed: seed, Begun: true})
		r := simulate(t, planOf(seed), nil, nil)
		say(verdict{Seed: seed, Hash: r.hash, Stats: r.stats, Judged: r.judged, Violations: r.violations})
	}
}

// batchSeeds is how many seeds one process runs: what engines that met a fault have left behind goes with it.
const batchSeeds = 10

// bulk runs seeds in child processes of a test binary and reports those that fail.
func bulk(t *testing.T, binary string, env []string, first, count uint64) (total stats, judged map[string]int, failed []uint64) {
	procs := number(t, "SIM_PROCS", 2)
	stop := os.Getenv("SIM_STOP") == "1"
	type batch struct {
		first, count uint64
		again        bool
	}
	batches := make(chan batch)
	var mu sync.Mutex
	hashes := map[uint64]string{}
	judged = map[string]int{}
	done := 0
	take := func(v verdict, again bool) {
		mu.Lock()
		defer mu.Unlock()
		if known := hashes[v.Seed]; known == "" {
			hashes[v.Seed] = v.Hash
		} else if len(v.Violations) == 0 && known != v.Hash {
			v.Violations = append(v.Violations, fmt.Sprintf("another run had the trace hash %s, this one %s", known, v.Hash))
		} else if again {
			return
		}
		if !again {
			total.add(v.Stats)
			for what, n := range v.Judged {
				judged[what] += n
			}
			if done++; done%100 == 0 {
				fmt.Printf("%d of %d seeds, %d failed\n", done, count, len(failed))
			}
		}
		if len(v.Violations) > 0 {
			failed = append(failed, v.Seed)
			t.Errorf("seed %d: %s\nreplay: %s", v.Seed, some(v.Violations), replay(v.Seed))
		}
	}
	var workers sync.WaitGroup
	for range max(procs, 1) {
		workers.Go(func() {
			for b := range batches {
				for b.count > 0 {
					next := child(t, binary, env, b.first, b.count, func(v verdict) { take(v, b.again) })
					b.first, b.count = next, b.first+b.count-next
				}
			}
		})
	}
	for at := first; at < first+count; at += batchSeeds {
		mu.Lock()
		over := stop && len(failed) > 0
		mu.Unlock()
		if over {
			break
		}
		batches <- batch{at, min(batchSeeds, first+count-at), false}
		if !stop {
			batches <- batch{at, 1, true}
		}
	}
	close(batches)
	workers.Wait()
	return total, judged, failed
}

// some is the beginning of what is wrong; a replay tells all.
func some(violations []string) string {
	text := ""
	for i, v := range violations {
		if i == 3 {
			return text + fmt.Sprintf("… and %d more\n", len(violations)-i)
		}
		if len(v) > 3000 {
			v = v[:3000] + " …"
		}
		text += v + "\n"
	}
	return text
}

// child runs seeds in a process of their own and returns the first one that it did not come to. A process that ends without
// having said what came of a seed fails that seed.
func child(t *testing.T, binary string, env []string, first, count uint64, take func(v verdict)) (next uint64) {
	c := exec.Command(binary, "-test.run", "^TestSeeds$", "-test.timeout", "0")
	// One driver wants one processor, and the heap of a cluster is small beside what it makes in passing: a seventh less time.
	c.Env = append(slices.Clone(env), "GOMAXPROCS=1", "GOGC=400", "SIM_CHILD=1", fmt.Sprintf("SIM_FIRST=%d", first), fmt.Sprintf("SIM_SEEDS=%d", count))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	next = first
	begun := false
	var rest []string
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), verdictMark)
		var v verdict
		if !ok || json.Unmarshal([]byte(text), &v) != nil {
			if len(rest) < 200 {
				rest = append(rest, lines.Text())
			}
			continue
		}
		if begun = v.Begun; begun {
			next, rest = v.Seed, nil
			continue
		}
		next = v.Seed + 1
		take(v)
	}
	err = c.Wait()
	if begun || next == first {
		take(verdict{Seed: next, Violations: []string{fmt.Sprintf("the process ended (%v) and said:\n%s", err, strings.Join(rest, "\n"))}})
		next++
	}
	return next
}

// TestSame runs a few seeds twice in one process: they must do the same thing.
func TestSame(t *testing.T) {
	for seed := uint64(1); seed <= number(t, "SIM_SAME", 1); seed++ {
		a, b := simulate(t, planOf(seed), nil, nil), simulate(t, planOf(seed), nil, nil)
		if a.hash != b.hash || a.lines != b.lines {
			t.Errorf("seed %d: %s (%d lines) and %s (%d lines)", seed, a.hash, a.lines, b.hash, b.lines)
		}
	}
}
