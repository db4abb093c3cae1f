package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// These tests drive a real core through etcd's own client over TCP.

func TestKV(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	first, err := c.Put(ctx, "a", "1")
	must(t, err)
	if first.Header.Revision != 2 || first.Header.ClusterId != 0x123 || first.Header.MemberId != testMember || first.Header.RaftTerm != 2 {
		t.Errorf("header of the first put: %v", first.Header)
	}
	again, err := c.Put(ctx, "a", "2", clientv3.WithPrevKV())
	must(t, err)
	if string(again.PrevKv.GetValue()) != "1" || again.PrevKv.Version != 1 {
		t.Errorf("previous: %v", again.PrevKv)
	}
	for i := range 5 {
		_, err := c.Put(ctx, fmt.Sprintf("k%d", i), strings.Repeat("v", i*1000))
		must(t, err)
	}
	page, err := c.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithLimit(2))
	must(t, err)
	if len(page.Kvs) != 2 || page.Count != 5 || !page.More || page.Header.Revision != 8 {
		t.Errorf("limited page: %d of %d, more %v, revision %d", len(page.Kvs), page.Count, page.More, page.Header.Revision)
	}
	old, err := c.Get(ctx, "a", clientv3.WithRev(2))
	must(t, err)
	if string(old.Kvs[0].Value) != "1" || old.Header.Revision != 8 {
		t.Errorf("old version: %v", old)
	}
	sorted, err := c.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithKeysOnly())
	must(t, err)
	if string(sorted.Kvs[0].Key) != "k4" || len(sorted.Kvs[0].Value) != 0 {
		t.Errorf("sorted: %v", sorted.Kvs[0])
	}
	count, err := c.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	must(t, err)
	if count.Count != 6 || len(count.Kvs) != 0 {
		t.Errorf("count: %v", count)
	}
	del, err := c.Delete(ctx, "k", clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(t, err)
	if del.Deleted != 5 || len(del.PrevKvs) != 5 || del.Header.Revision != 9 {
		t.Errorf("delete: %v", del)
	}
	none, err := c.Delete(ctx, "k", clientv3.WithPrefix())
	must(t, err)
	if none.Deleted != 0 || none.Header.Revision != 9 {
		t.Errorf("delete of nothing: %v", none)
	}
}

