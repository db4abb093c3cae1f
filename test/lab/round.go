package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/history"
)

// laboratory is one cluster under faults and load, and what was found of it.
type laboratory struct {
	o        options
	c        *cluster
	l        *load
	rec      *recoveries
	watchers []*watcher
	faults   *injector
	schedule []fault
	result   result
	mu       sync.Mutex // of result, while things run

	restWatchers func()
	before       int // violations before this round
}

// run goes round by round until the schedule or the time is over, or something is wrong that cannot be gone on with.
func (lab *laboratory) run(ctx context.Context) error {
	start, next := time.Now(), 0
	var last *history.History
	for round := 1; ctx.Err() == nil; round++ {
		lab.l.round, lab.before = round, lab.result.Violations
		initial, err := lab.begin(ctx, last)
		if err != nil {
			return err
		}
		stop := lab.load(ctx)
		next, err = lab.disturb(ctx, next, start.Add(lab.o.length))
		stop()
		if err != nil && ctx.Err() == nil {
			lab.wrong("laboratory", err.Error())
		}
		h, err := lab.end(ctx)
		if ctx.Err() != nil {
			return ctx.Err() // nothing is to be made of a round that was broken off
		}
		if err != nil {
			lab.wrong("availability", err.Error())
			lab.judge(h, round)
			return nil // nothing that comes later could be judged
		}
		lab.result.Rounds = round
		lab.judge(h, round)
		last = &h
		lab.say("round %d: %d operations from revision %d on, %d faults so far, %.0f s of %v", round, len(h.Operations), initial.Revision, lab.result.total(), time.Since(start).Seconds(), lab.o.length)
		if time.Since(start) >= lab.o.length || next >= len(lab.schedule) {
			return nil
		}
	}
	return ctx.Err()
}

// begin takes down what the store holds while nobody writes, and starts a new history with that.
func (lab *laboratory) begin(ctx context.Context, last *history.History) (history.Initial, error) {
	initial, err := lab.initial(ctx)
	if err != nil {
		return initial, fmt.Errorf("reading what the store holds: %w", err)
	}
	lab.l.first = initial.Revision
	t := lab.l.tape
	t.gate.Lock()
	defer t.gate.Unlock()
	t.rec = &history.Recorder{}
	t.rec.Begin(fmt.Sprintf("laboratory, %s, %d members, seed %d, round %d", lab.o.server, lab.o.members, lab.o.seed, lab.l.round), initial)
	if last != nil {
		for _, o := range leftOver(last) {
			t.rec.Call(o)
		}
	}
	for _, w := range lab.watchers {
		w.next.Store(initial.Revision + 1) // one that was ahead is told some of it again: in this history it is the first time
	}
	return initial, nil
}

// leftOver is what a round leaves to the next: writes whose outcome is unknown may still be done. One whose value a watch has told
// has been.
func leftOver(h *history.History) (left []history.Operation) {
	told := map[string]bool{}
	for _, w := range h.Watches {
		for _, r := range w.Responses {
			for _, e := range r.Events {
				told[e.KV.Value] = true
			}
		}
	}
	for _, o := range h.Operations {
		if o.Outcome == history.Unknown && writes(o.Request) && !slices.ContainsFunc(values(o.Request), func(v string) bool { return told[v] }) {
			left = append(left, o)
		}
	}
	return left
}

// values are what a request may write.
func values(r history.Request) (all []string) {
	if r.Kind == history.Put {
		all = append(all, r.Value)
	}
	for _, inner := range append(append([]history.Request(nil), r.Then...), r.Else...) {
		all = append(all, values(inner)...)
	}
	return all
}

