package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// report is what is read of the JSON of `holdfast bench`.
type report struct {
	Series []struct {
		Name      string  `json:"name"`
		Request   bool    `json:"request"`
		Count     int64   `json:"count"`
		PerSecond float64 `json:"perSecond"`
		Latency   *struct {
			P50  float64 `json:"p50"`
			P99  float64 `json:"p99"`
			P999 float64 `json:"p999"`
		} `json:"latencyMs"`
		Failed   int64 `json:"failed"`
		Failures []struct {
			Kind  string `json:"kind"`
			Count int64  `json:"count"`
		} `json:"failures"`
	} `json:"series"`
	Open *struct {
		Late int64 `json:"late"`
	} `json:"openLoop"`
	Servers []struct {
		PeakRSSBytes float64 `json:"peakRSSBytes"`
	} `json:"servers"`
	Cost *struct {
		CPUPerRequest     float64  `json:"cpuPerRequestUs"`
		CPUPerObserved    float64  `json:"cpuPerObservedUs"`
		WrittenPerPayload *float64 `json:"writtenPerPayloadByte"`
	} `json:"cost"`
	Generator *struct {
		User   float64 `json:"userSeconds"`
		System float64 `json:"systemSeconds"`
	} `json:"generator"`
}

// measure measures one point.
func (b *bench) measure(ctx context.Context, c *cluster, p point) (sample, error) {
	if b.generator == "etcd" {
		return b.measureByTool(ctx, c, p)
	}
	args := []string{"bench", p.Load, "--endpoints", strings.Join(c.endpoints, ","), "--duration", b.length.String(), "--warmup", b.warmup.String(), "--output", "json", "--keep",
		"--keys", strconv.Itoa(b.keys), "--value-size", strconv.Itoa(b.valueSize), "--seed", "1"}
	if c.secure {
		args = append(args, "--cacert", b.file("ca.pem"), "--cert", b.file("client.pem"), "--key", b.file("client-key.pem"))
	}
	for _, m := range c.members {
		args = append(args, "--server-pid", strconv.Itoa(m.Process.Pid))
	}
	switch p.Load {
	case "list":
		args = append(args, "--limit", strconv.Itoa(b.limits))
	case "watch":
		args = append(args, "--watchers", strconv.Itoa(b.watchers))
	}
	if p.Rate > 0 {
		args = append(args, "--rate", fmt.Sprint(p.Rate), "--clients", "1000", "--conns", "16")
	} else {
		args = append(args, "--clients", strconv.Itoa(p.Clients), "--conns", strconv.Itoa(connections(p.Clients)))
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.binary, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return sample{}, fmt.Errorf("%s %s: %w\n%s%s", b.binary, strings.Join(args, " "), err, stderr.String(), out)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return sample{}, fmt.Errorf("the report of holdfast bench: %w", err)
	}
	return r.sample(p)
}

// connections returns over how many connections clients are spread: 1000 over 100, as etcd's own published figures have it.
func connections(clients int) int { return min(max(clients/8, 1), 100) }

// sample takes what the tables show. Of several series it is the one that the load is about: pages of list, deliveries of
// watch; of mixed, both kinds of requests are counted, and the latency is that of the puts, which are the slower ones.
func (r *report) sample(p point) (sample, error) {
	var s sample
	about := map[string]string{"mixed": "put", "list": "page", "watch": "delivery"}[p.Load]
	if about == "" {
		about = p.Load
	}
	var requests int64
	for _, one := range r.Series {
		s.Failed += one.Failed
		for _, f := range one.Failures {
			if s.Failures == nil {
				s.Failures = map[string]int64{}
			}
			s.Failures[one.Name+": "+f.Kind] += f.Count
		}
		if one.Request {
			requests += one.Count
		}
		if one.Name == about && one.Latency != nil {
			s.P50, s.P99, s.P999 = one.Latency.P50, one.Latency.P99, one.Latency.P999
		}
		if one.Name == about || p.Load == "mixed" {
			s.PerSecond += one.PerSecond
		}
	}
	if r.Cost == nil || len(r.Servers) == 0 {
		return s, errors.New("the report says nothing of the servers' processes")
	}
	s.CPU, s.Written = r.Cost.CPUPerRequest, r.Cost.WrittenPerPayload
	if p.Load == "watch" {
		s.CPU = r.Cost.CPUPerObserved
	}
	for _, one := range r.Servers {
		s.PeakMiB = max(s.PeakMiB, one.PeakRSSBytes/(1<<20))
	}
	if r.Open != nil {
		s.Late = r.Open.Late
	}
	if r.Generator != nil && requests > 0 {
		s.Generator = (r.Generator.User + r.Generator.System) * 1e6 / float64(requests)
	}
	return s, nil
}

