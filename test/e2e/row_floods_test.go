package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"holdfast.dev/holdfast/test/scorecard/record"
)

// flood is one way to wear a server out: n peers that do it at once, until ctx ends.
type flood struct {
	name string
	n    int
	one  func(ctx context.Context, address string, conf *tls.Config)
}

// stay keeps a connection open until ctx ends or the server has had enough.
func stay(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	io.Copy(io.Discard, conn) //nolint:errcheck // it ends when it ends
	conn.Close()
}

func dialRaw(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+time.Now().UnixNano()%200))}} // more ports than one address has
	return d.DialContext(ctx, "tcp", address)
}

// dialH2 opens an HTTP/2 connection with a good certificate and says hello.
func dialH2(ctx context.Context, address string, conf *tls.Config, settings ...http2.Setting) (net.Conn, *http2.Framer, error) {
	raw, err := dialRaw(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	conf = conf.Clone()
	conf.NextProtos, conf.ServerName = []string{"h2"}, "localhost"
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, nil, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		raw.Close()
		return nil, nil, err
	}
	f := http2.NewFramer(conn, conn)
	return conn, f, f.WriteSettings(settings...)
}

func call(f *http2.Framer, stream uint32, method string, end bool) error {
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return err
		}
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: end})
}

func floods() []flood {
	listAll := []byte{0, 0, 0, 0, 6, 0x0a, 1, 0, 0x12, 1, 0} // Range of everything
	return []flood{
		{"half-open handshakes", record.Pick(500, 20_000), func(ctx context.Context, address string, _ *tls.Config) {
			if conn, err := dialRaw(ctx, address); err == nil {
				stay(ctx, conn)
			}
		}},
		{"handshakes that stop after the first bytes", record.Pick(200, 5000), func(ctx context.Context, address string, _ *tls.Config) {
			conn, err := dialRaw(ctx, address)
			if err != nil {
				return
			}
			conn.Write([]byte{0x16, 3, 1, 0x02, 0x00, 1, 0, 1, 0xfc, 3, 3}) //nolint:errcheck // the server may be gone
			stay(ctx, conn)
		}},
		{"slow headers", record.Pick(100, 2000), func(ctx context.Context, address string, conf *tls.Config) {
			raw, err := dialRaw(ctx, address)
			if err != nil {
				return
			}
			defer raw.Close()
			conf = conf.Clone()
			conf.NextProtos, conf.ServerName = []string{"http/1.1"}, "localhost"
			conn := tls.Client(raw, conf)
			if conn.HandshakeContext(ctx) != nil {
				return
			}
			for _, b := range []byte("POST /v3/kv/range HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + strings.Repeat("s", 1000)) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Second):
				}
			}
		}},
		{"rapid resets", record.Pick(4, 50), func(ctx context.Context, address string, conf *tls.Config) {
			conn, f, err := dialH2(ctx, address, conf)
			if err != nil {
				return
			}
			go stay(ctx, conn)
			for stream := uint32(1); ctx.Err() == nil && stream < 1<<30; stream += 2 {
				if call(f, stream, "/etcdserverpb.KV/Range", false) != nil || f.WriteRSTStream(stream, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}},
		{"pings", record.Pick(4, 50), func(ctx context.Context, address string, conf *tls.Config) {
			conn, f, err := dialH2(ctx, address, conf)
			if err != nil {
				return
			}
			go stay(ctx, conn)
			for ctx.Err() == nil {
				if f.WritePing(false, [8]byte{1}) != nil {
					return
				}
			}
		}},
		{"windows of one byte", record.Pick(20, 500), func(ctx context.Context, address string, conf *tls.Config) {
			conn, f, err := dialH2(ctx, address, conf, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			if err != nil {
				return
			}
			go stay(ctx, conn)
			for stream := uint32(1); stream < 200; stream += 2 {
				if call(f, stream, "/etcdserverpb.KV/Range", false) != nil || f.WriteData(stream, true, listAll) != nil {
					return
				}
			}
			<-ctx.Done()
		}},
	}
}

// TestRowFloods is row 20: peers that open and do not go on must not cost memory or descriptors without bound, nor others
// their answers.
func TestRowFloods(t *testing.T) {
	if testing.Short() && !record.Full() {
		t.Skip("a row of the scorecard; `make scorecard` runs it")
	}
	var limit syscall.Rlimit
	check(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	check(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	for _, f := range floods() {
		f.n = min(f.n, int(limit.Cur)-1000) // this process has other files
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { runFlood(t, f) })
	}
}

func runFlood(t *testing.T, f flood) {
	s := newSecured(t, 1)
	conf, _ := s.issue("client", "flood")
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{s.endpoint(0)}, TLS: conf.Clone(), DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	check(t, err)
	defer admin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	ask := func() (time.Duration, error) {
		begin := time.Now()
		asked, done := context.WithTimeout(ctx, 15*time.Second)
		defer done()
		_, err := admin.Get(asked, "x")
		if err != nil && strings.Contains(err.Error(), "permission denied") {
			err = nil // an answer; a client of `holdfast server` has no rights yet
		}
		return time.Since(begin), err
	}
	measure := func(d time.Duration) (p99 time.Duration, failed int) {
		var all []time.Duration
		for end := time.Now().Add(d); time.Now().Before(end); {
			took, err := ask()
			if err != nil {
				failed++
			}
			all = append(all, took)
			<-time.After(2 * time.Millisecond)
		}
		slices.Sort(all)
		return all[len(all)*99/100], failed
	}
	for range 50 { // warm
		_, err := ask()
		check(t, err)
	}
	quiet, _ := measure(record.Pick(time.Second, 5*time.Second))
	base, descriptors := anonymous(t, s.members[0]), openFiles(t, s.members[0])

	flooding, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	var running atomic.Int64
	for range f.n {
		work.Go(func() {
			running.Add(1)
			defer running.Add(-1)
			for flooding.Err() == nil { // whoever is thrown out comes again
				f.one(flooding, strings.TrimPrefix(s.endpoint(0), "https://"), conf)
				select {
				case <-flooding.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	var peak int64
	var files int
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		for flooding.Err() == nil {
			peak, files = max(peak, anonymous(t, s.members[0])), max(files, openFiles(t, s.members[0]))
			<-time.After(50 * time.Millisecond)
		}
	}()
	loud, failed := measure(record.Pick(3*time.Second, 30*time.Second))
	stop()
	work.Wait()
	<-sampled
	begin := time.Now()
	recovered := time.Duration(-1)
	for time.Since(begin) < time.Minute {
		if p99, bad := measure(time.Second); bad == 0 && p99 < 2*quiet+5*time.Millisecond {
			recovered = time.Since(begin)
			break
		}
	}
	if failed > 0 {
		t.Errorf("%d requests of a good client failed", failed)
	}
	if peak-base > 512<<20 {
		t.Errorf("%d MB of memory above the %d MB before", (peak-base)>>20, base>>20)
	}
	if recovered < 0 {
		t.Error("the member did not recover within a minute")
	}
	record.Row(t, 20, fmt.Sprintf("%d × %s: memory %d MB above %d MB, %d descriptors above %d, a good client's p99 %v (before: %v), %d of its requests failed, recovered after %v",
		f.n, f.name, (peak-base)>>20, base>>20, files-descriptors, descriptors, loud.Round(100*time.Microsecond), quiet.Round(100*time.Microsecond), failed, recovered.Round(100*time.Millisecond)),
		map[string]float64{"n": float64(f.n), "above_base_mb": float64((peak - base) >> 20), "descriptors": float64(files - descriptors), "p99_ms": loud.Seconds() * 1000, "quiet_p99_ms": quiet.Seconds() * 1000, "failed": float64(failed), "recovered_s": recovered.Seconds()})
}

func openFiles(t *testing.T, p *process) int {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	check(t, err)
	return len(names)
}