func TestKVErrors(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	conn := dial(t, m.addr)
	kv := pb.NewKVClient(conn)
	_, err := c.Put(ctx, "a", "1")
	must(t, err)
	large := strings.Repeat("x", DefaultMaxRequestBytes)
	for name, f := range map[string]struct {
		call func() error
		want error
	}{
		"empty key":       {func() error { _, err := kv.Put(ctx, &pb.PutRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		"empty range key": {func() error { _, err := kv.Range(ctx, &pb.RangeRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		"future revision": {func() error { _, err := c.Get(ctx, "a", clientv3.WithRev(99)); return err }, rpctypes.ErrFutureRev},
		"unknown lease":   {func() error { _, err := c.Put(ctx, "a", "", clientv3.WithLease(77)); return err }, rpctypes.ErrLeaseNotFound},
		"ignore_value":    {func() error { _, err := c.Put(ctx, "nokey", "", clientv3.WithIgnoreValue()); return err }, rpctypes.ErrKeyNotFound},
		"too large":       {func() error { _, err := c.Put(ctx, "a", large); return err }, rpctypes.ErrRequestTooLarge},
		"compact future":  {func() error { _, err := c.Compact(ctx, 99); return err }, rpctypes.ErrFutureRev},
		"duplicate in txn": {func() error {
			_, err := c.Txn(ctx).Then(clientv3.OpPut("x", ""), clientv3.OpPut("x", "")).Commit()
			return err
		}, rpctypes.ErrDuplicateKey},
		"downgrade": {func() error { _, err := c.Downgrade(ctx, clientv3.DowngradeCancel, ""); return err }, rpctypes.ErrNoInflightDowngrade},
	} {
		if err := f.call(); err == nil || err.Error() != f.want.Error() {
			t.Errorf("%s: got %v, want %v", name, err, f.want)
		}
	}
	// Beyond what a message may be, the transport itself refuses.
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: make([]byte, DefaultMaxRequestBytes+messageOverhead+1)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("message beyond the limit: %v", err)
	}
}

func TestTxn(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	// What kube-apiserver does: create if absent.
	create := func() *clientv3.TxnResponse {
		resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("k"), "=", 0)).
			Then(clientv3.OpPut("k", "v")).Else(clientv3.OpGet("k")).Commit()
		must(t, err)
		return resp
	}
	if r := create(); !r.Succeeded || r.Responses[0].GetResponsePut().Header.Revision != 2 || r.Header.Revision != 2 {
		t.Errorf("first: %v", r)
	}
	if r := create(); r.Succeeded || string(r.Responses[0].GetResponseRange().Kvs[0].Value) != "v" {
		t.Errorf("second: %v", r)
	}
	nested, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "v"), clientv3.Compare(clientv3.Version("none"), "=", 0)).Then(
		clientv3.OpPut("k", "w", clientv3.WithPrevKV()),
		clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("k"), "=", "w")},
			[]clientv3.Op{clientv3.OpPut("then", "")}, []clientv3.Op{clientv3.OpPut("else", "")}),
		clientv3.OpGet("k"),
		clientv3.OpDelete("gone"),
	).Commit()
	must(t, err)
	inner := nested.Responses[1].GetResponseTxn()
	if !nested.Succeeded || inner == nil || len(nested.Responses) != 4 || string(nested.Responses[0].GetResponsePut().PrevKv.Value) != "v" ||
		string(nested.Responses[2].GetResponseRange().Kvs[0].Value) != "w" || nested.Header.Revision != 3 {
		t.Errorf("nested: %v", nested)
	}
	if inner.Header == nil || inner.Header.Revision != 0 {
		t.Errorf("header of a nested transaction: %v", inner.Header)
	}
	readOnly, err := c.Txn(ctx).Then(clientv3.OpGet("\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())).Commit()
	must(t, err)
	if readOnly.Responses[0].GetResponseRange().Count != 2 || readOnly.Header.Revision != 3 {
		t.Errorf("read only: %v", readOnly)
	}
}

func TestRangeStream(t *testing.T) {
	m := startMember(t, memberOptions{api: func(o *Options) { o.MaxRequestBytes = 10_000 }})
	c, ctx := m.client(), short(t)
	for i := range 60 {
		_, err := c.Put(ctx, fmt.Sprintf("k%02d", i), strings.Repeat("v", 900))
		must(t, err)
	}
	kv := pb.NewKVClient(dial(t, m.addr))
	stream, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 50})
	must(t, err)
	var keys []string
	chunks := 0
	for {
		resp, err := stream.Recv()
		must(t, err)
		chunks++
		for _, kv := range resp.RangeResponse.Kvs {
			keys = append(keys, string(kv.Key))
		}
		if h := resp.RangeResponse.Header; h != nil {
			if resp.RangeResponse.Count != 60 || !resp.RangeResponse.More || h.Revision != 61 {
				t.Errorf("last chunk: count %d, more %v, %v", resp.RangeResponse.Count, resp.RangeResponse.More, h)
			}
			break
		}
		if resp.RangeResponse.Count != 0 || resp.RangeResponse.More {
			t.Error("count or more before the last chunk")
		}
	}
	if len(keys) != 50 || keys[0] != "k00" || keys[49] != "k49" || chunks < 3 {
		t.Errorf("%d keys in %d chunks", len(keys), chunks)
	}
	for _, r := range []*pb.RangeRequest{
		{Key: []byte("k"), SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_ASCEND},
		{Key: []byte("k"), SortOrder: pb.RangeRequest_DESCEND},
		{Key: []byte("k"), MinModRevision: 1},
	} {
		stream, err := kv.RangeStream(ctx, r)
		must(t, err)
		if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
			t.Errorf("%v: %v", r, err)
		}
	}
	stream, err = kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), SortTarget: pb.RangeRequest_CREATE})
	must(t, err)
	if resp, err := stream.Recv(); err != nil || string(resp.RangeResponse.Kvs[0].Key) != "k00" {
		t.Errorf("a target without an order: %v, %v", resp, err)
	}
}

// dial returns a connection without etcd's client.
func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	return conn
}

// watchStream is a raw Watch call.
func watchStream(t *testing.T, ctx context.Context, m *member) pb.Watch_WatchClient {
	t.Helper()
	stream, err := pb.NewWatchClient(dial(t, m.addr)).Watch(ctx)
	must(t, err)
	return stream
}

func create(t *testing.T, s pb.Watch_WatchClient, r *pb.WatchCreateRequest) *pb.WatchResponse {
	t.Helper()
	must(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}))
	return recv(t, s)
}

