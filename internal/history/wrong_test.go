package history

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The histories of this file are made by hand. Each holds exactly one thing that a correct cluster cannot have shown.

const ms = int64(time.Millisecond)

func done(client int, call, ret int64, r Request, a Response) Operation {
	return Operation{Client: client, Call: call * ms, Return: ret * ms, Outcome: Answered, Request: r, Response: a}
}

func lost(client int, call int64, r Request) Operation {
	return Operation{Client: client, Call: call * ms, Request: r}
}

func put(client int, call, ret int64, key, value string, revision int64) Operation {
	return done(client, call, ret, Request{Kind: Put, Key: key, Value: value}, Response{Revision: revision})
}

func get(client int, call, ret int64, key string, revision int64, kvs ...KV) Operation {
	return done(client, call, ret, Request{Kind: Range, Key: key}, Response{Revision: revision, KVs: kvs, Count: int64(len(kvs))})
}

func kv(key, value string, create, mod, version int64) KV {
	return KV{Key: key, Value: value, Create: create, Mod: mod, Version: version}
}

func told(time, revision int64, events ...Event) WatchResponse {
	return WatchResponse{Time: time * ms, Revision: revision, Events: events}
}

func wasPut(key, value string, create, mod, version int64) Event {
	return Event{Type: PutEvent, KV: kv(key, value, create, mod, version)}
}

func wasDeleted(key string, mod int64) Event {
	return Event{Type: DeleteEvent, KV: KV{Key: key, Mod: mod}}
}

func everything(answers ...WatchResponse) Watch {
	return Watch{Key: "\x00", End: "\x00", Start: 1, Created: 1, Responses: answers}
}

// correct is a small history with which nothing is wrong: a=1 (2), b=1 (3), a=2 (4), b deleted (5).
func correct() History {
	return History{
		Operations: []Operation{
			put(0, 10, 20, "a", "1", 2),
			put(1, 30, 40, "b", "1b", 3),
			put(0, 50, 60, "a", "2", 4),
			done(1, 70, 80, Request{Kind: Delete, Key: "b", PrevKV: true}, Response{Revision: 5, Deleted: 1, Prev: []KV{kv("b", "1b", 3, 3, 1)}}),
			get(2, 90, 100, "a", 5, kv("a", "2", 2, 4, 2)),
			done(2, 110, 120, Request{Kind: Range, Key: "a", Serializable: true}, Response{Revision: 3, KVs: []KV{kv("a", "1", 2, 2, 1)}, Count: 1}),
		},
		Watches: []Watch{everything(
			told(25, 2, wasPut("a", "1", 2, 2, 1)),
			told(85, 5, wasPut("b", "1b", 3, 3, 1), wasPut("a", "2", 2, 4, 2), wasDeleted("b", 5)),
		)},
	}
}

// more watches that nothing is wrong with, on a alone.
func onA(answers ...WatchResponse) Watch {
	return Watch{Key: "a", Start: 2, Created: 1, Responses: answers}
}

type wrongCase struct {
	name    string
	rule    string // judge: rule
	change  func(h *History, o *Options)
	several bool // the same mistake breaks other rules too
}

func TestWrongHistories(t *testing.T) {
	t.Parallel()
	if r := Check(correct(), Options{}); !r.OK() {
		t.Fatalf("the history that the others are made from is wrong:\n%s", r)
	}
	for _, group := range [][]wrongCase{wrongOrders, wrongWatches, wrongLeases} {
		for _, c := range group {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				h, o := correct(), Options{}
				c.change(&h, &o)
				r := Check(h, o)
				expect(t, r, c.rule, c.several)
			})
		}
	}
}

// expect holds that a report names a rule, and no other.
func expect(t *testing.T, r Report, rule string, several bool) {
	t.Helper()
	var found []string
	for _, v := range r.Violations {
		found = append(found, v.Judge+": "+v.Rule)
	}
	if !slices.Contains(found, rule) || !several && len(slices.Compact(found)) != 1 {
		t.Fatalf("want %q, got %q\n%s", rule, found, r)
	}
	if text := r.String(); !strings.Contains(text, rule) {
		t.Fatalf("the text does not name %q:\n%s", rule, text)
	}
}

