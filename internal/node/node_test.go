package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
)

// fullText is an error with its hint.
func fullText(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return err.Error() + ": " + f.Hint
	}
	return err.Error()
}

func put(t *testing.T, cl *clientv3.Client, key, value string) {
	t.Helper()
	_, err := cl.Put(timeout(t), key, value)
	check(t, err)
}

func wantKey(t *testing.T, cl *clientv3.Client, key, value string) {
	t.Helper()
	resp, err := cl.Get(timeout(t), key)
	check(t, err)
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value {
		t.Fatalf("%s: got %v, want %q", key, resp.Kvs, value)
	}
}

func TestStartRestart(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1)[0]
	m.start()
	put(t, dial(t, m), "k", "v")
	begin := time.Now()
	m.stop()
	if took := time.Since(begin); took > 1500*time.Millisecond {
		t.Errorf("the stop took %s", took)
	}
	m.start()
	cl := dial(t, m)
	wantKey(t, cl, "k", "v")
	put(t, cl, "k", "v2")
	wantKey(t, cl, "k", "v2")
	if _, err := os.Stat(m.config.DataDir + ".kek"); err != nil {
		t.Errorf("the key is not beside the data directory: %v", err)
	}
	if !strings.Contains(m.log.String(), "plain text") {
		t.Error("the weakening is not in the log")
	}
}

// TestRefusals starts a member that has run on a directory that was tampered with: it never starts afresh.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *testing.T, c *config.Config)
		want  string
	}{
		"wrong key": {func(t *testing.T, c *config.Config) {
			check(t, os.Remove(c.DataDir+".kek"))
			c.Seal.KEK = "env:HOLDFAST_TEST_WRONG_KEK"
		}, "key"},
		"key lost": {func(t *testing.T, c *config.Config) { check(t, os.Remove(c.DataDir+".kek")) }, "does not exist"},
		"keyring damaged": {func(t *testing.T, c *config.Config) {
			path := filepath.Join(c.DataDir, "KEYRING")
			data, err := os.ReadFile(path)
			check(t, err)
			data[len(data)/2] ^= 1
			check(t, os.WriteFile(path, data, 0o600))
		}, "keyring"},
		"keyring lost": {func(t *testing.T, c *config.Config) { check(t, os.Remove(filepath.Join(c.DataDir, "KEYRING"))) }, "no KEYRING"},
		"log lost":     {func(t *testing.T, c *config.Config) { check(t, os.RemoveAll(filepath.Join(c.DataDir, "log"))) }, "as a new member"},
		"marker lost":  {func(t *testing.T, c *config.Config) { check(t, os.Remove(filepath.Join(c.DataDir, "CURRENT"))) }, ""},
		"everything but the keyring lost": {func(t *testing.T, c *config.Config) {
			names, err := os.ReadDir(c.DataDir)
			check(t, err)
			for _, n := range names {
				if n.Name() != "KEYRING" && n.Name() != "pki" {
					check(t, os.RemoveAll(filepath.Join(c.DataDir, n.Name())))
				}
			}
		}, "does not start afresh"},
		"card lost":    {func(t *testing.T, c *config.Config) { check(t, os.Remove(filepath.Join(c.DataDir, "pki", "member"))) }, "no card"},
		"other way in": {func(t *testing.T, c *config.Config) { c.Mode = config.ModeServer }, "holdfast etcd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := etcdCluster(t, 1)[0]
			m.t = t
			m.start()
			put(t, dial(t, m), "k", "v")
			m.stop()
			test.spoil(t, m.config)
			m.refuses(test.want)
		})
	}
}

func TestForeignDirectory(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1)[0]
	check(t, os.MkdirAll(filepath.Join(m.config.DataDir, "member", "snap"), 0o700))
	check(t, os.WriteFile(filepath.Join(m.config.DataDir, "member", "snap", "db"), []byte("bbolt"), 0o600))
	m.refuses("etcd's data directory")
	m = etcdCluster(t, 1)[0]
	check(t, os.MkdirAll(m.config.DataDir, 0o700))
	check(t, os.WriteFile(filepath.Join(m.config.DataDir, "diary.txt"), []byte("dear"), 0o600))
	m.refuses("diary.txt")
	if names, err := os.ReadDir(m.config.DataDir); err != nil || len(names) != 1 {
		t.Errorf("something was written into a foreign directory: %v %v", names, err)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1)[0]
	m.start()
	second := *m
	second.refuses("another process uses the data directory")
}

