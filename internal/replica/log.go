package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/seal"
)

// raftLog is the sealed log, and raft's Storage. One goroutine at a time, the appender, calls append, sync, reset and
// cut; every other method may be called from any goroutine. After an error of append, sync or reset it must not be used
// any more: what is on disk is not known.
type raftLog struct {
	fs     vfs.FS
	dir    string
	ring   *seal.Keyring
	limits logLimits
	id     logID
	logger *slog.Logger

	// owned by the appender
	writer    *seal.StreamWriter
	preparing sync.WaitGroup
	prepared  atomic.Int32
	fresh     bool // nothing has been written to the newest segment
	synced    bool
	inSegment uint64 // entries in the newest segment
	zeroed    int64  // size of the newest segment
	buf       []byte

	mu       sync.Mutex
	start    position // the entry before the first one that is held
	last     uint64
	hard     hardState
	written  hardState  // what the newest frame with a hard state says
	terms    []position // where each term begins
	segments []*segment // the last one is written to
	cache    []*pb.Entry
	cacheLen int64 // bytes in cache
	snapshot *pb.Snapshot
	conf     *pb.ConfState // of the machine, at start
	counters logCounters
}

type logLimits struct {
	segment, keep, cache      int64  // bytes
	keepEntries, flushEntries uint64 // 0: bytes alone decide
}

// rollEntries is how many entries a segment holds at most; 0: bytes alone decide.
func (l logLimits) rollEntries() uint64 {
	if l.keepEntries == 0 {
		return 0
	}
	return max(l.keepEntries/2, leastEntries())
}

// leastEntries is the least by which a log that is bounded in entries is cut. A laboratory build that keeps what it cuts is there
// to be watched while it does, and cuts more finely.
func leastEntries() uint64 {
	if lab.KeepLog() {
		return 4
	}
	return 16
}

// logID says whose log it is; it is in every segment's context.
type logID struct{ cluster, member uint64 }

type logCounters struct{ appends, bytes, syncs, cut uint64 }

// entryOverhead is what an entry in memory takes besides its data.
const entryOverhead = 128

