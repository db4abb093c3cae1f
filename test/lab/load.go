package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/history"
)

// load is the clients: each is one goroutine that asks one thing at a time, of one member for a while and then of another.
type load struct {
	c     *cluster
	tape  *tape
	pause time.Duration // between two requests of a client
	seed  uint64
	next  int   // client id
	round int   // number; only changed while all rest
	first int64 // revision that the round began with: the judges know of none before it; only changed while all rest

	mu    sync.Mutex
	conns map[[2]int]*clientv3.Client // by slot and lane
	value int64
}

// lanes is over how many connections the clients of one member are spread.
const lanes = 3

// connection returns a client of a slot; it is made once, and finds by itself whoever lives there.
func (l *load) connection(slot, lane int) (*clientv3.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := [2]int{slot, lane % lanes}
	if cl := l.conns[key]; cl != nil {
		return cl, nil
	}
	cl, err := dial("https://"+l.c.net.address(slot)+":2379", l.c.tls)
	if err == nil {
		l.conns[key] = cl
	}
	return cl, err
}

func (l *load) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, cl := range l.conns {
		cl.Close()
	}
}

// unique is a value that nobody else writes.
func (l *load) unique() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value++
	return fmt.Sprintf("v%d", l.value)
}

// client is one of them.
type client struct {
	caller
	l    *load
	rng  *rand.Rand
	slot int
	conn *clientv3.Client
	left int // requests until it goes to another member
}

func (l *load) client() *client {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return &client{caller: caller{id: l.next, tape: l.tape}, l: l, rng: rand.New(rand.NewPCG(l.seed, uint64(l.next)))}
}

// ask asks the member that the client is with.
func (c *client) ask(ctx context.Context, r history.Request) (history.Response, history.Outcome) {
	if c.left <= 0 || c.conn == nil {
		members := c.l.c.all()
		c.slot, c.left = members[c.rng.IntN(len(members))].slot, 20+c.rng.IntN(80)
		conn, err := c.l.connection(c.slot, c.id)
		if err != nil {
			return history.Response{}, history.Refused
		}
		c.conn = conn
	}
	c.left--
	resp, outcome := c.do(ctx, c.slot, c.conn, r)
	switch {
	case outcome == history.Refused:
		c.left -= 10
		wait(ctx, 50*time.Millisecond)
	case outcome == history.Unknown:
		c.left = 0
	default:
		wait(ctx, time.Duration(float64(c.l.pause)*(0.5+c.rng.Float64())))
	}
	return resp, outcome
}

// run starts the clients: one of each kind in turn, until ctx is done.
func (l *load) run(ctx context.Context, count int, work *sync.WaitGroup) {
	kinds := []func(*client, context.Context){(*client).register, (*client).compareAndSet, (*client).set, (*client).transfer, (*client).leased, (*client).lock}
	for i := range count {
		c := l.client()
		work.Go(func() {
			for ctx.Err() == nil {
				kinds[i%len(kinds)](c, ctx)
			}
		})
	}
}

const registers = 6

func (c *client) key() string { return fmt.Sprintf("r/%d", c.rng.IntN(registers)) }

// register reads and writes single keys.
func (c *client) register(ctx context.Context) {
	switch n := c.rng.IntN(20); {
	case n < 9:
		c.ask(ctx, history.Request{Kind: history.Range, Key: c.key()})
	case n < 11:
		c.ask(ctx, history.Request{Kind: history.Range, Key: c.key(), Serializable: true})
	case n < 12:
		resp, outcome := c.ask(ctx, history.Request{Kind: history.Range, Key: "r/", End: "r0", Limit: 3})
		if outcome == history.Answered {
			c.ask(ctx, history.Request{Kind: history.Range, Key: "r/", End: "r0", Revision: max(c.l.first, resp.Revision-int64(c.rng.IntN(20)))})
		}
	case n < 13:
		c.ask(ctx, history.Request{Kind: history.Delete, Key: c.key(), PrevKV: c.rng.IntN(2) == 0})
	default:
		c.ask(ctx, history.Request{Kind: history.Put, Key: c.key(), Value: c.l.unique(), PrevKV: c.rng.IntN(3) == 0})
	}
}

// compareAndSet changes a key only if it is as it was read, by value or by revision.
func (c *client) compareAndSet(ctx context.Context) {
	key := c.key()
	resp, outcome := c.ask(ctx, history.Request{Kind: history.Range, Key: key, Serializable: c.rng.IntN(4) == 0})
	if outcome != history.Answered {
		return
	}
	cond := history.Compare{Key: key, Target: history.TargetMod, Result: "="}
	if len(resp.KVs) == 1 {
		cond.Number = resp.KVs[0].Mod
		if c.rng.IntN(2) == 0 {
			cond = history.Compare{Key: key, Target: history.TargetValue, Result: "=", Value: resp.KVs[0].Value}
		}
	}
	c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{cond},
		Then: []history.Request{{Kind: history.Put, Key: key, Value: c.l.unique()}},
		Else: []history.Request{{Kind: history.Range, Key: key}}})
}