func recv(t *testing.T, s pb.Watch_WatchClient) *pb.WatchResponse {
	t.Helper()
	resp, err := s.Recv()
	must(t, err)
	return resp
}

func TestWatch(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	_, err := c.Put(ctx, "a", "0")
	must(t, err)
	s := watchStream(t, ctx, m)
	made := create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
	if !made.Created || made.Canceled || made.WatchId != 0 || made.Header.Revision != 2 {
		t.Fatalf("created: %v", made)
	}
	if r := create(t, s, &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("z"), WatchId: 7, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}); r.WatchId != 7 || !r.Created {
		t.Fatalf("created: %v", r)
	}
	_, err = c.Put(ctx, "a", "1")
	must(t, err)
	e := recv(t, s)
	if e.WatchId != 0 || len(e.Events) != 1 || string(e.Events[0].PrevKv.Value) != "0" || e.Events[0].Kv.ModRevision != 3 || e.Header.Revision < 3 {
		t.Fatalf("event: %v", e)
	}
	// All events of one revision come in one response, in order.
	_, err = c.Txn(ctx).Then(clientv3.OpPut("b1", ""), clientv3.OpPut("b2", ""), clientv3.OpPut("b3", "")).Commit()
	must(t, err)
	e = recv(t, s)
	if e.WatchId != 7 || len(e.Events) != 3 || string(e.Events[2].Kv.Key) != "b3" || e.Events[0].PrevKv != nil {
		t.Fatalf("events of a transaction: %v", e)
	}
	_, err = c.Delete(ctx, "b1")
	must(t, err) // filtered
	_, err = c.Delete(ctx, "a")
	must(t, err)
	e = recv(t, s)
	if e.WatchId != 0 || e.Events[0].Type != mvccpb.Event_DELETE || string(e.Events[0].PrevKv.Value) != "1" || e.Events[0].Kv.CreateRevision != 0 {
		t.Fatalf("delete: %v", e)
	}
	must(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}))
	if p := recv(t, s); p.WatchId != -1 || len(p.Events) != 0 || p.Header.Revision != 6 {
		t.Fatalf("progress: %v", p)
	}
	cancel := func(id int64) {
		must(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}))
	}
	cancel(99) // not answered
	cancel(7)
	if r := recv(t, s); !r.Canceled || r.WatchId != 7 || r.CancelReason != "" {
		t.Fatalf("cancelled: %v", r)
	}
	// The id may be used again, and the past be read.
	if r := create(t, s, &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("c"), WatchId: 7, StartRevision: 1}); r.WatchId != 7 || r.Canceled {
		t.Fatalf("created again: %v", r)
	}
	if e := recv(t, s); len(e.Events) != 4 || e.Events[3].Type != mvccpb.Event_DELETE {
		t.Fatalf("the past: %v", e)
	}
}

func TestWatchRefused(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	s := watchStream(t, ctx, m)
	if r := create(t, s, &pb.WatchCreateRequest{Key: []byte("k"), WatchId: 5}); r.Canceled {
		t.Fatal(r)
	}
	for _, c := range []struct {
		r    *pb.WatchCreateRequest
		want string
	}{
		{&pb.WatchCreateRequest{Key: []byte("k"), WatchId: 5}, "mvcc: duplicate watch ID provided on the WatchStream"},
		{&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("a")}, "mvcc: watcher range is empty"},
		{&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: -1}, "etcdserver: mvcc: required revision has been compacted"},
	} {
		r := create(t, s, c.r)
		if !r.Created || !r.Canceled || r.WatchId != -1 || r.CancelReason != c.want {
			t.Errorf("%v: %v", c.r, r)
		}
	}
	if r := create(t, s, &pb.WatchCreateRequest{}); r.Canceled || r.WatchId != 0 {
		t.Errorf("an empty key means all: %v", r)
	}
	nobody := policy.Principal{}
	m.who.Store(&nobody)
	r := create(t, s, &pb.WatchCreateRequest{Key: []byte("k")})
	if !r.Canceled || !strings.HasPrefix(r.CancelReason, "rpc error: code = ") {
		t.Errorf("nobody watches: %v", r)
	}
}

