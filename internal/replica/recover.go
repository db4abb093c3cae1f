package replica

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/seal"
)

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// Open opens a member that Create made. It refuses one whose parts do not fit together.
func Open(o StoreOptions) (*Store, error) {
	s := newStore(o)
	data, err := seal.ReadFile(s.fs, s.ring, s.path(markerName))
	if err != nil {
		if isNotExist(err) {
			return nil, ErrRolledBack.WithHint("%s is missing from %s; %s", markerName, s.dir, rejoinHint)
		}
		return nil, fmt.Errorf("read %s: %w", markerName, err)
	}
	if s.marker, err = decodeMarker(data); err != nil {
		return nil, err
	}
	if _, err := s.fs.Stat(s.StateDir()); err != nil {
		return nil, ErrRolledBack.WithHint("%s is missing (%v); %s", s.StateDir(), err, rejoinHint)
	}
	s.log = s.newLog(o)
	if err := s.recoverLog(); err != nil {
		return nil, errors.Join(err, s.log.abandon())
	}
	return s, s.removeLeftovers()
}

// recoverLog reads every segment, starts a new one, and brings the log's start to where the marker says it is.
func (s *Store) recoverLog() error {
	l := s.log
	numbers, err := listSegments(s.fs, l.dir)
	if err != nil {
		return err
	}
	if n := len(numbers); n == 0 || numbers[n-1] < s.marker.segment {
		return ErrRolledBack.WithHint("the log ends before segment %s; %s", segmentName(s.marker.segment), rejoinHint)
	}
	paths := make([]string, len(numbers))
	for i, n := range numbers {
		paths[i] = s.fs.PathJoin(l.dir, segmentName(n))
	}
	readers, stale, err := seal.OpenChain(s.fs, s.ring, paths)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	for _, path := range []string{stale, l.preparedPath()} {
		if path == "" {
			continue
		}
		if err := s.fs.Remove(path); err != nil && !isNotExist(err) {
			return err
		}
	}
	if n := len(readers); n == 0 || numbers[n-1] < s.marker.segment {
		return ErrRolledBack.WithHint("segment %s was never finished; %s", segmentName(s.marker.segment), rejoinHint)
	}
	for i, r := range readers {
		l.segments = append(l.segments, &segment{number: numbers[i], path: paths[i], handle: r})
	}
	var end seal.PrevSegment
	var confs confTrail
	for i, r := range readers {
		if end, err = l.replay(l.segments[i], r, &confs); err != nil {
			return fmt.Errorf("segment %s: %w", segmentName(numbers[i]), err)
		}
	}
	l.hard.commit = max(l.hard.commit, confs.committed)
	// What was read may never have been synced. From here on it counts as durable, and the next segment attests it.
	if err := readers[len(readers)-1].Settle(s.fs); err != nil {
		return fmt.Errorf("settle the log: %w", err)
	}
	if err := l.startSegment(numbers[len(readers)-1]+1, end, 0); err != nil {
		return err
	}
	return s.alignLog()
}

// confTrail follows the changes of the configuration through a log that is being read. A leader proposes one only after it has
// applied the one before: whoever holds a change knows that the one before it is committed, also from a log of a build whose
// frames did not say so.
type confTrail struct {
	indexes   []uint64 // of the changes that count
	committed uint64
}

func (t *confTrail) take(entries []*pb.Entry) {
	for _, e := range entries {
		for n := len(t.indexes); n > 0 && t.indexes[n-1] >= e.GetIndex(); n-- {
			t.indexes = t.indexes[:n-1] // replaced
		}
		if e.GetType() == pb.EntryNormal {
			continue
		}
		if n := len(t.indexes); n > 0 {
			t.committed = max(t.committed, t.indexes[n-1])
		}
		t.indexes = append(t.indexes, e.GetIndex())
	}
}

// replay reads one segment into memory.
func (l *raftLog) replay(s *segment, r *seal.StreamReader, confs *confTrail) (seal.PrevSegment, error) {
	id, base, err := decodeContext(r.Context())
	if err != nil {
		return seal.PrevSegment{}, err
	}
	if id != l.id {
		return seal.PrevSegment{}, ErrRolledBack.WithHint("the log is of member %x in cluster %x, the marker of member %x in cluster %x",
			id.member, id.cluster, l.id.member, l.id.cluster)
	}
	if s == l.segments[0] {
		l.start, l.last = base, base.index
	}
	for {
		payload, ref, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return seal.PrevSegment{}, err
		}
		c, err := decodeRecord(payload)
		if err != nil {
			return seal.PrevSegment{}, err
		}
		if err := l.fits(&c); err != nil {
			return seal.PrevSegment{}, err
		}
		confs.take(c.entries)
		l.mu.Lock()
		l.takeLocked(&c, s, ref)
		l.mu.Unlock()
	}
	end, err := r.End()
	s.bytes = end.EndOffset
	return end, err
}

// fits reports an error if a record cannot follow what came before.
func (l *raftLog) fits(c *record) error {
	if c.kind == recordReset || len(c.entries) == 0 {
		return nil
	}
	if c.prev.index > l.last {
		return fmt.Errorf("a gap in the log: entry %d follows entry %d: %w", c.prev.index+1, l.last, errMalformed)
	}
	if c.prev.index >= l.start.index && l.termLocked(c.prev.index) != c.prev.term {
		return fmt.Errorf("entry %d follows %v, which is not in the log: %w", c.prev.index+1, c.prev, errMalformed)
	}
	return nil
}

// alignLog writes the first record of the new segment. If the marker names a start that the log does not know, the member
// crashed after it had switched to a received snapshot and before it reset the log: the reset is done now.
func (s *Store) alignLog() error {
	l, m := s.log, s.marker
	known := l.start.index >= m.start.index || l.last >= m.start.index && l.termLocked(m.start.index) == m.start.term
	if !known {
		s.logger.Info("finishing the installation of a snapshot", "index", m.start.index, "term", m.start.term)
		if err := l.reset(m.start, nil); err != nil {
			return err
		}
	} else {
		c := record{kind: recordAppend, hasHard: true, hard: l.hard, prev: position{l.last, l.termLocked(l.last)}}
		if err := l.write(&c); err != nil {
			return err
		}
		if err := l.sync(); err != nil {
			return err
		}
	}
	m.segment = l.segments[len(l.segments)-1].number
	return s.writeMarker(m)
}

// removeLeftovers removes state directories that do not count: received ones that were never switched to, and former ones.
func (s *Store) removeLeftovers() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, statePrefix) && s.path(name) != s.StateDir() || name == creatingName {
			s.logger.Info("removing a leftover", "name", name)
			if err := s.fs.RemoveAll(s.path(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// check refuses a log and a state that do not fit together, and says which of them is too old.
func (l *raftLog) check(applied uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case applied < l.start.index:
		return ErrRolledBack.WithHint("the state ends at index %d, but the log begins after %d: the state was rolled back; %s", applied, l.start.index, rejoinHint)
	case applied > l.last:
		return ErrRolledBack.WithHint("the log ends at index %d, but the state is at %d: the log was rolled back; %s", l.last, applied, rejoinHint)
	}
	// The commit index is written lazily; what was applied was committed.
	l.hard.commit = max(l.hard.commit, applied, l.start.index)
	if l.hard.commit > l.last {
		return ErrRolledBack.WithHint("the log ends at index %d, but index %d was committed; %s", l.last, l.hard.commit, rejoinHint)
	}
	return nil
}
