package agentapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Directory is what a server answers from: core.
type Directory interface {
	Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error)
	Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error)
	RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error)
	Servers(ctx context.Context, who policy.Principal) ([]core.Server, error)
}

// The patience of a server.
const (
	bodyTime     = 15 * time.Second // for a request's body to come
	answerTime   = time.Minute      // for an answer to leave
	callTime     = 30 * time.Second // for a call, beside what a question asked to wait
	drainTime    = 2 * time.Second  // for calls under way when the server stops
	idleTime     = 10 * time.Minute // of a connection
	silenceTime  = 30 * time.Second // until a silent connection is asked whether it lives
	verdictTime  = 15 * time.Second // for the answer to that
	streamsLimit = 1 << 10          // calls at a time on one connection

	// What a call brings is read before anybody is asked whether it may: bodies up to smallBody come at any time, as many
	// longer ones as largeBodies at a time. So whoever sends many slowly cannot fill the memory.
	smallBody   = 64 << 10
	largeBodies = 32
)

// ServerOptions say what a server is.
type ServerOptions struct {
	Directory Directory
	// Principal is who is at the other end of a connection that the listener has accepted. Nil: nobody, always.
	Principal func(net.Conn) policy.Principal
	// Join makes a member of a server that asks for it; it decides whether who may. Nil: it is refused.
	Join func(ctx context.Context, who policy.Principal, j JoinRequest) (JoinAnswer, error)
	Log  *slog.Logger

	MaxActive   int // calls at work at a time, of all connections; 0: 1,024
	MaxBlocking int // questions that wait for a change, of all connections; 0: 16,384
}

// Server answers agents.
type Server struct {
	o                       ServerOptions
	active, blocking, large chan struct{} // one token for each call
}

// NewServer returns a server that Serve makes answer.
func NewServer(o ServerOptions) *Server {
	if o.MaxActive == 0 {
		o.MaxActive = 1 << 10
	}
	if o.MaxBlocking == 0 {
		o.MaxBlocking = 1 << 14
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, active: make(chan struct{}, o.MaxActive), blocking: make(chan struct{}, o.MaxBlocking), large: make(chan struct{}, largeBodies)}
}

type callerKey struct{}

// caller is what the calls of one connection have in common.
type caller struct {
	who      policy.Principal
	stopping context.Context
}

// Serve answers on the connections of l until ctx ends or l fails. It closes l, and returns once every call has ended.
// It may run for several listeners.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stopping, stop := context.WithCancel(ctx) // questions that wait end with it
	defer stop()
	work, abandon := context.WithCancel(context.WithoutCancel(ctx)) // the other calls have a moment longer
	defer abandon()
	var calls sync.RWMutex // held for reading by every call
	handler := s.handler()
	hs := s.httpServer()
	hs.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.RLock()
		defer calls.RUnlock()
		handler.ServeHTTP(w, r)
	})
	hs.BaseContext = func(net.Listener) context.Context { return work }
	hs.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		from := caller{stopping: stopping}
		if p, ok := c.(plainConn); ok && s.o.Principal != nil {
			from.who = s.o.Principal(p.Conn)
		}
		return context.WithValue(ctx, callerKey{}, from)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-stopping.Done()
		limit, done := context.WithTimeout(work, drainTime)
		defer done()
		if err := hs.Shutdown(limit); err != nil {
			_ = hs.Close() // what has not ended by now is cut off
		}
		abandon()
	}()
	err := hs.Serve(plainListener{l})
	stop()
	<-drained
	calls.Lock() // waits for the last call
	defer calls.Unlock()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) httpServer() *http.Server {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // "unencrypted" as seen from here: TLS, if any, is the listener's
	return &http.Server{
		ReadHeaderTimeout: bodyTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    16 << 10,
		Protocols:         &protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: streamsLimit, SendPingTimeout: silenceTime, PingTimeout: verdictTime, WriteByteTimeout: answerTime,
		},
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
}

// plainListener hides from net/http that a connection is a TLS connection: whoever accepted it has finished the handshake
// and knows who is there.
type plainListener struct{ net.Listener }

func (l plainListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return plainConn{c}, nil
}

type plainConn struct{ net.Conn }

// call is one kind of call: it takes a body and returns the body of an answer.
type call func(ctx context.Context, from caller, body []byte) ([]byte, error)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for path, c := range map[string]call{
		pathDiscover: s.discover, pathRenew: s.renew, pathServers: s.servers, pathJoin: s.join, pathLookup: s.lookup,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, c) })
	}
	return mux
}

// refusal is an error of a call that the server has not begun with.
type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// serve does what all calls have in common.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, c call) {
	from, _ := r.Context().Value(callerKey{}).(caller)
	if from.who.Kind() == policy.Nobody {
		s.answer(w, nil, refusal{ErrNobody})
		return
	}
	body, err := s.admit(w, r)
	if err == nil && from.stopping.Err() != nil {
		err = refusal{ErrStopping}
	}
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	result, err := c(r.Context(), from, body)
	switch {
	case err != nil && from.stopping.Err() != nil:
		err = ErrStopping.WithHint("what it was asked to do may or may not have happened")
	case errors.Is(err, ErrNotMember):
		err = refusal{ErrNotMember}
	case errors.Is(err, context.DeadlineExceeded):
		err = core.ErrTimeout
	case err == nil && len(result) >= maxAnswer:
		result, err = nil, ErrTooLarge.WithHint("an answer holds at most %d MiB: ask for a longer prefix", maxAnswer>>20)
	}
	s.answer(w, result, err)
}

