package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// verify holds everything that was acknowledged against what each member has, and members against each other.
func (h *house) verify(when string) {
	h.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*time.Minute)
	defer cancel()
	h.settle(ctx)
	for who := range houseSize {
		for _, l := range h.loads {
			l.verify(h.t, ctx, who)
		}
	}
	var out string
	var err error
	for range 20 { // members must stand at the same entry to be compared whole
		if out, err = h.runCommand("debug", "hashes"); err != nil || strings.Contains(out, "everything: equal") {
			break
		}
		wait(ctx, 300*time.Millisecond)
	}
	if err != nil || !strings.Contains(out, "everything: equal") {
		h.t.Errorf("%s: members are not shown to be equal: %v\n%s", when, err, out)
	}
	if h.t.Failed() {
		h.t.Fatalf("%s: see above\n%s", when, h.tails())
	}
	h.t.Logf("%s, all is there and equal (looked at for %v):\n%s", when, time.Since(began).Round(time.Millisecond), out)
}

// settle waits until every member answers and the watch and the agents have caught up.
func (h *house) settle(ctx context.Context) {
	h.t.Helper()
	for who := range houseSize {
		for _, path := range []string{"/v1/catalog/nodes", "/v1/agent/self"} {
			for {
				_, err := h.onConsul(ctx, who, http.MethodGet, path, nil, new([]byte))
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					h.t.Fatalf("member %d does not answer %s: %v\n%s", who, path, err, h.tails())
				}
				wait(ctx, 100*time.Millisecond)
			}
		}
	}
	follow, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() { h.store.follow(follow) })
	for {
		missing := 0
		keys := h.store.txns.all()
		h.store.mu.Lock()
		for key := range keys {
			if h.store.seen[key] == 0 {
				missing++
			}
		}
		h.store.mu.Unlock()
		if missing == 0 || follow.Err() != nil {
			break
		}
		wait(follow, 50*time.Millisecond)
	}
	wait(follow, time.Second) // what was sent without an answer, and what agents have to put right
	cancel()
	watch.Wait()
}

// away takes a member away, writes on every path, deletes and compacts all that etcd's clients see, and lets it come back.
func (h *house) away() {
	t := h.t
	t.Helper()
	late := h.leader()
	h.kill(late)
	stays := []int{(late + 1) % houseSize, (late + 2) % houseSize}
	h.run()
	for _, l := range h.loads {
		h.progress(l, 10, "with two members")
	}
	h.rest()
	h.bulk(stays)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cl := h.dial(stays...)
	_, err := cl.Delete(ctx, "", clientv3.WithPrefix()) // etcdctl del "" --prefix
	check(t, err)
	got, err := cl.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	check(t, err)
	if got.Count != 0 {
		t.Errorf("%d keys are left after everything was deleted", got.Count)
	}
	_, err = cl.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical())
	check(t, err)
	for _, i := range stays {
		_, err := cl.Defragment(ctx, h.endpoint(i))
		check(t, err)
	}
	h.store.emptied(got.Header.Revision)
	for i := range 20 { // something is there that the late member has to read
		check(t, h.store.secret(ctx, 1_000_000+i))
	}
	h.start(late)
	h.ready(late)
	if !h.members[late].log.wait("installed a snapshot", 60*time.Second) {
		t.Fatalf("the member that was away got no snapshot:\n%s", tail(h.members[late].log.String()))
	}
	h.verify("after everything of etcd was deleted and compacted, with a member that was away")
	// And through it: a certificate, a registration, a key, a value.
	at := 2_000_000 - 2_000_000%houseSize + late
	a, d := h.authority, h.discovery
	for what, step := range []func(context.Context, int) error{a.issue, a.enrol, d.pair, d.lock, d.session, a.issue, a.issue, a.revoke} {
		if err := step(ctx, at+12*houseSize*what); err != nil {
			t.Errorf("step %d through the member that was away: %v", what, err)
		}
	}
	h.verify("after work through the member that was away")
}

