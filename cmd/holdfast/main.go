// Command holdfast gives a cluster its secure control plane: a store that speaks etcd v3, service discovery that speaks
// Consul, certificate authorities, encryption at rest with Kubernetes' KMS v2.
//
// Job: flags, help, exit codes; the help texts are documentation. Non-job: everything else: what a member does is in
// internal/node. Under the name etcd it behaves as `holdfast etcd`, under the name consul as `holdfast consul`, under the
// name etcdctl as etcdctl.
//
// Invariants: an error is printed once, with a hint where there is one. Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/etcdflags"
)

func main() { os.Exit(run()) }

func run() int {
	keepOutOfDumps()
	switch strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe") {
	case "etcdctl":
		ctlv3.MustStart() // ends the process itself when it fails
		return 0
	case "etcd":
		keepPrivate()
		return runEtcd(os.Args[1:])
	case "consul":
		keepPrivate()
		return runConsul(os.Args[1:])
	}
	keepPrivate()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return execute(ctx, newRoot(), os.Stderr)
}

// execute runs a command and turns its error into words and an exit code.
func execute(ctx context.Context, root *cobra.Command, stderr io.Writer) int {
	cmd, err := root.ExecuteContextC(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	printError(stderr, err)
	if errors.Is(err, errUsage) {
		fmt.Fprintf(stderr, "hint: %s --help\n", cmd.CommandPath())
		return 2
	}
	return 1
}

// exitCode ends the program when everything has been said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// errUsage is in the chain of errors about flags and arguments.
var errUsage = errors.New("wrong usage")

// usageError marks err as one about flags and arguments without changing its text.
type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }

// printError prints an error and its hint.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "error: %v\n", err)
	var f *fault.Error
	var h *hinted
	switch {
	case errors.As(err, &f) && f.Hint != "":
		fmt.Fprintf(w, "hint: %s\n", f.Hint)
	case errors.As(err, &h):
		fmt.Fprintf(w, "hint: %s\n", h.hint)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "A secure control plane for a cluster: store, service discovery, certificate authorities, keys",
		Long: `Holdfast is one binary that gives a cluster its secure control plane: a store that speaks etcd v3, service discovery that
speaks Consul, certificate authorities, and encryption at rest with Kubernetes' KMS v2. All of it is one replicated, sealed state.

  holdfast server              start a secured member: own CA, mutual TLS, sealed disk; no flags needed
  holdfast ctl put foo bar     all of etcdctl, with endpoints and certificates from the context that the server wrote
  holdfast status              members, leader, sealing, certificates, weakenings in force
  holdfast token create        admit another member: holdfast server --join-file FILE
  holdfast ca init web         a certificate authority in the cluster; then ca issue, sign, revoke, crl, certs
  holdfast seal ...            keys of the disk, recovery codes, encryption of values by a Kubernetes EncryptionConfiguration
  holdfast kms ...             answer a kube-apiserver's KMS v2 requests with keys of the cluster
  holdfast bench put           load on this cluster, or on any endpoint of etcd, and what it costs
  holdfast etcd ...            take etcd's place, with etcd's flags, ETCD_* variables and configuration file
  holdfast consul agent ...    take a Consul agent's place, with Consul's flags and configuration files

Linked as "etcd" the binary behaves as "holdfast etcd", linked as "consul" as "holdfast consul", linked as "etcdctl" as etcdctl.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServer(), newEtcd(), newConsul(), newCtl(), newStatus(), newToken(), newCA(), newSwarm(), newSeal(), newKMS(), newBench(), newDebug(), newDemo(), newVersion())
	strictArgs(root)
	return root
}

// strictArgs makes a wrong number of arguments, and a command that there is not, an error of usage.
func strictArgs(c *cobra.Command) {
	switch inner := c.Args; {
	case inner != nil:
		c.Args = func(cmd *cobra.Command, args []string) error {
			if inner(cmd, args) == nil {
				return nil
			}
			if cmd.HasSubCommands() {
				return unknownCommand(cmd, args)
			}
			return usageError{fmt.Errorf("wrong number of arguments (%d): %s", len(args), strings.TrimSuffix(cmd.UseLine(), " [flags]"))}
		}
	case c.HasSubCommands() && !c.Runnable(): // cobra would print the help and call it success
		c.Args, c.DisableFlagsInUseLine = unknownCommand, true
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}

// unknownCommand refuses arguments of a command that has only commands below it.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{errors.New(text)}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "Holdfast %s\netcd API %s\n", node.Version, etcdflags.Version)
			if rev := revision(); rev != "" {
				fmt.Fprintf(w, "revision %s\n", rev)
			}
			fmt.Fprintf(w, "%s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// revision is the source revision that the go command wrote into the binary; empty if it did not.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
