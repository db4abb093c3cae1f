package mvcc

import (
	"math"

	"holdfast.dev/holdfast/internal/storage"
)

// maxEventRows bounds the log rows that one call of Events looks at beyond its first revision: a caller whose span rarely
// changes gets control back.
const maxEventRows = 20_000

// Events returns what happened to the keys of span at the revisions from <= rev <= to, whole revisions only, revisions
// without such events left out. It stops after maxRevs revisions with events, or after the revision that reaches maxBytes of keys and
// values (<= 0: no bound), or after a bounded amount of looking. next is the first revision that was not looked at: ask
// on while next <= to. ErrCompacted if from is below the compact revision.
func (s *Space) Events(r storage.Reader, span storage.Span, from, to int64, maxRevs, maxBytes int) (events []RevisionEvents, next int64, err error) {
	published := s.Revision()
	log, err := r.NewIter(storage.Span{})
	if err != nil {
		return nil, 0, err
	}
	values, err := r.NewIter(storage.Span{})
	if err != nil {
		return nil, 0, firstError(err, log.Close())
	}
	m, err := readMeta(log, s.id)
	if err == nil && from < m.compacted {
		err = ErrCompacted
	}
	if err == nil {
		c := catchUp{s: s, log: log, values: values, span: span, maxRevs: maxRevs, maxBytes: maxBytes}
		if maxRevs <= 0 {
			c.maxRevs = math.MaxInt
		}
		if maxBytes <= 0 {
			c.maxBytes = math.MaxInt
		}
		events, next, err = c.run(from, min(to, published, m.revision))
	}
	return events, next, firstError(err, values.Close(), log.Close())
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// catchUp is one call of Events.
type catchUp struct {
	s           *Space
	log, values *storage.Iterator
	span        storage.Span
	maxRevs     int
	maxBytes    int

	events []RevisionEvents
	bytes  int
	arena  arena
	seek   []byte
}

func (c *catchUp) run(from, to int64) ([]RevisionEvents, int64, error) {
	if from > to {
		return nil, from, nil
	}
	c.seek = appendStampKey(c.seek[:0], c.s.id, tableLog, from, 0)
	last, rows := from-1, 0
	for ok := c.log.SeekGE(c.seek); ok && inTable(c.log.Key(), c.s.id, tableLog); ok = c.log.Next() {
		var row logRow
		if err := row.decode(c.log.Key(), c.log.Value()); err != nil {
			return nil, 0, err
		}
		if row.rev != last {
			if row.rev > to {
				break
			}
			if len(c.events) >= c.maxRevs || c.bytes >= c.maxBytes || rows >= maxEventRows {
				return c.events, row.rev, nil
			}
			last = row.rev
		}
		rows++
		if c.span.Contains(row.key) {
			if err := c.add(&row); err != nil {
				return nil, 0, err
			}
		}
	}
	return c.events, to + 1, c.log.Err()
}

func (c *catchUp) add(row *logRow) error {
	e := Event{Type: EventDelete, KV: KV{Key: c.arena.copy(row.key), ModRevision: row.rev}}
	if row.hasPrev {
		e.PrevRevision = row.prevRev
	}
	if !row.deleted {
		c.seek = appendVersionKey(c.seek[:0], c.s.id, row.key, row.rev, row.sub)
		var rec record
		if err := lookup(c.values, &rec, c.seek); err != nil {
			return err
		}
		if rec.mod != row.rev || rec.sub != row.sub || !rec.live {
			return corrupt(tableLog, "version missing")
		}
		rec.value = c.arena.copy(rec.value)
		e.Type, e.KV = EventPut, rec.kv(e.KV.Key)
	}
	if n := len(c.events); n == 0 || c.events[n-1].Revision != row.rev {
		c.events = append(c.events, RevisionEvents{Revision: row.rev})
	}
	last := &c.events[len(c.events)-1]
	last.Events = append(last.Events, e)
	c.bytes += len(e.KV.Key) + len(e.KV.Value)
	return nil
}

// KeyAt returns the version of key that was written at modRevision. It is false if there is none, if that was a deletion, and if
// the version was already replaced at the compact revision: such a version cannot be read at any revision, whether or
// not Sweep has removed it yet.
func (s *Space) KeyAt(r storage.Reader, key []byte, modRevision int64) (KV, bool, error) {
	published := s.Revision()
	it, err := r.NewIter(storage.Span{})
	if err != nil {
		return KV{}, false, err
	}
	kv, ok, err := s.keyAt(it, key, modRevision, published)
	err = firstError(err, it.Close())
	return kv, ok && err == nil, err
}

func (s *Space) keyAt(it *storage.Iterator, key []byte, modRevision, published int64) (KV, bool, error) {
	m, err := readMeta(it, s.id)
	if err != nil || modRevision > published {
		return KV{}, false, err
	}
	seek := appendNewestKey(nil, s.id, key, modRevision)
	var rec record
	if err := lookup(it, &rec, seek); err != nil || !rec.live || rec.mod != modRevision {
		return KV{}, false, err
	}
	rec.value = append([]byte{}, rec.value...)
	if modRevision < m.compacted {
		// It is readable only as the newest version at the compact revision.
		var newest record
		if err := lookup(it, &newest, appendNewestKey(seek[:0], s.id, key, m.compacted)); err != nil {
			return KV{}, false, err
		}
		if newest.mod != rec.mod || newest.sub != rec.sub {
			return KV{}, false, nil
		}
	}
	return rec.kv(key), true, nil
}
