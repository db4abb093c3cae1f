// Package audit keeps each member's append-only record of who asked for what was refused, who changed rights, keys and
// members, who logged in, and, on request, who touched which keys.
//
// Job: write events in order on a chain of sealed streams, tell the caller when an event is durable, rotate, and read the
// record back with its chain verified. Non-job: deciding what is worth an event (core does), sending it elsewhere.
//
// Invariants: events are numbered without a gap, over restarts too; a number that is missing means that somebody cut the
// record, except at its beginning, which rotation removes. An event never holds a value that a user wrote; it may hold
// user names, role names and, where an operator asked for it, keys. Events that did not fit in the buffer are counted, and
// the count is itself an event. What Commit returned for is on disk; if the record cannot be written, Commit says so and
// its caller denies the operation.
//
// Goroutines: one writer per Record, which Close waits for. Lock order: Record.mu is a leaf.
//
// Files: DIR/<number>.audit, number as 16 hexadecimal digits, each a sealed stream (docs/formats/sealed-stream.md) that
// names the one before. A frame is a version byte and then one JSON object per event, each ended by a newline.
package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/seal"
)

// Sizes used when Options leaves them 0, in bytes.
const (
	DefaultSegmentBytes = 8 << 20
	DefaultKeepBytes    = 256 << 20
)

const (
	frameVersion = 1
	suffix       = ".audit"
	preallocate  = 256 << 10
	mostBuffered = 8192 // events
	retryAfter   = 5 * time.Second
	keepFiles    = 3 // never removed
)

// ErrClosed is returned by Commit after Close.
var ErrClosed = fault.New(fault.Unavailable, "the audit record is closed")

// Event is one thing that happened.
type Event struct {
	Seq         uint64    `json:"seq"` // set by the record
	Time        time.Time `json:"time"`
	Action      string    `json:"action"`            // what was asked, in stable words
	Who         string    `json:"who,omitempty"`     // the principal
	User        string    `json:"user,omitempty"`    // the user it acted as
	Certificate string    `json:"cert,omitempty"`    // issuer/serial it held
	Subject     string    `json:"subject,omitempty"` // user, role, member, certificate or key that it is about
	Outcome     string    `json:"outcome"`           // asked, done, or the reason of the refusal
}

// Options say where a record is kept. FS, Dir, Ring and Now are required.
type Options struct {
	FS     vfs.FS
	Dir    string // created if it does not exist; below the keyring's directory
	Ring   *seal.Keyring
	Now    func() time.Time
	Logger *slog.Logger

	SegmentBytes int64 // a file is closed when it is larger
	KeepBytes    int64 // the oldest files are removed while all of them are larger than this
}

// Record is an open record. Its methods may be called from any goroutine.
type Record struct {
	o      Options
	wake   chan struct{} // capacity 1
	closed chan struct{}

	mu      sync.Mutex
	buffer  []Event
	waiting []chan error // one for each Commit whose event is in buffer
	lost    lost
	err     error // of the last write; nil when it went well
	ending  bool

	// What follows belongs to the writer.
	w       *seal.StreamWriter
	segment uint64
	seq     uint64
	retryAt time.Time
}

// Open verifies the newest file of the record and begins the next one. Damage is an error: a record that does not verify
// is not carried on.
func Open(o Options) (*Record, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.KeepBytes == 0 {
		o.KeepBytes = DefaultKeepBytes
	}
	if err := seal.MakeDir(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	r := &Record{o: o, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("audit: the record in %s cannot be carried on (move the directory away to begin a new one): %w", o.Dir, err)
	}
	go r.run()
	return r, nil
}

// Note takes an event to be written soon. If too many wait, it is counted and left out.
func (r *Record) Note(e Event) {
	r.mu.Lock()
	if r.ending {
		r.mu.Unlock()
		return
	}
	if len(r.buffer) >= mostBuffered {
		r.lost.overflown++
	} else {
		r.buffer = append(r.buffer, r.stamp(e))
	}
	r.mu.Unlock()
	r.poke()
}

// Commit writes an event and returns when it is durable.
func (r *Record) Commit(e Event) error {
	done := make(chan error, 1)
	r.mu.Lock()
	if r.ending {
		r.mu.Unlock()
		return ErrClosed
	}
	r.buffer = append(r.buffer, r.stamp(e))
	r.waiting = append(r.waiting, done)
	r.mu.Unlock()
	r.poke()
	return <-done
}

func (r *Record) stamp(e Event) Event {
	if e.Time.IsZero() {
		e.Time = r.o.Now()
	}
	e.Time = e.Time.UTC().Round(0)
	return e
}

// Err returns why the record could not be written the last time it was tried; nil if it could.
func (r *Record) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return ErrClosed
	}
	return r.err
}

