package consulapi

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestKV(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	const absent = "11111111-2222-3333-4444-555555555555"
	l.run([]exchange{
		{"PUT", "/v1/kv/p/x", "v1", 200, "true"},
		{"PUT", "/v1/kv/p/x?cas=0", "v2", 200, "false"},
		{"PUT", "/v1/kv/p/x?cas=999999", "v2", 200, "false"},
		{"PUT", "/v1/kv/p/x?cas=abc", "v2", 500, `strconv.ParseUint: parsing "abc": invalid syntax`},
		{"PUT", "/v1/kv/p/x?flags=-1", "v2", 500, `strconv.ParseUint: parsing "-1": invalid syntax`},
		{"GET", "/v1/kv/p/x?raw", "", 200, "v1"},
		{"GET", "/v1/kv/p/?keys", "", 200, `["p/x"]`},
		{"PUT", "/v1/kv/a/b", "", 200, "true"},
		{"GET", "/v1/kv/?keys&separator=/", "", 200, `["a/","p/"]`},
		{"GET", "/v1/kv/zzz?keys", "", 404, ""},
		{"GET", "/v1/kv/zzz?recurse", "", 404, ""},
		{"GET", "/v1/kv/zzz", "", 404, ""},
		{"GET", "/v1/kv/", "", 400, "Missing key name"},
		{"PUT", "/v1/kv/", "v", 400, "Missing key name"},
		{"DELETE", "/v1/kv/", "", 400, "Missing key name"},
		{"DELETE", "/v1/kv/nonexist", "", 200, "true"},
		{"DELETE", "/v1/kv/p/x?cas=0", "", 200, "false"},
		{"DELETE", "/v1/kv/p/x?cas=1", "", 200, "false"},
		{"DELETE", "/v1/kv/p?recurse&cas=1", "", 400, "Conflicting flags: cas=1&recurse=\n"},
		{"POST", "/v1/kv/p/x", "v", 405, "method POST not allowed"},
		{"PUT", "/v1/kv/p/x?acquire=badsession", "v", 500, `raft apply failed: invalid session "badsession"`},
		{"PUT", "/v1/kv/p/x?acquire=" + absent, "v", 500, `raft apply failed: invalid session "` + absent + `"`},
		{"PUT", "/v1/kv/p/x?release=" + absent, "v", 200, "false"},
		{"PUT", "/v1/kv/p/x?cas=0&acquire=" + absent, "v", 400, "Conflicting flags: acquire=" + absent + "&cas=0\n"},
		{"GET", "/v1/kv/p/x?stale&consistent", "", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{"GET", "/v1/kv/p/x?dc=nope", "", 500, "No path to datacenter"},
		{"GET", "/v1/kv/p/x?dc=dc1&ns=default&partition=default&raw", "", 200, "v1"},
		{"GET", "/v1/kv/p/x?index=abc", "", 400, "Invalid index"},
		{"GET", "/v1/kv/p/x?index=1&wait=bogus", "", 400, "Invalid wait time"},
		{"GET", "/v1/kv/p/x?wait=-1s", "", 400, "Invalid wait time"},
	})
	a := l.get("/v1/kv/p/x")
	if want := fmt.Sprintf(`[{"LockIndex":0,"Key":"p/x","Flags":0,"Value":"djE=","CreateIndex":%[1]d,"ModifyIndex":%[1]d}]`, a.index(t)); a.body != want {
		t.Errorf("got %s, want %s", a.body, want)
	}
	pretty := l.get("/v1/kv/p/x?pretty")
	if !strings.HasPrefix(pretty.body, "[\n    {\n        \"LockIndex\": 0,\n") || !strings.HasSuffix(pretty.body, "    }\n]\n") {
		t.Errorf("pretty: %q", pretty.body)
	}
	if empty := l.get("/v1/kv/a/b"); !strings.Contains(empty.body, `"Value":null`) {
		t.Errorf("an empty value is null, got %s", empty.body)
	}
	if off := l.do("POST", "/v1/kv/p/x", ""); off.header.Get("Allow") != "OPTIONS,GET,PUT,DELETE" {
		t.Errorf("Allow: %q", off.header.Get("Allow"))
	}
	if off := l.do("OPTIONS", "/v1/kv/p/x", ""); off.status != 200 || off.header.Get("Allow") != "OPTIONS,GET,PUT,DELETE" || off.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("OPTIONS: %d %v", off.status, off.header)
	}
}

