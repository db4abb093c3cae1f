package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// consulJudge judges Consul's pairs, blocking queries, sessions and locks.
type consulJudge struct {
	*verdict
	unique map[string]int // key and value -> how many writes ask for it
}

func (c *consulJudge) timeout() time.Duration { return cmp.Or(c.o.Timeout, time.Minute) }

// consul judges what was asked of Consul's API. Each pair is linearizable, its ModifyIndex grows with every change, a LockIndex belongs
// to one session; X-Consul-Index is never 0, not older than what it comes with, and does not go back for a client that
// passes on what it was given, except with an answer that has no pairs (the client then starts over, as Consul tells it to); a
// blocking query ends soon after a change of what it asks for; a lock is not granted during a lock-delay.
func (v *verdict) consul() {
	if len(v.h.Consul) == 0 {
		return
	}
	c := &consulJudge{v, map[string]int{}}
	for i := range v.h.Consul {
		switch o := &v.h.Consul[i]; o.Kind {
		case ConsulPut, ConsulCAS, ConsulAcquire, ConsulRelease:
			c.unique[o.Key+"\x00"+o.Value]++
		}
	}
	before := len(v.r.Violations)
	c.contents()
	c.indexes()
	c.missed()
	c.delays()
	c.sessions()
	v.counts("requests to Consul", len(v.h.Consul))
	if len(v.r.Violations) == before {
		c.pairs()
	}
}

func (c *consulJudge) wrong(rule, words string, operations ...int) {
	for _, i := range operations {
		words += "\n" + c.h.consulOperation(i)
	}
	c.found(consul, rule, words, operations, nil)
}

func (c *consulJudge) reads(f func(i int, o *ConsulOperation)) {
	for i := range c.h.Consul {
		if o := &c.h.Consul[i]; o.Outcome == Answered && (o.Kind == ConsulGet || o.Kind == ConsulList) {
			f(i, o)
		}
	}
}

// contents compares what was read with what was asked for, and reads with each other.
func (c *consulJudge) contents() {
	type version struct {
		key    string
		modify uint64
	}
	type tenure struct {
		key          string
		create, lock uint64
	}
	pairs, holders := map[version]Pair{}, map[tenure]string{}
	by, heldBy := map[version]int{}, map[tenure]int{}
	c.reads(func(i int, o *ConsulOperation) {
		for _, p := range o.Pairs {
			if o.Kind == ConsulGet && p.Key != o.Key || !strings.HasPrefix(p.Key, o.Key) {
				c.wrong("pair that was not asked for", p.Key, i)
			}
			at := version{p.Key, p.Modify}
			if old, ok := pairs[at]; !ok {
				pairs[at], by[at] = p, i
			} else if old != p {
				c.wrong("two contents of one index", fmt.Sprintf("at index %d: %+v and %+v", p.Modify, old, p), by[at], i)
			}
			if p.Session == "" {
				continue
			}
			held := tenure{p.Key, p.Create, p.Lock}
			if old, ok := holders[held]; !ok {
				holders[held], heldBy[held] = p.Session, i
			} else if old != p.Session {
				c.wrong("two holders of one lock index", fmt.Sprintf("%q, lock index %d: %s and %s", p.Key, p.Lock, old, p.Session), heldBy[held], i)
			}
		}
	})
}

// indexes judges X-Consul-Index.
func (c *consulJudge) indexes() {
	c.reads(func(i int, o *ConsulOperation) {
		if o.ReplyIndex == 0 {
			c.wrong("index of zero", "X-Consul-Index is at least 1", i)
			return
		}
		for _, p := range o.Pairs {
			if p.Modify > o.ReplyIndex {
				c.wrong("index older than its pairs", fmt.Sprintf("index %d comes with %q of index %d", o.ReplyIndex, p.Key, p.Modify), i)
			}
		}
		if o.Index != 0 {
			c.counts("blocking queries", 1)
		}
		if o.ReplyIndex >= o.Index || o.Stale || len(o.Pairs) == 0 {
			return
		}
		given := slices.ContainsFunc(c.h.Consul, func(p ConsulOperation) bool {
			return p.Outcome == Answered && p.Client == o.Client && p.Kind == o.Kind && p.Key == o.Key && p.ReplyIndex == o.Index && p.Return <= o.Call
		})
		if given {
			c.wrong("index goes back", fmt.Sprintf("the client was given %d for this before, passed it on, and was given %d", o.Index, o.ReplyIndex), i)
		}
	})
}

