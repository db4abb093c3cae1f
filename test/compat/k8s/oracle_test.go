package k8s

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"holdfast.dev/holdfast/internal/transform"
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

// load reads a configuration with both, and fails if only one of them takes it.
func load(t testing.TB, text string) (*transform.Set, encryptionconfig.StaticTransformers, bool) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	theirs, theirErr := encryptionconfig.LoadEncryptionConfig(t.Context(), name, false, "test")
	ours, ourErr := transform.Parse([]byte(text))
	if (theirErr == nil) != (ourErr == nil) {
		t.Errorf("%s\n\tHoldfast: %v\n\tkube-apiserver: %v", text, ourErr, theirErr)
	}
	if theirErr != nil || ourErr != nil {
		return nil, nil, false
	}
	return transform.NewSet(ours, ""), encryptionconfig.StaticTransformers(theirs.Transformers), true
}

// readBoth reads stored with both and compares value, staleness and the text of the error.
func readBoth(t testing.TB, ours *transform.Set, theirs value.Transformer, key string, stored []byte) {
	t.Helper()
	wantPlain, wantStale, wantErr := theirs.TransformFromStorage(context.Background(), stored, value.DefaultContext(key))
	plain, stale, err := ours.Decrypt([]byte(key), stored)
	switch {
	case wantErr == nil && err == nil:
		if !bytes.Equal(plain, wantPlain) || stale != wantStale {
			t.Errorf("%.80q: %.40q stale %v, want %.40q stale %v", stored, plain, stale, wantPlain, wantStale)
		}
	case wantErr == nil || err == nil || err.Error() != wantErr.Error():
		t.Errorf("%.80q:\n\tHoldfast: %v\n\tkube-apiserver: %v", stored, err, wantErr)
	}
}

var providers = []string{
	keyed("aesgcm", "key1", 16, 1), keyed("aesgcm", "key1", 24, 2), keyed("aesgcm", "key2", 32, 3), keyed("aesgcm", "key:1", 32, 4),
	keyed("aescbc", "key1", 16, 5), keyed("aescbc", "key1", 24, 6), keyed("aescbc", "key2", 32, 7),
	keyed("secretbox", "key1", 32, 8), keyed("secretbox", "key2", 32, 9), identity,
	fmt.Sprintf(`{"aesgcm":{"keys":[{"name":"key1","secret":"%s"},{"name":"key2","secret":"%s"},{"name":"key1","secret":"%s"}]}}`, secret(32, 10), secret(32, 3), secret(16, 1)),
}

// TestBothDirections: every pair of providers, either side writing, both reading, whole and mangled in every way.
func TestBothDirections(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	compared := 0
	for i, first := range providers {
		for j, second := range providers {
			list := []string{first, second}
			if i == j {
				list = list[:1]
			}
			ours, theirs, ok := load(t, file(`"secrets"`, list...))
			if !ok {
				t.Fatalf("%s is not taken", list)
			}
			them := theirs.TransformerForResource(secrets)
			for _, size := range []int{0, 1, 15, 16, 17, 4096, 3 << 19} {
				if size > 4096 && (i != j || testing.Short()) {
					continue
				}
				plain := make([]byte, size)
				if _, err := rand.Read(plain); err != nil {
					t.Fatal(err)
				}
				our, err := ours.Encrypt(rand.Reader, []byte(path), plain)
				if err != nil {
					t.Fatal(err)
				}
				their, err := them.TransformToStorage(t.Context(), plain, value.DefaultContext(path))
				if err != nil {
					t.Fatal(err)
				}
				if len(our) != len(their) {
					t.Errorf("%s stores %d bytes as %d, kube-apiserver as %d", first, size, len(our), len(their))
				}
				for _, stored := range [][]byte{our, their} {
					if got, _, err := them.TransformFromStorage(t.Context(), stored, value.DefaultContext(path)); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: kube-apiserver does not read it: %v", first, err)
					}
					for _, m := range variants(stored) {
						readBoth(t, ours, them, path, m)
						compared++
					}
					readBoth(t, ours, them, "/registry/secrets/one/s2", stored)
					for _, other := range providers {
						wrong, theirWrong, ok := load(t, file(`"secrets"`, other))
						if ok && size == 17 {
							readBoth(t, wrong, theirWrong.TransformerForResource(secrets), path, stored)
							compared++
						}
					}
					readBoth(t, transform.NewSet(nil, ""), encryptionconfig.StaticTransformers(nil).TransformerForResource(secrets), path, stored)
				}
			}
		}
	}
	t.Logf("%d reads compared", compared)
}

