package etcdapi

import (
	"context"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// written is a stream that keeps what is written to it.
type written struct {
	grpc.ServerStream
	ctx  context.Context
	sent []*watchResponse
}

func (w *written) Context() context.Context { return w.ctx }
func (w *written) SendMsg(m any) error      { w.sent = append(w.sent, m.(*watchResponse)); return nil }

// TestProgressBesideACreation: the stream's progress that was received before a watch was created is not written after that
// creation has been answered. The new watch starts at a revision below it and has not been sent its events yet: a client that
// reconnects would go on behind them.
func TestProgressBesideACreation(t *testing.T) {
	m := startMember(t, memberOptions{})
	who := *m.who.Load()
	stream := m.core.NewWatchStream(who, mvcc.SpaceEtcd)
	defer stream.Close()
	out := &written{ctx: t.Context()}
	s := &watchSession{a: m.api, ss: out, byID: map[int64]*watch{}, byInner: map[int64]*watch{}, failed: make(chan error, 1), stream: stream, who: who}
	_, err := stream.Watch(core.WatchRequest{ID: 1 << 40, Span: storage.Span{Start: []byte("a"), End: []byte("b")}, StartRevision: 1})
	must(t, err)
	progress := func() *core.WatchMessage {
		for {
			got, err := stream.Recv(t.Context())
			must(t, err)
			if got.Kind == core.WatchProgress {
				return got
			}
		}
	}
	stream.RequestProgress()
	early, created := progress(), s.nextInner
	must(t, s.create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 1}))
	must(t, s.deliver(stream, early, created))
	if len(out.sent) != 1 || !out.sent[0].created {
		t.Fatalf("%d responses, want only that of the creation: the progress of before it speaks for the new watch", len(out.sent))
	}
	must(t, s.deliver(stream, progress(), s.nextInner)) // the stream was asked anew
	if len(out.sent) != 2 || out.sent[1].id != everyWatch {
		t.Errorf("the client asked for progress and is not told: %d responses", len(out.sent))
	}
}
