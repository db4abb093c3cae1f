package caapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// ErrNoList is returned for an authority that has made no revocation list yet.
var ErrNoList = fault.New(fault.Unavailable, "the authority has no revocation list yet")

// Who fetches a list may take it as slowly as the port allows, and must not keep others from theirs: lists up to listKept bytes,
// of listsKept authorities, are kept as they are sent, once for all who ask; larger ones are written to listTurns at a time.
const (
	listTurns = 4
	listKept  = 256 << 10
	listsKept = 16
)

// keptList is a list as it is sent.
type keptList struct {
	record listRecord
	der    []byte
}

// wholeList returns a list that has at most listKept bytes as it is sent.
func (a *Authority) wholeList(ctx context.Context, n *Named, r *listRecord) ([]byte, error) {
	issuer := ca.KeyDigest(n.Certificate())
	a.kept.Lock()
	defer a.kept.Unlock()
	if k, ok := a.kept.lists[issuer]; ok && k.record.Number == r.Number && k.record.Revision == r.Revision && k.record.This.Equal(r.This) {
		return k.der, nil
	}
	var b bytes.Buffer
	if err := a.writeList(ctx, n, r, &b); err != nil {
		return nil, err
	}
	if a.kept.lists == nil || len(a.kept.lists) >= listsKept {
		a.kept.lists = map[string]keptList{}
	}
	a.kept.lists[issuer] = keptList{*r, b.Bytes()}
	return b.Bytes(), nil
}

// listRecord is the row of the revocation list in force. The lines are the revocations that are not newer than Revision: with
// them and the signature every member writes the very same list, and none of them has to hold it.
type listRecord struct {
	Number    int64        `json:"number"`
	This      time.Time    `json:"thisUpdate"`
	Next      time.Time    `json:"nextUpdate"`
	Revision  int64        `json:"revision"` // of SpaceCA
	Count     int64        `json:"count"`
	Hash      string       `json:"hash"`
	Signature ca.Signature `json:"signature"`
}

func listKey(issuer string) []byte { return []byte("crl/" + issuer) }

// list reads the row of the list in force; nil if there is none.
func (a *Authority) list(ctx context.Context, issuer string, serializable bool) (*listRecord, *mvcc.KV, error) {
	kv, err := a.look(ctx, listKey(issuer), serializable)
	if err != nil || kv == nil {
		return nil, nil, err
	}
	var r listRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return nil, nil, fmt.Errorf("the row of a revocation list: %w", err)
	}
	return &r, kv, nil
}

func (r *listRecord) list(n *Named) *ca.List {
	return &ca.List{Issuer: n.Certificate(), Number: big.NewInt(r.Number), This: r.This, Next: r.Next, Hash: r.Hash}
}

// lines reads the revocations of an issuer up to a revision, a page at a time, from what this member has applied.
func (a *Authority) lines(ctx context.Context, issuer string, revision int64) ca.Lines {
	prefix := string(revokedSpan(issuer, "").Start)
	return func(each func(ca.Revocation) error) error {
		return a.scan(ctx, revokedSpan(issuer, ""), true, func(kv *mvcc.KV) error {
			if kv.CreateRevision > revision {
				return nil
			}
			serial, ok := new(big.Int).SetString(strings.TrimPrefix(string(kv.Key), prefix), 16)
			r, err := parseRevocation(kv)
			if err != nil || !ok {
				return fmt.Errorf("the row %s: %w", kv.Key, err)
			}
			return each(ca.Revocation{Serial: serial, At: r.At, Reason: r.Reason})
		})
	}
}

// renewCRL makes a new list if the one in force lacks a revocation or is halfway to its end.
func (a *Authority) renewCRL(ctx context.Context, n *Named) error {
	if n.Certificate() == nil {
		return nil
	}
	issuer := ca.KeyDigest(n.Certificate())
	for range 5 {
		stale, err := a.stale(ctx, n, issuer, false)
		if err != nil || !stale {
			return err
		}
		done, err := a.renewOnce(ctx, n, issuer)
		if err != nil || done {
			return err
		}
	}
	return ErrMoved
}

// promptLines is how long a list may be to be made anew by the call that made it stale; a longer one waits for Maintain, which
// makes one list of everything that was revoked within a second.
const promptLines = 10_000

// tryRenewCRL is renewCRL after something that has happened already: what fails is done by Maintain.
func (a *Authority) tryRenewCRL(ctx context.Context, n *Named) {
	if cert := n.Certificate(); cert != nil {
		if r, _, err := a.list(ctx, ca.KeyDigest(cert), true); err == nil && r != nil && r.Count > promptLines {
			return
		}
	}
	if err := a.renewCRL(ctx, n); err != nil {
		a.o.Log.Warn("the revocation list was not renewed; it is tried again in a second", "authority", n.Name, "error", err)
	}
}

