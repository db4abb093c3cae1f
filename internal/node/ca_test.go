package node_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// caller asks the administration of named authorities as somebody.
type caller struct {
	m    *member
	conf *tls.Config
}

func (m *member) authorities() caller { return caller{m, m.clientTLS()} }

// do returns the status and what an error says, reason and hint.
func (c caller) do(method, path string, body, into any) (int, string) {
	c.m.t.Helper()
	data, err := json.Marshal(body)
	check(c.m.t, err)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: c.conf, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	req, err := http.NewRequestWithContext(c.m.t.Context(), method, c.m.config.Listen.Client[0].String()+"/holdfast/v1/ca/authorities"+path, bytes.NewReader(data))
	check(c.m.t, err)
	resp, err := h.Do(req)
	check(c.m.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	check(c.m.t, err)
	if resp.StatusCode != http.StatusOK {
		var p struct{ Error, Hint string }
		check(c.m.t, json.Unmarshal(answer, &p))
		return resp.StatusCode, p.Error + ": " + p.Hint
	}
	if raw, ok := into.(*[]byte); ok {
		*raw = answer
	} else if into != nil {
		check(c.m.t, json.Unmarshal(answer, into))
	}
	return resp.StatusCode, ""
}

func (c caller) must(method, path string, body, into any) {
	c.m.t.Helper()
	if code, text := c.do(method, path, body, into); code != http.StatusOK {
		c.m.t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
}

// refused wants a status and an error that says each of wants.
func (c caller) refused(code int, path string, body any, wants ...string) {
	c.m.t.Helper()
	got, text := c.do(http.MethodPost, path, body, nil)
	if got != code {
		c.m.t.Errorf("%s %+v: %d %s, want %d", path, body, got, text, code)
	}
	for _, want := range wants {
		if !strings.Contains(text, want) {
			c.m.t.Errorf("%s %+v: %q does not say %q", path, body, text, want)
		}
	}
}

func signingRequest(t *testing.T, name string, hosts ...string) (string, crypto.Signer) {
	t.Helper()
	key, err := ca.GenerateKey(rand.Reader)
	check(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: hosts}, key)
	check(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), key
}

// certified has an authority certify a fresh key and returns TLS with it.
func (c caller) certified(authority, profile, name string, hosts ...string) (*tls.Config, *x509.Certificate) {
	c.m.t.Helper()
	csr, key := signingRequest(c.m.t, name, hosts...)
	var a caapi.SignAnswer
	c.must(http.MethodPost, "/"+authority+"/sign", caapi.SignBody{Profile: profile, CSR: csr}, &a)
	chain, err := ca.ParseCertificates([]byte(a.Certificate))
	check(c.m.t, err)
	conf := c.m.clientTLS()
	own := tls.Certificate{PrivateKey: key}
	for _, one := range chain {
		own.Certificate = append(own.Certificate, one.Raw)
	}
	conf.Certificates = []tls.Certificate{own}
	return conf, chain[0]
}

// list reads an authority's revocation list over the public port, as strangers do.
func (m *member) list(name string) (*x509.RevocationList, []byte) {
	m.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 10 * time.Second} //nolint:gosec // the list is signed
	resp, err := c.Get(m.config.Listen.Public[0].String() + "/v1/crl/" + name + ".crl")
	check(m.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	check(m.t, err)
	if resp.StatusCode != http.StatusOK {
		return nil, data
	}
	list, err := x509.ParseRevocationList(data)
	check(m.t, err)
	return list, data
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

// TestAuthorities: the three modes, who may ask, and what is refused.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	c := m.authorities()
	for _, path := range []string{"", "/x/sign", "/x/revoke", "/x/accept"} {
		client, _ := c.certified("client", "", "alice")
		stranger := caller{m, client}
		bodies := map[string]any{"": caapi.FoundBody{Name: "x", Mode: caapi.ModeInternal}, "/x/sign": caapi.SignBody{}, "/x/revoke": caapi.RevokeBody{Serial: "1"}, "/x/accept": caapi.AcceptBody{}}
		want := http.StatusForbidden
		if path == "/x/accept" {
			want = http.StatusBadRequest // its body is looked at first
		}
		stranger.refused(want, path, bodies[path])
		for _, get := range []string{"", "/client", "/client/certs", "/client/crl"} {
			if code, _ := stranger.do(http.MethodGet, get, nil, nil); code != http.StatusForbidden {
				t.Errorf("a client reads %q: %d", get, code)
			}
		}
	}
	for _, b := range []caapi.FoundBody{
		{Name: "", Mode: caapi.ModeInternal}, {Name: "A", Mode: caapi.ModeInternal}, {Name: "a/b", Mode: caapi.ModeInternal}, {Name: "-a", Mode: caapi.ModeInternal},
		{Name: "services", Mode: caapi.ModeInternal}, {Name: "x"}, {Name: "x", Mode: caapi.ModeRole}, {Name: "x", Mode: caapi.ModeExternal, Life: ca.Duration(time.Hour)},
		{Name: "x", Mode: caapi.ModeInternal, CRLURLs: []string{"ftp://x"}}, {Name: "x", Mode: caapi.ModeInternal, Subject: "CN=x"},
		{Name: "x", Mode: caapi.ModeInternal, Policy: &ca.Policy{}}, {Name: "x", Mode: caapi.ModeInternal, CRLLife: ca.Duration(time.Second)},
	} {
		c.refused(http.StatusBadRequest, "", b)
	}
	c.refused(http.StatusForbidden, "", caapi.FoundBody{Name: "x", Mode: caapi.ModeInternal, Key: "rsa1024"})
	c.refused(http.StatusConflict, "", caapi.FoundBody{Name: "member", Mode: caapi.ModeInternal})

	var inner, second, self, ext caapi.AuthorityInfo
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "inner", Mode: caapi.ModeInternal}, &inner)
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "second", Mode: caapi.ModeInternal, Key: "p384"}, &second)
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "self", Mode: caapi.ModeSelfSigned, Subject: "/O=Example/CN=Root"}, &self)
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "ext", Mode: caapi.ModeExternal, Subject: "/CN=ext"}, &ext)
	c.refused(http.StatusConflict, "", caapi.FoundBody{Name: "inner", Mode: caapi.ModeSelfSigned})
	chains := map[string][]*x509.Certificate{}
	for _, i := range []caapi.AuthorityInfo{inner, second, self} {
		chain, err := ca.ParseCertificates([]byte(i.Chain))
		check(t, err)
		chains[i.Name] = chain
	}
	// Both internal ones have one root, which is not that of the members.
	member, err := ca.ParseCertificates([]byte(info(c, "member").Chain))
	check(t, err)
	if root := chains["inner"][1]; !root.Equal(chains["second"][1]) || root.Equal(member[1]) || !ca.IsRoot(root) || len(chains["self"]) != 1 {
		t.Errorf("roots: %v, %v, %v", root.Subject, chains["second"][1].Subject, member[1].Subject)
	}
	csr, _ := signingRequest(t, "x", "x.example.com")
	c.refused(http.StatusForbidden, "/member/sign", caapi.SignBody{Profile: "server", CSR: csr}, "joining")
	c.refused(http.StatusForbidden, "/admin/sign", caapi.SignBody{Profile: "server", CSR: csr}, "no profile")
	c.refused(http.StatusForbidden, "/client/sign", caapi.SignBody{CSR: csr}, "no alternative names")
	c.refused(http.StatusNotFound, "/nobody/sign", caapi.SignBody{Profile: "server", CSR: csr}, "ca list")
	c.refused(http.StatusConflict, "/ext/sign", caapi.SignBody{Profile: "server", CSR: csr}, "ca accept ext")
	c.refused(http.StatusBadRequest, "/self/sign", caapi.SignBody{Profile: "server", CSR: "x"})

	// An outside CA certifies ext.
	block, _ := pem.Decode([]byte(ext.CSR))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	check(t, err)
	src := ca.Source{Now: time.Now(), Rand: rand.Reader}
	key, err := ca.GenerateKey(rand.Reader)
	check(t, err)
	top, err := ca.NewServicesRoot(src, key, 1, 1000*time.Hour)
	check(t, err)
	signed, err := ca.NewInternal(src, ca.Authority{Certificate: top, Signer: key}, request.PublicKey, ca.DN{{Name: "commonName", Value: "ext"}}, 500*time.Hour)
	check(t, err)
	c.refused(http.StatusBadRequest, "/ext/accept", caapi.AcceptBody{Chain: string(ca.EncodeCertificates(top, signed))}, "another key")
	c.refused(http.StatusBadRequest, "/self/accept", caapi.AcceptBody{Chain: string(ca.EncodeCertificates(signed, top))}, "not an external")
	c.must(http.MethodPost, "/ext/accept", caapi.AcceptBody{Chain: string(ca.EncodeCertificates(signed, top))}, &ext)
	_, leaf := c.certified("ext", "server", "x", "x.example.com")
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AddCert(top)
	between.AddCert(signed)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: "x.example.com"}); err != nil {
		t.Error(err)
	}
	renewed, err := ca.NewInternal(src, ca.Authority{Certificate: top, Signer: key}, request.PublicKey, ca.DN{{Name: "commonName", Value: "other"}}, 500*time.Hour)
	check(t, err)
	c.refused(http.StatusBadRequest, "/ext/accept", caapi.AcceptBody{Chain: string(ca.EncodeCertificates(renewed, top))}, "would lose its issuer")

	// Nothing that a named authority certifies opens a port of the cluster, whatever it calls itself.
	for _, name := range []string{"inner", "self", "ext"} {
		conf, _ := c.certified(name, "client", "admin")
		if err := alive(timeout(t), conf, m.config.Listen.Client[0].Host); err == nil {
			t.Errorf("a certificate of %s comes in", name)
		}
	}
	// What was founded is there after a restart.
	m.stop()
	m.start()
	_, leaf = m.authorities().certified("self", "client", "again")
	check(t, leaf.CheckSignatureFrom(chains["self"][0]))
}

