package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/contexts"
	"holdfast.dev/holdfast/internal/node/logs"
)

func newDemo() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start a secured server on an empty directory, put and read a key through it, and say how to connect",
		Long: `Start a secured server on an empty temporary directory, put and read a key through it over mutual TLS, print how to connect,
and stay up until Ctrl-C. The directory and its key are removed at the end; your own client contexts are not touched.
The usual ports are taken if they are free, others if not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), cmd.OutOrStdout(), once) },
	}
	cmd.Flags().BoolVar(&once, "once", false, "end after the key was read instead of staying up")
	return cmd
}

func runDemo(ctx context.Context, out io.Writer, once bool) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := demoConfig(ctx, dir)
	if err != nil {
		return err
	}
	if _, err := c.Validate(); err != nil {
		return err
	}
	log, err := logs.Open(c.Log, logs.Streams{Stdout: out, Stderr: out, Now: time.Now})
	if err != nil {
		return err
	}
	env := node.System(log.Logger)
	env.UserConfigDir = filepath.Join(dir, "config")
	fmt.Fprintf(out, "Starting a secured server on the empty directory %s ...\n\n", c.DataDir)
	n, err := node.Start(ctx, c, env)
	if err != nil {
		return err
	}
	stop := func() error {
		s, cancel := node.StopContext()
		defer cancel()
		return n.Stop(s)
	}
	select {
	case <-n.Ready():
	case <-n.Done():
		return n.Wait()
	case <-ctx.Done():
		return stop()
	}
	if err := demoKey(ctx, out, env.UserConfigDir); err != nil {
		return errors.Join(err, stop())
	}
	if once {
		return stop()
	}
	return await(ctx, n, log.Logger)
}

// demoConfig is the default configuration, on loopback and on free ports.
func demoConfig(ctx context.Context, dir string) (*config.Config, error) {
	c := config.Server()
	c.Name, c.DataDir, c.Advertise.Host = "demo", filepath.Join(dir, "data"), "127.0.0.1"
	for _, u := range []config.URLs{c.Listen.Client, c.Listen.Peer, c.Listen.Public} {
		port, err := demoPort(ctx, u[0].Port())
		if err != nil {
			return nil, err
		}
		u[0].Host = net.JoinHostPort("127.0.0.1", port)
	}
	return c, nil
}

// demoPort returns port if it is free, and a free one if it is not.
func demoPort(ctx context.Context, port string) (string, error) {
	var lc net.ListenConfig
	for _, p := range []string{port, "0"} {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", p))
		if err != nil {
			continue
		}
		_, got, err := net.SplitHostPort(l.Addr().String())
		return got, errors.Join(err, l.Close())
	}
	return "", errors.New("no free port on 127.0.0.1")
}

// demoKey puts and reads a key with what the server wrote into the client context, and says how others can.
func demoKey(ctx context.Context, out io.Writer, userDir string) error {
	f, err := contexts.Load(userDir)
	if err != nil {
		return err
	}
	c, err := f.Get("")
	if err != nil {
		return err
	}
	conf, err := authn.OutboundConfig(authn.Outbound{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile}, authn.Env{Now: time.Now})
	if err != nil {
		return err
	}
	cl, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, TLS: conf, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	put, err := cl.Put(ctx, "greeting", "hello, sealed world")
	if err != nil {
		return err
	}
	got, err := cl.Get(ctx, "greeting")
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 {
		return errors.New("the key that was put is not there")
	}
	fmt.Fprintf(out, `
Over mutual TLS: put greeting (revision %d), read it back: %q

Connect from another terminal:

  XDG_CONFIG_HOME=%s %s ctl get greeting
  XDG_CONFIG_HOME=%s %s status
  etcdctl --endpoints %s \
    --cacert %s \
    --cert %s \
    --key %s get greeting

Everything is gone when you press Ctrl-C.

`, put.Header.Revision, got.Kvs[0].Value, userDir, os.Args[0], userDir, os.Args[0], strings.Join(c.Endpoints, ","), c.CAFile, c.CertFile, c.KeyFile)
	return nil
}
