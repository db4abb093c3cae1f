package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	scaleKeys   = 1_000_000
	scalePerTxn = 100
)

// TestScale loads a million keys of 32 bytes with random values of 256 bytes and measures what must not grow with them:
// the start after kill -9, anonymous memory, the disk per byte of payload, a page of 500 with its exact count now and at
// an old revision, and a list beside a key with 100,000 versions. It prints figures and fails on the marks.
// HOLDFAST_SCALE=1 runs it.
func TestScale(t *testing.T) {
	if os.Getenv("HOLDFAST_SCALE") == "" {
		t.Skip("takes minutes and 2 GB of disk; `make scale` runs it")
	}
	c := newCluster(t, 1, "--quota-backend-bytes", "8589934592", "--max-txn-ops", "1000")
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	cl := c.dial()
	began := time.Now()
	inParallel(t, 8, scaleKeys/scalePerTxn, func(batch int) error {
		ops := make([]clientv3.Op, 0, scalePerTxn)
		for i := range scalePerTxn {
			ops = append(ops, clientv3.OpPut(scaleKey(batch*scalePerTxn+i), randomValue()))
		}
		_, err := cl.Txn(ctx).Then(ops...).Commit()
		return err
	})
	t.Logf("loaded %d keys in %v", scaleKeys, time.Since(began).Round(time.Second))

	page := func(rev int64) (time.Duration, *clientv3.GetResponse) {
		var best []time.Duration
		var resp *clientv3.GetResponse
		for range 21 {
			opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd("k")), clientv3.WithLimit(500)}
			if rev > 0 {
				opts = append(opts, clientv3.WithRev(rev))
			}
			start := time.Now()
			r, err := cl.Get(ctx, scaleKey(scaleKeys/3), opts...)
			check(t, err)
			best, resp = append(best, time.Since(start)), r
		}
		slices.Sort(best)
		return best[len(best)/2], resp
	}
	d, resp := page(0)
	wantCount := int64(scaleKeys - scaleKeys/3)
	t.Logf("page of 500 of %d with its count: median %v", scaleKeys, d)
	if resp.Count != wantCount || len(resp.Kvs) != 500 {
		t.Errorf("count %d of %d, %d keys", resp.Count, wantCount, len(resp.Kvs))
	}
	mark(t, "page of 500", d, 5*time.Millisecond)

	old := resp.Header.Revision
	inParallel(t, 8, 1000, func(batch int) error {
		ops := make([]clientv3.Op, 0, 100)
		for i := range 100 {
			ops = append(ops, clientv3.OpPut(scaleKey((batch*100+i)*7%scaleKeys), randomValue()))
		}
		_, err := cl.Txn(ctx).Then(ops...).Commit()
		return err
	})
	inParallel(t, 8, 100, func(batch int) error {
		ops := make([]clientv3.Op, 0, 100)
		for i := range 100 {
			ops = append(ops, clientv3.OpPut(scaleKey(scaleKeys+batch*100+i), randomValue()))
		}
		_, err := cl.Txn(ctx).Then(ops...).Commit()
		return err
	})
	d, resp = page(old)
	t.Logf("the same page 100,000 overwrites and 10,000 creations ago: median %v", d)
	if resp.Count != wantCount || len(resp.Kvs) != 500 {
		t.Errorf("old count %d of %d, %d keys", resp.Count, wantCount, len(resp.Kvs))
	}
	mark(t, "old page of 500", d, 10*time.Millisecond)

	hot := scaleKey(scaleKeys/3 + 1)[:31] + "!" // sorts among the page's keys
	inParallel(t, 64, 100_000, func(int) error { _, err := cl.Put(ctx, hot, "hot"); return err })
	d, resp = page(0)
	t.Logf("the page with a key of 100,000 versions in it: median %v", d)
	mark(t, "page beside a hot key", d, 5*time.Millisecond)

	c.members[0].kill()
	began = time.Now()
	c.restart(0)
	c.ready(0)
	took := time.Since(began)
	t.Logf("start after kill -9: %v", took.Round(time.Millisecond))
	mark(t, "start after kill -9", took, time.Second)
	cl = c.dial()
	page(0)
	t.Logf("anonymous memory after the start: %d MB", anonymous(t, c.members[0])>>20)

	now, err := cl.Get(ctx, "x")
	check(t, err)
	_, err = cl.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	check(t, err)
	began = time.Now()
	_, err = cl.Defragment(ctx, c.endpoint(0))
	check(t, err)
	t.Logf("compaction and defragmentation: %v", time.Since(began).Round(time.Millisecond))
	payload := int64(scaleKeys+10_000) * (32 + 256)
	disk := diskUsage(t, c.dataDir(0))
	for range 100 { // replaced tables are deleted in the background
		if float64(disk) <= 1.5*float64(payload) {
			break
		}
		wait(ctx, 100*time.Millisecond)
		disk = diskUsage(t, c.dataDir(0))
	}
	mem := anonymous(t, c.members[0])
	entries, err := os.ReadDir(c.dataDir(0))
	check(t, err)
	for _, e := range entries {
		if e.IsDir() {
			t.Logf("  %-10s %4d MB", e.Name(), diskUsage(t, filepath.Join(c.dataDir(0), e.Name()))>>20)
		}
	}
	t.Logf("on disk %d MB, %.2f times the payload; anonymous memory %d MB", disk>>20, float64(disk)/float64(payload), mem>>20)
	if float64(disk) > 1.5*float64(payload) {
		t.Errorf("on disk %d bytes: more than 1.5 times the payload of %d", disk, payload)
	}
	if mem > 300<<20 {
		t.Errorf("anonymous memory %d MB: more than 300 MB", mem>>20)
	}
}

func mark(t *testing.T, what string, got, limit time.Duration) {
	t.Helper()
	if got > limit {
		t.Errorf("%s took %v; the mark is %v", what, got, limit)
	}
}

func scaleKey(i int) string { return fmt.Sprintf("k%031d", i) }

func randomValue() string {
	b := make([]byte, 256)
	rand.Read(b)
	return string(b)
}

func inParallel(t *testing.T, workers, n int, f func(int) error) {
	t.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for range workers {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					once.Do(func() { first = err })
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	check(t, first)
}

// anonymous returns the process's anonymous resident memory in bytes.
func anonymous(t *testing.T, p *process) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	check(t, err)
	for line := range strings.Lines(string(data)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}

func diskUsage(t *testing.T, dir string) (total int64) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		total += info.Size()
		return nil
	}))
	return total
}