func info(c caller, name string) (i caapi.AuthorityInfo) {
	c.m.t.Helper()
	c.must(http.MethodGet, "/"+name, nil, &i)
	return i
}

// TestSignTwice: the same request gets the same certificate for a while, also when many ask at once; anything else another.
func TestSignTwice(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	var ahead timeShift
	m.now = ahead.now
	m.start()
	c := m.authorities()
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "web", Mode: caapi.ModeSelfSigned}, nil)
	csr, _ := signingRequest(t, "x", "x.example.com")
	body := caapi.SignBody{Profile: "server", CSR: csr}
	serials := make([]string, 8)
	var work sync.WaitGroup
	for i := range serials {
		work.Go(func() {
			var a caapi.SignAnswer
			c.must(http.MethodPost, "/web/sign", body, &a)
			serials[i] = a.Serial
		})
	}
	work.Wait()
	for _, s := range serials {
		if s != serials[0] {
			t.Fatalf("%v", serials)
		}
	}
	sign := func(b caapi.SignBody) caapi.SignAnswer {
		t.Helper()
		var a caapi.SignAnswer
		c.must(http.MethodPost, "/web/sign", b, &a)
		return a
	}
	if a := sign(body); !a.Repeated || a.Serial != serials[0] {
		t.Errorf("again: %+v", a)
	}
	for name, b := range map[string]caapi.SignBody{
		"hosts":   {Profile: "server", CSR: csr, Hosts: []string{"y.example.com"}},
		"subject": {Profile: "server", CSR: csr, Subject: "/CN=y"},
		"profile": {Profile: "peer", CSR: csr},
		"life":    {Profile: "server", CSR: csr, Life: ca.Duration(time.Hour)},
	} {
		if a := sign(b); a.Repeated || a.Serial == serials[0] {
			t.Errorf("another %s: %+v", name, a)
		}
	}
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{Serial: serials[0]}, nil)
	after := sign(body)
	if after.Repeated || after.Serial == serials[0] {
		t.Errorf("a revoked certificate is handed out again: %+v", after)
	}
	ahead.add(2 * caapi.RepeatWindow)
	if a := sign(body); a.Repeated || a.Serial == after.Serial {
		t.Errorf("after the window: %+v", a)
	}
	ahead.add(2 * caapi.RepeatWindow)
	eventually(t, "requests are forgotten", func() bool { return m.node.RowsForTest(timeout(t), "request/") == 0 })
}

