package loadgen

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// short are options of a run of a fraction of a second.
func short(load, address string) Options {
	o := Options{Load: load, Endpoints: []string{"http://" + address}, Clients: 4, Conns: 2, Length: 200 * time.Millisecond, WarmUp: 20 * time.Millisecond, Timeout: 2 * time.Second,
		Prefix: "b/", Keys: 50, ValueSize: 64, Limit: 7, ReadRatio: 0.5, Watchers: 6, Groups: 2, Leases: 30, TTL: 1, ServerPIDs: []int{}}
	if load == LoadLeaseExpire || load == LoadLeaseRevoke {
		o.Length, o.WarmUp, o.Total = 0, 0, int64(o.Leases)
	}
	return o
}

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEveryLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		load   string
		series string // those that have to have counted something
	}{
		{LoadPut, "put"}, {LoadRange, "range"}, {LoadList, "page count"}, {LoadMixed, "put range"}, {LoadLarge, "put range"}, {LoadCAS, "cas"},
		{LoadWatch, "put delivery"}, {LoadConnect, "connect"}, {LoadLeaseGrant, "grant"}, {LoadLeaseKeepAlive, "keepalive"}, {LoadLeaseRevoke, "revoke"},
		{LoadLeaseExpire, "grant+put expiry"},
	} {
		for _, rate := range []float64{0, 300} {
			t.Run(c.load, func(t *testing.T) {
				t.Parallel()
				f := &fake{}
				o := short(c.load, startFake(t, f))
				o.Rate = rate
				if o.Load == LoadLeaseKeepAlive || o.Load == LoadLeaseRevoke {
					o.TTL = 60
				}
				r := run(t, o)
				if r.Failed() || len(r.Notes) > 0 || r.Interrupted || (rate > 0) != (r.Open != nil) {
					t.Errorf("%+v", r)
				}
				for _, s := range r.Series {
					if strings.Contains(" "+c.series+" ", " "+s.Name+" ") && (s.Count == 0 || s.Latency == nil || s.Latency.Max < s.Latency.P50) {
						t.Errorf("%s: %+v", s.Name, s)
					}
					if s.Failed != 0 {
						t.Errorf("%s: %+v", s.Name, s.Failures)
					}
				}
				if rate > 0 && r.Series[0].Count+countOf(r, "count")+countOf(r, "range") != r.Open.Due && c.load != LoadRange {
					t.Errorf("%d were due: %+v", r.Open.Due, r.Series)
				}
				if len(f.keys) > 0 {
					t.Errorf("%d keys are left", len(f.keys))
				}
			})
		}
	}
}

func countOf(r *Report, name string) int64 {
	for _, s := range r.Series {
		if s.Name == name {
			return s.Count
		}
	}
	return 0
}

// stall makes every request that comes between from and to, since the first one, wait until to.
func stall(from, to time.Duration) func(context.Context, string) error {
	var began atomic.Int64
	return func(ctx context.Context, name string) error {
		if name != "put" {
			return nil
		}
		now := time.Now().UnixNano()
		began.CompareAndSwap(0, now)
		if since := time.Duration(now - began.Load()); since >= from && since < to {
			wait(ctx, to-since)
		}
		return ctx.Err()
	}
}

// An open loop shows a stall in the latency of everything that came due meanwhile, also when few clients can wait. A closed
// loop hides it: that is why there are two, and that this test can tell them apart.
func TestOpenLoopShowsAStall(t *testing.T) {
	t.Parallel()
	const rate, length, from, to = 400, 1200 * time.Millisecond, 300 * time.Millisecond, 900 * time.Millisecond
	for _, clients := range []int{1, 2, 1000} {
		o := short(LoadPut, startFake(t, &fake{before: stall(from, to)}))
		o.WarmUp, o.Length, o.Rate, o.Clients = 0, length, rate, clients
		r := run(t, o)
		s := r.Series[0]
		if due := int64(rate * length.Seconds()); s.Count != due || r.Open.Due != due || r.Open.NotStarted != 0 {
			t.Fatalf("%d clients: %d of %d answered, %+v", clients, s.Count, due, r.Open)
		}
		// Half of all came due during the stall and waited for up to 600 ms, evenly spread; the backlog comes after.
		if s.Latency.P99 < 500 || s.Latency.P90 < 350 || s.Latency.Max < 550 {
			t.Errorf("%d clients: the stall is not in %+v", clients, *s.Latency)
		}
		if stalled := int64(rate * (to - from).Seconds()); clients < 1000 && (r.Open.Late < stalled*3/4 || r.Open.LatestMs < 450) {
			t.Errorf("%d clients: %+v, though about %d had to wait for a client", clients, r.Open, stalled)
		}
	}
	o := short(LoadPut, startFake(t, &fake{before: stall(from, to)}))
	o.WarmUp, o.Length, o.Clients = 0, length, 1
	if s := run(t, o).Series[0]; s.Latency.P99 > 300 || s.Latency.Max < 550 {
		t.Errorf("closed loop: %+v", *s.Latency)
	}
}

