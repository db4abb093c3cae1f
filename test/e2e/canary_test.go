package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCanary writes unique markers as keys, values, user, role and password, makes the cluster do everything that moves
// bytes about (compaction, flushes, a snapshot to a lagging member, restarts) and looks for the markers in every file of
// every data directory, in the temporary directory and in the logs.
func TestCanary(t *testing.T) {
	t.Parallel()
	c := layOutCluster(t, 3, "--snapshot-count", "200", "--snapshot-catchup-entries", "50", "--log-level", "debug")
	temp := filepath.Join(c.dir, "tmp")
	check(t, os.Mkdir(temp, 0o700))
	start := func(i int) {
		c.members[i] = spawn(t, []string{"TMPDIR=" + temp}, c.args(i)...)
	}
	for i := range c.members {
		start(i)
	}
	for i := range c.members {
		c.ready(i)
	}
	mark := fmt.Sprintf("canary%d", time.Now().UnixNano())
	key, value, user, role, password := "k-"+mark, "v-"+mark, "u-"+mark, "r-"+mark, "p-"+mark

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cl := c.dial(0, 1)
	lease, err := cl.Grant(ctx, 3600)
	check(t, err)
	_, err = cl.Put(ctx, key, value, clientv3.WithLease(lease.ID))
	check(t, err)
	c.mustCtl("role", "add", role)
	c.mustCtl("role", "grant-permission", role, "readwrite", key)
	c.mustCtl("user", "add", user+":"+password)
	c.mustCtl("user", "grant-role", user, role)
	c.mustCtl("user", "add", "root:"+password)
	c.mustCtl("user", "grant-role", "root", "root")
	c.mustCtl("auth", "enable")
	if out, err := c.etcdctl("--user", user+":"+password, "get", key, "--print-value-only"); err != nil || strings.TrimSpace(out) != value {
		t.Fatalf("the user cannot read its key: %v\n%s", err, out)
	}
	if out, err := c.etcdctl("--user", user+":wrong-"+password, "get", key); err == nil {
		t.Fatalf("a wrong password was accepted: %s", out)
	}
	if out, err := c.etcdctl("--user", "root:"+password, "auth", "disable"); err != nil {
		t.Fatalf("auth disable: %v\n%s", err, out)
	}

	// A member that lags far enough gets a snapshot.
	c.members[2].kill()
	for i := range 3000 {
		_, err := cl.Put(ctx, fmt.Sprintf("%s-%d", key, i%50), strings.Repeat(value, 20))
		check(t, err)
	}
	got, err := cl.Get(ctx, key)
	check(t, err)
	_, err = cl.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical())
	check(t, err)
	for i := range 2 {
		_, err = cl.Defragment(ctx, c.endpoint(i))
		check(t, err)
	}
	start(2)
	c.ready(2)
	if !c.members[2].log.wait("installed a snapshot", 30*time.Second) {
		t.Fatalf("the member that lagged got no snapshot:\n%s", tail(c.members[2].log.String()))
	}
	late := c.dial(2)
	got, err = late.Get(ctx, key)
	check(t, err)
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value {
		t.Fatalf("the lagging member does not have the key: %v", got)
	}
	c.members[0].kill()
	start(0)
	c.ready(0)
	for _, m := range c.members {
		if err := m.stop(); err != nil {
			t.Errorf("a member did not end cleanly: %v\n%s", err, tail(m.log.String()))
		}
	}

	files, size := 0, int64(0)
	search := func(where string, data []byte) {
		for what, marker := range map[string]string{"key": key, "value": value, "user": user, "role": role, "password": password, "marker": mark} {
			for _, form := range []string{marker, hex.EncodeToString([]byte(marker)), base64.RawStdEncoding.EncodeToString([]byte(marker))} {
				if i := bytes.Index(data, []byte(form)); i >= 0 {
					t.Errorf("the %s is readable in %s at %d, as %s", what, where, i, form)
				}
			}
		}
	}
	check(t, filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+int64(len(data))
		search(path, append([]byte(filepath.Base(path)+"\n"), data...))
		return nil
	}))
	for i, m := range c.members {
		search(fmt.Sprintf("the log of member %d", i), []byte(m.log.String()))
	}
	t.Logf("searched %d files, %d bytes, and the logs of %d members", files, size, len(c.members))
	if files < 10 {
		t.Errorf("only %d files: the search did not look at the data directories", files)
	}
}
