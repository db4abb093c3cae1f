package core

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

// configOf makes a configuration for secrets: "gcm:NAME", "box:NAME" or "identity", in order.
func configOf(providers ...string) string {
	var list []string
	for _, p := range providers {
		kind, name, _ := strings.Cut(p, ":")
		switch kind {
		case "gcm":
			list = append(list, fmt.Sprintf(`{"aesgcm":{"keys":[{"name":"%s","secret":"c2VjcmV0IGlzIHNlY3VyZQ=="}]}}`, name))
		case "box":
			list = append(list, fmt.Sprintf(`{"secretbox":{"keys":[{"name":"%s","secret":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY="}]}}`, name))
		default:
			list = append(list, `{"identity":{}}`)
		}
	}
	return `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[` + strings.Join(list, ",") + `]}]}`
}

func unsealPlace(_, place string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte(place+"|"))
	if !ok {
		return nil, errors.New("sealed for another place")
	}
	return plain, nil
}

func startEncrypting(t testing.TB, change func(*Options)) *member {
	return start(t, func(o *Options) {
		e := o.Machine.Engine()
		must(t, o.Machine.Close())
		var err error
		o.Machine, err = state.Open(e, state.Options{Unseal: unsealPlace})
		must(t, err)
		if change != nil {
			change(o)
		}
	})
}

// declare puts a configuration in force as node does; none of providers withdraws it.
func (m *member) declare(providers ...string) {
	m.t.Helper()
	key := state.EncryptionKey(testMember)
	if len(providers) == 0 {
		_, err := m.Delete(m.ctx, m.system, &state.Delete{Space: mvcc.SpaceCA, Span: storage.KeySpan(key)})
		must(m.t, err)
		return
	}
	c, err := transform.Parse([]byte(configOf(providers...)))
	must(m.t, err)
	row, err := json.Marshal(state.EncryptionRow{Prefix: "/registry", Config: c.Canonical()})
	must(m.t, err)
	_, err = m.Txn(m.ctx, m.system, &state.Txn{Space: mvcc.SpaceCA, Success: []state.Op{
		{Put: &state.Put{Space: mvcc.SpaceCA, Key: key, Value: append([]byte(string(key)+"|"), row...)}},
		{Put: &state.Put{Space: mvcc.SpaceCA, Key: state.EncryptionMarkKey(), Value: []byte("/registry")}},
	}}, false)
	must(m.t, err)
}

func (m *member) stored(key string) string {
	m.t.Helper()
	kv, err := m.Stored(m.ctx, m.system, []byte(key))
	must(m.t, err)
	if kv == nil {
		return "-"
	}
	return string(kv.Value)
}

func (m *member) unreadable(key, reason string) {
	m.t.Helper()
	for _, serializable := range []bool{false, true} {
		r := query(key)
		r.Serializable = serializable
		_, err := m.Range(m.ctx, m.anon, r)
		want(m.t, err, fault.New(fault.Corrupt, reason))
	}
}

const (
	sec1, sec2 = "/registry/secrets/one/s1", "/registry/secrets/one/s2"
	gcmKey1    = "k8s:enc:aesgcm:v1:key1:"
	gcmKey2    = "k8s:enc:aesgcm:v1:key2:"
)

