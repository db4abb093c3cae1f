//go:build !linux

package loadgen

import (
	"context"
	"time"
)

// sleeper waits for moments, as exactly as Go's timers do.
type sleeper struct{}

func newSleeper() *sleeper { return &sleeper{} }
func (*sleeper) close()    {}

// sleep returns after d or at the end of ctx.
func (*sleeper) sleep(ctx context.Context, d time.Duration) { wait(ctx, d) }
