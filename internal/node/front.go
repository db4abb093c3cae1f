package node

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/etcdapi"
	"holdfast.dev/holdfast/internal/node/config"
)

// front is everything that clients of the store reach. Nil: a Consul agent's member, whose clients come through the agent.
type front struct {
	n     *Node
	gates []*authn.Gate
	grpc  *grpc.Server
	webs  []*http.Server
	parts []frontPart
	work  sync.WaitGroup
}

// frontPart is one gate and what serves behind it.
type frontPart struct {
	gate *authn.Gate
	grpc bool
	web  *http.Server
}

// bindFront opens the sockets of clients, metrics and the public, and builds their servers. Nothing is served yet.
func (n *Node) bindFront(ctx context.Context) error {
	f := &front{n: n}
	n.front = f
	c := n.config
	api, err := etcdapi.New(etcdapi.Options{
		Core: n.core, Principal: authn.PrincipalFromContext, Report: n.report, Logger: n.log, Now: n.env.Now,
		NotServingOnDefrag: c.Gates.NotServingOnDefrag,
		MaxRequestBytes:    int(c.Limits.MaxRequestBytes), MaxTxnOps: int(c.Limits.MaxTxnOps), MaxConcurrentStreams: c.Limits.MaxConcurrentStreams,
		KeepaliveMinTime: c.Keepalive.MinTime, KeepaliveInterval: c.Keepalive.Interval, KeepaliveTimeout: c.Keepalive.Timeout,
		WarnAfter: warnAfter(c.Checks.WarnUnary), DetailedMetrics: c.Web.MetricsLevel == "extensive",
	})
	if err != nil {
		return err
	}
	n.api = api
	f.grpc = api.NewGRPCServer(grpc.Creds(authn.Credentials()))
	web, err := f.webHandler()
	if err != nil {
		return err
	}
	open := c.Mode == config.ModeEtcd
	client := authn.GateOptions{Side: authn.ClientSide, Routes: authn.ServeGRPC | authn.ServeWeb, TLS: n.ids.client, Open: open}
	if len(c.Listen.HTTP) > 0 {
		client.Routes = authn.ServeGRPC
	}
	if err := f.bind(ctx, c.Listen.Client, client, web); err != nil {
		return err
	}
	client.Routes = authn.ServeWeb
	if err := f.bind(ctx, c.Listen.HTTP, client, web); err != nil {
		return err
	}
	metrics := authn.GateOptions{Side: authn.MetricsSide, Routes: authn.ServeWeb, TLS: n.ids.metrics, Open: open}
	if err := f.bind(ctx, c.Listen.Metrics, metrics, api.NewMetricsHandler()); err != nil {
		return err
	}
	if c.Mode == config.ModeServer {
		public := authn.GateOptions{Side: authn.PublicSide, Routes: authn.ServeWeb, TLS: n.ids.public}
		return f.bind(ctx, c.Listen.Public, public, n.pki.authority.PublicHandler())
	}
	return nil
}

// report is what metrics and health checks show: this member's own status.
func (n *Node) report() core.Status {
	s, err := n.core.Status(n.ctx, n.system)
	if err != nil {
		n.log.Debug("this member has no status now", "error", err)
	}
	return s
}

// warnAfter translates etcd's 0, which logs every call, into what etcdapi takes for it.
func warnAfter(d time.Duration) time.Duration {
	if d == 0 {
		return time.Nanosecond
	}
	return d
}

// webHandler serves Holdfast's own administration beside etcd's web side.
func (f *front) webHandler() (http.Handler, error) {
	c := f.n.config
	web, err := f.n.api.NewWebHandler(etcdapi.WebOptions{
		GRPC: f.grpc, CORS: origins(c), HostWhitelist: orAll(c.Web.HostWhitelist),
		DisableGateway: !c.Web.Gateway, Pprof: c.Web.Pprof,
	})
	if err != nil {
		return nil, err
	}
	// A page that a browser shows must not act with the certificate of who looks at it.
	own, err := f.n.adminHandler()
	if err != nil {
		return nil, err
	}
	admin := http.NewCrossOriginProtection().Handler(own)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, caapi.AdminPrefix):
			admin.ServeHTTP(w, r)
		case c.Mode == config.ModeServer && (r.URL.Path == "/metrics" || strings.HasPrefix(r.URL.Path, "/debug/")) && !f.mayWatch(r):
			http.Error(w, "permission denied", http.StatusForbidden)
		default:
			web.ServeHTTP(w, r)
		}
	}), nil
}

