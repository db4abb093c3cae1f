package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kms "k8s.io/kms/apis/v2"
)

// authorityLoads are those that speak to the authorities and to the key management.
type authorityLoads struct {
	h       *house
	issued  *ledger // common name -> PEM of the certificate
	revoked *ledger // serial -> ""
	nodes   *ledger // of the swarm: common name -> PEM
	founded *ledger // name -> its certificate, PEM
	sealed  *ledger // plaintext -> key id and ciphertext
	cluster string  // id of the swarm
	swarm   []*http.Client
	plugin  kms.KeyManagementServiceClient
	rotated atomic.Int64
	kms     *task

	mu      sync.Mutex
	serials []string // issued and not revoked
	first   string   // of the first manager, which bootstrap had certified
}

func newAuthorityLoads(h *house) *authorityLoads {
	t := h.t
	a := &authorityLoads{h: h, issued: newLedger(), revoked: newLedger(), nodes: newLedger(), founded: newLedger(), sealed: newLedger()}
	h.must("ca", "init", "house", "--mode", "self-signed", "--subject", "/O=Example/CN=House", "--profiles", "etcd-client")
	h.must("ca", "init", "inner")
	h.must("ca", "init", "outer", "--mode", "external", "--csr-out", filepath.Join(h.given, "outer.csr"))
	h.must("ca", "init", "swarm", "--mode", "self-signed", "--profiles", "swarm-node,server")
	dir := filepath.Join(h.given, "swarm")
	var made struct{ Cluster, Serial string }
	check(t, json.Unmarshal([]byte(h.must("swarm", "bootstrap", "swarm", "--url", loopback(h.cfssl[0]), "--dir", dir, "--output", "json")), &made))
	a.cluster, a.first = made.Cluster, made.Serial
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "swarm-node.crt"), filepath.Join(dir, "swarm-node.key"))
	check(t, err)
	h.noteKey("swarm manager", cert.PrivateKey)
	root, err := os.ReadFile(filepath.Join(dir, "swarm-root-ca.crt"))
	check(t, err)
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: poolOf(t, root), MinVersion: tls.VersionTLS12}
	for i := range houseSize {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: conf.Clone()}, Timeout: 10 * time.Second}
		t.Cleanup(c.CloseIdleConnections)
		a.swarm = append(a.swarm, c)
		if !h.members[i].log.wait("serving a certificate authority over CFSSL", 60*time.Second) {
			t.Fatalf("member %d does not serve CFSSL:\n%s", i, tail(h.members[i].log.String()))
		}
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(h.given, "kms.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	a.plugin = kms.NewKeyManagementServiceClient(conn)
	return a
}

func poolOf(t testing.TB, data []byte) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		t.Fatal("no certificate")
	}
	return pool
}

func (a *authorityLoads) loads() []*task {
	a.kms = &task{name: "kms", pause: 5 * time.Millisecond, step: a.seal, verify: a.verifySealed}
	return []*task{
		{name: "ca issue", pause: 10 * time.Millisecond, step: a.issue, verify: a.verifyIssued},
		{name: "ca revoke", pause: 50 * time.Millisecond, step: a.revoke, verify: a.verifyRevoked},
		{name: "cfssl sign", pause: 20 * time.Millisecond, step: a.enrol, verify: a.verifyNodes},
		{name: "ca found", pause: 300 * time.Millisecond, step: a.found, verify: a.verifyFounded},
		a.kms,
	}
}

// found makes authorities: their keys are secrets that members share.
func (a *authorityLoads) found(ctx context.Context, n int) error {
	name := fmt.Sprintf("f-%d", n) // names of authorities are in logs and URLs
	var answer struct{ Chain string }
	err := a.h.onAdmin(ctx, n%houseSize, http.MethodPost, "ca/authorities", map[string]string{"name": name, "mode": "self-signed", "subject": "/O=org-" + a.h.mark + "/CN=f-" + a.h.mark}, &answer)
	return a.founded.wrote(name, firstBlock(answer.Chain), err)
}

