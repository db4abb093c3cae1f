package mvcc

import (
	"bytes"

	"holdfast.dev/holdfast/internal/storage"
)

// liveChange says that a batch created or deleted a key, all its requests taken together.
type liveChange struct {
	key     []byte
	created bool
}

// nodeChange is what a batch did to one node, or a row that it adds or removes.
type nodeChange struct {
	node
	removed bool
}

// delta is a change below a node that one of a higher level covers too.
type delta struct {
	at              []byte // the key, or the bound of the changed node
	last            bool   // instead of at: the node without a bound
	count, children int64
}

// indexUpdate applies the changes of one batch to the counted index, level by level from below. The engine's rows are
// those before the batch; below holds what the batch changed on the level below, in order.
type indexUpdate struct {
	w      *Writer
	x      *indexReader
	limits indexLimits
	root   indexRoot
	live   []liveChange
	below  []nodeChange
}

// updateIndex counts the changes, which are sorted by key.
func (w *Writer) updateIndex(changed []liveChange) error {
	it, err := w.walkIter()
	if err != nil {
		return err
	}
	it.SetBounds(storage.Span{})
	w.index.id, w.index.it, w.index.root = w.s.id, it, w.base.root
	u := indexUpdate{w: w, x: &w.index, limits: w.s.limits, root: w.base.root, live: changed}

	deltas := make([]delta, len(changed))
	for i, c := range changed {
		deltas[i] = delta{at: c.key, count: -1, children: -1}
		if c.created {
			deltas[i].count, deltas[i].children = 1, 1
		}
	}
	for level := 0; level < u.root.height; level++ {
		if deltas, err = u.updateLevel(level, deltas); err != nil {
			return err
		}
	}
	for _, d := range deltas {
		u.root.count += d.count
		u.root.children += d.children
	}
	if u.root.count == 0 {
		u.clear()
	} else if err := u.grow(); err != nil {
		return err
	}
	w.m.root = u.root
	return nil
}

// updateLevel applies deltas, in order, to the nodes of a level and returns what that means for the level above.
func (u *indexUpdate) updateLevel(level int, deltas []delta) (up []delta, err error) {
	var changes []nodeChange
	for len(deltas) > 0 {
		n, err := u.covering(level, &deltas[0])
		if err != nil {
			return nil, err
		}
		d := delta{at: n.upper.key, last: n.upper.last}
		for len(deltas) > 0 && covers(level, n.upper, &deltas[0]) {
			d.count += deltas[0].count
			n.children += deltas[0].children
			deltas = deltas[1:]
		}
		n.count += d.count
		switch {
		case n.count < 0 || n.children < 0:
			return nil, corrupt(tableIndex, "count below zero")
		case n.count == 0:
			removed, err := u.remove(level, n.upper)
			if err != nil {
				return nil, err
			}
			if removed {
				d.children = -1
			} else {
				u.put(level, n)
			}
			changes = append(changes, nodeChange{node: n, removed: removed})
		case n.children > u.limits.of(level):
			nodes, err := u.split(level, n)
			if err != nil {
				return nil, err
			}
			for _, part := range nodes {
				u.put(level, part)
				changes = append(changes, nodeChange{node: part})
			}
			d.children = int64(len(nodes) - 1)
		default:
			u.put(level, n)
			changes = append(changes, nodeChange{node: n})
		}
		up = append(up, d)
	}
	u.below = changes
	return up, nil
}

// covers reports whether the node with bound b covers d, given that no node before it does. At level 0 a delta is at a key;
// higher up it is at a bound of the level below, which is the highest position that its node covers.
func covers(level int, b bound, d *delta) bool {
	switch {
	case b.last:
		return true
	case d.last:
		return false
	case level == 0:
		return bytes.Compare(d.at, b.key) < 0
	}
	return bytes.Compare(d.at, b.key) <= 0
}

// covering reads the node that covers d.
func (u *indexUpdate) covering(level int, d *delta) (node, error) {
	x := u.x
	switch {
	case d.last:
		x.buf = appendNodeKey(x.buf[:0], x.id, level, bound{last: true})
	case level == 0: // a key: the first bound above it
		x.buf = appendAboveKey(x.buf[:0], x.id, level, d.at)
	default: // a bound of the level below: the first bound at or above it
		x.buf = appendNodeKey(x.buf[:0], x.id, level, bound{key: d.at})
	}
	if !x.it.SeekGE(x.buf) || !x.onLevel(level) {
		return node{}, x.broken()
	}
	var n node
	if err := n.decode(x.it.Key(), x.it.Value()); err != nil {
		return n, err
	}
	n.upper.key = append([]byte(nil), n.upper.key...)
	return n, nil
}

func (u *indexUpdate) put(level int, n node) {
	w := u.w
	w.seek = n.appendValue(w.seek[:0])
	u.x.buf = appendNodeKey(u.x.buf[:0], u.x.id, level, n.upper)
	w.b.Set(u.x.buf, w.seek)
}

func (u *indexUpdate) drop(level int, b bound) {
	u.x.buf = appendNodeKey(u.x.buf[:0], u.x.id, level, b)
	u.w.b.Delete(u.x.buf)
}

// remove drops an empty node and the empty nodes below it that have the same bound. The node after it takes its keys
// over. A node whose bound is one of the level above has to stay until that node is empty too.
func (u *indexUpdate) remove(level int, b bound) (bool, error) {
	if b.last {
		return false, nil
	}
	if level+1 < u.root.height {
		x := u.x
		x.buf = appendNodeKey(x.buf[:0], x.id, level+1, b)
		if x.it.SeekPrefixGE(x.buf) {
			return false, nil
		}
		if err := x.it.Err(); err != nil {
			return false, err
		}
	}
	for l := level; l >= 0; l-- {
		u.drop(l, b)
	}
	return true, nil
}

