package mvcc

import (
	"fmt"
	"slices"
)

// Compact makes revisions below rev unreadable: ErrCompacted if they are already, ErrFutureRevision.
func (w *Writer) Compact(rev int64) error {
	switch {
	case rev <= w.m.compacted:
		return ErrCompacted
	case rev > w.m.revision:
		return ErrFutureRevision
	}
	freed, err := w.garbageAt(rev)
	if err != nil {
		return err
	}
	w.m.compacted, w.m.freed, w.dirty = rev, freed, true
	return nil
}

// garbageAt returns the bytes of the versions that were obsolete at rev.
func (w *Writer) garbageAt(rev int64) (int64, error) {
	if i := rev - w.base.revision - 1; i >= 0 {
		return w.history[i].garbage, nil
	}
	it, err := w.pointIter()
	if err != nil {
		return 0, err
	}
	w.seek = appendStampKey(w.seek[:0], w.s.id, tableLog, rev+1, 0)
	if !it.SeekLT(w.seek) || !inTable(it.Key(), w.s.id, tableLog) {
		return 0, it.Err() // nothing happened up to rev: the space was fresh
	}
	var row logRow
	if err := row.decode(it.Key(), it.Value()); err != nil {
		return 0, err
	}
	if row.rev != rev {
		return 0, corrupt(tableLog, "revision missing")
	}
	return row.garbage, nil
}

// Finish completes the batch and returns its events. Afterwards the writer is good for Publish only.
func (w *Writer) Finish() ([]RevisionEvents, error) {
	if w.sub > 0 {
		return nil, fmt.Errorf("mvcc: Finish inside a request")
	}
	if err := w.finishNet(); err != nil {
		return nil, err
	}
	if w.dirty {
		var buf [3]byte
		w.seek = w.m.append(w.seek[:0])
		w.b.Set(appendMetaKey(buf[:0], w.s.id, 'r'), w.seek)
	}
	if err := w.close(); err != nil {
		return nil, err
	}
	w.finished = true
	w.lastLen = len(w.events)
	var out []RevisionEvents
	if len(w.history) > 0 {
		out = make([]RevisionEvents, len(w.history))
	}
	start := 0
	for i, h := range w.history {
		out[i] = RevisionEvents{Revision: w.base.revision + 1 + int64(i), Events: w.events[start:h.events:h.events]}
		start = h.events
	}
	return out, nil
}

// finishNet writes what depends only on the difference that the batch made: live keys and their index, attachments.
func (w *Writer) finishNet() error {
	var changed []liveChange
	for i := range w.overlay.entries {
		t := &w.overlay.entries[i]
		if t.head == 0 {
			continue
		}
		now := &w.overlay.versions[t.head-1].record
		if now.lease != t.base.lease {
			w.moveLease(t.key, t.base.lease, now.lease)
		}
		if now.live != t.base.live {
			changed = append(changed, liveChange{key: t.key, created: now.live})
		}
	}
	if len(changed) == 0 {
		return nil
	}
	slices.SortFunc(changed, func(a, b liveChange) int { return compareKeys(a.key, b.key) })
	for i := range changed {
		c := &changed[i]
		if c.created {
			k, _ := w.b.Reserve(2+len(c.key), 0)
			appendLiveKey(k[:0], w.s.id, c.key)
		} else {
			w.seek = appendLiveKey(w.seek[:0], w.s.id, c.key)
			w.b.Delete(w.seek)
		}
	}
	return w.updateIndex(changed)
}