func TestWatchCompacted(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	for range 5 {
		_, err := c.Put(ctx, "k", "v")
		must(t, err)
	}
	_, err := c.Compact(ctx, 4)
	must(t, err)
	s := watchStream(t, ctx, m)
	if r := create(t, s, &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2}); !r.Created || r.Canceled {
		t.Fatalf("created: %v", r)
	}
	if r := recv(t, s); !r.Canceled || r.CompactRevision != 4 || r.Header.Revision != 6 || r.CancelReason != "" {
		t.Errorf("compacted: %v", r)
	}
	// Through the client it is the error that programs look for.
	resp := <-c.Watch(ctx, "k", clientv3.WithRev(2))
	if !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Errorf("client: %v", resp.Err())
	}
	if _, err := c.Get(ctx, "k", clientv3.WithRev(3)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("read below: %v", err)
	}
	if _, err := c.Get(ctx, "k", clientv3.WithRev(4)); err != nil {
		t.Errorf("read at the compact revision: %v", err)
	}
}

func TestWatchFragments(t *testing.T) {
	m := startMember(t, memberOptions{api: func(o *Options) { o.MaxRequestBytes = 100_000 }})
	c, ctx := m.client(), short(t)
	s := watchStream(t, ctx, m)
	create(t, s, &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), Fragment: true, PrevKv: true})
	value := strings.Repeat("v", 90_000)
	for i := range 10 {
		_, err := c.Put(ctx, fmt.Sprintf("k%d", i), value)
		must(t, err)
		recv(t, s)
	}
	_, err := c.Delete(ctx, "k", clientv3.WithPrefix())
	must(t, err) // one revision, with 900 kB of previous values
	var sizes []int
	for {
		r := recv(t, s)
		sizes = append(sizes, len(r.Events))
		if !r.Fragment {
			break
		}
	}
	total := 0
	for _, n := range sizes {
		total += n
	}
	if len(sizes) != 2 || total != 10 {
		t.Errorf("fragments of %v events", sizes)
	}
}

func TestWatchProgressNotify(t *testing.T) {
	m := startMember(t, memberOptions{core: func(o *core.Options) { o.ProgressInterval = 100 * time.Millisecond }})
	ctx := short(t)
	s := watchStream(t, ctx, m)
	create(t, s, &pb.WatchCreateRequest{Key: []byte("k"), ProgressNotify: true, WatchId: 3})
	if p := recv(t, s); p.WatchId != 3 || len(p.Events) != 0 || p.Header.Revision != 1 {
		t.Errorf("progress: %v", p)
	}
}

