package etcdapi

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
)

// Versions that this build says it is. The server version is that of the API module it is built against.
const (
	ServerVersion  = "3.7.3"
	ClusterVersion = "3.7.0"
	StorageVersion = "3.7.0"
)

// Defaults of Options; they are etcd's.
const (
	DefaultMaxRequestBytes   = 1536 << 10
	DefaultMaxTxnOps         = 128
	DefaultKeepaliveMinTime  = 5 * time.Second
	DefaultKeepaliveInterval = 2 * time.Hour
	DefaultKeepaliveTimeout  = 20 * time.Second
	DefaultWarnAfter         = 300 * time.Millisecond
)

// messageOverhead is what a gRPC message may be larger than a request, and a fragment of a watch too.
const messageOverhead = 512 << 10

// maxHeaderBytes bounds the metadata of a call; a token is the largest thing in it.
const maxHeaderBytes = 64 << 10

// Options configure an API. Core, Principal, Report and Logger must be set; zero elsewhere means etcd's default.
type Options struct {
	Core *core.Core
	// Principal returns who is at the other end of the connection that a call's context belongs to
	// (authn.PrincipalFromContext).
	Principal func(context.Context) policy.Principal
	// Report returns the member's own status, asked by nobody: for metrics and the health checks.
	Report func() core.Status
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now

	MaxRequestBytes      int
	MaxTxnOps            int
	MaxConcurrentStreams uint32 // per connection
	KeepaliveMinTime     time.Duration
	KeepaliveInterval    time.Duration
	KeepaliveTimeout     time.Duration
	WarnAfter            time.Duration // calls that take longer are logged; negative: none are
	StreamWorkers        uint32        // goroutines kept for calls; 0: one goroutine a call
	DetailedMetrics      bool          // latency histograms for each method

	// NotServingOnDefrag makes the gRPC health service say NOT_SERVING while Defragment runs (etcd's feature gate
	// StopGRPCServiceOnDefrag).
	NotServingOnDefrag bool
}

// API is the etcd v3 API over one core. Its methods may be called from any goroutine.
type API struct {
	o        Options
	core     *core.Core
	log      *slog.Logger
	metrics  *metrics
	health   *health.Server
	services []service
	methods  map[string]*method // by full name: /service/method

	received, sent atomic.Uint64
	goroutines     sync.WaitGroup
	ended          context.Context //nolint:containedctx // ends with Wait: websockets outlive the server they came through
	end            context.CancelFunc
	webGRPC        sync.Once // the slow path was logged
}

// service is one gRPC service and what implements it.
type service struct {
	desc *grpc.ServiceDesc
	impl any
}

// New returns the API over o.Core.
func New(o Options) (*API, error) {
	if o.Core == nil || o.Principal == nil || o.Report == nil || o.Logger == nil {
		return nil, errors.New("etcdapi: Core, Principal, Report and Logger must be set")
	}
	o.setDefaults()
	a := &API{o: o, core: o.Core, log: o.Logger, health: health.NewServer(), methods: make(map[string]*method)}
	a.ended, a.end = context.WithCancel(context.Background())
	a.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	a.services = a.allServices()
	for _, s := range a.services {
		for i := range s.desc.Methods {
			a.addMethod(s.desc.ServiceName, s.desc.Methods[i].MethodName, "unary")
		}
		for i := range s.desc.Streams {
			d := &s.desc.Streams[i]
			kind := "server_stream"
			if d.ClientStreams {
				kind = "bidi_stream"
			}
			a.addMethod(s.desc.ServiceName, d.StreamName, kind)
		}
	}
	a.metrics = newMetrics(a)
	return a, nil
}

func (o *Options) setDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxRequestBytes <= 0 {
		o.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if o.MaxTxnOps <= 0 {
		o.MaxTxnOps = DefaultMaxTxnOps
	}
	if o.MaxConcurrentStreams == 0 {
		o.MaxConcurrentStreams = math.MaxUint32
	}
	if o.KeepaliveMinTime == 0 {
		o.KeepaliveMinTime = DefaultKeepaliveMinTime
	}
	if o.KeepaliveInterval == 0 {
		o.KeepaliveInterval = DefaultKeepaliveInterval
	}
	if o.KeepaliveTimeout == 0 {
		o.KeepaliveTimeout = DefaultKeepaliveTimeout
	}
	if o.WarnAfter == 0 {
		o.WarnAfter = DefaultWarnAfter
	}
}

// NewGRPCServer returns grpc-go's server with every service registered. extra carries the transport credentials.
func (a *API) NewGRPCServer(extra ...grpc.ServerOption) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(a.codec()),
		grpc.UnaryInterceptor(a.interceptUnary),
		grpc.StreamInterceptor(a.interceptStream),
		grpc.MaxRecvMsgSize(a.o.MaxRequestBytes + messageOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(a.o.MaxConcurrentStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: a.o.KeepaliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: a.o.KeepaliveInterval, Timeout: a.o.KeepaliveTimeout}),
	}
	if a.o.StreamWorkers > 0 {
		opts = append(opts, grpc.NumStreamWorkers(a.o.StreamWorkers))
	}
	s := grpc.NewServer(append(opts, extra...)...)
	for _, svc := range a.services {
		s.RegisterService(svc.desc, svc.impl)
	}
	return s
}

// Wait ends the websockets and returns when every goroutine that a call left behind has ended. Call it after the servers
// have stopped.
func (a *API) Wait() {
	a.end()
	a.goroutines.Wait()
}

func (a *API) codec() codec { return codec{received: &a.received, sent: &a.sent, panicked: a.panicked} }

// header returns the header of an answer that has no revision of its own: the live one.
func (a *API) header() header {
	h := a.core.Header(mvcc.SpaceEtcd)
	return header{cluster: h.Cluster, member: h.Member, revision: h.Revision, term: h.Term}
}

// headerAt returns the header of an answer given at a revision; 0 stands for the live one.
func (a *API) headerAt(revision int64) header {
	h := a.header()
	if revision != 0 {
		h.revision = revision
	}
	return h
}
