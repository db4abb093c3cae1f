package core

import (
	"context"
	"slices"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

const (
	catchUpRevisions = 1000
	catchUpBytes     = 1 << 20
)

// WatchKind says what a WatchMessage is.
type WatchKind uint8

// The kinds of messages.
const (
	WatchEvents WatchKind = iota
	WatchProgress
	WatchCanceled
)

// WatchRequest asks for the events of the keys in Span.
type WatchRequest struct {
	Span           storage.Span
	StartRevision  int64 // 0: from now on
	ID             int64 // 0: the stream picks one
	PrevKV         bool  // the watcher will ask events for Prev; it costs nothing until then
	NoPut          bool
	NoDelete       bool
	ProgressNotify bool
}

// WatchMessage is one message of a stream. Events of one revision are never split over two of them.
type WatchMessage struct {
	ID              int64 // -1: every watch of the stream
	Kind            WatchKind
	Events          []*SharedEvent
	Revision        int64 // of the store; with WatchProgress: everything up to here has been delivered
	CompactRevision int64 // with WatchCanceled: not 0 if the start was compacted away
	Reason          error // with WatchCanceled
}

// watcher is one watch. Its first group of fields never changes.
type watcher struct {
	stream          *WatchStream
	id              int64
	span            storage.Span
	noPut, noDelete bool
	prev            bool
	notify          bool
	batch           []*SharedEvent // the applier's alone: what the batch under way has for this watcher
	pending         []*SharedEvent // the rest is guarded by stream.mu
	queued          bool           // in stream.ready
	lagging         bool           // reads from mvcc what it has not been given; batches are not queued
	next            int64          // lagging: revision to read on from
	missed          int64          // lagging: newest revision that was not queued
	from            int64          // in step: older events are not for this watcher
	sent            bool           // events were delivered since the last progress notification
	progressQueued  bool
	canceled        bool
}

// item is one thing in a stream's queue: a watcher with pending events, or a finished message.
type item struct {
	w   *watcher
	msg *WatchMessage
}

// WatchStream is one client's bundle of watches in one space. Watch, Cancel, RequestProgress and Close may be called from
// any goroutine; Recv from one at a time.
type WatchStream struct {
	core *Core
	hub  *hub
	who  policy.Principal

	wakeup chan struct{} // capacity 1

	mu             sync.Mutex
	watches        map[int64]*watcher
	nextID         int64
	ready          []item
	lag            []*watcher
	turn           bool  // the next Recv looks at lagging watchers first
	buffered       int64 // bytes of pending events
	progressWanted bool
	told           int64 // the newest revision of an event that Recv has returned
	nextProgress   time.Time
	rights         uint64 // core.rights when the watches were last allowed
	closed         bool
}

// NewWatchStream opens a stream for who. It must be closed.
func (c *Core) NewWatchStream(who policy.Principal, space mvcc.SpaceID) *WatchStream {
	h := c.hubs[space]
	s := &WatchStream{core: c, hub: h, who: who, wakeup: make(chan struct{}, 1), watches: map[int64]*watcher{}}
	s.rights = c.rights.Load()
	h.join(s)
	if c.stopped.Load() {
		s.Close()
	}
	return s
}

// Watch starts a watch and returns its id. A start that was compacted away is reported by Recv. To know from where on
// events will come, take Header first and ask for StartRevision = Header.Revision + 1.
func (s *WatchStream) Watch(r WatchRequest) (int64, error) {
	if r.Span.Empty() {
		return 0, ErrEmptyWatchRange
	}
	if r.StartRevision < 0 {
		return 0, mvcc.ErrCompacted
	}
	if err := s.core.authorizeWatch(s.who, s.hub.space, r.Span); err != nil {
		s.core.refused(s.who, "watch", err)
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrWatchClosed
	}
	id := r.ID
	if id == 0 {
		for s.watches[s.nextID] != nil {
			s.nextID++
		}
		id = s.nextID
		s.nextID++
	} else if s.watches[id] != nil {
		return 0, ErrDuplicateWatchID
	}
	w := &watcher{stream: s, id: id, span: r.Span, noPut: r.NoPut, noDelete: r.NoDelete, prev: r.PrevKV, notify: r.ProgressNotify}
	s.watches[id] = w
	s.hub.enter(w)
	// From here on every revision that is not published yet reaches w by dispatch.
	now := s.hub.published.Load()
	w.from = now + 1
	switch {
	case r.StartRevision > now:
		w.from = r.StartRevision
	case r.StartRevision > 0:
		w.lagging, w.next, w.missed = true, r.StartRevision, now
		s.lag = append(s.lag, w)
		s.wake()
	}
	if w.notify && s.nextProgress.IsZero() {
		s.nextProgress = s.core.clock().Add(s.core.progressDelay())
	}
	s.core.stats.watchers.Add(1)
	return id, nil
}

// Cancel ends a watch; false if there is none with that id. Nothing of it is received after Cancel has returned, except
// what a Recv under way has already taken.
func (s *WatchStream) Cancel(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watches[id]
	if w == nil {
		return false
	}
	s.removeLocked(w)
	return true
}

func (s *WatchStream) removeLocked(w *watcher) {
	delete(s.watches, w.id)
	w.canceled = true
	s.buffered -= pendingBytes(w.pending)
	w.pending = nil
	if w.lagging {
		s.lag = removeWatcher(s.lag, w)
	}
	s.hub.leave(w)
	s.core.stats.watchers.Add(-1)
}

// RequestProgress asks for one message with ID -1 that says up to which revision every watch of the stream has been
// served. It comes once all of them are in step; a stream without watches, or with one that starts in the future,
// gets none.
func (s *WatchStream) RequestProgress() {
	s.mu.Lock()
	s.progressWanted = true
	s.mu.Unlock()
	s.wake()
}

// Close ends the stream. A Recv under way returns ErrWatchClosed.
func (s *WatchStream) Close() {
	s.hub.part(s)
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		for _, w := range s.watches {
			s.removeLocked(w)
		}
		s.ready = nil
	}
	s.mu.Unlock()
	s.wake()
}

