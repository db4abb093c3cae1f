package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// naive is the store as one would write it down first: maps, copied for every revision. It shares nothing with the judges.
type naive struct {
	revision, compacted int64
	keys                map[string]KV
	past                map[int64]map[string]KV
	log                 map[int64][]Event
	leases              map[int64]*naiveLease
}

type naiveLease struct{ ttl, end int64 }

func newNaive() *naive {
	return &naive{1, 0, map[string]KV{}, map[int64]map[string]KV{1: {}}, map[int64][]Event{}, map[int64]*naiveLease{}}
}

func naiveIn(k, key, end string) bool {
	return end == "" && k == key || end == "\x00" && k >= key || end > "\x00" && k >= key && k < end
}

// do does a request; an error stands for a refusal.
func (n *naive) do(r Request, now int64) (Response, error) {
	work := &naive{n.revision, n.compacted, maps.Clone(n.keys), n.past, nil, n.leases}
	var events []Event
	if err := work.valid(r); err != nil {
		return Response{}, err
	}
	a := work.request(r, n.revision+1, &events, now)
	n.keys, n.compacted = work.keys, work.compacted
	n.commit(events)
	a.Revision = n.revision
	return a, nil
}

func (n *naive) commit(events []Event) {
	if len(events) > 0 {
		n.revision++
		n.log[n.revision] = events
		n.past[n.revision] = maps.Clone(n.keys)
	}
}

func (n *naive) valid(r Request) error {
	switch r.Kind {
	case Put:
		if r.Lease != 0 && n.leases[r.Lease] == nil {
			return fmt.Errorf("requested lease not found")
		}
	case Range:
		if r.Revision > n.revision || r.Revision != 0 && r.Revision < n.compacted {
			return fmt.Errorf("revision")
		}
	case Txn:
		for _, x := range append(slices.Clone(r.Then), r.Else...) {
			if err := n.valid(x); err != nil {
				return err
			}
		}
	case LeaseGrant:
		if n.leases[r.Lease] != nil {
			return fmt.Errorf("lease exists")
		}
	case LeaseRevoke:
		if n.leases[r.Lease] == nil {
			return fmt.Errorf("requested lease not found")
		}
	case Compact:
		if r.Revision <= n.compacted || r.Revision > n.revision {
			return fmt.Errorf("revision")
		}
	}
	return nil
}

func (n *naive) request(r Request, main int64, events *[]Event, now int64) (a Response) {
	switch r.Kind {
	case Range:
		from := n.keys
		if r.Revision != 0 {
			from = n.past[r.Revision]
		}
		for _, k := range slices.Sorted(maps.Keys(from)) {
			if !naiveIn(k, r.Key, r.End) {
				continue
			}
			a.Count++
			if r.CountOnly {
				continue
			}
			if r.Limit > 0 && int64(len(a.KVs)) == r.Limit {
				a.More = true
				continue
			}
			kv := from[k]
			if r.KeysOnly {
				kv.Value, kv.Lease = "", 0
			}
			a.KVs = append(a.KVs, kv)
		}
	case Put:
		old, ok := n.keys[r.Key]
		kv := KV{r.Key, r.Value, main, main, 1, r.Lease}
		e := Event{Type: PutEvent}
		if ok {
			kv.Create, kv.Version = old.Create, old.Version+1
			e.Prev = &old
			if r.PrevKV {
				a.Prev = []KV{old}
			}
		}
		e.KV = kv
		n.keys[r.Key] = kv
		*events = append(*events, e)
	case Delete:
		a.Deleted, a.Prev = n.drop(func(kv KV) bool { return naiveIn(kv.Key, r.Key, r.End) }, main, events)
		if !r.PrevKV {
			a.Prev = nil
		}
	case Txn:
		a.Succeeded = true
		for _, c := range r.Compares {
			a.Succeeded = a.Succeeded && n.compare(c)
		}
		branch := r.Then
		if !a.Succeeded {
			branch = r.Else
		}
		for _, x := range branch {
			a.Responses = append(a.Responses, n.request(x, main, events, now))
		}
	case LeaseGrant:
		n.leases[r.Lease] = &naiveLease{r.TTL * 1e9, now + r.TTL*1e9}
		a.Lease, a.TTL = r.Lease, r.TTL
	case LeaseRevoke:
		n.drop(func(kv KV) bool { return kv.Lease == r.Lease }, main, events)
		delete(n.leases, r.Lease)
	case KeepAlive:
		if l := n.leases[r.Lease]; l != nil {
			l.end = now + l.ttl
			a.TTL = l.ttl / 1e9
		}
	case Compact:
		n.compacted = r.Revision
	}
	return a
}

