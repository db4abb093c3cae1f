package core

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

func (m *member) canRead(who policy.Principal, key string) error {
	_, err := m.Range(m.ctx, who, query(key))
	return err
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	_, err := m.Authenticate(m.ctx, m.anon, "root", "secret")
	want(t, err, ErrAuthNotEnabled)
	if who, err := m.Identify(m.anon, "whatever"); err != nil || who != m.anon {
		t.Fatal("while authentication is off a token says nothing", err)
	}
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	must(t, m.UserAdd(m.ctx, m.login("root", "secret"), "certonly", "", true))
	for name, c := range map[string][2]string{
		"wrong password": {"alice", "nope"}, "no such user": {"nobody", "x"}, "no password user": {"certonly", ""}, "empty": {"alice", ""},
	} {
		if _, err := m.Authenticate(m.ctx, m.anon, c[0], c[1]); !errors.Is(err, ErrAuthFailed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = m.Authenticate(m.ctx, m.anon, "", "x")
	want(t, err, state.ErrUserEmpty)
	if !m.audit.has("authenticate", ErrAuthFailed.Reason) || !m.audit.has("authenticate", outcomeDone) {
		t.Fatal("logins are in the record")
	}
	alice := m.login("alice", "pw-alice")
	if alice.User() != "alice" || !alice.ViaToken() {
		t.Fatal(alice)
	}
	must(t, m.canRead(alice, "a"))
	want(t, m.canRead(alice, "b"), state.ErrPermissionDenied)
	want(t, m.canRead(m.anon, "a"), state.ErrUserEmpty)
	for _, token := range []string{"x", "x.y", "abc.a1", strings.Repeat("q", 24) + ".b2", strings.Repeat("z", 5000)} {
		if _, err := m.Identify(m.anon, token); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%.20s: %v", token, err)
		}
	}
	enabled, revision, err := m.AuthStatus(m.ctx, m.anon)
	if err != nil || !enabled || revision < 8 {
		t.Fatal(enabled, revision, err)
	}
}

func TestUserStore(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	root, alice := m.login("root", "secret"), m.login("alice", "pw-alice")
	roles, err := m.User(m.ctx, alice, "alice")
	if err != nil || fmt.Sprint(roles) != "[alice]" {
		t.Fatal(roles, err)
	}
	_, err = m.User(m.ctx, alice, "root")
	want(t, err, state.ErrPermissionDenied)
	_, err = m.User(m.ctx, root, "ghost")
	want(t, err, state.ErrUserNotFound)
	perms, err := m.Role(m.ctx, alice, "alice")
	if err != nil || len(perms) != 1 || !perms[0].Read || string(perms[0].Span.Start) != "a" {
		t.Fatal(perms, err)
	}
	_, err = m.Role(m.ctx, root, "ghost")
	want(t, err, state.ErrRoleNotFound)
	_, err = m.Role(m.ctx, alice, "root")
	want(t, err, state.ErrPermissionDenied)
	_, err = m.Users(m.ctx, alice)
	want(t, err, state.ErrPermissionDenied)
	users, err := m.Users(m.ctx, root)
	if err != nil || fmt.Sprint(users) != "[alice root]" {
		t.Fatal(users, err)
	}
	names, err := m.Roles(m.ctx, root)
	if err != nil || fmt.Sprint(names) != "[alice root]" {
		t.Fatal(names, err)
	}
	want(t, m.UserAdd(m.ctx, alice, "eve", "x", false), state.ErrPermissionDenied)
	want(t, m.UserAdd(m.ctx, root, "alice", "x", false), state.ErrUserAlreadyExist)
	want(t, m.UserAdd(m.ctx, root, "", "x", false), state.ErrUserEmpty)
	want(t, m.UserAdd(m.ctx, root, "long", strings.Repeat("p", 73), false), errPasswordTooLong)
	want(t, m.ChangePassword(m.ctx, root, "ghost", "x"), state.ErrUserNotFound)
	want(t, m.AuthChange(m.ctx, root, &state.AuthChange{Op: state.UserDelete, User: "root"}), state.ErrInvalidAuthMgmt)
}

func TestTokensEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(m *member, root policy.Principal)
		want error
	}{
		"nothing":           {func(*member, policy.Principal) {}, nil},
		"time":              {func(m *member, _ policy.Principal) { m.pass(301 * time.Second) }, ErrInvalidToken},
		"used in between":   {func(m *member, _ policy.Principal) {}, nil},
		"password changed":  {func(m *member, r policy.Principal) { must(m.t, m.ChangePassword(m.ctx, r, "alice", "new")) }, ErrInvalidToken},
		"same password set": {func(m *member, r policy.Principal) { must(m.t, m.ChangePassword(m.ctx, r, "alice", "pw-alice")) }, ErrInvalidToken},
		"user deleted": {func(m *member, r policy.Principal) {
			must(m.t, m.AuthChange(m.ctx, r, &state.AuthChange{Op: state.UserDelete, User: "alice"}))
		}, ErrInvalidToken},
		"user made anew": {func(m *member, r policy.Principal) {
			must(m.t, m.AuthChange(m.ctx, r, &state.AuthChange{Op: state.UserDelete, User: "alice"}))
			must(m.t, m.UserAdd(m.ctx, r, "alice", "pw-alice", false))
		}, ErrInvalidToken},
		"another user changed": {func(m *member, r policy.Principal) { must(m.t, m.UserAdd(m.ctx, r, "bob", "x", false)) }, nil},
		"off and on": {func(m *member, r policy.Principal) {
			must(m.t, m.AuthChange(m.ctx, r, &state.AuthChange{Op: state.AuthDisable}))
			must(m.t, m.AuthChange(m.ctx, m.anon, &state.AuthChange{Op: state.AuthEnable}))
		}, ErrInvalidToken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, nil)
			m.auth(map[string]storage.Span{"alice": span("a", "b")})
			root := m.login("root", "secret")
			token, err := m.Authenticate(m.ctx, m.anon, "alice", "pw-alice")
			must(t, err)
			if name == "used in between" {
				for range 5 {
					m.pass(200 * time.Second)
					_, err := m.Identify(m.anon, token)
					must(t, err)
				}
			}
			c.do(m, root)
			who, err := m.Identify(m.anon, token)
			if c.want != nil {
				want(t, err, c.want)
				return
			}
			must(t, err)
			must(t, m.canRead(who, "a"))
		})
	}
}

