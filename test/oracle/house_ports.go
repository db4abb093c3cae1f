package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"crypto/tls"

	"golang.org/x/net/dns/dnsmessage"
)

// The ports that are asked in their own ways: DNS, CFSSL, and connections that a revocation has to cut.

var cfsslPort = port{"cfssl", 6, "", []string{"manager", "worker"}}

const (
	swarm      = "5x1n0c1wq7q0tbyl3o2e9q4ka"
	otherSwarm = "8p1n0c1wq7q0tbyl3o2e9q4kz"
	swarmNode  = "0b8v0c1wq7q0tbyl3o2e9q4k1"
)

// swarmSetup makes the authority of a swarm and certificates of its nodes.
func (h *houseRunner) swarmSetup() error {
	s := h.server
	if _, err := s.holdfast("ca", "init", "swarm", "--mode", "self-signed", "--profiles", "swarm-node,server"); err != nil {
		return err
	}
	for _, role := range []string{"manager", "worker"} {
		_, err := s.holdfast("ca", "issue", "swarm", "--profile", "swarm-node", "--subject", "/O="+swarm+"/OU=swarm-"+role+"/CN="+swarmNode, "--host", swarmNode, "--out", s.path(role))
		if err == nil {
			s.pairs[role], err = tls.LoadX509KeyPair(s.path(role, "cert.pem"), s.path(role, "key.pem"))
		}
		if err != nil {
			return err
		}
	}
	pem, err := s.holdfast("ca", "show", "swarm", "--output", "chain")
	if err != nil {
		return err
	}
	s.pool.AppendCertsFromPEM([]byte(pem)) // the port shows a certificate of its own authority
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.ports[cfsslPort.index])); err == nil {
			return c.Close()
		}
		<-tick.C
	}
	return errors.New("CFSSL is not served")
}

// sign asks the swarm's authority for the certificate of a node: only a manager of that swarm may.
func (h *houseRunner) sign(g *gen) (what, difference string) {
	who := holder{pick(g, []string{"manager", "worker"}), "", ""}
	cluster, role := pick(g, []string{swarm, swarm, otherSwarm}), pick(g, []string{"swarm-worker", "swarm-manager"})
	hosts := []string{role, swarmNode}
	if role == "swarm-manager" {
		hosts = append(hosts, "swarm-ca")
	}
	wrong := g.in(4)
	if wrong {
		hosts[1] = "db.example.org" // never, whoever asks
	}
	body, err := json.Marshal(map[string]any{"hosts": hosts, "certificate_request": "x", "profile": "swarm-node",
		"subject": map[string]any{"CN": swarmNode, "names": []map[string]string{{"O": cluster, "OU": role}}}})
	if err != nil {
		return "", err.Error()
	}
	what = fmt.Sprintf("certificate %s: cfssl sign %s", who.file, body)
	if g.in(4) {
		code, got, err := h.do(cfsslPort, who, "POST", "/api/v1/cfssl/info", "{}")
		if err != nil || code != http.StatusOK || !strings.Contains(got, `"success":true`) {
			return what, fmt.Sprintf("info: %d %s %v", code, got, err)
		}
		h.tally["allowed"]++
		return what, ""
	}
	code, got, err := h.do(cfsslPort, who, "POST", "/api/v1/cfssl/sign", string(body))
	if err != nil {
		return what, err.Error()
	}
	refused := strings.Contains(got, "only a manager")
	switch may := who.file == "manager" && cluster == swarm; {
	case strings.Contains(got, `"success":true`), code != http.StatusOK, !wrong && may == refused:
		return what, fmt.Sprintf("answered with %d %s, and may be: %t", code, got, may)
	case may:
		h.tally["allowed"]++
	default:
		h.tally["refused"]++
	}
	return what, ""
}

// resolve asks DNS, which everybody may: names of the catalog and nothing else.
func (h *houseRunner) resolve(g *gen) (what, difference string) {
	name := pick(g, []string{"m0.node.consul.", "db.node.consul.", "s.service.consul.", "secret.consul.", "nobody.node.consul.", "example.org."})
	kind := pick(g, []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeSRV, dnsmessage.TypeTXT, dnsmessage.TypeALL, dnsmessage.TypeAXFR})
	what = fmt.Sprintf("nobody: DNS %v %s", kind, name)
	q, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(g.IntN(1 << 16)), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		return what, err.Error()
	}
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", h.server.ports[4]))
	if err != nil {
		return what, err.Error()
	}
	defer c.Close()
	var buf [4096]byte
	var n int
	if err = c.SetDeadline(time.Now().Add(patience)); err == nil {
		if _, err = c.Write(q); err == nil {
			n, err = c.Read(buf[:])
		}
	}
	if err != nil {
		return what, err.Error()
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf[:n]); err != nil {
		return what, err.Error()
	}
	known := name == "m0.node.consul." && kind == dnsmessage.TypeA
	switch {
	case strings.Contains(string(buf[:n]), secret):
		return what, "the answer tells a secret"
	case known && (m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) == 0), kind == dnsmessage.TypeAXFR && len(m.Answers) > 0, strings.HasPrefix(name, "secret") && len(m.Answers) > 0:
		return what, fmt.Sprintf("answered with %v", m)
	}
	h.tally["allowed"]++
	return what, ""
}

// revoke makes a certificate, uses it, revokes it, and looks whether its connections are cut and its handshakes refused.
func (h *houseRunner) revoke(g *gen) (what, difference string) {
	role := pick(g, []string{"client", "agent", "kms", "admin"})
	h.revoked++
	file := fmt.Sprintf("gone-%d", h.revoked)
	who := holder{file, role, file}
	what = "certificate " + file + " of the role " + role + " is revoked"
	if err := h.server.certifyAs(role, file, file); err != nil {
		return what, err.Error()
	}
	var live []net.Conn
	for _, p := range []port{clientPort, agentPort, consulPort, metricsPort} {
		if !p.lets(who) {
			continue
		}
		conf := h.server.tls(file)
		if p.alpn != "" {
			conf.NextProtos = []string{p.alpn}
		}
		c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.server.ports[p.index]), conf)
		if err != nil {
			return what, err.Error()
		}
		defer c.Close()
		if p.alpn == "" { // the handshake is over when something was answered
			fmt.Fprint(c, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return what, p.name + ": " + err.Error()
			}
			io.Copy(io.Discard, resp.Body)
		}
		live = append(live, c)
	}
	body := fmt.Sprintf(`{"commonName":%q}`, file)
	if code, got, err := h.do(clientPort, admin, "POST", "/holdfast/v1/ca/authorities/"+role+"/revoke", body); err != nil || code != http.StatusOK {
		return what, fmt.Sprintf("revoking: %d %s %v", code, got, err)
	}
	begun := time.Now()
	for _, c := range live {
		c.SetReadDeadline(begun.Add(2 * time.Second))
		_, err := io.Copy(io.Discard, c)
		var timeout net.Error
		if asTimeout(err, &timeout) {
			return what, "a connection of it lives on: " + c.RemoteAddr().String()
		}
	}
	for _, p := range []port{clientPort, agentPort, consulPort, metricsPort} {
		conf := h.server.tls(file)
		if p.alpn != "" {
			conf.NextProtos = []string{p.alpn}
		}
		if in, _ := handshake(fmt.Sprintf("127.0.0.1:%d", h.server.ports[p.index]), conf); in {
			return what, "the port of " + p.name + " still lets it in"
		}
	}
	h.tally["revoked"]++
	var err error
	h.digest, err = h.look()
	if err != nil {
		return what, err.Error()
	}
	return what, ""
}