// verifyFounded also has some of them sign: their keys open.
func (a *authorityLoads) verifyFounded(t testing.TB, ctx context.Context, who int) {
	var list struct {
		Authorities []struct{ Name, Chain string }
	}
	check(t, a.h.onAdmin(ctx, who, http.MethodGet, "ca/authorities", nil, &list))
	have := map[string]string{}
	for _, n := range list.Authorities {
		if !strings.HasPrefix(n.Name, "f-") {
			continue
		}
		if _, twice := have[n.Name]; twice {
			t.Errorf("the authority %s is there twice", n.Name)
		}
		have[n.Name] = firstBlock(n.Chain)
		if len(have) > 8 {
			continue
		}
		var answer struct{ Certificate string }
		err := a.h.onAdmin(ctx, who, http.MethodPost, "ca/authorities/"+n.Name+"/sign", map[string]any{"profile": "client", "csr": request(pkix.Name{CommonName: "x"})}, &answer)
		check(t, err)
		if err := parseLeaf(t, answer.Certificate).CheckSignatureFrom(parseLeaf(t, n.Chain)); err != nil {
			t.Errorf("%s signs with another key than its own on member %d: %v", n.Name, who, err)
		}
	}
	matches(t, fmt.Sprintf("ca found, member %d", who), a.founded, have)
}

// request makes a key that is thrown away and a signing request.
func request(subject pkix.Name) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// again asks with ask, and if there was no answer once more another member: the same request gets the same certificate.
func again(ctx context.Context, n int, ask func(context.Context, int) error) error {
	first, done := context.WithTimeout(ctx, 4*time.Second)
	err := ask(first, n%houseSize)
	done()
	if err == nil {
		return nil
	}
	return ask(ctx, (n+1)%houseSize)
}

func (a *authorityLoads) issue(ctx context.Context, n int) error {
	name := fmt.Sprintf("cn-%s-%d", a.h.mark, n)
	body := map[string]any{"profile": "etcd-client", "csr": request(pkix.Name{CommonName: name, OrganizationalUnit: []string{"ou-" + a.h.mark}, Organization: []string{"org-" + a.h.mark}})}
	var answer struct{ Certificate, Serial string }
	err := again(ctx, n, func(ctx context.Context, member int) error {
		return a.h.onAdmin(ctx, member, http.MethodPost, "ca/authorities/house/sign", body, &answer)
	})
	if err != nil {
		return a.issued.wrote(name, "", err)
	}
	leaf := parseLeaf(a.h.t, answer.Certificate)
	if leaf.SerialNumber.Text(16) != answer.Serial || leaf.Subject.CommonName != name || fmt.Sprint(leaf.Subject.OrganizationalUnit) != "[ou-"+a.h.mark+"]" {
		a.h.t.Errorf("asked for %s, got %s %v", name, answer.Serial, leaf.Subject)
	}
	a.mu.Lock()
	a.serials = append(a.serials, answer.Serial)
	a.mu.Unlock()
	return a.issued.wrote(name, firstBlock(answer.Certificate), nil)
}

func parseLeaf(t testing.TB, text string) *x509.Certificate {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Errorf("no certificate: %q", text)
		return &x509.Certificate{}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Error(err)
		return &x509.Certificate{}
	}
	return leaf
}

func firstBlock(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	return string(pem.EncodeToMemory(block))
}

// revoke revokes what was issued, with every third left as it is.
func (a *authorityLoads) revoke(ctx context.Context, n int) error {
	a.mu.Lock()
	if len(a.serials) < 3 {
		a.mu.Unlock()
		return errors.New("nothing was issued that could be revoked")
	}
	serial := a.serials[0]
	a.serials = a.serials[3:]
	a.mu.Unlock()
	err := a.h.onAdmin(ctx, n%houseSize, http.MethodPost, "ca/authorities/house/revoke", map[string]string{"serial": serial, "reason": "superseded"}, nil)
	return a.revoked.wrote(serial, "superseded", err)
}

