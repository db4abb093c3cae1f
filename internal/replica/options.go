package replica

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/seal"
)

// StoreOptions says where a member's durable part is. Zero sizes take the defaults.
type StoreOptions struct {
	FS     vfs.FS
	Dir    string // the data directory; its LOCK is the caller's to hold
	Ring   *seal.Keyring
	Logger *slog.Logger

	SegmentBytes int64 // a segment is rolled when it is larger; 16 MiB
	KeepBytes    int64 // log kept for members that lag; 128 MiB
	CacheBytes   int64 // entries held in memory; 16 MiB

	// KeepEntries, if not 0, bounds the log by entries too: this many stay behind what is durable, and the machine is
	// flushed after FlushEntries. It is for clusters that want laggards to receive snapshots early.
	KeepEntries, FlushEntries uint64
}

// Bootstrap says what a new member is.
type Bootstrap struct {
	Cluster, Member uint64
	// Voters is the configuration at index 1, term 1: the same on all initial members. It is empty for a member that joins
	// an existing cluster: it starts with an empty log and receives a snapshot.
	Voters []uint64
}

// Options are what a member needs to run. Machine, Source, Stamp, Clock and Rand are required.
type Options struct {
	Machine Machine
	Source  Source
	// Stamp writes the leader's time into a batch, in place, just before it is appended. It reports whether data is a
	// batch at all: a forwarded one that is not is refused.
	Stamp func(data []byte) bool

	Clock  Clock
	Rand   rand.Source // for election jitter, back-off and the ids of this run; used under a lock
	Logger *slog.Logger

	Tick           time.Duration // heartbeat interval; 100 ms
	ElectionTicks  int           // a follower waits between this and twice this many ticks for a leader; 10
	BatchBytes     int           // asked of Source.Next; 1 MiB
	EntryBytes     int           // the largest batch that is accepted from another member; 64 MiB
	AppendsPending int           // no batch is pulled while this many appends are under way; 2

	// Dial connects to a peer. Nil: this member reaches nobody.
	Dial func(ctx context.Context, member uint64, url string) (net.Conn, error)
	// Listener accepts peers; Run closes it. Nil: nobody reaches this member.
	Listener net.Listener
	// Identify verifies that the connection's other end is that member of this cluster, and returns its principal; the
	// connection may be one that Dial made or that Listener accepted. It is called before anything but the hello has
	// been exchanged. Nil refuses everybody.
	Identify func(conn net.Conn, member uint64) (policy.Principal, error)

	// OnLeader is called from the loop when Leadership changes. It must not block.
	OnLeader func(Leadership)
}
