package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/kmsapi"
)

func newEncryption() *cobra.Command {
	cmd := &cobra.Command{
		Use: "encryption", Short: "The EncryptionConfiguration in force: status, audit, forget",
		Long: `Everything on disk is sealed in any case. An EncryptionConfiguration of Kubernetes (holdfast server
--encryption-provider-config FILE) encrypts values besides, in the form that kube-apiserver gives them, so that they are
ciphertext in backups, snapshots and copies of the store too. "holdfast seal reencrypt" stores old values as it says.`,
	}
	cmd.AddCommand(newEncryptionStatus(), newEncryptionAudit(), newEncryptionForget())
	return cmd
}

func newEncryptionStatus() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "status", Short: "Show which encryption configuration is in force", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s kmsapi.EncryptionStatus
			if err := callAny(cmd.Context(), &t, "encryption/status", nil, &s); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch {
			case !s.Declared:
				fmt.Fprintln(w, "no encryption configuration: values are stored as they are written")
			case s.Failure != "":
				return fmt.Errorf("the configuration that member %s declared cannot be opened: %s", s.Member, s.Failure)
			case s.InForce == 0:
				fmt.Fprintln(w, "the encryption configuration was withdrawn: values are stored as they are written, encrypted ones cannot be read")
			default:
				fmt.Fprintf(w, "configuration  %d, declared by member %s\nkeys           %s...\nmembers        %d declare a configuration, %d of them this one\n",
					s.InForce, s.Member, s.Prefix, s.Members, s.Same)
			}
			return nil
		},
	}
	t.flags(cmd)
	return cmd
}

func newEncryptionAudit() *cobra.Command {
	var t target
	var output string
	cmd := &cobra.Command{
		Use: "audit", Short: "Count how values are stored: by resource, provider and key", Args: cobra.NoArgs,
		Long: `Count how the newest version of every key is stored, as of one revision: by resource, provider and key. "stale" is what a
write would store otherwise today; what cannot be read is listed with the reason and one of the keys, and makes the exit
code 1. Each value is decrypted to tell.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("--output %q: text or json", output)}
			}
			a, err := auditAll(cmd.Context(), &t)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(a)
			} else {
				err = a.print(cmd.OutOrStdout())
			}
			if err == nil && a.failed() > 0 {
				err = fmt.Errorf("%d values cannot be read", a.failed())
			}
			return err
		},
	}
	t.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func newEncryptionForget() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "forget", Short: "Take back that there ever was an encryption configuration", Args: cobra.NoArgs,
		Long: `Take back that there ever was an encryption configuration. While one is remembered, a value that begins with k8s:enc: is
refused unless a configuration reads it. To let kube-apiserver encrypt by itself again, put "identity: {}" first in the
configuration, run "holdfast seal reencrypt", start every member without a configuration, then run this. It is refused
while a member declares a configuration or an encrypted value is left.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := callAny(cmd.Context(), &t, "encryption/forget", struct{}{}, &struct{}{}); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "forgotten: values are stored and served as they are written")
			return nil
		},
	}
	t.flags(cmd)
	return cmd
}

// audited is a whole audit.
type audited struct {
	InForce  int64          `json:"inForce"`
	Revision int64          `json:"revision"`
	Keys     int64          `json:"keys"`
	Counts   []kmsapi.Count `json:"counts"`
}

func auditAll(ctx context.Context, t *target) (*audited, error) {
	a := &audited{Counts: []kmsapi.Count{}}
	var req kmsapi.StepRequest
	for {
		var s kmsapi.Step
		if err := callAny(ctx, t, "encryption/audit", req, &s); err != nil {
			return nil, err
		}
		if a.Revision != 0 && s.InForce != a.InForce {
			return nil, errMoved
		}
		a.InForce, a.Revision, a.Keys = s.InForce, s.Revision, a.Keys+s.Keys
		for _, c := range s.Counts {
			a.add(c)
		}
		if len(s.Next) == 0 {
			slices.SortFunc(a.Counts, func(x, y kmsapi.Count) int {
				return strings.Compare(x.Resource+"\x00"+x.Stored+"\x00"+x.Failure, y.Resource+"\x00"+y.Stored+"\x00"+y.Failure)
			})
			return a, nil
		}
		req = kmsapi.StepRequest{From: s.Next, Revision: s.Revision}
	}
}

// errMoved ends what cannot be said of two configurations at once.
var errMoved = fault.New(fault.Conflict, "the encryption configuration has changed meanwhile").WithHint("run it again")

func (a *audited) add(c kmsapi.Count) {
	for i := range a.Counts {
		have := &a.Counts[i]
		if have.Resource == c.Resource && have.Stored == c.Stored && have.Stale == c.Stale && have.Failure == c.Failure {
			have.Keys += c.Keys
			return
		}
	}
	a.Counts = append(a.Counts, c)
}

func (a *audited) stale() (n int64) {
	for _, c := range a.Counts {
		if c.Stale {
			n += c.Keys
		}
	}
	return n
}

