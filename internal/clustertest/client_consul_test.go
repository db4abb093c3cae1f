package clustertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

var errNotDone = errors.New("refused by the catalog")

// performConsul asks core what a request to Consul's API says.
func performConsul(ctx context.Context, c *core.Core, who policy.Principal, o history.ConsulOperation, wait time.Duration) (history.ConsulOperation, error) {
	switch o.Kind {
	case history.ConsulGet, history.ConsulList:
		q := catalog.Query{Kind: catalog.QueryPair, Name: o.Key}
		if o.Kind == history.ConsulList {
			q.Kind = catalog.QueryPairs
		}
		found, err := c.Lookup(ctx, who, core.LookupRequest{Query: q, Serializable: o.Stale, MinIndex: o.Index, Wait: wait})
		o.ReplyIndex = found.Index
		for _, p := range found.Pairs {
			o.Pairs = append(o.Pairs, history.Pair{Key: p.Key, Value: string(p.Value), Create: p.CreateIndex, Modify: p.ModifyIndex, Lock: p.LockIndex, Session: p.Session, Flags: p.Flags})
		}
		return o, err
	case history.SessionRenew:
		_, err := c.RenewSession(ctx, who, o.Session)
		o.Done = err == nil
		return o, err
	}
	verbs := map[history.ConsulKind]catalog.Verb{
		history.ConsulPut: catalog.KVSet, history.ConsulCAS: catalog.KVCAS, history.ConsulDelete: catalog.KVDelete,
		history.ConsulDeleteCAS: catalog.KVDeleteCAS, history.ConsulTree: catalog.KVDeleteTree, history.ConsulAcquire: catalog.KVLock,
		history.ConsulRelease: catalog.KVUnlock, history.SessionCreate: catalog.SessionCreate, history.SessionDestroy: catalog.SessionDestroy,
	}
	op := catalog.Op{Verb: verbs[o.Kind]}
	var ops []catalog.Op
	switch o.Kind {
	case history.SessionCreate:
		ops = append(ops, catalog.Op{Verb: catalog.NodeSet, Node: &catalog.Node{Name: "host", Address: "192.0.2.1", Datacenter: "dc1"}})
		op.Session = &catalog.Session{ID: o.Session, Node: "host", TTL: time.Duration(o.TTL).String(), LockDelay: o.LockDelay, Behavior: o.Behavior}
	case history.SessionDestroy:
		op.Session = &catalog.Session{ID: o.Session}
	default:
		op.Pair = &catalog.Pair{Key: o.Key, Value: []byte(o.Value), Flags: o.Flags, Session: o.Session}
		if o.Kind == history.ConsulCAS || o.Kind == history.ConsulDeleteCAS {
			op.Pair.ModifyIndex = o.Index
		}
	}
	out, err := c.Discover(ctx, who, append(ops, op))
	if err != nil {
		return o, err
	}
	o.Done = len(out.Failures) == 0
	for _, f := range out.Failures {
		if f.Kind != catalog.Mismatch {
			return o, fmt.Errorf("%w: %s", errNotDone, f.What)
		}
	}
	return o, nil
}

// askConsul sends a request to Consul's API.
func (c *client) askConsul(o history.ConsulOperation, wait time.Duration, then func(a history.ConsulOperation, what history.Outcome)) bool {
	w := c.w
	m := c.member()
	if m == nil {
		c.again(2 * time.Second)
		return false
	}
	o.Client, o.Member, o.Call = c.number, m.number, int64(w.now())
	number := w.record.CallConsul(o)
	who := c.who
	what := fmt.Sprintf("client %d: %s %s %s index %d session %s", c.number, o.Kind, o.Key, o.Value, o.Index, o.Session)
	w.call(m, wait+c.patience(), what, func(ctx context.Context, co *core.Core) (any, error) {
		return performConsul(ctx, co, who, o, wait)
	}, func(value any, err error) {
		a, _ := value.(history.ConsulOperation)
		a.Return, a.Outcome = int64(w.now()), outcome(err)
		if errors.Is(err, errNotDone) {
			a.Outcome = history.Refused
		}
		if err != nil {
			a = history.ConsulOperation{Return: a.Return, Outcome: a.Outcome, Error: plain(err)}
		}
		w.record.ReturnConsul(number, a)
		w.count(a.Outcome)
		then(a, a.Outcome)
	})
	return true
}

