package storage_test

import (
	"errors"
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
