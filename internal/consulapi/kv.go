package consulapi

import (
	"net/http"
	"net/url"
	"strconv"

	"holdfast.dev/holdfast/internal/catalog"
)

// pair is a key on the wire.
type pair struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func wirePair(p *catalog.Pair) pair {
	out := pair{LockIndex: p.LockIndex, Key: p.Key, Flags: p.Flags, Session: p.Session, CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex}
	if len(p.Value) > 0 { // an empty value is null, as in Consul
		out.Value = p.Value
	}
	return out
}

func (c *call) kvGet() error {
	if err := c.parsePlainReading(); err != nil {
		return err
	}
	q := catalog.Query{Kind: catalog.QueryPair, Name: c.name}
	switch {
	case c.has("keys"):
		q.Kind, q.Separator = catalog.QueryKeys, c.query.Get("separator")
	case c.has("recurse"):
		q.Kind = catalog.QueryPairs
	case c.name == "":
		return refuse(http.StatusBadRequest, "Missing key name")
	}
	found, err := c.lookup(q)
	if err != nil {
		return err
	}
	c.meta(found)
	switch {
	case q.Kind == catalog.QueryKeys && len(found.Keys) > 0:
		return c.ok(found.Keys)
	case q.Kind == catalog.QueryKeys || len(found.Pairs) == 0:
		c.w.WriteHeader(http.StatusNotFound)
		return nil
	case c.has("raw"):
		return c.rawValue(found.Pairs[0].Value)
	}
	out := make([]pair, len(found.Pairs))
	for i := range found.Pairs {
		out[i] = wirePair(&found.Pairs[i])
	}
	return c.ok(out)
}

// rawValue answers the bytes of a value so that no browser takes them for a page of ours.
func (c *call) rawValue(value []byte) error {
	h := c.w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Content-Length", strconv.Itoa(len(value)))
	_, err := c.w.Write(value)
	return ignoreGone(err)
}

// exclusive refuses two parameters that ask for different things.
func (c *call) exclusive(params ...string) error {
	given := url.Values{}
	for _, p := range params {
		if c.has(p) {
			given[p] = c.query[p]
		}
	}
	if len(given) > 1 {
		return refuse(http.StatusBadRequest, "Conflicting flags: %s\n", given.Encode())
	}
	return nil
}

// number reads an unsigned parameter; Consul answers 500 to one that is none.
func (c *call) number(param string) (uint64, error) {
	if !c.has(param) {
		return 0, nil
	}
	n, err := strconv.ParseUint(c.query.Get(param), 10, 64)
	if err != nil {
		return 0, refuse(http.StatusInternalServerError, "%v", err)
	}
	return n, nil
}

func (c *call) kvPut() error {
	if err := c.needName("Missing key name"); err != nil {
		return err
	}
	if err := c.exclusive("acquire", "cas", "release"); err != nil {
		return err
	}
	p := &catalog.Pair{Key: c.name}
	op := catalog.Op{Verb: catalog.KVSet, Pair: p}
	var err error
	if p.Flags, err = c.number("flags"); err != nil {
		return err
	}
	switch {
	case c.has("cas"):
		op.Verb = catalog.KVCAS
		if p.ModifyIndex, err = c.number("cas"); err != nil {
			return err
		}
	case c.has("acquire"):
		op.Verb, p.Session = catalog.KVLock, c.query.Get("acquire")
	case c.has("release"):
		op.Verb, p.Session = catalog.KVUnlock, c.query.Get("release")
	}
	if p.Value, err = c.body(maxValue); err != nil {
		return err
	}
	return c.kvApply(op)
}

func (c *call) kvDelete() error {
	op := catalog.Op{Verb: catalog.KVDelete, Pair: &catalog.Pair{Key: c.name}}
	if err := c.exclusive("cas", "recurse"); err != nil {
		return err
	}
	switch {
	case c.has("recurse"):
		op.Verb = catalog.KVDeleteTree
	case c.name == "":
		return refuse(http.StatusBadRequest, "Missing key name")
	case c.has("cas"):
		index, err := c.number("cas")
		if err != nil {
			return err
		}
		op.Verb, op.Pair.ModifyIndex = catalog.KVDeleteCAS, index
	}
	return c.kvApply(op)
}

// kvApply does one operation and answers whether it held.
func (c *call) kvApply(op catalog.Op) error {
	out, err := c.discover(op)
	if err != nil {
		return err
	}
	for _, f := range out.Failures {
		if f.Kind != catalog.Mismatch {
			return refuse(http.StatusInternalServerError, "raft apply failed: %s", f.What)
		}
	}
	return c.ok(len(out.Failures) == 0)
}
