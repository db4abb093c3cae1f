package e2e

import (
	"fmt"
	"sync"
	"testing"
)

// ledger is what a load knows of what it wrote: each thing is written once, and perhaps removed once.
type ledger struct {
	mu      sync.Mutex
	there   map[string]string // written and acknowledged, with what was written
	maybe   map[string]string // written, without an answer
	gone    map[string]bool   // removed and acknowledged
	leaving map[string]bool   // removed, without an answer
}

func newLedger() *ledger {
	return &ledger{there: map[string]string{}, maybe: map[string]string{}, gone: map[string]bool{}, leaving: map[string]bool{}}
}

// wrote notes what came of writing key.
func (l *ledger) wrote(key, value string, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.maybe[key] = value
	} else {
		l.there[key] = value
	}
	return err
}

// removed notes what came of removing key.
func (l *ledger) removed(key string, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.leaving[key] = true
	} else {
		l.gone[key] = true
	}
	return err
}

func (l *ledger) empty() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.there)
	clear(l.maybe)
	clear(l.gone)
	clear(l.leaving)
}

func (l *ledger) len() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.there) }

// all returns what was acknowledged and not touched again.
func (l *ledger) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]string{}
	for k, v := range l.there {
		if !l.gone[k] && !l.leaving[k] {
			out[k] = v
		}
	}
	return out
}

// compare holds the ledger against everything that a member has of it.
func (l *ledger) compare(t testing.TB, what string, have map[string]string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	complaints := 0
	complain := func(format string, args ...any) {
		if complaints++; complaints <= 10 {
			t.Errorf("%s: %s", what, fmt.Sprintf(format, args...))
		}
	}
	for key, value := range l.there {
		got, ok := have[key]
		switch {
		case l.gone[key] && ok:
			complain("%s was removed, with an answer, and is there", key)
		case l.gone[key] || l.leaving[key] && !ok:
		case !ok:
			complain("%s was acknowledged and is lost", key)
		case got != value:
			complain("%s is %q, and %q was written", key, got, value)
		}
	}
	for key, got := range have {
		if _, ok := l.there[key]; ok {
			continue
		}
		want, ok := l.maybe[key]
		switch {
		case !ok:
			complain("%s is there, and nobody wrote it", key)
		case want != got:
			complain("%s is %q, and %q was written", key, got, want)
		case l.gone[key]:
			complain("%s was removed, with an answer, and is there", key)
		}
	}
	if complaints > 10 {
		t.Errorf("%s: and %d more", what, complaints-10)
	}
}
