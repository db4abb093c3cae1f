package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// probing returns an agent that may do everything, and the function that probes a definition once.
func probing(t *testing.T, roots *x509.CertPool) func(def string) (status, output string) {
	t.Helper()
	o := options(t, openDirectory(t), "node-01")
	o.Scripts = true
	o.Secure = func(ctx context.Context, c net.Conn, target TLSTarget) (net.Conn, error) {
		s := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: target.ServerName, InsecureSkipVerify: target.SkipVerify, NextProtos: target.Protocols})
		return s, s.HandshakeContext(ctx)
	}
	a := build(t, o)
	return func(text string) (string, string) {
		t.Helper()
		def := checkOf(t, text)
		def.ID, def.Name = "c", "c"
		if err := a.check(&def, false); err != nil {
			t.Fatal(err)
		}
		return a.probe(&def)(t.Context())
	}
}

func expectProbe(t *testing.T, status, output, wantStatus, wantOutput string) {
	t.Helper()
	if status != wantStatus || !strings.Contains(output, wantOutput) {
		t.Errorf("%s %.300q, want %s with %q", status, output, wantStatus, wantOutput)
	}
}

func TestHTTPProbe(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/to":
			http.Redirect(w, r, "/200", http.StatusFound)
		case "/echo":
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s %s %s", r.Method, r.Host, r.Header.Get("X-Who"), r.UserAgent(), r.Header.Get("Accept"), body)
		case "/big":
			io.WriteString(w, strings.Repeat("x", 10000))
		case "/endless":
			for block := make([]byte, 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		case "/hang":
			<-r.Context().Done()
		default:
			code, _ := strconv.Atoi(r.URL.Path[1:])
			w.WriteHeader(code)
			io.WriteString(w, "said")
		}
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	probe := probing(t, nil)
	for path, want := range map[string]string{"/200": Passing, "/204": Passing, "/299": Passing, "/300": Critical, "/404": Critical, "/429": Warning, "/500": Critical, "/to": Passing} {
		status, output := probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, plain.URL+path))
		expectProbe(t, status, output, want, "HTTP GET "+plain.URL+path+": ")
	}
	// As much as is kept and a little more is read, whatever the definition asks for.
	for _, size := range []string{"0", "100", "1000000000000", "9223372036854775807"} {
		status, output := probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","Timeout":"30s","OutputMaxSize":%s}`, plain.URL+"/endless", size))
		if status != Passing || len(output) > 1<<18 {
			t.Errorf("OutputMaxSize %s: %s, %d bytes", size, status, len(output))
		}
	}
	status, output := probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, plain.URL+"/200"))
	expectProbe(t, status, output, Passing, ": 200 OK Output: said")
	status, output = probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","DisableRedirects":true}`, plain.URL+"/to"))
	expectProbe(t, status, output, Critical, "302 Found")
	status, output = probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","Method":"PUT","Body":"hello","Header":{"x-who":["me"],"Host":["there"]}}`, plain.URL+"/echo"))
	expectProbe(t, status, output, Passing, "PUT there me Consul Health Check text/plain, text/*, */* hello")
	status, output = probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","Timeout":"50ms"}`, plain.URL+"/hang"))
	expectProbe(t, status, output, Critical, "context deadline exceeded")
	secret := strings.Replace(plain.URL, "://", "://user:hunter2@", 1)
	status, output = probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, secret+"/200"))
	if strings.Contains(output, "hunter2") || status != Passing {
		t.Errorf("%s: the password in the URL is shown: %s", status, output)
	}
	_, output = probe(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, plain.URL+"/big"))
	if kept := cut(output, 0); len(kept) > 4096+64 || !strings.Contains(kept, "captured 4096 of 10") {
		t.Errorf("%d bytes of output, ending in %q", len(kept), kept[len(kept)-60:])
	}
}

func TestProbesOverTLS(t *testing.T) {
	t.Parallel()
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	address := secure.Listener.Addr().String()
	trusting, stranger := probing(t, roots), probing(t, x509.NewCertPool())

	status, output := trusting(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, secure.URL))
	expectProbe(t, status, output, Passing, "200 OK")
	status, output = trusting(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","TLSServerName":"example.com"}`, secure.URL))
	expectProbe(t, status, output, Passing, "200 OK")
	status, output = trusting(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","TLSServerName":"elsewhere.test"}`, secure.URL))
	expectProbe(t, status, output, Critical, "elsewhere.test")
	status, output = stranger(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s"}`, secure.URL))
	expectProbe(t, status, output, Critical, "certificate signed by unknown authority")
	status, output = stranger(fmt.Sprintf(`{"HTTP":%q,"Interval":"1s","TLSSkipVerify":true}`, secure.URL))
	expectProbe(t, status, output, Passing, "200 OK")
	status, output = trusting(fmt.Sprintf(`{"TCP":%q,"TCPUseTLS":true,"Interval":"1s"}`, address))
	expectProbe(t, status, output, Passing, "TCP+TLS connect "+address+": Success")
	status, output = stranger(fmt.Sprintf(`{"TCP":%q,"TCPUseTLS":true,"Interval":"1s"}`, address))
	expectProbe(t, status, output, Critical, "unknown authority")

	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&secure.TLS.Certificates[0])))
	at := serveHealth(t, server)
	status, output = trusting(fmt.Sprintf(`{"GRPC":%q,"GRPCUseTLS":true,"Interval":"1s"}`, at+"/up"))
	expectProbe(t, status, output, Passing, "gRPC check "+at+"/up: success")
	status, output = stranger(fmt.Sprintf(`{"GRPC":%q,"GRPCUseTLS":true,"Interval":"1s"}`, at+"/up"))
	expectProbe(t, status, output, Critical, "unknown authority")
}