func (a *Authority) stale(ctx context.Context, n *Named, issuer string, serializable bool) (bool, error) {
	r, _, err := a.list(ctx, issuer, serializable)
	if err != nil || r == nil {
		return err == nil, err
	}
	changed, err := a.look(ctx, changedKey(issuer), serializable)
	if err != nil {
		return false, err
	}
	now := a.o.Now()
	due := revisionOf(changed) > r.Revision || now.After(r.This.Add(r.Next.Sub(r.This)/2))
	return due && now.Before(n.Certificate().NotAfter), nil
}

// renewOnce signs the next list and commits it, unless another member was faster.
func (a *Authority) renewOnce(ctx context.Context, n *Named, issuer string) (bool, error) {
	last, kv, err := a.list(ctx, issuer, false)
	if err != nil {
		return false, err
	}
	key, err := a.signer(ctx, n)
	if err != nil {
		return false, err
	}
	// The revision of a linearizable read: every revocation that was committed before is in the list.
	changed, revision, err := a.lookAt(ctx, changedKey(issuer))
	if err != nil {
		return false, err
	}
	r := listRecord{Number: 1, This: a.o.Now().UTC().Truncate(time.Second), Revision: max(revision, revisionOf(changed)), Hash: n.Policy.MinHash}
	if last != nil {
		r.Number = last.Number + 1
	}
	if r.Next = r.This.Add(n.CRLLife); r.Next.After(n.Certificate().NotAfter) {
		r.Next = n.Certificate().NotAfter.UTC()
	}
	if !r.Next.After(r.This) {
		return true, nil // the authority has ended: nobody asks for its list any more
	}
	lines := a.lines(ctx, issuer, r.Revision)
	counted := func(each func(ca.Revocation) error) error {
		r.Count = 0
		return lines(func(line ca.Revocation) error { r.Count++; return each(line) })
	}
	if r.Signature, err = r.list(n).Sign(a.o.Rand, key, counted); err != nil {
		return false, err
	}
	row, err := putJSON(listKey(issuer), r)
	if err != nil {
		return false, err
	}
	return a.commit(ctx, a.o.System, []state.Compare{unchanged(row.Key, revisionOf(kv))}, row)
}

// WriteCRL writes the authority's revocation list in force, DER, in bounded memory. It is public.
func (a *Authority) WriteCRL(ctx context.Context, name string, w io.Writer) error {
	n, err := a.lookup(ctx, name, true)
	if err != nil {
		return err
	}
	if n.Certificate() == nil {
		return ErrWaiting
	}
	r, _, err := a.list(ctx, ca.KeyDigest(n.Certificate()), true)
	if err != nil {
		return err
	}
	if r == nil {
		return ErrNoList
	}
	return a.writeList(ctx, n, r, w)
}

func (a *Authority) writeList(ctx context.Context, n *Named, r *listRecord, w io.Writer) error {
	return r.list(n).Write(w, r.Signature, a.lines(ctx, ca.KeyDigest(n.Certificate()), r.Revision))
}

// look reads one row; nil if there is none.
func (a *Authority) look(ctx context.Context, key []byte, serializable bool) (*mvcc.KV, error) {
	page, err := a.page(ctx, key, serializable)
	if err != nil || len(page.KVs) == 0 {
		return nil, err
	}
	return &page.KVs[0], nil
}

// lookAt reads one row, linearizably, and the revision at which it was read.
func (a *Authority) lookAt(ctx context.Context, key []byte) (*mvcc.KV, int64, error) {
	page, err := a.page(ctx, key, false)
	if err != nil || len(page.KVs) == 0 {
		return nil, page.Revision, err
	}
	return &page.KVs[0], page.Revision, nil
}

// Maintain is what the authority does by itself, every second on the leader: revocation lists that are due, certificates of
// members that were removed, rows that have served.
func (a *Authority) Maintain(ctx context.Context) error {
	if a.Root() == nil {
		return nil
	}
	if err := a.dismiss(ctx); err != nil {
		return err
	}
	all, err := a.all(ctx, true)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.Certificate() == nil {
			continue
		}
		stale, err := a.stale(ctx, n, ca.KeyDigest(n.Certificate()), true)
		if err == nil && stale {
			err = a.renewCRL(ctx, n)
		}
		if err != nil {
			return fmt.Errorf("the revocation list of %s: %w", n.Name, err)
		}
	}
	return a.forget(ctx)
}
