package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"holdfast.dev/holdfast/internal/fault"
)

const (
	eventsKept   = 256
	eventVersion = 1
)

// ring holds the newest user events.
type ring struct {
	mu      sync.Mutex
	events  []Event // oldest first
	changed chan struct{}
}

func newRing() *ring { return &ring{changed: make(chan struct{})} }

func (r *ring) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if over := len(r.events) - eventsKept; over > 0 {
		r.events = slices.Delete(r.events, 0, over)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *ring) list(name string) (events []Event, index uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	events, index = []Event{}, 1
	for _, e := range r.events {
		if name == "" || e.Name == name {
			events = append(events, e)
			index = eventIndex(e.ID)
		}
	}
	return events, index, r.changed
}

// eventIndex is the index that Consul's clients compute from an event's ID: the two halves of the UUID, one XOR the other.
func eventIndex(id string) uint64 {
	digits := strings.ReplaceAll(id, "-", "")
	if len(digits) != 32 {
		return 1
	}
	lower, err1 := strconv.ParseUint(digits[:16], 16, 64)
	upper, err2 := strconv.ParseUint(digits[16:], 16, 64)
	if err1 != nil || err2 != nil || lower == upper {
		return 1
	}
	return lower ^ upper
}

// FireEvent sends a user event to all agents, this one included, and returns it with its ID.
func (a *Agent) FireEvent(e Event) (Event, error) {
	if a.gossip == nil {
		return Event{}, noGossip()
	}
	switch {
	case e.Name == "":
		return Event{}, invalid("User event missing name")
	case e.TagFilter != "" && e.ServiceFilter == "":
		return Event{}, invalid("Cannot provide tag filter without service filter")
	}
	for _, f := range []struct{ what, filter string }{{"node", e.NodeFilter}, {"service", e.ServiceFilter}, {"tag", e.TagFilter}} {
		if _, err := regexp.Compile(f.filter); err != nil {
			return Event{}, invalid("Invalid %s filter: %v", f.what, err)
		}
	}
	id := a.draw(16)
	text := hex.EncodeToString(id)
	e.ID = strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-")
	e.Version, e.LTime = eventVersion, 0
	wire, err := json.Marshal(wireEvent{ID: e.ID, Payload: e.Payload, Node: e.NodeFilter, Service: e.ServiceFilter, Tag: e.TagFilter, Version: e.Version})
	if err != nil {
		return Event{}, err
	}
	if size := len(eventPrefix) + len(e.Name) + len(wire); size > maxEventSize-64 { // serf's own frame is in its limit
		return Event{}, &Error{Kind: fault.Invalid, Text: fmt.Sprintf("user event exceeds limit of %d bytes before encoding", maxEventSize-64), Hint: "put what is large into the key-value store and send its key"}
	}
	if err := a.gossip.serf.UserEvent(eventPrefix+e.Name, wire, false); err != nil {
		return Event{}, &Error{Kind: fault.Unavailable, Text: err.Error()}
	}
	return e, nil
}

// wireEvent is a user event as it travels. Its name is serf's.
type wireEvent struct {
	ID      string
	Payload []byte `json:",omitempty"`
	Node    string `json:",omitempty"`
	Service string `json:",omitempty"`
	Tag     string `json:",omitempty"`
	Version int
}

// receive takes an event from the gossip and lists it if its filters match this agent.
func (a *Agent) receive(name string, ltime uint64, data []byte) {
	name, ok := strings.CutPrefix(name, eventPrefix)
	var w wireEvent
	if !ok || json.Unmarshal(data, &w) != nil {
		a.o.Log.Warn("a user event of an unknown form is dropped", "event", name)
		return
	}
	e := Event{ID: w.ID, Name: name, Payload: w.Payload, NodeFilter: w.Node, ServiceFilter: w.Service, TagFilter: w.Tag, Version: w.Version, LTime: ltime}
	if w.Version == eventVersion && a.concerns(e) {
		a.events.add(e)
	}
}

// concerns reports whether an event's filters match this agent. A filter that does not compile matches nobody.
func (a *Agent) concerns(e Event) bool {
	match := func(filter, text string) bool {
		re, err := regexp.Compile(filter)
		return err == nil && re.MatchString(text)
	}
	if e.NodeFilter != "" && !match(e.NodeFilter, a.o.Node.Name) {
		return false
	}
	if e.ServiceFilter == "" {
		return true
	}
	for _, s := range a.Services() {
		if match(e.ServiceFilter, s.Name) && (e.TagFilter == "" || slices.ContainsFunc(s.Tags, func(tag string) bool { return match(e.TagFilter, tag) })) {
			return true
		}
	}
	return false
}

// Events returns the newest events, at most 256, oldest first; name selects one kind. The index is that of the newest.
func (a *Agent) Events(name string) ([]Event, uint64) {
	events, index, _ := a.events.list(name)
	return events, index
}

// AwaitEvents waits until the index of Events(name) is another than index, or ctx ends, and returns what Events returns.
func (a *Agent) AwaitEvents(ctx context.Context, name string, index uint64) ([]Event, uint64) {
	for {
		events, now, changed := a.events.list(name)
		if now != index {
			return events, now
		}
		select {
		case <-ctx.Done():
			return events, now
		case <-changed:
		}
	}
}
