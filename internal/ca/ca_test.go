package ca

import (
	"crypto"
	//lint:ignore SA1019 a DSA key is made here to see it refused
	"crypto/dsa"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

func now() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }

func source() Source { return Source{Now: now(), Rand: rand.Reader} }

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func root(t *testing.T) Authority {
	t.Helper()
	k := key(t)
	c, err := NewRoot(source(), k, 0xabc, 10000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{Certificate: c, Signer: k}
}

func issuer(t *testing.T, r Authority, role policy.Role) Authority {
	t.Helper()
	k := key(t)
	c, err := NewIssuer(source(), r, role, k.Public(), 5000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{Certificate: c, Signer: k, Role: role}
}

func roles() []policy.Role {
	return []policy.Role{policy.RoleMember, policy.RoleAgent, policy.RoleClient, policy.RoleAdmin}
}

// verify checks leaf with the root alone trusted and the issuer in between.
func verify(leaf, issuer, root *x509.Certificate, usage x509.ExtKeyUsage) error {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now(), KeyUsages: []x509.ExtKeyUsage{usage}}
	o.Roots.AddCert(root)
	o.Intermediates.AddCert(issuer)
	_, err := leaf.Verify(o)
	return err
}

// TestShapes: each profile verifies for its usages and for no other, from its issuer and from no other.
func TestShapes(t *testing.T) {
	t.Parallel()
	r := root(t)
	if r.Certificate.MaxPathLen != 1 || !r.Certificate.IsCA || r.Certificate.ExtKeyUsage != nil {
		t.Errorf("root: %+v", r.Certificate)
	}
	all := map[policy.Role]Authority{}
	for _, role := range roles() {
		all[role] = issuer(t, r, role)
		c := all[role].Certificate
		if !c.MaxPathLenZero || c.MaxPathLen != 0 || !c.IsCA || !slices.Equal(c.AuthorityKeyId, r.Certificate.SubjectKeyId) || c.PermittedDNSDomainsCritical {
			t.Errorf("issuer %d: %+v", role, c)
		}
	}
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for _, tc := range []struct {
		r      Request
		role   policy.Role
		usages []x509.ExtKeyUsage
	}{
		{Request{Profile: ServerProfile, Hosts: []string{"a.example.com", "10.0.0.1", "::1", "*.b.example.com"}}, policy.RoleMember, []x509.ExtKeyUsage{server}},
		{Request{Profile: PeerProfile, Cluster: 0xabc, Member: 7, Hosts: []string{"localhost"}}, policy.RoleMember, []x509.ExtKeyUsage{server, client}},
		{Request{Profile: AgentProfile}, policy.RoleAgent, []x509.ExtKeyUsage{client}},
		{Request{Profile: AdminProfile}, policy.RoleAdmin, []x509.ExtKeyUsage{client}},
		{Request{Profile: ClientProfile}, policy.RoleClient, []x509.ExtKeyUsage{client}},
	} {
		tc.r.CommonName, tc.r.Life, tc.r.Key = "someone", time.Hour, key(t).Public()
		for _, role := range append(roles(), policy.RoleNone) {
			by := all[role]
			leaf, err := Issue(source(), by, tc.r)
			if role != tc.role {
				if !errors.Is(err, ErrAuthority) {
					t.Errorf("profile %d from role %d: %v", tc.r.Profile, role, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range []x509.ExtKeyUsage{server, client, x509.ExtKeyUsageCodeSigning} {
				if err := verify(leaf, by.Certificate, r.Certificate, u); (err == nil) != slices.Contains(tc.usages, u) {
					t.Errorf("profile %d for usage %d: %v", tc.r.Profile, u, err)
				}
			}
			for _, h := range tc.r.Hosts {
				if err := leaf.VerifyHostname(strings.Replace(h, "*", "x", 1)); err != nil {
					t.Error(err)
				}
			}
			if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
				len(leaf.SubjectKeyId) != 20 || !slices.Equal(leaf.AuthorityKeyId, by.Certificate.SubjectKeyId) ||
				!leaf.NotBefore.Equal(now().Add(-Backdate)) || !leaf.NotAfter.Equal(now().Add(time.Hour)) {
				t.Errorf("profile %d: %+v", tc.r.Profile, leaf)
			}
			cluster, member, ok := uint64(0), uint64(0), false
			if len(leaf.URIs) == 1 {
				cluster, member, ok = ParseMemberURI(leaf.URIs[0])
			}
			if ok != (tc.r.Profile == PeerProfile) || ok && (cluster != 0xabc || member != 7) {
				t.Errorf("profile %d names %x %x %v", tc.r.Profile, cluster, member, ok)
			}
		}
	}
	// Should an issuer's key be misused, its usages still bind: a client issuer cannot make a server, nor a sub-CA.
	by := all[policy.RoleClient]
	by.Role = policy.RoleMember
	forged, err := Issue(source(), by, Request{Profile: ServerProfile, CommonName: "x", Life: time.Hour, Key: key(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(forged, by.Certificate, r.Certificate, server); err == nil {
		t.Error("a client issuer made a server certificate that verifies")
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	r := root(t)
	member, client := issuer(t, r, policy.RoleMember), issuer(t, r, policy.RoleClient)
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		by   Authority
		edit func(*Request)
	}{
		"no profile":           {member, func(r *Request) { r.Profile = 0 }},
		"profile out of range": {member, func(r *Request) { r.Profile = 99 }},
		"no name":              {client, func(r *Request) { r.Profile, r.CommonName = ClientProfile, "" }},
		"hosts for a client":   {client, func(r *Request) { r.Profile, r.Hosts = ClientProfile, []string{"x"} }},
		"peer without member":  {member, func(r *Request) { r.Profile = PeerProfile }},
		"server with member":   {member, func(r *Request) { r.Member = 1 }},
		"no life":              {member, func(r *Request) { r.Life = 0 }},
		"bad host":             {member, func(r *Request) { r.Hosts = []string{"a b"} }},
		"bad wildcard":         {member, func(r *Request) { r.Hosts = []string{"a.*.example.com"} }},
		"empty host":           {member, func(r *Request) { r.Hosts = []string{""} }},
		"a URI for a host":     {member, func(r *Request) { r.Hosts = []string{"holdfast://x"} }},
		"weak key":             {member, func(r *Request) { r.Key = weak.Public() }},
		"no key":               {member, func(r *Request) { r.Key = nil }},
		"by the root":          {Authority{r.Certificate, r.Signer, policy.RoleNone}, func(*Request) {}},
		"by nobody":            {Authority{Role: policy.RoleMember}, func(*Request) {}},
	} {
		req := Request{Profile: ServerProfile, CommonName: "m", Life: time.Hour, Key: key(t).Public()}
		tc.edit(&req)
		if c, err := Issue(source(), tc.by, req); err == nil {
			t.Errorf("%s: issued %v", name, c.Subject)
		}
	}
	late := source()
	late.Now = member.Certificate.NotAfter.Add(time.Second)
	if _, err := Issue(late, member, Request{Profile: ServerProfile, CommonName: "m", Life: time.Hour, Key: key(t).Public()}); err == nil {
		t.Error("an expired issuer issued")
	}
	long, err := Issue(source(), member, Request{Profile: ServerProfile, CommonName: "m", Life: 100000 * time.Hour, Key: key(t).Public()})
	if err != nil || long.NotAfter.After(member.Certificate.NotAfter) {
		t.Errorf("a leaf outlives its issuer: %v, %v", long.NotAfter, err)
	}
	for name, by := range map[string]Authority{"an issuer": member, "an issuer in a root's clothes": {member.Certificate, member.Signer, policy.RoleNone}, "nobody": {}} {
		if _, err := NewIssuer(source(), by, policy.RoleClient, key(t).Public(), time.Hour); !errors.Is(err, ErrAuthority) {
			t.Errorf("%s made an issuer: %v", name, err)
		}
	}
	if _, err := NewIssuer(source(), r, policy.RoleNone, key(t).Public(), time.Hour); !errors.Is(err, ErrAuthority) {
		t.Error("an issuer without role")
	}
}

func TestSerial(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		s, err := NewSerial(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.BitLen(); n != 129 || s.Sign() <= 0 || seen[s.String()] {
			t.Fatalf("%x (%d bits)", s, n)
		}
		seen[s.String()] = true
	}
	if _, err := NewSerial(strings.NewReader("short")); err == nil {
		t.Error("a serial number without randomness")
	}
}

func TestCRL(t *testing.T) {
	t.Parallel()
	r := root(t)
	client := issuer(t, r, policy.RoleClient)
	der, err := SignCRL(source(), client, big.NewInt(7), now().Add(time.Hour), []Revocation{{Serial: big.NewInt(5), At: now(), Reason: 1}, {Serial: big.NewInt(6), At: now()}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(client.Certificate); err != nil {
		t.Error(err)
	}
	if err := list.CheckSignatureFrom(r.Certificate); err == nil {
		t.Error("the root signed the client issuer's list")
	}
	if list.Number.Int64() != 7 || len(list.RevokedCertificateEntries) != 2 || list.RevokedCertificateEntries[0].ReasonCode != 1 || len(list.AuthorityKeyId) == 0 {
		t.Errorf("%+v", list)
	}
	leaf, err := Issue(source(), client, Request{Profile: ClientProfile, CommonName: "x", Life: time.Hour, Key: key(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []Authority{{}, {Certificate: leaf, Signer: client.Signer}} {
		if _, err := SignCRL(source(), by, big.NewInt(1), now(), nil); !errors.Is(err, ErrAuthority) {
			t.Error(err)
		}
	}
}

// TestRequests: what no policy could accept is refused before any policy.
func TestRequests(t *testing.T) {
	t.Parallel()
	make := func(k crypto.Signer, alg x509.SignatureAlgorithm) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}, SignatureAlgorithm: alg}, k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	good := make(key(t), 0)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	big2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	for name, data := range map[string][]byte{
		"DER": good, "PEM": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good}),
		"old PEM": pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: good}), "Ed25519": make(ed, 0), "RSA": make(big2048, x509.SHA256WithRSA),
	} {
		if csr, err := ParseRequest(data); err != nil || csr.Subject.CommonName != "x" {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	swapped := make(key(t), 0)
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "RSA 1024": make(small, x509.SHA256WithRSA), "P-224": make(p224, 0),
		"signature of another": forged, "two blocks": slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: swapped})),
		"a key":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: good}),
		"huge":     slices.Concat([]byte{0x30}, make(key(t), 0), []byte(strings.Repeat("x", maxCSR))),
		"trailing": append(slices.Clone(good), 0),
	} {
		if _, err := ParseRequest(data); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, a := range []x509.SignatureAlgorithm{x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA256, 0} {
		if !weakSignature(a) {
			t.Errorf("%s is taken", a)
		}
	}
	for name, k := range map[string]crypto.PublicKey{
		"DSA": &dsa.PublicKey{}, "nil": nil, "even exponent": &rsa.PublicKey{N: big2048.N, E: 4}, "exponent 1": &rsa.PublicKey{N: big2048.N, E: 1},
		"RSA 16384": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383), E: 65537},
	} {
		if err := CheckKey(k); !errors.Is(err, ErrWeakKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPEM(t *testing.T) {
	t.Parallel()
	r := root(t)
	two := EncodeCertificates(r.Certificate, issuer(t, r, policy.RoleAgent).Certificate)
	certs, err := ParseCertificates(append([]byte("a comment\n"), two...))
	if err != nil || len(certs) != 2 || !certs[0].Equal(r.Certificate) {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "cut": two[:len(two)-40], "a key": func() []byte { k, _ := EncodeKey(r.Signer); return k }(),
		"not a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	} {
		if _, err := ParseCertificates(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	text, err := EncodeKey(r.Signer)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseKey(text)
	if err != nil || !back.Public().(*ecdsa.PublicKey).Equal(r.Signer.Public()) {
		t.Error(err)
	}
	for name, data := range map[string][]byte{"empty": nil, "a certificate": two, "two": append(slices.Clone(text), text...)} {
		if _, err := ParseKey(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMemberURI(t *testing.T) {
	t.Parallel()
	if got := MemberURI(0xc1, 0x1f).String(); got != "holdfast://00000000000000c1/member/000000000000001f" {
		t.Error(got)
	}
	for _, text := range []string{
		"holdfast://c1/member/1f", "holdfast://00000000000000c1/member/000000000000001F", "holdfast://00000000000000c1/member/0000000000000000",
		"spiffe://00000000000000c1/member/000000000000001f", "holdfast://00000000000000c1/member/000000000000001f?x=1",
		"holdfast://00000000000000c1/member/000000000000001f#x", "holdfast://u@00000000000000c1/member/000000000000001f",
		"holdfast://00000000000000c1/member/+00000000000001f", "holdfast://00000000000000c1/agent/000000000000001f", "holdfast:00000000000000c1",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if c, m, ok := ParseMemberURI(u); ok {
			t.Errorf("%s is member %x of %x", text, m, c)
		}
	}
}

// TestOpenSSLAgrees: another implementation accepts and refuses the same chains.
func TestOpenSSLAgrees(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here")
	}
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, EncodeCertificates(certs...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := root(t)
	member := issuer(t, r, policy.RoleMember)
	leaf, err := Issue(source(), member, Request{Profile: ServerProfile, CommonName: "m", Hosts: []string{"localhost", "10.0.0.1"}, Life: time.Hour, Key: key(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	rootFile, issuerFile, leafFile := write("root", r.Certificate), write("issuer", member.Certificate), write("leaf", leaf)
	for purpose, ok := range map[string]bool{"sslserver": true, "sslclient": false} {
		out, err := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-attime", "1893553446", "-purpose", purpose,
			"-CAfile", rootFile, "-untrusted", issuerFile, leafFile).CombinedOutput()
		if (err == nil) != ok {
			t.Errorf("%s: %v\n%s", purpose, err, out)
		}
	}
	if ip := leaf.IPAddresses; len(ip) != 1 || !ip[0].Equal(net.IPv4(10, 0, 0, 1)) {
		t.Error(ip)
	}
}
