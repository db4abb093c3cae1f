package core

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// TestDispatchCostsWhatMatches: with 10,000 unrelated watches a put looks at few of them.
func TestDispatchCostsWhatMatches(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.stream()
	for i := range 5000 {
		s.mustWatch(t, WatchRequest{Span: span(fmt.Sprintf("key/%05d", i), "")})
		s.mustWatch(t, WatchRequest{Span: span(fmt.Sprintf("dir/%05d/", i), fmt.Sprintf("dir/%05d0", i))})
	}
	h := m.hubs[mvcc.SpaceEtcd]
	depth := 0
	for _, key := range []string{"dir/02500/x", "dir/00000/a", "dir/04999/z", "nothing"} {
		visited := 0
		for n := h.spans.tree.root; n != nil; visited++ {
			if storage.KeySpan([]byte(key)).Start != nil && string(n.span.Start) <= key {
				n = n.right
			} else {
				n = n.left
			}
		}
		depth = max(depth, visited)
	}
	if depth > 60 {
		t.Fatalf("the tree is %d deep", depth)
	}
	m.put("dir/02500/x", "1")
	m.put("key/00077", "1")
	s.wantEvents(t, 2*2500+1, "+dir/02500/x@2")
	s.wantEvents(t, 2*77, "+key/00077@3")
	s.nothing(t)
}

func BenchmarkDispatch10kUnrelated(b *testing.B) {
	m := start(b, nil)
	s := m.stream()
	for i := range 5000 {
		s.mustWatch(b, WatchRequest{Span: span(fmt.Sprintf("key/%05d", i), "")})
		s.mustWatch(b, WatchRequest{Span: span(fmt.Sprintf("dir/%05d/", i), fmt.Sprintf("dir/%05d0", i))})
	}
	h := m.hubs[mvcc.SpaceEtcd]
	events := []mvcc.RevisionEvents{{Revision: 5, Events: []mvcc.Event{{KV: mvcc.KV{Key: []byte("other/x"), ModRevision: 5}}}}}
	b.ReportAllocs()
	for b.Loop() {
		h.dispatch(events, 5)
	}
}

func TestSpanTreeAgainstScan(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	var tree spanTree
	var all []*watcher
	word := func() []byte { return fmt.Appendf(nil, "%03d", r.IntN(60)) }
	for step := range 4000 {
		switch {
		case r.IntN(3) > 0 || len(all) == 0:
			w := &watcher{id: int64(step), span: storage.Span{Start: word(), End: word()}}
			if r.IntN(10) == 0 {
				w.span.End = nil
			}
			if w.span.Empty() {
				continue
			}
			tree.add(w)
			all = append(all, w)
		default:
			i := r.IntN(len(all))
			tree.remove(all[i])
			all = append(all[:i], all[i+1:]...)
		}
		key := word()
		found := map[*watcher]bool{}
		tree.stab(key, func(n *spanNode) {
			for _, w := range n.watchers {
				if found[w] {
					t.Fatal("visited twice")
				}
				found[w] = true
			}
		})
		for _, w := range all {
			if w.span.Contains(key) != found[w] {
				t.Fatalf("step %d: %q in [%s,%s): %v", step, key, w.span.Start, w.span.End, found[w])
			}
			delete(found, w)
		}
		if len(found) > 0 {
			t.Fatal("found what was removed")
		}
	}
	for _, w := range all {
		tree.remove(w)
	}
	if tree.root != nil {
		t.Fatal("the tree is not empty")
	}
}
