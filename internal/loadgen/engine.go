package loadgen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// worker does one request of one client and returns the series it belongs to. It is called by one goroutine at a time.
type worker func(ctx context.Context) (kind int, err error)

// load is one kind of work. prepare is called once, worker once a client, settle after the warm-up and after the
// measurement, finish once at the end.
type load interface {
	// kinds are the series, by the index that workers return.
	kinds() []kind
	// prepare writes what the load needs.
	prepare(ctx context.Context) (done string, err error)
	worker(client int) (worker, error)
	// settle waits for what requests have set in motion (deliveries, expiries).
	settle(ctx context.Context) error
	// finish ends streams and removes what was written, unless it is to be kept.
	finish(ctx context.Context) error
}

// session is one run.
type session struct {
	Options
	dial  dialer
	conns []*grpc.ClientConn
	// call are the options of every request, made once.
	call []grpc.CallOption
	rec  holder
	// origin is what times in values count from.
	origin  time.Time
	observe func(Progress)
}

// Progress is what is going on, once a second.
type Progress struct {
	// Phase is "connecting", "preparing", "warming up", "measuring" or "finishing".
	Phase string
	// Elapsed is the time in this phase. The figures below are of the last second of the warm-up or the measurement, and
	// meaningless in other phases.
	Elapsed   time.Duration
	PerSecond float64
	P50, P99  time.Duration
	Failed    int64 // since the phase began
}

// Run runs a load. observe, which may be nil, is called when a phase begins and once a second in the phases that have
// figures, never from two goroutines at once. The end of ctx ends the phase that is under way; what was measured until then is reported.
func Run(ctx context.Context, o Options, observe func(Progress)) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &session{Options: o, dial: dialer{endpoints: o.Endpoints, tls: o.TLS}, call: []grpc.CallOption{grpc.StaticMethod()}, origin: time.Now(), observe: observe}
	l := s.load()
	s.tell("connecting")
	conns, err := s.dial.connectAll(ctx, &s.Options)
	if err != nil {
		return nil, err
	}
	s.conns = conns
	defer closeAll(conns)
	report := &Report{Load: o.Load, Description: s.describe(), Started: time.Now().UTC(), Endpoints: o.Endpoints, Clients: o.Clients, Conns: o.Conns, WarmUp: o.WarmUp.Seconds()}
	m := s.meter(report)
	err = s.measure(ctx, l, m, report)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishWithin)
	defer cancel()
	s.tell("finishing")
	if ferr := l.finish(end); ferr != nil {
		if err == nil {
			report.Notes = append(report.Notes, fmt.Sprintf("what was written below %q could not be removed: %v", s.prefix(), ferr))
		}
	}
	if err != nil {
		return nil, err
	}
	report.sum()
	return report, nil
}

// finishWithin is how long removing what was written may take.
const finishWithin = time.Minute

// meter finds the processes to watch, and notes those that cannot be.
func (s *session) meter(r *Report) *meter {
	m := &meter{pids: s.ServerPIDs}
	if _, err := sample(selfPID()); err != nil {
		r.Notes = append(r.Notes, errNoProc.Error())
		return &meter{}
	}
	if m.pids == nil {
		var missing []string
		m.pids, missing = listeners(s.Endpoints)
		for _, e := range missing {
			r.Notes = append(r.Notes, fmt.Sprintf("the process behind %s was not found among those that this user may look into, so what it uses is not shown", e))
		}
	}
	return m
}

// measure runs the warm-up and the measurement.
func (s *session) measure(ctx context.Context, l load, m *meter, r *Report) error {
	s.tell("preparing")
	s.rec.set(newRecorder(l.kinds(), false)) // streams that prepare opens may see something at once
	done, err := l.prepare(ctx)
	if err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	r.Prepared = done
	clients := make([]*client, s.Clients)
	for i := range clients {
		do, err := l.worker(i)
		if err != nil {
			return err
		}
		clients[i] = &client{index: i, do: do}
	}
	if s.WarmUp > 0 {
		if _, _, err := s.phase(ctx, l, clients, budget{name: "warming up", length: s.WarmUp}); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
	}
	self := &meter{pids: []int{selfPID()}}
	if err := errors.Join(m.start(), self.start()); err != nil {
		m.pids, self.pids = nil, nil
		r.Notes = append(r.Notes, err.Error())
	}
	rec, how, err := s.phase(ctx, l, clients, budget{name: "measuring", length: s.Length, total: s.Total})
	if err != nil {
		return err
	}
	r.Seconds, r.Open, r.Interrupted = how.elapsed.Seconds(), how.open, how.interrupted
	if r.Servers, err = m.stop(); err != nil {
		r.Notes = append(r.Notes, "a server ended meanwhile: "+err.Error())
	}
	if own, err := self.stop(); err == nil && len(own) == 1 {
		r.Generator = &own[0]
	}
	if how.unsettled != nil {
		r.Notes = append(r.Notes, how.unsettled.Error())
	}
	for _, one := range rec.series {
		took := how.asked
		if !one.request {
			took = how.elapsed
		}
		r.Series = append(r.Series, one.summary(took))
	}
	return nil
}

func (s *session) tell(phase string) {
	if s.observe != nil {
		s.observe(Progress{Phase: phase})
	}
}

