package catalog

import (
	"bytes"
	"errors"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/ordered"
	"holdfast.dev/holdfast/internal/storage"
)

// Bounds on what one batch may make a member read, whatever its operations are. They are part of what Apply means: all
// members must have the same.
const (
	MaxResultBytes = 16 << 20 // keys and values in the results
	maxVisited     = 4 << 20  // pairs walked over, those that the batch has deleted included
	maxRows        = 1 << 20  // rows of the catalog, likewise
	firstRows      = 8        // of a walk, which most often ends there
	pageRows       = 512
	pageBytes      = 1 << 20
)

// stage holds what a batch is about to do to one space, over a Writer that knows nothing of it yet: what is staged can be
// given up. Nothing reaches the writer before flush.
type stage struct {
	w      *mvcc.Writer
	rows   map[string]staged
	keys   ordered.Set[string] // of rows
	writes []write
	visits *int // rows that the batch may still walk over

	// short has what the writer holds in spans with at most firstRows rows, once walked over: it does not change before
	// flush, and what was deleted there earlier, which no bound counts, is not passed again.
	short map[[2]string][]mvcc.KV
}

// errTooMuch ends a batch that walks over more rows than one may.
var errTooMuch = errors.New("catalog: too many rows walked over")

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
		s.keys.Insert(k, below(k))
	}
	s.rows[k] = row
}

func below[T string | []byte](key T) func(string) bool {
	return func(k string) bool { return k < string(key) }
}

// stagedIn returns a walk over the staged keys of span.
func (s *stage) stagedIn(span storage.Span) ordered.Cursor[string] {
	if span.End == nil {
		return s.keys.Walk(below(span.Start), nil)
	}
	return s.keys.Walk(below(span.Start), below(span.End))
}

// each calls fn for every key of span, in order, as the batch sees it, until fn says no. fn must not stage anything.
func (s *stage) each(span storage.Span, fn func(kv *mvcc.KV) bool) error {
	return s.walk(span, false, fn)
}

// walk is each. Every row costs one of visits; with own, those only that the batch has deleted: it is for walks whose
// caller deletes what it finds, so that nothing is found twice.
func (s *stage) walk(span storage.Span, own bool, fn func(kv *mvcc.KV) bool) error {
	visit := func(kv *mvcc.KV, live bool) (more bool, err error) {
		if !own || !live {
			if *s.visits <= 0 {
				return false, errTooMuch
			}
			*s.visits--
		}
		return !live || fn(kv), nil
	}
	mine := s.stagedIn(span)
	// before visits the staged keys below key, and key itself if it is staged.
	before := func(key []byte) (hit, more bool, err error) {
		for {
			k, ok := mine.Value()
			if !ok || key != nil && k > string(key) {
				return false, true, nil
			}
			mine.Next()
			row := s.rows[k]
			if more, err = visit(&row.kv, row.live); err != nil || !more {
				return false, false, err
			}
			if key != nil && k == string(key) {
				return true, true, nil
			}
		}
	}
	for rows := int64(firstRows); !span.Empty(); rows = min(8*rows, pageRows) {
		page, err := s.page(span, rows)
		if err != nil {
			return err
		}
		for i := range page.KVs {
			kv := &page.KVs[i]
			hit, more, err := before(kv.Key)
			if more && !hit {
				more, err = visit(kv, true)
			}
			if err != nil || !more {
				return err
			}
		}
		if !page.More || len(page.KVs) == 0 {
			break
		}
		last := page.KVs[len(page.KVs)-1].Key
		span.Start = append(append(make([]byte, 0, len(last)+1), last...), 0)
	}
	_, _, err := before(nil)
	return err
}

// page reads what the writer holds at the beginning of span.
func (s *stage) page(span storage.Span, rows int64) (mvcc.Page, error) {
	key := [2]string{string(span.Start), string(span.End)}
	if list, ok := s.short[key]; ok {
		return mvcc.Page{KVs: list}, nil
	}
	page, err := s.w.Read(mvcc.Query{Span: span, Limit: rows, MaxBytes: pageBytes, NoCount: true})
	if err == nil && rows == firstRows && !page.More {
		if s.short == nil {
			s.short = map[[2]string][]mvcc.KV{}
		}
		s.short[key] = page.KVs
	}
	return page, err
}

// list returns the rows of span. It is for spans that hold what one node or one session has.
func (s *stage) list(span storage.Span) ([]mvcc.KV, error) { return s.collect(span, false) }

func (s *stage) collect(span storage.Span, own bool) ([]mvcc.KV, error) {
	var all []mvcc.KV
	err := s.walk(span, own, func(kv *mvcc.KV) bool {
		all = append(all, *kv)
		return true
	})
	return all, err
}

// any reports whether span holds a key.
func (s *stage) any(span storage.Span) (bool, error) {
	found := false
	err := s.each(span, func(*mvcc.KV) bool {
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
