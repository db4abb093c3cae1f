package seal

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// OpenChain opens consecutive segments, oldest first, and checks that each one names the segment before. Every reader
// but the last ends exactly where the next segment says, so that a torn tail of an earlier crash is left out and a
// shortened or exchanged segment is ErrTampered when it is read to its end. A last segment that a crash left unfinished
// is not among readers: stale names its file, which holds nothing and is to be removed before it is created again.
func OpenChain(fs vfs.FS, ring *Keyring, paths []string) (readers []*StreamReader, stale string, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, r := range readers {
			err = errors.Join(err, r.Close())
		}
		readers = nil
	}()
	for i, path := range paths {
		newest := i == len(paths)-1
		r, err := OpenStream(fs, ring, path, newest)
		if newest && errors.Is(err, ErrIncomplete) {
			stale = path
			break
		}
		if err != nil {
			return readers, "", err
		}
		readers = append(readers, r)
		if i == 0 {
			continue
		}
		before, said := readers[i-1], r.Prev()
		if r.segment != before.segment+1 || said.Segment != before.segment {
			return readers, "", damaged(ErrTampered, path, preambleSize, "segment %d follows segment %d, but the one before is %d: a segment is missing or was exchanged", r.segment, said.Segment, before.segment)
		}
		before.end = &said
	}
	if n := len(readers); n > 0 {
		readers[n-1].newest = true
	}
	return readers, stale, nil
}
