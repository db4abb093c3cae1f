package core

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// The pairs of benchmarks below do the same through etcd's face and through Consul's: neither may cost much more.

const benchKeys = 1000

func BenchmarkPutEtcd(b *testing.B) {
	m := start(b, func(o *Options) { o.Limits.QuotaBytes = -1 })
	value := make([]byte, 256)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		value[0], value[1] = byte(i), byte(i>>8)
		if _, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: fmt.Appendf(nil, "key/%d", i%benchKeys), Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutConsul(b *testing.B) {
	m := start(b, nil)
	value := make([]byte, 256)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		value[0], value[1] = byte(i), byte(i>>8)
		ops := []catalog.Op{{Verb: catalog.KVSet, Pair: &catalog.Pair{Key: fmt.Sprintf("key/%d", i%benchKeys), Value: value}}}
		if _, err := m.Discover(m.ctx, m.anon, ops); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetEtcd(b *testing.B) {
	m := start(b, nil)
	for i := range benchKeys {
		m.put(fmt.Sprintf("key/%d", i), "value")
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if page, err := m.Range(m.ctx, m.anon, query(fmt.Sprintf("key/%d", i%benchKeys))); err != nil || len(page.KVs) != 1 {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetConsul(b *testing.B) {
	m := start(b, nil)
	for i := range benchKeys {
		m.discover(kvSet(fmt.Sprintf("key/%d", i), "value"))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: pair1(fmt.Sprintf("key/%d", i%benchKeys))}); err != nil || len(f.Pairs) != 1 {
			b.Fatal(err)
		}
	}
}

func BenchmarkInstances(b *testing.B) {
	m := start(b, nil)
	for i := range 100 {
		node := fmt.Sprintf("n%d", i)
		m.discover(nodeSet(node, "10.0.0.1"), serviceSet(node, "web", 80), checkSet(node, "alive", "", "passing"), checkSet(node, "c", "web", "passing"))
	}
	b.ReportAllocs()
	for b.Loop() {
		f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: catalog.Query{Kind: catalog.QueryInstances, Name: "web"}, Serializable: true})
		if err != nil || len(f.Instances) != 100 {
			b.Fatal(err)
		}
	}
}

// BenchmarkWake3000 is one change of what 3,000 wait for, until the last of them has its answer: of a key, and of a
// service with 100 instances, which they must not read 3,000 times.
func BenchmarkWake3000(b *testing.B) {
	m := start(b, nil)
	for i := range 100 {
		node := fmt.Sprintf("n%d", i)
		m.discover(nodeSet(node, "10.0.0.1"), serviceSet(node, "web", 80), checkSet(node, "alive", "", "passing"))
	}
	b.Run("key", func(b *testing.B) {
		wakeAll(b, m, pair1("a"), func(i int) catalog.Op { return kvSet("a", fmt.Sprint(i, time.Now())) })
	})
	b.Run("service", func(b *testing.B) {
		flip := []string{"passing", "critical"}
		q := catalog.Query{Kind: catalog.QueryInstances, Name: "web"}
		change := func(int) catalog.Op {
			slices.Reverse(flip)
			return checkSet("n7", "alive", "", flip[0])
		}
		wakeAll(b, m, q, change)
	})
}

func wakeAll(b *testing.B, m *member, q catalog.Query, change func(i int) catalog.Op) {
	const n = 3000
	index := m.mustLook(q).Index
	answered := make(chan error, n)
	var slowest time.Duration
	for i := 0; b.Loop(); i++ {
		for range n {
			go func() {
				f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: q, MinIndex: index, Wait: time.Hour, Serializable: true})
				if err == nil && f.Index <= index {
					err = fmt.Errorf("index %d", f.Index)
				}
				answered <- err
			}()
		}
		until(b, "all wait, and nobody reads", func() bool { return m.Counters().Waiters == n && m.current.Load().refs.Load() == 1 })
		begun := time.Now()
		next := m.discover(change(i))
		for range n {
			must(b, <-answered)
		}
		slowest = max(slowest, time.Since(begun))
		index = next
	}
	b.ReportMetric(float64(slowest.Milliseconds()), "ms/last-answer")
}

// BenchmarkPutBesideWaiters is a put while 10,000 lookups wait for other keys.
func BenchmarkPutBesideWaiters(b *testing.B) {
	m := start(b, nil)
	for i := range 10_000 {
		r := &LookupRequest{Query: pair1(fmt.Sprintf("other/%d", i)), MinIndex: 1, Wait: time.Hour}
		if i%2 == 1 {
			r.Query = catalog.Query{Kind: catalog.QueryPairs, Name: fmt.Sprintf("dir/%d/", i)}
		}
		w, err := m.lookups.enter(m.Core, r)
		must(b, err)
		defer m.lookups.leave(w)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := m.Discover(m.ctx, m.anon, []catalog.Op{kvSet(fmt.Sprintf("key/%d", i%benchKeys), fmt.Sprint(i))}); err != nil {
			b.Fatal(err)
		}
	}
}
