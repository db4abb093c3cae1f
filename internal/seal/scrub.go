package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/fault"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// defaultScrubRate is the pace of Scrub when none is given, in bytes a second.
const defaultScrubRate = 16 << 20

// Finding is one file that does not verify.
type Finding struct {
	Path   string
	Offset int64  // physical byte at which it was noticed; -1 if the whole file is meant
	Kind   string // "tampered", "corrupt", "rolled back", "unsealed" or "unreadable"
	Err    error
}

// Scrub verifies every sealed file below dir, which is the keyring's directory or below it: every chunk of every object,
// every frame of every stream up to where the next segment says that it ends, the KEYRING itself. It reads at most rate bytes a second (0 means 16 MiB) and goes on
// after a finding. Files that this keyring's owner is writing are left out, and so are temporaries that a crash left and
// the torn tail of a stream. The error is ctx's, or that a directory could not be listed; findings are no error.
func Scrub(ctx context.Context, fs vfs.FS, ring *Keyring, dir string, rate int, report func(Finding)) error {
	if rate <= 0 {
		rate = defaultScrubRate
	}
	s := &scrubber{ctx: ctx, fs: fs, ring: ring, rate: rate, report: report}
	return s.dir(dir)
}

type scrubber struct {
	ctx    context.Context
	fs     vfs.FS
	ring   *Keyring
	rate   int // bytes a second
	report func(Finding)

	owed time.Duration // of pauses too short to take
}

// pace waits as long as reading n bytes may take.
func (s *scrubber) pace(n int) error {
	s.owed += time.Duration(float64(n) / float64(s.rate) * float64(time.Second))
	if s.owed < 10*time.Millisecond {
		return s.ctx.Err()
	}
	t := time.NewTimer(s.owed)
	defer t.Stop()
	s.owed = 0
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-t.C:
		return nil
	}
}

func (s *scrubber) dir(dir string) error {
	names, err := s.fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		path := s.fs.PathJoin(dir, name)
		info, err := s.fs.Stat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			s.find(path, err)
			continue
		case info.IsDir():
			if name == "lost+found" {
				continue
			}
			if err := s.dir(path); err != nil {
				return err
			}
			continue
		}
		next := ""
		if j := slices.IndexFunc(names[i+1:], func(n string) bool { return extension(n) == extension(name) }); j >= 0 {
			next = s.fs.PathJoin(dir, names[i+1+j])
		}
		if err := s.file(path, name, next); err != nil {
			return err
		}
	}
	return nil
}

// extension returns what follows the last dot of a name.
func extension(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// file verifies one file. next is where its next segment is, if it is a segment. The error is ctx's.
func (s *scrubber) file(path, name, next string) error {
	if name == lockName || strings.HasSuffix(name, tempSuffix) {
		return nil
	}
	place, err := s.ring.place(path)
	if err != nil {
		s.find(path, err)
		return nil
	}
	if s.ring.isWriting(place) {
		return nil
	}
	if path == s.ring.path {
		err = s.keyring()
	} else {
		err = s.sealed(path, name, place, next)
	}
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err == nil || errors.Is(err, os.ErrNotExist) || s.ring.isWriting(place) {
		return nil
	}
	s.find(path, err)
	return nil
}

func (s *scrubber) keyring() error {
	raw, err := readWhole(s.fs, s.ring.path, maxKeyringSize)
	if err != nil {
		return err
	}
	f, body, mac, err := parseRing(raw)
	if err != nil {
		return err
	}
	want, err := s.ring.mac(body)
	if err != nil {
		return err
	}
	if string(want) != string(mac) {
		return fmt.Errorf("%s: %w", s.ring.path, ErrTampered)
	}
	if own := s.ring.sequence(); f.sequence < own {
		return damaged(ErrRolledBack, s.ring.path, 12, "it is number %d, and number %d is in use", f.sequence, own)
	}
	return nil
}

func (s *scrubber) sealed(path, name, place, next string) error {
	f, err := s.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	head := make([]byte, headerSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if n < len(magicFile) || string(head[:len(magicFile)]) != magicFile {
		if blank, err := blankFrom(f, 0); err != nil || blank {
			return err // prepared for a stream, or left by a crash before anything was written
		}
		if allZero(head[:n]) {
			return damaged(ErrCorrupt, path, 0, "the header is gone")
		}
		return errUnsealed
	}
	h, err := parseHeader(path, head[:n])
	if err != nil {
		return err
	}
	if want, c := classify(name); want != kindUnknown && c != h.class {
		return damaged(ErrTampered, path, 9, "it has class %s where class %s belongs", h.class.label(), c.label())
	}
	if h.format == formatStream {
		return s.stream(path, place, next, h.class)
	}
	r, err := openObject(s.ring, f, path, place, h.class)
	if err != nil {
		return err
	}
	return r.verify(s.pace)
}

func (s *scrubber) stream(path, place, next string, c class) error {
	r, err := openStream(s.fs, s.ring, path, place, c, true)
	if errors.Is(err, ErrIncomplete) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close() // opened for reading
	if c == classLog && next != "" {
		s.attest(r, next)
	}
	for {
		payload, _, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.pace(len(payload) + frameHead + frameExtra); err != nil {
			return err
		}
	}
}

// attest has the segment at next say where r ends. If next cannot be opened, that is found when its turn comes.
func (s *scrubber) attest(r *StreamReader, next string) {
	n, err := OpenStream(s.fs, s.ring, next, true)
	if err != nil {
		return
	}
	defer n.Close() // opened for reading
	said := n.Prev()
	if n.segment != r.segment+1 || said.Segment != r.segment {
		s.find(next, damaged(ErrTampered, next, preambleSize, "segment %d follows segment %d: a segment is missing or was exchanged", n.segment, r.segment))
		return
	}
	r.end = &said
}

var errUnsealed = fault.New(fault.Corrupt, "the file is not sealed")

func (s *scrubber) find(path string, err error) {
	f := Finding{Path: path, Offset: -1, Kind: "unreadable", Err: err}
	var d *damage
	if errors.As(err, &d) {
		f.Offset = d.offset
	}
	switch {
	case errors.Is(err, errUnsealed):
		f.Kind = "unsealed"
	case errors.Is(err, ErrRolledBack):
		f.Kind = "rolled back"
	case errors.Is(err, ErrTampered):
		f.Kind = "tampered"
	case errors.Is(err, ErrCorrupt):
		f.Kind = "corrupt"
	}
	s.report(f)
}