// variants returns stored, cut at many places and with bits flipped at many places. A value of aescbc that is nothing but its
// IV is left out: kube-apiserver panics on it.
func variants(stored []byte) [][]byte {
	out := [][]byte{stored}
	step := max(1, len(stored)/64)
	iv := -1
	if at := bytes.Index(stored, []byte("aescbc:v1:")); at >= 0 {
		rest := stored[at+len("aescbc:v1:"):]
		iv = len(stored) - len(rest) + bytes.IndexByte(rest, ':') + 1 + 16
	}
	for i := 0; i < len(stored); i += step {
		if i != iv {
			out = append(out, stored[:i])
		}
		flipped := bytes.Clone(stored)
		flipped[i] ^= 1
		out = append(out, flipped)
	}
	return out
}

func TestTheirOwnFiles(t *testing.T) {
	dir := moduleDir(t, "k8s.io/apiserver") + "/pkg/server/options/encryptionconfig/testdata"
	var files []string
	for _, pattern := range []string{"/*/*.yaml", "/*/*/*.yaml", "/*/*/*.json"} {
		more, err := filepath.Glob(dir + pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	if len(files) < 15 {
		t.Fatalf("only %d files in %s", len(files), dir)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "kms:") {
			// The one thing that differs on purpose: plugins are refused by name.
			if _, err := transform.Parse(data); err == nil {
				t.Errorf("%s is taken", name)
			}
			continue
		}
		if _, _, ok := load(t, string(data)); ok != strings.Contains(name, "/valid-configs/") {
			t.Errorf("%s: taken %v", name, ok)
		}
	}
}

// TestAcceptAndReject holds both parsers against each other; load complains about a difference.
func TestAcceptAndReject(t *testing.T) {
	good := keyed("aesgcm", "key1", 32, 1)
	head := `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1",`
	blocks := func(list ...string) string {
		var out []string
		for _, resources := range list {
			out = append(out, `{"resources":[`+resources+`],"providers":[`+good+`]}`)
		}
		return head + `"resources":[` + strings.Join(out, ",") + `]}`
	}
	texts := []string{
		file(`"secrets"`, good), file(`"secrets"`, good, identity), file(`"secrets"`, identity, good), file(`"secrets"`, good, good), file(`"secrets"`, identity, identity),
		blocks(`"secrets"`, `"secrets"`), blocks(`"secrets"`, `"*."`), blocks(`"*."`, `"secrets"`), blocks(`"*.*"`, `"secrets"`), blocks(`"*.apps"`, `"*.*"`), blocks(`"*.*"`, `"*.apps"`),
		blocks(`"*.apps"`, `"deployments.apps"`), blocks(`"deployments.apps"`, `"*.apps"`), blocks(`"*."`, `"*."`), blocks(`"*."`, `"*.apps"`), blocks(`"pandas.awesome.bears.example"`),
		file(`"*"`, good), file(`"*."`, good), file(`"*.*"`, good), file(`"secrets.*"`, good), file(`"Secrets"`, good), file(`"secrets."`, good), file(`".apps"`, good), file(`"a.b.c"`, good),
		file(`"secrets","secrets"`, good), file(`"secrets","*."`, good), file(`"*.apps","a.apps"`, good), file(`"*.*","*.apps"`, good), file(`"*.apps","*."`, good),
		file(`"events.events.k8s.io"`, good), file(`"*.events.k8s.io"`, good), file(`"events"`, good), file(`"*.extensions"`, good), file(`"a.extensions"`, good),
		file(`"apiserveripinfo"`, good), file(`"serviceipallocations"`, good), file(`"servicenodeportallocations"`, good),
		file(``, good), file(`"secrets"`), file(`"secrets"`, `{}`), file(`"secrets"`, `{"identity":{},`+good[1:]), file(`"secrets"`, `{"identity":null}`), file(`"secrets"`, `{"identity":{"x":1}}`),
		file(`"secrets"`, `{"aesgcm":null}`), file(`"secrets"`, `{"aesgcm":{}}`), file(`"secrets"`, `{"aesgcm":{"keys":[]}}`), file(`"secrets"`, `{"aesgcm":{"keys":null}}`),
		file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"a"}]}}`), file(`"secrets"`, `{"aesgcm":{"keys":[{"secret":"`+secret(16, 1)+`"}]}}`), file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"a","secret":"`+secret(16, 1)+`"},{"name":"a","secret":"`+secret(16, 1)+`"}]}}`),
		file(`"secrets"`, `{"aesgcm":{"keys":[{"name":1,"secret":"`+secret(16, 1)+`"}]}}`), file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"a","secret":5}]}}`),
		file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"a","secret":"`+strings.TrimRight(secret(16, 1), "=")+`"}]}}`), file(`"secrets"`, `{"AESGCM":{"keys":[{"name":"a","secret":"`+secret(16, 1)+`"}]}}`),
		file(`"secrets"`, `{"aesgcm":{"keys":[{"name":"a","secret":"_-_-_-_-_-_-_-_-_-_-_A=="}]}}`), file(`"secrets"`, `{"aesgcm":{"Keys":[{"name":"a","secret":"`+secret(16, 1)+`"}]}}`),
		`{"kind":"EncryptionConfig","apiVersion":"v1","resources":[{"resources":["secrets"],"providers":[` + identity + `]}]}`,
		`{"kind":"EncryptionConfig","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[` + identity + `]}]}`,
		`{"kind":"EncryptionConfiguration","apiVersion":"v1","resources":[{"resources":["secrets"],"providers":[` + identity + `]}]}`,
		`{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[],"x":1}`, head + `"resources":[]}`, head + `"resources":null}`, head[:len(head)-1] + `}`, ``, `{}`, `[]`, `null`, `x`, "\n\n",
		"kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  resources: [configmaps]\n  providers: [{identity: {}}]\n",
		"kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n  - identity: {}\n",
		"# comment\napiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources:\n  - secrets\n  - pandas.awesome.bears.example\n  providers:\n  - identity:\n      {}\n",
	}
	// A resource without a name is nothing that could be stored. kube-apiserver takes it, Holdfast says so.
	if _, err := transform.Parse([]byte(file(`""`, good))); err == nil {
		t.Error("a resource without a name is taken")
	}
	for _, size := range []int{0, 1, 15, 16, 17, 24, 31, 32, 33, 64} {
		for _, p := range []string{"aesgcm", "aescbc", "secretbox"} {
			texts = append(texts, file(`"secrets"`, keyed(p, "key1", size, 1)))
		}
	}
	taken := 0
	for _, text := range texts {
		if _, _, ok := load(t, text); ok {
			taken++
		}
	}
	t.Logf("%d configurations, %d taken by both", len(texts), taken)
}

