package consulapi

import (
	"context"
	"net/http"
	"strconv"

	"holdfast.dev/holdfast/internal/agent"
)

// event is a user event on the wire.
type event struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

func wireEvent(e agent.Event) event {
	if len(e.Payload) == 0 {
		e.Payload = nil
	}
	return event(e)
}

func (c *call) eventFire() error {
	if err := c.needName("Missing name"); err != nil {
		return err
	}
	payload, err := c.body(maxBody)
	if err != nil {
		return err
	}
	e, err := c.api.o.Agent.FireEvent(agent.Event{Name: c.name, Payload: payload, NodeFilter: c.query.Get("node"),
		ServiceFilter: c.query.Get("service"), TagFilter: c.query.Get("tag"), Version: 1})
	if err != nil {
		return c.gossipFailed(err)
	}
	return c.ok(wireEvent(e))
}

// eventList answers the newest events. Its index is made of the newest one's ID: it tells them apart and has no order.
func (c *call) eventList() error {
	if err := c.parseWaiting(); err != nil {
		return err
	}
	for _, param := range [...]string{"node", "service", "tag", "filter"} {
		if c.query.Get(param) != "" {
			return refuse(http.StatusBadRequest, "Invalid query parameter: %q - events are listed by name", param)
		}
	}
	name := c.query.Get("name")
	events, index := c.api.o.Agent.Events(name)
	if c.read.index > 0 && index == c.read.index {
		release, err := c.api.waiters.enter(c.client(), c.api.o.MaxWaiting, c.api.o.MaxWaitingAll)
		if err != nil {
			return err
		}
		defer release()
		ctx, cancel := context.WithTimeout(c.r.Context(), c.api.jittered(c.read.wait))
		defer cancel()
		events, index = c.api.o.Agent.AwaitEvents(ctx, name, index)
	}
	out := make([]event, len(events))
	for i := range events {
		out[i] = wireEvent(events[i])
	}
	c.w.Header().Set("X-Consul-Index", strconv.FormatUint(max(index, 1), 10))
	return c.ok(out)
}
