package node_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/storage"
)

// encryptWith writes a configuration for secrets, aesgcm keys in order and then identity.
func (m *member) encryptWith(names ...string) {
	m.t.Helper()
	var providers []string
	for _, name := range names {
		secret := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(name[len(name)-1:]), 32))
		providers = append(providers, fmt.Sprintf(`{"aesgcm":{"keys":[{"name":%q,"secret":%q}]}}`, name, secret))
	}
	file := filepath.Join(m.t.TempDir(), "encryption.json")
	check(m.t, os.WriteFile(file, fmt.Appendf(nil, `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[%s,{"identity":{}}]}]}`,
		strings.Join(providers, ",")), 0o600))
	m.config.Seal.EncryptionConfig = file
}

func (m *member) storedAs(key string) string {
	m.t.Helper()
	var s struct{ Value []byte }
	if code := m.admin(http.MethodPost, "encryption/stored", fmt.Sprintf(`{"key":%q}`, base64.StdEncoding.EncodeToString([]byte(key))), &s); code != http.StatusOK {
		m.t.Fatalf("stored: %d", code)
	}
	return string(s.Value)
}

// TestEncryptionOnEveryMember: one member brings the configuration; one that joins later, from a snapshot, decrypts too;
// neither log nor state of any holds the plaintext.
func TestEncryptionOnEveryMember(t *testing.T) {
	t.Parallel()
	const key, canary = "/registry/secrets/one/s1", "canary-of-a-secret"
	one := server(t, "one")
	one.encryptWith("key1")
	one.start()
	put(t, one.client(), key, canary)
	two := server(t, "two")
	two.user, two.config.Join = one.user, one.token()
	two.start()
	three := server(t, "three")
	three.user, three.config.Join = one.user, one.token()
	three.start()
	ctx := timeout(t)
	prefix := "k8s:enc:aesgcm:v1:key1:"
	for i, m := range []*member{one, two, three} {
		cl := m.client()
		got, err := cl.Get(ctx, key)
		check(t, err)
		if string(got.Kvs[0].Value) != canary {
			t.Errorf("%s: %q", m.config.Name, got.Kvs[0].Value)
		}
		got, err = cl.Get(ctx, key, clientv3.WithSerializable())
		check(t, err)
		if string(got.Kvs[0].Value) != canary {
			t.Errorf("%s, serializable: %q", m.config.Name, got.Kvs[0].Value)
		}
		if stored := m.storedAs(key); !strings.HasPrefix(stored, prefix) {
			t.Errorf("%s: %q", m.config.Name, stored)
		}
		own := fmt.Sprintf("/registry/secrets/one/by-%s", m.config.Name)
		watch := two.client().Watch(ctx, own, clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
		<-watch
		put(t, cl, own, canary+"-before")
		put(t, cl, own, canary)
		var seen []string
		for len(seen) < 2 {
			for _, e := range (<-watch).Events {
				seen = append(seen, string(e.Kv.Value))
				if e.PrevKv != nil {
					seen[len(seen)-1] += "<" + string(e.PrevKv.Value)
				}
			}
		}
		if strings.Join(seen, " ") != canary+"-before "+canary+"<"+canary+"-before" {
			t.Errorf("watched through member %d: %q", i, seen)
		}
		res, err := cl.Txn(ctx).If(clientv3.Compare(clientv3.Value(own), "=", canary)).Then(clientv3.OpPut(own, canary, clientv3.WithPrevKV())).Commit()
		check(t, err)
		if !res.Succeeded || string(res.Responses[0].GetResponsePut().PrevKv.Value) != canary {
			t.Errorf("a comparison of values through %s: %+v", m.config.Name, res)
		}
	}
	// Another member brings a newer one: it is in force everywhere, also where an older one was declared.
	three.stop()
	three.encryptWith("key2", "key1")
	three.start()
	put(t, two.client(), key, canary)
	if stored := one.storedAs(key); !strings.HasPrefix(stored, "k8s:enc:aesgcm:v1:key2:") {
		t.Errorf("after the rotation: %q", stored)
	}
	one.stop()
	one.start() // it says what it said before, which is not news
	put(t, one.client(), key, canary)
	if stored := two.storedAs(key); !strings.HasPrefix(stored, "k8s:enc:aesgcm:v1:key2:") {
		t.Errorf("after a restart with the older file: %q", stored)
	}
	var s node.Status
	if one.admin(http.MethodGet, "status", "", &s); s.Encryption == nil || s.Encryption.Members != 2 || s.Encryption.Same != 1 {
		t.Errorf("%+v", s.Encryption)
	}
	for _, m := range []*member{one, two, three} {
		m.stop()
		m.holdsNo(canary)
	}
}

// holdsNo looks for text in every row and every log entry of a member that does not run.
func (m *member) holdsNo(text string) {
	m.t.Helper()
	d, err := node.OpenDirectory(m.config, m.env())
	check(m.t, err)
	rows, entries := 0, 0
	check(m.t, d.Rows(m.t.Context(), storage.Span{Start: []byte{0}}, 1<<20, func(key, value []byte) error {
		rows++
		if bytes.Contains(value, []byte(text)) {
			m.t.Errorf("%s: the row %q holds the plaintext", m.config.Name, key)
		}
		return nil
	}))
	check(m.t, node.ReadLog(m.config, m.env(), func(e replica.Logged) error {
		entries++
		if bytes.Contains(e.Data, []byte(text)) {
			m.t.Errorf("%s: entry %d holds the plaintext", m.config.Name, e.Index)
		}
		return nil
	}))
	check(m.t, d.Close())
	if rows == 0 || entries == 0 {
		m.t.Errorf("%d rows and %d entries looked at", rows, entries)
	}
}

// TestForgetEncryption: the way back to a store that knows of no configuration, which is refused until nothing needs it.
func TestForgetEncryption(t *testing.T) {
	t.Parallel()
	const key = "/registry/secrets/one/s1"
	m := server(t, "one")
	m.encryptWith("key1")
	m.start()
	put(t, m.client(), key, "v")
	forget := func() int { return m.admin(http.MethodPost, "encryption/forget", "{}", nil) }
	if code := forget(); code != http.StatusConflict {
		t.Errorf("while it is declared: %d", code)
	}
	m.stop()
	with := m.config.Seal.EncryptionConfig
	m.config.Seal.EncryptionConfig = ""
	m.start()
	if code := forget(); code != http.StatusConflict {
		t.Errorf("while a value is encrypted: %d", code)
	}
	if _, err := m.client().Get(timeout(t), key); err == nil || !strings.Contains(err.Error(), "identity transformer tried to read encrypted data") {
		t.Errorf("%v", err)
	}
	if _, err := m.client().Put(timeout(t), key, "k8s:enc:aescbc:v1:key:by an API server"); err == nil {
		t.Error("a value that nobody could read is taken")
	}
	m.stop()
	data, err := os.ReadFile(with)
	check(t, err)
	plain := strings.Replace(string(data), `"providers":[`, `"providers":[{"identity":{}},`, 1)
	plain = strings.Replace(plain, `,{"identity":{}}]`, `]`, 1)
	check(t, os.WriteFile(with, []byte(plain), 0o600))
	m.config.Seal.EncryptionConfig = with
	m.start()
	var step struct{ Written int }
	if code := m.admin(http.MethodPost, "encryption/rewrite", "{}", &step); code != http.StatusOK || step.Written != 1 {
		t.Errorf("%d, %+v", code, step)
	}
	if stored := m.storedAs(key); stored != "v" {
		t.Errorf("%q", stored)
	}
	m.stop()
	m.config.Seal.EncryptionConfig = ""
	m.start()
	if code := forget(); code != http.StatusOK {
		t.Errorf("when nothing needs it: %d", code)
	}
	put(t, m.client(), key, "k8s:enc:aescbc:v1:key:by an API server")
	wantKey(t, m.client(), key, "k8s:enc:aescbc:v1:key:by an API server")
}

// TestWrongEncryptionConfig: a wrong file founds no cluster, and says no secret.
func TestWrongEncryptionConfig(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"aesgcm":{"keys":[{"name":"k","secret":"c2VjcmV0"}]}}]}]}`:        "6 bytes",
		`{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"kms":{"apiVersion":"v2","name":"k","endpoint":"unix:///x"}}]}]}`: "calls no KMS plugin",
	} {
		m := server(t, "one")
		m.config.Seal.EncryptionConfig = filepath.Join(t.TempDir(), "encryption.json")
		check(t, os.WriteFile(m.config.Seal.EncryptionConfig, []byte(text), 0o600))
		m.refuses(want)
		if _, err := os.Stat(m.config.DataDir); err == nil {
			t.Error("a wrong file founded a cluster")
		}
	}
	c := config.Etcd()
	c.Seal.EncryptionConfig = "x"
	if _, err := c.Validate(); err == nil || !strings.Contains(err.Error(), "only `holdfast server` takes one") {
		t.Errorf("%v", err)
	}
}
