package core

import (
	"bytes"
	"context"
	"errors"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Range reads one space.
func (c *Core) Range(ctx context.Context, who policy.Principal, r RangeRequest) (mvcc.Page, error) {
	if err := c.checkRead(ctx, r.Serializable); err != nil {
		return mvcc.Page{}, err
	}
	// As read does, without a function: a read of one key allocates nothing here.
	for attempt := 1; ; attempt++ {
		g := c.acquire()
		before := g.machine.Auth()
		page, err := readPage(g.machine, who, &r)
		moved := g.machine.Auth() != before
		g.release()
		if moved || err != nil {
			var again bool
			if who, again, err = c.judgeAgain(who, moved, attempt, err); again {
				continue
			}
		}
		if err != nil {
			c.refused(who, "range", err)
			return mvcc.Page{}, err
		}
		c.noteRead(who, r.Space, r.Query.Span)
		return page, nil
	}
}

func readPage(m *state.Machine, who policy.Principal, r *RangeRequest) (mvcc.Page, error) {
	if err := m.AuthorizeRead(who, r.Space, r.Query.Span); err != nil {
		return mvcc.Page{}, err
	}
	if err := state.ValidateQuery(r.Query); err != nil {
		return mvcc.Page{}, err
	}
	space := m.Space(r.Space)
	if space == nil {
		return mvcc.Page{}, state.ErrUnknownSpace
	}
	if r.Space == mvcc.SpaceEtcd && m.Encryption() != nil {
		return readOpened(m, space, r.Query)
	}
	page, err := space.Read(m.Engine(), r.Query)
	if r.Space == mvcc.SpaceEtcd && m.Encryption() != nil { // declared meanwhile
		return readOpened(m, space, r.Query)
	}
	return page, err
}

// checkRead waits until a read may be answered by this member.
func (c *Core) checkRead(ctx context.Context, serializable bool) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	if serializable {
		return nil
	}
	if c.seen.Load().Learner {
		return ErrLearner
	}
	return c.linearize(ctx)
}

// read runs f on the present machine. If the user store has moved meanwhile, what f found is thrown away and f runs again.
func (c *Core) read(who policy.Principal, f func(m *state.Machine, who policy.Principal) error) error {
	for attempt := 1; ; attempt++ {
		g := c.acquire()
		before := g.machine.Auth()
		err := f(g.machine, who)
		moved := g.machine.Auth() != before
		g.release()
		if !moved && err == nil {
			return nil
		}
		var again bool
		if who, again, err = c.judgeAgain(who, moved, attempt, err); !again {
			return err
		}
	}
}

// judgeAgain decides whether a read is to be done again, and as whom, after the user store has moved or was found to have.
func (c *Core) judgeAgain(who policy.Principal, moved bool, attempt int, err error) (policy.Principal, bool, error) {
	switch {
	case moved && attempt < attempts:
		return c.refresh(who), true, nil
	case moved:
		return who, false, state.ErrAuthOldRevision
	case errors.Is(err, state.ErrAuthOldRevision) && attempt < attempts:
		if fresh := c.refresh(who); fresh != who {
			return fresh, true, nil
		}
	}
	return who, false, err
}

// readTxn answers a transaction that only reads, all of it at one revision.
func (c *Core) readTxn(ctx context.Context, who policy.Principal, t *state.Txn, serializable bool) (*state.TxnResult, error) {
	if err := c.checkRead(ctx, serializable); err != nil {
		return nil, err
	}
	var res *state.TxnResult
	err := c.read(who, func(m *state.Machine, who policy.Principal) (err error) {
		if err := m.Authorize(who, t); err != nil {
			return err
		}
		if err := state.CheckOps(t, c.limits.TxnOps); err != nil {
			return err
		}
		if err := state.Validate(t); err != nil {
			return err
		}
		res, err = readTxnOpened(m, t)
		return err
	})
	if err != nil {
		c.refused(who, "txn", err)
		return nil, err
	}
	for i := range t.Compare {
		c.noteRead(who, t.Space, t.Compare[i].Span)
	}
	return res, nil
}

// firstChunk is how many keys the first message of a stream holds.
const firstChunk = 10

// RangeStream reads a span in pieces of about chunkBytes, all at one revision: that of Query if it names one, otherwise the
// newest. Only the last piece has More and Count set as they are for the whole.
func (c *Core) RangeStream(ctx context.Context, who policy.Principal, r RangeRequest, chunkBytes int64, send func(page mvcc.Page, last bool) error) error {
	q := r.Query
	if q.Order != mvcc.SortNone && !(q.Order == mvcc.SortAscend && q.Target == mvcc.SortByKey) || q.Target != mvcc.SortByKey ||
		q.MinModRevision != 0 || q.MaxModRevision != 0 || q.MinCreateRevision != 0 || q.MaxCreateRevision != 0 {
		return errRangeStreamOptions
	}
	if q.CountOnly {
		page, err := c.Range(ctx, who, r)
		if err != nil {
			return err
		}
		return send(page, true)
	}
	want := q.Limit // keys left of the caller's limit; 0: no limit
	first := r
	first.Query.Limit = chunkLimit(firstChunk, want)
	first.Query.MaxBytes = chunkBytes
	page, err := c.Range(ctx, who, first)
	if err != nil {
		return err
	}
	count, revision, limit := page.Count, page.Revision, int64(firstChunk)
	pin := q.Revision
	if pin <= 0 {
		pin = revision
	}
	for {
		got := int64(len(page.KVs))
		if want > 0 {
			want -= got
		}
		if !page.More || got == 0 || q.Limit > 0 && want == 0 {
			page.Count, page.Revision = count, revision
			return send(page, true)
		}
		next := append(bytes.Clone(page.KVs[got-1].Key), 0)
		limit = adapt(limit, got, pageBytes(page), chunkBytes)
		page.Count, page.More, page.Revision = 0, false, revision
		if err := send(page, false); err != nil {
			return err
		}
		rest := mvcc.Query{
			Span: storage.Span{Start: next, End: q.Span.End}, Revision: pin, Limit: chunkLimit(limit, want),
			MaxBytes: chunkBytes, KeysOnly: q.KeysOnly, NoCount: true,
		}
		if rest.Span.Empty() {
			return send(mvcc.Page{Count: count, Revision: revision}, true)
		}
		if page, err = c.Range(ctx, who, RangeRequest{Space: r.Space, Query: rest, Serializable: true}); err != nil {
			return err
		}
	}
}

// chunkLimit is the number of keys to ask for, with the caller's limit left.
func chunkLimit(limit, left int64) int64 {
	if left > 0 && left < limit {
		return left
	}
	return limit
}

// adapt doubles the number of keys while pieces stay small and halves it when they are too large.
func adapt(limit, got, size, chunkBytes int64) int64 {
	switch {
	case chunkBytes <= 0:
		return limit * 2
	case size*2 <= chunkBytes && got == limit:
		return min(limit*2, 1<<20)
	case size > chunkBytes:
		return max(limit/2, 1)
	}
	return limit
}

func pageBytes(p mvcc.Page) (n int64) {
	for i := range p.KVs {
		n += int64(len(p.KVs[i].Key)+len(p.KVs[i].Value)) + 32
	}
	return n
}
