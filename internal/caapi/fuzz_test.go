package caapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/fuzztest/onemember"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
)

type plainSecrets struct{}

func (plainSecrets) Seal(_, _ string, secret []byte) ([]byte, error) { return secret, nil }
func (plainSecrets) Open(_, _ string, sealed []byte) ([]byte, error) { return sealed, nil }

const fuzzSwarm = "zz1b2c3d4e5f6g7h8i9j0k1l2"

// fuzzAuthority is the authority of a new cluster with one named authority, web, and a request that it would sign.
func fuzzAuthority(f *testing.F) (a *Authority, csr string) {
	admin := policy.NewHolder("admin", policy.Certificate{Issuer: "aa", Serial: "01"}, policy.RoleAdmin, true)
	a = New(Options{
		Core: onemember.Start(f), Secrets: plainSecrets{}, System: policy.NewSystem("authority"), Cluster: onemember.Cluster, Member: onemember.Member,
		Now: onemember.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler), Principal: func(context.Context) policy.Principal { return admin },
		Secret: func() []byte { return make([]byte, 32) }, Endpoints: func() []string { return []string{"127.0.0.1:2378"} },
		Recovery: func() (string, error) { return "code", nil },
		Status:   func(context.Context, policy.Principal) (any, error) { return struct{}{}, nil },
	})
	src := ca.Source{Now: onemember.Now(), Rand: rand.Reader}
	seed, err := NewSeed(src, onemember.Cluster)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(a.Establish(f.Context(), seed), a.Load(f.Context())); err != nil {
		f.Fatal(err)
	}
	if w := post(a.AdminHandler(), AdminPrefix+"ca/authorities", `{"name":"web","mode":"self-signed","key":"p256","subject":"/CN=Web CA"}`); w.Code != http.StatusOK {
		f.Fatalf("%d %s", w.Code, w.Body)
	}
	key, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	dn, err := ca.ParseDN("/CN=x")
	if err != nil {
		f.Fatal(err)
	}
	der, err := ca.NewLeafRequest(src, key, dn, []string{"x.example"})
	if err != nil {
		f.Fatal(err)
	}
	return a, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func post(h http.Handler, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, &http.Request{Method: http.MethodPost, URL: urlOf(path), Header: http.Header{}, Body: bodyOf(body), Host: "x"})
	return w
}

// FuzzAdmin: what an administrator's requests hold, and what comes to the public port. An answer is JSON; a refusal has a reason and is not
// ours to blame; what is certified is what ca allows.
func FuzzAdmin(f *testing.F) {
	a, csr := fuzzAuthority(f)
	admin, public := a.AdminHandler(), a.PublicHandler()
	base := AdminPrefix + "ca/authorities"
	paths := []string{base + "/web/sign", base + "/web/revoke", base + "/web/accept", base + "/client/sign", base + "/none/sign", AdminPrefix + "tokens", base, "/v1/join", base + "/web/certs"}
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return string(b)
	}
	f.Add(uint8(0), text(SignBody{Profile: "server", CSR: "@CSR@", Hosts: []string{"a.b"}}))
	f.Add(uint8(0), text(SignBody{Profile: "client", CSR: "@CSR@", Subject: "/CN=y"}))
	f.Add(uint8(1), text(RevokeBody{Serial: "01", Reason: "keyCompromise"}))
	f.Add(uint8(1), text(RevokeBody{CommonName: "x", Force: true}))
	f.Add(uint8(1), text(RevokeBody{Certificate: "@ROOT@"}))
	f.Add(uint8(2), text(AcceptBody{Chain: "@ROOT@"}))
	f.Add(uint8(3), text(SignBody{Profile: "client", CSR: "@CSR@"}))
	f.Add(uint8(5), `{"ttl":60}`)
	f.Add(uint8(6), `{"name":"wb","mode":"internal","key":"p256","subject":"/CN=x"}`)
	f.Add(uint8(6), `{"name":"ext","mode":"external","key":"p256","subject":"/CN=x"}`)
	f.Add(uint8(8), "from=01")
	f.Add(uint8(7), `{"token":"@TOKEN@","name":"n","peerURLs":["https://127.0.0.2:1"],"hosts":["n.example"],"peerCSR":"@DER@","serveCSR":"@DER@"}`)
	block, _ := pem.Decode([]byte(csr))
	if block == nil {
		f.Fatal("no request")
	}
	words := strings.NewReplacer("@CSR@", strings.ReplaceAll(csr, "\n", `\n`), "@DER@", base64.StdEncoding.EncodeToString(block.Bytes), "@ROOT@", strings.ReplaceAll(string(ca.EncodeCertificates(a.Root())), "\n", `\n`))
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		at, h := paths[int(path)%len(paths)], admin
		if at == "/v1/join" {
			h = public
		}
		if at == base && strings.Contains(body, "rsa") {
			return // makes a key, which takes a second
		}
		body = words.Replace(body) // keys and tokens differ from run to run; the corpus has words for them
		if strings.Contains(body, "@TOKEN@") {
			token, err := a.CreateToken(t.Context(), a.o.Principal(t.Context()), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			body = strings.ReplaceAll(body, "@TOKEN@", token.Text())
		}
		w := httptest.NewRecorder()
		if at == base+"/web/certs" {
			h.ServeHTTP(w, (&http.Request{Method: http.MethodGet, URL: &url.URL{Path: at, RawQuery: body}, Header: http.Header{}, Body: http.NoBody, Host: "x"}).WithContext(t.Context()))
		} else {
			w = post(h, at, body)
		}
		checkAnswer(t, at, body, w)
		if w.Code != http.StatusOK || at != base+"/web/sign" {
			return
		}
		var signed SignAnswer
		if err := json.Unmarshal(w.Body.Bytes(), &signed); err != nil {
			t.Fatal(err)
		}
		certs, err := ca.ParseCertificates([]byte(signed.Certificate))
		if err != nil || certs[0].IsCA || !certs[0].NotAfter.After(onemember.Now()) {
			t.Errorf("%q was answered by %s (%v)", body, signed.Certificate, err)
		}
	})
}

