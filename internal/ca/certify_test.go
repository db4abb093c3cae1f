package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/fault"
)

func named(t *testing.T, subject string) Authority {
	t.Helper()
	k := key(t)
	dn, err := ParseDN(subject)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewSelfSigned(source(), k, dn, 1000*day)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{Certificate: c, Signer: k}
}

// ask makes a parsed request for k.
func ask(t *testing.T, k crypto.Signer, tmpl x509.CertificateRequest) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, k)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func form(t *testing.T, name string) Form {
	t.Helper()
	f, ok := FormOf(name)
	if !ok {
		t.Fatalf("no profile %s", name)
	}
	return f
}

func extension(t *testing.T, last int, v any) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: extensionID(last), Value: der}
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// refusal wants err to be the fault with a hint that holds text.
func refusal(t *testing.T, what string, err error, want *fault.Error, text string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, not %v", what, err, want)
		return
	}
	if f := fault.From(err); !strings.Contains(f.Hint, text) {
		t.Errorf("%s: the hint %q does not say %q", what, f.Hint, text)
	}
}

// TestCertifyRefuses: everything that a policy or a profile does not give, each with the reason.
func TestCertifyRefuses(t *testing.T) {
	t.Parallel()
	by := named(t, "/C=DE/O=Example/CN=Example CA")
	k := key(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := x509.CertificateRequest{Subject: pkix.Name{CommonName: "db"}, DNSNames: []string{"db.example.com"}}
	with := func(change func(*x509.CertificateRequest)) x509.CertificateRequest {
		r := good
		change(&r)
		return r
	}
	basic := extension(t, 19, struct{ IsCA bool }{true})
	for name, c := range map[string]struct {
		policy func(*Policy)
		csr    *x509.CertificateRequest
		order  Order
		fault  *fault.Error
		hint   string
	}{
		"CA:TRUE": {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{basic} })), Order{}, ErrPolicy, "CA:TRUE"},
		"an EKU beyond": {nil, ask(t, k, with(func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{extension(t, 37, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}})}
		})), Order{}, ErrPolicy, "clientAuth"},
		"an unknown EKU": {nil, ask(t, k, with(func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{extension(t, 37, []asn1.ObjectIdentifier{{1, 2, 3}})}
		})), Order{}, ErrPolicy, "1.2.3"},
		"keyCertSign": {nil, ask(t, k, with(func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{extension(t, 15, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6})}
		})), Order{}, ErrPolicy, "keyCertSign"},
		"another extension":       {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{extension(t, 30, "x")} })), Order{}, ErrPolicy, "2.5.29.30"},
		"a name outside":          {func(p *Policy) { p.SANs = []string{"dns:*.example.org"} }, ask(t, k, good), Order{}, ErrPolicy, "db.example.com"},
		"an address outside":      {func(p *Policy) { p.SANs = []string{"dns:**", "ip:10.0.0.0/8"} }, ask(t, k, with(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 168, 0, 1)} })), Order{}, ErrPolicy, "192.168.0.1"},
		"a wildcard":              {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.DNSNames = []string{"*.example.com"} })), Order{}, ErrPolicy, "wildcards"},
		"a mail address":          {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.com"} })), Order{}, ErrPolicy, "a@example.com"},
		"a URI":                   {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/y"}} })), Order{}, ErrPolicy, "spiffe://x/y"},
		"a member's name":         {func(p *Policy) { p.SANs = append(p.SANs, "uri:spiffe://x/**") }, ask(t, k, with(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{MemberURI(1, 2)} })), Order{}, ErrPolicy, "holdfast://"},
		"a server without host":   {nil, ask(t, k, x509.CertificateRequest{Subject: pkix.Name{CommonName: "db"}}), Order{}, ErrPolicy, "--host"},
		"no supplied field":       {func(p *Policy) { p.Subject["stateOrProvinceName"] = RuleSupplied }, ask(t, k, good), Order{}, ErrPolicy, "stateOrProvinceName must be supplied"},
		"no common name":          {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} })), Order{}, ErrPolicy, "commonName must be supplied"},
		"a mismatch":              {func(p *Policy) { p.Subject["organizationName"] = RuleMatch }, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"Other"} })), Order{}, ErrPolicy, "organizationName must match"},
		"a match that is missing": {func(p *Policy) { p.Subject["countryName"] = RuleMatch }, ask(t, k, good), Order{}, ErrPolicy, "countryName must match"},
		"one more than matches":   {func(p *Policy) { p.Subject["organizationName"] = RuleMatch }, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"Example", "Other"} })), Order{}, ErrPolicy, "organizationName"},
		"a profile not allowed":   {func(p *Policy) { p.Profiles = []string{"client"} }, ask(t, k, good), Order{}, ErrPolicy, "no profile"},
		"too long a life":         {nil, ask(t, k, good), Order{Life: 900 * day}, ErrPolicy, "825d"},
		"a life beyond the CA's":  {func(p *Policy) { p.MaxLife = Duration(5000 * day) }, ask(t, k, good), Order{Life: 2000 * day}, ErrPolicy, "own certificate ends"},
		"a negative life":         {nil, ask(t, k, good), Order{Life: -time.Hour}, ErrPolicy, "cannot live"},
		"a kind of key":           {func(p *Policy) { p.Keys = []string{"p384", "rsa"} }, ask(t, k, good), Order{}, ErrPolicy, "p256"},
		"ed25519":                 {func(p *Policy) { p.Keys = []string{"p384"} }, ask(t, ed, good), Order{}, ErrPolicy, "ed25519"},
		"RSA below the policy":    {func(p *Policy) { p.MinRSABits = 3072 }, ask(t, rsaKey(t, 2048), good), Order{}, ErrPolicy, "3072"},
		"a hash below the policy": {func(p *Policy) { p.MinHash = "sha384" }, ask(t, k, good), Order{}, ErrPolicy, "sha384"},
		"a bad host":              {nil, ask(t, k, good), Order{Hosts: []string{"a b"}}, ErrBadName, "a b"},
		"two common names": {nil, ask(t, k, with(func(r *x509.CertificateRequest) { // readers of certificates take the first or the last
			r.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "alice"}}
		})), Order{}, ErrPolicy, "2 common names"},
		"an address as a name": {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.DNSNames = []string{"10.0.0.1"} })), Order{}, ErrBadName, "10.0.0.1"},
		"a long country":       {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject.Country = []string{"Germany"} })), Order{}, ErrBadName, "countryName"},
		"control characters":   {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject.CommonName = "a\x00b" })), Order{}, ErrBadName, "commonName"},
		"a long common name":   {nil, ask(t, k, with(func(r *x509.CertificateRequest) { r.Subject.CommonName = strings.Repeat("x", 65) })), Order{}, ErrBadName, "65"},
	} {
		p := DefaultPolicy()
		if c.policy != nil {
			c.policy(&p)
		}
		if err := p.Check(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c.order.Request = c.csr
		if c.order.Form.Name == "" {
			c.order.Form = form(t, "server")
		}
		out, err := p.Certify(source(), by, c.order)
		if err == nil {
			t.Errorf("%s: certified %v", name, out.Leaf.Subject)
			continue
		}
		refusal(t, name, err, c.fault, c.hint)
	}
	if _, err := new(Policy).Certify(source(), by, Order{Form: form(t, "server"), Request: ask(t, k, good)}); !errors.Is(err, ErrPolicy) {
		t.Errorf("the zero policy: %v", err)
	}
}

