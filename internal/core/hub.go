package core

import (
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// keyShards is how many locks the watchers of single keys are spread over: a power of two.
const keyShards = 32

// hub spreads the events of one space to its watchers. dispatch is called by the applier alone, after the events' revisions
// have been published; a watcher that is entered after a revision was published never waits for its events, because
// publishing comes before looking watchers up.
type hub struct {
	space mvcc.SpaceID
	core  *Core

	published  atomic.Int64 // newest revision that readers see
	dispatched atomic.Int64 // every event up to here is in the queue of each stream that is in step
	awaited    atomic.Bool  // some stream waits for dispatched to grow
	watchers   atomic.Int64

	seed   maphash.Seed
	shards [keyShards]keyShard
	spans  struct {
		sync.Mutex
		tree spanTree
	}

	mu      sync.Mutex // leaf
	streams map[*WatchStream]struct{}
	order   []*WatchStream // the same, in order of creation

	touched []*watcher // scratch of dispatch
}

type keyShard struct {
	sync.Mutex
	keys  map[string][]*watcher
	bells map[string]*bellList // of blocked lookups
}

func newHub(c *Core, space mvcc.SpaceID, revision int64) *hub {
	h := &hub{space: space, core: c, seed: maphash.MakeSeed(), streams: map[*WatchStream]struct{}{}}
	for i := range h.shards {
		h.shards[i].keys = map[string][]*watcher{}
		h.shards[i].bells = map[string]*bellList{}
	}
	h.published.Store(revision)
	h.dispatched.Store(revision)
	return h
}

func (h *hub) shard(key []byte) *keyShard {
	return &h.shards[maphash.Bytes(h.seed, key)&(keyShards-1)]
}

// enter makes w known to dispatch.
func (h *hub) enter(w *watcher) {
	h.watchers.Add(1)
	if w.span.SingleKey() {
		s := h.shard(w.span.Start)
		s.Lock()
		s.keys[string(w.span.Start)] = append(s.keys[string(w.span.Start)], w)
		s.Unlock()
		return
	}
	h.spans.Lock()
	h.spans.tree.add(w)
	h.spans.Unlock()
}

// leave takes w out again.
func (h *hub) leave(w *watcher) {
	h.watchers.Add(-1)
	if w.span.SingleKey() {
		s := h.shard(w.span.Start)
		s.Lock()
		left := removeWatcher(s.keys[string(w.span.Start)], w)
		if len(left) == 0 {
			delete(s.keys, string(w.span.Start))
		} else {
			s.keys[string(w.span.Start)] = left
		}
		s.Unlock()
		return
	}
	h.spans.Lock()
	h.spans.tree.remove(w)
	h.spans.Unlock()
}

// dispatch hands the events of revisions up to and including revision to whoever watches them. The caller is the applier.
func (h *hub) dispatch(revs []mvcc.RevisionEvents, revision int64) {
	h.published.Store(revision)
	if h.watchers.Load() > 0 {
		for i := range revs {
			if lab.DropEvent.Planted() && revs[i].Revision%32 == 0 {
				continue
			}
			h.match(&revs[i])
		}
		for _, w := range h.touched {
			w.stream.push(w)
		}
		clear(h.touched)
		h.touched = h.touched[:0]
	}
	h.dispatched.Store(revision)
	if h.awaited.Load() && h.awaited.Swap(false) {
		h.wakeAll()
	}
}

func (h *hub) match(rev *mvcc.RevisionEvents) {
	var shared *SharedEvent
	var event *mvcc.Event
	offer := func(w *watcher) {
		if event.Type == mvcc.EventPut && w.noPut || event.Type == mvcc.EventDelete && w.noDelete {
			return
		}
		if shared == nil {
			shared = newSharedEvent(*event, h)
		}
		if len(w.batch) == 0 {
			h.touched = append(h.touched, w)
		}
		w.batch = append(w.batch, shared)
	}
	visit := func(n *spanNode) {
		for _, w := range n.watchers {
			offer(w)
		}
		n.bells.strike(rev.Revision)
	}
	h.spans.Lock()
	defer h.spans.Unlock()
	for i := range rev.Events {
		event, shared = &rev.Events[i], nil
		s := h.shard(event.KV.Key)
		s.Lock()
		for _, w := range s.keys[string(event.KV.Key)] {
			offer(w)
		}
		if l := s.bells[string(event.KV.Key)]; l != nil {
			l.strike(rev.Revision)
		}
		s.Unlock()
		h.spans.tree.stab(event.KV.Key, visit)
	}
}

// keyBefore implements prevReader.
func (h *hub) keyBefore(key []byte, revision int64) (mvcc.KV, bool, error) {
	if revision <= 1 {
		return mvcc.KV{}, false, nil
	}
	g := h.core.acquire()
	defer g.release()
	page, err := g.machine.Space(h.space).Read(g.machine.Engine(), mvcc.Query{Span: storage.KeySpan(key), Revision: revision - 1, Limit: 1, NoCount: true})
	if errors.Is(err, mvcc.ErrCompacted) || err == nil && len(page.KVs) == 0 {
		return mvcc.KV{}, false, nil
	}
	if err != nil {
		return mvcc.KV{}, false, err
	}
	if h.space == mvcc.SpaceEtcd {
		return openKV(g.machine, page.KVs[0], true, nil)
	}
	return page.KVs[0], true, nil
}

// keyAt implements prevReader.
func (h *hub) keyAt(key []byte, revision int64) (mvcc.KV, bool, error) {
	g := h.core.acquire()
	defer g.release()
	kv, ok, err := g.machine.Space(h.space).KeyAt(g.machine.Engine(), key, revision)
	if h.space == mvcc.SpaceEtcd {
		return openKV(g.machine, kv, ok, err)
	}
	return kv, ok, err
}

func (h *hub) join(s *WatchStream) {
	h.mu.Lock()
	h.streams[s] = struct{}{}
	h.order = append(h.order, s)
	h.mu.Unlock()
}

func (h *hub) part(s *WatchStream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.streams[s]; !ok {
		return
	}
	delete(h.streams, s)
	if len(h.order) > 2*len(h.streams)+16 {
		kept := make([]*WatchStream, 0, len(h.streams))
		for _, o := range h.order {
			if _, ok := h.streams[o]; ok {
				kept = append(kept, o)
			}
		}
		h.order = kept
	}
}

// all returns the streams in order of creation.
func (h *hub) all() []*WatchStream {
	h.mu.Lock()
	defer h.mu.Unlock()
	streams := make([]*WatchStream, 0, len(h.streams))
	for _, s := range h.order {
		if _, ok := h.streams[s]; ok {
			streams = append(streams, s)
		}
	}
	return streams
}

// wakeAll makes every stream look again: rights or the machine have changed.
func (h *hub) wakeAll() {
	for _, s := range h.all() {
		s.wake()
	}
}

// reset tells the hub that the machine was replaced by one at revision: watchers read from the new machine what they
// have not been given yet.
func (h *hub) reset(revision int64) {
	served := h.published.Swap(revision)
	for _, s := range h.all() {
		s.fallBehind(served, revision)
	}
	h.dispatched.Store(revision)
}

// tick sends progress notifications that are due.
func (h *hub) tick(now time.Time) {
	if h.watchers.Load() == 0 {
		return
	}
	revision := h.dispatched.Load()
	for _, s := range h.all() {
		s.tick(now, revision)
	}
}

// events reads what happened in span from revision from on. next is where to go on.
func (h *hub) events(span storage.Span, from, to int64) (revs []mvcc.RevisionEvents, next int64, err error) {
	g := h.core.acquire()
	defer g.release()
	return g.machine.Space(h.space).Events(g.machine.Engine(), span, from, to, catchUpRevisions, catchUpBytes)
}

func (h *hub) compactRevision() int64 {
	g := h.core.acquire()
	defer g.release()
	return g.machine.Space(h.space).CompactRevision()
}
