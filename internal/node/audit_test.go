package node_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/node"
)

// record reads the audit record of a stopped member.
func (m *member) record() (events []audit.Event) {
	m.t.Helper()
	d, err := node.OpenDirectory(m.config, m.env())
	check(m.t, err)
	_, err = d.Audit(func(e audit.Event) error { events = append(events, e); return nil })
	check(m.t, err)
	check(m.t, d.Close())
	return events
}

// TestAuthorityIsRecorded: certificates, join tokens, recovery codes and refused handshakes are in the audit record.
func TestAuthorityIsRecorded(t *testing.T) {
	t.Parallel()
	one, two, other := server(t, "one"), server(t, "two"), server(t, "other")
	one.start()
	secret := one.token()
	two.config.Join = secret
	two.start()
	var recovery struct{ Code string }
	if code := one.admin(http.MethodPost, "recovery", "{}", &recovery); code != http.StatusOK {
		t.Fatalf("no recovery code: %d", code)
	}
	client, _ := one.as(ca.Request{Profile: ca.ClientProfile, CommonName: "reader"})
	other.start()
	foreign := other.clientTLS()
	foreign.RootCAs = one.clientTLS().RootCAs
	own := foreign.Certificates
	if len(own) == 0 {
		c, err := foreign.GetClientCertificate(&tls.CertificateRequestInfo{Version: tls.VersionTLS13, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.Ed25519}})
		check(t, err)
		own = []tls.Certificate{*c}
	}
	foreign.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own[0], nil } // asked for or not
	at := one.config.Listen.Client[0].String()
	for _, path := range []string{"tokens", "recovery"} {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: client, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := c.Post(at+"/holdfast/v1/"+path, "application/json", strings.NewReader("{}"))
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: foreign, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	if resp, err := c.Get(at + "/version"); err == nil {
		resp.Body.Close()
		t.Errorf("a foreign certificate came in: %s", resp.Status)
	}
	one.logs("rejected connection on client endpoint")
	two.stop()
	one.stop()
	events := one.record()
	for _, want := range []struct{ action, who, subject, outcome string }{
		{"certificate issue", "", `peer certificate `, "asked"},
		{"certificate issue", "", `of "two"`, "asked"},
		{"certificate issue", "", `of "reader"`, "asked"},
		{"certificate issue", "", `admin certificate `, "asked"},
		{"join token create", "admin", "", "asked"},
		{"join token create", "reader", "", "permission denied"},
		{"join token use", "", " for the key ", "asked"},
		{"recovery code create", "admin", "member ", "asked"},
		{"recovery code create", "reader", "", "permission denied"},
		{"handshake", "admin", "client side, from 127.0.0.1:", ""},
	} {
		found := false
		for _, e := range events {
			found = found || e.Action == want.action && strings.Contains(e.Who, want.who) && strings.Contains(e.Subject, want.subject) &&
				(want.outcome == "" || e.Outcome == want.outcome) && (want.who == "" || e.Certificate != "")
		}
		if !found {
			t.Errorf("no %+v", want)
		}
	}
	for _, e := range events {
		for _, s := range []string{e.Subject, e.Outcome, e.Who} {
			if strings.Contains(s, secret) || strings.Contains(s, recovery.Code) {
				t.Errorf("a secret is in the record: %+v", e)
			}
		}
		if t.Failed() {
			t.Logf("%+v", e)
		}
	}
}

// TestAuthorityUnrecorded: what cannot be recorded is not done.
func TestAuthorityUnrecorded(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	slots, token := m.node.SlotsForTest(), m.token()
	check(t, m.node.CloseRecordForTest())
	for _, path := range []string{"tokens", "recovery"} {
		if code := m.admin(http.MethodPost, path, "{}", nil); code < 500 {
			t.Errorf("%s without a record: %d", path, code)
		}
	}
	if n := m.node.SlotsForTest(); n != slots {
		t.Errorf("the keyring has %d slots, had %d", n, slots)
	}
	if _, err := m.node.IssueForTest(timeout(t), ca.Request{Profile: ca.AdminProfile, CommonName: "x"}); err == nil || !strings.Contains(err.Error(), "audit") {
		t.Errorf("a certificate without a record: %v", err)
	}
	if err := m.node.ClaimForTest(timeout(t), token); err == nil || !strings.Contains(err.Error(), "audit") {
		t.Errorf("a join without a record: %v", err)
	}
}
