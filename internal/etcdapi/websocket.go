package etcdapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
)

// This file lets the gateway's streams be used over websockets, as etcd's can: each message of the client is one JSON
// request, each line of the answer is one message to it.

// tokenCookie is the cookie that stands for the Authorization header, which a page cannot set on a websocket.
const tokenCookie = "token"

// websockets serves websockets by next and passes every other request on. Where a page may come from has been judged.
func (a *API) websockets(next http.Handler) http.Handler {
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024, CheckOrigin: func(*http.Request) bool { return true }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !websocket.IsWebSocketUpgrade(r) {
			next.ServeHTTP(w, r)
			return
		}
		var answer http.Header
		if strings.HasPrefix(r.Header.Get("Sec-WebSocket-Protocol"), "Bearer") {
			answer = http.Header{"Sec-WebSocket-Protocol": {"Bearer"}}
		}
		conn, err := upgrader.Upgrade(w, r, answer)
		if err != nil {
			a.log.Debug("a websocket was not opened", "remote", r.RemoteAddr, "error", err)
			return
		}
		a.converse(conn, r, next)
	})
}

// converse carries the messages of one websocket until either end has had enough.
func (a *API) converse(conn *websocket.Conn, r *http.Request, next http.Handler) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.ended, cancel)()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // the client is gone, or the server
	defer conn.Close()
	conn.SetReadLimit(a.bodyLimit())
	asked, ask := io.Pipe()
	answered, answer := io.Pipe()
	req := streamRequest(ctx, r, asked)
	a.goroutines.Go(func() {
		defer answer.Close()
		defer asked.Close()
		defer func() {
			if p := recover(); p != nil {
				a.outward(r.URL.Path, a.panicked(r.URL.Path, p)) //nolint:errcheck // logged; the client sees the end
			}
		}()
		next.ServeHTTP(&streamAnswer{body: answer}, req)
	})
	a.goroutines.Go(func() {
		defer cancel()
		defer ask.Close()
		for {
			_, message, err := conn.ReadMessage()
			if err == nil {
				_, err = ask.Write(append(message, '\n'))
			}
			if err != nil {
				if errors.Is(err, websocket.ErrReadLimit) {
					a.log.Warn("a websocket message is larger than a request may be", "remote", r.RemoteAddr)
				}
				return
			}
		}
	})
	defer answered.Close()
	lines := bufio.NewReader(answered)
	for {
		line, err := lines.ReadBytes('\n')
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 {
			if conn.WriteMessage(websocket.TextMessage, line) != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// streamRequest is the request that a websocket stands for. A websocket is opened with GET; the streams behind it are POST.
func streamRequest(ctx context.Context, r *http.Request, body io.Reader) *http.Request {
	req := r.Clone(ctx)
	req.Method, req.Body, req.ContentLength, req.Header = http.MethodPost, io.NopCloser(body), -1, http.Header{}
	for _, name := range []string{"Origin", "Referer"} {
		if v := r.Header.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	if list := r.Header.Get("Sec-WebSocket-Protocol"); list != "" {
		// Not every browser puts a blank after the comma.
		if _, token, ok := strings.Cut(list, "Bearer,"); ok {
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
		} else {
			req.Header.Set("Authorization", list)
		}
	}
	if c, err := r.Cookie(tokenCookie); err == nil {
		req.Header.Set("Authorization", "Bearer "+c.Value)
	}
	return req
}

// streamAnswer takes the answer to a streamRequest. It is the handler's alone.
type streamAnswer struct {
	body   io.Writer
	header http.Header
}

func (s *streamAnswer) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}

func (s *streamAnswer) Write(b []byte) (int, error) { return s.body.Write(b) }
func (s *streamAnswer) WriteHeader(int)             {}
func (s *streamAnswer) Flush()                      {}

// bodyLimit is the size that a request may have as JSON: base64 and escapes make it larger than a gRPC message.
func (a *API) bodyLimit() int64 { return int64(a.o.MaxRequestBytes+messageOverhead) * 2 }

// bounded limits the body of a request: the whole of it, or each of its messages where it is a stream of them.
func (a *API) bounded(h http.Handler) http.Handler {
	limit := a.bodyLimit()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v3/watch") || strings.HasPrefix(r.URL.Path, "/v3/lease/keepalive") {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			body := &messages{body: r.Body, limit: limit, giveUp: cancel}
			r = r.WithContext(context.WithValue(ctx, messagesKey{}, body))
			r.Body = body
		} else {
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		h.ServeHTTP(w, r)
	})
}

var errMessageTooLarge = errors.New("a message of the stream is too large")

// messages is a stream of JSON objects, none of which may be larger than limit: their decoder keeps all of one in memory.
type messages struct {
	body   io.ReadCloser
	limit  int64
	giveUp func() // ends the stream
	ended  bool   // the client has said all it wanted to

	size            int64 // since the last object ended
	depth           int   // open objects and arrays
	quoted, escaped bool
}

// Read implements io.Reader.
func (m *messages) Read(b []byte) (int, error) {
	n, err := m.body.Read(b)
	for _, c := range b[:n] {
		m.size++
		switch {
		case m.escaped:
			m.escaped = false
		case m.quoted:
			m.escaped, m.quoted = c == '\\', c != '"'
		case c == '"':
			m.quoted = true
		case c == '{' || c == '[':
			m.depth++
		case c == '}' || c == ']':
			if m.depth--; m.depth <= 0 {
				m.depth, m.size = 0, 0
			}
		}
		if m.size > m.limit {
			return 0, errMessageTooLarge
		}
	}
	m.ended = m.ended || err == io.EOF
	return n, err
}

// messagesKey is the key of the context under which a stream finds its messages.
type messagesKey struct{}

// abandoned ends the stream of ctx if nobody reads its messages any more although there may be some: one of them was no
// request. The server would not even notice when the client goes.
func abandoned(ctx context.Context) {
	if m, ok := ctx.Value(messagesKey{}).(*messages); ok && !m.ended {
		m.giveUp()
	}
}

// Close implements io.Closer.
func (m *messages) Close() error { return m.body.Close() }
