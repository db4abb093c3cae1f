package dnsapi

import (
	"testing"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzPacket: whatever packet comes, over whatever network, the answer is one to its question, fits, and can be read.
func FuzzPacket(f *testing.F) {
	add := func(change func(*dns.Msg)) {
		m := new(dns.Msg).SetQuestion("big.service.consul.", dns.TypeSRV)
		change(m)
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, false)
		f.Add(wire, true)
	}
	add(func(*dns.Msg) {})
	add(func(m *dns.Msg) { m.SetEdns0(4096, true) })
	add(func(m *dns.Msg) { m.SetEdns0(0, false) })
	add(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate })
	add(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
	add(func(m *dns.Msg) { m.Question = nil })
	add(func(m *dns.Msg) { m.Response = true; m.Question[0].Qclass = dns.ClassCHAOS })
	add(func(m *dns.Msg) {
		m.Question[0] = dns.Question{Name: "consul.", Qtype: dns.TypeANY, Qclass: dns.ClassANY}
	})
	s, err := New(options(probed()))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		fuzztest.Bounded(t, len(packet), func() {
			in := new(dns.Msg)
			if in.Unpack(packet) != nil {
				return
			}
			network, room := "udp", dns.MinMsgSize
			if opt := in.IsEdns0(); opt != nil {
				room = max(room, int(opt.UDPSize()))
			}
			if tcp {
				network, room = "tcp", dns.MaxMsgSize
			}
			r := s.reply(t.Context(), in, network)
			out, err := r.Pack()
			if err != nil || len(out) > room {
				t.Fatalf("%v: %d bytes where %d fit (%v)", in, len(out), room, err)
			}
			back := new(dns.Msg)
			if err := back.Unpack(out); err != nil || back.Id != in.Id || !back.Response {
				t.Fatalf("%v is answered by what cannot be read: %v", in, err)
			}
			if len(in.Question) == 1 && (len(back.Question) != 1 || back.Question[0] != in.Question[0]) {
				t.Fatalf("%v is answered as %v", in.Question, back.Question)
			}
		})
	})
}
