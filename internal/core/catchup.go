package core

import (
	"errors"

	"holdfast.dev/holdfast/internal/mvcc"
)

// catchUp reads one piece of what w has missed. It returns nothing if there was nothing for w in it.
func (s *WatchStream) catchUp(w *watcher) (*WatchMessage, error) {
	published := s.hub.published.Load()
	s.mu.Lock()
	from := w.next
	s.mu.Unlock()
	var events []*SharedEvent
	next := from
	if from <= published {
		revs, n, err := s.hub.events(w.span, from, published)
		if errors.Is(err, mvcc.ErrCompacted) {
			return s.cancelCompacted(w), nil
		}
		if err != nil {
			return nil, err
		}
		next = n
		events = s.collect(w, revs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.canceled {
		return nil, nil
	}
	w.next = next
	if next > published && w.missed <= published {
		w.lagging, w.from = false, next
		s.lag = removeWatcher(s.lag, w)
	}
	if len(events) == 0 {
		return nil, nil
	}
	s.told = max(s.told, events[len(events)-1].KV.ModRevision)
	w.sent = true
	return &WatchMessage{ID: w.id, Kind: WatchEvents, Events: events, Revision: s.revision(events)}, nil
}

func (s *WatchStream) collect(w *watcher, revs []mvcc.RevisionEvents) []*SharedEvent {
	var events []*SharedEvent
	for _, rev := range revs {
		for _, e := range rev.Events {
			if e.Type == mvcc.EventPut && w.noPut || e.Type == mvcc.EventDelete && w.noDelete {
				continue
			}
			events = append(events, newSharedEvent(e, s.hub))
		}
	}
	return events
}

func (s *WatchStream) cancelCompacted(w *watcher) *WatchMessage {
	compacted := s.hub.compactRevision()
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.canceled {
		return nil
	}
	s.removeLocked(w)
	return &WatchMessage{ID: w.id, Kind: WatchCanceled, CompactRevision: compacted, Revision: s.hub.published.Load(), Reason: mvcc.ErrCompacted}
}

// recheck looks again whether the stream's principal may watch what it watches, if the user store has changed. Nothing is
// received between a change and the check.
func (s *WatchStream) recheck() error {
	revision := s.core.rights.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rights == revision || s.closed {
		return nil
	}
	for _, id := range s.idsLocked() {
		w := s.watches[id]
		err := s.core.authorizeWatch(s.who, s.hub.space, w.span)
		if err == nil {
			continue
		}
		s.core.refused(s.who, "watch", err)
		s.removeLocked(w)
		s.ready = append(s.ready, item{msg: &WatchMessage{ID: id, Kind: WatchCanceled, Revision: s.hub.published.Load(), Reason: err}})
	}
	s.rights = revision
	return nil
}
