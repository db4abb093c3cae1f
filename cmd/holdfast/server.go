package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/etcdflags"
	"holdfast.dev/holdfast/internal/node/logs"
)

// serverFlags are the few flags of `holdfast server`; everything else is in the configuration file.
type serverFlags struct {
	file, joinFile              string
	listenClient, listenPeer    string
	listenPublic, listenMetrics string
	listenConsul                string
	listenCFSSL                 []string
	printConfig                 bool
}

func newServer() *cobra.Command {
	c := config.Server()
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Start a secured member",
		Long: `Start a secured member. On an empty directory it makes its own certificate authority, serves TLS on every port and mutual
TLS on every port that serves data, seals everything on disk, and writes a client context for the user who started it,
so that "holdfast ctl" and "holdfast status" work at once.

A second member starts with a token that "holdfast token create" prints on the first:

  holdfast server --join-file token

Ports: 2379 clients, 2380 members, 2378 public (the root certificate, joining, liveness, revocation lists). Discovery as Consul
serves it, CFSSL and metrics are served where --listen-... says so. The key that opens the data directory is kept under the
user's configuration directory unless --seal-kek says otherwise.

Everything can be written into one strict YAML file (--config); flags win over the file. --print-config shows the
effective configuration in that form, every key with its value.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runServer(cmd, c, &f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.file, "config", "", "YAML configuration file")
	fl.BoolVar(&f.printConfig, "print-config", false, "print the effective configuration and exit")
	fl.StringVar(&c.Name, "name", c.Name, "this member's name")
	fl.StringVar(&c.DataDir, "data-dir", c.DataDir, "the data directory")
	fl.StringVar(&c.Join, "join", "", "join token of an existing cluster (prefer --join-file or HOLDFAST_JOIN: arguments can be seen by others)")
	fl.StringVar(&f.joinFile, "join-file", "", "file that holds the join token")
	fl.StringVar(&f.listenClient, "listen-client", c.Listen.Client.String(), "URLs for clients")
	fl.StringVar(&f.listenPeer, "listen-peer", c.Listen.Peer.String(), "URLs for members")
	fl.StringVar(&f.listenPublic, "listen-public", c.Listen.Public.String(), "URLs for joining")
	fl.StringVar(&f.listenMetrics, "listen-metrics", "", "URLs for /metrics and /health; http on loopback addresses only")
	fl.StringVar(&f.listenConsul, "listen-consul", "", "URLs for Consul's HTTP API, over mutual TLS (default: not served)")
	fl.StringVar(&c.Listen.DNS, "listen-dns", "", "HOST:PORT on which the catalog is served over DNS (default: not served)")
	fl.StringVar(&c.Listen.Gossip, "listen-gossip", "", "HOST:PORT of encrypted gossip with the other members and with agents (default: none)")
	fl.StringArrayVar(&f.listenCFSSL, "listen-cfssl", nil, "NAME=URL: serve the certificate authority NAME to a Docker swarm as its external CA; may be given several times")
	fl.StringVar(&c.Advertise.Host, "advertise-host", "", "name or address under which others reach this host (default: its first address)")
	fl.StringVar(&c.Seal.KEK, "seal-kek", "", "where the sealing key is: file:PATH, env:VARIABLE, passphrase-file:PATH, recovery-file:PATH, credential:NAME")
	fl.StringVar(&c.Seal.EncryptionConfig, "encryption-provider-config", "", "Kubernetes EncryptionConfiguration by which values are stored (in force on all members; without it this member withdraws its own)")
	fl.StringVar(&c.Seal.EncryptionPrefix, "encryption-etcd-prefix", c.Seal.EncryptionPrefix, "what the keys begin with that it looks at")
	fl.StringVar(&c.Log.Level, "log-level", c.Log.Level, "debug, info, warn or error")
	fl.StringVar(&c.Log.Format, "log-format", c.Log.Format, "text or json")
	return cmd
}

func runServer(cmd *cobra.Command, c *config.Config, f *serverFlags) error {
	final, err := f.finish(cmd, c)
	if err != nil {
		return err
	}
	if f.printConfig {
		data, err := final.YAML()
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(data)
		return err
	}
	warnings, err := final.Validate()
	if err != nil {
		return usageError{err}
	}
	log, err := logs.Open(final.Log, logs.Streams{Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr(), Now: time.Now})
	if err != nil {
		return usageError{err}
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	env := node.System(log.Logger)
	if isTerminal(os.Stderr) {
		env.ShowRecoveryCode = func(code string) { showRecoveryCode(cmd.ErrOrStderr(), code) }
	}
	return errors.Join(serve(cmd.Context(), final, env), log.Close())
}

// finish reads the file below the flags that were given.
func (f *serverFlags) finish(cmd *cobra.Command, flags *config.Config) (*config.Config, error) {
	c := config.Server()
	if f.file != "" {
		if err := c.ReadFile(f.file); err != nil {
			return nil, usageError{err}
		}
	}
	set := func(name string, to *string, from string) {
		if cmd.Flags().Changed(name) {
			*to = from
		}
	}
	set("name", &c.Name, flags.Name)
	set("data-dir", &c.DataDir, flags.DataDir)
	set("join", &c.Join, flags.Join)
	set("advertise-host", &c.Advertise.Host, flags.Advertise.Host)
	set("listen-dns", &c.Listen.DNS, flags.Listen.DNS)
	set("listen-gossip", &c.Listen.Gossip, flags.Listen.Gossip)
	set("seal-kek", &c.Seal.KEK, flags.Seal.KEK)
	set("encryption-provider-config", &c.Seal.EncryptionConfig, flags.Seal.EncryptionConfig)
	set("encryption-etcd-prefix", &c.Seal.EncryptionPrefix, flags.Seal.EncryptionPrefix)
	set("log-level", &c.Log.Level, flags.Log.Level)
	set("log-format", &c.Log.Format, flags.Log.Format)
	for _, l := range []struct {
		name string
		to   *config.URLs
		from string
	}{{"listen-client", &c.Listen.Client, f.listenClient}, {"listen-peer", &c.Listen.Peer, f.listenPeer},
		{"listen-public", &c.Listen.Public, f.listenPublic}, {"listen-metrics", &c.Listen.Metrics, f.listenMetrics}, {"listen-consul", &c.Listen.Consul, f.listenConsul}} {
		if !cmd.Flags().Changed(l.name) {
			continue
		}
		urls, err := config.ParseURLs(l.from)
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s: %w", l.name, err)}
		}
		*l.to = urls
	}
	if cmd.Flags().Changed("listen-cfssl") {
		c.Listen.CFSSL = map[string]config.URLs{}
	}
	for _, text := range f.listenCFSSL {
		name, list, ok := strings.Cut(text, "=")
		urls, err := config.ParseURLs(list)
		if err != nil || !ok || name == "" {
			return nil, usageError{errors.Join(fmt.Errorf("--listen-cfssl: %q is not NAME=URL", text), err)}
		}
		c.Listen.CFSSL[name] = append(c.Listen.CFSSL[name], urls...)
	}
	if f.joinFile != "" {
		data, err := os.ReadFile(f.joinFile)
		if err != nil {
			return nil, fmt.Errorf("--join-file: %w", err)
		}
		c.Join = strings.TrimSpace(string(data))
	}
	if c.Join == "" {
		c.Join = os.Getenv("HOLDFAST_JOIN")
	}
	return c, nil
}

// serve runs a member until it is asked to end or ends by itself.
func serve(ctx context.Context, c *config.Config, env node.Env) error {
	n, err := node.Start(ctx, c, env)
	if err != nil {
		return err
	}
	return await(ctx, n, env.Log)
}

// await returns when the member has ended. The end of ctx asks it to.
func await(ctx context.Context, n *node.Node, log *slog.Logger) error {
	ready := n.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			notifySystemd("READY=1")
		case <-n.Ending():
			return ended(n, log)
		case <-ctx.Done():
			notifySystemd("STOPPING=1")
			stop, cancel := node.StopContext()
			defer cancel()
			return n.Stop(stop)
		}
	}
}

// ended waits for a member that ends by itself. A disk that does not answer must not keep the process alive.
func ended(n *node.Node, log *slog.Logger) error {
	select {
	case <-n.Done():
	case <-time.After(10 * time.Second):
		return errors.New("the member ends because of a fault, and closing its files does not return")
	}
	err := n.Wait()
	if errors.Is(err, node.ErrRemoved) {
		log.Warn("the member has been permanently removed from the cluster; its data directory is of no more use")
		return nil
	}
	return err
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func showRecoveryCode(w io.Writer, code string) {
	fmt.Fprintf(w, `
  Recovery code, shown once:

      %s

  Write it down and keep it apart from this host. With it the data directory opens when the key file is lost;
  without either, nothing does.

`, code)
}

func newEtcd() *cobra.Command {
	return &cobra.Command{
		Use:   "etcd [etcd's flags]",
		Short: "Take etcd's place: its flags, ETCD_* variables and configuration file",
		Long:  etcdflags.Help(),
		// etcd's flags are Go's, not cobra's: they go through as they are.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := runEtcd(args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

// runEtcd is the whole of `etcd`: what it says goes to the log in etcd's form.
func runEtcd(args []string) int {
	if len(args) > 0 && (args[0] == "gateway" || args[0] == "grpc-proxy") {
		fmt.Fprintf(os.Stderr, "error: %q is not in this build\nhint: use a TCP load balancer, or clients that know every endpoint\n", args[0])
		return 1
	}
	result, err := etcdflags.Parse(args, etcdflags.Options{
		Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr, ReadFile: os.ReadFile, DefaultHost: node.DefaultHost, Build: revision(),
	})
	var exit etcdflags.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	streams := logs.Streams{Stdout: os.Stdout, Stderr: os.Stderr, Now: time.Now}
	log, logErr := logs.Open(result.Config.Log, streams)
	if logErr != nil {
		// The log cannot be opened as asked: say so in the default one.
		log, _ = logs.Open(config.Etcd().Log, streams)
		err = errors.Join(err, logErr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, m := range result.Messages {
		log.LogAttrs(ctx, m.Level, m.Text, m.Attrs...)
	}
	if err == nil {
		log.LogAttrs(ctx, slog.LevelInfo, "starting an etcd server", append([]slog.Attr{
			slog.String("etcd-version", etcdflags.Version), slog.String("holdfast-version", node.Version)}, result.Settings...)...)
		err = serve(ctx, result.Config, node.System(log.Logger))
	} else {
		log.LogAttrs(ctx, slog.LevelWarn, "failed to verify flags", slog.Any("error", err))
	}
	if err != nil {
		logEnd(ctx, log.Logger, err)
	}
	if closeErr := log.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 1
	}
	return 0
}

// logEnd logs why the process ends, with the hint.
func logEnd(ctx context.Context, log *slog.Logger, err error) {
	attrs := []slog.Attr{slog.Any("error", err)}
	var shadowed *etcdflags.ShadowedError
	if errors.As(err, &shadowed) {
		log.LogAttrs(ctx, logs.LevelFatal, err.Error(), slog.String("environment-variable", shadowed.Variable))
		return
	}
	var f *fault.Error
	if errors.As(err, &f) && f.Hint != "" {
		attrs = append(attrs, slog.String("hint", f.Hint))
	}
	log.LogAttrs(ctx, logs.LevelFatal, "the server ends", attrs...)
}
