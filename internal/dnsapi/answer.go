package dnsapi

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
)

// maxChain is how many CNAMEs are followed within our own domain.
const maxChain = 3

// sections are what an answer is made of.
type sections struct {
	rcode             int
	answer, ns, extra []dns.RR
	soa               bool // the apex's SOA belongs into the authority section
}

// answer fills in r, from the catalog or from a recursor.
func (s *Server) answer(ctx context.Context, m, r *dns.Msg, network string) {
	q := m.Question[0]
	p, ours := parseName(q.Name, s.domains)
	var found sections
	var err error
	if ours {
		found, err = s.resolve(ctx, p, q.Name, q.Qtype, 0)
	} else {
		address, isReverse := reverse(q.Name)
		if isReverse && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY) {
			found, err = s.pointer(ctx, address, q.Name)
		}
		if err == nil && len(found.answer) == 0 {
			if len(s.o.Recursors) > 0 {
				s.forward(ctx, m, r, network)
				return
			}
			if !isReverse {
				r.Rcode = dns.RcodeRefused
				return
			}
			found = sections{rcode: dns.RcodeNameError, soa: true}
			p.domain = s.domains[0]
		}
	}
	if err != nil {
		s.o.Log.Debug("a query of DNS failed", "type", dns.TypeToString[q.Qtype], "error", err)
		r.Rcode = dns.RcodeServerFailure
		if fault.From(err).Kind == fault.Denied {
			r.Rcode = dns.RcodeRefused
		}
		return
	}
	r.Authoritative = true
	r.Rcode, r.Answer, r.Ns, r.Extra = found.rcode, found.answer, found.ns, found.extra
	if found.soa {
		r.Ns = append(r.Ns, s.soa(p.domain, p.domain))
	}
}

// soa is the start of authority of a domain.
func (s *Server) soa(owner, domain string) dns.RR {
	return &dns.SOA{
		Hdr: header(owner, dns.TypeSOA, 0), Ns: "ns." + domain, Mbox: "hostmaster." + domain,
		Serial: uint32(s.o.Now().Unix()), Refresh: 3600, Retry: 600, Expire: 86400,
	}
}