func checkAnswer(t *testing.T, at, body string, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code == http.StatusOK {
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %q: %s", at, body, w.Body)
		}
		return
	}
	err := DecodeFault(w.Code, w.Body.Bytes())
	if fault.From(err).Kind == fault.Internal || w.Code == http.StatusInternalServerError {
		t.Errorf("%s %q: %d %s", at, body, w.Code, w.Body)
	}
}

// FuzzCFSSL: what comes to the port that swarms use.
func FuzzCFSSL(f *testing.F) {
	a, csr := fuzzAuthority(f)
	manager := func(context.Context) (pkix.Name, bool) {
		return pkix.Name{Organization: []string{fuzzSwarm}, OrganizationalUnit: []string{swarmManager}}, true
	}
	h := a.CFSSLHandler("web", manager)
	const node = "0a1b2c3d4e5f6g7h8i9j0k1l2"
	request, err := json.Marshal(map[string]any{
		"hosts": []string{swarmWorker, node}, "certificate_request": "@CSR@", "profile": "", "label": "",
		"subject": map[string]any{"CN": node, "names": []map[string]string{{"O": fuzzSwarm, "OU": swarmWorker}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(request), true)
	f.Add(strings.Replace(string(request), `"label":""`, `"extensions":[{"id":"2.5.29.19","critical":true,"value":"30030101ff"}]`, 1), true)
	f.Add(`{}`, false)
	f.Add(`[`, true)
	f.Fuzz(func(t *testing.T, body string, sign bool) {
		at := cfsslPrefix + "info"
		if sign {
			at = cfsslPrefix + "sign"
		}
		w := post(h, at, strings.ReplaceAll(body, "@CSR@", strings.ReplaceAll(csr, "\n", `\n`)))
		var answer struct {
			Success bool
			Result  map[string]any
			Errors  []cfsslMessage
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Success != (len(answer.Errors) == 0) || w.Code == http.StatusInternalServerError {
			t.Fatalf("%q is answered %d %s (%v)", body, w.Code, w.Body, err)
		}
		if !sign || !answer.Success {
			return
		}
		text, _ := answer.Result["certificate"].(string)
		certs, err := ca.ParseCertificates([]byte(text))
		if err != nil || certs[0].IsCA || len(certs[0].Subject.Organization) != 1 || certs[0].Subject.Organization[0] != fuzzSwarm {
			t.Errorf("%q was answered by %s (%v)", body, text, err)
		}
	})
}

// FuzzRows: rows of the authority's space, and the answers that its clients get.
func FuzzRows(f *testing.F) {
	f.Add([]byte(authorityPrefix+"web"), []byte(`{"mode":"root","chain":["AA=="],"policy":{}}`))
	f.Add([]byte(heldByPrefix+"0000000000000abc/aa/01"), []byte(`{"reason":1}`))
	f.Add([]byte{}, []byte(`{"kind":1,"error":"x","hint":"y"}`))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		fuzztest.Bounded(t, len(key)+len(value), func() {
			kv := &mvcc.KV{Key: key, Value: value}
			if n, err := parseNamed(kv); err == nil && n == nil {
				t.Error("neither an authority nor an error")
			}
			if r, err := parseRevocation(kv); err == nil && r == nil {
				t.Error("neither a revocation nor an error")
			}
			if c, member, ok := parseHeldBy(key); ok {
				if span := heldBySpan(member); bytes.HasPrefix(key, span.Start) && string(key) != string(span.Start)+c.Issuer+"/"+c.Serial {
					t.Errorf("%q is %+v of %x", key, c, member)
				}
			}
			if DecodeFault(400, value) == nil {
				t.Error("an answer that is a refusal is no error")
			}
		})
	})
}

func urlOf(path string) *url.URL       { return &url.URL{Path: path} }
func bodyOf(body string) io.ReadCloser { return io.NopCloser(strings.NewReader(body)) }
