package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"holdfast.dev/holdfast/internal/history"
)

// tape is what is recorded of one round, and the gate by which all clients rest between rounds.
type tape struct {
	base time.Time // where all times begin

	gate sync.RWMutex // held for reading by each operation
	rec  *history.Recorder

	acks chan<- ack // of writes; never blocks
	kept atomic.Int64
}

// ack is one acknowledged write.
type ack struct{ call, back int64 }

func (t *tape) now() int64 { return time.Since(t.base).Nanoseconds() }

// opTimeout is after how long a client gives up: what it asked may then be done or not.
const opTimeout = 5 * time.Second

// caller is one client process: it asks one thing at a time.
type caller struct {
	id          int
	tape        *tape
	certificate string // named in what is recorded
	why         string // the last error
}

// do asks a member through the official client and records what came of it.
func (a *caller) do(ctx context.Context, slot int, cl *clientv3.Client, r history.Request) (history.Response, history.Outcome) {
	a.tape.gate.RLock()
	defer a.tape.gate.RUnlock()
	rec := a.tape.rec
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout) // the end of a round leaves no outcome unknown
	defer cancel()
	call := a.tape.now()
	number := rec.Call(history.Operation{Client: a.id, Member: slot, Call: call, Certificate: a.certificate, Request: r})
	resp, err := ask(ctx, cl, r)
	back := a.tape.now()
	outcome, text := judgeError(err)
	a.why = text
	rec.Return(number, back, outcome, resp, text)
	a.tape.kept.Add(1)
	if outcome == history.Answered && writes(r) {
		select {
		case a.tape.acks <- ack{call, back}:
		default:
		}
	}
	return resp, outcome
}

// writes reports whether a request goes through the log.
func writes(r history.Request) bool {
	switch r.Kind {
	case history.Range, history.KeepAlive:
		return false
	case history.Txn:
		for _, inner := range append(append([]history.Request(nil), r.Then...), r.Else...) {
			if writes(inner) {
				return true
			}
		}
		return false
	}
	return true
}

// judgeError says what an error means for what was asked. Only what a server says about the request itself, or a connection
// that never came to be, is a refusal; everything else may have been done.
func judgeError(err error) (history.Outcome, string) {
	if err == nil {
		return history.Answered, ""
	}
	text := err.Error()
	for _, certain := range []error{rpctypes.ErrCompacted, rpctypes.ErrFutureRev, rpctypes.ErrNoSpace, rpctypes.ErrLeaseNotFound, rpctypes.ErrLeaseExist,
		rpctypes.ErrTooManyRequests, rpctypes.ErrPermissionDenied, rpctypes.ErrEmptyKey, rpctypes.ErrDuplicateKey, rpctypes.ErrTooManyOps} {
		if errors.Is(rpctypes.Error(err), certain) {
			return history.Refused, text
		}
	}
	var inner rpctypes.EtcdError
	unavailable := status.Code(err) == codes.Unavailable || errors.As(err, &inner) && inner.Code() == codes.Unavailable
	if unavailable && (strings.Contains(text, "Error while dialing") || strings.Contains(text, "authentication handshake failed")) {
		return history.Refused, text
	}
	return history.Unknown, text
}

// ask puts one request to the official client.
func ask(ctx context.Context, cl *clientv3.Client, r history.Request) (history.Response, error) {
	switch r.Kind {
	case history.LeaseGrant:
		g, err := cl.Grant(ctx, r.TTL)
		if err != nil {
			return history.Response{}, err
		}
		return history.Response{Revision: g.Revision, Lease: int64(g.ID), TTL: g.TTL}, nil
	case history.LeaseRevoke:
		v, err := cl.Revoke(ctx, clientv3.LeaseID(r.Lease))
		if err != nil {
			return history.Response{}, err
		}
		return history.Response{Revision: v.Header.Revision}, nil
	case history.KeepAlive:
		k, err := cl.KeepAliveOnce(ctx, clientv3.LeaseID(r.Lease))
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return history.Response{Lease: r.Lease}, nil
		case err != nil:
			return history.Response{}, err
		}
		return history.Response{Revision: k.Revision, Lease: r.Lease, TTL: k.TTL}, nil
	case history.Compact:
		c, err := cl.Compact(ctx, r.Revision)
		if err != nil {
			return history.Response{}, err
		}
		return history.Response{Revision: c.Header.Revision}, nil
	}
	op, err := operation(r)
	if err != nil {
		return history.Response{}, err
	}
	got, err := cl.Do(ctx, op)
	if err != nil {
		return history.Response{}, err
	}
	return answer(got), nil
}

