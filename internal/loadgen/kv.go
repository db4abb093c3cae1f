package loadgen

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// keyLoad is a load of single keys: puts and ranges in a ratio.
type keyLoad struct {
	s      *session
	ratio  float64 // share of ranges
	writes bool    // keys are written before the run: something is read
}

// Series of keyLoad; a load that only reads has but the second, with index 0.
const seriesPut, seriesRange = 0, 1

func (l *keyLoad) kinds() []kind {
	put := kind{name: "put", request: true, payload: l.s.ValueSize + len(l.s.prefix()) + digits}
	get := kind{name: "range", request: true}
	switch {
	case l.ratio == 0:
		return []kind{put}
	case l.ratio == 1:
		return []kind{get}
	}
	return []kind{put, get}
}

func (l *keyLoad) prepare(ctx context.Context) (string, error) {
	if !l.writes {
		return "", nil
	}
	return l.s.writeKeys(ctx, l.s.Keys)
}

func (l *keyLoad) worker(i int) (worker, error) {
	r := l.s.random(i)
	put, get := l.put(i, r), l.get(i, r)
	switch {
	case l.ratio == 0:
		return func(ctx context.Context) (int, error) { return seriesPut, put(ctx) }, nil
	case l.ratio == 1:
		return func(ctx context.Context) (int, error) { return 0, get(ctx) }, nil
	}
	return func(ctx context.Context) (int, error) {
		if r.Float64() < l.ratio {
			return seriesRange, get(ctx)
		}
		return seriesPut, put(ctx)
	}, nil
}

func (l *keyLoad) put(i int, r *rand.Rand) func(context.Context) error {
	s, cc := l.s, l.s.conn(i)
	req, resp := &pb.PutRequest{Key: s.keySpace().key(0), Value: make([]byte, s.ValueSize)}, &pb.PutResponse{}
	return func(ctx context.Context) error {
		setKey(req.Key, r.IntN(s.Keys))
		fill(req.Value, r)
		return cc.Invoke(ctx, pb.KV_Put_FullMethodName, req, resp, s.call...)
	}
}

func (l *keyLoad) get(i int, r *rand.Rand) func(context.Context) error {
	s, cc := l.s, l.s.conn(i)
	req, resp := &pb.RangeRequest{Key: s.keySpace().key(0), Serializable: s.Serializable}, &pb.RangeResponse{}
	return func(ctx context.Context) error {
		setKey(req.Key, r.IntN(s.Keys))
		if err := cc.Invoke(ctx, pb.KV_Range_FullMethodName, req, resp, s.call...); err != nil {
			return err
		}
		if len(resp.Kvs) != 1 || len(resp.Kvs[0].Value) != s.ValueSize {
			return wrongAnswer("a key that was written is not there, or has a value of another size")
		}
		return nil
	}
}

func (l *keyLoad) settle(context.Context) error     { return nil }
func (l *keyLoad) finish(ctx context.Context) error { return l.s.removeKeys(ctx) }

// listLoad reads all keys in pages as Kubernetes does: the first page at the present revision, the others after the last
// key of the page before, at the first one's revision. A count of them all comes before each walk. Walks belong to nobody: who asks
// takes the one that was put down last, so that few clients of an open loop do not begin a thousand walks and end none.
type listLoad struct {
	s     *session
	mu    sync.Mutex
	walks []*walk // those that nobody is on
}

// walk is one way through all keys.
type walk struct {
	req                       pb.RangeRequest
	resp                      pb.RangeResponse
	revision, counted, walked int64
	next                      []byte // nil: it begins, with a count
}

// Series of listLoad.
const seriesPage, seriesCount = 0, 1

func (l *listLoad) kinds() []kind {
	return []kind{{name: "page", request: true}, {name: "count", request: true}}
}

func (l *listLoad) prepare(ctx context.Context) (string, error) { return l.s.writeKeys(ctx, l.s.Keys) }

func (l *listLoad) worker(i int) (worker, error) {
	k, cc := l.s.keySpace(), l.s.conn(i)
	return func(ctx context.Context) (kind int, err error) {
		w := l.take(k)
		ask := func() error { return cc.Invoke(ctx, pb.KV_Range_FullMethodName, &w.req, &w.resp, l.s.call...) }
		if w.next == nil {
			kind, err = seriesCount, l.count(w, k, ask)
		} else {
			kind, err = seriesPage, l.page(w, ask)
		}
		l.mu.Lock()
		l.walks = append(l.walks, w)
		l.mu.Unlock()
		return kind, err
	}, nil
}

// take returns a walk that is the caller's until it is put back.
func (l *listLoad) take(k keySpace) *walk {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.walks); n > 0 {
		w := l.walks[n-1]
		l.walks = l.walks[:n-1]
		return w
	}
	return &walk{req: pb.RangeRequest{RangeEnd: k.end(), Serializable: l.s.Serializable}}
}

// count begins a walk.
func (l *listLoad) count(w *walk, k keySpace, ask func() error) error {
	w.req.Key, w.req.CountOnly, w.req.Limit, w.req.Revision = []byte(k.prefix), true, 0, 0
	if err := ask(); err != nil {
		return err
	}
	if w.resp.Count < int64(l.s.Keys) {
		return wrongAnswer("a count is less than the keys that were written")
	}
	w.revision, w.counted, w.walked, w.next = w.resp.Header.Revision, w.resp.Count, 0, append(w.next, k.prefix...)
	return nil
}

