package loadgen

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// fake is an endpoint that answers as etcd does, as far as the loads ask, and can be told to do it badly.
type fake struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer

	mu       sync.Mutex
	revision int64
	keys     map[string]*mvccpb.KeyValue
	leases   map[int64][]string
	lastID   int64
	watchers map[*fakeWatcher]bool

	// before is called with the name of each request for keys, without a lock held; its error is the answer.
	before func(ctx context.Context, name string) error
	// event may change the events for a watcher.
	event func(watch int64, e []*mvccpb.Event) []*mvccpb.Event
	// answer may change the answer to a range.
	answer func(*pb.RangeResponse)
	// early is how much sooner than its TTL a lease ends.
	early time.Duration
	seen  map[string]int
}

type fakeWatcher struct {
	id       int64
	from, to string
	noPut    bool
	out      chan *pb.WatchResponse
}

// startFake serves f on a loopback port and returns the port's address.
func startFake(t *testing.T, f *fake, opts ...grpc.ServerOption) string {
	t.Helper()
	f.keys, f.leases, f.watchers, f.seen, f.revision = map[string]*mvccpb.KeyValue{}, map[int64][]string{}, map[*fakeWatcher]bool{}, map[string]int{}, 1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(opts...)
	pb.RegisterKVServer(s, f)
	pb.RegisterWatchServer(s, f)
	pb.RegisterLeaseServer(s, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func (f *fake) enter(ctx context.Context, name string) error {
	f.mu.Lock()
	f.seen[name]++
	f.mu.Unlock()
	if f.before == nil {
		return nil
	}
	return f.before(ctx, name)
}

func (f *fake) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.revision} }

func (f *fake) notifyLocked(e *mvccpb.Event) {
	for w := range f.watchers {
		key := string(e.Kv.Key)
		if key < w.from || key >= w.to || w.noPut && e.Type == mvccpb.Event_PUT {
			continue
		}
		events := []*mvccpb.Event{e}
		if f.event != nil {
			events = f.event(w.id, events)
		}
		w.out <- &pb.WatchResponse{Header: f.header(), WatchId: w.id, Events: events}
	}
}

func (f *fake) putLocked(r *pb.PutRequest) *pb.PutResponse {
	f.revision++
	kv := &mvccpb.KeyValue{Key: slices.Clone(r.Key), Value: slices.Clone(r.Value), ModRevision: f.revision, Lease: r.Lease}
	f.keys[string(r.Key)] = kv
	if r.Lease != 0 {
		f.leases[r.Lease] = append(f.leases[r.Lease], string(r.Key))
	}
	f.notifyLocked(&mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
	return &pb.PutResponse{Header: f.header()}
}

func (f *fake) rangeLocked(r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: f.header()}
	for k, kv := range f.keys {
		if k == string(r.Key) || len(r.RangeEnd) > 0 && k >= string(r.Key) && k < string(r.RangeEnd) {
			resp.Kvs = append(resp.Kvs, kv)
		}
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	resp.Count = int64(len(resp.Kvs))
	if r.Limit > 0 && resp.Count > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	if r.CountOnly {
		resp.Kvs = nil
	}
	if f.answer != nil {
		f.answer(resp)
	}
	return resp
}

func (f *fake) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := f.enter(ctx, "put"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.putLocked(r), nil
}

func (f *fake) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := f.enter(ctx, "range"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rangeLocked(r), nil
}

func (f *fake) DeleteRange(_ context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.keys {
		if k >= string(r.Key) && k < string(r.RangeEnd) {
			delete(f.keys, k)
		}
	}
	return &pb.DeleteRangeResponse{Header: f.header()}, nil
}

func (f *fake) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := f.enter(ctx, "txn"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	holds := true
	for _, c := range r.Compare {
		kv := f.keys[string(c.Key)]
		holds = holds && kv.GetModRevision() == c.GetModRevision()
	}
	ops := r.Success
	if !holds {
		ops = r.Failure
	}
	resp := &pb.TxnResponse{Succeeded: holds}
	for _, o := range ops {
		if p := o.GetRequestPut(); p != nil {
			f.putLocked(p)
			resp.Responses = append(resp.Responses, &pb.ResponseOp{})
			continue
		}
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: f.rangeLocked(o.GetRequestRange())}})
	}
	resp.Header = f.header()
	return resp, nil
}

func (f *fake) Watch(s pb.Watch_WatchServer) error {
	out := make(chan *pb.WatchResponse, 100_000)
	var mine []*fakeWatcher
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, w := range mine {
			delete(f.watchers, w)
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case r := <-out:
				if s.Send(r) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		c := r.GetCreateRequest()
		w := &fakeWatcher{id: c.WatchId, from: string(c.Key), to: string(c.RangeEnd), noPut: len(c.Filters) > 0, out: out}
		f.mu.Lock()
		f.watchers[w] = true
		mine = append(mine, w)
		out <- &pb.WatchResponse{Header: f.header(), WatchId: w.id, Created: true}
		f.mu.Unlock()
	}
}

func (f *fake) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := f.enter(ctx, "grant"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastID++
	id := f.lastID
	f.leases[id] = nil
	time.AfterFunc(time.Duration(r.TTL)*time.Second-f.early, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.endLocked(id)
	})
	return &pb.LeaseGrantResponse{Header: f.header(), ID: id, TTL: r.TTL}, nil
}

func (f *fake) endLocked(id int64) {
	for _, k := range f.leases[id] {
		f.revision++
		delete(f.keys, k)
		f.notifyLocked(&mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: f.revision}})
	}
	delete(f.leases, id)
}

func (f *fake) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := f.enter(ctx, "revoke"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(r.ID)
	return &pb.LeaseRevokeResponse{Header: f.header()}, nil
}

func (f *fake) LeaseKeepAlive(s pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if err := f.enter(s.Context(), "keepalive"); err != nil {
			return err
		}
		f.mu.Lock()
		ttl := int64(0)
		if _, ok := f.leases[r.ID]; ok {
			ttl = 60
		}
		f.mu.Unlock()
		if err := s.Send(&pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{}, ID: r.ID, TTL: ttl}); err != nil {
			return err
		}
	}
}
