package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"holdfast.dev/holdfast/internal/storage"
)

// The tables of a space. The bytes are on disk.
const (
	tableVersions = 'd'
	tableLog      = 'l'
	tableLive     = 'k'
	tableIndex    = 'n'
	tableBirths   = 'x'
	tableLeases   = 'e'
	tableAttached = 'a'
	tableMeta     = 'm'
)

const (
	suffixLen = 12 // of a version row's key: ^revision, ^sub
	stampLen  = 12 // revision, sub

	flagTombstone = 1 << 0 // versions
	flagLease     = 1 << 1 // versions
	flagDelete    = 1 << 0 // log
	flagPrev      = 1 << 1 // log
)

// versionOverhead is what a version is charged in the logical size beside its value and twice its key (its own row and
// its row in the log or in the table of live keys).
const versionOverhead = 64

func versionBytes(key []byte, valueLen int) int64 {
	return int64(2*len(key) + valueLen + versionOverhead)
}

// corrupt returns the error for a row that does not decode.
func corrupt(table byte, what string) error {
	return fmt.Errorf("mvcc: table %c: %s: %w", table, what, storage.ErrCorrupt)
}

// record is a version without its key.
type record struct {
	mod, create, version, lease int64
	sub                         uint32
	live                        bool // false: a tombstone, or nothing at all
	hasValue                    bool // value is set
	valueLen                    int
	value                       []byte
}

func (r *record) kv(key []byte) KV {
	return KV{Key: key, Value: r.value, CreateRevision: r.create, ModRevision: r.mod, Version: r.version, Lease: r.lease}
}

// Split cuts the revision off the key of a version row and leaves every other key whole; see storage.Options.
func Split(key []byte) int {
	if len(key) < 2 || key[1] != tableVersions || key[0] == 0 {
		return len(key)
	}
	for i := 2; ; {
		j := bytes.IndexByte(key[i:], 0)
		if j < 0 || i+j+1 >= len(key) {
			return len(key)
		}
		if key[i+j+1] == 1 {
			return i + j + 2
		}
		i += j + 2
	}
}

// appendPrefix appends the prefix that all versions of key share.
func appendPrefix(dst []byte, id SpaceID, key []byte) []byte {
	dst = append(dst, byte(id), tableVersions)
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 {
			return append(append(dst, key...), 0, 1)
		}
		dst = append(append(dst, key[:i+1]...), 0xff)
		key = key[i+1:]
	}
}

func versionKeyLen(key []byte) int { return 2 + len(key) + bytes.Count(key, []byte{0}) + 2 + suffixLen }

// appendVersionKey appends the key of one version.
func appendVersionKey(dst []byte, id SpaceID, key []byte, rev int64, sub uint32) []byte {
	dst = appendPrefix(dst, id, key)
	dst = binary.BigEndian.AppendUint64(dst, ^uint64(rev))
	return binary.BigEndian.AppendUint32(dst, ^sub)
}

// appendNewestKey appends a key that sorts just before the newest version of key at revision rev.
func appendNewestKey(dst []byte, id SpaceID, key []byte, rev int64) []byte {
	return appendVersionKey(dst, id, key, rev, ^uint32(0))
}

const minVersionKeyLen = 2 + 2 + suffixLen

// versionStamp returns the revision and sub of a version row's key, and 0 for a key too short to have any, which
// decodeVersion refuses: rows may come from a snapshot that a peer sent.
func versionStamp(row []byte) (rev int64, sub uint32) {
	if len(row) < minVersionKeyLen {
		return 0, 0
	}
	s := row[len(row)-suffixLen:]
	return int64(^binary.BigEndian.Uint64(s)), ^binary.BigEndian.Uint32(s[8:])
}

// userKey appends the key that a version row belongs to.
func userKey(dst, row []byte) []byte {
	esc := row[2 : len(row)-suffixLen-2]
	for {
		i := bytes.IndexByte(esc, 0)
		if i < 0 {
			return append(dst, esc...)
		}
		dst = append(dst, esc[:i+1]...)
		esc = esc[min(i+2, len(esc)):]
	}
}

// versionValueLen and appendVersionValue: flags, then uv(mod-create) uv(version) [lease(8)] value; a tombstone is flags
// only.
func versionValueLen(r *record) int {
	n := 1 + uvarintLen(uint64(r.mod-r.create)) + uvarintLen(uint64(r.version)) + len(r.value)
	if r.lease != 0 {
		n += 8
	}
	return n
}

func appendVersionValue(dst []byte, r *record) []byte {
	flags := byte(0)
	if r.lease != 0 {
		flags |= flagLease
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(r.mod-r.create))
	dst = binary.AppendUvarint(dst, uint64(r.version))
	if r.lease != 0 {
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.lease))
	}
	return append(dst, r.value...)
}

// decodeVersion reads a version row into r. r.value aliases the row.
func decodeVersion(r *record, row, value []byte) error {
	if len(row) < minVersionKeyLen || len(value) == 0 {
		return corrupt(tableVersions, "short row")
	}
	r.mod, r.sub = versionStamp(row)
	if value[0]&flagTombstone != 0 {
		*r = record{mod: r.mod, sub: r.sub}
		return nil
	}
	flags, value := value[0], value[1:]
	age, n := binary.Uvarint(value)
	if n <= 0 {
		return corrupt(tableVersions, "creation")
	}
	value = value[n:]
	version, n := binary.Uvarint(value)
	if n <= 0 {
		return corrupt(tableVersions, "version")
	}
	value = value[n:]
	r.lease = 0
	if flags&flagLease != 0 {
		if len(value) < 8 {
			return corrupt(tableVersions, "lease")
		}
		r.lease = int64(binary.BigEndian.Uint64(value))
		value = value[8:]
	}
	r.create, r.version, r.live = r.mod-int64(age), int64(version), true
	r.value, r.valueLen, r.hasValue = value, len(value), true
	return nil
}

