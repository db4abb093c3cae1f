package dnsapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

func TestOptionsRefused(t *testing.T) {
	for name, edit := range map[string]func(*Options){
		"no directory": func(o *Options) { o.Directory = nil }, "no domain": func(o *Options) { o.Domain = "" },
		"a domain of spaces": func(o *Options) { o.Domain = "my domain" }, "the root": func(o *Options) { o.Domain = "." },
		"an alternative of spaces": func(o *Options) { o.AltDomain = "a b" }, "no data center": func(o *Options) { o.Datacenter = "" },
		"no randomness": func(o *Options) { o.Intn = nil }, "no clock": func(o *Options) { o.Now = nil },
		"a recursor by name": func(o *Options) { o.Recursors = []string{"dns.example.com"} }, "a recursor without port": func(o *Options) { o.Recursors = []string{"10.0.0.1:0"} },
		"a negative TTL": func(o *Options) { o.NodeTTL = -1 }, "a negative service TTL": func(o *Options) { o.ServiceTTL = map[string]time.Duration{"*": -1} },
		"a negative limit": func(o *Options) { o.UDPAnswers = -1 }, "a negative bound": func(o *Options) { o.MaxStale = -1 },
	} {
		o := options(probed())
		edit(&o)
		if _, err := New(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, want := range map[string]string{"10.0.0.1": "10.0.0.1:53", "10.0.0.1:5353": "10.0.0.1:5353", "::1": "[::1]:53", "[::1]": "[::1]:53", "[::1]:54": "[::1]:54"} {
		if got, err := recursorAddress(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

// TestForeignQuestions: what is no question about the Internet is not answered from the catalog.
func TestForeignQuestions(t *testing.T) {
	b := probed()
	address := stand(t, options(b))
	chaos := new(dns.Msg).SetQuestion("web.service.consul.", dns.TypeA)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	notify := new(dns.Msg).SetNotify("web.service.consul.")
	bad := new(dns.Msg).SetQuestion("web.service.consul.", dns.TypeA)
	bad.SetEdns0(1232, false)
	bad.IsEdns0().SetVersion(1)
	for _, c := range []struct {
		name string
		m    *dns.Msg
		want int
	}{{"another class", chaos, dns.RcodeRefused}, {"NOTIFY", notify, dns.RcodeNotImplemented}, {"EDNS 1", bad, dns.RcodeBadVers},
		{"another domain", new(dns.Msg).SetQuestion("web.service.consul.example.com.", dns.TypeA), dns.RcodeRefused},
		{"a suffix of letters", new(dns.Msg).SetQuestion("web.service.notconsul.", dns.TypeA), dns.RcodeRefused},
		{"the root", new(dns.Msg).SetQuestion(".", dns.TypeNS), dns.RcodeRefused},
		{"an address nobody has", new(dns.Msg).SetQuestion("9.9.9.9.in-addr.arpa.", dns.TypePTR), dns.RcodeNameError},
	} {
		if r := send(t, address, c.m, noEDNS); r.Rcode != c.want || len(r.Answer) != 0 {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("not DNS at all, but long enough")); err != nil { // ignored or an error; it survives
		t.Fatal(err)
	}
	before := b.calls.Load()
	if r := ask(t, address, "web.service.consul", dns.TypeA, edns); len(r.Answer) != 1 || b.calls.Load() != before+1 {
		t.Errorf("after all that: %v", r)
	}
}

func TestHealth(t *testing.T) {
	b := &book{}
	for _, n := range []string{"ok", "warn", "crit", "nodecrit"} {
		b.node(n, "10.0.0."+fmt.Sprint(len(b.nodes)+1), nil)
		s := b.service(n, "api", "", 80)
		s.Weights = catalog.Weights{Passing: 10, Warning: 2}
	}
	b.check("ok", "api", "passing")
	b.check("warn", "api", "warning")
	b.check("crit", "api", "critical")
	b.check("nodecrit", "", "critical")
	all, passing := options(b), options(b)
	passing.OnlyPassing = true
	want := []string{"api.service.consul.\t0\tIN\tSRV\t1 10 80 ok.node.dc1.consul.", "api.service.consul.\t0\tIN\tSRV\t1 2 80 warn.node.dc1.consul."}
	got := lines(ask(t, stand(t, all), "api.service.consul", dns.TypeSRV, tcp).Answer)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := lines(ask(t, stand(t, passing), "api.service.consul", dns.TypeSRV, tcp).Answer); !slices.Equal(got, want[:1]) {
		t.Errorf("only passing: %q", got)
	}
}

// TestTargets: what SRV names when an instance is not simply on its node.
func TestTargets(t *testing.T) {
	b := &book{}
	b.node("n1", "10.0.0.1", nil)
	b.node("bad name", "10.0.0.2", nil)
	b.node("six", "::1", nil)
	b.service("n1", "own", "10.9.8.7", 1)
	b.service("n1", "host", "db.example.com", 2)
	b.service("bad name", "odd", "", 3)
	b.service("six", "six", "2001:db8::1", 4)
	b.service("n1", "alias", "own.service.consul", 5)
	b.service("n1", "loop", "loop.service.consul", 6)
	b.service("n1", "none", "not a host", 7)
	b.service("n1", "weird", "", 70000)
	b.service("n1", "twice", "", 8)
	b.service("n1", "twice", "10.0.0.1", 8)
	b.services[len(b.services)-1].ID = "twice2"
	address := stand(t, options(b))
	for _, c := range []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"own.service.consul", dns.TypeSRV, []string{"own.service.consul.\t0\tIN\tSRV\t1 1 1 0a090807.addr.dc1.consul.", "0a090807.addr.dc1.consul.\t0\tIN\tA\t10.9.8.7"}},
		{"own.service.consul", dns.TypeA, []string{"own.service.consul.\t0\tIN\tA\t10.9.8.7"}},
		{"host.service.consul", dns.TypeSRV, []string{"host.service.consul.\t0\tIN\tSRV\t1 1 2 db.example.com."}},
		{"host.service.consul", dns.TypeA, []string{"host.service.consul.\t0\tIN\tCNAME\tdb.example.com."}},
		{"host.service.consul", dns.TypeCNAME, []string{"host.service.consul.\t0\tIN\tCNAME\tdb.example.com."}},
		{"odd.service.consul", dns.TypeSRV, []string{"odd.service.consul.\t0\tIN\tSRV\t1 1 3 0a000002.addr.dc1.consul.", "0a000002.addr.dc1.consul.\t0\tIN\tA\t10.0.0.2"}},
		{`bad\032name.node.consul`, dns.TypeA, []string{`bad\ name.node.consul.` + "\t0\tIN\tA\t10.0.0.2"}},
		{"six.service.consul", dns.TypeSRV, []string{"six.service.consul.\t0\tIN\tSRV\t1 1 4 20010db8000000000000000000000001.addr.dc1.consul.", "20010db8000000000000000000000001.addr.dc1.consul.\t0\tIN\tAAAA\t2001:db8::1"}},
		{"20010db8000000000000000000000001.addr.dc1.consul", dns.TypeAAAA, []string{"20010db8000000000000000000000001.addr.dc1.consul.\t0\tIN\tAAAA\t2001:db8::1"}},
		{"alias.service.consul", dns.TypeA, []string{"alias.service.consul.\t0\tIN\tCNAME\town.service.consul.", "own.service.consul.\t0\tIN\tA\t10.9.8.7"}},
		{"loop.service.consul", dns.TypeA, slices.Repeat([]string{"loop.service.consul.\t0\tIN\tCNAME\tloop.service.consul."}, 4)},
		{"none.service.consul", dns.TypeSRV, []string{apexSOA}},
		{"weird.service.consul", dns.TypeSRV, []string{apexSOA}},
		{"twice.service.consul", dns.TypeSRV, []string{"twice.service.consul.\t0\tIN\tSRV\t1 1 8 n1.node.dc1.consul.", "n1.node.dc1.consul.\t0\tIN\tA\t10.0.0.1"}},
		{"twice.service.consul", dns.TypeA, []string{"twice.service.consul.\t0\tIN\tA\t10.0.0.1"}},
		{"7.8.9.10.in-addr.arpa", dns.TypePTR, []string{"7.8.9.10.in-addr.arpa.\t0\tIN\tPTR\town.service.consul."}},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa", dns.TypePTR, []string{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.\t0\tIN\tPTR\tsix.node.dc1.consul."}},
	} {
		r := ask(t, address, c.name, c.qtype, tcp)
		if got := slices.Concat(lines(r.Answer), lines(r.Ns), lines(r.Extra)); !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %q; want %q", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

func TestTTLsAndSecondDomain(t *testing.T) {
	o := options(probed())
	o.AltDomain, o.NodeTTL = "corp.example", 7*time.Second
	o.ServiceTTL = map[string]time.Duration{"*": 10 * time.Second, "we*": 20 * time.Second, "web2": 40 * time.Second, "big": time.Minute}
	address := stand(t, o)
	for name, want := range map[string]uint32{"web": 20, "big": 60, "cnsvc": 10} {
		if r := ask(t, address, name+".service.consul", dns.TypeANY, tcp); len(r.Answer) == 0 || r.Answer[0].Header().Ttl != want {
			t.Errorf("%s: %v", name, r.Answer)
		}
	}
	r := ask(t, address, "web.service.corp.example", dns.TypeSRV, tcp)
	want := []string{"web.service.corp.example.\t20\tIN\tSRV\t1 1 80 dev1.node.dc1.corp.example."}
	if !slices.Equal(lines(r.Answer), want) || len(r.Extra) != 4 {
		t.Errorf("%v", r)
	}
	if r := ask(t, address, "dev1.node.consul", dns.TypeA, tcp); r.Answer[0].Header().Ttl != 7 {
		t.Errorf("%v", r.Answer)
	}
	if r := ask(t, address, "nope.service.corp.example", dns.TypeSRV, tcp); len(r.Ns) != 1 || !strings.HasPrefix(r.Ns[0].String(), "corp.example.\t0\tIN\tSOA\tns.corp.example. hostmaster.corp.example. ") {
		t.Errorf("%v", r.Ns)
	}
}

// TestSizes: an answer fits what the asker takes, says so when it had to be cut, and is whole over TCP.
func TestSizes(t *testing.T) {
	b := &book{}
	for i := range 600 {
		n := fmt.Sprintf("a-node-with-a-name-of-some-length-%d", i)
		b.node(n, fmt.Sprintf("10.%d.%d.1", i/250, i%250), nil)
		b.service(n, "many", "", 80)
	}
	o := options(b)
	address := stand(t, o)
	for _, size := range []uint16{0, 100, 512, 1232, 4096, 65535} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
			r := ask(t, address, "many.service.consul", qtype, how{edns: size})
			bound := min(max(int(size), 512), 4096)
			r.Compress = true
			if r.Len() > bound || len(r.Answer) == 0 || len(r.Answer) == 600 {
				t.Errorf("asker takes %d: %d bytes, %d answers", size, r.Len(), len(r.Answer))
			}
			if size == 0 && (len(r.Answer) != 3 || r.Truncated) {
				t.Errorf("without EDNS: %d answers, truncated %v", len(r.Answer), r.Truncated)
			}
			if size != 0 && !r.Truncated {
				t.Errorf("asker takes %d: it is not told that %d answers are missing", size, 600-len(r.Answer))
			}
			for _, rr := range r.Extra {
				if a, ok := rr.(*dns.A); ok && !slices.ContainsFunc(r.Answer, func(s dns.RR) bool { return s.(*dns.SRV).Target == a.Hdr.Name }) {
					t.Errorf("help for an answer that is not there: %v", a)
				}
			}
		}
	}
	if r := ask(t, address, "many.service.consul", dns.TypeA, tcp); len(r.Answer) != 600 || r.Truncated {
		t.Errorf("over TCP: %d answers, truncated %v", len(r.Answer), r.Truncated)
	}
	o.Truncate, o.UDPAnswers = true, 5
	address = stand(t, o)
	if r := ask(t, address, "many.service.consul", dns.TypeA, noEDNS); len(r.Answer) != 5 || !r.Truncated {
		t.Errorf("with Truncate: %d answers, truncated %v", len(r.Answer), r.Truncated)
	}
	// Help that does not fit is no reason to come back.
	few := &book{}
	for i := range 3 {
		n := fmt.Sprintf("n%d", i)
		few.node(n, fmt.Sprintf("10.0.0.%d", i), map[string]string{"k": strings.Repeat("v", 400)})
		few.service(n, "few", "", 80)
	}
	if r := ask(t, stand(t, options(few)), "few.service.consul", dns.TypeSRV, noEDNS); len(r.Answer) != 3 || r.Truncated {
		t.Errorf("big help: %v", r)
	}
}

func TestShuffled(t *testing.T) {
	o := options(probed())
	o.Intn = func(int) int { return 0 }
	r1 := lines(ask(t, stand(t, o), "big.service.consul", dns.TypeA, tcp).Answer)
	o.Intn = func(n int) int { return n - 1 } // every card stays where it is
	r2 := lines(ask(t, stand(t, o), "big.service.consul", dns.TypeA, tcp).Answer)
	if slices.Equal(r1, r2) || len(r1) != 40 || len(r2) != 40 || r2[0] != "big.service.consul.\t0\tIN\tA\t10.20.0.1" {
		t.Errorf("%q\n%q", r1, r2)
	}
	slices.Sort(r1)
	slices.Sort(r2)
	if !slices.Equal(r1, r2) {
		t.Error("shuffling loses answers")
	}
}

// TestStale: reads are stale ones; beyond the bound they are read again from the leader.
func TestStale(t *testing.T) {
	b := probed()
	b.lastContact = time.Hour
	address := stand(t, options(b))
	if r := ask(t, address, "web.service.consul", dns.TypeA, edns); len(r.Answer) != 1 || b.fresh.Load() != 0 {
		t.Errorf("%v; %d fresh reads", r, b.fresh.Load())
	}
	o := options(b)
	o.MaxStale = time.Minute
	address = stand(t, o)
	if r := ask(t, address, "web.service.consul", dns.TypeA, edns); len(r.Answer) != 1 || b.fresh.Load() != 1 {
		t.Errorf("%v; %d fresh reads", r, b.fresh.Load())
	}
	for err, want := range map[error]int{core.ErrNoLeader: dns.RcodeServerFailure, fault.New(fault.Denied, "no"): dns.RcodeRefused, errors.New("x"): dns.RcodeServerFailure} {
		b.mu.Lock()
		b.fail = err
		b.mu.Unlock()
		for _, name := range []string{"web.service.consul", "dev1.node.consul", "1.0.0.127.in-addr.arpa", "consul"} {
			qtype := dns.TypeSRV
			if strings.HasSuffix(name, "arpa") {
				qtype = dns.TypePTR
			} else if name == "consul" {
				qtype = dns.TypeSOA
			}
			if r := ask(t, address, name, qtype, edns); r.Rcode != want || r.Authoritative || len(r.Answer) != 0 {
				t.Errorf("%v: %v", err, r)
			}
		}
	}
}

// TestRecursors: other domains go to those who know them, ours never.
func TestRecursors(t *testing.T) {
	var asked sync.Map
	recursor := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		q := m.Question[0]
		asked.Store(q.Name, true)
		r := new(dns.Msg).SetReply(m)
		r.RecursionAvailable = true
		_, isUDP := w.RemoteAddr().(*net.UDPAddr)
		switch {
		case q.Name == "big.example.com." && isUDP:
			r.Truncated = true
		case q.Name == "lie.example.com.":
			r.Question[0].Name = "other.example.com."
		case q.Name == "none.example.com.":
			r.Rcode = dns.RcodeNameError
		case q.Name == "9.9.9.9.in-addr.arpa.":
			r.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR, 60), Ptr: "nine.example."}}
		default:
			r.Answer = []dns.RR{&dns.A{Hdr: header(q.Name, dns.TypeA, 60), A: net.IPv4(192, 0, 2, 1)}}
		}
		w.WriteMsg(r)
	})}
	udp, tcpl := sockets(t)
	over := &dns.Server{Listener: tcpl, Handler: recursor.Handler}
	recursor.PacketConn = udp
	var running, started sync.WaitGroup
	for _, s := range []*dns.Server{recursor, over} {
		started.Add(1)
		s.NotifyStartedFunc = started.Done
		running.Go(func() { s.ActivateAndServe() })
	}
	started.Wait()
	t.Cleanup(func() { recursor.Shutdown(); over.Shutdown(); running.Wait() })
	o := options(probed())
	dead, deadTCP := sockets(t)
	o.Recursors = []string{dead.LocalAddr().String(), udp.LocalAddr().String()}
	dead.Close() // the first is not there: the second is asked
	deadTCP.Close()
	address := stand(t, o)
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"www.example.com", dns.TypeA, 0, []string{"www.example.com.\t60\tIN\tA\t192.0.2.1"}},
		{"big.example.com", dns.TypeA, 0, []string{"big.example.com.\t60\tIN\tA\t192.0.2.1"}},
		{"none.example.com", dns.TypeA, dns.RcodeNameError, nil},
		{"lie.example.com", dns.TypeA, dns.RcodeServerFailure, nil},
		{"9.9.9.9.in-addr.arpa", dns.TypePTR, 0, []string{"9.9.9.9.in-addr.arpa.\t60\tIN\tPTR\tnine.example."}},
		{"1.0.0.127.in-addr.arpa", dns.TypePTR, 0, []string{"1.0.0.127.in-addr.arpa.\t0\tIN\tPTR\tdev1.node.dc1.consul."}},
		{"cn.node.consul", dns.TypeA, 0, []string{"cn.node.consul.\t0\tIN\tCNAME\thost.example.com.", "host.example.com.\t60\tIN\tA\t192.0.2.1"}},
		{"nope.service.consul", dns.TypeA, dns.RcodeNameError, nil},
	} {
		r := ask(t, address, c.name, c.qtype, edns)
		if got := lines(r.Answer); r.Rcode != c.rcode || !slices.Equal(got, c.want) || !r.RecursionAvailable {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	if _, ours := asked.Load("nope.service.consul."); ours {
		t.Error("a name of ours went to a recursor")
	}
}

// slow is a directory that answers when it is told to.
type slow struct {
	entered sync.WaitGroup
	leave   chan struct{}
}

func (s *slow) Lookup(ctx context.Context, _ policy.Principal, _ core.LookupRequest) (core.Found, error) {
	s.entered.Done()
	select {
	case <-s.leave:
		return core.Found{}, nil
	case <-ctx.Done():
		return core.Found{}, ctx.Err()
	}
}

// TestBounds: queries beyond the room are dropped, those within are answered, and a stop ends what is under way.
func TestBounds(t *testing.T) {
	d := &slow{leave: make(chan struct{})}
	s, err := New(options(d))
	if err != nil {
		t.Fatal(err)
	}
	s.room = make(chan struct{}, 1)
	udp, tcpl := sockets(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(ctx, udp, tcpl); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	address := tcpl.Addr().String()
	d.entered.Add(1)
	running.Go(func() {
		if r := ask(t, address, "web.service.consul", dns.TypeA, tcp); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("under way at the stop: %v", r)
		}
	})
	d.entered.Wait()
	m := new(dns.Msg).SetQuestion("web.service.consul.", dns.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 300 * time.Millisecond}
		if r, _, err := c.ExchangeContext(t.Context(), m, address); err == nil {
			t.Errorf("%s beyond the room: %v", network, r)
		}
	}
	cancel()
	running.Wait()
}

// TestConnectionsBounded: TCP connections beyond the room are closed, and a closed one makes room.
func TestConnectionsBounded(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bounded{Listener: l, room: make(chan struct{}, 1)}
	accepted := make(chan net.Conn, 4)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	dial := func() net.Conn {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	second := dial()
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the room is open")
	}
	first.Close()
	first.Close() // twice makes room once
	dial()
	(<-accepted).Close()
}
