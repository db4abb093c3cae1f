package core

import (
	"bytes"
	"slices"

	"holdfast.dev/holdfast/internal/storage"
)

// spanTree holds watchers by the span they watch and finds those whose span contains a key, in time that depends on how
// many match and on the logarithm of how many spans there are. It is a treap ordered by span, each node knowing the
// highest end below it; watchers of the same span share a node. Priorities come from a counter, so that the same calls
// build the same tree.
type spanTree struct {
	root    *spanNode
	counter uint64
}

type spanNode struct {
	span        storage.Span
	max         []byte // highest end in this subtree; nil: no bound
	priority    uint64
	left, right *spanNode
	watchers    []*watcher
}

// compareSpans orders by start, then by end, no end being the highest.
func compareSpans(a, b storage.Span) int {
	if c := bytes.Compare(a.Start, b.Start); c != 0 {
		return c
	}
	return compareEnds(a.End, b.End)
}

func compareEnds(a, b []byte) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare(a, b)
}

// mix is splitmix64's output function: it turns a counter into well-spread priorities.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (n *spanNode) update() {
	n.max = n.span.End
	for _, child := range [...]*spanNode{n.left, n.right} {
		if child != nil && compareEnds(child.max, n.max) > 0 {
			n.max = child.max
		}
	}
}

func rotateRight(n *spanNode) *spanNode {
	l := n.left
	n.left, l.right = l.right, n
	n.update()
	l.update()
	return l
}

func rotateLeft(n *spanNode) *spanNode {
	r := n.right
	n.right, r.left = r.left, n
	n.update()
	r.update()
	return r
}

func (t *spanTree) add(w *watcher) { t.root = t.insert(t.root, w) }

func (t *spanTree) insert(n *spanNode, w *watcher) *spanNode {
	if n == nil {
		t.counter++
		return &spanNode{span: w.span, max: w.span.End, priority: mix(t.counter), watchers: []*watcher{w}}
	}
	switch c := compareSpans(w.span, n.span); {
	case c == 0:
		n.watchers = append(n.watchers, w)
		return n
	case c < 0:
		n.left = t.insert(n.left, w)
		if n.left.priority > n.priority {
			return rotateRight(n)
		}
	default:
		n.right = t.insert(n.right, w)
		if n.right.priority > n.priority {
			return rotateLeft(n)
		}
	}
	n.update()
	return n
}

func (t *spanTree) remove(w *watcher) { t.root = t.cut(t.root, w) }

func (t *spanTree) cut(n *spanNode, w *watcher) *spanNode {
	if n == nil {
		return nil
	}
	switch c := compareSpans(w.span, n.span); {
	case c < 0:
		n.left = t.cut(n.left, w)
	case c > 0:
		n.right = t.cut(n.right, w)
	default:
		n.watchers = removeWatcher(n.watchers, w)
		if len(n.watchers) == 0 {
			return merge(n.left, n.right)
		}
		return n
	}
	n.update()
	return n
}

// merge joins two subtrees, all of a being before all of b.
func merge(a, b *spanNode) *spanNode {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a.right = merge(a.right, b)
		a.update()
		return a
	}
	b.left = merge(a, b.left)
	b.update()
	return b
}

// stab calls visit for every watcher whose span contains key.
func (t *spanTree) stab(key []byte, visit func(*watcher)) { t.root.stab(key, visit) }

func (n *spanNode) stab(key []byte, visit func(*watcher)) {
	for n != nil && (n.max == nil || bytes.Compare(key, n.max) < 0) {
		n.left.stab(key, visit)
		if bytes.Compare(key, n.span.Start) < 0 {
			return
		}
		if n.span.Contains(key) {
			for _, w := range n.watchers {
				visit(w)
			}
		}
		n = n.right
	}
}

func removeWatcher(ws []*watcher, w *watcher) []*watcher {
	i := slices.Index(ws, w)
	if i < 0 {
		return ws
	}
	return slices.Delete(ws, i, i+1)
}
