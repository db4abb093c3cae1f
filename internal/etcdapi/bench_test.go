package etcdapi

import (
	"context"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// The benchmarks measure what this package adds to grpc-go and core: decoding, the guard, encoding.

func BenchmarkDecodePut(b *testing.B) {
	wire, err := proto.Marshal(&pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256), Lease: 5})
	must(b, err)
	c, data := testCodec(), mem.BufferSlice{mem.SliceBuffer(wire)}
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, c.Unmarshal(data, new(putCall)))
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, c.Unmarshal(data, new(pb.PutRequest)))
		}
	})
}

func BenchmarkEncodeRange(b *testing.B) {
	kv := mvcc.KV{Key: make([]byte, 32), Value: make([]byte, 256), CreateRevision: 1e6, ModRevision: 1e6, Version: 3}
	h := header{1 << 60, 1 << 61, 1e6, 5}
	c := testCodec()
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out, err := c.Marshal(&rangeResponse{header: h, kvs: []mvcc.KV{kv}, count: 1})
			must(b, err)
			out.Free()
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out, err := c.Marshal(&pb.RangeResponse{Header: h.proto(), Kvs: []*mvccpb.KeyValue{kvProto(&kv)}, Count: 1})
			must(b, err)
			out.Free()
		}
	})
}

// BenchmarkHandler runs calls as grpc-go would, without the transport.
func BenchmarkHandler(b *testing.B) {
	m := startMember(b, memberOptions{})
	_, err := m.core.Put(context.Background(), *m.who.Load(), &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("key"), Value: make([]byte, 256)})
	must(b, err)
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "3.7",
		":authority", "127.0.0.1:2379", "content-type", "application/grpc", "user-agent", "grpc-go/1.85.0"))
	desc, c := m.api.kvServiceDesc(), testCodec()
	call := func(b *testing.B, method int, req proto.Message) {
		wire, err := proto.Marshal(req)
		must(b, err)
		data := mem.BufferSlice{mem.SliceBuffer(wire)}
		b.ReportAllocs()
		for b.Loop() {
			resp, err := desc.Methods[method].Handler(m.api, ctx, func(v any) error { return c.Unmarshal(data, v) }, nil)
			must(b, err)
			out, err := c.Marshal(resp)
			must(b, err)
			out.Free()
		}
	}
	b.Run("Range", func(b *testing.B) {
		call(b, 0, &pb.RangeRequest{Key: []byte("key"), Serializable: true})
	})
	b.Run("Refused", func(b *testing.B) { // the guard and the codec alone
		data := mem.BufferSlice{mem.SliceBuffer(nil)}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := desc.Methods[0].Handler(m.api, ctx, func(v any) error { return c.Unmarshal(data, v) }, nil); err == nil {
				b.Fatal("an empty request was served")
			}
		}
	})
}
