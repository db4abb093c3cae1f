package core

import (
	"context"
	"errors"
	"fmt"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

// recryptPage is how many keys one step of an audit or of a re-encryption looks at.
const recryptPage = 500

// recryptBytes bounds the values of one step; one that is larger is a step of its own.
const recryptBytes = 4 << 20

// EncryptionCount counts the keys of one resource that are stored alike.
type EncryptionCount struct {
	Resource string // "secrets"; empty for what is no object of the API
	Stored   string // "aesgcm:key1"; "identity" for plain text
	Stale    bool   // a write would store it otherwise today
	Failure  string // why it cannot be read; empty if it can
	Keys     int64
	Example  []byte // one of the keys, if they cannot be read
}

// EncryptionStep is what one step of an audit or of a re-encryption found.
type EncryptionStep struct {
	Epoch    int64  // of the configuration in force
	Revision int64  // of the space that was looked at
	Next     []byte // key to go on from; nil: the end was reached
	Keys     int64  // looked at
	Counts   []EncryptionCount
	Written  int64 // re-encrypted now
	Changed  int64 // written by somebody else meanwhile, which encrypted them
}

func (s *EncryptionStep) count(key, stored []byte, set *transform.Set) (plain []byte, stale bool) {
	n := EncryptionCount{Stored: transform.Label(stored)}
	if gr, ok := set.Resource(key); ok {
		n.Resource = gr.String()
	}
	plain, n.Stale, n.Failure = inspect(set, key, stored)
	s.Keys++
	for i := range s.Counts {
		have := &s.Counts[i]
		if have.Resource == n.Resource && have.Stored == n.Stored && have.Stale == n.Stale && have.Failure == n.Failure {
			have.Keys++
			return plain, n.Stale
		}
	}
	if n.Keys = 1; n.Failure != "" {
		n.Example = key
	}
	s.Counts = append(s.Counts, n)
	return plain, n.Stale
}

func inspect(set *transform.Set, key, stored []byte) (plain []byte, stale bool, failure string) {
	plain, stale, err := set.Decrypt(key, stored)
	if err != nil {
		return nil, false, err.Error()
	}
	// What is stored in plain text because nothing lists its resource is as it should be.
	return plain, stale, ""
}

// mayEncrypt admits those who administer the encryption configuration.
func (c *Core) mayEncrypt(ctx context.Context, who policy.Principal, action string) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	if !who.IsAdmin() {
		c.refused(who, action, state.ErrPermissionDenied)
		return state.ErrPermissionDenied
	}
	return nil
}

// Encryption returns the encryption configuration as this member has applied it; nil if none was ever declared.
func (c *Core) Encryption(ctx context.Context, who policy.Principal) (*state.Encryption, error) {
	if err := c.mayEncrypt(ctx, who, "encryption status"); err != nil {
		return nil, err
	}
	return c.current.Load().machine.Encryption(), nil
}

// Stored returns a key of SpaceEtcd as it is stored; nil if there is none.
func (c *Core) Stored(ctx context.Context, who policy.Principal, key []byte) (*mvcc.KV, error) {
	if err := c.mayEncrypt(ctx, who, "encryption stored value"); err != nil {
		return nil, err
	}
	if len(key) == 0 {
		return nil, state.ErrEmptyKey
	}
	if err := c.checkRead(ctx, false); err != nil {
		return nil, err
	}
	page, err := c.storedPage(storage.KeySpan(key), 0, 1)
	if err != nil || len(page.KVs) == 0 {
		return nil, err
	}
	return &page.KVs[0], nil
}

// storedPage reads SpaceEtcd as it is stored.
func (c *Core) storedPage(span storage.Span, revision, limit int64) (mvcc.Page, error) {
	g := c.acquire()
	defer g.release()
	return g.machine.Space(mvcc.SpaceEtcd).Read(g.machine.Engine(), mvcc.Query{
		Span: span, Revision: revision, Limit: limit, MaxBytes: recryptBytes, NoCount: true,
	})
}

// encryptionSpan is what the configuration looks at, from a key on (nil: from the first).
func encryptionSpan(set *transform.Set, from []byte) storage.Span {
	span := prefixSpan(set.Prefix())
	if len(from) > 0 {
		span.Start = from
	}
	return span
}