func header(owner string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func seconds(d time.Duration) uint32 {
	return uint32(min(d/time.Second, 1<<31-1))
}

// resolve answers for a name below our domain. owner is the name as the asker wrote it.
func (s *Server) resolve(ctx context.Context, p place, owner string, qtype uint16, depth int) (sections, error) {
	if p.datacenter != "" && p.datacenter != lower(s.o.Datacenter) {
		p.about = aboutNothing
	}
	switch p.about {
	case aboutApex:
		return s.apex(ctx, p, owner, qtype)
	case aboutNode:
		return s.node(ctx, p, owner, qtype, depth)
	case aboutService:
		return s.service(ctx, p, owner, qtype, depth)
	case aboutAddress:
		return orNoData(sections{answer: addressRecords(owner, p.address.String(), qtype, seconds(s.o.NodeTTL))}), nil
	case aboutNothing:
	}
	return sections{rcode: dns.RcodeNameError, soa: true}, nil
}

// orNoData says, of a name that exists, that it has no record of the type, if it has none.
func orNoData(f sections) sections {
	f.soa = len(f.answer) == 0 && len(f.extra) == 0
	return f
}

// lookup asks the directory, by a stale read that is not too stale.
func (s *Server) lookup(ctx context.Context, kind catalog.Kind, name string) (core.Found, error) {
	r := core.LookupRequest{Query: catalog.Query{Kind: kind, Name: name}, Serializable: true}
	found, err := s.o.Directory.Lookup(ctx, s.o.Who, r)
	if err == nil && found.LastContact > s.o.MaxStale {
		r.Serializable = false
		found, err = s.o.Directory.Lookup(ctx, s.o.Who, r)
	}
	return found, err
}

// apex answers for the domain itself.
func (s *Server) apex(ctx context.Context, p place, owner string, qtype uint16) (sections, error) {
	if qtype != dns.TypeSOA && qtype != dns.TypeNS && qtype != dns.TypeANY {
		return sections{soa: true}, nil
	}
	ns, extra, err := s.nameServers(ctx, p, owner)
	if err != nil {
		return sections{}, err
	}
	switch qtype {
	case dns.TypeSOA:
		return sections{answer: []dns.RR{s.soa(owner, p.domain)}, ns: ns, extra: extra}, nil
	case dns.TypeNS:
		return orNoData(sections{answer: ns, extra: extra}), nil
	}
	return sections{answer: append([]dns.RR{s.soa(owner, p.domain)}, ns...), extra: extra}, nil
}

// nameServers are up to three of the cluster's servers: the healthy instances of the service "consul".
func (s *Server) nameServers(ctx context.Context, p place, owner string) (ns, extra []dns.RR, err error) {
	found, err := s.lookup(ctx, catalog.QueryInstances, "consul")
	if err != nil {
		return nil, nil, err
	}
	ttl := seconds(s.o.NodeTTL)
	seen := map[string]bool{}
	for _, i := range s.healthy(found.Instances, "") {
		target := s.nodeName(&i.Node, p.domain)
		if target == "" || seen[target] || len(ns) == 3 {
			continue
		}
		seen[target] = true
		ns = append(ns, &dns.NS{Hdr: header(owner, dns.TypeNS, ttl), Ns: target})
		extra = append(extra, addressRecords(target, i.Node.Address, dns.TypeANY, ttl)...)
	}
	return ns, extra, nil
}

// nodeName is the name of a node below domain; empty if it cannot be a domain name.
func (s *Server) nodeName(n *catalog.Node, domain string) string {
	name := n.Name + ".node." + s.o.Datacenter + "." + domain
	if !isHostName(n.Name) || !isHostName(name) {
		return ""
	}
	return name
}

// node answers with the address and the metadata of a node.
func (s *Server) node(ctx context.Context, p place, owner string, qtype uint16, depth int) (sections, error) {
	found, err := s.lookup(ctx, catalog.QueryNode, p.name)
	if err != nil {
		return sections{}, err
	}
	if len(found.Nodes) == 0 {
		return sections{rcode: dns.RcodeNameError, soa: true}, nil
	}
	n, ttl := &found.Nodes[0], seconds(s.o.NodeTTL)
	f := sections{answer: s.follow(ctx, addressRecords(owner, n.Address, qtype, ttl), qtype, depth)}
	texts := metaRecords(owner, n.Meta, ttl)
	if qtype == dns.TypeTXT || qtype == dns.TypeANY {
		f.answer = append(f.answer, texts...)
	} else {
		f.extra = texts
	}
	return orNoData(f), nil
}

// addressRecords give an address as a record of the type, if it is of that type. A host name becomes a CNAME.
func addressRecords(owner, address string, qtype uint16, ttl uint32) []dns.RR {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		if !isHostName(address) || qtype != dns.TypeA && qtype != dns.TypeAAAA && qtype != dns.TypeANY && qtype != dns.TypeCNAME {
			return nil
		}
		return []dns.RR{&dns.CNAME{Hdr: header(owner, dns.TypeCNAME, ttl), Target: dns.Fqdn(address)}}
	}
	switch ip = ip.Unmap().WithZone(""); {
	case ip.Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
		return []dns.RR{&dns.A{Hdr: header(owner, dns.TypeA, ttl), A: ip.AsSlice()}}
	case ip.Is6() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
		return []dns.RR{&dns.AAAA{Hdr: header(owner, dns.TypeAAAA, ttl), AAAA: ip.AsSlice()}}
	}
	return nil
}

// follow adds to a CNAME what its target has, if that is a name of ours or a recursor knows it.
func (s *Server) follow(ctx context.Context, records []dns.RR, qtype uint16, depth int) []dns.RR {
	if len(records) != 1 || qtype == dns.TypeCNAME || depth >= maxChain {
		return records
	}
	alias, ok := records[0].(*dns.CNAME)
	if !ok {
		return records
	}
	if p, ours := parseName(alias.Target, s.domains); ours {
		if f, err := s.resolve(ctx, p, alias.Target, qtype, depth+1); err == nil {
			return append(records, f.answer...)
		}
		return records
	}
	return append(records, s.recurse(ctx, alias.Target, qtype)...)
}

