package agentapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// The patience of a client.
const (
	dialTime    = 5 * time.Second
	attemptTime = callTime + 2*time.Second // for one server to answer, beside what a question asked to wait
	holdTime    = 7 * time.Second          // for some server to be well again, before an error is passed on
	pingTime    = 5 * time.Second          // until a silent server is asked whether it lives, and for its answer
)

// ClientOptions say how servers are found and reached. Servers, Dial, Intn, Now and After are required.
type ClientOptions struct {
	// Servers lists the servers that are known now, as host:port. It is asked before every attempt.
	Servers func() []string
	// Dial opens a connection to a server, proves both ends where the cluster has TLS, and offers Protocol.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Intn draws from [0, n). It is called from many goroutines.
	Intn  func(n int) int
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
	Log   *slog.Logger
}

// Client asks servers. It stays with one as long as that one is well.
type Client struct {
	o         ClientOptions
	choice    choice
	transport *http.Transport
	conns     conns
}

// NewClient returns a client. It connects when it is asked something.
func NewClient(o ClientOptions) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // "unencrypted" as seen from here: TLS is Dial's
	c := &Client{o: o, choice: choice{now: o.Now, intn: o.Intn, servers: map[string]*health{}}}
	c.transport = &http.Transport{
		Protocols:              &protocols,
		DialContext:            func(ctx context.Context, _, address string) (net.Conn, error) { return c.dial(ctx, address) },
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
		IdleConnTimeout:        idleTime / 2,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingTime, PingTimeout: pingTime, WriteByteTimeout: attemptTime},
	}
	return c
}

// dial opens a connection that Close closes.
func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := c.o.Dial(ctx, address)
	if err != nil {
		return nil, &dialError{err}
	}
	return c.conns.add(conn)
}

// Close closes every connection: calls under way fail, and so does every later one.
func (c *Client) Close() {
	c.conns.close()
	c.transport.CloseIdleConnections()
}

// Discover has operations done, whole or not at all. It is not repeated once a server may have seen it: then the error is
// ErrUnsure.
func (c *Client) Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	if err := may(who); err != nil {
		return catalog.Outcome{}, err
	}
	body, err := c.ask(ctx, question{path: pathDiscover, body: catalog.AppendOps(nil, ops), write: true})
	if err != nil {
		return catalog.Outcome{}, err
	}
	outcome, err := catalog.DecodeOutcome(body)
	if err != nil {
		return catalog.Outcome{}, ErrUnsure
	}
	return outcome, nil
}

// Lookup asks the catalog or the key-value store.
func (c *Client) Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (found core.Found, err error) {
	if err := may(who); err != nil {
		return core.Found{}, err
	}
	r.Wait = min(max(r.Wait, 0), maxWait)
	until := c.o.Now().Add(r.Wait)
	_, err = c.ask(ctx, question{
		path: pathLookup, until: until,
		compose: func() ([]byte, time.Duration) { // a question that is repeated waits for what is left
			q := r
			if r.Wait > 0 {
				q.Wait = max(until.Sub(c.o.Now()), time.Millisecond)
			}
			return appendLookup(nil, q), q.Wait
		},
		take: func(body []byte) (err error) { found, err = decodeFound(body); return err },
	})
	return found, err
}

// RenewSession gives a session its time to live anew. Renewing twice does no harm, so it is asked elsewhere like a question.
func (c *Client) RenewSession(ctx context.Context, who policy.Principal, id string) (s catalog.Session, err error) {
	if err := may(who); err != nil {
		return catalog.Session{}, err
	}
	_, err = c.ask(ctx, question{path: pathRenew, body: appendText(nil, id), take: func(body []byte) error {
		a, err := catalog.DecodeAnswer(body)
		if err != nil || len(a.Sessions) != 1 {
			return ErrBadAnswer
		}
		s = a.Sessions[0]
		return nil
	}})
	return s, err
}

// Servers lists the members of the cluster.
func (c *Client) Servers(ctx context.Context, who policy.Principal) (servers []core.Server, err error) {
	if err := may(who); err != nil {
		return nil, err
	}
	_, err = c.ask(ctx, question{path: pathServers, take: func(body []byte) (err error) {
		servers, err = decodeServers(body)
		return err
	}})
	return servers, err
}

// Join asks to become a member. Asking again with the same node id changes nothing, but that is for the caller to know:
// it is not repeated here once a server may have seen it.
func (c *Client) Join(ctx context.Context, j JoinRequest) (JoinAnswer, error) {
	body, err := c.ask(ctx, question{path: pathJoin, body: appendJoin(nil, j), write: true})
	if err != nil {
		return JoinAnswer{}, err
	}
	answer, err := decodeJoinAnswer(body)
	if err != nil {
		return JoinAnswer{}, ErrUnsure
	}
	return answer, nil
}

// Free reports whether the server at address says that it belongs to no cluster yet; an error means that it said nothing.
func (c *Client) Free(ctx context.Context, address string) (bool, error) {
	_, err := c.attempt(ctx, address, question{path: pathServers})
	if errors.Is(err, ErrNotMember) {
		return true, nil
	}
	return false, err
}

