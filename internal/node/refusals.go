package node

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/authn"
)

// Bounds of what refused handshakes may write into the audit record. Strangers decide how many there are, and the record
// removes its oldest files when it is full: without bounds they could make it forget.
const (
	refusalBurst  = 20
	refusalRefill = 10 * time.Second // one more
	refusalText   = 256              // bytes of each text that a stranger chose
)

// refusals writes refused handshakes into the audit record. Those with a certificate and those without have a budget each,
// so that noise does not hide a certificate; what is over it is counted in the next event.
type refusals struct {
	note func(audit.Event)
	now  func() time.Time

	mu      sync.Mutex
	budgets [2]refusalBudget // without a certificate, with one
}

type refusalBudget struct {
	spent  int
	since  time.Time // when spent was last refilled
	missed int
}

// take reports whether one more event may be written, and how many were left out before it.
func (b *refusalBudget) take(now time.Time) (missed int, ok bool) {
	if b.spent == 0 || now.Before(b.since) {
		b.since = now
	}
	back := min(int(now.Sub(b.since)/refusalRefill), b.spent)
	b.spent -= back
	b.since = b.since.Add(time.Duration(back) * refusalRefill)
	if b.spent >= refusalBurst {
		b.missed++
		return 0, false
	}
	b.spent++
	missed, b.missed = b.missed, 0
	return missed, true
}

// add takes one refusal. It runs where connections are accepted and does not block on the disk.
func (r *refusals) add(f authn.Refusal) {
	now := r.now()
	kind := 0
	if f.Serial != "" {
		kind = 1
	}
	r.mu.Lock()
	missed, ok := r.budgets[kind].take(now)
	r.mu.Unlock()
	if !ok {
		return
	}
	reason := f.Reason
	if f.Err != nil {
		reason = cmp.Or(reason, f.Err.Error())
	}
	e := audit.Event{
		Time: now, Action: "handshake", Who: cmp.Or(clip(f.Subject), "nobody"), Outcome: cmp.Or(clip(reason), "refused"),
		Subject: fmt.Sprintf("%s side, from %s", f.Side, f.Remote),
	}
	if f.ServerName != "" {
		e.Subject += fmt.Sprintf(", for %q", clip(f.ServerName))
	}
	if kind == 1 {
		e.Certificate = clip(f.Issuer) + "/" + clip(f.Serial)
	}
	e.Subject += more(missed)
	r.note(e)
}

// flush writes how many were left out since the last event.
func (r *refusals) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.budgets {
		if b := &r.budgets[i]; b.missed > 0 {
			r.note(audit.Event{Time: r.now(), Action: "handshake", Who: "nobody", Outcome: "refused", Subject: "the end" + more(b.missed)})
			b.missed = 0
		}
	}
}

func more(missed int) string {
	if missed == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d more were refused before)", missed)
}

// clip bounds a text that a stranger chose.
func clip(s string) string { return s[:min(len(s), refusalText)] }
