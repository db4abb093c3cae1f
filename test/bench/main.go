// Command bench measures what a request costs the server: CPU seconds of the server processes per request, Holdfast
// with mutual TLS and sealing beside the real etcd, in turn in one run, under the same load by etcd's own benchmark tool.
//
// The load generator shares the machine, so throughput is printed but the figure that counts is CPU per request.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the holdfast binary (required)")
	flag.StringVar(&o.servers, "servers", "etcd,etcd-mtls,holdfast", "what to measure, in this order in each round: etcd (plain text), etcd-mtls, etcd-mtls-split (gRPC and HTTP on separate ports), holdfast (mTLS and sealed)")
	flag.StringVar(&o.loads, "loads", "put,range", "put, range")
	flag.IntVar(&o.members, "members", 1, "members of each cluster")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the median is printed")
	flag.IntVar(&o.total, "total", 100_000, "requests a measurement")
	flag.IntVar(&o.conns, "conns", 100, "connections")
	flag.IntVar(&o.clients, "clients", 1000, "clients")
	flag.IntVar(&o.keys, "keys", 1, "size of the key space")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	binary, servers, loads                       string
	members, rounds, total, conns, clients, keys int
}

// sample is one measurement.
type sample struct {
	cpu  float64 // microseconds of server CPU per request
	rate float64 // requests per second as the load generator saw them
	rss  int64   // largest anonymous memory of a member, bytes
}

func run(ctx context.Context, o options) error {
	if o.binary == "" {
		return errors.New("-binary is required")
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{options: o, dir: dir, etcd: filepath.Join(dir, "etcd"), tool: filepath.Join(dir, "benchmark")}
	for _, build := range [][]string{
		{"-C", "../compat/etcd", "build", "-o", b.etcd, "go.etcd.io/etcd/server/v3"},
		{"build", "-o", b.tool, "go.etcd.io/etcd/v3/tools/benchmark"},
	} {
		if out, err := exec.CommandContext(ctx, "go", build...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(build, " "), err, out)
		}
	}
	if err := b.certificates(); err != nil {
		return err
	}
	results := map[string][]sample{}
	var order []string
	for round := range o.rounds {
		for load := range strings.SplitSeq(o.loads, ",") {
			for server := range strings.SplitSeq(o.servers, ",") {
				name := fmt.Sprintf("%-6s %-16s", load, server)
				s, err := b.measure(ctx, server, load, round)
				if err != nil {
					return fmt.Errorf("%s: %w", strings.TrimSpace(name), err)
				}
				fmt.Printf("round %d  %s %7.1f us/request  %8.0f requests/s  %4d MB\n", round+1, name, s.cpu, s.rate, s.rss>>20)
				if results[name] == nil {
					order = append(order, name)
				}
				results[name] = append(results[name], s)
			}
		}
	}
	fmt.Printf("\n%d member(s), %d connections, %d clients, 256-byte values, %d keys, %d requests, median of %d rounds\n", o.members, o.conns, o.clients, o.keys, o.total, o.rounds)
	slices.Sort(order)
	for _, name := range order {
		s := results[name]
		fmt.Printf("%s %7.1f us/request  %8.0f requests/s  %4d MB\n", name, median(s, func(s sample) float64 { return s.cpu }),
			median(s, func(s sample) float64 { return s.rate }), int64(median(s, func(s sample) float64 { return float64(s.rss) }))>>20)
	}
	return nil
}

