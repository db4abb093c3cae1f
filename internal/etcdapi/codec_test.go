package etcdapi

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

func testCodec() codec {
	return codec{received: new(atomic.Uint64), sent: new(atomic.Uint64), panicked: func(what string, p any) error {
		return fmt.Errorf("%s panicked: %v", what, p)
	}}
}

// requestKinds pairs each hand-written reader with the message that proto.Unmarshal reads.
type requestKind struct {
	name string
	// read returns what the hand-written reader alone makes of b, and whether it wants to.
	read func(b []byte) (any, bool)
	// proto returns what proto.Unmarshal makes of b, in the same type.
	proto func(b []byte) (any, error)
	// decode is the whole path, as the codec takes it.
	decode func(b []byte) (any, error)
}

func requestKinds() []requestKind {
	return []requestKind{
		{"range",
			func(b []byte) (any, bool) { var r rangeRequest; return &r, r.readWire(b) },
			func(b []byte) (any, error) {
				var p pb.RangeRequest
				var r rangeRequest
				err := proto.Unmarshal(b, &p)
				r.fromProto(&p)
				return &r, err
			},
			func(b []byte) (any, error) {
				var c rangeCall
				err := testCodec().Unmarshal(split(b), &c)
				return &c.rangeRequest, err
			}},
		{"put",
			func(b []byte) (any, bool) { var r putRequest; return &r, r.readWire(b) },
			func(b []byte) (any, error) {
				var p pb.PutRequest
				var r putRequest
				err := proto.Unmarshal(b, &p)
				r.fromProto(&p)
				return &r, err
			},
			func(b []byte) (any, error) {
				var c putCall
				err := testCodec().Unmarshal(split(b), &c)
				return &c.putRequest, err
			}},
		{"delete",
			func(b []byte) (any, bool) { var r deleteRequest; return &r, r.readWire(b) },
			func(b []byte) (any, error) {
				var p pb.DeleteRangeRequest
				var r deleteRequest
				err := proto.Unmarshal(b, &p)
				r.fromProto(&p)
				return &r, err
			},
			func(b []byte) (any, error) {
				var c deleteCall
				err := testCodec().Unmarshal(split(b), &c)
				return &c.deleteRequest, err
			}},
		{"txn",
			func(b []byte) (any, bool) { var r txnRequest; return &r, r.readWire(b, 0) },
			func(b []byte) (any, error) {
				var p pb.TxnRequest
				var r txnRequest
				err := proto.Unmarshal(b, &p)
				r.fromProto(&p)
				return &r, err
			},
			func(b []byte) (any, error) {
				var c txnCall
				err := testCodec().Unmarshal(split(b), &c)
				return &c.txnRequest, err
			}},
	}
}

// split cuts b as a transport may: one buffer, or two.
func split(b []byte) mem.BufferSlice {
	b = bytes.Clone(b)
	if len(b)%2 == 0 {
		return mem.BufferSlice{mem.SliceBuffer(b)}
	}
	return mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}
}

// normal makes nil of empty slices: whether an empty field was on the wire makes no difference to anybody.
func normal(v any) any {
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(reflect.NewAt(v.Field(i).Type(), v.Field(i).Addr().UnsafePointer()).Elem())
			}
		case reflect.Slice:
			if v.Len() == 0 {
				v.SetZero()
			}
			for i := range v.Len() {
				walk(v.Index(i))
			}
		}
	}
	walk(reflect.ValueOf(v))
	return v
}

func checkRequest(t *testing.T, b []byte) {
	t.Helper()
	for _, k := range requestKinds() {
		want, protoErr := k.proto(b)
		if got, ok := k.read(b); ok {
			if protoErr != nil {
				t.Errorf("%s: read by hand what proto refuses (%v): %x", k.name, protoErr, b)
			} else if !reflect.DeepEqual(normal(got), normal(want)) {
				t.Errorf("%s: %x read as\n%+v, by proto as\n%+v", k.name, b, got, want)
			}
		}
		got, err := k.decode(b)
		if (err == nil) != (protoErr == nil) {
			t.Errorf("%s: %x: decode says %v, proto says %v", k.name, b, err, protoErr)
		} else if err == nil && !reflect.DeepEqual(normal(got), normal(want)) {
			t.Errorf("%s: %x decoded as\n%+v, by proto as\n%+v", k.name, b, got, want)
		}
	}
}

