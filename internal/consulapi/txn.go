package consulapi

import (
	"bytes"
	"encoding/json"
	"net/http"

	"holdfast.dev/holdfast/internal/catalog"
)

// txnOp is one operation of a transaction: one of the four is set.
type txnOp struct {
	KV *struct {
		Verb      string
		Key       string
		Value     []byte
		Flags     uint64
		Index     uint64
		Session   string
		Namespace string
		Partition string
	}
	Node *struct {
		Verb string
		Node nodeBody
	}
	Service *struct {
		Verb    string
		Node    string
		Service serviceBody
	}
	Check *struct {
		Verb  string
		Check checkBody
	}
}

// nodeBody is a node as clients write it.
type nodeBody struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        json.RawMessage
	PeerName        string
	Partition       string
	CreateIndex     uint64
	ModifyIndex     uint64
}

// txnResult is one result: one of the four is set.
type txnResult struct {
	KV      *pair        `json:",omitempty"`
	Node    *node        `json:",omitempty"`
	Service *nodeService `json:",omitempty"`
	Check   *check       `json:",omitempty"`
}

type txnError struct {
	OpIndex int
	What    string
}

// txnAnswer is the answer to a transaction that writes.
type txnAnswer struct {
	Results []txnResult
	Errors  []txnError
}

// txnReading is the answer to one that only reads: it tells how it was read besides.
type txnReading struct {
	txnAnswer
	Index                 uint64
	LastContact           int64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

func kvVerb(verb string) (catalog.Verb, bool) {
	v, ok := map[string]catalog.Verb{
		"set": catalog.KVSet, "cas": catalog.KVCAS, "lock": catalog.KVLock, "unlock": catalog.KVUnlock,
		"delete": catalog.KVDelete, "delete-cas": catalog.KVDeleteCAS, "delete-tree": catalog.KVDeleteTree,
		"get": catalog.KVGet, "get-or-empty": catalog.KVGetOrEmpty, "get-tree": catalog.KVGetTree,
		"check-session": catalog.KVCheckSession, "check-index": catalog.KVCheckIndex, "check-not-exists": catalog.KVCheckNotExists,
	}[verb]
	return v, ok
}

// entryVerb is the verb of a node, service or check operation, counted from the verb that sets one.
func entryVerb(verb string, set catalog.Verb) (catalog.Verb, bool) {
	at, ok := map[string]catalog.Verb{"set": 0, "cas": 1, "get": 2, "delete": 3, "delete-cas": 4}[verb]
	return set + at, ok
}

// op returns the catalog's operation, or a text of what is wrong with it.
func (a *API) op(o *txnOp) (op catalog.Op, err error) {
	var known bool
	switch {
	case o.KV != nil:
		op.Verb, known = kvVerb(o.KV.Verb)
		tree := op.Verb == catalog.KVGetTree || op.Verb == catalog.KVDeleteTree
		switch {
		case !known:
			return op, wrong("unknown KV operation: %s", o.KV.Verb)
		case o.KV.Key == "" && !tree:
			return op, wrong("Must provide key")
		}
		op.Pair = &catalog.Pair{Key: o.KV.Key, Value: o.KV.Value, Flags: o.KV.Flags, ModifyIndex: o.KV.Index, Session: o.KV.Session}
		return op, onlyDefault(o.KV.Namespace, o.KV.Partition)
	case o.Node != nil:
		if op.Verb, known = entryVerb(o.Node.Verb, catalog.NodeSet); !known {
			return op, wrong("unknown Node operation: %s", o.Node.Verb)
		}
		op.Node, err = a.txnNode(&o.Node.Node)
		return op, err
	case o.Service != nil:
		if op.Verb, known = entryVerb(o.Service.Verb, catalog.ServiceSet); !known {
			return op, wrong("unknown Service operation: %s", o.Service.Verb)
		}
		b := &o.Service.Service
		if op.Verb == catalog.ServiceSet || op.Verb == catalog.ServiceCAS {
			op.Service, err = a.service(o.Service.Node, b)
			return op, err
		}
		op.Service = &catalog.Service{Node: o.Service.Node, ID: b.ID, ModifyIndex: b.ModifyIndex}
		return op, onlyDefault(b.Namespace, b.Partition)
	case o.Check != nil:
		if op.Verb, known = entryVerb(o.Check.Verb, catalog.CheckSet); !known {
			return op, wrong("unknown Check operation: %s", o.Check.Verb)
		}
		b := &o.Check.Check
		if op.Verb == catalog.CheckSet || op.Verb == catalog.CheckCAS {
			op.Check, err = a.check(b.Node, b)
			return op, err
		}
		op.Check = &catalog.Check{Node: b.Node, ID: b.CheckID, ModifyIndex: b.ModifyIndex}
		return op, onlyDefault(b.Namespace, b.Partition)
	}
	return op, wrong("unknown operation type: one of KV, Node, Service and Check must be set")
}

func (a *API) txnNode(b *nodeBody) (*catalog.Node, error) {
	if b.PeerName != "" {
		return nil, wrong("cluster peering is not supported")
	}
	if err := onlyDefault(b.Partition); err != nil {
		return nil, err
	}
	if err := a.inDatacenter(b.Datacenter); err != nil {
		return nil, err
	}
	if err := checkNodeID(b.ID); err != nil {
		return nil, err
	}
	e, err := readerFields(map[string]json.RawMessage{"Locality": b.Locality})
	if err != nil {
		return nil, err
	}
	n := &catalog.Node{ID: b.ID, Name: b.Node, Address: b.Address, Datacenter: a.o.Datacenter, TaggedAddresses: b.TaggedAddresses, Meta: b.Meta, ModifyIndex: b.ModifyIndex}
	n.Extra, err = packExtra(e)
	return n, err
}

// txnOps reads the body.
func (c *call) txnOps() ([]txnOp, error) {
	data, err := c.body(maxValue)
	if err != nil {
		return nil, err
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, refuse(http.StatusBadRequest, "Failed to parse body: %v", err)
	}
	if len(raw) > maxOps {
		return nil, refuse(http.StatusRequestEntityTooLarge, "Transaction contains too many operations (%d > %d)", len(raw), maxOps)
	}
	ops := make([]txnOp, len(raw))
	for i := range raw {
		dec := json.NewDecoder(bytes.NewReader(raw[i]))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&ops[i]); err != nil {
			return nil, refuse(http.StatusBadRequest, "Failed to parse body: operation %d: %v", i, err)
		}
		if kv := ops[i].KV; kv != nil && len(kv.Value) > maxValue {
			return nil, refuse(http.StatusRequestEntityTooLarge, "Value for key %q is too large (%d > %d bytes)", kv.Key, len(kv.Value), maxValue)
		}
	}
	return ops, nil
}

