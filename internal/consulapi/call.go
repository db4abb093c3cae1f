package consulapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// call is one request on its way.
type call struct {
	api      *API
	w        http.ResponseWriter
	r        *http.Request
	endpoint string // the path of the table of routes
	name     string // what follows it, unescaped
	query    url.Values
	who      policy.Principal
	read     reading // after parseReading
}

// reading is how a read wants its answer.
type reading struct {
	stale, consistent bool
	maxStale          time.Duration // with stale; 0: any
	index             uint64        // 0: do not block
	wait              time.Duration
	filter            string
	nodeMeta          map[string]string
}

// open reads what every call has: its parameters, its principal, the datacenter and the namespace.
func (c *call) open() error {
	var err error
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return refuse(http.StatusBadRequest, "Invalid query string")
	}
	c.who = c.api.o.Principal(c.r.Context())
	if err := c.api.inDatacenter(c.query.Get("dc")); err != nil {
		return err
	}
	for _, p := range [...]struct{ param, header string }{{"ns", "X-Consul-Namespace"}, {"partition", "X-Consul-Partition"}} {
		for _, said := range []string{c.query.Get(p.param), c.r.Header.Get(p.header)} {
			if said != "" && said != "default" {
				return refuse(http.StatusBadRequest, "Invalid query parameter: %q - namespaces and partitions are an Enterprise feature; the only one is \"default\"", p.param)
			}
		}
	}
	for _, p := range [...]struct{ param, what string }{{"peer", "cluster peering"}, {"sg", "sameness groups"}} {
		if c.query.Get(p.param) != "" {
			return refuse(http.StatusBadRequest, "Invalid query parameter: %q - %s is not supported", p.param, p.what)
		}
	}
	return nil
}

// inDatacenter refuses a datacenter that is not ours.
func (a *API) inDatacenter(dc string) error {
	if dc != "" && !strings.EqualFold(dc, a.o.Datacenter) {
		return refuse(http.StatusInternalServerError, "No path to datacenter")
	}
	return nil
}

// onlyDefault refuses a namespace or partition in a body.
func onlyDefault(names ...string) error {
	for _, n := range names {
		if n != "" && n != "default" {
			return refuse(http.StatusBadRequest, "Bad request: namespaces and partitions are an Enterprise feature; the only one is \"default\"")
		}
	}
	return nil
}

// has reports whether a parameter was given at all, as ?stale is.
func (c *call) has(param string) bool { _, ok := c.query[param]; return ok }

// flag reads a parameter that may stand without a value, as ?passing.
func (c *call) flag(param string) (bool, error) {
	if !c.has(param) {
		return false, nil
	}
	v := c.query.Get(param)
	if v == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, refuse(http.StatusBadRequest, "Invalid value for ?%s", param)
	}
	return on, nil
}

// needName refuses an empty name with Consul's text.
func (c *call) needName(text string) error {
	if c.name == "" {
		return refuse(http.StatusBadRequest, "%s", text)
	}
	return nil
}

// parseReading reads how a read wants its answer.
func (c *call) parseReading() error {
	r := &c.read
	r.stale, r.consistent = c.has("stale"), c.has("consistent")
	if r.stale && r.consistent {
		return refuse(http.StatusBadRequest, "Cannot specify ?stale with ?consistent, conflicting semantics.")
	}
	if s := c.query.Get("max_stale"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return refuse(http.StatusBadRequest, "Invalid max_stale value %q", s)
		}
		if !r.consistent {
			r.stale, r.maxStale = true, d
		}
	}
	if err := c.parseWaiting(); err != nil {
		return err
	}
	r.filter = c.query.Get("filter")
	if near := c.query.Get("near"); near != "" {
		return refuse(http.StatusBadRequest, "Invalid query parameter: \"near\" - this build keeps no network coordinates to sort by")
	}
	for _, pair := range c.query["node-meta"] {
		k, v, _ := strings.Cut(pair, ":")
		if r.nodeMeta == nil {
			r.nodeMeta = map[string]string{}
		}
		r.nodeMeta[k] = v
	}
	return nil
}

// parsePlainReading is parseReading where there is nothing to filter.
func (c *call) parsePlainReading() error {
	if err := c.parseReading(); err != nil {
		return err
	}
	for _, param := range [...]string{"filter", "node-meta"} {
		if c.query.Get(param) != "" {
			return refuse(http.StatusBadRequest, "Invalid query parameter: %q - this endpoint cannot filter", param)
		}
	}
	return nil
}

