package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

func open(t *testing.T, c config.Log) (*Log, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	now := time.Unix(1e9, 0)
	l, err := Open(c, Streams{Stderr: &out, Stdout: &out, Now: func() time.Time { now = now.Add(time.Second); return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, &out
}

func TestJSONLines(t *testing.T) {
	t.Parallel()
	l, out := open(t, config.Log{Level: "debug", Format: "json"})
	l.Info("hello \"you\"", "n", 7, "u", uint64(8), "ok", true, "took", 300*time.Millisecond, "err", errors.New("bad"), "list", []string{"a"}, "bytes\xff", "\xff")
	l.With("a", 1).WithGroup("g").With("b", 2).Warn("grouped", "c", 3)
	l.Log(t.Context(), LevelFatal, "over")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), out)
	}
	for i, want := range []map[string]any{
		{"level": "info", "msg": `hello "you"`, "n": 7.0, "u": 8.0, "ok": true, "took": "300ms", "err": "bad"},
		{"level": "warn", "msg": "grouped", "a": 1.0},
		{"level": "fatal", "msg": "over"},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatalf("%s: %v", lines[i], err)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s = %v, want %v", lines[i], k, got[k], v)
			}
		}
		if _, err := time.Parse("2006-01-02T15:04:05.999999Z0700", got["ts"].(string)); err != nil {
			t.Error(err)
		}
		if c := got["caller"].(string); !strings.HasPrefix(c, "logs/logs_test.go:") {
			t.Errorf("caller %q", c)
		}
	}
	if !strings.Contains(lines[1], `"g":{"b":2},"g":{"c":3}`) && !strings.Contains(lines[1], `"g":{"b":2}`) {
		t.Errorf("groups: %s", lines[1])
	}
}

func TestLevelsAndFormats(t *testing.T) {
	t.Parallel()
	l, out := open(t, config.Log{Level: "warn", Format: "console"})
	l.Info("no")
	l.Warn("yes", "k", "v w")
	if s := out.String(); strings.Contains(s, "no\t") || !strings.Contains(s, "\twarn\tlogs/logs_test.go:") || !strings.HasSuffix(s, "\tyes\t{\"k\":\"v w\"}\n") {
		t.Errorf("%q", s)
	}
	l, out = open(t, config.Log{Level: "info", Format: "text"})
	l.Info("listening", "url", "https://x", "note", "a b", "at", time.Unix(0, 0).UTC(), slog.Group("g", "x", 1))
	if s := out.String(); !strings.HasSuffix(s, " info  listening url=https://x note=\"a b\" at=1970-01-01T00:00:00Z g.x=1\n") {
		t.Errorf("%q", s)
	}
	for _, c := range []config.Log{{Level: "loud"}, {Format: "xml"}, {Outputs: []string{"default", "stderr"}}, {Rotate: true, Outputs: []string{"stderr"}, Rotation: "{}"}, {Rotate: true, Outputs: []string{"x"}, Rotation: "{"}, {Outputs: []string{"systemd/journal"}}} {
		if _, err := Open(c, Streams{Stderr: out, Stdout: out, Now: time.Now}); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.log")
	l, _ := open(t, config.Log{Level: "info", Format: "json", Outputs: []string{path}, Rotate: true, Rotation: `{"maxsize":1,"maxbackups":2,"compress":true}`})
	line := strings.Repeat("x", 300<<10)
	for range 16 {
		l.Info(line)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	gz := 0
	for _, n := range names {
		if strings.HasSuffix(n, ".gz") {
			gz++
		}
	}
	if len(names) != 3 || gz != 2 {
		t.Errorf("files %v", names)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}
