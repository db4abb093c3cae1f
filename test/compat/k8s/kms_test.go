package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"
)

// apiServer is what a kube-apiserver does with a KMS v2 plugin: poll Status, make a seed when the key changes, encrypt and
// decrypt with it.
type apiServer struct {
	t       *testing.T
	service kmsservice.Service
	state   atomic.Pointer[kmsv2.State]
	value.Transformer
}

func newAPIServer(t *testing.T, endpoint, name string) *apiServer {
	t.Helper()
	service, err := kmsv2.NewGRPCService(t.Context(), endpoint, name, 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	a := &apiServer{t: t, service: service}
	a.Transformer = kmsv2.NewEnvelopeTransformer(service, name, func() (kmsv2.State, error) {
		s := a.state.Load()
		if s == nil {
			return kmsv2.State{}, errors.New("no key yet")
		}
		return *s, s.ValidateEncryptCapability()
	}, "test")
	return a
}

// poll is the probe that runs every minute.
func (a *apiServer) poll() error {
	status, err := a.service.Status(a.t.Context())
	if err != nil {
		return err
	}
	if status.Healthz != "ok" || status.Version != "v2" {
		return fmt.Errorf("status %+v", status)
	}
	if code, err := kmsv2.ValidateKeyID(status.KeyID); err != nil {
		return fmt.Errorf("key id %s: %w", code, err)
	}
	state := kmsv2.State{UID: "uid", ExpirationTimestamp: time.Now().Add(3 * time.Minute)}
	if have := a.state.Load(); have != nil && have.EncryptedObjectKeyID == status.KeyID {
		state = *have
		state.ExpirationTimestamp = time.Now().Add(3 * time.Minute)
		a.state.Store(&state)
		return nil
	}
	transformer, object, cacheKey, err := kmsv2.GenerateTransformer(a.t.Context(), "uid", a.service, true)
	if err != nil {
		return err
	}
	if object.KeyID != status.KeyID {
		return fmt.Errorf("encrypted with %s, the status says %s", object.KeyID, status.KeyID)
	}
	if len(object.EncryptedDEKSource) > 1024 {
		return fmt.Errorf("%d bytes of ciphertext", len(object.EncryptedDEKSource))
	}
	state.Transformer, state.EncryptedObjectKeyID, state.EncryptedObjectEncryptedDEKSource = transformer, object.KeyID, object.EncryptedDEKSource
	state.EncryptedObjectAnnotations, state.EncryptedObjectEncryptedDEKSourceType, state.CacheKey = object.Annotations, object.EncryptedDEKSourceType, cacheKey
	a.state.Store(&state)
	return nil
}

func (a *apiServer) mustPoll() {
	a.t.Helper()
	if err := a.poll(); err != nil {
		a.t.Fatal(err)
	}
}

func (a *apiServer) write(key, plain string) []byte {
	a.t.Helper()
	stored, err := a.TransformToStorage(a.t.Context(), []byte(plain), value.DefaultContext(key))
	if err != nil {
		a.t.Fatal(err)
	}
	if bytes.Contains(stored, []byte(plain)) {
		a.t.Fatalf("%q", stored)
	}
	return stored
}

func (a *apiServer) reads(key string, stored []byte, want string, wantStale bool) {
	a.t.Helper()
	plain, stale, err := a.TransformFromStorage(a.t.Context(), stored, value.DefaultContext(key))
	if err != nil || string(plain) != want || stale != wantStale {
		a.t.Errorf("%q stale %v, %v; want %q stale %v", plain, stale, err, want, wantStale)
	}
}

// TestKMS takes Kubernetes' own client of KMS v2 through keys, rotation, restarts and refusals, on three members.
func TestKMS(t *testing.T) {
	l := newLab(t)
	one := l.member("one")
	for _, name := range []string{"two", "three"} {
		token, _, _ := strings.Cut(l.must("token", "create"), "\n")
		l.member(name, "--join", token)
	}
	socket := filepath.Join(l.dir, "kms.sock")
	endpoint := "unix://" + socket
	l.must("kms", "enroll", "control-plane-1", "--out", "identity")
	plugin := l.start("the present key", "kms", "--listen", endpoint, "--identity", "identity")
	if info, err := os.Stat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if out, err := l.call("kms", "--listen", endpoint, "--identity", "identity"); err == nil || !strings.Contains(out, "somebody listens on the socket already") {
		t.Errorf("a live socket is taken over: %v\n%s", err, out)
	}
	a := newAPIServer(t, endpoint, "first")
	a.mustPoll()
	first := a.state.Load().EncryptedObjectKeyID
	old := a.write("/registry/secrets/a/1", "the first secret")
	a.reads("/registry/secrets/a/1", old, "the first secret", false)
	if _, _, err := a.TransformFromStorage(t.Context(), old, value.DefaultContext("/registry/secrets/a/2")); err == nil {
		t.Error("a value moved to another key is read")
	}

	// Rotation: the id flips, old values are stale and readable.
	l.must("kms", "rotate")
	a.mustPoll()
	second := a.state.Load().EncryptedObjectKeyID
	if second == first {
		t.Errorf("after rotation the key id is still %s", first)
	}
	a.reads("/registry/secrets/a/1", old, "the first secret", true)
	newer := a.write("/registry/secrets/a/2", "the second secret")

	// Another API server, which has no seed in memory, after the plugin and the founder were killed.
	plugin.kill() // leaves its socket file, which nobody listens on
	one.kill()
	plugin.run("the present key")
	b := newAPIServer(t, endpoint, "second")
	until(t, "a status from the two members left", b.poll)
	b.reads("/registry/secrets/a/1", old, "the first secret", true)
	b.reads("/registry/secrets/a/2", newer, "the second secret", false)
	if got := b.state.Load().EncryptedObjectKeyID; got != second {
		t.Errorf("the key id %s changed without a rotation: %s", second, got)
	}
	one.run("ready to serve client requests")

	mangled(t, l, b)
	wrongRoles(t, l)
	revoked(t, l, a)
}

// mangled asks the plugin itself for what an attacker would ask.
func mangled(t *testing.T, l *lab, a *apiServer) {
	t.Helper()
	ctx := t.Context()
	sealed, err := a.service.Encrypt(ctx, "uid", []byte("a seed of 32 bytes, more or less"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := a.service.Decrypt(ctx, "another uid", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyID: sealed.KeyID})
	if err != nil || string(plain) != "a seed of 32 bytes, more or less" {
		t.Fatalf("%q %v", plain, err)
	}
	refuse := func(what string, r *kmsservice.DecryptRequest) {
		t.Helper()
		if plain, err := a.service.Decrypt(ctx, "uid", r); err == nil {
			t.Errorf("%s: %q", what, plain)
		}
	}
	flipped := bytes.Clone(sealed.Ciphertext)
	flipped[len(flipped)-1] ^= 1
	refuse("a flipped bit", &kmsservice.DecryptRequest{Ciphertext: flipped, KeyID: sealed.KeyID})
	refuse("cut", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext[:40], KeyID: sealed.KeyID})
	refuse("an unknown key", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyID: "holdfast-0-9-0"})
	refuse("a path for a key", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyID: "../encryption/x"})
	refuse("no key", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext})
	l.must("kms", "rotate")
	status, err := a.service.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	refuse("another key of the cluster", &kmsservice.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyID: status.KeyID})
	if _, err := a.service.Encrypt(ctx, "uid", make([]byte, 976)); err == nil {
		t.Error("a ciphertext of more than 1 kB was made")
	}
	if long, err := a.service.Encrypt(ctx, "uid", make([]byte, 975)); err != nil || len(long.Ciphertext) > 1024 {
		t.Errorf("975 bytes: %v", err)
	}
}

