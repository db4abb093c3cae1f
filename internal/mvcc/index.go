package mvcc

import (
	"bytes"
	"encoding/binary"

	"holdfast.dev/holdfast/internal/storage"
)

// The counted index is a tree over table k. A node is named by its upper bound: it covers the keys from the bound of the
// node before it up to its own, which it excludes; the last node of a level has no bound. Level 0 counts rows of k, level
// n+1 counts nodes of level n. Every bound of a level is a bound of the level below. The nodes of the highest level are
// the children of the root, which lives in the meta row; with few keys there is no level at all.
//
// Naming nodes by their upper bound makes the node of a key one forward seek. Rows of the index are rewritten often, so
// they and the rows of k are walked by NextPrefix, which does not step over the older versions of a row.
const (
	maxLeaf   = 512 // keys below a node of level 0
	maxFanout = 256 // nodes below a node of a higher level
)

// indexLimits are maxLeaf and maxFanout outside of tests. They decide where nodes are split, so they are the same on
// every member.
type indexLimits struct{ leaf, fanout int64 }

// of returns how many children a node of the level may have.
func (l indexLimits) of(level int) int64 {
	if level == 0 {
		return l.leaf
	}
	return l.fanout
}

// indexRoot is the root of the counted index.
type indexRoot struct {
	count    int64 // live keys
	children int64 // nodes of the highest level, or live keys if there is no level
	height   int   // levels
}

// bound is the upper bound of a node: a key, or nothing.
type bound struct {
	key  []byte
	last bool
}

// appendNodeKey appends the key of a node's row.
func appendNodeKey(dst []byte, id SpaceID, level int, b bound) []byte {
	dst = append(dst, byte(id), tableIndex, byte(level))
	if b.last {
		return append(dst, 1)
	}
	return append(append(dst, 0), b.key...)
}

// appendAboveKey appends a key that sorts after the node whose bound is key and before every greater bound.
func appendAboveKey(dst []byte, id SpaceID, level int, key []byte) []byte {
	return append(append(append(dst, byte(id), tableIndex, byte(level), 0), key...), 0)
}

// node is a row of the index.
type node struct {
	upper    bound
	count    int64 // live keys below it
	children int64 // rows directly below it
}

func (n *node) appendValue(dst []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(n.count)), uint64(n.children))
}

// above reports whether key < b.
func (b bound) above(key []byte) bool { return b.last || bytes.Compare(key, b.key) < 0 }

// decode reads a node row. n.upper.key aliases row.
func (n *node) decode(row, value []byte) error {
	if len(row) < 4 {
		return corrupt(tableIndex, "short key")
	}
	n.upper = bound{key: row[4:], last: row[3] == 1}
	count, i := binary.Uvarint(value)
	if i <= 0 {
		return corrupt(tableIndex, "count")
	}
	children, j := binary.Uvarint(value[i:])
	if j <= 0 {
		return corrupt(tableIndex, "children")
	}
	n.count, n.children = int64(count), int64(children)
	return nil
}

// indexReader counts live keys in the state of one iterator, which must be free to move over the whole space.
type indexReader struct {
	id   SpaceID
	it   *storage.Iterator
	root indexRoot
	buf  []byte
	low  []byte
}

// count returns the number of live keys in span.
func (x *indexReader) count(span storage.Span) (int64, error) {
	if span.Empty() || x.root.count == 0 {
		return 0, nil
	}
	end := x.root.count
	if span.End != nil {
		var err error
		if end, err = x.rank(span.End); err != nil {
			return 0, err
		}
	}
	if len(span.Start) == 0 {
		return end, nil
	}
	start, err := x.rank(span.Start)
	return end - start, err
}

