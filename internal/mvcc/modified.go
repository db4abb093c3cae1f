package mvcc

import "holdfast.dev/holdfast/internal/storage"

// LastModified returns the newest revision at which a key of span was changed; 0 if there is none. Deletions count as long
// as they are above the compact revision: what is older may be swept away on one member and not yet on another. It looks
// at every key of span that is there or was deleted since.
func (s *Space) LastModified(r storage.Reader, span storage.Span) (int64, error) {
	if span.Empty() {
		return 0, nil
	}
	published := s.now.Load().revision // before the state is taken, as in readState
	it, err := r.NewIter(storage.Span{})
	if err != nil {
		return 0, err
	}
	newest, err := s.lastModified(it, span, published)
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return newest, err
}

func (s *Space) lastModified(it *storage.Iterator, span storage.Span, published int64) (int64, error) {
	m, err := readMeta(it, s.id)
	if err != nil {
		return 0, err
	}
	current := min(published, m.revision)
	if current < m.compacted { // compacted while the batch that did it is not published yet
		current = m.revision
	}
	var rec record
	if span.SingleKey() {
		it.Scratch = appendNewestKey(it.Scratch[:0], s.id, span.Start, current)
		if err := lookup(it, &rec, it.Scratch); err != nil {
			return 0, err
		}
		return rec.modified(m.compacted), nil
	}
	var sc scanner
	sc.id, sc.it = s.id, it
	sc.start(span)
	newest := int64(0)
	for ok := it.First(); ok; {
		row := it.Key()
		if mod, _ := versionStamp(row); mod > current {
			ok = it.Next() // an older version of the key, or the newest of the next
			continue
		}
		if err := decodeVersion(&rec, row, it.Value()); err != nil {
			return 0, err
		}
		newest = max(newest, rec.modified(m.compacted))
		ok = it.NextPrefix()
	}
	return newest, it.Err()
}

// modified returns when the version was written, 0 for a deletion that compaction made unreadable.
func (r *record) modified(compacted int64) int64 {
	if !r.live && r.mod <= compacted {
		return 0
	}
	return r.mod
}
