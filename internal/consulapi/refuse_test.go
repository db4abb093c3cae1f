package consulapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/fault"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.run([]exchange{
		{"GET", "/v1/nope", "", 404, "Invalid URL path: not a recognized HTTP API endpoint"},
		{"GET", "/", "", 404, "Invalid URL path: not a recognized HTTP API endpoint"},
		{"GET", "/v1/kvx", "", 404, "Invalid URL path: not a recognized HTTP API endpoint"},
		{"GET", "/v1/agent/services/x", "", 404, "Invalid URL path: not a recognized HTTP API endpoint"},
		{"GET", "/v1/acl/policies", "", 401, "ACL support disabled"},
		{"PUT", "/v1/acl/bootstrap", "", 401, "ACL support disabled"},
		{"POST", "/v1/acl/rules/translate", "", 401, "ACL support disabled"},
		{"PUT", "/v1/agent/token/default", "{}", 401, "ACL support disabled"},
		{"GET", "/v1/connect/ca/roots", "", 500, "Connect must be enabled in order to use this endpoint"},
		{"GET", "/v1/agent/connect/ca/roots", "", 500, "Connect must be enabled in order to use this endpoint"},
		{"GET", "/v1/kv/x?ns=team", "", 400, `Invalid query parameter: "ns" - namespaces and partitions are an Enterprise feature; the only one is "default"`},
		{"GET", "/v1/kv/x?peer=other", "", 400, `Invalid query parameter: "peer" - cluster peering is not supported`},
		{"GET", "/v1/catalog/nodes?near=_agent", "", 400, `Invalid query parameter: "near" - this build keeps no network coordinates to sort by`},
		{"GET", "/v1/kv/x?a=%zz", "", 400, "Invalid query string"},
		{"PUT", "/v1/agent/reload", "", 501, "this agent was not started from configuration files: there is nothing to reload"},
		{"GET", "/v1/agent/members?wan=1", "", 400, "there is no WAN pool: this build knows one datacenter"},
	})
	if a := l.do("GET", "/v1/kv/x", "", "X-Consul-Namespace: team"); a.status != 400 {
		t.Errorf("namespace by header: %d", a.status)
	}
	for _, path := range []string{"/v1/query", "/v1/query/q1/execute", "/v1/connect/intentions", "/v1/agent/connect/ca/leaf/web", "/v1/catalog/connect/web", "/v1/health/connect/web",
		"/v1/config/service-defaults", "/v1/peerings", "/v1/snapshot", "/v1/coordinate/nodes", "/v1/operator/raft/configuration", "/v1/namespaces", "/v1/partitions",
		"/v1/agent/metrics", "/v1/agent/monitor", "/v1/agent/host", "/v1/internal/ui/services", "/v1/discovery-chain/web"} {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
			if a := l.do(method, path, ""); a.status != 501 || !strings.Contains(a.body, "does not") {
				t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
			}
		}
	}
}

// Every kind of fault has a status; what is over soon is 500, which the Go client's locks try again.
func TestFaults(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	want := map[fault.Kind]int{fault.Internal: 500, fault.Invalid: 400, fault.NotFound: 404, fault.Conflict: 409, fault.OutOfRange: 400, fault.Denied: 403,
		fault.Unauthenticated: 403, fault.Exhausted: 429, fault.Unavailable: 500, fault.Corrupt: 500, fault.Unsupported: 501}
	for _, kind := range fault.Kinds() {
		for _, hint := range []string{"", "do this"} {
			err := fault.New(kind, "some reason")
			if hint != "" {
				err = err.WithHint("%s", hint)
			}
			l.dir.mu.Lock()
			l.dir.err = fmt.Errorf("deeper: %w", err)
			l.dir.mu.Unlock()
			for _, a := range []answer{l.get("/v1/kv/x"), l.do("PUT", "/v1/kv/x", "v"), l.get("/v1/catalog/services?node-meta=a:b"), l.get("/v1/kv/x?index=5&wait=1s"),
				l.get("/v1/status/leader"), l.get("/v1/catalog/services?node-meta=a:b&index=1")} {
				status, known := want[kind]
				if !known || a.status != status {
					t.Errorf("%v: %d %s", kind, a.status, a.body)
				}
				text := "some reason"
				switch kind {
				case fault.Internal, fault.Corrupt:
					text = "internal error"
				case fault.Denied, fault.Unauthenticated:
					text = "Permission denied: some reason"
				}
				if hint != "" && text != "internal error" {
					text += ": " + hint
				}
				if a.body != text {
					t.Errorf("%v: %q, want %q", kind, a.body, text)
				}
			}
		}
	}
	if a := l.get("/v1/agent/self"); a.status != 200 {
		t.Errorf("agent/self without servers: %d %s", a.status, a.body)
	}
}

