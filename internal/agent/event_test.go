package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fault"
)

func TestEventIndex(t *testing.T) {
	t.Parallel()
	// Measured on Consul: the event's ID and the X-Consul-Index of the list that ends with it.
	if got := eventIndex("2414f88d-60f1-8e95-e26f-4bb295960995"); got != 14302222128926656256 {
		t.Errorf("%d", got)
	}
	for _, id := range []string{"", "x", strings.Repeat("z", 32), strings.Repeat("0", 32)} {
		if eventIndex(id) != 1 {
			t.Errorf("%q: an index must never be 0, and a foreign id has none", id)
		}
	}
}

func TestRing(t *testing.T) {
	t.Parallel()
	a := &Agent{events: newRing()}
	if events, index := a.Events(""); len(events) != 0 || index != 1 {
		t.Errorf("empty: %v %d", events, index)
	}
	id := func(i int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012x", i) }
	for i := 1; i <= 300; i++ {
		a.events.add(Event{ID: id(i), Name: []string{"even", "odd"}[i%2]})
	}
	events, index := a.Events("")
	if len(events) != 256 || events[0].ID != id(45) || events[255].ID != id(300) || index != 300 {
		t.Errorf("%d events from %s to %s, index %d", len(events), events[0].ID, events[len(events)-1].ID, index)
	}
	if events, index = a.Events("odd"); len(events) != 128 || index != 299 {
		t.Errorf("%d odd events, index %d", len(events), index)
	}
	type answer struct {
		n     int
		index uint64
	}
	got := make(chan answer, 1)
	go func() {
		events, index := a.AwaitEvents(context.Background(), "odd", 299)
		got <- answer{len(events), index}
	}()
	a.events.add(Event{ID: id(302), Name: "even"}) // does not wake who waits for odd ones
	a.events.add(Event{ID: id(303), Name: "odd"})
	if g := <-got; g.index != 303 {
		t.Errorf("woken with %+v", g)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, index := a.AwaitEvents(ctx, "", 303); index != 303 {
		t.Errorf("index %d", index)
	}
}

func TestEventsTravel(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	k := key(t, 32)
	a, b := build(t, gossiping(t, d, "node-01", k)), build(t, gossiping(t, d, "node-02", k))
	start(t, a)
	start(t, b)
	joined(t, a, b)
	registered(t, b, `{"Name":"web","Tags":["v1","blue"]}`)
	for _, c := range []struct {
		e    Event
		a, b bool
	}{
		{Event{Name: "all", Payload: []byte("pay\x00")}, true, true},
		{Event{Name: "node", NodeFilter: "-01$"}, true, false},
		{Event{Name: "service", ServiceFilter: "^we"}, false, true},
		{Event{Name: "tag", ServiceFilter: "web", TagFilter: "^blu"}, false, true},
		{Event{Name: "no tag", ServiceFilter: "web", TagFilter: "green"}, false, false},
		{Event{Name: "end"}, true, true},
	} {
		fired, err := a.FireEvent(c.e)
		if err != nil || len(fired.ID) != 36 || fired.Version != 1 || fired.LTime != 0 {
			t.Fatalf("%+v %v", fired, err)
		}
	}
	names := func(x *Agent) (list []string) {
		events, _ := x.Events("")
		for _, e := range events {
			list = append(list, e.Name)
		}
		return list
	}
	has := func(x *Agent, want ...string) func() bool {
		return func() bool { return strings.Join(sorted(names(x)), ",") == strings.Join(want, ",") }
	}
	until(t, "the sender lists what concerns it", has(a, "all", "end", "node"))
	until(t, "the other lists what concerns it", has(b, "all", "end", "service", "tag"))
	events, _ := b.Events("all")
	if e := events[0]; string(e.Payload) != "pay\x00" || e.LTime == 0 || e.Version != 1 {
		t.Errorf("%+v", e)
	}
	if again := names(b); len(again) != 4 {
		t.Errorf("listed twice: %v", again)
	}
}

func sorted(list []string) []string {
	seen := map[string]bool{}
	for _, s := range list {
		seen[s] = true
	}
	return known(seen)
}

func TestRefusedEvents(t *testing.T) {
	t.Parallel()
	a := build(t, gossiping(t, openDirectory(t), "node-01", nil))
	start(t, a)
	for words, e := range map[string]Event{
		"User event missing name":                           {},
		"Invalid node filter":                               {Name: "x", NodeFilter: "("},
		"Invalid service filter":                            {Name: "x", ServiceFilter: "("},
		"Invalid tag filter":                                {Name: "x", ServiceFilter: "x", TagFilter: "("},
		"Cannot provide tag filter without service filter":  {Name: "x", TagFilter: "x"},
		"user event exceeds limit of 960 bytes before enco": {Name: "x", Payload: make([]byte, 900)},
	} {
		if _, err := a.FireEvent(e); fault.From(err).Kind != fault.Invalid || !strings.Contains(err.Error(), words) {
			t.Errorf("%+.40v: %v", e, err)
		}
	}
	if _, err := a.FireEvent(Event{Name: "x", Payload: make([]byte, 500)}); err != nil {
		t.Errorf("a payload of 500 bytes: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	for _, seed := range []string{`{"ID":"x","Version":1}`, `{"Version":1,"Node":"("}`, `{"Version":1,"Service":".*","Tag":"("}`, `[`, ``} {
		f.Add("event:x", []byte(seed))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		o := options(t, nil, "node-01")
		a := &Agent{o: o, events: newRing()}
		a.mu.services = map[string]*service{}
		a.receive(name, 1, data)
		if events, index := a.Events(""); len(events) > 1 || index == 0 {
			t.Errorf("%v %d", events, index)
		}
	})
}
