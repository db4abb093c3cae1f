package history

import (
	"encoding/binary"
	"slices"
	"strings"
)

// store is etcd's revision model: what a correct store holds after a sequence of operations. It is a value: an operation
// makes a new one. past is shared between the stores of one line of operations; a line that is left is not to be taken up again.
type store struct {
	revision, compacted int64
	keys                *tree
	leases              *tree // leaseKey(id, "") for each lease, leaseKey(id, key) for each key attached to it
	past                []*tree
	base                int64 // revision of past[0]
	hash                uint64
	trail               uint64 // of all revisions, if withTrail: two stores that hold the same may have come there in different ways
	withTrail           bool
	anyLease            bool // leases are not kept account of: each is there when it is needed
}

func newStore(i Initial) store {
	s := store{revision: max(i.Revision, 1), compacted: i.Compacted}
	for _, id := range i.Leases {
		s.grant(id)
	}
	for _, kv := range i.KVs {
		s.set(&kv)
		if kv.Lease != 0 && s.leases.get(leaseKey(kv.Lease, "")) == nil {
			s.grant(kv.Lease)
		}
	}
	s.base, s.past = s.revision, []*tree{s.keys}
	return s
}

// leaseKey names a key in the tree of leases.
func leaseKey(id int64, key string) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return string(b[:]) + key
}

func leaseOf(name string) int64 { return int64(binary.BigEndian.Uint64([]byte(name[:8]))) }

func (s *store) mark(text string, n ...int64) {
	h := hash64(1, text)
	for _, v := range n {
		h = mixed(h ^ uint64(v))
	}
	s.hash ^= h
}

func (s *store) grant(id int64) {
	s.leases = s.leases.put(&KV{Key: leaseKey(id, "")})
	s.mark("lease", id)
}

func (s *store) has(lease int64) bool { return s.leases.get(leaseKey(lease, "")) != nil }

func (s *store) markKV(kv *KV) {
	s.mark(kv.Key, int64(hash64(2, kv.Value)), kv.Create, kv.Mod, kv.Version, kv.Lease)
}

// set stores kv and attaches it to its lease.
func (s *store) set(kv *KV) (prev *KV) {
	if prev = s.keys.get(kv.Key); prev != nil {
		s.markKV(prev)
		s.detach(prev)
	}
	s.keys = s.keys.put(kv)
	s.markKV(kv)
	if kv.Lease != 0 {
		s.leases = s.leases.put(&KV{Key: leaseKey(kv.Lease, kv.Key)})
	}
	return prev
}

func (s *store) detach(kv *KV) {
	if kv.Lease != 0 && s.leases.get(leaseKey(kv.Lease, kv.Key)) != nil {
		s.leases = s.leases.remove(leaseKey(kv.Lease, kv.Key))
	}
}

func (s *store) unset(kv *KV) {
	s.keys = s.keys.remove(kv.Key)
	s.markKV(kv)
	s.detach(kv)
}

// at returns the keyspace of a revision that is not newer than the store.
func (s *store) at(revision int64) (*tree, bool) {
	if revision < s.base || revision > s.revision {
		return nil, false
	}
	return s.past[revision-s.base], true
}

// attached returns the keys that are attached to a lease, in order.
func (s *store) attached(lease int64) (keys []string) {
	s.leases.walk(leaseKey(lease, "\x00"), leaseKey(lease+1, ""), func(kv *KV) bool {
		keys = append(keys, kv.Key[8:])
		return true
	})
	if lease == -1 { // its successor is 0, which is before it
		s.leases.walk(leaseKey(lease, "\x00"), "\x00", func(kv *KV) bool {
			keys = append(keys, kv.Key[8:])
			return true
		})
	}
	return keys
}

// change is an operation under way: its writes are visible to its own reads only, and share one revision.
type change struct {
	store
	before *tree // the keys as they were when it began: by them all comparisons are decided, those of inner transactions too
	main   int64
	events []Event
	why    string // it cannot be done
}

