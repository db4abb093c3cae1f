package e2e

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestPausedLeader stops the leader's process for longer than an election and lets it go on, while a counter grows and every
// member is read without pause. A read that began after a write was acknowledged returns at least that: also when it had
// waited in the paused leader's socket, and when that one does not know yet that it leads no more.
func TestPausedLeader(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes on a busy machine; `make e2e` runs it")
	}
	t.Parallel()
	c := newCluster(t, 3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var acked, reads, answered atomic.Int64
	var work sync.WaitGroup
	writer := c.dial()
	work.Go(func() {
		for n := int64(1); ctx.Err() == nil; n++ {
			call, done := context.WithTimeout(ctx, time.Second)
			_, err := writer.Put(call, "counter", strconv.FormatInt(n, 10))
			done()
			if err == nil {
				acked.Store(n)
			}
		}
	})
	for i := range c.members {
		for range 8 {
			cl := c.dial(i)
			work.Go(func() {
				for ctx.Err() == nil {
					began := acked.Load()
					call, done := context.WithTimeout(ctx, 8*time.Second)
					resp, err := cl.Get(call, "counter")
					done()
					reads.Add(1)
					if err != nil {
						continue
					}
					answered.Add(1)
					var n int64
					if len(resp.Kvs) == 1 {
						n, err = strconv.ParseInt(string(resp.Kvs[0].Value), 10, 64)
					}
					if err != nil || n < began {
						t.Errorf("a read of member %d returned %d; %d had been acknowledged before it began (%v)", i, n, began, err)
						return
					}
				}
			})
		}
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 9))
	for range rounds(4, 30) {
		lead := c.members[c.leaderIndex()]
		before := acked.Load()
		check(t, lead.cmd.Process.Signal(syscall.SIGSTOP))
		wait(ctx, time.Duration(300+rng.IntN(4000))*time.Millisecond)
		check(t, lead.cmd.Process.Signal(syscall.SIGCONT))
		deadline := time.Now().Add(20 * time.Second)
		for acked.Load() < before+50 {
			if time.Now().After(deadline) {
				t.Fatalf("writes do not go on after a pause:\n%s", tail(lead.log.String()))
			}
			wait(ctx, 10*time.Millisecond)
		}
	}
	cancel()
	work.Wait()
	for i, m := range c.members {
		select {
		case <-m.done:
			t.Errorf("member %d ended: %v\n%s", i, m.err, tail(m.log.String()))
		default:
		}
	}
	t.Logf("%d writes acknowledged, %d of %d reads answered", acked.Load(), answered.Load(), reads.Load())
}
