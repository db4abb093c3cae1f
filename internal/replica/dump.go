package replica

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/seal"
)

// logPlace says where the log is that is read.
type logPlace struct {
	fs   vfs.FS
	dir  string // the data directory
	ring *seal.Keyring
}

// Logged is what ReadLog finds: an entry, or, where Missing is not 0, that the entries from Index to Missing are not in the
// log: they were cut away below a snapshot, or the member has received a snapshot in their place.
type Logged struct {
	Entry
	Committed bool // is known to be, by what this log says
	Missing   uint64
}

// ReadLog calls f with every entry that counts in the log of the data directory dir, in order. It is for people who look into a log: it changes nothing,
// and the member may run meanwhile; then it sees the log as of some moment after the call. What a received snapshot stands
// for is missing, but what the log held before it, and knew to be committed, is not. Segments that a laboratory build kept
// are read as if they had not been cut.
func ReadLog(fs vfs.FS, dir string, ring *seal.Keyring, f func(Logged) error) error {
	l := logPlace{fs, dir, ring}
	const tries = 5 // a running member may remove a segment, or write to the newest one, while it is read
	for n := 1; ; n++ {
		d, err := readDump(l)
		if err == nil {
			return errors.Join(d.each(f), d.close())
		}
		if n == tries || !isNotExist(err) && !errors.Is(err, seal.ErrCorrupt) {
			return err
		}
	}
}

// dump is a log that is being read. Its pieces follow each other without a gap or an overlap.
type dump struct {
	id      logID
	readers []*seal.StreamReader
	pieces  []piece
	commit  uint64
}

// piece is the entries [from, to] of one frame; without a reader they are missing.
type piece struct {
	from, to uint64
	reader   *seal.StreamReader
	ref      seal.FrameRef
}

func readDump(l logPlace) (_ *dump, err error) {
	data, err := seal.ReadFile(l.fs, l.ring, l.fs.PathJoin(l.dir, markerName))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", markerName, err)
	}
	m, err := decodeMarker(data)
	if err != nil {
		return nil, err
	}
	view, paths, err := viewLog(l)
	if err != nil {
		return nil, err
	}
	d := &dump{id: m.id}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.readers, _, err = seal.OpenChain(view, l.ring, paths); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	var confs confTrail
	for i, r := range d.readers {
		if err := d.take(r, i == 0, &confs); err != nil {
			return nil, fmt.Errorf("segment %d: %w", r.Segment(), err)
		}
	}
	d.commit = max(d.commit, confs.committed)
	return d, d.align(m.start)
}

// take reads one segment.
func (d *dump) take(r *seal.StreamReader, first bool, confs *confTrail) error {
	id, base, err := decodeContext(r.Context())
	if err != nil {
		return err
	}
	if id != d.id {
		return fmt.Errorf("it is of member %x in cluster %x, the marker of member %x in cluster %x: %w", id.member, id.cluster, d.id.member, d.id.cluster, errMalformed)
	}
	if first {
		d.skipTo(base.index)
	}
	for {
		payload, ref, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c, err := decodeRecord(payload)
		if err != nil {
			return err
		}
		confs.take(c.entries)
		if c.kind == recordReset {
			d.reset(c.prev.index) // before it is known how far the snapshot made everything committed
		}
		if c.hasHard {
			d.commit = max(d.commit, c.hard.commit)
		}
		if len(c.entries) == 0 {
			continue
		}
		from := c.entries[0].GetIndex()
		d.truncate(from)
		d.skipTo(from - 1)
		d.pieces = append(d.pieces, piece{from, from + uint64(len(c.entries)) - 1, r, ref})
	}
}

func (d *dump) last() uint64 {
	if n := len(d.pieces); n > 0 {
		return d.pieces[n-1].to
	}
	return 0
}

// skipTo notes that the entries up to index are missing.
func (d *dump) skipTo(index uint64) {
	if last := d.last(); last < index {
		d.pieces = append(d.pieces, piece{from: last + 1, to: index})
	}
}

// truncate forgets the entries from index on.
func (d *dump) truncate(index uint64) {
	for n := len(d.pieces); n > 0 && d.pieces[n-1].to >= index; n-- {
		if p := &d.pieces[n-1]; p.from < index {
			p.to = index - 1
			return
		}
		d.pieces = d.pieces[:n-1]
	}
}

// reset is for a snapshot at index. What was not known to be committed before need not be what the snapshot stands for.
func (d *dump) reset(index uint64) {
	d.truncate(min(d.commit, index) + 1)
	d.skipTo(index)
	d.commit = max(d.commit, index)
}

