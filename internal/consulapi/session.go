package consulapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

// session is a session on the wire.
type session struct {
	ID            string
	Name          string
	Node          string
	LockDelay     int64 // nanoseconds
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []serviceCheck
	CreateIndex   uint64
	ModifyIndex   uint64
}

type serviceCheck struct {
	ID        string
	Namespace string
}

func wireSession(s *catalog.Session) session {
	out := session{ID: s.ID, Name: s.Name, Node: s.Node, LockDelay: s.LockDelay, Behavior: s.Behavior, TTL: s.TTL,
		NodeChecks: list(s.NodeChecks), CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex}
	for _, sc := range s.ServiceChecks {
		out.ServiceChecks = append(out.ServiceChecks, serviceCheck(sc))
	}
	return out
}

func wireSessions(of []catalog.Session) []session {
	out := make([]session, len(of))
	for i := range of {
		out[i] = wireSession(&of[i])
	}
	return out
}

// sessionRequest is the body of session/create.
type sessionRequest struct {
	Name          string
	Node          string
	LockDelay     lockDelay
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []serviceCheck
	Checks        []string // the older name of NodeChecks
	Namespace     string
	Partition     string
	Datacenter    string
}

// lockDelay is a duration as Consul takes it: "15s", or a number, which below 1000 is seconds and above nanoseconds.
type lockDelay time.Duration

// UnmarshalJSON reads one of the forms.
func (d *lockDelay) UnmarshalJSON(data []byte) error {
	var v any
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		*d = 0
	case string:
		parsed, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		*d = lockDelay(parsed)
	case float64:
		if math.Abs(v) > math.MaxInt64/2 {
			return fmt.Errorf("invalid lock delay %v", v)
		}
		*d = lockDelay(v)
	default:
		return fmt.Errorf("invalid lock delay %s", data)
	}
	if *d < 0 {
		return fmt.Errorf("invalid lock delay %s: it is negative", data)
	}
	if *d < 1000 {
		*d *= lockDelay(time.Second)
	}
	return nil
}

const (
	leastTTL         = 10 * time.Second
	mostTTL          = 24 * time.Hour
	lockDelayUnsaid  = 15 * time.Second
	serfHealth       = "serfHealth"
	behaviorReleases = "release"
	behaviorDeletes  = "delete"
)

// checkTTL refuses a session's TTL in the words that Patroni looks for.
func checkTTL(text string) error {
	if text == "" {
		return nil
	}
	ttl, err := time.ParseDuration(text)
	if err != nil {
		return refuse(http.StatusInternalServerError, "Session TTL '%s' invalid: %v", text, err)
	}
	if ttl != 0 && (ttl < leastTTL || ttl > mostTTL) {
		return refuse(http.StatusInternalServerError, "Invalid Session TTL '%d', must be between [10s=24h0m0s]", int64(ttl))
	}
	return nil
}

func (c *call) sessionCreate() error {
	var req sessionRequest
	if err := c.decode(&req, true); err != nil {
		return err
	}
	if err := onlyDefault(req.Namespace, req.Partition); err != nil {
		return err
	}
	if err := c.api.inDatacenter(req.Datacenter); err != nil {
		return err
	}
	s := &catalog.Session{Name: req.Name, Node: req.Node, LockDelay: int64(req.LockDelay), Behavior: req.Behavior, TTL: req.TTL}
	if s.Node == "" {
		s.Node = c.api.o.Node
	}
	if s.LockDelay == 0 {
		s.LockDelay = int64(lockDelayUnsaid)
	}
	switch s.Behavior {
	case "":
		s.Behavior = behaviorReleases
	case behaviorReleases, behaviorDeletes:
	default:
		return refuse(http.StatusInternalServerError, "Invalid Behavior setting '%s'", s.Behavior)
	}
	if err := checkTTL(s.TTL); err != nil {
		return err
	}
	s.NodeChecks = append(req.NodeChecks, req.Checks...)
	if req.NodeChecks == nil && req.Checks == nil {
		s.NodeChecks = []string{serfHealth}
	}
	for _, sc := range req.ServiceChecks {
		if err := onlyDefault(sc.Namespace); err != nil {
			return err
		}
		s.ServiceChecks = append(s.ServiceChecks, catalog.ServiceCheck{ID: sc.ID})
	}
	var err error
	if s.ID, err = c.api.uuid(); err != nil {
		return err
	}
	out, err := c.discover(catalog.Op{Verb: catalog.SessionCreate, Session: s})
	if err != nil {
		return err
	}
	if len(out.Failures) > 0 {
		return refuse(http.StatusInternalServerError, "apply failed: %s", out.Failures[0].What)
	}
	return c.ok(struct{ ID string }{s.ID})
}

// uuid draws a random UUID.
func (a *API) uuid() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(a.o.Rand, b[:]); err != nil {
		return "", fmt.Errorf("draw a UUID: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

func (c *call) sessionDestroy() error {
	if err := c.needName("Missing session"); err != nil {
		return err
	}
	out, err := c.discover(catalog.Op{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: c.name}})
	if err != nil {
		return err
	}
	if len(out.Failures) > 0 {
		return refuse(http.StatusInternalServerError, "apply failed: %s", out.Failures[0].What)
	}
	return c.ok(true)
}

func (c *call) sessionRenew() error {
	if err := c.needName("Missing session"); err != nil {
		return err
	}
	s, err := c.api.o.Directory.RenewSession(c.r.Context(), c.who, c.name)
	if f := fault.From(err); f != nil && f.Kind == fault.NotFound {
		return refuse(http.StatusNotFound, "Session id '%s' not found", c.name)
	}
	if err != nil {
		return err
	}
	return c.ok([]session{wireSession(&s)})
}

func (c *call) sessionInfo() error {
	if err := c.needName("Missing session"); err != nil {
		return err
	}
	return c.sessions(catalog.QuerySession)
}

func (c *call) sessionNode() error {
	if err := c.needName("Missing node name"); err != nil {
		return err
	}
	return c.sessions(catalog.QueryNodeSessions)
}

func (c *call) sessionList() error { return c.sessions(catalog.QuerySessions) }

func (c *call) sessions(kind catalog.Kind) error {
	if err := c.parsePlainReading(); err != nil {
		return err
	}
	found, err := c.lookup(catalog.Query{Kind: kind, Name: c.name})
	if err != nil {
		return err
	}
	c.meta(found)
	return c.ok(wireSessions(found.Sessions))
}
