package history

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// pairState is one pair of Consul's store as its judge knows it. Writes do not say what index they made: until a read shows it, only a
// lower bound of it is known.
type pairState struct {
	there   bool
	value   string
	flags   uint64
	modify  uint64
	exact   bool   // modify is the index; else the index is at least that
	create  uint64 // 0: not known
	fresh   bool   // not written since it was created, so that create is modify
	lock    uint64
	session string
	delayed bool // a session that held it has ended: an acquire may be refused for the lock-delay
	vague   bool // writes that nobody saw are left out: one of them may have created it
}

// pairMove is one step of a pair.
type pairMove struct {
	operation int
	o         *ConsulOperation
	pair      *Pair // of a read
	read      bool
	blind     bool
	ends      string // the session that ends with this step
	deletes   bool   // with what it holds
	call, ret int64
}

// changed takes over a write.
func (s pairState) changed() pairState {
	if !s.there {
		s = pairState{there: true, modify: s.modify, fresh: true, delayed: s.delayed, vague: s.vague}
	} else {
		s.fresh = false
	}
	s.modify, s.exact = s.modify+1, false
	return s
}

func (s pairState) gone() pairState {
	return pairState{modify: s.modify + 1, delayed: s.delayed, vague: s.vague}
}

// write sets value and flags; the same again changes nothing.
func (s pairState) write(o *ConsulOperation) pairState {
	if s.there && s.value == o.Value && s.flags == o.Flags {
		return s
	}
	s = s.changed()
	s.value, s.flags = o.Value, o.Flags
	return s
}

// indexed reports whether the pair can have that index, and the pair with that known.
func (s pairState) indexed(index uint64) (pairState, bool) {
	if !s.there || s.exact && s.modify != index || s.modify > index {
		return s, false
	}
	s.modify, s.exact = index, true
	return s, true
}

func (s pairState) shown(p *Pair) (pairState, bool) {
	if p == nil {
		return s, !s.there
	}
	s, ok := s.indexed(p.Modify)
	if !ok || p.Value != s.value || p.Flags != s.flags || p.Lock != s.lock || p.Session != s.session || s.create != 0 && p.Create != s.create || s.fresh && !s.vague && p.Create != p.Modify || p.Create > p.Modify {
		return s, false
	}
	s.create = p.Create
	return s, true
}

// conditional is a write that is done only if a condition holds.
func (s pairState) conditional(o *ConsulOperation) (next pairState, can, cannot bool) {
	switch o.Kind {
	case ConsulCAS:
		if o.Index == 0 {
			return s.write(o), !s.there, s.there
		}
		at, can := s.indexed(o.Index)
		return at.write(o), can, !can || !s.exact
	case ConsulDeleteCAS:
		if o.Index == 0 {
			return s, !s.there, true
		}
		if !s.there {
			return s, true, true
		}
		at, can := s.indexed(o.Index)
		return at.gone(), can, !can || !s.exact
	case ConsulAcquire:
		if s.there && s.session == o.Session {
			next = s.write(o)
			if next == s { // whether this makes a new index is not promised
				next.exact = false
			}
			return next, true, false
		}
		next = s.changed()
		next.value, next.flags, next.session, next.lock = o.Value, o.Flags, o.Session, next.lock+1
		return next, s.session == "", s.session != "" || s.delayed
	case ConsulRelease:
		next = s.changed()
		next.value, next.flags, next.session = o.Value, o.Flags, ""
		return next, s.there && s.session == o.Session, !s.there || s.session != o.Session
	}
	return s, false, true
}

// step does one move, or reports that it cannot be the next one.
func (s pairState) step(v *pairMove) (pairState, bool) {
	if v.ends != "" {
		if s.session != v.ends {
			return s, true
		}
		if v.deletes {
			s = s.gone()
		} else {
			s = s.changed()
			s.session = ""
		}
		s.delayed = true
		return s, true
	}
	if v.read {
		return s.shown(v.pair)
	}
	switch v.o.Kind {
	case ConsulPut:
		return s.write(v.o), true
	case ConsulDelete, ConsulTree:
		if s.there {
			s = s.gone()
		}
		return s, true
	}
	next, can, cannot := s.conditional(v.o)
	switch {
	case v.blind && !can:
		return s, true
	case v.blind || v.o.Done:
		return next, can
	}
	return s, cannot
}

// touches reports whether a write is about a key.
func (o *ConsulOperation) touches(key string) bool {
	switch o.Kind {
	case ConsulPut, ConsulCAS, ConsulDelete, ConsulDeleteCAS, ConsulAcquire, ConsulRelease:
		return o.Key == key
	case ConsulTree:
		return strings.HasPrefix(key, o.Key)
	}
	return false
}

