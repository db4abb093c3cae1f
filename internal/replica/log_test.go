package replica

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/seal"
)

// logModel is what a log must hold.
type logModel struct {
	start   position
	hard    hardState
	entries []*pb.Entry
}

func (m logModel) last() uint64 { return m.start.index + uint64(len(m.entries)) }

func (m logModel) term(i uint64) uint64 {
	if i == m.start.index {
		return m.start.term
	}
	return m.entries[i-m.start.index-1].GetTerm()
}

func entriesFrom(first, term uint64, sizes ...int) []*pb.Entry {
	var out []*pb.Entry
	for i, n := range sizes {
		out = append(out, &pb.Entry{Index: new(first + uint64(i)), Term: new(term), Type: pb.EntryNormal.Enum(), Data: bytes.Repeat([]byte{byte(first) + byte(i)}, n)})
	}
	return out
}

func newTestStore(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Create(StoreOptions{FS: fs, Dir: dataDir, Ring: newRing(t, fs, dataDir), SegmentBytes: 4 << 10, KeepBytes: 16 << 10, CacheBytes: 2 << 10},
		Bootstrap{Cluster: testCluster, Member: 1, Voters: []uint64{1}}, func(dir string) error {
			return errors.Join(fs.MkdirAll(dir, 0o700), writeDurable(fs, fs.PathJoin(dir, "x"), nil))
		})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func reopen(t testing.TB, fs vfs.FS) (*Store, error) {
	t.Helper()
	ring, err := seal.OpenKeyring(fs, dataDir, thinKEK{})
	if err != nil {
		t.Fatal(err)
	}
	return Open(StoreOptions{FS: fs, Dir: dataDir, Ring: ring, SegmentBytes: 4 << 10, KeepBytes: 16 << 10, CacheBytes: 2 << 10})
}

// holds compares a log to a model, byte for byte; the log may have been cut further.
func (m logModel) differs(l *raftLog) error {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if last != m.last() || first <= m.start.index {
		return fmt.Errorf("holds [%d,%d], want (%d,%d]", first, last, m.start.index, m.last())
	}
	if l.hard.term != m.hard.term || l.hard.vote != m.hard.vote {
		return fmt.Errorf("hard state %v, want %v", l.hard, m.hard)
	}
	for i := first - 1; i <= last; i++ {
		if term, err := l.Term(i); err != nil || term != m.term(i) {
			return fmt.Errorf("term of %d is %d (%v), want %d", i, term, err, m.term(i))
		}
	}
	for i := first; i <= last; {
		entries, err := l.Entries(i, last+1, 1<<10)
		if err != nil {
			return fmt.Errorf("entries from %d: %w", i, err)
		}
		for _, e := range entries {
			want := m.entries[i-m.start.index-1]
			if e.GetIndex() != i || e.GetTerm() != want.GetTerm() || e.GetType() != want.GetType() || !bytes.Equal(e.GetData(), want.GetData()) {
				return fmt.Errorf("entry %d is %v, want %v", i, e, want)
			}
			i++
		}
	}
	return nil
}

// logRun is a random life of one log.
type logRun struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *vfs.MemFS
	store *Store
	now   logModel
	since []logModel // what the log may hold after a crash: the last synced state, and every one since
}

func (r *logRun) synced() { r.since = []logModel{r.now} }

func (r *logRun) append() {
	var hard *hardState
	if r.rng.IntN(3) == 0 {
		r.now.hard.vote = r.rng.Uint64N(3)
		hard = &r.now.hard
	}
	first := r.now.last() + 1
	if n := len(r.now.entries); n > 0 && r.rng.IntN(5) == 0 { // a new leader replaces the end
		keep := n - min(n, r.rng.IntN(8)) // what is cut is committed, so it is never replaced
		firstHeld, _ := r.store.log.FirstIndex()
		keep = max(keep, int(firstHeld-1-r.now.start.index))
		first = r.now.start.index + uint64(keep) + 1
		r.now.entries = slices.Clone(r.now.entries[:keep])
		r.now.hard.term++
		hard = &r.now.hard
	}
	if term := r.now.term(first - 1); r.now.hard.term < term { // lost with a crash during an installation
		r.now.hard.term = term
		hard = &r.now.hard
	}
	sizes := make([]int, 1+r.rng.IntN(4))
	for i := range sizes {
		sizes[i] = r.rng.IntN(300)
	}
	entries := entriesFrom(first, r.now.hard.term, sizes...)
	if err := r.store.log.append(hard, entries); err != nil {
		r.t.Fatal(err)
	}
	r.now.entries = append(slices.Clip(r.now.entries), entries...)
	r.since = append(r.since, r.now)
}