func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.Tokens = 3 })
	m.auth(nil)
	for range 3 {
		m.login("root", "secret")
	}
	_, err := m.Authenticate(m.ctx, m.anon, "root", "secret")
	want(t, err, ErrTooManyRequests)
	m.pass(301 * time.Second)
	if n := len(m.tokens.sessions); n != 0 {
		t.Fatal(n)
	}
	m.login("root", "secret")
}

// TestOldPrincipals: a connection keeps what it was identified as; changes of the store in between do not let it through
// where its user would not be, and do not refuse it where its user may.
func TestOldPrincipals(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	root, alice := m.login("root", "secret"), m.login("alice", "pw-alice")
	put := func() error {
		_, err := m.Put(m.ctx, alice, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
		return err
	}
	must(t, m.UserAdd(m.ctx, root, "bob", "x", false))
	must(t, put())
	must(t, m.canRead(alice, "a"))
	must(t, m.ChangePassword(m.ctx, root, "alice", "other"))
	want(t, put(), state.ErrAuthOldRevision)
	want(t, m.canRead(alice, "a"), state.ErrAuthOldRevision)
	must(t, m.AuthChange(m.ctx, root, &state.AuthChange{Op: state.UserDelete, User: "alice"}))
	if err := put(); err == nil {
		t.Fatal("a deleted user writes")
	}
}

// TestStoreMovesUnderAProposal: the machine refuses what was judged by an older store, and core judges again.
func TestStoreMovesUnderAProposal(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	root, alice := m.login("root", "secret"), m.login("alice", "pw-alice")
	m.loop.set(func() { m.loop.hold = true })
	add := later(t, func() error { return m.UserAdd(m.ctx, root, "bob", "x", false) })
	until(t, "queued", func() bool { return m.proposals.waitingNow() == 1 })
	put := later(t, func() error {
		_, err := m.Put(m.ctx, alice, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
		return err
	})
	until(t, "queued", func() bool { return m.proposals.waitingNow() == 2 })
	m.loop.release()
	must(t, add())
	must(t, put())
	if rev := m.Header(mvcc.SpaceEtcd).Revision; rev != 2 {
		t.Fatal("written once", rev)
	}
}

func TestCommonNameIsAUser(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b"), "bob": span("b", "c")})
	cert := policy.Certificate{Issuer: "i", Serial: "1"}
	holder := policy.NewHolder("alice", cert, policy.RoleClient, false)
	who, err := m.Identify(holder, "")
	must(t, err)
	if who.User() != "alice" || who.ViaToken() {
		t.Fatal(who)
	}
	must(t, m.canRead(who, "a"))
	token, err := m.Authenticate(m.ctx, m.anon, "bob", "pw-bob")
	must(t, err)
	if who, err = m.Identify(holder, token); err != nil || who.User() != "bob" {
		t.Fatal("the token comes before the name", who, err)
	}
	admin := policy.NewHolder("alice", cert, policy.RoleAdmin, false)
	if who, err = m.Identify(admin, ""); err != nil || who.User() != "" {
		t.Fatal("an administrator is nobody's user", who, err)
	}
	must(t, m.canRead(admin, "zzz"))
	if who, err = m.Identify(policy.Principal{}, token); err != nil || who.Kind() != policy.Nobody {
		t.Fatal("a token makes nobody somebody", who, err)
	}
}

func TestTokenOfAnotherMember(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	// The two do not share a log: the same changes are made on both, which a log would have done.
	for _, m := range []*member{a, b} {
		m.auth(map[string]storage.Span{"alice": span("a", "b")})
	}
	token, err := a.Authenticate(a.ctx, a.anon, "alice", "pw-alice")
	must(t, err)
	who, err := b.Identify(b.anon, token)
	must(t, err)
	must(t, b.canRead(who, "a"))
	b.loop.set(func() { b.loop.callErr = errors.New("unreachable") })
	if _, err = b.Identify(b.anon, token); err != nil {
		t.Fatal("the answer is believed for a moment", err)
	}
	b.pass(tokenTrust)
	_, err = b.Identify(b.anon, token)
	want(t, err, ErrInvalidToken)
	b.loop.set(func() { b.loop.callErr = nil })
	_, err = b.Identify(b.anon, token)
	must(t, err)
	a.pass(301 * time.Second)
	b.pass(tokenTrust)
	_, err = b.Identify(b.anon, token)
	want(t, err, ErrInvalidToken)
	if _, err = a.serveToken(t.Context(), b.anon, []byte(token)); err == nil {
		t.Fatal("only members may ask whose a token is")
	}
}

func TestBruteForceIsSlowedDown(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("a", "b")})
	for range freeFailures {
		_, err := m.Authenticate(m.ctx, m.anon, "alice", "guess")
		want(t, err, ErrAuthFailed)
	}
	_, err := m.Authenticate(m.ctx, m.anon, "alice", "pw-alice")
	want(t, err, ErrTooManyRequests)
	m.login("root", "secret")
	m.pass(firstBackoff)
	m.login("alice", "pw-alice")
	_, err = m.Authenticate(m.ctx, m.anon, "alice", "guess")
	want(t, err, ErrAuthFailed)
	m.login("alice", "pw-alice")
	p := &m.passwords
	for i := range mostFailures + 10 {
		p.note(fmt.Sprint(i), false, m.time.Now())
	}
	if len(p.failures) > mostFailures {
		t.Fatal(len(p.failures))
	}
}