// TestGuideOfEncryption is the Killercoda guide, experiment by experiment.
func TestGuideOfEncryption(t *testing.T) {
	m := startEncrypting(t, nil)
	m.put(sec1, "before")
	if got := m.stored(sec1); got != "before" {
		t.Fatalf("%q", got)
	}
	m.declare("gcm:key1", "identity")
	m.put(sec2, "after")
	if got := m.stored(sec2); !strings.HasPrefix(got, gcmKey1) || strings.Contains(got, "after") {
		t.Errorf("stored as %q", got)
	}
	if m.get(sec1) != "before" || m.get(sec2) != "after" {
		t.Errorf("%q %q", m.get(sec1), m.get(sec2))
	}
	m.put("/elsewhere", "k8s:enc:whatever is there is nobody's business")
	if m.get("/elsewhere") == "" || m.stored("/elsewhere") != m.get("/elsewhere") {
		t.Error("a key outside of the prefix changed")
	}

	m.declare() // without the configuration
	m.unreadable(sec2, "identity transformer tried to read encrypted data")
	if m.get(sec1) != "before" {
		t.Error("a plain value cannot be read without the configuration")
	}
	m.declare("gcm:key1") // without identity
	m.unreadable(sec1, "no matching prefix found")
	if m.get(sec2) != "after" {
		t.Error("an encrypted value cannot be read")
	}
	m.declare("gcm:key1", "identity")
	step, err := m.Reencrypt(m.ctx, m.system, nil)
	must(t, err)
	if step.Written != 1 || step.Changed != 0 || step.Next != nil || step.Keys != 2 {
		t.Errorf("%+v", step)
	}
	audit, err := m.AuditEncryption(m.ctx, m.system, nil, 0)
	must(t, err)
	if len(audit.Counts) != 1 || audit.Counts[0].Keys != 2 || audit.Counts[0].Stale || audit.Counts[0].Stored != "aesgcm:key1" || audit.Counts[0].Resource != "secrets" {
		t.Errorf("%+v", audit)
	}
	m.declare("gcm:key1")
	if m.get(sec1) != "before" || m.get(sec2) != "after" {
		t.Error("not everything was encrypted")
	}

	// Another key, in two steps; the secretbox after it.
	m.declare("gcm:key2", "gcm:key1")
	_, err = m.Reencrypt(m.ctx, m.system, nil)
	must(t, err)
	m.declare("gcm:key2")
	if m.get(sec1) != "before" || !strings.HasPrefix(m.stored(sec1), gcmKey2) {
		t.Errorf("%q", m.stored(sec1))
	}
	m.declare("box:key1", "gcm:key2")
	_, err = m.Reencrypt(m.ctx, m.system, nil)
	must(t, err)
	if m.get(sec1) != "before" || !strings.HasPrefix(m.stored(sec1), "k8s:enc:secretbox:v1:key1:") {
		t.Errorf("%q", m.stored(sec1))
	}
	again, err := m.Reencrypt(m.ctx, m.system, nil)
	must(t, err)
	if again.Written != 0 {
		t.Errorf("a second run wrote %d", again.Written)
	}
}

func (m *member) txn(t *state.Txn) *state.TxnResult {
	m.t.Helper()
	t.Space = mvcc.SpaceEtcd
	res, err := m.Txn(m.ctx, m.anon, t, false)
	must(m.t, err)
	return res
}

