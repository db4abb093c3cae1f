package mvcc

import (
	"encoding/binary"

	"holdfast.dev/holdfast/internal/storage"
)

const metaVersion = 1

// meta is the one row that a space is opened from. All of it is the same on every member.
type meta struct {
	revision  int64
	compacted int64 // -1: never
	written   int64 // bytes of all versions ever written
	garbage   int64 // of these, bytes made obsolete; compaction frees what was obsolete at its revision
	freed     int64 // of these, bytes freed by compaction
	ordinal   int64 // last used in table x
	root      indexRoot
}

func freshMeta() meta { return meta{revision: 1, compacted: -1} }

// bytes returns the logical size.
func (m *meta) bytes() int64 { return m.written - m.freed }

func appendMetaKey(dst []byte, id SpaceID, which byte) []byte {
	return append(dst, byte(id), tableMeta, which)
}

func (m *meta) append(dst []byte) []byte {
	dst = append(dst, metaVersion)
	for _, v := range [...]int64{m.revision, m.compacted + 1, m.written, m.garbage, m.freed, m.ordinal,
		m.root.count, m.root.children, int64(m.root.height)} {
		dst = binary.AppendUvarint(dst, uint64(v))
	}
	return dst
}

func (m *meta) decode(row []byte) error {
	if len(row) == 0 || row[0] != metaVersion {
		return corrupt(tableMeta, "version")
	}
	row = row[1:]
	var v [9]int64
	for i := range v {
		u, n := binary.Uvarint(row)
		if n <= 0 {
			return corrupt(tableMeta, "short row")
		}
		v[i], row = int64(u), row[n:]
	}
	*m = meta{
		revision: v[0], compacted: v[1] - 1, written: v[2], garbage: v[3], freed: v[4], ordinal: v[5],
		root: indexRoot{count: v[6], children: v[7], height: int(v[8])},
	}
	return nil
}

// readMeta finds the meta row of the iterator's state.
func readMeta(it *storage.Iterator, id SpaceID) (meta, error) {
	it.Scratch = appendMetaKey(it.Scratch[:0], id, 'r')
	m := freshMeta()
	if !it.SeekPrefixGE(it.Scratch) {
		return m, it.Err()
	}
	return m, m.decode(it.Value())
}

// sweepMark is how far this member's Sweep has come: the rows below cut are gone, and on the way to the compact revision
// target the log rows from cut up to rev, sub have been worked off; rev is 0 before the first of them. It is not the same
// on every member.
type sweepMark struct {
	rev    int64
	sub    uint32
	cut    int64
	target int64
}

func (c sweepMark) append(dst []byte) []byte {
	dst = append(dst, metaVersion)
	dst = binary.AppendUvarint(dst, uint64(c.rev))
	dst = binary.AppendUvarint(dst, uint64(c.sub))
	dst = binary.AppendUvarint(dst, uint64(c.cut))
	return binary.AppendUvarint(dst, uint64(c.target))
}

func (c *sweepMark) decode(row []byte) error {
	if len(row) == 0 || row[0] != metaVersion {
		return corrupt(tableMeta, "sweep version")
	}
	row = row[1:]
	var v [4]uint64
	for i := range v {
		u, n := binary.Uvarint(row)
		if n <= 0 {
			return corrupt(tableMeta, "short sweep row")
		}
		v[i], row = u, row[n:]
	}
	*c = sweepMark{rev: int64(v[0]), sub: uint32(v[1]), cut: int64(v[2]), target: int64(v[3])}
	return nil
}
