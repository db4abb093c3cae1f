package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// TestRowLeases is row 18: a crowd of leases, each with a key, that end in the same second, in which the leader is killed.
func TestRowLeases(t *testing.T) {
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	leases, grantRate := record.Pick(2000, 1_000_000), record.Pick(2000, 5000) // expected at least, a second
	c := newCluster(t, 3, "--quota-backend-bytes", "8589934592")
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	clients := make([]*clientv3.Client, 8)
	for i := range clients {
		clients[i] = c.dial()
	}
	end := time.Now().Add(5*time.Second + time.Duration(leases/grantRate)*time.Second).Truncate(time.Second)
	var early, granted atomic.Int64
	var most atomic.Int64 // longest TTL
	inParallel(t, 256, leases, func(i int) error {
		ttl := max(int64(time.Until(end).Seconds()), 2)
		cl := clients[i%len(clients)]
		l, err := cl.Grant(ctx, ttl)
		if err != nil {
			return err
		}
		for seen := most.Load(); ttl > seen && !most.CompareAndSwap(seen, ttl); seen = most.Load() {
			continue
		}
		granted.Add(1)
		_, err = cl.Put(ctx, fmt.Sprintf("leased/%07d", i), "x", clientv3.WithLease(l.ID))
		return err
	})
	if late := time.Since(end); late > -2*time.Second {
		t.Fatalf("granting took too long for all leases to end together: %v", late)
	}

	var foreground struct {
		sync.Mutex
		before, during []time.Duration
	}
	watching, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for watching.Err() == nil {
			<-tick.C
			begin := time.Now()
			asked, done := context.WithTimeout(watching, 10*time.Second)
			_, err := clients[0].Put(asked, "foreground", "x")
			done()
			if err != nil {
				continue // the leader is dying; what counts is how long the others wait
			}
			foreground.Lock()
			if begin.Before(end.Add(-time.Second)) {
				foreground.before = append(foreground.before, time.Since(begin))
			} else {
				foreground.during = append(foreground.during, time.Since(begin))
			}
			foreground.Unlock()
		}
	})
	left := func() int64 {
		r, err := clients[1].Get(ctx, "leased/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return -1
		}
		return r.Count
	}
	killed := false
	var gone time.Time
	for deadline := end.Add(10*time.Minute + time.Duration(most.Load())*time.Second); time.Now().Before(deadline); {
		<-time.After(50 * time.Millisecond)
		begin := time.Now()
		n := left()
		if n >= 0 && n < granted.Load() && time.Now().Before(end.Add(-time.Second)) {
			early.Store(granted.Load() - n)
		}
		if !killed && time.Now().After(end.Add(-500*time.Millisecond)) {
			killed = true
			for i, m := range c.members {
				if r, err := c.dial(i).Status(ctx, c.endpoint(i)); err == nil && r.Leader == r.Header.MemberId {
					m.kill()
					c.restart(i)
					break
				}
			}
		}
		if n == 0 {
			gone = begin
			break
		}
	}
	stop()
	if early.Load() > 0 {
		t.Errorf("%d keys vanished early", early.Load())
	}
	if gone.IsZero() {
		t.Fatalf("%d keys are still there", left())
	}
	p99 := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)*99/100].Round(100 * time.Microsecond)
	}
	foreground.Lock()
	defer foreground.Unlock()
	before, during := p99(foreground.before), p99(foreground.during)
	record.Row(t, 18, fmt.Sprintf("%d leases of up to %d s end in one second while the leader is killed: none early, the last key gone %.1f s after the end, puts of others p99 %v (before: %v)",
		leases, most.Load(), gone.Sub(end).Seconds(), during, before),
		map[string]float64{"leases": float64(leases), "early": float64(early.Load()), "late_s": gone.Sub(end).Seconds(), "p99_before_ms": before.Seconds() * 1000, "p99_during_ms": during.Seconds() * 1000})
}
