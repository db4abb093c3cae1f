package etcdapi

import (
	"google.golang.org/protobuf/encoding/protowire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// This file reads the hot requests from protobuf's wire format. The readers know the common shape only: on anything they
// do not like (an error, a message inside a oneof that comes twice and would have to be merged, deep nesting) they say
// so, and the codec asks proto.Unmarshal, whose word is final. What a reader accepts it reads exactly as
// proto.Unmarshal does (FuzzRequests).
//
// The byte slices of a request point into the buffer it was read from.

// maxFastDepth is the nesting of transactions up to which the hand-written reader is used.
const maxFastDepth = 32

// rangeRequest is etcdserverpb.RangeRequest.
type rangeRequest struct {
	key, end                                   []byte
	limit, revision                            int64
	sortOrder, sortTarget                      int32
	serializable, keysOnly, countOnly          bool
	minModRev, maxModRev, minCreate, maxCreate int64
}

// putRequest is etcdserverpb.PutRequest.
type putRequest struct {
	key, value                       []byte
	lease                            int64
	prevKV, ignoreValue, ignoreLease bool
}

// deleteRequest is etcdserverpb.DeleteRangeRequest.
type deleteRequest struct {
	key, end []byte
	prevKV   bool
}

// txnRequest is etcdserverpb.TxnRequest.
type txnRequest struct {
	compare          []compare
	success, failure []requestOp
}

// requestOp is etcdserverpb.RequestOp: at most one field is set.
type requestOp struct {
	rng *rangeRequest
	put *putRequest
	del *deleteRequest
	txn *txnRequest
}

// compare is etcdserverpb.Compare. union is the field number of the member of target_union that is set, 0 for none.
type compare struct {
	result, target int32
	key, end       []byte
	union          protowire.Number
	number         int64
	value          []byte
}

// Field numbers of Compare's target_union.
const (
	unionVersion protowire.Number = 4
	unionCreate  protowire.Number = 5
	unionMod     protowire.Number = 6
	unionValue   protowire.Number = 7
	unionLease   protowire.Number = 8
)

// A field is one field of a message on the wire: number holds a varint, data the content of a length-prefixed one.
type field struct {
	num    protowire.Number
	typ    protowire.Type
	number uint64
	data   []byte
}

// nextField reads one field from b. ok is false if b does not start with a well-formed one.
func nextField(b []byte) (f field, rest []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num > protowire.MaxValidNumber {
		return f, nil, false
	}
	b = b[n:]
	f.num, f.typ = num, typ
	switch typ {
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.data, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(num, typ, b)
	}
	if n < 0 {
		return f, nil, false
	}
	return f, b[n:], true
}

// key returns one value for the pair of number and type, to switch on: the number of a varint, the negated number of a
// length-prefixed field, 0 for what no message here has. A field whose type is not that of the schema is an unknown
// field and skipped, as proto does.
func (f *field) key() int {
	if f.num > 64 {
		return 0
	}
	switch f.typ {
	case protowire.VarintType:
		return int(f.num)
	case protowire.BytesType:
		return -int(f.num)
	}
	return 0
}

func (r *rangeRequest) readWire(b []byte) bool {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		switch f.key() {
		case -1:
			r.key = f.data
		case -2:
			r.end = f.data
		case 3:
			r.limit = int64(f.number)
		case 4:
			r.revision = int64(f.number)
		case 5:
			r.sortOrder = int32(f.number)
		case 6:
			r.sortTarget = int32(f.number)
		case 7:
			r.serializable = f.number != 0
		case 8:
			r.keysOnly = f.number != 0
		case 9:
			r.countOnly = f.number != 0
		case 10:
			r.minModRev = int64(f.number)
		case 11:
			r.maxModRev = int64(f.number)
		case 12:
			r.minCreate = int64(f.number)
		case 13:
			r.maxCreate = int64(f.number)
		}
	}
	return true
}

func (r *putRequest) readWire(b []byte) bool {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		switch f.key() {
		case -1:
			r.key = f.data
		case -2:
			r.value = f.data
		case 3:
			r.lease = int64(f.number)
		case 4:
			r.prevKV = f.number != 0
		case 5:
			r.ignoreValue = f.number != 0
		case 6:
			r.ignoreLease = f.number != 0
		}
	}
	return true
}

func (r *deleteRequest) readWire(b []byte) bool {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		switch f.key() {
		case -1:
			r.key = f.data
		case -2:
			r.end = f.data
		case 3:
			r.prevKV = f.number != 0
		}
	}
	return true
}