// A value must never be served as a page of ours (CVE-2020-25864 in Consul).
func TestRawIsNoPage(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/kv/page", "<script>alert(1)</script>")
	a := l.get("/v1/kv/page?raw")
	if a.header.Get("Content-Type") != "text/plain" || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("headers: %v", a.header)
	}
	if a := l.get("/v1/kv/page"); a.header.Get("Content-Type") != "application/json" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers: %v", a.header)
	}
}

// Every read tells its index, which is never 0, and the two headers without which the Go client drops all three.
func TestHeadersOfReads(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.dir.stale = 1500 * time.Millisecond
	for _, path := range []string{"/v1/kv/none", "/v1/kv/?recurse", "/v1/kv/?keys", "/v1/session/list", "/v1/session/info/none", "/v1/session/node/none",
		"/v1/catalog/nodes", "/v1/catalog/services", "/v1/catalog/service/none", "/v1/catalog/node/none", "/v1/catalog/node-services/none",
		"/v1/catalog/services?node-meta=a:b", "/v1/health/state/any?node-meta=a:b",
		"/v1/health/node/none", "/v1/health/checks/none", "/v1/health/state/any", "/v1/health/service/none"} {
		a := l.get(path)
		a.index(t)
		if a.header.Get("X-Consul-Knownleader") != "true" || a.header.Get("X-Consul-Lastcontact") != "0" || a.header.Get("X-Consul-Default-Acl-Policy") != "allow" {
			t.Errorf("%s: %v", path, a.header)
		}
		of := strings.HasPrefix(path, "/v1/catalog") || strings.HasPrefix(path, "/v1/health")
		for param, want := range map[string]string{"": "leader", "stale": "stale", "consistent": "consistent"} {
			sep := "?"
			if strings.Contains(path, "?") {
				sep = "&"
			}
			a := l.get(path + sep + param)
			if !of {
				want = ""
			}
			if got := a.header.Get("X-Consul-Effective-Consistency"); got != want {
				t.Errorf("%s %s: effective consistency %q, want %q", path, param, got, want)
			}
			if contact := a.header.Get("X-Consul-Lastcontact"); (contact == "1500") != (param == "stale") {
				t.Errorf("%s %s: last contact %s", path, param, contact)
			}
		}
	}
	// Too stale: asked again of the leader.
	if a := l.get("/v1/catalog/nodes?max_stale=1s"); a.header.Get("X-Consul-Lastcontact") != "0" || a.header.Get("X-Consul-Effective-Consistency") != "leader" {
		t.Errorf("max_stale: %v", a.header)
	}
	if a := l.get("/v1/catalog/nodes?max_stale=2s"); a.header.Get("X-Consul-Effective-Consistency") != "stale" {
		t.Errorf("max_stale: %v", a.header)
	}
}

// libkv takes X-Consul-Index of a single key for its ModifyIndex.
func TestIndexOfKeyIsItsOwn(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/kv/mine", "1")
	index := l.get("/v1/kv/mine").index(t)
	for i := range 5 {
		l.ok("PUT", fmt.Sprintf("/v1/kv/other%d", i), "x")
	}
	a := l.get("/v1/kv/mine")
	var got []pair
	a.into(t, &got)
	if a.index(t) != index || got[0].ModifyIndex != index {
		t.Fatalf("index %d, ModifyIndex %d, want %d", a.index(t), got[0].ModifyIndex, index)
	}
	if a := l.ok("PUT", fmt.Sprintf("/v1/kv/mine?cas=%d", index), "2"); a.body != "true" {
		t.Fatalf("CAS with X-Consul-Index: %s", a.body)
	}
	// Idempotent: neither index nor watchers move.
	before := l.get("/v1/kv/mine").index(t)
	l.ok("PUT", "/v1/kv/mine", "2")
	if after := l.get("/v1/kv/mine").index(t); after != before {
		t.Fatalf("the same value moved the index from %d to %d", before, after)
	}
}

