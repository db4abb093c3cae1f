package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// StreamReader reads one segment. Next, End and Close belong to one goroutine; ReadFrame may be called by any until
// Close.
type StreamReader struct {
	file    vfs.File
	path    string
	key     *streamKey
	segment uint64
	first   frame0
	size    int64 // of the file when it was opened
	newest  bool
	end     *PrevSegment // what the next segment says about the end of this one

	number uint64 // of the next frame
	offset int64
	tag    [tagSize]byte
	done   bool
	err    error

	window []byte // file bytes from winOff
	winOff int64
}

// OpenStream opens a segment and checks its header and first frame. newest says that no later segment exists: then a
// crash may have torn its tail, and Next ends where the torn part begins. Several segments are opened with OpenChain,
// because in an older segment only the next one's word tells a torn tail from damage.
func OpenStream(fs vfs.FS, ring *Keyring, path string, newest bool) (*StreamReader, error) {
	place, err := ring.place(path)
	if err != nil {
		return nil, err
	}
	return openStream(fs, ring, path, place, classLog, newest)
}

func openStream(fs vfs.FS, ring *Keyring, path, place string, c class, newest bool) (*StreamReader, error) {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, err
	}
	r, err := newStreamReader(ring, f, path, place, c)
	if err == nil {
		r.newest = newest
		return r, nil
	}
	if newest && (errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTampered)) {
		never, readErr := neverStarted(f)
		if readErr != nil {
			err = readErr
		} else if never {
			err = fmt.Errorf("%s: %w", path, ErrIncomplete)
		}
	}
	return nil, errors.Join(err, f.Close())
}

func newStreamReader(ring *Keyring, f vfs.File, path, place string, c class) (*StreamReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h, preamble, classKey, err := openPreamble(ring, f, path, formatStream)
	if err != nil {
		return nil, err
	}
	if h.class != c {
		return nil, damaged(ErrTampered, path, 9, "it has class %s where class %s belongs", h.class.label(), c.label())
	}
	key, commitment, err := newStreamKey(classKey, preamble[headerSize:headerSize+saltSize], sealContext(preamble, place))
	if err != nil {
		return nil, err
	}
	if err := checkCommitment(path, commitment, preamble[headerSize+saltSize:]); err != nil {
		return nil, err
	}
	r := &StreamReader{file: f, path: path, key: key, segment: h.number, size: info.Size(), offset: preambleSize}
	payload, _, err := r.Next()
	if errors.Is(err, io.EOF) {
		return nil, damaged(ErrCorrupt, path, preambleSize, "the first frame is missing")
	}
	if err != nil {
		return nil, err
	}
	var ok bool
	if r.first, ok = parseFrame0(payload); !ok {
		return nil, damaged(ErrCorrupt, path, preambleSize, "the first frame is not known to this version")
	}
	r.window = nil // one segment of many may be kept open for ReadFrame only
	return r, ring.checkSequence(path, r.first.sequence)
}

// neverStarted reports whether nothing but zeros follows the place of the first frame. CreateStream makes the first
// frame durable before another one can follow, so such a segment never held anything.
func neverStarted(f vfs.File) (bool, error) {
	var start [preambleSize + frameHead]byte
	n, err := f.ReadAt(start[:], 0)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	at := int64(len(start))
	if n == len(start) {
		seed := streamKey{seed: binary.BigEndian.Uint32(start[headerSize+saltSize:])}
		if length, _, ok := seed.head(start[preambleSize:], preambleSize); ok && length <= frameExtra+frame0Fixed+maxContext {
			at = preambleSize + frameSize(int64(length))
		}
	}
	return blankFrom(f, at)
}

// blankFrom reports whether f has nothing but zeros from at on.
func blankFrom(f vfs.File, at int64) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, at)
		if !allZero(buf[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		at += int64(n)
	}
}

// Segment returns the segment's number.
func (r *StreamReader) Segment() uint64 { return r.segment }

// Prev returns what the segment says about the end of the one before.
func (r *StreamReader) Prev() PrevSegment { return r.first.prev }

// Context returns the caller's own bytes that CreateStream was given.
func (r *StreamReader) Context() []byte { return bytes.Clone(r.first.context) }

// peek returns up to n file bytes from off. Fewer come only where the file ends.
func (r *StreamReader) peek(off, n int64) ([]byte, error) {
	if n = min(n, r.size-off); n <= 0 {
		return nil, nil
	}
	if off >= r.winOff && off+n <= r.winOff+int64(len(r.window)) {
		return r.window[off-r.winOff:][:n], nil
	}
	want := min(max(n, windowSize), r.size-off)
	if int64(cap(r.window)) < want {
		r.window = make([]byte, want)
	}
	r.winOff, r.window = off, r.window[:want]
	got, err := r.file.ReadAt(r.window, off)
	r.window = r.window[:got]
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read %s: %w", r.path, err)
	}
	return r.window[:min(n, int64(got))], nil
}