// TestRequestRefuses: what no policy can accept, with the way out.
func TestRequestRefuses(t *testing.T) {
	t.Parallel()
	good := func(k crypto.Signer) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	broken := good(key(t))
	broken[len(broken)-1] ^= 1
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		der   []byte
		fault *fault.Error
		hint  string
	}{
		"SHA-1":              {sha1Request(t, rsaKey(t, 2048)), ErrWeakHash, "-sha256"},
		"a broken signature": {broken, ErrForged, "does not verify"},
		"P-224":              {good(p224), ErrWeakKey, "P-256"},
		"rubbish":            {[]byte("rubbish"), ErrRequest, "neither"},
	} {
		_, err := ParseRequest(c.der)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		refusal(t, name, err, c.fault, c.hint)
		if !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v is no fault of the request", name, err)
		}
	}
}

// sha1Request is a request as crypto/x509 no longer makes them.
func sha1Request(t *testing.T, k *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, k)
	if err != nil {
		t.Fatal(err)
	}
	var csr struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &csr); err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(csr.TBS.FullBytes)
	sig, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA1, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	csr.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}
	csr.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	out, err := asn1.Marshal(csr)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCertify: what comes out has the profile's extensions, the policy's subject and the request's key.
func TestCertify(t *testing.T) {
	t.Parallel()
	by := named(t, "/C=DE/ST=Bayern/O=Example/CN=Example CA")
	p := DefaultPolicy()
	p.Subject = map[string]Rule{"countryName": RuleMatch, "organizationName": RuleOptional, "commonName": RuleSupplied}
	k := rsaKey(t, 2048)
	csr := ask(t, k, x509.CertificateRequest{
		Subject:  pkix.Name{Country: []string{"DE"}, Locality: []string{"Munich"}, Organization: []string{"Ops"}, CommonName: "db"},
		DNSNames: []string{"db.example.com", "db"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		ExtraExtensions: []pkix.Extension{extension(t, 37, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}}), extension(t, 15, asn1.BitString{Bytes: []byte{0xa0}, BitLength: 3})},
	})
	out, err := p.Certify(source(), by, Order{Form: form(t, "etcd-server"), Request: csr, Life: 10 * day, CRLURLs: []string{"http://crl.example.com/x.crl"}})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Leaf
	if got := out.Subject.String(); got != "/C=DE/O=Ops/CN=db" {
		t.Errorf("subject %s", got)
	}
	if dn, err := SubjectOf(c); err != nil || !reflect.DeepEqual(dn, out.Subject) {
		t.Errorf("in the certificate: %v, %v", dn, err)
	}
	if len(out.Notes) != 1 || !strings.Contains(out.Notes[0], "localityName") {
		t.Errorf("notes %q", out.Notes)
	}
	switch {
	case c.IsCA || !c.BasicConstraintsValid:
		t.Error("basicConstraints")
	case c.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment:
		t.Errorf("key usage %b", c.KeyUsage)
	case !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}):
		t.Errorf("extended key usage %v", c.ExtKeyUsage)
	case len(c.SubjectKeyId) != 20 || string(c.AuthorityKeyId) != string(by.Certificate.SubjectKeyId):
		t.Error("key ids")
	case !slices.Equal(c.CRLDistributionPoints, []string{"http://crl.example.com/x.crl"}):
		t.Errorf("CRL %v", c.CRLDistributionPoints)
	case !slices.Equal(c.DNSNames, []string{"db.example.com", "db"}) || len(c.IPAddresses) != 1:
		t.Errorf("names %v %v", c.DNSNames, c.IPAddresses)
	case !c.NotAfter.Equal(now().Add(10 * day)):
		t.Errorf("until %s", c.NotAfter)
	case !k.PublicKey.Equal(c.PublicKey):
		t.Error("another key")
	}
	ec, err := p.Certify(source(), by, Order{Form: form(t, "client"), Request: ask(t, key(t), x509.CertificateRequest{}), Subject: DN{{"countryName", "DE"}, {"commonName", "it"}}})
	if err != nil {
		t.Fatal(err)
	}
	if ec.Leaf.KeyUsage != x509.KeyUsageDigitalSignature || !ec.Leaf.NotAfter.Equal(now().Add(90*day)) || ec.Leaf.CRLDistributionPoints != nil {
		t.Errorf("%b until %s", ec.Leaf.KeyUsage, ec.Leaf.NotAfter)
	}
}

