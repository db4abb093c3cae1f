package core

import (
	"bytes"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

// encryptRequest returns r as it goes into the log: if an encryption configuration was ever declared, a write of SpaceEtcd
// travels with its values encrypted, and names the configuration that they are encrypted for.
func (c *Core) encryptRequest(r state.Request) (state.Request, error) {
	e := c.current.Load().machine.Encryption()
	if e == nil {
		return r, nil
	}
	switch r := r.(type) {
	case *state.Put:
		if r.Space != mvcc.SpaceEtcd {
			return r, nil
		}
		if e.Set == nil {
			return nil, state.ErrEncryptionClosed
		}
		put, err := c.encryptPut(e.Set, r)
		return &state.Encrypted{Epoch: e.Epoch, Request: put}, err
	case *state.Txn:
		if r.Space != mvcc.SpaceEtcd {
			return r, nil
		}
		if e.Set == nil {
			return nil, state.ErrEncryptionClosed
		}
		txn, err := c.encryptTxn(e.Set, r)
		return &state.Encrypted{Epoch: e.Epoch, Request: txn}, err
	}
	return r, nil
}

func (c *Core) encryptPut(set *transform.Set, p *state.Put) (*state.Put, error) {
	if p.IgnoreValue || !set.Covers(p.Key) {
		return p, nil
	}
	value, err := set.Encrypt(lockedRandom{c}, p.Key, p.Value)
	if err != nil {
		return nil, err
	}
	encrypted := *p
	encrypted.Value = value
	return &encrypted, nil
}

// encryptTxn copies what it changes: the caller may propose the transaction again.
func (c *Core) encryptTxn(set *transform.Set, t *state.Txn) (*state.Txn, error) {
	out := *t
	out.Compare = slices.Clone(t.Compare)
	for i := range out.Compare {
		cmp := &out.Compare[i]
		switch {
		case cmp.Target != state.CompareValue:
		case !cmp.Span.SingleKey():
			if state.Covers(set, cmp.Span) {
				return nil, state.ErrValueRange
			}
		default:
			value, err := set.Encrypt(lockedRandom{c}, cmp.Span.Start, cmp.Value)
			if err != nil {
				return nil, err
			}
			cmp.Value = value
		}
	}
	var err error
	if out.Success, err = c.encryptOps(set, t.Success); err != nil {
		return nil, err
	}
	out.Failure, err = c.encryptOps(set, t.Failure)
	return &out, err
}

func (c *Core) encryptOps(set *transform.Set, ops []state.Op) ([]state.Op, error) {
	out := slices.Clone(ops)
	for i := range out {
		op := &out[i]
		var err error
		switch {
		case op.Put != nil:
			op.Put, err = c.encryptPut(set, op.Put)
		case op.Txn != nil:
			op.Txn, err = c.encryptTxn(set, op.Txn)
		case op.Range != nil && op.Range.Target == mvcc.SortByValue && state.Covers(set, op.Range.Span):
			err = state.ErrValueOrder
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lockedRandom is the core's randomness as a reader.
type lockedRandom struct{ c *Core }

// Read implements io.Reader.
func (r lockedRandom) Read(b []byte) (int, error) {
	if err := r.c.fillRandom(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// opened returns what a stored value says. Nothing that was encrypted is ever handed out as it is stored.
func opened(e *state.Encryption, kv *mvcc.KV) ([]byte, error) {
	if kv.Value == nil {
		return nil, nil // only the key was asked for
	}
	if e.Set == nil {
		return nil, state.ErrEncryptionClosed
	}
	plain, _, err := e.Set.Decrypt(kv.Key, kv.Value)
	if err != nil {
		return nil, inKey(err, kv.Key)
	}
	return plain, nil
}

// inKey says in the hint which key cannot be read.
func inKey(err error, key []byte) error {
	f := fault.From(err)
	return f.WithHint("key %q: %s", key, f.Hint)
}

func openPage(e *state.Encryption, page *mvcc.Page) error {
	for i := range page.KVs {
		plain, err := opened(e, &page.KVs[i])
		if err != nil {
			return err
		}
		page.KVs[i].Value = plain
	}
	return nil
}

// readOpened reads a page of SpaceEtcd while there is, or was, an encryption configuration.
func readOpened(m *state.Machine, space *mvcc.Space, q mvcc.Query) (mvcc.Page, error) {
	for {
		before := m.Encryption()
		page, err := readOnce(m, space, q)
		if err == nil || m.Encryption() == before {
			return page, err
		}
	}
}

func readOnce(m *state.Machine, space *mvcc.Space, q mvcc.Query) (mvcc.Page, error) {
	byValue := q.Target == mvcc.SortByValue && !q.CountOnly
	asked := q
	if byValue {
		// The order of what is stored says nothing: all of it is read, opened and sorted here.
		q.Target, q.Order, q.KeysOnly, q.MaxBytes = mvcc.SortByKey, mvcc.SortNone, false, 0
		switch {
		case asked.Order != mvcc.SortNone:
			q.Limit = 0
		case asked.Limit > 0: // as in etcd: with the order left open, one key above the limit takes part
			q.Limit++
		}
	}
	page, err := space.Read(m.Engine(), q)
	if err != nil {
		return page, err
	}
	e := m.Encryption() // after the read: it is as new as any value in the page
	if e == nil {
		return space.Read(m.Engine(), asked)
	}
	if err := openPage(e, &page); err != nil {
		return mvcc.Page{}, err
	}
	if byValue {
		sortByValue(&page, asked)
	}
	return page, nil
}

func sortByValue(page *mvcc.Page, q mvcc.Query) {
	slices.SortStableFunc(page.KVs, func(a, b mvcc.KV) int {
		order := bytes.Compare(a.Value, b.Value)
		if q.Order == mvcc.SortDescend {
			return -order
		}
		return order
	})
	if q.Limit > 0 && int64(len(page.KVs)) > q.Limit {
		page.KVs, page.More = page.KVs[:q.Limit], true
	}
	if q.KeysOnly {
		for i := range page.KVs {
			page.KVs[i].Value = nil
		}
	}
}

// openResult opens the values that the machine answered a write with. The write is done, whatever becomes of them.
func (c *Core) openResult(sent state.Request, value any) (any, error) {
	e := c.current.Load().machine.Encryption()
	if e == nil || spaceOf(sent) != mvcc.SpaceEtcd {
		return value, nil
	}
	var err error
	switch r := value.(type) {
	case *state.PutResult:
		err = openPrev(e, r)
	case *state.DeleteResult:
		err = openAll(e, r.Prev)
	case *state.TxnResult:
		err = openTxn(e, r)
	}
	if err != nil {
		f := fault.From(err)
		return nil, f.WithHint("the write is done, but what was there before cannot be shown: %s", f.Hint)
	}
	return value, nil
}

func openPrev(e *state.Encryption, r *state.PutResult) error {
	if r.Prev == nil {
		return nil
	}
	prev := *r.Prev
	var err error
	if prev.Value, err = opened(e, &prev); err == nil {
		r.Prev = &prev
	}
	return err
}

func openAll(e *state.Encryption, kvs []mvcc.KV) error { return openPage(e, &mvcc.Page{KVs: kvs}) }

func openTxn(e *state.Encryption, r *state.TxnResult) error {
	for i := range r.Results {
		var err error
		switch op := &r.Results[i]; {
		case op.Range != nil:
			err = openPage(e, op.Range)
		case op.Put != nil:
			err = openPrev(e, op.Put)
		case op.Delete != nil:
			err = openAll(e, op.Delete.Prev)
		case op.Txn != nil:
			err = openTxn(e, op.Txn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkReadTxn refuses what a transaction that only reads cannot do with values that are encrypted.
func checkReadTxn(e *state.Encryption, t *state.Txn) error {
	if e.Set == nil {
		return state.ErrEncryptionClosed
	}
	for _, ops := range [...][]state.Op{t.Success, t.Failure} {
		for i := range ops {
			if q := ops[i].Range; q != nil && q.Target == mvcc.SortByValue && state.Covers(e.Set, q.Span) {
				return state.ErrValueOrder
			}
		}
	}
	return nil
}

// readTxnOpened answers a transaction that only reads with its values opened.
func readTxnOpened(m *state.Machine, t *state.Txn) (*state.TxnResult, error) {
	if t.Space != mvcc.SpaceEtcd {
		return m.ReadTxn(t)
	}
	if e := m.Encryption(); e != nil {
		if err := checkReadTxn(e, t); err != nil {
			return nil, err
		}
	}
	res, err := m.ReadTxn(t)
	if err != nil {
		return nil, err
	}
	if e := m.Encryption(); e != nil {
		err = openTxn(e, res)
	}
	return res, err
}

// open makes the event show what was written instead of what is stored. It does so once, before any watcher has the event.
func (e *SharedEvent) open(by *state.Encryption) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.opened {
		return nil
	}
	if e.Type == mvcc.EventPut {
		plain, err := opened(by, &e.KV)
		if err != nil {
			return err
		}
		if !same(plain, e.KV.Value) {
			e.KV.Value = plain
		}
	}
	e.opened = true
	return nil
}

// same reports whether a and b are the same memory.
func same(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// openMessage opens the events of a message before anybody sees them. If one cannot be opened, the watch ends and says why.
func (s *WatchStream) openMessage(m *WatchMessage) *WatchMessage {
	if m.Kind != WatchEvents || s.hub.space != mvcc.SpaceEtcd {
		return m
	}
	by := s.core.current.Load().machine.Encryption()
	if by == nil {
		return m
	}
	s.mu.Lock()
	w := s.watches[m.ID]
	s.mu.Unlock()
	for _, e := range m.Events {
		err := e.open(by)
		if err == nil && w != nil && w.prev {
			_, err = e.Prev()
		}
		if err == nil {
			continue
		}
		s.core.log.Warn("a watch ends because a value cannot be opened", "error", err)
		s.mu.Lock()
		if w != nil && !w.canceled {
			s.removeLocked(w)
		}
		s.mu.Unlock()
		return &WatchMessage{ID: m.ID, Kind: WatchCanceled, Revision: m.Revision, Reason: err}
	}
	return m
}

// openKV opens one version that a watcher is shown.
func openKV(m *state.Machine, kv mvcc.KV, ok bool, err error) (mvcc.KV, bool, error) {
	e := m.Encryption()
	if e == nil || err != nil || !ok {
		return kv, ok, err
	}
	kv.Value, err = opened(e, &kv)
	return kv, ok, err
}

// spanAfter is the rest of span after key.
func spanAfter(span storage.Span, key []byte) storage.Span {
	return storage.Span{Start: append(bytes.Clone(key), 0), End: span.End}
}

// encryptionNow returns the configuration in force, for the administration of it.
func (c *Core) encryptionNow() (*state.Encryption, error) {
	e := c.current.Load().machine.Encryption()
	switch {
	case e == nil:
		return nil, ErrNoEncryption
	case e.Set == nil:
		return nil, fmt.Errorf("%w: %w", state.ErrEncryptionClosed, e.Why)
	}
	return e, nil
}

// ErrNoEncryption is returned where an encryption configuration is needed and none was ever declared.
var ErrNoEncryption = fault.New(fault.Conflict, "no encryption configuration was ever declared").
	WithHint("start a member with --encryption-provider-config FILE")
