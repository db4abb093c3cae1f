package e2e

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// rounds is how often a test does its worst: few times in the quick run, often with HOLDFAST_TORTURE.
func rounds(few, often int) int {
	if os.Getenv("HOLDFAST_TORTURE") != "" {
		return often
	}
	return few
}

// load is writers that go on until stopped. Each key is written once, with a value that follows from it.
type load struct {
	c      *cluster
	prefix string
	size   int
	cancel context.CancelFunc
	done   sync.WaitGroup
	acked  atomic.Int64
	keys   [][]string // per writer, acknowledged
	last   atomic.Pointer[error]
}

func startLoad(c *cluster, prefix string, writers, size int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, prefix: prefix, size: size, cancel: cancel, keys: make([][]string, writers)}
	for w := range writers {
		cl := c.dial()
		l.done.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%s/%d/%07d", prefix, w, i)
				call, done := context.WithTimeout(ctx, 5*time.Second)
				_, err := cl.Put(call, key, l.value(key))
				done()
				if err != nil {
					l.last.Store(&err)
					wait(ctx, 20*time.Millisecond)
					continue
				}
				l.keys[w] = append(l.keys[w], key)
				l.acked.Add(1)
			}
		})
	}
	c.t.Cleanup(cancel)
	return l
}

// value is what key holds: bytes that follow from it and do not compress.
func (l *load) value(key string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // a hash takes everything
	rng := rand.New(rand.NewPCG(h.Sum64(), 1))
	b := make([]byte, l.size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

// more waits until n further writes have been acknowledged.
func (l *load) more(n int64) {
	l.c.t.Helper()
	target, deadline := l.acked.Load()+n, time.Now().Add(60*time.Second)
	for l.acked.Load() < target {
		if time.Now().After(deadline) {
			var last error
			if p := l.last.Load(); p != nil {
				last = *p
			}
			l.c.t.Fatalf("no progress for a minute; the last error: %v\n%s", last, tail(l.c.members[0].log.String()))
		}
		wait(context.Background(), 2*time.Millisecond)
	}
}

// stop ends the writers and asks every given member for every acknowledged key.
func (l *load) stop(members ...int) {
	l.c.t.Helper()
	l.cancel()
	l.done.Wait()
	for _, i := range members {
		l.verify(i)
	}
}

func (l *load) verify(member int) {
	l.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cl := l.c.dial(member)
	got := map[string]string{}
	for from := l.prefix + "/"; ; {
		resp, err := cl.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(l.prefix+"/")), clientv3.WithLimit(2000))
		check(l.c.t, err)
		for _, kv := range resp.Kvs {
			got[string(kv.Key)] = string(kv.Value)
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			break
		}
	}
	lost := 0
	for _, keys := range l.keys {
		for _, k := range keys {
			if got[k] != l.value(k) {
				lost++
			}
		}
	}
	if lost > 0 {
		l.c.t.Errorf("member %d lacks %d of %d acknowledged writes", member, lost, l.acked.Load())
	}
}

// sameHashes wants every member to hold the same.
func (c *cluster) sameHashes() {
	c.t.Helper()
	hashes := c.hashes()
	for i, h := range hashes {
		if h != hashes[0] {
			c.t.Errorf("member %d has hash %x, member 0 %x", i, h, hashes[0])
		}
	}
}

// TestKillAroundSnapshots kills receiver or sender while a snapshot is on its way or being installed.
func TestKillAroundSnapshots(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	c := newCluster(t, 3, "--snapshot-count", "200", "--snapshot-catchup-entries", "50")
	fill := startLoad(c, "fill", 8, 20<<10)
	fill.more(1500) // about 30 MB: a snapshot takes a while
	fill.stop()
	l := startLoad(c, "load", 4, 100)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	killed := map[string]int{}
	installed := 0
	for range rounds(6, 40) {
		v := rng.IntN(3)
		c.members[v].kill()
		l.more(1500)
		c.restart(v)
		stage := []string{"receiving a snapshot", "sending a snapshot", "installed a snapshot"}[rng.IntN(3)]
		victim := v
		found := false
		deadline := time.Now().Add(20 * time.Second)
		for !found && time.Now().Before(deadline) {
			if stage == "sending a snapshot" {
				for i := range c.members {
					if i != v && strings.Contains(c.members[i].log.String(), stage) {
						victim, found = i, true
					}
				}
			} else {
				found = strings.Contains(c.members[v].log.String(), stage)
			}
			wait(context.Background(), time.Millisecond)
		}
		if !found {
			t.Errorf("no %q within 20s:\n%s", stage, tail(c.members[v].log.String()))
			break
		}
		wait(context.Background(), time.Duration(rng.IntN(150))*time.Millisecond)
		killed[fmt.Sprintf("%s, the receiver: %v", stage, victim == v)]++
		c.members[victim].kill()
		installed += strings.Count(c.members[victim].log.String(), "installed a snapshot")
		c.restart(victim)
		c.ready(victim)
		c.ready(v)
	}
	l.more(100)
	l.stop(0, 1, 2)
	for i, m := range c.members {
		fill.verify(i)
		installed += strings.Count(m.log.String(), "installed a snapshot")
	}
	c.sameHashes()
	t.Logf("killed: %v; %d snapshots installed, %d writes acknowledged", killed, installed, l.acked.Load())
}

// TestKillDuringStart kills a member again and again before it is ready, and once it has just begun to serve.
func TestKillDuringStart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "--snapshot-count", "300", "--snapshot-catchup-entries", "100")
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 4))
	for range rounds(2, 8) {
		l := startLoad(c, fmt.Sprintf("p%d", rng.Uint64()), 4, 300)
		l.more(500)
		l.cancel()
		l.done.Wait()
		c.members[0].kill()
		for range rounds(10, 30) {
			c.restart(0)
			wait(context.Background(), time.Duration(rng.IntN(120))*time.Millisecond)
			c.members[0].kill()
			if log := c.members[0].log.String(); strings.Contains(log, `"level":"fatal"`) || strings.Contains(log, "panic") {
				t.Fatalf("a start after a kill failed:\n%s", tail(log))
			}
		}
		c.restart(0)
		c.ready(0)
		l.verify(0)
	}
}

// TestKillDuringCompaction kills while the history is compacted and the tables are rewritten.
func TestKillDuringCompaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "--snapshot-count", "300", "--snapshot-catchup-entries", "100")
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
	l := startLoad(c, "load", 4, 2000)
	compactions := 0
	for range rounds(4, 40) {
		l.more(300)
		ctx, cancel := context.WithCancel(context.Background())
		var busy sync.WaitGroup
		cl := c.dial()
		busy.Go(func() {
			for ctx.Err() == nil {
				resp, err := cl.Get(ctx, "x")
				if err != nil {
					continue
				}
				if _, err := cl.Compact(ctx, resp.Header.Revision-10); err == nil {
					compactions++
				}
				_, _ = cl.Defragment(ctx, c.endpoint(0)) // the kill comes while it runs
			}
		})
		wait(ctx, time.Duration(20+rng.IntN(300))*time.Millisecond)
		c.members[0].kill()
		cancel()
		busy.Wait()
		c.restart(0)
		c.ready(0)
	}
	l.more(50)
	l.stop(0)
	t.Logf("%d compactions, %d writes acknowledged", compactions, l.acked.Load())
}