// consul works with pairs, sessions and locks as clients of Consul do.
func (c *client) consul() func() {
	var session string
	var index uint64
	next := func(a history.ConsulOperation, _ history.Outcome) {
		for _, p := range a.Pairs {
			index = p.Modify
		}
		c.next()
	}
	return func() {
		key := fmt.Sprintf("c/%d", c.rng.IntN(3))
		lock := fmt.Sprintf("c/lock%d", c.rng.IntN(2))
		if session == "" && c.rng.IntN(3) == 0 {
			c.values++
			s := fmt.Sprintf("%08x-0000-0000-0000-%012x", c.number, c.values)
			o := history.ConsulOperation{Kind: history.SessionCreate, Session: s, TTL: int64(time.Duration(10+c.rng.IntN(10)) * time.Second), LockDelay: int64(time.Duration(c.rng.IntN(3)) * time.Second)}
			if c.rng.IntN(2) == 0 {
				o.Behavior = "delete"
			}
			c.askConsul(o, 0, func(_ history.ConsulOperation, what history.Outcome) {
				if what == history.Answered {
					session = s
				}
				c.next()
			})
			return
		}
		o := history.ConsulOperation{Key: key}
		switch x := c.rng.IntN(14); {
		case x < 3:
			o.Kind, o.Stale = history.ConsulGet, c.rng.IntN(4) == 0
		case x < 4:
			o.Kind, o.Key = history.ConsulList, "c/"
		case x < 6:
			o.Kind, o.Value, o.Flags = history.ConsulPut, c.value(), uint64(c.rng.IntN(3))
		case x < 7:
			o.Kind, o.Value, o.Index = history.ConsulCAS, c.value(), index
		case x < 8:
			o.Kind = []history.ConsulKind{history.ConsulDelete, history.ConsulDeleteCAS}[c.rng.IntN(2)]
			if o.Kind == history.ConsulDeleteCAS {
				o.Index = index
			}
		case session == "":
			o.Kind = history.ConsulGet
		case x < 10:
			o.Kind, o.Key, o.Value, o.Session = history.ConsulAcquire, lock, c.value(), session
		case x < 11:
			o.Kind, o.Key, o.Value, o.Session = history.ConsulRelease, lock, c.value(), session
		case x < 13 && !c.w.onLeader:
			o.Kind, o.Key, o.Session = history.SessionRenew, "", session
			c.w.onLeader = true
			if !c.askConsul(o, 0, func(_ history.ConsulOperation, what history.Outcome) {
				c.w.onLeader = false
				if what == history.Refused {
					session = ""
				}
				c.next()
			}) {
				c.w.onLeader = false
			}
			return
		default:
			o.Kind, o.Key, o.Session = history.SessionDestroy, "", session
			session = ""
		}
		c.askConsul(o, 0, next)
	}
}

// blocking asks again and again for what is newer than what it knows, as watchers of Consul do.
func (c *client) blocking() func() {
	key, list := fmt.Sprintf("c/%d", c.rng.IntN(3)), c.rng.IntN(2) == 0
	var index uint64
	return func() {
		o := history.ConsulOperation{Kind: history.ConsulGet, Key: key, Index: index, Stale: c.rng.IntN(6) == 0}
		if list {
			o.Kind, o.Key = history.ConsulList, "c/"
		}
		wait := time.Duration(5+c.rng.IntN(60)) * time.Second
		if index == 0 {
			wait = 0
		}
		c.askConsul(o, wait, func(a history.ConsulOperation, what history.Outcome) {
			switch {
			case what != history.Answered:
				c.next()
				return
			case a.ReplyIndex < index:
				index = 0
			default:
				index = a.ReplyIndex
			}
			c.again(200 * time.Millisecond)
		})
	}
}

// revocable writes and reads by a certificate that is revoked now and then; after a while it gets another one.
func (c *client) revocable() func() {
	w := c.w
	serial := 0
	fresh := func() {
		serial++
		c.cert = fmt.Sprintf("%x%04x", 0xf0+c.number, serial)
		c.who = policy.NewHolder("revocable", policy.Certificate{Issuer: "aa", Serial: c.cert}, policy.RoleAdmin, false)
	}
	fresh()
	next := func(history.Response, history.Outcome) { c.next() }
	revoking := false
	return func() {
		switch x := c.rng.IntN(30); {
		case x == 0 && !revoking:
			revoking = true
			c.revoke(func() {
				w.after(time.Duration(5+c.rng.IntN(240))*time.Second, func() { revoking = false; fresh() })
			})
			c.next()
		case x < 12:
			c.ask(history.Request{Kind: history.Range, Key: fmt.Sprintf("r%d", c.rng.IntN(4))}, next)
		default:
			c.ask(history.Request{Kind: history.Put, Key: "revocable", Value: c.value()}, next)
		}
	}
}

// revoke does what `holdfast ca revoke` does, until it is known to be done.
func (c *client) revoke(then func()) {
	w := c.w
	m := c.member()
	if m == nil {
		w.after(time.Second, func() { c.revoke(then) })
		return
	}
	cert := policy.Certificate{Issuer: "aa", Serial: c.cert}
	number := w.record.Revoke(c.cert, int64(w.now()))
	w.call(m, 20*time.Second, "revoke "+c.cert, func(ctx context.Context, co *core.Core) (any, error) {
		_, err := co.Put(ctx, w.system, &state.Put{Space: mvcc.SpaceCA, Key: state.RevokedKey(cert), Value: []byte(`{"at":"2000-01-01T00:00:00Z","reason":1,"by":"admin"}`)})
		return nil, err
	}, func(_ any, err error) {
		w.record.Revoked(number, int64(w.now()), outcome(err))
		if err != nil && !w.over {
			w.after(2*time.Second, func() { c.revoke(then) })
			return
		}
		then()
	})
}