var wrongOrders = []wrongCase{
	{name: "stale read", rule: "linearizability: stale read", change: func(h *History, _ *Options) {
		h.Operations[4].Response = Response{Revision: 3, KVs: []KV{kv("a", "1", 2, 2, 1)}, Count: 1}
	}},
	{name: "stale read after an event", rule: "linearizability: stale read", change: func(h *History, _ *Options) {
		h.Operations = []Operation{lost(0, 10, Request{Kind: Put, Key: "a", Value: "1"}), get(1, 30, 40, "a", 1)}
		h.Watches = []Watch{everything(told(25, 2, wasPut("a", "1", 2, 2, 1)))}
	}},
	{name: "read of what was never written", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations[4].Response.KVs[0].Value = "3"
	}},
	{name: "count", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations[4].Response.Count = 2
	}},
	{name: "more", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations[4].Response.More = true
	}},
	{name: "previous value of a deletion", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations[3].Response.Prev[0].Version = 2
	}},
	{name: "revision goes back", rule: "linearizability: revision goes back in real time", several: true, change: func(h *History, _ *Options) {
		h.Watches = nil
		h.Operations = []Operation{put(0, 10, 20, "a", "1", 3), put(0, 30, 40, "b", "1", 2)}
	}},
	{name: "two writes of one revision", rule: "linearizability: two writes of one revision", several: true, change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, put(3, 15, 85, "c", "1", 4))
	}},
	{name: "write done twice", rule: "linearizability: write done twice", several: true, change: func(h *History, _ *Options) {
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(125, 6, wasPut("a", "2", 2, 6, 3)))
	}},
	{name: "refused write done", rule: "linearizability: refused write done", several: true, change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, Operation{Call: 110 * ms, Return: 115 * ms, Outcome: Refused, Error: "too many requests", Request: Request{Kind: Put, Key: "c", Value: "9"}})
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(125, 6, wasPut("c", "9", 6, 6, 1)))
	}},
	{name: "events that nobody wrote", rule: "linearizability: events that nobody wrote", change: func(h *History, _ *Options) {
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(125, 6, wasDeleted("a", 6)))
	}},
	{name: "done twice, without a value", rule: "linearizability: events that nobody wrote", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, lost(3, 100, Request{Kind: Delete, Key: "a"}), put(3, 130, 140, "a", "3", 7))
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(145, 8, wasDeleted("a", 6), wasPut("a", "3", 7, 7, 1), wasDeleted("a", 8)))
	}},
	{name: "done before it was asked", rule: "linearizability: events that nobody wrote", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, lost(3, 130, Request{Kind: Delete, Key: "a"}))
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(125, 6, wasDeleted("a", 6)))
	}},
	{name: "revision that nobody wrote", rule: "linearizability: revision that nobody wrote", change: func(h *History, _ *Options) {
		h.Watches = nil
		h.Operations = append(h.Operations, get(2, 130, 140, "b", 6))
	}},
	{name: "event log contradicts the write", rule: "linearizability: event log contradicts the write", several: true, change: func(h *History, _ *Options) {
		h.Watches[0].Responses[1].Events[1].KV.Value = "two"
	}},
	{name: "acknowledged write missing", rule: "watch: acknowledged write missing in the event log", change: func(h *History, _ *Options) {
		h.Watches[0].Responses[1].Events = slices.Delete(h.Watches[0].Responses[1].Events, 1, 2)
	}},
	{name: "two contents of one revision", rule: "watch: two contents of one revision", several: true, change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(90, 4, wasPut("a", "1", 2, 2, 1), wasPut("a", "two", 2, 4, 2))))
	}},
	{name: "comparison came out wrong", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, done(3, 130, 140, Request{Kind: Txn, Compares: []Compare{{Key: "a", Target: TargetMod, Result: "=", Number: 2}}, Then: []Request{{Kind: Range, Key: "b"}}}, Response{Revision: 5, Succeeded: true, Responses: []Response{{}}}))
	}},
	{name: "lost update", rule: "linearizability: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Watches = nil
		for i := range int64(2) { // both saw mod 4, and both were told that they replaced it
			h.Operations = append(h.Operations, done(3+int(i), 130, 150+i, Request{Kind: Txn, Compares: []Compare{{Key: "a", Target: TargetMod, Result: "=", Number: 4}}, Then: []Request{{Kind: Put, Key: "a", Value: "x" + num(i)}}}, Response{Revision: 6 + i, Succeeded: true, Responses: []Response{{}}}))
		}
	}},
	{name: "answer without a revision", rule: "linearizability: answer without a revision", change: func(h *History, _ *Options) {
		h.Operations[4].Response.Revision = 0
	}},
	{name: "put with a lease that was revoked", rule: "linearizability: not linearizable", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations,
			done(3, 130, 140, Request{Kind: LeaseGrant, Lease: 7, TTL: 60}, Response{Lease: 7, TTL: 60}),
			done(3, 150, 160, Request{Kind: LeaseRevoke, Lease: 7}, Response{}),
			done(3, 170, 180, Request{Kind: Put, Key: "c", Value: "9", Lease: 7}, Response{Revision: 6}))
	}},
	{name: "read of what was compacted", rule: "linearizability: not linearizable", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, done(3, 130, 140, Request{Kind: Compact, Revision: 5}, Response{}),
			done(3, 150, 160, Request{Kind: Range, Key: "a", Revision: 3}, Response{Revision: 5, KVs: []KV{kv("a", "1", 2, 2, 1)}, Count: 1}))
	}},
	{name: "serializable read of what no revision held", rule: "serializable: answer contradicts its revision", change: func(h *History, _ *Options) {
		h.Operations[5].Response.KVs[0] = kv("a", "2", 2, 4, 2)
	}},
	{name: "serializable read from the future", rule: "linearizability: revision goes back in real time", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, done(4, 130, 140, Request{Kind: Range, Key: "c", Serializable: true}, Response{Revision: 6, KVs: []KV{kv("c", "9", 6, 6, 1)}, Count: 1}), put(3, 150, 160, "c", "9", 6))
	}},
}