func (c *compare) readWire(b []byte) bool {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		switch f.key() {
		case 1:
			c.result = int32(f.number)
		case 2:
			c.target = int32(f.number)
		case -3:
			c.key = f.data
		case int(unionVersion), int(unionCreate), int(unionMod), int(unionLease):
			c.union, c.number, c.value = f.num, int64(f.number), nil
		case -int(unionValue):
			c.union, c.number, c.value = f.num, 0, f.data
		case -64:
			c.end = f.data
		}
	}
	return true
}

func (r *txnRequest) readWire(b []byte, depth int) bool {
	if depth > maxFastDepth {
		return false
	}
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		switch f.key() {
		case -1:
			r.compare = append(r.compare, compare{})
			ok = r.compare[len(r.compare)-1].readWire(f.data)
		case -2:
			r.success = append(r.success, requestOp{})
			ok = r.success[len(r.success)-1].readWire(f.data, depth)
		case -3:
			r.failure = append(r.failure, requestOp{})
			ok = r.failure[len(r.failure)-1].readWire(f.data, depth)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (o *requestOp) readWire(b []byte, depth int) bool {
	set := false
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		key := f.key()
		if key > -1 || key < -4 {
			continue
		}
		if set {
			return false // the last one wins, or is merged with the first: left to proto
		}
		set = true
		switch key {
		case -1:
			o.rng = new(rangeRequest)
			ok = o.rng.readWire(f.data)
		case -2:
			o.put = new(putRequest)
			ok = o.put.readWire(f.data)
		case -3:
			o.del = new(deleteRequest)
			ok = o.del.readWire(f.data)
		case -4:
			o.txn = new(txnRequest)
			ok = o.txn.readWire(f.data, depth+1)
		}
		if !ok {
			return false
		}
	}
	return true
}

// The fromProto functions are the slow path: the same requests from what proto.Unmarshal read.

func (r *rangeRequest) fromProto(p *pb.RangeRequest) {
	*r = rangeRequest{
		key: p.Key, end: p.RangeEnd, limit: p.Limit, revision: p.Revision,
		sortOrder: int32(p.SortOrder), sortTarget: int32(p.SortTarget),
		serializable: p.Serializable, keysOnly: p.KeysOnly, countOnly: p.CountOnly,
		minModRev: p.MinModRevision, maxModRev: p.MaxModRevision,
		minCreate: p.MinCreateRevision, maxCreate: p.MaxCreateRevision,
	}
}

func (r *putRequest) fromProto(p *pb.PutRequest) {
	*r = putRequest{key: p.Key, value: p.Value, lease: p.Lease, prevKV: p.PrevKv, ignoreValue: p.IgnoreValue, ignoreLease: p.IgnoreLease}
}

func (r *deleteRequest) fromProto(p *pb.DeleteRangeRequest) {
	*r = deleteRequest{key: p.Key, end: p.RangeEnd, prevKV: p.PrevKv}
}

func (r *txnRequest) fromProto(p *pb.TxnRequest) {
	*r = txnRequest{}
	for _, c := range p.Compare {
		r.compare = append(r.compare, compareFromProto(c))
	}
	r.success, r.failure = opsFromProto(p.Success), opsFromProto(p.Failure)
}

func compareFromProto(p *pb.Compare) compare {
	c := compare{result: int32(p.Result), target: int32(p.Target), key: p.Key, end: p.RangeEnd}
	switch u := p.TargetUnion.(type) {
	case *pb.Compare_Version:
		c.union, c.number = unionVersion, u.Version
	case *pb.Compare_CreateRevision:
		c.union, c.number = unionCreate, u.CreateRevision
	case *pb.Compare_ModRevision:
		c.union, c.number = unionMod, u.ModRevision
	case *pb.Compare_Value:
		c.union, c.value = unionValue, u.Value
	case *pb.Compare_Lease:
		c.union, c.number = unionLease, u.Lease
	}
	return c
}

func opsFromProto(ops []*pb.RequestOp) []requestOp {
	var out []requestOp
	for _, p := range ops {
		var o requestOp
		switch u := p.Request.(type) {
		case *pb.RequestOp_RequestRange:
			o.rng = new(rangeRequest)
			o.rng.fromProto(u.RequestRange)
		case *pb.RequestOp_RequestPut:
			o.put = new(putRequest)
			o.put.fromProto(u.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			o.del = new(deleteRequest)
			o.del.fromProto(u.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			o.txn = new(txnRequest)
			o.txn.fromProto(u.RequestTxn)
		}
		out = append(out, o)
	}
	return out
}