// timeShift is a clock that a test moves.
type timeShift struct {
	mu sync.Mutex
	by time.Duration
}

func (s *timeShift) now() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return time.Now().Add(s.by) }
func (s *timeShift) add(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.by += d
}

// TestRevoke: by serial number, file and name; twice, unknown, foreign; and the list that follows.
func TestRevoke(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	var ahead timeShift
	m.now = ahead.now
	m.start()
	c := m.authorities()
	for _, name := range []string{"web", "other"} {
		c.must(http.MethodPost, "", caapi.FoundBody{Name: name, Mode: caapi.ModeSelfSigned}, nil)
	}
	if list, _ := m.list("web"); list == nil || len(list.RevokedCertificateEntries) != 0 {
		t.Fatal("a new authority has no empty list")
	}
	_, a := c.certified("web", "client", "a")
	_, b1 := c.certified("web", "client", "b")
	_, b2 := c.certified("web", "client", "b")
	_, foreign := c.certified("other", "client", "f")
	serial := a.SerialNumber.Text(16)
	c.refused(http.StatusNotFound, "/web/revoke", caapi.RevokeBody{Serial: "1234"}, "ca certs web")
	c.refused(http.StatusNotFound, "/web/revoke", caapi.RevokeBody{Serial: foreign.SerialNumber.Text(16)}, "authority other")
	c.refused(http.StatusNotFound, "/web/revoke", caapi.RevokeBody{Certificate: string(ca.EncodeCertificates(foreign))}, "not by the authority web")
	c.refused(http.StatusNotFound, "/web/revoke", caapi.RevokeBody{CommonName: "nobody"}, "nobody")
	c.refused(http.StatusNotFound, "/none/revoke", caapi.RevokeBody{Serial: serial})
	c.refused(http.StatusBadRequest, "/web/revoke", caapi.RevokeBody{})
	c.refused(http.StatusBadRequest, "/web/revoke", caapi.RevokeBody{Serial: serial, CommonName: "a"})
	c.refused(http.StatusBadRequest, "/web/revoke", caapi.RevokeBody{Serial: "xyz"}, "hexadecimal")
	c.refused(http.StatusBadRequest, "/web/revoke", caapi.RevokeBody{Serial: serial, Reason: "certificateHold"}, "certificateHold")
	var out caapi.RevokeAnswer
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{Serial: "0x0" + strings.ToUpper(serial), Reason: "keycompromise"}, &out)
	if len(out.Revoked) != 1 || out.Revoked[0].Already || out.Revoked[0].Serial != serial || out.Revoked[0].Reason != "keyCompromise" {
		t.Errorf("%+v", out)
	}
	first := out.Revoked[0].At
	ahead.add(5 * time.Second)
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{Certificate: string(ca.EncodeCertificates(a)), Reason: "superseded"}, &out)
	if r := out.Revoked[0]; !r.Already || !r.At.Equal(first) || r.Reason != "keyCompromise" {
		t.Errorf("the second time: %+v", out)
	}
	list, _ := m.list("web")
	if list.Number.Cmp(big.NewInt(2)) != 0 || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].ReasonCode != 1 {
		t.Errorf("number %v, %v", list.Number, list.RevokedCertificateEntries)
	}
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{CommonName: "b"}, &out)
	if len(out.Revoked) != 2 {
		t.Errorf("by name: %+v", out)
	}
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{CommonName: "b"}, &out)
	if len(out.Revoked) != 0 {
		t.Errorf("by name again: %+v", out)
	}
	list, data := m.list("web")
	var names []string
	for _, e := range list.RevokedCertificateEntries {
		names = append(names, e.SerialNumber.Text(16))
	}
	if list.Number.Cmp(big.NewInt(3)) != 0 || len(names) != 3 || !strings.Contains(fmt.Sprint(names), b1.SerialNumber.Text(16)) || !strings.Contains(fmt.Sprint(names), b2.SerialNumber.Text(16)) {
		t.Errorf("number %v, %v", list.Number, names)
	}
	own, err := ca.ParseCertificates([]byte(info(c, "web").Chain))
	check(t, err)
	check(t, list.CheckSignatureFrom(own[0]))
	if list, _ := m.list("other"); len(list.RevokedCertificateEntries) != 0 {
		t.Error("the list of one issuer holds another's")
	}
	var admin []byte
	c.must(http.MethodGet, "/web/crl", nil, &admin)
	if !bytes.Equal(admin, data) {
		t.Error("two lists of one number")
	}
	for _, path := range []string{"nobody", "..%2fx", "services"} {
		if list, _ := m.list(path); list != nil {
			t.Errorf("a list of %s", path)
		}
	}
	var page caapi.IssuedPage
	c.must(http.MethodGet, "/web/certs?pem=1", nil, &page)
	if len(page.Certificates) != 3 || page.Certificates[0].Status != "revoked" || page.Certificates[0].PEM == "" || page.Certificates[0].By != "admin" || page.Certificates[0].Profile != "client" {
		t.Errorf("index: %+v", page)
	}
	ahead.add(4 * 24 * time.Hour) // more than half of a list's life
	eventually(t, "the list is renewed", func() bool { list, _ := m.list("web"); return list.Number.Cmp(big.NewInt(4)) == 0 })
}