func (id logID) context(base position) []byte {
	b := []byte{1}
	for _, v := range [...]uint64{id.cluster, id.member, base.index, base.term} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func decodeContext(b []byte) (id logID, base position, err error) {
	r := reader{b: b}
	version := r.byte()
	id = logID{r.uint64(), r.uint64()}
	base = position{r.uint64(), r.uint64()}
	if err := r.end("segment context"); err != nil {
		return logID{}, position{}, err
	}
	if version != 1 {
		return logID{}, position{}, fmt.Errorf("segment context of version %d: %w", version, errMalformed)
	}
	return id, base, nil
}

// frameRoom is more than a frame takes besides its record, and segmentRoom than what comes before the first record.
const (
	frameRoom   = 64
	segmentRoom = 1 << 10
)

// startSegment creates the segment after prev, with room for a frame of need bytes, and makes its name durable. A frame
// stays within what was zero before: only there does damage to the last one show, because a crash leaves zeros.
func (l *raftLog) startSegment(number uint64, prev seal.PrevSegment, need int64) error {
	l.mu.Lock()
	base := position{l.last, l.termLocked(l.last)}
	l.mu.Unlock()
	path := l.fs.PathJoin(l.dir, segmentName(number))
	o := seal.StreamOptions{Segment: number, Prev: prev, Context: l.id.context(base)}
	l.preparing.Wait()
	l.zeroed = max(l.limits.segment, need+segmentRoom)
	if l.zeroed == l.limits.segment && l.prepared.CompareAndSwap(preparedReady, preparedNone) {
		o.Prepared = l.preparedPath()
	} else {
		o.Preallocate = l.zeroed
		l.prepared.CompareAndSwap(preparedBusy, preparedNone)
	}
	w, err := seal.CreateStream(l.fs, l.ring, path, o)
	if err != nil {
		return fmt.Errorf("create log segment: %w", err)
	}
	l.writer, l.fresh, l.inSegment = w, true, 0
	l.mu.Lock()
	l.segments = append(l.segments, &segment{number: number, path: path, handle: w})
	l.mu.Unlock()
	return nil
}

// The states of raftLog.prepared.
const (
	preparedNone = iota
	preparedBusy
	preparedReady
)

func (l *raftLog) preparedPath() string { return l.fs.PathJoin(l.dir, "next.zero") }

// prepare fills the file of the next segment with zeros, so that rolling does not have to wait for it.
func (l *raftLog) prepare() {
	if !l.prepared.CompareAndSwap(preparedNone, preparedBusy) {
		return
	}
	l.preparing.Go(func() {
		if err := seal.PrepareStream(l.fs, l.preparedPath(), l.limits.segment); err != nil {
			l.logger.Warn("preparing a log segment", "err", err)
			return // stays busy: the roll makes its own
		}
		l.prepared.Store(preparedReady)
	})
}

// roll ends the newest segment and starts the next one, with room for a frame of need bytes.
func (l *raftLog) roll(need int64) error {
	if err := l.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	old := l.segments[len(l.segments)-1]
	l.mu.Unlock()
	// The old writer stays open as the reader of its frames, until the segment is cut.
	former := l.writer
	if err := l.startSegment(old.number+1, former.End(), need); err != nil {
		return err
	}
	former.Finish()
	return nil
}

// append writes the hard state, if it is not nil, and entries as one frame. What it holds is durable after sync. A hard
// state that differs in the commit index alone is only remembered: the next frame carries it, whether it comes with a hard
// state or not. Raft counts on that: an entry that changes the configuration must not be in the log without the knowledge
// that the change before it is committed, or a member that starts again could elect itself by a configuration two changes old.
func (l *raftLog) append(hard *hardState, entries []*pb.Entry) error {
	l.mu.Lock()
	c := record{kind: recordAppend, hard: l.hard, entries: entries}
	if hard != nil {
		c.hasHard = hard.term != l.hard.term || hard.vote != l.hard.vote
		l.hard, c.hard = *hard, *hard
	}
	c.hasHard = c.hasHard || len(entries) > 0 && l.hard != l.written
	if len(entries) > 0 {
		first := entries[0].GetIndex()
		if first <= l.start.index || first > l.last+1 {
			l.mu.Unlock()
			return fmt.Errorf("append entry %d to a log that holds [%d,%d]", first, l.start.index+1, l.last)
		}
		c.prev = position{first - 1, l.termLocked(first - 1)}
		if err := c.consecutive(); err != nil {
			l.mu.Unlock()
			return err
		}
	} else {
		c.prev = position{l.last, l.termLocked(l.last)}
	}
	l.mu.Unlock()
	if !c.hasHard && len(entries) == 0 {
		return nil
	}
	return l.write(&c)
}

func (l *raftLog) write(c *record) error {
	need := int64(c.size()) + frameRoom
	if most := l.limits.rollEntries(); l.writer.End().EndOffset+need > l.zeroed || !l.fresh && most > 0 && l.inSegment >= most {
		if err := l.roll(need); err != nil {
			return err
		}
	}
	if l.fresh {
		c.hasHard = true // so that older segments may go
	}
	if need := c.size(); cap(l.buf) < need {
		l.buf = make([]byte, 0, need+need/4)
	}
	l.buf = c.append(l.buf[:0])
	ref, err := l.writer.Append(l.buf)
	if err != nil {
		return fmt.Errorf("write to the log: %w", err)
	}
	l.fresh, l.synced = false, false
	l.inSegment += uint64(len(c.entries))
	if l.writer.End().EndOffset > l.limits.segment/2 {
		l.prepare()
	}
	n := len(l.buf)
	if cap(l.buf) > 4<<20 {
		l.buf = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counters.appends++
	l.counters.bytes += uint64(n)
	s := l.segments[len(l.segments)-1]
	s.bytes = l.writer.End().EndOffset
	l.takeLocked(c, s, ref)
	return nil
}

// sync makes everything appended durable.
func (l *raftLog) sync() error {
	if l.synced {
		return nil
	}
	if lab.SkipSync.Planted() {
		l.synced = true
		return nil
	}
	if err := l.writer.Sync(); err != nil {
		return fmt.Errorf("sync the log: %w", err)
	}
	l.synced = true
	l.mu.Lock()
	l.counters.syncs++
	l.mu.Unlock()
	return nil
}

// reset forgets every entry: the log starts after p. It is durable on return, and the older segments are removed.
func (l *raftLog) reset(p position, hard *hardState) error {
	if err := l.roll(0); err != nil {
		return err
	}
	l.mu.Lock()
	c := record{kind: recordReset, hasHard: true, hard: l.hard, prev: p}
	if hard != nil {
		c.hard = *hard
	}
	c.hard.commit = max(c.hard.commit, p.index)
	l.mu.Unlock()
	if err := l.write(&c); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	// gofail: var raftAfterApplySnap struct{}
	return l.cut(math.MaxUint64, 0)
}

// takeLocked brings the structures in memory up to date with a record that is in s at ref.
func (l *raftLog) takeLocked(c *record, s *segment, ref seal.FrameRef) {
	if c.hasHard {
		l.hard, l.written = c.hard, c.hard
	}
	if c.kind == recordReset {
		l.truncateLocked(0)
		l.start, l.last, l.terms = c.prev, c.prev.index, nil
		return
	}
	if len(c.entries) == 0 {
		return
	}
	first := c.entries[0].GetIndex()
	if first <= l.last {
		l.truncateLocked(first)
	}
	if first <= l.start.index { // only on recovery, when the segment that held what is replaced has been cut
		l.start = c.prev
	}
	s.frames = append(s.frames, frame{first: first, count: uint32(len(c.entries)), ref: ref})
	for _, e := range c.entries {
		if n := len(l.terms); n == 0 || l.terms[n-1].term != e.GetTerm() {
			l.terms = append(l.terms, position{e.GetIndex(), e.GetTerm()})
		}
		l.cacheLen += int64(len(e.GetData())) + entryOverhead
	}
	l.cache = append(l.cache, c.entries...)
	l.last = first + uint64(len(c.entries)) - 1
	for len(l.cache) > 1 && l.cacheLen > l.limits.cache {
		l.cacheLen -= int64(len(l.cache[0].GetData())) + entryOverhead
		l.cache[0] = nil
		l.cache = l.cache[1:]
	}
}

// truncateLocked forgets the entries from index on.
func (l *raftLog) truncateLocked(index uint64) {
	for i := len(l.segments) - 1; i >= 0; i-- {
		s := l.segments[i]
		s.truncate(index)
		if len(s.frames) > 0 {
			break
		}
	}
	for n := len(l.terms); n > 0 && l.terms[n-1].index >= index; n-- {
		l.terms = l.terms[:n-1]
	}
	keep := len(l.cache)
	for keep > 0 && l.cache[keep-1].GetIndex() >= index {
		keep--
		l.cacheLen -= int64(len(l.cache[keep].GetData())) + entryOverhead
	}
	l.cache = slices.Clone(l.cache[:keep]) // slices handed out keep the replaced entries
	l.last = min(l.last, max(index, 1)-1)
}

// cut removes the oldest segments while the log is larger than keep bytes and they hold nothing above durable.
func (l *raftLog) cut(durable uint64, keep int64) error {
	for {
		s := l.cutOne(durable, keep)
		if s == nil {
			return nil
		}
		remove := l.fs.Remove
		if lab.KeepLog() {
			remove = func(path string) error { return keepSegment(l.fs, path) }
		}
		if err := remove(s.path); err != nil {
			return fmt.Errorf("remove a log segment: %w", err)
		}
		l.release(s)
	}
}

func (l *raftLog) cutOne(durable uint64, keep int64) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) < 2 {
		return nil
	}
	s := l.segments[0]
	last, any := s.last()
	many := l.limits.keepEntries > 0 && last+l.limits.keepEntries <= durable
	if l.bytesLocked() <= keep && !many {
		return nil
	}
	if any && last > durable {
		return nil
	}
	if any {
		start := position{last, l.termLocked(last)}
		l.cutTermsLocked(last)
		l.start = start
		drop := 0
		for drop < len(l.cache) && l.cache[drop].GetIndex() <= last {
			l.cacheLen -= int64(len(l.cache[drop].GetData())) + entryOverhead
			l.cache[drop] = nil
			drop++
		}
		l.cache = l.cache[drop:]
	}
	l.segments = slices.Clone(l.segments[1:])
	l.counters.cut++
	s.dropped, s.readers = true, s.readers+1 // released by cut
	return s
}

