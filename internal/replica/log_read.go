package replica

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// InitialState implements raft.Storage. The configuration is the machine's: see setConf.
func (l *raftLog) InitialState() (*pb.HardState, *pb.ConfState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hard
	conf := l.conf
	if conf == nil {
		conf = pb.EnsureConfState(nil)
	}
	if h == (hardState{}) {
		return nil, conf, nil
	}
	return &pb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}, conf, nil
}

// FirstIndex implements raft.Storage.
func (l *raftLog) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start.index + 1, nil
}

// LastIndex implements raft.Storage.
func (l *raftLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, nil
}

// Term implements raft.Storage.
func (l *raftLog) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case index < l.start.index:
		return 0, raft.ErrCompacted
	case index > l.last:
		return 0, raft.ErrUnavailable
	}
	return l.termLocked(index), nil
}

// termLocked returns the term of an entry that is held or is the one before the first.
func (l *raftLog) termLocked(index uint64) uint64 {
	if index <= l.start.index {
		return l.start.term
	}
	for i := len(l.terms) - 1; i >= 0; i-- { // nearly always the last one
		if l.terms[i].index <= index {
			return l.terms[i].term
		}
	}
	return l.start.term
}

// Snapshot implements raft.Storage. What it returns says only that there is one: the stream that a peer gets carries
// the position at which it was pinned.
func (l *raftLog) Snapshot() (*pb.Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil || l.snapshot.GetMetadata().GetIndex() == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return l.snapshot, nil
}

// setSnapshot says what Snapshot may offer: the machine has applied index, and conf is the configuration there.
func (l *raftLog) setSnapshot(index uint64, conf *pb.ConfState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < l.start.index || index > l.last {
		return // a reset is under way: what was offered before is gone with it
	}
	term := l.termLocked(index)
	l.snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &index, Term: &term, ConfState: conf}}
}

// Entries implements raft.Storage. It reads recent entries from memory and older ones from the disk.
func (l *raftLog) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	l.mu.Lock()
	switch {
	case lo <= l.start.index:
		l.mu.Unlock()
		return nil, raft.ErrCompacted
	case hi > l.last+1 || lo >= hi:
		l.mu.Unlock()
		return nil, raft.ErrUnavailable
	}
	if len(l.cache) > 0 {
		if first := l.cache[0].GetIndex(); lo >= first {
			entries := limitBytes(l.cache[lo-first:hi-first], maxSize)
			entries = slices.Clone(entries) // the cache forgets in place
			l.mu.Unlock()
			return entries, nil
		}
	}
	l.mu.Unlock()
	return l.readEntries(lo, hi, maxSize)
}

// limitBytes returns the longest prefix that is at most maxSize, and at least one entry.
func limitBytes(entries []*pb.Entry, maxSize uint64) []*pb.Entry {
	var size uint64
	for i, e := range entries {
		size += uint64(len(e.GetData())) + entryWire
		if i > 0 && size > maxSize {
			return entries[:i]
		}
	}
	return entries
}

// entryWire is about what raft counts for an entry besides its data.
const entryWire = 16

// readEntries reads from the disk, frame by frame, what is older than the cache; the caller has checked the bounds.
func (l *raftLog) readEntries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	var out []*pb.Entry
	var size uint64
	for next := lo; next < hi; {
		entries, err := l.readFrame(next)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.GetIndex() < next || e.GetIndex() >= hi {
				continue
			}
			size += uint64(len(e.GetData())) + entryWire
			if len(out) > 0 && size > maxSize {
				return out, nil
			}
			out = append(out, e)
			next = e.GetIndex() + 1
		}
	}
	return out, nil
}

// readFrame returns the entries, of those that count, of the frame that holds index.
func (l *raftLog) readFrame(index uint64) ([]*pb.Entry, error) {
	s, f, ok := l.acquire(index)
	if !ok {
		return nil, raft.ErrCompacted // cut meanwhile
	}
	payload, err := s.handle.ReadFrame(f.ref)
	l.release(s)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	c, err := decodeRecord(payload)
	if err != nil {
		return nil, err
	}
	if len(c.entries) < int(f.count) || c.entries[0].GetIndex() != f.first {
		return nil, fmt.Errorf("log frame does not hold entries [%d,%d): %w", f.first, f.first+uint64(f.count), errMalformed)
	}
	return c.entries[:f.count], nil
}

func (l *raftLog) acquire(index uint64) (*segment, frame, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.segments) - 1; i >= 0; i-- {
		s := l.segments[i]
		if len(s.frames) == 0 || s.frames[0].first > index {
			continue
		}
		f, ok := s.find(index)
		if ok {
			s.readers++
		}
		return s, f, ok
	}
	return nil, frame{}, false
}