func TestWatchWithRequiredLeaderEnds(t *testing.T) {
	m := startMember(t, memberOptions{core: func(o *core.Options) { o.Election = 50 * time.Millisecond }})
	ctx := metadata.AppendToOutgoingContext(short(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	s := watchStream(t, ctx, m)
	create(t, s, &pb.WatchCreateRequest{Key: []byte("k")})
	keep, err := pb.NewLeaseClient(dial(t, m.addr)).LeaseKeepAlive(ctx)
	must(t, err)
	must(t, keep.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
	_, err = keep.Recv()
	must(t, err)
	m.log.loseLeader()
	if _, err := s.Recv(); err == nil || err.Error() != rpctypes.ErrGRPCNoLeader.Error() {
		t.Errorf("watch: %v", err)
	}
	if _, err := keep.Recv(); err == nil || err.Error() != rpctypes.ErrGRPCNoLeader.Error() {
		t.Errorf("keepalive: %v", err)
	}
	_, err = pb.NewKVClient(dial(t, m.addr)).Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
	if err == nil || err.Error() != rpctypes.ErrGRPCNoLeader.Error() {
		t.Errorf("unary: %v", err)
	}
}

func TestLease(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	l, err := c.Grant(ctx, 60)
	must(t, err)
	_, err = c.Put(ctx, "k", "v", clientv3.WithLease(l.ID))
	must(t, err)
	ttl, err := c.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
	must(t, err)
	if ttl.GrantedTTL != 60 || ttl.TTL > 60 || ttl.TTL < 55 || len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "k" {
		t.Errorf("time to live: %v", ttl)
	}
	once, err := c.KeepAliveOnce(ctx, l.ID)
	must(t, err)
	if once.TTL != 60 || once.ID != l.ID {
		t.Errorf("keep alive: %v", once)
	}
	list, err := c.Leases(ctx)
	must(t, err)
	if len(list.Leases) != 1 || list.Leases[0].ID != l.ID {
		t.Errorf("leases: %v", list)
	}
	if _, err := c.KeepAliveOnce(ctx, 99); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("keep alive of nothing: %v", err)
	}
	if unknown, err := c.TimeToLive(ctx, 99); err != nil || unknown.TTL != -1 {
		t.Errorf("time to live of nothing: %v, %v", unknown, err)
	}
	_, err = c.Revoke(ctx, l.ID)
	must(t, err)
	if got, err := c.Get(ctx, "k"); err != nil || len(got.Kvs) != 0 {
		t.Errorf("key of a revoked lease: %v, %v", got, err)
	}
	if _, err := c.Revoke(ctx, l.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("revoke twice: %v", err)
	}
	if _, err := c.Grant(ctx, 9_000_000_001); !errors.Is(err, rpctypes.ErrLeaseTTLTooLarge) {
		t.Errorf("too long: %v", err)
	}
}

// enableAuth makes a root and a user who may read and write under "u/".
func enableAuth(t *testing.T, c *clientv3.Client, ctx context.Context) {
	t.Helper()
	for _, step := range []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "rootpw"); return err },
		func() error { _, err := c.RoleAdd(ctx, "root"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.UserAdd(ctx, "user", "userpw"); return err },
		func() error { _, err := c.RoleAdd(ctx, "r"); return err },
		func() error {
			_, err := c.RoleGrantPermission(ctx, "r", "u/", clientv3.GetPrefixRangeEnd("u/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error {
			_, err := c.RoleGrantPermission(ctx, "r", "z", "\x00", clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { _, err := c.UserGrantRole(ctx, "user", "r"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		must(t, step())
	}
}

func login(name, password string) func(*clientv3.Config) {
	return func(c *clientv3.Config) { c.Username, c.Password = name, password }
}

func TestAuth(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	enableAuth(t, c, ctx)
	root, user := m.client(login("root", "rootpw")), m.client(login("user", "userpw"))

	if _, err := c.Get(ctx, "k"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("without a token: %v", err)
	}
	bad := metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, "nonsense")
	if _, err := pb.NewKVClient(dial(t, m.addr)).Range(bad, &pb.RangeRequest{Key: []byte("k")}); err == nil || err.Error() != rpctypes.ErrGRPCInvalidAuthToken.Error() {
		t.Errorf("with a bad token: %v", err)
	}
	if _, err := clientv3.New(clientv3.Config{Endpoints: []string{m.addr}, Username: "user", Password: "wrong", Logger: zap.NewNop()}); !errors.Is(err, rpctypes.ErrAuthFailed) {
		t.Errorf("with a wrong password: %v", err)
	}
	_, err := user.Put(ctx, "u/k", "v")
	must(t, err)
	if _, err := user.Put(ctx, "other", "v"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("another key: %v", err)
	}
	if _, err := user.Get(ctx, "u/", clientv3.WithFromKey()); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("from a key on: %v", err)
	}
	if _, err := user.Get(ctx, "zz", clientv3.WithFromKey()); err != nil {
		t.Errorf("a permission without end: %v", err)
	}
	if _, err := user.Compact(ctx, 2); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("compact: %v", err)
	}
	if _, err := user.Status(ctx, m.addr); err != nil {
		t.Errorf("status is for every user: %v", err)
	}
	nested := user.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("secret")}, nil))
	if _, err := nested.Commit(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("nested read: %v", err)
	}
	_, err = root.Put(ctx, "other", "v")
	must(t, err)
	role, err := root.RoleGet(ctx, "r")
	must(t, err)
	if len(role.Perm) != 2 || string(role.Perm[0].RangeEnd) != "u0" || role.Perm[0].PermType != authpb.Permission_READWRITE ||
		string(role.Perm[1].RangeEnd) != "\x00" || role.Perm[1].PermType != authpb.Permission_READ {
		t.Errorf("role: %v", role.Perm)
	}
	users, err := root.UserList(ctx)
	must(t, err)
	if fmt.Sprint(users.Users) != "[root user]" {
		t.Errorf("users: %v", users.Users)
	}
	if own, err := user.UserGet(ctx, "user"); err != nil || fmt.Sprint(own.Roles) != "[r]" {
		t.Errorf("own user: %v, %v", own, err)
	}
	if _, err := user.UserGet(ctx, "root"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("another user: %v", err)
	}
	if _, err := root.UserDelete(ctx, "root"); !errors.Is(err, rpctypes.ErrInvalidAuthMgmt) {
		t.Errorf("delete of root: %v", err)
	}
	st, err := c.AuthStatus(ctx)
	must(t, err)
	if !st.Enabled || st.AuthRevision < 8 {
		t.Errorf("auth status: %v", st)
	}
	// A watch is judged when it is made, and again when rights change.
	watch := user.Watch(ctx, "other")
	if w := <-watch; w.Err() == nil || w.Err().Error() != rpctypes.ErrGRPCPermissionDenied.Error() {
		t.Errorf("watch: %v", w.Err())
	}
	mine := user.Watch(ctx, "u/k", clientv3.WithCreatedNotify())
	if w := <-mine; !w.Created {
		t.Fatalf("watch of the own key: %v", w)
	}
	_, err = root.RoleRevokePermission(ctx, "r", "u/", clientv3.GetPrefixRangeEnd("u/"))
	must(t, err)
	if w, open := <-mine; open && w.Err() == nil { // the client closes the channel of a watch that the server ended
		t.Errorf("watch without right any more: %v", w)
	}
}

