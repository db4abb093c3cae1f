package etcdapi

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// codec is the gRPC codec of the server. The types of the hot calls read and write themselves; everything else goes
// through the protobuf library. On the wire there is no difference.
type codec struct {
	received, sent *atomic.Uint64 // bytes of messages
	// panicked makes an error of what recover returned: gRPC calls the codec where nobody else would catch it.
	panicked func(what string, p any) error
}

// Name returns the content-subtype, which is that of the protobuf codec: clients do not know that this is another one.
func (codec) Name() string { return "proto" }

// spliceAt is the size from which an encoded event is handed to the transport as it is instead of being copied.
const spliceAt = 2 << 10

// Marshal encodes v. The buffers belong to the caller.
func (c codec) Marshal(v any) (out mem.BufferSlice, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, c.panicked("encoding", p)
		}
	}()
	switch m := v.(type) {
	case *watchResponse:
		out = marshalWatch(m)
	case wireMessage:
		out = marshalWire(m)
	default:
		out, err = marshalProto(v)
	}
	if err == nil {
		c.sent.Add(uint64(out.Len()))
	}
	return out, err
}

func marshalWire(m wireMessage) mem.BufferSlice {
	n := m.wireSize()
	return fill(n, m.appendWire)
}

// answers are the buffers of large answers. gRPC's own pool has nothing between 32 KiB and 1 MiB and clears a whole buffer each
// time, so a page of a list would cost the clearing of a megabyte, and hold one as long as its reader takes.
var answers = mem.NewTieredBufferPool(4<<10, 8<<10, 16<<10, 32<<10, 64<<10, 96<<10, 128<<10, 192<<10, 256<<10, 384<<10, 512<<10, 768<<10, 1<<20)

// fill returns n bytes, written by write, in a pooled buffer if they are many.
func fill(n int, write func([]byte) []byte) mem.BufferSlice {
	if mem.IsBelowBufferPoolingThreshold(n) {
		return mem.BufferSlice{mem.SliceBuffer(write(make([]byte, 0, n)))}
	}
	buf := answers.Get(n)
	*buf = write((*buf)[:0])
	return mem.BufferSlice{mem.NewBuffer(buf, answers)}
}

// marshalWatch joins the head of a response with events that are encoded already. Large ones are not copied.
func marshalWatch(m *watchResponse) mem.BufferSlice {
	small, large := m.headSize(), 0
	for _, e := range m.events {
		if len(e) < spliceAt {
			small += len(e)
		} else {
			large++
		}
	}
	if large == 0 {
		return fill(small, m.appendWire)
	}
	out := make(mem.BufferSlice, 0, 2*large+1)
	run := m.appendHead(make([]byte, 0, small))
	for _, e := range m.events {
		if len(e) < spliceAt {
			run = append(run, e...)
			continue
		}
		if len(run) > 0 {
			out = append(out, mem.SliceBuffer(run))
			run = run[len(run):]
		}
		out = append(out, mem.SliceBuffer(e))
	}
	if len(run) > 0 {
		out = append(out, mem.SliceBuffer(run))
	}
	return out
}

func marshalProto(v any) (mem.BufferSlice, error) {
	m := protoMessage(v)
	if m == nil {
		return nil, fmt.Errorf("cannot marshal %T", v)
	}
	opts := proto.MarshalOptions{UseCachedSize: true}
	n := opts.Size(m)
	var err error
	out := fill(n, func(b []byte) []byte {
		var filled []byte
		if filled, err = opts.MarshalAppend(b, m); err != nil {
			return b
		}
		return filled
	})
	if err != nil {
		out.Free()
		return nil, err
	}
	return out, nil
}

// Unmarshal decodes data into v, which keeps no reference to data.
func (c codec) Unmarshal(data mem.BufferSlice, v any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.panicked("decoding", p)
		}
	}()
	c.received.Add(uint64(data.Len()))
	var b []byte
	if len(data) == 1 {
		b = data[0].ReadOnlyData()
	} else {
		buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buf.Free()
		b = buf.ReadOnlyData()
	}
	if r, ok := v.(wireRequest); ok {
		return r.decode(b)
	}
	m := protoMessage(v)
	if m == nil {
		return fmt.Errorf("cannot unmarshal into %T", v)
	}
	return proto.Unmarshal(b, m)
}

func protoMessage(v any) proto.Message {
	switch m := v.(type) {
	case proto.Message:
		return m
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m)
	}
	return nil
}

// A wireRequest is a request of a hot call.
type wireRequest interface {
	// decode reads the request from b and keeps no reference to it.
	decode(b []byte) error
}

// The calls are the hot requests as the handlers get them: read, owning their bytes, with their size on the wire.
type (
	rangeCall struct{ rangeRequest }
	putCall   struct {
		putRequest
		size int
	}
	deleteCall struct {
		deleteRequest
		size int
	}
	txnCall struct {
		txnRequest
		size int
	}
)

func (c *rangeCall) decode(b []byte) error {
	if !c.rangeRequest.readWire(b) {
		var p pb.RangeRequest
		if err := proto.Unmarshal(b, &p); err != nil {
			return err
		}
		c.rangeRequest.fromProto(&p)
		return nil
	}
	c.key, c.end = ownPair(c.key, c.end)
	return nil
}

func (c *putCall) decode(b []byte) error {
	c.size = len(b)
	if !c.putRequest.readWire(b) {
		var p pb.PutRequest
		if err := proto.Unmarshal(b, &p); err != nil {
			return err
		}
		c.putRequest.fromProto(&p)
		return nil
	}
	c.key, c.value = ownPair(c.key, c.value)
	return nil
}

func (c *deleteCall) decode(b []byte) error {
	c.size = len(b)
	if !c.deleteRequest.readWire(b) {
		var p pb.DeleteRangeRequest
		if err := proto.Unmarshal(b, &p); err != nil {
			return err
		}
		c.deleteRequest.fromProto(&p)
		return nil
	}
	c.key, c.end = ownPair(c.key, c.end)
	return nil
}

func (c *txnCall) decode(b []byte) error {
	c.size = len(b)
	own := append(make([]byte, 0, len(b)), b...)
	if !c.txnRequest.readWire(own, 0) {
		var p pb.TxnRequest
		if err := proto.Unmarshal(b, &p); err != nil {
			return err
		}
		c.txnRequest.fromProto(&p)
	}
	return nil
}

// ownPair copies a and b into one allocation. When b is empty, the byte after a is a zero within a's capacity: that is
// the room where spanOf finds the end of a single key's span.
func ownPair(a, b []byte) ([]byte, []byte) {
	if len(b) == 0 {
		own := make([]byte, len(a)+1)
		copy(own, a)
		return own[:len(a)], nil
	}
	own := make([]byte, 0, len(a)+len(b))
	own = append(append(own, a...), b...)
	return own[:len(a):len(a)], own[len(a):]
}