// What cannot be started is counted, and the run ends.
func TestOpenLoopOnADeadServer(t *testing.T) {
	t.Parallel()
	f := &fake{before: func(ctx context.Context, name string) error {
		if name == "put" {
			<-ctx.Done()
		}
		return ctx.Err()
	}}
	o := short(LoadPut, startFake(t, f))
	o.WarmUp, o.Length, o.Rate, o.Clients, o.Timeout = 0, 500*time.Millisecond, 100, 3, 200*time.Millisecond
	r := run(t, o)
	s := r.Series[0]
	kinds := map[string]int64{}
	for _, f := range s.Failures {
		kinds[f.Kind] = f.Count
	}
	if s.Count != 0 || s.Failed != 50 || r.Open.Due != 50 || kinds["timeout"] == 0 || kinds["timeout"] > 15 || kinds["timeout"]+r.Open.NotStarted != 50 || kinds[errNotStarted.Error()] != r.Open.NotStarted {
		t.Errorf("%+v %+v", s, r.Open)
	}
	if !r.Failed() || s.FailedLatency.Min < 190 {
		t.Errorf("%+v", s.FailedLatency)
	}
}

// In an open loop many clients take turns at few walks, and these come to their ends.
func TestOpenLoopOfListsReadsPages(t *testing.T) {
	t.Parallel()
	o := short(LoadList, startFake(t, &fake{}))
	o.Clients, o.Rate, o.Length, o.Keys, o.Limit = 1000, 200, 500*time.Millisecond, 50, 10
	r := run(t, o)
	if pages, counts := countOf(r, "page"), countOf(r, "count"); pages <= counts || r.Failed() {
		t.Errorf("%d pages, %d counts", pages, counts)
	}
}

// Failures are counted by kind, and nothing is asked again.
func TestFailuresAreCounted(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	f := &fake{}
	f.before = func(_ context.Context, name string) error {
		switch i := n.Add(1); {
		case name != "put" || i%3 == 0:
			return nil
		case i%3 == 1:
			return status.Error(codes.Unavailable, "etcdserver: leader changed")
		}
		return status.Error(codes.Unavailable, "read tcp 127.0.0.1:1->127.0.0.1:2: connection reset by peer")
	}
	o := short(LoadPut, startFake(t, f))
	o.WarmUp, o.Length, o.Total = 0, 0, 99
	r := run(t, o)
	s := r.Series[0]
	if s.Count+s.Failed != 99 || f.seen["put"] != 99 || len(s.Failures) != 2 || r.Failed() {
		t.Fatalf("the server saw %d: %+v", f.seen["put"], s)
	}
	for _, x := range s.Failures {
		if x.Kind != "Unavailable: etcdserver: leader changed" && x.Kind != "Unavailable: connection reset" || x.Count < 30 {
			t.Errorf("%+v", x)
		}
	}
}

func TestWarmUpIsNotReported(t *testing.T) {
	t.Parallel()
	f := &fake{}
	o := short(LoadPut, startFake(t, f))
	o.WarmUp, o.Length, o.Total = 100*time.Millisecond, 0, 10
	if r := run(t, o); r.Series[0].Count != 10 || f.seen["put"] <= 10 || r.Seconds > 0.1 {
		t.Errorf("%d seen, %+v", f.seen["put"], r)
	}
}

func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	for _, c := range []struct {
		name, load, kind string
		f                *fake
	}{
		{"lost key", LoadRange, "is not there", &fake{answer: func(r *pb.RangeResponse) { r.Kvs = nil }}},
		{"short page", LoadList, "not what was counted", &fake{answer: func(r *pb.RangeResponse) {
			if !r.More && len(r.Kvs) > 0 {
				r.Kvs = r.Kvs[1:]
			}
		}}},
		{"wrong count", LoadList, "not what is left", &fake{answer: func(r *pb.RangeResponse) { r.Count = 1000 }}},
		{"event twice", LoadWatch, "came twice", &fake{event: func(_ int64, e []*mvccpb.Event) []*mvccpb.Event { return append(e, e[0]) }}},
		{"event lost", LoadWatch, "never delivered", &fake{event: func(w int64, e []*mvccpb.Event) []*mvccpb.Event {
			if n.Add(1) == 20 {
				return nil
			}
			return e
		}}},
		{"early end", LoadLeaseExpire, "before its time", &fake{early: 300 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := short(c.load, startFake(t, c.f))
			o.Limit = 8 // the last page has two keys
			if c.name == "event lost" {
				o.Groups, o.WarmUp = 1, 0
			}
			r, err := runUntilSettled(t, o)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range r.Series {
				for _, f := range s.Failures {
					if strings.Contains(f.Kind, c.kind) && f.Count > 0 && r.Failed() {
						return
					}
				}
			}
			t.Errorf("not found: %+v", r.Series)
		})
	}
}

// runUntilSettled runs with a bound on how long deliveries are waited for that a test can wait for.
func runUntilSettled(t *testing.T, o Options) (*Report, error) {
	o.settle = time.Second
	if o.Load == LoadLeaseExpire {
		o.settle = 5 * time.Second
	}
	return Run(t.Context(), o, nil)
}