// budget says how long a phase is.
type budget struct {
	name   string
	length time.Duration
	total  int64
}

// outcome is how a phase went.
type outcome struct {
	asked       time.Duration // until the last answer
	elapsed     time.Duration // until all had settled
	open        *Open
	interrupted bool
	unsettled   error
}

// phase runs all clients until the budget is spent, and waits until everything has settled.
func (s *session) phase(ctx context.Context, l load, clients []*client, b budget) (*recorder, outcome, error) {
	rec := newRecorder(l.kinds(), s.observe != nil)
	s.rec.set(rec)
	p := &phase{s: s, rec: rec, begin: time.Now(), left: math.MaxInt64, end: math.MaxInt64}
	if b.total > 0 {
		p.left = b.total
	}
	if b.length > 0 {
		p.end = b.length
	}
	beside, stop := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { p.watchdog(beside, clients) })
	helpers.Go(func() { s.report(beside, p, b.name) })
	var open *Open
	if s.Rate > 0 {
		open = p.openLoop(ctx, clients)
	} else {
		p.closedLoop(ctx, clients)
	}
	out := outcome{asked: time.Since(p.begin), open: open, interrupted: ctx.Err() != nil}
	if !out.interrupted {
		settling, cancel := context.WithTimeout(ctx, settleWithin(&s.Options))
		out.unsettled = l.settle(settling)
		cancel()
	}
	out.elapsed = time.Since(p.begin)
	stop()
	helpers.Wait()
	if out.interrupted && b.name != "measuring" {
		return nil, out, ctx.Err()
	}
	return rec, out, nil
}

// settleWithin is how long deliveries, or expiries, may take after the last request.
func settleWithin(o *Options) time.Duration {
	if o.settle > 0 {
		return o.settle
	}
	if o.Load == LoadLeaseExpire {
		return time.Duration(o.TTL)*time.Second + 2*time.Minute
	}
	return max(o.Timeout, firstAnswer)
}

// report tells the observer once a second how it goes.
func (s *session) report(ctx context.Context, p *phase, name string) {
	if s.observe == nil {
		return
	}
	s.tell(name)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := p.begin
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			h, failed := p.rec.interval()
			s.observe(Progress{Phase: name, Elapsed: now.Sub(p.begin), PerSecond: float64(h.TotalCount()) / now.Sub(last).Seconds(),
				P50: time.Duration(h.ValueAtQuantile(50)), P99: time.Duration(h.ValueAtQuantile(99)), Failed: failed})
			last = now
		}
	}
}

// phase is one phase under way. Times are since begin.
type phase struct {
	s     *session
	rec   *recorder
	begin time.Time
	end   time.Duration // no request starts after it
	total atomic.Int64  // requests started
	left  int64         // of which at most so many start
}

func (p *phase) now() time.Duration { return time.Since(p.begin) }

// client is one client: a goroutine in closed loop, one of those that take what is due in open loop.
type client struct {
	index int
	do    worker

	mu      sync.Mutex
	ctx     context.Context
	cancel  context.CancelFunc
	began   time.Duration // of the request under way; negative: none
	expired bool          // the watchdog has ended it
}

// ask does one request within the time that one may take. A context with a deadline would cost more than the rest of the
// client's work and travel to the server besides; so a context serves many requests, and a watchdog ends it when one takes too long.
func (c *client) ask(ctx context.Context, p *phase, at time.Duration) (int, error) {
	c.mu.Lock()
	if c.ctx == nil || c.expired {
		c.ctx, c.cancel = context.WithCancel(ctx)
		c.expired = false
	}
	c.began = at
	use := c.ctx
	c.mu.Unlock()
	k, err := c.do(use)
	c.mu.Lock()
	c.began = -1
	expired := c.expired
	c.mu.Unlock()
	if err != nil && expired {
		err = errTimeout
	}
	return k, err
}

// release ends what the client's last context holds. Its streams die with it.
func (c *client) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
	c.ctx, c.cancel = nil, nil
}

// watchdog ends requests that take longer than the timeout.
func (p *phase) watchdog(ctx context.Context, clients []*client) {
	tick := time.NewTicker(max(p.s.Timeout/50, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := p.now()
		for _, c := range clients {
			c.mu.Lock()
			if c.cancel != nil && c.began >= 0 && now-c.began > p.s.Timeout && !c.expired {
				c.expired = true
				c.cancel()
			}
			c.mu.Unlock()
		}
	}
}

// pause is how long a client of a closed loop waits after a failure, so that a server that is down is not asked a hundred
// thousand times a second.
const pause = 10 * time.Millisecond

// closedLoop lets every client ask, wait for the answer, and ask again.
func (p *phase) closedLoop(ctx context.Context, clients []*client) {
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			defer c.release()
			for ctx.Err() == nil {
				at := p.now()
				if at >= p.end || p.total.Add(1) > p.left {
					return
				}
				k, err := c.ask(ctx, p, at)
				if ctx.Err() != nil {
					return
				}
				p.rec.record(k, c.index, p.now()-at, err)
				if err != nil {
					wait(ctx, pause)
				}
			}
		})
	}
	wg.Wait()
}

// wait returns after d or at the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
