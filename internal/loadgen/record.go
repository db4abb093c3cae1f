package loadgen

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longest is the longest latency that a histogram holds; longer ones are recorded as this.
const longest = 10 * time.Minute

// finest is the shortest difference that a histogram shows; three digits are kept above it.
const finest = 128 * time.Nanosecond

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(finest), int64(longest), 3)
}

// shards is over how many histograms the clients of a series are spread: a histogram has 200 KiB, too much for one a client.
const shards = 8

// kind describes a series: one sort of things whose latency is measured.
type kind struct {
	name    string
	request bool // somebody asked and was answered; false: something was observed
	payload int  // bytes of keys and values that each success has written
}

// series is what was measured of one kind.
type series struct {
	kind
	shards [shards]shard
}

type shard struct {
	mu       sync.Mutex
	ok       *hdrhistogram.Histogram
	live     *hdrhistogram.Histogram // since the last progress line; nil: nobody looks
	failed   *hdrhistogram.Histogram // nil: no failure
	failures map[string]*Failure
	retries  int64
}

// recorder collects one phase.
type recorder struct {
	series []*series
}

func newRecorder(kinds []kind, live bool) *recorder {
	r := &recorder{}
	for _, k := range kinds {
		s := &series{kind: k}
		for i := range s.shards {
			s.shards[i].ok = newHistogram()
			if live {
				s.shards[i].live = newHistogram()
			}
		}
		r.series = append(r.series, s)
	}
	return r
}

// record takes one result of client.
func (r *recorder) record(kind, client int, d time.Duration, err error) {
	v := int64(min(max(d, 0), longest))
	s := &r.series[kind].shards[client%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failLocked(v, err)
		return
	}
	_ = s.ok.RecordValue(v) // in range: v is clamped
	if s.live != nil {
		_ = s.live.RecordValue(v)
	}
}

func (s *shard) failLocked(v int64, err error) {
	if s.failed == nil {
		s.failed, s.failures = newHistogram(), map[string]*Failure{}
	}
	_ = s.failed.RecordValue(v)
	name := failureKind(err)
	f := s.failures[name]
	if f == nil {
		f = &Failure{Kind: name, Example: err.Error()}
		s.failures[name] = f
	}
	f.Count++
}

// retry counts attempts beyond the first.
func (r *recorder) retry(kind, client int, n int64) {
	s := &r.series[kind].shards[client%shards]
	s.mu.Lock()
	s.retries += n
	s.mu.Unlock()
}

// interval returns what came since the last call, over all series of requests, or over all if there is none.
func (r *recorder) interval() (h *hdrhistogram.Histogram, failed int64) {
	h = newHistogram()
	for _, s := range r.series {
		for i := range s.shards {
			sh := &s.shards[i]
			sh.mu.Lock()
			if s.request {
				h.Merge(sh.live)
			}
			sh.live.Reset()
			for _, f := range sh.failures {
				failed += f.Count
			}
			sh.mu.Unlock()
		}
	}
	return h, failed
}

// summary merges the shards of one series.
func (s *series) summary(elapsed time.Duration) Series {
	ok, failed := newHistogram(), newHistogram()
	kinds := map[string]*Failure{}
	out := Series{Name: s.name, Request: s.request}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		ok.Merge(sh.ok)
		if sh.failed != nil {
			failed.Merge(sh.failed)
		}
		for name, f := range sh.failures {
			if kinds[name] == nil {
				kinds[name] = &Failure{Kind: name, Example: f.Example}
			}
			kinds[name].Count += f.Count
			out.Failed += f.Count
		}
		out.Retries += sh.retries
		sh.mu.Unlock()
	}
	out.Count = ok.TotalCount()
	out.PayloadBytes = out.Count * int64(s.payload)
	if elapsed > 0 {
		out.PerSecond = float64(out.Count) / elapsed.Seconds()
	}
	out.Latency = latencyOf(ok)
	out.FailedLatency = latencyOf(failed)
	out.Failures = sortedFailures(kinds)
	return out
}

func latencyOf(h *hdrhistogram.Histogram) *Latency {
	if h.TotalCount() == 0 {
		return nil
	}
	ms := func(v int64) float64 { return float64(v) / 1e6 }
	return &Latency{Min: ms(h.Min()), P50: ms(h.ValueAtQuantile(50)), P90: ms(h.ValueAtQuantile(90)), P99: ms(h.ValueAtQuantile(99)),
		P999: ms(h.ValueAtQuantile(99.9)), Max: ms(h.Max()), Mean: h.Mean() / 1e6}
}

// holder lets what runs beside the clients (watch streams) find the recorder of the phase.
type holder struct{ p atomic.Pointer[recorder] }

func (h *holder) set(r *recorder) { h.p.Store(r) }
func (h *holder) get() *recorder  { return h.p.Load() }
