package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/seal"
)

const (
	markerName   = "CURRENT"
	creatingName = "CREATING"
	logName      = "log"
	statePrefix  = "state-"
)

// rejoinHint says what to do with a member whose data directory cannot be trusted.
const rejoinHint = "this member may have forgotten what it promised, so it must not start again with this data: " +
	"remove it from the cluster, move the data directory away and join as a new member; " +
	"a cluster of one member is restored from a backup of the whole directory"

// marker is the one file that says which state counts and where the log starts.
type marker struct {
	id       logID
	state    uint64   // number of the state directory
	start    position // the log began after this entry when the state was created or received
	segment  uint64   // this segment, or a newer one, exists
	voters   []uint64
	learners []uint64
}

func (m *marker) encode() []byte {
	b := []byte{1}
	for _, v := range [...]uint64{m.id.cluster, m.id.member, m.state, m.start.index, m.start.term, m.segment} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return appendIDs(appendIDs(b, m.voters), m.learners)
}

func decodeMarker(b []byte) (marker, error) {
	r := reader{b: b}
	version := r.byte()
	if version != 1 {
		return marker{}, fmt.Errorf("%s is of version %d, which this build does not know", markerName, version)
	}
	m := marker{id: logID{r.uint64(), r.uint64()}, state: r.uint64(), start: position{r.uint64(), r.uint64()}, segment: r.uint64()}
	m.voters, m.learners = r.ids(), r.ids()
	return m, r.end(markerName)
}

// Store is the durable part of one member: marker, log, and the place of the state. It is used by one Replica.
type Store struct {
	fs     vfs.FS
	dir    string
	ring   *seal.Keyring
	logger *slog.Logger
	marker marker
	log    *raftLog
}

// Exists reports whether dir holds a member, whole or not.
func Exists(fs vfs.FS, dir string) (bool, error) {
	names, err := fs.List(dir)
	if isNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.Contains(names, markerName) || slices.ContainsFunc(names, ownName) && !slices.Contains(names, creatingName), nil
}

func ownName(name string) bool {
	return name == markerName || name == logName || strings.HasPrefix(name, statePrefix)
}

// Create makes a new member in a directory that has none. build makes the first state in the directory it is given,
// which does not exist yet: with applied index 1 and the initial configuration, or with applied index 0 and nothing for
// a member that joins; it must be durable when build returns. A crash in between leaves nothing that counts.
func Create(o StoreOptions, boot Bootstrap, build func(stateDir string) error) (*Store, error) {
	if boot.Cluster == 0 || boot.Member == 0 {
		return nil, fault.New(fault.Invalid, "a member needs a cluster id and a member id")
	}
	if len(boot.Voters) > 0 && !slices.Contains(boot.Voters, boot.Member) {
		return nil, fault.New(fault.Invalid, "the initial voters do not include this member")
	}
	s := newStore(o)
	s.marker = marker{id: logID{boot.Cluster, boot.Member}, state: 1, segment: 1, voters: slices.Sorted(slices.Values(boot.Voters))}
	var hard hardState
	if len(boot.Voters) > 0 {
		s.marker.start, hard = position{1, 1}, hardState{term: 1, commit: 1}
	}
	if err := s.clearForCreate(); err != nil {
		return nil, err
	}
	if err := seal.WriteFile(s.fs, s.ring, s.path(creatingName), []byte{1}); err != nil {
		return nil, err
	}
	if err := build(s.StateDir()); err != nil {
		return nil, fmt.Errorf("build the first state: %w", err)
	}
	logDir := s.path(logName)
	if err := s.fs.MkdirAll(logDir, 0o700); err != nil {
		return nil, err
	}
	s.log = s.newLog(o)
	s.log.start, s.log.last, s.log.hard = s.marker.start, s.marker.start.index, hard
	if err := s.log.startSegment(1, seal.PrevSegment{}, 0); err != nil {
		return nil, err
	}
	if err := s.finishCreate(); err != nil {
		return nil, errors.Join(err, s.log.abandon())
	}
	return s, nil
}

// finishCreate writes the first record and then the marker, which is the moment from which the member exists.
func (s *Store) finishCreate() error {
	if err := s.log.write(&record{kind: recordAppend, hasHard: true, hard: s.log.hard, prev: s.log.start}); err != nil {
		return err
	}
	if err := s.log.sync(); err != nil {
		return err
	}
	if err := syncDir(s.fs, s.dir); err != nil {
		return err
	}
	if err := s.writeMarker(s.marker); err != nil {
		return err
	}
	if err := s.fs.Remove(s.path(creatingName)); err != nil {
		return err
	}
	return syncDir(s.fs, s.dir)
}

// clearForCreate removes what a crashed Create left, and refuses anything else.
func (s *Store) clearForCreate() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	crashed := slices.Contains(names, creatingName) && !slices.Contains(names, markerName)
	for _, name := range names {
		switch {
		case !ownName(name):
		case !crashed:
			return fault.New(fault.Conflict, "the data directory already holds a member").
				WithHint("%s exists in %s; to start afresh, move the directory away", name, s.dir)
		default:
			if err := s.fs.RemoveAll(s.path(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func newStore(o StoreOptions) *Store {
	return &Store{fs: o.FS, dir: o.Dir, ring: o.Ring, logger: orDiscard(o.Logger)}
}

func (s *Store) newLog(o StoreOptions) *raftLog {
	limits := logLimits{segment: o.SegmentBytes, keep: o.KeepBytes, cache: o.CacheBytes, keepEntries: o.KeepEntries, flushEntries: o.FlushEntries}
	if roll := limits.rollEntries(); roll > 0 {
		orDefault(&limits.segment, max(1<<20, int64(min(roll, 2048))*8<<10)) // segments end early: do not prepare what stays empty
	}
	orDefault(&limits.segment, 16<<20)
	orDefault(&limits.keep, 128<<20)
	orDefault(&limits.cache, 16<<20)
	return &raftLog{fs: s.fs, dir: s.path(logName), ring: s.ring, limits: limits, id: s.marker.id, logger: s.logger}
}

func orDefault[T int | int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

func (s *Store) path(name string) string { return s.fs.PathJoin(s.dir, name) }

func (s *Store) stateDir(number uint64) string {
	return s.path(fmt.Sprintf("%s%d", statePrefix, number))
}

// StateDir returns the directory of the state that counts.
func (s *Store) StateDir() string { return s.stateDir(s.marker.state) }

// Cluster returns the cluster's id.
func (s *Store) Cluster() uint64 { return s.marker.id.cluster }

// Member returns this member's id.
func (s *Store) Member() uint64 { return s.marker.id.member }

// Close releases the files of a store that was not given to New, or whose Replica never ran.
func (s *Store) Close() error { return s.log.abandon() }

func (s *Store) writeMarker(m marker) error {
	if err := seal.WriteFile(s.fs, s.ring, s.path(markerName), m.encode()); err != nil {
		return fmt.Errorf("write %s: %w", markerName, err)
	}
	s.marker = m
	return nil
}
