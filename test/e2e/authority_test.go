package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestAuthority: what openssl says of certificates, indexes and lists of each mode and kind of key, and what is refused.
func TestAuthority(t *testing.T) {
	t.Parallel()
	s := newSecured(t, 1)
	s.mustOpenssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "house.key", "-out", "house.pem", "-days", "30", "-subj", "/CN=House", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	check(t, os.WriteFile(s.path("ext.cnf"), []byte("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"), 0o600))
	check(t, os.WriteFile(s.path("openssl.cnf"), []byte("[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\n"), 0o600))
	s.must("ca", "init", "self", "--mode", "self-signed", "--subject", "/C=DE/O=Example/CN=Self", "--key", "rsa2048", "--min-hash", "sha384")
	s.must("ca", "init", "inner", "--key", "p384")
	s.must("ca", "init", "ext", "--mode", "external", "--csr-out", "ext.csr")
	s.mustOpenssl("x509", "-req", "-in", "ext.csr", "-CA", "house.pem", "-CAkey", "house.key", "-CAcreateserial", "-days", "20", "-extfile", "ext.cnf", "-out", "ext.pem")
	chain, err := os.ReadFile(s.path("ext.pem"))
	check(t, err)
	house, err := os.ReadFile(s.path("house.pem"))
	check(t, err)
	check(t, os.WriteFile(s.path("ext-chain.pem"), append(chain, house...), 0o600))
	s.must("ca", "accept", "ext", "--cert", "ext-chain.pem")
	for i, name := range []string{"self", "inner", "ext"} {
		kind := []string{"rsa3072", "ed25519", "p521"}[i]
		life := []string{"30d", "48h", "10d"}[i]
		for _, holder := range []string{"good", "bad"} {
			s.must("ca", "issue", name, "--profile", "peer", "--name", holder, "--host", holder+".example.com,::1", "--key", kind, "--valid-for", life, "--out", name+"-"+holder)
		}
		check(t, os.WriteFile(s.path(name+"-chain.pem"), []byte(s.must("ca", "show", name, "--output", "chain")), 0o600))
		s.must("ca", "revoke", name, "--cert", s.path(name+"-bad", "cert.pem"), "--reason", "superseded")
		s.must("ca", "crl", name, "--out", name+".crl")
		s.must("ca", "crl", name, "--output", "der", "--out", name+".der")
		if out := s.mustOpenssl("crl", "-in", name+".crl", "-CAfile", name+"-chain.pem", "-noout"); !strings.Contains(out, "verify OK") {
			t.Errorf("%s: openssl crl: %s", name, out)
		}
		s.mustOpenssl("crl", "-inform", "der", "-in", name+".der", "-noout")
		// -x509_strict: what openssl lets pass otherwise, it names then.
		s.mustOpenssl("verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "good.example.com", "-crl_check", "-CAfile", name+"-chain.pem", "-CRLfile", name+".crl", name+"-good/cert.pem")
		s.mustOpenssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", name+"-chain.pem", name+"-good/cert.pem")
		if out, err := s.openssl("verify", "-crl_check", "-CAfile", name+"-chain.pem", "-CRLfile", name+".crl", name+"-bad/cert.pem"); err == nil || !strings.Contains(out, "certificate revoked") {
			t.Errorf("%s: a revoked certificate: %v %s", name, err, out)
		}
		s.mustOpenssl("verify", "-partial_chain", "-CAfile", name+"-good/ca.pem", name+"-good/cert.pem")
		check(t, os.WriteFile(s.path("index.txt"), []byte(s.must("ca", "certs", name, "--output", "openssl-index")), 0o600))
		for holder, want := range map[string]string{"good": "Valid (V)", "bad": "Revoked (R)"} {
			serial := strings.TrimPrefix(strings.TrimSpace(s.mustOpenssl("x509", "-in", name+"-"+holder+"/cert.pem", "-noout", "-serial")), "serial=")
			if out, err := s.openssl("ca", "-config", "openssl.cnf", "-status", serial); err != nil && !strings.Contains(out, want) || !strings.Contains(out, want) {
				t.Errorf("%s %s: openssl ca -status: %v %s", name, holder, err, out)
			}
		}
	}
	// Authorities of one root do not vouch for each other's.
	s.must("ca", "init", "second")
	s.must("ca", "issue", "second", "--profile", "client", "--name", "x", "--out", "second-x")
	if out, err := s.openssl("verify", "-partial_chain", "-CAfile", "inner-good/ca.pem", "-untrusted", "second-x/cert.pem", "second-x/cert.pem"); err == nil {
		t.Errorf("ca.pem of one authority lets in another's: %s", out)
	}
	s.refusals()
}

// refusals are those of the command line; those of the policy are in the house's own tests.
func (s *secured) refusals() {
	s.t.Helper()
	s.mustOpenssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-subj", "/CN=x", "-out", "x.csr")
	s.refused([]string{"ca", "init", "BAD"}, "a-z")
	s.refused([]string{"ca", "init", "self"}, "exists", "holdfast ca show self")
	s.refused([]string{"ca", "init", "m", "--mode", "root"}, "internal, self-signed and external")
	s.refused([]string{"ca", "init", "m", "--csr-out", "f"}, "--csr-out")
	s.refused([]string{"ca", "init", "m", "--field", "commonName"}, "FIELD=match")
	s.refused([]string{"ca", "init", "m", "--min-hash", "sha1"}, "SHA-1")
	s.refused([]string{"ca", "init", "m", "--valid-for", "soon"}, "--valid-for")
	s.refused([]string{"ca", "issue", "self", "--profile", "server"}, "--name or --subject")
	s.refused([]string{"ca", "issue", "self", "--profile", "nothing", "--name", "x", "--out", "n"}, "no profile")
	s.refused([]string{"ca", "issue", "self", "--name", "x", "--out", "n"}, "say what the certificate is for, with --profile", "docker-engine")
	if _, err := os.Stat(s.path("n")); err == nil {
		s.t.Error("a refused issue leaves files behind")
	}
	s.refused([]string{"ca", "sign", "self", "--profile", "server"}, "--csr")
	s.refused([]string{"ca", "sign", "nobody", "--profile", "server", "--csr", "x.csr"}, "no authority of that name", "holdfast ca list")
	s.refused([]string{"ca", "sign", "self", "--profile", "server", "--csr", "k.pem", "--host", "x"}, "bad certificate signing request")
	s.refused([]string{"ca", "revoke", "self"}, "say what to revoke")
	s.refused([]string{"ca", "revoke", "self", "12", "--name", "x"}, "one of")
	s.refused([]string{"ca", "revoke", "self", "12ab"}, "issued no such certificate", "holdfast ca certs self")
	s.refused([]string{"ca", "revoke", "self", "--name", "good", "--reason", "whim"}, "whim", "keyCompromise")
	s.refused([]string{"ca", "certs", "self", "--output", "xml"}, "openssl-index")
	s.refused([]string{"ca", "show", "self", "--output", "csr"}, "no signing request")
	s.refused([]string{"ca", "accept", "self", "--cert", "ext-chain.pem"}, "not an external authority")
	var list struct {
		Authorities []struct{ Name, Mode string }
	}
	check(s.t, json.Unmarshal([]byte(s.must("ca", "list", "--output", "json")), &list))
	if got := fmt.Sprint(list.Authorities); !strings.Contains(got, "{self self-signed}") || !strings.Contains(got, "{member role}") {
		s.t.Errorf("list: %s", got)
	}
}
