package agentapi

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

func TestEveryCall(t *testing.T) {
	var asked core.LookupRequest
	var did []catalog.Op
	found := core.Found{Answer: catalog.Answer{Index: 9, Nodes: []catalog.Node{{Name: "n", Address: "10.0.0.1"}}}, KnownLeader: true, LastContact: 3 * time.Millisecond}
	outcome := catalog.Outcome{Index: 11, Failures: []catalog.Failure{{Op: 0, Kind: catalog.Missing, What: "Missing node registration"}}}
	d := &directory{
		lookup:   func(_ context.Context, r core.LookupRequest) (core.Found, error) { asked = r; return found, nil },
		discover: func(ops []catalog.Op) (catalog.Outcome, error) { did = ops; return outcome, nil },
	}
	joined := JoinAnswer{Cluster: 1 << 63, Member: 5, Members: []JoinMember{{ID: 4, Name: "a", Address: "127.0.0.1:1"}, {ID: 5, Name: "b", Learner: true}}}
	var wish JoinRequest
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open, Join: func(_ context.Context, who policy.Principal, j JoinRequest) (JoinAnswer, error) {
		wish = j
		return joined, nil
	}})
	c := client(t, options(address))
	q := core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryKeys, Name: "a/", Separator: "/"}, Serializable: true, MinIndex: 1 << 40, Wait: time.Minute}
	got, err := c.Lookup(t.Context(), anybody, q)
	if err != nil || !reflect.DeepEqual(got, found) {
		t.Errorf("Lookup = %+v, %v", got, err)
	}
	if asked.Wait > time.Minute || asked.Wait < 50*time.Second {
		t.Errorf("asked to wait %v", asked.Wait)
	}
	if asked.Wait = q.Wait; asked != q {
		t.Errorf("the directory was asked %+v", asked)
	}
	if got, err := c.Discover(t.Context(), anybody, set()); err != nil || !reflect.DeepEqual(got, outcome) || !reflect.DeepEqual(did, set()) {
		t.Errorf("Discover = %+v, %v; the directory did %+v", got, err, did)
	}
	if s, err := c.RenewSession(t.Context(), anybody, "an id"); err != nil || s.ID != "an id" || s.TTL != "10s" {
		t.Errorf("RenewSession = %+v, %v", s, err)
	}
	want, _ := d.Servers(t.Context(), anybody)
	if s, err := c.Servers(t.Context(), anybody); err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("Servers = %+v, %v", s, err)
	}
	j := JoinRequest{Name: "b", NodeID: "uuid", Address: "127.0.0.1:2"}
	if a, err := c.Join(t.Context(), j); err != nil || !reflect.DeepEqual(a, joined) || wish != j {
		t.Errorf("Join = %+v, %v; wished %+v", a, err, wish)
	}
	bare, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	_, err = client(t, options(bare)).Join(t.Context(), j)
	mustFail(t, "a server that takes nobody in", err, ErrNoJoin)
}

// TestFaultsCross: kind, reason and hint; of an internal error nothing.
func TestFaultsCross(t *testing.T) {
	var fail error
	d := &directory{discover: func([]catalog.Op) (catalog.Outcome, error) { return catalog.Outcome{}, fail }}
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	c := client(t, impatient(options(address)))
	for _, kind := range fault.Kinds() {
		fail = fault.New(kind, "the reason").WithHint("the hint")
		_, err := c.Discover(t.Context(), anybody, set())
		if f := fault.From(err); f.Kind != kind || f.Reason != "the reason" || f.Hint != "the hint" {
			t.Errorf("%v came over as %+v", kind, f)
		}
	}
	fail = errors.New("secret detail")
	if _, err := c.Discover(t.Context(), anybody, set()); err == nil || strings.Contains(err.Error(), "secret") || fault.From(err).Kind != fault.Internal {
		t.Errorf("an internal error came over as %v", err)
	}
	fail = fault.New(fault.Conflict, strings.Repeat("x", maxText+5))
	if _, err := c.Discover(t.Context(), anybody, set()); fault.From(err).Kind != fault.Conflict || len(fault.From(err).Reason) != maxText {
		t.Errorf("a long reason came over as %v", err)
	}
}

// blocking is a directory whose questions wait until they are let go or cancelled.
type blocking struct {
	directory
	waiting, cancelled sync.WaitGroup
	release            chan struct{}
}

