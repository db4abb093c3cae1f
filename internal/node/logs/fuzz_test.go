package logs

import (
	"testing"

	"holdfast.dev/holdfast/internal/node/config"
)

// FuzzOptions: levels and rotations as flags give them. What is accepted makes sense.
func FuzzOptions(f *testing.F) {
	for _, s := range []string{"", "debug", "panic", `{"maxsize": 100, "maxage": 0}`, `{"maxsize": -1}`, `{"maxsize": "x"}`, "{", "null"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if level, err := parseLevel(text); err == nil && len(text) > 6 {
			t.Errorf("%q is the level %v", text, level)
		}
		if r, err := parseRotation(config.Log{Rotate: true, Rotation: text}); err == nil && r.MaxSize <= 0 {
			t.Errorf("%q rotates at %d MB", text, r.MaxSize)
		}
	})
}
