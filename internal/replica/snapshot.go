package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// The bounds of a snapshot's connection.
const (
	chunkBytes       = 128 << 10
	maxSnapshotHead  = 64 << 10
	snapshotDeadline = time.Minute // without a byte moving
	snapshotPause    = time.Second // before raft is told of a failure, and tries again
)

// snapshotHead opens a snapshot's stream: the sender's term, and where the state is.
type snapshotHead struct {
	term uint64
	position
	voters, learners []uint64
}

func (h snapshotHead) encode() []byte {
	b, at := beginFrame(nil, frameSnapshot)
	for _, v := range [...]uint64{h.term, h.index, h.position.term} {
		b = binary.AppendUvarint(b, v)
	}
	return endFrame(appendIDs(appendIDs(b, h.voters), h.learners), at)
}

func decodeSnapshotHead(b []byte) (snapshotHead, error) {
	r := reader{b: b}
	h := snapshotHead{term: r.uvarint(), position: position{r.uvarint(), r.uvarint()}}
	h.voters, h.learners = r.ids(), r.ids()
	if err := r.end("snapshot"); err != nil {
		return snapshotHead{}, err
	}
	if h.index == 0 || h.position.term == 0 || h.position.term > h.term || len(h.voters) == 0 {
		return snapshotHead{}, fmt.Errorf("snapshot at %v: %w", h.position, errMalformed)
	}
	return h, nil
}

func (h snapshotHead) conf() *pb.ConfState {
	conf := pb.EnsureConfState(nil)
	conf.Voters, conf.Learners = h.voters, h.learners
	return conf
}

// received is a state that has arrived and is durable, but does not count yet.
type received struct {
	staged Staged
	number uint64 // of its directory
	head   snapshotHead
	done   chan error  // capacity 1; nil once it is installed
	taken  atomic.Bool // by the appender, to be installed, or by the receiver, to be discarded
}

var errNotNeeded = errors.New("the snapshot is not needed any more")

// discardStaged gets rid of a received state that raft did not ask to be installed.
func (r *Replica) discardStaged() {
	if r.staged != nil {
		r.staged.done <- errNotNeeded
		r.staged = nil
	}
}

// send sends a message of raft, or begins to send a snapshot.
func (r *Replica) send(m *pb.Message) {
	if m.GetType() != pb.MsgSnap {
		r.peers.send(m)
		return
	}
	id := m.GetTo()
	t := r.peers
	t.mu.Lock()
	p := t.peers[id]
	busy := p == nil || p.sending
	if !busy {
		p.sending = true
	}
	t.mu.Unlock()
	if busy {
		r.box.put(event{do: func() { r.member.SnapshotSent(id, false) }})
		return
	}
	pinned := make(chan func() (Snapshot, error), 1)
	r.applying++
	r.applies.put(applyWork{do: func() {
		s, err := r.o.Machine.Snapshot()
		pinned <- func() (Snapshot, error) { return s, err }
	}})
	t.workers.Go(func() {
		var err error
		select {
		case get := <-pinned:
			err = r.sendSnapshot(p, m.GetTerm(), get)
		case <-r.stop:
			err = ErrStopped
		}
		if err != nil {
			r.logger.Warn("sending a snapshot failed", "peer", hex(id), "err", err)
			select {
			case <-r.o.Clock.After(snapshotPause):
			case <-r.stop:
			}
		} else {
			r.count(func(c *Counters) { c.SnapshotsSent++ })
		}
		t.mu.Lock()
		p.sending = false
		t.mu.Unlock()
		r.box.put(event{do: func() { r.member.SnapshotSent(id, err == nil) }})
	})
}

