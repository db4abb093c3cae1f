package record

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	t.Setenv("SCORECARD_RESULTS", path)
	t.Setenv("SCORECARD", "full")
	Row(t, 6, "nothing lost", map[string]float64{"boots": 3})
	t.Setenv("SCORECARD", "")
	Row(t, 7, "less", nil)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	var a, b Figure
	for i, f := range []*Figure{&a, &b} {
		if err := json.Unmarshal([]byte(lines[i]), f); err != nil {
			t.Fatal(err)
		}
	}
	if a.Row != 6 || a.Setting != "full" || a.Numbers["boots"] != 3 || a.Test != "TestRow" || b.Row != 7 || b.Setting != "short" {
		t.Errorf("%+v %+v", a, b)
	}
}