func TestKeysAsWritten(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.run([]exchange{
		{"PUT", "/v1/kv/sp%20ace", "1", 200, "true"},
		{"PUT", "/v1/kv/a%2F%2Fb", "2", 200, "true"},
		{"PUT", "/v1/kv/q%3Fu", "3", 200, "true"},
		{"PUT", "/v1/kv/%2e%2e/up", "4", 200, "true"},
		{"PUT", "/v1/kv/dir/", "5", 200, "true"},
		{"PUT", "/v1/kv/%E2%82%AC", "6", 200, "true"},
		{"PUT", "/v1/kv/%FF", "7", 200, "true"},
		{"GET", "/v1/kv/sp%20ace?raw", "", 200, "1"},
		{"GET", "/v1/kv/a%2F%2Fb?raw", "", 200, "2"},
		{"GET", "/v1/kv/q%3Fu?raw", "", 200, "3"},
		{"GET", "/v1/kv/%2E%2E/up?raw", "", 200, "4"},
		{"GET", "/v1/kv/dir/?raw", "", 200, "5"},
		{"GET", "/v1/kv/dir", "", 404, ""},
		{"GET", "/v1/kv/%E2%82%AC?raw", "", 200, "6"},
	})
	var keys []string
	l.get("/v1/kv/?keys").into(t, &keys)
	if want := "[../up a//b dir/ q?u sp ace €"; !strings.HasPrefix(fmt.Sprint(keys), want) {
		t.Errorf("keys %q", keys)
	}
	for path, want := range map[string]string{
		"/v1/kv//lead":            "/v1/kv/lead",
		"/v1/kv/a//b?raw&index=1": "/v1/kv/a/b?raw&index=1",
		"/v1/kv/a/../b":           "/v1/kv/b",
		"/v1/kv?recurse":          "/v1/kv/?recurse",
		"//evil.example/v1/kv/x":  "/evil.example/v1/kv/x",
	} {
		a := l.do("PUT", path, "v")
		if a.status != http.StatusTemporaryRedirect || a.header.Get("Location") != want || a.body != "" {
			t.Errorf("%s: %d %q %q", path, a.status, a.header.Get("Location"), a.body)
		}
	}
}

// Vault looks for "Value exceeds" and "is too large", Terraform for "too large" and 413.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/kv/big", strings.Repeat("x", 524288))
	over := strings.Repeat("x", 524289)
	txn := `[{"KV":{"Verb":"set","Key":"k","Value":"` + over + `"}}]`
	for _, x := range []struct{ path, body string }{{"/v1/kv/big", over}, {"/v1/txn", txn}} {
		a := l.do("PUT", x.path, x.body)
		for _, want := range []string{fmt.Sprintf("Request body(%d bytes) too large, max size: 524288 bytes", len(x.body)), "Value exceeds", "is too large"} {
			if a.status != 413 || !strings.Contains(a.body, want) {
				t.Errorf("%s: %d %q without %q", x.path, a.status, a.body, want)
			}
		}
		// Without Content-Length the body is counted.
		req, _ := http.NewRequestWithContext(t.Context(), "PUT", l.url+x.path, io.MultiReader(strings.NewReader(x.body)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("%s chunked: %d", x.path, resp.StatusCode)
		}
	}
	if a := l.do("PUT", "/v1/catalog/register", `{"Node":"`+strings.Repeat("n", maxBody)+`"}`); a.status != 413 {
		t.Errorf("register: %d", a.status)
	}
	if a := l.get("/v1/kv/big?raw"); len(a.body) != 524288 {
		t.Errorf("the value that was too large was written: %d", len(a.body))
	}
}

