package consulapi

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// RefusePages wraps the handler of a port that asks nobody who they are. What a page in a browser sends there is served only
// under an IP address, localhost or one of names: a foreign site may have its own name point to this host (DNS rebinding),
// and to the browser its pages are then of the same origin as this port. Programs may use any name.
func RefusePages(h http.Handler, names ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromPage(r.Header) && !ownHost(r.Host, names) {
			writeText(w, http.StatusForbidden, "Permission denied: a page in a browser asks under the name "+quoteHost(r.Host)+", which is not this host's: use its address or localhost")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// fromPage reports whether a browser sent a request, as far as headers tell.
func fromPage(h http.Header) bool {
	for name := range h {
		if name == "Origin" || name == "Referer" || strings.HasPrefix(name, "Sec-") {
			return true
		}
	}
	return strings.HasPrefix(h.Get("User-Agent"), "Mozilla/")
}

// ownHost reports whether a Host header can only mean this host.
func ownHost(host string, names []string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) })
}

// quoteHost is a Host header as an answer may show it.
func quoteHost(host string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, host[:min(len(host), 100)])
}