func (r *logRun) reopen(fs *vfs.MemFS) {
	if err := r.store.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.fs = fs
	var err error
	if r.store, err = reopen(r.t, fs); err != nil {
		r.t.Fatal(err)
	}
	for i := len(r.since) - 1; i >= 0; i-- {
		if err = r.since[i].differs(r.store.log); err == nil {
			r.now = r.since[i]
			r.synced()
			return
		}
	}
	r.t.Fatalf("after opening it again, the log is none of the %d it may be; the last one: %v", len(r.since), err)
}

func (r *logRun) step() {
	switch k := r.rng.IntN(100); {
	case k < 60:
		r.append()
	case k < 85:
		if err := r.store.log.sync(); err != nil {
			r.t.Fatal(err)
		}
		r.synced()
	case k < 90:
		if err := r.store.log.sync(); err != nil {
			r.t.Fatal(err)
		}
		r.synced()
		if err := r.store.log.cut(r.now.start.index+r.rng.Uint64N(uint64(len(r.now.entries)+1)), 8<<10); err != nil {
			r.t.Fatal(err)
		}
	case k < 92:
		p := position{r.now.last() + 1 + r.rng.Uint64N(50), r.now.hard.term + 1}
		r.now.hard.term += 2
		// As install does it: the marker first, then the reset.
		m := r.store.marker
		m.start, m.segment = p, r.store.log.newest()
		if err := r.store.writeMarker(m); err != nil {
			r.t.Fatal(err)
		}
		if r.rng.IntN(2) == 0 { // a crash in between
			r.now = logModel{start: p, hard: r.since[0].hard}
			for i := range r.since {
				r.since[i] = logModel{start: p, hard: r.since[i].hard}
			}
			r.reopen(r.fs.CrashClone(vfs.CrashCloneCfg{}))
			return
		}
		if err := r.store.log.reset(p, &r.now.hard); err != nil {
			r.t.Fatal(err)
		}
		r.now = logModel{start: p, hard: r.now.hard}
		r.synced()
	case k < 94:
		r.reopen(r.fs)
	case k < 97:
		r.reopen(r.fs.CrashClone(vfs.CrashCloneCfg{}))
	default:
		r.reopen(r.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: r.rng}))
	}
	if r.rng.IntN(10) == 0 {
		if err := r.now.differs(r.store.log); err != nil {
			r.t.Fatal(err)
		}
		first, _ := r.store.log.FirstIndex()
		if err := r.now.dumped(logPlace{fs: r.fs, dir: dataDir, ring: r.store.ring}, first); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestLogAgainstAModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &logRun{t: t, rng: rand.New(rand.NewPCG(seed, 3)), fs: vfs.NewCrashableMem()}
			r.store = newTestStore(t, r.fs)
			r.now = logModel{start: position{1, 1}, hard: hardState{term: 1}}
			r.synced()
			for range 500 {
				r.step()
			}
			if err := r.store.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// fill makes a store with 40 synced entries in several segments, and closes it.
func fill(t testing.TB, fs vfs.FS) {
	t.Helper()
	s := newTestStore(t, fs)
	for i := range uint64(40) {
		if err := s.log.append(&hardState{term: 2, vote: 1, commit: i + 1}, entriesFrom(i+2, 2, 400)); err != nil {
			t.Fatal(err)
		}
		if err := s.log.sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.log.close(); err != nil {
		t.Fatal(err)
	}
}

func logFiles(t testing.TB, fs vfs.FS) (paths []string) {
	t.Helper()
	names, err := fs.List(fs.PathJoin(dataDir, logName))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, n := range names {
		if strings.HasSuffix(n, segmentSuffix) {
			paths = append(paths, fs.PathJoin(dataDir, logName, n))
		}
	}
	return paths
}

func TestRolledBackPartsAreRefused(t *testing.T) {
	cases := map[string]struct {
		change  func(t *testing.T, fs *vfs.MemFS)
		applied uint64
		want    error // nil: any refusal
	}{
		"nothing changed":                         {func(*testing.T, *vfs.MemFS) {}, 41, errFine},
		"the state is older than the log's start": {func(*testing.T, *vfs.MemFS) {}, 0, ErrRolledBack},
		"the state is newer than the log":         {func(*testing.T, *vfs.MemFS) {}, 42, ErrRolledBack},
		"the newest segments are gone": {func(t *testing.T, fs *vfs.MemFS) {
			s, err := reopen(t, fs) // from here on the marker knows how many there were
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			files := logFiles(t, fs)
			remove(t, fs, files[len(files)-1])
			remove(t, fs, files[len(files)-2])
		}, 10, ErrRolledBack},
		"every segment is gone": {func(t *testing.T, fs *vfs.MemFS) {
			for _, f := range logFiles(t, fs) {
				remove(t, fs, f)
			}
		}, 1, ErrRolledBack},
		"the log's directory is gone": {func(t *testing.T, fs *vfs.MemFS) {
			remove(t, fs, fs.PathJoin(dataDir, logName))
		}, 1, ErrRolledBack},
		"a segment in the middle is gone": {func(t *testing.T, fs *vfs.MemFS) { remove(t, fs, logFiles(t, fs)[1]) }, 41, ErrRolledBack},
		"the marker is gone":              {func(t *testing.T, fs *vfs.MemFS) { remove(t, fs, "/data/"+markerName) }, 41, ErrRolledBack},
		"the state is gone":               {func(t *testing.T, fs *vfs.MemFS) { remove(t, fs, "/data/state-1") }, 41, ErrRolledBack},
		"two segments changed places": {func(t *testing.T, fs *vfs.MemFS) {
			files := logFiles(t, fs)
			rename(t, fs, files[0], "/data/x")
			rename(t, fs, files[1], files[0])
			rename(t, fs, "/data/x", files[1])
		}, 41, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			fill(t, fs)
			c.change(t, fs)
			s, err := reopen(t, fs)
			if err == nil {
				defer s.Close()
				err = s.log.check(c.applied)
			}
			switch {
			case c.want == errFine && err != nil:
				t.Errorf("refused: %v", err)
			case c.want == errFine:
			case err == nil:
				t.Error("accepted")
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("refused with %v, want %v", err, c.want)
			case c.want != nil && !strings.Contains(fault.From(err).Hint, rejoinHint):
				t.Errorf("%v does not say what to do", err)
			}
		})
	}
}

var errFine = errors.New("fine")

func remove(t testing.TB, fs vfs.FS, path string) {
	t.Helper()
	if err := fs.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, fs vfs.FS, from, to string) {
	t.Helper()
	if err := fs.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestTamperedLogIsRefused(t *testing.T) {
	rng := newTestRand()
	for range 60 {
		fs := vfs.NewMem()
		fill(t, fs)
		files := logFiles(t, fs)
		i := rng.IntN(len(files))
		data, err := fs.UnsafeGetFileDataBuffer(files[i])
		if err != nil {
			t.Fatal(err)
		}
		at := rng.IntN(len(data))
		data[at] ^= 1 << rng.IntN(8)
		s, err := reopen(t, fs)
		if err != nil {
			continue // found
		}
		// It may have hit zeros behind the end of a segment. Then nothing that was synced may be missing.
		last, _ := s.log.LastIndex()
		if last != 41 {
			t.Errorf("a flipped bit at %d of %s goes unnoticed, and the log ends at %d", at, files[i], last)
		}
		for j := uint64(2); j <= last; j++ {
			e, err := s.log.Entries(j, j+1, 1)
			if err == nil && !bytes.Equal(e[0].GetData(), entriesFrom(j, 2, 400)[0].GetData()) {
				t.Errorf("a flipped bit at %d of %s is served", at, files[i])
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A read of an old frame that does not verify must end the member, not serve or panic.
func TestTamperedOldFrame(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs)
	s, err := reopen(t, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data, err := fs.UnsafeGetFileDataBuffer(logFiles(t, fs)[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := 600; i < 1600; i++ {
		data[i] ^= 0xff
	}
	if _, err := s.log.Entries(2, 4, 1<<20); err == nil {
		t.Error("a damaged frame was served")
	}
}

func TestLogFaultsAreFinal(t *testing.T) {
	for _, op := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
		t.Run(fmt.Sprint(op), func(t *testing.T) {
			failing := false
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(o errorfs.Op) error {
				if failing && o.Kind == op && strings.HasSuffix(o.Path, segmentSuffix) {
					return errors.New("input/output error")
				}
				return nil
			}))
			s := newTestStore(t, fs)
			defer s.Close()
			put := func(i uint64) error {
				return errors.Join(s.log.append(nil, entriesFrom(i, 1, 10)), s.log.sync())
			}
			if err := put(2); err != nil {
				t.Fatal(err)
			}
			failing = true
			if err := put(3); err == nil {
				t.Fatal("the fault was swallowed")
			}
			failing = false
			if err := put(3); err == nil {
				t.Error("the log works on after a failed write or sync")
			}
		})
	}
}

func TestLogBounds(t *testing.T) {
	s := newTestStore(t, vfs.NewMem())
	defer s.Close()
	l := s.log
	if err := l.append(nil, entriesFrom(3, 1, 1)); err == nil {
		t.Error("a gap was appended")
	}
	if err := l.append(nil, entriesFrom(1, 1, 1)); err == nil {
		t.Error("an entry below the start was appended")
	}
	if _, err := l.Entries(1, 2, 1); !errors.Is(err, raft.ErrCompacted) {
		t.Errorf("entries below the start: %v", err)
	}
	if _, err := l.Entries(2, 3, 1); !errors.Is(err, raft.ErrUnavailable) {
		t.Errorf("entries above the end: %v", err)
	}
	if _, err := l.Term(0); !errors.Is(err, raft.ErrCompacted) {
		t.Errorf("term below the start: %v", err)
	}
	if _, err := l.Term(2); !errors.Is(err, raft.ErrUnavailable) {
		t.Errorf("term above the end: %v", err)
	}
	if term, err := l.Term(1); err != nil || term != 1 {
		t.Errorf("term at the start: %d, %v", term, err)
	}
}

func TestCreateIsAtomicAndExclusive(t *testing.T) {
	fs := vfs.NewMem()
	ring := newRing(t, fs, dataDir)
	o := StoreOptions{FS: fs, Dir: dataDir, Ring: ring, SegmentBytes: 4 << 10}
	boot := Bootstrap{Cluster: 1, Member: 1, Voters: []uint64{1}}
	build := func(dir string) error { return fs.MkdirAll(dir, 0o700) }
	if _, err := Create(o, boot, func(dir string) error {
		return errors.Join(build(dir), errors.New("crash"))
	}); err == nil {
		t.Fatal("a failed build was swallowed")
	}
	if there, err := Exists(fs, dataDir); err != nil || there {
		t.Fatalf("half a member exists: %v, %v", there, err)
	}
	s, err := Create(o, boot, build)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if there, err := Exists(fs, dataDir); err != nil || !there {
		t.Fatalf("a member does not exist: %v, %v", there, err)
	}
	if _, err := Create(o, boot, build); err == nil {
		t.Error("a member was created over another")
	}
	remove(t, fs, "/data/"+markerName)
	if there, err := Exists(fs, dataDir); err != nil || !there {
		t.Errorf("without its marker, the member's data counts as nothing: %v, %v", there, err)
	}
	if _, err := Create(o, boot, build); err == nil {
		t.Error("a member was created over data whose marker is missing")
	}
	if _, err := Create(StoreOptions{FS: fs, Dir: dataDir, Ring: ring}, Bootstrap{Cluster: 1, Member: 1, Voters: []uint64{2}}, build); err == nil {
		t.Error("a member that is not among the voters was created")
	}
}

// A flipped bit in the last frame that was synced must not make it look torn: it holds what was acknowledged last, and no
// later frame says so. Frames are of every size, those larger than a segment too, and end wherever a segment does.
func TestFlippedLastFrameIsRefused(t *testing.T) {
	rng := newTestRand()
	for _, size := range []int{0, 10, 400, 500, 1500, 3000, 3700, 3900, 4096, 10000} {
		for before := range 6 {
			fs := vfs.NewCrashableMem()
			s := newTestStore(t, fs)
			for i := range before {
				if err := errors.Join(s.log.append(nil, entriesFrom(uint64(i)+2, 1, 300)), s.log.sync()); err != nil {
					t.Fatal(err)
				}
			}
			last := uint64(before) + 2
			if err := errors.Join(s.log.append(nil, entriesFrom(last, 1, size)), s.log.sync()); err != nil {
				t.Fatal(err)
			}
			_, f, ok := s.log.acquire(last)
			if !ok {
				t.Fatal("no frame")
			}
			end := s.log.writer.End().EndOffset
			path := s.log.segments[len(s.log.segments)-1].path
			for range 40 {
				damaged := fs.CrashClone(vfs.CrashCloneCfg{})
				data, err := damaged.UnsafeGetFileDataBuffer(path)
				if err != nil {
					t.Fatal(err)
				}
				at := f.ref.Offset + rng.Int64N(end-f.ref.Offset)
				data[at] ^= 1 << rng.IntN(8)
				if r, err := reopen(t, damaged); err == nil {
					n, _ := r.log.LastIndex()
					t.Errorf("a flip at byte %d of the last frame, [%d,%d) of %d, is not noticed, and the log ends at %d of %d", at, f.ref.Offset, end, len(data), n, last)
					r.Close()
				} else if !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, seal.ErrTampered) {
					t.Errorf("a flip at byte %d: %v", at, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCommitOfFormerLogs: frames of builds before the commit index was in every one of them tell it by what they hold: nobody
// proposes a change of the configuration before the one before it is committed. What was replaced proves nothing.
func TestCommitOfFormerLogs(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := newTestStore(t, fs)
	write := func(index, term uint64, types ...pb.EntryType) {
		t.Helper()
		c := record{kind: recordAppend, prev: position{index - 1, s.log.termLocked(index - 1)}}
		for i, kind := range types {
			c.entries = append(c.entries, &pb.Entry{Index: new(index + uint64(i)), Term: &term, Type: kind.Enum()})
		}
		if err := errors.Join(s.log.write(&c), s.log.sync()); err != nil {
			t.Fatal(err)
		}
	}
	const normal, conf = pb.EntryNormal, pb.EntryConfChangeV2
	for i, step := range []struct {
		do   func()
		want uint64
	}{
		{func() { write(2, 1, normal, conf, normal) }, 1},
		{func() { write(5, 1, conf) }, 3},
		{func() { write(5, 2, normal, normal) }, 3},
		{func() { write(7, 2, conf) }, 3}, // what was at 5 is gone, and 3 is what came before
		{func() { write(8, 2, conf) }, 7},
	} {
		step.do()
		clone, err := reopen(t, fs.CrashClone(vfs.CrashCloneCfg{}))
		if err != nil {
			t.Fatal(err)
		}
		if got := clone.log.hard.commit; got != step.want {
			t.Errorf("step %d: committed up to %d, want %d", i, got, step.want)
		}
		if err := clone.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