// operation says a request in the official client's words.
func operation(r history.Request) (clientv3.Op, error) {
	var opts []clientv3.OpOption
	on := func(yes bool, o clientv3.OpOption) {
		if yes {
			opts = append(opts, o)
		}
	}
	on(r.End != "", clientv3.WithRange(r.End))
	switch r.Kind {
	case history.Range:
		on(r.Revision > 0, clientv3.WithRev(r.Revision))
		on(r.Limit > 0, clientv3.WithLimit(r.Limit))
		on(r.Serializable, clientv3.WithSerializable())
		on(r.CountOnly, clientv3.WithCountOnly())
		on(r.KeysOnly, clientv3.WithKeysOnly())
		return clientv3.OpGet(r.Key, opts...), nil
	case history.Put:
		on(r.PrevKV, clientv3.WithPrevKV())
		on(r.Lease != 0, clientv3.WithLease(clientv3.LeaseID(r.Lease)))
		return clientv3.OpPut(r.Key, r.Value, opts...), nil
	case history.Delete:
		on(r.PrevKV, clientv3.WithPrevKV())
		return clientv3.OpDelete(r.Key, opts...), nil
	case history.Txn:
		var conds []clientv3.Cmp
		for _, c := range r.Compares {
			cmp, err := comparison(c)
			if err != nil {
				return clientv3.Op{}, err
			}
			conds = append(conds, cmp)
		}
		var branches [2][]clientv3.Op
		for i, branch := range [][]history.Request{r.Then, r.Else} {
			for _, inner := range branch {
				op, err := operation(inner)
				if err != nil {
					return clientv3.Op{}, err
				}
				branches[i] = append(branches[i], op)
			}
		}
		return clientv3.OpTxn(conds, branches[0], branches[1]), nil
	}
	return clientv3.Op{}, fmt.Errorf("a %q cannot be asked so", r.Kind)
}

func comparison(c history.Compare) (clientv3.Cmp, error) {
	var cmp clientv3.Cmp
	switch c.Target {
	case history.TargetVersion:
		cmp = clientv3.Compare(clientv3.Version(c.Key), c.Result, c.Number)
	case history.TargetCreate:
		cmp = clientv3.Compare(clientv3.CreateRevision(c.Key), c.Result, c.Number)
	case history.TargetMod:
		cmp = clientv3.Compare(clientv3.ModRevision(c.Key), c.Result, c.Number)
	case history.TargetValue:
		cmp = clientv3.Compare(clientv3.Value(c.Key), c.Result, c.Value)
	case history.TargetLease:
		cmp = clientv3.Compare(clientv3.LeaseValue(c.Key), c.Result, c.Number)
	default:
		return cmp, fmt.Errorf("a comparison of %q", c.Target)
	}
	if c.End != "" {
		cmp = cmp.WithRange(c.End)
	}
	return cmp, nil
}

// answer says an answer of the official client in the history's words.
func answer(o clientv3.OpResponse) history.Response {
	switch {
	case o.Get() != nil:
		g := o.Get()
		return history.Response{Kind: history.Range, Revision: g.Header.GetRevision(), KVs: pairs(g.Kvs), More: g.More, Count: g.Count}
	case o.Put() != nil:
		p := o.Put()
		r := history.Response{Kind: history.Put, Revision: p.Header.GetRevision()}
		if p.PrevKv != nil {
			r.Prev = []history.KV{pair(p.PrevKv)}
		}
		return r
	case o.Del() != nil:
		d := o.Del()
		return history.Response{Kind: history.Delete, Revision: d.Header.GetRevision(), Deleted: d.Deleted, Prev: pairs(d.PrevKvs)}
	}
	return txnAnswer(o.Txn())
}

func txnAnswer(t *clientv3.TxnResponse) history.Response {
	r := history.Response{Kind: history.Txn, Revision: t.Header.GetRevision(), Succeeded: t.Succeeded}
	for _, x := range t.Responses {
		var inner history.Response
		switch {
		case x.GetResponseRange() != nil:
			inner = answer((*clientv3.GetResponse)(x.GetResponseRange()).OpResponse())
		case x.GetResponsePut() != nil:
			inner = answer((*clientv3.PutResponse)(x.GetResponsePut()).OpResponse())
		case x.GetResponseDeleteRange() != nil:
			inner = answer((*clientv3.DeleteResponse)(x.GetResponseDeleteRange()).OpResponse())
		case x.GetResponseTxn() != nil:
			inner = txnAnswer((*clientv3.TxnResponse)(x.GetResponseTxn()))
		}
		inner.Revision = 0 // inside a transaction it is never said
		r.Responses = append(r.Responses, inner)
	}
	return r
}

func pair(kv *mvccpb.KeyValue) history.KV {
	return history.KV{Key: string(kv.Key), Value: string(kv.Value), Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
}

func pairs(kvs []*mvccpb.KeyValue) (all []history.KV) {
	for _, kv := range kvs {
		all = append(all, pair(kv))
	}
	return all
}