// may refuses callers of this agent that the servers would not see: they judge the agent, not who asks it.
func may(who policy.Principal) error {
	if who.Kind() == policy.System || who.OpenWhenAuthOff() {
		return nil
	}
	return ErrNotAllowed.WithHint("the servers know the agent, not who asks it")
}

// question is one call with what to do when it fails.
type question struct {
	path    string
	body    []byte
	compose func() (body []byte, wait time.Duration) // instead of body, anew for every attempt
	until   time.Time                                // when a blocking question has waited enough
	write   bool                                     // not to be repeated once a server may have seen it
	take    func([]byte) error                       // judges an answer; one that it refuses counts as none
}

// ask asks one server after the other until one has answered.
func (c *Client) ask(ctx context.Context, q question) ([]byte, error) {
	var hold <-chan time.Time // runs from the first failure in a row
	last := error(ErrNoAnswer)
	for {
		servers := c.o.Servers()
		if len(servers) == 0 {
			return nil, ErrNoServers
		}
		address, pause := c.choice.pick(servers)
		if pause == 0 {
			begun := c.o.Now()
			body, err := c.attempt(ctx, address, q)
			if err == nil {
				c.choice.well(address)
				return body, nil
			}
			if !repeatable(err, q.write) || ctx.Err() != nil {
				return nil, passOn(ctx, err)
			}
			last = err
			c.choice.failed(address)
			c.o.Log.Debug("a server did not answer an agent's call", "server", address, "call", q.path, "error", err)
			if now := c.o.Now(); now.Sub(begun) > holdTime && now.Before(q.until) {
				hold = nil // it has waited for a while at a server that was well
			}
		}
		if hold == nil {
			hold = c.o.After(holdTime)
		}
		select {
		case <-ctx.Done():
			return nil, passOn(ctx, last)
		case <-hold:
			return nil, passOn(ctx, last)
		case <-c.o.After(pause):
		}
	}
}

// failure is an attempt that came to nothing.
type failure struct {
	err    error
	unseen bool // no server has begun with it
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// repeatable reports whether a failed call may be tried at another server.
func repeatable(err error, write bool) bool {
	var f *failure
	if !errors.As(err, &f) {
		return false
	}
	kind := fault.From(f.err).Kind
	if f.unseen {
		return kind == fault.Unavailable || kind == fault.Exhausted
	}
	return !write && kind == fault.Unavailable
}

// passOn is the error that the caller sees.
func passOn(ctx context.Context, err error) error {
	var f *failure
	if errors.As(err, &f) {
		err = f.err
	}
	if ctx.Err() != nil && !errors.Is(err, ErrUnsure) {
		return context.Cause(ctx)
	}
	return err
}

// attempt asks one server. Every error is a *failure, or a fault that the server has decided on.
func (c *Client) attempt(ctx context.Context, address string, q question) ([]byte, error) {
	body, wait := q.body, time.Duration(0)
	if q.compose != nil {
		body, wait = q.compose()
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime+wait)
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	r, err := http.NewRequestWithContext(traced, http.MethodPost, "http://"+address+q.path, bytes.NewReader(body))
	if err != nil {
		return nil, ErrNoServers.WithHint("the address of a server is not host:port")
	}
	if q.write {
		r.GetBody = nil // net/http must not send it twice
	}
	r.Header.Set("Content-Type", contentType)
	answer, err := c.exchange(r)
	if err != nil {
		c.o.Log.Debug("an agent's call broke", "server", address, "error", err)
		lost := &failure{err: ErrNoAnswer.WithHint("%s: %s", address, plain(err)), unseen: !sent.Load()}
		if errors.Is(err, ErrBadAnswer) || errors.Is(err, ErrTooLarge) {
			lost.err = err
		}
		if q.write && sent.Load() {
			lost.err = ErrUnsure
		}
		return nil, lost
	}
	return c.judge(q, answer)
}

// dialError is a connection that did not come about.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// plain says why a server could not be asked, without what net/http puts before it.
func plain(err error) string {
	var d *dialError
	if errors.As(err, &d) {
		return d.Error()
	}
	return "the connection broke"
}

// exchange sends a request and reads the whole answer.
func (c *Client) exchange(r *http.Request) ([]byte, error) {
	response, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != contentType {
		return nil, ErrBadAnswer.WithHint("it answered with status %d", response.StatusCode)
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(answer) > maxAnswer {
		return nil, ErrTooLarge
	}
	return answer, nil
}

// judge takes an answer apart.
func (c *Client) judge(q question, answer []byte) ([]byte, error) {
	r := reader{b: answer}
	switch head := r.octet(); {
	case r.bad || head > answerRefused:
		if q.write {
			return nil, &failure{err: ErrUnsure}
		}
		return nil, &failure{err: ErrBadAnswer}
	case head != answerDone:
		f, err := decodeFault(r.b)
		if err == nil {
			return nil, &failure{err: f, unseen: head == answerRefused}
		}
		if q.write {
			err = ErrUnsure
		}
		return nil, &failure{err: err}
	}
	if q.take != nil {
		if err := q.take(r.b); err != nil {
			return nil, &failure{err: err}
		}
	}
	return r.b, nil
}