// TestRevokeRoles: the last admin and the majority are spared, unless one insists; the way back in is the member's own host.
func TestRevokeRoles(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	var ahead timeShift
	m.now = ahead.now
	m.start()
	c := m.authorities()
	only := leafOf(t, c.conf)
	c.refused(http.StatusConflict, "/admin/revoke", caapi.RevokeBody{Serial: only.SerialNumber.Text(16)}, "no admin would be left", "--force")
	var page caapi.IssuedPage
	c.must(http.MethodGet, "/member/certs", nil, &page)
	peer := ""
	for _, i := range page.Certificates {
		if i.Profile == "peer" {
			peer = i.Serial
		}
	}
	c.refused(http.StatusConflict, "/member/revoke", caapi.RevokeBody{Serial: peer}, "too few members", "0 of 1")
	conf, second := c.certified("admin", "", "second")
	other := caller{m, conf}
	other.must(http.MethodPost, "/admin/revoke", caapi.RevokeBody{Serial: only.SerialNumber.Text(16)}, nil)
	other.refused(http.StatusConflict, "/admin/revoke", caapi.RevokeBody{CommonName: "second"}, "no admin would be left")
	if err := alive(timeout(t), c.conf, m.config.Listen.Client[0].Host); err == nil {
		t.Error("the first admin comes in again")
	}
	ahead.add(2 * time.Minute)
	eventually(t, "the member's own host has a new admin certificate", func() bool { return !leafOf(t, m.clientTLS()).Equal(only) })
	c = m.authorities()
	c.must(http.MethodPost, "/admin/revoke", caapi.RevokeBody{Certificate: string(ca.EncodeCertificates(second))}, nil)
	c.refused(http.StatusConflict, "/admin/revoke", caapi.RevokeBody{CommonName: "admin"}, "no admin would be left")
	put(t, m.client(), "k", "v")
}