func TestCompareAndSwapCountsAttempts(t *testing.T) {
	t.Parallel()
	f := &fake{}
	o := short(LoadCAS, startFake(t, f))
	o.Keys, o.Clients, o.Length, o.WarmUp, o.Total = 1, 8, 0, 0, 200
	o.Keep = true
	r := run(t, o)
	s := r.Series[0]
	// 1 transaction prepares the key; every attempt is a transaction.
	if s.Count != 200 || s.Retries == 0 || int64(f.seen["txn"]) != 1+s.Count+s.Retries || f.revision != 1+1+200 {
		t.Errorf("%+v: %d transactions, revision %d", s, f.seen["txn"], f.revision)
	}
}

func TestConnectWithFullHandshakes(t *testing.T) {
	t.Parallel()
	server, client := certificates(t)
	f := &fake{}
	address := startFake(t, f, grpc.Creds(credentials.NewTLS(server)))
	o := short(LoadConnect, address)
	o.Endpoints, o.TLS = []string{"https://" + address}, client
	r := run(t, o)
	if r.Failed() || countOf(r, "handshake") < countOf(r, "connect") || r.Series[0].Count == 0 {
		t.Errorf("%+v", r.Series)
	}
	o.TLS = nil
	if _, err := Run(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without a certificate and a root: %v", err)
	}
}

// certificates returns both sides of mutual TLS on 127.0.0.1.
func certificates(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
		&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
}

func TestFloor(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeFloor(ctx, l, nil, 64) }()
	for _, load := range []string{LoadPut, LoadRange, LoadMixed} {
		if r := run(t, short(load, l.Addr().String())); r.Failed() || r.Series[0].Failed > 0 {
			t.Errorf("%s: %+v", load, r.Series)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The processes behind loopback endpoints are found, and what they use is more than nothing.
func TestUsage(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc")
	}
	o := short(LoadPut, startFake(t, &fake{}))
	o.ServerPIDs, o.Length = nil, 400*time.Millisecond
	r := run(t, o)
	if len(r.Servers) != 1 || r.Servers[0].PID != os.Getpid() || r.Cost == nil || r.Cost.CPUPerRequest <= 0 || r.Servers[0].PeakRSSBytes < r.Servers[0].AnonBytes || r.Generator == nil {
		t.Fatalf("%+v %+v %v", r.Servers, r.Cost, r.Notes)
	}
	var text bytes.Buffer
	if err := r.Table(&text); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"closed loop, 4 clients on 2 connections", "p99.9", "us of server CPU per request", "generator:"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("%q is missing in:\n%s", part, text.String())
		}
	}
	data, err := json.Marshal(r)
	if err != nil || !bytes.Contains(data, []byte(`"cpuPerRequestUs"`)) {
		t.Errorf("%s %v", data, err)
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	o := short(LoadPut, startFake(t, &fake{}))
	o.Length, o.WarmUp = time.Hour, 0
	var lines int
	r, err := Run(ctx, o, func(p Progress) {
		if p.Phase == "measuring" && p.Elapsed > 0 {
			if p.PerSecond <= 0 || p.P50 <= 0 || p.P99 < p.P50 {
				t.Errorf("%+v", p)
			}
			lines++
			cancel()
		}
	})
	if err != nil || !r.Interrupted || r.Series[0].Count == 0 || r.Series[0].Failed != 0 || lines != 1 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for part, change := range map[string]func(o *Options){
		"no load":       func(o *Options) { o.Load = "x" },
		"no endpoint":   func(o *Options) { o.Endpoints = nil },
		"scheme":        func(o *Options) { o.Endpoints = []string{"unix:///x"} },
		"missing port":  func(o *Options) { o.Endpoints = []string{"host"} },
		"--clients":     func(o *Options) { o.Clients = 0 },
		"--conns":       func(o *Options) { o.Conns = 0 },
		"not both":      func(o *Options) { o.Total = 1 },
		"or --total":    func(o *Options) { o.Length = 0 },
		"--rate":        func(o *Options) { o.Rate = -1 },
		"--timeout":     func(o *Options) { o.Timeout = 0 },
		"--value-size":  func(o *Options) { o.ValueSize = 3 },
		"--keys":        func(o *Options) { o.Keys = 0 },
		"--limit":       func(o *Options) { o.Load, o.Limit = LoadList, 0 },
		"--read-ratio":  func(o *Options) { o.ReadRatio = 2 },
		"--watchers":    func(o *Options) { o.Load, o.Watchers = LoadWatch, 0 },
		"--ttl":         func(o *Options) { o.Load, o.TTL = LoadLeaseGrant, 0 },
		"--leases":      func(o *Options) { o.Load, o.Leases = LoadLeaseKeepAlive, 0 },
		"no --warmup":   func(o *Options) { o.Load = LoadLeaseExpire },
		"--prefix must": func(o *Options) { o.Prefix = "" },
	} {
		o := short(LoadPut, "127.0.0.1:1")
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
}