// service answers with the healthy instances of a service.
func (s *Server) service(ctx context.Context, p place, owner string, qtype uint16, depth int) (sections, error) {
	found, err := s.lookup(ctx, catalog.QueryInstances, p.name)
	if err != nil {
		return sections{}, err
	}
	instances := s.healthy(found.Instances, p.tag)
	if len(instances) == 0 {
		return sections{rcode: dns.RcodeNameError, soa: true}, nil
	}
	ttl := seconds(s.serviceTTL(p.name))
	if qtype == dns.TypeSRV {
		return orNoData(s.targets(instances, p.domain, owner, ttl)), nil
	}
	var f sections
	var alias []dns.RR
	seen := map[string]bool{}
	for i := range instances {
		address := addressOf(&instances[i])
		if seen[address] {
			continue
		}
		seen[address] = true
		for _, rr := range addressRecords(owner, address, qtype, ttl) {
			if rr.Header().Rrtype == dns.TypeCNAME {
				alias = []dns.RR{rr} // one name has one alias, and then nothing else
			} else {
				f.answer = append(f.answer, rr)
			}
		}
	}
	if len(f.answer) == 0 {
		f.answer = s.follow(ctx, alias, qtype, depth)
	}
	return orNoData(f), nil
}

func addressOf(i *catalog.Instance) string {
	if i.Service.Address != "" {
		return i.Service.Address
	}
	return i.Node.Address
}

// serviceTTL is by the name of the service, by the longest prefix of it, or the one of all.
func (s *Server) serviceTTL(name string) time.Duration {
	if ttl, ok := s.o.ServiceTTL[name]; ok {
		return ttl
	}
	best, longest := time.Duration(0), -1
	for pattern, ttl := range s.o.ServiceTTL {
		prefix, ok := strings.CutSuffix(pattern, "*")
		if ok && len(prefix) > longest && strings.HasPrefix(name, lower(prefix)) {
			best, longest = ttl, len(prefix)
		}
	}
	return best
}

// healthy returns the instances with the tag and without a critical check, shuffled.
func (s *Server) healthy(all []catalog.Instance, tag string) []catalog.Instance {
	fit := make([]catalog.Instance, 0, len(all))
	for i := range all {
		status := statusOf(all[i].Checks)
		if status == "critical" || s.o.OnlyPassing && status != "passing" || tag != "" && !hasTag(all[i].Service.Tags, tag) {
			continue
		}
		fit = append(fit, all[i])
	}
	for i := len(fit) - 1; i > 0; i-- {
		j := s.o.Intn(i + 1)
		fit[i], fit[j] = fit[j], fit[i]
	}
	return fit
}

// statusOf is the worst status of checks.
func statusOf(checks []catalog.Check) string {
	status := "passing"
	for i := range checks {
		switch checks[i].Status {
		case "critical":
			return "critical"
		case "warning":
			status = "warning"
		}
	}
	return status
}

func hasTag(tags []string, tag string) bool {
	for _, t := range tags {
		if strings.EqualFold(t, tag) {
			return true
		}
	}
	return false
}

// targets are SRV records, with the addresses of what they name.
func (s *Server) targets(instances []catalog.Instance, domain, owner string, ttl uint32) sections {
	type key struct {
		target string
		port   int
	}
	var f sections
	seen, described := map[key]bool{}, map[string]bool{}
	for i := range instances {
		target, extra := s.target(&instances[i], domain, ttl)
		k := key{target, instances[i].Service.Port}
		if target == "" || seen[k] || k.port < 0 || k.port > 65535 {
			continue
		}
		seen[k] = true
		f.answer = append(f.answer, &dns.SRV{
			Hdr: header(owner, dns.TypeSRV, ttl), Priority: 1, Weight: weight(&instances[i]), Port: uint16(k.port), Target: target,
		})
		if !described[target] {
			described[target] = true
			f.extra = append(f.extra, extra...)
		}
	}
	return f
}

// target names an instance: by its node, by its own address in hexadecimal, or by its host name.
func (s *Server) target(i *catalog.Instance, domain string, ttl uint32) (name string, extra []dns.RR) {
	address := addressOf(i)
	ip, err := netip.ParseAddr(address)
	if err != nil {
		if !isHostName(address) {
			return "", nil
		}
		return dns.Fqdn(address), nil
	}
	if address == i.Node.Address {
		if name = s.nodeName(&i.Node, domain); name != "" {
			return name, append(addressRecords(name, address, dns.TypeANY, ttl), metaRecords(name, i.Node.Meta, ttl)...)
		}
	}
	name = hexName(ip.Unmap()) + ".addr." + s.o.Datacenter + "." + domain
	return name, addressRecords(name, address, dns.TypeANY, ttl)
}

func weight(i *catalog.Instance) uint16 {
	w := i.Service.Weights
	if w == (catalog.Weights{}) {
		return 1
	}
	chosen := w.Passing
	if statusOf(i.Checks) == "warning" {
		chosen = w.Warning
	}
	return uint16(min(max(chosen, 0), 65535))
}
