package seal

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// objectOffset maps an offset of the plaintext to where its chunk begins in a format 1 file.
func objectOffset(off int64) int64 {
	if off <= 0 {
		return 0
	}
	return preambleSize + off/chunkSize*sealedChunk
}

func unsupported(op, name string) error {
	return fmt.Errorf("%s %s: %w", op, name, vfs.ErrUnsupported)
}

// objectFile is a format 1 file that is being written.
type objectFile struct {
	w      *objectWriter
	ring   *Keyring
	place  string
	marker bool
	closed bool
}

var _ vfs.File = (*objectFile)(nil)

// Close seals and closes the file. A marker is made durable here, because pebble syncs only its directory.
func (f *objectFile) Close() error {
	if f.closed {
		return fmt.Errorf("close %s: it is closed", f.w.path)
	}
	f.closed = true
	defer f.ring.endWriting(f.place)
	var err error
	if f.marker {
		err = f.Sync()
	}
	return errors.Join(err, f.w.close())
}

// Read refuses: a file is read when it is finished.
func (f *objectFile) Read([]byte) (int, error) { return 0, unsupported("read", f.w.path) }

// ReadAt refuses: a file is read when it is finished.
func (f *objectFile) ReadAt([]byte, int64) (int, error) { return 0, unsupported("read", f.w.path) }

// Write seals p. It fails once the file was synced or closed.
func (f *objectFile) Write(p []byte) (int, error) {
	if f.marker && len(p) > 0 {
		return 0, fmt.Errorf("write %s: a marker has no content", f.w.path)
	}
	return f.w.Write(p)
}

// WriteAt refuses: what is sealed is not changed.
func (f *objectFile) WriteAt([]byte, int64) (int, error) { return 0, unsupported("write at", f.w.path) }

// Preallocate reserves the space that the plaintext will need.
func (f *objectFile) Preallocate(offset, length int64) error {
	from, to := objectOffset(offset), objectOffset(offset+length-1)+sealedChunk
	return f.w.file.Preallocate(from, to-from)
}

// Stat returns the plaintext bytes written.
func (f *objectFile) Stat() (vfs.FileInfo, error) {
	info, err := f.w.file.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{FileInfo: info, size: f.w.size}, nil
}

// Sync seals the file and makes it durable.
func (f *objectFile) Sync() error { return f.w.sync(f.w.file.Sync) }

// SyncData seals the file and makes it durable.
func (f *objectFile) SyncData() error { return f.w.sync(f.w.file.SyncData) }

// SyncTo starts writing whole chunks below length to the device. It never seals and never promises durability.
func (f *objectFile) SyncTo(length int64) (bool, error) {
	if err := f.w.flush(); err != nil {
		return false, err
	}
	chunks := min(length/chunkSize, f.w.index)
	_, err := f.w.file.SyncTo(preambleSize + chunks*sealedChunk)
	return false, err
}

// Prefetch does nothing: a file that is being written is in the cache.
func (f *objectFile) Prefetch(int64, int64) error { return nil }

// Fd returns the descriptor of the file below. Where there is none it returns a number that is no descriptor either,
// but not InvalidFd: for that pebble would call Sync while it still writes, which seals the file.
func (f *objectFile) Fd() uintptr {
	if fd := f.w.file.Fd(); fd != vfs.InvalidFd {
		return fd
	}
	return vfs.InvalidFd - 1
}

// readFile is a sealed file of either format that is being read.
type readFile struct {
	inner    vfs.File
	name     string
	src      io.ReaderAt
	size     int64
	physical func(int64) int64 // maps an offset of the plaintext to one in inner
	pos      int64
}

var _ vfs.File = (*readFile)(nil)

// Close closes the file below.
func (f *readFile) Close() error { return f.inner.Close() }

// Read reads on from where the last Read ended.
func (f *readFile) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.src.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ReadAt reads authenticated plaintext.
func (f *readFile) ReadAt(p []byte, off int64) (int, error) { return f.src.ReadAt(p, off) }

// Write refuses: the file was opened for reading.
func (f *readFile) Write([]byte) (int, error) { return 0, unsupported("write", f.name) }

// WriteAt refuses: what is sealed is not changed.
func (f *readFile) WriteAt([]byte, int64) (int, error) { return 0, unsupported("write at", f.name) }

// Preallocate refuses: the file was opened for reading.
func (f *readFile) Preallocate(int64, int64) error { return unsupported("preallocate", f.name) }

// Stat returns the plaintext size.
func (f *readFile) Stat() (vfs.FileInfo, error) {
	info, err := f.inner.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{FileInfo: info, size: f.size}, nil
}

// Sync syncs the file below.
func (f *readFile) Sync() error { return f.inner.Sync() }

// SyncData syncs the file below.
func (f *readFile) SyncData() error { return f.inner.SyncData() }

// SyncTo has nothing to sync in a file opened for reading.
func (f *readFile) SyncTo(int64) (bool, error) { return false, nil }

// Prefetch fetches what the plaintext range needs.
func (f *readFile) Prefetch(offset, length int64) error {
	if length <= 0 {
		return nil
	}
	from := f.physical(offset)
	return f.inner.Prefetch(from, f.physical(offset+length-1)+sealedChunk-from)
}

// Fd returns the descriptor of the file below, for advice about access patterns. What is read through it is sealed.
func (f *readFile) Fd() uintptr { return f.inner.Fd() }