func (n *naive) drop(which func(KV) bool, main int64, events *[]Event) (count int64, prev []KV) {
	for _, k := range slices.Sorted(maps.Keys(n.keys)) {
		if old := n.keys[k]; which(old) {
			delete(n.keys, k)
			count++
			prev = append(prev, old)
			*events = append(*events, Event{Type: DeleteEvent, KV: KV{Key: k, Mod: main}, Prev: &old})
		}
	}
	return count, prev
}

func (n *naive) compare(c Compare) bool {
	ok, any := true, false
	one := func(kv KV) {
		number := map[Target]int64{TargetCreate: kv.Create, TargetMod: kv.Mod, TargetVersion: kv.Version, TargetLease: kv.Lease}[c.Target]
		less, equal := number < c.Number, number == c.Number
		if c.Target == TargetValue {
			less, equal = kv.Value < c.Value, kv.Value == c.Value
		}
		ok = ok && map[string]bool{"=": equal, "!=": !equal, "<": less, ">": !less && !equal}[c.Result]
	}
	for _, kv := range n.past[n.revision] { // as it was before the outermost transaction
		if naiveIn(kv.Key, c.Key, c.End) {
			any = true
			one(kv)
		}
	}
	if !any {
		if c.Target == TargetValue {
			return false
		}
		one(KV{})
	}
	return ok
}

// expire ends the leases whose time has come, one revision each.
func (n *naive) expire(now int64) {
	for _, id := range slices.Sorted(maps.Keys(n.leases)) {
		if n.leases[id].end <= now {
			var events []Event
			n.drop(func(kv KV) bool { return kv.Lease == id }, n.revision+1, &events)
			delete(n.leases, id)
			n.commit(events)
		}
	}
}

// generator makes a history of clients at random against the naive store.
type generator struct {
	rnd     *rand.Rand
	n       *naive
	r       Recorder
	now     int64
	values  int
	pending []*flight
	watches []*naiveWatch
	leases  []int64
	shape   shape
}

// shape says what a generated history has.
type shape struct {
	clients, steps, keys int
	watches              int
	whole                bool // one watch on everything, from the beginning
	unknown              float64
	leases               bool
	calm                 bool  // the watch on everything is never compacted away
	step                 int64 // nanoseconds between two steps at most
}

type flight struct {
	number, client int
	request        Request
	state          int // 0 asked, 1 done, 2 given up (may still be done)
	answer         Response
	err            error
}

type naiveWatch struct {
	number int
	w      Watch
	next   int64
	done   bool
}

func (g *generator) key() string { return fmt.Sprintf("k%02d", g.rnd.IntN(g.shape.keys)) }

func (g *generator) span() (string, string) {
	switch g.rnd.IntN(4) {
	case 0:
		return g.key(), ""
	case 1:
		return "k", "l"
	case 2:
		return g.key(), "\x00"
	}
	a, b := g.key(), g.key()
	if a > b {
		a, b = b, a
	}
	return a, b + "x"
}

func (g *generator) lease() int64 {
	if !g.shape.leases || len(g.leases) == 0 || g.rnd.IntN(3) > 0 {
		return 0
	}
	return g.leases[g.rnd.IntN(len(g.leases))]
}

func (g *generator) put() Request {
	g.values++
	return Request{Kind: Put, Key: g.key(), Value: fmt.Sprintf("v%d", g.values), Lease: g.lease(), PrevKV: g.rnd.IntN(2) == 0}
}

