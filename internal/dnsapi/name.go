package dnsapi

import (
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// subject is what a name below our domain is about.
type subject uint8

const (
	aboutNothing subject = iota // no such name
	aboutApex                   // the domain itself
	aboutNode
	aboutService
	aboutAddress
)

// place is a name taken apart.
type place struct {
	about      subject
	domain     string // of domains, the one that it is below
	name       string // of the node or service; lower case
	tag        string // of the service; lower case; empty: any
	datacenter string // lower case; empty: ours
	address    netip.Addr
}

// below reports whether name is domain or below it, and returns how many of its labels are before the domain's. Both are
// fully qualified; case does not count.
func below(name, domain string) (labels int, ok bool) {
	all, own := dns.CountLabel(name), dns.CountLabel(domain)
	if all < own || dns.CompareDomainName(name, domain) != own {
		return 0, false
	}
	return all - own, true
}

// parseName takes name, fully qualified, apart. It is false for a name that is below none of domains.
func parseName(name string, domains []string) (place, bool) {
	for _, d := range domains {
		n, ok := below(name, d)
		if !ok {
			continue
		}
		labels := dns.SplitDomainName(name)
		p := place{domain: d}
		labels = labels[:n]
		for i, l := range labels {
			labels[i] = lower(plainLabel(l))
		}
		p.read(labels)
		return p, true
	}
	return place{}, false
}

// read takes the labels before the domain apart: WHAT.KIND[.DATACENTER[.dc]].
func (p *place) read(labels []string) {
	if len(labels) == 0 {
		p.about = aboutApex
		return
	}
	kind := len(labels) - 1
	for kind >= 0 && !isKind(labels[kind]) {
		kind--
	}
	if kind <= 0 {
		return
	}
	what, where := labels[:kind], labels[kind+1:]
	switch {
	case len(where) == 0:
	case len(where) == 1, len(where) == 2 && where[1] == "dc":
		p.datacenter = where[0]
	default:
		return
	}
	switch labels[kind] {
	case "node":
		p.about, p.name = aboutNode, strings.Join(what, ".")
	case "service":
		p.service(what)
	case "addr":
		p.hexAddress(what)
	}
}

func isKind(label string) bool { return label == "node" || label == "service" || label == "addr" }

// service reads [TAG.]NAME, where a tag may have dots, or _NAME._TAG, where _tcp stands for any.
func (p *place) service(what []string) {
	last := what[len(what)-1]
	if len(what) == 2 && strings.HasPrefix(what[0], "_") && strings.HasPrefix(last, "_") {
		p.name = what[0][1:]
		if last != "_tcp" {
			p.tag = last[1:]
		}
	} else {
		p.name, p.tag = last, strings.Join(what[:len(what)-1], ".")
	}
	if p.name != "" {
		p.about = aboutService
	}
}

// hexAddress reads an address in hexadecimal, which is what answers name where there is no better name.
func (p *place) hexAddress(what []string) {
	if len(what) != 1 {
		return
	}
	b, err := hex.DecodeString(what[0])
	if err != nil {
		return
	}
	if a, ok := netip.AddrFromSlice(b); ok {
		p.about, p.address = aboutAddress, a
	}
}

// reverse reads a name below in-addr.arpa or ip6.arpa.
func reverse(name string) (netip.Addr, bool) {
	labels := dns.SplitDomainName(lower(name))
	n := len(labels)
	if n < 2 || labels[n-1] != "arpa" {
		return netip.Addr{}, false
	}
	digits := labels[:n-2]
	var text strings.Builder
	for i := len(digits) - 1; i >= 0; i-- {
		text.WriteString(digits[i])
		switch {
		case i == 0:
		case labels[n-2] == "in-addr":
			text.WriteByte('.')
		case (len(digits)-i)%4 == 0:
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	fits := labels[n-2] == "in-addr" && a.Is4() && len(digits) == 4 || labels[n-2] == "ip6" && a.Is6() && len(digits) == 32
	return a, err == nil && fits && a.Zone() == ""
}

// lower folds the letters of ASCII, as DNS does.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// plainLabel undoes the escapes of miekg/dns in one label: \DDD and \X.
func plainLabel(l string) string {
	if !strings.Contains(l, `\`) {
		return l
	}
	var b strings.Builder
	for i := 0; i < len(l); i++ {
		switch {
		case l[i] != '\\' || i+1 == len(l):
			b.WriteByte(l[i])
		case i+3 < len(l) && isDigit(l[i+1]) && isDigit(l[i+2]) && isDigit(l[i+3]):
			b.WriteByte((l[i+1]-'0')*100 + (l[i+2]-'0')*10 + l[i+3] - '0')
			i += 3
		default:
			i++
			b.WriteByte(l[i])
		}
	}
	return b.String()
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isHostName reports whether a name of a node can stand in an answer as it is.
func isHostName(name string) bool {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}
