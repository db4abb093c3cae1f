package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestKill kills members with SIGKILL at random under load and then asks for every acknowledged write. Each writer owns
// keys that it writes once, inside a transaction that also counts, so that a lost write and a doubled write both show.
// HOLDFAST_TORTURE=1 does it 100 times on one member and on three; without it a few times.
func TestKill(t *testing.T) {
	kills := 5
	if os.Getenv("HOLDFAST_TORTURE") != "" {
		kills = 100
	} else if testing.Short() {
		t.Skip("takes a minute; `make torture` runs it in full")
	}
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%dmembers", n), func(t *testing.T) { torture(t, n, kills) })
	}
}

func torture(t *testing.T, n, kills int) {
	c := newCluster(t, n, "--snapshot-count", "1000", "--snapshot-catchup-entries", "200")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var acknowledged, unknown atomic.Int64
	var writers sync.WaitGroup
	const workers = 8
	logs := make([][]int, workers) // per writer: the numbers whose write was acknowledged
	maybe := make([]map[int]bool, workers)
	for w := range workers {
		maybe[w] = map[int]bool{}
		cl := c.dial()
		writers.Add(1)
		go func() {
			defer writers.Done()
			for i := 0; ctx.Err() == nil; i++ {
				// One transaction: the key must not exist yet, and a counter key is overwritten with the number.
				key := fmt.Sprintf("w%d/%08d", w, i)
				call, done := context.WithTimeout(ctx, 10*time.Second)
				resp, err := cl.Txn(call).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
					Then(clientv3.OpPut(key, strconv.Itoa(i)), clientv3.OpPut(fmt.Sprintf("last/%d", w), strconv.Itoa(i))).Commit()
				done()
				switch {
				case err == nil && resp.Succeeded:
					logs[w] = append(logs[w], i)
					acknowledged.Add(1)
				case err == nil:
					t.Errorf("writer %d: key %s exists before its only write: a write was applied twice or never asked for", w, key)
					return
				default:
					maybe[w][i] = true
					unknown.Add(1)
				}
			}
		}()
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 7))
	for k := range kills {
		before := acknowledged.Load()
		deadline := time.Now().Add(60 * time.Second)
		target := before + 50 + rng.Int64N(400)
		for acknowledged.Load() < target { // kill only under load that makes progress
			if time.Now().After(deadline) {
				t.Fatalf("kill %d: no progress for a minute:\n%s", k, tail(c.members[0].log.String()))
			}
			wait(ctx, 5*time.Millisecond)
		}
		victim := rng.IntN(n)
		c.members[victim].kill()
		c.restart(victim)
		c.ready(victim)
	}
	cancel()
	writers.Wait()

	check(t, verifyWrites(t, c, logs, maybe))
	hashes := c.hashes()
	for i, h := range hashes {
		if h != hashes[0] {
			t.Errorf("member %d has hash %x, member 0 %x", i, h, hashes[0])
		}
	}
	t.Logf("%d kills on %d members: %d acknowledged writes all there, %d with unknown outcome, hashes %x", kills, n, acknowledged.Load(), unknown.Load(), hashes)
}

// verifyWrites reads everything back: each acknowledged key exists with version 1 and its value; nothing exists that was
// never sent; the order of the revisions of a writer's acknowledged writes is the order in which it wrote.
func verifyWrites(t *testing.T, c *cluster, logs [][]int, maybe []map[int]bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for i := range c.members {
		cl := c.dial(i)
		for w := range logs {
			resp, err := cl.Get(ctx, fmt.Sprintf("w%d/", w), clientv3.WithPrefix())
			if err != nil {
				return fmt.Errorf("reading from member %d: %w", i, err)
			}
			acked := map[string]bool{}
			for _, n := range logs[w] {
				acked[strconv.Itoa(n)] = true
			}
			have := map[string]bool{}
			var lastRev int64
			for _, kv := range resp.Kvs {
				have[string(kv.Value)] = true
				if kv.Version != 1 {
					return fmt.Errorf("%s has version %d: written more than once", kv.Key, kv.Version)
				}
				if !acked[string(kv.Value)] {
					continue // one whose answer was lost may have landed late
				}
				if kv.ModRevision <= lastRev {
					return fmt.Errorf("%s has revision %d, not above its predecessor's %d", kv.Key, kv.ModRevision, lastRev)
				}
				lastRev = kv.ModRevision
			}
			for _, n := range logs[w] {
				if !have[strconv.Itoa(n)] {
					return fmt.Errorf("member %d: acknowledged write w%d/%08d is lost", i, w, n)
				}
				delete(have, strconv.Itoa(n))
			}
			for v := range have {
				n, err := strconv.Atoi(v)
				if err != nil || !maybe[w][n] {
					return errors.New("a key exists that nobody wrote: " + v)
				}
			}
		}
	}
	return nil
}

// wait returns after d or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