// parseWaiting reads ?wait and ?index.
func (c *call) parseWaiting() error {
	r := &c.read
	if s := c.query.Get("wait"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return refuse(http.StatusBadRequest, "Invalid wait time")
		}
		r.wait = d
	}
	if s := c.query.Get("index"); s != "" {
		index, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return refuse(http.StatusBadRequest, "Invalid index")
		}
		r.index = index
	}
	if r.wait == 0 {
		r.wait = waitUnsaid
	}
	r.wait = min(r.wait, maxWait)
	return nil
}

// body reads the request's body up to limit bytes; beyond, it answers 413 through its error.
func (c *call) body(limit int64) ([]byte, error) {
	if c.r.ContentLength > limit {
		c.w.Header().Set("Connection", "close")
		return nil, tooLarge(strconv.FormatInt(c.r.ContentLength, 10), limit)
	}
	bounded := http.MaxBytesReader(c.w, c.r.Body, limit)
	data, err := io.ReadAll(io.LimitReader(bounded, smallBody))
	if err == nil && len(data) == smallBody {
		if data, err = c.longBody(data, bounded); errors.Is(err, errBusy) {
			return nil, err
		}
	}
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return nil, tooLarge("more than "+strconv.FormatInt(limit, 10), limit)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "Request body could not be read")
	}
	return data, nil
}

// errBusy answers a long body while too many others come.
var errBusy = refuse(http.StatusTooManyRequests, "Too many long requests at once: this agent reads %d of more than 64 KiB at a time", largeBodies)

// longBody reads the rest of a body of which begun has come. They take turns, and each has to come in time: whoever sends many
// slowly, before anybody is asked whether it may, cannot fill the memory.
func (c *call) longBody(begun []byte, rest io.Reader) ([]byte, error) {
	patience := time.NewTimer(bodyTime)
	defer patience.Stop()
	select {
	case c.api.large <- struct{}{}:
	case <-patience.C:
		return nil, errBusy
	case <-c.r.Context().Done():
		return nil, c.r.Context().Err()
	}
	defer func() { <-c.api.large }()
	control := http.NewResponseController(c.w)
	if err := control.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return nil, err
	}
	more, err := io.ReadAll(rest)
	if err != nil {
		return nil, err
	}
	return append(begun, more...), control.SetReadDeadline(time.Time{})
}

// tooLarge is worded so that the clients that look for a text find theirs: "too large" (Terraform), "Value exceeds" and
// "is too large" (Vault).
func tooLarge(size string, limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "Request body(%s bytes) too large, max size: %d bytes. Value exceeds %d byte limit: the request is too large", size, limit, limit)
}

// decode reads a JSON body strictly; an empty one leaves v as it is if mayBeEmpty.
func (c *call) decode(v any, mayBeEmpty bool) error {
	data, err := c.body(maxBody)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(data)) == 0 && mayBeEmpty {
		return nil
	}
	if err := decodeStrictly(data, v); err != nil {
		return refuse(http.StatusBadRequest, "Request decode failed: %v", err)
	}
	return nil
}

// decodeStrictly decodes exactly one JSON value without unknown fields.
func decodeStrictly(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("there is more than one JSON value")
	}
	return nil
}

// discover hands operations to the directory.
func (c *call) discover(ops ...catalog.Op) (catalog.Outcome, error) {
	return c.api.o.Directory.Discover(c.r.Context(), c.who, ops)
}

// lookup asks the directory q, and blocks if the call asked to.
func (c *call) lookup(q catalog.Query) (core.Found, error) {
	req := core.LookupRequest{Query: q, Serializable: c.read.stale}
	if c.read.index > 0 {
		release, err := c.api.waiters.enter(c.client(), c.api.o.MaxWaiting, c.api.o.MaxWaitingAll)
		if err != nil {
			return core.Found{}, err
		}
		defer release()
		req.MinIndex, req.Wait = c.read.index, c.api.jittered(c.read.wait)
	}
	found, err := c.api.o.Directory.Lookup(c.r.Context(), c.who, req)
	if err == nil && c.read.maxStale > 0 && found.LastContact > c.read.maxStale {
		c.read.stale, req.Serializable = false, false
		req.MinIndex, req.Wait = 0, 0
		found, err = c.api.o.Directory.Lookup(c.r.Context(), c.who, req)
	}
	return found, err
}
