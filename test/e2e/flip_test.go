package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// flipKeys is what TestBitFlips writes and expects back, byte for byte.
const flipKeys = 400

// TestBitFlips flips one random bit in a copy of a stopped member's data directory, starts the member on it, reads
// everything and asks for a scrub. For each position exactly two outcomes are allowed: the member refuses (to start, or
// the read) and says so, or every byte that it serves is right (the bit lay in padding, in a preallocated tail, or in a
// table that no read touched, which the scrub must then name).
// HOLDFAST_FLIPS sets the number of positions (1,000 for the acceptance).
func TestBitFlips(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes; `make e2e` runs it")
	}
	flips := 60
	if s := os.Getenv("HOLDFAST_FLIPS"); s != "" {
		_, err := fmt.Sscan(s, &flips)
		check(t, err)
	}
	c := newCluster(t, 1, "--snapshot-count", "200")
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	cl := c.dial()
	want := map[string]string{}
	for i := range flipKeys {
		k, v := fmt.Sprintf("key-%05d", i), strings.Repeat(fmt.Sprintf("value-%05d-", i), 30)
		_, err := cl.Put(ctx, k, v)
		check(t, err)
		want[k] = v
	}
	_, err := cl.Defragment(ctx, c.endpoint(0)) // so that there are tables, not only a log
	check(t, err)
	for i := range flipKeys / 4 {
		k, v := fmt.Sprintf("late-%05d", i), fmt.Sprintf("late-value-%05d", i)
		_, err := cl.Put(ctx, k, v)
		check(t, err)
		want[k] = v
	}
	cl.Close()
	check(t, c.members[0].stop())

	master := c.dataDir(0) + ".master"
	check(t, os.Rename(c.dataDir(0), master))
	classes := filesByClass(t, master)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 11))
	names := make([]string, 0, len(classes))
	for name := range classes {
		names = append(names, name)
	}
	outcome := map[string]map[string]int{}
	for i := range flips {
		class := names[i%len(names)]
		file := classes[class][rng.IntN(len(classes[class]))]
		what := flipOnce(t, c, master, file, rng, want)
		if outcome[class] == nil {
			outcome[class] = map[string]int{}
		}
		outcome[class][what]++
	}
	for class, o := range outcome {
		t.Logf("%-12s %v", class, o)
	}
}

// filesByClass groups the files of a data directory by what they are; empty files are left out.
func filesByClass(t *testing.T, dir string) map[string][]string {
	t.Helper()
	classes := map[string][]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		base := filepath.Base(rel)
		class := strings.Trim(strings.TrimLeft(filepath.Ext(base), "."), "0123456789")
		if class == "" {
			class = strings.Trim(strings.SplitN(base, ".", 2)[0], "-0123456789")
		}
		if dir := filepath.Dir(rel); dir != "." {
			class = strings.TrimRight(strings.SplitN(filepath.ToSlash(dir), "/", 2)[0], "-0123456789") + "/" + class
		}
		classes[class] = append(classes[class], rel)
		return nil
	}))
	return classes
}

// flipOnce flips a bit of file in a fresh copy of master and returns what came of it.
func flipOnce(t *testing.T, c *cluster, master, file string, rng *rand.Rand, want map[string]string) string {
	t.Helper()
	check(t, os.RemoveAll(c.dataDir(0)))
	check(t, os.CopyFS(c.dataDir(0), os.DirFS(master)))
	path := filepath.Join(c.dataDir(0), file)
	check(t, os.Chmod(path, 0o600))
	data, err := os.ReadFile(path)
	check(t, err)
	at := rng.IntN(len(data))
	preallocated := len(bytes.TrimRight(data, "\x00")) < at
	data[at] ^= 1 << rng.IntN(8)
	check(t, os.WriteFile(path, data, 0o600))

	p := spawn(t, c.env(), c.args(0)...)
	defer p.kill()
	where := fmt.Sprintf("%s at %d of %d", file, at, len(data))
	if !p.log.wait(readyLine, 20*time.Second) {
		select {
		case <-p.done:
		default:
			t.Errorf("%s: neither serves nor ends:\n%s", where, tail(p.log.String()))
			return "hangs"
		}
		if p.err == nil {
			t.Errorf("%s: ended without an error:\n%s", where, tail(p.log.String()))
		}
		return "refused at start"
	}
	return readBack(t, c, p, where, preallocated, want)
}

func readBack(t *testing.T, c *cluster, p *process, where string, preallocated bool, want map[string]string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cl, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints(), TLS: c.tls(c.client), DialTimeout: 5 * time.Second})
	check(t, err)
	defer cl.Close()
	resp, err := cl.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return "refused at read"
	}
	got := map[string]string{}
	for _, kv := range resp.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: key %s is served wrong or missing", where, k)
			return "SERVED WRONG"
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d keys are served, %d were written", where, len(got), len(want))
		return "SERVED WRONG"
	}
	if preallocated {
		return "in a preallocated tail"
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
	out, err := runHoldfast(t, "debug", "scrub", "--data-dir", c.dataDir(0))
	if err != nil {
		return "named by the scrub"
	}
	t.Logf("%s: everything is right and the scrub finds nothing\n%s", where, out)
	return "harmless"
}
