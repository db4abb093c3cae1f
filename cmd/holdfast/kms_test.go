package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/kmsapi"
	"holdfast.dev/holdfast/internal/policy"
)

// TestIdentityIsRenewed: at two thirds of its life, for another key, both in one file; a refusal changes nothing.
func TestIdentityIsRenewed(t *testing.T) {
	now := time.Now()
	src := ca.Source{Now: now, Rand: rand.Reader}
	rootKey, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.NewRoot(src, rootKey, 7, 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issuerKey, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.NewIssuer(src, ca.Authority{Certificate: root, Signer: rootKey}, policy.RoleKMS, issuerKey.Public(), 900*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issuer := ca.Authority{Certificate: cert, Signer: issuerKey, Role: policy.RoleKMS}
	certify := func(csr []byte, at time.Time) kmsapi.EnrolAnswer {
		r, err := ca.ParseRequest(csr)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ca.Issue(ca.Source{Now: at, Rand: rand.Reader}, issuer, ca.Request{Profile: ca.KMSProfile, CommonName: "cp", Key: r.PublicKey, Life: 30 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		return kmsapi.EnrolAnswer{Chain: [][]byte{leaf.Raw, cert.Raw}, Root: root.Raw, Endpoints: []string{"https://a"}}
	}
	dir := t.TempDir()
	key, csr, err := newRequest("cp")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeIdentity(dir, key, certify(csr, now)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, identityFile)
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	calls, refuse := 0, errors.New("out of reach")
	var at time.Time
	f := kmsapi.NewForwarder([]string{"https://a"}, func(_ context.Context, _, path string, body, into any) error {
		calls++
		if refuse != nil || path != "kms/certificate" {
			return refuse
		}
		*into.(*kmsapi.EnrolAnswer) = certify(body.(kmsapi.EnrolRequest).CSR, at)
		return nil
	})
	at = now.Add(19 * time.Hour)
	if err := renewIdentity(t.Context(), dir, f, at); err != nil || calls != 0 {
		t.Errorf("too early: %d calls, %v", calls, err)
	}
	at = now.Add(21 * time.Hour)
	if err := renewIdentity(t.Context(), dir, f, at); err == nil {
		t.Error("no error while nobody answers")
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != string(first) {
		t.Errorf("a failed renewal changed the identity: %v", err)
	}
	refuse = nil
	if err := renewIdentity(t.Context(), dir, f, at); err != nil {
		t.Fatal(err)
	}
	config, err := authn.OutboundConfig(authn.Outbound{CertFile: file, KeyFile: file, CAFile: filepath.Join(dir, caFile)}, authn.Env{Now: time.Now, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil || leaf.NotAfter.Before(now.Add(50*time.Hour)) {
		t.Errorf("%v until %v", err, leaf.NotAfter)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}