var wrongWatches = []wrongCase{
	{name: "gap", rule: "watch: gap in its events", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, put(0, 130, 140, "a", "3", 6))
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(145, 6, wasPut("a", "3", 2, 6, 3)))
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1)), told(150, 6, wasPut("a", "3", 2, 6, 3))))
	}},
	{name: "start", rule: "watch: events missing from where it starts", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "from before its start", rule: "watch: event from before its start", change: func(h *History, _ *Options) {
		w := onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2)))
		w.Start = 3
		h.Watches = append(h.Watches, w)
	}},
	{name: "twice", rule: "watch: event told twice", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2)), told(96, 5, wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "order", rule: "watch: events out of order", several: true, change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "2", 2, 4, 2), wasPut("a", "1", 2, 2, 1))))
	}},
	{name: "atomic", rule: "watch: revision split over responses", several: true, change: func(h *History, _ *Options) {
		twoKeys(h)
		h.Watches = append(h.Watches, Watch{Key: "c", End: "e", Start: 6, Created: 1, Responses: []WatchResponse{told(150, 6, wasPut("c", "x", 6, 6, 1)), told(151, 6, wasPut("d", "y", 6, 6, 1))}})
	}},
	{name: "part of a revision", rule: "watch: revision told in part", change: func(h *History, _ *Options) {
		twoKeys(h)
		h.Watches = append(h.Watches, Watch{Key: "c", End: "e", Start: 6, Created: 1, Responses: []WatchResponse{told(150, 6, wasPut("c", "x", 6, 6, 1))}})
	}},
	{name: "order within a revision", rule: "watch: events out of order", change: func(h *History, _ *Options) {
		twoKeys(h)
		h.Watches = append(h.Watches, Watch{Key: "c", End: "e", Start: 6, Created: 1, Responses: []WatchResponse{told(150, 6, wasPut("d", "y", 6, 6, 1), wasPut("c", "x", 6, 6, 1))}})
	}},
	{name: "fragment", rule: "watch: fragment that was not asked for", change: func(h *History, _ *Options) {
		twoKeys(h)
		first := told(150, 6, wasPut("c", "x", 6, 6, 1))
		first.More = true
		h.Watches = append(h.Watches, Watch{Key: "c", End: "e", Start: 6, Created: 1, Responses: []WatchResponse{first, told(151, 6, wasPut("d", "y", 6, 6, 1))}})
	}},
	{name: "bookmark", rule: "watch: event after its bookmark", several: true, change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1)), WatchResponse{Time: 90 * ms, Revision: 5, Progress: true}, told(95, 5, wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "progress too far", rule: "watch: gap in its events", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1)), WatchResponse{Time: 90 * ms, Revision: 5, Progress: true}))
	}},
	{name: "progress back", rule: "watch: progress goes back", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2)), WatchResponse{Time: 96 * ms, Revision: 3, Progress: true}))
	}},
	{name: "header", rule: "watch: header older than its events", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 3, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "previous value", rule: "watch: wrong previous value", change: func(h *History, _ *Options) {
		e, before := wasPut("a", "2", 2, 4, 2), kv("a", "0", 2, 2, 1)
		e.Prev = &before
		h.Watches = append(h.Watches, Watch{Key: "a", Start: 3, Created: 1, PrevKV: true, Responses: []WatchResponse{told(95, 5, e)}})
	}},
	{name: "no previous value", rule: "watch: wrong previous value", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, Watch{Key: "a", Start: 3, Created: 1, PrevKV: true, Responses: []WatchResponse{told(95, 5, wasPut("a", "2", 2, 4, 2))}})
	}},
	{name: "filter", rule: "watch: event that its filter excludes", change: func(h *History, _ *Options) {
		w := onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2)))
		w.NoPut = true
		h.Watches = append(h.Watches, w)
	}, several: true},
	{name: "range", rule: "watch: event outside its range", several: true, change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("b", "1b", 3, 3, 1), wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "canceled without need", rule: "watch: canceled without need", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1)), WatchResponse{Time: 95 * ms, Revision: 5, Canceled: true, CompactRevision: 3}))
	}},
	{name: "after its end", rule: "watch: told after it was canceled", change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1)), WatchResponse{Time: 90 * ms, Revision: 5, Canceled: true}, told(95, 5, wasPut("a", "2", 2, 4, 2))))
	}},
	{name: "never told", rule: "watch: gap in its events", change: func(h *History, o *Options) {
		o.SettledAt = 130 * ms
		h.Watches = append(h.Watches, onA(told(25, 2, wasPut("a", "1", 2, 2, 1))))
	}},
	{name: "event that did not happen", rule: "watch: two contents of one revision", several: true, change: func(h *History, _ *Options) {
		h.Watches = append(h.Watches, onA(told(95, 5, wasPut("a", "1", 2, 2, 1), wasPut("a", "2", 2, 4, 2), wasDeleted("a", 5))))
	}},
	{name: "all events of a revision lost", rule: "watch: gap in its events", several: true, change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations, lost(0, 130, Request{Kind: Put, Key: "c", Value: "x"}), put(0, 150, 160, "d", "y", 7))
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(165, 7, wasPut("d", "y", 7, 7, 1)))
	}},
}

