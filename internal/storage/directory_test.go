package storage_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"holdfast.dev/holdfast/internal/storage"
)

// TestFailedDirectorySync makes each sync of Open and of a first flush fail in turn, directories' included: there is an error, or
// OnFatal hears of it. pebble panics over some of them.
func TestFailedDirectorySync(t *testing.T) {
	injected := errors.New("input/output error")
	for n := 1; ; n++ {
		seen := 0
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSync {
				if seen++; seen == n {
					return injected
				}
			}
			return nil
		}))
		told := make(chan error, 1)
		opened := make(chan error, 1)
		go func() {
			e, err := storage.Open(storage.Options{FS: fs, Dir: "engine", OnFatal: func(err error) { told <- err }})
			if err == nil {
				b := e.NewBatch()
				b.Set([]byte("k"), []byte("v"))
				err = errors.Join(e.Apply(b), b.Close(), e.Flush(), e.Close())
			}
			opened <- err
		}()
		select {
		case err := <-opened:
			if err == nil && seen < n {
				if n < 4 {
					t.Errorf("Open syncs %d times only", n-1)
				}
				return
			}
			if !errors.Is(err, injected) {
				t.Errorf("sync %d: %v", n, err)
			}
		case err := <-told: // it stands still
			if !errors.Is(err, injected) {
				t.Errorf("sync %d: fatal %v", n, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("sync %d: neither an error nor a fault", n)
		}
	}
}

// TestSettle: the MANIFEST that a start finds is settled before pebble goes by it, and one that cannot be settled is refused.
func TestSettle(t *testing.T) {
	mem := vfs.NewMem()
	var reads, settled []string
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpOpen && strings.HasPrefix(mem.PathBase(op.Path), "MANIFEST-") {
			reads = append(reads, fmt.Sprint(len(settled)))
		}
		return nil
	}))
	refusal := errors.New("input/output error")
	var fails error
	o := storage.Options{FS: fs, Dir: "engine", Settle: func(path string) error { settled = append(settled, mem.PathBase(path)); return fails }}
	for run := range 3 {
		e, err := storage.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		b := e.NewBatch()
		b.Set([]byte("k"), []byte("v"))
		if err := errors.Join(e.Apply(b), b.Close(), e.Flush(), e.Close()); err != nil {
			t.Fatal(err)
		}
		if run == 0 && len(settled) > 0 {
			t.Errorf("a new directory has %v to settle", settled)
		}
	}
	if len(settled) < 2 || len(reads) == 0 || slices.Contains(reads, "0") {
		t.Errorf("settled %v; the MANIFEST was opened after so many: %v", settled, reads)
	}
	fails = refusal
	if e, err := storage.Open(o); !errors.Is(err, refusal) {
		t.Errorf("it opens although its MANIFEST cannot be settled: %v, %v", e, err)
	}
}
