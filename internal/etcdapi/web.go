package etcdapi

import (
	"context"
	"encoding/json"
	"expvar"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	gw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"go.etcd.io/etcd/api/v3/version"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	egw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	lgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
)

// WebOptions configure what a client port serves to web clients.
type WebOptions struct {
	GRPC *grpc.Server // serves application/grpc requests of clients that offer http/1.1 too; nil: they are refused
	// CORS lists the origins, besides the port itself, whose pages may call; HostWhitelist lists the Host headers that a
	// port without TLS answers. "*" admits all; an empty list admits none.
	CORS, HostWhitelist []string
	DisableGateway      bool
	Pprof               bool // serve /debug/pprof to whoever reaches the port
}

// NewWebHandler returns what a client port serves over HTTP: the JSON gateway, health checks, metrics and version. It is
// to be served by an http.Server whose ConnContext carries the principal.
func (a *API) NewWebHandler(o WebOptions) (http.Handler, error) {
	mux := http.NewServeMux()
	a.handleMetrics(mux)
	a.handleHealth(mux)
	mux.HandleFunc("/version", get(a.serveVersion))
	mux.HandleFunc("/debug/vars", get(serveVars))
	if o.Pprof {
		handlePprof(mux)
	}
	if !o.DisableGateway {
		h, err := a.gateway()
		if err != nil {
			return nil, err
		}
		mux.Handle("/v3/", h)
	}
	return &webHandler{a: a, grpc: o.GRPC, cors: setOf(o.CORS), hosts: setOf(o.HostWhitelist), mux: mux}, nil
}

func setOf(list []string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, s := range list {
		set[s] = true
	}
	return set
}

// webHandler stands before the mux.
type webHandler struct {
	a           *API
	grpc        *grpc.Server
	cors, hosts map[string]bool
	mux         *http.ServeMux
}

func (h *webHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r.Header.Get("Content-Type")) {
		h.serveGRPC(w, r)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
	}
	if r.TLS == nil {
		// A browser that was led to this port under a foreign name sends that name (CVE-2018-5702).
		if host := hostname(r.Host); !h.hosts["*"] && !h.hosts[host] {
			h.a.log.Warn("rejecting HTTP request to prevent DNS rebinding attacks", "host", host)
			http.Error(w, misdirected(host), http.StatusMisdirectedRequest)
			return
		}
	}
	switch origin := r.Header.Get("Origin"); {
	case h.cors["*"]:
		allowOrigin(w, "*")
	case h.cors[origin]:
		allowOrigin(w, origin)
	case origin != "" && !sameOrigin(origin, r.Host):
		// Not to allow the page to read the answer would not be enough: the browser sends the request, or opens the
		// websocket, with its user's certificate.
		http.Error(w, "requests from pages of this origin are not allowed", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// serveGRPC serves a gRPC call that came to the web side. That is right and slow.
func (h *webHandler) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if h.grpc == nil || r.ProtoMajor < 2 {
		http.Error(w, "gRPC needs HTTP/2 on a port that serves it", http.StatusHTTPVersionNotSupported)
		return
	}
	h.a.metrics.slowGRPC.Add(1)
	h.a.webGRPC.Do(func() {
		h.a.log.Warn("a gRPC client offers http/1.1 beside h2 and is served the slow way, at several times the CPU;"+
			" let it offer h2 alone (HAProxy: alpn h2; Envoy: alpn_protocols: [h2])", "remote", r.RemoteAddr)
	})
	h.grpc.ServeHTTP(w, r)
}

// sameOrigin reports whether a page of origin was served by host itself.
func sameOrigin(origin, host string) bool {
	_, from, ok := strings.Cut(origin, "://")
	return ok && strings.EqualFold(from, host)
}

// hostname returns host without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

func allowOrigin(w http.ResponseWriter, origin string) {
	h := w.Header()
	h.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	h.Add("Access-Control-Allow-Origin", origin)
	h.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
	if origin != "*" {
		h.Add("Vary", "Origin")
	}
}

func misdirected(host string) string {
	return fmt.Sprintf(`
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`, host)
}

func (a *API) serveVersion(w http.ResponseWriter, _ *http.Request) {
	body, err := json.Marshal(version.Versions{Server: ServerVersion, Cluster: ClusterVersion, Storage: StorageVersion})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(body); err != nil {
		a.log.Debug("the answer of /version was not read", "error", err)
	}
}

// serveVars serves the expvar variables, except the command line: a secret may stand on it.
func serveVars(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	sep := "{\n"
	expvar.Do(func(kv expvar.KeyValue) {
		if kv.Key == "cmdline" {
			return
		}
		fmt.Fprintf(w, "%s%q: %s", sep, kv.Key, kv.Value)
		sep = ",\n"
	})
	fmt.Fprint(w, "\n}\n")
}

func handlePprof(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// gateway returns the JSON gateway, whose calls run in this process.
func (a *API) gateway() (http.Handler, error) {
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
		Marshaler: &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		},
	}))
	ctx, conn := context.Background(), newLoopback(a)
	for _, register := range []func() error{
		func() error { return gw.RegisterKVHandlerClient(ctx, mux, pb.NewKVClient(conn)) },
		func() error { return gw.RegisterWatchHandlerClient(ctx, mux, pb.NewWatchClient(conn)) },
		func() error { return gw.RegisterLeaseHandlerClient(ctx, mux, pb.NewLeaseClient(conn)) },
		func() error { return gw.RegisterClusterHandlerClient(ctx, mux, pb.NewClusterClient(conn)) },
		func() error { return gw.RegisterMaintenanceHandlerClient(ctx, mux, pb.NewMaintenanceClient(conn)) },
		func() error { return gw.RegisterAuthHandlerClient(ctx, mux, pb.NewAuthClient(conn)) },
		func() error { return egw.RegisterElectionHandlerClient(ctx, mux, epb.NewElectionClient(conn)) },
		func() error { return lgw.RegisterLockHandlerClient(ctx, mux, v3lockpb.NewLockClient(conn)) },
	} {
		if err := register(); err != nil {
			return nil, err
		}
	}
	return a.websockets(a.bounded(mux)), nil
}
