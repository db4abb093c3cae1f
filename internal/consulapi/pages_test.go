package consulapi

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestPagesUnderForeignNames: a page whose site's name was made to point here is refused, whatever it asks; programs are not.
func TestPagesUnderForeignNames(t *testing.T) {
	t.Parallel()
	h := RefusePages(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), "Node-1")
	for _, c := range []struct {
		method, host, header, value string
		served                      bool
	}{
		{"PUT", "evil.example:8500", "Origin", "http://evil.example:8500", false},
		{"PUT", "evil.example:8500", "Origin", "null", false},
		{"GET", "evil.example:8500", "Referer", "http://evil.example:8500/", false},
		{"GET", "evil.example:8500", "Sec-Fetch-Site", "same-origin", false},
		{"GET", "evil.example:8500", "User-Agent", "Mozilla/5.0 (X11; Linux x86_64)", false},
		{"GET", "localhost.evil.example", "Referer", "x", false},
		{"GET", "127.0.0.1.evil.example:8500", "Referer", "x", false},
		{"GET", "evil.example.:8500", "Referer", "x", false},
		{"GET", "", "Referer", "x", false},
		{"PUT", "127.0.0.1:8500", "Origin", "http://127.0.0.1:8500", true},
		{"GET", "[::1]:8500", "User-Agent", "Mozilla/5.0", true},
		{"GET", "localhost:8500", "Referer", "x", true},
		{"GET", "LocalHost.:8500", "Referer", "x", true},
		{"GET", "node-1:8500", "Referer", "x", true},
		{"PUT", "consul.service.internal:8500", "User-Agent", "Go-http-client/1.1", true},
		{"PUT", "consul.service.internal:8500", "", "", true},
	} {
		r := httptest.NewRequest(c.method, "/v1/kv/a", nil)
		r.Host = c.host
		if c.header != "" {
			r.Header.Set(c.header, c.value)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		want := http.StatusForbidden
		if c.served {
			want = http.StatusNoContent
		}
		if w.Code != want {
			t.Errorf("%s %s with %s %q: %d %s", c.method, c.host, c.header, c.value, w.Code, w.Body)
		}
	}
}