// page goes one page on.
func (l *listLoad) page(w *walk, ask func() error) error {
	w.req.Key, w.req.CountOnly, w.req.Limit, w.req.Revision = w.next, false, int64(l.s.Limit), w.revision
	err := ask()
	resp := &w.resp
	switch {
	case err != nil:
	case resp.Count != w.counted-w.walked:
		err = wrongAnswer("a page's count is not what is left")
	case len(resp.Kvs) == 0 || len(resp.Kvs) > l.s.Limit:
		err = wrongAnswer("a page is empty or over its limit")
	case !resp.More && w.walked+int64(len(resp.Kvs)) != w.counted:
		err = wrongAnswer("the pages together are not what was counted")
	}
	if err != nil || !resp.More {
		w.next = nil
		return err
	}
	w.walked += int64(len(resp.Kvs))
	w.next = append(append(w.next[:0], resp.Kvs[len(resp.Kvs)-1].Key...), 0)
	return nil
}

func (l *listLoad) settle(context.Context) error     { return nil }
func (l *listLoad) finish(ctx context.Context) error { return l.s.removeKeys(ctx) }

// casLoad is many clients that change few keys, each by a transaction on the condition that nobody did so in between.
type casLoad struct{ s *session }

func (l *casLoad) kinds() []kind {
	return []kind{{name: "cas", request: true, payload: l.s.ValueSize + len(l.s.prefix()) + digits}}
}

func (l *casLoad) prepare(ctx context.Context) (string, error) { return l.s.writeKeys(ctx, l.s.Keys) }

func (l *casLoad) worker(i int) (worker, error) {
	s, cc, r := l.s, l.s.conn(i), l.s.random(i)
	known := map[int]int64{} // key -> its last revision that this client saw
	key, value := s.keySpace().key(0), make([]byte, s.ValueSize)
	seen := &pb.Compare_ModRevision{}
	req := &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: seen}},
		Success: []*pb.RequestOp{putOp(key, value, 0)}, Failure: []*pb.RequestOp{getOp(key)}}
	resp := &pb.TxnResponse{}
	return func(ctx context.Context) (int, error) {
		n := r.IntN(s.Keys)
		setKey(key, n)
		fill(value, r)
		for attempt := int64(0); ; attempt++ {
			seen.ModRevision = known[n]
			if err := cc.Invoke(ctx, pb.KV_Txn_FullMethodName, req, resp, s.call...); err != nil {
				s.rec.get().retry(0, i, attempt)
				return 0, err
			}
			if resp.Succeeded {
				known[n] = resp.Header.Revision
				s.rec.get().retry(0, i, attempt)
				return 0, nil
			}
			if len(resp.Responses) != 1 || len(resp.Responses[0].GetResponseRange().GetKvs()) != 1 {
				return 0, wrongAnswer("a refused transaction does not say what is there")
			}
			now := resp.Responses[0].GetResponseRange().Kvs[0].ModRevision
			if now == seen.ModRevision {
				return 0, wrongAnswer("a transaction was refused though its condition held")
			}
			known[n] = now
		}
	}, nil
}

func (l *casLoad) settle(context.Context) error     { return nil }
func (l *casLoad) finish(ctx context.Context) error { return l.s.removeKeys(ctx) }

// load returns the load of the options, which are valid.
func (s *session) load() load {
	switch s.Load {
	case LoadPut:
		return &keyLoad{s: s}
	case LoadRange:
		return &keyLoad{s: s, ratio: 1, writes: true}
	case LoadMixed, LoadLarge:
		return &keyLoad{s: s, ratio: s.ReadRatio, writes: s.ReadRatio > 0}
	case LoadList:
		return &listLoad{s: s}
	case LoadCAS:
		return &casLoad{s: s}
	case LoadWatch:
		return &watchLoad{s: s}
	case LoadConnect:
		return &connectLoad{s: s}
	case LoadLeaseGrant:
		return &grantLoad{s: s}
	case LoadLeaseKeepAlive:
		return &keepAliveLoad{s: s}
	case LoadLeaseRevoke:
		return &revokeLoad{s: s}
	default:
		return &expireLoad{s: s}
	}
}

// describe puts the load into words.
func (s *session) describe() string {
	reads := "linearizable"
	if s.Serializable {
		reads = "serializable"
	}
	switch s.Load {
	case LoadPut:
		return fmt.Sprintf("puts of %d bytes on %d keys", s.ValueSize, s.Keys)
	case LoadRange:
		return fmt.Sprintf("%s reads of one of %d keys with %d bytes", reads, s.Keys, s.ValueSize)
	case LoadMixed, LoadLarge:
		return fmt.Sprintf("%.0f %% %s reads, the rest puts, %d bytes on %d keys", s.ReadRatio*100, reads, s.ValueSize, s.Keys)
	case LoadList:
		return fmt.Sprintf("%s lists of %d keys with %d bytes, in pages of %d, each after a count", reads, s.Keys, s.ValueSize, s.Limit)
	case LoadCAS:
		return fmt.Sprintf("compare-and-swap of %d bytes on %d keys", s.ValueSize, s.Keys)
	case LoadWatch:
		return fmt.Sprintf("puts of %d bytes, each delivered to %d of %d watchers", s.ValueSize, (s.Watchers+s.Groups-1)/s.Groups, s.Watchers)
	case LoadConnect:
		return "a connection with a full handshake, one request, and its end"
	case LoadLeaseGrant:
		return fmt.Sprintf("leases granted with a TTL of %d s", s.TTL)
	case LoadLeaseKeepAlive:
		return fmt.Sprintf("keep-alives of %d leases, a stream a client", s.Leases)
	case LoadLeaseRevoke:
		return fmt.Sprintf("%d leases revoked, each with one key", s.Leases)
	default:
		return fmt.Sprintf("%d leases with one key each granted, and left to expire after %d s", s.Leases, s.TTL)
	}
}
