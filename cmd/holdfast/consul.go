package main

import (
	"context"
	"errors"
	"flag"
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
	"holdfast.dev/holdfast/internal/node/consulconf"
	"holdfast.dev/holdfast/internal/node/logs"
)

func newConsul() *cobra.Command {
	return &cobra.Command{
		Use:   "consul COMMAND",
		Short: "Take a Consul agent's place: its configuration keys, flags and commands",
		Long:  consulHelp(),
		// Consul's flags are Go's, not cobra's: they go through as they are.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := runConsul(args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

// consulCommand is one command of `holdfast consul`.
type consulCommand struct {
	name, what string
	run        func(args []string, std streams) error
}

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func consulCommands() []consulCommand {
	return []consulCommand{
		{"agent", "run an agent (see `holdfast consul agent -help`)", consulAgent},
		{"force-leave", "make a failed member leave: NODE", consulForceLeave},
		{"info", "show what the agent says of itself", consulInfo},
		{"join", "have the agent join others: ADDRESS...", consulJoin},
		{"keygen", "make a gossip key", consulKeygen},
		{"kv", "get, put, delete and list keys", consulKV},
		{"leave", "have the agent leave its cluster and end", consulLeave},
		{"members", "list the agents of the data center", consulMembers},
		{"reload", "have the agent read its configuration again", consulReload},
		{"validate", "check configuration files and directories: PATH...", consulValidate},
		{"version", "print the version; -format=json", consulVersion},
	}
}

func consulHelp() string {
	var b strings.Builder
	b.WriteString("Usage: holdfast consul COMMAND [flags] [arguments]\n\nLinked as \"consul\" the binary behaves as \"holdfast consul\".\n\nCommands:\n")
	for _, c := range consulCommands() {
		fmt.Fprintf(&b, "  %-12s %s\n", c.name, c.what)
	}
	b.WriteString("\nCommands that ask an agent take -http-addr, -ca-file, -client-cert and -client-key, or CONSUL_HTTP_ADDR, CONSUL_HTTP_SSL,\n" +
		"CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY (default: http://127.0.0.1:8500).\n")
	return b.String()
}

// runConsul is the whole of `consul`.
func runConsul(args []string) int {
	std := streams{os.Stdin, os.Stdout, os.Stderr}
	if len(args) == 0 || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help" {
		fmt.Fprint(std.err, consulHelp())
		if len(args) == 0 {
			return 1
		}
		return 0
	}
	if args[0] == "-v" || args[0] == "-version" || args[0] == "--version" {
		args = []string{"version"}
	}
	for _, c := range consulCommands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(args[1:], std)
		var code exitCode
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, &code):
			return int(code)
		}
		printError(std.err, err)
		return 1
	}
	fmt.Fprintf(std.err, "error: %q is not a command of this build\nhint: holdfast consul -help lists those that are\n", args[0])
	return 127
}

// consulAgent runs an agent until it is asked to end.
func consulAgent(args []string, std streams) error {
	o := consulconf.System()
	o.DefaultHost = node.DefaultHost
	result, err := consulconf.Parse(args, o)
	var f *fault.Error
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp), errors.As(err, &f) && f.Hint != "":
		return err
	default:
		return &hinted{err, "holdfast consul agent -help, or holdfast consul validate FILE"}
	}
	log, err := logs.Open(result.Config.Log, logs.Streams{Stdout: std.out, Stderr: std.err, Now: time.Now})
	if err != nil {
		return err
	}
	defer log.Close()
	for _, w := range result.Warnings {
		log.Warn(w)
	}
	env := node.System(log.Logger)
	if isTerminal(os.Stderr) {
		env.ShowRecoveryCode = func(code string) { showRecoveryCode(std.err, code) }
	}
	log.Info("starting a Consul agent", "consul-version", node.ConsulVersion, "holdfast-version", node.Version, "node", result.Config.Name, "data-dir", result.Config.DataDir)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	a, err := node.StartConsul(context.Background(), result.Config, env, node.ConsulHooks{
		Reread: func() (*config.Config, error) {
			again, err := consulconf.Parse(args, o)
			if err != nil {
				return nil, err
			}
			return again.Config, nil
		},
		SetLevel: log.SetLevel,
	})
	if err == nil {
		err = awaitConsul(a, result.Config.Consul, signals, log.Logger)
	}
	if err != nil {
		attrs := []slog.Attr{slog.Any("error", err)}
		if errors.As(err, &f) && f.Hint != "" {
			attrs = append(attrs, slog.String("hint", f.Hint))
		}
		log.LogAttrs(context.Background(), logs.LevelFatal, "the agent ends", attrs...)
		return exitCode(1)
	}
	return nil
}

// consulStopLimit bounds a wanted end of an agent: Consul's users and its suite wait no longer than 10s.
const consulStopLimit = 8 * time.Second

// awaitConsul returns when the agent has ended. Signals ask it to, or to reload.
func awaitConsul(a *node.Consul, c *config.Consul, signals <-chan os.Signal, log *slog.Logger) error {
	ready := a.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			notifySystemd("READY=1")
		case <-a.Ending():
			return a.Wait()
		case s := <-signals:
			if s == syscall.SIGHUP {
				if err := a.Reload(context.Background()); err != nil {
					log.Error("the configuration was not reloaded; the old one stays in force", "error", err)
				}
				continue
			}
			notifySystemd("STOPPING=1")
			log.Info("caught a signal", "signal", s.String())
			stop, cancel := context.WithTimeout(context.Background(), consulStopLimit)
			defer cancel()
			leave := c.LeaveOnInt
			if s == syscall.SIGTERM {
				leave = c.LeaveOnTerm
			}
			done := make(chan error, 1)
			go func() { done <- a.Stop(stop, leave) }()
			select {
			case err := <-done:
				return err
			case <-signals: // asked twice
				return errors.New("ended at the second signal, before everything was closed")
			case <-stop.Done():
				return errors.New("not everything could be closed in time")
			}
		}
	}
}
