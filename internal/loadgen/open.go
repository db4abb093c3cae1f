package loadgen

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// lateAfter is how long after its time a request may start without being called late.
const lateAfter = time.Millisecond

// openLoop starts requests at a fixed rate, whatever becomes of those before. A request whose time has come while all
// clients are busy waits for one, and its latency counts from when it was due. When the schedule is at its end, those that wait are
// started for as long as one request may take; the rest was never started and counts as failed.
func (p *phase) openLoop(ctx context.Context, clients []*client) *Open {
	due := p.schedule()
	slots := make(chan time.Duration, len(clients)) // times at which requests are due
	giveUp, cancel := context.WithCancel(ctx)
	defer cancel()
	var late, latest, started atomic.Int64
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			defer c.release()
			for at := range slots {
				start := p.now()
				if giveUp.Err() != nil {
					continue // counted below as not started
				}
				started.Add(1)
				if behind := start - at; behind > lateAfter {
					late.Add(1)
					raise(&latest, int64(behind))
				}
				k, err := c.ask(ctx, p, start)
				if ctx.Err() != nil {
					continue
				}
				p.rec.record(k, c.index, p.now()-at, err)
			}
		})
	}
	came := p.pace(ctx, due, slots, cancel)
	close(slots)
	wg.Wait()
	o := &Open{Rate: p.s.Rate, Due: came, Late: late.Load(), LatestMs: float64(latest.Load()) / 1e6}
	if ctx.Err() == nil {
		o.NotStarted = o.Due - started.Load()
		for i := range o.NotStarted {
			p.rec.record(0, int(i), p.s.Timeout, errNotStarted) // it waited for that long at least
		}
	}
	return o
}

// schedule returns how many requests there are to be in all.
func (p *phase) schedule() int64 {
	if p.end != forever {
		return max(1, int64(p.s.Rate*p.end.Seconds()))
	}
	return p.left
}

const forever = time.Duration(1<<63 - 1)

// at returns when request i is due.
func (p *phase) at(i int64) time.Duration {
	return time.Duration(float64(i) / p.s.Rate * float64(time.Second))
}

// pace hands out n times, each when it has come, and returns how many have come. It calls giveUp when the last has
// been due for longer than a request may take.
func (p *phase) pace(ctx context.Context, n int64, slots chan<- time.Duration, giveUp context.CancelFunc) (came int64) {
	last := p.at(n-1) + p.s.Timeout
	stop := time.AfterFunc(last-p.now(), giveUp)
	defer stop.Stop()
	end := time.NewTimer(last - p.now())
	defer end.Stop()
	s := newSleeper()
	defer s.close()
	for i := range n {
		at := p.at(i)
		if d := at - p.now(); d > 0 {
			s.sleep(ctx, d)
		}
		if ctx.Err() != nil {
			return i
		}
		select {
		case slots <- at:
			continue
		default:
		}
		select {
		case slots <- at:
		case <-ctx.Done():
			return i
		case <-end.C:
			return n // the rest was due and nobody was free
		}
	}
	return n
}

// raise sets v to n if n is larger.
func raise(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}
