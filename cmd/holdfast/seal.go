package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/logs"
)

// offline says which data directory a command opens without its member.
type offline struct{ dataDir, kek, mode string }

func (o *offline) flags(cmd *cobra.Command, usage string) {
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", "", usage)
	f.StringVar(&o.kek, "seal-kek", "", "where the sealing key is (default: where the member keeps it)")
	f.StringVar(&o.mode, "made-by", "", `"server" or "etcd": which made the directory, for the default place of the key (default: tried in turn)`)
}

// open opens the directory. Without --made-by both default places of the key are tried.
func (o *offline) open(stderr io.Writer) (*node.Directory, error) {
	log, err := logs.Open(config.Log{Level: "warn", Format: "text"}, logs.Streams{Stdout: stderr, Stderr: stderr, Now: time.Now})
	if err != nil {
		return nil, err
	}
	try := func(c *config.Config) (*node.Directory, error) {
		c.DataDir, c.Seal.KEK = o.dataDir, o.kek
		return node.OpenDirectory(c, node.System(slog.New(log.Handler())))
	}
	switch o.mode {
	case "server":
		return try(config.Server())
	case "etcd":
		return try(config.Etcd())
	case "":
	default:
		return nil, usageError{fmt.Errorf("--made-by %q: server or etcd", o.mode)}
	}
	d, err := try(config.Server())
	if err == nil || errors.Is(err, node.ErrLocked) {
		return d, err
	}
	d, second := try(config.Etcd())
	if second == nil || second.Error() == err.Error() {
		return d, second
	}
	return nil, errors.Join(err, second)
}

func newSeal() *cobra.Command {
	cmd := &cobra.Command{
		Use: "seal", Short: "Encryption at rest: status, recovery codes, EncryptionConfiguration, re-encryption",
		Long: `Everything in the data directory is encrypted and authenticated. The keyring in it (KEYRING) is opened by a key from
outside: a file, a variable, a pass phrase, a systemd credential, or a recovery code on paper.`,
	}
	cmd.AddCommand(newSealStatus(), newSealRecovery(), newEncryption(), newReencrypt())
	return cmd
}

func newSealStatus() *cobra.Command {
	var t target
	var o offline
	cmd := &cobra.Command{
		Use: "status", Short: "Show which key opens a data directory and what that protects", Args: cobra.NoArgs,
		Long: `Show which key opens a data directory and what that protects: of a running member, or with --data-dir of one that does not
run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s node.StatusSealing
			if o.dataDir == "" {
				var all node.Status
				if err := callAny(cmd.Context(), &t, "status", nil, &all); err != nil {
					return err
				}
				s = all.Sealing
			} else {
				d, err := o.open(cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				s = d.Sealing()
				if err := d.Close(); err != nil {
					return err
				}
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "fingerprint  %s\ngeneration   %d\nopened by    %s\nprotection   %s\n", s.Fingerprint, s.Generation, s.Key, s.Protects)
			for _, slot := range s.Slots {
				fmt.Fprintf(w, "slot         %s\n", slot)
			}
			return nil
		},
	}
	t.flags(cmd)
	o.flags(cmd, "open this directory instead of asking a running member")
	return cmd
}

func newSealRecovery() *cobra.Command {
	cmd := &cobra.Command{Use: "recovery", Short: "Recovery codes"}
	var t target
	var o offline
	create := &cobra.Command{
		Use: "create", Short: "Create a recovery code for a member's keyring, shown once", Args: cobra.NoArgs,
		Long: `Create a recovery code and give it a slot of a member's keyring: of the running member that the client context names, or with
--data-dir of one that does not run. The code is printed once and is kept nowhere. To open a directory with it, write it
into a file and start the member with --seal-kek recovery-file:PATH.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			var answer struct {
				Code string `json:"code"`
			}
			if o.dataDir == "" {
				err = callAny(cmd.Context(), &t, "recovery", struct{}{}, &answer)
			} else {
				d, openErr := o.open(cmd.ErrOrStderr())
				if openErr != nil {
					return openErr
				}
				answer.Code, err = d.AddRecovery()
				err = errors.Join(err, d.Close())
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer.Code)
			fmt.Fprintln(cmd.ErrOrStderr(), "write it down and keep it apart from the host; it is shown only this once")
			return nil
		},
	}
	t.flags(create)
	o.flags(create, "open this directory instead of asking a running member")
	cmd.AddCommand(create)
	return cmd
}