func TestCluster(t *testing.T) {
	m := startMember(t, memberOptions{core: func(o *core.Options) { o.NoStrictReconfig = true }})
	c, ctx := m.client(), short(t)
	list, err := c.MemberList(ctx)
	must(t, err)
	if len(list.Members) != 1 || list.Members[0].ID != testMember || list.Members[0].Name != "m1" || list.Header.Revision != 0 || list.Header.ClusterId != 0x123 {
		t.Errorf("members: %v", list)
	}
	conn := pb.NewClusterClient(dial(t, m.addr))
	if _, err := conn.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"nonsense"}}); err == nil || err.Error() != rpctypes.ErrGRPCMemberBadURLs.Error() {
		t.Errorf("bad URL: %v", err)
	}
	added, err := c.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:3380"})
	must(t, err)
	if !added.Member.IsLearner || added.Member.ID == 0 || len(added.Members) != 2 {
		t.Errorf("added: %v", added)
	}
	if _, err := c.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:3381"}); !errors.Is(err, rpctypes.ErrTooManyLearners) {
		t.Errorf("second learner: %v", err)
	}
	if _, err := c.MemberAdd(ctx, []string{"http://127.0.0.1:3380", "http://127.0.0.1:3399"}); !errors.Is(err, rpctypes.ErrPeerURLExist) {
		t.Errorf("same URL: %v", err)
	}
	if _, err := c.MemberPromote(ctx, added.Member.ID); !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
		t.Errorf("promotion of one that never started: %v", err)
	}
	updated, err := c.MemberUpdate(ctx, added.Member.ID, []string{"http://127.0.0.1:3390"})
	must(t, err)
	if len(updated.Members) != 2 {
		t.Errorf("updated: %v", updated)
	}
	if _, err := c.MemberRemove(ctx, 12345); !errors.Is(err, rpctypes.ErrMemberNotFound) {
		t.Errorf("removal of nobody: %v", err)
	}
	removed, err := c.MemberRemove(ctx, added.Member.ID)
	must(t, err)
	if len(removed.Members) != 1 {
		t.Errorf("removed: %v", removed)
	}
}

