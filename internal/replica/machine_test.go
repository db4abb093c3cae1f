package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fault"
)

// ledger is the machine of the tests: it remembers every batch that it was given, once, in order. Its state is one file.
type ledger struct {
	fs  vfs.FS
	dir string

	flushEvery int // entries; 0: only when asked

	mu      sync.Mutex
	state   State
	batches []string // ids in the order of their application
	seen    map[string]bool
	dups    int
	pending int
	failing error
	onApply func([]Entry)
}

const ledgerFile = "ledger"

func newLedger(fs vfs.FS, dir string) *ledger {
	return &ledger{fs: fs, dir: dir, seen: map[string]bool{}}
}

// buildLedger is what Create calls.
func buildLedger(fs vfs.FS, dir string, members []Peer) error {
	m := newLedger(fs, dir)
	m.state.Members = members
	if len(members) > 0 {
		m.state.Applied = 1
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return m.Flush()
}

func openLedger(fs vfs.FS, dir string) (*ledger, error) {
	m := newLedger(fs, dir)
	f, err := fs.Open(fs.PathJoin(dir, ledgerFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return m, m.decode(data)
}

func (m *ledger) encodeLocked() []byte {
	b := binary.BigEndian.AppendUint64(nil, m.state.Applied)
	b = binary.AppendUvarint(b, uint64(len(m.state.Members)))
	for _, p := range m.state.Members {
		b = append(b, encodePeer(p)...)
	}
	b = appendIDs(b, m.state.Removed)
	b = binary.AppendUvarint(b, uint64(len(m.batches)))
	for _, s := range m.batches {
		b = appendBytes(b, []byte(s))
	}
	return b
}

func (m *ledger) decode(data []byte) error {
	r := reader{b: data}
	m.state.Applied = r.uint64()
	m.state.Durable = m.state.Applied
	for n := r.uvarint(); n > 0; n-- {
		m.state.Members = append(m.state.Members, r.peer())
	}
	m.state.Removed = r.ids()
	for n := r.uvarint(); n > 0; n-- {
		id := string(r.bytes(1 << 20))
		m.batches = append(m.batches, id)
		m.seen[id] = true
	}
	return r.end("ledger")
}

func encodePeer(p Peer) []byte {
	b := binary.AppendUvarint(nil, p.ID)
	b = append(b, map[bool]byte{true: 1}[p.Learner])
	url := ""
	if len(p.URLs) > 0 {
		url = p.URLs[0]
	}
	return appendBytes(b, []byte(url))
}

func (r *reader) peer() Peer {
	p := Peer{ID: r.uvarint(), Learner: r.byte() == 1}
	if url := string(r.bytes(100)); url != "" {
		p.URLs = []string{url}
	}
	return p
}

// ledgerChange makes a Change that a ledger understands.
func ledgerChange(kind ChangeKind, p Peer) Change {
	return Change{Kind: kind, Member: p.ID, Data: append([]byte{byte(kind)}, encodePeer(p)...)}
}

// batch makes a proposal with an id of its own: version, time, id.
func batch(id string) []byte { return append(make([]byte, 9), id...) }

func stampBatch(data []byte) bool {
	if len(data) < 9 || data[0] != 0 {
		return false
	}
	binary.BigEndian.PutUint64(data[1:], 42)
	return true
}

var errRefusedChange = fault.New(fault.Conflict, "the ledger refuses the change")

func (m *ledger) Apply(entries []Entry) ([]Decision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing != nil {
		return nil, m.failing
	}
	var decisions []Decision
	for _, e := range entries {
		if e.Index != m.state.Applied+1 {
			return nil, fmt.Errorf("entry %d after %d", e.Index, m.state.Applied)
		}
		m.state.Applied = e.Index
		switch {
		case e.Conf != nil:
			if len(entries) != 1 {
				return nil, errors.New("a configuration change in company")
			}
			decisions = append(decisions, Decision{e.Index, m.changeLocked(e.Conf)})
		case len(e.Data) > 0:
			if binary.BigEndian.Uint64(e.Data[1:]) != 42 {
				return nil, fmt.Errorf("entry %d was not stamped", e.Index)
			}
			id := string(e.Data[9:])
			if m.seen[id] {
				m.dups++
				continue
			}
			m.seen[id] = true
			m.batches = append(m.batches, id)
		}
	}
	if m.onApply != nil {
		m.onApply(entries)
	}
	m.pending += len(entries)
	if m.flushEvery > 0 && m.pending >= m.flushEvery {
		return decisions, m.flushLocked()
	}
	return decisions, nil
}

func (m *ledger) changeLocked(conf []byte) error {
	r := reader{b: conf}
	kind := ChangeKind(r.byte())
	p := r.peer()
	if err := r.end("change"); err != nil {
		return err
	}
	i := slices.IndexFunc(m.state.Members, func(x Peer) bool { return x.ID == p.ID })
	members := slices.Clone(m.state.Members)
	switch {
	case kind == Remove && i >= 0 && len(members) > 1:
		members = slices.Delete(members, i, i+1)
		m.state.Removed = append(slices.Clone(m.state.Removed), p.ID)
	case (kind == AddVoter || kind == Update) && i >= 0:
		members[i] = p
	case (kind == AddVoter || kind == AddLearner) && i < 0:
		members = append(members, p)
	default:
		return errRefusedChange
	}
	m.state.Members = members
	return nil
}

func (m *ledger) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *ledger) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushLocked()
}

func (m *ledger) flushLocked() error {
	if err := writeDurable(m.fs, m.fs.PathJoin(m.dir, ledgerFile), m.encodeLocked()); err != nil {
		return err
	}
	m.state.Durable, m.pending = m.state.Applied, 0
	return nil
}

func writeDurable(fs vfs.FS, path string, data []byte) error {
	f, err := fs.Create(path+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fs.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(path))
}

type pinnedLedger struct {
	state State
	data  []byte
}

func (m *ledger) Snapshot() (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Durable = s.Applied
	return &pinnedLedger{s, m.encodeLocked()}, nil
}

func (p *pinnedLedger) State() State { return p.state }
func (p *pinnedLedger) Close() error { return nil }
func (p *pinnedLedger) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{bytes.NewReader(p.data)})
}

