package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/history"
)

// TestShort breaks a real cluster for some seconds: kills, a cut, and the power of all members at once.
func TestShort(t *testing.T) {
	if err := able(); err != nil {
		t.Skip("the laboratory cannot run here: ", err)
	}
	o := options{server: "holdfast-etcd", binary: os.Getenv("HOLDFAST_BIN"), members: 3, clients: 6, length: 30 * time.Second, round: 30 * time.Second, pause: 20 * time.Millisecond, seed: 1, out: t.TempDir()}
	schedule := []fault{{At: 0, Kind: "kill-leader", For: 200 * time.Millisecond, Seed: 1}, {At: 2 * time.Second, Kind: "power-all", For: 100 * time.Millisecond, Seed: 2}, {At: 3 * time.Second, Kind: "cut-leader", For: 2 * time.Second, Seed: 3}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if o.binary == "" {
		o.binary = filepath.Join(o.out, "holdfast")
		if out, err := exec.CommandContext(ctx, "go", "-C", filepath.Join("..", ".."), "build", "-o", o.binary, "./cmd/holdfast").CombinedOutput(); err != nil {
			t.Fatalf("building holdfast: %v\n%s", err, out)
		}
	}
	r, err := o.one(ctx, schedule)
	if err != nil {
		t.Fatal(err)
	}
	r.print(os.Stdout)
	if r.bad() {
		t.Error("something is wrong with the cluster")
	}
	if r.total() != len(schedule) || r.PowerCuts != 3 || r.Hashes != 1 || r.Operations["answered"] < 50 || r.Events < 20 || r.Judged["linearizable reads"] == 0 {
		t.Errorf("the run did not do what it was to do: %+v", r)
	}
}

// small is a history of a writer and a watch of all keys.
func small() history.History {
	put := func(n int64, v string) history.Operation {
		return history.Operation{Client: 1, Call: 100 * n, Return: 100*n + 50, Outcome: history.Answered,
			Request: history.Request{Kind: history.Put, Key: "k", Value: v}, Response: history.Response{Kind: history.Put, Revision: n}}
	}
	event := func(n int64, v string) history.WatchResponse {
		return history.WatchResponse{Time: 100*n + 60, Revision: n, Events: []history.Event{{Type: history.PutEvent, KV: history.KV{Key: "k", Value: v, Create: 2, Mod: n, Version: n - 1}}}}
	}
	return history.History{End: 2000, Operations: []history.Operation{put(2, "a"), put(3, "b"), put(4, "c")},
		Watches: []history.Watch{{Client: 2, Key: allKeys[0], End: allKeys[1], Start: 2, Opened: 1, Created: 1, Responses: []history.WatchResponse{event(2, "a"), event(3, "b"), event(4, "c")}}}}
}

// TestItCanFail: what is corrupted in a good history is found, by the ledger that knows no model and by the judges.
func TestItCanFail(t *testing.T) {
	judge := func(h history.History) (r result) {
		r = newResult()
		for _, v := range append(r.count(h, nil), history.Check(h, history.Options{}).Violations...) {
			r.add(v)
		}
		return r
	}
	if r := judge(small()); r.bad() || r.Events != 3 {
		t.Fatalf("a good history: %+v", r)
	}
	for name, c := range map[string]struct {
		corrupt func(*history.History)
		shows   func(result) bool
	}{
		"an event is missing": {func(h *history.History) { h.Watches[0].Responses = slices.Delete(h.Watches[0].Responses, 1, 2) }, func(r result) bool { return r.Lost == 1 && r.WatchGaps > 0 }},
		"a write is there twice": {func(h *history.History) {
			again := h.Watches[0].Responses[0]
			again.Events = slices.Clone(again.Events)
			again.Events[0].KV.Mod, again.Events[0].KV.Version, again.Revision, again.Time = 5, 4, 5, 600
			h.Watches[0].Responses = append(h.Watches[0].Responses, again)
		}, func(r result) bool { return r.Doubled == 1 }},
		"a read is stale": {func(h *history.History) {
			h.Operations = append(h.Operations, history.Operation{Client: 3, Call: 700, Return: 710, Outcome: history.Answered, Request: history.Request{Kind: history.Range, Key: "k"},
				Response: history.Response{Kind: history.Range, Revision: 3, Count: 1, KVs: []history.KV{{Key: "k", Value: "b", Create: 2, Mod: 3, Version: 2}}}})
		}, func(r result) bool { return r.NonLinearizable > 0 }},
	} {
		h := small()
		c.corrupt(&h)
		if r := judge(h); !c.shows(r) {
			t.Errorf("%s, and the laboratory says: %+v", name, r)
		}
	}
}

// TestPlan: same seed, same schedule; a schedule that was written down reads as the same; kinds are chosen as asked.
func TestPlan(t *testing.T) {
	kinds, err := choose("", 3, true)
	check(t, err)
	one, two := plan(5, kinds, time.Hour), plan(5, kinds, time.Hour)
	if !reflect.DeepEqual(one, two) || len(one) < 300 || reflect.DeepEqual(one, plan(6, kinds, time.Hour)) {
		t.Errorf("%d faults, and they do not depend on the seed alone", len(one))
	}
	met := map[string]bool{}
	for _, f := range one {
		met[f.Kind] = true
	}
	for _, k := range kinds {
		if !met[k.kind] {
			t.Errorf("an hour has no %s", k.kind)
		}
	}
	var text bytes.Buffer
	check(t, writeSchedule(&text, one))
	read, err := readSchedule(&text)
	check(t, err)
	if !reflect.DeepEqual(one, read) {
		t.Error("a schedule changes by being written down")
	}
	for _, bad := range []string{`{"kind":"earthquake"}`, `{"kind":"kill-one","where":1}`, `{`} {
		if _, err := readSchedule(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is taken for a schedule", bad)
		}
	}
	for list, want := range map[string][]string{"kill-l": {"kill-leader"}, "pause,-pause-one": {"pause-leader", "pause-majority"}, "clock": {"clock-step", "clock-drift"}, "cut-ring": nil} {
		got, err := choose(list, 3, true)
		check(t, err)
		var names []string
		for _, k := range got {
			names = append(names, k.kind)
		}
		if !slices.Equal(names, want) {
			t.Errorf("-faults %s with three members: %v, want %v", list, names, want)
		}
	}
	if _, err := choose("kil", 3, true); err != nil {
		t.Error(err)
	}
	if _, err := choose("earthquake", 3, true); err == nil {
		t.Error("a fault that does not exist is chosen")
	}
	if clocks, _ := choose("clock", 3, false); len(clocks) != 0 {
		t.Error("the clock of a server that is not ours is stepped")
	}
	check(t, writeSchedule(io.Discard, one))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
