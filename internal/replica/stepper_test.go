package replica

import (
	"math/rand/v2"
	"net"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/policy"
)

// stubborn is a source whose only batch comes back whenever it is lost for certain, as core's requests do.
type stubborn struct {
	t      *testing.T
	batch  []byte
	pulled int
}

func (s *stubborn) Next(int) ([]byte, bool) {
	data := s.batch
	if s.batch = nil; data == nil {
		return nil, false
	}
	if s.pulled++; s.pulled > 1000 {
		panic("the batch is pulled and given back for ever")
	}
	return data, true
}

func (s *stubborn) Lost(data []byte, err error) {
	if err == ErrDropped {
		s.batch = data
	}
}

// three steps three members that are connected to each other.
type three struct {
	t       *testing.T
	members []*Stepper
	sources []*stubborn
	wires   map[[2]int][2]*Wire // by who dials whom
}

func newThree(t *testing.T) *three {
	c := &three{t: t, wires: map[[2]int][2]*Wire{}}
	var peers []Peer
	for id := range uint64(3) {
		peers = append(peers, Peer{ID: id + 1, URLs: []string{"somewhere"}})
	}
	for id := uint64(1); id <= 3; id++ {
		fs := vfs.NewMem()
		o := StoreOptions{FS: fs, Dir: dataDir, Ring: newRing(t, fs, dataDir), SegmentBytes: growthSegment}
		store, err := Create(o, Bootstrap{Cluster: testCluster, Member: id, Voters: []uint64{1, 2, 3}}, func(dir string) error { return buildLedger(fs, dir, peers) })
		if err != nil {
			t.Fatal(err)
		}
		machine, err := openLedger(fs, store.StateDir())
		if err != nil {
			t.Fatal(err)
		}
		source := &stubborn{t: t}
		s, err := NewStepper(store, Options{
			Machine: machine, Source: source, Stamp: stampBatch, Clock: Wall{}, Rand: rand.NewPCG(id, 1),
			Identify: func(net.Conn, uint64) (policy.Principal, error) {
				return policy.NewMember("peer", policy.Certificate{}), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Kill() })
		c.members, c.sources = append(c.members, s), append(c.sources, source)
		c.check(s.Begin())
	}
	for i, from := range c.members {
		for k, to := range c.members {
			if i != k {
				at, there, err := Connect(from, to)
				c.check(err)
				c.wires[[2]int{i, k}] = [2]*Wire{at, there}
			}
		}
	}
	return c
}

func (c *three) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// work does what a member has to do, without a tick.
func (c *three) work(s *Stepper) {
	c.t.Helper()
	for s.Waiting() || s.Appends() > 0 || s.Unsynced() > 0 || s.Applies() > 0 {
		c.check(s.Turn(false))
		c.check(s.Write())
		c.check(s.Sync())
		c.check(s.Apply(10))
	}
}

// exchange delivers what has been sent.
func (c *three) exchange() {
	c.t.Helper()
	for range 50 {
		for i := range c.members {
			c.work(c.members[i])
			for k := range c.members {
				if w, ok := c.wires[[2]int{i, k}]; ok {
					for dir := range w {
						for _, p := range w[dir].Take() {
							c.check(w[1-dir].Deliver(p))
						}
					}
				}
			}
		}
	}
}

// A leader that finds in a tick that it has no quorum, while a batch waits, must not go on offering the batch to raft, which takes
// none any more: it would never come to hear that it leads no more.
func TestSteppingDownWithABatchThatWaits(t *testing.T) {
	t.Parallel()
	c := newThree(t)
	leader := -1
	for range 100 {
		for i, s := range c.members {
			c.check(s.Turn(true))
			c.exchange()
			if s.Replica().Status().Self {
				leader = i
			}
		}
		if leader >= 0 {
			break
		}
	}
	if leader < 0 {
		t.Fatal("nobody is elected")
	}
	s, source := c.members[leader], c.sources[leader]
	for range 40 {
		source.batch = batch("waits") // put there without a wake-up, as between two turns
		c.check(s.Turn(true))
		c.work(s)
		if s.Replica().Status().Leader == 0 {
			return
		}
	}
	t.Fatal("a leader without a quorum goes on leading")
}