// TestPolicyCheck: a policy that says what nobody can obey is refused.
func TestPolicyCheck(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Policy){
		"an unknown field":   func(p *Policy) { p.Subject["title"] = RuleOptional },
		"an unknown rule":    func(p *Policy) { p.Subject["commonName"] = "required" },
		"a bare pattern":     func(p *Policy) { p.SANs = []string{"example.com"} },
		"a star inside":      func(p *Policy) { p.SANs = []string{"dns:a.*.com"} },
		"a glued star":       func(p *Policy) { p.SANs = []string{"dns:*example.com"} },
		"a bad range":        func(p *Policy) { p.SANs = []string{"ip:10.0.0.0/99"} },
		"a member's URI":     func(p *Policy) { p.SANs = []string{"uri:holdfast://x/**"} },
		"a bad mail pattern": func(p *Policy) { p.SANs = []string{"email:*"} },
		"an unknown key":     func(p *Policy) { p.Keys = []string{"dsa"} },
		"no key":             func(p *Policy) { p.Keys = nil },
		"RSA of 1024":        func(p *Policy) { p.MinRSABits = 1024 },
		"SHA-1":              func(p *Policy) { p.MinHash = "sha1" },
		"no life":            func(p *Policy) { p.Life = 0 },
		"life over max":      func(p *Policy) { p.Life, p.MaxLife = Duration(2*day), Duration(day) },
		"an unknown profile": func(p *Policy) { p.Profiles = []string{"root"} },
		"no profile":         func(p *Policy) { p.Profiles = nil },
	} {
		p := DefaultPolicy()
		change(&p)
		if err := p.Check(); !errors.Is(err, ErrBadPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := DefaultPolicy()
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"dns:db.example.com", "db.example.com", true}, {"dns:db.example.com", "DB.Example.com", true}, {"dns:db.example.com", "x.db.example.com", false},
		{"dns:*.example.com", "db.example.com", true}, {"dns:*.example.com", "a.b.example.com", false}, {"dns:*.example.com", "example.com", false},
		{"dns:*.example.com", "evilexample.com", false}, {"dns:**.example.com", "a.b.example.com", true}, {"dns:**.example.com", "example.com", false},
		{"dns:**.example.com", "xexample.com", false}, {"dns:*", "db", true}, {"dns:*", "db.x", false}, {"dns:**", "db.x", true},
		{"ip:10.0.0.0/8", "10.1.2.3", true}, {"ip:10.0.0.0/8", "11.1.2.3", false}, {"ip:10.0.0.1", "10.0.0.1", true}, {"ip:10.0.0.1", "10.0.0.2", false},
		{"ip:::/0", "fe80::1", true}, {"ip:::/0", "10.0.0.1", false}, {"dns:**", "10.0.0.1", false},
	} {
		p := Policy{SANs: []string{c.pattern}}
		n, err := parseHosts([]string{c.name})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.allow(n) == nil; got != c.want {
			t.Errorf("%s allows %s: %t", c.pattern, c.name, got)
		}
	}
	p := Policy{SANs: []string{"uri:spiffe://x/a/**", "email:*@example.com"}}
	for text, want := range map[string]bool{"spiffe://x/a": true, "spiffe://x/a/b": true, "spiffe://x/ab": false, "spiffe://x/a/../b": false, "spiffe://y/a": false} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.allow(altNames{uris: []*url.URL{u}}) == nil; got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	for text, want := range map[string]bool{"a@example.com": true, "a@b.example.com": false, "@example.com": false, "a@example.com@evil.com": false, "a\x00b@example.com": false, "a\x1b[2Jb@example.com": false, "a b@example.com": false} {
		if got := p.allow(altNames{emails: []string{text}}) == nil; got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

func TestDN(t *testing.T) {
	t.Parallel()
	dn, err := ParseDN(`/C=DE/O=A \/ B/CN=back\\slash/emailAddress=a@b.c/OU=`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseDN(dn.String()); err != nil || !reflect.DeepEqual(got, dn) || dn.Get("organizationName")[0] != "A / B" || dn.CommonName() != `back\slash` || len(dn) != 4 {
		t.Errorf("%v %v %v", dn, got, err)
	}
	raw, err := dn.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseRawDN(raw); err != nil || !reflect.DeepEqual(got, dn) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "CN=x", "/XX=y", "/C=Germany", "/CN", "/C=D1"} {
		if dn, err := ParseDN(bad); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %v, %v", bad, dn, err)
		}
	}
}