// sampleRequests are messages of each kind, and of the odd shapes that clients may send.
func sampleRequests(tb testing.TB) [][]byte {
	var out [][]byte
	add := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, b)
		return b
	}
	rng := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), Limit: 500, Revision: -1, SortOrder: 7, SortTarget: pb.RangeRequest_MOD,
		Serializable: true, KeysOnly: true, CountOnly: true, MinModRevision: 1, MaxModRevision: 2, MinCreateRevision: 3, MaxCreateRevision: 1 << 62}
	put := &pb.PutRequest{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 300), Lease: -5, PrevKv: true, IgnoreValue: true, IgnoreLease: true}
	del := &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte{0}, PrevKv: true}
	inner := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del}}, {}}}
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{
			{Key: []byte("k"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 0}},
			{Key: []byte("k"), Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte("x")}, RangeEnd: []byte("z")},
			{Key: []byte("k"), Target: pb.Compare_LEASE, Result: 9, TargetUnion: &pb.Compare_Version{Version: 3}},
			{},
		},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}, {Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: rng}}},
	}
	add(rng)
	add(put)
	add(del)
	add(txn)
	add(&pb.PutRequest{})
	op := add(txn.Success[0])
	twice := append(append([]byte(nil), op...), op...) // a oneof that comes twice is merged
	out = append(out, protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), twice))
	deep := []byte(nil)
	for range 2 * maxFastDepth {
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), deep)
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), deep)
	}
	out = append(out, deep)
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	unknown = protowire.AppendTag(protowire.AppendTag(unknown, 77, protowire.StartGroupType), 77, protowire.EndGroupType)
	unknown = protowire.AppendVarint(protowire.AppendTag(unknown, 1, protowire.VarintType), 1) // the key, of another type
	out = append(out, append(unknown, out[1]...), []byte{0x0a, 0xff}, []byte{0x04}, []byte{0x00, 0x00},
		[]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}, []byte{0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	return out
}

func TestRequestsMatchProto(t *testing.T) {
	for _, b := range sampleRequests(t) {
		checkRequest(t, b)
		for i := range b {
			checkRequest(t, b[:i])
		}
	}
}

func FuzzRequests(f *testing.F) {
	for _, b := range sampleRequests(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkRequest(t, b) })
}

// maker makes random messages: the same one for the hand-written codec and for proto.
type maker struct{ *rand.Rand }

func (m maker) bytes(n int) []byte {
	if m.IntN(4) == 0 {
		return nil
	}
	b := make([]byte, m.IntN(n)+1)
	for i := range b {
		b[i] = byte(m.Uint32())
	}
	return b
}

func (m maker) int64() int64 {
	switch m.IntN(4) {
	case 0:
		return 0
	case 1:
		return int64(m.Uint64())
	}
	return m.Int64N(1 << (1 + m.IntN(40)))
}

func (m maker) header() (header, *pb.ResponseHeader) {
	h := header{cluster: uint64(m.int64()), member: uint64(m.int64()), revision: m.int64(), term: uint64(m.int64())}
	return h, h.proto()
}

func (m maker) kv() (mvcc.KV, *mvccpb.KeyValue) {
	kv := mvcc.KV{Key: m.bytes(40), Value: m.bytes(3000), CreateRevision: m.int64(), ModRevision: m.int64(), Version: m.int64(), Lease: m.int64()}
	return kv, kvProto(&kv)
}

func (m maker) kvs() (own []mvcc.KV, ref []*mvccpb.KeyValue) {
	for range m.IntN(4) {
		kv, p := m.kv()
		own, ref = append(own, kv), append(ref, p)
	}
	return own, ref
}

func (m maker) page() (mvcc.Page, *pb.RangeResponse) {
	p := mvcc.Page{More: m.IntN(2) == 0, Count: m.int64(), Revision: m.int64()}
	var ref []*mvccpb.KeyValue
	p.KVs, ref = m.kvs()
	return p, &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: p.Revision}, Kvs: ref, More: p.More, Count: p.Count}
}

