package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// TestRowBoot is row 27: the start of a full member after kill -9, until it has answered a linearizable read.
// ROW27_KEYS is how many keys of 1,000 bytes there are.
func TestRowBoot(t *testing.T) {
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	const perTxn, size = 100, 1000
	keys := record.Pick(20_000, 10_000_000)
	if n, err := strconv.Atoi(os.Getenv("ROW27_KEYS")); err == nil {
		keys = n
	}
	c := newCluster(t, 1, "--quota-backend-bytes", strconv.Itoa(32<<30))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	defer cancel()
	cl := c.dial()
	began := time.Now()
	inParallel(t, 16, keys/perTxn, func(batch int) error {
		ops := make([]clientv3.Op, perTxn)
		for i := range ops {
			value := randomValue() // not compressible, repeated to the size
			for len(value) < size {
				value += value
			}
			ops[i] = clientv3.OpPut(scaleKey(batch*perTxn+i), value[:size])
		}
		_, err := cl.Txn(ctx).Then(ops...).Commit()
		return err
	})
	loaded := time.Since(began)
	var slowest time.Duration
	for range record.Pick(1, 5) {
		_, err := cl.Put(ctx, "last", "x") // something to apply again
		check(t, err)
		c.members[0].kill()
		began = time.Now()
		c.restart(0)
		c.ready(0)
		cl = c.dial()
		r, err := cl.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithCountOnly())
		check(t, err)
		slowest = max(slowest, time.Since(began))
		if r.Count < int64(keys) {
			t.Errorf("%d of %d keys", r.Count, keys)
		}
	}
	disk := diskUsage(t, c.dataDir(0))
	memory := anonymous(t, c.members[0])
	record.Row(t, 27, fmt.Sprintf("%d keys of %d bytes (loaded in %v, %.1f GB on disk): from the start after kill -9 to an answered linearizable count at most %v, memory then %d MB",
		keys, size, loaded.Round(time.Second), float64(disk)/1e9, slowest.Round(time.Millisecond), memory>>20),
		map[string]float64{"keys": float64(keys), "start_ms": float64(slowest.Milliseconds()), "disk_bytes": float64(disk), "memory_mb": float64(memory >> 20)})
}