func TestControlIsDeniedWithoutARecord(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(nil)
	root := m.login("root", "secret")
	m.audit.mu.Lock()
	m.audit.err = os.ErrPermission
	m.audit.mu.Unlock()
	index := m.loop.index
	want(t, m.UserAdd(m.ctx, root, "x", "y", false), ErrAuditUnwritable)
	want(t, m.AuthChange(m.ctx, root, &state.AuthChange{Op: state.AuthDisable}), ErrAuditUnwritable)
	_, _, err := m.MemberAdd(m.ctx, root, []string{"http://b:1"}, false)
	want(t, err, ErrAuditUnwritable)
	_, err = m.MemberRemove(m.ctx, root, testMember)
	want(t, err, ErrAuditUnwritable)
	_, err = m.ChangeAlarm(m.ctx, root, state.AlarmChange{})
	want(t, err, ErrAuditUnwritable)
	_, err = m.Compact(m.ctx, root, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 1}, false)
	want(t, err, ErrAuditUnwritable)
	want(t, m.Defragment(m.ctx, root), ErrAuditUnwritable)
	want(t, m.MoveLeader(m.ctx, root, 1), ErrAuditUnwritable)
	_, err = m.Authenticate(m.ctx, m.anon, "root", "secret")
	want(t, err, ErrAuditUnwritable)
	if m.loop.index != index {
		t.Fatal("something reached the log")
	}
	_, err = m.Put(m.ctx, root, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("data goes on")})
	must(t, err)
}

func TestDataIsRecordedOnRequest(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.AuditPrefixes = [][]byte{[]byte("secret/")} })
	m.put("public", "1")
	m.get("public")
	if m.audit.has("put", outcomeDone) || m.audit.has("range", outcomeDone) {
		t.Fatal("recorded without being asked")
	}
	m.put("secret/a", "value-canary")
	m.get("secret/a")
	m.del("a", "z")
	m.txnPuts("x", "secret/b")
	for _, action := range []string{"put", "range", "delete", "txn put"} {
		if !m.audit.has(action, outcomeDone) {
			t.Error(action + " is not in the record")
		}
	}
	if text := fmt.Sprint(m.audit.events); strings.Contains(text, "canary") || !strings.Contains(text, "secret/a") {
		t.Fatal(text)
	}
}

