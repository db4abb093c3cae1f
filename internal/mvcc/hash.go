package mvcc

import (
	"encoding/binary"
	"hash/crc32"

	"holdfast.dev/holdfast/internal/storage"
)

// Hash returns a checksum over all versions that can be read at the revisions from the compact revision to rev (<= 0: the
// newest), together with the revision and the compact revision it was taken at. It walks the whole space.
func (s *Space) Hash(r storage.Reader, rev int64) (hash uint32, current, compacted int64, err error) {
	published := s.Revision()
	it, err := r.NewIter(storage.Span{})
	if err != nil {
		return 0, 0, 0, err
	}
	m, err := readMeta(it, s.id)
	if err == nil {
		current, compacted = max(min(published, m.revision), m.compacted), m.compacted
		if rev, err = readRevision(rev, current, compacted); err == nil {
			hash, err = hashVersions(it, s.id, rev, compacted)
		}
	}
	return hash, current, compacted, firstError(err, it.Close())
}

// hashVersions covers what no Sweep may remove and nothing else.
func hashVersions(it *storage.Iterator, id SpaceID, rev, compacted int64) (uint32, error) {
	it.SetBounds(tableSpan(id, tableVersions))
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := uint32(0)
	var prefix, buf []byte
	for ok := it.First(); ok; {
		row := it.Key()
		mod, _ := versionStamp(row)
		if mod > rev {
			ok = it.Next()
			continue
		}
		old := mod <= compacted // the newest version at the compact revision: nothing older can be read
		var rec record
		if err := decodeVersion(&rec, row, it.Value()); err != nil {
			return 0, err
		}
		if rec.live || !old {
			prefix = userKey(prefix[:0], row)
			buf = binary.BigEndian.AppendUint64(buf[:0], uint64(len(prefix)))
			buf = append(buf, prefix...)
			for _, v := range [...]int64{rec.mod, int64(rec.sub), rec.create, rec.version, rec.lease, int64(len(rec.value))} {
				buf = binary.BigEndian.AppendUint64(buf, uint64(v))
			}
			sum = crc32.Update(crc32.Update(sum, table, buf), table, rec.value)
		}
		if old {
			ok = it.NextPrefix()
		} else {
			ok = it.Next()
		}
	}
	return sum, it.Err()
}