// twoKeys adds a transaction that puts c and d at revision 6.
func twoKeys(h *History) {
	h.Operations = append(h.Operations, done(3, 130, 140, Request{Kind: Txn, Then: []Request{{Kind: Put, Key: "c", Value: "x"}, {Kind: Put, Key: "d", Value: "y"}}}, Response{Revision: 6, Succeeded: true, Responses: []Response{{}, {}}}))
	h.Watches[0].Responses = append(h.Watches[0].Responses, told(145, 6, wasPut("c", "x", 6, 6, 1), wasPut("d", "y", 6, 6, 1)))
}

// leased adds a lease of 2 s, renewed at 1 s, and a key that hangs on it, seen gone at a time in milliseconds.
func leased(h *History, gone int64) {
	h.Operations = append(h.Operations,
		done(3, 130, 140, Request{Kind: LeaseGrant, Lease: 7, TTL: 2}, Response{Lease: 7, TTL: 2}),
		done(3, 150, 160, Request{Kind: Put, Key: "c", Value: "x", Lease: 7}, Response{Revision: 6}),
		done(3, 1000, 1010, Request{Kind: KeepAlive, Lease: 7}, Response{TTL: 2}))
	c := kv("c", "x", 6, 6, 1)
	c.Lease = 7
	h.Watches[0].Responses = append(h.Watches[0].Responses, told(165, 6, Event{Type: PutEvent, KV: c}))
	if gone > 0 {
		h.Watches[0].Responses = append(h.Watches[0].Responses, told(gone, 7, wasDeleted("c", 7)))
	}
}