func TestMaintenance(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	_, err := c.Put(ctx, "k", "v")
	must(t, err)
	st, err := c.Status(ctx, m.addr)
	must(t, err)
	if st.Version != "3.7.3" || st.StorageVersion != "3.7.0" || st.Leader != testMember || st.RaftTerm != 2 || st.RaftAppliedIndex == 0 ||
		st.DbSizeInUse == 0 || st.DbSizeQuota == 0 || st.IsLearner || len(st.Errors) != 0 || st.Header.Revision != 2 {
		t.Errorf("status: %v", st)
	}
	conn := pb.NewMaintenanceClient(dial(t, m.addr))
	defrag, err := conn.Defragment(ctx, &pb.DefragmentRequest{})
	must(t, err)
	if defrag.Header != nil {
		t.Errorf("defragment has a header: %v", defrag)
	}
	h, err := c.HashKV(ctx, m.addr, 0)
	must(t, err)
	if h.Hash == 0 || h.HashRevision != 2 || h.CompactRevision != -1 {
		t.Errorf("hashKV: %v", h)
	}
	if _, err := conn.Hash(ctx, &pb.HashRequest{}); err != nil {
		t.Errorf("hash: %v", err)
	}
	raised, err := conn.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: testMember, Alarm: pb.AlarmType_NOSPACE})
	must(t, err)
	if len(raised.Alarms) != 1 || raised.Alarms[0].Alarm != pb.AlarmType_NOSPACE || raised.Alarms[0].MemberID != testMember {
		t.Errorf("raised: %v", raised)
	}
	if _, err := c.Put(ctx, "k", "v"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("put under NOSPACE: %v", err)
	}
	if code, body := m.get("/health"); code != 503 || !strings.Contains(body, `"reason":"ALARM NOSPACE"`) {
		t.Errorf("/health: %d %s", code, body)
	}
	if code, body := m.get("/health?exclude=NOSPACE"); code != 200 || body != `{"health":"true","reason":""}` {
		t.Errorf("/health?exclude: %d %s", code, body)
	}
	listed, err := c.AlarmList(ctx)
	must(t, err)
	if len(listed.Alarms) != 1 {
		t.Errorf("listed: %v", listed)
	}
	lowered, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	must(t, err)
	if len(lowered.Alarms) != 1 {
		t.Errorf("disarmed: %v", lowered)
	}
	if _, err := c.Put(ctx, "k", "v"); err != nil {
		t.Errorf("put after disarm: %v", err)
	}
	if _, err := c.MoveLeader(ctx, 5); !errors.Is(err, rpctypes.ErrBadLeaderTransferee) {
		t.Errorf("move to nobody: %v", err)
	}
	snap, err := conn.Snapshot(ctx, &pb.SnapshotRequest{})
	must(t, err)
	if _, err := snap.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("snapshot: %v", err)
	}
	health, err := healthpb.NewHealthClient(dial(t, m.addr)).Check(ctx, &healthpb.HealthCheckRequest{})
	must(t, err)
	if health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v", health)
	}
}

func TestMetadata(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	kv := pb.NewKVClient(dial(t, m.addr))
	// grpc-go refuses to send what is not printable, so this goes straight to the check.
	in := metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "3.\xff"))
	if err := m.api.admit(in, false); err == nil || err.Error() != rpctypes.ErrGRPCInvalidClientAPIVersion.Error() {
		t.Errorf("version that is no UTF-8: %v", err)
	}
	for i := range 2 * maxClientVersions {
		out := metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataClientAPIVersionKey, fmt.Sprint("v", i))
		_, err := kv.Range(out, &pb.RangeRequest{Key: []byte("k")})
		must(t, err)
	}
	_, body := m.get("/metrics")
	if n := strings.Count(body, "etcd_server_client_requests_total{"); n > maxClientVersions+1 {
		t.Errorf("%d series of client versions", n)
	}
	if !strings.Contains(body, `etcd_server_client_requests_total{client_api_version="other",type="unary"} 64`) {
		t.Error("what is beyond the bound is not counted as other")
	}
}

func TestPanicEndsOneCall(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	conn := dial(t, m.addr)
	honest := m.api.o.Principal
	m.api.o.Principal = func(ctx context.Context) policy.Principal {
		if _, ok := firstValue(ctx, "boom"); ok {
			panic("boom")
		}
		return honest(ctx)
	}
	boom := metadata.AppendToOutgoingContext(ctx, "boom", "1")
	if _, err := pb.NewKVClient(conn).Range(boom, &pb.RangeRequest{Key: []byte("k")}); status.Code(err) != codes.Internal {
		t.Errorf("unary: %v", err)
	}
	s, err := pb.NewWatchClient(conn).Watch(boom)
	must(t, err)
	must(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{}}}))
	if _, err := s.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("stream: %v", err)
	}
	if _, err := c.Get(ctx, "k"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if m.api.metrics.panics.Load() != 2 {
		t.Errorf("%d panics counted", m.api.metrics.panics.Load())
	}
}

func TestConcurrency(t *testing.T) {
	m := startMember(t, memberOptions{})
	c, ctx := m.client(), short(t)
	s1, err := concurrency.NewSession(c)
	must(t, err)
	s2, err := concurrency.NewSession(c)
	must(t, err)
	lock1, lock2 := concurrency.NewMutex(s1, "/lock"), concurrency.NewMutex(s2, "/lock")
	must(t, lock1.Lock(ctx))
	if err := lock2.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- lock2.Lock(ctx) }()
	must(t, lock1.Unlock(ctx))
	must(t, <-got)
}