// align finishes what a member that crashed between switching to a received snapshot and resetting its log would finish.
func (d *dump) align(start position) error {
	if d.last() < start.index {
		d.reset(start.index)
		return nil
	}
	i := slices.IndexFunc(d.pieces, func(p piece) bool { return p.from <= start.index && start.index <= p.to })
	if i < 0 || d.pieces[i].reader == nil {
		return nil
	}
	entries, err := d.pieces[i].entries()
	if err == nil && entries[start.index-d.pieces[i].from].GetTerm() != start.term {
		d.reset(start.index)
	}
	return err
}

func (p *piece) entries() ([]*pb.Entry, error) {
	payload, err := p.reader.ReadFrame(p.ref)
	if err != nil {
		return nil, err
	}
	c, err := decodeRecord(payload)
	if err != nil {
		return nil, err
	}
	return c.entries[:p.to-p.from+1], nil
}

func (d *dump) each(f func(Logged) error) error {
	for i := range d.pieces {
		p := &d.pieces[i]
		if p.reader == nil {
			l := Logged{Entry: Entry{Index: p.from}, Committed: p.to <= d.commit, Missing: p.to}
			if p.to == 1 { // the founding of the cluster, which holds nothing
				l = Logged{Entry: Entry{Index: 1, Term: 1}, Committed: true}
			}
			if err := f(l); err != nil {
				return err
			}
			continue
		}
		entries, err := p.entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			l := Logged{Entry: Entry{Index: e.GetIndex(), Term: e.GetTerm(), Data: e.GetData()}, Committed: e.GetIndex() <= d.commit}
			if e.GetType() == pb.EntryConfChangeV2 {
				_, context, err := decodeConf(e)
				if err != nil {
					return err
				}
				_, l.Conf = splitConfContext(context)
				l.Data = nil
			}
			if err := f(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *dump) close() (err error) {
	for _, r := range d.readers {
		err = errors.Join(err, r.Close())
	}
	d.readers = nil
	return err
}

// logView is a file system in which the kept segments are in their old places, and the newest segment does not change.
type logView struct {
	vfs.FS
	kept   map[string]string // by the path where the segment was
	newest string
	frozen vfs.FS // holds newest
}

// Open opens a file for reading.
func (v *logView) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	if name == v.newest {
		return v.frozen.Open(name, o...)
	}
	if at, ok := v.kept[name]; ok {
		name = at
	}
	return v.FS.Open(name, o...)
}

// viewLog returns the segments of a log, the kept ones among them.
func viewLog(l logPlace) (*logView, []string, error) {
	dir := l.fs.PathJoin(l.dir, logName)
	numbers, err := listSegments(l.fs, dir)
	if err != nil {
		return nil, nil, err
	}
	if len(numbers) == 0 {
		return nil, nil, ErrRolledBack.WithHint("there is no segment in %s; %s", dir, rejoinHint)
	}
	v := &logView{FS: l.fs, kept: map[string]string{}, newest: l.fs.PathJoin(dir, segmentName(numbers[len(numbers)-1]))}
	for first := numbers[0]; first > 1; first-- {
		at := l.fs.PathJoin(dir, keptName, segmentName(first-1)+keptSuffix)
		if _, err := l.fs.Stat(at); isNotExist(err) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		v.kept[l.fs.PathJoin(dir, segmentName(first-1))] = at
		numbers = slices.Insert(numbers, 0, first-1)
	}
	paths := make([]string, len(numbers))
	for i, n := range numbers {
		paths[i] = l.fs.PathJoin(dir, segmentName(n))
	}
	v.frozen, err = freeze(l.fs, dir, v.newest)
	return v, paths, err
}

// freeze copies a segment that may be written to, from its end to its beginning: what is written in order and seen later
// in the file is then seen earlier in it too.
func freeze(fs vfs.FS, dir, path string) (vfs.FS, error) {
	in, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close() // nothing was written to it
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	const step = 64 << 10
	for end := int64(len(data)); end > 0; {
		at := max(end-step, 0)
		if _, err := in.ReadAt(data[at:end], at); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		end = at
	}
	mem := vfs.NewMem()
	if err := mem.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	out, err := mem.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	_, err = out.Write(data)
	return mem, errors.Join(err, out.Close())
}

// Segments that a laboratory build was told to keep are in a directory of their own, under a name that the scrub takes for
// a temporary file's: they do not verify in a place that is not theirs.
const (
	keptName   = "kept"
	keptSuffix = ".tmp"
)

// keepSegment puts a segment aside that would be removed.
func keepSegment(fs vfs.FS, path string) error {
	dir := fs.PathJoin(fs.PathDir(path), keptName)
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return fs.Rename(path, fs.PathJoin(dir, fs.PathBase(path)+keptSuffix))
}