// mayWatch reports whether a request comes from somebody who may see this member's status: under `holdfast server` a
// certificate alone is no right.
func (f *front) mayWatch(r *http.Request) bool {
	who, err := f.n.core.Identify(authn.PrincipalFromContext(r.Context()), "")
	if err == nil {
		_, err = f.n.core.Status(r.Context(), who)
	}
	return err == nil
}

// origins are those whose pages may call: etcd's default is all, Holdfast's own is none but the port itself.
func origins(c *config.Config) []string {
	if c.Mode == config.ModeServer {
		return c.Web.CORS
	}
	return orAll(c.Web.CORS)
}

// orAll is what etcd means by an empty list.
func orAll(list []string) []string {
	if len(list) == 0 {
		return []string{"*"}
	}
	return list
}

// bind opens sockets with one handler behind them.
func (f *front) bind(ctx context.Context, urls config.URLs, o authn.GateOptions, h http.Handler) error {
	gates, err := f.n.bind(ctx, urls, o)
	if err != nil {
		return err
	}
	for _, g := range gates {
		p := frontPart{gate: g, grpc: o.Routes&authn.ServeGRPC != 0}
		if o.Routes&authn.ServeWeb != 0 {
			p.web = f.newWebServer(h, o.Side)
			f.webs = append(f.webs, p.web)
		}
		f.gates, f.parts = append(f.gates, g), append(f.parts, p)
	}
	return nil
}

// Bounds of web servers. A stream that is opened and never finished holds its headers and a goroutine, so what one
// connection may have open is bounded wherever nobody has asked for more.
const (
	webStreams      = 10_000
	strangerStreams = 16 // the public side, where nobody shows who they are
	webHeaders      = 64 << 10
	strangerHeaders = 16 << 10
)

func (f *front) newWebServer(h http.Handler, side authn.Side) *http.Server {
	streams := f.n.config.Limits.MaxConcurrentStreams
	if streams == math.MaxUint32 {
		streams = webStreams
	}
	return newWebServer(h, side, int(min(streams, math.MaxInt32)), f.n.log)
}

// quiet takes what net/http has to say about broken connections: it is of no use to operators.
func quiet(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

// serve starts the servers and says so in etcd's words.
func (f *front) serve() {
	if f == nil {
		return
	}
	for _, p := range f.parts {
		if p.grpc {
			f.work.Go(func() { f.n.watchWeb(f.grpc.Serve(p.gate.GRPC())) })
		}
		if p.web != nil {
			f.work.Go(func() { f.n.watchWeb(p.web.Serve(p.gate.Web())) })
		}
		f.work.Go(func() { f.n.watchGate(p.gate.Serve()) })
	}
}

// announce logs each client socket.
func (f *front) announce() {
	if f == nil {
		return
	}
	for _, u := range f.n.config.Listen.Client {
		if config.Secure(u) {
			f.n.log.Info("serving client traffic securely", "traffic", "grpc+http", "address", u.Host)
		} else {
			f.n.log.Info("serving client traffic insecurely; this is strongly discouraged!", "traffic", "grpc+http", "address", u.Host)
		}
	}
	for _, u := range slices.Concat(f.n.config.Listen.HTTP, f.n.config.Listen.Metrics, f.n.config.Listen.Public) {
		f.n.log.Info("serving", "url", u.String())
	}
}

// watchGate ends the member when a socket fails for good.
func (n *Node) watchGate(err error) {
	if err != nil && n.ctx.Err() == nil && !n.isStopping() {
		n.fail(err)
	}
}

// watchWeb does the same for a server behind a gate.
func (n *Node) watchWeb(err error) {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return
	}
	n.watchGate(err)
}

// drain stops taking connections and lets the calls under way finish.
func (f *front) drain() {
	if f == nil {
		return
	}
	for _, g := range f.gates {
		if err := ignoreClosed(g.Close()); err != nil {
			f.n.log.Debug("closing a socket", "error", err)
		}
	}
	f.work.Go(f.grpc.GracefulStop) // close ends it if clients do not
}

// close ends everything that is still open.
func (f *front) close() error {
	var errs []error
	for _, g := range f.gates {
		errs = append(errs, ignoreClosed(g.Close()))
	}
	if f.grpc != nil {
		f.grpc.Stop()
	}
	for _, w := range f.webs {
		errs = append(errs, w.Close())
	}
	f.work.Wait()
	return errors.Join(errs...)
}

func (f *front) addresses() []string {
	if f == nil {
		return nil
	}
	var out []string
	for _, p := range f.parts {
		if p.grpc {
			out = append(out, p.gate.Addr().String())
		}
	}
	return out
}
