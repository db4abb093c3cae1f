package seal

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// StreamOptions says what a segment starts with.
type StreamOptions struct {
	Segment     uint64      // its number
	Prev        PrevSegment // the end of the segment before; zero for the first
	Context     []byte      // the caller's own, authenticated; at most 256 bytes
	Preallocate int64       // bytes of the file to fill with zeros first, so that Sync finds nothing but data to write
	Prepared    string      // a file that PrepareStream made for this stream: it is renamed and used instead of filling a new one
}

// StreamWriter appends frames to one segment. It belongs to one goroutine, except for ReadFrame. A failure is final: it
// is returned again by everything that follows, because after a failed write or sync nobody knows what is on disk.
type StreamWriter struct {
	ring    *Keyring
	file    vfs.File
	path    string
	place   string
	write   func(frame []byte, offset int64) error
	key     *streamKey
	segment uint64
	number  uint64        // of the next frame
	offset  int64         // of the next frame
	synced  int64         // everything below is durable
	tag     [tagSize]byte // of the last frame
	next    [tagSize]byte // of the frame that seal built
	buf     []byte
	aad     frameAAD
	err     error
	ended   bool // Scrub may look
	closed  bool
}

// keepBuffer is the largest frame buffer that a writer keeps between appends.
const keepBuffer = 4 << 20