func pemKeys(t *testing.T, key crypto.Signer) (priv, pub []byte) {
	t.Helper()
	p, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	q, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: q})
}

func TestJWT(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	files := map[string][]byte{"hmac": []byte("a shared secret of some length..")}
	files["rsa"], files["rsa.pub"] = pemKeys(t, rsaKey)
	files["ec"], files["ec.pub"] = pemKeys(t, ecKey)
	files["ed"], files["ed.pub"] = pemKeys(t, edKey)
	read := func(name string) ([]byte, error) {
		if b, ok := files[name]; ok {
			return b, nil
		}
		return nil, os.ErrNotExist
	}
	for _, spec := range []string{
		"jwt,sign-method=RS256,priv-key=rsa,pub-key=rsa.pub", "jwt,sign-method=PS512,priv-key=rsa,ttl=5m", "jwt,sign-method=ES256,priv-key=ec,pub-key=ec.pub",
		"jwt,sign-method=EdDSA,priv-key=ed,pub-key=ed.pub,ttl=300s", "jwt,sign-method=HS256,priv-key=hmac",
	} {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			m := start(t, func(o *Options) { o.AuthToken, o.ReadFile = spec, read })
			m.auth(map[string]storage.Span{"alice": span("a", "b")})
			token, err := m.Authenticate(m.ctx, m.anon, "alice", "pw-alice")
			must(t, err)
			who, err := m.Identify(m.anon, token)
			must(t, err)
			must(t, m.canRead(who, "a"))
			want(t, m.canRead(who, "b"), state.ErrPermissionDenied)
			forged := token[:len(token)-6] + "AAAAAA"
			_, err = m.Identify(m.anon, forged)
			want(t, err, ErrInvalidToken)
			_, err = m.Identify(m.anon, "eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6OTl9.")
			want(t, err, ErrInvalidToken)
			// It is bound to the revision of the store.
			root, err := m.Identify(m.anon, m.mustLogin("root", "secret"))
			must(t, err)
			must(t, m.UserAdd(m.ctx, root, "bob", "x", false))
			who, err = m.Identify(m.anon, token)
			must(t, err)
			want(t, m.canRead(who, "a"), state.ErrAuthOldRevision)
			_, err = m.Put(m.ctx, who, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
			want(t, err, state.ErrAuthOldRevision)
			m.pass(5*time.Minute + time.Second)
			_, err = m.Identify(m.anon, token)
			want(t, err, ErrInvalidToken)
		})
	}
	for spec, text := range map[string]string{
		"jwt":                                                 "not of the form",
		"jwt,sign-method=RS256":                               "needs pub-key or priv-key",
		"jwt,sign-method=none,priv-key=x":                     "not known",
		"jwt,sign-method=XX,priv-key=rsa":                     "not known",
		"jwt,sign-method=RS256,priv-key=missing":              "priv-key",
		"jwt,sign-method=RS256,priv-key=ec":                   "priv-key",
		"jwt,sign-method=ES256,priv-key=ec,pub-key=rsa.pub":   "pub-key",
		"jwt,sign-method=HS256,pub-key=hmac":                  "HMAC needs priv-key",
		"jwt,sign-method=RS256,priv-key=rsa,ttl=-1s":          "ttl",
		"jwt,sign-method=RS256,priv-key=rsa,color=blue":       "unknown jwt option",
		"jwt,sign-method=RS256,sign-method=RS256,priv-key=ec": "given twice",
		"simple,ttl=3":                                        "no options",
		"magic":                                               "unknown kind",
	} {
		if _, err := parseTokenOptions(spec, read); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", spec, err)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	_, files["other.pub"] = pemKeys(t, other)
	if _, err := parseTokenOptions("jwt,sign-method=ES256,priv-key=ec,pub-key=other.pub", read); err == nil {
		t.Error("keys that do not belong together")
	}
	verifier := start(t, func(o *Options) { o.AuthToken, o.ReadFile = "jwt,sign-method=ES256,pub-key=ec.pub", read })
	verifier.auth(nil)
	_, err = verifier.Authenticate(verifier.ctx, verifier.anon, "root", "secret")
	want(t, err, errVerifyOnly)
}

func (m *member) mustLogin(name, password string) string {
	m.t.Helper()
	token, err := m.Authenticate(m.ctx, m.anon, name, password)
	must(m.t, err)
	return token
}