var (
	ratePattern    = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	totalPattern   = regexp.MustCompile(`Total:\s+([0-9.]+) secs`)
	latencyPattern = regexp.MustCompile(`(?m)^\s*(50|99|99\.9)% in ([0-9.]+) secs`)
)

// toolKey is what the tool's range load reads.
const toolKey = "benchkey"

// putToolKey writes toolKey: the tool reads only a key that somebody wrote.
func (b *bench) putToolKey(ctx context.Context, c *cluster) error {
	args := []string{"ctl", "--endpoints", c.endpoints[0]}
	if c.secure {
		args = append(args, "--cert", b.file("client.pem"), "--key", b.file("client-key.pem"), "--cacert", b.file("ca.pem"))
	}
	out, err := exec.CommandContext(ctx, b.binary, append(args, "put", toolKey, strings.Repeat("v", b.valueSize))...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("writing the key to read: %w\n%s", err, out)
	}
	return nil
}

// toolRequests is how many requests etcd's tool does: it knows no duration.
const toolRequests = 50_000

// measureByTool measures with etcd's own benchmark tool.
func (b *bench) measureByTool(ctx context.Context, c *cluster, p point) (sample, error) {
	base := []string{"--endpoints", strings.Join(c.endpoints, ","), "--conns", strconv.Itoa(connections(p.Clients)), "--clients", strconv.Itoa(p.Clients)}
	if c.secure {
		base = append(base, "--cert", b.file("client.pem"), "--key", b.file("client-key.pem"), "--cacert", b.file("ca.pem"))
	}
	total := toolRequests
	if p.Clients == 1 {
		total /= 20
	}
	put := func(n int) []string {
		return append(base, "put", "--key-size", "8", "--val-size", strconv.Itoa(b.valueSize), "--key-space-size", strconv.Itoa(b.keys), "--total", strconv.Itoa(n))
	}
	if _, err := b.runTool(ctx, put(total/10)); err != nil { // the warm-up
		return sample{}, err
	}
	args := put(total)
	if p.Load == "range" {
		if err := b.putToolKey(ctx, c); err != nil {
			return sample{}, err
		}
		args = append(base, "range", toolKey, "--total", strconv.Itoa(total))
	}
	before, err := cpu(c)
	if err != nil {
		return sample{}, err
	}
	out, err := b.runTool(ctx, args)
	if err != nil {
		return sample{}, err
	}
	after, err := cpu(c)
	if err != nil {
		return sample{}, err
	}
	s := sample{CPU: (after - before) * 1e6 / float64(total)}
	m := ratePattern.FindSubmatch(out)
	if m == nil || !totalPattern.Match(out) {
		return s, fmt.Errorf("benchmark printed no rate:\n%s", out)
	}
	if s.PerSecond, err = strconv.ParseFloat(string(m[1]), 64); err != nil {
		return s, err
	}
	for _, m := range latencyPattern.FindAllSubmatch(out, -1) {
		seconds, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return s, err
		}
		switch string(m[1]) {
		case "50":
			s.P50 = seconds * 1e3
		case "99":
			s.P99 = seconds * 1e3
		default:
			s.P999 = seconds * 1e3
		}
	}
	return s, nil
}

func (b *bench) runTool(ctx context.Context, args []string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, b.tool, args...).CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("Error distribution")) {
		err = errors.New("it met errors")
	}
	if err != nil {
		return nil, fmt.Errorf("benchmark %q: %w\n%s", args, err, out)
	}
	return out, nil
}

// cpu returns the seconds of CPU that all members have used.
func cpu(c *cluster) (seconds float64, err error) {
	for _, m := range c.members {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.Process.Pid))
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms
			n, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, err
			}
			seconds += n / 100
		}
	}
	return seconds, nil
}