// bulk writes more entries than the log keeps for who is away.
func (h *house) bulk(members []int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for w := range 4 {
		work.Go(func() {
			cl := h.dial(members...)
			for i := range 1500 {
				if _, err := cl.Put(ctx, fmt.Sprintf("bulk/%s/%d/%d", h.mark, w, i%100), strings.Repeat("b-"+h.mark, 10)); err != nil {
					h.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

// killAll kills every member at once.
func (h *house) killAll() {
	h.t.Helper()
	for i := range houseSize {
		h.kill(i)
	}
	for i := range houseSize {
		h.start(i)
	}
	for i := range houseSize {
		h.ready(i)
	}
}

// rights asks what must be refused.
func (h *house) rights() {
	t := h.t
	t.Helper()
	ctx := t.Context()
	conf, _ := h.issueAside("client", "reader-"+h.mark)
	cl, err := clientv3.New(clientv3.Config{Endpoints: h.endpoints(), TLS: conf, Username: "reader-" + h.mark, Password: "p-" + h.mark, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	check(t, err)
	defer cl.Close()
	if _, err := cl.Put(ctx, "own/"+h.mark, "v"); err != nil {
		t.Errorf("the user cannot write its own keys: %v", err)
	}
	if _, err := cl.Get(ctx, "own/"+h.mark); err != nil {
		t.Errorf("the user cannot read its own keys: %v", err)
	}
	for what, call := range map[string]func() error{
		"a stranger's key":    func() error { _, err := cl.Get(ctx, "/registry/"); return err },
		"everything":          func() error { _, err := cl.Delete(ctx, "", clientv3.WithPrefix()); return err },
		"a compaction":        func() error { _, err := cl.Compact(ctx, 1); return err },
		"hashes of the store": func() error { _, err := cl.HashKV(ctx, h.endpoint(0), 0); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s, as a user with one prefix: %v", what, err)
		}
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: conf.Clone()}, Timeout: 10 * time.Second}
	defer web.CloseIdleConnections()
	for i := range houseSize {
		for _, path := range []string{"hashes", "ca/authorities", "encryption/status", "kms/status", "gossip-key"} {
			if _, err := ask(ctx, web, http.MethodGet, h.endpoint(i)+"/holdfast/v1/"+path, nil, nil); err == nil {
				t.Errorf("member %d answers %s to a client", i, path)
			}
		}
		if _, err := ask(ctx, web, http.MethodPut, loopback(h.consul[i])+"/v1/kv/x", "y", nil); err == nil {
			t.Errorf("member %d lets a client write Consul's keys", i)
		}
	}
	list, err := h.dial(0).MemberList(ctx)
	check(t, err)
	if len(list.Members) != houseSize {
		t.Errorf("%d members", len(list.Members))
	}
	if t.Failed() {
		t.FailNow()
	}
}

// end stops everything as an init system would.
func (h *house) end() {
	h.t.Helper()
	h.untend()
	for name, p := range map[string]*process{"the agent": h.agent, "the plugin": h.plugin, "m0": h.members[0], "m1": h.members[1], "m2": h.members[2]} {
		if err := p.stop(); err != nil {
			h.t.Errorf("%s did not end cleanly: %v\n%s", name, err, tail(p.log.String()))
		}
	}
}

// noteKey notes the forms of a private key that must not be found where everything is sealed.
func (h *house) noteKey(name string, key any) {
	h.t.Helper()
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		h.t.Fatalf("the key of %s is a %T", name, key)
	}
	scalar, err := k.Bytes()
	check(h.t, err)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	check(h.t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	h.secrets["private key of "+name], h.secrets["private key of "+name+", DER"] = scalar, der
	h.secrets["private key of "+name+", PEM"] = bytes.Split(text, []byte("\n"))[1]
}

// keyForms are how private keys begin, whoever's they are: nobody outside knows those of authorities.
func keyForms() map[string][]byte {
	unhex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	return map[string][]byte{
		"a PEM private key": []byte("PRIVATE KEY-----"), "PKCS #8 of an EC key": unhex("020100301306072a8648ce3d0201"), "an EC key of P-256 (SEC 1)": unhex("30770201010420"),
		"PKCS #8 of an RSA key": unhex("020100300d06092a864886f70d010101050004"), "PKCS #8 of an Ed25519 key": unhex("302e020100300506032b657004220420"),
	}
}

// wireControl is the one needle that is sent in the clear, by the test itself.
const (
	wireControl = "the control"
	controlText = "sent-in-the-clear-"
)

// wireControl sends it: not the marker itself, which a log may quote.
func (h *house) wireControl() {
	if h.wire != nil {
		h.wire.control(h.client[0], controlText+h.mark[6:])
	}
}

// canary looks for everything that was written, in each form, in every file of members, agent and plugin, and in every log.
func (h *house) canary() {
	t := h.t
	t.Helper()
	needles := formsOf("the marker", []byte(h.mark))
	for name, b := range h.secrets {
		maps.Copy(needles, formsOf(name, b))
	}
	if h.wire != nil {
		needles[wireControl] = []byte(controlText + h.mark[6:])
	}
	files, size, hits := 0, int64(0), 0
	search := func(where string, data []byte, more map[string][]byte) {
		for _, set := range []map[string][]byte{needles, more} {
			for what, b := range set {
				if i := bytes.Index(data, b); i >= 0 {
					if hits++; hits <= 40 {
						t.Errorf("%s is readable in %s at %d: %q", what, where, i, data[max(0, i-120):min(len(data), i+160)])
					}
				}
			}
		}
	}
	check(t, filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+int64(len(data))
		more := keyForms()
		if rest, _ := filepath.Rel(h.dir, path); strings.HasPrefix(rest, "home") {
			more = nil // a client context is a user's own key
		}
		search(path, append([]byte(filepath.Base(path)+"\n"), data...), more)
		return nil
	}))
	for _, p := range h.all {
		size += int64(len(p.log.String()))
		search("the log of "+strings.Join(p.cmd.Args[1:4], " "), []byte(p.log.String()), keyForms())
	}
	numbers := map[string]float64{"files": float64(files), "logs": float64(len(h.all)), "bytes": float64(size), "secrets": float64(len(h.secrets) + 1), "forms": float64(len(needles)), "kills": float64(h.kills)}
	if h.wire != nil {
		found, lost := h.wire.search(needles)
		for what, n := range found {
			if what == wireControl {
				continue
			}
			hits++
			t.Errorf("%s is readable on the wire, %d times", what, n)
		}
		if found[wireControl] != 1 {
			t.Errorf("the capture holds what was sent in the clear %d times: it does not look", found[wireControl])
		}
		numbers["packets captured"], numbers["bytes captured"], numbers["packets lost to the capture"] = float64(h.wire.packets), float64(h.wire.bytes), float64(lost)
	}
	numbers["hits"] = float64(hits)
	record.Row(t, 24, "canaries in keys, values, users, passwords, tokens, private keys, sessions, services and certificates, after kills, compactions, re-encryption and a snapshot transfer: readable nowhere", numbers)
	t.Logf("searched %d files and %d logs, %d bytes, for %d forms of %d secrets: %d hits", files, len(h.all), size, len(needles), len(h.secrets)+1, hits)
	if files < 30 || len(needles) < 60 {
		t.Errorf("%d files, %d forms: the search did not look", files, len(needles))
	}
	h.proveNeedles()
}

// formsOf returns what of a secret would stand in a file: itself, in hexadecimal, in base64 wherever it begins.
func formsOf(what string, b []byte) map[string][]byte {
	forms := map[string][]byte{what: b, what + ", in hexadecimal": []byte(hex.EncodeToString(b))}
	for shift := range 3 { // as part of something longer
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), b...))
		text = text[(shift*8+5)/6:]
		if (shift+len(b))%3 != 0 {
			text = text[:len(text)-1] // shared with what follows
		}
		forms[fmt.Sprintf("%s, in base64 (%d)", what, shift)] = []byte(text)
	}
	return forms
}

// proveNeedles: what is searched for is what stands in the files that users keep, and in every form of what is longer.
func (h *house) proveNeedles() {
	h.t.Helper()
	for shift := range 3 {
		longer := strings.Repeat("x", shift) + h.mark + "tail"
		for form, text := range map[string]string{"plain": longer, "hexadecimal": hex.EncodeToString([]byte(longer)), "base64": base64.StdEncoding.EncodeToString([]byte(longer))} {
			found := false
			for _, needle := range formsOf("", []byte(h.mark)) {
				found = found || strings.Contains(text, string(needle))
			}
			if !found {
				h.t.Errorf("the marker after %d bytes would not be found in %s", shift, form)
			}
		}
	}
	data, err := os.ReadFile(h.encryption(0))
	check(h.t, err)
	if !bytes.Contains(data, h.secrets["encryption key 1, base64"]) {
		h.t.Error("the needle of the encryption key is not what users wrote")
	}
	key, err := os.ReadFile(filepath.Join(h.given, "admin-boss", "key.pem"))
	check(h.t, err)
	if !bytes.Contains(key, h.secrets["private key of admin boss, PEM"]) {
		h.t.Error("the needle of a private key is not what users got")
	}
}