// initial reads the whole store as it was where the watches have got to. Nobody writes meanwhile but leases that run out.
func (lab *laboratory) initial(ctx context.Context) (initial history.Initial, err error) {
	m := lab.c.all()[0]
	cl, err := lab.c.client(m.slot)
	if err != nil {
		return initial, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leases, err := cl.Leases(ctx)
	if err != nil {
		return initial, err
	}
	for _, l := range leases.Leases {
		initial.Leases = append(initial.Leases, int64(l.ID))
	}
	for _, w := range lab.watchers { // what they are told from here on is judged against what was there
		if at := w.next.Load() - 1; at > 0 && (initial.Revision == 0 || at < initial.Revision) {
			initial.Revision = at
		}
	}
	all, err := cl.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(initial.Revision))
	if err != nil {
		return initial, err
	}
	if initial.Revision == 0 {
		initial.Revision = all.Header.Revision
	}
	initial.KVs = pairs(all.Kvs)
	for _, kv := range initial.KVs { // one that has run out since then is in no list
		if kv.Lease != 0 && !slices.Contains(initial.Leases, kv.Lease) {
			initial.Leases = append(initial.Leases, kv.Lease)
		}
	}
	low, high := int64(1), initial.Revision // the lowest revision that can be read
	for low < high {
		middle := (low + high) / 2
		switch _, err := cl.Get(ctx, "ready", clientv3.WithRev(middle)); {
		case err == nil:
			high = middle
		case errors.Is(err, rpctypes.ErrCompacted):
			low = middle + 1
		default:
			return initial, err
		}
	}
	if low > 1 {
		initial.Compacted = low
	}
	return initial, nil
}

// load starts clients and watchers; what it returns lets the clients come to rest.
func (lab *laboratory) load(ctx context.Context) (stop func()) {
	clients, restClients := context.WithCancel(ctx)
	watching, restWatchers := context.WithCancel(ctx)
	var working, followed sync.WaitGroup
	lab.l.run(clients, lab.o.clients, &working)
	lab.others(clients, &working)
	for _, w := range lab.watchers {
		followed.Go(func() { w.follow(watching) })
	}
	lab.restWatchers = func() { restWatchers(); followed.Wait() }
	return func() { restClients(); working.Wait() }
}

// disturb does the faults of one round, from the schedule's next on.
func (lab *laboratory) disturb(ctx context.Context, next int, over time.Time) (int, error) {
	var errs error
	wait(ctx, time.Second)
	for end := time.Now().Add(lab.o.round); ctx.Err() == nil && next < len(lab.schedule) && time.Now().Before(end) && time.Now().Before(over); next++ {
		f := lab.schedule[next]
		errs = errors.Join(errs, lab.faults.run(ctx, f))
		if next+1 < len(lab.schedule) {
			wait(ctx, max(0, lab.schedule[next+1].At-f.At-f.For))
		}
	}
	return next, errs
}

// recoverWithin is how long a cluster may take to be whole again after the last fault.
const recoverWithin = 90 * time.Second

// end waits until the cluster is whole, writes a last key, lets the watchers get there, and compares the members.
func (lab *laboratory) end(ctx context.Context) (history.History, error) {
	t := lab.l.tape
	var err error
	for _, m := range lab.c.all() {
		if err = lab.c.ready(ctx, m, recoverWithin); err != nil {
			err = fmt.Errorf("after the last fault of the round: %w", err)
			break
		}
	}
	var final int64
	for end := time.Now().Add(recoverWithin); err == nil && final == 0 && ctx.Err() == nil; wait(ctx, 100*time.Millisecond) {
		c := lab.l.client()
		resp, outcome := c.ask(ctx, history.Request{Kind: history.Put, Key: "end", Value: lab.l.unique()})
		if outcome == history.Answered {
			final = resp.Revision
		} else if time.Now().After(end) {
			err = fmt.Errorf("no write is acknowledged within %v after the last fault of the round: %s", recoverWithin, c.why)
		}
	}
	for end := time.Now().Add(recoverWithin); err == nil && ctx.Err() == nil; wait(ctx, 50*time.Millisecond) {
		behind := slices.IndexFunc(lab.watchers, func(w *watcher) bool { return w.next.Load() <= final })
		if behind < 0 {
			break
		}
		if time.Now().After(end) {
			err = fmt.Errorf("the watch of %q is told events or progress up to revision %d and no further within %v; the store is at %d", lab.watchers[behind].span, lab.watchers[behind].next.Load()-1, recoverWithin, final)
		}
	}
	if err == nil && ctx.Err() == nil {
		err = lab.equal(ctx)
	}
	lab.restWatchers()
	t.gate.Lock()
	defer t.gate.Unlock()
	return t.rec.Finish(t.now()), err
}

