package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/fault"
)

func newDebugHashes() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "hashes", Short: "Compare what the members keep, space by space", Args: cobra.NoArgs,
		Long: `Ask every endpoint for checksums over everything it keeps, and compare them: each space (etcd, consul-kv, catalog, ca,
system) at the newest revision that all have applied, and everything together, with users, roles and members, when they stand at the same
entry of the log. The exit code is 1 if members differ. Each reads all of its data for it. Needs the admin's right.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.resolve()
			if err != nil {
				return err
			}
			var asked []*adminClient
			for _, e := range c.Endpoints {
				a, err := newAdminClient(c, e)
				if err != nil {
					return err
				}
				asked = append(asked, a)
			}
			if len(asked) == 0 {
				return usageError{errors.New("nobody to ask: give a client context or --endpoints")}
			}
			all, err := compareHashes(cmd.Context(), asked)
			if err != nil {
				return err
			}
			return printHashes(cmd.OutOrStdout(), all)
		},
	}
	t.flags(cmd)
	return cmd
}

// compareHashes asks each member twice: where it stands, then for the checksums where the last of them stood.
func compareHashes(ctx context.Context, members []*adminClient) ([]caapi.HashesAnswer, error) {
	first, err := askHashes(ctx, members, "")
	if err != nil {
		return nil, err
	}
	at := url.Values{}
	for i, s := range first[0].Spaces {
		lowest := s.Revision
		for _, h := range first {
			lowest = min(lowest, h.Spaces[i].Revision)
		}
		if lowest > 0 {
			at.Set(s.Space, strconv.FormatInt(lowest, 10))
		}
	}
	return askHashes(ctx, members, "?"+at.Encode())
}

func askHashes(ctx context.Context, members []*adminClient, query string) ([]caapi.HashesAnswer, error) {
	all := make([]caapi.HashesAnswer, len(members))
	for i, a := range members {
		if err := a.call(ctx, "hashes"+query, nil, &all[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", a.base, err)
		}
		if len(all[i].Spaces) != len(all[0].Spaces) {
			return nil, fmt.Errorf("%s has other spaces than %s", a.base, members[0].base)
		}
	}
	return all, nil
}

func printHashes(w io.Writer, all []caapi.HashesAnswer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	head := []string{"SPACE", "REVISION"}
	for _, h := range all {
		head = append(head, h.Member)
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	var differ []string
	for i, s := range all[0].Spaces {
		line := []string{s.Space, strconv.FormatInt(s.HashRevision, 10)}
		equal := true
		for _, h := range all {
			line = append(line, h.Spaces[i].Hash)
			equal = equal && h.Spaces[i].Hash == s.Hash
		}
		if !equal {
			differ = append(differ, s.Space)
			line = append(line, "DIFFERENT")
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	same, equal := all[0].Applied != 0, true
	for _, h := range all {
		same = same && h.Applied == all[0].Applied
		equal = equal && h.All == all[0].All
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	switch {
	case !same:
		fmt.Fprintln(w, "everything: not compared, the members do not stand at the same entry; ask again while nothing is written")
	case equal:
		fmt.Fprintf(w, "everything: equal at entry %d\n", all[0].Applied)
	default:
		fmt.Fprintf(w, "everything: DIFFERENT at entry %d\n", all[0].Applied)
		differ = append(differ, "everything")
	}
	if len(differ) > 0 {
		return fault.New(fault.Corrupt, "members differ in "+strings.Join(differ, ", ")).WithHint("docs/operations/failures.md says how to rejoin a member; keep its directory")
	}
	return nil
}