// TestListStreams: a list of many lines is what the standard library reads, whoever writes it with signature and lines; with
// other lines writing it fails.
func TestListStreams(t *testing.T) {
	t.Parallel()
	by := named(t, "/CN=x")
	rsaBy := Authority{Signer: rsaKey(t, 2048)}
	c, err := NewSelfSigned(source(), rsaBy.Signer, DN{{"commonName", "r"}}, day)
	if err != nil {
		t.Fatal(err)
	}
	rsaBy.Certificate = c
	for _, by := range []Authority{by, rsaBy} {
		for _, n := range []int{0, 1, 3, 1000} {
			all := make([]Revocation, n)
			for i := range all {
				serial, err := NewSerial(rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				all[i] = Revocation{Serial: serial, At: now().Add(-time.Duration(i) * time.Hour), Reason: []int{0, 1, 4}[i%3]}
			}
			if n > 2 {
				all[2].At = time.Date(2051, 1, 1, 0, 0, 0, 0, time.UTC)
			}
			lines := func(each func(Revocation) error) error {
				for _, r := range all {
					if err := each(r); err != nil {
						return err
					}
				}
				return nil
			}
			l := &List{Issuer: by.Certificate, Number: big.NewInt(300), This: now(), Next: now().Add(day), Hash: "sha384"}
			s, err := l.Sign(rand.Reader, by.Signer, lines)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := l.Write(&b, s, lines); err != nil {
				t.Fatal(err)
			}
			list, err := x509.ParseRevocationList([]byte(b.String()))
			if err != nil {
				t.Fatal(err)
			}
			if err := list.CheckSignatureFrom(by.Certificate); err != nil {
				t.Error(err)
			}
			if size, err := l.Size(s); err != nil || size != int64(b.Len()) {
				t.Errorf("size %d, %v; written are %d", size, err, b.Len())
			}
			if len(list.RevokedCertificateEntries) != n || list.Number.Int64() != 300 || !list.NextUpdate.Equal(l.Next) || string(list.AuthorityKeyId) != string(by.Certificate.SubjectKeyId) {
				t.Errorf("%d lines, number %v, until %v", len(list.RevokedCertificateEntries), list.Number, list.NextUpdate)
			}
			for i, e := range list.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(all[i].Serial) != 0 || !e.RevocationTime.Equal(all[i].At) || e.ReasonCode != all[i].Reason {
					t.Fatalf("line %d: %v", i, e)
				}
			}
			if n == 0 {
				continue
			}
			b.Reset()
			all[0].Serial = new(big.Int).Add(all[0].Serial, big.NewInt(1))
			if err := l.Write(&b, s, lines); !errors.Is(err, errLines) {
				t.Errorf("other lines: %v", err)
			}
			all = all[1:]
			if err := l.Write(&b, s, lines); !errors.Is(err, errLines) {
				t.Errorf("fewer lines: %v", err)
			}
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err = NewSelfSigned(source(), ed, DN{{"commonName", "e"}}, day)
	if err != nil {
		t.Fatal(err)
	}
	l := List{Issuer: c, Number: big.NewInt(1), This: now(), Next: now().Add(day)}
	if _, err := l.Sign(rand.Reader, ed, func(func(Revocation) error) error { return nil }); !errors.Is(err, ErrAuthority) {
		t.Errorf("a list by Ed25519: %v", err)
	}
}

// BenchmarkList signs and writes a list of 100,000 lines; what is held at once is a line.
func BenchmarkList(b *testing.B) {
	key, err := GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	c, err := NewSelfSigned(source(), key, DN{{"commonName", "x"}}, day)
	if err != nil {
		b.Fatal(err)
	}
	serial := new(big.Int).Lsh(big.NewInt(1), 128)
	lines := func(each func(Revocation) error) error {
		for range 100_000 {
			if err := each(Revocation{Serial: serial, At: now(), Reason: 1}); err != nil {
				return err
			}
		}
		return nil
	}
	l := List{Issuer: c, Number: big.NewInt(1), This: now(), Next: now().Add(day)}
	b.ReportAllocs()
	for b.Loop() {
		s, err := l.Sign(rand.Reader, key, lines)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Write(io.Discard, s, lines); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(s.Bytes)
	}
}