// wrongRoles: a client of the store may not use keys, who may use keys may do nothing else.
func wrongRoles(t *testing.T, l *lab) {
	t.Helper()
	l.must("ca", "issue", "client", "--name", "alice", "--out", "alice")
	endpoints := strings.ReplaceAll(strings.TrimSpace(readFile(t, l.dir+"/identity/endpoints")), "\n", ",")
	asAlice := []string{"--endpoints", endpoints, "--cacert", "identity/ca.pem", "--cert", "alice/cert.pem", "--key", "alice/key.pem"}
	asPlugin := []string{"--endpoints", endpoints, "--cacert", "identity/ca.pem", "--cert", "identity/identity.pem", "--key", "identity/identity.pem"}
	for _, c := range [][]string{
		append([]string{"kms", "status"}, asAlice...), append([]string{"kms", "rotate"}, asAlice...), append([]string{"kms", "enroll", "mallory", "--out", "mallory"}, asAlice...),
		append([]string{"kms", "rotate"}, asPlugin...), append([]string{"kms", "enroll", "mallory", "--out", "mallory"}, asPlugin...),
		append([]string{"seal", "encryption", "status"}, asPlugin...), append([]string{"debug", "raw-get", "--stored", "/registry/x"}, asPlugin...),
		append([]string{"token", "create"}, asPlugin...), append([]string{"ca", "list"}, asAdminFlags(asPlugin)...),
		append([]string{"ctl", "get", "/registry/x"}, asPlugin...), append([]string{"ctl", "put", "/registry/x", "y"}, asPlugin...), append([]string{"ctl", "member", "list"}, asPlugin...),
	} {
		if out, err := l.call(c...); err == nil || !strings.Contains(out, "permission denied") {
			t.Errorf("%v: %v\n%s", c[:2], err, out)
		}
	}
	if out, err := l.call(append([]string{"kms", "status"}, asPlugin...)...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	stranger := l.start("the cluster does not answer yet", append([]string{"kms", "--listen", "unix:///@holdfast-test-" + filepath.Base(l.dir)}, asAlice...)...)
	defer stranger.stop()
	a := newAPIServer(t, "unix:///@holdfast-test-"+filepath.Base(l.dir), "stranger")
	if err := a.poll(); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a plugin with a client's certificate: %v", err)
	}
}

