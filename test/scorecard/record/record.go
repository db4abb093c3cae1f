// Package record writes down what a test of the scorecard has measured, so that docs/reliability.md is written from runs and not
// from memory.
//
// Job: one JSON line for each figure, appended to the file that SCORECARD_RESULTS names, and to the test's own log. Non-job:
// judging; a test that misses what it demands fails by itself.
package record

import (
	"encoding/json"
	"os"
	"testing"
	"time"
)

// Figure is one line of the results file.
type Figure struct {
	Row     int                `json:"row"` // of the scorecard
	Test    string             `json:"test"`
	Setting string             `json:"setting"` // "short" or "full"
	Figure  string             `json:"figure"`  // in words
	Numbers map[string]float64 `json:"numbers,omitempty"`
	Failed  bool               `json:"failed"` // the test had failed when it wrote this
	Time    time.Time          `json:"time"`
}

// Full reports whether the full setting was asked for: minutes for each row instead of seconds.
func Full() bool { return os.Getenv("SCORECARD") == "full" }

// Pick is short, or full in the full setting.
func Pick[T any](short, full T) T {
	if Full() {
		return full
	}
	return short
}

// Row records one figure of a row.
func Row(t *testing.T, row int, figure string, numbers map[string]float64) {
	t.Helper()
	f := Figure{Row: row, Test: t.Name(), Setting: Pick("short", "full"), Figure: figure, Numbers: numbers, Failed: t.Failed(), Time: time.Now().UTC().Truncate(time.Second)}
	line, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("row %d: %s %v", row, figure, numbers)
	path := os.Getenv("SCORECARD_RESULTS")
	if path == "" {
		return
	}
	out, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