// TestResourceRules: which rule a resource falls under is the same.
func TestResourceRules(t *testing.T) {
	text := `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[
		{"resources":["secrets","deployments.apps"],"providers":[` + keyed("aesgcm", "exact", 32, 1) + `]},
		{"resources":["*."],"providers":[` + keyed("aesgcm", "core", 32, 2) + `]},
		{"resources":["*.apps"],"providers":[` + keyed("aesgcm", "apps", 32, 3) + `]},
		{"resources":["secrets"],"providers":[` + identity + `]},
		{"resources":["*.*"],"providers":[` + keyed("aescbc", "rest", 32, 4) + `]}]}`
	text = strings.Replace(text, `{"resources":["secrets"],"providers":[`+identity+`]},`, "", 1) // masked by *. otherwise
	ours, theirs, ok := load(t, text)
	if !ok {
		t.Fatal("not taken")
	}
	for key, gr := range map[string]schema.GroupResource{
		"/registry/secrets/a/b": {Resource: "secrets"}, "/registry/configmaps/a/b": {Resource: "configmaps"}, "/registry/deployments/a/b": {Group: "apps", Resource: "deployments"},
		"/registry/replicasets/a/b": {Group: "apps", Resource: "replicasets"}, "/registry/jobs/a/b": {Group: "batch", Resource: "jobs"}, "/registry/bears.example/pandas/a/b": {Group: "bears.example", Resource: "pandas"},
	} {
		stored, err := theirs.TransformerForResource(gr).TransformToStorage(t.Context(), []byte("v"), value.DefaultContext(key))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(stored, []byte(ours.Writes([]byte(key)))) {
			t.Errorf("%s: %q, Holdfast writes %q", key, stored, ours.Writes([]byte(key)))
		}
		readBoth(t, ours, theirs.TransformerForResource(gr), key, stored)
	}
}

func FuzzRead(f *testing.F) {
	text := file(`"secrets"`, keyed("aesgcm", "key1", 32, 1), keyed("secretbox", "key1", 32, 2), identity, keyed("aesgcm", "key1", 16, 3))
	ours, theirs, ok := load(f, text)
	if !ok {
		f.Fatal("not taken")
	}
	them := theirs.TransformerForResource(schema.GroupResource{Resource: "secrets"})
	for _, seed := range []string{"k8s:enc:aesgcm:v1:key1:0123456789abcdef", "k8s:enc:secretbox:v1:key1:", "k8s:enc:", "plain", "k8s:enc:aesgcm:v1:other:x"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stored []byte) { readBoth(t, ours, them, path, stored) })
}
