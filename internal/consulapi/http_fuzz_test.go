package consulapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fuzztest"
)

// patient takes an answer, and deadlines as a connection does.
type patient struct{ *httptest.ResponseRecorder }

// SetReadDeadline is what http.ResponseController looks for.
func (patient) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is what http.ResponseController looks for.
func (patient) SetWriteDeadline(time.Time) error { return nil }

// FuzzHTTP: whole requests, with method, path, query and body. No answer is a server's fault but those that Consul gives as
// one, what says that it is JSON is JSON, and a read changes nothing.
func FuzzHTTP(f *testing.F) {
	for _, s := range []struct{ method, path, query, body string }{
		{"PUT", "/v1/kv/a/b", "flags=42&cas=0", "value"}, {"GET", "/v1/kv/a", "recurse&keys&separator=/", ""}, {"DELETE", "/v1/kv/a", "cas=1", ""},
		{"PUT", "/v1/kv/l", "acquire=" + ownNodeID, ""}, {"GET", "/v1/kv/a/b", "raw&stale&max_stale=1s", ""},
		{"PUT", "/v1/catalog/register", "", `{"Node":"n","Address":"1.1.1.1","Service":{"Service":"s","Port":1},"Check":{"CheckID":"c","Status":"passing"}}`},
		{"PUT", "/v1/catalog/deregister", "", `{"Node":"n"}`}, {"GET", "/v1/health/service/s", "passing&filter=Service.Port==1&tag=a", ""},
		{"GET", "/v1/catalog/services", "node-meta=a:b", ""}, {"GET", "/v1/catalog/node/dev1", "index=1&wait=1ms", ""},
		{"PUT", "/v1/session/create", "", `{"TTL":"10s","LockDelay":"1s","Checks":["serfHealth"]}`}, {"PUT", "/v1/session/destroy/x", "", ""},
		{"PUT", "/v1/txn", "", `[{"KV":{"Verb":"set","Key":"k","Value":"YQ=="}},{"KV":{"Verb":"get","Key":"k"}}]`}, {"GET", "/v1/status/leader", "dc=dc2", ""},
		{"GET", "/ui/", "ns=x", ""}, {"PUT", "/v1/query", "", "{}"}, {"OPTIONS", "/v1/kv/x", "", ""},
	} {
		f.Add(s.method, s.path, s.query, []byte(s.body))
	}
	l := start(f, nil)
	h := l.api.Handler()
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		u, err := url.ParseRequestURI(path)
		if err != nil || strings.HasPrefix(path, "/v1/agent") || strings.HasPrefix(path, "/v1/event") {
			return // those dial and gossip; what they read has targets of its own
		}
		u.RawQuery = query
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // for those that wait for a change
		defer cancel()
		before := l.dir.kv.Revision() + l.dir.cat.Revision()
		w := patient{httptest.NewRecorder()}
		fuzztest.Bounded(t, len(path)+len(query)+len(body)+1<<10, func() {
			h.ServeHTTP(w, (&http.Request{Method: method, URL: u, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Host: "x", RemoteAddr: "127.0.0.1:1"}).WithContext(ctx))
		})
		if (method == http.MethodGet || method == http.MethodHead) && l.dir.kv.Revision()+l.dir.cat.Revision() != before {
			t.Errorf("%s %s?%s changed something", method, path, query)
		}
		if w.Header().Get("Content-Type") == "application/json" && w.Body.Len() > 0 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s?%s is answered by no JSON: %s", method, path, query, w.Body)
		}
		if w.Code == http.StatusInternalServerError && strings.Contains(strings.ToLower(w.Body.String()), "internal") {
			t.Errorf("%s %s?%s %q: %s", method, path, query, body, w.Body)
		}
	})
}

// generic is a value as JSON has it.
func generic(t *testing.T, v any) (out any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// FuzzForms: what is kept beside a service, a lock-delay, and a transaction, each as bytes.
func FuzzForms(f *testing.F) {
	for _, s := range []string{`"15s"`, `15`, `1e300`, `null`, `-1`, `{"Connect":{"Native":true},"Proxy":{"Mode":"x"}}`, `[{"KV":{"Verb":"set","Key":"k","Value":"YQ=="}}]`, `[null]`} {
		f.Add([]byte(s))
	}
	a := &API{o: Options{Datacenter: "dc1"}, large: make(chan struct{}, 1)}
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			var d lockDelay
			if d.UnmarshalJSON(data) == nil {
				again, err := json.Marshal(time.Duration(d).String())
				if err != nil {
					t.Fatal(err)
				}
				var back lockDelay
				if err := back.UnmarshalJSON(again); err != nil || back != d && time.Duration(d) != time.Duration(d).Round(time.Nanosecond) {
					t.Errorf("%s is the delay %d, %s is %d (%v)", data, d, again, back, err)
				}
			}
			e := readExtra(data)
			if e.Connect == nil || e.Proxy == nil {
				t.Errorf("%s: %+v", data, e)
			}
			if packed, err := packExtra(e); err == nil {
				if one, two := generic(t, readExtra(packed)), generic(t, e); !reflect.DeepEqual(one, two) {
					t.Errorf("%v became %v", two, one)
				}
			}
			c := &call{api: a, w: patient{httptest.NewRecorder()}, r: httptest.NewRequest(http.MethodPut, "/v1/txn", bytes.NewReader(data))}
			raw, err := c.txnOps()
			if err != nil {
				return
			}
			var ops []catalog.Op
			for i := range raw {
				if op, err := a.op(&raw[i]); err == nil {
					ops = append(ops, op)
				}
			}
			if back, err := catalog.DecodeOps(catalog.AppendOps(nil, ops)); err != nil || len(back) != len(ops) {
				t.Errorf("%s makes operations that no log takes: %v", data, err)
			}
		})
	})
}
