package mvcc

import (
	"bytes"

	"holdfast.dev/holdfast/internal/ordered"
)

// merger walks the visible versions of a span: those of the engine under those of the requests earlier in a Writer's
// batch. Without a Writer it is the scanner alone.
type merger struct {
	scan *scanner

	w       *Writer
	touched ordered.Cursor[int32] // of w, inside the span
	ahead   bool                  // scan stands on a key that has not been delivered
	ended   bool                  // scan has no more

	key []byte
	rec record
	err error
}

// next moves to the next key.
func (m *merger) next() bool {
	if m.w == nil {
		if !m.scan.next() {
			m.err = m.scan.err
			return false
		}
		m.key, m.rec = m.scan.key, m.scan.rec
		return true
	}
	return m.nextMerged()
}

func (m *merger) nextMerged() bool {
	for {
		if !m.ahead && !m.ended {
			m.ahead = m.scan.next()
			m.ended = !m.ahead
			if m.err = m.scan.err; m.err != nil {
				return false
			}
		}
		i, more := m.touched.Value()
		if !more {
			if m.ended {
				return false
			}
			return m.take()
		}
		t := &m.w.overlay.entries[i]
		order := -1
		if m.ahead {
			order = bytes.Compare(t.key, m.scan.key)
		}
		if order > 0 {
			return m.take()
		}
		m.touched.Next()
		rec, found := m.w.overlay.visible(t, m.scan.rev)
		if !found { // changed only after rev: the engine's version stands
			if order == 0 {
				return m.take()
			}
			continue
		}
		if order == 0 {
			m.ahead = false
		}
		if rec.live {
			m.key, m.rec = t.key, *rec
			return true
		}
	}
}

// take delivers the scanner's version.
func (m *merger) take() bool {
	m.ahead = false
	m.key, m.rec = m.scan.key, m.scan.rec
	return true
}