type stagedLedger struct {
	live *ledger
	next *ledger
}

func (m *ledger) Stage(dir string, r io.Reader) (Staged, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	next := newLedger(m.fs, dir)
	if err := next.decode(data); err != nil {
		return nil, err
	}
	if err := m.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &stagedLedger{m, next}, next.Flush()
}

func (s *stagedLedger) State() State   { return s.next.State() }
func (s *stagedLedger) Discard() error { return nil }

func (s *stagedLedger) Install() error {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	if s.next.state.Applied < s.live.state.Applied {
		return errors.New("a snapshot of the past")
	}
	s.live.dir, s.live.state, s.live.batches, s.live.seen, s.live.pending = s.next.dir, s.next.state, s.next.batches, s.next.seen, 0
	return nil
}

func (m *ledger) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[id]
}

func (m *ledger) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.batches)
}

// desk is the Source of the tests: callers propose and wait until the batch is applied or lost.
type desk struct {
	mu      sync.Mutex
	queue   [][]byte
	waiting map[string]chan error
	wake    func()
	lost    map[string]error
}

func newDesk() *desk { return &desk{waiting: map[string]chan error{}, lost: map[string]error{}} }

func (d *desk) Next(maxBytes int) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		return nil, false
	}
	data := d.queue[0]
	d.queue = d.queue[1:]
	return data, true
}

func (d *desk) Lost(data []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := string(data[9:])
	d.lost[id] = err
	if c := d.waiting[id]; c != nil {
		delete(d.waiting, id)
		c <- err
	}
}

func (d *desk) applied(entries []Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range entries {
		if len(e.Data) < 9 {
			continue
		}
		if c := d.waiting[string(e.Data[9:])]; c != nil {
			delete(d.waiting, string(e.Data[9:]))
			c <- nil
		}
	}
}

// propose proposes a batch and waits for its outcome.
func (d *desk) propose(ctx context.Context, id string) error {
	return d.wait(ctx, d.start(id), id)
}

func (d *desk) start(id string) chan error {
	c := make(chan error, 1)
	d.mu.Lock()
	d.waiting[id] = c
	d.queue = append(d.queue, batch(id))
	wake := d.wake
	d.mu.Unlock()
	wake()
	return c
}

func (d *desk) wait(ctx context.Context, c chan error, id string) error {
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		d.mu.Lock()
		delete(d.waiting, id)
		d.mu.Unlock()
		return ctx.Err()
	}
}

func newTestRand() *rand.Rand { return rand.New(rand.NewPCG(1, 1)) }