func leafOf(t *testing.T, conf *tls.Config) *x509.Certificate {
	t.Helper()
	own := conf.Certificates
	if len(own) == 0 {
		pair, err := conf.GetClientCertificate(&tls.CertificateRequestInfo{})
		check(t, err)
		own = []tls.Certificate{*pair}
	}
	leaf, err := x509.ParseCertificate(own[0].Certificate[0])
	check(t, err)
	return leaf
}

// TestEnrol: an edge may have a named authority certify, and none of the cluster's own; a principal whose certificate was
// revoked gets nothing.
func TestEnrol(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	c := m.authorities()
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "web", Mode: caapi.ModeSelfSigned}, nil)
	who := policy.Certificate{Issuer: "ab", Serial: "12"}
	csr, _ := signingRequest(t, "x", "x.example.com")
	r := caapi.SignRequest{Authority: "web", Profile: "server", CSR: []byte(csr)}
	if _, err := m.node.EnrolForTest(timeout(t), who, r); err != nil {
		t.Error(err)
	}
	for name := range map[string]bool{"admin": true, "client": true, "member": true, "agent": true} {
		r := r
		r.Authority, r.Profile = name, name
		if _, err := m.node.EnrolForTest(timeout(t), who, r); err == nil {
			t.Errorf("%s enrols", name)
		}
	}
	check(t, m.node.RevokeForTest(timeout(t), who))
	csr, _ = signingRequest(t, "y", "y.example.com")
	r.CSR = []byte(csr)
	if _, err := m.node.EnrolForTest(timeout(t), who, r); err == nil || err.Error() != state.ErrRevoked.Error() {
		t.Errorf("a revoked principal: %v", err)
	}
}