// equal compares what the members keep.
func (lab *laboratory) equal(ctx context.Context) error {
	if h, ok := lab.c.kind.(house); ok {
		out, err := h.run(ctx, lab.c, "debug", "hashes")
		if err != nil {
			return fmt.Errorf("members differ, or cannot be compared: %w\n%s", err, out)
		}
		lab.result.Hashes++
		return nil
	}
	var last map[string]string
	for range 20 { // a member may not have applied the compaction yet that another has
		last = map[string]string{}
		var revision int64
		for _, m := range lab.c.all() {
			cl, err := lab.c.client(m.slot)
			if err != nil {
				return err
			}
			call, done := context.WithTimeout(ctx, 20*time.Second)
			if revision == 0 {
				if now, err := cl.Get(call, "ready"); err == nil {
					revision = now.Header.Revision
				}
			}
			_, err = cl.Get(call, "ready") // it has applied the revision
			var hash *clientv3.HashKVResponse
			if err == nil {
				hash, err = cl.HashKV(call, lab.c.endpoint(m), revision)
			}
			done()
			if err != nil {
				return fmt.Errorf("the hash of %s: %w", m.name, err)
			}
			last[m.name] = fmt.Sprintf("%08x since %d", hash.Hash, hash.CompactRevision)
		}
		if len(slices.Compact(slices.Sorted(maps.Values(last)))) == 1 {
			lab.result.Hashes++
			return nil
		}
		wait(ctx, 500*time.Millisecond)
	}
	return fmt.Errorf("members differ: %v", last)
}

// judge holds the history against what a correct cluster can have shown.
func (lab *laboratory) judge(h history.History, round int) {
	began := time.Now()
	found := lab.result.count(h, lab.stored)
	report := history.Check(h, history.Options{Timeout: 3 * time.Minute, RevocationAllowance: revocationAllowance, WakeAllowance: wakeAllowance})
	found = append(found, report.Violations...)
	for _, v := range found {
		lab.wrongAs(v)
	}
	for _, n := range report.More {
		lab.result.Violations += n
	}
	for _, u := range report.Undecided {
		lab.result.Undecided = append(lab.result.Undecided, fmt.Sprintf("round %d: %s", round, u))
	}
	for name, n := range report.Counts {
		lab.result.Judged[name] += n
	}
	if lab.result.Violations > lab.before || len(report.Undecided) > 0 || lab.o.keep {
		name := filepath.Join(lab.o.out, fmt.Sprintf("%s-seed%d-round%d.history", lab.o.server, lab.o.seed, round))
		if err := h.Save(name); err != nil {
			lab.say("the history could not be kept: %v", err)
		} else {
			lab.say("history kept: %s", name)
			lab.result.Kept = append(lab.result.Kept, name)
		}
	}
	lab.say("judged in %.1f s: %d violations, %d undecided", time.Since(began).Seconds(), len(found), len(report.Undecided))
}

// stored asks for the value of a key at a revision; what cannot be read is not there.
func (lab *laboratory) stored(key string, revision int64) string {
	for _, m := range lab.c.all() {
		cl, err := lab.c.client(m.slot)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
		got, err := cl.Get(ctx, key, clientv3.WithRev(revision))
		cancel()
		if err == nil && len(got.Kvs) == 1 {
			return string(got.Kvs[0].Value)
		}
	}
	return ""
}

// wrongAs notes a violation.
func (lab *laboratory) wrongAs(v history.Violation) {
	lab.result.add(v)
	if lab.result.Violations > mostWords {
		return
	}
	lab.say("VIOLATION %s: %s: %s", v.Judge, v.Rule, strings.ReplaceAll(v.Words, "\n", "\n    "))
}

func (lab *laboratory) wrong(judge, words string) {
	lab.mu.Lock()
	defer lab.mu.Unlock()
	lab.wrongAs(history.Violation{Judge: judge, Rule: judge, Words: words})
}