// set adds elements that nobody else adds, each once, counts them, lists them in pages, and empties the set when it is large.
func (c *client) set(ctx context.Context) {
	prefix := fmt.Sprintf("s/%d/", c.id)
	for range 40 {
		v := c.l.unique()
		c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{{Key: prefix + v, Target: history.TargetCreate, Result: "="}},
			Then: []history.Request{{Kind: history.Put, Key: prefix + v, Value: v}, {Kind: history.Put, Key: prefix + "last", Value: v + "+"}}})
		if ctx.Err() != nil {
			return
		}
	}
	c.ask(ctx, history.Request{Kind: history.Range, Key: prefix, End: prefix + "~", CountOnly: true})
	c.ask(ctx, history.Request{Kind: history.Range, Key: prefix, End: prefix + "~", Limit: 10, KeysOnly: c.rng.IntN(2) == 0})
	if c.rng.IntN(3) == 0 {
		c.ask(ctx, history.Request{Kind: history.Range, Key: prefix, End: prefix + "~"})
		c.ask(ctx, history.Request{Kind: history.Delete, Key: prefix, End: prefix + "~", PrevKV: c.rng.IntN(2) == 0})
	}
}

// transfer changes several keys at once and reads them in the same transaction, nested now and then.
func (c *client) transfer(ctx context.Context) {
	a, b := c.rng.IntN(registers), c.rng.IntN(registers-1)
	if b >= a {
		b++
	}
	one, two := fmt.Sprintf("r/%d", a), fmt.Sprintf("r/%d", b)
	switch c.rng.IntN(4) {
	case 0: // read only
		c.ask(ctx, history.Request{Kind: history.Txn, Then: []history.Request{{Kind: history.Range, Key: one}, {Kind: history.Range, Key: two}}})
	case 1: // nested, on the existence of a key
		c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{{Key: one, Target: history.TargetVersion, Result: ">", Number: 2}},
			Then: []history.Request{{Kind: history.Txn, Compares: []history.Compare{{Key: two, Target: history.TargetCreate, Result: ">"}},
				Then: []history.Request{{Kind: history.Put, Key: two, Value: c.l.unique()}, {Kind: history.Delete, Key: one}},
				Else: []history.Request{{Kind: history.Put, Key: two, Value: c.l.unique()}}}},
			Else: []history.Request{{Kind: history.Put, Key: one, Value: c.l.unique()}, {Kind: history.Range, Key: one}}})
	default:
		c.ask(ctx, history.Request{Kind: history.Txn,
			Then: []history.Request{{Kind: history.Put, Key: one, Value: c.l.unique(), PrevKV: true}, {Kind: history.Put, Key: two, Value: c.l.unique()}, {Kind: history.Range, Key: "r/", End: "r0"}}})
	}
}

// leased puts keys under a lease, keeps it alive for a while, and then revokes it or lets it run out.
func (c *client) leased(ctx context.Context) {
	g, outcome := c.ask(ctx, history.Request{Kind: history.LeaseGrant, TTL: int64(2 + c.rng.IntN(6))})
	if outcome != history.Answered {
		return
	}
	for range 2 {
		c.ask(ctx, history.Request{Kind: history.Put, Key: fmt.Sprintf("l/%d/%d", c.id, c.rng.IntN(4)), Value: c.l.unique(), Lease: g.Lease})
	}
	for range c.rng.IntN(8) {
		wait(ctx, 300*time.Millisecond)
		k, outcome := c.ask(ctx, history.Request{Kind: history.KeepAlive, Lease: g.Lease})
		if outcome != history.Answered || k.TTL <= 0 || ctx.Err() != nil {
			return
		}
	}
	if c.rng.IntN(2) == 0 {
		c.ask(ctx, history.Request{Kind: history.LeaseRevoke, Lease: g.Lease})
	}
	c.ask(ctx, history.Request{Kind: history.Range, Key: "l/", End: "l0", Limit: 20})
}

// lock takes one of two locks as etcd's recipes do: a key under a lease that is made if it does not exist. Who holds it writes
// on the condition that it still does.
func (c *client) lock(ctx context.Context) {
	name := fmt.Sprintf("lock/%d", c.rng.IntN(2))
	g, outcome := c.ask(ctx, history.Request{Kind: history.LeaseGrant, TTL: int64(3 + c.rng.IntN(5))})
	if outcome != history.Answered {
		return
	}
	mine := c.l.unique()
	held := history.Compare{Key: name, Target: history.TargetValue, Result: "=", Value: mine}
	for range 30 {
		got, outcome := c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{{Key: name, Target: history.TargetCreate, Result: "="}},
			Then: []history.Request{{Kind: history.Put, Key: name, Value: mine, Lease: g.Lease}}, Else: []history.Request{{Kind: history.Range, Key: name}}})
		if outcome == history.Unknown || ctx.Err() != nil {
			break
		}
		if outcome == history.Refused || !got.Succeeded {
			wait(ctx, 50*time.Millisecond)
			continue
		}
		for range 1 + c.rng.IntN(4) {
			c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{held}, Then: []history.Request{{Kind: history.Put, Key: name + "/work", Value: c.l.unique()}}})
		}
		if c.rng.IntN(5) == 0 {
			return // it dies with the lock in its hands
		}
		c.ask(ctx, history.Request{Kind: history.Txn, Compares: []history.Compare{held}, Then: []history.Request{{Kind: history.Delete, Key: name}}})
		break
	}
	c.ask(ctx, history.Request{Kind: history.LeaseRevoke, Lease: g.Lease})
}