// streamFile is a format 2 file that is being written. Each Write is one frame or more.
type streamFile struct {
	w     *StreamWriter
	size  int64
	clean bool // nothing was written since the last sync
}

var _ vfs.File = (*streamFile)(nil)

// writeFrame is how much of one Write goes into one frame.
const writeFrame = 1 << 20

// Close closes the file without syncing it.
func (f *streamFile) Close() error { return f.w.Close() }

// Read refuses: open the file a second time to read it.
func (f *streamFile) Read([]byte) (int, error) { return 0, unsupported("read", f.w.path) }

// ReadAt refuses: open the file a second time to read it.
func (f *streamFile) ReadAt([]byte, int64) (int, error) { return 0, unsupported("read", f.w.path) }

// Write appends p.
func (f *streamFile) Write(p []byte) (int, error) {
	f.clean = f.clean && len(p) == 0
	for done := 0; done < len(p); {
		n := min(writeFrame, len(p)-done)
		if _, err := f.w.Append(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
		f.size += int64(n)
	}
	return len(p), nil
}

// WriteAt refuses: what is sealed is not changed.
func (f *streamFile) WriteAt([]byte, int64) (int, error) { return 0, unsupported("write at", f.w.path) }

// Preallocate reserves space. Frames need a little more than the plaintext; that much is added.
func (f *streamFile) Preallocate(offset, length int64) error {
	return f.w.file.Preallocate(offset, length+length/64+preambleSize)
}

// Stat returns the plaintext bytes written.
func (f *streamFile) Stat() (vfs.FileInfo, error) {
	info, err := f.w.file.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{FileInfo: info, size: f.size}, nil
}

// Sync makes what was written durable, and the file's metadata with it.
func (f *streamFile) Sync() error { return f.sync(f.w.file.Sync) }

// SyncData makes what was written durable.
func (f *streamFile) SyncData() error { return f.sync(nil) }

// SyncTo makes everything that was written durable.
func (f *streamFile) SyncTo(int64) (bool, error) { return true, f.sync(nil) }

// sync makes what was written durable and appends an empty frame that says so, without syncing it: once that one
// reaches the disk too, damage to the last synced frame is not taken for a torn tail. metadata, if any, is called as well.
func (f *streamFile) sync(metadata func() error) error {
	if f.clean {
		return f.w.err
	}
	err := f.w.Sync()
	if err == nil && metadata != nil {
		if err = metadata(); err != nil {
			f.w.err = fmt.Errorf("sync %s: %w", f.w.path, err)
		}
	}
	if err == nil {
		_, err = f.w.Append(nil)
	}
	f.clean = err == nil
	return err
}

// Prefetch does nothing: a file that is being written is in the cache.
func (f *streamFile) Prefetch(int64, int64) error { return nil }

// Fd returns the descriptor of the file below.
func (f *streamFile) Fd() uintptr { return f.w.file.Fd() }

// streamIndex serves a format 2 file as a sequence of bytes. It keeps one decrypted frame. It is for one goroutine.
type streamIndex struct {
	r      *StreamReader
	starts []int64 // plaintext offset of each frame
	refs   []FrameRef
	size   int64
	cached int // index of the frame in body, or -1
	body   []byte
}

// openStreamFile verifies the whole stream and indexes its frames. It may be open for append at the same time: then what
// was written when it was opened is served.
func (s *FS) openStreamFile(sf sealedFile) (vfs.File, error) {
	r, err := openStream(s.inner, s.ring, sf.path, sf.place, sf.class, true)
	if errors.Is(err, ErrIncomplete) && sf.class == classWAL {
		// Pebble makes a log's name durable before its content.
		f, err := s.inner.Open(sf.path)
		if err != nil {
			return nil, err
		}
		x := &streamIndex{r: &StreamReader{path: sf.path}, cached: -1}
		return &readFile{inner: f, name: sf.path, src: x, physical: x.physical}, nil
	}
	if errors.Is(err, ErrIncomplete) {
		// Pebble refers to a stream only after it synced it, so this one was never referred to, or it was damaged.
		return nil, damaged(ErrCorrupt, sf.path, 0, "it was never started")
	}
	if err != nil {
		return nil, err
	}
	x := &streamIndex{r: r, cached: -1}
	for {
		payload, ref, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		x.starts = append(x.starts, x.size)
		x.refs = append(x.refs, ref)
		x.size += int64(len(payload))
	}
	return &readFile{inner: r.file, name: sf.path, src: x, size: x.size, physical: x.physical}, nil
}

// frameAt returns the index of the frame that holds the plaintext byte at off.
func (x *streamIndex) frameAt(off int64) int {
	return sort.Search(len(x.starts), func(i int) bool { return x.starts[i] > off }) - 1
}

func (x *streamIndex) physical(off int64) int64 {
	i := x.frameAt(off)
	if i < 0 {
		return 0
	}
	return x.refs[i].Offset
}

// ReadAt reads authenticated plaintext.
func (x *streamIndex) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset", x.r.path)
	}
	done := 0
	for done < len(p) && off+int64(done) < x.size {
		i := x.frameAt(off + int64(done))
		if x.cached != i {
			body, err := x.r.ReadFrame(x.refs[i])
			if err != nil {
				return 0, err
			}
			x.cached, x.body = i, body
		}
		done += copy(p[done:], x.body[off+int64(done)-x.starts[i]:])
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}