func (c *call) txn() error {
	if err := c.parsePlainReading(); err != nil {
		return err
	}
	given, err := c.txnOps()
	if err != nil {
		return err
	}
	var answer txnAnswer
	ops, reads := make([]catalog.Op, len(given)), true
	for i := range given {
		if ops[i], err = c.api.op(&given[i]); err != nil {
			answer.Errors = append(answer.Errors, txnError{i, err.Error()})
		}
		reads = reads && !ops[i].Verb.Writes()
	}
	if len(answer.Errors) > 0 {
		return c.json(http.StatusConflict, answer)
	}
	if len(ops) == 0 {
		return c.ok(answer)
	}
	status := http.StatusOK
	out, err := c.discover(ops...)
	if err != nil {
		return err
	}
	for _, f := range out.Failures {
		status = http.StatusConflict
		answer.Errors = append(answer.Errors, txnError{f.Op, f.What})
	}
	if status == http.StatusOK {
		answer.Results = c.api.txnResults(out.Results)
	}
	if !reads {
		return c.json(status, answer)
	}
	// A transaction goes through the log: what it read is as new as the cluster, whatever consistency was asked for.
	c.metaOf(out.Index, true, 0)
	return c.json(status, txnReading{txnAnswer: answer, Index: max(out.Index, 1), KnownLeader: true})
}
