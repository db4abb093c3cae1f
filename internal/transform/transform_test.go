package transform

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/fuzztest"
)

const path = "/registry/secrets/one/s1"

func secret(n int, fill byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, n))
}

func keyed(provider, name string, size int, fill byte) string {
	return fmt.Sprintf(`{"%s":{"keys":[{"name":"%s","secret":"%s"}]}}`, provider, name, secret(size, fill))
}

const identity = `{"identity":{}}`

func file(resources string, providers ...string) string {
	return `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":[` +
		resources + `],"providers":[` + strings.Join(providers, ",") + `]}]}`
}

func set(t *testing.T, text string) *Set {
	t.Helper()
	c, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return NewSet(c, "")
}

func secrets(t *testing.T, providers ...string) *Set { return set(t, file(`"secrets"`, providers...)) }

func refused(t *testing.T, s *Set, key string, stored []byte, reason string) {
	t.Helper()
	_, _, err := s.Decrypt([]byte(key), stored)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.Corrupt || f.Reason != reason {
		t.Errorf("%.60q under %s: %v, want %q", stored, key, err, reason)
	}
}

func encrypted(t *testing.T, s *Set, plain string) []byte {
	t.Helper()
	stored, err := s.Encrypt(rand.Reader, []byte(path), []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

func TestWhatMustNotBeRead(t *testing.T) {
	gcm := secrets(t, keyed("aesgcm", "key1", 32, 1), identity)
	stored := encrypted(t, gcm, "a value")
	if !bytes.HasPrefix(stored, []byte("k8s:enc:aesgcm:v1:key1:")) || bytes.Contains(stored, []byte("a value")) {
		t.Fatalf("%q", stored)
	}
	const failed = "cipher: message authentication failed"
	refused(t, secrets(t, keyed("aesgcm", "key1", 32, 2)), path, stored, failed)
	for i := len("k8s:enc:aesgcm:v1:key1:"); i < len(stored); i++ {
		flipped := bytes.Clone(stored)
		flipped[i] ^= 1
		refused(t, gcm, path, flipped, failed)
	}
	refused(t, gcm, "/registry/secrets/one/s2", stored, failed)
	refused(t, secrets(t, keyed("aesgcm", "key2", 32, 1)), path, stored, "no matching key was found for the provided AES transformer")
	refused(t, gcm, path, []byte("k8s:enc:aesgcm:v1:key1:"), "the stored data was shorter than the required size")
	refused(t, gcm, path, stored[:len(stored)-1], failed)
	refused(t, NewSet(nil, ""), path, stored, "identity transformer tried to read encrypted data")
	refused(t, gcm, "/registry/configmaps/one/s1", stored, "identity transformer tried to read encrypted data")
	refused(t, secrets(t, keyed("aesgcm", "key1", 32, 1)), path, []byte("plain"), "no matching prefix found")
	refused(t, secrets(t, identity), path, stored, "no matching prefix found")
	refused(t, secrets(t, keyed("aescbc", "key1", 32, 1)), path, stored, "no matching prefix found")

	box := secrets(t, keyed("secretbox", "key1", 32, 1))
	sealed := encrypted(t, box, "a value")
	refused(t, box, path, append(sealed[:len(sealed)-1:len(sealed)-1], sealed[len(sealed)-1]^1), "output array was not large enough for encryption")
	refused(t, box, path, sealed[:40], "the stored data was shorter than the required size")
	refused(t, secrets(t, keyed("secretbox", "key2", 32, 1)), path, sealed, "no matching key was found for the provided Secretbox transformer")

	cbc := secrets(t, keyed("aescbc", "key1", 32, 1))
	padded := encrypted(t, cbc, "a value")
	head := len("k8s:enc:aescbc:v1:key1:")
	refused(t, cbc, path, padded[:head+16], "invalid PKCS7 data (empty or not padded)") // nothing but the IV
	refused(t, cbc, path, padded[:head+15], "the stored data was shorter than the required size")
	refused(t, cbc, path, padded[:head+17], "the stored data is not a multiple of the block size")
}

func TestRoundTripsAndStaleness(t *testing.T) {
	one, two := keyed("aesgcm", "key1", 32, 1), keyed("aesgcm", "key2", 16, 2)
	for _, p := range []string{one, two, keyed("aescbc", "key1", 24, 3), keyed("secretbox", "k", 32, 4), identity} {
		s := secrets(t, p)
		for _, size := range []int{0, 1, 15, 16, 17, 4096} {
			want := bytes.Repeat([]byte{'v'}, size)
			stored, err := s.Encrypt(rand.Reader, []byte(path), want)
			if err != nil {
				t.Fatal(err)
			}
			got, stale, err := s.Decrypt([]byte(path), stored)
			if err != nil || stale || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: %v, stale %v", p, size, err, stale)
			}
		}
	}
	old := encrypted(t, secrets(t, one), "v")
	both := secrets(t, two, one, identity)
	for _, stored := range [][]byte{old, []byte("v")} {
		plain, stale, err := both.Decrypt([]byte(path), stored)
		if err != nil || !stale || string(plain) != "v" {
			t.Errorf("%q: %q, stale %v, %v", stored, plain, stale, err)
		}
	}
	rotated := secrets(t, fmt.Sprintf(`{"aesgcm":{"keys":[{"name":"key2","secret":"%s"},{"name":"key1","secret":"%s"}]}}`, secret(16, 2), secret(32, 1)))
	if _, stale, err := rotated.Decrypt([]byte(path), old); err != nil || !stale {
		t.Errorf("a second key: stale %v, %v", stale, err)
	}
	// Overlapping names: an error of one key does not keep the next from being tried.
	overlap := secrets(t, keyed("aescbc", "a", 16, 1), keyed("aescbc", "a:b", 16, 2))
	if plain, stale, err := overlap.Decrypt([]byte(path), encrypted(t, secrets(t, keyed("aescbc", "a:b", 16, 2)), "v")); err != nil || !stale || string(plain) != "v" {
		t.Errorf("overlapping names: %q %v %v", plain, stale, err)
	}
}

func TestReservedPrefixIsNotStoredInPlain(t *testing.T) {
	for _, s := range []*Set{secrets(t, identity), NewSet(nil, "")} {
		if _, err := s.Encrypt(rand.Reader, []byte(path), []byte("k8s:enc:aescbc:v1:x:...")); !errors.Is(err, ErrReserved) {
			t.Errorf("%v", err)
		}
	}
	s := secrets(t, keyed("aesgcm", "key1", 32, 1))
	stored := encrypted(t, s, "k8s:enc:aescbc:v1:x:...")
	if plain, _, err := s.Decrypt([]byte(path), stored); err != nil || string(plain) != "k8s:enc:aescbc:v1:x:..." {
		t.Errorf("%q, %v", plain, err)
	}
}

func TestResources(t *testing.T) {
	s := NewSet(nil, "registry/")
	for key, want := range map[string]string{
		"/registry/secrets/default/a":                                        "secrets",
		"/registry/secrets":                                                  "secrets",
		"/registry/deployments/default/a":                                    "deployments.apps",
		"/registry/minions/n1":                                               "nodes",
		"/registry/controllers/default/a":                                    "replicationcontrollers",
		"/registry/services/specs/default/a":                                 "services",
		"/registry/services/endpoints/default/a":                             "endpoints",
		"/registry/ingress/default/a":                                        "ingresses.networking.k8s.io",
		"/registry/leases/kube-system/a":                                     "leases.coordination.k8s.io",
		"/registry/events/default/a":                                         "events",
		"/registry/apiregistration.k8s.io/apiservices/v1.apps":               "apiservices.apiregistration.k8s.io",
		"/registry/apiextensions.k8s.io/customresourcedefinitions/a.example": "customresourcedefinitions.apiextensions.k8s.io",
		"/registry/awesome.bears.example/pandas/default/a":                   "pandas.awesome.bears.example",
		"/registry/ranges/serviceips":                                        "",
		"/registry/masterleases/10.0.0.1":                                    "",
		"/registry/":                                                         "",
		"/registryother/secrets/a":                                           "",
		"/elsewhere":                                                         "",
	} {
		gr, ok := s.Resource([]byte(key))
		if got := gr.String(); !ok && want != "" || ok && got != want {
			t.Errorf("%s: %q (%v), want %q", key, got, ok, want)
		}
	}
}

func TestWildcards(t *testing.T) {
	block := func(resources string, name string) string {
		return `{"resources":[` + resources + `],"providers":[` + keyed("aesgcm", name, 32, name[0]) + `,` + identity + `]}`
	}
	s := set(t, `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[`+strings.Join([]string{
		block(`"configmaps"`, "exact"), block(`"*."`, "core"), block(`"*.apps"`, "apps"), block(`"*.*"`, "rest"),
	}, ",")+`]}`)
	for key, want := range map[string]string{
		"/registry/configmaps/a/b":         "k8s:enc:aesgcm:v1:exact:",
		"/registry/secrets/a/b":            "k8s:enc:aesgcm:v1:core:",
		"/registry/deployments/a/b":        "k8s:enc:aesgcm:v1:apps:",
		"/registry/pods.example/x/b":       "k8s:enc:aesgcm:v1:rest:",
		"/registry/masterleases/127.0.0.1": "",
		"/other/secrets/a/b":               "",
	} {
		if got := s.Writes([]byte(key)); got != want {
			t.Errorf("%s is written as %q, want %q", key, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := keyed("aesgcm", "key1", 32, 1)
	head := `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1",`
	for text, want := range map[string]string{
		"":                       "empty",
		head + `"resources":[]}`: "at least one element",
		`{"kind":"Secret","apiVersion":"v1","resources":[]}`:         "expected EncryptionConfiguration",
		strings.Replace(file(`"secrets"`, good), "v1", "v1beta9", 1): "expected EncryptionConfiguration",
		file(``, good):          "at least one resource",
		file(`"secrets"`):       "at least one provider",
		file(`"secrets"`, `{}`): "none of the providers",
		file(`"secrets"`, `{"identity":{},"aesgcm":{"keys":[]}}`): "more than one provider",
		file(`"*"`, good):                                                                 `"*.*"`,
		file(`"secrets.*"`, good):                                                         "over all groups",
		file(`"Secrets"`, good):                                                           "small letters",
		file(`"deployments.extensions"`, good):                                            "does not exist any more",
		file(`"events.events.k8s.io"`, good):                                              `write "events"`,
		file(`"*.events.k8s.io"`, good):                                                   `write "events"`,
		file(`"apiserveripinfo"`, good):                                                   "no resource of the API",
		file(`"secrets","secrets"`, good):                                                 "there twice",
		file(`"secrets","*."`, good):                                                      "wildcard that includes it",
		file(`"*.*","pandas.bears"`, good):                                                "wildcard that includes it",
		file(`"secrets"`, `{"aesgcm":{"keys":[]}}`):                                       "at least one key",
		file(`"secrets"`, keyed("aesgcm", "", 32, 1)):                                     "needs a name",
		file(`"secrets"`, keyed("aesgcm", "k", 0, 1)):                                     "needs a secret",
		file(`"secrets"`, keyed("aesgcm", "k", 20, 1)):                                    "20 bytes",
		file(`"secrets"`, keyed("secretbox", "k", 16, 1)):                                 "16 bytes",
		file(`"secrets"`, `{"aescbc":{"keys":[{"name":"k","secret":"not base64!"}]}}`):    "not base64",
		file(`"secrets"`, `{"aescbc":{"keys":[{"name":"k","secret":"c2VjcmV0","x":1}]}}`): "field x not found",
		file(`"secrets"`, `{"aescbc":{"keys":[{"name":1,"secret":"c2VjcmV0"}]}}`):         "expected a string",
		file(`"secrets"`, `{"aesgcmm":{}}`):                                               "field aesgcmm not found",
		file(`"secrets"`, `{"AESGCM":{}}`):                                                "field AESGCM not found",
		file(`"secrets"`, `{"kms":{"name":"a","endpoint":"unix:///a.sock"}}`):             "kms v1",
		file(`"secrets"`, `{"kms":{"apiVersion":"v2","name":"a","endpoint":"unix:///a.sock","timeout":"3s"}}`):                            "kms v2",
		file(`"secrets"`, good) + "\n---\n" + file(`"secrets"`, good):                                                                     "more than one document",
		head + `"resources":[` + `{"resources":["*."],"providers":[` + good + `]},{"resources":["secrets"],"providers":[` + good + `]}]}`: `resource "secrets" is masked by earlier rule "*."`,
		head + `"resources":[` + `{"resources":["*.*"],"providers":[` + good + `]},{"resources":["a.b"],"providers":[` + good + `]}]}`:    `resource "a.b" is masked by earlier rule "*.*"`,
	} {
		_, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n\tgave %v, want something with %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("the error shows a secret: %v", err)
		}
	}
}

func TestErrorsShowNoSecret(t *testing.T) {
	for _, text := range []string{
		"kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm: S3CR3T\n",
		"kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm:\n      keys: [S3CR3T]\n",
		"kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources: S3CR3T\n",
		file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"k","secret":["S3CR3T"]}]}}`),
	} {
		if _, err := Parse([]byte(text)); err == nil || strings.Contains(err.Error(), "S3CR3T") {
			t.Errorf("%v", err)
		}
	}
}

func TestCanonical(t *testing.T) {
	yamlText := "# a comment\napiVersion: v1\nkind: EncryptionConfig\nresources:\n  - resources: [secrets]\n    providers:\n      - aesgcm: {keys: [{name: key1, secret: " + secret(32, 1) + "}]}\n      - identity: {}\n"
	a, err := Parse([]byte(yamlText))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(file(`"secrets"`, keyed("aesgcm", "key1", 32, 1), identity)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Canonical(), b.Canonical()) {
		t.Errorf("%s\n%s", a.Canonical(), b.Canonical())
	}
	again, err := Parse(a.Canonical())
	if err != nil || !bytes.Equal(again.Canonical(), a.Canonical()) {
		t.Errorf("%v", err)
	}
	if w := b.Warnings(); len(w) != 0 {
		t.Errorf("%q", w)
	}
	c, err := Parse([]byte(file(`"secrets"`, identity, keyed("aescbc", "key1", 32, 1))))
	if err != nil || len(c.Warnings()) != 1 {
		t.Errorf("%v", err)
	}
}

func TestLabel(t *testing.T) {
	for stored, want := range map[string]string{
		"plain": "identity", "": "identity", "k8s:enc:aesgcm:v1:key1:\x00\x01": "aesgcm:key1",
		"k8s:enc:kms:v2:mine:\x0a": "kms:v2:mine", "k8s:enc:": "unknown", "k8s:enc:aesgcm:v1:\x00\x01:x": "unknown",
	} {
		if got := Label([]byte(stored)); got != want {
			t.Errorf("%q: %q, want %q", stored, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file(`"secrets"`, keyed("aesgcm", "key1", 32, 1), identity)))
	f.Add([]byte("kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: ['*.*']\n  providers: [{identity: {}}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c *Config
		var err error
		fuzztest.Bounded(t, len(data), func() { c, err = Parse(data) })
		if err != nil {
			return
		}
		again, err := Parse(c.Canonical())
		if err != nil || !bytes.Equal(again.Canonical(), c.Canonical()) {
			t.Fatalf("the canonical form of %q does not stand: %v", data, err)
		}
	})
}

func FuzzDecrypt(f *testing.F) {
	text := file(`"secrets"`, keyed("aesgcm", "key1", 32, 1), keyed("aescbc", "key1", 32, 1), keyed("secretbox", "key1", 32, 1), identity)
	c, err := Parse([]byte(text))
	if err != nil {
		f.Fatal(err)
	}
	s := NewSet(c, "")
	for _, kind := range []string{"aesgcm", "aescbc", "secretbox"} {
		f.Add([]byte("k8s:enc:" + kind + ":v1:key1:0123456789abcdef"))
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		plain, _, err := s.Decrypt([]byte(path), stored)
		if err == nil && !bytes.HasPrefix(stored, []byte(encPrefix)) && !bytes.Equal(plain, stored) {
			t.Fatal("a plain value changed")
		}
		Label(stored)
	})
}
