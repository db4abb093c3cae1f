package clustertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/policy"
)

// operation is one call of core, on a goroutine of its own.
type operation struct {
	number int
	what   string
	m      *member
	run    int // of the member
	cancel context.CancelFunc
	cert   string // serial number of the certificate by which it is asked, if that may be revoked
	told   bool   // whoever asked has been told, or has given up

	value any
	err   error
	then  func(value any, err error)
}

var (
	errLost    = errors.New("the connection to the member is lost")
	errTimeout = errors.New("no answer in time")
	errRevoked = errors.New("the connection of a revoked certificate")
)

// call has f run on a member. then is called, on the driver, exactly once: with the answer, or with errLost if the member dies,
// or errTimeout.
func (w *world) call(m *member, timeout time.Duration, what string, f func(ctx context.Context, c *core.Core) (any, error), then func(value any, err error)) *operation {
	w.operations++
	w.stats.Operations++
	ctx, cancel := context.WithCancel(context.Background())
	o := &operation{number: w.operations, what: what, m: m, run: m.boots, cancel: cancel, then: then}
	w.log("%d: %s asks %s", o.number, what, m.name())
	w.pending = append(w.pending, o)
	w.on(m, w.between(w.plan.NetDelay/8, w.plan.NetDelay/2), func() { w.begin(ctx, o, f) })
	w.on(m, timeout, func() { w.give(o, errTimeout) })
	return o
}

func (w *world) begin(ctx context.Context, o *operation, f func(ctx context.Context, c *core.Core) (any, error)) {
	m := o.m
	if !m.up() || m.boots != o.run {
		w.give(o, errLost)
		return
	}
	if d := m.paused - w.now(); d > 0 {
		w.on(m, d, func() { w.begin(ctx, o, f) })
		return
	}
	c := m.core
	if w.revoked(o) { // as the handshake finds
		w.give(o, errRevoked)
		return
	}
	go func() {
		ended := false
		defer func() {
			if !ended {
				return // the storage engine has met a fault under it
			}
			w.mu.Lock()
			w.finished = append(w.finished, o)
			w.mu.Unlock()
		}()
		o.value, o.err = f(ctx, c)
		ended = true
	}()
}

// give tells whoever asked that there will be no answer.
func (w *world) give(o *operation, err error) {
	if o.told {
		return
	}
	o.told = true
	o.cancel()
	w.pending = slices.DeleteFunc(w.pending, func(x *operation) bool { return x == o })
	w.log("%d: %s", o.number, plain(err))
	o.then(nil, err)
}

// collect takes the answers that have come.
func (w *world) collect() {
	w.mu.Lock()
	finished := w.finished
	w.finished = nil
	w.mu.Unlock()
	slices.SortFunc(finished, func(a, b *operation) int { return cmp.Compare(a.number, b.number) })
	for _, o := range finished {
		if o.told {
			continue
		}
		if w.revoked(o) { // its connection is cut when the revocation is applied
			w.give(o, errLost)
			continue
		}
		w.log("%d: %s answers %s", o.number, o.m.name(), answerText(o.value, o.err))
		w.on(o.m, w.between(w.plan.NetDelay/8, w.plan.NetDelay/2), func() {
			if o.told {
				return
			}
			o.told = true
			o.cancel()
			w.pending = slices.DeleteFunc(w.pending, func(x *operation) bool { return x == o })
			o.then(o.value, o.err)
		})
	}
}

// revoked reports whether the certificate by which an operation was asked is revoked, as far as its member knows. Core looks at
// that for writes; for the rest it is the edge's business, whose place the simulation takes.
func (w *world) revoked(o *operation) bool {
	if o.cert == "" || !o.m.up() || o.m.boots != o.run {
		return false
	}
	yes, err := o.m.core.Revoked(policy.Certificate{Issuer: "aa", Serial: o.cert})
	return err != nil || yes
}

// forget tells those who have asked a member that it has died.
func (w *world) forget(m *member) {
	for _, o := range slices.Clone(w.pending) {
		if o.m == m && o.run == m.boots {
			w.give(o, errLost)
		}
	}
}

func answerText(value any, err error) string {
	if err != nil {
		return "error " + plain(err)
	}
	if r, ok := value.(history.Response); ok {
		return responseText(&r)
	}
	return fmt.Sprintf("%+v", value)
}

func responseText(r *history.Response) string {
	var b strings.Builder
	fmt.Fprintf(&b, "@%d", r.Revision)
	for _, kv := range append(slices.Clone(r.KVs), r.Prev...) {
		fmt.Fprintf(&b, " %s=%s/%d/%d/%d/%x", kv.Key, kv.Value, kv.Create, kv.Mod, kv.Version, kv.Lease)
	}
	fmt.Fprintf(&b, " %d %d %v %x %d", r.Count, r.Deleted, r.Succeeded, r.Lease, r.TTL)
	for i := range r.Responses {
		b.WriteString(" [" + responseText(&r.Responses[i]) + "]")
	}
	return b.String()
}

// plain is an error as a trace shows it: without what encryption has drawn.
func plain(err error) string {
	if err == nil {
		return "ok"
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	text = engineFile.ReplaceAllString(text, "/N.")
	return text[:min(len(text), 200)]
}

// engineFile is the number in the name of a file of the storage engine: a flush and a compaction at the same moment take
// theirs in either order.
var engineFile = regexp.MustCompile(`/[0-9]{6}\.`)

// outcome says what is known of an operation that came back with err.
func outcome(err error) history.Outcome {
	switch {
	case err == nil:
		return history.Answered
	case errors.Is(err, errLost), errors.Is(err, errTimeout), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return history.Unknown
	}
	switch fault.From(err).Kind {
	case fault.Unavailable, fault.Internal, fault.Corrupt:
		return history.Unknown
	}
	return history.Refused
}
