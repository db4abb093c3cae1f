package clustertest

import (
	"bytes"
	"context"
	"errors"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/replica"
)

// elected notes who leads: one member, in one of its runs, for each term.
func (w *world) elected(m *member, term uint64) {
	w.stats.Elections++
	if other := w.leaders[term]; other != nil && (other != m || w.runs[term] != m.boots) {
		w.violate("both %s (run %d) and %s (run %d) lead in term %d", other.name(), w.runs[term], m.name(), m.boots, term)
		return
	}
	w.leaders[term], w.runs[term] = m, m.boots
}

// compare compares the state of a member with that of the others at the same index.
func (w *world) compare(m *member, index uint64) {
	var h core.Hashes
	var err error
	if h, err = m.core.Hashes(context.Background(), w.system, nil); err != nil {
		if m.rotten && fault.From(err).Kind == fault.Corrupt {
			w.log("%s finds its damage", m.name()) // and ends because of it
			return
		}
		w.violate("%s cannot hash its state at %d: %v", m.name(), index, err)
		return
	}
	w.log("%s has the hash %x at %d", m.name(), h.All[:8], h.Applied)
	if h.Applied != index {
		w.violate("%s says that it has hashed its state at %d, but it is at %d", m.name(), h.Applied, index)
		return
	}
	known, ok := w.hashes[index]
	if ok && !bytes.Equal(known[:], h.All[:]) {
		w.violate("%s has another state at %d than others: %x against %x", m.name(), index, h.All[:8], known[:8])
	}
	w.hashes[index] = h.All
}

// died is for a member that ended by itself, or by a fault of its disk.
func (w *world) died(m *member, why error) {
	if why != nil {
		w.leaked.Store(true) // what a fault has interrupted is not always closed; a process would end
	}
	w.kill(m)
	switch {
	case errors.Is(why, replica.ErrRemoved):
		m.gone = true
	case m.rotten && why != nil && fault.From(why).Kind == fault.Corrupt:
		w.spoil(m)
	default:
		w.later(m)
	}
}

// later starts a member again after a while.
func (w *world) later(m *member) {
	w.after(w.between(100*time.Millisecond, 40*time.Second), func() { w.start(m) })
}

// refusedStart is for a member that cannot start.
func (w *world) refusedStart(m *member, err error) {
	switch {
	case m.kek.away || m.kek.mask != 0x5a:
		if why := fault.From(err); !errors.Is(err, errKeyAway) && why.Kind == fault.Internal {
			w.violate("%s does not say that its key is away: %v", m.name(), err)
		}
		w.later(m)
		return
	case m.disk.armed():
		w.later(m)
		return
	case m.rotten:
		w.spoil(m)
		return
	}
	w.violate("%s does not start: %v (%s)", m.name(), err, m.disk.listing())
}

// spoil is for a member whose disk is damaged. It was found out, as it must be; the member never starts again.
func (w *world) spoil(m *member) {
	w.log("%s is damaged, and says so", m.name())
	m.spoiled = true
	w.stats.Spoiled++
}

// announce has a member tell the cluster who it is, as node does after each start. It reports whether nothing is left to do.
func (w *world) announce(m *member) bool {
	if m.said {
		return true
	}
	if m.published == nil && m.applied > 0 {
		m.published = w.call(m, 30*time.Second, "publish", func(ctx context.Context, c *core.Core) (any, error) {
			return nil, c.Publish(ctx, m.name(), []string{m.url()})
		}, func(_ any, err error) {
			m.published = nil
			m.said = err == nil
		})
	}
	return false
}

// finish ends everything, so that no goroutine is left, and judges what was seen.
func (w *world) finish() {
	h := w.record.Finish(int64(w.now()))
	for _, o := range w.pending {
		o.told = true
		o.cancel()
	}
	for _, m := range w.members {
		w.kill(m)
	}
	synctest.Wait()
	w.history = h
}
