package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/seal"
)

// ErrGap means that events are missing inside the record.
var ErrGap = fault.New(fault.Corrupt, "events are missing from the audit record")

// errFrame means that a frame which authenticates is not one that this package writes.
var errFrame = fault.New(fault.Corrupt, "malformed frame in the audit record")

// encode makes a frame of events, numbered from seq.
func encode(list []Event, seq uint64) ([]byte, error) {
	out := bytes.NewBuffer([]byte{frameVersion})
	enc := json.NewEncoder(out) // ends each event with a newline
	enc.SetEscapeHTML(false)
	for i := range list {
		e := list[i]
		e.Seq = seq + uint64(i)
		if err := enc.Encode(e); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// decode calls f with each event of a frame.
func decode(frame []byte, f func(Event) error) error {
	if len(frame) == 0 || frame[0] != frameVersion {
		return errFrame
	}
	dec := json.NewDecoder(bytes.NewReader(frame[1:]))
	dec.DisallowUnknownFields()
	for {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

func events(s *seal.StreamReader, f func(Event) error) error {
	for {
		frame, _, err := s.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := decode(frame, f); err != nil {
			return err
		}
	}
}

// Report says what Read has found.
type Report struct {
	Files       int
	Events      uint64
	First, Last uint64 // numbers of the events; 0 if there are none
}

// Read calls f with every event, oldest first, and verifies the chain on the way: a file that was damaged, exchanged or
// removed from the middle, and an event that is missing, end it with an error. It does not write.
func Read(fs vfs.FS, ring *seal.Keyring, dir string, f func(Event) error) (Report, error) {
	var report Report
	paths, err := list(fs, dir)
	if err != nil {
		return report, fmt.Errorf("audit: %w", err)
	}
	readers, _, err := seal.OpenChain(fs, ring, paths)
	if err != nil {
		return report, fmt.Errorf("audit: %w", err)
	}
	for _, s := range readers {
		if err == nil {
			report.Files++
			err = events(s, func(e Event) error {
				switch {
				case report.Events == 0:
					report.First = e.Seq
				case e.Seq != report.Last+1:
					return fmt.Errorf("%w: %d follows %d", ErrGap, e.Seq, report.Last)
				}
				report.Last = e.Seq
				report.Events++
				return f(e)
			})
		}
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return report, fmt.Errorf("audit: %w", err)
	}
	return report, nil
}
