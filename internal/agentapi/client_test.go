package agentapi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// liar is a server that answers every call in its own way. It returns its address.
func liar(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(answer)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}
}

// TestLyingServers: whatever a server answers, a question is asked elsewhere, and a write is neither believed nor repeated.
func TestLyingServers(t *testing.T) {
	huge := string(binary.AppendUvarint(nil, 1<<62))
	for name, answer := range map[string]http.HandlerFunc{
		"nothing":                 says(""),
		"an unknown head":         says("\x07"),
		"garbage":                 says("\x00" + huge + huge + huge + huge),
		"a huge length":           says("\x00\x01\x00" + huge),
		"a fault of no kind":      says("\x01\xee\x01x\x00"),
		"a fault cut off":         says("\x01\x01\x50x"),
		"a fault without reason":  says("\x01\x01\x00\x00"),
		"a refusal with a lie":    says("\x02\x08" + huge + "x"),
		"bytes after the end":     says("\x00" + string(appendFound(nil, &core.Found{})) + "\x00"),
		"another kind of content": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "\x00") },
		"an error of HTTP":        func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) },
		"less than declared": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Content-Length", "5000")
			io.WriteString(w, "\x00")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := &directory{}
			bad, honest := liar(t, answer), ""
			honest, _ = serve(t, listen(t), ServerOptions{Directory: good, Principal: open})
			for what, ask := range map[string]func(*Client) error{
				"Lookup": func(c *Client) error { _, err := c.Lookup(t.Context(), anybody, question1()); return err },
				"Servers": func(c *Client) error {
					_, err := c.Servers(t.Context(), anybody)
					return err
				},
				"RenewSession": func(c *Client) error { _, err := c.RenewSession(t.Context(), anybody, "s"); return err },
			} {
				if err := ask(client(t, impatient(options(bad)))); err == nil {
					t.Errorf("%s believed it", what)
				}
				if err := ask(client(t, inOrder(options(bad, honest)))); err != nil {
					t.Errorf("%s was not asked elsewhere: %v", what, err)
				}
			}
			before := good.calls.Load()
			c := client(t, inOrder(options(bad, honest)))
			_, err := c.Discover(t.Context(), anybody, set())
			mustFail(t, "a write", err, ErrUnsure)
			c = client(t, inOrder(options(bad, honest)))
			_, err = c.Join(t.Context(), JoinRequest{Name: "x"})
			mustFail(t, "joining", err, ErrUnsure)
			if good.calls.Load() != before {
				t.Error("a write was repeated")
			}
		})
	}
}

// TestWriteBreaks: the connection ends after a server has read the write.
func TestWriteBreaks(t *testing.T) {
	var seen atomic.Int64
	bad := liar(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen.Add(1)
		panic(http.ErrAbortHandler)
	})
	good := &directory{}
	honest, _ := serve(t, listen(t), ServerOptions{Directory: good, Principal: open})
	c := client(t, inOrder(options(bad, honest)))
	_, err := c.Discover(t.Context(), anybody, set())
	mustFail(t, "the write", err, ErrUnsure)
	if fault.From(err).Hint == "" {
		t.Error("the error does not say what to do")
	}
	if seen.Load() != 1 || good.calls.Load() != 0 {
		t.Errorf("the write was sent %d and %d times", seen.Load(), good.calls.Load())
	}
	// With the caller's time over it is as unsure.
	hang, over := make(chan struct{}), t.Context()
	bad = liar(t, func(http.ResponseWriter, *http.Request) { <-hang })
	defer close(hang)
	ctx, cancel := context.WithTimeout(over, 50*time.Millisecond)
	defer cancel()
	_, err = client(t, options(bad)).Discover(ctx, anybody, set())
	mustFail(t, "a write without answer in time", err, ErrUnsure)
	_, err = client(t, options(bad)).Lookup(ctx, anybody, question1())
	mustFail(t, "a question without answer in time", err, context.DeadlineExceeded)
}

