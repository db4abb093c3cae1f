package state

import (
	"fmt"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// ReadTxn answers a Txn that only reads, from one state, without the log. Who may ask it is Authorize's business.
func (m *Machine) ReadTxn(t *Txn) (*TxnResult, error) {
	if f := validate(t); f != nil {
		return nil, f
	}
	if !t.ReadOnly() {
		return nil, ErrMalformed
	}
	snapshot := m.engine.NewSnapshot()
	result, err := readTxn(snapshot, t, m.encryption.Load())
	if cerr := snapshot.Close(); err == nil && cerr != nil {
		err = cerr
	}
	return result, err
}

func readTxn(r storage.Reader, t *Txn, e *Encryption) (*TxnResult, error) {
	space, err := mvcc.OpenSpace(r, t.Space)
	if err != nil {
		return nil, fmt.Errorf("state: read transaction: %w", err)
	}
	v := snapshotView{space: space, reader: r}
	var seen view = v
	if e != nil && e.Set != nil {
		seen = opening{view: v, set: e.Set}
	}
	path, err := choose(seen, t, nil)
	if err != nil {
		return nil, err
	}
	c := pathCheck{v: v, measure: true, reads: reads{left: MaxTxnRead, full: ErrReadTooMuch}}
	if f, _, err := c.check(t, path); f != nil || err != nil {
		return nil, both(f, err)
	}
	result := &TxnResult{Succeeded: path[0], Revision: v.Revision()}
	ops := t.branch(path[0])
	if len(ops) > 0 {
		result.Results = make([]OpResult, len(ops))
	}
	for i := range ops {
		result.Results[i].Range = c.reads.pages[ops[i].Range]
	}
	return result, nil
}

// snapshotView is one state of a space for a transaction that only reads.
type snapshotView struct {
	space  *mvcc.Space
	reader storage.Reader
}

// Read implements view.
func (v snapshotView) Read(q mvcc.Query) (mvcc.Page, error) { return v.space.Read(v.reader, q) }

// Revision implements view.
func (v snapshotView) Revision() int64 { return v.space.Revision() }

// CompactRevision implements view.
func (v snapshotView) CompactRevision() int64 { return v.space.CompactRevision() }

// Lease implements view.
func (v snapshotView) Lease(id int64) (mvcc.Lease, bool, error) {
	return v.space.LeaseInfo(v.reader, id)
}

// Get implements view.
func (v snapshotView) Get(key []byte, withValue bool) (mvcc.KV, bool, error) {
	page, err := v.space.Read(v.reader, mvcc.Query{Span: storage.KeySpan(key), Limit: 1, NoCount: true})
	if err != nil || len(page.KVs) == 0 {
		return mvcc.KV{}, false, err
	}
	return page.KVs[0], true, nil
}