var wrongLeases = []wrongCase{
	{name: "expired early", rule: "lease: expired before its TTL", change: func(h *History, _ *Options) { leased(h, 2500) }},
	{name: "alive too long", rule: "lease: alive after its TTL", change: func(h *History, o *Options) {
		leased(h, 0)
		o.ExpiryAllowance = 3 * time.Second
		c := kv("c", "x", 6, 6, 1)
		c.Lease = 7
		h.Operations = append(h.Operations, get(1, 7000, 7010, "c", 6, c))
	}},
	{name: "never ended", rule: "lease: alive after its TTL", change: func(h *History, o *Options) {
		leased(h, 0)
		o.ExpiryAllowance, o.SettledAt = 3*time.Second, 7000*ms
	}},
	{name: "renewed after its end", rule: "lease: renewed after it was revoked", change: func(h *History, _ *Options) {
		h.Operations = append(h.Operations,
			done(3, 130, 140, Request{Kind: LeaseGrant, Lease: 7, TTL: 2}, Response{Lease: 7, TTL: 2}),
			done(3, 150, 160, Request{Kind: LeaseRevoke, Lease: 7}, Response{}),
			done(3, 170, 180, Request{Kind: KeepAlive, Lease: 7}, Response{TTL: 2}))
	}},
	{name: "two holders", rule: "lock: two holders", change: func(h *History, o *Options) { locked(h, o, 7) }},
	{name: "token goes back", rule: "lock: fencing token goes back", several: true, change: func(h *History, o *Options) { locked(h, o, 7, 6) }},
	{name: "revoked certificate", rule: "revocation: answered after the revocation", change: func(h *History, o *Options) {
		o.RevocationAllowance = 5 * time.Millisecond
		h.Revocations = []Revocation{{Certificate: "mallory", Call: 70 * ms, Return: 80 * ms, Outcome: Answered}}
		h.Operations[4].Certificate = "mallory"
	}},
	{name: "revoked watcher", rule: "revocation: told after the revocation", change: func(h *History, _ *Options) {
		h.Revocations = []Revocation{{Certificate: "mallory", Call: 30 * ms, Return: 40 * ms, Outcome: Answered}}
		h.Watches[0].Certificate = "mallory"
	}},
}

// locked adds a lock whose keys are created at 6 and 7, and writes that are guarded by those tokens, in that order.
func locked(h *History, o *Options, tokens ...int64) {
	o.Locks = []string{"lock/"}
	h.Watches = nil
	h.Operations = append(h.Operations, put(3, 130, 140, "lock/x", "x", 6), put(4, 150, 160, "lock/y", "y", 7))
	names := map[int64]string{6: "lock/x", 7: "lock/y"}
	for i, token := range tokens {
		n := int64(i)
		h.Operations = append(h.Operations, done(5, 200+10*n, 205+10*n, Request{Kind: Txn, Compares: []Compare{{Key: names[token], Target: TargetCreate, Result: "=", Number: token}}, Then: []Request{{Kind: Put, Key: "guarded", Value: num(token)}}}, Response{Revision: 8 + n, Succeeded: true, Responses: []Response{{}}}))
	}
}