func serveHealth(t *testing.T, server *grpc.Server) (address string) {
	t.Helper()
	h := grpchealth.NewServer()
	h.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	h.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return l.Addr().String()
}

func TestGRPCProbe(t *testing.T) {
	t.Parallel()
	probe := probing(t, nil)
	at := serveHealth(t, grpc.NewServer())
	for def, want := range map[string][2]string{
		at:              {Passing, "gRPC check " + at + ": success"},
		at + "/up":      {Passing, "success"},
		at + "/down":    {Critical, "NOT_SERVING"},
		at + "/unknown": {Critical, "unknown service"},
		"127.0.0.1:1":   {Critical, "connection refused"},
	} {
		status, output := probe(fmt.Sprintf(`{"GRPC":%q,"Interval":"1s"}`, def))
		expectProbe(t, status, output, want[0], want[1])
	}
}

func TestTCPAndUDPProbes(t *testing.T) {
	t.Parallel()
	probe := probing(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	status, output := probe(fmt.Sprintf(`{"TCP":%q,"Interval":"1s"}`, l.Addr()))
	expectProbe(t, status, output, Passing, "TCP connect "+l.Addr().String()+": Success")
	status, output = probe(`{"TCP":"127.0.0.1:1","Interval":"1s"}`)
	expectProbe(t, status, output, Critical, "dial tcp 127.0.0.1:1: connect: connection refused")

	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	status, output = probe(fmt.Sprintf(`{"UDP":%q,"Interval":"1s","Timeout":"100ms"}`, silent.LocalAddr()))
	expectProbe(t, status, output, Passing, "UDP connect "+silent.LocalAddr().String()+": Success")
	status, output = probe(`{"UDP":"127.0.0.1:1","Interval":"1s","Timeout":"5s"}`)
	expectProbe(t, status, output, Critical, "connection refused")
}

func TestScriptProbe(t *testing.T) {
	t.Parallel()
	probe := probing(t, nil)
	for script, want := range map[string][2]string{
		`echo fine; echo and well >&2`:         {Passing, "fine\nand well\n"},
		`echo hm; exit 1`:                      {Warning, "hm\n"},
		`echo bad; exit 2`:                     {Critical, "bad\n"},
		`kill -9 $$`:                           {Critical, ""},
		`head -c 10000 /dev/zero | tr '\0' x`:  {Passing, "Captured 4096 of 10000 bytes\n...\nxxx"},
		`echo "${HOLDFAST_AGENT_TEST:-empty}"`: {Passing, "empty\n"},
	} {
		status, output := probe(fmt.Sprintf(`{"Args":["sh","-c",%q],"Interval":"1s"}`, script))
		expectProbe(t, status, output, want[0], want[1])
	}
	status, output := probe(`{"Args":["/nowhere/at/all"],"Interval":"1s"}`)
	expectProbe(t, status, output, Critical, "no such file or directory")
}

// TestScriptsEndWithTheirChildren: a child that holds the output open must neither outlive the check nor hang it.
func TestScriptsEndWithTheirChildren(t *testing.T) {
	t.Parallel()
	probe := probing(t, nil)
	file := filepath.Join(t.TempDir(), "pid")
	begin := time.Now()
	status, output := probe(fmt.Sprintf(`{"Args":["sh","-c","sleep 1000 & echo $! > %s; wait"],"Interval":"1s","Timeout":"500ms"}`, file))
	expectProbe(t, status, output, Critical, "Timed out (500ms) running check")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the child is dead", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil && syscall.Kill(pid, 0) != nil || strings.Contains(string(stat), ") Z ")
	})
}

// TestAProbeReachesTheCatalog runs a real check from registration to catalog.
func TestAProbeReachesTheCatalog(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	answer := make(chan int, 1)
	answer <- http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := <-answer
		answer <- code
		w.WriteHeader(code)
	}))
	defer server.Close()
	a := build(t, options(t, d, "node-01"))
	stop := start(t, a)
	defer stop()
	registered(t, a, fmt.Sprintf(`{"Name":"web","Check":{"HTTP":%q,"Interval":"1s"}}`, server.URL))
	until(t, "passing", func() bool { return d.check("node-01", "service:web").Status == Passing })
	<-answer
	answer <- http.StatusTooManyRequests
	until(t, "warning", func() bool { return d.check("node-01", "service:web").Status == Warning })
}