// enrol has a node of the swarm certified as the manager that leads does.
func (a *authorityLoads) enrol(ctx context.Context, n int) error {
	node := fmt.Sprintf("%s%012d", a.h.mark, n) // 25 digits and letters, as swarms have them
	body := map[string]any{
		"hosts": []string{"swarm-worker", node}, "certificate_request": request(pkix.Name{}),
		"subject": map[string]any{"CN": node, "names": []map[string]string{{"O": a.cluster, "OU": "swarm-worker"}}},
	}
	var answer struct {
		Success bool
		Result  struct{ Certificate string }
		Errors  []struct{ Message string }
	}
	err := again(ctx, n, func(ctx context.Context, member int) error {
		_, err := ask(ctx, a.swarm[member], http.MethodPost, loopback(a.h.cfssl[member])+"/api/v1/cfssl/sign", body, &answer)
		return err
	})
	if err == nil && !answer.Success {
		a.h.t.Errorf("CFSSL refuses: %v", answer.Errors)
		err = errors.New("refused")
	}
	return a.nodes.wrote(node, firstBlock(answer.Result.Certificate), err)
}

// seal encrypts through the plugin, decrypts an earlier one, and now and then has the key rotated.
func (a *authorityLoads) seal(ctx context.Context, n int) error {
	if n%25 == 24 {
		var status struct {
			KeyID  string
			Number int64
		}
		if err := a.h.onAdmin(ctx, n%houseSize, http.MethodPost, "kms/rotate", struct{}{}, &status); err != nil {
			return err
		}
		if before := a.rotated.Swap(status.Number); status.Number <= before {
			a.h.t.Errorf("a rotation made key %d, after %d", status.Number, before)
		}
		return nil
	}
	plain := fmt.Sprintf("plain-%s-%d", a.h.mark, n)
	answer, err := a.plugin.Encrypt(ctx, &kms.EncryptRequest{Plaintext: []byte(plain), Uid: "u"})
	if err != nil {
		return a.sealed.wrote(plain, "", err)
	}
	a.sealed.wrote(plain, answer.KeyId+" "+string(answer.Ciphertext), nil)
	back, err := a.plugin.Decrypt(ctx, &kms.DecryptRequest{Ciphertext: answer.Ciphertext, KeyId: answer.KeyId, Uid: "u"})
	if err == nil && string(back.Plaintext) != plain {
		a.h.t.Errorf("%q was encrypted, %q decrypted", plain, back.Plaintext)
	}
	return err
}

// issuedInfo is a row of an authority's index on the wire.
type issuedInfo struct{ Serial, Status, Subject, Reason, PEM string }

// index reads the whole index of an authority through a member.
func (a *authorityLoads) index(t testing.TB, ctx context.Context, who int, name string) (all []issuedInfo) {
	t.Helper()
	for from := ""; ; {
		var page struct {
			Certificates []issuedInfo
			Next         string
		}
		check(t, a.h.onAdmin(ctx, who, http.MethodGet, "ca/authorities/"+name+"/certs?pem&from="+url.QueryEscape(from), nil, &page))
		all = append(all, page.Certificates...)
		if from = page.Next; from == "" {
			break
		}
	}
	return all
}

// certificates checks the index of an authority against its own certificates, and returns them by common name.
func (a *authorityLoads) certificates(t testing.TB, ctx context.Context, who int, name string) map[string]string {
	t.Helper()
	var info struct{ Chain string }
	check(t, a.h.onAdmin(ctx, who, http.MethodGet, "ca/authorities/"+name, nil, &info))
	issuer := parseLeaf(t, info.Chain)
	serials, have := map[string]bool{}, map[string]string{}
	for _, c := range a.index(t, ctx, who, name) {
		leaf := parseLeaf(t, c.PEM)
		if leaf.SerialNumber.Text(16) != c.Serial || !strings.Contains(c.Subject, "/CN="+leaf.Subject.CommonName) {
			t.Errorf("the index of %s says %s %s of a certificate with %s %s", name, c.Serial, c.Subject, leaf.SerialNumber.Text(16), leaf.Subject)
		}
		if err := leaf.CheckSignatureFrom(issuer); err != nil {
			t.Errorf("certificate %s of %s: %v", c.Serial, name, err)
		}
		if serials[c.Serial] {
			t.Errorf("serial %s of %s is there twice", c.Serial, name)
		}
		listener := len(leaf.Subject.OrganizationalUnit) == 0 // of CFSSL: a new one at each start
		if _, twice := have[leaf.Subject.CommonName]; twice && !listener {
			t.Errorf("%s has two certificates for one request of %s", leaf.Subject.CommonName, name)
		}
		serials[c.Serial], have[leaf.Subject.CommonName] = true, firstBlock(c.PEM)
	}
	return have
}