func (m maker) txn(depth int) (*state.TxnResult, *pb.TxnResponse) {
	res := &state.TxnResult{Revision: m.int64(), Succeeded: m.IntN(2) == 0}
	ref := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: res.Succeeded}
	for range m.IntN(5) {
		var op state.OpResult
		var p pb.ResponseOp
		switch n := m.IntN(5); {
		case n == 0:
			page, rp := m.page()
			op.Range, p.Response = &page, &pb.ResponseOp_ResponseRange{ResponseRange: rp}
		case n == 1:
			put := &state.PutResult{Revision: m.int64()}
			pp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: put.Revision}}
			if m.IntN(2) == 0 {
				kv, kp := m.kv()
				put.Prev, pp.PrevKv = &kv, kp
			}
			op.Put, p.Response = put, &pb.ResponseOp_ResponsePut{ResponsePut: pp}
		case n == 2:
			del := &state.DeleteResult{Revision: m.int64(), Deleted: m.int64()}
			dp := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: del.Revision}, Deleted: del.Deleted}
			del.Prev, dp.PrevKvs = m.kvs()
			op.Delete, p.Response = del, &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dp}
		case n == 3 && depth < 4:
			inner, ip := m.txn(depth + 1)
			op.Txn, p.Response = inner, &pb.ResponseOp_ResponseTxn{ResponseTxn: ip}
		}
		res.Results = append(res.Results, op)
		ref.Responses = append(ref.Responses, &p)
	}
	return res, ref
}

func (m maker) watch() (*watchResponse, *pb.WatchResponse) {
	h, hp := m.header()
	r := &watchResponse{header: h, id: m.int64(), created: m.IntN(2) == 0, canceled: m.IntN(2) == 0, compactRevision: m.int64(),
		fragment: m.IntN(2) == 0}
	if m.IntN(2) == 0 {
		r.cancelReason = "a reason"
	}
	ref := &pb.WatchResponse{Header: hp, WatchId: r.id, Created: r.created, Canceled: r.canceled, CompactRevision: r.compactRevision,
		CancelReason: r.cancelReason, Fragment: r.fragment}
	for range m.IntN(6) {
		kv, kp := m.kv()
		e := mvcc.Event{Type: mvcc.EventType(m.IntN(2)), KV: kv}
		ep := &mvccpb.Event{Type: mvccpb.Event_EventType(e.Type), Kv: kp}
		var prev *mvcc.KV
		if m.IntN(2) == 0 {
			p, pp := m.kv()
			prev, ep.PrevKv = &p, pp
		}
		r.events = append(r.events, encodeEvent(&e, prev))
		ref.Events = append(ref.Events, ep)
	}
	return r, ref
}

func checkResponses(t *testing.T, seed uint64) {
	t.Helper()
	m := maker{rand.New(rand.NewPCG(seed, 1))}
	h, hp := m.header()

	page, pageRef := m.page()
	pageRef.Header = hp
	rng := rangeResponse{header: h, kvs: page.KVs, more: page.More, count: page.Count}
	same(t, &rng, pageRef)
	same(t, &rangeStreamResponse{rng}, &pb.RangeStreamResponse{RangeResponse: pageRef})
	chunk := rangeResponse{noHeader: true, kvs: page.KVs}
	same(t, &rangeStreamResponse{chunk}, &pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: pageRef.Kvs}})

	kv, kp := m.kv()
	same(t, &putResponse{header: h}, &pb.PutResponse{Header: hp})
	same(t, &putResponse{header: h, prev: &kv}, &pb.PutResponse{Header: hp, PrevKv: kp})

	kvs, kps := m.kvs()
	same(t, &deleteResponse{header: h, deleted: 7, prev: kvs}, &pb.DeleteRangeResponse{Header: hp, Deleted: 7, PrevKvs: kps})

	res, txnRef := m.txn(0)
	txnRef.Header = hp
	same(t, newTxnResponse(h, res), txnRef)

	w, watchRef := m.watch()
	same(t, w, watchRef)
}

