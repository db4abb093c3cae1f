package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"holdfast.dev/holdfast/internal/fault"
)

func key(t *testing.T, n int) []byte {
	t.Helper()
	k := make([]byte, n)
	if _, err := rand.Read(k); err != nil {
		t.Fatal(err)
	}
	return k
}

// gossiping returns options of an agent that gossips on a free port of 127.0.0.1.
func gossiping(t *testing.T, d Directory, name string, key []byte) Options {
	o := options(t, d, name)
	o.Gossip = &GossipOptions{Bind: "127.0.0.1", Key: key, Plaintext: key == nil, quick: true,
		Tags: map[string]string{"role": "node", "dc": "dc1", "id": o.Node.ID}}
	return o
}

func (a *Agent) gossipAddress() string { m := a.Self(); return fmt.Sprintf("%s:%d", m.Addr, m.Port) }

func statusOf(a *Agent, name string) int {
	for _, m := range a.Members() {
		if m.Name == name {
			return m.Status
		}
	}
	return MemberNone
}

func joined(t *testing.T, a, b *Agent) {
	t.Helper()
	if n, err := a.Join([]string{b.gossipAddress()}); err != nil || n != 1 {
		t.Fatalf("joined %d: %v", n, err)
	}
	until(t, "they know each other", func() bool {
		return statusOf(a, b.o.Node.Name) == MemberAlive && statusOf(b, a.o.Node.Name) == MemberAlive
	})
}

