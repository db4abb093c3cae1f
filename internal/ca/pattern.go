package ca

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// pattern is one line of a policy's SANs.
//
//	dns:db.example.com     that name
//	dns:*.example.com      one label before it
//	dns:**.example.com     any labels before it, at least one
//	dns:*                  any single-label name; dns:** any name
//	ip:10.0.0.0/8          an address in the range; ip:10.0.0.1 that address
//	email:*@example.com    any address of the domain; email:who@example.com that one
//	uri:spiffe://x/**      that URI and whatever is below it; without /** that URI
type pattern struct {
	kind   string
	text   string
	prefix netip.Prefix // ip
}

// parsePattern reads one pattern.
func parsePattern(s string) (pattern, error) {
	kind, text, ok := strings.Cut(s, ":")
	p := pattern{kind: kind, text: strings.ToLower(text)}
	if !ok || text == "" {
		return p, fmt.Errorf("%q is not dns:, ip:, email: or uri: with something behind it", s)
	}
	switch kind {
	case "dns":
		rest := strings.TrimPrefix(strings.TrimPrefix(p.text, "**"), "*")
		if rest == "" {
			return p, nil
		}
		if strings.Contains(rest, "*") || rest != p.text && rest[0] != '.' || !ValidHost(strings.TrimPrefix(rest, ".")) {
			return p, fmt.Errorf("%q: a star stands for whole labels at the beginning of a host name", s)
		}
	case "ip":
		var err error
		if strings.Contains(text, "/") {
			p.prefix, err = netip.ParsePrefix(text)
		} else {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(text); err == nil {
				p.prefix = netip.PrefixFrom(addr, addr.BitLen())
			}
		}
		if err != nil {
			return p, fmt.Errorf("%q is no address and no range such as 10.0.0.0/8", s)
		}
	case "email":
		if local, domain, ok := strings.Cut(text, "@"); !ok || local == "" || !ValidHost(domain) || strings.HasPrefix(domain, "*") {
			return p, fmt.Errorf("%q is neither email:NAME@DOMAIN nor email:*@DOMAIN of a host name", s)
		}
	case "uri":
		p.text = text // paths have case
		u, err := url.Parse(strings.TrimSuffix(text, "/**"))
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme == memberScheme {
			return p, fmt.Errorf("%q is no URI with scheme and host", s)
		}
	default:
		return p, fmt.Errorf("%q: a pattern begins with dns:, ip:, email: or uri: and a name", s)
	}
	return p, nil
}

// host reports whether p allows a host name, without a leading wildcard label.
func (p pattern) host(name string) bool {
	name = strings.ToLower(name)
	switch {
	case p.kind != "dns":
		return false
	case p.text == "**":
		return true
	case p.text == "*":
		return !strings.Contains(name, ".")
	}
	if suffix, ok := strings.CutPrefix(p.text, "**"); ok {
		return len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	if suffix, ok := strings.CutPrefix(p.text, "*"); ok {
		label, ok := strings.CutSuffix(name, suffix)
		return ok && label != "" && !strings.Contains(label, ".")
	}
	return name == p.text
}

func (p pattern) address(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && p.kind == "ip" && p.prefix.Contains(a.Unmap())
}

func (p pattern) email(mail string) bool {
	if strings.ContainsFunc(mail, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return false // nobody's mailbox, and it would be printed
	}
	local, domain, ok := strings.Cut(mail, "@")
	wantLocal, wantDomain, _ := strings.Cut(p.text, "@")
	return p.kind == "email" && ok && local != "" && strings.EqualFold(domain, wantDomain) && (wantLocal == "*" || strings.EqualFold(local, wantLocal))
}

func (p pattern) uri(u *url.URL) bool {
	if p.kind != "uri" || u.Scheme == memberScheme {
		return false
	}
	below, ok := strings.CutSuffix(p.text, "/**")
	return u.String() == below || ok && strings.HasPrefix(u.String(), below+"/") && !strings.Contains(u.Path, "/..")
}

// altNames are the subject alternative names of a certificate.
type altNames struct {
	dns    []string
	ips    []net.IP
	emails []string
	uris   []*url.URL
}

// parseHosts sorts host names and addresses.
func parseHosts(hosts []string) (altNames, error) {
	var n altNames
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			n.ips = append(n.ips, ip)
		} else if ValidHost(h) {
			n.dns = append(n.dns, h)
		} else {
			return n, ErrBadName.WithHint("%q is neither a host name nor an IP address", h)
		}
	}
	return n, nil
}

// all lists the names for records.
func (n altNames) all() (out []string) {
	out = append(out, n.dns...)
	for _, ip := range n.ips {
		out = append(out, ip.String())
	}
	out = append(out, n.emails...)
	for _, u := range n.uris {
		out = append(out, u.String())
	}
	return out
}

const maxAltNames = 100

// allow refuses names that no pattern of the policy allows.
func (p *Policy) allow(n altNames) error {
	var patterns []pattern
	for _, s := range p.SANs {
		one, err := parsePattern(s)
		if err != nil {
			return errors.Join(err, ErrBadPolicy)
		}
		patterns = append(patterns, one)
	}
	any := func(match func(pattern) bool) bool {
		for _, one := range patterns {
			if match(one) {
				return true
			}
		}
		return false
	}
	refused := func(name string) error {
		if len(p.SANs) == 0 {
			return ErrPolicy.WithHint("this authority certifies no alternative names; the request has %q", name)
		}
		return ErrPolicy.WithHint("%q is not among the names that this authority certifies: %s", name, strings.Join(p.SANs, ", "))
	}
	if len(n.all()) > maxAltNames {
		return ErrPolicy.WithHint("the request has %d names, allowed are %d", len(n.all()), maxAltNames)
	}
	for _, h := range n.dns {
		name, wild := strings.CutPrefix(h, "*.")
		switch {
		case !ValidHost(h):
			return ErrBadName.WithHint("%q is no host name", h)
		case net.ParseIP(h) != nil: // some clients would take it for the address, which no ip: pattern has allowed
			return ErrBadName.WithHint("%q is an address: ask for it as one (IP, not DNS)", h)
		case wild && !p.Wildcards:
			return ErrPolicy.WithHint("%q: this authority certifies no wildcards; list the hosts, or set wildcards in its policy", h)
		case wild && !any(func(one pattern) bool { return one.host("x." + name) }), !wild && !any(func(one pattern) bool { return one.host(name) }):
			return refused(h)
		}
	}
	for _, ip := range n.ips {
		if !any(func(one pattern) bool { return one.address(ip) }) {
			return refused(ip.String())
		}
	}
	for _, m := range n.emails {
		if !any(func(one pattern) bool { return one.email(m) }) {
			return refused(m)
		}
	}
	for _, u := range n.uris {
		if !any(func(one pattern) bool { return one.uri(u) }) {
			return refused(u.String())
		}
	}
	return nil
}
