package loadgen

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// grantLoad grants leases. They are left to expire.
type grantLoad struct{ s *session }

func (l *grantLoad) kinds() []kind                           { return []kind{{name: "grant", request: true}} }
func (l *grantLoad) prepare(context.Context) (string, error) { return "", nil }
func (l *grantLoad) settle(context.Context) error            { return nil }
func (l *grantLoad) finish(context.Context) error            { return nil }

func (l *grantLoad) worker(i int) (worker, error) {
	return func(ctx context.Context) (int, error) {
		_, err := l.s.grant(ctx, i)
		return 0, err
	}, nil
}

// grant grants one lease over the connection of client i.
func (s *session) grant(ctx context.Context, i int) (int64, error) {
	resp := &pb.LeaseGrantResponse{}
	if err := s.conn(i).Invoke(ctx, pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{TTL: s.TTL}, resp, s.call...); err != nil {
		return 0, err
	}
	if resp.ID == 0 || resp.TTL < s.TTL {
		return 0, wrongAnswer("a lease without an id, or for less than was asked")
	}
	return resp.ID, nil
}

// revoke revokes one lease.
func (s *session) revoke(ctx context.Context, i int, id int64) error {
	return s.conn(i).Invoke(ctx, pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeRequest{ID: id}, &pb.LeaseRevokeResponse{}, s.call...)
}

// grantAll grants the leases that a load needs, each with a key if keys is set.
func (s *session) grantAll(ctx context.Context, n int, keys bool) (ids []int64, err error) {
	ids = make([]int64, n)
	value := make([]byte, minValue)
	k := s.keySpace()
	err = eachBatch(ctx, n, 1, func(ctx context.Context, i, _ int) error {
		ctx, cancel := context.WithTimeout(ctx, max(s.Timeout, firstAnswer))
		defer cancel()
		id, err := s.grant(ctx, i)
		if err != nil {
			return err
		}
		ids[i] = id
		if !keys {
			return nil
		}
		return s.conn(i).Invoke(ctx, pb.KV_Put_FullMethodName, &pb.PutRequest{Key: k.key(i), Value: value, Lease: id}, &pb.PutResponse{}, s.call...)
	})
	return ids, err
}

// revokeAll revokes leases that are left; one that has gone already is fine.
func (s *session) revokeAll(ctx context.Context, ids []int64) error {
	if s.Keep {
		return nil
	}
	return eachBatch(ctx, len(ids), 1, func(ctx context.Context, i, _ int) error {
		if ids[i] != 0 {
			_ = s.revoke(ctx, i, ids[i]) // it expires otherwise
		}
		return nil
	})
}

// keepAliveLoad renews leases. Every client has a stream of its own and renews the next of all leases over it.
type keepAliveLoad struct {
	s    *session
	ids  []int64
	next atomic.Int64
}

func (l *keepAliveLoad) kinds() []kind                { return []kind{{name: "keepalive", request: true}} }
func (l *keepAliveLoad) settle(context.Context) error { return nil }

func (l *keepAliveLoad) prepare(ctx context.Context) (done string, err error) {
	l.ids, err = l.s.grantAll(ctx, l.s.Leases, false)
	return fmt.Sprintf("%d leases", l.s.Leases), err
}

func (l *keepAliveLoad) worker(i int) (worker, error) {
	leases := pb.NewLeaseClient(l.s.conn(i))
	var stream grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]
	req := &pb.LeaseKeepAliveRequest{}
	var of context.Context // that stream lives in
	return func(ctx context.Context) (_ int, err error) {
		if stream == nil || of != ctx {
			if stream, err = leases.LeaseKeepAlive(ctx); err != nil {
				return 0, err
			}
			of = ctx
		}
		req.ID = l.ids[int(l.next.Add(1))%len(l.ids)]
		err = stream.Send(req)
		var resp *pb.LeaseKeepAliveResponse
		if err == nil || err.Error() == "EOF" { // EOF: Recv says why
			resp, err = stream.Recv()
		}
		if err != nil {
			stream = nil
			return 0, err
		}
		if resp.ID != req.ID || resp.TTL <= 0 {
			return 0, wrongAnswer("a lease that is renewed in time has expired")
		}
		return 0, nil
	}, nil
}

func (l *keepAliveLoad) finish(ctx context.Context) error { return l.s.revokeAll(ctx, l.ids) }

// revokeLoad revokes leases that were prepared, each with one key, until there are no more.
type revokeLoad struct {
	s    *session
	ids  []int64
	next atomic.Int64
}

func (l *revokeLoad) kinds() []kind                { return []kind{{name: "revoke", request: true}} }
func (l *revokeLoad) settle(context.Context) error { return nil }

