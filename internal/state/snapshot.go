package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// The stream that carries a whole state to another member: docs/formats/snapshot-stream.md.
const (
	streamMagic   = "HFSTATE\n"
	streamVersion = 1

	frameBytes    = 256 << 10 // a frame is closed when it has grown to this
	maxFrameBytes = 64 << 20  // a longer one is refused: no row is that large
	loadBytes     = 1 << 20   // a batch of rows goes to storage when it has grown to this
)

// Errors of reading a stream. The engine that it was read into must be thrown away.
var (
	ErrStream   = errors.New("state: snapshot stream is damaged")
	ErrNotFresh = errors.New("state: snapshot needs an engine without rows")
)

// SnapshotInfo says what a snapshot holds.
type SnapshotInfo struct {
	Index, Term      uint64 // of the last entry applied
	Cluster          uint64
	Level            uint32
	Voters, Learners []uint64 // ascending
}

// Snapshot is the whole state at one index. It keeps replaced bytes on disk until it is closed.
type Snapshot struct {
	rows *storage.Snapshot
	info SnapshotInfo
}

// NewSnapshot returns the present state. It must be closed. It may be taken while Apply runs.
func (m *Machine) NewSnapshot() (*Snapshot, error) {
	rows := m.engine.NewSnapshot()
	info, err := readInfo(rows)
	if err != nil {
		return nil, errors.Join(err, rows.Close())
	}
	return &Snapshot{rows: rows, info: info}, nil
}

func readInfo(r storage.Reader) (SnapshotInfo, error) {
	view, clock, err := loadCluster(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	info := SnapshotInfo{Index: clock.index, Term: clock.term, Cluster: view.cluster, Level: view.level}
	info.Voters, info.Learners = view.confState()
	return info, nil
}

// Info says what the snapshot holds.
func (s *Snapshot) Info() SnapshotInfo { return s.info }

// Close releases the snapshot.
func (s *Snapshot) Close() error { return s.rows.Close() }

// WriteSnapshot writes the present state to w.
func (m *Machine) WriteSnapshot(w io.Writer) (SnapshotInfo, error) {
	s, err := m.NewSnapshot()
	if err != nil {
		return SnapshotInfo{}, err
	}
	err = s.Write(w)
	return s.info, errors.Join(err, s.Close())
}

// streamHeader is the first frame.
func (i SnapshotInfo) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, i.Cluster)
	b = binary.AppendUvarint(binary.AppendUvarint(b, i.Index), i.Term)
	b = binary.AppendUvarint(b, uint64(i.Level))
	for _, ids := range [...][]uint64{i.Voters, i.Learners} {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		for _, id := range ids {
			b = binary.BigEndian.AppendUint64(b, id)
		}
	}
	return b
}

func decodeInfo(b []byte) (SnapshotInfo, error) {
	d := decoder{b: b}
	i := SnapshotInfo{Cluster: d.uint64(), Index: d.uvarint(), Term: d.uvarint(), Level: d.uint32()}
	for _, ids := range [...]*[]uint64{&i.Voters, &i.Learners} {
		if n := d.count(8); n > 0 {
			*ids = make([]uint64, n)
			for j := range *ids {
				(*ids)[j] = d.uint64()
			}
		}
	}
	if d.bad || len(d.b) != 0 {
		return SnapshotInfo{}, fmt.Errorf("%w: header", ErrStream)
	}
	return i, nil
}

// streamWriter writes frames: length, bytes. The digest covers everything before the trailer's own digest.
type streamWriter struct {
	w      io.Writer
	digest hash.Hash
	frame  []byte
	rows   uint64
	last   []byte // key of the row before
}

func (s *streamWriter) write(b []byte) error {
	s.digest.Write(b)
	_, err := s.w.Write(b)
	return err
}

// flush writes the frame; an empty one would be the end of the stream.
func (s *streamWriter) flush() error {
	if len(s.frame) == 0 {
		return nil
	}
	var head [binary.MaxVarintLen64]byte
	if err := s.write(binary.AppendUvarint(head[:0], uint64(len(s.frame)))); err != nil {
		return err
	}
	err := s.write(s.frame)
	s.frame = s.frame[:0]
	return err
}

func (s *streamWriter) row(key, value []byte) error {
	shared := 0
	for shared < len(key) && shared < len(s.last) && key[shared] == s.last[shared] {
		shared++
	}
	s.frame = binary.AppendUvarint(s.frame, uint64(shared))
	s.frame = appendBytes(appendBytes(s.frame, key[shared:]), value)
	s.last = append(s.last[:0], key...)
	s.rows++
	if len(s.frame) < frameBytes {
		return nil
	}
	return s.flush()
}