func (r *Replica) sendSnapshot(p *peer, term uint64, pinned func() (Snapshot, error)) (err error) {
	s, err := pinned()
	if err != nil {
		return fmt.Errorf("pin the state: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	state := s.State()
	at := position{index: state.Applied}
	if at.term, err = r.log.Term(at.index); err != nil {
		return fmt.Errorf("term of index %d: %w", at.index, err)
	}
	conf := confState(state.Members)
	conn, _, err := r.peers.dial(r.peers.ctx, p, linkSnapshots)
	if err != nil {
		return err
	}
	defer conn.Close() // everything was acknowledged, or it failed
	r.logger.Info("sending a snapshot", "peer", hex(p.id), "index", at.index)
	w := &chunkWriter{r: r, conn: conn}
	if err := w.write(snapshotHead{max(term, at.term), at, conf.Voters, conf.Learners}.encode()); err != nil {
		return err
	}
	if _, err := s.WriteTo(w); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return err
	}
	return w.verdict()
}

// chunkWriter cuts a snapshot into frames.
type chunkWriter struct {
	r    *Replica
	conn net.Conn
	buf  []byte
	sum  uint32
	size uint64
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	n := len(p)
	w.sum = crc32.Update(w.sum, crc32.MakeTable(crc32.Castagnoli), p)
	w.size += uint64(n)
	for len(p) > 0 {
		if len(w.buf) == 0 {
			w.buf, _ = beginFrame(slices.Grow(w.buf, chunkBytes+frameHeader), frameChunk)
		}
		take := min(len(p), chunkBytes+frameHeader-len(w.buf))
		w.buf, p = append(w.buf, p[:take]...), p[take:]
		if len(w.buf) == chunkBytes+frameHeader {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.write(endFrame(w.buf, 0))
	w.buf = w.buf[:0]
	return err
}

func (w *chunkWriter) write(b []byte) error {
	if err := w.conn.SetDeadline(w.r.o.Clock.Now().Add(snapshotDeadline)); err != nil {
		return err
	}
	_, err := w.conn.Write(b)
	return err
}

func (w *chunkWriter) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	b, at := beginFrame(nil, frameEnd)
	b = binary.AppendUvarint(b, w.size)
	return w.write(endFrame(binary.AppendUvarint(b, uint64(w.sum)), at))
}

// verdict waits for the receiver to have installed the snapshot, or to say why not.
func (w *chunkWriter) verdict() error {
	for {
		if err := w.conn.SetDeadline(w.r.o.Clock.Now().Add(snapshotDeadline)); err != nil {
			return err
		}
		t, text, err := readFrame(w.conn, maxSnapshotHead)
		switch {
		case err != nil:
			return err
		case t == framePing: // it is still at it
		case t != frameDone:
			return fmt.Errorf("verdict on a snapshot: %w", errMalformed)
		case len(text) > 0:
			return fmt.Errorf("the peer did not take the snapshot: %q", text)
		default:
			return nil
		}
	}
}

// chunkReader is what chunkWriter wrote, up to the end frame.
type chunkReader struct {
	r    *Replica
	conn net.Conn
	rest []byte
	sum  uint32
	size uint64
	err  error
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.err = c.next()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *chunkReader) next() error {
	if err := c.conn.SetDeadline(c.r.o.Clock.Now().Add(snapshotDeadline)); err != nil {
		return err
	}
	t, b, err := readFrame(c.conn, chunkBytes)
	if err != nil {
		return noEOF(err)
	}
	switch t {
	case frameChunk:
		c.sum = crc32.Update(c.sum, crc32.MakeTable(crc32.Castagnoli), b)
		c.size += uint64(len(b))
		c.rest = b
		return nil
	case frameEnd:
		r := reader{b: b}
		size, sum := r.uvarint(), r.uvarint()
		if err := r.end("end of a snapshot"); err != nil {
			return err
		}
		if size != c.size || sum != uint64(c.sum) {
			return fmt.Errorf("the snapshot was damaged on its way: %w", errMalformed)
		}
		return io.EOF
	}
	return fmt.Errorf("frame of type %d in a snapshot: %w", t, errMalformed)
}

// receiveSnapshot serves a connection that brings one.
func (r *Replica) receiveSnapshot(conn net.Conn, from uint64) {
	if !r.receiving.CompareAndSwap(false, true) {
		r.verdictOn(conn, errors.New("another snapshot is being received"))
		return
	}
	err := r.receive(conn, from)
	r.receiving.Store(false)
	if err != nil {
		r.logger.Warn("receiving a snapshot failed", "peer", hex(from), "err", err)
	}
	r.verdictOn(conn, err)
}

func (r *Replica) verdictOn(conn net.Conn, verdict error) {
	b, at := beginFrame(nil, frameDone)
	if verdict != nil {
		text := verdict.Error()
		b = append(b, text[:min(len(text), 1024)]...)
	}
	if err := conn.SetDeadline(r.o.Clock.Now().Add(linkDeadline)); err != nil {
		return // the peer takes silence for a failure
	}
	_, _ = conn.Write(endFrame(b, at)) // likewise
}

func (r *Replica) receive(conn net.Conn, from uint64) error {
	if err := conn.SetDeadline(r.o.Clock.Now().Add(snapshotDeadline)); err != nil {
		return err
	}
	t, b, err := readFrame(conn, maxSnapshotHead)
	if err != nil {
		return err
	}
	if t != frameSnapshot {
		return fmt.Errorf("frame of type %d before a snapshot: %w", t, errMalformed)
	}
	head, err := decodeSnapshotHead(b)
	if err != nil {
		return err
	}
	if s := r.Status(); head.index <= s.Committed || head.term < s.Term {
		return errNotNeeded
	}
	r.logger.Info("receiving a snapshot", "peer", hex(from), "index", head.index)
	rec := &received{number: r.store.marker.state + 1, head: head, done: make(chan error, 1)}
	dir := r.store.stateDir(rec.number)
	err = r.stage(conn, dir, rec)
	if err == nil {
		err = r.offer(conn, from, rec)
	}
	if err != nil && rec.taken.CompareAndSwap(false, true) {
		if rec.staged != nil {
			err = errors.Join(err, rec.staged.Discard())
		}
		if e := r.store.fs.RemoveAll(dir); e != nil && !isNotExist(e) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// stage has the machine build the state that arrives.
func (r *Replica) stage(conn net.Conn, dir string, rec *received) (err error) {
	if err := r.store.fs.RemoveAll(dir); err != nil && !isNotExist(err) {
		return err
	}
	in := &chunkReader{r: r, conn: conn}
	if rec.staged, err = r.o.Machine.Stage(dir, in); err != nil {
		return fmt.Errorf("build the received state: %w", err)
	}
	if n, err := io.Copy(io.Discard, in); err != nil || n > 0 {
		return fmt.Errorf("%d bytes after the end of the received state: %w", n, err)
	}
	s := rec.staged.State()
	conf := confState(s.Members)
	if s.Applied != rec.head.index || s.Durable != s.Applied || !slices.Equal(conf.Voters, rec.head.voters) || !slices.Equal(conf.Learners, rec.head.learners) {
		return fmt.Errorf("the received state is at index %d (durable %d) with voters %x, not what was announced: %w", s.Applied, s.Durable, conf.Voters, errMalformed)
	}
	return syncDir(r.store.fs, r.store.dir)
}

// offer tells raft of a staged state, and waits until it is installed or turned down.
func (r *Replica) offer(conn net.Conn, from uint64, rec *received) error {
	index, term := rec.head.index, rec.head.position.term
	m := &pb.Message{
		Type: pb.MsgSnap.Enum(), From: &from, To: &r.peers.self, Term: &rec.head.term,
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &index, Term: &term, ConfState: rec.head.conf()}},
	}
	if !r.box.put(event{do: func() { r.staged = rec; r.stepStaged(m) }}) {
		return ErrStopped
	}
	for {
		select {
		case err := <-rec.done:
			return err
		case <-r.stop:
			return ErrStopped
		case <-r.o.Clock.After(linkDeadline):
			if err := conn.SetDeadline(r.o.Clock.Now().Add(snapshotDeadline)); err != nil {
				continue // installed or not, it is out of this connection's hands
			}
			_, _ = conn.Write(pingFrame()) // likewise
		}
	}
}

func (r *Replica) stepStaged(m *pb.Message) {
	if err := r.member.Step(m); err != nil {
		r.halt(err)
	}
}

// install makes a received state the one that counts. The appender calls it while nothing is being applied. The order is what a crash at each step
// relies on: the state is durable; the marker names it; the log is reset; the machine switches; the former state goes.
func (r *Replica) install(w *appendWork) (State, error) {
	rec := w.received
	if rec == nil {
		return State{}, errors.New("raft asks for a snapshot that nobody has received")
	}
	if !rec.taken.CompareAndSwap(false, true) {
		return State{}, ErrStopped // the receiver has given up
	}
	former := r.store.StateDir()
	m := r.store.marker
	m.state, m.start, m.voters, m.learners = rec.number, rec.head.position, rec.head.voters, rec.head.learners
	m.segment = r.log.newest()
	// gofail: var raftBeforeSaveSnap struct{}
	if err := r.store.writeMarker(m); err != nil {
		return State{}, err
	}
	// gofail: var raftAfterSaveSnap struct{}

	// gofail: var raftBeforeApplySnap struct{}
	if err := r.log.reset(rec.head.position, hardOf(w.message)); err != nil {
		return State{}, err
	}
	// gofail: var raftAfterWALRelease struct{}

	// gofail: var applyBeforeOpenSnapshot struct{}
	if err := rec.staged.Install(); err != nil {
		return State{}, err
	}
	if err := r.store.fs.RemoveAll(former); err != nil {
		r.logger.Warn("remove the former state", "dir", former, "err", err) // the next start tries again
	}
	r.appliedTo(rec.head.index)
	r.count(func(c *Counters) { c.SnapshotsTaken++ })
	rec.done <- nil
	return r.o.Machine.State(), nil
}

func (r *Replica) takeInstalled(i *installed) {
	r.member.Appended(i.message)
	r.setMembers(i.state)
	r.log.setSnapshot(r.member.applied, r.member.conf)
	r.updateSolo()
	r.logger.Info("installed a snapshot", "index", i.state.Applied)
}