// matches compares, where what has no answer may be any certificate.
func matches(t testing.TB, what string, l *ledger, have map[string]string) {
	t.Helper()
	l.mu.Lock()
	for name := range l.maybe {
		if text, ok := have[name]; ok {
			l.maybe[name] = text
		}
	}
	l.mu.Unlock()
	l.compare(t, what, have)
}

func (a *authorityLoads) verifyIssued(t testing.TB, ctx context.Context, who int) {
	matches(t, fmt.Sprintf("ca issue, member %d", who), a.issued, a.certificates(t, ctx, who, "house"))
}

func (a *authorityLoads) verifyNodes(t testing.TB, ctx context.Context, who int) {
	have := a.certificates(t, ctx, who, "swarm")
	for name, text := range have {
		leaf := parseLeaf(t, text)
		if leaf.SerialNumber.Text(16) == a.first || len(leaf.Subject.OrganizationalUnit) == 0 { // the first manager's, and what CFSSL's own listeners show
			delete(have, name)
		}
	}
	matches(t, fmt.Sprintf("cfssl sign, member %d", who), a.nodes, have)
}

func (a *authorityLoads) verifyRevoked(t testing.TB, ctx context.Context, who int) {
	have := map[string]string{}
	for _, c := range a.index(t, ctx, who, "house") {
		if c.Status == "revoked" {
			have[c.Serial] = c.Reason
		}
	}
	a.revoked.compare(t, fmt.Sprintf("ca revoke, member %d", who), have)
	var list []byte
	_, err := ask(ctx, a.h.web[who], http.MethodGet, a.h.endpoint(who)+"/holdfast/v1/ca/authorities/house/crl", nil, &list)
	check(t, err)
	crl, err := x509.ParseRevocationList(list)
	check(t, err)
	for _, e := range crl.RevokedCertificateEntries {
		if _, ok := have[e.SerialNumber.Text(16)]; !ok {
			t.Errorf("the revocation list of member %d has %s, which is not revoked", who, e.SerialNumber.Text(16))
		}
		delete(have, e.SerialNumber.Text(16))
	}
	if len(have) > 0 {
		t.Errorf("%d revoked certificates are not on the revocation list of member %d", len(have), who)
	}
}

func (a *authorityLoads) verifySealed(t testing.TB, ctx context.Context, who int) {
	looked := 0
	for plain, text := range a.sealed.all() {
		id, ciphertext, _ := strings.Cut(text, " ")
		var answer struct{ Plaintext []byte }
		err := a.h.onAdmin(ctx, who, http.MethodPost, "kms/decrypt", map[string]any{"keyID": id, "ciphertext": []byte(ciphertext)}, &answer)
		if err != nil || string(answer.Plaintext) != plain {
			t.Errorf("member %d decrypts %q as %q: %v", who, plain, answer.Plaintext, err)
		}
		if looked++; looked > 300 {
			break
		}
	}
	var status struct{ Number int64 }
	check(t, a.h.onAdmin(ctx, who, http.MethodGet, "kms/status", nil, &status))
	if status.Number < a.rotated.Load() {
		t.Errorf("member %d is at key %d, and %d was acknowledged", who, status.Number, a.rotated.Load())
	}
}
