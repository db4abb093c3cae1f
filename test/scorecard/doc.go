// Package scorecard runs the rows of the reliability scorecard of docs/reliability.md, each as a test that does what its row says
// and writes down a figure.
//
// Job: break things under real members, and count. The files storage_*_test.go break disks: whole members of internal/node,
// in this process, on a memory file system that crashes, fails, fills up and forgets. Non-job: power loss, partitions and
// kills of real processes, which are other programs under test.
//
// Each row has a short setting, which `make test` runs, and a full one, SCORECARD=full, which `make scorecard` runs;
// SCORECARD_RESULTS names a file for the figures (package record), SCORECARD_SEED repeats a run, SCORECARD_PART=0.1 asks for a tenth
// of the full setting where that can be divided; the figures say how much was done.
package scorecard
