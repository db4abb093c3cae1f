package dnsapi

import (
	"context"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/catalog"
)

func hexName(ip netip.Addr) string { return hex.EncodeToString(ip.AsSlice()) }

// metaRecords are the metadata of a node as TXT: KEY=VALUE as RFC 1464 has it, or the bare value of a key that begins with
// rfc1035-.
func metaRecords(owner string, meta map[string]string, ttl uint32) []dns.RR {
	var records []dns.RR
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		text := meta[k]
		if !strings.HasPrefix(strings.ToLower(k), "rfc1035-") {
			text = quoteKey(k) + "=" + text
		}
		records = append(records, &dns.TXT{Hdr: header(owner, dns.TypeTXT, ttl), Txt: chunks(text)})
	}
	return records
}

// quoteKey puts a grave accent before what RFC 1464 gives a meaning to.
func quoteKey(k string) string {
	return strings.NewReplacer("`", "``", "=", "`=").Replace(k)
}

// chunks cuts a text into the character strings of at most 255 bytes that TXT is made of, escaped for miekg/dns.
func chunks(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts = append(parts, escape(text[:255]))
		text = text[255:]
	}
	return append(parts, escape(text))
}

// escape keeps a backslash from being read as the beginning of an escape. Quotation marks are miekg/dns's own business.
func escape(text string) string { return strings.ReplaceAll(text, `\`, `\\`) }

// pointer finds who has an address: a node, or else a service.
func (s *Server) pointer(ctx context.Context, address netip.Addr, owner string) (sections, error) {
	is := func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return err == nil && ip.Unmap() == address.Unmap()
	}
	domain, ttl := s.domains[0], seconds(s.o.NodeTTL)
	var f sections
	found, err := s.lookup(ctx, catalog.QueryNodes, "")
	if err != nil {
		return f, err
	}
	for i := range found.Nodes {
		if name := s.nodeName(&found.Nodes[i], domain); name != "" && is(found.Nodes[i].Address) {
			f.answer = append(f.answer, &dns.PTR{Hdr: header(owner, dns.TypePTR, ttl), Ptr: name})
		}
	}
	if len(f.answer) > 0 {
		return f, nil
	}
	if found, err = s.lookup(ctx, catalog.QueryServiceNames, ""); err != nil {
		return f, err
	}
	seen := map[string]bool{}
	for i := range found.Services {
		service := &found.Services[i]
		name := service.Name + ".service." + domain
		if is(service.Address) && !seen[name] && isHostName(name) {
			seen[name] = true
			f.answer = append(f.answer, &dns.PTR{Hdr: header(owner, dns.TypePTR, ttl), Ptr: name})
		}
	}
	return f, nil
}

// fit cuts an answer down to what the asker takes.
func (s *Server) fit(r *dns.Msg, opt *dns.OPT, network string) {
	size := dns.MaxMsgSize - 1
	if network == "udp" {
		size = dns.MinMsgSize
		if opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		} else if r.Authoritative && len(r.Answer) > s.o.UDPAnswers {
			s.keep(r, s.o.UDPAnswers)
			r.Truncated = r.Truncated || s.o.Truncate
		}
	}
	if r.Len() <= size {
		return
	}
	// What is only a help goes first; then answers, and the asker is told.
	answers := len(r.Answer)
	few, many := 0, answers // few fit without help, more than many do not
	for few < many {
		middle := (few + many + 1) / 2
		if without(r, middle).Len() <= size {
			few = middle
		} else {
			many = middle - 1
		}
	}
	if few < answers {
		s.keep(r, few)
		r.Truncated = true
	}
	for r.Len() > size {
		i := slices.IndexFunc(r.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
		if i < 0 {
			break
		}
		last := len(r.Extra) - 1
		if r.Extra[last].Header().Rrtype == dns.TypeOPT && last > 0 {
			r.Extra = slices.Delete(r.Extra, last-1, last)
		} else {
			r.Extra = r.Extra[:last]
		}
	}
	if r.Len() > size {
		r.Ns = nil
	}
}

// without is r with the first n answers and no help but OPT.
func without(r *dns.Msg, n int) *dns.Msg {
	short := *r
	short.Answer, short.Extra = r.Answer[:n], nil
	if opt := r.IsEdns0(); opt != nil {
		short.Extra = []dns.RR{opt}
	}
	return &short
}

// keep drops all but the first n answers, and the help for those that are gone.
func (s *Server) keep(r *dns.Msg, n int) {
	r.Answer = r.Answer[:n]
	named := map[string]bool{}
	srv := false
	for _, rr := range r.Answer {
		if t, ok := rr.(*dns.SRV); ok {
			named[t.Target], srv = true, true
		}
	}
	if !srv {
		return
	}
	r.Extra = slices.DeleteFunc(r.Extra, func(rr dns.RR) bool {
		return rr.Header().Rrtype != dns.TypeOPT && !named[rr.Header().Name]
	})
}