func TestThreeMembers(t *testing.T) {
	t.Parallel()
	members := etcdCluster(t, 3)
	startAll(members)
	for i, m := range members {
		put(t, dial(t, m), fmt.Sprintf("k%d", i), "v")
	}
	for _, m := range members {
		cl := dial(t, m)
		for i := range members {
			wantKey(t, cl, fmt.Sprintf("k%d", i), "v")
		}
	}
	// The leader goes in order: the others have one again at once.
	lead := leader(t, members)
	begin := time.Now()
	lead.stop()
	if took := time.Since(begin); took > 1500*time.Millisecond {
		t.Errorf("the leader's stop took %s", took)
	}
	var rest []*member
	for _, m := range members {
		if m != lead {
			rest = append(rest, m)
		}
	}
	put(t, dial(t, rest...), "after", "v")
	lead.start()
	wantKey(t, dial(t, lead), "after", "v")
	if strings.Contains(lead.log.String(), "level=ERROR") {
		t.Errorf("errors in normal operation:\n%s", lead.log)
	}
}

func leader(t *testing.T, members []*member) *member {
	t.Helper()
	for _, m := range members {
		cl := dial(t, m)
		s, err := cl.Status(timeout(t), cl.Endpoints()[0])
		check(t, err)
		if s.Leader == s.Header.MemberId {
			return m
		}
	}
	t.Fatal("no leader")
	return nil
}

// TestAddRemove adds a member to a running cluster as etcd's users do, and removes one, which ends by itself.
func TestAddRemove(t *testing.T) {
	t.Parallel()
	members := etcdCluster(t, 3, func(_ int, c *config.Config) { c.Raft.StrictReconfig = false })
	late := members[2]
	for _, m := range members[:2] {
		parts := strings.Split(m.config.Bootstrap.InitialCluster, ",")
		m.config.Bootstrap.InitialCluster = strings.Join(parts[:2], ",")
	}
	startAll(members[:2])
	cl := dial(t, members[:2]...)
	put(t, cl, "k", "v")
	_, err := cl.MemberAdd(timeout(t), late.config.Advertise.Peer.Strings())
	check(t, err)
	late.config.Bootstrap.State = "existing"
	late.start()
	wantKey(t, dial(t, late), "k", "v")
	list, err := cl.MemberList(timeout(t))
	check(t, err)
	if len(list.Members) != 3 {
		t.Fatalf("members: %v", list.Members)
	}
	var id uint64
	for _, m := range list.Members {
		if m.Name == late.config.Name {
			id = m.ID
		}
	}
	_, err = cl.MemberRemove(timeout(t), id)
	check(t, err)
	select {
	case <-late.node.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("the removed member goes on\n%s", late.log)
	}
	if err := late.node.Wait(); !errors.Is(err, node.ErrRemoved) {
		t.Errorf("it ended with %v", err)
	}
	late.node = nil
	put(t, cl, "k", "v2")
}

// TestForceNewCluster goes on with the data of one member when the others are lost for good.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	members := etcdCluster(t, 3)
	startAll(members)
	put(t, dial(t, members...), "k", "v")
	for _, m := range members {
		m.stop()
	}
	sole := members[1]
	sole.config.Bootstrap.ForceNewCluster = true
	sole.start()
	cl := dial(t, sole)
	wantKey(t, cl, "k", "v")
	put(t, cl, "k", "v2")
	list, err := cl.MemberList(timeout(t))
	check(t, err)
	if len(list.Members) != 1 || list.Members[0].Name != sole.config.Name {
		t.Errorf("members: %v", list.Members)
	}
	sole.stop()
	sole.config.Bootstrap.ForceNewCluster = false
	sole.start()
	wantKey(t, dial(t, sole), "k", "v2")
}

// TestLaggardGetsSnapshot cuts the log while a member is away.
func TestLaggardGetsSnapshot(t *testing.T) {
	t.Parallel()
	members := etcdCluster(t, 3, func(_ int, c *config.Config) { c.Raft.SnapshotCount, c.Raft.CatchUpEntries = 50, 20 })
	startAll(members)
	late := members[2]
	late.stop()
	cl := dial(t, members[:2]...)
	for i := range 1500 {
		put(t, cl, fmt.Sprintf("k%d", i%100), fmt.Sprint(i))
	}
	put(t, cl, "last", "v")
	late.start()
	wantKey(t, dial(t, late), "last", "v")
	if !strings.Contains(late.log.String(), "installed a snapshot") {
		t.Errorf("it caught up without a snapshot:\n%s", late.log)
	}
}

// TestMaxLearnersZero: as in etcd the flag's 0 takes no learner.
func TestMaxLearnersZero(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1, func(_ int, c *config.Config) { c.Raft.MaxLearners = 0 })
	startAll(m)
	_, err := dial(t, m...).MemberAddAsLearner(timeout(t), []string{"http://127.0.0.1:1"})
	if !errors.Is(err, rpctypes.ErrTooManyLearners) {
		t.Errorf("a learner among none: %v", err)
	}
}