func (s *WatchStream) wake() {
	select {
	case s.wakeup <- struct{}{}:
	default:
	}
}

func pendingBytes(events []*SharedEvent) (n int64) {
	for _, e := range events {
		n += e.size()
	}
	return n
}

// push takes what the applier has collected in w.batch into the queue, or, when the consumer is too slow, leaves it to be
// read from mvcc later.
func (s *WatchStream) push(w *watcher) {
	events := w.batch
	w.batch = nil
	last := events[len(events)-1].KV.ModRevision
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.canceled {
		return
	}
	if w.lagging {
		w.missed = last
		return
	}
	for len(events) > 0 && events[0].KV.ModRevision < w.from {
		events = events[1:]
	}
	if len(events) == 0 {
		return
	}
	size := pendingBytes(events)
	if s.buffered > 0 && s.buffered+size > s.core.limits.StreamBytes {
		w.lagging, w.next, w.missed = true, events[0].KV.ModRevision, last
		s.lag = append(s.lag, w)
		s.core.stats.slowWatchers.Add(1)
		s.wake()
		return
	}
	s.buffered += size
	if w.pending == nil {
		w.pending = events
	} else {
		w.pending = append(w.pending, events...)
	}
	if !w.queued {
		w.queued = true
		s.ready = append(s.ready, item{w: w})
	}
	s.wake()
}

// fallBehind makes every watch read from mvcc what happened after served and up to revision.
func (s *WatchStream) fallBehind(served, revision int64) {
	s.mu.Lock()
	for _, id := range s.idsLocked() {
		w := s.watches[id]
		if !w.lagging {
			w.lagging, w.next = true, max(w.from, served+1)
			s.lag = append(s.lag, w)
		}
		w.missed = max(w.missed, revision)
	}
	s.mu.Unlock()
	s.wake()
}

