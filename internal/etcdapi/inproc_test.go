package etcdapi

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestStreamEnd: the end of a handler ends its stream's context too. What the handler answered is what the gateway hears,
// not that.
func TestStreamEnd(t *testing.T) {
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		p := &pipe{ctx: ctx, down: make(chan any), done: make(chan struct{}), err: errors.New("permission denied")}
		close(p.done)
		cancel()
		err := clientEnd{p}.RecvMsg(&pb.WatchResponse{})
		if status.Code(err) == codes.Canceled {
			t.Fatalf("the stream ended with %v", err)
		}
	}
}
