package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/history"
)

// watcher follows a span of keys for as long as the laboratory runs. When a watch ends, or now and then of its own will, it goes
// on at some member where it had got to: by the last event, or by the last promise that there was none.
type watcher struct {
	caller
	l        *load
	rng      *rand.Rand
	span     [2]string
	prevKV   bool
	fragment bool
	noPut    bool
	noDelete bool

	next atomic.Int64 // revision to go on from
}

// allKeys is the span of the watchers from whose events the judges know what happened.
var allKeys = [2]string{"\x00", "\x00"}

// watchers are the ones of a run: two of everything, one of each filter, one of some keys.
func (l *load) watchers() (all []*watcher) {
	for i := range 5 {
		c := l.client()
		w := &watcher{caller: c.caller, l: l, rng: c.rng, span: allKeys}
		switch i {
		case 0, 1:
			w.prevKV, w.fragment = true, i == 1
		case 2:
			w.span, w.noPut = [2]string{"r/", "r0"}, true
		case 3:
			w.span, w.noDelete, w.prevKV = [2]string{"l/", "s0"}, true, true
		case 4:
			w.span = [2]string{"r/1", ""}
		}
		all = append(all, w)
	}
	return all
}

// follow watches until ctx is done: that is the end of a round.
func (w *watcher) follow(ctx context.Context) {
	for ctx.Err() == nil {
		members := w.l.c.all()
		slot := members[w.rng.IntN(len(members))].slot
		cl, err := w.l.connection(slot, w.rng.IntN(lanes))
		if err != nil {
			wait(ctx, 100*time.Millisecond)
			continue
		}
		turn, done := context.WithTimeout(ctx, 4*time.Second+time.Duration(w.rng.IntN(20))*time.Second)
		w.turn(turn, slot, cl)
		done()
		wait(ctx, 20*time.Millisecond)
	}
}

// turn is one watch.
func (w *watcher) turn(ctx context.Context, slot int, cl *clientv3.Client) {
	ctx, done := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer done()
	start := w.next.Load()
	opts := []clientv3.OpOption{clientv3.WithRev(start), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify()}
	for yes, o := range map[*bool]clientv3.OpOption{&w.prevKV: clientv3.WithPrevKV(), &w.fragment: clientv3.WithFragment(), &w.noPut: clientv3.WithFilterPut(), &w.noDelete: clientv3.WithFilterDelete()} {
		if *yes {
			opts = append(opts, o)
		}
	}
	if w.span[1] != "" {
		opts = append(opts, clientv3.WithRange(w.span[1]))
	}
	rec := w.tape.rec
	number := rec.Watch(history.Watch{Client: w.id, Member: slot, Key: w.span[0], End: w.span[1], Start: start, PrevKV: w.prevKV, Progress: true, Fragment: w.fragment,
		NoPut: w.noPut, NoDelete: w.noDelete, Certificate: w.certificate, Opened: w.tape.now()})
	defer func() { rec.Closed(number, w.tape.now()) }()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer done()
	asking.Go(func() {
		for ctx.Err() == nil { // asks how far the watch is, as kube-apiserver does
			wait(ctx, time.Duration(200+w.rng.IntN(800))*time.Millisecond)
			if ctx.Err() == nil {
				_ = cl.RequestProgress(ctx) // its failure is that of the watch
			}
		}
	})
	answers := cl.Watch(ctx, w.span[0], opts...)
	for {
		select {
		case <-ctx.Done():
			return
		case a, ok := <-answers:
			if !ok || !w.told(rec, number, a) {
				return
			}
		}
	}
}

// told records one answer and reports whether the watch goes on.
func (w *watcher) told(rec *history.Recorder, number int, a clientv3.WatchResponse) bool {
	if a.Created {
		rec.Created(number, a.Header.Revision)
		return true
	}
	if a.Canceled && a.CompactRevision == 0 && len(a.Events) == 0 {
		return false // the client's own word for a stream that broke, or a member without a leader
	}
	r := history.WatchResponse{Time: w.tape.now(), Revision: a.Header.Revision, Progress: a.IsProgressNotify(), Canceled: a.Canceled, CompactRevision: a.CompactRevision}
	for _, e := range a.Events {
		r.Events = append(r.Events, event(e))
	}
	rec.Respond(number, r)
	switch {
	case len(a.Events) > 0:
		w.next.Store(a.Events[len(a.Events)-1].Kv.ModRevision + 1)
	case r.Progress:
		w.next.Store(max(w.next.Load(), r.Revision+1))
	case a.CompactRevision > 0:
		w.next.Store(a.CompactRevision)
	}
	return !a.Canceled
}

func event(e *clientv3.Event) history.Event {
	out := history.Event{Type: history.PutEvent, KV: pair(e.Kv)}
	if e.Type == mvccpb.DELETE {
		out.Type, out.KV = history.DeleteEvent, history.KV{Key: string(e.Kv.Key), Mod: e.Kv.ModRevision}
	}
	if e.PrevKv != nil {
		prev := pair(e.PrevKv)
		out.Prev = &prev
	}
	return out
}
