package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// leaseLife is what is known of one lease.
type leaseLife struct {
	id         int64
	ttl        int64 // nanoseconds
	granted    int   // the operation
	renewals   []renewal
	revocation bool  // it may have been revoked
	gone       int64 // an acknowledged revocation had returned by then
	revoked    int
}

// renewal is one operation that set the life of a lease anew: at some moment from call to done.
type renewal struct {
	call, done int64
	operation  int
	certain    bool
}

// leases judges what Holdfast promises of leases, on the observer's clock. A lease lives on for its TTL from the moment at which
// it was granted or renewed last, a moment between the asking and the answer: so nothing that hangs on it may have been seen to
// vanish before the TTL has passed since the last answered renewal was asked for. If an allowance is given, whatever hangs on it is
// gone that long after the TTL has passed since the last renewal was answered. A keep-alive that is asked for after a
// revocation was acknowledged finds no lease.
func (l *ledger) leases() {
	lives := l.lives()
	for _, life := range lives {
		l.keepAlives(life)
	}
	for r := l.base + 1; r <= l.exact; r++ {
		if p := l.pages[r]; p != nil && p.cause == byLease {
			if life := lives[p.lease]; life != nil {
				l.early(life, r, p)
			}
		}
	}
	if l.o.ExpiryAllowance > 0 {
		l.late(lives)
	}
	l.counts("leases", len(lives))
}

func (l *ledger) lives() map[int64]*leaseLife {
	lives := map[int64]*leaseLife{}
	again := map[int64]bool{}
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		if o.Request.Kind != LeaseGrant || o.Outcome != Answered {
			continue
		}
		id := o.Response.Lease
		again[id] = lives[id] != nil
		ttl := cmp.Or(o.Response.TTL, o.Request.TTL)
		lives[id] = &leaseLife{id: id, ttl: ttl * int64(time.Second), granted: i, renewals: []renewal{{o.Call, o.Return, i, true}}, gone: never}
	}
	for id, twice := range again {
		if twice { // two lives under one name cannot be told apart
			delete(lives, id)
		}
	}
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		life := lives[o.Request.Lease]
		if life == nil || o.Outcome == Refused {
			continue
		}
		switch o.Request.Kind {
		case KeepAlive:
			switch {
			case o.Outcome == Unknown:
				life.renewals = append(life.renewals, renewal{o.Call, never, i, false})
			case o.Response.TTL > 0:
				life.renewals = append(life.renewals, renewal{o.Call, o.Return, i, true})
			}
		case LeaseRevoke:
			life.revocation = true
			if o.Outcome == Answered && o.Return < life.gone {
				life.gone, life.revoked = o.Return, i
			}
		}
	}
	return lives
}

// keepAlives judges renewals of a lease that was known to be revoked.
func (l *ledger) keepAlives(life *leaseLife) {
	for _, r := range life.renewals {
		if r.certain && r.call > life.gone {
			l.found(leasing, "renewed after it was revoked", l.h.operation(life.revoked)+"\n"+l.h.operation(r.operation), []int{life.revoked, r.operation}, nil)
		}
	}
	l.counts("lease renewals", len(life.renewals))
}

// early judges the end of a lease that nobody revoked, which made revision r.
func (l *ledger) early(life *leaseLife, r int64, p *page) {
	if life.revocation {
		return // it may have been revoked
	}
	first := l.seen.by(r)
	end, last := int64(0), -1
	for _, x := range life.renewals {
		// a renewal that was asked for before it was seen gone, and answered, found it there: its TTL counts from then
		if x.certain && x.call+life.ttl > end && x.call <= first {
			end, last = x.call+life.ttl, x.operation
		}
	}
	l.counts("ends of leases judged", 1)
	if first < end-int64(l.o.ClockTolerance) {
		l.found(leasing, "expired before its TTL", fmt.Sprintf("lease %d of %s was renewed by\n%s\nand seen to have ended, with %s, at %s, %s before its TTL had passed", life.id, time.Duration(life.ttl), l.h.operation(last), list(p.effects), at(first), time.Duration(end-first)), []int{last}, watchOf(p))
	}
}

// mustEnd returns by when a lease must have ended, as far as renewals until a time say; false if one of them was never answered.
func (l *ledger) mustEnd(life *leaseLife, until int64) (int64, bool) {
	last := int64(0)
	for _, x := range life.renewals {
		if x.call < until {
			last = max(last, min(x.done, never-life.ttl)+life.ttl)
		}
	}
	return last + int64(l.o.ExpiryAllowance+l.o.ClockTolerance), last < never/2
}

