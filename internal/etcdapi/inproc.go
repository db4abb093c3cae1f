package etcdapi

import (
	"context"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// loopback is a gRPC connection to the API within the process. The gateway speaks through it, so that a request over JSON
// meets the same handlers, interceptors, limits and codec as one over gRPC, as the principal of its own connection.
//
// It makes no network connection; the context that arrives at the handler is the caller's, with its outgoing metadata
// turned into incoming metadata.
type loopback struct {
	a       *API
	unary   map[string]unaryTarget
	streams map[string]streamTarget
}

type unaryTarget struct {
	desc *grpc.MethodDesc
	impl any
}

type streamTarget struct {
	desc *grpc.StreamDesc
	impl any
}

func newLoopback(a *API) *loopback {
	l := &loopback{a: a, unary: make(map[string]unaryTarget), streams: make(map[string]streamTarget)}
	for _, s := range a.services {
		for i := range s.desc.Methods {
			d := &s.desc.Methods[i]
			l.unary["/"+s.desc.ServiceName+"/"+d.MethodName] = unaryTarget{d, s.impl}
		}
		for i := range s.desc.Streams {
			d := &s.desc.Streams[i]
			l.streams["/"+s.desc.ServiceName+"/"+d.StreamName] = streamTarget{d, s.impl}
		}
	}
	return l
}

// incoming turns what a client sends into what a server receives. A context that already came in through gRPC keeps
// nothing of that.
func incoming(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	return metadata.NewIncomingContext(ctx, md)
}

// Invoke makes a unary call.
func (l *loopback) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	t, ok := l.unary[method]
	if !ok {
		return status.Error(codes.Unimplemented, "unknown method "+method)
	}
	ctx = grpc.NewContextWithServerTransportStream(incoming(ctx), &headerSink{method: method})
	resp, err := t.desc.Handler(t.impl, ctx, func(v any) error { return l.pass(args, v) }, l.a.interceptUnary)
	if err != nil {
		return status.Convert(err).Err()
	}
	return transcode(resp, reply)
}

// pass hands a request over as the wire would: encoded, measured, decoded.
func (l *loopback) pass(from, to any) error {
	m, ok := from.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T is not a message", from)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if limit := l.a.o.MaxRequestBytes + messageOverhead; len(b) > limit {
		return status.Error(codes.ResourceExhausted, fmt.Sprintf("received message larger than max (%d vs. %d)", len(b), limit))
	}
	if err := l.a.codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, to); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// transcode reads an answer into the message that the caller wants.
func transcode(from, to any) error {
	m, ok := to.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T is not a message", to)
	}
	var b []byte
	switch f := from.(type) {
	case wireMessage:
		b = f.appendWire(nil)
	case proto.Message:
		var err error
		if b, err = proto.Marshal(f); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	default:
		return status.Errorf(codes.Internal, "%T is not a message", from)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// headerSink lets a handler set headers, which nobody reads.
type headerSink struct{ method string }

func (h *headerSink) Method() string               { return h.method }
func (h *headerSink) SetHeader(metadata.MD) error  { return nil }
func (h *headerSink) SendHeader(metadata.MD) error { return nil }
func (h *headerSink) SetTrailer(metadata.MD) error { return nil }

// NewStream opens a streaming call. Its handler runs until it returns or ctx ends; Wait waits for it.
func (l *loopback) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	t, ok := l.streams[method]
	if !ok {
		return nil, status.Error(codes.Unimplemented, "unknown method "+method)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe{l: l, ctx: ctx, up: make(chan any), upEnd: make(chan struct{}), down: make(chan any), done: make(chan struct{})}
	info := &grpc.StreamServerInfo{FullMethod: method, IsClientStream: t.desc.ClientStreams, IsServerStream: t.desc.ServerStreams}
	l.a.goroutines.Go(func() {
		defer cancel()
		p.err = l.a.interceptStream(t.impl, serverEnd{p, incoming(ctx)}, info, t.desc.Handler)
		close(p.done)
	})
	return clientEnd{p}, nil
}

// pipe joins the two ends of a stream. Messages are handed over one by one, without a buffer.
type pipe struct {
	l     *loopback
	ctx   context.Context
	up    chan any      // client to server
	upEnd chan struct{} // closed by CloseSend
	down  chan any      // server to client
	done  chan struct{} // closed when the handler has returned err
	err   error
}

// clientEnd is the gateway's end of a pipe.
type clientEnd struct{ *pipe }

func (c clientEnd) Header() (metadata.MD, error) { return nil, nil }
func (c clientEnd) Trailer() metadata.MD         { return nil }
func (c clientEnd) Context() context.Context     { return c.ctx }

func (c clientEnd) CloseSend() error {
	close(c.upEnd)
	abandoned(c.ctx)
	return nil
}

func (c clientEnd) SendMsg(m any) error {
	select {
	case c.up <- proto.Clone(m.(proto.Message)):
		return nil
	case <-c.done:
		return io.EOF // the answer is in RecvMsg
	case <-c.ctx.Done():
		select {
		case <-c.done: // the handler's end cancels too: its answer comes first
			return io.EOF
		default:
		}
		return status.FromContextError(c.ctx.Err()).Err()
	}
}

func (c clientEnd) RecvMsg(m any) error {
	select {
	case from := <-c.down:
		return transcode(from, m)
	case <-c.done:
		return c.ended(m)
	case <-c.ctx.Done():
		select {
		case <-c.done: // the handler's end cancels too: its answer comes first
			return c.ended(m)
		default:
		}
		return status.FromContextError(c.ctx.Err()).Err()
	}
}

// ended reads what there is after the handler has returned.
func (c clientEnd) ended(m any) error {
	select {
	case from := <-c.down: // both were ready
		return transcode(from, m)
	default:
	}
	if c.err != nil {
		return status.Convert(c.err).Err()
	}
	return io.EOF
}

// serverEnd is the handler's end of a pipe.
type serverEnd struct {
	*pipe
	in context.Context
}

func (s serverEnd) SetHeader(metadata.MD) error  { return nil }
func (s serverEnd) SendHeader(metadata.MD) error { return nil }
func (s serverEnd) SetTrailer(metadata.MD)       {}
func (s serverEnd) Context() context.Context     { return s.in }

func (s serverEnd) SendMsg(m any) error {
	select {
	case s.down <- m:
		return nil
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

func (s serverEnd) RecvMsg(m any) error {
	select {
	case from := <-s.up:
		return s.l.pass(from, m)
	default:
	}
	select {
	case from := <-s.up:
		return s.l.pass(from, m)
	case <-s.upEnd:
		return io.EOF
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

// isGRPC reports whether an HTTP request is a gRPC call.
func isGRPC(contentType string) bool { return strings.HasPrefix(contentType, "application/grpc") }
