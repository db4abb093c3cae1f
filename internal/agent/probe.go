package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	defaultProbeTimeout = 10 * time.Second
	maxDrained          = 64 << 10 // bytes of a body that are read past what is kept, so that the size of most can be told
	killGrace           = time.Second
)

// probe returns what looks after a definition of a kind that has an interval.
func (a *Agent) probe(def *CheckDefinition) probe {
	timeout := time.Duration(def.Timeout)
	if timeout == 0 {
		timeout = defaultProbeTimeout
		if def.kind() == typeScript {
			timeout = a.o.ScriptTimeout
		}
	}
	var p probe
	switch def.kind() {
	case typeHTTP:
		p = a.probeHTTP(def)
	case typeTCP:
		p = func(ctx context.Context) (string, string) { return a.probeTCP(ctx, def) }
	case typeUDP:
		p = func(ctx context.Context) (string, string) { return probeUDP(ctx, def.UDP) }
	case typeGRPC:
		p = func(ctx context.Context) (string, string) { return a.probeGRPC(ctx, def) }
	default:
		p = func(ctx context.Context) (string, string) { return probeScript(ctx, def, timeout) }
	}
	return func(ctx context.Context) (string, string) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return p(ctx)
	}
}

// outputSize is how much is kept of a check's output. As in Consul a definition may ask for less than the agent's own bound,
// not for more: what answers a check is not always a friend.
func outputSize(def *CheckDefinition) int { return keptOutput(def.OutputMaxSize) }

func keptOutput(asked int) int {
	if asked > 0 {
		return min(asked, defaultOutputSize)
	}
	return defaultOutputSize
}

// secure is the dialer of checks that ask for TLS.
func (a *Agent) secure(def *CheckDefinition, protocols ...string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		target := TLSTarget{ServerName: def.TLSServerName, SkipVerify: def.TLSSkipVerify, Protocols: protocols}
		if target.ServerName == "" {
			target.ServerName, _, _ = net.SplitHostPort(address)
		}
		secured, err := a.o.Secure(ctx, c, target)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return secured, nil
	}
}

// probeHTTP asks for a URL: 2xx is passing, 429 warning, everything else critical.
func (a *Agent) probeHTTP(def *CheckDefinition) probe {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext, DialTLSContext: a.secure(def, "http/1.1"),
	}}
	if def.DisableRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	method := def.Method
	if method == "" {
		method = http.MethodGet
	}
	shown := def.HTTP
	if u, err := url.Parse(def.HTTP); err == nil {
		shown = u.Redacted()
	}
	return func(ctx context.Context) (string, string) {
		r, err := http.NewRequestWithContext(ctx, method, def.HTTP, strings.NewReader(def.Body))
		if err != nil {
			return Critical, err.Error()
		}
		for name, values := range def.Header {
			r.Header[http.CanonicalHeaderKey(name)] = values
		}
		if host := r.Header.Get("Host"); host != "" {
			r.Host = host
		}
		if r.Header.Get("User-Agent") == "" {
			r.Header.Set("User-Agent", "Consul Health Check")
		}
		if r.Header.Get("Accept") == "" {
			r.Header.Set("Accept", "text/plain, text/*, */*")
		}
		answer, err := client.Do(r)
		if err != nil {
			return Critical, err.Error()
		}
		defer func() { _ = answer.Body.Close() }() // the answer was taken
		body, err := io.ReadAll(io.LimitReader(answer.Body, int64(outputSize(def)+maxDrained)))
		if err != nil {
			body = fmt.Appendf(body, " (reading the body: %v)", err)
		}
		output := fmt.Sprintf("HTTP %s %s: %s Output: %s", method, shown, answer.Status, body)
		switch {
		case answer.StatusCode >= 200 && answer.StatusCode <= 299:
			return Passing, output
		case answer.StatusCode == http.StatusTooManyRequests:
			return Warning, output
		}
		return Critical, output
	}
}

// probeTCP connects; with TLS it also shakes hands.
func (a *Agent) probeTCP(ctx context.Context, def *CheckDefinition) (string, string) {
	dial, what := (&net.Dialer{}).DialContext, "TCP connect"
	if def.TCPUseTLS {
		dial, what = a.secure(def), "TCP+TLS connect"
	}
	c, err := dial(ctx, "tcp", def.TCP)
	if err != nil {
		return Critical, err.Error()
	}
	_ = c.Close() // it was there
	return Passing, fmt.Sprintf("%s %s: Success", what, def.TCP)
}

// probeUDP sends an empty datagram. Only a host that says that nobody listens is critical: silence is what UDP servers
// answer to an empty datagram.
func probeUDP(ctx context.Context, address string) (string, string) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", address)
	if err != nil {
		return Critical, err.Error()
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // it only ends the reading
	defer func() { stop(); _ = c.Close() }()
	if _, err := c.Write(nil); err != nil {
		return Critical, err.Error()
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		if late, ok := err.(net.Error); !ok || !late.Timeout() {
			return Critical, err.Error()
		}
	}
	return Passing, fmt.Sprintf("UDP connect %s: Success", address)
}

// probeGRPC asks the standard health service; what follows a slash names the service.
func (a *Agent) probeGRPC(ctx context.Context, def *CheckDefinition) (string, string) {
	address, service, _ := strings.Cut(def.GRPC, "/")
	dial := (&net.Dialer{}).DialContext
	if def.GRPCUseTLS {
		dial = a.secure(def, "h2")
	}
	// The dialer shakes hands itself, so gRPC is told that there is nothing to secure.
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }),
		grpc.WithUserAgent("Consul Health Check"), grpc.WithDisableServiceConfig())
	if err != nil {
		return Critical, err.Error()
	}
	defer func() { _ = c.Close() }() // the answer was taken
	answer, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		return Critical, err.Error()
	}
	if answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Critical, fmt.Sprintf("gRPC health status: %s", answer.GetStatus())
	}
	return Passing, fmt.Sprintf("gRPC check %s: success", def.GRPC)
}

// probeScript runs a command: exit status 0 is passing, 1 warning, everything else critical. The command leads a process
// group, which ends with it when the time is over.
func probeScript(ctx context.Context, def *CheckDefinition, timeout time.Duration) (string, string) {
	out := &tail{room: outputSize(def)}
	cmd := exec.CommandContext(ctx, def.Args[0], def.Args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killGrace
	err := cmd.Run()
	if ctx.Err() != nil {
		return Critical, fmt.Sprintf("Timed out (%s) running check", timeout)
	}
	output := out.String()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return Passing, output
	case errors.As(err, &exit):
		if exit.ExitCode() == 1 {
			return Warning, output
		}
		return Critical, output
	}
	return Critical, err.Error()
}

// tail keeps the last bytes written, because a script says at its end what was wrong.
type tail struct {
	buf   bytes.Buffer
	room  int
	total int
}

func (t *tail) Write(p []byte) (int, error) {
	t.total += len(p)
	t.buf.Write(p)
	if over := t.buf.Len() - t.room; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t.total > t.room {
		return fmt.Sprintf("Captured %d of %d bytes\n...\n%s", t.room, t.total, t.buf.String())
	}
	return t.buf.String()
}
