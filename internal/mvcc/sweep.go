package mvcc

import (
	"holdfast.dev/holdfast/internal/storage"
)

// Sweep removes rows that the published compaction made unreachable. It works off at most budget rows of the revision log
// and reports whether there is more to do. It may run beside readers and a Writer. Where it stands is kept in the engine, by this member
// alone; nothing that can be asked of the space depends on it.
func (s *Space) Sweep(e *storage.Engine, budget int) (more bool, err error) {
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	compacted := s.CompactRevision()
	var mark sweepMark
	var buf [3]byte
	markKey := appendMetaKey(buf[:0], s.id, 's')
	row, ok, err := e.Get(markKey, nil)
	if err == nil && ok {
		err = mark.decode(row)
	}
	if err != nil || mark.cut >= compacted {
		return false, err
	}
	b := e.NewBatch()
	more, err = s.sweepInto(e, b, &mark, sweepTo{compacted, budget})
	if err == nil {
		b.Set(markKey, mark.append(nil))
		if more {
			// gofail: var compactBeforeCommitBatch struct{}
		}
		err = e.Apply(b)
		if more {
			// gofail: var compactAfterCommitBatch struct{}
		} else {
			// gofail: var compactAfterSetFinishedCompact struct{}
		}
	}
	return more && err == nil, firstError(err, b.Close())
}

// sweepTo is how far one call may go.
type sweepTo struct {
	compacted int64
	budget    int
}

func (s *Space) sweepInto(e *storage.Engine, b *storage.Batch, mark *sweepMark, to sweepTo) (more bool, err error) {
	span := tableSpan(s.id, tableLog)
	switch {
	case mark.rev == 0: // the rows of the last compact revision are looked at once more, see below
		span.Start = appendStampKey(nil, s.id, tableLog, mark.cut, 0)
	case mark.rev == mark.target && mark.target < to.compacted: // and so are those of one that was not finished
		span.Start = appendStampKey(nil, s.id, tableLog, mark.rev, 0)
	default:
		span.Start = append(appendStampKey(nil, s.id, tableLog, mark.rev, mark.sub), 0)
	}
	mark.target = to.compacted
	span.End = appendStampKey(nil, s.id, tableLog, to.compacted+1, 0)
	it, err := e.NewIter(span)
	if err != nil {
		return false, err
	}
	var key []byte
	for ok := it.First(); ok; ok = it.Next() {
		if to.budget--; to.budget < 0 {
			more = true
			break
		}
		var row logRow
		if err := row.decode(it.Key(), it.Value()); err != nil {
			return false, firstError(err, it.Close())
		}
		mark.rev, mark.sub = row.rev, row.sub
		if row.rev == to.compacted && row.hasPrev && row.prevRev == row.rev {
			// The events of the compact revision can still be asked for, so what it wrote stays for now, and with it what
			// hides that from readers.
			continue
		}
		if row.hasPrev {
			key = appendVersionKey(key[:0], s.id, row.key, row.prevRev, row.prevSub)
			b.Delete(key)
		}
		if row.deleted { // nothing precedes it any more, so that it says what no row says as well
			key = appendVersionKey(key[:0], s.id, row.key, row.rev, row.sub)
			b.Delete(key)
		}
	}
	if err := it.Close(); err != nil || more {
		return more, err
	}
	// The rows of the compact revision itself stay: a watch may start there.
	b.DeleteRange(storage.Span{
		Start: appendStampKey(nil, s.id, tableLog, mark.cut, 0), End: appendStampKey(nil, s.id, tableLog, to.compacted, 0),
	})
	b.DeleteRange(storage.Span{
		Start: appendStampKey(nil, s.id, tableBirths, mark.cut, 0),
		End:   appendStampKey(nil, s.id, tableBirths, to.compacted+1, 0),
	})
	// gofail: var compactBeforeSetFinishedCompact struct{}
	*mark = sweepMark{cut: to.compacted, target: to.compacted}
	return false, nil
}
