package clustertest

import (
	"fmt"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// set adds to and takes from a list of keys, and reads all of it, also as it was, in parts, counted, and inside transactions.
func (c *client) set() func() {
	var last int64 // a revision that was seen
	done := func(a history.Response, _ history.Outcome) {
		last = max(last, a.Revision)
		c.next()
	}
	key := func() string { return fmt.Sprintf("s/%02d", c.rng.IntN(20)) }
	all := history.Request{Kind: history.Range, Key: "s/", End: "s0"}
	return func() {
		r := all
		switch c.rng.IntN(9) {
		case 0:
		case 1:
			r.Serializable = true
		case 2:
			r.Limit = int64(1 + c.rng.IntN(5))
		case 3:
			r.CountOnly = true
		case 4:
			r.Revision = max(last-int64(c.rng.IntN(30)), 0)
			r.Serializable = c.rng.IntN(2) == 0
		case 5:
			r = history.Request{Kind: history.Delete, Key: key(), End: "s/99", PrevKV: c.rng.IntN(2) == 0}
			if c.rng.IntN(3) > 0 {
				r.End = ""
			}
		case 6, 7:
			r = history.Request{Kind: history.Put, Key: key(), Value: c.value(), PrevKV: c.rng.IntN(2) == 0}
		default:
			k := key()
			conditions := []history.Compare{
				{Key: k, Target: history.TargetVersion, Result: ">", Number: 0}, {Key: k, Target: history.TargetValue, Result: "!=", Value: "1.1"},
				{Key: "s/", End: "s0", Target: history.TargetMod, Result: "<", Number: last + 5}, {Key: k, Target: history.TargetLease, Result: "=", Number: 0},
				{Key: k, Target: history.TargetCreate, Result: "<", Number: last - 20},
			}
			nested := history.Request{
				Kind: history.Txn, Compares: conditions[c.rng.IntN(5):][:1],
				Then: []history.Request{{Kind: history.Put, Key: k + "n", Value: c.value()}}, Else: []history.Request{{Kind: history.Delete, Key: k + "n"}},
			}
			r = history.Request{
				Kind: history.Txn, Compares: []history.Compare{conditions[c.rng.IntN(5)], conditions[c.rng.IntN(5)]},
				Then: []history.Request{{Kind: history.Put, Key: k, Value: c.value()}, {Kind: history.Put, Key: k + "+", Value: c.value()}, all, {Kind: history.Delete, Key: key() + "x"}, nested},
				Else: []history.Request{{Kind: history.Put, Key: k, Value: c.value()}, {Kind: history.Range, Key: k}, {Kind: history.Delete, Key: k + "+", PrevKV: true}},
			}
		}
		c.ask(r, done)
	}
}

// lease takes a lease, hangs keys on it, renews it for a while, and lets it end or revokes it.
func (c *client) lease() func() {
	var id int64
	var ttl int64
	var left int
	begin := func() {
		c.values++
		id, left = int64(c.number)<<32|int64(c.values), 2+c.rng.IntN(6)
		c.ask(history.Request{Kind: history.LeaseGrant, Lease: id, TTL: int64(8 + c.rng.IntN(12))}, func(a history.Response, o history.Outcome) {
			ttl = a.TTL
			if o != history.Answered {
				id = 0
			}
			c.again(500 * time.Millisecond)
		})
	}
	key := func() string { return fmt.Sprintf("l/%d/%d", c.number, c.rng.IntN(3)) }
	over := func(_ history.Response, o history.Outcome) {
		id = 0
		c.again(2 * c.w.plan.Pause)
	}
	return func() {
		if id == 0 {
			begin()
			return
		}
		left--
		switch x := c.rng.IntN(10); {
		case left <= 0 && x < 3:
			c.ask(history.Request{Kind: history.LeaseRevoke, Lease: id}, over)
		case left <= 0 && x < 7: // it ends by itself
			id = 0
			c.again(time.Duration(2*ttl) * time.Second)
		case x < 4:
			c.ask(history.Request{Kind: history.Put, Key: key(), Value: c.value(), Lease: id}, func(history.Response, history.Outcome) { c.next() })
		case x < 5:
			c.ask(history.Request{Kind: history.Range, Key: "l/", End: "l0"}, func(history.Response, history.Outcome) { c.next() })
		default:
			c.renew(id, func(a history.Response, o history.Outcome) {
				if o == history.Answered && a.TTL == 0 {
					id = 0
				}
				c.again(time.Duration(ttl) * time.Second / 4)
			})
		}
	}
}

// renew keeps a lease alive. Of those that the leader has to answer one is under way at a time: two that were waiting for a
// leader would go on in an order that nobody has drawn.
func (c *client) renew(id int64, then func(a history.Response, o history.Outcome)) {
	if c.w.onLeader {
		c.again(200 * time.Millisecond)
		return
	}
	c.w.onLeader = true
	asked := c.ask(history.Request{Kind: history.KeepAlive, Lease: id}, func(a history.Response, o history.Outcome) {
		c.w.onLeader = false
		then(a, o)
	})
	if !asked {
		c.w.onLeader = false
	}
}

// lock is etcd's recipe: a key of one's own below the lock's name, created once, and the oldest of them holds it. What the lock
// guards is written only if the key is still there.
func (c *client) lock() func() {
	const prefix = "k/"
	var id, token int64
	var mine string
	var step func()
	reset := func() {
		id, token, mine, step = 0, 0, "", nil
		c.next()
	}
	leave := func() {
		c.ask(history.Request{Kind: history.LeaseRevoke, Lease: id}, func(history.Response, history.Outcome) { reset() })
	}
	guarded := 0
	work := func() {
		if guarded--; guarded < 0 {
			leave()
			return
		}
		c.ask(history.Request{
			Kind: history.Txn, Compares: []history.Compare{{Key: mine, Target: history.TargetCreate, Result: "=", Number: token}},
			Then: []history.Request{{Kind: history.Put, Key: "guarded", Value: c.value()}}, Else: []history.Request{{Kind: history.Range, Key: mine}},
		}, func(a history.Response, o history.Outcome) {
			if o == history.Answered && !a.Succeeded {
				reset()
				return
			}
			c.renew(id, func(history.Response, history.Outcome) { c.next() })
		})
	}
	wait := func() {
		c.ask(history.Request{Kind: history.Range, Key: prefix, End: "k0"}, func(a history.Response, o history.Outcome) {
			oldest := int64(0)
			here := false
			for _, kv := range a.KVs {
				here = here || kv.Key == mine && kv.Create == token
				if oldest == 0 || kv.Create < oldest {
					oldest = kv.Create
				}
			}
			switch {
			case o != history.Answered:
				c.next()
			case !here:
				reset()
			default:
				if oldest == token {
					guarded, step = 1+c.rng.IntN(4), work
				}
				c.renew(id, func(history.Response, history.Outcome) { c.again(time.Second) })
			}
		})
	}
	return func() {
		switch {
		case step != nil:
			step()
		case id == 0:
			c.values++
			next := int64(c.number)<<32 | int64(c.values)
			c.ask(history.Request{Kind: history.LeaseGrant, Lease: next, TTL: 15}, func(a history.Response, o history.Outcome) {
				if o == history.Answered {
					id = next
				}
				c.again(300 * time.Millisecond)
			})
		default:
			mine = fmt.Sprintf("%s%x", prefix, id)
			c.ask(history.Request{
				Kind: history.Txn, Compares: []history.Compare{{Key: mine, Target: history.TargetCreate, Result: "=", Number: 0}},
				Then: []history.Request{{Kind: history.Put, Key: mine, Value: c.value(), Lease: id}}, Else: []history.Request{{Kind: history.Range, Key: mine}},
			}, func(a history.Response, o history.Outcome) {
				switch {
				case o == history.Answered && a.Succeeded:
					token = a.Revision
				case o == history.Answered && len(a.Responses) == 1 && len(a.Responses[0].KVs) == 1:
					token = a.Responses[0].KVs[0].Create
				case o == history.Refused:
					reset()
					return
				default:
					c.next()
					return
				}
				step = wait
				c.again(300 * time.Millisecond)
			})
		}
	}
}