// cutTermsLocked forgets the terms of the entries up to index.
func (l *raftLog) cutTermsLocked(index uint64) {
	if l.last == index {
		l.terms = nil
		return
	}
	next := l.termLocked(index + 1)
	for len(l.terms) > 0 && l.terms[0].index <= index+1 {
		l.terms = l.terms[1:]
	}
	l.terms = slices.Insert(slices.Clone(l.terms), 0, position{index + 1, next})
}

func (l *raftLog) bytesLocked() (n int64) {
	for _, s := range l.segments {
		n += s.bytes
	}
	return n
}

// newest returns the number of the segment that is written to.
func (l *raftLog) newest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[len(l.segments)-1].number
}

// size returns the bytes on disk and in memory.
func (l *raftLog) size() (disk, cached int64, c logCounters) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytesLocked(), l.cacheLen, l.counters
}

// release ends a use of s and closes it if it was dropped and this was the last use.
func (l *raftLog) release(s *segment) {
	l.mu.Lock()
	s.readers--
	closing := s.dropped && s.readers == 0
	l.mu.Unlock()
	if closing {
		if err := s.handle.Close(); err != nil {
			l.logger.Warn("close a removed log segment", "err", err)
		}
	}
}

// close writes the commit index, so that the next start need not learn it again, and closes every segment.
func (l *raftLog) close() error {
	l.mu.Lock()
	c := record{kind: recordAppend, hasHard: true, hard: l.hard, prev: position{l.last, l.termLocked(l.last)}}
	l.mu.Unlock()
	err := l.write(&c)
	if err == nil {
		err = l.sync()
	}
	return errors.Join(err, l.abandon())
}

// abandon closes every segment as it is.
func (l *raftLog) abandon() (err error) {
	l.preparing.Wait()
	l.mu.Lock()
	segments := l.segments
	l.segments = nil
	l.mu.Unlock()
	for _, s := range segments {
		err = errors.Join(err, s.handle.Close())
	}
	return err
}

var _ raft.Storage = (*raftLog)(nil)
