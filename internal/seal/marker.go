package seal

import (
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble keeps small facts, such as which MANIFEST counts, in the names of empty files marker.NAME.COUNTER.VALUE. The
// sealed form of such a file is a format 1 object without content, bound to that name.
const (
	markerSize     = preambleSize + tagSize
	manifestMarker = "marker.manifest."
)

// checkMarkers returns names without the markers that a crash left unfinished.
func (s *FS) checkMarkers(dir string, names []string) ([]string, error) {
	kept := names[:0:0]
	tables, manifest := "", false
	for _, name := range names {
		if k, c := classify(name); k != kindMarker {
			if k == kindObject && c == classTable {
				tables = name
			}
			kept = append(kept, name)
			continue
		}
		whole, err := s.checkMarker(s.inner.PathJoin(dir, name))
		if err != nil {
			return nil, err
		}
		if whole {
			kept = append(kept, name)
			manifest = manifest || strings.HasPrefix(name, manifestMarker)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if tables != "" && !manifest && !s.made[s.inner.PathDir(s.inner.PathJoin(dir, tables))] {
		// Pebble makes the marker durable before its first table; without the marker it would start afresh.
		return nil, damaged(ErrTampered, dir, 0, "it holds the table %s, but the marker that names the MANIFEST is missing", tables)
	}
	return kept, nil
}

// checkMarker reports whether the marker at path is whole. A crash between its creation and its sync leaves it empty,
// short or zero at its end; then pebble still has the marker before it.
func (s *FS) checkMarker(path string) (whole bool, err error) {
	sf, err := s.resolve("read", path)
	if err != nil {
		return false, err
	}
	f, err := s.inner.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() < markerSize {
		return false, nil
	}
	r, err := openObject(s.ring, f, sf.path, sf.place, sf.class)
	if err == nil {
		if r.size != 0 {
			return false, damaged(ErrTampered, path, preambleSize, "a marker has no content")
		}
		return true, nil
	}
	var last [1]byte
	if _, readErr := f.ReadAt(last[:], markerSize-1); readErr != nil {
		return false, readErr
	}
	if info.Size() == markerSize && last[0] == 0 && !errors.Is(err, ErrRolledBack) {
		return false, nil
	}
	return false, err
}
