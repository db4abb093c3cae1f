package scorecard

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ledger is what writers know of the store: for each key what was acknowledged last, and what else it may hold because an
// answer never came. A key is written by one writer only, and not again after an answer was missed.
type ledger struct {
	mu     sync.Mutex
	frozen bool // an acknowledgement that comes now is of a world that no longer exists
	keys   map[string]*entry
	acked  atomic.Int64
	doubt  int64
	next   int
}

// entry is one key. "" stands for a key that does not exist.
type entry struct {
	acked string
	maybe []string
}

func newLedger() *ledger { return &ledger{keys: map[string]*entry{}} }

func (l *ledger) freeze(on bool) {
	l.mu.Lock()
	l.frozen = on
	l.mu.Unlock()
}

// begin says that value is about to be written to key.
func (l *ledger) begin(key, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.keys[key]
	if e == nil {
		e = &entry{}
		l.keys[key] = e
	}
	e.maybe = append(e.maybe, value)
}

// end says that the write of value to key was acknowledged.
func (l *ledger) end(key, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.frozen {
		l.keys[key].acked, l.keys[key].maybe = value, nil
		l.acked.Add(1)
	}
}

// writer writes until ctx ends or an answer is missed (then on with other keys).
type writer struct {
	l    *ledger
	name string
	rng  *rand.Rand
	gen  int
	live []string // keys that may be written again
}

// writer returns a writer with keys of its own.
func (l *ledger) writer(seed uint64) *writer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return &writer{l: l, name: fmt.Sprintf("w%05d", l.next), rng: rand.New(rand.NewPCG(seed, uint64(l.next)))}
}

// bytesOf is n random bytes as text: it does not compress to less than half.
func bytesOf(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.UintN(256))
	}
	return hex.EncodeToString(b)
}

// one makes one write and reports whether it was acknowledged.
func (w *writer) one(ctx context.Context, cl *clientv3.Client) bool {
	key := ""
	if len(w.live) < 8 || w.rng.IntN(4) == 0 && len(w.live) < 40 {
		w.gen++
		key = fmt.Sprintf("%s/%05d", w.name, w.gen)
		w.live = append(w.live, key)
	} else {
		key = w.live[w.rng.IntN(len(w.live))]
	}
	value, size := "", 20+w.rng.IntN(120)
	if w.rng.IntN(20) == 0 {
		size = 3000
	}
	if w.rng.IntN(6) > 0 {
		value = bytesOf(w.rng, size)
	}
	w.l.begin(key, value)
	call, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	var err error
	if value == "" {
		_, err = cl.Delete(call, key)
	} else {
		_, err = cl.Put(call, key, value)
	}
	if err != nil {
		w.live = slices.DeleteFunc(w.live, func(k string) bool { return k == key })
		return false
	}
	w.l.end(key, value)
	return true
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context, cl *clientv3.Client) {
	for ctx.Err() == nil {
		if !w.one(ctx, cl) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// load starts n writers and returns what ends them.
func (l *ledger) load(cl *clientv3.Client, n int, seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	for range n {
		w := l.writer(seed)
		wait.Go(func() { w.run(ctx, cl) })
	}
	return func() { cancel(); wait.Wait() }
}

// readAll reads every key, linearizably, and the revision.
func readAll(cl *clientv3.Client, opts ...clientv3.OpOption) (map[string]string, int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	resp, err := cl.Get(ctx, "", append([]clientv3.OpOption{clientv3.WithPrefix()}, opts...)...)
	if err != nil {
		return nil, 0, err
	}
	got := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	return got, resp.Header.Revision, nil
}

// settle compares what a store holds with the ledger and takes over what turned out to be. It returns what is wrong: an
// acknowledged write that is not there, or bytes that nobody wrote.
func (l *ledger) settle(got map[string]string) (wrong []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, e := range l.keys {
		now := got[key]
		switch {
		case now == e.acked:
		case slices.Contains(e.maybe, now):
			e.acked = now
			l.doubt++
		default:
			wrong = append(wrong, fmt.Sprintf("%s holds %.20q (%d bytes), acknowledged %.20q (%d bytes), %d in doubt", key, now, len(now), e.acked, len(e.acked), len(e.maybe)))
		}
		e.maybe = nil
	}
	for key := range got {
		if l.keys[key] == nil {
			wrong = append(wrong, key+" was never written")
		}
	}
	maps.DeleteFunc(l.keys, func(_ string, e *entry) bool { return e.acked == "" })
	return wrong
}

// trim deletes most keys of the store, so that long runs stay small.
func (l *ledger) trim(cl *clientv3.Client, keep int) error {
	l.mu.Lock()
	keys := slices.Sorted(maps.Keys(l.keys))
	l.mu.Unlock()
	if len(keys) <= keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, k := range keys {
		l.begin(k, "")
	}
	resp, err := cl.Delete(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, k := range keys {
		l.end(k, "")
	}
	_, err = cl.Compact(ctx, resp.Header.Revision)
	return err
}

// copy returns a ledger of its own with what is known now: for a copy of the disk that goes its own way.
func (l *ledger) copy() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := newLedger()
	c.next = l.next
	for k, e := range l.keys {
		c.keys[k] = &entry{acked: e.acked, maybe: slices.Clone(e.maybe)}
	}
	return c
}
