package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestScrubRuns damages a file that no start reads, an older file of the audit record, and wants the server to say so by
// itself, with its defaults: in the log and as a metric.
func TestScrubRuns(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.mustCtl("user", "add", "alice:secret")
	check(t, c.members[0].stop())
	path := filepath.Join(c.dataDir(0), "audit", "0000000000000001.audit")
	c.restart(0) // begins the next file
	c.ready(0)
	c.mustCtl("user", "add", "bob:secret")
	check(t, c.members[0].stop())
	data, err := os.ReadFile(path)
	check(t, err)
	data[400] ^= 1
	check(t, os.WriteFile(path, data, 0o600))
	c.restart(0)
	c.ready(0)
	if log := c.members[0].log; !log.wait("the scrub found a damaged file", 30*time.Second) || !strings.Contains(log.String(), path) {
		t.Fatalf("the scrub did not name the file:\n%s", tail(log.String()))
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: c.tls(c.client)}, Timeout: 10 * time.Second}
	resp, err := web.Get(c.endpoint(0) + "/metrics")
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if !strings.Contains(string(body), "\nholdfast_damaged_files 1\n") {
		t.Error("the metric does not show the finding")
	}
}