// TestEveryAnswerIsPlain: no way out shows what is stored.
func TestEveryAnswerIsPlain(t *testing.T) {
	m := startEncrypting(t, nil)
	m.declare("gcm:key1", "identity")
	behind := m.stream()
	m.put(sec1, "v1")
	m.put(sec2, "a value that sorts first") // its ciphertext sorts anyhow
	put, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec1), Value: []byte("v2"), PrevKV: true})
	must(t, err)
	if string(put.Prev.Value) != "v1" {
		t.Errorf("put: %q", put.Prev.Value)
	}
	all := storage.Span{Start: []byte("/registry/"), End: []byte("/registry0")}
	key := storage.KeySpan([]byte(sec1))
	res := m.txn(&state.Txn{
		Compare: []state.Compare{{Span: key, Target: state.CompareValue, Value: []byte("v2")}},
		Success: []state.Op{
			{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec1), Value: []byte("v3"), PrevKV: true}},
			{Range: &mvcc.Query{Span: key}},
			{Txn: &state.Txn{Space: mvcc.SpaceEtcd, Compare: []state.Compare{{Span: key, Target: state.CompareValue, Result: state.CompareEqual, Value: []byte("v2")}},
				Success: []state.Op{{Range: &mvcc.Query{Span: all}}}}},
		},
	})
	if !res.Succeeded || string(res.Results[0].Put.Prev.Value) != "v2" || string(res.Results[1].Range.KVs[0].Value) != "v3" ||
		!res.Results[2].Txn.Succeeded || string(res.Results[2].Txn.Results[0].Range.KVs[1].Value) != "a value that sorts first" {
		t.Errorf("%+v", res)
	}
	read := m.txn(&state.Txn{Compare: []state.Compare{{Span: key, Target: state.CompareValue, Value: []byte("v3")}}, Success: []state.Op{{Range: &mvcc.Query{Span: key}}}})
	if !read.Succeeded || string(read.Results[0].Range.KVs[0].Value) != "v3" {
		t.Errorf("reading: %+v", read)
	}
	for _, order := range []mvcc.SortOrder{mvcc.SortNone, mvcc.SortAscend, mvcc.SortDescend} {
		page, err := m.Range(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: all, Target: mvcc.SortByValue, Order: order, Limit: 1}})
		must(t, err)
		first := map[mvcc.SortOrder]string{mvcc.SortNone: sec2, mvcc.SortAscend: sec2, mvcc.SortDescend: sec1}[order]
		if len(page.KVs) != 1 || string(page.KVs[0].Key) != first || !page.More || page.Count != 2 {
			t.Errorf("order %d: %+v", order, page)
		}
	}
	keys, err := m.Range(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: all, KeysOnly: true}})
	must(t, err)
	if len(keys.KVs) != 2 || keys.KVs[0].Value != nil {
		t.Errorf("%+v", keys)
	}
	chunks := 0
	must(t, m.RangeStream(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: all}}, 16, func(p mvcc.Page, _ bool) error {
		for _, kv := range p.KVs {
			chunks++
			if bytes.HasPrefix(kv.Value, []byte("k8s:enc:")) {
				t.Errorf("%q", kv.Value)
			}
		}
		return nil
	}))
	del, err := m.Delete(m.ctx, m.anon, &state.Delete{Space: mvcc.SpaceEtcd, Span: all, PrevKV: true})
	must(t, err)
	if chunks != 2 || len(del.Prev) != 2 || string(del.Prev[0].Value) != "v3" {
		t.Errorf("%d chunks, %+v", chunks, del)
	}
	old, err := m.Range(m.ctx, m.anon, RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{Span: key, Revision: put.Revision}})
	must(t, err)
	if string(old.KVs[0].Value) != "v2" {
		t.Errorf("an old revision: %q", old.KVs[0].Value)
	}
	behind.mustWatch(t, WatchRequest{Span: all, StartRevision: 1, PrevKV: true})
	var seen []string
	for len(seen) < 6 {
		msg := behind.recv(t)
		for _, e := range msg.Events {
			prev, err := e.Prev()
			must(t, err)
			text := string(e.KV.Value)
			if prev != nil {
				text += "<" + string(prev.Value)
			}
			seen = append(seen, text)
		}
	}
	if got := strings.Join(seen, " "); got != "v1 a value that sorts first v2<v1 v3<v2 <v3 <a value that sorts first" {
		t.Errorf("%s", got)
	}
	_, err = m.Txn(m.ctx, m.anon, &state.Txn{Space: mvcc.SpaceEtcd, Compare: []state.Compare{{Span: all, Target: state.CompareValue}},
		Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec1)}}}}, false)
	want(t, err, state.ErrValueRange)
	_, err = m.Txn(m.ctx, m.anon, &state.Txn{Space: mvcc.SpaceEtcd, Success: []state.Op{{Range: &mvcc.Query{Span: all, Target: mvcc.SortByValue, Order: mvcc.SortAscend}}}}, false)
	want(t, err, state.ErrValueOrder)
}

func TestWatchOfEncryptedKeys(t *testing.T) {
	m := startEncrypting(t, nil)
	m.declare("gcm:key1")
	all := storage.Span{Start: []byte("/registry/"), End: []byte("/registry0")}
	one, two := m.stream(), m.stream()
	for _, s := range []*WatchStream{one, two} {
		s.mustWatch(t, WatchRequest{Span: all, PrevKV: true})
		s.mustWatch(t, WatchRequest{Span: storage.KeySpan([]byte("/other")), ID: 9})
	}
	m.put(sec1, "v1")
	m.put(sec1, "v2")
	for _, s := range []*WatchStream{one, two} {
		msg := s.recv(t)
		if len(msg.Events) != 2 || string(msg.Events[0].KV.Value) != "v1" || string(msg.Events[1].KV.Value) != "v2" || s.buffered != 0 {
			t.Fatalf("%+v, %d bytes left", msg, s.buffered)
		}
		wire, err := msg.Events[1].Wire(true, func(e *SharedEvent, prev *mvcc.KV) []byte {
			return []byte(string(prev.Value) + ">" + string(e.KV.Value))
		})
		if err != nil || string(wire) != "v1>v2" {
			t.Errorf("%s %v", wire, err)
		}
	}
	// With the key gone, the previous version cannot be shown: this watch ends and says why, the other one goes on.
	m.declare("gcm:key2")
	m.put(sec1, "v3")
	m.put("/other", "x")
	msg := one.recv(t)
	if msg.Kind != WatchCanceled || msg.Reason == nil || msg.Reason.Error() != "no matching key was found for the provided AES transformer" {
		t.Fatalf("%+v", msg)
	}
	if msg = one.recv(t); msg.ID != 9 || len(msg.Events) != 1 {
		t.Errorf("%+v", msg)
	}
}

