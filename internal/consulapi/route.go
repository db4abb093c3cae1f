package consulapi

import (
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// handler answers one call; the error that it returns is written by serve.
type handler func(*call) error

// anyMethod stands for every method in a table of routes.
const anyMethod = "*"

// endpoint is one path with what its methods do.
type endpoint struct {
	path    string // ends in "/" if a name follows
	methods []string
	by      map[string]handler
}

// on adds what method does at a path. The order of additions is the order in which Allow names them.
func (a *API) on(method, at string, h handler) {
	e := a.exact[at]
	if e == nil {
		e = &endpoint{path: at, by: map[string]handler{}}
		a.exact[at] = e
		if strings.HasSuffix(at, "/") {
			a.below = append(a.below, e)
			slices.SortStableFunc(a.below, func(x, y *endpoint) int { return len(y.path) - len(x.path) })
		}
	}
	e.methods = append(e.methods, method)
	e.by[method] = h
}

// find returns the endpoint of an escaped path, and the name that follows the endpoint's own path, still escaped.
func (a *API) find(at string) (e *endpoint, name string) {
	if e := a.exact[at]; e != nil {
		return e, ""
	}
	for _, e := range a.below {
		if name, ok := strings.CutPrefix(at, e.path); ok {
			return e, name
		}
	}
	return nil, ""
}

// cleaned returns an escaped path without doubled slashes and dot elements. It keeps a trailing slash. What is written
// percent-encoded is part of a name and stays as it is.
func cleaned(at string) string {
	clean := path.Clean("/" + at)
	if strings.HasSuffix(at, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if a.o.DefaultPolicy != "" {
		h.Set("X-Consul-Default-Acl-Policy", a.o.DefaultPolicy)
	}
	at := r.URL.EscapedPath()
	if clean := cleaned(at); clean != at || at == "/v1/kv" {
		if clean == "/v1/kv" {
			clean = kvPath
		}
		if r.URL.RawQuery != "" {
			clean += "?" + r.URL.RawQuery
		}
		h.Set("Location", clean)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	e, escaped := a.find(at)
	name, err := url.PathUnescape(escaped)
	if e == nil || err != nil {
		writeText(w, http.StatusNotFound, "Invalid URL path: not a recognized HTTP API endpoint")
		return
	}
	do := e.by[r.Method]
	if do == nil {
		do = e.by[anyMethod]
	}
	if do == nil {
		h.Set("Allow", "OPTIONS,"+strings.Join(e.methods, ","))
		if r.Method != http.MethodOptions {
			writeText(w, http.StatusMethodNotAllowed, "method "+r.Method+" not allowed")
		}
		return
	}
	c := &call{api: a, w: w, r: r, endpoint: e.path, name: name}
	err = c.open()
	if err == nil {
		err = do(c)
	}
	if err != nil {
		c.fail(err)
	}
}
