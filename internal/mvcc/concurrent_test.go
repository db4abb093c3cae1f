package mvcc

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

// TestConcurrentReaders reads beside a writer, compactions and a sweep. Every revision sets all "p" keys to its own number,
// creates one "c" key and deletes the one before, so that any state but a whole revision shows.
func TestConcurrentReaders(t *testing.T) {
	const pairs, revisions = 10, 400
	x := openInstance(t, vfs.NewMem(), indexLimits{4, 4})
	defer x.close(t)
	write := func(n int) {
		x.b.Reset()
		w := x.s.NewWriter(x.e, x.b)
		w.Begin()
		for i := range pairs {
			if _, err := w.Put(fmt.Appendf(nil, "p%d", i), fmt.Append(nil, n), PutOptions{}); err != nil {
				t.Error(err)
			}
		}
		if _, err := w.Put(fmt.Appendf(nil, "c%04d", n), nil, PutOptions{}); err != nil {
			t.Error(err)
		}
		if _, _, err := w.DeleteSpan(storage.KeySpan(fmt.Appendf(nil, "c%04d", n-1)), false); err != nil {
			t.Error(err)
		}
		if rev := w.End(); rev != int64(n) {
			t.Errorf("revision %d, want %d", rev, n)
		}
		if n%20 == 0 {
			if err := w.Compact(int64(n - 8)); err != nil {
				t.Error(err)
			}
		}
		if _, err := w.Finish(); err != nil {
			t.Error(err)
		}
		if err := x.e.Apply(x.b); err != nil {
			t.Error(err)
		}
		x.s.Publish(w)
	}
	write(2)

	var wg sync.WaitGroup
	done := make(chan struct{})
	loop := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil && !errors.Is(err, ErrCompacted) {
					t.Error(err)
					return
				}
			}
		})
	}
	check := func(page Page, rev int64) error {
		if page.Count != pairs+1 || len(page.KVs) != 5 || !page.More || page.Revision < rev {
			return fmt.Errorf("at %d: count %d, %d keys, more %v, revision %d", rev, page.Count, len(page.KVs), page.More, page.Revision)
		}
		for _, kv := range page.KVs[1:] {
			if kv.ModRevision != page.KVs[0].ModRevision {
				return fmt.Errorf("at %d: %s and %s", rev, showKV(kv), showKV(page.KVs[0]))
			}
		}
		if rev > 0 && page.KVs[0].ModRevision != rev {
			return fmt.Errorf("at %d: %s", rev, showKV(page.KVs[0]))
		}
		return nil
	}
	loop(func() error {
		page, err := x.s.Read(x.e, Query{Limit: 5})
		if err != nil {
			return err
		}
		return check(page, 0)
	})
	loop(func() error {
		rev := max(2, x.s.Revision()-6)
		page, err := x.s.Read(x.e, Query{Limit: 5, Revision: rev})
		if err != nil {
			return err
		}
		return check(page, rev)
	})
	loop(func() error {
		least := x.s.Revision()
		page, err := x.s.Read(x.e, Query{Span: storage.KeySpan([]byte("p3"))})
		if err != nil || len(page.KVs) != 1 || page.KVs[0].ModRevision < least || page.KVs[0].ModRevision != page.Revision {
			return errors.Join(err, fmt.Errorf("one key: %+v, revision was %d", page, least))
		}
		return nil
	})
	loop(func() error {
		from := max(2, x.s.CompactRevision())
		events, _, err := x.s.Events(x.e, storage.Span{Start: []byte("p")}, from, from+3, 0, 0)
		if err != nil {
			return err
		}
		for i, r := range events {
			if r.Revision != from+int64(i) || len(r.Events) != pairs || string(r.Events[4].KV.Value) != fmt.Sprint(r.Revision) {
				return fmt.Errorf("events from %d: %s", from, showEvents(events))
			}
		}
		return nil
	})
	loop(func() error {
		_, err := x.s.Sweep(x.e, 7)
		return err
	})
	for n := 3; n <= revisions && !t.Failed(); n++ {
		write(n)
	}
	close(done)
	wg.Wait()
}
