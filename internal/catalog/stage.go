package catalog

import (
	"bytes"
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// Bounds on what one batch may make a member read, whatever its operations are. They are part of what Apply means: all
// members must have the same.
const (
	MaxResultBytes = 16 << 20 // keys and values in the results
	maxVisited     = 4 << 20  // rows walked over
	firstRows      = 8        // of a walk, which most often ends there
	pageRows       = 512
	pageBytes      = 1 << 20
)

// stage holds what a batch is about to do to one space, over a Writer that knows nothing of it yet: what is staged can be
// given up. Nothing reaches the writer before flush.
type stage struct {
	w       *mvcc.Writer
	rows    map[string]staged
	keys    []string // of rows; sorted up to ordered
	ordered int
	writes  []write
}

// staged is a key as the batch sees it.
type staged struct {
	kv   mvcc.KV
	live bool
}

type write struct {
	key   []byte
	value []byte // nil: delete
}

// get returns the newest version of key as the batch sees it.
func (s *stage) get(key []byte) (mvcc.KV, bool, error) {
	if row, ok := s.rows[string(key)]; ok {
		return row.kv, row.live, nil
	}
	return s.w.Get(key, true)
}

func (s *stage) exists(key []byte) (bool, error) {
	if row, ok := s.rows[string(key)]; ok {
		return row.live, nil
	}
	_, ok, err := s.w.Get(key, false)
	return ok, err
}

// put stages a new version of key unless it would be the same as the present one. It returns the version that then stands
// and whether it is new.
func (s *stage) put(key, value []byte) (kv mvcc.KV, changed bool, err error) {
	cur, live, err := s.get(key)
	if err != nil || live && bytes.Equal(cur.Value, value) {
		return cur, false, err
	}
	return s.force(key, value, cur, live), true, nil
}

// touch stages a new version of key without a value, also if there is one like it.
func (s *stage) touch(key []byte) error {
	cur, live, err := s.get(key)
	if err != nil {
		return err
	}
	s.force(key, []byte{}, cur, live)
	return nil
}

func (s *stage) force(key, value []byte, cur mvcc.KV, live bool) mvcc.KV {
	rev := s.w.Revision() + 1
	kv := mvcc.KV{Key: key, Value: value, CreateRevision: rev, ModRevision: rev, Version: 1}
	if live {
		kv.CreateRevision, kv.Version = cur.CreateRevision, cur.Version+1
	}
	s.set(key, staged{kv: kv, live: true})
	s.writes = append(s.writes, write{key: key, value: value})
	return kv
}

// remove stages the deletion of key, which must exist.
func (s *stage) remove(key []byte) {
	s.set(key, staged{})
	s.writes = append(s.writes, write{key: key})
}

func (s *stage) set(key []byte, row staged) {
	if s.rows == nil {
		s.rows = map[string]staged{}
	}
	k := string(key)
	if _, ok := s.rows[k]; !ok {
		s.keys = append(s.keys, k)
	}
	s.rows[k] = row
}

// stagedIn returns the staged keys of span in order.
func (s *stage) stagedIn(span storage.Span) []string {
	if s.ordered < len(s.keys) {
		slices.Sort(s.keys)
		s.ordered = len(s.keys)
	}
	lo, _ := slices.BinarySearch(s.keys, string(span.Start))
	hi := len(s.keys)
	if span.End != nil {
		hi, _ = slices.BinarySearch(s.keys, string(span.End))
	}
	return s.keys[lo:max(lo, hi)]
}

// each calls fn for every key of span, in order, as the batch sees it, until fn says no. fn must not stage anything.
// budget, unless it is nil, is how many rows may still be walked over: each stops when there is none left.
func (s *stage) each(span storage.Span, budget *int, fn func(kv *mvcc.KV) bool) error {
	mine := s.stagedIn(span)
	for rows := int64(firstRows); !span.Empty(); rows = min(8*rows, pageRows) {
		page, err := s.w.Read(mvcc.Query{Span: span, Limit: rows, MaxBytes: pageBytes, NoCount: true})
		if err != nil {
			return err
		}
		for i := range page.KVs {
			kv := &page.KVs[i]
			if budget != nil {
				if *budget <= 0 {
					return nil
				}
				*budget--
			}
			for len(mine) > 0 && mine[0] < string(kv.Key) {
				if !s.deliver(mine[0], fn) {
					return nil
				}
				mine = mine[1:]
			}
			if len(mine) > 0 && mine[0] == string(kv.Key) {
				if !s.deliver(mine[0], fn) {
					return nil
				}
				mine = mine[1:]
				continue
			}
			if !fn(kv) {
				return nil
			}
		}
		if !page.More || len(page.KVs) == 0 {
			break
		}
		last := page.KVs[len(page.KVs)-1].Key
		span.Start = append(append(make([]byte, 0, len(last)+1), last...), 0)
	}
	for _, key := range mine {
		if !s.deliver(key, fn) {
			return nil
		}
	}
	return nil
}

func (s *stage) deliver(key string, fn func(kv *mvcc.KV) bool) bool {
	row := s.rows[key]
	return !row.live || fn(&row.kv)
}

// list returns the rows of span. It is for spans that hold what one node or one session has.
func (s *stage) list(span storage.Span) ([]mvcc.KV, error) {
	var all []mvcc.KV
	err := s.each(span, nil, func(kv *mvcc.KV) bool {
		all = append(all, *kv)
		return true
	})
	return all, err
}

// any reports whether span holds a key.
func (s *stage) any(span storage.Span) (bool, error) {
	found := false
	err := s.each(span, nil, func(*mvcc.KV) bool {
		found = true
		return false
	})
	return found, err
}

// flush hands everything to the writer as one request, and returns its revision, 0 if there was nothing.
func (s *stage) flush() (int64, error) {
	if len(s.writes) == 0 {
		return 0, nil
	}
	s.w.Begin()
	var err error
	for _, w := range s.writes {
		if w.value != nil {
			_, err = s.w.Put(w.key, w.value, mvcc.PutOptions{})
		} else {
			_, _, err = s.w.DeleteSpan(storage.KeySpan(w.key), false)
		}
		if err != nil {
			break
		}
	}
	return s.w.End(), err
}

// space answers a reader's questions about one space at one revision of it.
type space struct {
	r   storage.Reader
	s   *mvcc.Space
	rev int64
}

// pin returns the space as it is now: all that is read through it is of one revision.
func pin(r storage.Reader, s *mvcc.Space) (space, error) {
	page, err := s.Read(r, mvcc.Query{Span: storage.Span{End: []byte{}}, NoCount: true})
	return space{r: r, s: s, rev: page.Revision}, err
}

func (s space) get(key []byte) (mvcc.KV, bool, error) {
	page, err := s.s.Read(s.r, mvcc.Query{Span: storage.KeySpan(key), Revision: s.rev, NoCount: true})
	if err != nil || len(page.KVs) == 0 {
		return mvcc.KV{}, false, err
	}
	return page.KVs[0], true, nil
}

func (s space) list(span storage.Span) ([]mvcc.KV, error) {
	page, err := s.s.Read(s.r, mvcc.Query{Span: span, Revision: s.rev, NoCount: true})
	return page.KVs, err
}

// newest returns the index of what lies in span: the newest change of it up to the pinned revision, at least 1.
func (s space) newest(span storage.Span) (uint64, error) {
	rev, err := s.s.LastModified(s.r, span)
	return uint64(max(1, min(rev, s.rev))), err
}
