package authn

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
)

func FuzzParseRevocations(f *testing.F) {
	key, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	root, err := ca.NewRoot(ca.Source{Now: time.Unix(2e9, 0), Rand: rand.Reader}, key, 1, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	der, err := ca.SignCRL(ca.Source{Now: time.Unix(2e9, 0), Rand: rand.Reader}, ca.Authority{Certificate: root, Signer: key}, big.NewInt(1), time.Unix(2e9+60, 0),
		[]ca.Revocation{{Serial: big.NewInt(5), At: time.Unix(2e9, 0), Reason: 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(crlPEM(der, der))
	for _, point := range []string{"\x30\x03\x81\x01\xff", "\x30\x03\x84\x01\xff", "\x30\x05"} { // issuingDistributionPoint: users only, indirect, cut
		list := &x509.RevocationList{Number: big.NewInt(2), ThisUpdate: time.Unix(2e9, 0), NextUpdate: time.Unix(2e9+60, 0),
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte(point)}}}
		der, err := x509.CreateRevocationList(rand.Reader, list, root, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRevocations(data)
		if err != nil {
			return
		}
		if len(r.lists) == 0 {
			t.Fatal("neither a list nor an error")
		}
		r.complaints([]*x509.Certificate{root}, time.Unix(2e9, 0))
		r.revoked([]*x509.Certificate{root})
	})
}

func FuzzPlanSockets(f *testing.F) {
	f.Add("https://0.0.0.0:2379 http://127.0.0.1:2380 unix://a:b")
	f.Fuzz(func(t *testing.T, text string) {
		urls := strings.Fields(text)
		plan, err := PlanSockets(urls)
		if err != nil {
			return
		}
		n := 0
		for _, s := range plan {
			n += len(s.URLs)
			if s.Address == "" || !s.TLS && !s.Plain {
				t.Fatalf("%q: %+v", urls, s)
			}
		}
		if n != len(urls) {
			t.Fatalf("%q: %d of %d URLs are served", urls, n, len(urls))
		}
	})
}