func (g *generator) request() Request {
	key, end := g.span()
	switch x := g.rnd.IntN(100); {
	case x < 30:
		return g.put()
	case x < 40:
		if g.rnd.IntN(4) > 0 {
			key, end = g.key(), ""
		}
		return Request{Kind: Delete, Key: key, End: end, PrevKV: g.rnd.IntN(2) == 0}
	case x < 60:
		return g.txn()
	case x < 68 && g.shape.leases:
		return g.aboutLease()
	case x == 68 && g.n.revision > 3:
		r := g.n.revision - int64(g.rnd.IntN(3))
		if g.shape.whole && (g.shape.calm || g.rnd.IntN(20) > 0) { // mostly leaves alone what the watch on everything has not been told
			r = min(r, g.watches[0].next)
		}
		return Request{Kind: Compact, Revision: r}
	}
	r := Request{Kind: Range, Key: key, End: end, Limit: int64(g.rnd.IntN(4)), Serializable: g.rnd.IntN(5) == 0, CountOnly: g.rnd.IntN(10) == 0, KeysOnly: g.rnd.IntN(10) == 0}
	if g.rnd.IntN(6) == 0 {
		r.Revision = max(1, g.n.revision-int64(g.rnd.IntN(10)))
	}
	return r
}

func (g *generator) aboutLease() Request {
	id := int64(len(g.leases) + 1)
	if len(g.leases) > 0 && g.rnd.IntN(2) == 0 {
		id = g.leases[g.rnd.IntN(len(g.leases))]
		if g.rnd.IntN(3) == 0 {
			return Request{Kind: LeaseRevoke, Lease: id}
		}
		return Request{Kind: KeepAlive, Lease: id}
	}
	g.leases = append(g.leases, id)
	return Request{Kind: LeaseGrant, Lease: id, TTL: int64(1 + g.rnd.IntN(5))}
}

func (g *generator) txn() Request {
	key := g.key()
	r := Request{Kind: Txn}
	for range g.rnd.IntN(3) {
		c := Compare{Key: key, Target: []Target{TargetValue, TargetCreate, TargetMod, TargetVersion, TargetLease}[g.rnd.IntN(5)], Result: []string{"=", "!=", "<", ">"}[g.rnd.IntN(4)]}
		if c.Target == TargetValue {
			c.Value = fmt.Sprintf("v%d", g.rnd.IntN(g.values+1))
		} else if kv := g.n.keys[key]; g.rnd.IntN(2) == 0 {
			c.Number = map[Target]int64{TargetCreate: kv.Create, TargetMod: kv.Mod, TargetVersion: kv.Version, TargetLease: kv.Lease}[c.Target]
		}
		if g.rnd.IntN(5) == 0 {
			c.End = key + "9"
		}
		r.Compares = append(r.Compares, c)
	}
	for _, branch := range []*[]Request{&r.Then, &r.Else} {
		used := map[string]bool{}
		for range g.rnd.IntN(4) {
			p := g.put()
			switch {
			case used[p.Key]:
			case g.rnd.IntN(3) == 0:
				*branch = append(*branch, Request{Kind: Delete, Key: p.Key})
			case g.rnd.IntN(3) == 0:
				*branch = append(*branch, Request{Kind: Range, Key: "k", End: "l"})
			case g.rnd.IntN(6) == 0:
				*branch = append(*branch, Request{Kind: Txn, Compares: []Compare{{Key: p.Key, Target: TargetCreate, Result: "=", Number: 0}}, Then: []Request{p}, Else: []Request{{Kind: Range, Key: p.Key}}})
			default:
				*branch = append(*branch, p)
			}
			used[p.Key] = true
		}
	}
	return r
}

func (g *generator) tick() {
	g.now += g.rnd.Int64N(g.shape.step)
	g.n.expire(g.now)
}

