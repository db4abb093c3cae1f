package authn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Socket is one place to listen on, for one or more URLs.
type Socket struct {
	Network, Address string // "tcp" with host:port, or "unix" with a path
	TLS, Plain       bool   // what the URLs ask for; both when http and https name the same address
	URLs             []string
}

// PlanSockets turns listen URLs (http, https, unix, unixs; mixed) into the fewest sockets: a URL that a wildcard of the
// same port and scheme covers is served by the wildcard's socket, and http and https on one address share it.
func PlanSockets(urls []string) ([]Socket, error) {
	var plan []Socket
	for _, u := range urls {
		s, err := parseListen(u)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(plan, func(p Socket) bool { return p.Network == s.Network && p.Address == s.Address }); i >= 0 {
			plan[i].TLS, plan[i].Plain = plan[i].TLS || s.TLS, plan[i].Plain || s.Plain
			plan[i].URLs = append(plan[i].URLs, u)
			continue
		}
		plan = append(plan, s)
	}
	var out, covered []Socket
	for i, s := range plan {
		if !slices.ContainsFunc(plan[:i], s.coveredBy) && (s.wildcard() || !slices.ContainsFunc(plan[i+1:], s.coveredBy)) {
			out = append(out, s)
			continue
		}
		covered = append(covered, s)
	}
	for _, s := range covered {
		i := slices.IndexFunc(out, s.coveredBy)
		out[i].URLs = append(out[i].URLs, s.URLs...)
	}
	for i, s := range out {
		for _, w := range out[i+1:] {
			if (w.wildcard() || s.wildcard()) && s.Network == w.Network && s.port() == w.port() && s.port() != "0" {
				return nil, fmt.Errorf("%w: %s and %s listen on one port with different schemes", ErrConfig, s.URLs[0], w.URLs[0])
			}
		}
	}
	return out, nil
}

// parseListen reads one listen URL.
func parseListen(text string) (Socket, error) {
	s := Socket{URLs: []string{text}}
	scheme, path, _ := strings.Cut(text, "://")
	s.TLS = scheme == "https" || scheme == "unixs"
	s.Plain = !s.TLS
	if scheme == "unix" || scheme == "unixs" { // not through url.Parse: unix://localhost:m1 is a path like any other
		if s.Network, s.Address = "unix", path; path == "" {
			return Socket{}, fmt.Errorf("%w: %s has no path", ErrConfig, text)
		}
		return s, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return Socket{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if scheme != "http" && scheme != "https" {
		return Socket{}, fmt.Errorf("%w: URL scheme must be http, https, unix, or unixs: %s", ErrConfig, text)
	}
	host, port, err := net.SplitHostPort(u.Host)
	switch {
	case err != nil:
		return Socket{}, fmt.Errorf(`%w: URL address does not have the form "host:port": %s`, ErrConfig, text)
	case u.Path != "" && u.Path != "/":
		return Socket{}, fmt.Errorf("%w: URL must not contain a path: %s", ErrConfig, text)
	case host != "" && host != "localhost" && net.ParseIP(trimZone(host)) == nil:
		return Socket{}, fmt.Errorf("%w: expected IP in URL for binding (%s)", ErrConfig, text)
	}
	s.Network, s.Address = "tcp", net.JoinHostPort(host, port)
	return s, nil
}

func trimZone(host string) string {
	host, _, _ = strings.Cut(host, "%")
	return host
}

func (s Socket) host() string {
	host, _, _ := net.SplitHostPort(s.Address)
	return host
}

func (s Socket) port() string {
	_, port, _ := net.SplitHostPort(s.Address)
	return port
}

// wildcard reports whether s listens on every address: Go binds 0.0.0.0 and [::] alike to IPv4 and IPv6.
func (s Socket) wildcard() bool {
	if s.Network != "tcp" {
		return false
	}
	ip := net.ParseIP(s.host())
	return s.host() == "" || ip != nil && ip.IsUnspecified()
}

// coveredBy reports whether the wildcard w serves everything that s would.
func (s Socket) coveredBy(w Socket) bool {
	return w.wildcard() && s.Network == "tcp" && s.port() == w.port() && s.port() != "0" && s.TLS == w.TLS && s.Plain == w.Plain
}

// Listen opens the socket. A nil config is the default one. A unix socket left by a program that is gone is replaced; one
// that answers is not.
func (s Socket) Listen(ctx context.Context, config *net.ListenConfig) (net.Listener, error) {
	if config == nil {
		config = &net.ListenConfig{}
	}
	if s.Network == "unix" {
		if err := removeStale(ctx, s.Address); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", s.URLs[0], err)
		}
	}
	l, err := config.Listen(ctx, s.Network, s.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", s.URLs[0], err)
	}
	return l, nil
}

// removeStale removes a unix socket at path that nobody answers on.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket", path)
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return fmt.Errorf("%s is in use by another program", path)
	}
	return os.Remove(path)
}