// do does what is asked and returns the store after it, what it answers, its events and, if a correct store would not have
// done it, why.
func (s store) do(r *Request) (store, Response, []Event, string) {
	c := change{store: s, before: s.keys, main: s.revision + 1}
	answer := c.request(r)
	if c.why != "" {
		return s, answer, nil, c.why
	}
	if len(c.events) > 0 {
		c.revision = c.main
		c.past = append(c.past[:c.main-c.base], c.keys)
		c.hash ^= mixed(uint64(c.main)) ^ mixed(uint64(c.main-1))
		if c.withTrail {
			c.trail = mixed(c.trail ^ c.hash)
		}
	}
	answer.Revision = c.revision
	return c.store, answer, c.events, ""
}

func (c *change) request(r *Request) Response {
	switch r.Kind {
	case Range:
		return c.read(r)
	case Put:
		return c.put(r)
	case Delete:
		return c.delete(r)
	case Txn:
		return c.txn(r)
	case LeaseGrant:
		if len(c.attached(r.Lease)) > 0 {
			c.why = "the lease is there and holds keys"
		} else if !c.has(r.Lease) {
			c.grant(r.Lease)
		}
		return Response{Kind: r.Kind, Lease: r.Lease, TTL: r.TTL}
	case LeaseRevoke:
		c.revoke(r.Lease)
	case Compact:
		if r.Revision > c.revision || r.Revision <= c.compacted {
			c.why = "revision " + num(r.Revision) + " cannot be compacted: the store is at " + num(c.revision) + " and compacted at " + num(c.compacted)
			break
		}
		c.mark("compacted", c.compacted)
		c.compacted = r.Revision
		c.mark("compacted", c.compacted)
	default:
		c.why = "no store knows an operation of the kind " + string(r.Kind)
	}
	return Response{Kind: r.Kind}
}

func (c *change) read(r *Request) Response {
	t, why := c.source(r)
	if why != "" {
		c.why = why
		return Response{}
	}
	answer := Response{Kind: Range, Count: t.count(r.Key, r.End)}
	if r.CountOnly {
		return answer
	}
	t.each(r.Key, r.End, func(kv *KV) bool {
		if r.Limit > 0 && int64(len(answer.KVs)) == r.Limit {
			answer.More = true
			return false
		}
		got := *kv
		if r.KeysOnly {
			got.Value = ""
		}
		answer.KVs = append(answer.KVs, got)
		return true
	})
	return answer
}

// source returns the keyspace that a read is about.
func (c *change) source(r *Request) (*tree, string) {
	if r.Revision <= 0 {
		return c.keys, ""
	}
	if r.Revision < c.compacted {
		return nil, "revision " + num(r.Revision) + " has been compacted"
	}
	if r.Revision == c.main && len(c.events) > 0 {
		return c.keys, ""
	}
	t, ok := c.at(r.Revision)
	if !ok {
		return nil, "revision " + num(r.Revision) + " is in the future, or before the history"
	}
	return t, ""
}

func (c *change) put(r *Request) Response {
	if r.Lease != 0 && !c.has(r.Lease) && !c.anyLease {
		c.why = "the lease " + num(r.Lease) + " is not there"
		return Response{}
	}
	kv := &KV{Key: r.Key, Value: r.Value, Create: c.main, Mod: c.main, Version: 1, Lease: r.Lease}
	if prev := c.keys.get(r.Key); prev != nil {
		kv.Create, kv.Version = prev.Create, prev.Version+1
	}
	prev := c.set(kv)
	c.events = append(c.events, Event{Type: PutEvent, KV: *kv, Prev: prev})
	answer := Response{Kind: Put}
	if r.PrevKV && prev != nil {
		answer.Prev = []KV{*prev}
	}
	return answer
}

func (c *change) delete(r *Request) Response {
	var found []*KV
	c.keys.each(r.Key, r.End, func(kv *KV) bool {
		found = append(found, kv)
		return true
	})
	answer := Response{Kind: Delete, Deleted: int64(len(found))}
	for _, kv := range found {
		c.drop(kv)
		if r.PrevKV {
			answer.Prev = append(answer.Prev, *kv)
		}
	}
	return answer
}

func (c *change) drop(kv *KV) {
	c.unset(kv)
	c.events = append(c.events, Event{Type: DeleteEvent, KV: KV{Key: kv.Key, Mod: c.main}, Prev: kv})
}

// revoke ends a lease and all keys that are attached to it.
func (c *change) revoke(lease int64) {
	if !c.has(lease) && !c.anyLease {
		c.why = "the lease " + num(lease) + " is not there"
		return
	}
	for _, key := range c.attached(lease) {
		c.drop(c.keys.get(key))
	}
	if c.has(lease) {
		c.leases = c.leases.remove(leaseKey(lease, ""))
		c.mark("lease", lease)
	}
}

