package replica

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// readAll reads the log of a directory and checks that what comes has no gap that is not announced.
func readAll(l logPlace) (all []Logged, err error) {
	next := uint64(1)
	err = ReadLog(l.fs, l.dir, l.ring, func(e Logged) error {
		if e.Index != next {
			return fmt.Errorf("entry %d comes where %d belongs", e.Index, next)
		}
		next = max(e.Index, e.Missing) + 1
		e.Data = bytes.Clone(e.Data)
		all = append(all, e)
		return nil
	})
	return all, err
}

// dumped compares what ReadLog shows to a model.
func (m logModel) dumped(l logPlace, first uint64) error {
	all, err := readAll(l)
	if err != nil {
		return err
	}
	last := uint64(0)
	for _, e := range all {
		last = max(e.Index, e.Missing)
		switch {
		case e.Missing >= first:
			return fmt.Errorf("the entries %d to %d are missing, but the log begins at %d", e.Index, e.Missing, first)
		case e.Missing != 0 || e.Index <= m.start.index:
			continue
		}
		if want := m.entries[e.Index-m.start.index-1]; e.Term != want.GetTerm() || !bytes.Equal(e.Data, want.GetData()) {
			return fmt.Errorf("entry %d of term %d with %d bytes, want %v", e.Index, e.Term, len(e.Data), want)
		}
	}
	if last != m.last() {
		return fmt.Errorf("ends at %d, want %d", last, m.last())
	}
	return nil
}

func TestReadLogOfKeptSegments(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs)
	s, err := reopen(t, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files := logPlace{fs: fs, dir: dataDir, ring: s.ring}
	whole, err := readAll(files)
	if err != nil || len(whole) != 41 || whole[0].Missing != 0 {
		t.Fatalf("%d entries, %v; want 41", len(whole), err)
	}
	for _, e := range whole {
		if e.Committed != (e.Index < 41) { // the last frame says that 40 is
			t.Errorf("entry %d: committed %v", e.Index, e.Committed)
		}
	}
	segments := logFiles(t, fs)
	for i, path := range segments[:2] {
		data := fileBytes(t, fs, path)
		remove(t, fs, path)
		cut, err := readAll(files)
		if err != nil || cut[0].Index != 1 || cut[0].Missing == 0 {
			t.Errorf("%d segments cut: begins with %v, %v", i+1, cut[0], err)
		}
		if err := writeDurable(fs, path, data); err != nil {
			t.Fatal(err)
		}
		if err := keepSegment(fs, path); err != nil {
			t.Fatal(err)
		}
		if again, err := readAll(files); err != nil || len(again) != 41 || again[0].Missing != 0 {
			t.Errorf("%d segments kept: %d entries, %v", i+1, len(again), err)
		}
	}
}

// What was committed before a snapshot came is shown, what was only hoped for is not.
func TestReadLogAcrossASnapshot(t *testing.T) {
	fs := vfs.NewMem()
	s := newTestStore(t, fs)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.log.append(&hardState{term: 2, commit: 1}, entriesFrom(2, 2, 10, 10, 10, 10)))
	must(s.log.append(&hardState{term: 3, commit: 3}, entriesFrom(6, 3, 10)))
	must(s.log.sync())
	before := logFiles(t, fs)
	kept := map[string][]byte{}
	for _, path := range before {
		kept[path] = fileBytes(t, fs, path)
	}
	must(s.log.reset(position{20, 4}, &hardState{term: 4, commit: 20}))
	must(s.log.append(nil, entriesFrom(21, 4, 10)))
	must(s.log.sync())
	defer s.Close()
	for path, data := range kept { // as a build that keeps them would have
		must(writeDurable(fs, path, data))
		must(keepSegment(fs, path))
	}
	all, err := readAll(logPlace{fs: fs, dir: dataDir, ring: s.ring})
	must(err)
	var got []string
	for _, e := range all {
		got = append(got, fmt.Sprintf("%d-%d/%d", e.Index, e.Missing, e.Term))
	}
	if want := "[1-0/1 2-0/2 3-0/2 4-20/0 21-0/4]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func fileBytes(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// A log is read while it is written to and cut.
func TestReadLogOfARunningMember(t *testing.T) {
	fs := vfs.NewMem()
	s := newTestStore(t, fs)
	done := make(chan error)
	go func() {
		var err error
		for i := uint64(2); i < 1500 && err == nil; i++ {
			if err = s.log.append(&hardState{term: 1, commit: i - 1}, entriesFrom(i, 1, int(i%700))); err == nil && i%3 == 0 {
				err = s.log.sync()
			}
			if err == nil && i%50 == 0 {
				err = s.log.cut(i-1, 8<<10)
			}
		}
		done <- err
	}()
	reads, seen := 0, uint64(0)
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if reads == 0 || seen == 0 {
				t.Errorf("%d reads, %d entries", reads, seen)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
		all, err := readAll(logPlace{fs: fs, dir: dataDir, ring: s.ring})
		if err != nil {
			t.Fatal(err)
		}
		reads++
		for _, e := range all {
			if e.Index > 1 && e.Missing == 0 && len(e.Data) != int(e.Index%700) {
				t.Fatalf("entry %d has %d bytes", e.Index, len(e.Data))
			}
			seen = max(seen, e.Index)
		}
	}
}
