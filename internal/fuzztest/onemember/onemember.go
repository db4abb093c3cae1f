// Package onemember runs a core over a log that commits at once: a member without disk, network and peers, fast enough to be
// asked thousands of questions a second by fuzz targets of the edges.
//
// Job: a Core that answers. Non-job: anything about replication, durability or time that passes; those have tests of their own.
//
// Lock order: mu is held while entries are applied and nothing is called under it but the core's Next and Apply.
package onemember

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// The ids of the cluster and its member.
const (
	Cluster = 0x123
	Member  = 0xabc
)

// Now is the time at which the member stands still.
func Now() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }

// Start returns the core of a new cluster of one. It is closed with the test.
func Start(t testing.TB) *core.Core {
	t.Helper()
	engine, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "state", Split: mvcc.Split, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	members := []state.Member{{ID: Member, Name: "m1", PeerURLs: []string{"https://127.0.0.1:2380"}, ClientURLs: []string{"https://127.0.0.1:2379"}}}
	if err := state.Bootstrap(engine, Cluster, members, state.MaxLevel, true); err != nil {
		t.Fatal(err)
	}
	machine, err := state.Open(engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := core.New(core.Options{
		Machine: machine, Member: Member, Boot: 1, Clock: Now, Rand: rand.Reader, Audit: deaf{}, Logger: slog.New(slog.DiscardHandler), BcryptCost: 4,
		NewEngine: func(string) (*storage.Engine, error) { return nil, core.ErrStopped },
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Attach(&log{core: c}, alone{})
	c.Tick(Now())
	t.Cleanup(func() {
		c.Close()
		c.Release()
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// deaf is an audit record that keeps nothing.
type deaf struct{}

func (deaf) Commit(audit.Event) error { return nil }
func (deaf) Note(audit.Event)         {}
func (deaf) Err() error               { return nil }

// alone are the peers of a cluster of one.
type alone struct{}

func (alone) Call(context.Context, uint64, string, []byte) ([]byte, error) {
	return nil, core.ErrNoLeader
}
func (alone) Handle(string, replica.Handler) {}

// log commits and applies whatever is proposed, on the proposer's goroutine.
type log struct {
	core *core.Core

	mu            sync.Mutex
	index         uint64
	busy, pending bool
}

// Wake takes what waits, unless somebody is at it, who then takes it too.
func (l *log) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = true
	if l.busy {
		return
	}
	l.busy = true
	for l.pending {
		l.pending = false
		l.mu.Unlock()
		for {
			data, ok := l.core.Next(1 << 20)
			if !ok {
				break
			}
			state.StampBatch(data, Now().UnixMilli())
			if _, err := l.apply(replica.Entry{Data: data}); err != nil {
				panic(err) // the machine refused what core proposed: the finding of a fuzz target
			}
		}
		l.mu.Lock()
	}
	l.busy = false
}

func (l *log) apply(e replica.Entry) ([]replica.Decision, error) {
	l.mu.Lock()
	l.index++
	e.Index, e.Term = l.index, 2
	l.mu.Unlock()
	return l.core.Apply([]replica.Entry{e})
}

// ReadIndex implements core's Log.
func (l *log) ReadIndex(context.Context) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index, nil
}

// ProposeConf implements core's Log.
func (l *log) ProposeConf(_ context.Context, c replica.Change) error {
	decisions, err := l.apply(replica.Entry{Conf: c.Data})
	if err != nil {
		return err
	}
	return decisions[0].Err
}

// TransferLeader implements core's Log.
func (l *log) TransferLeader(context.Context, uint64) error { return nil }

// Status implements core's Log.
func (l *log) Status() replica.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return replica.Status{Leadership: replica.Leadership{Leader: Member, Self: true, Term: 2}, Committed: l.index, Applied: l.index}
}
