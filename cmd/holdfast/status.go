package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/node"
)

func newStatus() *cobra.Command {
	var t target
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show members, leader, size, sealing, certificates and weakenings in force",
		Long: `Show what a member says of itself and its cluster: members and leader, revision and size, how the data directory is
sealed, which certificates are shown and until when, and every weakening that is in force.

--output json prints the same for machines; its field names are stable.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("--output %q: text or json", output)}
			}
			var s node.Status
			if err := callAny(cmd.Context(), &t, "status", nil, &s); err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), &s, time.Now())
		},
	}
	t.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// printStatus prints s for people.
func printStatus(w io.Writer, s *node.Status, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(tw, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("cluster", "%s (holdfast %s, feature level %d)", s.Cluster, s.Mode, s.FeatureLevel)
	role := "follower"
	switch {
	case s.Learner:
		role = "learner"
	case s.Leader == s.Member:
		role = "leader"
	case s.Leader == "":
		role = "no leader known"
	}
	line("member", "%s %s, %s", s.Member, s.Name, role)
	line("revision", "%d (term %d, index %d, applied %d)", s.Revision, s.Term, s.RaftIndex, s.AppliedIndex)
	line("size", "%s in use, %s on disk, quota %s", bytesOf(s.SizeInUse), bytesOf(s.Size), bytesOf(s.Quota))
	line("connections", "%d", s.Connections)
	line("sealing", "key %s, generation %d, opened by %s", s.Sealing.Fingerprint, s.Sealing.Generation, s.Sealing.Key)
	line("", "%s", s.Sealing.Protects)
	line("", "key slots: %s", strings.Join(s.Sealing.Slots, ", "))
	if s.Damage > 0 {
		line("DAMAGE", "the scrub has found %d damaged files; see the log", s.Damage)
	}
	for _, a := range s.Alarms {
		line("ALARM", "%s", a)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nmembers")
	for _, m := range s.Members {
		mark := " "
		if m.Leader {
			mark = "*"
		}
		kind := ""
		if m.Learner {
			kind = " (learner)"
		}
		name := m.Name
		if name == "" {
			name = "(not started)"
		}
		fmt.Fprintf(tw, "  %s %s\t%s%s\tpeers %s\tclients %s\n", mark, m.ID, name, kind, strings.Join(m.PeerURLs, ","), strings.Join(m.ClientURLs, ","))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	printCertificates(tw, s, now)
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nweakenings in force")
	if len(s.Weakenings) == 0 {
		fmt.Fprintln(w, "  none")
	}
	for _, weak := range s.Weakenings {
		fmt.Fprintf(w, "  ! %s\n", weak)
	}
	return nil
}

func printCertificates(tw *tabwriter.Writer, s *node.Status, now time.Time) {
	if len(s.Certificates) == 0 {
		return
	}
	fmt.Fprintln(tw, "\ncertificates")
	for _, c := range s.Certificates {
		renews := "replace it in time"
		if c.RenewsItself {
			renews = "renews itself"
		}
		left := c.NotAfter.Sub(now)
		state := fmt.Sprintf("%d days left", int(left.Hours()/24))
		if left < 0 {
			state = "EXPIRED"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\tuntil %s\t%s\t%s\n", c.Side, c.Use, c.Subject, c.NotAfter.UTC().Format("2006-01-02 15:04"), state, renews)
	}
}

// bytesOf prints a size for people.
func bytesOf(n int64) string {
	if n < 0 {
		return "none"
	}
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n), -1
	for value >= unit && i < 4 {
		value, i = value/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[i])
}

func newToken() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Join tokens"}
	var t target
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create",
		Short: "Create a join token",
		Long: `Create a join token: it pins the cluster's root certificate and carries a secret that admits one member, once. The
cluster keeps only its hash. Carry it to the other host over a safe way, as a file:

  holdfast token create > token
  holdfast server --join-file token

--join TOKEN works too, but others on that host can see arguments.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usageError{fmt.Errorf("--ttl %s: at least a second", ttl)}
			}
			var answer struct {
				Token   string    `json:"token"`
				Expires time.Time `json:"expires"`
			}
			if err := callAny(cmd.Context(), &t, "tokens", map[string]int64{"ttl": int64(ttl / time.Second)}, &answer); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer.Token)
			fmt.Fprintf(cmd.ErrOrStderr(), "admits one member until %s; on that host: holdfast server --join-file FILE with the line above\n", answer.Expires.Local().Format(time.RFC1123))
			return nil
		},
	}
	t.flags(create)
	create.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token admits, at most 720h")
	cmd.AddCommand(create)
	return cmd
}
