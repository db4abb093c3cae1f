package etcdapi

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// A wireMessage is a response that writes itself in protobuf's wire format, byte for byte as proto.Marshal would write
// the etcdserverpb message of the same meaning (TestResponsesMatchProto, FuzzResponses).
type wireMessage interface {
	wireSize() int
	appendWire(b []byte) []byte
}

// rangeResponse is etcdserverpb.RangeResponse.
type rangeResponse struct {
	header   header
	noHeader bool // chunks of a RangeStream but the last carry none
	kvs      []mvcc.KV
	more     bool
	count    int64
}

func (r *rangeResponse) wireSize() int {
	n := sizeBool(r.more) + sizeInt(r.count)
	if !r.noHeader {
		n += sizeMessage(r.header.size())
	}
	for i := range r.kvs {
		n += sizeMessage(sizeKV(&r.kvs[i]))
	}
	return n
}

func (r *rangeResponse) appendWire(b []byte) []byte {
	if !r.noHeader {
		b = r.header.appendField(b, r.header.size())
	}
	for i := range r.kvs {
		b = appendKV(b, 2, &r.kvs[i])
	}
	b = appendBool(b, 3, r.more)
	return appendInt(b, 4, r.count)
}

// rangeStreamResponse is etcdserverpb.RangeStreamResponse.
type rangeStreamResponse struct{ rangeResponse }

func (r *rangeStreamResponse) wireSize() int { return sizeMessage(r.rangeResponse.wireSize()) }

func (r *rangeStreamResponse) appendWire(b []byte) []byte {
	return r.rangeResponse.appendWire(appendMessageHead(b, 1, r.rangeResponse.wireSize()))
}

// putResponse is etcdserverpb.PutResponse.
type putResponse struct {
	header header
	prev   *mvcc.KV
}

func (r *putResponse) wireSize() int {
	n := sizeMessage(r.header.size())
	if r.prev != nil {
		n += sizeMessage(sizeKV(r.prev))
	}
	return n
}

func (r *putResponse) appendWire(b []byte) []byte {
	b = r.header.appendField(b, r.header.size())
	if r.prev != nil {
		b = appendKV(b, 2, r.prev)
	}
	return b
}

// deleteResponse is etcdserverpb.DeleteRangeResponse.
type deleteResponse struct {
	header  header
	deleted int64
	prev    []mvcc.KV
}

func (r *deleteResponse) wireSize() int {
	n := sizeMessage(r.header.size()) + sizeInt(r.deleted)
	for i := range r.prev {
		n += sizeMessage(sizeKV(&r.prev[i]))
	}
	return n
}

func (r *deleteResponse) appendWire(b []byte) []byte {
	b = r.header.appendField(b, r.header.size())
	b = appendInt(b, 2, r.deleted)
	for i := range r.prev {
		b = appendKV(b, 3, &r.prev[i])
	}
	return b
}

// txnResponse is etcdserverpb.TxnResponse. Inside a transaction the headers hold the revision only, and that of a nested
// transaction nothing at all, as in etcd.
type txnResponse struct {
	header    header
	succeeded bool
	responses []wireOp
}

// wireOp is etcdserverpb.ResponseOp: field is the number of the member of the oneof that is set.
type wireOp struct {
	field byte
	size  int // of message
	wireMessage
}

// newTxnResponse lays out res for the wire.
func newTxnResponse(h header, res *state.TxnResult) *txnResponse {
	r := &txnResponse{header: h, succeeded: res.Succeeded, responses: make([]wireOp, len(res.Results))}
	for i := range res.Results {
		r.responses[i] = newWireOp(&res.Results[i])
	}
	return r
}

func newWireOp(op *state.OpResult) wireOp {
	var w wireOp
	switch {
	case op.Range != nil:
		p := op.Range
		w = wireOp{field: 1, wireMessage: &rangeResponse{header: header{revision: p.Revision}, kvs: p.KVs, more: p.More, count: p.Count}}
	case op.Put != nil:
		w = wireOp{field: 2, wireMessage: &putResponse{header: header{revision: op.Put.Revision}, prev: op.Put.Prev}}
	case op.Delete != nil:
		d := op.Delete
		w = wireOp{field: 3, wireMessage: &deleteResponse{header: header{revision: d.Revision}, deleted: d.Deleted, prev: d.Prev}}
	case op.Txn != nil:
		w = wireOp{field: 4, wireMessage: newTxnResponse(header{}, op.Txn)}
	default:
		return w
	}
	w.size = w.wireSize()
	return w
}

// messageSize is the size of the ResponseOp itself.
func (w *wireOp) messageSize() int {
	if w.field == 0 {
		return 0
	}
	return sizeMessage(w.size)
}

func (r *txnResponse) wireSize() int {
	n := sizeMessage(r.header.size()) + sizeBool(r.succeeded)
	for i := range r.responses {
		n += sizeMessage(r.responses[i].messageSize())
	}
	return n
}

func (r *txnResponse) appendWire(b []byte) []byte {
	b = r.header.appendField(b, r.header.size())
	b = appendBool(b, 2, r.succeeded)
	for i := range r.responses {
		w := &r.responses[i]
		b = appendMessageHead(b, 3, w.messageSize())
		if w.field != 0 {
			b = w.appendWire(appendMessageHead(b, w.field, w.size))
		}
	}
	return b
}

// watchResponse is etcdserverpb.WatchResponse. Its events are already encoded, each as a whole field (see appendEvent),
// and shared between the watchers that get them.
type watchResponse struct {
	header          header
	id              int64
	created         bool
	canceled        bool
	compactRevision int64
	cancelReason    string
	fragment        bool
	events          [][]byte
}

// headSize is the size of everything before the events.
func (r *watchResponse) headSize() int {
	return sizeMessage(r.header.size()) + sizeInt(r.id) + sizeBool(r.created) + sizeBool(r.canceled) +
		sizeInt(r.compactRevision) + sizeData(r.cancelReason) + sizeBool(r.fragment)
}

func (r *watchResponse) appendHead(b []byte) []byte {
	b = r.header.appendField(b, r.header.size())
	b = appendInt(b, 2, r.id)
	b = appendBool(b, 3, r.created)
	b = appendBool(b, 4, r.canceled)
	b = appendInt(b, 5, r.compactRevision)
	b = appendData(b, 6, r.cancelReason)
	return appendBool(b, 7, r.fragment)
}

func (r *watchResponse) wireSize() int {
	n := r.headSize()
	for _, e := range r.events {
		n += len(e)
	}
	return n
}

func (r *watchResponse) appendWire(b []byte) []byte {
	b = r.appendHead(b)
	for _, e := range r.events {
		b = append(b, e...)
	}
	return b
}

// encodeEvent returns e as the repeated field "events" of a WatchResponse: tag, length and mvccpb.Event.
func encodeEvent(e *mvcc.Event, prev *mvcc.KV) []byte {
	n := sizeUint(uint64(e.Type)) + sizeMessage(sizeKV(&e.KV))
	if prev != nil {
		n += sizeMessage(sizeKV(prev))
	}
	b := make([]byte, 0, sizeMessage(n))
	b = appendMessageHead(b, 11, n)
	b = appendUint(b, 1, uint64(e.Type))
	b = appendKV(b, 2, &e.KV)
	if prev != nil {
		b = appendKV(b, 3, prev)
	}
	return b
}
