package state

import (
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
)

// putResult returns room for one more result; a batch of puts costs few allocations.
func (a *application) putResult() *PutResult {
	if len(a.puts) == 0 {
		a.puts = make([]PutResult, min(max(a.remaining, 1), 128))
	}
	r := &a.puts[0]
	a.puts = a.puts[1:]
	return r
}

func (a *application) put(p *Put) (any, *fault.Error, error) {
	w := a.writer(p.Space)
	if f, err := checkLease(w, p.Space, p.Lease); f != nil || err != nil {
		return nil, f, err
	}
	w.Begin()
	prev, err := w.Put(p.Key, p.Value, putOptions(p))
	revision := w.End()
	if err != nil {
		f, err := refusal(err)
		return nil, f, err
	}
	a.wrote(p.Space, p.Key)
	result := a.putResult()
	result.Revision, result.Prev = revision, prev
	return result, nil, nil
}

func putOptions(p *Put) mvcc.PutOptions {
	return mvcc.PutOptions{Lease: p.Lease, PrevKV: p.PrevKV, IgnoreValue: p.IgnoreValue, IgnoreLease: p.IgnoreLease}
}

// checkLease refuses a lease that does not exist. Only SpaceEtcd has leases.
func checkLease(w *mvcc.Writer, space mvcc.SpaceID, id int64) (*fault.Error, error) {
	if id == 0 {
		return nil, nil
	}
	if space != mvcc.SpaceEtcd {
		return mvcc.ErrLeaseNotFound, nil
	}
	_, ok, err := w.Lease(id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return mvcc.ErrLeaseNotFound, nil
	}
	return nil, nil
}

func (a *application) delete(d *Delete) (any, *fault.Error, error) {
	w := a.writer(d.Space)
	if f, err := a.checkDelete(w, d); f != nil || err != nil {
		return nil, f, err
	}
	w.Begin()
	prev, deleted, err := w.DeleteSpan(d.Span, d.PrevKV)
	revision := w.End()
	if err != nil {
		return nil, nil, err
	}
	a.read += pageBytes(prev)
	if deleted > 0 {
		a.wrote(d.Space, nil)
	}
	return &DeleteResult{Revision: revision, Deleted: deleted, Prev: prev}, nil, nil
}

func (a *application) compact(c *Compact) (any, *fault.Error, error) {
	w := a.writer(c.Space)
	if err := w.Compact(c.Revision); err != nil {
		f, err := refusal(err)
		return nil, f, err
	}
	a.out.Effects.Compacted = append(a.out.Effects.Compacted, Compaction{Space: c.Space, Revision: c.Revision})
	return &CompactResult{Revision: w.Revision()}, nil, nil
}
