package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// naivePairs is Consul's store as one would write it down first.
type naivePairs struct {
	index    uint64
	pairs    map[string]Pair
	touched  map[string]uint64 // also of what is gone
	sessions map[string]bool
	delayed  map[string]int64
	now      int64
}

func (n *naivePairs) set(o *ConsulOperation, session string, acquired bool) {
	p, ok := n.pairs[o.Key]
	if ok && p.Value == o.Value && p.Flags == o.Flags && p.Session == session {
		return
	}
	n.index++
	if !ok {
		p = Pair{Key: o.Key, Create: n.index}
	}
	p.Value, p.Flags, p.Modify, p.Session = o.Value, o.Flags, n.index, session
	if acquired {
		p.Lock++
	}
	n.pairs[o.Key], n.touched[o.Key] = p, n.index
}

func (n *naivePairs) remove(key string) {
	n.index++
	delete(n.pairs, key)
	n.touched[key] = n.index
}

func (n *naivePairs) read(o *ConsulOperation) {
	o.ReplyIndex = 1
	for _, k := range slices.Sorted(maps.Keys(n.touched)) {
		if k == o.Key || o.Kind == ConsulList && strings.HasPrefix(k, o.Key) {
			o.ReplyIndex = max(o.ReplyIndex, n.touched[k])
			if p, ok := n.pairs[k]; ok {
				o.Pairs = append(o.Pairs, p)
			}
		}
	}
}

// do does a request; it reports whether it is done: a blocking one may have to wait.
func (n *naivePairs) do(o *ConsulOperation) (bool, string) {
	p, there := n.pairs[o.Key]
	o.Done = true
	switch o.Kind {
	case ConsulGet, ConsulList:
		o.Done = false
		if n.read(o); o.Index != 0 && o.ReplyIndex <= o.Index {
			o.Pairs = nil
			return false, ""
		}
	case ConsulPut:
		n.set(o, p.Session, false)
	case ConsulCAS:
		if o.Done = o.Index == 0 && !there || there && o.Index == p.Modify; o.Done {
			n.set(o, p.Session, false)
		}
	case ConsulDelete:
		if there {
			n.remove(o.Key)
		}
	case ConsulDeleteCAS:
		if o.Done = there && o.Index == p.Modify; o.Done {
			n.remove(o.Key)
		}
	case ConsulTree:
		for _, k := range slices.Sorted(maps.Keys(n.pairs)) {
			if strings.HasPrefix(k, o.Key) {
				n.remove(k)
			}
		}
	case ConsulAcquire:
		if !n.sessions[o.Session] {
			return true, "invalid session"
		}
		if o.Done = p.Session == o.Session || p.Session == "" && n.delayed[o.Key] <= n.now; o.Done {
			n.set(o, o.Session, p.Session == "")
		}
	case ConsulRelease:
		if o.Done = there && p.Session == o.Session; o.Done {
			n.set(o, "", false)
		}
	case SessionCreate:
		n.sessions[o.Session] = true
	case SessionDestroy:
		n.sessions[o.Session] = false
		for _, k := range slices.Sorted(maps.Keys(n.pairs)) {
			if p := n.pairs[k]; p.Session == o.Session {
				n.index++
				p.Session, p.Modify = "", n.index
				n.pairs[k], n.touched[k] = p, n.index
				n.delayed[k] = n.now + 15*ms
			}
		}
	}
	return true, ""
}