func (l *revokeLoad) prepare(ctx context.Context) (done string, err error) {
	l.ids, err = l.s.grantAll(ctx, l.s.Leases, true)
	return fmt.Sprintf("%d leases with a key each", l.s.Leases), err
}

func (l *revokeLoad) worker(i int) (worker, error) {
	return func(ctx context.Context) (int, error) {
		return 0, l.s.revoke(ctx, i, l.ids[l.next.Add(1)-1]) // Validate has seen to it that there are enough
	}, nil
}

func (l *revokeLoad) finish(ctx context.Context) error {
	if done := min(l.next.Load(), int64(len(l.ids))); done < int64(len(l.ids)) {
		if err := l.s.revokeAll(ctx, l.ids[done:]); err != nil {
			return err
		}
	}
	return l.s.removeKeys(ctx)
}

// expireLoad grants leases with a key each and measures how long after its time each key is deleted. A key that is deleted
// before the TTL has passed since the grant was asked for is wrong.
type expireLoad struct {
	s      *session
	next   atomic.Int64
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	leases map[string]granted // by key, those that have not expired
	ended  error
}

// granted is when a lease was asked for and when the answer was there, since the session's origin.
type granted struct{ asked, answered time.Duration }

// Series of expireLoad.
const seriesGrant, seriesExpiry = 0, 1

func (l *expireLoad) kinds() []kind {
	return []kind{{name: "grant+put", request: true}, {name: "expiry"}}
}

func (l *expireLoad) prepare(ctx context.Context) (string, error) {
	l.leases = map[string]granted{}
	open, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	stream, err := pb.NewWatchClient(l.s.conn(0)).Watch(open)
	if err != nil {
		return "", err
	}
	k := l.s.keySpace()
	req := &pb.WatchCreateRequest{Key: []byte(k.prefix), RangeEnd: k.end(), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
		return "", err
	}
	resp, err := stream.Recv()
	if err != nil {
		return "", err
	}
	if resp.Canceled {
		return "", fmt.Errorf("the watch was canceled: %s", resp.CancelReason)
	}
	l.wg.Go(func() {
		for {
			resp, err := stream.Recv()
			if err == nil && resp.Canceled {
				err = fmt.Errorf("the watch was canceled: %s", resp.CancelReason)
			}
			if err != nil {
				l.mu.Lock()
				l.ended = err
				l.mu.Unlock()
				return
			}
			l.expired(resp)
		}
	})
	return "a watch of the keys", nil
}

// expired takes deletions.
func (l *expireLoad) expired(resp *pb.WatchResponse) {
	now, ttl := time.Since(l.s.origin), time.Duration(l.s.TTL)*time.Second
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range resp.Events {
		g, ok := l.leases[string(e.Kv.GetKey())]
		if !ok {
			continue // deleted before the answer to its put was there: see worker
		}
		delete(l.leases, string(e.Kv.GetKey()))
		var err error
		if now < g.asked+ttl {
			err = wrongAnswer("a lease expired before its time")
		}
		l.s.rec.get().record(seriesExpiry, 0, max(0, now-g.answered-ttl), err)
	}
}

func (l *expireLoad) worker(i int) (worker, error) {
	value := make([]byte, minValue)
	return func(ctx context.Context) (int, error) {
		key := l.s.keySpace().key(int(l.next.Add(1) - 1))
		g := granted{asked: time.Since(l.s.origin)}
		id, err := l.s.grant(ctx, i)
		if err != nil {
			return seriesGrant, err
		}
		g.answered = time.Since(l.s.origin)
		l.mu.Lock()
		l.leases[string(key)] = g // before the put: its deletion must find it
		l.mu.Unlock()
		err = l.s.conn(i).Invoke(ctx, pb.KV_Put_FullMethodName, &pb.PutRequest{Key: key, Value: value, Lease: id}, &pb.PutResponse{}, l.s.call...)
		if err != nil {
			l.mu.Lock()
			delete(l.leases, string(key)) // it may be there or not: nothing is expected of it
			l.mu.Unlock()
		}
		return seriesGrant, err
	}, nil
}

func (l *expireLoad) settle(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		left, ended := len(l.leases), l.ended
		l.mu.Unlock()
		switch {
		case left == 0:
			return nil
		case ended != nil:
			return fmt.Errorf("%d expiries were not seen: the watch ended: %w", left, ended)
		}
		select {
		case <-ctx.Done():
			for range left {
				l.s.rec.get().record(seriesExpiry, 0, longest, wrongAnswer("a lease has not expired two minutes after its time"))
			}
			return fmt.Errorf("%d leases have not expired", left)
		case <-tick.C:
		}
	}
}

func (l *expireLoad) finish(ctx context.Context) error {
	if l.cancel != nil {
		l.cancel()
	}
	l.wg.Wait()
	return l.s.removeKeys(ctx)
}