func TestBlocking(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/kv/w", "1")
	index := l.get("/v1/kv/w").index(t)

	for what, from := range map[string]uint64{"at the index": index, "ahead of it": index + 1000} {
		began := time.Now()
		a := l.get(fmt.Sprintf("/v1/kv/w?wait=800ms&index=%d", from))
		took := time.Since(began)
		if took < 800*time.Millisecond || took > 800*time.Millisecond+800*time.Millisecond/16 {
			t.Errorf("%s: took %v", what, took)
		}
		if a.index(t) != index {
			t.Errorf("%s: index %d, want %d", what, a.index(t), index)
		}
	}
	if a := l.get("/v1/kv/none?wait=10m"); a.status != 404 { // no index: does not block
		t.Errorf("%d", a.status)
	}
	for _, x := range []struct{ read, method, write, body string }{
		{"/v1/kv/w", "PUT", "/v1/kv/w", "2"},
		{"/v1/kv/new", "PUT", "/v1/kv/new", "2"},
		{"/v1/kv/w?recurse", "DELETE", "/v1/kv/w", ""},
		{"/v1/catalog/nodes", "PUT", "/v1/catalog/register", `{"Node":"n9","Address":"10.0.0.9"}`},
		{"/v1/catalog/services?node-meta=rack:1", "PUT", "/v1/catalog/register", `{"Node":"n9","Address":"10.0.0.9","NodeMeta":{"rack":"1"}}`},
		{"/v1/health/state/any?node-meta=rack:1", "PUT", "/v1/catalog/register", `{"Node":"n9","Address":"10.0.0.9","NodeMeta":{"rack":"1"},"Check":{"CheckID":"c","Status":"passing"}}`},
		{"/v1/health/service/s9", "PUT", "/v1/catalog/register", `{"Node":"n9","Address":"10.0.0.9","NodeMeta":{"rack":"1"},"Service":{"Service":"s9"}}`},
		{"/v1/session/list", "PUT", "/v1/session/create", `{"Name":"s"}`},
	} {
		sep := "?"
		if strings.Contains(x.read, "?") {
			sep = "&"
		}
		index := l.get(x.read).index(t)
		done := make(chan answer, 1)
		go func() { done <- l.get(fmt.Sprintf("%s%sindex=%d&wait=60s", x.read, sep, index)) }()
		l.waiting(1)
		l.ok(x.method, x.write, x.body)
		select {
		case a := <-done:
			if a.index(t) <= index {
				t.Errorf("%s: index %d after %d", x.read, a.index(t), index)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: not woken by %s", x.read, x.write)
		}
	}
	for _, r := range l.dir.lookups {
		if r.Wait > maxWait+maxWait/16 {
			t.Errorf("a lookup waits %v", r.Wait)
		}
	}
}

// waiting waits until n blocking queries are held and have reached the directory.
func (l *lab) waiting(n int) {
	l.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l.api.waiters.mu.Lock()
		held := l.api.waiters.all
		l.api.waiters.mu.Unlock()
		if held == n {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d blocking queries, want %d", held, n)
		}
		<-time.After(time.Millisecond)
	}
}

func TestWaitIsLimited(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	for said, want := range map[string]time.Duration{"": waitUnsaid, "24h": maxWait, "0s": waitUnsaid, "100000ms": 100 * time.Second} {
		c := &call{api: l.api, query: map[string][]string{"wait": {said}, "index": {"7"}}}
		if err := c.parseWaiting(); err != nil || c.read.wait != want {
			t.Errorf("wait=%s: %v %v", said, c.read.wait, err)
		}
	}
	for range 1000 {
		if w := l.api.jittered(16 * time.Second); w < 16*time.Second || w >= 16*time.Second+500*time.Millisecond {
			t.Fatalf("jittered to %v", w)
		}
	}
}

func TestTooManyBlocked(t *testing.T) {
	t.Parallel()
	l := start(t, func(o *Options) { o.MaxWaiting = 2 })
	index := l.get("/v1/kv/x").index(t)
	path := fmt.Sprintf("/v1/kv/x?index=%d&wait=60s", index+10)
	done := make(chan answer, 2)
	for range 2 {
		go func() { done <- l.get(path) }()
	}
	l.waiting(2)
	if a := l.get(path); a.status != 429 || !strings.Contains(a.body, "blocking queries") {
		t.Errorf("a third: %d %s", a.status, a.body)
	}
	if a := l.get("/v1/kv/x"); a.status != 404 {
		t.Errorf("what does not block is not limited: %d", a.status)
	}
	for i := range 20 {
		l.ok("PUT", "/v1/kv/x", fmt.Sprint(i))
	}
	for range 2 {
		if a := <-done; a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	l.waiting(0)
}

func TestTokensAreNotRepeated(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	const token = "5ec2e7c0ffee"
	for _, path := range []string{"/v1/kv/x?cas=1&acquire=s&token=" + token, "/v1/kv/x?bad=%zz&token=" + token, "/v1/nope?token=" + token,
		"/v1/kv/x?dc=far&token=" + token, "/v1/acl/tokens?token=" + token, "/v1/catalog/nodes?filter=(&token=" + token} {
		for _, method := range []string{"GET", "PUT"} {
			if a := l.do(method, path, "v", "X-Consul-Token: "+token, "Authorization: Bearer "+token); strings.Contains(a.body+fmt.Sprint(a.header), token) {
				t.Errorf("%s %s answers the token: %s", method, path, a.body)
			}
		}
	}
	l.dir.mu.Lock()
	l.dir.err = io.ErrUnexpectedEOF
	l.dir.mu.Unlock()
	if a := l.get("/v1/kv/x?token=" + token); a.status != 500 || a.body != "internal error" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if !strings.Contains(l.log.String(), "unexpected EOF") || strings.Contains(l.log.String(), token) {
		t.Errorf("log: %s", l.log)
	}
}