func median(s []sample, f func(sample) float64) float64 {
	var v []float64
	for _, x := range s {
		v = append(v, f(x))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

type bench struct {
	options
	dir, etcd, tool string
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, name) }

// measure starts a fresh cluster, warms it up, loads it, and returns what the load cost.
func (b *bench) measure(ctx context.Context, server, load string, round int) (sample, error) {
	ports, err := freePorts(3 * b.members)
	if err != nil {
		return sample{}, err
	}
	secure := server != "etcd"
	scheme := "http"
	if secure {
		scheme = "https"
	}
	var initial, endpoints []string
	for i := range b.members {
		initial = append(initial, fmt.Sprintf("m%d=%s://127.0.0.1:%d", i, scheme, ports[b.members+i]))
		endpoints = append(endpoints, fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[i]))
	}
	var members []*exec.Cmd
	defer func() {
		for _, m := range members {
			m.Process.Kill()
			m.Wait()
		}
	}()
	for i := range b.members {
		data := b.file(fmt.Sprintf("%s-%s-%d-%d", server, load, round, i))
		defer os.RemoveAll(data)
		defer os.Remove(data + ".kek")
		peer := fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[b.members+i])
		args := []string{"--name", fmt.Sprintf("m%d", i), "--data-dir", data, "--listen-client-urls", endpoints[i], "--advertise-client-urls", endpoints[i],
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(initial, ",")}
		if secure {
			args = append(args, "--cert-file", b.file("server.pem"), "--key-file", b.file("server-key.pem"), "--client-cert-auth", "--trusted-ca-file", b.file("ca.pem"),
				"--peer-cert-file", b.file("server.pem"), "--peer-key-file", b.file("server-key.pem"), "--peer-client-cert-auth", "--peer-trusted-ca-file", b.file("ca.pem"))
		}
		binary := b.etcd
		switch server {
		case "holdfast":
			binary, args = b.binary, append([]string{"etcd"}, args...)
		case "etcd-mtls-split":
			args = append(args, "--listen-client-http-urls", fmt.Sprintf("https://127.0.0.1:%d", ports[2*b.members+i]))
		case "etcd", "etcd-mtls":
		default:
			return sample{}, fmt.Errorf("unknown server %q", server)
		}
		cmd := exec.Command(binary, args...)
		log, err := os.Create(b.file("server.log"))
		if err != nil {
			return sample{}, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return sample{}, err
		}
		members = append(members, cmd)
	}
	if err := b.await(ctx, endpoints); err != nil {
		log, _ := os.ReadFile(b.file("server.log"))
		return sample{}, fmt.Errorf("%w\n%s", err, log)
	}
	if _, err := b.load(ctx, endpoints, secure, "put", b.total/10); err != nil { // warm up; also creates the keys to read
		return sample{}, err
	}
	before, _, err := usage(members)
	if err != nil {
		return sample{}, err
	}
	rate, err := b.load(ctx, endpoints, secure, load, b.total)
	if err != nil {
		return sample{}, err
	}
	after, rss, err := usage(members)
	if err != nil {
		return sample{}, err
	}
	return sample{cpu: (after - before) * 1e6 / float64(b.total), rate: rate, rss: rss}, nil
}

var ratePattern = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)

// load runs etcd's benchmark tool and returns the rate it printed.
func (b *bench) load(ctx context.Context, endpoints []string, secure bool, load string, total int) (float64, error) {
	args := []string{"--endpoints", strings.Join(endpoints, ","), "--conns", strconv.Itoa(b.conns), "--clients", strconv.Itoa(b.clients)}
	if secure {
		args = append(args, "--cert", b.file("client.pem"), "--key", b.file("client-key.pem"), "--cacert", b.file("ca.pem"))
	}
	switch load {
	case "put":
		args = append(args, "put", "--key-size", "8", "--val-size", "256", "--key-space-size", strconv.Itoa(b.keys), "--total", strconv.Itoa(total))
	case "range":
		if err := b.putKey(ctx, endpoints[0], secure); err != nil {
			return 0, err
		}
		args = append(args, "range", benchKey, "--total", strconv.Itoa(total))
	default:
		return 0, fmt.Errorf("unknown load %q", load)
	}
	out, err := exec.CommandContext(ctx, b.tool, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("benchmark %s: %w\n%s", load, err, out)
	}
	if bytes.Contains(out, []byte("Error distribution")) {
		return 0, fmt.Errorf("benchmark %s met errors:\n%s", load, out)
	}
	m := ratePattern.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("benchmark %s printed no rate:\n%s", load, out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// benchKey is what the range load reads.
const benchKey = "benchkey"

// putKey writes the key that the range load reads, with etcdctl: the tool can only read a key that somebody wrote.
func (b *bench) putKey(ctx context.Context, endpoint string, secure bool) error {
	args := []string{"-C", "../compat/etcd", "run", "go.etcd.io/etcd/etcdctl/v3", "--endpoints", endpoint}
	if secure {
		args = append(args, "--cert", b.file("client.pem"), "--key", b.file("client-key.pem"), "--cacert", b.file("ca.pem"))
	}
	args = append(args, "put", benchKey, strings.Repeat("v", 256))
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("writing the key to read: %w\n%s", err, out)
	}
	return nil
}

// await returns when every member answers /health over HTTP with true.
func (b *bench) await(ctx context.Context, endpoints []string) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for _, e := range endpoints {
		for {
			out, _ := exec.CommandContext(ctx, "curl", "--silent", "--max-time", "2", "--cacert", b.file("ca.pem"), "--cert", b.file("client.pem"),
				"--key", b.file("client-key.pem"), e+"/health").Output()
			if bytes.Contains(out, []byte(`"health":"true"`)) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s did not become healthy: %s", e, out)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// usage returns the CPU seconds that the members have used, and the largest anonymous memory.
func usage(members []*exec.Cmd) (cpu float64, rss int64, err error) {
	for _, m := range members {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.Process.Pid))
		if err != nil {
			return 0, 0, err
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms
			n, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, 0, err
			}
			cpu += n / 100
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Process.Pid))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(status)) {
			var kb int64
			if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kb); err == nil {
				rss = max(rss, kb<<10)
			}
		}
	}
	return cpu, rss, nil
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

// certificates makes a CA, a server and a client certificate (ECDSA P-256) as files.
func (b *bench) certificates() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.file("ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	for i, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.file(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(b.file(name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
			return err
		}
	}
	_, err = tls.LoadX509KeyPair(b.file("server.pem"), b.file("server-key.pem"))
	return err
}
