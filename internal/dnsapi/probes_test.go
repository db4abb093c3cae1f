package dnsapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const apexSOA = "consul.\t0\tIN\tSOA\tns.consul. hostmaster.consul. 1795299608 3600 600 86400 0"

// TestProbes asks what a real Consul (1.21.0) was asked, and wants what it answered. Each row is one probe: the counts are
// those of the answer's header, with OPT in the additional ones; lines must be among the records of their section.
func TestProbes(t *testing.T) {
	address := stand(t, options(probed()))
	for _, p := range []struct {
		name                      string
		qtype                     uint16
		how                       how
		rcode                     int
		answers, authority, extra int
		lines                     []string
	}{
		{"big.service.consul", dns.TypeA, edns, 0, 40, 0, 1, []string{"big.service.consul.\t0\tIN\tA\t10.20.0.2", "big.service.consul.\t0\tIN\tA\t10.20.0.40"}},
		{"big.service.consul", dns.TypeA, noEDNS, 0, 3, 0, 0, nil},
		{"big.service.consul", dns.TypeSRV, noEDNS, 0, 3, 0, 3, nil},
		{"big.service.consul", dns.TypeSRV, how{edns: 4096}, 0, 40, 0, 41, []string{"big.service.consul.\t0\tIN\tSRV\t1 1 9031 n31.node.dc1.consul.", "n31.node.dc1.consul.\t0\tIN\tA\t10.20.0.31"}},
		{"t1.big.service.consul", dns.TypeA, tcp, 0, 20, 0, 1, []string{"t1.big.service.consul.\t0\tIN\tA\t10.20.0.23"}},
		{"_big._t1.service.consul", dns.TypeSRV, tcp, 0, 20, 0, 21, []string{"_big._t1.service.consul.\t0\tIN\tSRV\t1 1 9017 n17.node.dc1.consul."}},
		{"_big._tcp.service.dc1.consul", dns.TypeSRV, tcp, 0, 40, 0, 41, []string{"_big._tcp.service.dc1.consul.\t0\tIN\tSRV\t1 1 9038 n38.node.dc1.consul."}},
		{"big.service.dc1.dc.consul", dns.TypeA, edns, 0, 40, 0, 1, []string{"big.service.dc1.dc.consul.\t0\tIN\tA\t10.20.0.24"}},
		{"big.service.dc1.consul", dns.TypeA, edns, 0, 40, 0, 1, []string{"big.service.dc1.consul.\t0\tIN\tA\t10.20.0.1"}},
		{"big.service.nope.consul", dns.TypeA, edns, dns.RcodeNameError, 0, 1, 1, []string{apexSOA}},
		{"nosuch.service.consul", dns.TypeA, edns, dns.RcodeNameError, 0, 1, 1, []string{apexSOA}},
		{"big.service.consul", dns.TypeAAAA, edns, 0, 0, 1, 1, []string{apexSOA}},
		{"dev1.node.consul", dns.TypeA, edns, 0, 1, 0, 3, []string{"dev1.node.consul.\t0\tIN\tA\t127.0.0.1", "dev1.node.consul.\t0\tIN\tTXT\t\"consul-version=1.21.0\"", "dev1.node.consul.\t0\tIN\tTXT\t\"consul-network-segment=\""}},
		{"dev1.node.consul", dns.TypeANY, edns, 0, 3, 0, 1, []string{"dev1.node.consul.\t0\tIN\tA\t127.0.0.1", "dev1.node.consul.\t0\tIN\tTXT\t\"consul-version=1.21.0\""}},
		{"v6.node.consul", dns.TypeAAAA, edns, 0, 1, 0, 3, []string{"v6.node.consul.\t0\tIN\tAAAA\t2001:db8::6", "v6.node.consul.\t0\tIN\tTXT\t\"k=v\"", "v6.node.consul.\t0\tIN\tTXT\t\"raw txt\""}},
		{"v6.node.consul", dns.TypeTXT, edns, 0, 2, 0, 1, []string{"v6.node.consul.\t0\tIN\tTXT\t\"k=v\"", "v6.node.consul.\t0\tIN\tTXT\t\"raw txt\""}},
		{"v6.node.consul", dns.TypeA, edns, 0, 0, 0, 3, []string{"v6.node.consul.\t0\tIN\tTXT\t\"k=v\""}},
		{"cn.node.consul", dns.TypeA, edns, 0, 1, 0, 1, []string{"cn.node.consul.\t0\tIN\tCNAME\thost.example.com."}},
		{"cnsvc.service.consul", dns.TypeSRV, edns, 0, 1, 0, 1, []string{"cnsvc.service.consul.\t0\tIN\tSRV\t1 1 67 host.example.com."}},
		{"web2.service.consul", dns.TypeSRV, edns, dns.RcodeNameError, 0, 1, 1, []string{apexSOA}},
		{"consul.service.consul", dns.TypeSRV, edns, 0, 1, 0, 4, []string{"consul.service.consul.\t0\tIN\tSRV\t1 1 8300 dev1.node.dc1.consul.", "dev1.node.dc1.consul.\t0\tIN\tA\t127.0.0.1", "dev1.node.dc1.consul.\t0\tIN\tTXT\t\"consul-version=1.21.0\""}},
		{"consul.", dns.TypeSOA, edns, 0, 1, 1, 2, []string{apexSOA, "consul.\t0\tIN\tNS\tdev1.node.dc1.consul.", "dev1.node.dc1.consul.\t0\tIN\tA\t127.0.0.1"}},
		{"consul.", dns.TypeNS, edns, 0, 1, 0, 2, []string{"consul.\t0\tIN\tNS\tdev1.node.dc1.consul.", "dev1.node.dc1.consul.\t0\tIN\tA\t127.0.0.1"}},
		{"foo.consul", dns.TypeA, edns, dns.RcodeNameError, 0, 1, 1, []string{apexSOA}},
		// Consul leaves OPT out here, against RFC 6891.
		{"example.com", dns.TypeA, edns, dns.RcodeRefused, 0, 0, 1, nil},
		{"1.0.0.127.in-addr.arpa", dns.TypePTR, edns, 0, 1, 0, 1, []string{"1.0.0.127.in-addr.arpa.\t0\tIN\tPTR\tdev1.node.dc1.consul."}},
		{"1.0.20.10.in-addr.arpa", dns.TypePTR, edns, 0, 1, 0, 1, []string{"1.0.20.10.in-addr.arpa.\t0\tIN\tPTR\tn1.node.dc1.consul."}},
		{"0a140001.addr.dc1.consul", dns.TypeA, edns, 0, 1, 0, 1, []string{"0a140001.addr.dc1.consul.\t0\tIN\tA\t10.20.0.1"}},
		{"web.service.consul", dns.TypeA, edns, 0, 1, 0, 1, []string{"web.service.consul.\t0\tIN\tA\t127.0.0.1"}},
		{"BIG.Service.CONSUL", dns.TypeA, noEDNS, 0, 3, 0, 0, []string{"BIG.Service.CONSUL.\t0\tIN\tA\t10.20.0."}},
		// q1.query.consul is left out: there are no prepared queries in this build, so every such name is unknown.
		{"nope.query.consul", dns.TypeA, edns, dns.RcodeNameError, 0, 1, 1, []string{apexSOA}},
	} {
		r := ask(t, address, p.name, p.qtype, p.how)
		what := p.name + " " + dns.TypeToString[p.qtype]
		if r.Rcode != p.rcode || len(r.Answer) != p.answers || len(r.Ns) != p.authority || len(r.Extra) != p.extra {
			t.Errorf("%s: %s with %d, %d, %d records; want %s with %d, %d, %d\n%v", what, dns.RcodeToString[r.Rcode], len(r.Answer), len(r.Ns), len(r.Extra),
				dns.RcodeToString[p.rcode], p.answers, p.authority, p.extra, r)
		}
		if r.Authoritative != (p.rcode != dns.RcodeRefused) || r.RecursionAvailable || !r.RecursionDesired || r.Truncated {
			t.Errorf("%s: flags of %v", what, r.MsgHdr)
		}
		if r.Question[0].Name != dns.Fqdn(p.name) {
			t.Errorf("%s: the question came back as %s", what, r.Question[0].Name)
		}
		got := slices.Concat(lines(r.Answer), lines(r.Ns), lines(r.Extra))
		for _, want := range p.lines {
			if !slices.ContainsFunc(got, func(l string) bool { return l == want || strings.HasSuffix(want, ".") && strings.HasPrefix(l, want) }) {
				t.Errorf("%s: no record %q in %q", what, want, got)
			}
		}
	}
}
