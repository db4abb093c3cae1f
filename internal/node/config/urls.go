package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// URLs is a list of listen or advertise URLs, without duplicates, in etcd's order (sorted).
type URLs []url.URL

// ParseURLs reads a comma-separated list. Each URL has the scheme http, https, unix or unixs and no path (a unix URL may
// have one: it is part of the socket's name).
func ParseURLs(list string) (URLs, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var out URLs
	for _, s := range strings.Split(list, ",") {
		u, err := parseURL(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(out, func(o url.URL) bool { return o.String() == u.String() }) {
			out = append(out, *u)
		}
	}
	slices.SortFunc(out, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, orNoScheme(s, err)
	}
	switch u.Scheme {
	case "http", "https":
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return nil, fmt.Errorf(`URL address does not have the form "host:port": %s`, s)
		}
		if u.Path != "" {
			return nil, fmt.Errorf("URL must not contain a path: %s", s)
		}
	case "unix", "unixs":
		if u.Host+u.Path == "" {
			return nil, fmt.Errorf("URL names no socket: %s", s)
		}
	default:
		return nil, orNoScheme(s, fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s))
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("URL must be scheme and address only: %s", s)
	}
	return u, nil
}

// orNoScheme returns what is wrong with s if https:// is all that it lacks, which net/url says in words that help nobody, or err.
func orNoScheme(s string, err error) error {
	if strings.Contains(s, "://") {
		return err
	}
	if _, other := parseURL("https://" + s); other != nil {
		return err
	}
	return fmt.Errorf("URL has no scheme: %s: write https://%s", s, s)
}

// MustURLs is ParseURLs for constants.
func MustURLs(list string) URLs {
	u, err := ParseURLs(list)
	if err != nil {
		panic(err)
	}
	return u
}

// Strings returns each URL as text.
func (u URLs) Strings() []string {
	out := make([]string, len(u))
	for i := range u {
		out[i] = u[i].String()
	}
	return out
}

// String returns the comma-separated list.
func (u URLs) String() string { return strings.Join(u.Strings(), ",") }

// UnmarshalYAML reads a list of strings or one comma-separated string.
func (u *URLs) UnmarshalYAML(n *yaml.Node) error {
	var list []string
	if n.Kind == yaml.ScalarNode {
		list = []string{n.Value}
	} else if err := n.Decode(&list); err != nil {
		return err
	}
	parsed, err := ParseURLs(strings.Join(list, ","))
	if err != nil {
		return err
	}
	*u = parsed
	return nil
}

// MarshalYAML writes a list of strings.
func (u URLs) MarshalYAML() (any, error) { return u.Strings(), nil }

// Secure reports whether traffic on the URL is TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Socket returns the network and address to listen on or dial. As in etcd a unix URL names its socket by host and path
// together, so unix://localhost:23 is the file localhost:23 in the working directory.
func Socket(u url.URL) (network, address string) {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return "unix", u.Host + u.Path
	}
	return "tcp", u.Host
}

// Loopback reports whether the URL can be reached from this host only.
func Loopback(u url.URL) bool {
	if network, _ := Socket(u); network == "unix" {
		return true
	}
	host := u.Hostname()
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// checkBind refuses a listen URL whose host is a name: what it resolves to could change under the server.
func checkBind(urls URLs) error {
	for _, u := range urls {
		if network, _ := Socket(u); network == "unix" || u.Hostname() == "localhost" {
			continue
		}
		if host := u.Hostname(); host != "" && net.ParseIP(host) == nil || host == "" {
			return fmt.Errorf("expected IP in URL for binding (%s)", u.String())
		}
	}
	return nil
}

func checkHosts(urls URLs) error {
	for _, u := range urls {
		if network, _ := Socket(u); network != "unix" && u.Hostname() == "" {
			return fmt.Errorf("unexpected empty host (%s)", u.String())
		}
	}
	return nil
}

// Peer is one member as --initial-cluster names it.
type Peer struct {
	Name string
	URLs URLs
}

// ParseInitialCluster reads name=url,name=url,…; a name may come several times. The result is sorted by name.
func ParseInitialCluster(s string) ([]Peer, error) {
	lists := map[string][]string{}
	for _, part := range strings.Split(s, ",") {
		name, u, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || u == "" {
			return nil, fmt.Errorf("empty URL given for %q", name)
		}
		lists[name] = append(lists[name], u)
	}
	seen := map[string]string{}
	var peers []Peer
	for name, list := range lists {
		urls, err := ParseURLs(strings.Join(list, ","))
		if err != nil {
			return nil, err
		}
		for _, u := range urls.Strings() {
			if other, ok := seen[u]; ok {
				return nil, fmt.Errorf("member %q and %q have the same peer URL %s in --initial-cluster", min(name, other), max(name, other), u)
			}
			seen[u] = name
		}
		peers = append(peers, Peer{Name: name, URLs: urls})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	if len(peers) == 0 {
		return nil, errors.New("--initial-cluster names no member")
	}
	return peers, nil
}
