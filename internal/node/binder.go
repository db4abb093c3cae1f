package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"holdfast.dev/holdfast/internal/authn"
)

// binder opens sockets, each behind a gate of its own.
type binder struct {
	registry *authn.Registry
	log      *slog.Logger
	now      func() time.Time
	refused  func(authn.Refusal) // told of every refused handshake
	sockets  *net.ListenConfig   // nil: the default
}

// bind opens the sockets of urls.
func (b binder) bind(ctx context.Context, urls []string, o authn.GateOptions) (gates []*authn.Gate, err error) {
	sockets, err := authn.PlanSockets(urls)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, g := range gates {
				err = errors.Join(err, g.Close())
			}
			gates = nil
		}
	}()
	for _, s := range sockets {
		l, err := s.Listen(ctx, b.sockets)
		if err != nil {
			return gates, err
		}
		so := o
		so.Registry, so.Log, so.Now, so.Refused = b.registry, b.log, b.now, b.refused
		if so.Plain = s.Plain; !s.TLS {
			so.TLS = nil
		}
		g, err := authn.NewGate(l, so)
		if err != nil {
			return gates, errors.Join(err, l.Close())
		}
		gates = append(gates, g)
	}
	return gates, nil
}

// newWebServer builds a web server within the bounds of its side; streams bounds those of one HTTP/2 connection.
func newWebServer(h http.Handler, side authn.Side, streams int, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler: h, ConnContext: authn.ConnContext, ErrorLog: quiet(log),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: webHeaders,
	}
	if side == authn.PublicSide {
		streams, s.MaxHeaderBytes = strangerStreams, strangerHeaders
		s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 15*time.Second, time.Minute, 15*time.Second
	}
	s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	return s
}
