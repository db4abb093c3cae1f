package mvcc

import (
	"slices"
	"testing"

	"holdfast.dev/holdfast/internal/storage"
)

// checkIndex walks the counted index and checks every invariant of it.
func checkIndex(t *testing.T, x *instance) {
	t.Helper()
	it, err := x.e.NewIter(storage.Span{})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	m, err := readMeta(it, x.s.id)
	if err != nil {
		t.Fatal(err)
	}
	var below []child
	it.SetBounds(tableSpan(x.s.id, tableLive))
	for ok := it.First(); ok; ok = it.Next() {
		below = append(below, child{slices.Clone(it.Key()[2:]), 1})
	}
	if int64(len(below)) != m.root.count {
		t.Errorf("%d live keys, the root says %d", len(below), m.root.count)
	}
	levels := 0
	for level := 0; ; level++ {
		span := tableSpan(x.s.id, tableIndex)
		span.Start = append(span.Start, byte(level))
		span.End = append(tableSpan(x.s.id, tableIndex).Start, byte(level+1))
		it.SetBounds(span)
		var nodes []child
		at := 0
		for ok := it.First(); ok; ok = it.Next() {
			var n node
			if err := n.decode(it.Key(), it.Value()); err != nil {
				t.Fatal(err)
			}
			count, children, bounded := int64(0), int64(0), false
			for at < len(below) {
				c := below[at]
				if level == 0 && !n.upper.above(c.key) {
					break
				}
				if level > 0 && !n.upper.last && (c.key == nil || string(c.key) > string(n.upper.key)) {
					break
				}
				count, children = count+c.count, children+1
				bounded = c.key == nil || string(c.key) == string(n.upper.key)
				at++
			}
			if count != n.count || children != n.children {
				t.Errorf("level %d node %q: %d keys in %d rows, it says %d in %d", level, n.upper.key, count, children, n.count, n.children)
			}
			if children > x.s.limits.of(level) {
				t.Errorf("level %d node %q has %d rows", level, n.upper.key, children)
			}
			if level > 0 && !bounded {
				t.Errorf("level %d node %q: its bound is none of the level below", level, n.upper.key)
			}
			c := child{slices.Clone(n.upper.key), n.count}
			if n.upper.last {
				c.key = nil
			}
			nodes = append(nodes, c)
		}
		if len(nodes) == 0 {
			break
		}
		if at != len(below) {
			t.Errorf("level %d leaves out %d rows", level, len(below)-at)
		}
		below, levels = nodes, levels+1
	}
	if levels != m.root.height || int64(len(below)) != m.root.children {
		t.Errorf("%d levels, %d rows on top: the root says %+v", levels, len(below), m.root)
	}
}