func (g *generator) run() History {
	g.n = newNaive()
	if g.shape.whole {
		g.watch(Watch{Key: "\x00", End: "\x00", Start: 1, PrevKV: true})
	}
	busy := map[int]*flight{}
	for range g.shape.steps {
		g.tick()
		client := g.rnd.IntN(g.shape.clients)
		f := busy[client]
		switch {
		case g.rnd.IntN(4) == 0:
			g.tell(false)
		case f == nil:
			r := g.request()
			f = &flight{client: client, request: r, number: g.r.Call(Operation{Client: client, Call: g.now, Request: r})}
			busy[client] = f
			g.pending = append(g.pending, f)
		case f.state == 0 && g.rnd.Float64() < g.shape.unknown:
			g.r.Return(f.number, g.now, Unknown, Response{}, "timeout")
			f.state = 2
			delete(busy, client)
		case f.state == 0:
			f.answer, f.err = g.serve(f.request)
			f.state = 1
			g.forget(f)
			if g.rnd.Float64() < g.shape.unknown {
				g.r.Return(f.number, g.now, Unknown, Response{}, "reset")
				delete(busy, client)
			}
		default:
			if f.err != nil {
				g.r.Return(f.number, g.now, Refused, Response{}, f.err.Error())
			} else {
				g.r.Return(f.number, g.now, Answered, f.answer, "")
			}
			delete(busy, client)
		}
		if len(g.pending) > 0 && g.rnd.IntN(8) == 0 { // what was given up is done late, or never
			if f := g.pending[g.rnd.IntN(len(g.pending))]; f.state == 2 && g.rnd.IntN(2) == 0 {
				g.serve(f.request)
				g.forget(f)
			}
		}
		if len(g.watches) < g.shape.watches && g.rnd.IntN(20) == 0 {
			key, end := g.span()
			w := Watch{Key: key, End: end, PrevKV: g.rnd.IntN(2) == 0, Progress: true, NoPut: g.rnd.IntN(5) == 0, NoDelete: g.rnd.IntN(5) == 0, Fragment: g.rnd.IntN(3) == 0}
			if g.rnd.IntN(2) == 0 {
				w.Start = max(1, g.n.revision-5+g.rnd.Int64N(8))
			}
			g.watch(w)
		}
	}
	g.tick()
	settled := g.now
	g.tell(true)
	h := g.r.Finish(g.now + 1)
	h.End = settled
	return h
}

func (g *generator) forget(f *flight) {
	g.pending = slices.DeleteFunc(g.pending, func(x *flight) bool { return x == f })
}

// serve answers a request; a serializable one as of some time ago.
func (g *generator) serve(r Request) (Response, error) {
	if serializable(&r) && r.Kind == Range && r.Revision == 0 && g.rnd.IntN(2) == 0 {
		old := max(1, g.n.revision-g.rnd.Int64N(10), g.n.compacted)
		old = max(old, 1)
		x := r
		x.Revision = old
		a, err := g.n.do(x, g.now)
		a.Revision = old
		return a, err
	}
	return g.n.do(r, g.now)
}

func (g *generator) watch(w Watch) {
	if w.Start != 0 && w.Start < g.n.compacted {
		w.Start = g.n.compacted
	}
	w.Opened = g.now
	x := &naiveWatch{w: w, number: g.r.Watch(w), next: w.Start}
	g.r.Created(x.number, g.n.revision)
	if w.Start == 0 {
		x.next = g.n.revision + 1
	}
	g.watches = append(g.watches, x)
}

// tell brings watches up to date, some by some revisions, at the end all.
func (g *generator) tell(all bool) {
	for _, x := range g.watches {
		if x.done || !all && g.rnd.IntN(3) > 0 {
			continue
		}
		to := g.n.revision
		if !all && to >= x.next {
			to = x.next + g.rnd.Int64N(to-x.next+1)
		}
		if x.next < g.n.compacted {
			g.r.Respond(x.number, WatchResponse{Time: g.now, Revision: g.n.revision, Canceled: true, CompactRevision: g.n.compacted})
			x.done = true
			continue
		}
		var events []Event
		for r := x.next; r <= to; r++ {
			mine := g.mine(x, g.n.log[r])
			if x.w.Fragment && len(mine) > 1 && g.rnd.IntN(2) == 0 {
				g.r.Respond(x.number, WatchResponse{Time: g.now, Revision: g.n.revision, More: true, Events: append(events, mine[0])})
				mine, events = mine[1:], nil
			}
			events = append(events, mine...)
		}
		if len(events) > 0 {
			g.r.Respond(x.number, WatchResponse{Time: g.now, Revision: g.n.revision, Events: events})
		}
		x.next = max(x.next, to+1)
		if x.w.Progress && to >= x.next-1 && to == g.n.revision && g.rnd.IntN(2) == 0 {
			g.r.Respond(x.number, WatchResponse{Time: g.now, Revision: to, Progress: true})
		}
	}
}

func (g *generator) mine(x *naiveWatch, events []Event) (mine []Event) {
	for _, e := range events {
		if naiveIn(e.KV.Key, x.w.Key, x.w.End) && !(e.Type == PutEvent && x.w.NoPut) && !(e.Type == DeleteEvent && x.w.NoDelete) {
			if !x.w.PrevKV {
				e.Prev = nil
			}
			mine = append(mine, e)
		}
	}
	return mine
}

func generate(seed uint64, s shape) History {
	g := &generator{rnd: rand.New(rand.NewPCG(seed, 4)), shape: s}
	return g.run()
}
