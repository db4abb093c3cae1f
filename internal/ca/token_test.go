package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

func token(t testing.TB, endpoints ...string) Token {
	t.Helper()
	tok, err := NewToken(rand.Reader, [32]byte{1, 2, 3}, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	for _, endpoints := range [][]string{nil, {"10.0.0.1:2379"}, {"[::1]:1", "node-1.example.com:65535"}} {
		tok := token(t, endpoints...)
		back, err := ParseToken(tok.Text())
		if err != nil || back.ID != tok.ID || back.Root != tok.Root || !slices.Equal(back.Endpoints, endpoints) {
			t.Fatalf("%v: %+v", err, back)
		}
		if !back.Matches(tok.Hash()) || back.Matches(token(t).Hash()) || back.Matches([32]byte{}) {
			t.Error("the secret")
		}
		if other := token(t); other.ID == tok.ID || other.Hash() == tok.Hash() {
			t.Error("two tokens are the same")
		}
	}
	if (Token{}).Matches([32]byte{}) || (Token{}).Matches((Token{}).Hash()) || (Token{}).Text() != "" {
		t.Error("the zero token is good for something")
	}
	r := root(t)
	tok, err := NewToken(rand.Reader, RootDigest(r.Certificate), nil)
	if err != nil || !tok.PinsRoot(r.Certificate.Raw) || tok.PinsRoot(root(t).Certificate.Raw) {
		t.Error("the root")
	}
}

// TestTokenGolden: the format is for ever; a change of it is a new version.
func TestTokenGolden(t *testing.T) {
	t.Parallel()
	tok, err := NewToken(bytes.NewReader(bytes.Repeat([]byte{0xa5}, 24)), [32]byte{0xff}, []string{"127.0.0.1:2379"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "HF1-ah7qaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabjnfuws2ljnfuws2ljnfuws2ljnfuws2ljnfuwszohi2fe@127.0.0.1:2379"
	if got := tok.Text(); got != want {
		t.Errorf("%s", got)
	}
}

// TestTokenDamage: no single changed character goes unnoticed.
func TestTokenDamage(t *testing.T) {
	t.Parallel()
	text := token(t, "10.0.0.1:2379").Text()
	for i := range text {
		for _, c := range []byte("a7A0.@, \n") {
			if text[i] == c {
				continue
			}
			damaged := text[:i] + string(c) + text[i+1:]
			if _, err := ParseToken(damaged); !errors.Is(err, ErrToken) {
				t.Errorf("%q: %v", damaged, err)
			}
		}
	}
	for _, damaged := range []string{
		"", "HF1-", text[1:], text[:len(text)-1], text + "x", text + "@", " " + text, strings.ToUpper(text), strings.Replace(text, "HF1", "HF2", 1),
		text + ",10.0.0.2:2379", strings.Repeat("HF1-a", 1000), strings.Replace(text, "@", "=@", 1),
	} {
		if _, err := ParseToken(damaged); !errors.Is(err, ErrToken) {
			t.Errorf("%q: %v", damaged, err)
		}
	}
	for _, e := range []string{"x", "x:", ":1", "x:0", "x:65536", "x:+1", "a b:1", "x:1,y:2", "*.x:1", "x/y:1", "x:1@"} {
		if _, err := NewToken(rand.Reader, [32]byte{}, []string{e}); !errors.Is(err, ErrToken) {
			t.Errorf("endpoint %q: %v", e, err)
		}
	}
	if _, err := NewToken(rand.Reader, [32]byte{}, slices.Repeat([]string{"x:1"}, maxEndpoints+1)); err == nil {
		t.Error("too many endpoints")
	}
	if _, err := NewToken(strings.NewReader("short"), [32]byte{}, nil); err == nil {
		t.Error("a token without randomness")
	}
}

// TestTokenIsSecret: no way of printing a token shows its secret.
func TestTokenIsSecret(t *testing.T) {
	t.Parallel()
	tok := token(t, "10.0.0.1:2379")
	secret := strings.TrimPrefix(tok.Text(), tokenPrefix)[40:90]
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", tok, "pointer", &tok)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", tok, "inside", struct{ T Token }{tok})
	js, err := json.Marshal(map[string]any{"a": tok, "b": &tok})
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Sprintf("%v", *tok.secret)
	type inner struct{ hidden Token }
	number := "%d %x %v" // the wrong verb is the point: it must not reach the secret either
	for _, text := range []string{
		fmt.Sprint(tok), fmt.Sprintf("%v %+v %#v %s %q", tok, tok, tok, tok, tok), fmt.Sprintf("%v %+v %#v", &tok, &tok, &tok),
		fmt.Sprintf("%v %+v", struct{ T Token }{tok}, []Token{tok}), fmt.Sprintf(number, []any{tok, tok, inner{tok}}...), fmt.Sprintf("%+v %#v", inner{tok}, &inner{tok}), string(js), log.String(),
	} {
		if strings.Contains(text, secret) || strings.Contains(text, raw) || strings.Contains(text, fmt.Sprintf("%x", *tok.secret)) {
			t.Errorf("the secret is in %s", text)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(token(f).Text())
	f.Add(token(f, "10.0.0.1:2379", "[::1]:1").Text())
	f.Add("HF1-")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatal(err)
			}
			return
		}
		if tok.Text() != text || tok.ID == 0 || !tok.Matches(tok.Hash()) {
			t.Fatalf("%q is not the spelling of what it says", text)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		var csr *x509.CertificateRequest
		var err error
		fuzztest.Bounded(t, len(data), func() { csr, err = ParseRequest(data) })
		if err != nil {
			fuzztest.Hinted(t, err)
		}
		if err == nil && (CheckKey(csr.PublicKey) != nil || csr.CheckSignature() != nil) {
			t.Fatal("accepted a request with a weak key or without proof of it")
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := ParseCertificates(data); err == nil && len(certs) == 0 {
			t.Fatal("neither certificates nor an error")
		}
	})
}