func TestGossipKeys(t *testing.T) {
	t.Parallel()
	for _, n := range []int{16, 24, 32} {
		if k, err := ParseGossipKey(base64.StdEncoding.EncodeToString(key(t, n))); err != nil || len(k) != n {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, text := range []string{"", "!!", base64.StdEncoding.EncodeToString(key(t, 15)), base64.StdEncoding.EncodeToString(key(t, 33)), base64.StdEncoding.EncodeToString(key(t, 17))} {
		_, err := ParseGossipKey(text)
		if fault.From(err).Kind != fault.Invalid || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	o := gossiping(t, openDirectory(t), "node-01", nil)
	o.Gossip.Plaintext = false
	if _, err := New(o); err == nil {
		t.Error("gossip without a key and without anybody asking for it")
	}
	o = gossiping(t, openDirectory(t), "node-01", key(t, 20))
	if _, err := New(o); err == nil {
		t.Error("a key of 20 bytes")
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k := key(t, 32)
	a, b := build(t, gossiping(t, d, "node-01", k)), build(t, gossiping(t, d, "node-02", k))
	start(t, a)
	stop := start(t, b)
	joined(t, a, b)
	if !a.Encrypted() || a.Self().Tags["dc"] != "dc1" || a.Self().ProtocolMax == 0 || a.Self().DelegateCur == 0 {
		t.Errorf("%+v", a.Self())
	}
	stop() // without a word
	until(t, "the silent one is failed", func() bool { return statusOf(a, "node-02") == MemberFailed })
	if err := a.ForceLeave("nobody", false); err == nil || err.Error() != "agent: No node found with name 'nobody'" {
		t.Error(err)
	}
	if err := a.ForceLeave("node-02", false); err != nil {
		t.Fatal(err)
	}
	until(t, "it is made to have left", func() bool { return statusOf(a, "node-02") == MemberLeft })
	if err := a.ForceLeave("node-02", true); err != nil {
		t.Fatal(err)
	}
	until(t, "it is forgotten", func() bool { return statusOf(a, "node-02") == MemberNone })
	if err := a.ForceLeave("node-01", false); err != nil || statusOf(a, "node-01") != MemberAlive {
		t.Errorf("an agent that was told to eject itself: %v, %d", err, statusOf(a, "node-01"))
	}

	c := build(t, gossiping(t, d, "node-03", k))
	start(t, c)
	joined(t, c, a)
	if err := c.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "it left", func() bool { return statusOf(a, "node-03") == MemberLeft })
	registered(t, c, `{"Name":"late"}`)
	if d.service("node-03", "late") != nil {
		t.Error("an agent that left still writes into the catalog")
	}
}

// TestStrangersStayOut: without the key nobody gets in, hears anything, or is heard.
func TestStrangersStayOut(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	a := build(t, gossiping(t, d, "node-01", key(t, 32)))
	start(t, a)
	for name, k := range map[string][]byte{"node-02": key(t, 32), "node-03": key(t, 16), "node-04": nil} {
		stranger := build(t, gossiping(t, d, name, k))
		stop := start(t, stranger)
		if n, err := stranger.Join([]string{a.gossipAddress()}); n != 0 || fault.From(err).Kind != fault.Unavailable {
			t.Errorf("%s joined: %d %v", name, n, err)
		}
		if n, err := a.Join([]string{stranger.gossipAddress()}); n != 0 || err == nil {
			t.Errorf("%s was joined: %d %v", name, n, err)
		}
		if len(stranger.Members()) != 1 {
			t.Errorf("%s learned of %v", name, stranger.Members())
		}
		stop()
	}
	if m := a.Members(); len(m) != 1 {
		t.Errorf("members %v", m)
	}
}

// TestMergeRefusesOthers: members of another datacenter, of another cluster, or with an identity that is taken.
func TestMergeRefusesOthers(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k := key(t, 16)
	o := gossiping(t, d, "node-01", k)
	o.Gossip.Tags["cluster"] = "c1"
	a := build(t, o)
	start(t, a)
	for words, change := range map[string]func(*Options){
		"Member 'node-02' part of wrong datacenter 'dc2'":                     func(o *Options) { o.Gossip.Tags["dc"] = "dc2" },
		"Member 'node-02' part of another cluster":                            func(o *Options) { o.Gossip.Tags["cluster"] = "c2" },
		"Member 'node-02' has conflicting node ID '" + a.o.Node.ID + "' with": func(o *Options) { o.Gossip.Tags["id"] = a.o.Node.ID },
	} {
		o := gossiping(t, d, "node-02", k)
		change(&o)
		other := build(t, o)
		stop := start(t, other)
		if _, err := a.Join([]string{other.gossipAddress()}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("want %q, got %v", words, err)
		}
		if statusOf(a, "node-02") == MemberAlive {
			t.Errorf("it is a member all the same: %q", words)
		}
		stop()
	}
}

// TestGarbageDoesNoHarm throws what a hostile host can at both sockets: noise, plaintext messages, oversized packets
// and, again and again, packets that were once sealed with the right key.
func TestGarbageDoesNoHarm(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k := key(t, 32)
	a, b := build(t, gossiping(t, d, "node-01", k)), build(t, gossiping(t, d, "node-02", k))
	start(t, a)
	start(t, b)

	joined(t, a, b)
	udp, err := net.Dial("udp", a.gossipAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	sealed := captured(t, k)
	for range 50 {
		for _, packet := range append(sealed, nil, []byte{0}, []byte{8}, key(t, 60), key(t, 1400), append([]byte{6}, key(t, 40)...), append([]byte{9}, key(t, 2000)...), bytes.Repeat([]byte{255}, 60000)) {
			if _, err := udp.Write(packet); err != nil && !strings.Contains(err.Error(), "refused") {
				t.Fatal(err)
			}
		}
	}
	for _, stream := range [][]byte{nil, {6}, {10, 255, 255, 255, 255}, append([]byte{10, 127, 255, 255, 255}, key(t, 5000)...), append([]byte{6}, key(t, 5000)...), bytes.Repeat([]byte{9}, 100000)} {
		c, err := net.Dial("tcp", a.gossipAddress())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(stream) // it may hang up in between
		c.Close()
	}
	c := build(t, gossiping(t, d, "node-03", k))
	start(t, c)
	joined(t, c, a)
	until(t, "everybody is alive", func() bool {
		return statusOf(a, "node-02") == MemberAlive && statusOf(b, "node-03") == MemberAlive && len(a.Members()) == 3 && len(a.events.events) == 0
	})
}

// captured returns packets as two members with this key send them.
func captured(t *testing.T, k []byte) [][]byte {
	t.Helper()
	var mu sync.Mutex
	var packets [][]byte
	net1 := &memberlist.MockNetwork{}
	make1 := func(name string) *memberlist.Memberlist {
		c := memberlist.DefaultLocalConfig()
		c.Name, c.SecretKey, c.LogOutput = name, k, logging(t)
		c.Transport = &tapped{NodeAwareTransport: net1.NewTransport(name), tap: func(p []byte) {
			mu.Lock()
			defer mu.Unlock()
			packets = append(packets, bytes.Clone(p))
		}}
		m, err := memberlist.Create(c)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	x, y := make1("x"), make1("y")
	defer x.Shutdown()
	defer y.Shutdown()
	if _, err := x.Join([]string{y.LocalNode().FullAddress().Addr}); err != nil {
		t.Fatal(err)
	}
	until(t, "packets were sent", func() bool { mu.Lock(); defer mu.Unlock(); return len(packets) > 3 })
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(packets)
}

type tapped struct {
	memberlist.NodeAwareTransport
	tap func([]byte)
}

func (t *tapped) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	t.tap(b)
	return t.NodeAwareTransport.WriteToAddress(b, addr)
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k1, k2 := key(t, 32), key(t, 16)
	text1, text2 := base64.StdEncoding.EncodeToString(k1), base64.StdEncoding.EncodeToString(k2)
	oa, ob := gossiping(t, d, "node-01", k1), gossiping(t, d, "node-02", k1)
	a, b := build(t, oa), build(t, ob)
	start(t, a)
	stop := start(t, b)
	joined(t, a, b)
	step := func(what string, answer KeyringAnswer, err error) KeyringAnswer {
		t.Helper()
		if err != nil || answer.NumNodes != 2 {
			t.Fatalf("%s: %+v %v", what, answer, err)
		}
		return answer
	}
	answer, err := a.InstallKey(text2)
	step("install", answer, err)
	answer, err = a.ListKeys()
	if got := step("list", answer, err); got.Keys[text1] != 2 || got.Keys[text2] != 2 || got.PrimaryKeys[text1] != 2 {
		t.Errorf("%+v", got)
	}
	if _, err := a.RemoveKey(text1); err == nil {
		t.Error("the key in use was removed")
	}
	answer, err = b.UseKey(text2)
	step("use", answer, err)
	answer, err = b.RemoveKey(text1)
	step("remove", answer, err)
	answer, err = a.ListKeys()
	if got := step("list", answer, err); len(got.Keys) != 1 || got.PrimaryKeys[text2] != 2 {
		t.Errorf("%+v", got)
	}
	if _, err := a.InstallKey("nonsense"); fault.From(err).Kind != fault.Invalid {
		t.Error(err)
	}
	stop()

	// The configuration still names the first key: the rotation outlives the restart, and so does who was there.
	ob.Gossip.Key = k1
	b = build(t, ob)
	stop = start(t, b)
	until(t, "the restarted agent finds its way back by itself, at another port", func() bool {
		return statusOf(b, "node-01") == MemberAlive && slices.ContainsFunc(a.Members(), func(m Member) bool {
			return m.Name == "node-02" && m.Status == MemberAlive && m.Port == b.Self().Port
		})
	})
	stop()

	// Somebody writes the new key into the configuration, and later a third one.
	ob.Gossip.Key = k2
	b = build(t, ob)
	if keys := b.gossip.ring.GetKeys(); len(keys) != 1 || string(keys[0]) != string(k2) {
		t.Errorf("%d keys", len(keys))
	}
	start(t, b)()
	ob.Gossip.Key = key(t, 32)
	b = build(t, ob)
	if keys := b.gossip.ring.GetKeys(); len(keys) != 1 || string(keys[0]) != string(ob.Gossip.Key) {
		t.Errorf("%d keys: the configuration must win over a ring that does not have its key", len(keys))
	}
	start(t, b)()
}

func TestNoKeyringWithoutEncryption(t *testing.T) {
	t.Parallel()
	a := build(t, gossiping(t, openDirectory(t), "node-01", nil))
	start(t, a)
	if _, err := a.ListKeys(); err == nil || err.Error() != "Keyring is empty (encryption not enabled)" || a.Encrypted() {
		t.Error(err)
	}
	b := build(t, options(t, openDirectory(t), "node-01"))
	for _, err := range []error{b.ForceLeave("x", false), second(b.Join([]string{"x"})), second(b.ListKeys()), second(b.FireEvent(Event{Name: "x"}))} {
		if fault.From(err).Kind != fault.Unsupported {
			t.Errorf("without gossip: %v", err)
		}
	}
	if m := b.Members(); len(m) != 1 || m[0].Name != "node-01" || m[0].Status != MemberAlive {
		t.Errorf("%+v", m)
	}
}

func second[T any](_ T, err error) error { return err }

func TestStartJoin(t *testing.T) {
	t.Parallel()
	o := gossiping(t, openDirectory(t), "node-01", nil)
	o.Gossip.StartJoin = []string{"127.0.0.1:1"}
	a := build(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "joining [127.0.0.1:1]") {
		t.Errorf("Run: %v", err)
	}
}

// TestRetryJoin starts before the agent that it looks for.
func TestRetryJoin(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	first := build(t, gossiping(t, d, "node-01", nil))
	address := first.gossipAddress()
	start(t, first)() // the port is known and free again
	o := gossiping(t, d, "node-02", nil)
	o.Gossip.RetryJoin, o.Gossip.RetryInterval = []string{address}, 20*time.Millisecond
	b := build(t, o)
	start(t, b)
	o = gossiping(t, d, "node-03", nil)
	o.Gossip.Port = int(first.Self().Port)
	c := build(t, o)
	start(t, c)
	until(t, "they found each other", func() bool { return statusOf(c, "node-02") == MemberAlive })
}

// TestGossipLog: levels survive, keys do not appear.
func TestGossipLog(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var out bytes.Buffer
	locked := writer(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return out.Write(p) })
	k, k2 := key(t, 32), key(t, 32)
	o := gossiping(t, openDirectory(t), "node-01", k)
	o.Log = slog.New(slog.NewTextHandler(locked, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a := build(t, o)
	stop := start(t, a)
	if err := errors.Join(second(a.InstallKey(base64.StdEncoding.EncodeToString(k2))), second(a.UseKey(base64.StdEncoding.EncodeToString(k2)))); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", a.gossipAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "a packet that does not decrypt is told at the level ERROR", func() bool {
		if _, err := c.Write(bytes.Repeat([]byte{1}, 100)); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(out.String(), `level=ERROR msg="gossip: memberlist: Decrypt packet failed`)
	})
	stop()
	mu.Lock()
	text := out.String()
	mu.Unlock()
	for _, k := range [][]byte{k, k2} {
		for _, form := range []string{base64.StdEncoding.EncodeToString(k), string(k), fmt.Sprintf("%x", k)} {
			if strings.Contains(text, form) {
				t.Error("a key is in the log")
			}
		}
	}
	if !strings.Contains(text, "level=INFO") || strings.Contains(text, "[INFO]") {
		t.Errorf("levels are not translated:\n%s", text)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestCloseGivesThePortBack without a Run.
func TestCloseGivesThePortBack(t *testing.T) {
	t.Parallel()
	o := gossiping(t, openDirectory(t), "node-01", nil)
	a := build(t, o)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	o.Gossip.Port = int(a.Self().Port)
	a = build(t, o)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}
