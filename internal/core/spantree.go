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
	bells       bellList
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

func (t *spanTree) add(w *watcher) {
	t.root = t.reach(t.root, w.span, func(n *spanNode) { n.watchers = append(n.watchers, w) })
}

func (t *spanTree) hang(b *bell) {
	t.root = t.reach(t.root, b.span, func(n *spanNode) { n.bells.add(b) })
}

// reach calls put on the node of span, which it makes if there is none.
func (t *spanTree) reach(n *spanNode, span storage.Span, put func(*spanNode)) *spanNode {
	if n == nil {
		t.counter++
		n = &spanNode{span: span, max: span.End, priority: mix(t.counter)}
		put(n)
		return n
	}
	switch c := compareSpans(span, n.span); {
	case c == 0:
		put(n)
		return n
	case c < 0:
		n.left = t.reach(n.left, span, put)
		if n.left.priority > n.priority {
			return rotateRight(n)
		}
	default:
		n.right = t.reach(n.right, span, put)
		if n.right.priority > n.priority {
			return rotateLeft(n)
		}
	}
	n.update()
	return n
}

func (t *spanTree) remove(w *watcher) {
	t.root = t.cut(t.root, w.span, func(n *spanNode) { n.watchers = removeWatcher(n.watchers, w) })
}

func (t *spanTree) unhang(b *bell) {
	t.root = t.cut(t.root, b.span, func(n *spanNode) { n.bells.remove(b) })
}

// cut calls take on the node of span and removes the node if nobody is left there.
func (t *spanTree) cut(n *spanNode, span storage.Span, take func(*spanNode)) *spanNode {
	if n == nil {
		return nil
	}
	switch c := compareSpans(span, n.span); {
	case c < 0:
		n.left = t.cut(n.left, span, take)
	case c > 0:
		n.right = t.cut(n.right, span, take)
	default:
		take(n)
		if len(n.watchers) == 0 && n.bells.head == nil {
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

// stab calls visit for every node whose span contains key.
func (t *spanTree) stab(key []byte, visit func(*spanNode)) { t.root.stab(key, visit) }

func (n *spanNode) stab(key []byte, visit func(*spanNode)) {
	for n != nil && (n.max == nil || bytes.Compare(key, n.max) < 0) {
		n.left.stab(key, visit)
		if bytes.Compare(key, n.span.Start) < 0 {
			return
		}
		if n.span.Contains(key) {
			visit(n)
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
