package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// lengths is a codec that does not decode answers: the client must not be what takes the time.
type lengths struct{}

func (lengths) Name() string { return "proto" }

func (lengths) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (lengths) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*int) = data.Len()
	return nil
}

// rawConn connects to a member without decoding what it answers; every connection reads through wrap.
func (c *cluster) rawConn(member int, wrap func(net.Conn) net.Conn) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(c.endpoint(member), "https://"),
		grpc.WithTransportCredentials(credentials.NewTLS(c.tls(c.client))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<31-1), grpc.ForceCodecV2(lengths{})),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}))
	check(c.t, err)
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// fillLists puts total bytes of values of 16 KiB each under "list/".
func (c *cluster) fillLists(ctx context.Context, total int64) {
	c.t.Helper()
	const size = 16 << 10
	cl := c.dial(0)
	value := strings.Repeat("v", size)
	inParallel(c.t, 16, int(total/size/32), func(batch int) error {
		ops := make([]clientv3.Op, 32)
		for i := range ops {
			ops[i] = clientv3.OpPut(fmt.Sprintf("list/%08d", batch*32+i), value)
		}
		_, err := cl.Txn(ctx).Then(ops...).Commit()
		return err
	})
}

// TestRowLists is row 16: full lists in a loop on the port on which a thousand watchers wait for events.
func TestRowLists(t *testing.T) {
	size, lists := record.Pick[int64](8<<20, 500<<20), record.Pick(2, 10)
	watchers, rate, lasts := record.Pick(100, 1000), 200, record.Pick(2*time.Second, time.Minute)
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	if n, err := strconv.ParseInt(os.Getenv("ROW16_BYTES"), 10, 64); err == nil {
		size = n // ten lists of 500 MB under way take 12 GB of the member, and half as much of this process
	}
	c := newCluster(t, 1, "--quota-backend-bytes", strconv.Itoa(8<<30))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	c.fillLists(ctx, size)

	const clients = 10
	var mu sync.Mutex
	var delays []time.Duration
	var got, wrong atomic.Int64
	var work, opened sync.WaitGroup
	watching, stop := context.WithCancel(ctx)
	defer work.Wait()
	defer stop()
	var start [clients]*clientv3.Client
	for i := range start {
		start[i] = c.dial(0)
	}
	for i := range watchers {
		opened.Add(1)
		ch := start[i%clients].Watch(watching, fmt.Sprintf("watched/%d", i), clientv3.WithCreatedNotify())
		work.Go(func() {
			var last int64
			for r := range ch {
				if r.Created {
					opened.Done()
				}
				for _, e := range r.Events {
					seen := time.Now().UnixNano()
					n := int64(binary.BigEndian.Uint64(e.Kv.Value[8:]))
					if n != last+1 { // lost, doubled or out of order
						wrong.Add(1)
					}
					last = n
					got.Add(1)
					mu.Lock()
					delays = append(delays, time.Duration(seen-int64(binary.BigEndian.Uint64(e.Kv.Value))))
					mu.Unlock()
				}
			}
		})
	}
	opened.Wait()

	writer := c.dial(0)
	sent := make([]int64, watchers)
	total := int64(0)
	write := func(d time.Duration) {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for end := time.Now().Add(d); time.Now().Before(end); total++ {
			<-tick.C
			i := int(total) % watchers
			sent[i]++
			v := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
			_, err := writer.Put(ctx, fmt.Sprintf("watched/%d", i), string(binary.BigEndian.AppendUint64(v, uint64(sent[i]))))
			check(t, err)
		}
	}
	settle := func() []time.Duration {
		for deadline := time.Now().Add(time.Minute); got.Load() < total && time.Now().Before(deadline); {
			<-time.After(10 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		d := delays
		delays = nil
		slices.Sort(d)
		return d
	}
	write(lasts / 4)
	quiet := settle()

	listing, end := context.WithCancel(ctx)
	var listers sync.WaitGroup
	var listed, bytes atomic.Int64
	for range lists {
		conn := c.rawConn(0, func(c net.Conn) net.Conn { return c })
		listers.Go(func() {
			for listing.Err() == nil {
				var n int
				err := conn.Invoke(listing, "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte("list/"), RangeEnd: []byte("list0")}, &n)
				if err != nil && listing.Err() == nil {
					t.Errorf("list: %v", err)
					return
				}
				listed.Add(1)
				bytes.Add(int64(n))
			}
		})
	}
	write(lasts)
	loud := settle()
	end()
	listers.Wait()
	lost := total - got.Load()
	p := func(d []time.Duration, q float64) float64 {
		return float64(d[int(q*float64(len(d)-1))]) / float64(time.Millisecond)
	}
	if lost != 0 || wrong.Load() != 0 {
		t.Errorf("%d events lost, %d doubled or out of order", lost, wrong.Load())
	}
	record.Row(t, 16, fmt.Sprintf("%d lists of %d MB in loops beside %d watchers: delay of an event p50 %.1f ms, p99 %.1f ms, max %.1f ms (without lists p99 %.1f ms), %d lost, %d out of order",
		lists, size>>20, watchers, p(loud, .5), p(loud, .99), p(loud, 1), p(quiet, .99), lost, wrong.Load()),
		map[string]float64{"p50_ms": p(loud, .5), "p99_ms": p(loud, .99), "max_ms": p(loud, 1), "quiet_p99_ms": p(quiet, .99), "lost": float64(lost), "wrong": float64(wrong.Load()),
			"lists_done": float64(listed.Load()), "list_bytes": float64(bytes.Load()), "events": float64(total)})
}

// slowly reads a kilobyte a second, once it is told to.
type slowly struct {
	net.Conn
	slow *atomic.Bool
}

func (s slowly) Read(b []byte) (int, error) {
	if !s.slow.Load() {
		return s.Conn.Read(b)
	}
	<-time.After(time.Second)
	return s.Conn.Read(b[:min(len(b), 1024)])
}

// TestRowSlowReaders is row 17: who asks for everything and reads a kilobyte a second must not cost the member more memory than
// its budget, nor others their answers. Range, whose answer is one message, is measured; RangeStream keeps the promise.
func TestRowSlowReaders(t *testing.T) {
	size, readers := record.Pick[int64](16<<20, 1<<30), record.Pick(4, 50)
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	if n, err := strconv.ParseInt(os.Getenv("ROW17_BYTES"), 10, 64); err == nil {
		size = n
	}
	if n, err := strconv.Atoi(os.Getenv("ROW17_READERS")); err == nil {
		readers = n
	}
	c := newCluster(t, 1, "--quota-backend-bytes", strconv.Itoa(8<<30))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	c.fillLists(ctx, size)
	base := anonymous(t, c.members[0])
	inPieces := c.slowReaders(ctx, readers, "RangeStream", base+8*size)
	if inPieces.peak > base+512<<20 {
		t.Errorf("RangeStream to %d slow readers took %d MB above the %d MB before", readers, (inPieces.peak-base)>>20, base>>20)
	}
	whole := c.slowReaders(ctx, readers, "Range", base+2048<<20+8*size) // the machine's other guests
	above := func(r slowReading) int64 { return (r.peak - base) >> 20 }
	record.Row(t, 17, fmt.Sprintf("%d readers of 1 kB/s ask for %d MB each, base %d MB. RangeStream: memory %d MB above it, other clients' read and write at most %v, %d readers refused. Range: %d MB, %v, %d",
		readers, size>>20, base>>20, above(inPieces), inPieces.others.Round(time.Millisecond), inPieces.refused, above(whole), whole.others.Round(time.Millisecond), whole.refused),
		map[string]float64{"stream_above_base_mb": float64(above(inPieces)), "above_base_mb": float64(above(whole)), "base_mb": float64(base >> 20), "stream_others_max_ms": float64(inPieces.others.Milliseconds()),
			"others_max_ms": float64(whole.others.Milliseconds()), "stream_refused": float64(inPieces.refused), "refused": float64(whole.refused)})
}

// slowReading is what slow readers did to a member and to others.
type slowReading struct {
	peak    int64         // bytes of the member's memory
	others  time.Duration // the longest read and write of another client
	refused int64         // readers whose answer ended early
}

// slowReaders lets readers ask the first member for the whole list with a call of KV and read a kilobyte a second for a while,
// or until the member's memory passes limit.
func (c *cluster) slowReaders(ctx context.Context, readers int, call string, limit int64) slowReading {
	t := c.t
	t.Helper()
	asking, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	var refused atomic.Int64
	for range readers {
		slow := new(atomic.Bool)
		conn := c.rawConn(0, func(c net.Conn) net.Conn { return slowly{c, slow} })
		var n int
		check(t, conn.Invoke(ctx, "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte("list/00000001")}, &n)) // connected
		slow.Store(true)
		work.Go(func() {
			n, err := listOf(asking, conn, call)
			if asking.Err() == nil {
				refused.Add(1)
				t.Logf("a slow reader of %s was answered %v after %d bytes", call, err, n)
			}
		})
	}
	r := slowReading{peak: anonymous(t, c.members[0])}
	other := c.dial(0)
	for end := time.Now().Add(record.Pick(3*time.Second, time.Minute)); time.Now().Before(end); {
		begin := time.Now()
		asked, done := context.WithTimeout(ctx, 20*time.Second)
		_, err := other.Get(asked, "list/00000001")
		if err == nil {
			_, err = other.Put(asked, "other", "x")
		}
		done()
		if err != nil {
			t.Errorf("%s: another client: %v", call, err)
			break
		}
		r.others = max(r.others, time.Since(begin))
		if r.peak = max(r.peak, anonymous(t, c.members[0])); r.peak > limit {
			t.Errorf("%s: stopped at %d MB", call, r.peak>>20)
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	r.refused = refused.Load()
	return r
}

// listOf asks for the whole list, by a call of KV with one answer or with many, and returns the bytes that came.
func listOf(ctx context.Context, conn *grpc.ClientConn, call string) (sum int, err error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: call, ServerStreams: true}, "/etcdserverpb.KV/"+call)
	if err != nil {
		return 0, err
	}
	if err := stream.SendMsg(&pb.RangeRequest{Key: []byte("list/"), RangeEnd: []byte("list0")}); err != nil {
		return 0, err
	}
	if err := stream.CloseSend(); err != nil {
		return 0, err
	}
	for {
		var n int
		if err := stream.RecvMsg(&n); err != nil {
			return sum, err
		}
		sum += n
	}
}