func (a *audited) failed() (n int64) {
	for _, c := range a.Counts {
		if c.Failure != "" {
			n += c.Keys
		}
	}
	return n
}

func (a *audited) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "RESOURCE\tSTORED AS\tVALUES\tSTATE")
	for _, c := range a.Counts {
		resource, state := c.Resource, "as configured"
		if resource == "" {
			resource = "(no object)"
		}
		switch {
		case c.Failure != "":
			state = fmt.Sprintf("CANNOT BE READ: %s, for instance %s", c.Failure, c.Example)
		case c.Stale:
			state = "stale"
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\n", resource, c.Stored, c.Keys, state)
	}
	if len(a.Counts) == 0 {
		fmt.Fprintln(tw, "(no keys)")
	}
	return tw.Flush()
}

func newReencrypt() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "reencrypt", Short: "Store every value as the encryption configuration in force says", Args: cobra.NoArgs,
		Long: `Store every value anew that the encryption configuration in force would store otherwise: values in plain text, and those of
another provider or key than the first. Each is written only if nobody has written it meanwhile; leases stay; watchers see
a modification without a difference. It may be stopped and run again at any time.

At the end every value is looked at once more. Only when none is stale and none cannot be read does it say that former keys
may be removed from the file.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return reencrypt(cmd, &t) },
	}
	t.flags(cmd)
	return cmd
}

// rewriteRounds bounds how often all keys are gone through: one does, unless a configuration moves under it.
const rewriteRounds = 3

func reencrypt(cmd *cobra.Command, t *target) error {
	ctx := cmd.Context()
	var status kmsapi.EncryptionStatus
	if err := callAny(ctx, t, "encryption/status", nil, &status); err != nil {
		return err
	}
	switch {
	case !status.Declared:
		return fault.New(fault.Conflict, "no encryption configuration was ever declared").WithHint("start a member with --encryption-provider-config FILE")
	case status.InForce == 0:
		return fault.New(fault.Conflict, "no encryption configuration is in force").WithHint("start a member with --encryption-provider-config FILE; to store everything in plain text, with `identity: {}` first in it")
	}
	for round := 1; ; round++ {
		written, err := rewriteAll(cmd, t)
		if err != nil {
			return err
		}
		a, err := auditAll(ctx, t)
		if err != nil {
			return err
		}
		if a.stale() > 0 && round < rewriteRounds {
			continue
		}
		return concludeRewrite(cmd, status, a, written)
	}
}

func rewriteAll(cmd *cobra.Command, t *target) (written int64, err error) {
	var req kmsapi.StepRequest
	var keys int64
	inForce := int64(-1)
	for {
		var s kmsapi.Step
		if err := callAny(cmd.Context(), t, "encryption/rewrite", req, &s); err != nil {
			return written, errors.Join(err, errors.New("what is written is written; run it again to go on"))
		}
		if inForce >= 0 && s.InForce != inForce {
			return written, errMoved
		}
		inForce, keys, written = s.InForce, keys+s.Keys, written+s.Written
		if len(s.Next) == 0 {
			return written, nil
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%d keys looked at, %d values re-encrypted\n", keys, written)
		req.From = s.Next
	}
}

func concludeRewrite(cmd *cobra.Command, status kmsapi.EncryptionStatus, a *audited, written int64) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "re-encrypted %d of %d values\n", written, a.Keys)
	if err := a.print(w); err != nil {
		return err
	}
	if n := a.failed(); n > 0 {
		return fault.New(fault.Corrupt, fmt.Sprintf("%d values cannot be read: keep every key that the configuration has", n)).
			WithHint("put the provider that they were stored with into the configuration, or delete them")
	}
	if n := a.stale(); n > 0 {
		return fault.New(fault.Conflict, fmt.Sprintf("%d values are still stored otherwise: keep every key that the configuration has", n)).WithHint("run it again")
	}
	fmt.Fprintf(w, "verified at revision %d: no value is stale, none cannot be read\n", a.Revision)
	fmt.Fprintln(w, "providers and keys after the first of each resource are not used any more and may be removed from the file")
	if status.Same < status.Members {
		fmt.Fprintf(w, "but %d members were started with another file, which comes in force when this one is withdrawn: give them this one first\n", status.Members-status.Same)
	}
	fmt.Fprintf(w, "former versions stay as they were stored until they are compacted: holdfast ctl compact %d\n", a.Revision)
	return nil
}

// printStored prints a key of the store as it is stored.
func printStored(cmd *cobra.Command, t *target, key string) error {
	var s kmsapi.Stored
	if err := callAny(cmd.Context(), t, "encryption/stored", kmsapi.StoredRequest{Key: []byte(key)}, &s); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s: revision %d, version %d, %d bytes as stored\n", key, s.Revision, s.Version, len(s.Value))
	d := hex.Dumper(w)
	if _, err := d.Write(s.Value); err != nil {
		return err
	}
	return d.Close()
}
