package core

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// FuzzToken: a JWT counts only if its last part is the right signature over the others, whatever its header says.
func FuzzToken(f *testing.F) {
	key := []byte("0123456789abcdef0123456789abcdef")
	now := time.Unix(1_700_000_000, 0)
	read := func(string) ([]byte, error) { return key, nil }
	t, err := parseTokenOptions("jwt,sign-method=HS256,priv-key=k,ttl=5m", read)
	if err != nil {
		f.Fatal(err)
	}
	good, err := t.sign("alice", 7, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	encode := base64.RawURLEncoding.EncodeToString
	claims := encode([]byte(`{"username":"root","revision":1,"exp":4000000000}`))
	f.Add(encode([]byte(`{"alg":"none"}`)) + "." + claims + ".")
	f.Add(encode([]byte(`{"alg":"HS512","typ":"JWT"}`)) + "." + claims + "." + encode(key))
	f.Add(strings.Repeat(".", 100))
	f.Fuzz(func(tt *testing.T, token string) {
		fuzztest.Bounded(tt, len(token), func() {
			user, _, ok := t.verify(token, now)
			if !ok {
				return
			}
			body, signature, _ := cutLast(token, ".")
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(body))
			got, err := base64.RawURLEncoding.DecodeString(signature)
			if err != nil || !hmac.Equal(got, mac.Sum(nil)) || user == "" {
				tt.Errorf("%q is taken for a token of %q", token, user)
			}
		})
	})
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// FuzzTokenOptions: options and key files that are taken sign what they verify, and never without a signature.
func FuzzTokenOptions(f *testing.F) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(f, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(f, err)
	for method, key := range map[string]any{"ES256": ec, "EdDSA": ed} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		must(f, err)
		f.Add("jwt,sign-method="+method+",priv-key=k,ttl=1h", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	der, err := x509.MarshalPKIXPublicKey(ec.Public())
	must(f, err)
	f.Add("jwt,sign-method=ES256,pub-key=k", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	f.Add("jwt,sign-method=RS256,priv-key=k", []byte("-----BEGIN RSA PRIVATE KEY-----\nMAA=\n-----END RSA PRIVATE KEY-----\n"))
	f.Add("jwt,sign-method=none,priv-key=k", []byte("x"))
	f.Add("simple", []byte(nil))
	f.Fuzz(func(t *testing.T, spec string, file []byte) {
		tokens, err := parseTokenOptions(spec, func(string) ([]byte, error) { return file, nil })
		if err != nil || tokens == nil {
			return
		}
		if tokens.ttl <= 0 || tokens.method == nil || tokens.method.Alg() == "none" || tokens.verifyKey == nil {
			t.Fatalf("%q was taken as %+v", spec, tokens)
		}
		now := time.Unix(1_700_000_000, 0)
		token, err := tokens.sign("alice", 7, now)
		if err != nil {
			return // a key that is for another method, or to verify only
		}
		if tokens.ttl < time.Second || tokens.ttl > 1<<20*time.Hour {
			return // over before a whole second is
		}
		if user, revision, ok := tokens.verify(token, now); !ok || user != "alice" || revision != 7 {
			t.Errorf("%q: its own token is read as %q %d %v", spec, user, revision, ok)
		}
	})
}

// FuzzPeerURLs: what may be a member's addresses can be dialled, and makes an id.
func FuzzPeerURLs(f *testing.F) {
	for _, s := range []string{"http://a:1", "https://[::1]:2380 http://b:2", "unix://a:1", "http://a", "http://a:1/x", "://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list := strings.Fields(text)
		err := checkPeerURLs(list)
		if err != nil {
			fuzztest.Typed(t, err)
			return
		}
		address := rpcAddress(list)
		if len(list) == 0 || address == "" && slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, "http") }) {
			t.Errorf("%q are addresses; the RPC is at %q", list, address)
		}
		other := slices.Clone(list)
		slices.Reverse(other)
		if memberID(list, "t", time.Unix(1, 0)) != memberID(other, "t", time.Unix(1, 0)) {
			t.Errorf("%q: the id depends on the order", list)
		}
	})
}

// oneAnswer is a leader that answers every call with the same bytes.
type oneAnswer struct {
	*loopback
	answer []byte
}

// Call implements Peers.
func (o *oneAnswer) Call(context.Context, uint64, string, []byte) ([]byte, error) {
	return o.answer, nil
}

// FuzzAnswersOfMembers: whatever the leader answers to a member's calls, it is read or refused.
func FuzzAnswersOfMembers(f *testing.F) {
	members := []state.Member{{ID: testMember, Name: "a", PeerURLs: []string{"http://a:1"}}, {ID: 2, Name: "b", PeerURLs: []string{"http://b:1"}}}
	m := startAs(f, testMember, members, nil)
	leader := &oneAnswer{loopback: m.loop}
	m.Attach(m.loop, leader)
	m.loop.set(func() { m.loop.status = replica.Status{Leadership: replica.Leadership{Leader: 2, Term: 2}} })
	m.Tick(m.time.Now())
	m.put("a", "1")
	f.Add([]byte{20})
	f.Add([]byte{20, 10, 1, 'a'})
	f.Add(append(make([]byte, 8), "alice"...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, answer []byte) {
		leader.answer = answer
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		fuzztest.Bounded(t, len(answer), func() {
			if _, err := m.LeaseRenew(ctx, m.anon, 1); err != nil {
				fuzztest.Typed(t, err)
			}
			if info, err := m.LeaseInfo(ctx, m.anon, 1, true); err == nil && info.ID != 1 {
				t.Errorf("asked for lease 1, heard of %d", info.ID)
			}
			if _, err := m.RenewSession(ctx, m.anon, "00000000-0000-0000-0000-000000000000"); err != nil {
				fuzztest.Typed(t, err)
			}
			if user, _, err := m.askForToken("abcdefghijklmnopqrstuvwx.2"); err == nil && len(answer) < 8 {
				t.Errorf("%x names %q", answer, user)
			}
			if err := m.CompareHashes(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				fuzztest.Typed(t, err)
			}
		})
	})
}
