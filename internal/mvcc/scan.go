package mvcc

import (
	"encoding/binary"

	"holdfast.dev/holdfast/internal/storage"
)

// scanner walks, in key order, the version of each key that is visible at rev. It sets the bounds of its iterator. key and
// rec are valid until the next call of next; rec.value aliases the iterator's memory.
type scanner struct {
	id       SpaceID
	it       *storage.Iterator
	rev      int64
	keysOnly bool // key is not wanted either: only the number of keys

	key []byte
	rec record
	err error

	started bool
	lower   []byte
	upper   []byte
	seek    []byte
}

// start begins a walk over span.
func (sc *scanner) start(span storage.Span) {
	sc.lower = appendPrefix(sc.lower[:0], sc.id, span.Start) // below every version of the key
	if span.End != nil {
		sc.upper = appendPrefix(sc.upper[:0], sc.id, span.End)
	} else {
		sc.upper = append(sc.upper[:0], byte(sc.id), tableVersions+1)
	}
	sc.it.SetBounds(storage.Span{Start: sc.lower, End: sc.upper})
	sc.started, sc.err = false, nil
}

// stepsBeforeSeek is how many newer versions of a key are stepped over before the visible one is sought.
const stepsBeforeSeek = 2

// next moves to the next key that has a version at rev.
func (sc *scanner) next() bool {
	if sc.err != nil {
		return false
	}
	var ok bool
	if sc.started {
		ok = sc.it.NextPrefix()
	} else {
		sc.started = true
		ok = sc.it.First()
	}
	for steps := 0; ok; {
		row := sc.it.Key()
		if mod, _ := versionStamp(row); mod > sc.rev {
			// The row reached next may be of the key after this one: then it is that key's newest version.
			if steps < stepsBeforeSeek {
				steps++
				ok = sc.it.Next()
			} else {
				steps = 0
				sc.seek = append(sc.seek[:0], row[:len(row)-suffixLen]...)
				sc.seek = binary.BigEndian.AppendUint64(sc.seek, ^uint64(sc.rev))
				sc.seek = append(sc.seek, 0, 0, 0, 0)
				ok = sc.it.SeekGE(sc.seek)
			}
			continue
		}
		if sc.err = decodeVersion(&sc.rec, row, sc.it.Value()); sc.err != nil {
			return false
		}
		if sc.rec.live {
			if !sc.keysOnly {
				sc.key = userKey(sc.key[:0], row)
			}
			return true
		}
		steps = 0
		ok = sc.it.NextPrefix()
	}
	sc.err = sc.it.Err()
	return false
}

// lookup finds the version of key visible at rev with one seek. The iterator must be free to move over the space.
// rec.live is false if there is none; rec.value aliases the iterator's memory.
func lookup(it *storage.Iterator, rec *record, seek []byte) error {
	*rec = record{}
	if !it.SeekPrefixGE(seek) {
		return it.Err()
	}
	return decodeVersion(rec, it.Key(), it.Value())
}