// TestMemberRevocation: three members; the one whose certificates are revoked is cut off by its peers, the others go on; a
// member that is removed has its certificates revoked; and every member writes the same list.
func TestMemberRevocation(t *testing.T) {
	t.Parallel()
	members := []*member{server(t, "one"), server(t, "two"), server(t, "three")}
	members[0].start()
	for _, m := range members[1:] {
		m.config.Join = members[0].token()
		m.start()
	}
	one, two, three := members[0], members[1], members[2]
	c := one.authorities()
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "web", Mode: caapi.ModeSelfSigned}, nil)
	_, leaf := c.certified("web", "client", "x")
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{Certificate: string(ca.EncodeCertificates(leaf))}, nil)
	_, want := one.list("web")
	for _, m := range members[1:] {
		eventually(t, "the same list on "+m.config.Name, func() bool { _, got := m.list("web"); return bytes.Equal(got, want) })
	}
	held := func(name string) (serials []string) {
		t.Helper()
		var page caapi.IssuedPage
		c.must(http.MethodGet, "/member/certs", nil, &page)
		for _, i := range page.Certificates {
			if strings.Contains(i.Subject, "/CN="+name) && i.Profile == "peer" {
				serials = append(serials, i.Serial)
			}
		}
		return serials
	}
	c.must(http.MethodPost, "/member/revoke", caapi.RevokeBody{Serial: held("three")[0]}, nil)
	c.refused(http.StatusConflict, "/member/revoke", caapi.RevokeBody{Serial: held("two")[0]}, "too few members", "1 of 3")
	put(t, one.client(), "k", "v")
	wantKey(t, two.client(), "k", "v")
	lonely := connect(t, clientv3.Config{Endpoints: three.config.Listen.Client.Strings(), TLS: three.clientTLS()})
	eventually(t, "the revoked member is alone", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := lonely.Put(ctx, "k", "from three")
		return err != nil
	})
	wantKey(t, one.client(), "k", "v")

	list, err := one.client().MemberList(timeout(t))
	check(t, err)
	for _, m := range list.Members {
		if m.Name == "three" {
			_, err := one.client().MemberRemove(timeout(t), m.ID)
			check(t, err)
		}
	}
	eventually(t, "the removed member's certificates are revoked", func() bool {
		var page caapi.IssuedPage
		c.must(http.MethodGet, "/member/certs", nil, &page)
		revoked := 0
		for _, i := range page.Certificates {
			if i.Status == "revoked" {
				if !strings.Contains(i.Subject, "/CN=three") {
					t.Fatalf("somebody else's: %+v", i)
				}
				revoked++
			}
		}
		return revoked == 2
	})
	put(t, two.client(), "k2", "v2")
}