// pairs judges each pair by itself with porcupine.
func (c *consulJudge) pairs() {
	keys := map[string]bool{}
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		switch o.Kind {
		case ConsulTree, SessionCreate, SessionDestroy, SessionRenew:
		case ConsulList:
			for _, p := range o.Pairs {
				keys[p.Key] = true
			}
		default:
			keys[o.Key] = true
		}
	}
	end := time.Now().Add(c.timeout())
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		moves, start := c.moves(key)
		left := time.Until(end)
		if left <= 0 {
			c.undecided("consul: out of time")
			return
		}
		ops := make([]porcupine.Operation, len(moves))
		for i := range moves {
			ops[i] = porcupine.Operation{ClientId: i, Input: &moves[i], Call: moves[i].call, Return: moves[i].ret}
		}
		result, info := bounded(pairModel(start), ops, left)
		c.counts("requests to Consul judged by porcupine", len(moves))
		switch result {
		case porcupine.Unknown:
			c.undecided(fmt.Sprintf("consul: no decision on the %d requests about %q within %s and a gigabyte", len(moves), key, c.timeout()))
		case porcupine.Illegal:
			c.stuck(key, start, moves, longestOf(info.PartialLinearizations()))
		}
	}
}

func pairModel(start pairState) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(state, input, _ any) (bool, any) {
			next, ok := state.(pairState).step(input.(*pairMove))
			return ok, next
		},
		Hash: func(state any) uint64 {
			s := state.(pairState)
			return mixed(hash64(s.modify, s.value) ^ bits.RotateLeft64(hash64(s.lock, s.session), 7))
		},
	}
}

func (c *consulJudge) stuck(key string, s pairState, moves []pairMove, done []int) {
	left := map[int]bool{}
	for i := range moves {
		left[i] = true
	}
	for _, i := range done {
		s, _ = s.step(&moves[i])
		delete(left, i)
	}
	var words []string
	var involved []int
	for _, i := range slices.SortedFunc(maps.Keys(left), func(a, b int) int { return sign64(moves[a].ret, moves[b].ret) }) {
		if v := &moves[i]; len(words) < 5 && v.ret != never && v.ends == "" {
			words, involved = append(words, c.h.consulOperation(v.operation)), append(involved, v.operation)
		}
	}
	c.found(consul, "not linearizable", fmt.Sprintf("no order of the requests about %q explains the answers. The longest one found has %d of %d and leaves it as %+v. Then these are next to return:\n%s",
		key, len(done), len(moves), s, strings.Join(words, "\n")), involved, nil)
}

// moves lists what was done to a pair and what was read of it, and how the pair begins.
func (c *consulJudge) moves(key string) (all []pairMove, start pairState) {
	shown, first := map[string]bool{}, map[string]int64{}
	failed := false
	note := func(o *ConsulOperation, p *Pair) {
		if at, ok := first[p.Value]; !ok || o.Return < at {
			first[p.Value] = o.Return
		}
		shown[p.Value] = true
	}
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		if o.Outcome == Answered && o.touches(key) && !o.Done {
			failed = true
		}
		for j := range o.Pairs {
			if o.Pairs[j].Key == key {
				note(o, &o.Pairs[j])
			}
		}
	}
	acquired := map[string]bool{}
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		v := pairMove{operation: i, o: o, blind: o.Outcome == Unknown, call: o.Call, ret: o.Return}
		if v.blind {
			v.ret = never
		}
		switch {
		case o.Outcome == Refused:
			continue
		case o.touches(key):
			if o.Kind == ConsulAcquire {
				acquired[o.Session] = true
			}
			plain := o.Kind == ConsulPut || o.Kind == ConsulCAS
			if v.blind && (plain || o.Kind == ConsulAcquire || o.Kind == ConsulRelease) && c.unique[o.Key+"\x00"+o.Value] == 1 {
				if !shown[o.Value] && !failed && plain {
					start.vague = true // nobody saw it, and nothing needs it: no condition failed
					continue
				}
				if shown[o.Value] {
					v.ret = first[o.Value]
				}
			}
		case o.Outcome == Unknown || o.Stale:
			continue
		case o.Kind == ConsulGet && o.Key == key:
			v.read = true
		case o.Kind == ConsulList && strings.HasPrefix(key, o.Key):
			v.read = true
		default:
			continue
		}
		if v.read {
			if n := slices.IndexFunc(o.Pairs, func(p Pair) bool { return p.Key == key }); n >= 0 {
				v.pair = &o.Pairs[n]
			}
		}
		all = append(all, v)
	}
	for _, session := range slices.Sorted(maps.Keys(acquired)) {
		if v, ends := c.endOf(session); ends {
			all = append(all, v)
		}
	}
	return all, start
}

// endOf is the end of a session: when it was destroyed, or at any time after its TTL, or at any time if it hangs on checks. What
// hangs on nothing and was not destroyed has no end.
func (c *consulJudge) endOf(session string) (v pairMove, ends bool) {
	v = pairMove{operation: -1, ends: session, ret: never}
	created, destroyed := int64(0), int64(never)
	lasts := int64(0) // how long it lives at least after it was created
	for i := range c.h.Consul {
		o := &c.h.Consul[i]
		if o.Session != session || o.Outcome == Refused {
			continue
		}
		switch o.Kind {
		case SessionCreate:
			created, v.deletes = o.Call, o.Behavior == "delete"
			if o.NoChecks {
				if lasts = o.TTL; lasts == 0 {
					lasts = never
				}
			}
		case SessionDestroy:
			destroyed = min(destroyed, o.Call)
			if o.Outcome == Answered {
				v.ret = min(v.ret, o.Return)
			}
		}
	}
	if lasts >= never-created {
		v.call = destroyed
		return v, destroyed != never
	}
	v.call = min(created+lasts, destroyed)
	return v, true
}