// generateConsul makes requests of some clients against it.
func generateConsul(seed uint64, steps int) []ConsulOperation {
	rnd := rand.New(rand.NewPCG(seed, 8))
	n := &naivePairs{index: 1, pairs: map[string]Pair{}, touched: map[string]uint64{}, sessions: map[string]bool{}, delayed: map[string]int64{}}
	var r Recorder
	type flight struct {
		number int
		o      ConsulOperation
		done   bool
		text   string
	}
	busy := map[int]*flight{}
	last, seen := map[string]uint64{}, map[string]uint64{}
	kinds := []ConsulKind{ConsulGet, ConsulGet, ConsulList, ConsulPut, ConsulPut, ConsulCAS, ConsulDelete, ConsulDeleteCAS, ConsulTree, ConsulAcquire, ConsulAcquire, ConsulRelease, SessionDestroy}
	for step := range steps {
		n.now += rnd.Int64N(2 * ms)
		client := rnd.IntN(4)
		f := busy[client]
		switch {
		case f == nil:
			o := ConsulOperation{Client: client, Call: n.now, Kind: kinds[rnd.IntN(len(kinds))], Key: []string{"a", "ab", "b"}[rnd.IntN(3)]}
			name := fmt.Sprint(client, o.Kind, o.Key)
			switch o.Kind {
			case ConsulGet, ConsulList:
				if rnd.IntN(2) == 0 {
					o.Index = last[name]
				}
			case ConsulPut, ConsulCAS, ConsulAcquire, ConsulRelease:
				o.Value = fmt.Sprint("v", step)
			}
			if o.Kind == ConsulCAS || o.Kind == ConsulDeleteCAS {
				if o.Index = seen[o.Key]; rnd.IntN(4) == 0 {
					o.Index = []uint64{0, 0, 1000000}[rnd.IntN(3)]
				}
			}
			if o.Kind == ConsulAcquire || o.Kind == ConsulRelease || o.Kind == SessionDestroy {
				o.Session = fmt.Sprint("s", rnd.IntN(3), "-", step/60)
				if known, ok := n.sessions[o.Session]; ok && !known { // ids are not used again
					o.Kind, o.Session = ConsulGet, ""
				} else if !ok {
					o.Kind, o.LockDelay, o.NoChecks, o.Key, o.Value = SessionCreate, 15*ms, true, "", ""
				}
			}
			busy[client] = &flight{number: r.CallConsul(o), o: o}
		case !f.done:
			if f.done, f.text = n.do(&f.o); !f.done && rnd.IntN(3) == 0 { // its wait is over
				f.o.Index, f.done = 0, true
				n.do(&f.o)
			}
			if f.done && rnd.IntN(20) == 0 {
				r.ReturnConsul(f.number, ConsulOperation{Return: n.now, Outcome: Unknown, Error: "reset"})
				delete(busy, client)
			}
		default:
			f.o.Return, f.o.Outcome = n.now, Answered
			if f.text != "" {
				f.o.Outcome, f.o.Error, f.o.Done = Refused, f.text, false
			}
			last[fmt.Sprint(client, f.o.Kind, f.o.Key)] = f.o.ReplyIndex
			for _, p := range f.o.Pairs {
				seen[p.Key] = p.Modify
			}
			r.ReturnConsul(f.number, f.o)
			delete(busy, client)
		}
	}
	return r.Finish(n.now).Consul
}

func TestCorrectConsul(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1000) {
		h := History{Consul: generateConsul(seed, 40+int(seed%400))}
		if r := Check(h, Options{Timeout: 20 * time.Second, WakeAllowance: 100 * time.Millisecond}); !r.OK() {
			t.Fatalf("seed %d:\n%s", seed, r)
		}
	}
}

func asked(client int, kind ConsulKind, call, ret int64, change func(o *ConsulOperation)) ConsulOperation {
	o := ConsulOperation{Client: client, Kind: kind, Call: call * ms, Return: ret * ms, Outcome: Answered, Key: "a"}
	if kind != ConsulGet && kind != ConsulList {
		o.Done = true
	}
	change(&o)
	return o
}