// missed judges whether blocking queries ended when what they ask for had changed.
func (c *consulJudge) missed() {
	allowance := int64(cmp.Or(c.o.WakeAllowance, time.Second))
	var writes []int
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		if o.Outcome == Answered && o.Done && (o.Kind == ConsulPut || o.Kind == ConsulCAS) && c.unique[o.Key+"\x00"+o.Value] == 1 {
			writes = append(writes, i)
		}
	}
	slices.SortFunc(writes, func(a, b int) int { return sign64(c.h.Consul[a].Call, c.h.Consul[b].Call) })
	c.reads(func(i int, o *ConsulOperation) {
		if o.Index == 0 || o.Stale {
			return
		}
		at, _ := slices.BinarySearchFunc(writes, o.Call, func(w int, t int64) int { return sign64(c.h.Consul[w].Call, t) })
		for _, w := range writes[at:] {
			x := &c.h.Consul[w]
			if x.Call >= o.Return {
				return
			}
			if x.Key != o.Key && (o.Kind != ConsulList || !strings.HasPrefix(x.Key, o.Key)) || x.Return+allowance >= o.Return {
				continue
			}
			rule := "change told late"
			if o.ReplyIndex <= o.Index {
				rule = "change missed"
			}
			c.wrong(rule, fmt.Sprintf("the query waited until %s, %s after the write was acknowledged", time.Duration(o.Return), time.Duration(o.Return-x.Return)), w, i)
			return
		}
	})
}

// mayEnd reports whether a request between two times can have ended that a session holds a key.
func (c *consulJudge) mayEnd(key, session string, from, to int64) bool {
	return slices.ContainsFunc(c.h.Consul, func(o ConsulOperation) bool {
		if o.Outcome == Refused || o.Call > to || o.Outcome == Answered && o.Return < from || !o.touches(key) {
			return false
		}
		switch o.Kind {
		case ConsulRelease:
			return o.Session == session
		case ConsulDelete, ConsulDeleteCAS, ConsulTree:
			return true
		}
		return false
	})
}

// delays judges the lock-delay: a lock whose session was destroyed is not granted before the delay has passed since that was
// asked for.
func (c *consulJudge) delays() {
	type life struct {
		created, destroyed int
	}
	lives := map[string]life{}
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		switch {
		case o.Kind == SessionCreate && o.Outcome == Answered:
			lives[o.Session] = life{i, -1}
		case o.Kind == SessionDestroy && o.Outcome != Refused:
			if l, ok := lives[o.Session]; ok && l.destroyed < 0 {
				l.destroyed = i
				lives[o.Session] = l
			}
		}
	}
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		l, ok := lives[o.Session]
		if o.Kind != ConsulAcquire || o.Outcome != Answered || !o.Done || !ok || l.destroyed < 0 {
			continue
		}
		d, delay := &c.h.Consul[l.destroyed], c.h.Consul[l.created].LockDelay
		if d.Outcome != Answered || delay == 0 || o.Return >= d.Call || c.mayEnd(o.Key, o.Session, o.Call, d.Return) {
			continue
		}
		if ttl := c.h.Consul[l.created].TTL; ttl > 0 || !c.h.Consul[l.created].NoChecks {
			continue // it may have ended before it was destroyed
		}
		c.counts("lock-delays judged", 1)
		for n := range c.h.Consul {
			x := &c.h.Consul[n]
			if x.Kind == ConsulAcquire && x.Outcome == Answered && x.Done && x.Key == o.Key && x.Session != o.Session && x.Call > o.Return && x.Return < d.Call+delay {
				c.wrong("lock granted during the lock-delay", fmt.Sprintf("%q was held by a session that was destroyed at %s, with a lock-delay of %s", o.Key, at(d.Call), time.Duration(delay)), i, l.destroyed, n)
			}
		}
	}
}