func (s *WatchStream) idsLocked() []int64 {
	ids := make([]int64, 0, len(s.watches))
	for id := range s.watches {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Recv returns the next message. It reads for watches that are behind, so a slow consumer costs the writers nothing.
func (s *WatchStream) Recv(ctx context.Context) (*WatchMessage, error) {
	for {
		if err := s.recheck(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrWatchClosed
		}
		s.progressLocked()
		w := s.laggingLocked()
		if w == nil || !s.turn {
			if m := s.popLocked(); m != nil {
				s.turn = true
				s.mu.Unlock()
				return s.openMessage(m), nil
			}
		}
		s.turn = false
		s.mu.Unlock()
		if w != nil {
			m, err := s.catchUp(w)
			if m != nil && err == nil {
				return s.openMessage(m), nil
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-s.wakeup:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// laggingLocked returns the watch to read for. One whose queued events have not been taken yet must wait: they are older.
func (s *WatchStream) laggingLocked() *watcher {
	for i, w := range s.lag {
		if len(w.pending) == 0 {
			s.lag = append(append(s.lag[:i:i], s.lag[i+1:]...), w)
			return w
		}
	}
	return nil
}

func (s *WatchStream) popLocked() *WatchMessage {
	for len(s.ready) > 0 {
		it := s.ready[0]
		s.ready[0] = item{}
		s.ready = s.ready[1:]
		if len(s.ready) == 0 {
			s.ready = nil
		}
		if it.w == nil {
			if it.msg.Kind == WatchProgress && len(s.lag) > 0 {
				s.progressWanted = true // some watch has fallen behind since: later
				continue
			}
			if it.msg.Kind == WatchProgress && it.msg.Revision < s.told {
				// Newer events were taken before it. It would go back: a client that reconnects would be told them twice.
				s.progressWanted = true
				s.progressLocked()
				continue
			}
			return it.msg
		}
		w := it.w
		if it.msg != nil { // a progress notification of its own
			w.progressQueued = false
			if !w.canceled {
				return it.msg
			}
			continue
		}
		w.queued = false
		if w.canceled || len(w.pending) == 0 {
			continue
		}
		events := w.pending
		w.pending = nil
		w.sent = true
		s.told = max(s.told, events[len(events)-1].KV.ModRevision)
		s.buffered -= pendingBytes(events)
		return &WatchMessage{ID: w.id, Kind: WatchEvents, Events: events, Revision: s.revision(events)}
	}
	return nil
}

// revision is what the store is at as the client may see it: never older than what it is shown.
func (s *WatchStream) revision(events []*SharedEvent) int64 {
	revision := s.hub.published.Load()
	if len(events) > 0 {
		revision = max(revision, events[len(events)-1].KV.ModRevision)
	}
	return revision
}

// progressLocked answers RequestProgress once every watch is in step. The answer queues behind all events up to its
// revision.
func (s *WatchStream) progressLocked() {
	if !s.progressWanted || len(s.lag) > 0 {
		return
	}
	if s.told > s.hub.dispatched.Load() { // an event of what is being dispatched just now was taken already
		s.hub.awaited.Store(true)
		if s.told > s.hub.dispatched.Load() {
			return // the hub wakes the stream
		}
	}
	revision := s.hub.dispatched.Load()
	s.progressWanted = false
	if len(s.watches) == 0 {
		return
	}
	for _, w := range s.watches {
		if w.from > revision+1 {
			return
		}
	}
	s.ready = append(s.ready, item{msg: &WatchMessage{ID: -1, Kind: WatchProgress, Revision: revision}})
}

// tick queues progress notifications for watches that asked for them and had nothing to say since the last one.
func (s *WatchStream) tick(now time.Time, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nextProgress.IsZero() || now.Before(s.nextProgress) {
		return
	}
	s.nextProgress = now.Add(s.core.progressDelay())
	for _, id := range s.idsLocked() {
		w := s.watches[id]
		if !w.notify {
			continue
		}
		quiet := !w.sent && len(w.pending) == 0
		w.sent = false
		if quiet && !w.lagging && !w.progressQueued && w.from <= revision+1 {
			w.progressQueued = true
			s.ready = append(s.ready, item{w: w, msg: &WatchMessage{ID: id, Kind: WatchProgress, Revision: revision}})
			s.wake()
		}
	}
}