// TestWriteGoesElsewhere: as long as no server has begun with it.
func TestWriteGoesElsewhere(t *testing.T) {
	good := &directory{}
	honest, _ := serve(t, listen(t), ServerOptions{Directory: good, Principal: open})
	closed := listen(t)
	dead := closed.Addr().String()
	closed.Close()
	for name, bad := range map[string]string{
		"a dead server":     dead,
		"a stopping server": liar(t, says("\x02"+string(appendFault(nil, ErrStopping)))),
		"a busy server":     liar(t, says("\x02"+string(appendFault(nil, ErrBusy)))),
	} {
		before := good.calls.Load()
		if o, err := client(t, inOrder(options(bad, honest))).Discover(t.Context(), anybody, set()); err != nil || o.Index != 7 {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
		if n := good.calls.Load() - before; n != 1 {
			t.Errorf("%s: %d writes", name, n)
		}
	}
	// What a server has decided is not asked again.
	for name, answer := range map[string]string{
		"refused":           "\x02" + string(appendFault(nil, ErrNobody)),
		"a conflict":        "\x01" + string(appendFault(nil, fault.New(fault.Conflict, "conflict"))),
		"unsure, it says":   "\x01" + string(appendFault(nil, core.ErrTimeout)),
		"too many, it says": "\x01" + string(appendFault(nil, core.ErrTooManyRequests)),
	} {
		before := good.calls.Load()
		if _, err := client(t, inOrder(options(liar(t, says(answer)), honest))).Discover(t.Context(), anybody, set()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if good.calls.Load() != before {
			t.Errorf("%s: the write was repeated", name)
		}
	}
}

// TestQuestionsMoveOn: a server without a leader is left for one that has one, and the client stays there.
func TestQuestionsMoveOn(t *testing.T) {
	cut := &directory{lookup: func(context.Context, core.LookupRequest) (core.Found, error) { return core.Found{}, core.ErrNoLeader }}
	well := &directory{}
	a, _ := serve(t, listen(t), ServerOptions{Directory: cut, Principal: open})
	b, _ := serve(t, listen(t), ServerOptions{Directory: well, Principal: open})
	c := client(t, inOrder(options(a, b)))
	for range 20 {
		if _, err := c.Lookup(t.Context(), anybody, question1()); err != nil {
			t.Fatal(err)
		}
	}
	if n := cut.calls.Load(); n != 1 || well.calls.Load() != 20 {
		t.Errorf("the cut-off server was asked %d times, the other %d", n, well.calls.Load())
	}
	_, err := client(t, impatient(options(a))).Lookup(t.Context(), anybody, question1())
	mustFail(t, "no other server", err, core.ErrNoLeader)
}

// TestServerDies: the connection of a client breaks, and another server answers both questions that wait and new ones.
func TestServerDies(t *testing.T) {
	first := newBlocking(1)
	second := &directory{}
	a, stop := serve(t, listen(t), ServerOptions{Directory: first, Principal: open})
	b, _ := serve(t, listen(t), ServerOptions{Directory: second, Principal: open})
	c := client(t, inOrder(options(a, b)))
	answered := make(chan error, 1)
	go func() {
		_, err := c.Lookup(t.Context(), anybody, change())
		answered <- err
	}()
	first.waiting.Wait()
	stop()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if _, err := c.Discover(t.Context(), anybody, set()); err != nil {
		t.Error(err)
	}
	if n := second.calls.Load(); n != 2 {
		t.Errorf("the second server was asked %d times", n)
	}
}

func TestNoServers(t *testing.T) {
	_, err := client(t, options()).Lookup(t.Context(), anybody, question1())
	mustFail(t, "no server is known", err, ErrNoServers)
	_, err = client(t, options()).Discover(t.Context(), anybody, set())
	mustFail(t, "no server is known", err, ErrNoServers)
	// Servers that become known in time are found.
	address, _ := serve(t, listen(t), ServerOptions{Directory: &directory{}, Principal: open})
	down := listen(t)
	known := []string{down.Addr().String()}
	down.Close()
	var asked atomic.Int64
	o := options()
	o.Servers = func() []string {
		if asked.Add(1) > 3 {
			return []string{address}
		}
		return known
	}
	if _, err := client(t, o).Lookup(t.Context(), anybody, question1()); err != nil {
		t.Error(err)
	}
}

// TestCallersOfTheAgent: servers judge the agent, so the agent must not lend its rights to just anybody.
func TestCallersOfTheAgent(t *testing.T) {
	d := &directory{}
	address, _ := serve(t, listen(t), ServerOptions{Directory: d, Principal: open})
	c := client(t, options(address))
	for _, who := range []policy.Principal{{}, policy.NewHolder("x", policy.Certificate{}, policy.RoleAdmin, false), policy.NewMember("m", policy.Certificate{})} {
		_, err := c.Lookup(t.Context(), who, question1())
		mustFail(t, who.String(), err, ErrNotAllowed)
		_, err = c.Discover(t.Context(), who, set())
		mustFail(t, who.String(), err, ErrNotAllowed)
		_, err = c.RenewSession(t.Context(), who, "s")
		mustFail(t, who.String(), err, ErrNotAllowed)
		_, err = c.Servers(t.Context(), who)
		mustFail(t, who.String(), err, ErrNotAllowed)
	}
	if d.calls.Load() != 0 {
		t.Error("a server was asked")
	}
	if _, err := c.Lookup(t.Context(), policy.NewSystem("agent"), question1()); err != nil {
		t.Error(err)
	}
}

func TestChoice(t *testing.T) {
	now := time.Unix(1000, 0)
	draw := 0
	c := &choice{now: func() time.Time { return now }, intn: func(n int) int { return draw % n }, servers: map[string]*health{}}
	pick := func(want string, pause bool, known ...string) {
		t.Helper()
		if got, wait := c.pick(known); got != want || (wait > 0) != pause {
			t.Fatalf("picked %q, %v; want %q", got, wait, want)
		}
	}
	draw = 1
	pick("b", false, "a", "b", "c")
	draw = 0
	pick("b", false, "a", "b", "c") // it stays
	pick("a", false, "a", "c")      // b is no server any more
	c.failed("a")
	pick("c", false, "a", "c")
	c.failed("c")
	pick("", true, "a", "c")
	now = now.Add(minBackoff)
	pick("a", false, "a", "c")
	for range 30 { // it grows, to a bound
		c.failed("a")
	}
	now = now.Add(maxBackoff/2 - 1)
	c.well("c")
	pick("c", false, "a", "c")
	now = now.Add(maxBackoff)
	pick("c", false, "a", "c")
	c.failed("c")
	pick("a", false, "a", "c")
	c.well("a")
	if c.servers["a"] != nil {
		t.Error("a server that answers is remembered as failed")
	}
	pick("d", false, "d")
	if len(c.servers) != 0 {
		t.Errorf("servers that are gone are remembered: %v", c.servers)
	}
}

func TestCloseIsForGood(t *testing.T) {
	address, _ := serve(t, listen(t), ServerOptions{Directory: &directory{}, Principal: open})
	var opened atomic.Int64
	o := impatient(options(address))
	o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		opened.Add(1)
		return dialPlain(ctx, address)
	}
	c := client(t, o)
	for range 5 {
		if _, err := c.Lookup(t.Context(), anybody, question1()); err != nil {
			t.Fatal(err)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for five calls", n)
	}
	c.Close()
	if _, err := c.Lookup(t.Context(), anybody, question1()); err == nil {
		t.Error("a closed client answers")
	}
	c.conns.mu.Lock()
	defer c.conns.mu.Unlock()
	if len(c.conns.open) != 0 {
		t.Errorf("%d connections are open", len(c.conns.open))
	}
}

// TestDialErrorsAreShown: why a server is not reached is worth knowing.
func TestDialErrorsAreShown(t *testing.T) {
	o := impatient(options("127.0.0.1:1"))
	o.Dial = func(context.Context, string) (net.Conn, error) {
		return nil, errors.New("the certificate is of another authority")
	}
	_, err := client(t, o).Lookup(t.Context(), anybody, question1())
	if f := fault.From(err); !errors.Is(err, ErrNoAnswer) || f.Hint != "127.0.0.1:1: the certificate is of another authority" {
		t.Errorf("%v (%s)", err, fmt.Sprint(f.Hint))
	}
	_, err = client(t, o).Discover(t.Context(), anybody, []catalog.Op{})
	mustFail(t, "a write that was not sent", err, ErrNoAnswer)
}
