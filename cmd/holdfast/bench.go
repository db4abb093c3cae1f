package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/loadgen"
)

func newBench() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Put load on an endpoint that speaks etcd v3, and measure how it answers",
		Long: `Put load on an endpoint that speaks etcd v3 (Holdfast's, or etcd's own) and measure how it answers: throughput, latency,
and what the server's processes use where they run on this host.

  holdfast bench put                                    64 clients, 10 seconds, on the cluster of the current context
  holdfast bench put --rate 2000                        2000 a second, whatever becomes of them
  holdfast bench range --clients 1 --total 10000        the latency of one client that works alone
  holdfast bench list --keys 100000 --limit 500         lists in pages, as Kubernetes reads them
  holdfast bench watch --watchers 1000 --rate 200       when a thousand watchers hear of each write
  holdfast bench lease expire --leases 10000 --ttl 5    how late leases expire
  holdfast bench connect                                full TLS handshakes
  holdfast bench put --endpoints http://127.0.0.1:2379  any other endpoint, without TLS here

Two kinds of loops. Without --rate it is a closed one: --clients each ask, wait for the answer, and ask again, so a server that
stalls is asked less, and its stall is in the latency of few requests. With --rate it is an open one: requests come due at that
rate, and the latency of each counts from the moment it was due, so a stall is in the latency of all that came due meanwhile. It
is said how many started late because all --clients were busy or this host was; what could not be started at all counts as failed.

Every failure is counted by its kind, and its latency is kept apart; nothing is asked again because it failed. (gRPC itself sends
a request again if it never left this process or the server says that it did not look at it.) Answers are checked as far as
the load knows what they have to be; a wrong answer, or not one success, makes the command exit with 1.

The figures of the server come from /proc: of the processes that listen on the loopback addresses among the endpoints, or of
--server-pid. Bytes to storage are those that the kernel was asked to write for a process, and are 0 on a tmpfs. On one
machine the load generator takes its share of the processors: then CPU per request says more than throughput.

What is written is below --prefix and is deleted at the end, unless --keep is given. A run writes for real: mind the quota and the
neighbours of a cluster in use.`,
	}
	lease := &cobra.Command{Use: "lease", Short: "Leases: grant, keep alive, revoke, expire"}
	for _, b := range []benchLoad{benchLeaseGrant, benchLeaseKeepAlive, benchLeaseRevoke, benchLeaseExpire} {
		lease.AddCommand(newBenchLoad(b))
	}
	for _, b := range []benchLoad{benchPut, benchRange, benchList, benchMixed, benchCAS, benchLarge, benchWatch} {
		cmd.AddCommand(newBenchLoad(b))
	}
	cmd.AddCommand(lease, newBenchLoad(benchConnect), newBenchFloor())
	return cmd
}

// benchRun is one command line.
type benchRun struct {
	loadgen.Options
	target   target
	output   string
	progress bool
}

// newBenchLoad makes the command of one load.
func newBenchLoad(b benchLoad) *cobra.Command {
	r := &benchRun{Options: loadgen.Options{Load: b.load}}
	cmd := &cobra.Command{
		Use: b.use, Short: b.short, Long: b.long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd) },
	}
	f := cmd.Flags()
	r.target.flags(cmd)
	f.IntVar(&r.Clients, "clients", 0, "clients that ask at the same time; with --rate, the most requests that are under way (default 64; with --rate 1000)")
	f.IntVar(&r.Conns, "conns", 0, "connections that the clients share (default: one for 8 clients, 100 at most)")
	f.Float64Var(&r.Rate, "rate", 0, "requests a second, in an open loop (default: a closed loop)")
	f.DurationVar(&r.Timeout, "timeout", 5*time.Second, "after this a request has failed")
	f.StringVar(&r.Prefix, "prefix", "holdfast-bench/", "what all keys of a run begin with")
	f.BoolVar(&r.Keep, "keep", false, "leave what was written where it is")
	f.IntSliceVar(&r.ServerPIDs, "server-pid", nil, "local process whose CPU, memory and writes are shown; may be repeated (default: those that listen on loopback endpoints)")
	f.Uint64Var(&r.Seed, "seed", 0, "of the choice of keys and of values (default: another one each time)")
	f.StringVarP(&r.output, "output", "o", "text", "text or json")
	f.BoolVar(&r.progress, "progress", false, "a line each second, also where stderr is no terminal")
	if !b.once {
		f.DurationVar(&r.Length, "duration", 10*time.Second, "of the measurement")
		f.Int64Var(&r.Total, "total", 0, "measure so many requests, however long it takes (in place of --duration)")
		f.DurationVar(&r.WarmUp, "warmup", 2*time.Second, "the same load before the measurement, which is not in the figures")
	}
	b.flags(f, &r.Options)
	return cmd
}

func (r *benchRun) run(cmd *cobra.Command) error {
	if r.output != "text" && r.output != "json" {
		return usageError{fmt.Errorf("--output %q: text or json", r.output)}
	}
	if err := r.fill(cmd.Flags()); err != nil {
		return err
	}
	out, progress := cmd.OutOrStdout(), newBenchProgress(cmd.ErrOrStderr(), r.progress)
	report, err := loadgen.Run(cmd.Context(), r.Options, progress.show)
	progress.end()
	if err != nil {
		return explainBench(err)
	}
	if r.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(report)
	} else {
		err = report.Table(out)
	}
	if err != nil {
		return err
	}
	if report.Failed() {
		return errors.New("no request succeeded, or an answer was wrong: see the failures above")
	}
	return nil
}