// sessions judges that a session without checks lives for its TTL after it was created or renewed last: what it holds was not seen without
// it before, and was not granted to another.
func (c *consulJudge) sessions() {
	created, renewals := map[string]int{}, map[string][]int{}
	destroyed := map[string]bool{}
	for i := range c.h.Consul {
		switch o := &c.h.Consul[i]; o.Kind {
		case SessionCreate:
			if o.Outcome == Answered {
				created[o.Session] = i
				renewals[o.Session] = append(renewals[o.Session], i)
			}
		case SessionRenew:
			if o.Outcome == Answered && o.Done {
				renewals[o.Session] = append(renewals[o.Session], i)
			}
		case SessionDestroy:
			destroyed[o.Session] = destroyed[o.Session] || o.Outcome != Refused
		}
	}
	for i := range c.h.Consul {
		a := &c.h.Consul[i]
		made, ok := created[a.Session]
		if a.Kind != ConsulAcquire || a.Outcome != Answered || !a.Done || !ok || destroyed[a.Session] || !c.h.Consul[made].NoChecks || c.h.Consul[made].TTL == 0 {
			continue
		}
		c.counts("holders of locks judged", 1)
		ttl := c.h.Consul[made].TTL
		for n := range c.h.Consul {
			o := &c.h.Consul[n]
			if o.Outcome != Answered || o.Stale || o.Call < a.Return || !c.without(o, a) {
				continue
			}
			end := int64(0)
			for _, r := range renewals[a.Session] {
				if x := &c.h.Consul[r]; x.Call <= o.Return {
					end = max(end, x.Call+ttl)
				}
			}
			if o.Return < end-int64(c.o.ClockTolerance) && !c.mayEnd(a.Key, a.Session, a.Call, o.Return) {
				c.wrong("session ended before its TTL", fmt.Sprintf("%s holds %q, and by its TTL of %s does so until %s", a.Session, a.Key, time.Duration(ttl), at(end)), i, n)
				break
			}
		}
	}
}

// without reports whether an answer shows that the session of a does not hold a's key.
func (c *consulJudge) without(o, a *ConsulOperation) bool {
	if o.Kind == ConsulAcquire {
		return o.Done && o.Key == a.Key && o.Session != a.Session
	}
	if o.Kind != ConsulGet && o.Kind != ConsulList || !strings.HasPrefix(a.Key, o.Key) || o.Kind == ConsulGet && o.Key != a.Key {
		return false
	}
	return !slices.ContainsFunc(o.Pairs, func(p Pair) bool { return p.Key == a.Key && p.Session == a.Session })
}

// consulOperation is one line on a request: who asked what, when, and what came of it.
func (h *History) consulOperation(i int) string {
	o := &h.Consul[i]
	s := fmt.Sprintf("request %d (client %d, member %d, %s to ", i, o.Client, o.Member, at(o.Call))
	if o.Outcome == Unknown {
		s += "?"
	} else {
		s += at(o.Return)
	}
	s += "): " + string(o.Kind)
	if o.Key != "" {
		s += fmt.Sprintf(" %q", o.Key)
	}
	if o.Value != "" {
		s += fmt.Sprintf(" = %q", o.Value)
	}
	if o.Index != 0 {
		s += fmt.Sprintf(" index %d", o.Index)
	}
	if o.Session != "" {
		s += " session " + o.Session
	}
	switch {
	case o.Outcome == Refused:
		return s + " -> refused: " + o.Error
	case o.Outcome == Unknown:
		return s + " -> unknown"
	case o.Kind == ConsulGet || o.Kind == ConsulList:
		return s + fmt.Sprintf(" -> index %d, %+v", o.ReplyIndex, o.Pairs)
	}
	return s + fmt.Sprintf(" -> %v", o.Done)
}