func newBlocking(n int) *blocking {
	b := &blocking{release: make(chan struct{})}
	b.waiting.Add(n)
	b.cancelled.Add(n)
	b.lookup = func(ctx context.Context, r core.LookupRequest) (core.Found, error) {
		if r.Wait == 0 {
			return core.Found{}, nil
		}
		b.waiting.Done()
		select {
		case <-b.release:
			return core.Found{Answer: catalog.Answer{Index: r.MinIndex + 1}}, nil
		case <-ctx.Done():
			b.cancelled.Done()
			return core.Found{}, ctx.Err()
		}
	}
	return b
}

func change() core.LookupRequest {
	q := question1()
	q.MinIndex, q.Wait = 5, time.Minute
	return q
}

func TestCancelled(t *testing.T) {
	d := newBlocking(1)
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	c := client(t, options(address))
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		_, err := c.Lookup(ctx, anybody, change())
		mustFail(t, "its asker has gone", err, context.Canceled)
	})
	d.waiting.Wait()
	cancel()
	d.cancelled.Wait() // the server let it go
	asking.Wait()
}

// TestAskerVanishes: a connection that breaks cancels what it asked.
func TestAskerVanishes(t *testing.T) {
	d := newBlocking(1)
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	c := client(t, impatient(options(address)))
	var asking sync.WaitGroup
	asking.Go(func() {
		if _, err := c.Lookup(t.Context(), anybody, change()); err == nil {
			t.Error("a client that was closed has an answer")
		}
	})
	d.waiting.Wait()
	c.Close()
	d.cancelled.Wait()
	asking.Wait()
}

func TestBounds(t *testing.T) {
	d := newBlocking(2)
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open, MaxBlocking: 2, MaxActive: 1})
	c := client(t, impatient(options(address)))
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			found, err := c.Lookup(t.Context(), anybody, change())
			if err != nil || found.Index != 6 {
				t.Errorf("%+v, %v", found, err)
			}
		})
		// One at a time: there is room for one body only.
		until(t, "the question waits", func() bool { return d.calls.Load() > 0 })
		d.calls.Store(0)
	}
	d.waiting.Wait()
	_, err := c.Lookup(t.Context(), anybody, change())
	mustFail(t, "a third that waits", err, ErrBusy)
	if fault.From(err).Hint == "" {
		t.Error("the refusal says nothing of how many")
	}
	// Those that wait are in nobody's way.
	if _, err := c.Lookup(t.Context(), anybody, question1()); err != nil {
		t.Error(err)
	}
	close(d.release)
	asking.Wait()

	entered, leave := make(chan struct{}), make(chan struct{})
	slow := &directory{discover: func([]catalog.Op) (catalog.Outcome, error) { close(entered); <-leave; return catalog.Outcome{}, nil }}
	address, _ = serve(t, listen(t), ServerOptions{Directory: slow, Principal: open, MaxActive: 1})
	c = client(t, impatient(options(address)))
	asking.Go(func() {
		if _, err := c.Discover(t.Context(), anybody, set()); err != nil {
			t.Error(err)
		}
	})
	<-entered
	_, err = c.Servers(t.Context(), anybody)
	mustFail(t, "a second at work", err, ErrBusy)
	close(leave)
	asking.Wait()
	if _, err := c.Servers(t.Context(), anybody); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}

// TestStop: questions that wait end at once, a write under way is finished, and then nothing is left.
func TestStop(t *testing.T) {
	d := newBlocking(1)
	entered, leave := make(chan struct{}), make(chan struct{})
	d.discover = func([]catalog.Op) (catalog.Outcome, error) {
		close(entered)
		<-leave
		return catalog.Outcome{Index: 3}, nil
	}
	address, stop := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	c := client(t, impatient(options(address)))
	var asking sync.WaitGroup
	asking.Go(func() {
		if _, err := c.Lookup(t.Context(), anybody, change()); fault.From(err).Kind != fault.Unavailable {
			t.Errorf("a question at a server that stops: %v", err)
		}
	})
	asking.Go(func() {
		if o, err := c.Discover(t.Context(), anybody, set()); err != nil || o.Index != 3 {
			t.Errorf("a write at a server that stops: %+v, %v", o, err)
		}
	})
	d.waiting.Wait()
	<-entered
	stopped := make(chan struct{})
	asking.Go(func() { stop(); close(stopped) })
	d.cancelled.Wait()
	select {
	case <-stopped:
		t.Error("Serve has returned before its last call")
	default:
	}
	close(leave)
	asking.Wait()
	<-stopped
}
