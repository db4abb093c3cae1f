package authn

import (
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"
)

// refusalLog writes one line for each refused connection, at most refusalsPerSecond of them: strangers must not be able
// to fill a disk. What was left out is counted in the next line.
type refusalLog struct {
	log  *slog.Logger
	now  func() time.Time
	side Side
	tell func(Refusal) // nil: nobody

	mu      sync.Mutex
	second  time.Time
	written int
	missed  int
}

const refusalsPerSecond = 20

func (r *refusalLog) add(c *conn, err error) {
	if errors.Is(err, errSilent) || errors.Is(err, io.EOF) && !c.spoke() {
		r.log.Debug("connection closed without a word", "side", r.side.String(), "remote-addr", c.RemoteAddr().String())
		return
	}
	if errors.Is(err, errEnded) {
		r.log.Debug("connection closed because its server has ended", "side", r.side.String(), "remote-addr", c.RemoteAddr().String())
		return
	}
	var why *refusal
	if !errors.As(err, &why) {
		why = &refusal{err: err}
	}
	what := Refusal{Side: r.side, Remote: c.RemoteAddr().String(), ServerName: c.serverName, Reason: why.reason, Err: err}
	if why.cert != nil {
		what.Subject, what.Issuer, what.Serial = why.cert.Subject.String(), why.cert.Issuer.String(), why.cert.SerialNumber.Text(16)
	}
	if r.tell != nil {
		r.tell(what)
	}
	missed, ok := r.take()
	if !ok {
		return
	}
	attrs := []any{"remote-addr", what.Remote, "server-name", what.ServerName, "error", err.Error()}
	if what.Reason != "" {
		attrs = append(attrs, "reason", what.Reason)
	}
	if why.cert != nil {
		attrs = append(attrs, "subject", what.Subject, "issuer", what.Issuer, "serial", what.Serial)
	}
	if missed > 0 {
		attrs = append(attrs, "more-refused", missed)
	}
	r.log.Warn("rejected connection on "+r.side.String()+" endpoint", attrs...)
}

// take reports whether another line may be written now, and how many were left out before it.
func (r *refusalLog) take() (missed int, ok bool) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := now.Sub(r.second); d >= time.Second || d < 0 {
		r.second, r.written = now, 0
	}
	if r.written >= refusalsPerSecond {
		r.missed++
		return 0, false
	}
	r.written++
	missed, r.missed = r.missed, 0
	return missed, true
}

// spoke reports whether any byte of the handshake was read.
func (c *conn) spoke() bool { return c.budget != handshakeBytes }
