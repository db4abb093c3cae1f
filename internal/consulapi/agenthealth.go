package consulapi

import (
	"net/http"
	"strings"
)

// ownHealth is the health of one service of this agent.
type ownHealth struct {
	AggregatedStatus string
	Service          agentService
	Checks           []check
}

// ownHealths returns the health of the services that match, by id. The checks of the node count for every service.
func (c *call) ownHealths(match func(s *agentService) bool) []ownHealth {
	checks := c.ownChecks()
	out := []ownHealth{}
	for _, s := range c.api.o.Agent.Services() {
		w := c.api.wireOwnService(&s.Service)
		if !match(&w) {
			continue
		}
		h := ownHealth{Service: w, Checks: []check{}}
		for _, k := range checks {
			if k.ServiceID == "" || k.ServiceID == w.ID {
				h.Checks = append(h.Checks, k)
			}
		}
		h.AggregatedStatus = aggregated(h.Checks)
		out = append(out, h)
	}
	return out
}

// healthCode is the status that load balancers go by.
func healthCode(status string) int {
	switch status {
	case "passing":
		return http.StatusOK
	case "warning":
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

// answerHealth writes a status, as JSON with its reasons, or as one word where that was asked for.
func (c *call) answerHealth(code int, reason, word string, v any) error {
	c.w.Header().Set("X-Consul-Reason", reason)
	text := c.query.Get("format") == "text"
	switch c.query.Get("format") {
	case "", "json", "text":
	default:
		return refuse(http.StatusBadRequest, "Invalid format: it is json or text")
	}
	if !c.has("format") && strings.HasPrefix(c.r.Header.Get("Accept"), "text/plain") {
		text = true
	}
	if text {
		c.w.Header().Set("Content-Type", "text/plain")
		c.w.WriteHeader(code)
		_, err := c.w.Write([]byte(word))
		return ignoreGone(err)
	}
	return c.json(code, v)
}

func (c *call) agentHealthByID() error {
	if err := c.needName("Missing serviceID"); err != nil {
		return err
	}
	found := c.ownHealths(func(s *agentService) bool { return s.ID == c.name })
	if len(found) == 0 {
		return c.answerHealth(http.StatusNotFound, headerText("ServiceId "+c.name+" not found"), "ServiceId "+c.name+" not found", nil)
	}
	status := found[0].AggregatedStatus
	return c.answerHealth(healthCode(status), status, status, found[0])
}

func (c *call) agentHealthByName() error {
	if err := c.needName("Missing service Name"); err != nil {
		return err
	}
	found := c.ownHealths(func(s *agentService) bool { return s.Service == c.name })
	if len(found) == 0 {
		reason := "ServiceName " + c.name + " Not Found"
		return c.answerHealth(http.StatusNotFound, headerText(reason), reason, found)
	}
	status := "passing"
	for _, h := range found {
		if healthRank(h.AggregatedStatus) > healthRank(status) {
			status = h.AggregatedStatus
		}
	}
	return c.answerHealth(healthCode(status), status, status, found)
}

func healthRank(status string) int {
	switch status {
	case "passing":
		return 0
	case "warning":
		return 1
	case "maintenance":
		return 3
	}
	return 2
}

// headerText makes a text of a client's fit for a header.
func headerText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
