package etcdapi

import (
	"maps"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"
)

// This file counts what passes the edge, and shows what core says of itself, under the names that etcd uses.

// method is one gRPC method and its counters. The counters are plain so that a call costs a few additions.
type method struct {
	service, short, kind string
	name                 string // full
	started              atomic.Uint64
	received, sent       atomic.Uint64                            // messages
	handled              [codes.Unauthenticated + 1]atomic.Uint64 // by code
	latency              prometheus.Histogram                     // nil unless Options.DetailedMetrics
}

func (a *API) addMethod(service, short, kind string) {
	m := &method{service: service, short: short, kind: kind, name: "/" + service + "/" + short}
	if a.o.DetailedMetrics {
		m.latency = prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "Response latency of a gRPC call that the server has handled.",
			ConstLabels: prometheus.Labels{"grpc_type": kind, "grpc_service": service, "grpc_method": short},
			Buckets:     prometheus.DefBuckets,
		})
	}
	a.methods[m.name] = m
}

// maxClientVersions bounds the number of different versions that are counted apart: clients write them.
const maxClientVersions = 64

// clientCounts counts calls by what the client says its version is.
type clientCounts struct {
	mu     sync.Mutex // for adding
	counts atomic.Pointer[map[string]*clientCount]
}

type clientCount struct{ unary, stream atomic.Uint64 }

func (c *clientCounts) count(stream bool, version string) {
	n := c.of(version)
	if stream {
		n.stream.Add(1)
	} else {
		n.unary.Add(1)
	}
}

func (c *clientCounts) of(version string) *clientCount {
	if n := (*c.counts.Load())[version]; n != nil {
		return n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := *c.counts.Load()
	if len(known) >= maxClientVersions {
		version = "other"
	}
	if n := known[version]; n != nil {
		return n
	}
	grown := maps.Clone(known)
	n := new(clientCount)
	grown[version] = n
	c.counts.Store(&grown)
	return n
}

// metrics is the registry of one API and the counters that are not a method's.
type metrics struct {
	a        *API
	registry *prometheus.Registry
	clients  clientCounts
	panics   atomic.Uint64
	slowGRPC atomic.Uint64 // gRPC calls that came through net/http

	healthOK, healthFailed prometheus.Counter
	healthGauge            *prometheus.GaugeVec
	healthCount            *prometheus.CounterVec
}

func newMetrics(a *API) *metrics {
	m := &metrics{a: a, registry: prometheus.NewRegistry()}
	m.clients.counts.Store(&map[string]*clientCount{})
	m.healthOK = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "etcd_server_health_success", Help: "The total number of successful health checks"})
	m.healthFailed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "etcd_server_health_failures", Help: "The total number of failed health checks"})
	m.healthGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "etcd_server_healthcheck", Help: "The result of each kind of healthcheck."}, []string{"type", "name"})
	m.healthCount = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "etcd_server_healthchecks_total", Help: "The total number of each kind of healthcheck."}, []string{"type", "name", "status"})
	m.registry.MustRegister(m.healthOK, m.healthFailed, m.healthGauge, m.healthCount,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m)
	for _, method := range a.methods {
		if method.latency != nil {
			m.registry.MustRegister(method.latency)
		}
	}
	return m
}

// Registry is where the other parts of a member register their metrics, so that one page shows all.
func (a *API) Registry() *prometheus.Registry { return a.metrics.registry }

// Describe describes nothing: what is collected depends on the clients.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect sends everything that is not held in a metric of prometheus' own.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	e := emitter{out}
	for _, method := range m.a.methods {
		m.collectMethod(e, method)
	}
	for version, n := range *m.clients.counts.Load() {
		for kind, v := range map[string]*atomic.Uint64{"unary": &n.unary, "stream": &n.stream} {
			if c := v.Load(); c > 0 {
				e.counter("etcd_server_client_requests_total", "The total number of client requests per client version.",
					c, "type", kind, "client_api_version", version)
			}
		}
	}
	e.counter("etcd_network_client_grpc_received_bytes_total", "The total number of bytes received from grpc clients.", m.a.received.Load())
	e.counter("etcd_network_client_grpc_sent_bytes_total", "The total number of bytes sent to grpc clients.", m.a.sent.Load())
	e.counter("holdfast_request_panics_total", "Requests that ended in a panic.", m.panics.Load())
	e.counter("holdfast_web_grpc_requests_total", "gRPC calls that came through net/http because their client offers http/1.1 too.", m.slowGRPC.Load())
	e.gauge("etcd_server_version", "Which version is running. 1 for 'server_version' label with current version.", 1, "server_version", ServerVersion)
	e.gauge("etcd_server_go_version", "Which Go version server is running with. 1 for 'server_go_version' label with current version.",
		1, "server_go_version", runtime.Version())
	e.gauge("etcd_cluster_version", "Which version is running. 1 for 'cluster_version' label with current cluster version", 1, "cluster_version", "3.7")
	m.collectCore(e)
}

func (m *metrics) collectMethod(e emitter, c *method) {
	labels := []string{"grpc_type", c.kind, "grpc_service", c.service, "grpc_method", c.short}
	e.counter("grpc_server_started_total", "Total number of RPCs started on the server.", c.started.Load(), labels...)
	e.counter("grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", c.received.Load(), labels...)
	e.counter("grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", c.sent.Load(), labels...)
	for code := range c.handled {
		n := c.handled[code].Load()
		if n > 0 || code == int(codes.OK) {
			e.counter("grpc_server_handled_total", "Total number of RPCs completed on the server, regardless of success or failure.",
				n, append([]string{"grpc_code", codes.Code(code).String()}, labels...)...)
		}
	}
}

// collectCore shows what core says of itself without being asked by anybody.
func (m *metrics) collectCore(e emitter) {
	st := m.a.o.Report()
	e.gauge("etcd_server_id", "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
		1, "server_id", strconv.FormatUint(st.Header.Member, 16))
	e.gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", boolFloat(st.Leader != 0))
	e.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.",
		boolFloat(st.Leader != 0 && st.Leader == st.Header.Member))
	e.gauge("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", boolFloat(st.Learner))
	e.gauge("etcd_server_proposals_committed_total", "The total number of consensus proposals committed.", float64(st.RaftIndex))
	e.gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.", float64(st.AppliedIndex))
	e.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", float64(st.Quota))
	e.gauge("etcd_mvcc_db_total_size_in_bytes", "Total size of the underlying database physically allocated in bytes.", float64(st.DBSize))
	e.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Total size of the underlying database logically in use in bytes.", float64(st.DBSizeInUse))
	e.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", float64(st.Header.Revision))
}

func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// emitter sends constant metrics. Labels are name and value in turn.
type emitter struct{ out chan<- prometheus.Metric }

func (e emitter) counter(name, help string, v uint64, labels ...string) {
	e.emit(prometheus.CounterValue, name, help, float64(v), labels)
}

func (e emitter) gauge(name, help string, v float64, labels ...string) {
	e.emit(prometheus.GaugeValue, name, help, v, labels)
}

func (e emitter) emit(t prometheus.ValueType, name, help string, v float64, labels []string) {
	names, values := make([]string, 0, len(labels)/2), make([]string, 0, len(labels)/2)
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	metric, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help, names, nil), t, v, values...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(prometheus.NewDesc(name, help, nil, nil), err)
	}
	e.out <- metric
}