// Next returns the payload of the next frame, which belongs to the caller, and where it is. It returns io.EOF at the
// logical end: where the next segment says, at the end of what was written, or where a crash tore the newest segment.
// ErrCorrupt and ErrTampered are final.
func (r *StreamReader) Next() ([]byte, FrameRef, error) {
	if r.err != nil {
		return nil, FrameRef{}, r.err
	}
	if r.done {
		return nil, FrameRef{}, io.EOF
	}
	payload, ref, err := r.next()
	switch {
	case errors.Is(err, io.EOF):
		r.done, r.window = true, nil
	case err != nil:
		r.err = err
	}
	return payload, ref, err
}

func (r *StreamReader) next() ([]byte, FrameRef, error) {
	if r.end != nil && r.offset >= r.end.EndOffset {
		if r.offset != r.end.EndOffset || r.tag != r.end.LastTag {
			return nil, FrameRef{}, damaged(ErrTampered, r.path, r.offset, "segment %d does not end as segment %d says it did", r.segment, r.segment+1)
		}
		return nil, FrameRef{}, io.EOF
	}
	head, err := r.peek(r.offset, frameHead+nonceSize)
	if err != nil {
		return nil, FrameRef{}, err
	}
	if len(head) < frameHead {
		return nil, FrameRef{}, r.tail(head, true)
	}
	length, _, ok := r.key.head(head, r.offset)
	if !ok {
		// Whoever writes a frame in order and stops within the head leaves no nonce.
		return nil, FrameRef{}, r.tail(head, allZero(head[frameHead:]))
	}
	full := frameSize(int64(length))
	frame, err := r.peek(r.offset, full)
	if err != nil {
		return nil, FrameRef{}, err
	}
	body := frameHead + int(length)
	if len(frame) < body || !r.key.intact(frame[:body]) {
		return nil, FrameRef{}, r.tail(frame, int64(len(frame)) < full || allZero(frame[body:]))
	}
	if !wholeMark(frame[body:]) {
		if err := r.mark(r.offset+full, body); err != nil {
			return nil, FrameRef{}, err
		}
		if frame, err = r.peek(r.offset, full); err != nil {
			return nil, FrameRef{}, err
		}
	}
	ref := FrameRef{Number: r.number, Offset: r.offset, Length: length - frameExtra, PrevTag: r.tag}
	payload, err := r.key.open(make([]byte, 0, ref.Length), frame[:body], &ref)
	if err != nil {
		return nil, FrameRef{}, damaged(ErrTampered, r.path, r.offset, "frame %d does not authenticate", r.number)
	}
	r.number++
	r.offset += full
	copy(r.tag[:], frame[body-tagSize:])
	return payload, ref, nil
}

// mark decides what it means that a whole frame is not followed by its mark. Where the file was not zero before, and
// nothing says that the frame was synced, it is what was there before the file; the frame stands.
func (r *StreamReader) mark(end int64, body int) error {
	later, _, err := r.attestedLater()
	if err != nil {
		return err
	}
	if later >= 0 || r.end != nil || end <= r.first.zeroed {
		return damaged(ErrCorrupt, r.path, r.offset+int64(body), "the end of frame %d is not marked as it should be", r.number)
	}
	return nil
}

// tail decides what a frame is that fails its checksum. piece is what was looked at; short says that its end is missing. A
// crash leaves zeros where the file was zero before: a frame of which every sector has bytes, and the end too, was written
// in full and damaged afterwards. The answer is io.EOF for the end of the stream, or the damage.
func (r *StreamReader) tail(piece []byte, short bool) error {
	corrupt := func(why string) error {
		return damaged(ErrCorrupt, r.path, r.offset, "frame %d fails its checksum %s", r.number, why)
	}
	if r.end != nil {
		return corrupt("before the end that the next segment attests")
	}
	if !short && r.offset+int64(len(piece)) <= r.first.zeroed && !lostSector(piece, r.offset) {
		return corrupt("although it was written in full")
	}
	later, blank, err := r.attestedLater()
	switch {
	case err != nil:
		return err
	case later >= 0:
		return corrupt(fmt.Sprintf("and the frame at byte %d says that it was synced", later))
	case !r.newest && !blank && r.number > 0:
		return corrupt("and this is not the newest segment")
	}
	return io.EOF
}

