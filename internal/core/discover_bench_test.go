package core

import (
	"fmt"
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

// BenchmarkWake3000 is one change of a key for which 3,000 wait, until the last of them has its answer.
func BenchmarkWake3000(b *testing.B) {
	const n = 3000
	m := start(b, nil)
	index := m.discover(kvSet("a", "0"))
	answered := make(chan error, n)
	for i := 1; b.Loop(); i++ {
		for range n {
			go func() {
				f, err := m.Lookup(m.ctx, m.anon, LookupRequest{Query: pair1("a"), MinIndex: index, Wait: time.Hour})
				if err == nil && f.Index <= index {
					err = fmt.Errorf("index %d", f.Index)
				}
				answered <- err
			}()
		}
		until(b, "all wait", func() bool { return m.Counters().Waiters == n })
		begun := time.Now()
		next := m.discover(kvSet("a", fmt.Sprint(i)))
		wrote := time.Since(begun)
		for range n {
			must(b, <-answered)
		}
		b.ReportMetric(float64(time.Since(begun).Microseconds()), "µs/last-answer")
		b.ReportMetric(float64(wrote.Microseconds()), "µs/write")
		index = next
	}
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
