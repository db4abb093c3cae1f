// This file is added to etcd's package tests/robustness/report at test time. It takes the place of the reader of etcd's
// write-ahead log: what Holdfast has accepted is asked of `holdfast debug raft-log`.

package report

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"go.uber.org/zap"

	"go.etcd.io/raft/v3/raftpb"
)

// holdfastEntry is a line of `holdfast debug raft-log --format etcd-requests`.
type holdfastEntry struct {
	Index     uint64   `json:"index"`
	Missing   uint64   `json:"missing"`
	Term      uint64   `json:"term"`
	Committed bool     `json:"committed"`
	Refused   string   `json:"refused"`
	Requests  [][]byte `json:"requests"`
}

// ReadWAL returns the entries that a member's log holds. The data of an entry is its requests, each after its length.
func ReadWAL(lg *zap.Logger, dataDir string) (*raftpb.HardState, []*raftpb.Entry, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(os.Getenv("HOLDFAST_SUITE_BINARY"), "debug", "raft-log", "--format", "etcd-requests", "--made-by", "etcd", "--data-dir", dataDir, "--seal-kek", "env:HOLDFAST_SUITE_KEK")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, nil, fmt.Errorf("%v: %w: %s", cmd.Args, err, stderr.Bytes())
	}
	commit, missing := uint64(0), uint64(0)
	var entries []*raftpb.Entry
	lines := json.NewDecoder(&stdout)
	for {
		var e holdfastEntry
		err := lines.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%v: %w", cmd.Args, err)
		}
		if e.Missing != 0 {
			missing += e.Missing - e.Index + 1
			continue
		}
		var data []byte
		for _, r := range e.Requests {
			if e.Refused != "" {
				break
			}
			data = append(binary.AppendUvarint(data, uint64(len(r))), r...)
		}
		if e.Committed {
			commit = e.Index
		}
		entries = append(entries, &raftpb.Entry{Index: &e.Index, Term: &e.Term, Type: raftpb.EntryNormal.Enum(), Data: data})
	}
	lg.Info("Read the log of a member", zap.String("data-dir", dataDir), zap.Int("entries", len(entries)), zap.Uint64("missing", missing), zap.Uint64("commit", commit))
	return &raftpb.HardState{Commit: &commit}, entries, nil
}

// holdfastRequests makes of each entry as many as it has requests.
func holdfastRequests(entries []*raftpb.Entry) []*raftpb.Entry {
	var out []*raftpb.Entry
	for _, e := range entries {
		for rest := e.GetData(); len(rest) > 0; {
			n, k := binary.Uvarint(rest)
			one := &raftpb.Entry{Index: e.Index, Term: e.Term, Type: e.Type, Data: rest[k : k+int(n)]}
			out, rest = append(out, one), rest[k+int(n):]
		}
	}
	return out
}