// same checks that m goes over the wire exactly as ref does, and that it knew its size.
func same(t *testing.T, m wireMessage, ref proto.Message) {
	t.Helper()
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(ref)
	if err != nil {
		t.Fatal(err)
	}
	if m.wireSize() != len(want) {
		t.Fatalf("%T: size %d, proto has %d", m, m.wireSize(), len(want))
	}
	c := testCodec()
	out, err := c.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Materialize(); !bytes.Equal(got, want) {
		t.Fatalf("%T:\n got %x\nwant %x", m, got, want)
	}
	if c.sent.Load() != uint64(len(want)) {
		t.Fatalf("%T: counted %d bytes of %d", m, c.sent.Load(), len(want))
	}
	out.Free()
}

func TestResponsesMatchProto(t *testing.T) {
	for seed := range uint64(300) {
		checkResponses(t, seed)
	}
}

func FuzzResponses(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(checkResponses)
}

// TestGoldenWire pins bytes: a change here is a change that clients see.
func TestGoldenWire(t *testing.T) {
	h := header{cluster: 1, member: 2, revision: 300, term: 4}
	kv := mvcc.KV{Key: []byte("k"), Value: []byte("v"), CreateRevision: 5, ModRevision: 6, Version: 2, Lease: 7}
	for name, c := range map[string]struct {
		m    wireMessage
		want string
	}{
		"put":   {&putResponse{header: h}, "\x0a\x09\x08\x01\x10\x02\x18\xac\x02\x20\x04"},
		"range": {&rangeResponse{header: h, kvs: []mvcc.KV{kv}, count: 1}, "\x0a\x09\x08\x01\x10\x02\x18\xac\x02\x20\x04" + "\x12\x0e\x0a\x01k\x10\x05\x18\x06\x20\x02\x2a\x01v\x30\x07" + "\x20\x01"},
		"watch": {&watchResponse{header: h, events: [][]byte{encodeEvent(&mvcc.Event{Type: mvcc.EventDelete, KV: mvcc.KV{Key: []byte("k"), ModRevision: 6}}, nil)}},
			"\x0a\x09\x08\x01\x10\x02\x18\xac\x02\x20\x04" + "\x5a\x09\x08\x01\x12\x05\x0a\x01k\x18\x06"},
		"nested txn": {newTxnResponse(h, &state.TxnResult{Succeeded: true, Results: []state.OpResult{{Txn: &state.TxnResult{}}, {}}}),
			"\x0a\x09\x08\x01\x10\x02\x18\xac\x02\x20\x04" + "\x10\x01" + "\x1a\x04\x22\x02\x0a\x00" + "\x1a\x00"},
	} {
		if got := c.m.appendWire(nil); string(got) != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestCodecRefusesOtherTypes(t *testing.T) {
	c := testCodec()
	if _, err := c.Marshal(42); err == nil {
		t.Error("marshalled an int")
	}
	if err := c.Unmarshal(nil, new(int)); err == nil {
		t.Error("unmarshalled into an int")
	}
	if out, err := c.Marshal((*putResponse)(nil)); err == nil || out != nil {
		t.Error("a panic while encoding is no error")
	}
	if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer("\x0a\x01k")}, (*putCall)(nil)); err == nil {
		t.Error("a panic while decoding is no error")
	}
}

// TestDecodedRequestsOwnTheirBytes overwrites the buffer that a request was read from, as the transport will.
func TestDecodedRequestsOwnTheirBytes(t *testing.T) {
	for _, sample := range sampleRequests(t) {
		for _, k := range []struct {
			name string
			make func() wireRequest
		}{
			{"range", func() wireRequest { return new(rangeCall) }}, {"put", func() wireRequest { return new(putCall) }},
			{"delete", func() wireRequest { return new(deleteCall) }}, {"txn", func() wireRequest { return new(txnCall) }},
		} {
			b := bytes.Clone(sample)
			kept, fresh := k.make(), k.make()
			if err := kept.decode(b); err != nil {
				continue
			}
			for i := range b {
				b[i] = 0xee
			}
			if err := fresh.decode(sample); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(kept, fresh) {
				t.Errorf("%s: %x shares bytes with its buffer", k.name, sample)
			}
		}
	}
}
