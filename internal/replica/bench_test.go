package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/seal"
)

// counter is a machine that does next to nothing, so that the benchmark shows the log and the loop.
type counter struct {
	ledger
	at   atomic.Uint64
	done func(requests int)
}

func (m *counter) Apply(entries []Entry) ([]Decision, error) {
	for _, e := range entries {
		if len(e.Data) > 9 {
			m.done((len(e.Data) - 9) / benchValue)
		}
		m.at.Store(e.Index)
	}
	return nil, nil
}

func (m *counter) State() State {
	at := max(m.at.Load(), 1)
	return State{Applied: at, Durable: at, Members: []Peer{{ID: 1}}}
}

const benchValue = 300

// pool is a Source that packs whoever waits into one batch; the requests are answered in order.
type pool struct {
	mu      sync.Mutex
	waiting []chan struct{}
	flight  []chan struct{}
	wake    func()
}

func (p *pool) Next(int) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.waiting)
	if n == 0 {
		return nil, false
	}
	p.flight = append(p.flight, p.waiting...)
	p.waiting = nil
	return make([]byte, 9+n*benchValue), true
}

func (p *pool) Lost([]byte, error) {}

func (p *pool) done(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.flight[:n] {
		c <- struct{}{}
	}
	p.flight = append([]chan struct{}(nil), p.flight[n:]...)
}

func (p *pool) request(c chan struct{}) {
	p.mu.Lock()
	p.waiting = append(p.waiting, c)
	p.mu.Unlock()
	p.wake()
	<-c
}

// BenchmarkPropose is one member on a real disk, with sealed segments, and clients that each wait for their request.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			fs := vfs.Default
			dir := b.TempDir()
			ring, err := seal.CreateKeyring(fs, dir, thinKEK{})
			if err != nil {
				b.Fatal(err)
			}
			s, err := Create(StoreOptions{FS: fs, Dir: dir, Ring: ring}, Bootstrap{Cluster: 1, Member: 1, Voters: []uint64{1}},
				func(dir string) error { return fs.MkdirAll(dir, 0o700) })
			if err != nil {
				b.Fatal(err)
			}
			p := &pool{}
			m := &counter{done: p.done}
			r, err := New(s, Options{Machine: m, Source: p, Stamp: stampBatch, Clock: Wall{}, Rand: rand.NewPCG(1, 1)})
			if err != nil {
				b.Fatal(err)
			}
			p.wake = r.Wake
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- r.Run(ctx) }()
			p.request(make(chan struct{}, 1))
			before := r.Status().Counters
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					c := make(chan struct{}, 1)
					for left.Add(-1) >= 0 {
						p.request(c)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := r.Status().Counters
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "proposals/s")
			b.ReportMetric(float64(after.Syncs-before.Syncs)/float64(b.N), "syncs/op")
			b.ReportMetric((after.SyncSeconds-before.SyncSeconds)*1e6/float64(max(after.Syncs-before.Syncs, 1)), "us/sync")
			b.ReportMetric(float64(after.Inline-before.Inline)/float64(max(after.Appends-before.Appends, 1)), "inline/append")
			cancel()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		})
	}
}