// stuck is a reader who never takes what is written.
type stuck struct {
	http.ResponseWriter
	reading, release chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.reading <- struct{}{}
	<-s.release
	return len(b), nil
}

// slowReaders: strangers who ask for a list and do not take it keep nobody from it.
func slowReaders(t *testing.T, m *member) {
	t.Helper()
	ask := func(w http.ResponseWriter) {
		m.node.PublicHandlerForTest().ServeHTTP(w, httptest.NewRequestWithContext(timeout(t), http.MethodGet, "/v1/crl/web.crl", nil))
	}
	reading, release := make(chan struct{}), make(chan struct{})
	var readers sync.WaitGroup
	for range 16 {
		readers.Go(func() { ask(&stuck{httptest.NewRecorder(), reading, release}) })
	}
	for range 16 {
		select {
		case <-reading:
		case <-time.After(10 * time.Second):
			t.Error("a list waits for somebody who does not take his")
		}
	}
	w := httptest.NewRecorder()
	ask(w)
	if list, err := x509.ParseRevocationList(w.Body.Bytes()); w.Code != http.StatusOK || err != nil || len(list.RevokedCertificateEntries) == 0 {
		t.Errorf("beside slow readers: %d, %v", w.Code, err)
	}
	close(release)
	readers.Wait()
}

// TestManyCertificates: more than one page of an index, more than one transaction of revocations, more than one page of a list.
func TestManyCertificates(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	c := m.authorities()
	c.must(http.MethodPost, "", caapi.FoundBody{Name: "web", Mode: caapi.ModeSelfSigned}, nil)
	const many = 620
	for i := range many {
		csr, _ := signingRequest(t, "many")
		who := policy.Certificate{Issuer: "ab", Serial: fmt.Sprintf("%x", i+1)}
		_, err := m.node.EnrolForTest(timeout(t), who, caapi.SignRequest{Authority: "web", Profile: "client", CSR: []byte(csr)})
		check(t, err)
	}
	_, spared := c.certified("web", "client", "spared")
	var out caapi.RevokeAnswer
	c.must(http.MethodPost, "/web/revoke", caapi.RevokeBody{CommonName: "many"}, &out)
	if len(out.Revoked) != many {
		t.Errorf("revoked %d", len(out.Revoked))
	}
	list, _ := m.list("web")
	// The first list is empty. What revokes takes 50 at a time and makes one list at its end, but the clock of the authority may
	// find the list stale in between: each list then has more lines than the one before.
	if n := list.Number.Int64(); len(list.RevokedCertificateEntries) != many || n < 2 || n > 1+(many+49)/50 {
		t.Errorf("number %v, %d lines", list.Number, len(list.RevokedCertificateEntries))
	}
	slowReaders(t, m)
	seen, revoked, pages := map[string]bool{}, 0, 0
	for from := "?"; from != ""; pages++ {
		var page caapi.IssuedPage
		c.must(http.MethodGet, "/web/certs"+from, nil, &page)
		for _, i := range page.Certificates {
			seen[i.Serial] = true
			if i.Status == "revoked" {
				revoked++
			}
		}
		if from = page.Next; from != "" {
			from = "?from=" + from
		}
	}
	if len(seen) != many+1 || revoked != many || pages != 2 || !seen[spared.SerialNumber.Text(16)] {
		t.Errorf("%d certificates, %d revoked, %d pages", len(seen), revoked, pages)
	}
}
