package etcdapi

import (
	"context"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

const kvService = "etcdserverpb.KV"

// kvServiceDesc describes the KV service with handlers that take and return the messages of the hand-written codec.
func (a *API) kvServiceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: kvService,
		HandlerType: (*any)(nil),
		Metadata:    pb.KV_ServiceDesc.Metadata,
		Methods: []grpc.MethodDesc{
			unary(a, kvService, "Range", (*API).rangeKV),
			unary(a, kvService, "Put", (*API).put),
			unary(a, kvService, "DeleteRange", (*API).deleteRange),
			unary(a, kvService, "Txn", (*API).txn),
			unary(a, kvService, "Compact", (*API).compact),
		},
		Streams: []grpc.StreamDesc{{
			StreamName: "RangeStream", ServerStreams: true,
			Handler: func(_ any, ss grpc.ServerStream) error { return a.rangeStream(ss) },
		}},
	}
}

// unary makes a method of fn, whose request is a *T.
func unary[T, R any](a *API, service, name string, fn func(*API, context.Context, *T) (R, error)) grpc.MethodDesc {
	full := "/" + service + "/" + name
	h := func(ctx context.Context, req any) (any, error) { return fn(a, ctx, req.(*T)) }
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			req := new(T)
			if err := decode(req); err != nil {
				return nil, err
			}
			return a.serve(ctx, a.methods[full], req, h)
		},
	}
}

func (a *API) rangeKV(ctx context.Context, c *rangeCall) (*rangeResponse, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	who, err := a.identify(ctx)
	if err != nil {
		return nil, err
	}
	page, err := a.core.Range(ctx, who, core.RangeRequest{Space: mvcc.SpaceEtcd, Query: c.query(), Serializable: c.serializable})
	if err != nil {
		return nil, err
	}
	return &rangeResponse{header: a.headerAt(page.Revision), kvs: page.KVs, more: page.More, count: page.Count}, nil
}

// rangeStream sends a range in chunks. Only the last one has a header, the count and the word whether there is more.
func (a *API) rangeStream(ss grpc.ServerStream) error {
	var c rangeCall
	if err := ss.RecvMsg(&c); err != nil {
		return err
	}
	if err := c.checkStream(); err != nil {
		return err
	}
	ctx := ss.Context()
	who, err := a.identify(ctx)
	if err != nil {
		return err
	}
	req := core.RangeRequest{Space: mvcc.SpaceEtcd, Query: c.query(), Serializable: c.serializable}
	send := func(page mvcc.Page, last bool) error {
		m := &rangeStreamResponse{rangeResponse{noHeader: !last, kvs: page.KVs}}
		if last {
			m.header, m.more, m.count = a.headerAt(page.Revision), page.More, page.Count
		}
		return ss.SendMsg(m)
	}
	if req.Query.Target != mvcc.SortByKey {
		// A target without an order: etcd sorts, though only within its chunks; what is sorted comes in one piece here.
		page, err := a.core.Range(ctx, who, req)
		if err != nil {
			return err
		}
		return send(page, true)
	}
	return a.core.RangeStream(ctx, who, req, int64(a.o.MaxRequestBytes), send)
}

// fits refuses a request that is larger than one entry of the log may be.
func (a *API) fits(size int) error {
	if size > a.o.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

func (a *API) put(ctx context.Context, c *putCall) (*putResponse, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	who, err := a.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.fits(c.size); err != nil {
		return nil, err
	}
	res, err := a.core.Put(ctx, who, c.putRequest.put())
	if err != nil {
		return nil, err
	}
	return &putResponse{header: a.headerAt(res.Revision), prev: res.Prev}, nil
}

func (a *API) deleteRange(ctx context.Context, c *deleteCall) (*deleteResponse, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	who, err := a.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.fits(c.size); err != nil {
		return nil, err
	}
	res, err := a.core.Delete(ctx, who, c.deleteRequest.delete())
	if err != nil {
		return nil, err
	}
	return &deleteResponse{header: a.headerAt(res.Revision), deleted: res.Deleted, prev: res.Prev}, nil
}

func (a *API) txn(ctx context.Context, c *txnCall) (*txnResponse, error) {
	if err := c.check(a.o.MaxTxnOps); err != nil {
		return nil, err
	}
	for _, ops := range [2][]requestOp{c.success, c.failure} {
		if err := checkOverlap(ops); err != nil {
			return nil, err
		}
	}
	who, err := a.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.fits(c.size); err != nil {
		return nil, err
	}
	t, serializable := c.txnRequest.txn()
	res, err := a.core.Txn(ctx, who, t, serializable)
	if err != nil {
		return nil, err
	}
	return newTxnResponse(a.headerAt(res.Revision), res), nil
}

func (a *API) compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	who, err := a.identify(ctx)
	if err != nil {
		return nil, err
	}
	rev, err := a.core.Compact(ctx, who, &state.Compact{Space: mvcc.SpaceEtcd, Revision: r.Revision}, r.Physical)
	if err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: a.headerAt(rev).proto()}, nil
}

// proto returns h for the answers that are not written by hand.
func (h header) proto() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: h.cluster, MemberId: h.member, Revision: h.revision, RaftTerm: h.term}
}
