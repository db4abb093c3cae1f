package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/fuzztest"
)

func FuzzParseDN(f *testing.F) {
	for _, s := range []string{"/C=DE/O=Example/CN=x", `/CN=a\/b\\c`, "/C=/CN=a", "/emailAddress=a@b/DC=x", "CN=x", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dn, err := ParseDN(text)
		if err != nil {
			fuzztest.Hinted(t, err)
			return
		}
		again, err := ParseDN(dn.String())
		if len(dn) > 0 && (err != nil || !slices.Equal(again, dn)) {
			t.Errorf("%q reads as %q, which reads as %q (%v)", text, dn, again, err)
		}
		der, err := dn.encode()
		if err != nil {
			t.Fatalf("%q was taken and cannot be written: %v", text, err)
		}
		if back, err := parseRawDN(der); err != nil || !slices.Equal(back, dn) {
			t.Errorf("%q comes back from a certificate as %q (%v)", dn, back, err)
		}
	})
}

func FuzzParseRawDN(f *testing.F) {
	for _, s := range []string{"/C=DE/O=Example/CN=x", "/serialNumber=1/UID=a/DC=b"} {
		dn, err := ParseDN(s)
		if err != nil {
			f.Fatal(err)
		}
		der, err := dn.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		fuzztest.Bounded(t, len(der), func() {
			dn, err := parseRawDN(der)
			if err != nil {
				fuzztest.Hinted(t, err)
				return
			}
			if dn.check() != nil {
				return
			}
			out, err := dn.encode()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := parseRawDN(out); err != nil || !slices.Equal(again, dn) {
				t.Errorf("%q became %q (%v)", dn, again, err)
			}
		})
	})
}

// FuzzPattern: a pattern of one kind never lets in a name of another, and a host pattern no name that is no host.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"dns:**", "dns:*.a.b", "dns:**.a", "ip:10.0.0.0/8", "ip:::1", "email:*@a.b", "uri:spiffe://a/**"} {
		f.Add(s, "x.a.b")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := parsePattern(text)
		if err != nil {
			return
		}
		if p.host(name) && p.kind != "dns" || p.email(name) && p.kind != "email" {
			t.Errorf("%q lets in %q", text, name)
		}
		if ip := net.ParseIP(name); ip != nil && p.address(ip) != (p.kind == "ip" && p.prefix.Contains(addrOf(t, name))) {
			t.Errorf("%q and %q", text, name)
		}
		if u, err := url.Parse(name); err == nil && p.uri(u) && (p.kind != "uri" || u.Scheme == memberScheme) {
			t.Errorf("%q lets in %q", text, name)
		}
		policy := DefaultPolicy()
		policy.SANs = []string{text}
		if err := policy.Check(); err != nil {
			t.Errorf("%q is a pattern and no policy may have it: %v", text, err)
		}
		names, err := parseHosts([]string{name})
		if err != nil {
			fuzztest.Hinted(t, err)
			return
		}
		if err := policy.allow(names); err == nil && !strings.HasPrefix(name, "*.") && !p.host(name) && !slices.ContainsFunc(names.ips, p.address) {
			t.Errorf("%q lets in %q", text, name)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	k := fuzzKey(f)
	pem, err := EncodeKey(k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			key, err := ParseKey(data)
			if err != nil {
				return
			}
			out, err := EncodeKey(key)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseKey(out)
			if err != nil || !equalKeys(again.Public(), key.Public()) {
				t.Errorf("a key became another: %v", err)
			}
		})
	})
}

// FuzzWords reads what a person types: reasons, lives, member names.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"", "keyCompromise", "90d", "1h30m", "65536d", "-1ns", MemberURI(1, 2).String(), "holdfast://0000000000000001/member/0000000000000000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseReason(text); err != nil {
			fuzztest.Hinted(t, err)
		} else if Reasons()[n] == "" {
			t.Errorf("%q is the reason %d", text, n)
		}
		var d, again Duration
		if d.UnmarshalText([]byte(text)) == nil {
			if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
				t.Errorf("%q reads as %s, which reads as %s (%v)", text, d, again, err)
			}
		}
		if u, err := url.Parse(text); err == nil {
			if cluster, member, ok := ParseMemberURI(u); ok && (member == 0 || MemberURI(cluster, member).String() != u.String()) {
				t.Errorf("%q is taken for the member %x of %x", text, member, cluster)
			}
		}
	})
}

// FuzzCertify: whatever a request asks for, what is signed is a leaf that its profile and its authority allow, and that the policy
// would allow once more.
func FuzzCertify(f *testing.F) {
	k := fuzzKey(f)
	dn, err := ParseDN("/C=DE/O=Example/CN=Example CA")
	if err != nil {
		f.Fatal(err)
	}
	root, err := NewSelfSigned(source(), k, dn, 1000*day)
	if err != nil {
		f.Fatal(err)
	}
	by := Authority{Certificate: root, Signer: k}
	subject, err := dn.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(subject, byte(17), []byte{0x30, 5, 0x82, 3, 'a', '.', 'b'}, "", uint8(0), int64(0))
	f.Add(subject, byte(15), []byte{3, 2, 7, 0x80}, "a.b", uint8(1), int64(time.Hour))
	f.Add(subject, byte(19), []byte{0x30, 3, 1, 1, 0xff}, "10.0.0.1", uint8(2), int64(-1))
	f.Add(subject, byte(37), []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}, "*.a.b", uint8(3), int64(826*day))
	f.Fuzz(func(t *testing.T, subject []byte, extension byte, value []byte, host string, profile uint8, life int64) {
		template := x509.CertificateRequest{RawSubject: subject, ExtraExtensions: []pkix.Extension{{Id: extensionID(int(extension)), Value: value}}}
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, k)
		if err != nil {
			return
		}
		csr, err := ParseRequest(der)
		if err != nil {
			fuzztest.Hinted(t, err)
			return
		}
		forms := Forms()
		o := Order{Form: forms[int(profile)%len(forms)], Request: csr, Life: time.Duration(life)}
		if host != "" {
			o.Hosts = []string{host}
		}
		policy := DefaultPolicy()
		out, err := policy.Certify(source(), by, o)
		if err != nil {
			fuzztest.Hinted(t, err)
			return
		}
		leaf := out.Leaf
		if leaf.IsCA || leaf.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment) != 0 || !slices.Equal(leaf.ExtKeyUsage, o.Form.usages) ||
			leaf.NotAfter.After(root.NotAfter) || leaf.NotAfter.After(now().Add(time.Duration(policy.MaxLife))) || leaf.CheckSignatureFrom(root) != nil {
			t.Errorf("signed a certificate that nobody may have: %+v", leaf)
		}
		if err := policy.allow(altNames{leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, leaf.URIs}); err != nil {
			t.Errorf("signed for names that the policy does not allow: %v", err)
		}
		if got, err := SubjectOf(leaf); err != nil || !slices.Equal(got, out.Subject) || errors.Is(got.check(), ErrBadName) {
			t.Errorf("the subject %q became %q (%v)", out.Subject, got, err)
		}
	})
}

func fuzzKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func addrOf(t testing.TB, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a.Unmap()
}

func equalKeys(a, b crypto.PublicKey) bool {
	own, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(b)
}