// Write writes the state to w, in memory bounded by the largest row.
func (s *Snapshot) Write(w io.Writer) error {
	out := &streamWriter{w: w, digest: sha256.New()}
	if err := out.write(append([]byte(streamMagic), streamVersion)); err != nil {
		return err
	}
	out.frame = s.info.append(out.frame)
	if err := out.flush(); err != nil {
		return err
	}
	it, err := s.rows.NewIter(storage.Span{})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		value := it.Value()
		if it.Err() != nil {
			break // Close has it too
		}
		if lab.ForgetRevocation.Planted() && bytes.Contains(it.Key(), []byte(revokedPrefix)) {
			continue
		}
		err = out.row(it.Key(), value)
	}
	if cerr := it.Close(); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("state: snapshot: %w", err)
	}
	if err := out.flush(); err != nil {
		return err
	}
	if err := out.write(binary.AppendUvarint([]byte{0}, out.rows)); err != nil {
		return err
	}
	_, err = w.Write(out.digest.Sum(nil))
	return err
}

// ReadSnapshotInfo reads the beginning of a stream: what it says it holds. Nothing vouches for it but the connection; the
// whole stream is checked by ReadSnapshot.
func ReadSnapshotInfo(r io.Reader) (SnapshotInfo, error) {
	return newStreamReader(r).header()
}

// ReadSnapshot reads a stream into an engine without rows and checks all of it. Until the end has been checked the engine
// is no state that Open accepts. What was read is durable only after the engine's Flush.
func ReadSnapshot(r io.Reader, e *storage.Engine) (SnapshotInfo, error) {
	if empty, err := isEmpty(e); err != nil {
		return SnapshotInfo{}, err
	} else if !empty {
		return SnapshotInfo{}, ErrNotFresh
	}
	in := newStreamReader(r)
	info, err := in.header()
	if err != nil {
		return SnapshotInfo{}, err
	}
	if info.Level > MaxLevel {
		return SnapshotInfo{}, fmt.Errorf("%w: %d, this build knows %d", ErrLevelUnknown, info.Level, MaxLevel)
	}
	l := loader{e: e, b: e.NewBatch()}
	err = l.load(in)
	if cerr := l.b.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return SnapshotInfo{}, err
	}
	stored, err := readInfo(e)
	if err != nil {
		return SnapshotInfo{}, err
	}
	if !bytes.Equal(stored.append(nil), info.append(nil)) {
		return SnapshotInfo{}, fmt.Errorf("%w: header and rows disagree", ErrStream)
	}
	return info, nil
}

func isEmpty(e *storage.Engine) (bool, error) {
	it, err := e.NewIter(storage.Span{})
	if err != nil {
		return false, err
	}
	some := it.First()
	return !some, it.Close()
}

// loader puts rows into an engine. The row without which Open finds no state is kept back until the trailer was checked.
type loader struct {
	e       *storage.Engine
	b       *storage.Batch
	cluster []byte
}

func (l *loader) load(in *streamReader) error {
	for {
		frame, err := in.frame()
		if err != nil {
			return err
		}
		if len(frame) == 0 {
			break
		}
		if err := l.rows(in, frame); err != nil {
			return err
		}
		if l.b.Bytes() >= loadBytes {
			if err := l.e.Apply(l.b); err != nil {
				return err
			}
			l.b.Reset()
		}
	}
	if err := in.trailer(); err != nil {
		return err
	}
	if l.cluster == nil {
		return fmt.Errorf("%w: no cluster row", ErrStream)
	}
	l.b.Set(clusterKey(), l.cluster)
	return l.e.Apply(l.b)
}

func (l *loader) rows(in *streamReader, frame []byte) error {
	d := decoder{b: frame}
	for len(d.b) > 0 {
		key, value, err := in.row(&d)
		if err != nil {
			return err
		}
		if bytes.Equal(key, clusterKey()) {
			l.cluster = append([]byte{}, value...)
			continue
		}
		l.b.Set(key, value)
	}
	return nil
}

// streamReader reads frames and digests them.
type streamReader struct {
	r      *bufio.Reader
	digest hash.Hash
	buf    bytes.Buffer
	key    []byte
	rows   uint64
}

func newStreamReader(r io.Reader) *streamReader {
	return &streamReader{r: bufio.NewReaderSize(r, 64<<10), digest: sha256.New()}
}

