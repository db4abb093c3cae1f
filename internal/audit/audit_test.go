package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"holdfast.dev/holdfast/internal/seal"
)

// plainKEK wraps by turning bytes around: enough for a test of what stands on the keyring.
type plainKEK struct{}

func (plainKEK) ID() string { return "test" }
func (plainKEK) Wrap(_ context.Context, p, _ []byte) ([]byte, error) {
	out := make([]byte, len(p))
	for i := range p {
		out[i] = ^p[i]
	}
	return out, nil
}
func (k plainKEK) Unwrap(ctx context.Context, w, aad []byte) ([]byte, error) {
	return k.Wrap(ctx, w, aad)
}

type fixture struct {
	fs   vfs.FS
	ring *seal.Keyring
	now  time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	mem := vfs.NewCrashableMem()
	ring, err := seal.CreateKeyring(mem, "/data", plainKEK{})
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{fs: mem, ring: ring, now: time.Unix(1_700_000_000, 0)}
}

func (f *fixture) open(t *testing.T, change func(*Options)) *Record {
	t.Helper()
	o := Options{FS: f.fs, Dir: "/data/audit", Ring: f.ring, Now: func() time.Time { return f.now }}
	if change != nil {
		change(&o)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (f *fixture) read(t *testing.T) ([]Event, Report) {
	t.Helper()
	var all []Event
	report, err := Read(f.fs, f.ring, "/data/audit", func(e Event) error { all = append(all, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all, report
}

func commit(t *testing.T, r *Record, subject string) {
	t.Helper()
	if err := r.Commit(Event{Action: "test", Who: "somebody", Subject: subject, Outcome: "done"}); err != nil {
		t.Fatal(err)
	}
}

func TestRoundTripOverRestarts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for run := range 3 {
		r := f.open(t, nil)
		for i := range 4 {
			commit(t, r, fmt.Sprintf("%d.%d", run, i))
		}
		r.Note(Event{Action: "noted", Outcome: "done"})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all, report := f.read(t)
	if len(all) != 15 || report.First != 1 || report.Last != 15 || report.Files != 3 {
		t.Fatalf("%d events, %+v", len(all), report)
	}
	if e := all[6]; e.Subject != "1.1" || e.Seq != 7 || !e.Time.Equal(f.now) || e.Who != "somebody" {
		t.Fatalf("%+v", e)
	}
}

func TestRestartsWithoutEvents(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.open(t, nil)
	commit(t, r, "a")
	for range 9 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = f.open(t, nil)
	}
	commit(t, r, "b")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if all, report := f.read(t); len(all) != 2 || all[1].Seq != 2 || report.Files != 10 {
		t.Fatalf("%+v %+v", all, report)
	}
}

func TestCommitIsDurable(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	mem := f.fs.(*vfs.MemFS)
	r := f.open(t, nil)
	commit(t, r, "kept")
	crashed := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	ring, err := seal.OpenKeyring(crashed, "/data", plainKEK{})
	if err != nil {
		t.Fatal(err)
	}
	after := &fixture{fs: crashed, ring: ring, now: f.now}
	again := after.open(t, nil)
	commit(t, again, "later")
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	all, _ := after.read(t)
	if len(all) != 2 || all[0].Subject != "kept" || all[1].Seq != 2 {
		t.Fatalf("%+v", all)
	}
}

func TestRotationAndPruning(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.open(t, func(o *Options) { o.SegmentBytes, o.KeepBytes = 4<<10, 5*preallocate })
	for i := range 200 {
		commit(t, r, strings.Repeat("x", 100)+fmt.Sprint(i))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	all, report := f.read(t)
	if report.First <= 1 || report.Last != 200 || uint64(len(all)) != 200-report.First+1 || report.Files < 3 || report.Files > 6 {
		t.Fatalf("%d events, %+v", len(all), report)
	}
}

func TestNothingReadableOnDisk(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.open(t, nil)
	commit(t, r, "canary-user")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	paths, err := list(f.fs, "/data/audit")
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	if strings.Contains(string(raw(t, f.fs, paths[0])), "canary") {
		t.Fatal("the record is readable on disk")
	}
}

func raw(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	file, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTamperingIsFound(t *testing.T) {
	t.Parallel()
	build := func(t *testing.T) (*fixture, []string) {
		f := newFixture(t)
		for range 4 {
			r := f.open(t, nil)
			commit(t, r, "a")
			commit(t, r, "b")
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		paths, err := list(f.fs, "/data/audit")
		if err != nil || len(paths) != 4 {
			t.Fatal(paths, err)
		}
		return f, paths
	}
	verify := func(f *fixture) error {
		_, err := Read(f.fs, f.ring, "/data/audit", func(Event) error { return nil })
		return err
	}
	t.Run("a file is missing", func(t *testing.T) {
		f, paths := build(t)
		if err := f.fs.Remove(paths[1]); err != nil {
			t.Fatal(err)
		}
		if err := verify(f); !errors.Is(err, seal.ErrTampered) {
			t.Fatal(err)
		}
	})
	t.Run("the oldest was rotated away", func(t *testing.T) {
		f, paths := build(t)
		if err := f.fs.Remove(paths[0]); err != nil {
			t.Fatal(err)
		}
		if err := verify(f); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a byte is changed", func(t *testing.T) {
		f, paths := build(t)
		flip(t, f.fs, paths[3], lastByte(raw(t, f.fs, paths[3]))-30)
		if err := verify(f); !errors.Is(err, seal.ErrTampered) && !errors.Is(err, seal.ErrCorrupt) {
			t.Fatal(err)
		}
		_, err := Open(Options{FS: f.fs, Dir: "/data/audit", Ring: f.ring, Now: func() time.Time { return f.now }})
		if err == nil || !strings.Contains(err.Error(), "move the directory away") {
			t.Fatal(err)
		}
	})
}

// lastByte returns where a preallocated file's content ends.
func lastByte(b []byte) int64 {
	n := len(b) - 1
	for b[n] == 0 {
		n--
	}
	return int64(n)
}

func flip(t *testing.T, fs vfs.FS, path string, offset int64) {
	t.Helper()
	file, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := file.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// failing is a disk that fails every write and sync of the record while it is on.
type failing struct {
	mu sync.Mutex
	on bool
}

func (f *failing) String() string { return "failing" }
func (f *failing) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on && strings.HasSuffix(op.Path, suffix) && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		return os.ErrPermission
	}
	return nil
}
func (f *failing) set(on bool) { f.mu.Lock(); f.on = on; f.mu.Unlock() }

func TestUnwritableRecordSaysSoAndRecovers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	disk := &failing{}
	var mu sync.Mutex
	now := f.now
	r := f.open(t, func(o *Options) {
		o.FS = errorfs.Wrap(f.fs, disk)
		o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	commit(t, r, "before")
	disk.set(true)
	for range 2 { // the failure, and while no new file is tried yet
		if err := r.Commit(Event{Action: "test"}); !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
	}
	if r.Err() == nil {
		t.Fatal("a record that cannot be written must say so")
	}
	disk.set(false)
	mu.Lock()
	now = now.Add(2 * retryAfter)
	mu.Unlock()
	commit(t, r, "after")
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(Event{}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	all, _ := f.read(t)
	if len(all) != 3 || all[0].Subject != "before" || all[1].Action != "audit events lost" || all[1].Subject != "2" || all[1].Outcome != "they could not be written" || all[2].Subject != "after" || all[2].Seq != 3 {
		t.Fatalf("%+v", all)
	}
}

// TestCloseTellsWhatWasLost: the end is the last chance to write, and to say what could not be written, whenever the disk failed.
func TestCloseTellsWhatWasLost(t *testing.T) {
	t.Parallel()
	for _, recovers := range []bool{true, false} {
		f := newFixture(t)
		disk := &failing{}
		r := f.open(t, func(o *Options) { o.FS = errorfs.Wrap(f.fs, disk) })
		commit(t, r, "before")
		disk.set(true)
		if err := r.Commit(Event{Action: "test"}); !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
		for range 3 {
			r.Note(Event{Action: "noise"})
		}
		disk.set(!recovers)
		if err := r.Close(); (err == nil) != recovers {
			t.Fatalf("the disk recovers: %t, Close: %v", recovers, err)
		}
		disk.set(false)
		all, _ := f.read(t)
		if !recovers {
			if len(all) != 1 {
				t.Errorf("%+v", all)
			}
			continue
		}
		// The noise may have come before the end or with it.
		lost, noise := 0, 0
		for _, e := range all[1:] {
			switch e.Action {
			case "noise":
				noise++
			case "audit events lost":
				n, err := strconv.Atoi(e.Subject)
				if err != nil {
					t.Fatal(err)
				}
				lost += n
			}
		}
		if lost == 0 || lost+noise != 4 {
			t.Errorf("%d lost and %d noise of 4: %+v", lost, noise, all)
		}
	}
}

// seen notes what is done to files.
type seen struct {
	mu  sync.Mutex
	ops []string
}

func (s *seen) String() string { return "seen" }
func (s *seen) MaybeError(op errorfs.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = append(s.ops, fmt.Sprintf("%v %s", op.Kind, op.Path[strings.LastIndex(op.Path, "/")+1:]))
	return nil
}

// TestRestartSettlesTheFormerFile: what a restart reads may be in the page cache only, taken for clean by the kernel after a sync that
// failed. It is written and synced again before the next file attests it, or a power cut would make damage of it.
func TestRestartSettlesTheFormerFile(t *testing.T) {
	f := newFixture(t)
	r := f.open(t, nil)
	commit(t, r, "first")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	paths, err := list(f.fs, "/data/audit")
	if err != nil {
		t.Fatal(err)
	}
	former := paths[len(paths)-1][len("/data/audit/"):]
	next := fmt.Sprintf("%016x%s", len(paths)+1, suffix)

	s := &seen{}
	f.fs = errorfs.Wrap(f.fs, s)
	if err := f.open(t, nil).Close(); err != nil {
		t.Fatal(err)
	}
	at := func(what string) int { return slices.Index(s.ops, what) }
	write, sync, create := at(fmt.Sprintf("%v %s", errorfs.OpFileWriteAt, former)), at(fmt.Sprintf("%v %s", errorfs.OpFileSync, former)), slices.IndexFunc(s.ops, func(op string) bool { return strings.HasSuffix(op, next) })
	if write < 0 || sync < write || create < sync {
		t.Errorf("written again at %d, synced at %d, the next file at %d of\n%s", write, sync, create, strings.Join(s.ops, "\n"))
	}
}

func TestOverflowIsCounted(t *testing.T) {
	t.Parallel()
	r := &Record{o: Options{Now: func() time.Time { return time.Unix(1, 0) }}, wake: make(chan struct{}, 1)}
	for range mostBuffered + 5 {
		r.Note(Event{Action: "noise"})
	}
	events := r.take().events
	last := events[len(events)-1]
	if len(events) != mostBuffered+1 || last.Action != "audit events lost" || last.Subject != "5" {
		t.Fatalf("%d events, last %+v", len(events), last)
	}
}

func FuzzDecode(f *testing.F) {
	frame, err := encode([]Event{{Action: "a"}, {Action: "b", Subject: "c"}}, 7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add([]byte{frameVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := decode(b, func(Event) error { n++; return nil }); err == nil && len(b) == 0 {
			t.Fatal("an empty frame is no frame")
		}
	})
}

// TestGoldenFrame holds the format of docs/formats/audit.md: a change of it needs another version.
func TestGoldenFrame(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	frame, err := encode([]Event{
		{Time: at, Action: "put", Who: "alice", User: "al<ice>", Certificate: "aa/01", Subject: `"k"`, Outcome: "permission denied"},
		{Time: at, Action: "auth enable", Outcome: "asked"},
	}, 41)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "\x01" +
		`{"seq":41,"time":"2026-01-02T03:04:05.000006Z","action":"put","who":"alice","user":"al<ice>","cert":"aa/01","subject":"\"k\"","outcome":"permission denied"}` + "\n" +
		`{"seq":42,"time":"2026-01-02T03:04:05.000006Z","action":"auth enable","outcome":"asked"}` + "\n"
	if string(frame) != golden {
		t.Fatalf("%q", frame)
	}
}
