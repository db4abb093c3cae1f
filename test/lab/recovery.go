package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// recoveries measures how long nothing is written after a leader has died: from the kill to the first acknowledgement of a
// write that was asked for after the kill.
type recoveries struct {
	l    *load
	acks chan ack

	mu    sync.Mutex
	since int64 // when the leader died; 0: nothing is measured
	done  chan struct{}
	took  []time.Duration
}

// listen takes the acknowledgements of writes until ctx is done.
func (r *recoveries) listen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-r.acks:
			r.mu.Lock()
			if r.since != 0 && a.call >= r.since {
				r.took = append(r.took, time.Duration(a.back-r.since))
				r.since = 0
				close(r.done)
			}
			r.mu.Unlock()
		}
	}
}

// leaderDied begins a measurement: the survivors are asked to write, anew every 50 ms, until one of them has. The load alone
// would not do: its requests may all wait for an answer of the dead.
func (r *recoveries) leaderDied(ctx context.Context, at int64, survivors []*member) {
	r.mu.Lock()
	if r.since != 0 || len(survivors) == 0 {
		r.mu.Unlock()
		return // another fault interferes: this one is not measured
	}
	done := make(chan struct{})
	r.since, r.done = at, done
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	var asked sync.WaitGroup
	go func() {
		defer cancel()
		for i := 0; ctx.Err() == nil; i++ {
			m := survivors[i%len(survivors)]
			asked.Go(func() {
				c := r.l.client()
				if conn, err := r.l.connection(m.slot, c.id); err == nil {
					c.do(context.WithoutCancel(ctx), m.slot, conn, history.Request{Kind: history.Put, Key: "probe", Value: r.l.unique()})
				}
			})
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
}

// abandon ends a measurement that something else has spoilt.
func (r *recoveries) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since != 0 {
		r.since = 0
		close(r.done)
	}
}

// result is what was measured, in order of size.
func (r *recoveries) result() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.took))
}