// rank returns the number of live keys below key.
func (x *indexReader) rank(key []byte) (int64, error) {
	total, lower, has := int64(0), x.low[:0], false
	for level := x.root.height - 1; level >= 0; level-- {
		ok := x.seekNode(level, lower, has)
		for {
			if !ok || !x.onLevel(level) {
				return 0, x.broken()
			}
			var n node
			if err := n.decode(x.it.Key(), x.it.Value()); err != nil {
				return 0, err
			}
			if n.upper.above(key) {
				break
			}
			total += n.count
			lower, has = append(lower[:0], n.upper.key...), true
			ok = x.it.NextPrefix()
		}
	}
	x.low = lower
	x.buf = appendLiveKey(x.buf[:0], x.id, lower)
	for ok := x.it.SeekGE(x.buf); ok; ok = x.it.NextPrefix() {
		row := x.it.Key()
		if !inTable(row, x.id, tableLive) || bytes.Compare(row[2:], key) >= 0 {
			break
		}
		total++
	}
	return total, x.it.Err()
}

// seekNode moves to the first node of the level whose bound is above lower, or to the first at all.
func (x *indexReader) seekNode(level int, lower []byte, has bool) bool {
	if has {
		x.buf = appendAboveKey(x.buf[:0], x.id, level, lower)
	} else {
		x.buf = append(x.buf[:0], byte(x.id), tableIndex, byte(level))
	}
	return x.it.SeekGE(x.buf)
}

func (x *indexReader) onLevel(level int) bool {
	row := x.it.Key()
	return inTable(row, x.id, tableIndex) && len(row) > 3 && int(row[2]) == level
}

// broken returns the iterator's error, or says that a node is missing.
func (x *indexReader) broken() error {
	if err := x.it.Err(); err != nil {
		return err
	}
	return corrupt(tableIndex, "node missing")
}

// lowerBound returns the bound of the node before the one with bound upper, from the level down; none if it is the first.
// The result is freshly allocated.
func (x *indexReader) lowerBound(level int, upper bound) (lower []byte, has bool, err error) {
	for l := x.root.height - 1; l >= level; l-- {
		ok := x.seekNode(l, lower, has)
		for {
			if !ok || !x.onLevel(l) {
				return nil, false, x.broken()
			}
			var n node
			if err := n.decode(x.it.Key(), x.it.Value()); err != nil {
				return nil, false, err
			}
			if n.upper.last || (!upper.last && bytes.Compare(n.upper.key, upper.key) >= 0) {
				break
			}
			lower, has = append([]byte(nil), n.upper.key...), true
			ok = x.it.NextPrefix()
		}
	}
	return lower, has, nil
}

// countAt returns the number of live keys in span at revision rev, which must be readable, given the state's meta row: the
// count now, less what was created and more what was deleted since.
func (x *indexReader) countAt(span storage.Span, m *meta, rev int64) (int64, error) {
	now, err := x.count(span)
	if err != nil || rev >= m.revision {
		return now, err
	}
	x.buf = appendStampKey(x.buf[:0], x.id, tableBirths, rev+1, 0)
	first := true
	for ok := x.it.SeekGE(x.buf); ok && inTable(x.it.Key(), x.id, tableBirths); ok = x.it.Next() {
		var b birthRow
		if err := b.decode(x.it.Value()); err != nil {
			return 0, err
		}
		if first && m.ordinal-b.ordinal > birthsPerKey*(now+birthsSlack) {
			return x.countByWalk(span, rev)
		}
		first = false
		switch {
		case !span.Contains(b.key):
		case b.created:
			now--
		default:
			now++
		}
	}
	return now, x.it.Err()
}

// Walking the versions of a key costs about as much as this many rows of table x.
const (
	birthsPerKey = 8
	birthsSlack  = 256
)

// countByWalk counts by looking at every key of span: for a narrow span in a space that changed much since.
func (x *indexReader) countByWalk(span storage.Span, rev int64) (int64, error) {
	defer x.it.SetBounds(storage.Span{})
	sc := scanner{id: x.id, it: x.it, rev: rev, keysOnly: true}
	sc.start(span)
	n := int64(0)
	for sc.next() {
		n++
	}
	return n, sc.err
}
