package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/policy"
)

// This file stands around every call: what the metadata asks for, who asks, counting, and what a panic or an error of
// the handler becomes.

// firstValue returns the first value of a key of the metadata that came with a call.
func firstValue(ctx context.Context, key string) (string, bool) {
	v := metadata.ValueFromIncomingContext(ctx, key)
	if len(v) == 0 {
		return "", false
	}
	return v[0], true
}

// identify returns who makes the call: the connection's principal, as the user that its token or name stands for.
func (a *API) identify(ctx context.Context) (policy.Principal, error) {
	token, ok := firstValue(ctx, rpctypes.TokenFieldNameGRPC)
	if !ok {
		token, _ = firstValue(ctx, rpctypes.TokenFieldNameSwagger)
	}
	return a.core.Identify(a.o.Principal(ctx), strings.TrimPrefix(token, "Bearer "))
}

// admit checks what a call's metadata asks for before the call is looked at.
func (a *API) admit(ctx context.Context, stream bool) error {
	ver, ok := firstValue(ctx, rpctypes.MetadataClientAPIVersionKey)
	if !ok {
		ver = "unknown"
	}
	if !utf8.ValidString(ver) {
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	a.metrics.clients.count(stream, ver)
	if requiresLeader(ctx) {
		if _, lost := a.core.NoLeaderSince(); lost {
			return rpctypes.ErrGRPCNoLeader
		}
	}
	return nil
}

func requiresLeader(ctx context.Context) bool {
	v, ok := firstValue(ctx, rpctypes.MetadataRequireLeaderKey)
	return ok && v == rpctypes.MetadataHasLeader
}

// leaderLost returns a channel that is closed when a stream which asked for a leader has to end; nil if it did not ask.
func (a *API) leaderLost(ctx context.Context) <-chan struct{} {
	if !requiresLeader(ctx) {
		return nil
	}
	return a.core.LeaderLost()
}

// serve runs one unary call.
func (a *API) serve(ctx context.Context, m *method, req any, h grpc.UnaryHandler) (resp any, err error) {
	start := a.o.Now()
	m.started.Add(1)
	m.received.Add(1)
	defer func() {
		if p := recover(); p != nil {
			err = a.panicked(m.name, p)
		}
		if err != nil {
			resp, err = nil, a.outward(m.name, err)
		} else {
			m.sent.Add(1)
		}
		a.finish(ctx, m, start, err)
	}()
	if err = a.admit(ctx, false); err != nil {
		return nil, err
	}
	return h(ctx, req)
}

// outward returns err as the client sees it. What is hidden from the client is logged.
func (a *API) outward(name string, err error) error {
	out := grpcError(err)
	if status.Code(out) == codes.Internal {
		a.log.Error("internal error", "method", name, "error", err)
	}
	return out
}

// panicked makes an error of what recover returned.
func (a *API) panicked(name string, p any) error {
	if lab.Failpoint(p) {
		panic(p)
	}
	a.metrics.panics.Add(1)
	a.log.Error("a request panicked", "method", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "panic")
}

// finish counts an ended call and logs a slow one. Nothing that a user wrote is logged.
func (a *API) finish(ctx context.Context, m *method, start time.Time, err error) {
	code := status.Code(err)
	m.handled[min(int(code), len(m.handled)-1)].Add(1)
	took := a.o.Now().Sub(start)
	if m.latency != nil {
		m.latency.Observe(took.Seconds())
	}
	if a.o.WarnAfter < 0 || took <= a.o.WarnAfter || m.kind != "unary" {
		return
	}
	remote := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		remote = p.Addr.String()
	}
	a.log.LogAttrs(ctx, slog.LevelWarn, "request stats", slog.Time("start time", start), slog.Duration("time spent", took),
		slog.String("remote", remote), slog.String("response type", m.name), slog.String("code", code.String()))
}

// interceptUnary serves the calls whose handlers are generated.
func (a *API) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	m := a.methods[info.FullMethod]
	if m == nil {
		return nil, status.Error(codes.Unimplemented, "unknown method")
	}
	return a.serve(ctx, m, req, h)
}

// interceptStream serves every stream.
func (a *API) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	m := a.methods[info.FullMethod]
	if m == nil {
		return status.Error(codes.Unimplemented, "unknown method")
	}
	start := a.o.Now()
	m.started.Add(1)
	defer func() {
		if p := recover(); p != nil {
			err = a.panicked(m.name, p)
		}
		if err != nil {
			err = a.outward(m.name, err)
		}
		a.finish(ss.Context(), m, start, err)
	}()
	if err := a.admit(ss.Context(), true); err != nil {
		return err
	}
	return h(srv, countedStream{ServerStream: ss, m: m})
}

// countedStream counts the messages of a stream.
type countedStream struct {
	grpc.ServerStream
	m *method
}

func (s countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.m.sent.Add(1)
	}
	return err
}

func (s countedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.m.received.Add(1)
	}
	return err
}

// receive runs loop, which reads from a stream, in a goroutine of its own: a blocked RecvMsg ends only after the handler
// has returned, so a handler that has to end for another reason cannot wait for it. Wait does.
func (a *API) receive(name string, loop func() error) <-chan error {
	ended := make(chan error, 1)
	a.goroutines.Go(func() {
		var err error
		defer func() {
			if p := recover(); p != nil {
				err = a.panicked(name, p)
			}
			ended <- err
		}()
		err = loop()
	})
	return ended
}

// streamEnd is the error of a stream whose context ended.
func streamEnd(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	return ctx.Err()
}