// AuditEncryption looks at how the next keys are stored, from a key on (nil: from the first). revision 0 is the newest; give
// the same one to every step for a count as of one moment.
func (c *Core) AuditEncryption(ctx context.Context, who policy.Principal, from []byte, revision int64) (*EncryptionStep, error) {
	if err := c.mayEncrypt(ctx, who, "encryption audit"); err != nil {
		return nil, err
	}
	step, _, err := c.lookStored(ctx, from, revision)
	return step, err
}

// lookStored reads one page of what is stored and counts it. stale are the keys that a write would store otherwise, opened.
func (c *Core) lookStored(ctx context.Context, from []byte, revision int64) (*EncryptionStep, []mvcc.KV, error) {
	if err := c.checkRead(ctx, false); err != nil {
		return nil, nil, err
	}
	e, err := c.encryptionNow()
	if err != nil {
		return nil, nil, err
	}
	span := encryptionSpan(e.Set, from)
	if span.Empty() {
		return &EncryptionStep{Epoch: e.Epoch, Revision: revision}, nil, nil
	}
	page, err := c.storedPage(span, revision, recryptPage)
	if err != nil {
		return nil, nil, err
	}
	if revision == 0 {
		revision = page.Revision
	}
	step := &EncryptionStep{Epoch: e.Epoch, Revision: revision}
	var stale []mvcc.KV
	for i := range page.KVs {
		kv := page.KVs[i]
		plain, old := step.count(kv.Key, kv.Value, e.Set)
		if old {
			kv.Value = plain
			stale = append(stale, kv)
		}
	}
	if page.More && len(page.KVs) > 0 {
		step.Next = spanAfter(span, page.KVs[len(page.KVs)-1].Key).Start
	}
	return step, stale, nil
}

// Reencrypt takes one step of storing every value as the configuration in force wants it: it writes the stale ones among the
// next keys anew, each only if nobody has written it meanwhile. A lease stays. It may be asked again from any key.
func (c *Core) Reencrypt(ctx context.Context, who policy.Principal, from []byte) (*EncryptionStep, error) {
	if err := c.mayEncrypt(ctx, who, "encryption rewrite"); err != nil {
		return nil, err
	}
	step, stale, err := c.lookStored(ctx, from, 0)
	if err != nil {
		return nil, err
	}
	if len(from) == 0 {
		if err := c.commitAudit(who, "encryption rewrite", fmt.Sprintf("configuration %d", step.Epoch)); err != nil {
			return nil, err
		}
	}
	for len(stale) > 0 {
		n, err := c.rewriteStale(ctx, who, step, stale)
		if err != nil {
			return nil, err
		}
		stale = stale[n:]
	}
	return step, nil
}

// rewriteStale proposes as many as the queue takes, together, and waits for all of them.
func (c *Core) rewriteStale(ctx context.Context, who policy.Principal, step *EncryptionStep, stale []mvcc.KV) (int, error) {
	var waiters []*waiter
	var failure error
	for i := range stale {
		w, err := c.submitRewrite(ctx, who, &stale[i])
		if errors.Is(err, ErrTooManyRequests) && len(waiters) > 0 {
			break
		}
		if err != nil {
			failure = err
			break
		}
		waiters = append(waiters, w)
	}
	c.replog.Wake()
	for _, w := range waiters {
		<-w.done // the clock answers what the log does not
		res := w.result
		c.proposals.recycle(w)
		switch t, ok := res.Value.(*state.TxnResult); {
		case res.Err != nil:
			failure = errors.Join(failure, res.Err)
		case ok && t.Succeeded:
			step.Written++
		default:
			step.Changed++
		}
	}
	return len(waiters), failure
}

func (c *Core) submitRewrite(ctx context.Context, who policy.Principal, kv *mvcc.KV) (*waiter, error) {
	r := &state.Txn{
		Space:   mvcc.SpaceEtcd,
		Compare: []state.Compare{{Span: storage.KeySpan(kv.Key), Target: state.CompareMod, Number: kv.ModRevision}},
		Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: kv.Key, Value: kv.Value, IgnoreLease: true}}},
	}
	sent, err := c.checkProposal(ctx, who, r)
	if err != nil {
		return nil, err
	}
	return c.proposals.submit(state.Call{Who: who, Request: sent}, c.clock(), c.timeout, errand{})
}