func asAdminFlags(flags []string) []string {
	out := append([]string(nil), flags...)
	for i := range out {
		switch out[i] {
		case "--cert":
			out[i] = "--client-cert"
		case "--key":
			out[i] = "--client-key"
		}
	}
	return out
}

// revoked: with its certificate revoked the plugin says why it is of no use, at once.
func revoked(t *testing.T, l *lab, a *apiServer) {
	t.Helper()
	if _, err := a.service.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.must("ca", "revoke", "kms", "--name", "control-plane-1", "--reason", "keyCompromise")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := a.service.Status(ctx)
	if err == nil {
		t.Fatal("a revoked certificate still works")
	}
	t.Logf("after the revocation: %v", err)
	if _, err := a.service.Encrypt(ctx, "uid", []byte("x")); err == nil {
		t.Error("a revoked certificate still encrypts")
	}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestStatusWithoutCluster: while nobody answers, Status fails with the reason.
func TestStatusWithoutCluster(t *testing.T) {
	l := newLab(t)
	one := l.member("one")
	l.must("kms", "enroll", "cp", "--out", "identity")
	endpoint := "unix://" + filepath.Join(l.dir, "kms.sock")
	l.start("the present key", "kms", "--listen", endpoint, "--identity", "identity")
	a := newAPIServer(t, endpoint, "alone")
	a.mustPoll()
	one.kill()
	if err := a.poll(); err == nil || !strings.Contains(err.Error(), "no member of the cluster answers") {
		t.Errorf("%v", err)
	}
	one.run("ready to serve client requests")
	until(t, "the status after a restart", a.poll)
	var status struct {
		Encryption json.RawMessage `json:"encryption"`
	}
	if err := json.Unmarshal([]byte(l.must("status", "-o", "json")), &status); err != nil || status.Encryption != nil {
		t.Errorf("%s %v", status.Encryption, err)
	}
}
