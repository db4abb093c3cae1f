package etcdapi

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
)

const watchService = "etcdserverpb.Watch"

// everyWatch is the id of a response that is about no single watch: a refused creation, or the whole stream's progress.
const everyWatch = -1

// Reasons for refusing a watch that etcd sends as plain text.
const (
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonEmptyRange  = "mvcc: watcher range is empty"
)

func (a *API) watchServiceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: watchService,
		HandlerType: (*any)(nil),
		Metadata:    pb.Watch_ServiceDesc.Metadata,
		Streams: []grpc.StreamDesc{{
			StreamName: "Watch", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, ss grpc.ServerStream) error { return a.watch(ss) },
		}},
	}
}

// watchSession is one Watch call. Responses are written under mu, and so is everything that decides their order: a watch
// is created and its creation answered in one hold of mu, so no event of it can be written before.
type watchSession struct {
	a    *API
	ss   grpc.ServerStream
	name string

	mu     sync.Mutex
	stream *core.WatchStream // of who; nil until the first creation
	who    policy.Principal
	byID   map[int64]*watch // by the id that the client knows
	// Core gets ids of the session's own that are never used again. So an event that core had handed out before its watch
	// was cancelled cannot be taken for one of a new watch under the same id.
	byInner   map[int64]*watch
	nextID    int64
	nextInner int64
	failed    chan error // capacity 1: why the stream of core broke
}

// watch is one watch of a session.
type watch struct {
	id, inner        int64
	prevKV, fragment bool
}

func (a *API) watch(ss grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	s := &watchSession{
		a: a, ss: ss, name: "/" + watchService + "/Watch", byID: map[int64]*watch{}, byInner: map[int64]*watch{},
		failed: make(chan error, 1),
	}
	defer s.close()
	requests := a.receive(s.name, func() error { return s.requests(ctx) })
	for {
		select {
		case err := <-requests:
			if err == nil {
				requests = nil // the client has no more to ask; events go on
				continue
			}
			return watchEnd(err)
		case err := <-s.failed:
			return watchEnd(err)
		case <-a.leaderLost(ctx):
			return rpctypes.ErrGRPCNoLeader
		case <-ctx.Done():
			return watchEnd(streamEnd(ctx))
		}
	}
}

func watchEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

func (s *watchSession) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != nil {
		s.stream.Close()
	}
}

// fail ends the session because stream broke, unless another stream has taken its place.
func (s *watchSession) fail(stream *core.WatchStream, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != stream {
		return
	}
	select {
	case s.failed <- err:
	default:
	}
}

// requests answers what the client asks until it has no more.
func (s *watchSession) requests(ctx context.Context) error {
	for {
		var r pb.WatchRequest
		if err := s.ss.RecvMsg(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var err error
		switch u := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if u.CreateRequest != nil {
				err = s.create(ctx, u.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if u.CancelRequest != nil {
				err = s.cancel(u.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			s.progress()
		}
		if err != nil {
			return err
		}
	}
}

// create starts a watch and answers; the error is one of the stream, not of the request.
func (s *watchSession) create(ctx context.Context, r *pb.WatchCreateRequest) error {
	key := r.Key
	if len(key) == 0 {
		key = []byte{0} // the smallest key
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.a.header()
	w, reason := s.startLocked(ctx, r, key, h.revision)
	if reason != "" {
		return s.ss.SendMsg(&watchResponse{header: h, id: everyWatch, created: true, canceled: true, cancelReason: reason})
	}
	return s.ss.SendMsg(&watchResponse{header: h, id: w.id, created: true})
}

// startLocked starts a watch that gets what comes after revision now, unless it asks for another start. It returns why not
// as the client is told.
func (s *watchSession) startLocked(ctx context.Context, r *pb.WatchCreateRequest, key []byte, now int64) (*watch, string) {
	if r.StartRevision < 0 {
		return nil, rpctypes.ErrCompacted.Error()
	}
	if err := s.openLocked(ctx); err != nil {
		return nil, s.a.outward(s.name, err).Error()
	}
	req := core.WatchRequest{Span: spanOf(key, r.RangeEnd), StartRevision: r.StartRevision, PrevKV: r.PrevKv, ProgressNotify: r.ProgressNotify}
	if req.StartRevision == 0 {
		// A client that reconnects goes on from the revision in the answer: the watch begins exactly after it.
		req.StartRevision = now + 1
	}
	if req.Span.Empty() {
		return nil, reasonEmptyRange
	}
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			req.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			req.NoDelete = true
		}
	}
	id := r.WatchId
	if id == 0 {
		for s.byID[s.nextID] != nil {
			s.nextID++
		}
		id = s.nextID
	} else if s.byID[id] != nil {
		return nil, reasonDuplicateID
	}
	s.nextInner++
	req.ID = s.nextInner
	inner, err := s.stream.Watch(req)
	if err != nil {
		return nil, s.a.outward(s.name, err).Error()
	}
	if r.WatchId == 0 {
		s.nextID++
	}
	w := &watch{id: id, inner: inner, prevKV: r.PrevKv, fragment: r.Fragment}
	s.byID[id], s.byInner[inner] = w, w
	return w, ""
}

// openLocked makes sure that there is a stream of core for who asks now: the token is looked at for each watch, as its
// user may have come to be, or have gone, since the stream was opened.
func (s *watchSession) openLocked(ctx context.Context) error {
	who, err := s.a.identify(ctx)
	if err != nil {
		return err
	}
	if s.stream != nil {
		if sameCaller(who, s.who) {
			return nil
		}
		if len(s.byID) > 0 {
			return rpctypes.ErrGRPCInvalidAuthToken // the stream belongs to another user by now
		}
		s.stream.Close()
	}
	stream := s.a.core.NewWatchStream(who, mvcc.SpaceEtcd)
	s.stream, s.who = stream, who
	s.a.receive(s.name, func() error {
		err := s.events(ctx, stream)
		s.fail(stream, err)
		return err
	})
	return nil
}

// sameCaller reports whether a and b are one principal as one user, whenever that was established.
func sameCaller(a, b policy.Principal) bool {
	return a.User() == b.User() && a.WithUser("", 0, false) == b.WithUser("", 0, false)
}

// cancel ends a watch. An id that is not known is not answered.
func (s *watchSession) cancel(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.byID[id]
	if w == nil {
		return nil
	}
	s.stream.Cancel(w.inner)
	s.forgetLocked(w)
	return s.ss.SendMsg(&watchResponse{header: s.a.header(), id: id, canceled: true})
}

func (s *watchSession) forgetLocked(w *watch) {
	delete(s.byID, w.id)
	delete(s.byInner, w.inner)
}

func (s *watchSession) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != nil {
		s.stream.RequestProgress()
	}
}

// events writes what stream has to say until it or ctx ends.
func (s *watchSession) events(ctx context.Context, stream *core.WatchStream) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.a.panicked(s.name, p)
		}
	}()
	for {
		s.mu.Lock()
		created := s.nextInner
		s.mu.Unlock()
		m, err := stream.Recv(ctx)
		if err == nil {
			err = s.deliver(stream, m, created)
		}
		if err != nil {
			return err
		}
	}
}

