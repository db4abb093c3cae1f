package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/authn"
)

// TestRefusalsAreBounded: strangers cannot make the record forget, nor hide a refused certificate behind noise.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	var events []audit.Event
	r := &refusals{note: func(e audit.Event) { events = append(events, e) }, now: func() time.Time { return now }}
	for range 1000 {
		r.add(authn.Refusal{Side: authn.PublicSide, Remote: "10.0.0.1:1", ServerName: strings.Repeat("n", 10_000), Err: errors.New("no TLS")})
	}
	if len(events) != refusalBurst {
		t.Fatalf("%d events, want %d", len(events), refusalBurst)
	}
	if e := events[0]; e.Action != "handshake" || e.Who != "nobody" || e.Outcome != "no TLS" || !e.Time.Equal(now) || len(e.Subject) > 400 {
		t.Errorf("%+v", e)
	}
	r.add(authn.Refusal{Side: authn.ClientSide, Remote: "10.0.0.2:2", Subject: "CN=eve", Issuer: "CN=x", Serial: "1f", Reason: "expired"})
	if e := events[len(events)-1]; e.Who != "CN=eve" || e.Certificate != "CN=x/1f" || e.Outcome != "expired" || !strings.Contains(e.Subject, "client side, from 10.0.0.2:2") {
		t.Errorf("%+v", e)
	}
	now = now.Add(2*refusalRefill + time.Second)
	events = nil
	for range 5 {
		r.add(authn.Refusal{Side: authn.PublicSide, Remote: "10.0.0.1:1"})
	}
	if len(events) != 2 || !strings.Contains(events[0].Subject, "(980 more were refused before)") {
		t.Errorf("after a while: %+v", events)
	}
	r.flush()
	if len(events) != 3 || !strings.Contains(events[2].Subject, "(3 more were refused before)") {
		t.Errorf("at the end: %+v", events)
	}
	if r.flush(); len(events) != 3 {
		t.Error("counted twice")
	}
}
