package mvcc

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

var (
	seedFlag  = flag.Uint64("mvcc.seed", 0, "run the random comparison with this seed only")
	stepsFlag = flag.Int("mvcc.steps", 250, "batches of each random comparison")
)

// TestRandomAgainstModel compares two spaces, which sweep, flush and reopen at different moments, with each other and with
// the naive model, after and inside random batches.
func TestRandomAgainstModel(t *testing.T) {
	if *seedFlag != 0 {
		runRandom(t, *seedFlag, *stepsFlag)
		return
	}
	for seed := uint64(1); seed <= 24; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runRandom(t, seed, *stepsFlag)
		})
	}
}

type instance struct {
	fs *vfs.MemFS
	e  *storage.Engine
	b  *storage.Batch
	s  *Space
	w  *Writer
}

func openInstance(t *testing.T, fs *vfs.MemFS, limits indexLimits) *instance {
	t.Helper()
	e, err := storage.Open(storage.Options{
		FS: fs, Dir: "data", Split: Split, MemTableBytes: 64 << 10, CacheBytes: 1 << 20,
		OnFatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSpace(e, SpaceEtcd)
	if err != nil {
		t.Fatal(err)
	}
	s.limits = limits
	return &instance{fs: fs, e: e, b: e.NewBatch(), s: s}
}

func (x *instance) close(t *testing.T) {
	if err := errors.Join(x.b.Close(), x.e.Close()); err != nil {
		t.Fatal(err)
	}
}

// trial is one run of the comparison.
type trial struct {
	t     *testing.T
	r     *rand.Rand
	m     *model
	x     [2]*instance
	wide  bool // many keys, few versions; otherwise few keys, many versions
	keyN  int
	small indexLimits
}

func runRandom(t *testing.T, seed uint64, steps int) {
	defer func() {
		if t.Failed() {
			t.Logf("again with: go test ./internal/mvcc -run TestRandomAgainstModel -mvcc.seed=%d -mvcc.steps=%d", seed, steps)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 77))
	c := &trial{t: t, r: r, m: newModel(), wide: seed%2 == 0, keyN: 40 << (seed % 6), small: indexLimits{int64(4 + r.IntN(7)), int64(4 + r.IntN(4))}}
	for i := range c.x {
		c.x[i] = openInstance(t, vfs.NewMem(), c.small)
		defer func() { c.x[i].close(t) }()
	}
	for range steps {
		c.batch()
		if t.Failed() {
			return
		}
		c.background()
		c.compareState()
		if t.Failed() {
			return
		}
	}
	c.compareRemains()
}

// compareRemains compacts everything and looks at what a finished Sweep leaves on disk.
func (c *trial) compareRemains() {
	for _, puts := range []int{3, 1} { // what the compact revision itself made obsolete goes with the next one
		for range puts {
			c.m.put([]byte("last"), nil, PutOptions{})
		}
		if err := c.m.compact(c.m.end()); err != nil {
			c.t.Fatal(err)
		}
		for _, x := range c.x {
			x.b.Reset()
			w := x.s.NewWriter(x.e, x.b)
			w.Begin()
			for range puts {
				if _, err := w.Put([]byte("last"), nil, PutOptions{}); err != nil {
					c.t.Fatal(err)
				}
			}
			if err := w.Compact(w.End()); err != nil {
				c.t.Fatal(err)
			}
			if _, err := w.Finish(); err != nil {
				c.t.Fatal(err)
			}
			if err := x.e.Apply(x.b); err != nil {
				c.t.Fatal(err)
			}
			// Not published yet: the state read from is compacted above what is published.
			if page, err := x.s.Read(x.e, Query{CountOnly: true}); err != nil || page.Revision != c.m.rev {
				c.t.Errorf("between Apply and Publish: %+v %v", page, err)
			}
			x.s.Publish(w)
			for more := true; more; {
				var err error
				if more, err = x.s.Sweep(x.e, 50); err != nil {
					c.t.Fatal(err)
				}
			}
		}
		c.both("events of the compact revision", showEvents(c.m.events(storage.Span{}, c.m.rev, c.m.rev)), func(x *instance) string {
			events, _, err := x.s.Events(x.e, storage.Span{}, c.m.rev, c.m.rev, 0, 0)
			if err != nil {
				return err.Error()
			}
			return showEvents(events)
		})
	}
	keys := len(c.m.live(storage.Span{}, c.m.rev))
	c.both("remains", fmt.Sprintf("versions %d, log 1, births 0, live %d", keys, keys), func(x *instance) string {
		rows := func(table byte) (n int) {
			it, err := x.e.NewIter(tableSpan(x.s.id, table))
			if err != nil {
				return -1
			}
			defer it.Close()
			for ok := it.First(); ok; ok = it.Next() {
				n++
			}
			return n
		}
		return fmt.Sprintf("versions %d, log %d, births %d, live %d", rows('d'), rows('l'), rows('x'), rows('k'))
	})
	for _, x := range c.x {
		checkIndex(c.t, x)
	}
}

func (c *trial) key() []byte {
	if c.wide {
		return fmt.Appendf(nil, "k%04d", c.r.IntN(c.keyN))
	}
	const bytes = "\x00\x01ab\xff"
	key := make([]byte, 1+c.r.IntN(3))
	for i := range key {
		key[i] = bytes[c.r.IntN(len(bytes))]
	}
	return key
}

func (c *trial) span() storage.Span {
	switch c.r.IntN(6) {
	case 0:
		return storage.Span{}
	case 1:
		return storage.Span{Start: c.key()}
	case 2:
		return storage.KeySpan(c.key())
	case 3:
		return storage.Span{Start: []byte{}, End: c.key()}
	}
	a, b := c.key(), c.key()
	return storage.Span{Start: a, End: b}
}

func (c *trial) query() Query {
	q := Query{Span: c.span(), NoCount: c.r.IntN(8) == 0, KeysOnly: c.r.IntN(5) == 0, CountOnly: c.r.IntN(6) == 0}
	if c.r.IntN(2) == 0 {
		q.Revision = c.revision()
	}
	if c.r.IntN(2) == 0 {
		q.Limit = int64(c.r.IntN(10))
	}
	if c.r.IntN(6) == 0 {
		q.MaxBytes = int64(c.r.IntN(60))
	}
	if c.r.IntN(4) == 0 {
		q.Target, q.Order = SortTarget(c.r.IntN(5)), SortOrder(c.r.IntN(3))
	}
	if q.KeysOnly && q.Target == SortByValue {
		q.KeysOnly = false
	}
	if q.Target != SortByKey && q.Order == SortNone {
		q.MaxBytes = 0
	}
	for _, p := range []*int64{&q.MinModRevision, &q.MaxModRevision, &q.MinCreateRevision, &q.MaxCreateRevision} {
		if c.r.IntN(12) == 0 {
			*p = c.revision()
		}
	}
	return q
}

// revision picks one around what can be read.
func (c *trial) revision() int64 {
	low := max(c.m.compacted, 1)
	return max(1, low-2+c.r.Int64N(c.m.rev-low+6))
}

func (c *trial) lease() int64 {
	if c.r.IntN(3) > 0 {
		return 0
	}
	return int64(c.r.IntN(6)) - 2
}

// both runs f on both instances and compares what it shows with what the model shows.
func (c *trial) both(what string, want string, f func(x *instance) string) {
	c.t.Helper()
	for i, x := range c.x {
		if got := f(x); got != want {
			c.t.Errorf("instance %d: %s:\ngot\n%s\nwant\n%s", i, what, got, want)
		}
	}
}

func (c *trial) batch() {
	for _, x := range c.x {
		x.b.Reset()
		x.w = x.s.NewWriter(x.e, x.b)
	}
	logged := len(c.m.log)
	for range 1 + c.r.IntN(6) {
		for _, x := range c.x {
			x.w.Begin()
		}
		ops := 1
		if c.r.IntN(3) == 0 {
			ops = 1 + c.r.IntN(5)
		}
		for range ops {
			c.operation()
		}
		rev := fmt.Sprint(c.m.end())
		c.both("end", rev, func(x *instance) string { return fmt.Sprint(x.w.End()) })
		if c.t.Failed() {
			return
		}
	}
	c.both("finish", showEvents(c.m.log[logged:]), func(x *instance) string {
		events, err := x.w.Finish()
		if err != nil {
			return err.Error()
		}
		return showEvents(events)
	})
	for _, x := range c.x {
		if err := x.e.Apply(x.b); err != nil {
			c.t.Fatal(err)
		}
		x.s.Publish(x.w)
	}
}

func (c *trial) operation() {
	switch n := c.r.IntN(20); {
	case n < 9:
		c.put()
	case n < 11:
		c.deleteSpan()
	case n < 15:
		q := c.query()
		c.both(fmt.Sprintf("read in the batch %+v", q), showPage(c.m.read(q)), func(x *instance) string {
			return showPage(x.w.Read(q))
		})
	case n < 16:
		c.get()
	case n < 19:
		c.leaseOperation()
	case len(c.m.pending) == 0 && c.r.IntN(4) == 0:
		rev := c.revision()
		c.both(fmt.Sprint("compact ", rev), fmt.Sprint(c.m.compact(rev)), func(x *instance) string {
			return fmt.Sprint(x.w.Compact(rev))
		})
	}
}

func (c *trial) get() {
	key, value := c.key(), c.r.IntN(2) == 0
	kv, ok := c.m.at(string(key), c.m.current())
	if !value {
		kv.Value = nil
	}
	if !ok {
		kv = KV{}
	}
	c.both("get", showKV(kv), func(x *instance) string {
		kv, _, err := x.w.Get(key, value)
		if err != nil {
			return err.Error()
		}
		return showKV(kv)
	})
}

func (c *trial) put() {
	key, value := c.key(), fmt.Appendf(nil, "%d", c.r.IntN(1000))[c.r.IntN(2):]
	o := PutOptions{PrevKV: c.r.IntN(3) == 0, Lease: c.lease()}
	switch c.r.IntN(8) {
	case 0:
		o.IgnoreValue, value = true, nil
	case 1:
		o.IgnoreLease, o.Lease = true, 0
	}
	show := func(prev *KV, err error) string {
		if err != nil || prev == nil {
			return fmt.Sprint(prev, err)
		}
		return showKV(*prev)
	}
	c.both(fmt.Sprintf("put %q %+v", key, o), show(c.m.put(key, value, o)), func(x *instance) string {
		return show(x.w.Put(key, value, o))
	})
}

func (c *trial) deleteSpan() {
	span, prev := c.span(), c.r.IntN(2) == 0
	if c.r.IntN(3) > 0 {
		span = storage.KeySpan(c.key())
	}
	kvs := c.m.live(span, c.m.current())
	c.m.delete(kvs)
	want := fmt.Sprint(len(kvs))
	if prev {
		want += "\n" + showPage(Page{KVs: kvs}, nil)
	}
	c.both(fmt.Sprintf("delete %q", span), want, func(x *instance) string {
		kvs, n, err := x.w.DeleteSpan(span, prev)
		if err != nil {
			return err.Error()
		}
		if !prev {
			return fmt.Sprint(n)
		}
		return fmt.Sprint(n) + "\n" + showPage(Page{KVs: kvs}, nil)
	})
}

func (c *trial) leaseOperation() {
	id := int64(c.r.IntN(6)) - 2
	if id == 0 {
		id = 100
	}
	old, exists := c.m.leases[id]
	switch c.r.IntN(4) {
	case 0, 1:
		want := error(ErrLeaseExists)
		if !exists {
			c.m.leases[id], want = Lease{ID: id, TTL: 60}, nil
		}
		c.both("grant", fmt.Sprint(want), func(x *instance) string {
			if err := x.w.GrantLease(id, 60); err != nil {
				return err.Error()
			}
			return fmt.Sprint(nil)
		})
	case 2:
		want := ErrLeaseNotFound.Error()
		if exists {
			kvs := c.m.leaseKeys(id)
			c.m.delete(kvs)
			delete(c.m.leases, id)
			want = fmt.Sprint(len(kvs))
		}
		c.both("revoke", want, func(x *instance) string {
			n, err := x.w.RevokeLease(id)
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(n)
		})
	case 3:
		if exists {
			old.Remaining++
			c.m.leases[id] = old
		}
		c.both("checkpoint", fmt.Sprint(exists), func(x *instance) string {
			err := x.w.CheckpointLease(id, old.Remaining)
			if err != nil && !errors.Is(err, ErrLeaseNotFound) {
				return err.Error()
			}
			return fmt.Sprint(err == nil)
		})
	}
}

// background lets the instances drift apart in what may not be seen.
func (c *trial) background() {
	for i, x := range c.x {
		if i == 0 && c.r.IntN(3) == 0 || c.r.IntN(10) == 0 {
			if _, err := x.s.Sweep(x.e, 1+c.r.IntN(20)); err != nil {
				c.t.Fatal(err)
			}
		}
		if c.r.IntN(20) == 0 {
			if err := x.e.Flush(); err != nil {
				c.t.Fatal(err)
			}
		}
		if c.r.IntN(40) == 0 {
			if err := x.e.Compact(c.t.Context(), storage.Span{Start: []byte{0}}); err != nil {
				c.t.Fatal(err)
			}
		}
		if c.r.IntN(25) == 0 {
			if err := x.e.Flush(); err != nil {
				c.t.Fatal(err)
			}
			x.close(c.t)
			c.x[i] = openInstance(c.t, x.fs, c.small)
		}
	}
}

func (c *trial) compareState() {
	m := c.m
	c.both("state", fmt.Sprint(m.rev, m.compacted, m.size(), len(m.live(storage.Span{}, m.rev))), func(x *instance) string {
		return fmt.Sprint(x.s.Revision(), x.s.CompactRevision(), x.s.Bytes(), x.s.Keys())
	})
	for range 4 {
		q := c.query()
		snapshot := c.r.IntN(2) == 0
		c.both(fmt.Sprintf("read %+v", q), showPage(m.read(q)), func(x *instance) string {
			if !snapshot {
				return showPage(x.s.Read(x.e, q))
			}
			snap := x.e.NewSnapshot()
			defer snap.Close()
			return showPage(x.s.Read(snap, q))
		})
	}
	c.compareEvents()
	key, mod := c.key(), c.revision()
	if vs := m.versions[string(key)]; len(vs) > 0 {
		mod = vs[c.r.IntN(len(vs))].ModRevision
	}
	kv, ok := m.keyAt(string(key), mod)
	c.both(fmt.Sprintf("key at %q %d", key, mod), fmt.Sprint(ok, ok && true)+showIf(kv, ok), func(x *instance) string {
		kv, ok, err := x.s.KeyAt(x.e, key, mod)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(ok, ok) + showIf(kv, ok)
	})
	c.compareLeases()
	c.compareHash()
	c.compareModified()
	for _, x := range c.x {
		if c.r.IntN(10) == 0 {
			checkIndex(c.t, x)
		}
	}
}

func showIf(kv KV, ok bool) string {
	if !ok {
		return ""
	}
	return showKV(kv)
}

func (c *trial) compareEvents() {
	m, span, from, to := c.m, c.span(), c.revision(), c.revision()
	if c.r.IntN(2) == 0 {
		from = max(m.compacted, 1)
	}
	if from < m.compacted {
		c.both("events", ErrCompacted.Error(), func(x *instance) string {
			_, _, err := x.s.Events(x.e, span, from, to, 3, 0)
			return fmt.Sprint(err)
		})
		return
	}
	maxRevs, maxBytes := c.r.IntN(5), c.r.IntN(50)
	c.both(fmt.Sprintf("events %q %d-%d", span, from, to), showEvents(m.events(span, from, min(to, m.rev))), func(x *instance) string {
		var all []RevisionEvents
		for next := from; next <= min(to, m.rev); {
			events, n, err := x.s.Events(x.e, span, next, to, maxRevs, maxBytes)
			if err != nil {
				return err.Error()
			}
			if n <= next {
				return fmt.Sprintf("no progress from %d to %d", next, n)
			}
			all, next = append(all, events...), n
		}
		return showEvents(all)
	})
}

func (c *trial) compareLeases() {
	var want []Lease
	for _, l := range c.m.leases {
		want = append(want, l)
	}
	slices.SortFunc(want, func(a, b Lease) int { return int(a.ID - b.ID) })
	show := func(l Lease, keys [][]byte) string { return fmt.Sprintf("%+v %q\n", l, keys) }
	text := ""
	for _, l := range want {
		var keys [][]byte
		for _, kv := range c.m.leaseKeys(l.ID) {
			keys = append(keys, kv.Key)
		}
		text += show(l, keys)
	}
	c.both("leases", text, func(x *instance) string {
		leases, err := x.s.Leases(x.e, -1<<63, 0)
		if err != nil || !reflect.DeepEqual(leases, want) {
			return fmt.Sprint(leases, err)
		}
		text := ""
		for _, l := range leases {
			info, ok, err := x.s.LeaseInfo(x.e, l.ID)
			if err != nil || !ok || info != l {
				return fmt.Sprint(info, ok, err)
			}
			keys, err := x.s.LeaseKeys(x.e, l.ID)
			if err != nil {
				return err.Error()
			}
			text += show(l, keys)
		}
		return text
	})
}

func (c *trial) compareHash() {
	rev := int64(0)
	if c.r.IntN(2) == 0 {
		rev = max(c.m.compacted, 1) + c.r.Int64N(c.m.rev-max(c.m.compacted, 1)+1)
	}
	show := func(x *instance) string {
		h, cur, comp, err := x.s.Hash(x.e, rev)
		return fmt.Sprint(h, cur, comp, err)
	}
	want := show(c.x[0])
	c.both("hash", want, show)
}

func (c *trial) compareModified() {
	span, want := c.span(), int64(0)
	for key, versions := range c.m.versions {
		last := versions[len(versions)-1]
		if span.Contains([]byte(key)) && (!last.deleted || last.ModRevision > c.m.compacted) {
			want = max(want, last.ModRevision)
		}
	}
	c.both(fmt.Sprintf("last modified %q", span), fmt.Sprint(want), func(x *instance) string {
		rev, err := x.s.LastModified(x.e, span)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(rev)
	})
}
