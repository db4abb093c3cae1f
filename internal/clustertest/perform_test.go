package clustertest

import (
	"context"
	"fmt"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// spanOf translates etcd's range.
func spanOf(key, end string) storage.Span {
	switch end {
	case "":
		return storage.KeySpan([]byte(key))
	case "\x00":
		return storage.Span{Start: []byte(key)}
	}
	return storage.Span{Start: []byte(key), End: []byte(end)}
}

func queryOf(r *history.Request) mvcc.Query {
	return mvcc.Query{Span: spanOf(r.Key, r.End), Revision: r.Revision, Limit: r.Limit, CountOnly: r.CountOnly, KeysOnly: r.KeysOnly}
}

func kvOf(kv *mvcc.KV) history.KV {
	return history.KV{Key: string(kv.Key), Value: string(kv.Value), Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
}

func kvsOf(kvs []mvcc.KV) (out []history.KV) {
	for i := range kvs {
		out = append(out, kvOf(&kvs[i]))
	}
	return out
}

func pageOf(p *mvcc.Page) history.Response {
	return history.Response{Revision: p.Revision, KVs: kvsOf(p.KVs), Count: p.Count, More: p.More}
}

func putOf(p *state.PutResult) history.Response {
	r := history.Response{Revision: p.Revision}
	if p.Prev != nil {
		r.Prev = []history.KV{kvOf(p.Prev)}
	}
	return r
}

func deleteOf(d *state.DeleteResult) history.Response {
	return history.Response{Revision: d.Revision, Deleted: d.Deleted, Prev: kvsOf(d.Prev)}
}

// opsOf translates the operations of a transaction.
func opsOf(rs []history.Request) (ops []state.Op) {
	for i := range rs {
		r := &rs[i]
		switch r.Kind {
		case history.Range:
			q := queryOf(r)
			ops = append(ops, state.Op{Range: &q})
		case history.Put:
			ops = append(ops, state.Op{Put: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(r.Key), Value: []byte(r.Value), Lease: r.Lease, PrevKV: r.PrevKV}})
		case history.Delete:
			ops = append(ops, state.Op{Delete: &state.Delete{Space: mvcc.SpaceEtcd, Span: spanOf(r.Key, r.End), PrevKV: r.PrevKV}})
		case history.Txn:
			ops = append(ops, state.Op{Txn: txnOf(r)})
		}
	}
	return ops
}

func txnOf(r *history.Request) *state.Txn {
	targets := map[history.Target]state.CompareTarget{
		history.TargetVersion: state.CompareVersion, history.TargetCreate: state.CompareCreate, history.TargetMod: state.CompareMod,
		history.TargetValue: state.CompareValue, history.TargetLease: state.CompareLease,
	}
	results := map[string]state.CompareResult{"=": state.CompareEqual, "!=": state.CompareNotEqual, "<": state.CompareLess, ">": state.CompareGreater}
	t := &state.Txn{Space: mvcc.SpaceEtcd, Success: opsOf(r.Then), Failure: opsOf(r.Else)}
	for _, c := range r.Compares {
		t.Compare = append(t.Compare, state.Compare{
			Span: spanOf(c.Key, c.End), Target: targets[c.Target], Result: results[c.Result], Number: c.Number, Value: []byte(c.Value),
		})
	}
	return t
}

func txnAnswer(t *state.TxnResult) history.Response {
	r := history.Response{Revision: t.Revision, Succeeded: t.Succeeded}
	for _, x := range t.Results {
		var one history.Response
		switch {
		case x.Range != nil:
			one = pageOf(x.Range)
			one.Kind = history.Range
		case x.Put != nil:
			one = putOf(x.Put)
			one.Kind = history.Put
		case x.Delete != nil:
			one = deleteOf(x.Delete)
			one.Kind = history.Delete
		case x.Txn != nil:
			one = txnAnswer(x.Txn)
			one.Kind = history.Txn
		}
		one.Revision = 0
		r.Responses = append(r.Responses, one)
	}
	return r
}

// perform asks core what a history's request says.
func perform(ctx context.Context, c *core.Core, who policy.Principal, r *history.Request) (history.Response, error) {
	var none history.Response
	switch r.Kind {
	case history.Range:
		page, err := c.Range(ctx, who, core.RangeRequest{Space: mvcc.SpaceEtcd, Query: queryOf(r), Serializable: r.Serializable})
		if err != nil {
			return none, err
		}
		return pageOf(&page), nil
	case history.Put:
		res, err := c.Put(ctx, who, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(r.Key), Value: []byte(r.Value), Lease: r.Lease, PrevKV: r.PrevKV})
		if err != nil {
			return none, err
		}
		return putOf(res), nil
	case history.Delete:
		res, err := c.Delete(ctx, who, &state.Delete{Space: mvcc.SpaceEtcd, Span: spanOf(r.Key, r.End), PrevKV: r.PrevKV})
		if err != nil {
			return none, err
		}
		return deleteOf(res), nil
	case history.Txn:
		res, err := c.Txn(ctx, who, txnOf(r), serializable(r))
		if err != nil {
			return none, err
		}
		return txnAnswer(res), nil
	case history.LeaseGrant:
		id, ttl, err := c.LeaseGrant(ctx, who, r.Lease, r.TTL)
		return history.Response{Lease: id, TTL: ttl}, err
	case history.LeaseRevoke:
		revision, err := c.LeaseRevoke(ctx, who, r.Lease)
		return history.Response{Lease: r.Lease, Revision: revision}, err
	case history.KeepAlive:
		ttl, err := c.LeaseRenew(ctx, who, r.Lease)
		return history.Response{Lease: r.Lease, TTL: ttl}, err
	case history.Compact:
		revision, err := c.Compact(ctx, who, &state.Compact{Space: mvcc.SpaceEtcd, Revision: r.Revision}, false)
		return history.Response{Revision: revision}, err
	}
	return none, fmt.Errorf("nobody performs %q", r.Kind)
}

// serializable reports whether every read of a transaction that only reads is.
func serializable(r *history.Request) bool {
	all := append(append([]history.Request(nil), r.Then...), r.Else...)
	for i := range all {
		if all[i].Kind != history.Range || !all[i].Serializable {
			return false
		}
	}
	return len(all) > 0
}
