package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// The house is everything of holdfast server that is not etcd's API: Consul's, the authorities, key management, the RPC of
// agents, and every port with every kind of certificate. What each may is docs/SECURITY.md's listener tables, one line each.

// holder is one who knocks: the name of the certificate's file, what it was certified as, and its common name.
type holder struct{ file, role, name string }

var holders = []holder{
	{"none", "none", ""}, {"stranger", "stranger", "admin"}, {"services", "services", "web"},
	{"admin", "admin", "admin"}, {"client", "client", "alice"}, {"kms", "kms", "kube"}, {"agent-m0", "agent", "m0"}, {"agent-web", "agent", "web"},
	{"manager", "manager", swarmNode}, {"worker", "worker", swarmNode},
}

// port is a listener and whose certificates it takes.
type port struct {
	name  string
	index int // of server.ports
	alpn  string
	takes []string // roles; nil: everybody
}

var (
	clientPort  = port{"client", 0, "", []string{"admin", "client", "kms"}}
	peerPort    = port{"peer", 1, "holdfast-peer/1", []string{}} // a member's: nobody has one outside of the member
	agentPort   = port{"agents", 1, "holdfast-agent/1", []string{"agent"}}
	publicPort  = port{"public", 2, "", nil}
	consulPort  = port{"consul", 3, "", []string{"admin", "client", "agent"}}
	metricsPort = port{"metrics", 5, "", []string{"admin", "client"}}
	ports       = []port{clientPort, peerPort, agentPort, publicPort, consulPort, metricsPort, cfsslPort}
)

func (p port) lets(h holder) bool { return p.takes == nil || slices.Contains(p.takes, h.role) }

// errand is one request of the house.
type errand struct {
	Port, Method, Path, Body string
	changes                  bool                // it would change something
	may                      func(h holder) bool // who may, of those whom the port lets in
	status                   int                 // where everybody gets this one; 0: 403 says no, everything else yes
}

func roles(names ...string) func(holder) bool {
	return func(h holder) bool { return slices.Contains(names, h.role) }
}

func anybody(holder) bool { return true }

// own admits admins, and the agent whose certificate has the name of the node.
func own(node string) func(holder) bool {
	return func(h holder) bool { return h.role == "admin" || h.role == "agent" && h.name == node }
}

var (
	admins  = roles("admin")
	readers = roles("admin", "agent")
)

const secret = "s3cr3t-of-the-house"

// houseRunner plays errands against one server.
type houseRunner struct {
	*runner
	clients map[string]*http.Client
	digest  string
	revoked int
}

func (h *houseRunner) client(p port, who holder) *http.Client {
	id := p.name + " " + who.file
	if c := h.clients[id]; c != nil {
		return c
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: h.server.tls(who.file)}, Timeout: patience}
	if p.alpn != "" {
		dial := func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			conf := h.server.tls(who.file)
			conf.NextProtos = []string{p.alpn}
			d := tls.Dialer{Config: conf}
			return d.DialContext(ctx, network, addr)
		}
		c.Transport = &http2.Transport{DialTLSContext: dial}
	}
	h.clients[id] = c
	return c
}

func (h *houseRunner) do(p port, who holder, method, path, body string) (int, string, error) {
	url := fmt.Sprintf("https://127.0.0.1:%d%s", h.server.ports[p.index], path)
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if p.alpn != "" {
		r.Header.Set("Content-Type", "application/x-holdfast-agent")
	}
	resp, err := h.client(p, who).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(got), err
}

var admin = holder{"admin", "admin", "admin"}

// look is everything that an errand could have changed, as an admin sees it, but the server's own node: its agent sets right
// what others have written there, when it likes.
func (h *houseRunner) look() (string, error) {
	h.audits++
	var all strings.Builder
	for _, path := range []string{"/v1/kv/?recurse", "/v1/catalog/nodes?filter=Node+!=+m0", "/v1/catalog/node/web", "/v1/catalog/node/db", "/v1/session/list", "/v1/agent/services", "/v1/event/list"} {
		code, body, err := h.do(consulPort, admin, "GET", path, "")
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&all, path, code, body)
	}
	code, body, err := h.do(clientPort, admin, "GET", "/holdfast/v1/kms/status", "")
	if err != nil {
		return "", err
	}
	fmt.Fprintln(&all, code, body)
	names, err := h.authorities()
	fmt.Fprintln(&all, names)
	return all.String(), err
}

