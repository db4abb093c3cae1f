package agentapi

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

var anybody = policy.NewAnonymous()

// directory answers as the tests say, and counts.
type directory struct {
	lookup   func(context.Context, core.LookupRequest) (core.Found, error)
	discover func([]catalog.Op) (catalog.Outcome, error)

	calls atomic.Int64
	mu    sync.Mutex
	whos  []string
}

func (d *directory) note(who policy.Principal) {
	d.calls.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whos = append(d.whos, who.Name())
}

func (d *directory) Discover(_ context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	d.note(who)
	if d.discover != nil {
		return d.discover(ops)
	}
	return catalog.Outcome{Index: 7}, nil
}

func (d *directory) Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error) {
	d.note(who)
	if d.lookup != nil {
		return d.lookup(ctx, r)
	}
	return core.Found{Answer: catalog.Answer{Index: 7, Keys: []string{r.Query.Name}}, KnownLeader: true}, nil
}

func (d *directory) RenewSession(_ context.Context, who policy.Principal, id string) (catalog.Session, error) {
	d.note(who)
	return catalog.Session{ID: id, TTL: "10s"}, nil
}

func (d *directory) Servers(_ context.Context, who policy.Principal) ([]core.Server, error) {
	d.note(who)
	return []core.Server{{ID: 1, Name: "a", Address: "127.0.0.1:8300", Leader: true, Voter: true}, {ID: 2, Name: "b"}}, nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// open takes everybody for anonymous, as a plain port of an open agent does.
func open(net.Conn) policy.Principal { return anybody }

// serve runs a server until the test ends or stop is called, and returns its address.
func serve(t *testing.T, l net.Listener, o ServerOptions) (address string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := NewServer(o).Serve(ctx, l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// dialPlain is the Dial of agents without TLS.
func dialPlain(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

func options(servers ...string) ClientOptions {
	return ClientOptions{
		Servers: func() []string { return servers }, Dial: dialPlain, Intn: rand.IntN, Now: time.Now, After: time.After,
	}
}

func client(t *testing.T, o ClientOptions) *Client {
	t.Helper()
	c := NewClient(o)
	t.Cleanup(c.Close)
	return c
}

// inOrder draws the first server always.
func inOrder(o ClientOptions) ClientOptions {
	o.Intn = func(int) int { return 0 }
	return o
}

// impatient has the hold time end at once: whatever fails is passed on after one round.
func impatient(o ClientOptions) ClientOptions {
	o.After = func(d time.Duration) <-chan time.Time {
		if d == holdTime {
			return time.After(50 * time.Millisecond)
		}
		return time.After(d)
	}
	return o
}

func question1() core.LookupRequest {
	return core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryKeys, Name: "web"}}
}

func set() []catalog.Op {
	return []catalog.Op{{Verb: catalog.KVSet, Pair: &catalog.Pair{Key: "k", Value: []byte("v")}}}
}

func mustFail(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}