// split divides the rows below a node that has too many among new nodes. The last one keeps the bound.
func (u *indexUpdate) split(level int, n node) ([]node, error) {
	var parts []child
	lower, has, err := u.x.lowerBound(level, n.upper)
	if err != nil {
		return nil, err
	}
	if level == 0 {
		parts, err = u.liveKeys(lower, n.upper)
	} else {
		parts, err = u.nodesBelow(level-1, lower, has, n.upper)
	}
	if err != nil {
		return nil, err
	}
	return partition(u.limits.of(level), level, parts, n)
}

// child is a row below a node to split: a live key, or a node of the level below.
type child struct {
	key   []byte // the live key, or the node's bound
	count int64
}

// partition makes nodes of about half the allowed size.
func partition(limit int64, level int, parts []child, n node) ([]node, error) {
	total := int64(0)
	for _, c := range parts {
		total += c.count
	}
	if total != n.count || int64(len(parts)) != n.children {
		return nil, corrupt(tableIndex, "count does not match the rows")
	}
	groups := (len(parts)*2 + int(limit) - 1) / int(limit)
	nodes := make([]node, 0, groups)
	for g := range groups {
		lo, hi := g*len(parts)/groups, (g+1)*len(parts)/groups
		part := node{upper: n.upper, children: int64(hi - lo)}
		for _, c := range parts[lo:hi] {
			part.count += c.count
		}
		if g < groups-1 {
			part.upper = bound{key: parts[hi-1].key}
			if level == 0 {
				part.upper.key = parts[hi].key
			}
		}
		nodes = append(nodes, part)
	}
	return nodes, nil
}

// liveKeys lists the live keys from lower up to upper as they are after the batch.
func (u *indexUpdate) liveKeys(lower []byte, upper bound) ([]child, error) {
	x := u.x
	changed := u.live
	for len(changed) > 0 && bytes.Compare(changed[0].key, lower) < 0 {
		changed = changed[1:]
	}
	var parts []child
	var keys arena
	x.buf = appendLiveKey(x.buf[:0], x.id, lower)
	ok := x.it.SeekGE(x.buf)
	for {
		var key []byte // the engine's next
		if ok {
			if row := x.it.Key(); inTable(row, x.id, tableLive) && upper.above(row[2:]) {
				key = row[2:]
			} else {
				ok = false
			}
		}
		for len(changed) > 0 && upper.above(changed[0].key) && (!ok || bytes.Compare(changed[0].key, key) < 0) {
			if changed[0].created {
				parts = append(parts, child{changed[0].key, 1})
			}
			changed = changed[1:]
		}
		if !ok {
			return parts, x.it.Err()
		}
		if len(changed) > 0 && bytes.Equal(changed[0].key, key) { // it was there before, so it was deleted
			changed = changed[1:]
		} else {
			parts = append(parts, child{keys.copy(key), 1})
		}
		ok = x.it.NextPrefix()
	}
}

// nodesBelow lists the nodes of a level above lower, up to and including upper, as they are after the batch.
func (u *indexUpdate) nodesBelow(level int, lower []byte, has bool, upper bound) ([]child, error) {
	x := u.x
	inside := func(b bound) bool {
		return upper.last || (!b.last && bytes.Compare(b.key, upper.key) <= 0)
	}
	changed := u.below
	for len(changed) > 0 && has && !changed[0].upper.last && bytes.Compare(changed[0].upper.key, lower) <= 0 {
		changed = changed[1:]
	}
	var parts []child
	ok := x.seekNode(level, lower, has)
	for {
		var n node // the engine's next
		if ok = ok && x.onLevel(level); ok {
			if err := n.decode(x.it.Key(), x.it.Value()); err != nil {
				return nil, err
			}
			ok = inside(n.upper)
		}
		same := false
		for len(changed) > 0 && inside(changed[0].upper) {
			c := 1
			if ok {
				c = compareBounds(n.upper, changed[0].upper)
			}
			if ok && c < 0 {
				break
			}
			if !changed[0].removed {
				parts = append(parts, child{changed[0].upper.key, changed[0].count})
			}
			changed = changed[1:]
			if ok && c == 0 {
				same = true
				break
			}
		}
		if !ok {
			return parts, x.it.Err()
		}
		if !same {
			parts = append(parts, child{append([]byte(nil), n.upper.key...), n.count})
		}
		ok = x.it.NextPrefix()
	}
}

func compareBounds(a, b bound) int {
	switch {
	case a.last && b.last:
		return 0
	case a.last:
		return 1
	case b.last:
		return -1
	}
	return bytes.Compare(a.key, b.key)
}

// grow adds levels until the root has few enough children.
func (u *indexUpdate) grow() error {
	for u.root.children > u.limits.of(u.root.height) {
		level := u.root.height
		n := node{upper: bound{last: true}, count: u.root.count, children: u.root.children}
		var parts []child
		var err error
		if level == 0 {
			parts, err = u.liveKeys(nil, n.upper)
		} else {
			parts, err = u.nodesBelow(level-1, nil, false, n.upper)
		}
		if err != nil {
			return err
		}
		nodes, err := partition(u.limits.of(level), level, parts, n)
		if err != nil {
			return err
		}
		changes := make([]nodeChange, 0, len(nodes))
		for _, part := range nodes {
			u.put(level, part)
			changes = append(changes, nodeChange{node: part})
		}
		u.below = changes
		u.root.children = int64(len(nodes))
		u.root.height++
	}
	return nil
}

// clear drops the nodes without a bound, the only ones left of an empty index.
func (u *indexUpdate) clear() {
	for level := range u.root.height {
		u.drop(level, bound{last: true})
	}
	u.root = indexRoot{}
}
