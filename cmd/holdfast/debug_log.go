package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/etcdapi"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/logs"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// logLine is one request of the log, or an entry that holds none.
type logLine struct {
	Index     uint64 `json:"index"`
	Missing   uint64 `json:"missing,omitempty"` // this line stands for the entries from Index to it, which are not in the log
	Term      uint64 `json:"term,omitempty"`
	Committed bool   `json:"committed"`
	Refused   string `json:"refused,omitempty"` // why nothing of the batch is applied
	Time      int64  `json:"unixMilli,omitempty"`
	Member    string `json:"member,omitempty"` // that proposed it
	Seq       uint64 `json:"seq,omitempty"`
	Who       string `json:"who,omitempty"`
	Kind      string `json:"kind"`
	Request   any    `json:"request,omitempty"`
}

// etcdLine is one entry of the log as a reader of etcd's requests wants it.
type etcdLine struct {
	Index     uint64   `json:"index"`
	Missing   uint64   `json:"missing,omitempty"`
	Term      uint64   `json:"term,omitempty"`
	Committed bool     `json:"committed"`
	Refused   string   `json:"refused,omitempty"`
	Requests  [][]byte `json:"requests,omitempty"` // encoded etcdserverpb.InternalRaftRequest, in the order in which they are applied
	Internal  []string `json:"internal,omitempty"` // what else is in the entry
}

func newDebugLog() *cobra.Command {
	var o offline
	var format string
	cmd := &cobra.Command{
		Use: "raft-log", Short: "Print the Raft log, one request a line, as JSON", Args: cobra.NoArgs,
		Long: `Print the Raft log as JSON, in the order in which it is applied. Nothing in the data directory is changed, and its member may
run meanwhile: then the log is printed as of some moment of the run.

--format json (the default) prints one request a line: entries that hold many requests are flattened. Keys and values are
base64. --format etcd-requests prints one entry a line. "requests" is what etcd would have in its own log for it: encoded
etcdserverpb.InternalRaftRequest messages, base64, in the order in which they are applied. "internal" names what else is in
the entry and is no request to the store of etcd clients.

A line with "missing" stands for the entries from "index" to that number: they were cut away below a snapshot, or this member
has received a snapshot in their place. "committed" says what this log knows; the member knows more when it has heard from
its leader. "refused" is what is in the log and is not applied: a "duplicate" of a batch that came before, or what a "removed
member" proposed whose removal came before. (A removal that was itself refused, because too few members would have been left, cannot be told
from one that was carried out.)`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.dataDir == "" {
				return usageError{errors.New("--data-dir is required")}
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			p := &logPrinter{enc: json.NewEncoder(out), seen: map[state.Proposal]bool{}, removed: map[uint64]bool{}}
			var print func(replica.Logged) error
			switch format {
			case "json":
				print = p.requests
			case "etcd-requests":
				print = p.entry
			default:
				return usageError{fmt.Errorf("--format %q: json or etcd-requests", format)}
			}
			return errors.Join(o.readLog(cmd.ErrOrStderr(), print), out.Flush())
		},
	}
	o.flags(cmd, "the data directory")
	cmd.Flags().StringVar(&format, "format", "json", "json or etcd-requests")
	return cmd
}

// readLog reads the log. Without --made-by both default places of the key are tried.
func (o *offline) readLog(stderr io.Writer, f func(replica.Logged) error) error {
	log, err := logs.Open(config.Log{Level: "warn", Format: "text"}, logs.Streams{Stdout: stderr, Stderr: stderr, Now: time.Now})
	if err != nil {
		return err
	}
	begun := false
	try := func(c *config.Config) error {
		c.DataDir, c.Seal.KEK = o.dataDir, o.kek
		return node.ReadLog(c, node.System(slog.New(log.Handler())), func(l replica.Logged) error {
			begun = true
			return f(l)
		})
	}
	switch o.mode {
	case "server":
		return try(config.Server())
	case "etcd":
		return try(config.Etcd())
	case "":
	default:
		return usageError{fmt.Errorf("--made-by %q: server or etcd", o.mode)}
	}
	if err = try(config.Server()); err == nil || begun {
		return err
	}
	second := try(config.Etcd())
	if second == nil || begun || second.Error() == err.Error() {
		return second
	}
	return errors.Join(err, second)
}