func TestRoots(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial := new(big.Int).SetBytes([]byte{9, 9, 1, 2, 3, 4, 5, 6, 7, 8})
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "holdfast root"}, SubjectKeyId: []byte{0xae, 0xc6}, NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	index := make(chan uint64, 1)
	index <- 7
	l := start(t, func(o *Options) {
		o.Roots = func(context.Context) (Roots, error) {
			now := <-index
			index <- now
			return Roots{Certificates: []*x509.Certificate{cert}, TrustDomain: "1111.consul", Index: now}, nil
		}
	})
	var got struct {
		ActiveRootID, TrustDomain string
		Roots                     []root
	}
	for _, path := range []string{"/v1/connect/ca/roots", "/v1/agent/connect/ca/roots"} {
		a := l.ok("GET", path, "")
		a.into(t, &got)
		if a.index(t) != 7 || a.header.Get("X-Consul-Knownleader") != "true" || len(got.Roots) != 1 || got.TrustDomain != "1111.consul" || got.ActiveRootID == "" {
			t.Fatalf("%v %s", a.header, a.body)
		}
		r := got.Roots[0]
		if !r.Active || r.ID != got.ActiveRootID || r.Name != "holdfast root" || r.SigningKeyID != "ae:c6" || r.SerialNumber != 0x0102030405060708 ||
			r.PrivateKeyType != "ec" || r.PrivateKeyBits != 256 || !strings.HasPrefix(r.RootCert, "-----BEGIN CERTIFICATE-----\n") || r.ExternalTrustDomain != "1111" {
			t.Errorf("%+v", r)
		}
	}
	if a := l.ok("GET", "/v1/connect/ca/roots?pem=true", ""); a.header.Get("Content-Type") != "application/pem-certificate-chain" || !strings.HasPrefix(a.body, "-----BEGIN") {
		t.Errorf("%v %s", a.header, a.body)
	}
	began := time.Now()
	if a := l.ok("GET", "/v1/connect/ca/roots?index=7&wait=300ms", ""); a.index(t) != 7 || time.Since(began) < 300*time.Millisecond {
		t.Errorf("did not block: %v", time.Since(began))
	}
	done := make(chan answer, 1)
	go func() { done <- l.get("/v1/connect/ca/roots?index=7&wait=60s") }()
	l.waiting(1)
	<-index
	index <- 8
	if a := <-done; a.index(t) != 8 {
		t.Errorf("index %d", a.index(t))
	}
}

// The agent's refusals carry Consul's words and a status.
func TestAgentErrors(t *testing.T) {
	t.Parallel()
	for kind, want := range map[fault.Kind]int{fault.Invalid: 400, fault.NotFound: 404, fault.Denied: 500, fault.Unsupported: 400, fault.Conflict: 409, fault.Unavailable: 500} {
		rec := newRecorder()
		(&call{w: rec, r: &http.Request{}}).fail(fmt.Errorf("deeper: %w", &agent.Error{Kind: kind, Text: "words", Hint: "hint"}))
		text := "words: hint"
		if kind == fault.Denied { // clients know the text about scripts as it is
			text = "words"
		}
		if rec.status != want || rec.body.String() != text {
			t.Errorf("%v: %d %s", kind, rec.status, rec.body.String())
		}
	}
}

type recorder struct {
	status int
	header http.Header
	body   strings.Builder
}

func newRecorder() *recorder { return &recorder{header: http.Header{}} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
