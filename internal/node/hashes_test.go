package node_test

import (
	"net/http"
	"testing"

	"holdfast.dev/holdfast/internal/caapi"
)

// TestHashes: the admin sees checksums of every space; nobody else does, and what is not understood is refused.
func TestHashes(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	put(t, m.client(), "k", "v")
	var h caapi.HashesAnswer
	if code := m.admin(http.MethodGet, "hashes", "", &h); code != http.StatusOK || len(h.Spaces) != 5 || h.Applied == 0 {
		t.Fatalf("%d %+v", code, h)
	}
	for i, name := range []string{"etcd", "consul-kv", "catalog", "ca", "system"} {
		if h.Spaces[i].Space != name || (name == "etcd" || name == "ca") && h.Spaces[i].Hash == "00000000" {
			t.Errorf("space %d: %+v", i, h.Spaces[i])
		}
	}
	for path, want := range map[string]int{"hashes?ca=1": 200, "hashes?ca=999999": 400, "hashes?ca=x": 400, "hashes?ca=0": 400, "hashes?consul=1": 400} {
		if code := m.admin(http.MethodGet, path, "", nil); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	other := etcdCluster(t, 1)[0]
	other.start()
	resp, err := http.Get(other.config.Listen.Client[0].String() + "/holdfast/v1/hashes")
	check(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK { // "auth off = all" there, as for etcd's own hash
		t.Errorf("holdfast etcd: %s", resp.Status)
	}
}
