package mvcc

import (
	"encoding/binary"
	"hash/crc32"

	"holdfast.dev/holdfast/internal/storage"
)

// Hash returns a checksum over everything that can be read at rev (<= 0: the newest), together with the revision and the
// compact revision it was taken at. A compaction at or below rev does not change it, so members that have compacted at
// different revisions can be compared. It walks the whole space.
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
			hash, err = hashVersions(it, s.id, rev)
		}
	}
	return hash, current, compacted, firstError(err, it.Close())
}

// hashVersions covers the newest version of each key at rev, unless it is a tombstone.
func hashVersions(it *storage.Iterator, id SpaceID, rev int64) (uint32, error) {
	it.SetBounds(tableSpan(id, tableVersions))
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := uint32(0)
	var prefix, buf []byte
	for ok := it.First(); ok; {
		row := it.Key()
		if mod, _ := versionStamp(row); mod > rev {
			ok = it.Next()
			continue
		}
		var rec record
		if err := decodeVersion(&rec, row, it.Value()); err != nil {
			return 0, err
		}
		if rec.live {
			prefix = userKey(prefix[:0], row)
			buf = binary.BigEndian.AppendUint64(buf[:0], uint64(len(prefix)))
			buf = append(buf, prefix...)
			for _, v := range [...]int64{rec.mod, int64(rec.sub), rec.create, rec.version, rec.lease, int64(len(rec.value))} {
				buf = binary.BigEndian.AppendUint64(buf, uint64(v))
			}
			sum = crc32.Update(crc32.Update(sum, table, buf), table, rec.value)
		}
		ok = it.NextPrefix()
	}
	return sum, it.Err()
}