// attestedLater looks behind the bad frame at r.offset for an intact frame which says that the bad one was synced. It
// returns its offset or -1, and whether the rest of the file is blank. Work is bounded: what it cannot finish is damage.
func (r *StreamReader) attestedLater() (at int64, blank bool, err error) {
	blank = true
	budget := 64*(r.size-r.offset) + 1<<30 // bytes of checksum
	for at = r.offset; at+frameHead <= r.size; {
		span, err := r.peek(at, min(windowSize, r.size-at))
		if err != nil {
			return -1, false, err
		}
		if len(span) < frameHead {
			break
		}
		step := int64(len(span)) // covers the heads that start in span
		if step > frameHead {
			step = (step - frameHead + 8) &^ 7
		}
		if allZero(span) {
			at += max(step, 8)
			continue
		}
		blank = false
		base := at
		for i := int64(0); i < step && i+frameHead <= int64(len(span)); i += 8 {
			at = base + i
			length, synced, ok := r.key.head(span[i:i+frameHead], at)
			if !ok || synced <= r.offset || at+frameHead+int64(length) > r.size {
				continue
			}
			if budget -= int64(length); budget < 0 {
				return at, false, nil
			}
			frame, err := r.peek(at, frameHead+int64(length))
			if err != nil {
				return -1, false, err
			}
			if int64(len(frame)) == frameHead+int64(length) && r.key.intact(frame) {
				return at, false, nil
			}
			if span, err = r.peek(base, int64(len(span))); err != nil {
				return -1, false, err
			}
		}
		at = base + max(step, 8)
	}
	if rest, err := r.peek(at, r.size-at); err != nil || !allZero(rest) {
		return -1, false, err
	}
	return -1, blank, nil
}

// End reads to the logical end, if Next has not, and returns it.
func (r *StreamReader) End() (PrevSegment, error) {
	for {
		_, _, err := r.Next()
		if errors.Is(err, io.EOF) {
			return PrevSegment{Segment: r.segment, EndOffset: r.offset, LastTag: r.tag}, nil
		}
		if err != nil {
			return PrevSegment{}, err
		}
	}
}

// Settle makes durable what End found. Whoever lets a next segment attest that end has to call it before.
func (r *StreamReader) Settle(fs vfs.FS) error {
	if !r.done || r.err != nil {
		return fmt.Errorf("settle %s: it was not read to its end", r.path)
	}
	return rewrite(fs, r.path, r.offset)
}

// Rewrite makes durable what a file holds that a former process wrote. It may be in the page cache only, and after a sync that
// failed the kernel holds it for clean, so that another sync would go through and write nothing. The same bytes are therefore
// written again, and synced.
func Rewrite(fs vfs.FS, path string) error {
	info, err := fs.Stat(path)
	if err != nil {
		return err
	}
	return rewrite(fs, path, info.Size())
}

// rewrite is Rewrite of the first size bytes.
func rewrite(fs vfs.FS, path string, size int64) (err error) {
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(size, windowSize))
	for at := int64(0); at < size; {
		piece := buf[:min(int64(len(buf)), size-at)]
		if _, err := f.ReadAt(piece, at); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if _, err := f.WriteAt(piece, at); err != nil {
			return fmt.Errorf("write %s again: %w", path, err)
		}
		at += int64(len(piece))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// ReadFrame returns the payload of the frame at ref.
func (r *StreamReader) ReadFrame(ref FrameRef) ([]byte, error) {
	return readFrame(r.file, r.path, r.key, ref)
}

func readFrame(src io.ReaderAt, path string, key *streamKey, ref FrameRef) ([]byte, error) {
	if ref.Offset < preambleSize || ref.Length > maxPayload {
		return nil, damaged(ErrCorrupt, path, ref.Offset, "no frame can be there")
	}
	frame := make([]byte, frameHead+frameExtra+int(ref.Length))
	n, err := src.ReadAt(frame, ref.Offset)
	if n < len(frame) {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		return nil, damaged(ErrCorrupt, path, ref.Offset+int64(n), "frame %d is cut short", ref.Number)
	}
	length, _, ok := key.head(frame, ref.Offset)
	if !ok || !key.intact(frame[:min(len(frame), frameHead+int(length))]) {
		return nil, damaged(ErrCorrupt, path, ref.Offset, "frame %d fails its checksum", ref.Number)
	}
	if length != ref.Length+frameExtra {
		return nil, damaged(ErrTampered, path, ref.Offset, "frame %d has another length", ref.Number)
	}
	payload, err := key.open(make([]byte, 0, ref.Length), frame, &ref)
	if err != nil {
		return nil, damaged(ErrTampered, path, ref.Offset, "frame %d does not authenticate", ref.Number)
	}
	return payload, nil
}

// Close closes the file.
func (r *StreamReader) Close() error { return r.file.Close() }
