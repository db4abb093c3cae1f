package consulapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"holdfast.dev/holdfast/internal/core"
)

// writeText answers what is not JSON, as Consul does: plain text without a newline.
func writeText(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	w.Write([]byte(text))
}

// json answers v with a status; ?pretty indents it.
func (c *call) json(status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if c.has("pretty") {
		var b bytes.Buffer
		if err := json.Indent(&b, data, "", "    "); err != nil {
			return err
		}
		b.WriteByte('\n')
		data = b.Bytes()
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	c.w.WriteHeader(status)
	_, err = c.w.Write(data)
	return ignoreGone(err)
}

// ok answers v with status 200.
func (c *call) ok(v any) error { return c.json(http.StatusOK, v) }

// done answers 200 without a body, as the agent's endpoints do.
func (c *call) done() error {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// ignoreGone drops the error of writing to a client that has gone: there is nobody to tell.
func ignoreGone(error) error { return nil }

// meta writes the headers of a read.
func (c *call) meta(f core.Found) {
	c.metaOf(f.Index, f.KnownLeader, f.LastContact)
}

func (c *call) metaOf(index uint64, known bool, contact time.Duration) {
	h := c.w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(max(index, 1), 10))
	h.Set("X-Consul-Knownleader", strconv.FormatBool(known))
	h.Set("X-Consul-Lastcontact", strconv.FormatInt(contact.Milliseconds(), 10))
}

// effective says how consistent a read of the catalog was.
func (c *call) effective() {
	level := "leader"
	switch {
	case c.read.stale:
		level = "stale"
	case c.read.consistent:
		level = "consistent"
	}
	c.w.Header().Set("X-Consul-Effective-Consistency", level)
}
