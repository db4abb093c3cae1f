package kmsapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	kms "k8s.io/kms/apis/v2"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/fuzztest/onemember"
	"holdfast.dev/holdfast/internal/policy"
)

// FuzzCiphertext: what sealCiphertext did not make does not open, and what it made is no other key's.
func FuzzCiphertext(f *testing.F) {
	key := bytes.Repeat([]byte{7}, keySize)
	good, err := sealCiphertext(rand.Reader, key, "id", []byte("seed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, "id")
	f.Add([]byte{0, 1}, "id")
	f.Add(append(make([]byte, len(good)), 7), "id")
	f.Add([]byte{ciphertextVersion}, "")
	f.Fuzz(func(t *testing.T, change []byte, id string) {
		sealed := slices.Clone(good) // which differs from run to run
		for i, c := range change {
			if i < len(sealed) {
				sealed[i] ^= c
			} else {
				sealed = append(sealed, c)
			}
		}
		fuzztest.Bounded(t, len(sealed), func() {
			if plain, err := openCiphertext(key, id, change); err == nil {
				t.Fatalf("opened %q", plain)
			}
			plain, err := openCiphertext(key, id, sealed)
			if (err == nil) != (bytes.Equal(sealed, good) && id == "id") || err == nil && string(plain) != "seed" {
				t.Fatalf("opened %q: %v", plain, err)
			}
			if err != nil {
				fuzztest.Hinted(t, err)
			}
		})
	})
}

func FuzzSocket(f *testing.F) {
	for _, s := range []string{"unix:///run/kms.sock", "unix:///@name", "unix://@name", "unix://", "unix:///@", "http://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, err := ParseSocket(text)
		if err == nil && (len(address) < 2 || address[0] != '/' && address[0] != '@') {
			t.Errorf("%q is the socket %q", text, address)
		}
	})
}

type plainSecrets struct{}

func (plainSecrets) Seal(_, _ string, secret []byte) ([]byte, error) { return secret, nil }
func (plainSecrets) Open(_, _ string, sealed []byte) ([]byte, error) { return sealed, nil }

func fuzzService(t testing.TB, who policy.Principal) *Service {
	return New(Options{
		Core: onemember.Start(t), Secrets: plainSecrets{}, System: policy.NewSystem("kms"), Cluster: onemember.Cluster, Now: onemember.Now, Rand: rand.Reader,
		Log: slog.New(slog.DiscardHandler), Principal: func(context.Context) policy.Principal { return who },
		Certify: func(context.Context, policy.Principal, EnrolRequest) (EnrolAnswer, error) { return EnrolAnswer{}, nil },
	})
}

// direct is a backend without a forwarder in between.
type direct struct {
	s   *Service
	who policy.Principal
}

func (d direct) Status(ctx context.Context) (StatusAnswer, error) { return d.s.Status(ctx, d.who) }
func (d direct) Encrypt(ctx context.Context, plain []byte) (Sealed, error) {
	return d.s.Encrypt(ctx, d.who, plain)
}
func (d direct) Decrypt(ctx context.Context, sealed Sealed) ([]byte, error) {
	return d.s.Decrypt(ctx, d.who, sealed)
}

// FuzzPlugin: requests of a kube-apiserver as they come over the socket. What is encrypted is decrypted to the same; nothing else is.
func FuzzPlugin(f *testing.F) {
	who := policy.NewSystem("kms")
	p := &plugin{backend: direct{fuzzService(f, who), who}, log: slog.New(slog.DiscardHandler)}
	for _, m := range []proto.Message{&kms.EncryptRequest{Plaintext: []byte("seed"), Uid: "u"}, &kms.DecryptRequest{Ciphertext: []byte("x"), KeyId: "id", Annotations: map[string][]byte{"a": nil}}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		fuzztest.Bounded(t, len(wire), func() {
			ctx := t.Context()
			var e kms.EncryptRequest
			if proto.Unmarshal(wire, &e) == nil {
				sealed, err := p.Encrypt(ctx, &e)
				if err == nil {
					d, err := p.Decrypt(ctx, &kms.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Annotations: sealed.Annotations, Uid: e.Uid})
					if err != nil || !bytes.Equal(d.Plaintext, e.Plaintext) || len(sealed.Ciphertext) > ciphertextLimit {
						t.Fatalf("%x came back as %v (%v)", e.Plaintext, d, err)
					}
				} else if len(e.Plaintext) <= plaintextLimit {
					t.Fatalf("%d bytes are refused: %v", len(e.Plaintext), err)
				}
			}
			var d kms.DecryptRequest
			if proto.Unmarshal(wire, &d) == nil {
				if out, err := p.Decrypt(ctx, &d); err == nil {
					t.Fatalf("%x opens as %x", wire, out.Plaintext)
				}
			}
		})
	})
}

// FuzzBodies: requests of `holdfast kms` and of administrators over HTTP. An answer is JSON, with a reason if it is a refusal.
func FuzzBodies(f *testing.F) {
	s := fuzzService(f, policy.NewSystem("kms"))
	h := s.Handler()
	paths := []string{Prefix + "encrypt", Prefix + "decrypt", Prefix + "rotate", Prefix + "certificate", EncryptionPrefix + "audit", EncryptionPrefix + "rewrite", EncryptionPrefix + "stored", EncryptionPrefix + "forget"}
	for i, body := range []string{`{}`, `{"plaintext":"c2VlZA=="}`, `{"keyID":"x","ciphertext":"AA=="}`, `{"x":1}`, `[`} {
		f.Add(uint8(i), body)
	}
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		at := paths[int(path)%len(paths)]
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, at, strings.NewReader(body)))
		var p problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusOK && p.Error == "" || w.Code == http.StatusInternalServerError {
			t.Errorf("%s %q: %d %s", at, body, w.Code, w.Body)
		}
	})
}