// logPrinter prints a log.
type logPrinter struct {
	enc     *json.Encoder
	seen    map[state.Proposal]bool
	removed map[uint64]bool // members
}

// refused notes a proposal and says why it is not applied, as far as the log tells.
func (p *logPrinter) refused(name state.Proposal) string {
	if p.removed[name.Member] {
		return "removed member"
	}
	if p.seen[name] {
		return "duplicate"
	}
	p.seen[name] = true
	return ""
}

// membership decodes a change of the membership and notes it.
func (p *logPrinter) membership(e replica.Logged) (c state.ConfCommand, refused string, err error) {
	if c, err = state.DecodeConf(e.Conf); err != nil {
		return c, "", fmt.Errorf("entry %d: %w", e.Index, err)
	}
	if refused = p.refused(c.Proposal); refused == "" && c.Change.Op == state.ConfRemove {
		p.removed[c.Change.Member.ID] = true
	}
	return c, refused, nil
}

// requests prints an entry, one request a line.
func (p *logPrinter) requests(e replica.Logged) error {
	line := logLine{Index: e.Index, Missing: e.Missing, Term: e.Term, Committed: e.Committed, Kind: "empty"}
	switch {
	case e.Missing != 0:
		line.Kind = "missing"
		return p.enc.Encode(line)
	case e.Conf != nil:
		c, refused, err := p.membership(e)
		if err != nil {
			return err
		}
		line.Kind, line.Who, line.Request = "membership", c.Who.String(), c.Change
		line.Member, line.Seq, line.Refused = fmt.Sprintf("%x", c.Proposal.Member), c.Proposal.Seq, refused
		return p.enc.Encode(line)
	case len(e.Data) == 0:
		return p.enc.Encode(line)
	}
	b, err := state.DecodeBatch(e.Data)
	if err != nil {
		return fmt.Errorf("entry %d: %w", e.Index, err)
	}
	line.Time, line.Member, line.Seq = b.Time, fmt.Sprintf("%x", b.Proposal.Member), b.Proposal.Seq
	line.Refused = p.refused(b.Proposal)
	for _, c := range b.Calls {
		line.Who, line.Request, line.Kind = b.Principals[c.Who].String(), c.Request, requestName(c.Request)
		if a, ok := c.Request.(*state.AuthChange); ok && len(a.Hash) > 0 {
			shown := *a
			shown.Hash = []byte("(not shown)")
			line.Request = &shown
		}
		if err := p.enc.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// requestName is the name of a request's type.
func requestName(r state.Request) string { return strings.TrimPrefix(fmt.Sprintf("%T", r), "*state.") }

// entry prints an entry with etcd's requests in it.
func (p *logPrinter) entry(e replica.Logged) error {
	line := etcdLine{Index: e.Index, Missing: e.Missing, Term: e.Term, Committed: e.Committed}
	switch {
	case e.Conf != nil:
		_, refused, err := p.membership(e)
		if err != nil {
			return err
		}
		line.Internal, line.Refused = []string{"membership"}, refused
	case len(e.Data) > 0:
		b, err := state.DecodeBatch(e.Data)
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		line.Refused = p.refused(b.Proposal)
		for _, c := range b.Calls {
			requests, err := etcdapi.LoggedRequests(c.Request)
			if err != nil {
				return fmt.Errorf("entry %d: %w", e.Index, err)
			}
			if len(requests) == 0 {
				line.Internal = append(line.Internal, requestName(c.Request))
			}
			line.Requests = append(line.Requests, requests...)
		}
	}
	return p.enc.Encode(line)
}
