package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A crash at each step of receiving a snapshot: the disk is cloned before every operation that makes something durable,
// and each clone must open, hold either the former or the received state, and catch up.
func TestCrashAtEachStepOfASnapshot(t *testing.T) {
	c := newCluster(t, 3)
	all := []uint64{1, 2, 3}
	c.leader(all...)
	for i := range 10 {
		c.put(c.nodes[1], fmt.Sprint("first", i))
	}
	c.converge(all...)
	lag := c.nodes[3]
	if err := lag.kill(); err != nil {
		t.Fatal(err)
	}
	lead := c.leader(1, 2)
	big := strings.Repeat("x", 8<<10)
	for i := range 80 {
		c.put(lead, fmt.Sprint("big", i, big))
	}
	c.eventually("the log is cut", func() bool { return lead.r.Status().First > 20 })
	before := lag.ledger.State().Applied

	var mu sync.Mutex
	var clones []*vfs.MemFS
	var steps []string
	lag.wrap = func(fs vfs.FS) vfs.FS {
		mem := lag.fs
		return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRename, errorfs.OpRemove, errorfs.OpRemoveAll:
				clone := mem.CrashClone(vfs.CrashCloneCfg{})
				mu.Lock()
				defer mu.Unlock()
				clones, steps = append(clones, clone), append(steps, fmt.Sprintf("%v %s", op.Kind, op.Path))
			}
			return nil
		}))
	}
	if err := c.restart(lag, lag.fs); err != nil {
		t.Fatal(err)
	}
	c.eventually("a snapshot is installed", func() bool { return lag.r.Status().Counters.SnapshotsTaken > 0 })
	c.converge(all...)
	if err := lag.kill(); err != nil {
		t.Fatal(err)
	}
	lag.wrap = nil
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d crashes", len(clones))
	stages := map[string]int{}
	for i, clone := range clones {
		// The disk is an older one than the member's peers remember, unless the leader is a new one.
		to := 3 - c.leader(1, 2).id
		if err := c.nodes[1].r.TransferLeader(c.ctx, to); err != nil {
			t.Fatal(err)
		}
		if err := c.restart(lag, clone); err != nil {
			t.Fatalf("crash before %s: %v", steps[i], err)
		}
		switch applied := lag.openedApplied; {
		case lag.store.FS.(*vfs.MemFS) != clone:
			t.Fatal("not the clone")
		case lag.opened == 1 && applied >= before-8:
			stages["former"]++
		case lag.opened == 2 && applied > 20:
			stages["received"]++
		default:
			t.Fatalf("crash before %s: state %d at %d", steps[i], lag.opened, applied)
		}
		c.converge(all...)
		if err := lag.kill(); err != nil {
			t.Fatal(err)
		}
	}
	if stages["former"] == 0 || stages["received"] == 0 {
		t.Errorf("not every stage was met: %v", stages)
	}
}

// pipe connects a writer and a reader of a snapshot.
func chunkPipe(r *Replica) (*chunkWriter, *chunkReader, net.Conn, net.Conn) {
	a, b := net.Pipe()
	return &chunkWriter{r: r, conn: a}, &chunkReader{r: r, conn: b}, a, b
}

func TestChunks(t *testing.T) {
	r := &Replica{o: Options{Clock: Wall{}}}
	for _, n := range []int{0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 7} {
		w, in, a, b := chunkPipe(r)
		data := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(w, io.LimitReader(bytes.NewReader(data), int64(n)))
			sent <- errors.Join(err, w.end())
		}()
		got, err := io.ReadAll(in)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		a.Close()
		b.Close()
	}
}

func TestCutOffSnapshot(t *testing.T) {
	r := &Replica{o: Options{Clock: Wall{}}}
	w, in, a, b := chunkPipe(r)
	defer b.Close()
	go func() {
		w.Write(make([]byte, 2*chunkBytes))
		a.Close()
	}()
	if _, err := io.ReadAll(in); err == nil {
		t.Error("a snapshot without its end was taken for whole")
	}
}

func TestDamagedSnapshot(t *testing.T) {
	r := &Replica{o: Options{Clock: Wall{}}}
	w, in, a, b := chunkPipe(r)
	defer a.Close()
	defer b.Close()
	go func() {
		w.Write(make([]byte, chunkBytes))
		w.sum++
		w.end()
	}()
	if _, err := io.ReadAll(in); !errors.Is(err, errMalformed) {
		t.Errorf("a damaged snapshot: %v", err)
	}
}