func (c *change) txn(r *Request) Response {
	answer := Response{Kind: Txn, Succeeded: c.holds(r.Compares)}
	branch := r.Then
	if !answer.Succeeded {
		branch = r.Else
	}
	for i := range branch {
		answer.Responses = append(answer.Responses, c.request(&branch[i]))
	}
	return answer
}

func (c *change) holds(compares []Compare) bool {
	for i := range compares {
		if !c.compare(&compares[i]) {
			return false
		}
	}
	return true
}

func (c *change) compare(p *Compare) bool {
	found := false
	all := c.before.each(p.Key, p.End, func(kv *KV) bool {
		found = true
		return p.holds(kv)
	})
	if found {
		return all
	}
	return p.Target != TargetValue && p.holds(&KV{})
}

func (p *Compare) holds(kv *KV) bool {
	var sign int
	switch p.Target {
	case TargetValue:
		sign = strings.Compare(kv.Value, p.Value)
	case TargetVersion:
		sign = sign64(kv.Version, p.Number)
	case TargetCreate:
		sign = sign64(kv.Create, p.Number)
	case TargetMod:
		sign = sign64(kv.Mod, p.Number)
	case TargetLease:
		sign = sign64(kv.Lease, p.Number)
	}
	switch p.Result {
	case "=":
		return sign == 0
	case "!=":
		return sign != 0
	case "<":
		return sign < 0
	}
	return sign > 0
}

func sign64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// follow takes over the events of one revision as they were told, whoever caused them.
func (s store) follow(revision int64, events []Event) store {
	c := change{store: s, before: s.keys, main: revision}
	for i := range events {
		e := &events[i]
		if e.Type == PutEvent {
			kv := e.KV
			c.set(&kv)
		} else if kv := c.keys.get(e.KV.Key); kv != nil {
			c.unset(kv)
		}
	}
	c.hash ^= mixed(uint64(revision)) ^ mixed(uint64(revision-1))
	c.revision = revision
	c.past = append(c.past[:revision-c.base], c.keys)
	return c.store
}

// same says in what an answer differs from what the store would have said; empty if in nothing.
func same(r *Request, want, got *Response) string {
	switch r.Kind {
	case Range:
		if !r.CountOnly {
			if diff := sameKVs(want.KVs, got.KVs, r.KeysOnly); diff != "" {
				return diff
			}
			if want.More != got.More {
				return "more is " + word(got.More) + ", not " + word(want.More)
			}
		}
		if want.Count != got.Count {
			return "the count is " + num(got.Count) + ", not " + num(want.Count)
		}
	case Put:
		return sameKVs(want.Prev, got.Prev, false)
	case Delete:
		if want.Deleted != got.Deleted {
			return num(got.Deleted) + " keys were deleted, not " + num(want.Deleted)
		}
		return sameKVs(want.Prev, got.Prev, false)
	case Txn:
		if want.Succeeded != got.Succeeded {
			return "the comparisons came out " + word(got.Succeeded) + ", not " + word(want.Succeeded)
		}
		branch := r.Then
		if !want.Succeeded {
			branch = r.Else
		}
		if len(want.Responses) != len(got.Responses) {
			return num(int64(len(got.Responses))) + " answers for " + num(int64(len(want.Responses))) + " operations"
		}
		for i := range branch {
			if diff := same(&branch[i], &want.Responses[i], &got.Responses[i]); diff != "" {
				return "in operation " + num(int64(i)) + ": " + diff
			}
		}
	}
	return ""
}

func sameKVs(want, got []KV, keysOnly bool) string {
	equal := func(a, b KV) bool {
		if keysOnly { // whether the lease is told depends on the version
			a.Value, b.Value, a.Lease, b.Lease = "", "", 0, 0
		}
		return a == b
	}
	if slices.EqualFunc(want, got, equal) {
		return ""
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			return "it lacks " + want[i].String()
		case i >= len(want):
			return "it has " + got[i].String() + ", which should not be there"
		case !equal(want[i], got[i]):
			return "it has " + got[i].String() + " where " + want[i].String() + " should be"
		}
	}
	return ""
}
