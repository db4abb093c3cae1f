package loadgen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// watchLoad writes keys that many watch, and measures when each of them hears of it. Watchers and writes are spread over groups;
// every watcher of a group has to hear of each write of the group, in order and once. Watchers share one stream a connection, as
// etcd's own client does it.
type watchLoad struct {
	s       *session
	groups  []group
	streams []*watchStream
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// group counts the writes of one prefix.
type group struct {
	acked, unknown atomic.Int64 // unknown: failed, and done perhaps
	members        int64
}

// watchStream is one stream with several watchers.
type watchStream struct {
	index    int
	groupOf  []int   // by watcher of this stream; its id is its index
	last     []int64 // the last revision that each has seen
	got      []atomic.Int64
	created  int
	ready    chan struct{}
	finished chan struct{}
	err      error // set before finished is closed
}

// Series of watchLoad.
const seriesWrite, seriesDelivery = 0, 1

func (l *watchLoad) kinds() []kind {
	return []kind{{name: "put", request: true, payload: l.s.ValueSize + len(l.s.prefix()) + digits + groupDigits}, {name: "delivery"}}
}

// groupDigits is what a group's number and its slash add to a key.
const groupDigits = 9

func (l *watchLoad) groupPrefix(g int) []byte {
	return fmt.Appendf(nil, "%s%08d/", l.s.prefix(), g)
}

func (l *watchLoad) prepare(ctx context.Context) (string, error) {
	s := l.s
	l.groups = make([]group, s.Groups)
	n := min(len(s.conns), s.Watchers)
	for i := range n {
		l.streams = append(l.streams, &watchStream{index: i, ready: make(chan struct{}), finished: make(chan struct{})})
	}
	for w := range s.Watchers {
		st, g := l.streams[w%n], w%s.Groups
		st.groupOf = append(st.groupOf, g)
		l.groups[g].members++
	}
	open, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	for _, st := range l.streams {
		st.last, st.got = make([]int64, len(st.groupOf)), make([]atomic.Int64, len(st.groupOf))
		if err := l.open(open, st); err != nil {
			return "", err
		}
	}
	limit, stop := context.WithTimeout(ctx, max(s.Timeout, firstAnswer))
	defer stop()
	for _, st := range l.streams {
		select {
		case <-st.ready:
		case <-st.finished:
			return "", fmt.Errorf("a watch was not created: %w", st.err)
		case <-limit.Done():
			return "", fmt.Errorf("not all watches were created: %w", limit.Err())
		}
	}
	return fmt.Sprintf("%d watchers on %d streams", s.Watchers, n), nil
}

// open opens a stream, asks for its watchers and starts to receive.
func (l *watchLoad) open(ctx context.Context, st *watchStream) error {
	stream, err := pb.NewWatchClient(l.s.conns[st.index]).Watch(ctx)
	if err != nil {
		return err
	}
	l.wg.Go(func() {
		st.err = l.receive(st, stream.Recv)
		close(st.finished)
	})
	for id, g := range st.groupOf {
		prefix := l.groupPrefix(g)
		req := &pb.WatchCreateRequest{Key: prefix, RangeEnd: prefixEnd(prefix), WatchId: int64(id + 1)}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			return err
		}
	}
	return nil
}

// receive takes what a stream delivers until it ends.
func (l *watchLoad) receive(st *watchStream, recv func() (*pb.WatchResponse, error)) error {
	for {
		resp, err := recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server ended the stream")
			}
			return err
		}
		w := int(resp.WatchId) - 1
		switch {
		case w < 0 || w >= len(st.groupOf):
			return wrongAnswer("a watch response is for a watcher that there is not")
		case resp.Canceled:
			return fmt.Errorf("a watch was canceled: %s", resp.CancelReason)
		case resp.Created:
			if st.created++; st.created == len(st.groupOf) {
				close(st.ready)
			}
		}
		l.deliver(st, w, resp)
	}
}

// deliver takes the events for one watcher.
func (l *watchLoad) deliver(st *watchStream, w int, resp *pb.WatchResponse) {
	now, rec := time.Since(l.s.origin), l.s.rec.get()
	for _, e := range resp.Events {
		var err error
		sent := time.Duration(0)
		if e.Kv != nil && len(e.Kv.Value) >= minValue {
			sent = time.Duration(binary.LittleEndian.Uint64(e.Kv.Value))
		} else {
			err = wrongAnswer("an event without the value that was written")
		}
		if e.Kv != nil && e.Kv.ModRevision <= st.last[w] {
			err = wrongAnswer("an event came twice, or after one of a later revision")
		} else if e.Kv != nil {
			st.last[w] = e.Kv.ModRevision
		}
		rec.record(seriesDelivery, st.index, now-sent, err)
		st.got[w].Add(1)
	}
}

func (l *watchLoad) worker(i int) (worker, error) {
	s, cc, r := l.s, l.s.conn(i), l.s.random(i)
	req, resp := &pb.PutRequest{Value: make([]byte, s.ValueSize)}, &pb.PutResponse{}
	keys := make([][]byte, s.Groups)
	for g := range keys {
		keys[g] = append(l.groupPrefix(g), "0000000000"...)
	}
	return func(ctx context.Context) (int, error) {
		g := r.IntN(s.Groups)
		req.Key = keys[g]
		setKey(req.Key, r.IntN(s.Keys))
		fill(req.Value, r)
		binary.LittleEndian.PutUint64(req.Value, uint64(time.Since(s.origin)))
		err := cc.Invoke(ctx, pb.KV_Put_FullMethodName, req, resp, s.call...)
		if err == nil {
			l.groups[g].acked.Add(1)
		} else if !refused(err) {
			l.groups[g].unknown.Add(1)
		}
		return seriesWrite, err
	}, nil
}

// refused reports whether err says that the write was certainly not done.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.ResourceExhausted, codes.Unauthenticated, codes.FailedPrecondition:
		return true
	}
	return false
}

// settle waits until every watcher has heard of every write of its group.
func (l *watchLoad) settle(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		missing := l.missing()
		if missing == 0 {
			return nil
		}
		for _, st := range l.streams {
			select {
			case <-st.finished:
				l.s.rec.get().record(seriesDelivery, st.index, 0, wrongAnswer("a watch stream ended: "+failureKind(st.err)))
				return fmt.Errorf("a watch stream ended: %w", st.err)
			default:
			}
		}
		select {
		case <-ctx.Done():
			for range missing {
				l.s.rec.get().record(seriesDelivery, 0, longest, wrongAnswer("a write was never delivered"))
			}
			return fmt.Errorf("%d deliveries are missing", missing)
		case <-tick.C:
		}
	}
}

// missing returns how many deliveries of acknowledged writes have not come. Writes whose outcome is unknown may make up for
// others, so with failed writes it is a lower bound.
func (l *watchLoad) missing() (n int64) {
	for _, st := range l.streams {
		for w, g := range st.groupOf {
			if d := l.groups[g].acked.Load() - st.got[w].Load(); d > 0 {
				n += d
			}
		}
	}
	return n
}

func (l *watchLoad) finish(ctx context.Context) error {
	if l.cancel != nil {
		l.cancel()
	}
	l.wg.Wait()
	return l.s.removeKeys(ctx)
}