// TestNoPlaintextReachesTheLog looks at what is proposed, byte for byte, and at sizes.
func TestNoPlaintextReachesTheLog(t *testing.T) {
	m := startEncrypting(t, func(o *Options) { o.Limits.RequestBytes = 2000 })
	m.declare("gcm:key1", "identity")
	m.put(sec1, "canary-one")
	m.loop.set(func() { m.loop.keep = true })
	done := later(t, func() error {
		_, err := m.Txn(m.ctx, m.anon, &state.Txn{Space: mvcc.SpaceEtcd,
			Compare: []state.Compare{{Span: storage.KeySpan([]byte(sec1)), Target: state.CompareValue, Value: []byte("canary-one")}},
			Success: []state.Op{{Txn: &state.Txn{Space: mvcc.SpaceEtcd, Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec2), Value: []byte("canary-two")}}}}}},
			Failure: []state.Op{{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec2), Value: []byte("canary-three")}}}}, false)
		return err
	})
	until(t, "the batch", func() bool {
		m.loop.mu.Lock()
		defer m.loop.mu.Unlock()
		return len(m.loop.kept) == 1
	})
	if bytes.Contains(m.loop.kept[0], []byte("canary")) {
		t.Errorf("%q", m.loop.kept[0])
	}
	m.loop.release()
	must(t, done())
	if m.get(sec2) != "canary-two" {
		t.Errorf("%q", m.get(sec2))
	}
	// 1930 bytes fit as they are written, but not as they are stored.
	_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec1), Value: make([]byte, 1930)})
	want(t, err, ErrTooLarge)
	_, err = m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("/elsewhere"), Value: make([]byte, 1930)})
	must(t, err)
}

// TestConfigurationMovesUnderAWrite: what was encrypted for a former configuration is refused in log order and encrypted anew.
func TestConfigurationMovesUnderAWrite(t *testing.T) {
	m := startEncrypting(t, nil)
	for _, step := range []struct{ from, to []string }{{nil, []string{"gcm:key1", "identity"}}, {[]string{"gcm:key1"}, []string{"gcm:key2"}}} {
		if step.from != nil {
			m.declare(step.from...)
		}
		m.loop.set(func() { m.loop.keep = true })
		put := later(t, func() error {
			_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(sec1), Value: []byte("v")})
			return err
		})
		until(t, "the batch", func() bool {
			m.loop.mu.Lock()
			defer m.loop.mu.Unlock()
			return len(m.loop.kept) == 1
		})
		m.loop.mu.Lock()
		late := m.loop.kept
		m.loop.kept, m.loop.keep = nil, false
		m.loop.mu.Unlock()
		m.declare(step.to...)
		m.loop.apply(late[0])
		must(t, put())
		kind, name, _ := strings.Cut(step.to[0], ":")
		if got := m.stored(sec1); kind != "gcm" || !strings.HasPrefix(got, "k8s:enc:aesgcm:v1:"+name+":") {
			t.Errorf("stored as %q", got)
		}
	}
}