// appendStampKey appends the key of a row of the log or of the table of births and deaths.
func appendStampKey(dst []byte, id SpaceID, table byte, rev int64, sub uint32) []byte {
	dst = append(dst, byte(id), table)
	dst = binary.BigEndian.AppendUint64(dst, uint64(rev))
	return binary.BigEndian.AppendUint32(dst, sub)
}

// rowStamp returns the revision and sub of such a row.
func rowStamp(row []byte) (rev int64, sub uint32) {
	return int64(binary.BigEndian.Uint64(row[2:])), binary.BigEndian.Uint32(row[10:])
}

// logRow is a row of the revision log: flags uv(garbage) [uv(revision-prevRev) uv(prevSub)] key.
type logRow struct {
	rev     int64
	sub     uint32
	deleted bool
	hasPrev bool
	prevRev int64
	prevSub uint32
	garbage int64 // bytes of all versions that this row and the rows before it made obsolete
	key     []byte
}

func (l *logRow) valueLen() int {
	n := 1 + uvarintLen(uint64(l.garbage)) + len(l.key)
	if l.hasPrev {
		n += uvarintLen(uint64(l.rev-l.prevRev)) + uvarintLen(uint64(l.prevSub))
	}
	return n
}

func (l *logRow) appendValue(dst []byte) []byte {
	flags := byte(0)
	if l.deleted {
		flags |= flagDelete
	}
	if l.hasPrev {
		flags |= flagPrev
	}
	dst = binary.AppendUvarint(append(dst, flags), uint64(l.garbage))
	if l.hasPrev {
		dst = binary.AppendUvarint(dst, uint64(l.rev-l.prevRev))
		dst = binary.AppendUvarint(dst, uint64(l.prevSub))
	}
	return append(dst, l.key...)
}

// decode reads a log row. l.key aliases value.
func (l *logRow) decode(row, value []byte) error {
	if len(row) != 2+stampLen || len(value) < 2 {
		return corrupt(tableLog, "short row")
	}
	*l = logRow{deleted: value[0]&flagDelete != 0, hasPrev: value[0]&flagPrev != 0}
	l.rev, l.sub = rowStamp(row)
	garbage, n := binary.Uvarint(value[1:])
	if n <= 0 {
		return corrupt(tableLog, "garbage")
	}
	value = value[1+n:]
	l.garbage = int64(garbage)
	if l.hasPrev {
		age, n := binary.Uvarint(value)
		if n <= 0 {
			return corrupt(tableLog, "previous revision")
		}
		sub, m := binary.Uvarint(value[n:])
		if m <= 0 {
			return corrupt(tableLog, "previous sub")
		}
		l.prevRev, l.prevSub = l.rev-int64(age), uint32(sub)
		value = value[n+m:]
	}
	l.key = value
	return nil
}

// birthRow is a row of table x: one byte (1 created, 0 deleted), uv(ordinal), key. The ordinal numbers the rows of the
// space from 1, so that the distance between two rows is known without walking.
type birthRow struct {
	created bool
	ordinal int64
	key     []byte
}

func (b *birthRow) valueLen() int { return 1 + uvarintLen(uint64(b.ordinal)) + len(b.key) }

func (b *birthRow) appendValue(dst []byte) []byte {
	kind := byte(0)
	if b.created {
		kind = 1
	}
	return append(binary.AppendUvarint(append(dst, kind), uint64(b.ordinal)), b.key...)
}

// decode reads such a row. b.key aliases value.
func (b *birthRow) decode(value []byte) error {
	if len(value) < 2 {
		return corrupt(tableBirths, "short row")
	}
	ordinal, n := binary.Uvarint(value[1:])
	if n <= 0 {
		return corrupt(tableBirths, "ordinal")
	}
	b.created, b.ordinal, b.key = value[0] == 1, int64(ordinal), value[1+n:]
	return nil
}

func appendLiveKey(dst []byte, id SpaceID, key []byte) []byte {
	return append(append(dst, byte(id), tableLive), key...)
}

// appendLeaseID appends a lease id so that ids sort as signed numbers.
func appendLeaseID(dst []byte, lease int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(lease)^(1<<63))
}

func appendLeaseKey(dst []byte, id SpaceID, lease int64) []byte {
	return appendLeaseID(append(dst, byte(id), tableLeases), lease)
}

func appendAttachedKey(dst []byte, id SpaceID, lease int64, key []byte) []byte {
	return append(appendLeaseID(append(dst, byte(id), tableAttached), lease), key...)
}

// tableSpan returns the span of a whole table.
func tableSpan(id SpaceID, table byte) storage.Span {
	return storage.Span{Start: []byte{byte(id), table}, End: []byte{byte(id), table + 1}}
}

// inTable reports whether row is of the table.
func inTable(row []byte, id SpaceID, table byte) bool {
	return len(row) >= 2 && row[0] == byte(id) && row[1] == table
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}
