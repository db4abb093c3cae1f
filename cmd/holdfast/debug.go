package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/storage"
)

func newDebug() *cobra.Command {
	cmd := &cobra.Command{
		Use: "debug", Short: "Look into the data directory of a member that does not run, or at how members store data",
		Long: `Look into the data directory of a member that does not run, or at how members that run store data. What the
former print is decrypted: treat it as you treat the data. Secrets that the cluster keeps wrapped stay wrapped.`,
	}
	cmd.AddCommand(newDebugLog(), newDebugRows(), newDebugAudit(), newDebugScrub(), newDebugHashes())
	return cmd
}

// withDirectory opens the directory that --data-dir names for the run of f.
func withDirectory(o *offline, cmd *cobra.Command, f func(d *node.Directory) error) error {
	if o.dataDir == "" {
		return usageError{errors.New("--data-dir is required")}
	}
	d, err := o.open(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.Close())
}

func newDebugRows() *cobra.Command {
	var o offline
	var t target
	var limit int
	var name string
	cmd := &cobra.Command{
		Use: "raw-get [HEX-PREFIX]", Short: "Print rows of the state as storage keeps them, in hexadecimal", Args: cobra.MaximumNArgs(1),
		Long: `Print rows of the state as storage keeps them: key and value in hexadecimal, those whose key begins with HEX-PREFIX (all
without one). docs/formats says how to read them. What the log holds beyond the last flush is not in there.

With --stored KEY instead of --data-dir a running member is asked how it stores the newest version of that key of the store:
what an encryption configuration encrypts is shown as ciphertext.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" {
				if o.dataDir != "" || len(args) > 0 {
					return usageError{errors.New("--stored asks a running member: without --data-dir and HEX-PREFIX")}
				}
				return printStored(cmd, &t, name)
			}
			var span storage.Span
			if len(args) == 1 {
				prefix, err := hex.DecodeString(args[0])
				if err != nil {
					return usageError{fmt.Errorf("HEX-PREFIX %q: %w; for a key of the store use --stored KEY", args[0], err)}
				}
				span = storage.Span{Start: prefix, End: after(prefix)}
			}
			return withDirectory(&o, cmd, func(d *node.Directory) error {
				return d.Rows(cmd.Context(), span, limit, func(key, value []byte) error {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%x %x\n", key, value)
					return err
				})
			})
		},
	}
	o.flags(cmd, "the data directory")
	t.flags(cmd)
	cmd.Flags().StringVar(&name, "stored", "", "ask a running member how it stores this key")
	cmd.Flags().IntVar(&limit, "limit", 1000, "at most so many rows")
	return cmd
}

// after returns the smallest key above every key with the prefix; nil if there is none.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for len(end) > 0 {
		if end[len(end)-1]++; end[len(end)-1] != 0 {
			return end
		}
		end = end[:len(end)-1]
	}
	return nil
}

func newDebugAudit() *cobra.Command {
	var o offline
	cmd := &cobra.Command{
		Use: "audit", Short: "Print the audit record, one event a line, as JSON, and verify its chain", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			return withDirectory(&o, cmd, func(d *node.Directory) error {
				report, err := d.Audit(func(e audit.Event) error { return enc.Encode(e) })
				if err != nil {
					return err
				}
				return printReport(cmd.ErrOrStderr(), report)
			})
		},
	}
	o.flags(cmd, "the data directory")
	return cmd
}

func printReport(w io.Writer, r audit.Report) error {
	_, err := fmt.Fprintf(w, "%d events in %d files, numbers %d to %d, the chain verifies\n", r.Events, r.Files, r.First, r.Last)
	return err
}

func newDebugScrub() *cobra.Command {
	var o offline
	cmd := &cobra.Command{
		Use: "scrub", Short: "Verify every sealed file", Args: cobra.NoArgs,
		Long: `Verify every sealed file of the data directory: tables, log, audit record, markers, keyring. Each damaged file is one line:
path, offset, kind, reason. The exit code is 1 if there is one. Nothing is changed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			damaged := 0
			err := withDirectory(&o, cmd, func(d *node.Directory) error {
				return d.Scrub(cmd.Context(), func(f seal.Finding) {
					damaged++
					fmt.Fprintf(cmd.OutOrStdout(), "%s\t%d\t%s\t%v\n", f.Path, f.Offset, f.Kind, f.Err)
				})
			})
			if err == nil && damaged > 0 {
				return fmt.Errorf("%d damaged files", damaged)
			}
			return err
		},
	}
	o.flags(cmd, "the data directory")
	return cmd
}
