package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// TestShort plays a few thousand cases in all worlds against the binary that HOLDFAST_BIN names, or one built here. `make
// oracle` plays a hundred thousand.
func TestShort(t *testing.T) {
	binary := os.Getenv("HOLDFAST_BIN")
	if binary == "" {
		binary = filepath.Join(t.TempDir(), "holdfast")
		cmd := exec.Command("go", "build", "-o", binary, "./cmd/holdfast")
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building holdfast: %v\n%s", err, out)
		}
	}
	if err := run(options{binary: binary, against: "holdfast", seed: 11, cases: 4000, shrink: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
}

// TestKeysOf holds the naive reading of etcd's ranges beside examples.
func TestKeysOf(t *testing.T) {
	for _, c := range []struct {
		key, end, inside, outside string
	}{
		{"a", "", "a", "a\x00"}, {"a", "b", "a/1", "b"}, {"a", "\x00", "\xff\xff\xff", "\x00"}, {"\x00", "\x00", "\x00", ""}, {"a/", "a0", "a/2", "a0"},
	} {
		keys := keysOf(c.key, c.end)
		if !contains(keys, c.inside) || contains(keys, c.outside) {
			t.Errorf("%q to %q: %q", c.key, c.end, keys)
		}
	}
	for _, empty := range [][2]string{{"b", "a"}, {"a", "a"}} {
		if keys := keysOf(empty[0], empty[1]); len(keys) != 0 {
			t.Errorf("%q: %q", empty, keys)
		}
	}
}

func contains(keys []string, k string) bool {
	for _, have := range keys {
		if have == k {
			return true
		}
	}
	return false
}

// TestRights is the model's own table: overlapping and adjacent grants, a hole of one key, writing without reading.
func TestRights(t *testing.T) {
	p := newPeople(flavour{}, 1)
	p.addUser("root", "x", false)
	p.grantRole("root", "root")
	p.addUser("u", "x", false)
	p.addRole("r")
	p.grantRole("u", "r")
	p.permit("r", grant{"a", "b", true, false})
	p.permit("r", grant{"b", "b/1", true, false})
	p.permit("r", grant{"b/1", "", false, true})
	if p.switchOn() != granted {
		t.Fatal("on")
	}
	token, refusal := p.login("u", "x")
	if refusal != granted {
		t.Fatal(refusal)
	}
	u := caller{token: token}
	for _, c := range []struct {
		write    bool
		key, end string
		want     string
	}{
		{false, "a", "b/1", granted}, {false, "a", "b0", denied}, {false, "b/1", "", denied}, {true, "b/1", "", granted}, {true, "b/1", "b0", denied},
		{true, "a", "", denied}, {false, "a", "\x00", denied}, {false, "b", "a", denied}, {true, "b/1", "b/1\x00", granted},
	} {
		if got := p.may(u, c.write, c.key, c.end); got != c.want {
			t.Errorf("write %t %q to %q: %q", c.write, c.key, c.end, got)
		}
	}
	if got := p.may(caller{}, false, "a", ""); got != nobodyNamed {
		t.Error(got)
	}
	p.changePassword("u", "y")
	if got := p.may(u, false, "a", ""); got != badToken {
		t.Error(got)
	}
}

// TestCaseLine: what a difference prints can be read again.
func TestCaseLine(t *testing.T) {
	for _, method := range sortedNames(kinds) {
		c := Case{Cert: "alice", Token: "bob~", Method: method, Req: kinds[method].req()}
		if r, ok := c.Req.(*etcdserverpb.RangeRequest); ok {
			r.Key, r.RangeEnd, r.Revision = []byte("a\x00\xff"), []byte{0}, -3
		}
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back Case
		if err := json.Unmarshal(line, &back); err != nil || back.Method != method || back.Token != "bob~" || !proto.Equal(back.Req, c.Req) {
			t.Errorf("%s: %v %v", line, back, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"Method":"x"}`), &Case{}); err == nil || !strings.Contains(err.Error(), "no method") {
		t.Error(err)
	}
}
