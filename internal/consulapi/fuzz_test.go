package consulapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/catalog"
)

// Whatever a body holds, it is refused or becomes operations that have a form in the log.
func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		`{"Node":"n","Address":"1.1.1.1","Service":{"Service":"s","Connect":{"Native":true},"TaggedAddresses":{"lan":{"Address":"a","Port":1}}},"Checks":[null,{"CheckID":"c","Definition":{"Interval":"1s","TimeoutDuration":5}}]}`,
		`[{"KV":{"Verb":"set","Key":"k","Value":"YQ=="}},{"Check":{"Verb":"cas","Check":{"CheckID":"c"}}},{"Node":{"Verb":"get"}},{"Service":{"Verb":"delete-cas"}}]`,
		`{"LockDelay":"1ms","TTL":"10s","Checks":[],"ServiceChecks":[{"ID":"c"}]}`,
	} {
		f.Add([]byte(s))
	}
	a := &API{o: Options{Datacenter: "dc1"}}
	f.Fuzz(func(t *testing.T, body []byte) {
		var ops []catalog.Op
		var reg registration
		if decodeStrictly(body, &reg) == nil {
			ops, _ = a.ops(&reg)
		}
		var raw []txnOp
		if json.Unmarshal(body, &raw) == nil {
			for i := range raw {
				if op, err := a.op(&raw[i]); err == nil {
					ops = append(ops, op)
				}
			}
		}
		var s sessionRequest
		if decodeStrictly(body, &s) == nil && s.LockDelay < 0 {
			t.Errorf("lock delay %d", s.LockDelay)
		}
		for i := range ops {
			if !ops[i].WellFormed() {
				t.Errorf("operation %d is not well formed: %+v", i, ops[i])
			}
		}
		if back, err := catalog.DecodeOps(catalog.AppendOps(nil, ops)); err != nil || len(back) != len(ops) {
			t.Errorf("%v", err)
		}
	})
}

// Whatever a path is, it is redirected to a clean one of this host, or found, or not.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/v1/kv//a", "//evil.example/", "/v1/kv/%2e%2e/x", "/v1/kv/../../x", "/v1/agent/service/register", "/v1/kv/\\evil"} {
		f.Add(s)
	}
	a := &API{exact: map[string]*endpoint{}}
	a.on("GET", kvPath, func(*call) error { return nil })
	f.Fuzz(func(t *testing.T, at string) {
		u, err := url.ParseRequestURI(at)
		if err != nil || !strings.HasPrefix(at, "/") {
			return
		}
		rec := httptest.NewRecorder()
		a.serve(rec, &http.Request{Method: "POST", URL: u})
		if to := rec.Header().Get("Location"); rec.Code == http.StatusTemporaryRedirect {
			next, err := url.Parse(to)
			onto, _, _ := strings.Cut(to, "?") // what follows is the client's own, and a browser takes no host out of it
			if err != nil || next.Host != "" || next.Scheme != "" || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\r\n") || strings.Contains(onto, `\`) {
				t.Errorf("%q is sent to %q", at, to)
			}
			if err == nil && cleaned(next.EscapedPath()) != next.EscapedPath() {
				t.Errorf("%q is sent to %q, which is not clean", at, to)
			}
		}
	})
}