// fill settles what the flags leave open.
func (r *benchRun) fill(f *pflag.FlagSet) error {
	c, err := r.target.resolve()
	if err != nil {
		return err
	}
	r.Endpoints = c.Endpoints
	for _, e := range c.Endpoints {
		if !strings.HasPrefix(e, "https://") {
			continue
		}
		r.TLS, err = authn.OutboundConfig(authn.Outbound{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile},
			authn.Env{Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		break
	}
	if r.Clients == 0 && !f.Changed("clients") {
		r.Clients = 64
		if r.Rate > 0 {
			r.Clients = 1000
		}
	}
	if r.Conns == 0 && !f.Changed("conns") {
		r.Conns = min(max(r.Clients/8, 1), 100)
	}
	switch {
	case r.Leases > 0 && f.Lookup("duration") == nil:
		r.Total = int64(r.Leases)
	case r.Total > 0 && !f.Changed("duration"):
		r.Length = 0
	}
	if !f.Changed("seed") {
		var seed [8]byte
		if _, err := rand.Read(seed[:]); err != nil {
			return err
		}
		r.Seed = binary.LittleEndian.Uint64(seed[:])
	}
	for _, pid := range r.ServerPIDs {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return usageError{fmt.Errorf("--server-pid %d: no such process", pid)}
		}
	}
	if err := r.Validate(); err != nil {
		return usageError{err}
	}
	return nil
}

// explainBench adds what to do where the text of err leaves that open.
func explainBench(err error) error {
	text := err.Error()
	for _, h := range []struct{ part, hint string }{
		{"connection refused", "nobody listens there: is the member running, and is this its client port (2379 by default)?"},
		{"first record does not look like a TLS handshake", "the port speaks plain text: give it as http://HOST:PORT"},
		{"error reading server preface", "the port does not answer in plain text: if it speaks TLS, give it as https://HOST:PORT with --cacert, --cert and --key"},
		{"certificate required", "the port wants a client certificate: --cert and --key, or the context of an admin"},
		{"certificate signed by unknown authority", "give the CA of the servers with --cacert"},
		{"permission denied", "the certificate of an admin may read and write below every prefix; a client's only where its user may"},
	} {
		if strings.Contains(text, h.part) {
			return &hinted{err, h.hint}
		}
	}
	return err
}

// benchProgress shows how a run goes: on a terminal one line that is written over, elsewhere a line when a phase begins, and one
// each second if that was asked for.
type benchProgress struct {
	w        io.Writer
	terminal bool
	each     bool
	open     bool // the line on the terminal is not finished
}

func newBenchProgress(w io.Writer, each bool) *benchProgress {
	f, ok := w.(*os.File)
	return &benchProgress{w: w, terminal: ok && isTerminal(f), each: each}
}

func (b *benchProgress) show(p loadgen.Progress) {
	if p.Elapsed == 0 {
		b.end()
		fmt.Fprintf(b.w, "%s\n", p.Phase)
		return
	}
	line := fmt.Sprintf("%s %4.0f s  %9.0f/s  p50 %s  p99 %s  failed %d", p.Phase, p.Elapsed.Seconds(), p.PerSecond, short(p.P50), short(p.P99), p.Failed)
	switch {
	case b.terminal:
		fmt.Fprintf(b.w, "\r%-78s", line)
		b.open = true
	case b.each:
		fmt.Fprintln(b.w, line)
	}
}

// end finishes the line that is written over.
func (b *benchProgress) end() {
	if b.open {
		fmt.Fprintln(b.w)
		b.open = false
	}
}

// short prints a duration in milliseconds.
func short(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

func newBenchFloor() *cobra.Command {
	var listen, cert, key, ca string
	var size int
	cmd := &cobra.Command{
		Use:   "floor",
		Short: "Serve an empty gRPC endpoint, to hold real servers against",
		Long: `Serve an endpoint that answers puts and ranges of the etcd API and does nothing: it keeps no key, and every range finds
one value. What such a server uses per request is the floor for any server in Go that speaks gRPC, so what lies above it is what
a store costs.

  holdfast bench floor --listen 127.0.0.1:9999 &
  holdfast bench put --endpoints http://127.0.0.1:9999

It does not count, list, compare or watch: "bench put", "bench range" and "bench mixed" work, other loads find wrong answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (cert == "") != (key == "") || ca != "" && cert == "" {
				return usageError{errors.New("--cert and --key go together, and --client-ca needs both")}
			}
			return runFloor(cmd, listen, size, func() (string, string, string) { return cert, key, ca })
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9999", "HOST:PORT")
	f.StringVar(&cert, "cert", "", "certificate to show (default: plain text)")
	f.StringVar(&key, "key", "", "its key")
	f.StringVar(&ca, "client-ca", "", "CA whose certificates clients have to show (default: none are asked for)")
	f.IntVar(&size, "value-size", 256, "bytes of the value that every range finds")
	return cmd
}

func runFloor(cmd *cobra.Command, listen string, size int, files func() (cert, key, ca string)) error {
	cert, key, ca := files()
	l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
	if err != nil {
		return err
	}
	serve := func(ctx context.Context) error { return loadgen.ServeFloor(ctx, l, nil, size) }
	if cert != "" {
		config, err := loadgen.FloorTLS(cert, key, ca)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		serve = func(ctx context.Context) error { return loadgen.ServeFloor(ctx, l, config, size) }
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "an empty endpoint on %s; it keeps nothing\n", l.Addr())
	return serve(cmd.Context())
}