// ReadByte reads one byte for ReadUvarint.
func (s *streamReader) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.digest.Write([]byte{b})
	}
	return b, err
}

func (s *streamReader) header() (SnapshotInfo, error) {
	var head [len(streamMagic) + 1]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return SnapshotInfo{}, fmt.Errorf("%w: %w", ErrStream, err)
	}
	if string(head[:len(streamMagic)]) != streamMagic {
		return SnapshotInfo{}, fmt.Errorf("%w: not a snapshot stream", ErrStream)
	}
	if v := head[len(streamMagic)]; v != streamVersion {
		return SnapshotInfo{}, fmt.Errorf("%w: version %d", ErrStream, v)
	}
	s.digest.Write(head[:])
	frame, err := s.frame()
	if err != nil {
		return SnapshotInfo{}, err
	}
	return decodeInfo(frame)
}

// frame returns the next frame, empty at the end. The memory grows with what arrives, not with what the length claims.
func (s *streamReader) frame() ([]byte, error) {
	n, err := binary.ReadUvarint(s)
	if err != nil {
		return nil, fmt.Errorf("%w: frame: %w", ErrStream, err)
	}
	if n > maxFrameBytes {
		return nil, fmt.Errorf("%w: frame of %d bytes", ErrStream, n)
	}
	s.buf.Reset()
	if _, err := io.CopyN(&s.buf, s.r, int64(n)); err != nil {
		return nil, fmt.Errorf("%w: frame: %w", ErrStream, err)
	}
	s.digest.Write(s.buf.Bytes())
	return s.buf.Bytes(), nil
}

// row reads one row of a frame. Keys ascend, and start with a byte that this build knows.
func (s *streamReader) row(d *decoder) (key, value []byte, err error) {
	shared := d.uvarint()
	suffix := d.take(d.uvarint())
	value = d.take(d.uvarint())
	if d.bad || shared > uint64(len(s.key)) {
		return nil, nil, fmt.Errorf("%w: row", ErrStream)
	}
	// What is shared is equal, so the key is above the one before if the rest is above the rest.
	if rest := s.key[shared:]; len(s.key) > 0 && bytes.Compare(suffix, rest) <= 0 {
		return nil, nil, fmt.Errorf("%w: rows out of order", ErrStream)
	}
	s.key = append(s.key[:shared], suffix...)
	if len(s.key) < 2 || !knownSpace(s.key[0]) {
		return nil, nil, fmt.Errorf("%w: row of an unknown table", ErrStream)
	}
	s.rows++
	return s.key, value, nil
}

// trailer checks the number of rows and the digest.
func (s *streamReader) trailer() error {
	rows, err := binary.ReadUvarint(s)
	if err != nil {
		return fmt.Errorf("%w: trailer: %w", ErrStream, err)
	}
	want := s.digest.Sum(nil)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s.r, got); err != nil {
		return fmt.Errorf("%w: trailer: %w", ErrStream, err)
	}
	if rows != s.rows || !bytes.Equal(got, want) {
		return fmt.Errorf("%w: digest of %d rows", ErrStream, s.rows)
	}
	return nil
}

// Hash returns a checksum over the machine's own rows and over what can be read in every space: equal on members that have
// applied the same entries, however they were grouped. It reads everything.
func (m *Machine) Hash() (sum [sha256.Size]byte, err error) {
	rows := m.engine.NewSnapshot()
	h := sha256.New()
	err = hashRows(rows, h)
	for _, id := range mvcc.Spaces() {
		if err != nil {
			break
		}
		var space *mvcc.Space
		if space, err = mvcc.OpenSpace(rows, id); err != nil {
			break
		}
		var kv uint32
		var current, compacted int64
		if kv, current, compacted, err = space.Hash(rows, 0); err == nil {
			h.Write(fmt.Appendf(nil, "%d %d %d %d\n", id, kv, current, compacted))
		}
	}
	if cerr := rows.Close(); err == nil {
		err = cerr
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

func hashRows(r storage.Reader, h hash.Hash) error {
	it, err := r.NewIter(storage.Span{Start: []byte{machineSpace}, End: []byte{machineSpace + 1}})
	if err != nil {
		return err
	}
	var buf []byte
	for ok := it.First(); ok; ok = it.Next() {
		buf = appendBytes(appendBytes(buf[:0], it.Key()), it.Value())
		h.Write(buf)
	}
	return it.Close()
}
