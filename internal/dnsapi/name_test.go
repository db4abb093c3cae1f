package dnsapi

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestParseName(t *testing.T) {
	domains := []string{"consul.", "corp.example."}
	for name, want := range map[string]place{
		"consul.":                         {about: aboutApex},
		"CONSUL.":                         {about: aboutApex},
		"web.service.consul.":             {about: aboutService, name: "web"},
		"Web.SERVICE.dc1.Consul.":         {about: aboutService, name: "web", datacenter: "dc1"},
		"v1.2.web.service.dc1.dc.consul.": {about: aboutService, name: "web", tag: "v1.2", datacenter: "dc1"},
		"_web._tcp.service.consul.":       {about: aboutService, name: "web"},
		"_web._Prod.service.consul.":      {about: aboutService, name: "web", tag: "prod"},
		"_web.service.consul.":            {about: aboutService, name: "_web"},
		"node.service.consul.":            {about: aboutService, name: "node"},
		"service.node.consul.":            {about: aboutNode, name: "service"},
		"a.b.node.dc1.consul.":            {about: aboutNode, name: "a.b", datacenter: "dc1"},
		`a\.b.node.consul.`:               {about: aboutNode, name: "a.b"},
		`a\032B\200.node.consul.`:         {about: aboutNode, name: "a b\xc8"},
		"0a000001.addr.dc1.consul.":       {about: aboutAddress, datacenter: "dc1", address: netip.MustParseAddr("10.0.0.1")},
		"x.service.dc1.corp.example.":     {about: aboutService, name: "x", datacenter: "dc1"},
		"service.consul.":                 {},
		"node.consul.":                    {},
		"foo.consul.":                     {},
		"foo.bar.consul.":                 {},
		"x.service.a.b.consul.":           {datacenter: ""},
		"x.service.a.b.c.consul.":         {},
		"0a0000.addr.consul.":             {},
		"zzzzzzzz.addr.consul.":           {},
		"1.0a000001.addr.consul.":         {},
		"_._tcp.service.consul.":          {},
		"q.query.consul.":                 {},
	} {
		got, ok := parseName(name, domains)
		want.domain = "consul."
		if strings.HasSuffix(name, "example.") {
			want.domain = "corp.example."
		}
		if !ok || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{".", "com.", "notconsul.", "web.service.notconsul.", "consul.com.", "example.", `web\.consul.`} {
		if p, ok := parseName(name, domains); ok {
			t.Errorf("%s is ours: %+v", name, p)
		}
	}
	for name, want := range map[string]string{
		"1.0.0.127.in-addr.arpa.": "127.0.0.1", "1.0.0.127.IN-ADDR.ARPA.": "127.0.0.1", "0.0.127.in-addr.arpa.": "", "256.0.0.127.in-addr.arpa.": "",
		"in-addr.arpa.": "", "arpa.": "", "1.0.0.127.example.": "", "01.0.0.127.in-addr.arpa.": "", "x.ip6.arpa.": "",
		"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.":  "2001:db8::6",
		"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.ip6.arpa.":    "",
		"60.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.": "",
		"%.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.":  "",
	} {
		if got, ok := reverse(name); ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %v; want %q", name, got, ok, want)
		}
	}
}

// FuzzName: whatever name comes over the wire is taken apart without panic, answered with its own question, and a name that
// we make from what was found leads to the same again.
func FuzzName(f *testing.F) {
	for _, name := range []string{"web.service.consul.", "_a._b.service.dc1.dc.consul.", `\000\.x.node.CONSUL.`, "0a000001.addr.consul.", "1.0.0.127.in-addr.arpa.", ".", "consul.", "a..b."} {
		f.Add(name, uint16(dns.TypeSRV))
	}
	s, err := New(options(probed()))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		m := new(dns.Msg).SetQuestion(name, qtype)
		wire, err := m.Pack()
		if err != nil {
			return
		}
		in := new(dns.Msg)
		if in.Unpack(wire) != nil {
			return
		}
		q := in.Question[0].Name
		if p, ok := parseName(q, s.domains); ok {
			if again, ok := parseName(strings.ToUpper(q), s.domains); !ok || again != p {
				t.Errorf("%q is %+v, in capitals %+v", q, p, again)
			}
			if n := dns.CountLabel(q); (p.about == aboutApex) != (n == 1) {
				t.Errorf("%q of %d labels is %+v", q, n, p)
			}
		}
		if a, ok := reverse(q); ok {
			if back, err := dns.ReverseAddr(a.String()); err != nil || back != lower(q) {
				t.Errorf("%q is the address %v, which is %q", q, a, back)
			}
		}
		r := s.reply(t.Context(), in, "udp")
		out, err := r.Pack()
		if err != nil || len(out) > dns.MinMsgSize || r.Question[0] != in.Question[0] || r.Id != in.Id {
			t.Errorf("%q: %v, %d bytes, %v", q, err, len(out), r)
		}
	})
}
