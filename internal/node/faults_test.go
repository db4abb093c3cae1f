package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
)

// TestFailedSync makes the disk fail to sync one kind of file under a running member: it ends with that error, acknowledges
// nothing more, and comes back with everything that it had acknowledged.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	injected := errors.New("input/output error")
	for name, match := range map[string]func(base string) bool{
		"log":      func(base string) bool { return strings.HasSuffix(base, ".seg") },
		"table":    func(base string) bool { return strings.HasSuffix(base, ".sst") },
		"manifest": func(base string) bool { return strings.HasPrefix(base, "MANIFEST-") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := etcdCluster(t, 1)[0]
			m.t = t
			var broken, gone atomic.Bool
			env := m.env()
			env.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if gone.Load() { // what stands still must not disturb the end of the test
					return injected
				}
				switch op.Kind {
				case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
					if broken.Load() && match(filepath.Base(op.Path)) {
						return injected
					}
				}
				return nil
			}))
			c := *m.config
			n, err := node.Start(t.Context(), &c, env)
			check(t, err)
			m.node = n
			m.ready()
			cl := dial(t, m)
			put(t, cl, "before", "v")
			broken.Store(true)
			acked := true
			if name == "log" {
				_, err = cl.Put(timeout(t), "after", "v")
				acked = err == nil
			} else {
				put(t, cl, "after", "v")
				_, err = cl.Defragment(timeout(t), cl.Endpoints()[0])
			}
			if err == nil {
				t.Error("the call that needed the sync was answered as if it had been done")
			}
			select {
			case <-n.Done():
			case <-time.After(10 * time.Second):
				t.Fatalf("the member goes on after a failed sync\n%s", m.log)
			}
			if err := n.Wait(); !errors.Is(err, injected) {
				t.Errorf("it ended with %v", err)
			}
			m.node = nil
			gone.Store(true)
			dir := m.config.DataDir // the former one may still be locked: what stands still does not close
			m.config.DataDir += ".again"
			check(t, os.CopyFS(m.config.DataDir, os.DirFS(dir)))
			key, err := os.ReadFile(dir + ".kek")
			check(t, err)
			check(t, os.WriteFile(m.config.DataDir+".kek", key, 0o400))
			m.config.Listen.Client = config.MustURLs(fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))
			m.config.Advertise.Client = m.config.Listen.Client
			m.start()
			cl = dial(t, m)
			wantKey(t, cl, "before", "v")
			if acked {
				wantKey(t, cl, "after", "v")
			}
		})
	}
}

// TestFullDiskAtStart: the storage engine does not return from a manifest that it cannot write. The start ends all the same,
// with the reason.
func TestFullDiskAtStart(t *testing.T) {
	t.Parallel()
	m := etcdCluster(t, 1)[0]
	m.start()
	put(t, dial(t, m), "before", "v")
	m.stop()
	env := m.env()
	env.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite && strings.HasPrefix(filepath.Base(op.Path), "MANIFEST-") {
			return syscall.ENOSPC
		}
		return nil
	}))
	c := *m.config
	n, err := node.Start(t.Context(), &c, env)
	if err == nil {
		<-n.Done()
		err = n.Wait()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("it ended with %v", err)
	}
}

// TestStopOnADeadDisk asks a member to end whose disk stops to work meanwhile: it ends, though parts of it stand still.
func TestStopOnADeadDisk(t *testing.T) {
	t.Parallel()
	for _, whose := range []string{"a client's flush", "the log's flush"} {
		t.Run(whose, func(t *testing.T) {
			t.Parallel()
			stopOnADeadDisk(t, whose == "the log's flush")
		})
	}
}

func stopOnADeadDisk(t *testing.T, log bool) {
	injected := errors.New("input/output error")
	m := etcdCluster(t, 1, func(_ int, c *config.Config) { c.Raft.SnapshotCount, c.Raft.CatchUpEntries = 30, 10 })[0]
	var dead atomic.Bool
	reached, ending := make(chan struct{}), make(chan struct{})
	env := m.env()
	env.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && strings.HasPrefix(filepath.Base(op.Path), "MANIFEST-") && dead.CompareAndSwap(true, false) {
			close(reached)
			<-ending
			return injected
		}
		return nil
	}))
	c := *m.config
	n, err := node.Start(t.Context(), &c, env)
	check(t, err)
	select {
	case <-n.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	cl := dial(t, m)
	put(t, cl, "k", "v")
	dead.Store(true)
	if log {
		for range 60 {
			put(t, cl, "k", "v")
		}
	} else {
		go func() { // a flush is under way while the member ends; its answer is of no account
			_, _ = cl.Defragment(t.Context(), cl.Endpoints()[0])
		}()
	}
	<-reached
	ctx, cancel := node.StopContext()
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- n.Stop(ctx) }()
	m.logs("closing server")
	if !log {
		<-n.Ending()
	}
	close(ending)
	select {
	case err := <-ended:
		if !errors.Is(err, injected) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the member does not end")
	}
}