// CreateStream starts a segment in a new file at path, below the keyring's directory. Header, first frame, zeros and
// the file's name are durable when it returns; if it does not return, OpenStream finds ErrIncomplete or no file.
func CreateStream(fs vfs.FS, ring *Keyring, path string, o StreamOptions) (*StreamWriter, error) {
	place, err := ring.place(path)
	if err != nil {
		return nil, err
	}
	if _, err := fs.Stat(path); err == nil {
		return nil, fmt.Errorf("create %s: %w", path, os.ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	zeroed := o.Preallocate
	if o.Prepared != "" {
		info, err := fs.Stat(o.Prepared)
		if err != nil {
			return nil, err
		}
		zeroed = info.Size()
		if err := fs.Rename(o.Prepared, path); err != nil {
			return nil, err
		}
	}
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if o.Prepared == "" {
		if err := fillZero(f, o.Preallocate); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	w, err := newStreamWriter(ring, f, path, place, classLog, o, zeroed)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w.write = func(frame []byte, offset int64) error { _, err := f.WriteAt(frame, offset); return err }
	if err := w.start(o, zeroed); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := errors.Join(f.Sync(), syncDir(fs, fs.PathDir(path))); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	w.synced = w.offset
	return w, nil
}

// PrepareStream makes a durable file of size zeros at path, for StreamOptions.Prepared. It is meant to be called while
// the segment before is still being written, by another goroutine. A file that is already there is replaced.
func PrepareStream(fs vfs.FS, path string, size int64) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	zeros := make([]byte, min(size, fillPiece))
	for left := size; left > 0 && err == nil; left -= int64(len(zeros)) {
		zeros = zeros[:min(left, int64(len(zeros)))]
		clear(zeros) // Write may change what it is given
		_, err = f.Write(zeros)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// fillPiece is one page. What is written at once Linux may keep as one folio of its page cache, and a frame that is later written into
// a folio of a megabyte costs the kernel twice the time of one in a page, and is accounted to the process as a megabyte to storage.
const fillPiece = 4 << 10

func fillZero(f vfs.File, size int64) error {
	zeros := make([]byte, min(size, fillPiece))
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(size-at, int64(len(zeros)))], at); err != nil {
			return err
		}
	}
	return nil
}

// newStreamWriter derives the keys of a new segment. The caller sets write and calls start.
func newStreamWriter(ring *Keyring, f vfs.File, path, place string, c class, o StreamOptions, zeroed int64) (*StreamWriter, error) {
	if len(o.Context) > maxContext || zeroed < 0 || o.Prev.EndOffset < 0 || o.Prev.EndOffset > maxOffset {
		return nil, fmt.Errorf("create %s: the context has %d bytes and %d to zero, which is outside what a segment can have", path, len(o.Context), zeroed)
	}
	w := &StreamWriter{ring: ring, file: f, path: path, place: place, segment: o.Segment}
	h := ring.newHeader(formatStream, c, o.Segment)
	classKey, err := ring.classKey(path, h)
	if err != nil {
		return nil, err
	}
	preamble := h.encode()
	salt := freshSalt()
	key, commitment, err := newStreamKey(classKey, salt[:], sealContext(preamble, place))
	if err != nil {
		return nil, err
	}
	w.key = key
	w.buf = append(append(append(w.buf, preamble...), salt[:]...), commitment...)
	ring.beginWriting(place)
	return w, nil
}

// start writes the preamble and frame 0 in one go.
func (w *StreamWriter) start(o StreamOptions, zeroed int64) error {
	first := frame0{prev: o.Prev, sequence: w.ring.sequence(), zeroed: zeroed, context: o.Context}
	preamble := w.buf[:preambleSize:preambleSize]
	w.buf = nil
	w.offset = preambleSize
	frame, _, err := w.seal(first.encode())
	if err != nil {
		return err
	}
	if err := w.write(append(preamble, frame...), 0); err != nil {
		w.err = fmt.Errorf("write %s: %w", w.path, err)
		return w.err
	}
	w.advance(len(frame))
	return nil
}

// seal builds the next frame in w.buf.
func (w *StreamWriter) seal(payload []byte) (frame []byte, ref FrameRef, err error) {
	length := len(payload) + frameExtra
	size := frameSize(int64(length))
	if len(payload) > maxPayload || w.offset > maxOffset-size || w.number == math.MaxUint32 {
		return nil, ref, fmt.Errorf("append %d bytes to %s: the segment has no room for them", len(payload), w.path)
	}
	if int64(cap(w.buf)) < size {
		w.buf = make([]byte, size, max(size, int64(2*cap(w.buf)), 4<<10))
	}
	ref = FrameRef{Number: w.number, Offset: w.offset, Length: uint32(len(payload)), PrevTag: w.tag}
	w.aad.set(w.number, w.offset, uint32(length), w.synced, &w.tag)
	frame = w.buf[:size]
	w.key.aead.Seal(frame[frameHead:frameHead], nil, payload, w.aad[:])
	for i := frameHead + length; i < len(frame); i++ {
		frame[i] = markByte
	}
	w.key.putHead(frame, w.offset, uint32(length), w.synced)
	w.next = [tagSize]byte(frame[frameHead+length-tagSize:]) // now, because writing may change frame
	return frame, ref, nil
}

// advance makes the frame that seal built, of size bytes, the last one.
func (w *StreamWriter) advance(size int) {
	w.number++
	w.offset += int64(size)
	w.tag = w.next
}

// Append writes payload as one frame. It is on disk after the next Sync, and readable by ReadFrame at once. The caller
// may reuse payload.
func (w *StreamWriter) Append(payload []byte) (FrameRef, error) {
	if w.err != nil {
		return FrameRef{}, w.err
	}
	frame, ref, err := w.seal(payload)
	if err != nil {
		return FrameRef{}, err // nothing was written: the stream is as it was
	}
	if err := w.write(frame, w.offset); err != nil {
		w.err = fmt.Errorf("append to %s: %w", w.path, err)
		return FrameRef{}, w.err
	}
	w.advance(len(frame))
	if cap(w.buf) > keepBuffer {
		w.buf = nil
	}
	return ref, nil
}

// Sync makes every appended frame durable.
func (w *StreamWriter) Sync() error {
	if w.err != nil {
		return w.err
	}
	if w.synced == w.offset {
		return nil
	}
	if err := w.file.SyncData(); err != nil {
		w.err = fmt.Errorf("sync %s: %w", w.path, err)
		return w.err
	}
	w.synced = w.offset
	return nil
}

// End returns where the stream ends now, for the next segment's Prev.
func (w *StreamWriter) End() PrevSegment {
	return PrevSegment{Segment: w.segment, EndOffset: w.offset, LastTag: w.tag}
}

// Size returns the physical bytes in use, without what is only preallocated.
func (w *StreamWriter) Size() int64 { return w.offset }

// ReadFrame returns the payload of a frame that was appended. Any goroutine may call it until Close.
func (w *StreamWriter) ReadFrame(ref FrameRef) ([]byte, error) {
	return readFrame(w.file, w.path, w.key, ref)
}

// Finish says that no frame follows any more, so that Scrub looks at the segment. What it holds stays readable. It does not
// sync.
func (w *StreamWriter) Finish() {
	if !w.ended {
		w.ended = true
		w.ring.endWriting(w.place)
	}
	if w.err == nil {
		w.err = fmt.Errorf("%s: %w", w.path, os.ErrClosed)
	}
}

// Close closes the file. It does not sync; what was not synced may be gone after a crash.
func (w *StreamWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.Finish()
	return w.file.Close()
}