// authorities lists them with the certificates that each has certified. Their revocation lists are made anew by the clock.
func (h *houseRunner) authorities() (map[string]int, error) {
	var all struct{ Authorities []struct{ Name string } }
	_, body, err := h.do(clientPort, admin, "GET", "/holdfast/v1/ca/authorities", "")
	if err == nil {
		err = json.Unmarshal([]byte(body), &all)
	}
	certified := map[string]int{}
	for _, a := range all.Authorities {
		var page struct{ Certificates []struct{ Status string } }
		if err == nil {
			_, body, err = h.do(clientPort, admin, "GET", "/holdfast/v1/ca/authorities/"+a.Name+"/certs", "")
		}
		if err == nil {
			err = json.Unmarshal([]byte(body), &page)
		}
		for _, c := range page.Certificates {
			certified[a.Name+" "+c.Status]++
		}
	}
	return certified, err
}

// setup makes what errands are about: authorities, certificates, a node and a secret.
func (h *houseRunner) setup() error {
	s := h.server
	for _, w := range holders {
		var err error
		switch w.role {
		case "none", "manager", "worker":
		case "stranger":
			var ca *authority
			if ca, err = newAuthority(s.dir, "stranger-ca"); err == nil {
				s.pairs[w.file], err = ca.issue(w.name)
			}
		case "services":
			if _, err = s.holdfast("ca", "init", "web"); err == nil {
				_, err = s.holdfast("ca", "issue", "web", "--profile", "peer", "--name", w.name, "--host", "127.0.0.1", "--out", s.path(w.file))
			}
			if err == nil {
				s.pairs[w.file], err = tls.LoadX509KeyPair(s.path(w.file, "cert.pem"), s.path(w.file, "key.pem"))
			}
		default:
			err = s.certifyAs(w.role, w.name, w.file)
		}
		if err != nil {
			return err
		}
	}
	if err := h.swarmSetup(); err != nil {
		return err
	}
	for path, body := range map[string]string{"/v1/kv/secret": secret, "/v1/catalog/register": `{"Node":"db","Address":"10.0.0.9"}`} {
		if code, got, err := h.do(consulPort, admin, "PUT", path, body); err != nil || code != http.StatusOK {
			return fmt.Errorf("%s: %d %s %v", path, code, got, err)
		}
	}
	if code, got, err := h.do(clientPort, admin, "GET", "/holdfast/v1/kms/status", ""); err != nil || code != http.StatusOK {
		return fmt.Errorf("kms: %d %s %v", code, got, err)
	}
	return nil
}

// run plays the house.
func (h *houseRunner) run() error {
	s, err := start(h.world, h.binary, "--listen-cfssl")
	if err != nil {
		return err
	}
	h.server = s
	defer func() { h.server.stop() }()
	if err := h.setup(); err != nil {
		return fmt.Errorf("house: %w\n%s", err, s.tail())
	}
	if h.digest, err = h.look(); err != nil {
		return err
	}
	g := &gen{Rand: rand.New(rand.NewPCG(h.seed, 0x1101))}
	for h.played < h.cases && len(h.reports) < h.most {
		what, d := h.one(g)
		h.played++
		if d == "" || h.skip[what] {
			continue
		}
		h.skip[what] = true
		h.reports = append(h.reports, finding{world: "house", what: what + ": " + d, after: h.played})
	}
	return nil
}

// one plays one errand, one question of an agent, or one knock at a port.
func (h *houseRunner) one(g *gen) (what, difference string) {
	who := pick(g, holders)
	if h.played%1000 == 500 {
		return h.revoke(g)
	}
	switch n := g.IntN(40); {
	case n < 4:
		return h.knock(g, pick(g, ports), who)
	case n < 10:
		return h.agentCall(g, holders[6+g.IntN(2)])
	case n == 10:
		return h.sign(g)
	case n == 11:
		return h.resolve(g)
	}
	e := g.errand()
	at := ports[slices.IndexFunc(ports, func(p port) bool { return p.name == e.Port })]
	for !at.lets(who) {
		who = pick(g, holders)
	}
	slow := who.role == "admin" && (strings.HasSuffix(e.Path, "/recovery") || strings.HasSuffix(e.Path, "/rotate") && !g.in(20) || strings.HasSuffix(e.Path, "gossip-key") || e.Path == "/holdfast/v1/ca/authorities" && e.changes)
	if slow || e.may == nil && who.role != "admin" && e.Path != "" && strings.HasSuffix(e.Path, "accept") {
		e = g.consulKV()
		at = consulPort
		for !at.lets(who) {
			who = pick(g, holders)
		}
	}
	what = fmt.Sprintf("certificate %s: %s %s %s %s", who.file, e.Port, e.Method, e.Path, e.Body)
	code, body, err := h.do(at, who, e.Method, e.Path, e.Body)
	if err != nil {
		return what, err.Error()
	}
	return what, h.judge(e, who, code, body)
}

