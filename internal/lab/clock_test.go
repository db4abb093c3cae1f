//go:build laboratory

package lab

import (
	"testing"
	"time"
)

// TestStep: the wall clock is off by the step, differences are not.
func TestStep(t *testing.T) {
	for _, skew := range []time.Duration{time.Hour, -time.Hour, 1_234_567_891, -1, 10 * 365 * 24 * time.Hour} {
		first := time.Now()
		stepped := step(first, skew)
		later := time.Now()
		if got := stepped.Round(0).Sub(first.Round(0)); got != skew {
			t.Errorf("a step of %v shows as %v", skew, got)
		}
		if got, want := later.Sub(stepped), later.Sub(first); got != want {
			t.Errorf("a step of %v: %v since, want %v by the monotonic clock", skew, got, want)
		}
		if got, want := stepped.Add(time.Second).UnixNano(), first.UnixNano()+int64(skew)+int64(time.Second); got != want {
			t.Errorf("a second later it is %d, want %d", got, want)
		}
	}
	if plain := time.Now().Round(0); !step(plain, time.Hour).Equal(plain.Add(time.Hour)) {
		t.Error("a time without a monotonic reading is not stepped")
	}
}
