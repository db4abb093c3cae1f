package agent

import (
	"context"
	"fmt"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

// check is one local check. Its definition never changes; the rest is under Agent.mu.
type check struct {
	def   *CheckDefinition
	local bool // from the configuration
	c     catalog.Check

	since     time.Time // of the present status
	lateUntil time.Time // an output that the catalog does not have waits until then; zero: none does
	expires   time.Time // of a TTL check
	saved     time.Time // when the TTL state was last written down
	synced    bool
	rev       uint64 // counts changes of c, so that a write can tell whether it wrote the newest

	successes, failures int // in a row

	cancel context.CancelFunc // ends what runs for it; nil: nothing does
	beat   chan struct{}      // TTL: a sign of life came; holds at most one
}

func (c *check) touch() {
	c.synced = false
	c.rev++
}

// probe looks once at what a check is about.
type probe func(ctx context.Context) (status, output string)

// startLocked runs a check if the agent runs and nothing runs for it yet.
func (a *Agent) startLocked(c *check) {
	if a.mu.running == nil || c.cancel != nil || c.c.Type == typeMaintenance {
		return
	}
	ctx, cancel := context.WithCancel(a.mu.running)
	c.cancel = cancel
	switch c.c.Type {
	case typeTTL:
		c.beat = make(chan struct{}, 1)
		if c.expires.IsZero() {
			c.expires = a.o.Now().Add(time.Duration(c.def.TTL))
		}
		a.runners.Go(func() { a.runTTL(ctx, c) })
	case typeAlias:
		a.runners.Go(func() { a.runAlias(ctx, c) })
	default:
		p := a.probe(c.def)
		a.runners.Go(func() { a.runProbe(ctx, c, p) })
	}
}

func (a *Agent) stopLocked(c *check) {
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
}

// runProbe probes every interval, from a random moment of the first one on, so that checks that were registered together
// do not run together.
func (a *Agent) runProbe(ctx context.Context, c *check, p probe) {
	interval := max(time.Duration(c.def.Interval), minInterval)
	t := time.NewTimer(a.stagger(interval))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		status, output := p(ctx)
		if ctx.Err() != nil {
			return
		}
		a.judge(c, status, output)
		t.Reset(interval)
	}
}

// judge counts a result and changes the status when enough of them came in a row.
func (a *Agent) judge(c *check, status, output string) {
	a.mu.Lock()
	if status == Passing || status == Warning {
		c.successes++
		c.failures = 0
		if c.successes < c.def.SuccessBeforePassing && c.c.Status != status {
			status = c.c.Status
		}
	} else {
		c.failures++
		c.successes = 0
		warn := c.def.FailuresBeforeWarning
		if warn == 0 {
			warn = c.def.FailuresBeforeCritical
		}
		if c.failures < c.def.FailuresBeforeCritical {
			status = c.c.Status
			if c.failures >= warn && status != Critical {
				status = Warning
			}
		}
	}
	a.mu.Unlock()
	a.report(c, status, output)
}

// report puts a result in place. A changed status goes to the catalog at once, a changed output when it has waited.
func (a *Agent) report(c *check, status, output string) {
	a.mu.Lock()
	if a.mu.checks[c.def.ID] == c && a.noteLocked(c, status, cut(output, c.def.OutputMaxSize)) {
		defer a.wake()
	}
	a.mu.Unlock()
}

// noteLocked says whether the sync loop has something to do.
func (a *Agent) noteLocked(c *check, status, output string) bool {
	if c.c.Status == status && c.c.Output == output {
		return false
	}
	now := a.o.Now()
	same := c.c.Status == status
	c.c.Status, c.c.Output = status, output
	c.rev++
	a.changedLocked()
	if same {
		if c.synced && c.lateUntil.IsZero() {
			c.lateUntil = now.Add(a.o.UpdateInterval/2 + a.stagger(a.o.UpdateInterval))
		}
		return true
	}
	c.since, c.lateUntil, c.synced = now, time.Time{}, false
	a.o.Log.Info("a check changed", "check", c.def.ID, "service", c.def.ServiceID, "status", status)
	return true
}

// cut keeps the beginning of an output and says so.
func cut(output string, size int) string {
	size = keptOutput(size)
	if len(output) <= size {
		return output
	}
	return fmt.Sprintf("%s ... (captured %d of %d bytes)", output[:size], size, len(output))
}

// UpdateTTL is the sign of life of a TTL check. status is passing, warning or critical.
func (a *Agent) UpdateTTL(ctx context.Context, id, status, output string) error {
	if !validStatus(status) {
		return invalid("Invalid check status: '%s'", status)
	}
	a.mu.Lock()
	c, ok := a.mu.checks[id]
	if !ok {
		a.mu.Unlock()
		return unknownCheck(id)
	}
	if c.c.Type != typeTTL {
		a.mu.Unlock()
		return &Error{Kind: fault.NotFound, Text: fmt.Sprintf("CheckID %q does not have associated TTL", id)}
	}
	before := c.c.Status
	a.noteLocked(c, status, cut(output, c.def.OutputMaxSize))
	c.expires = a.o.Now().Add(time.Duration(c.def.TTL))
	select {
	case c.beat <- struct{}{}:
	default:
	}
	err := a.keepTTL(c, before != status)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if before != status {
		a.syncNow(ctx)
	} else {
		a.wake()
	}
	return nil
}

// runTTL makes a TTL check critical when no sign of life came in time.
func (a *Agent) runTTL(ctx context.Context, c *check) {
	a.mu.Lock()
	left := c.expires.Sub(a.o.Now())
	a.mu.Unlock()
	t := time.NewTimer(max(left, 0))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.beat:
		case <-t.C:
		}
		a.mu.Lock()
		left, output := c.expires.Sub(a.o.Now()), c.c.Output
		expired := left <= 0 && a.mu.checks[c.def.ID] == c
		if expired {
			c.expires = a.o.Now().Add(time.Duration(c.def.TTL)) // only so that the next look is not now
			left = time.Duration(c.def.TTL)
			if c.c.Status != Critical {
				a.noteLocked(c, Critical, cut(ttlExpired(output), c.def.OutputMaxSize))
				a.wake()
			}
		}
		a.mu.Unlock()
		t.Reset(max(left, 0))
	}
}

func ttlExpired(output string) string {
	if output == "" {
		return "TTL expired"
	}
	return "TTL expired (last output before timeout follows): " + output
}

// reapCritical deregisters services whose checks have been critical for longer than they allow.
func (a *Agent) reapCritical(ctx context.Context) {
	t := time.NewTicker(a.o.ReapInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		a.mu.Lock()
		doomed := map[string]string{}
		for id, c := range a.mu.checks {
			after := max(time.Duration(c.def.DeregisterCriticalServiceAfter), minDeregisterAfter)
			if c.def.DeregisterCriticalServiceAfter != 0 && c.def.ServiceID != "" && c.c.Status == Critical && a.o.Now().Sub(c.since) > after {
				doomed[c.def.ServiceID] = id
			}
		}
		for id, check := range doomed {
			err := a.dropServiceLocked(id)
			a.o.Log.Info("a service is deregistered because its check stayed critical", "service", id, "check", check, "error", err)
		}
		a.mu.Unlock()
		if len(doomed) > 0 {
			a.wake()
		}
	}
}
