package kmsapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kms "k8s.io/kms/apis/v2"

	"holdfast.dev/holdfast/internal/fault"
)

func TestCiphertext(t *testing.T) {
	kek, other := bytes.Repeat([]byte{1}, keySize), bytes.Repeat([]byte{2}, keySize)
	for _, size := range []int{0, 1, 32, plaintextLimit} {
		plain := bytes.Repeat([]byte{7}, size)
		sealed, err := sealCiphertext(rand.Reader, kek, "id", plain)
		if err != nil || len(sealed) > ciphertextLimit {
			t.Fatalf("%d bytes: %d, %v", size, len(sealed), err)
		}
		again, err := sealCiphertext(rand.Reader, kek, "id", plain)
		if err != nil || bytes.Equal(sealed, again) {
			t.Errorf("the same ciphertext twice: %v", err)
		}
		if got, err := openCiphertext(kek, "id", sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%v", err)
		}
		refused := func(what string, kek []byte, id string, sealed []byte) {
			t.Helper()
			if _, err := openCiphertext(kek, id, sealed); !errors.Is(err, ErrCiphertext) {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("another key", other, "id", sealed)
		refused("another id", kek, "id2", sealed)
		for i := range sealed {
			flipped := bytes.Clone(sealed)
			flipped[i] ^= 0x10
			refused("a flipped bit", kek, "id", flipped)
			refused("cut", kek, "id", sealed[:i])
		}
		refused("longer", kek, "id", append(bytes.Clone(sealed), 0))
	}
	if _, err := sealCiphertext(rand.Reader, kek, "id", make([]byte, plaintextLimit+1)); !errors.Is(err, ErrPlaintextSize) {
		t.Errorf("%v", err)
	}
	// The format does not change: made once, with a salt of 32 times 5.
	const golden = "010505050505050505050505050505050505050505050505050505050505050505"
	sealed, err := sealCiphertext(bytes.NewReader(bytes.Repeat([]byte{5}, saltSize)), kek, "holdfast-1-1-0", []byte("seed"))
	if err != nil || !strings.HasPrefix(hexOf(sealed), golden) || hexOf(sealed[1+saltSize:]) != goldenBody {
		t.Errorf("%s %v", hexOf(sealed), err)
	}
}

const goldenBody = "1f4c0fe3a9b995843d563f8f6476d69a1de625a8"

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func TestSocket(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///run/x.sock": "/run/x.sock", "unix:///@name": "@name", "unix://@name": "@name",
		"unix://": "", "unix:///": "", "unix:///@": "", "unix://relative": "", "/run/x": "", "tcp://a:1": "", "": "",
	} {
		if got, err := ParseSocket(endpoint); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", endpoint, got, err)
		}
	}
	path := filepath.Join(t.TempDir(), "kms.sock")
	if err := os.WriteFile(path, []byte("not a socket"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path); err == nil {
		t.Error("a file was replaced")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if _, err := Listen(t.Context(), path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("a live socket: %v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first does not live any more: %v", err)
	} else {
		conn.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
	// A crash leaves the file.
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	if l, err = Listen(t.Context(), path); err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	l.Close()
}

func TestForwarder(t *testing.T) {
	var asked []string
	answers := map[string]error{"a": errors.New("connection refused"), "b": nil, "c": nil}
	f := NewForwarder([]string{"a", "b", "c"}, func(_ context.Context, endpoint, _ string, _, _ any) error {
		asked = append(asked, endpoint)
		return answers[endpoint]
	})
	ask := func(want string) error {
		t.Helper()
		asked = nil
		_, err := f.Status(t.Context())
		if got := strings.Join(asked, ""); got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		return err
	}
	if err := ask("ab"); err != nil {
		t.Error(err)
	}
	if err := ask("b"); err != nil { // who answered last is first
		t.Error(err)
	}
	answers["b"] = fault.New(fault.Denied, "permission denied") // a refusal is an answer
	if err := ask("b"); fault.From(err).Kind != fault.Denied {
		t.Error(err)
	}
	answers["b"] = fault.New(fault.Unsupported, "rpc not supported for learner")
	if err := ask("bc"); err != nil {
		t.Error(err)
	}
	answers["c"] = errors.New("gone for a while")
	if err := ask("cab"); err == nil {
		t.Error("nobody answers, and no error")
	}
	answers["c"] = nil
	answers["b"] = nil
	f.first.Store(1)
	answers["b"] = fault.New(fault.Unavailable, "no leader")
	if err := ask("bc"); err != nil {
		t.Error(err)
	}
	answers["c"] = errors.New("gone")
	if err := ask("cab"); fault.From(err).Kind != fault.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

type backend struct{ err error }

func (b backend) Status(context.Context) (StatusAnswer, error) {
	return StatusAnswer{KeyID: "id"}, b.err
}
func (b backend) Encrypt(context.Context, []byte) (Sealed, error)         { return Sealed{KeyID: "id"}, b.err }
func (b backend) Decrypt(context.Context, Sealed) (plain []byte, _ error) { return nil, b.err }

func TestPluginErrors(t *testing.T) {
	for _, k := range fault.Kinds() {
		p := &plugin{backend: backend{fault.New(k, "why").WithHint("what to do")}, log: slog.New(slog.DiscardHandler)}
		for _, call := range []func() error{
			func() error { _, err := p.Status(t.Context(), &kms.StatusRequest{}); return err },
			func() error { _, err := p.Encrypt(t.Context(), &kms.EncryptRequest{}); return err },
			func() error { _, err := p.Decrypt(t.Context(), &kms.DecryptRequest{}); return err },
		} {
			s := status.Convert(call())
			if s.Code() == codes.OK || s.Code() == codes.Unknown || s.Message() != "why (what to do)" {
				t.Errorf("%v: %v %q", k, s.Code(), s.Message())
			}
		}
		if c := statusOf(k); c < 400 || c == 500 && k != fault.Internal && k != fault.Corrupt {
			t.Errorf("%v: HTTP %d", k, c)
		}
	}
	p := &plugin{backend: backend{}, log: slog.New(slog.DiscardHandler)}
	if _, err := p.Decrypt(t.Context(), &kms.DecryptRequest{Annotations: map[string][]byte{"a.b": nil}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("annotations: %v", err)
	}
	if s, err := p.Status(t.Context(), &kms.StatusRequest{}); err != nil || s.Version != "v2" || s.Healthz != "ok" || s.KeyId != "id" {
		t.Errorf("%+v %v", s, err)
	}
}
