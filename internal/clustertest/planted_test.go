package clustertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/lab"
)

// seedsThatFind are, for each bug that a laboratory build can plant, a seed whose simulation finds it.
func seedsThatFind() map[lab.Bug]uint64 {
	return map[lab.Bug]uint64{lab.SkipSync: 1, lab.LocalRead: 1, lab.DropEvent: 1, lab.SplitBatch: 2, lab.Repropose: 1, lab.ForgetRevocation: 1}
}

// laboratory builds this package's tests with the bugs in them, asleep.
func laboratory(t *testing.T) (binary string) {
	binary = filepath.Join(t.TempDir(), "laboratory")
	out, err := exec.Command("go", "test", "-tags", "laboratory", "-c", "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build with planted bugs: %v\n%s", err, out)
	}
	return binary
}

// planted returns the environment of a simulation with a bug.
func planted(bug lab.Bug, more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "SIM_") })
	return append(append(env, "HOLDFAST_LAB_PLANT="+string(bug)), more...)
}

// TestPlanted has one seed find each of the bugs. Without -short it takes a build and some seconds.
func TestPlanted(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the tests once more")
	}
	binary := laboratory(t)
	for _, bug := range lab.Bugs() {
		t.Run(string(bug), func(t *testing.T) {
			seed, ok := seedsThatFind()[bug]
			if !ok {
				t.Fatal("no seed is known to find it")
			}
			// A change of the program or of the simulation makes other runs of the same seeds: the next ones may try too.
			last, said := seed+9, ""
			for ; said == "" && seed <= last; seed++ {
				child(t, binary, planted(bug), seed, 1, func(v verdict) { said = strings.Join(v.Violations, "\n") })
			}
			if said == "" {
				t.Fatalf("seeds up to %d do not find it any more: look for another one with `make simulate-planted`", last)
			}
			t.Logf("seed %d: %s", seed-1, firstLine(said))
		})
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// TestPlantedSeeds looks for each bug among the first 200 seeds and says which finds it. SIM_PLANTED=1 asks for it: it takes
// minutes.
func TestPlantedSeeds(t *testing.T) {
	if os.Getenv("SIM_PLANTED") != "1" {
		t.Skip("SIM_PLANTED=1 asks for it; `make simulate-planted` does")
	}
	most := number(t, "SIM_SEEDS", 200)
	binary := laboratory(t)
	for _, bug := range lab.Bugs() {
		t.Run(string(bug), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= most; {
				var found *verdict
				next := child(t, binary, planted(bug), seed, min(batchSeeds, most+1-seed), func(v verdict) {
					if found == nil && len(v.Violations) > 0 {
						found = &v
					}
				})
				if found != nil {
					t.Logf("found by seed %d: %s", found.Seed, firstLine(strings.Join(found.Violations, "\n")))
					return
				}
				seed = next
			}
			t.Errorf("not found by %d seeds", most)
		})
	}
}