func (h *houseRunner) judge(e errand, who holder, code int, body string) string {
	if e.may == nil {
		return ""
	}
	allowed := e.may(who)
	switch {
	case e.status > 0 && code != e.status, e.status < 0 && code < 400:
		return fmt.Sprintf("answered with %d: %.200s", code, body)
	case e.status == 0 && allowed == (code == http.StatusForbidden || code == http.StatusUnauthorized):
		return fmt.Sprintf("answered with %d, and may be: %t: %.200s", code, allowed, body)
	case !allowed && strings.Contains(body, secret):
		return "the refusal tells a secret"
	}
	if allowed {
		h.tally["allowed"]++
	} else {
		h.tally["refused"]++
	}
	if !e.changes {
		return ""
	}
	now, err := h.look()
	if err != nil {
		return err.Error()
	}
	before := h.digest
	h.digest = now
	if !allowed && now != before {
		return fmt.Sprintf("refused, and something has changed:\n%s\n  was\n%s", now, before)
	}
	return ""
}

// knock opens a connection: a port takes the certificates that it is for, and no others.
func (h *houseRunner) knock(g *gen, p port, who holder) (what, difference string) {
	what = fmt.Sprintf("certificate %s at the port of %s", who.file, p.name)
	conf := h.server.tls(who.file)
	if p.alpn != "" {
		conf.NextProtos = []string{p.alpn}
	} else if g.in(2) {
		conf.NextProtos = []string{"h2"}
	}
	in, err := handshake(fmt.Sprintf("127.0.0.1:%d", h.server.ports[p.index]), conf)
	if in != p.lets(who) {
		return what, fmt.Sprintf("let in: %t, has to be: %t (%v)", in, p.lets(who), err)
	}
	if in {
		h.tally["let in"]++
	} else {
		h.tally["turned away"]++
	}
	return what, ""
}

// handshake reports whether a server goes on after it has seen the certificate. With TLS 1.3 a client hears of a refusal
// when it reads: a server that lets it in says nothing, or begins to speak HTTP/2.
func handshake(address string, conf *tls.Config) (bool, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: conf}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(150 * time.Millisecond)); err != nil {
		return false, err
	}
	var b [1]byte
	_, err = c.Read(b[:])
	var timeout net.Error
	if err == nil || asTimeout(err, &timeout) {
		return true, nil
	}
	return false, err
}

func asTimeout(err error, into *net.Error) bool {
	t, ok := err.(net.Error)
	*into = t
	return ok && t.Timeout()
}

// agentCall asks over the RPC of agents, encoded as docs/formats/agent-rpc.md says.
func (h *houseRunner) agentCall(g *gen, who holder) (what, difference string) {
	text := func(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	node := pick(g, []string{"web", "db", "m0"})
	setNode := text(text(text(text([]byte{1, 14, 0}, ""), node), "10.0.0.2"), "dc1")
	setNode = append(setNode, 0, 0, 0, 0, 0)
	setPair := append(text(text([]byte{1, 1}, "a"), "v"), 0, 0, 0, 0, 0)
	lookup := func(kind byte, name string) []byte { return text(text([]byte{0, 0, 0, kind}, name), "") }
	calls := []struct {
		path    string
		body    []byte
		allowed bool
	}{
		{"servers", nil, true}, {"lookup", lookup(4, ""), true}, {"lookup", lookup(1, "secret"), false}, {"lookup", lookup(2, ""), false}, {"lookup", lookup(3, ""), false},
		{"discover", setNode, who.name == node}, {"discover", setPair, false}, {"join", text(text(text(nil, "evil"), "6f1c0d3e-0000-4000-8000-000000000000"), "127.0.0.1:1"), false},
	}
	c := pick(g, calls)
	what = fmt.Sprintf("certificate %s: agents' RPC %s %x", who.file, c.path, c.body)
	code, body, err := h.do(agentPort, who, "POST", "/agent/1/"+c.path, string(c.body))
	switch {
	case err != nil:
		return what, err.Error()
	case code != http.StatusOK || len(body) == 0 || (body[0] == 0) != c.allowed:
		return what, fmt.Sprintf("answered with %d %q, and may be: %t", code, body[:min(200, len(body))], c.allowed)
	case !c.allowed && bytes.Contains([]byte(body), []byte(secret)):
		return what, "the refusal tells a secret"
	}
	e := errand{changes: c.path == "discover", may: func(holder) bool { return c.allowed }}
	if !c.allowed {
		code = http.StatusForbidden
	}
	return what, h.judge(e, who, code, "")
}
