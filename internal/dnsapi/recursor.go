package dnsapi

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// recursorAddress completes the address of a recursor with the port of DNS.
func recursorAddress(text string) (string, error) {
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), "53"), nil
	}
	if a, err := netip.ParseAddrPort(text); err == nil && a.Port() != 0 {
		return a.String(), nil
	}
	return "", ErrOptions.WithHint("a recursor is an IP address, with or without a port: 10.0.0.1, 10.0.0.1:53, [::1]:53")
}

// forward has a recursor answer m.
func (s *Server) forward(ctx context.Context, m, r *dns.Msg, network string) {
	question := new(dns.Msg)
	question.Id = uint16(s.o.Intn(1 << 16))
	question.RecursionDesired = true
	question.Question = m.Question
	question.SetEdns0(maxUDP, false)
	answer := s.exchange(ctx, question, network)
	if answer == nil {
		r.Rcode = dns.RcodeServerFailure
		return
	}
	r.Rcode, r.Answer, r.Ns, r.Truncated = answer.Rcode&0xf, answer.Answer, answer.Ns, answer.Truncated
	for _, rr := range answer.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			r.Extra = append(r.Extra, rr)
		}
	}
}

// recurse asks the recursors for the records of a name that a CNAME of ours points to.
func (s *Server) recurse(ctx context.Context, name string, qtype uint16) []dns.RR {
	if len(s.o.Recursors) == 0 {
		return nil
	}
	question := new(dns.Msg)
	question.SetQuestion(name, qtype)
	question.Id = uint16(s.o.Intn(1 << 16))
	question.SetEdns0(maxUDP, false)
	answer := s.exchange(ctx, question, "udp")
	if answer == nil || answer.Rcode != dns.RcodeSuccess {
		return nil
	}
	return answer.Answer
}

// exchange asks one recursor after the other, over TCP where UDP was not enough, and returns the first answer of one that
// works.
func (s *Server) exchange(ctx context.Context, question *dns.Msg, network string) *dns.Msg {
	for _, address := range s.o.Recursors {
		client := dns.Client{Net: network, UDPSize: maxUDP, Timeout: recursorTime}
		answer, _, err := client.ExchangeContext(ctx, question, address)
		if err == nil && answer.Truncated && network == "udp" {
			client.Net = "tcp"
			if whole, _, e := client.ExchangeContext(ctx, question, address); e == nil {
				answer = whole
			}
		}
		switch {
		case err != nil:
			s.o.Log.Debug("a recursor did not answer", "recursor", address, "error", err)
		case answer.Id != question.Id || len(answer.Question) != 1 || answer.Question[0] != question.Question[0]:
			s.o.Log.Debug("a recursor answered another question", "recursor", address)
		case answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused:
		default:
			return answer
		}
	}
	return nil
}
