package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"
)

// upstream signs what an external authority asked for, after change.
func upstream(t *testing.T, by Authority, subject pkix.Name, key crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		Subject: subject, NotAfter: now().Add(100 * day), IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	change(tmpl)
	c, err := sign(source(), tmpl, by.Certificate, key, by.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCheckChain: what an outside CA made of a request is put in force only if it can serve.
func TestCheckChain(t *testing.T) {
	t.Parallel()
	r, k := root(t), key(t)
	other := root(t)
	der, err := NewRequest(source(), k, DN{{"organizationName", "Example"}, {"commonName", "ext"}})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Extensions) != 2 || csr.Subject.CommonName != "ext" {
		t.Errorf("the request: %v", csr.Subject)
	}
	as := func(change func(*x509.Certificate)) *x509.Certificate {
		return upstream(t, r, csr.Subject, k.Public(), change)
	}
	same := func(*x509.Certificate) {}
	good := as(same)
	for _, chain := range [][]*x509.Certificate{{good}, {good, r.Certificate}} {
		if err := CheckChain(now(), chain, k.Public()); err != nil {
			t.Errorf("%d certificates: %v", len(chain), err)
		}
	}
	betweenKey := key(t)
	noSub := upstream(t, r, pkix.Name{CommonName: "between"}, betweenKey.Public(), same) // pathlen:0
	belowNoSub := upstream(t, Authority{Certificate: noSub, Signer: betweenKey}, csr.Subject, k.Public(), same)
	between := upstream(t, r, pkix.Name{CommonName: "between"}, betweenKey.Public(), func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, 1 })
	below := upstream(t, Authority{Certificate: between, Signer: betweenKey}, csr.Subject, k.Public(), same)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		at    time.Time
		key   crypto.PublicKey
		hint  string
	}{
		"nothing":            {nil, now(), k.Public(), "1 to 6"},
		"another key":        {[]*x509.Certificate{good}, now(), key(t).Public(), "another key"},
		"the wrong order":    {[]*x509.Certificate{r.Certificate, good}, now(), k.Public(), "another key"},
		"no CA":              {[]*x509.Certificate{as(func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero, c.MaxPathLen = false, false, -1 })}, now(), k.Public(), "CA:TRUE"},
		"no keyCertSign":     {[]*x509.Certificate{as(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })}, now(), k.Public(), "keyCertSign"},
		"no cRLSign":         {[]*x509.Certificate{as(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })}, now(), k.Public(), "cRLSign"},
		"expired":            {[]*x509.Certificate{good}, now().Add(101 * day), k.Public(), "ended"},
		"not yet":            {[]*x509.Certificate{good}, now().Add(-day), k.Public(), "not valid before"},
		"another issuer":     {[]*x509.Certificate{good, other.Certificate}, now(), k.Public(), "not signed by"},
		"no CA may be below": {[]*x509.Certificate{belowNoSub, noSub}, now(), k.Public(), "pathlen:0"},
		"a path too long":    {[]*x509.Certificate{below, between, r.Certificate}, now(), k.Public(), "pathlen:1"},
	} {
		refusal(t, name, CheckChain(c.at, c.chain, c.key), ErrBadChain, c.hint)
	}
}

// TestInternal: an internal authority makes leaves only, below a root that is not the members'.
func TestInternal(t *testing.T) {
	t.Parallel()
	k := key(t)
	c, err := NewServicesRoot(source(), k, 0xabc, 4000*day)
	if err != nil {
		t.Fatal(err)
	}
	services := Authority{Certificate: c, Signer: k}
	ik := key(t)
	inner, err := NewInternal(source(), services, ik.Public(), DN{{"commonName", "inner"}}, 1000*day)
	if err != nil {
		t.Fatal(err)
	}
	if !IsRoot(c) || IsRoot(inner) || !inner.MaxPathLenZero || inner.MaxPathLen != 0 || inner.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("%v", inner)
	}
	if _, err := NewInternal(source(), Authority{Certificate: inner, Signer: ik}, key(t).Public(), DN{{"commonName", "x"}}, day); !errors.Is(err, ErrAuthority) {
		t.Errorf("an authority below one that has no room: %v", err)
	}
	if _, err := NewSelfSigned(source(), k, nil, day); err == nil {
		t.Error("an authority without a name")
	}
	src := source()
	for _, kind := range KeyKinds() {
		if strings.HasPrefix(kind, "rsa4") || strings.HasPrefix(kind, "rsa3") {
			continue // slow, and no other code
		}
		k, err := GenerateKeyOf(src, kind)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewSelfSigned(src, k, DN{{"commonName", kind}}, day); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for _, kind := range []string{"", "ed25519", "rsa1024"} {
		if _, err := GenerateKeyOf(src, kind); !errors.Is(err, ErrWeakKey) {
			t.Errorf("%q: %v", kind, err)
		}
	}
}
