package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// serverNames are what can be measured.
var serverNames = []string{"floor", "etcd", "floor-mtls", "etcd-mtls", "etcd-mtls-split", "holdfast"}

// cluster is what runs of one server.
type cluster struct {
	members   []*exec.Cmd
	endpoints []string
	health    []string // URLs that /health is asked on, if not the endpoints
	secure    bool
	remove    []string
	logs      []string
}

// start starts a fresh cluster and waits until all members are healthy.
func (b *bench) start(ctx context.Context, t turn) (c *cluster, err error) {
	if !slices.Contains(serverNames, t.server) {
		return nil, fmt.Errorf("-servers: %q is none of %s", t.server, strings.Join(serverNames, ", "))
	}
	ports, err := freePorts(3 * t.members)
	if err != nil {
		return nil, err
	}
	c = &cluster{secure: t.server != "etcd" && t.server != "floor"}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.tails())
			c.stop()
		}
	}()
	scheme := "http"
	if c.secure {
		scheme = "https"
	}
	var initial []string
	for i := range t.members {
		initial = append(initial, fmt.Sprintf("m%d=%s://127.0.0.1:%d", i, scheme, ports[t.members+i]))
		c.endpoints = append(c.endpoints, fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[i]))
	}
	for i := range t.members {
		data := b.file(fmt.Sprintf("%s-%d-%d", t.server, t.members, i))
		c.remove = append(c.remove, data, data+".kek")
		peer := fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[t.members+i])
		args := []string{"--name", fmt.Sprintf("m%d", i), "--data-dir", data, "--listen-client-urls", c.endpoints[i], "--advertise-client-urls", c.endpoints[i],
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(initial, ",")}
		if c.secure {
			args = append(args, "--cert-file", b.file("server.pem"), "--key-file", b.file("server-key.pem"), "--client-cert-auth", "--trusted-ca-file", b.file("ca.pem"),
				"--peer-cert-file", b.file("server.pem"), "--peer-key-file", b.file("server-key.pem"), "--peer-client-cert-auth", "--peer-trusted-ca-file", b.file("ca.pem"))
		}
		binary := b.etcd
		switch t.server {
		case "holdfast":
			binary, args = b.binary, append([]string{"etcd"}, args...)
		case "etcd-mtls-split":
			web := fmt.Sprintf("https://127.0.0.1:%d", ports[2*t.members+i])
			c.health, args = append(c.health, web), append(args, "--listen-client-http-urls", web)
		case "floor":
			binary, args = b.binary, []string{"bench", "floor", "--listen", fmt.Sprintf("127.0.0.1:%d", ports[i])}
		case "floor-mtls":
			binary, args = b.binary, []string{"bench", "floor", "--listen", fmt.Sprintf("127.0.0.1:%d", ports[i]), "--cert", b.file("server.pem"), "--key", b.file("server-key.pem"), "--client-ca", b.file("ca.pem")}
		}
		if err := c.spawn(b.file(fmt.Sprintf("%d.log", i)), binary, args); err != nil {
			return c, err
		}
	}
	return c, b.await(ctx, c, strings.HasPrefix(t.server, "floor"))
}

func (c *cluster) spawn(logName, binary string, args []string) error {
	cmd := exec.Command(binary, args...)
	log, err := os.Create(logName)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	c.members, c.logs = append(c.members, cmd), append(c.logs, logName)
	return nil
}

// stop ends all members and removes their data.
func (c *cluster) stop() {
	for _, m := range c.members {
		m.Process.Kill()
		m.Wait()
	}
	for _, r := range c.remove {
		os.RemoveAll(r)
	}
}

// tails returns the end of every member's log as an error.
func (c *cluster) tails() error {
	var out bytes.Buffer
	for _, name := range c.logs {
		data, _ := os.ReadFile(name)
		fmt.Fprintf(&out, "%s\n", data[max(0, len(data)-2000):])
	}
	return errors.New(out.String())
}

// await returns when every member answers /health with true; of a floor it is enough that it accepts connections.
func (b *bench) await(ctx context.Context, c *cluster, floor bool) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	client, err := b.client()
	if err != nil {
		return err
	}
	urls := c.health
	if urls == nil {
		urls = c.endpoints
	}
	for _, e := range urls {
		healthy := func() bool {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, e+"/health", nil)
			if err != nil {
				return false
			}
			resp, err := client.Do(req)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			return err == nil && bytes.Contains(text, []byte(`"health":"true"`))
		}
		if floor {
			_, address, _ := strings.Cut(e, "://")
			healthy = func() bool {
				conn, err := net.DialTimeout("tcp", address, time.Second)
				if err == nil {
					conn.Close()
				}
				return err == nil
			}
		}
		for !healthy() {
			if !pause(ctx, 50*time.Millisecond) {
				return fmt.Errorf("%s did not become healthy", e)
			}
		}
	}
	return nil
}

// client returns an HTTP client with the client's certificate.
func (b *bench) client() (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(b.file("client.pem"), b.file("client-key.pem"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(b.file("ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}}}, nil
}

// settleBefore is how long a cluster is left alone before its memory at rest is read.
const settleBefore = time.Second

// atRest returns the largest resident memory of a member that has nothing to do, in MiB.
func (c *cluster) atRest(ctx context.Context) (float64, error) {
	pause(ctx, settleBefore)
	var most float64
	for _, m := range c.members {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Process.Pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(status)) {
			var kib float64
			if _, err := fmt.Sscanf(line, "VmRSS: %g kB", &kib); err == nil {
				most = max(most, kib/1024)
			}
		}
	}
	return most, ctx.Err()
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