// admit reads the body of a request, of which not too many may be under way.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	release, err := s.begin(s.active, "are at work")
	if err != nil {
		return nil, err
	}
	defer release()
	body, err := s.readRequest(w, r)
	if err != nil {
		return nil, refusal{err}
	}
	return body, nil
}

// begin takes a token, which release gives back.
func (s *Server) begin(tokens chan struct{}, do string) (release func(), err error) {
	select {
	case tokens <- struct{}{}:
		return func() { <-tokens }, nil
	default:
		return nil, refusal{ErrBusy.WithHint("%d calls of agents %s at this server; another server may have room", cap(tokens), do)}
	}
}

// work calls f as one of the calls at work.
func (s *Server) work(ctx context.Context, f func(context.Context) error) error {
	release, err := s.begin(s.active, "are at work")
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return f(ctx)
}

func (s *Server) readRequest(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Header.Get("Content-Type") != contentType {
		return nil, ErrMalformed.WithHint("this port speaks %s between agents; Consul's HTTP API is on the http and https ports", Protocol)
	}
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return nil, err
	}
	bounded := http.MaxBytesReader(w, r.Body, maxRequest)
	body, err := io.ReadAll(io.LimitReader(bounded, smallBody))
	if err == nil && len(body) == smallBody {
		release, busy := s.begin(s.large, "bring more than 64 KiB")
		if busy != nil {
			return nil, busy
		}
		defer release()
		var rest []byte
		rest, err = io.ReadAll(bounded)
		body = append(body, rest...)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, ErrTooLarge.WithHint("a request holds at most %d MiB", maxRequest>>20)
	case err != nil:
		return nil, ErrMalformed.WithHint("its body broke off")
	}
	return body, control.SetReadDeadline(time.Time{})
}

func (s *Server) answer(w http.ResponseWriter, result []byte, err error) {
	head := []byte{answerDone}
	var unstarted refusal
	switch {
	case errors.As(err, &unstarted):
		head = appendFault([]byte{answerRefused}, unstarted.err)
	case err != nil:
		if fault.From(err).Kind == fault.Internal {
			s.o.Log.Error("a call of an agent failed", "error", err)
		}
		head = appendFault([]byte{answerFault}, err)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(head)+len(result)))
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return
	}
	if _, err := w.Write(head); err != nil {
		return // the caller has gone
	}
	if _, err := w.Write(result); err != nil {
		return
	}
}

func (s *Server) discover(ctx context.Context, from caller, body []byte) (result []byte, err error) {
	ops, err := catalog.DecodeOps(body)
	if err != nil {
		return nil, refusal{ErrMalformed}
	}
	err = s.work(ctx, func(ctx context.Context) error {
		outcome, err := s.o.Directory.Discover(ctx, from.who, ops)
		if err == nil {
			result = catalog.AppendOutcome(nil, &outcome)
		}
		return err
	})
	return result, err
}

func (s *Server) lookup(ctx context.Context, from caller, body []byte) (result []byte, err error) {
	q, err := decodeLookup(body)
	if err != nil {
		return nil, refusal{err}
	}
	look := func(ctx context.Context) error {
		found, err := s.o.Directory.Lookup(ctx, from.who, q)
		if err == nil {
			result = appendFound(nil, &found)
		}
		return err
	}
	if q.Wait == 0 || q.MinIndex == 0 {
		err = s.work(ctx, look)
		return result, err
	}
	release, err := s.begin(s.blocking, "wait for a change")
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, q.Wait+callTime)
	defer cancel()
	defer context.AfterFunc(from.stopping, cancel)()
	err = look(ctx)
	return result, err
}

func (s *Server) renew(ctx context.Context, from caller, body []byte) (result []byte, err error) {
	r := reader{b: body}
	id := r.text()
	if !r.end() {
		return nil, refusal{ErrMalformed}
	}
	err = s.work(ctx, func(ctx context.Context) error {
		session, err := s.o.Directory.RenewSession(ctx, from.who, id)
		if err == nil {
			result = catalog.AppendAnswer(nil, &catalog.Answer{Sessions: []catalog.Session{session}})
		}
		return err
	})
	return result, err
}

func (s *Server) servers(ctx context.Context, from caller, body []byte) (result []byte, err error) {
	if len(body) != 0 {
		return nil, refusal{ErrMalformed}
	}
	err = s.work(ctx, func(ctx context.Context) error {
		servers, err := s.o.Directory.Servers(ctx, from.who)
		if err == nil {
			result = appendServers(nil, servers)
		}
		return err
	})
	return result, err
}

func (s *Server) join(ctx context.Context, from caller, body []byte) (result []byte, err error) {
	j, err := decodeJoin(body)
	if err != nil {
		return nil, refusal{err}
	}
	if s.o.Join == nil {
		return nil, refusal{ErrNoJoin}
	}
	err = s.work(ctx, func(ctx context.Context) error {
		answer, err := s.o.Join(ctx, from.who, j)
		if err == nil {
			result = appendJoinAnswer(nil, &answer)
		}
		return err
	})
	return result, err
}
