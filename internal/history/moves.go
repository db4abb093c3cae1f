package history

import (
	"cmp"
	"maps"
	"slices"
)

// order brings calls and returns nearer to each other where one move must come before another whatever their revisions are: the grant
// of a lease before what is attached to it and before its revocation, and that last; a read of an old revision before its compaction.
// Porcupine finds that by itself, but only by trying.
func order(moves []move) {
	before := func(first, second *move) {
		first.ret, second.call = min(first.ret, second.ret), max(second.call, first.call)
	}
	grants, revokes := map[int64]*move{}, map[int64]*move{}
	var compactions, old []*move
	for i := range moves {
		v := &moves[i]
		switch v.request.Kind {
		case LeaseGrant:
			if grants[v.request.Lease] != nil { // granted again: nothing certain
				return
			}
			grants[v.request.Lease] = v
		case LeaseRevoke:
			if !v.optional {
				revokes[v.request.Lease] = v
			}
		case Compact:
			if !v.optional {
				compactions = append(compactions, v)
			}
		case Range:
			if v.request.Revision > 0 {
				old = append(old, v)
			}
		}
	}
	for id, revoke := range revokes {
		if grants[id] != nil {
			before(grants[id], revoke)
		}
	}
	for i := range moves {
		v := &moves[i]
		if v.request.Kind == Put && v.request.Lease != 0 && !v.optional {
			if g := grants[v.request.Lease]; g != nil {
				before(g, v)
			}
			if r := revokes[v.request.Lease]; r != nil {
				before(v, r)
			}
		}
	}
	for _, c := range compactions {
		for _, v := range old {
			if v.request.Revision < c.request.Revision {
				before(v, c)
			}
		}
	}
	slices.SortFunc(compactions, func(a, b *move) int { return sign64(a.request.Revision, b.request.Revision) })
	for i := 1; i < len(compactions); i++ {
		before(compactions[i-1], compactions[i])
	}
}

// looksBack reports whether a request reads a revision of the past that is not known.
func looksBack(r *Request, exact int64) bool {
	back := func(x Request) bool { return looksBack(&x, exact) }
	return r.Kind == Range && r.Revision > exact || slices.ContainsFunc(r.Then, back) || slices.ContainsFunc(r.Else, back)
}

// rank orders moves that are called at the same time.
func (v *move) rank() int {
	switch {
	case v.optional:
		return 3
	case v.request.Kind == LeaseGrant:
		return 0
	case v.revision == 0:
		return 2
	}
	return 1
}

// thin leaves out of a part with operations that have no revision, if many clients are at work at once, the reads of the current
// revision: they were judged directly, do not depend on such operations, and would be tried in all orders.
func (l *ledger) thin(part []*move) []*move {
	const many = 10
	loose, clients := false, map[int]bool{}
	for _, v := range part {
		loose = loose || v.revision == 0
		if v.operation >= 0 {
			clients[l.h.Operations[v.operation].Client] = true
		}
	}
	if !loose || len(clients) <= many {
		return part
	}
	n := len(part)
	part = slices.DeleteFunc(part, func(v *move) bool {
		return v.request.Kind == Range && v.request.Revision == 0 && v.revision != 0 && v.revision <= l.exact
	})
	l.counts("linearizable reads left to the direct judges", n-len(part))
	return part
}

// moves lists everything that the store did.
func (l *ledger) moves() []move {
	var all []move
	l.used = map[int64]int64{}
	used := l.used
	for _, r := range slices.Sorted(maps.Keys(l.pages)) {
		p := l.pages[r]
		for i := range p.effects {
			if id := p.effects[i].KV.Lease; id != 0 && used[id] == 0 {
				used[id] = r
			}
		}
		if p.cause == byLease {
			all = append(all, move{operation: -1, request: &Request{Kind: LeaseRevoke, Lease: p.lease}, blind: true, revision: r, writes: true, ret: never})
		}
	}
	granted := map[int64]int{}
	l.revoked = map[int64]int64{}
	for i := range l.h.Operations {
		switch o := &l.h.Operations[i]; {
		case o.Outcome != Answered:
		case o.Request.Kind == LeaseGrant:
			granted[o.Response.Lease]++
		case o.Request.Kind == LeaseRevoke:
			if t, ok := l.revoked[o.Request.Lease]; !ok || o.Return < t {
				l.revoked[o.Request.Lease] = o.Return
			}
		}
	}
	for i := range l.h.Operations {
		o, p := &l.h.Operations[i], l.ops[i]
		v := move{operation: i, request: &o.Request, answer: &o.Response, blind: p.blind, revision: p.revision, writes: p.writes, call: o.Call, ret: o.Return}
		if o.Outcome == Unknown {
			v.blind, v.ret = true, never
		}
		switch kind := o.Request.Kind; {
		case o.Outcome == Refused, kind == KeepAlive, kind == Range && o.Outcome == Unknown, serializable(&o.Request):
			continue
		case p.revision != 0:
		case o.Outcome == Answered && kind == LeaseGrant:
			v.request = &Request{Kind: LeaseGrant, Lease: o.Response.Lease}
		case o.Outcome == Answered && !kind.aboutKeys():
		case o.Outcome == Answered:
			continue // without a revision: found before
		case kind == LeaseGrant && o.Request.Lease != 0 && granted[o.Request.Lease] == 0 && (used[o.Request.Lease] != 0 || l.revoked[o.Request.Lease] != 0 || l.exact < l.last):
			v.optional = true
		case kind != Compact && kind != LeaseGrant && l.exact < l.last:
			v.optional = true
		default:
			continue // nothing was seen of it, and nothing needs it
		}
		all = append(all, v)
	}
	if l.exact < l.last { // any lease may end in a revision that is not known
		ends := map[int64]bool{}
		for _, id := range l.h.Initial.Leases {
			ends[id] = true
		}
		for i := range l.h.Operations {
			if o := &l.h.Operations[i]; o.Request.Kind == LeaseGrant && o.Outcome != Refused {
				ends[cmp.Or(o.Response.Lease, o.Request.Lease)] = true
			}
		}
		for _, id := range slices.Sorted(maps.Keys(ends)) {
			all = append(all, move{operation: -1, request: &Request{Kind: LeaseRevoke, Lease: id}, blind: true, optional: true, ret: never})
		}
	}
	return all
}
