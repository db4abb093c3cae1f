package consulapi

import (
	"errors"
	"fmt"
	"net/http"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/fault"
)

// refusal is an answer that is not 200, with Consul's own text.
type refusal struct {
	status int
	text   string
}

// Error returns the text.
func (r *refusal) Error() string { return r.text }

// refuse returns the error that is answered with status and text.
func refuse(status int, format string, args ...any) error {
	if len(args) == 0 {
		return &refusal{status, format}
	}
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// fail answers err. Clients of Consul try again what was answered 500, which is therefore what a fault becomes that is
// over soon; the rest says what it is.
func (c *call) fail(err error) {
	var r *refusal
	if errors.As(err, &r) {
		writeText(c.w, r.status, r.text)
		return
	}
	var own *agent.Error
	if errors.As(err, &own) {
		text := own.Text
		if own.Hint != "" && own.Kind != fault.Denied {
			text += ": " + own.Hint
		}
		status := statusOf(own.Kind)
		switch own.Kind {
		case fault.Denied: // scripts are off
			status = http.StatusInternalServerError
		case fault.Unsupported:
			status = http.StatusBadRequest
		}
		writeText(c.w, status, text)
		return
	}
	if c.r.Context().Err() != nil {
		return // nobody is there to read it
	}
	f := fault.From(err)
	if f.Kind == fault.Internal || f.Kind == fault.Corrupt {
		c.api.o.Log.Error("a request of Consul's API failed", "method", c.r.Method, "endpoint", c.endpoint, "error", err)
	}
	writeText(c.w, statusOf(f.Kind), textOf(f))
}

// statusOf is the exhaustive table of kinds.
func statusOf(k fault.Kind) int {
	switch k {
	case fault.Invalid, fault.OutOfRange:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Denied, fault.Unauthenticated:
		return http.StatusForbidden
	case fault.Exhausted:
		return http.StatusTooManyRequests
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Unavailable, fault.Internal, fault.Corrupt:
	}
	return http.StatusInternalServerError
}

// textOf returns what a person reads. Consul's clients look for "Permission denied" and "No cluster leader".
func textOf(f *fault.Error) string {
	text := f.Reason
	switch f.Kind {
	case fault.Denied, fault.Unauthenticated:
		text = "Permission denied"
		if f.Reason != "permission denied" {
			text += ": " + f.Reason
		}
	case fault.Internal, fault.Corrupt:
		return "internal error"
	}
	if f.Hint != "" {
		text += ": " + f.Hint
	}
	return text
}