func TestWrongConsul(t *testing.T) {
	t.Parallel()
	pair := func(value string, create, modify, lock uint64, session string) Pair {
		return Pair{Key: "a", Value: value, Create: create, Modify: modify, Lock: lock, Session: session}
	}
	write := func(value string, call int64) ConsulOperation {
		return asked(0, ConsulPut, call, call+5, func(o *ConsulOperation) { o.Value = value })
	}
	read := func(call, ret int64, index, reply uint64, pairs ...Pair) ConsulOperation {
		return asked(1, ConsulGet, call, ret, func(o *ConsulOperation) { o.Index, o.ReplyIndex, o.Pairs = index, reply, pairs })
	}
	session := func(kind ConsulKind, name string, call int64) ConsulOperation {
		return asked(2, kind, call, call+5, func(o *ConsulOperation) {
			o.Key, o.Session = "", name
			if kind == SessionCreate {
				o.LockDelay, o.NoChecks = 1000*ms, true
			}
		})
	}
	lock := func(kind ConsulKind, name string, call int64, done bool) ConsulOperation {
		return asked(2, kind, call, call+5, func(o *ConsulOperation) { o.Session, o.Value, o.Done = name, name+num(call), done })
	}
	for name, c := range map[string]struct {
		rule string
		ops  []ConsulOperation
	}{
		"stale read":          {"consul: not linearizable", []ConsulOperation{write("1", 10), write("2", 20), read(30, 40, 0, 5, pair("1", 5, 5, 0, ""))}},
		"lost write":          {"consul: not linearizable", []ConsulOperation{write("1", 10), read(30, 40, 0, 1)}},
		"value of nobody":     {"consul: not linearizable", []ConsulOperation{write("1", 10), read(30, 40, 0, 5, pair("7", 5, 5, 0, ""))}},
		"index does not grow": {"consul: not linearizable", []ConsulOperation{write("1", 10), read(20, 25, 0, 7, pair("1", 7, 7, 0, "")), write("2", 30), read(40, 45, 0, 6, pair("2", 5, 6, 0, ""))}},
		"cas of an old index": {"consul: not linearizable", []ConsulOperation{write("1", 10), read(20, 25, 0, 5, pair("1", 5, 5, 0, "")), write("2", 30), read(40, 45, 0, 6, pair("2", 5, 6, 0, "")),
			asked(0, ConsulCAS, 50, 55, func(o *ConsulOperation) { o.Index, o.Value = 5, "3" })}},
		"cas refused without need": {"consul: not linearizable", []ConsulOperation{write("1", 10), read(20, 25, 0, 5, pair("1", 5, 5, 0, "")),
			asked(0, ConsulCAS, 50, 55, func(o *ConsulOperation) { o.Index, o.Value, o.Done = 5, "3", false })}},
		"two locks":              {"consul: not linearizable", []ConsulOperation{session(SessionCreate, "s", 1), session(SessionCreate, "t", 2), lock(ConsulAcquire, "s", 10, true), lock(ConsulAcquire, "t", 20, true)}},
		"lock of nobody refused": {"consul: not linearizable", []ConsulOperation{session(SessionCreate, "s", 1), lock(ConsulAcquire, "s", 10, false)}},
		"release by another":     {"consul: not linearizable", []ConsulOperation{session(SessionCreate, "s", 1), lock(ConsulAcquire, "s", 10, true), lock(ConsulRelease, "t", 20, true)}},
		"lock index":             {"consul: not linearizable", []ConsulOperation{session(SessionCreate, "s", 1), lock(ConsulAcquire, "s", 10, true), read(30, 40, 0, 5, pair("s10", 5, 5, 2, "s"))}},
		"two holders":            {"consul: two holders of one lock index", []ConsulOperation{read(30, 40, 0, 5, pair("1", 5, 5, 1, "s")), read(50, 60, 0, 6, pair("2", 5, 6, 1, "t"))}},
		"two contents":           {"consul: two contents of one index", []ConsulOperation{read(30, 40, 0, 5, pair("1", 5, 5, 1, "s")), read(50, 60, 0, 5, pair("2", 5, 5, 1, "s"))}},
		"index of zero":          {"consul: index of zero", []ConsulOperation{read(30, 40, 0, 0)}},
		"index older":            {"consul: index older than its pairs", []ConsulOperation{write("1", 10), read(30, 40, 0, 4, pair("1", 5, 5, 0, ""))}},
		"index back":             {"consul: index goes back", []ConsulOperation{write("1", 10), read(30, 40, 0, 8, pair("1", 5, 5, 0, "")), read(50, 60, 8, 7, pair("1", 5, 5, 0, ""))}},
		"change missed":          {"consul: change missed", []ConsulOperation{write("1", 10), read(20, 25, 0, 5, pair("1", 5, 5, 0, "")), write("2", 100), read(50, 5000, 5, 5, pair("1", 5, 5, 0, ""))}},
		"change late":            {"consul: change told late", []ConsulOperation{write("1", 10), read(20, 25, 0, 5, pair("1", 5, 5, 0, "")), write("2", 100), read(50, 5000, 5, 6, pair("2", 5, 6, 0, ""))}},
		"not asked for":          {"consul: pair that was not asked for", []ConsulOperation{read(20, 25, 0, 5, Pair{Key: "b", Create: 5, Modify: 5})}},
		"lock-delay": {"consul: lock granted during the lock-delay", []ConsulOperation{session(SessionCreate, "s", 1), session(SessionCreate, "t", 2), lock(ConsulAcquire, "s", 10, true),
			session(SessionDestroy, "s", 30), lock(ConsulAcquire, "t", 500, true)}},
		"session ended early": {"consul: session ended before its TTL", []ConsulOperation{asked(2, SessionCreate, 1, 2, func(o *ConsulOperation) { o.Key, o.Session, o.NoChecks, o.TTL = "", "s", true, 10000*ms }),
			lock(ConsulAcquire, "s", 10, true), read(5000, 5010, 0, 9, pair("s10", 5, 9, 1, ""))}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expect(t, Check(History{Consul: c.ops}, Options{}), c.rule, false)
		})
	}
}