// Close writes what waits and ends the record.
func (r *Record) Close() error {
	r.mu.Lock()
	first := !r.ending
	r.ending = true
	r.mu.Unlock()
	r.poke()
	<-r.closed
	if !first {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *Record) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// lost counts events that are not in the record; the record says so as soon as it can.
type lost struct {
	overflown uint64 // the buffer was full
	unwritten uint64 // the disk did not take them
}

// batch is what is written as one frame.
type batch struct {
	events  []Event
	waiting []chan error
	lacks   lost // what the record lacks unless this is written: what its events tell of, and themselves
	last    bool // there will be no other
}

// run is the writer: it takes what has gathered, writes it as one frame, syncs once, and tells who waits.
func (r *Record) run() {
	defer close(r.closed)
	for range r.wake {
		for {
			b := r.take()
			if len(b.events) > 0 {
				err := r.write(b)
				r.mu.Lock()
				r.err = err
				if err != nil {
					r.lost.overflown += b.lacks.overflown
					r.lost.unwritten += b.lacks.unwritten
				}
				r.mu.Unlock()
				for _, done := range b.waiting {
					done <- err
				}
			}
			if b.last {
				r.finish()
				return
			}
			if len(b.events) == 0 {
				break
			}
		}
	}
}

func (r *Record) take() (b batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.events, b.waiting, b.last = r.buffer, r.waiting, r.ending
	r.buffer, r.waiting = nil, nil
	if len(b.events) == 0 && !b.last {
		return b // nobody asks for another try
	}
	b.lacks = lost{r.lost.overflown, r.lost.unwritten + uint64(len(b.events))}
	tell := func(n uint64, at int, why string) {
		if n > 0 {
			b.events = slices.Insert(b.events, at, r.stamp(Event{Action: "audit events lost", Subject: strconv.FormatUint(n, 10), Outcome: why}))
		}
	}
	tell(r.lost.unwritten, 0, "they could not be written")
	tell(r.lost.overflown, len(b.events), "the buffer was full")
	r.lost = lost{}
	return b
}

func (r *Record) finish() {
	if r.w == nil {
		return
	}
	err := r.w.Close()
	r.w = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
}

// write appends one frame. A failure is final for the file: after a while, or for the last frame, a new one is begun.
func (r *Record) write(b batch) error {
	if r.w == nil {
		now := r.o.Now()
		if now.Before(r.retryAt) && !b.last {
			return r.err // nobody else writes it
		}
		r.retryAt = now.Add(retryAfter)
		if err := r.begin(); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	payload, err := encode(b.events, r.seq)
	if err == nil {
		_, err = r.w.Append(payload)
	}
	if err == nil {
		err = r.w.Sync()
	}
	if err != nil {
		r.o.Logger.Error("the audit record cannot be written", "error", err)
		if cerr := r.w.Close(); cerr != nil {
			r.o.Logger.Warn("a file of the audit record cannot be closed", "error", cerr)
		}
		r.w, r.retryAt = nil, r.o.Now().Add(retryAfter)
		return fmt.Errorf("audit: %w", err)
	}
	r.seq += uint64(len(b.events))
	if r.w.Size() >= r.o.SegmentBytes {
		r.rotate()
	}
	return nil
}

// rotate begins the next file. If that fails, the next write tries again.
func (r *Record) rotate() {
	prev := r.w.End()
	if err := r.w.Close(); err != nil {
		r.o.Logger.Warn("a file of the audit record cannot be closed", "error", err)
	}
	r.w = nil
	if err := r.create(prev); err != nil {
		r.o.Logger.Error("the audit record cannot be carried on", "error", err)
		return
	}
	r.prune()
}

func (r *Record) create(prev seal.PrevSegment) error {
	number := prev.Segment + 1
	w, err := seal.CreateStream(r.o.FS, r.o.Ring, r.path(number), seal.StreamOptions{Segment: number, Prev: prev, Preallocate: preallocate})
	if err != nil {
		return err
	}
	r.w, r.segment = w, number
	return nil
}

func (r *Record) path(number uint64) string {
	return r.o.FS.PathJoin(r.o.Dir, fmt.Sprintf("%016x%s", number, suffix))
}

// begin finds the end of the record and starts the file after it.
func (r *Record) begin() error {
	paths, err := list(r.o.FS, r.o.Dir)
	if err != nil {
		return err
	}
	prev, seq, err := r.end(paths)
	if err != nil {
		return err
	}
	r.seq = seq
	if err := r.create(prev); err != nil {
		return err
	}
	r.prune()
	return nil
}

// end returns where the record ends and the number of its next event. A file that a crash left without a frame is removed.
// Files without events, which restarts leave, count: the number is then found in a file before them.
func (r *Record) end(paths []string) (prev seal.PrevSegment, seq uint64, err error) {
	for n := 1; ; n *= 2 {
		prev, seq, err = r.endOf(paths[max(0, len(paths)-n):])
		if err != nil || seq > 0 || n >= len(paths) {
			return prev, max(seq, 1), err
		}
		if paths, err = list(r.o.FS, r.o.Dir); err != nil {
			return prev, 0, err
		}
	}
}

// endOf is end for the newest files; seq is 0 if no event is in them.
func (r *Record) endOf(paths []string) (prev seal.PrevSegment, seq uint64, err error) {
	readers, stale, err := seal.OpenChain(r.o.FS, r.o.Ring, paths)
	if err != nil {
		return prev, 0, err
	}
	defer func() {
		for _, s := range readers {
			err = errors.Join(err, s.Close())
		}
	}()
	if stale != "" {
		if err := r.o.FS.Remove(stale); err != nil {
			return prev, 0, err
		}
	}
	for _, s := range readers {
		if err := events(s, func(e Event) error { seq = e.Seq + 1; return nil }); err != nil {
			return prev, 0, err
		}
		if prev, err = s.End(); err != nil {
			return prev, 0, err
		}
	}
	if n := len(readers); n > 0 {
		err = readers[n-1].Settle(r.o.FS) // the next file attests its end
	}
	return prev, seq, err
}

// prune removes the oldest files while the record is too large.
func (r *Record) prune() {
	paths, err := list(r.o.FS, r.o.Dir)
	if err != nil {
		r.o.Logger.Warn("the audit record cannot be listed", "error", err)
		return
	}
	var total int64
	sizes := make([]int64, len(paths))
	for i, p := range paths {
		info, err := r.o.FS.Stat(p)
		if err != nil {
			r.o.Logger.Warn("a file of the audit record cannot be looked at", "error", err)
			return
		}
		sizes[i] = info.Size()
		total += info.Size()
	}
	for i := 0; i < len(paths)-keepFiles && total > r.o.KeepBytes; i++ {
		if err := r.o.FS.Remove(paths[i]); err != nil {
			r.o.Logger.Warn("an old file of the audit record cannot be removed", "error", err)
			return
		}
		total -= sizes[i]
	}
}

// list returns the files of a record, oldest first.
func list(fs vfs.FS, dir string) ([]string, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range names {
		stem, ok := strings.CutSuffix(name, suffix)
		if _, err := strconv.ParseUint(stem, 16, 64); ok && err == nil && len(stem) == 16 {
			paths = append(paths, fs.PathJoin(dir, name))
		}
	}
	slices.Sort(paths)
	return paths, nil
}
