package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/mvcc"
)

// watching is one open watch. The driver itself receives, so that who is told what, in which pieces, is drawn like all else.
type watching struct {
	c       *client
	m       *member
	run     int
	number  int // in the history
	stream  *core.WatchStream
	prev    bool
	last    int64 // revision of the newest event, or of a notice of progress
	applied uint64
	planned bool
	lost    func(compacted int64) // called once, when the watch is over
	over    bool
}

// watch opens one on a member.
func (c *client) watch(m *member, x history.Watch, lost func(compacted int64)) *watching {
	w := c.w
	x.Client, x.Member, x.Opened = c.number, m.number, int64(w.now())
	o := &watching{c: c, m: m, run: m.boots, number: w.record.Watch(x), prev: x.PrevKV, lost: lost}
	revision := m.core.Header(mvcc.SpaceEtcd).Revision
	o.stream = m.core.NewWatchStream(c.who, mvcc.SpaceEtcd)
	_, err := o.stream.Watch(core.WatchRequest{
		Span: spanOf(x.Key, x.End), StartRevision: x.Start, PrevKV: x.PrevKV, NoPut: x.NoPut, NoDelete: x.NoDelete, ProgressNotify: x.Progress,
	})
	w.log("client %d watches %q..%q from %d on %s: %s", c.number, x.Key, x.End, x.Start, m.name(), plain(err))
	w.watches = append(w.watches, o)
	if err != nil {
		o.end(0)
		return o
	}
	w.record.Created(o.number, revision)
	o.last = max(x.Start-1, 0)
	if x.Start == 0 {
		o.last = revision
	}
	return o
}

// end closes the watch.
func (o *watching) end(compacted int64) {
	if o.over {
		return
	}
	o.over = true
	w := o.c.w
	o.stream.Close()
	w.record.Closed(o.number, int64(w.now()))
	w.watches = slices.DeleteFunc(w.watches, func(x *watching) bool { return x == o })
	o.lost(compacted)
}

// collectWatches plans to receive where something may have come to a member.
func (w *world) collectWatches(m *member) {
	for _, o := range slices.Clone(w.watches) {
		switch {
		case o.m != m:
		case !m.up() || m.boots != o.run:
			o.end(0)
		case m.applied != o.applied && !o.planned:
			o.applied = m.applied
			o.plan(w.between(w.plan.NetDelay/4, w.plan.NetDelay))
		}
	}
}

func (o *watching) plan(d time.Duration) {
	o.planned = true
	o.c.w.after(d, func() {
		o.planned = false
		switch wait := o.m.paused - o.c.w.now(); {
		case o.over:
		case !o.m.up() || o.m.boots != o.run:
			o.end(0)
		case wait > 0:
			o.plan(wait)
		default:
			o.receive()
		}
	})
}

// receive takes what there is.
func (o *watching) receive() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for !o.over {
		m, err := o.stream.Recv(now)
		if errors.Is(err, context.Canceled) {
			return
		}
		if err != nil {
			o.c.w.log("watch %d: %s", o.number, plain(err))
			o.end(0)
			return
		}
		o.take(m)
	}
}

func (o *watching) take(m *core.WatchMessage) {
	w := o.c.w
	r := history.WatchResponse{
		Time: int64(w.now()), Revision: m.Revision, Progress: m.Kind == core.WatchProgress, Canceled: m.Kind == core.WatchCanceled,
		CompactRevision: m.CompactRevision,
	}
	for _, e := range m.Events {
		x := history.Event{Type: history.PutEvent, KV: kvOf(&e.KV)}
		if e.Type == mvcc.EventDelete {
			x = history.Event{Type: history.DeleteEvent, KV: history.KV{Key: string(e.KV.Key), Mod: e.KV.ModRevision}}
		}
		if o.prev {
			prev, err := e.Prev()
			if err != nil && o.m.rotten && fault.From(err).Kind == fault.Corrupt {
				w.log("watch %d meets the damage of %s", o.number, o.m.name())
				o.end(0)
				return
			}
			if err != nil {
				w.violate("watch %d: the version before %q at %d cannot be read: %v", o.number, e.KV.Key, e.KV.ModRevision, err)
				return
			}
			if prev != nil {
				kv := kvOf(prev)
				x.Prev = &kv
			}
		}
		r.Events = append(r.Events, x)
		o.last = max(o.last, x.KV.Mod)
	}
	if r.Progress {
		o.last = max(o.last, r.Revision)
	}
	w.record.Respond(o.number, r)
	text := ""
	for _, e := range r.Events {
		text += fmt.Sprintf(" %s %s=%s@%d", e.Type, e.KV.Key, e.KV.Value, e.KV.Mod)
	}
	w.log("watch %d: %d progress %v canceled %v%s", o.number, r.Revision, r.Progress, r.Canceled, text)
	if r.Canceled {
		o.end(m.CompactRevision)
	}
}

// whole watches everything, with what was before, for ever: where a watch ends another goes on, on the same member or another.
func (c *client) whole() func() {
	var open *watching
	w := c.w
	w.told = func() int64 {
		if open == nil || open.over {
			c.act()
		}
		if open == nil || open.over {
			return 0
		}
		return open.last
	}
	return func() {
		if open != nil && !open.over {
			switch c.rng.IntN(40) {
			case 0, 1:
				open.stream.RequestProgress()
			case 2:
				open.end(0)
			}
			c.again(2 * time.Second)
			return
		}
		m := c.member()
		if m == nil || m.applied == 0 {
			c.again(time.Second)
			return
		}
		start := w.seen + 1
		if w.seen == 0 {
			start = 1
		}
		open = c.watch(m, history.Watch{Key: "\x00", End: "\x00", Start: start, PrevKV: true, Progress: true}, func(compacted int64) {
			w.seen = max(w.seen, open.last, compacted-1)
		})
		c.again(2 * time.Second)
	}
}

// some watches this and that for a while.
func (c *client) some() func() {
	var open []*watching
	spans := [][2]string{{"r0", ""}, {"s/", "s0"}, {"l/", "l0"}, {"r", "s"}, {"\x00", "\x00"}, {"s/05", "\x00"}, {"guarded", ""}}
	return func() {
		open = slices.DeleteFunc(open, func(o *watching) bool { return o.over })
		m := c.member()
		switch {
		case len(open) >= 3 || len(open) > 0 && c.rng.IntN(3) == 0:
			open[0].end(0)
		case m == nil || m.applied == 0:
		case len(open) > 0 && c.rng.IntN(3) == 0:
			open[0].stream.RequestProgress()
		default:
			span := spans[c.rng.IntN(len(spans))]
			x := history.Watch{
				Key: span[0], End: span[1], PrevKV: c.rng.IntN(2) == 0, Progress: c.rng.IntN(2) == 0,
				NoPut: c.rng.IntN(6) == 0, NoDelete: c.rng.IntN(5) == 0,
			}
			switch c.rng.IntN(3) {
			case 0:
				x.Start = max(c.w.seen-int64(c.rng.IntN(60)), 1)
			case 1:
				x.Start = c.w.seen + int64(c.rng.IntN(20)) + 1
			}
			open = append(open, c.watch(m, x, func(int64) {}))
		}
		c.again(8 * time.Second)
	}
}

// compact makes old revisions unreadable, none that the whole watch has not been told.
func (c *client) compact() func() {
	return func() {
		to := c.w.seen - int64(c.rng.IntN(80))
		if to < 2 {
			c.again(20 * time.Second)
			return
		}
		c.ask(history.Request{Kind: history.Compact, Revision: to}, func(history.Response, history.Outcome) { c.again(60 * time.Second) })
	}
}