// deliver writes one message of stream, if it still is the session's. It was received when so many watches had been created: the
// stream's progress knows nothing of later ones, whose creation may have been answered since. A client would take it for theirs
// too and, when it reconnects, go on behind events that it was never sent; so the stream is asked anew.
func (s *watchSession) deliver(stream *core.WatchStream, m *core.WatchMessage, created int64) error {
	// Encoding may read a replaced version from disk: before the lock.
	s.mu.Lock()
	w := s.byInner[m.ID]
	s.mu.Unlock()
	if w == nil && m.ID != everyWatch {
		return nil // cancelled meanwhile
	}
	resp := &watchResponse{header: s.a.headerAt(m.Revision), id: everyWatch}
	if w != nil {
		resp.id = w.id
		var err error
		if resp.events, err = encodeEvents(m.Events, w.prevKV); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != stream || w != nil && s.byInner[m.ID] != w {
		return nil
	}
	if m.Kind == core.WatchProgress && m.ID == everyWatch && s.nextInner != created {
		stream.RequestProgress()
		return nil
	}
	if m.Kind == core.WatchCanceled {
		resp.canceled, resp.compactRevision = true, m.CompactRevision
		if m.CompactRevision == 0 && m.Reason != nil {
			resp.cancelReason = s.a.outward(s.name, m.Reason).Error()
		}
		s.forgetLocked(w)
	}
	// gofail: var beforeSendWatchResponse struct{}
	if w != nil && w.fragment {
		return sendFragments(s.ss, resp, s.a.o.MaxRequestBytes+messageOverhead)
	}
	return s.ss.SendMsg(resp)
}

func encodeEvents(events []*core.SharedEvent, prevKV bool) ([][]byte, error) {
	if len(events) == 0 {
		return nil, nil
	}
	out := make([][]byte, len(events))
	for i, e := range events {
		wire, err := e.Wire(prevKV, encodeShared)
		if err != nil {
			return nil, err
		}
		out[i] = wire
	}
	return out, nil
}

func encodeShared(e *core.SharedEvent, prev *mvcc.KV) []byte { return encodeEvent(&e.Event, prev) }

// sendFragments sends resp in parts that stay below limit where a single event allows it. All but the last are marked.
func sendFragments(ss grpc.ServerStream, resp *watchResponse, limit int) error {
	events := resp.events
	if len(events) < 2 || resp.wireSize() < limit {
		return ss.SendMsg(resp)
	}
	for {
		part := *resp
		part.fragment = true
		size, n := part.headSize()+len(events[0]), 1
		for n < len(events) && size+len(events[n]) < limit {
			size += len(events[n])
			n++
		}
		part.events, events = events[:n], events[n:]
		part.fragment = len(events) > 0
		if err := ss.SendMsg(&part); err != nil {
			return err
		}
		if len(events) == 0 {
			return nil
		}
	}
}