// late judges whether a key was seen after its lease must have ended, or is still there when the cluster had had its time.
func (l *ledger) late(lives map[int64]*leaseLife) {
	if l.o.SettledAt > 0 && l.exact == l.last && l.told() {
		l.store.keys.walk("", "\x00", func(kv *KV) bool {
			if life := lives[kv.Lease]; kv.Lease != 0 && life != nil {
				if limit, ok := l.mustEnd(life, never); ok && l.o.SettledAt > limit {
					l.found(leasing, "alive after its TTL", fmt.Sprintf("%s was never deleted although lease %d must have ended by %s, %s of allowance included\n%s", kv, life.id, at(limit), l.o.ExpiryAllowance, l.h.operation(life.granted)), []int{life.granted}, nil)
				}
			}
			return true
		})
	}
	for i := range l.h.Operations {
		o := &l.h.Operations[i]
		if o.Outcome != Answered || o.Request.Kind != Range || o.Request.Revision != 0 || serializable(&o.Request) || l.ops[i].revision == 0 {
			continue
		}
		for _, kv := range o.Response.KVs {
			life := lives[kv.Lease]
			if kv.Lease == 0 || life == nil {
				continue
			}
			if limit, ok := l.mustEnd(life, o.Return); ok && o.Call > limit {
				l.found(leasing, "alive after its TTL", fmt.Sprintf("%s was read although lease %d must have ended by %s, %s of allowance included\n%s", kv, life.id, at(limit), l.o.ExpiryAllowance, l.h.operation(i)), []int{life.granted, i}, nil)
			}
		}
	}
}

// told reports whether a watch on everything was open to the end: what it was not told of did not happen.
func (l *ledger) told() bool {
	return slices.ContainsFunc(l.h.Watches, func(w Watch) bool {
		n := len(w.Responses)
		return w.Closed == 0 && w.Created != 0 && w.End == "\x00" && (w.Key == "" || w.Key == "\x00") && !w.NoDelete && (n == 0 || !w.Responses[n-1].Canceled)
	})
}

// locks judges locks in the way of etcd's recipe: the holder is the key below the prefix of the lock that was created first, and its
// create revision is the fencing token that goes with every write which the lock is to guard. A lease cannot give mutual
// exclusion by itself: who has lost it may not have heard of that yet and still believe to be the holder. So nothing is said of what
// clients believe. What etcd does promise is that a write which is guarded by the comparison of the create revision is done only while that
// key is there; judged is that no such write was done by one while an older one held the lock, and that tokens never go back.
func (l *ledger) locks() {
	for _, prefix := range l.o.Locks {
		newest, by := int64(0), -1
		for r := l.base + 1; r <= l.exact; r++ {
			p := l.pages[r]
			if p == nil || p.writer < 0 || l.ops[p.writer].blind {
				continue
			}
			o := &l.h.Operations[p.writer]
			token, key := fence(o, prefix)
			if token == 0 {
				continue
			}
			l.counts("writes guarded by a lock", 1)
			before, ok := l.asOf(r - 1)
			if !ok {
				continue
			}
			l.holder(before.keys, prefix, token, key, p.writer)
			if token < newest {
				l.found(locking, "fencing token goes back", fmt.Sprintf("lock %q: token %d after token %d\n%s\n%s", prefix, token, newest, l.h.operation(by), l.h.operation(p.writer)), []int{by, p.writer}, nil)
			} else {
				newest, by = token, p.writer
			}
		}
	}
}

// holder judges whether the one who wrote held the lock.
func (l *ledger) holder(keys *tree, prefix string, token int64, key string, writer int) {
	alive := false
	keys.walk(prefix, prefixEnd(prefix), func(kv *KV) bool {
		switch {
		case kv.Create == token && kv.Key == key:
			alive = true
		case kv.Create < token:
			l.found(locking, "two holders", fmt.Sprintf("lock %q: %s has held it since revision %d, and a write went through with token %d\n%s", prefix, kv, kv.Create, token, l.h.operation(writer)), []int{writer}, nil)
		}
		return true
	})
	if !alive {
		l.found(locking, "write with a token of nobody", fmt.Sprintf("lock %q: nothing there was created at %d\n%s", prefix, token, l.h.operation(writer)), []int{writer}, nil)
	}
}

// fence returns the token with which a transaction that went through was guarded, and the key that it is of.
func fence(o *Operation, prefix string) (int64, string) {
	if o.Request.Kind != Txn || !o.Response.Succeeded {
		return 0, ""
	}
	end := prefixEnd(prefix)
	i := slices.IndexFunc(o.Request.Compares, func(c Compare) bool {
		return c.Target == TargetCreate && c.Result == "=" && c.Number > 0 && c.End == "" && inRange(c.Key, prefix, end)
	})
	if i < 0 {
		return 0, ""
	}
	// a transaction on the lock's own keys takes or leaves the lock, and is not guarded by it
	if !slices.ContainsFunc(o.Request.Then, func(r Request) bool { return r.Kind == Put && !inRange(r.Key, prefix, end) }) {
		return 0, ""
	}
	return o.Request.Compares[i].Number, o.Request.Compares[i].Key
}

// prefixEnd returns the end of the range of all keys with a prefix.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return "\x00"
}