func TestWhoMayAdministerEncryption(t *testing.T) {
	m := startEncrypting(t, nil)
	if _, err := m.AuditEncryption(m.ctx, m.system, nil, 0); !errors.Is(err, ErrNoEncryption) {
		t.Errorf("%v", err)
	}
	m.declare("gcm:key1", "identity")
	m.put(sec1, "v")
	cert := policy.Certificate{Issuer: "a", Serial: "1"}
	for _, who := range []policy.Principal{
		m.anon, {}, policy.NewHolder("c", cert, policy.RoleClient, true), policy.NewHolder("k", cert, policy.RoleKMS, false), policy.NewHolder("k", cert, policy.RoleAgent, false),
	} {
		_, err1 := m.AuditEncryption(m.ctx, who, nil, 0)
		_, err2 := m.Reencrypt(m.ctx, who, nil)
		_, err3 := m.Stored(m.ctx, who, []byte(sec1))
		_, err4 := m.Encryption(m.ctx, who)
		for _, err := range []error{err1, err2, err3, err4} {
			want(t, err, state.ErrPermissionDenied)
		}
	}
	if _, err := m.Put(m.ctx, policy.NewHolder("k", cert, policy.RoleKMS, false), &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("k")}); !errors.Is(err, state.ErrPermissionDenied) {
		t.Errorf("the role kms writes keys: %v", err)
	}
}

// TestReencryptionIsResumable: many keys, leases, one that cannot be read, one that somebody writes meanwhile.
func TestReencryptionIsResumable(t *testing.T) {
	m := startEncrypting(t, nil)
	lease, _, err := m.LeaseGrant(m.ctx, m.anon, 77, 600)
	must(t, err)
	const n = 1203
	for i := range n {
		_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "/registry/secrets/x/%04d", i), Value: fmt.Appendf(nil, "v%d", i), Lease: lease})
		must(t, err)
	}
	m.declare("gcm:key9")
	m.put("/registry/secrets/x/9999", "nobody has its key")
	m.declare("gcm:key1", "identity")
	var next []byte
	var keys, written int64
	steps := 0
	for {
		if steps == 1 {
			m.put("/registry/secrets/x/0700", "newer")
		}
		step, err := m.Reencrypt(m.ctx, m.system, next)
		must(t, err)
		steps, keys, written = steps+1, keys+step.Keys, written+step.Written
		if next = step.Next; next == nil {
			break
		}
	}
	if steps != 3 || keys != n+1 || written != n-1 {
		t.Errorf("%d steps, %d keys, %d written", steps, keys, written)
	}
	var stale, failed int64
	revision := int64(0)
	for next = nil; ; {
		step, err := m.AuditEncryption(m.ctx, m.system, next, revision)
		must(t, err)
		revision = step.Revision
		for _, c := range step.Counts {
			if c.Stale {
				stale += c.Keys
			}
			if c.Failure != "" {
				failed += c.Keys
				if string(c.Example) != "/registry/secrets/x/9999" || c.Stored != "aesgcm:key9" {
					t.Errorf("%+v", c)
				}
			}
		}
		if next = step.Next; next == nil {
			break
		}
	}
	if stale != 0 || failed != 1 {
		t.Errorf("%d stale, %d cannot be read", stale, failed)
	}
	if m.get("/registry/secrets/x/0700") != "newer" || m.get("/registry/secrets/x/0001") != "v1" {
		t.Error("a value changed")
	}
	kv, err := m.Stored(m.ctx, m.system, []byte("/registry/secrets/x/0001"))
	must(t, err)
	if kv.Lease != lease || !strings.HasPrefix(string(kv.Value), gcmKey1) {
		t.Errorf("%+v", kv)
	}
}

func TestReservedValueIsRefused(t *testing.T) {
	m := startEncrypting(t, nil)
	m.put("/registry/configmaps/a", "k8s:enc:is fine before there is a configuration")
	m.declare("gcm:key1", "identity")
	_, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("/registry/configmaps/a"), Value: []byte("k8s:enc:x")})
	want(t, err, transform.ErrReserved)
	m.put(sec1, "k8s:enc:x")
	if m.get(sec1) != "k8s:enc:x" {
		t.Errorf("%q", m.get(sec1))
	}
}

// TestStepsAreBoundedInBytes: large values are gone through a few at a time.
func TestStepsAreBoundedInBytes(t *testing.T) {
	m := startEncrypting(t, nil)
	for i := range 10 {
		m.put(fmt.Sprintf("/registry/secrets/x/%d", i), strings.Repeat("v", 1<<20))
	}
	m.declare("gcm:key1", "identity")
	var next []byte
	var written, steps int64
	for steps == 0 || next != nil {
		step, err := m.Reencrypt(m.ctx, m.system, next)
		must(t, err)
		next, written, steps = step.Next, written+step.Written, steps+1
	}
	if written != 10 || steps < 2 {
		t.Errorf("%d written in %d steps", written, steps)
	}
}
