package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// TestLogShowsWhatIsRefused: what is in the log and is not applied must not be taken for accepted. etcd's robustness suite replays
// the log: one write too much, of a member whose removal came just before, and nothing fits any more.
func TestLogShowsWhatIsRefused(t *testing.T) {
	t.Parallel()
	put := func(member, seq uint64, keys ...string) []byte {
		var calls []state.Call
		for _, k := range keys {
			calls = append(calls, state.Call{Request: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(k)}})
		}
		data, err := state.EncodeBatch(state.Proposal{Member: member, Boot: 9, Seq: seq}, calls)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	remove, err := state.EncodeConf(state.ConfCommand{Proposal: state.Proposal{Member: 1, Boot: 9, Seq: 2}, Change: state.ConfChange{Op: state.ConfRemove, Member: state.Member{ID: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	log := []replica.Logged{
		{Entry: replica.Entry{Index: 1}, Missing: 4},
		{Entry: replica.Entry{Index: 5, Data: put(1, 1, "a", "b")}},
		{Entry: replica.Entry{Index: 6, Data: put(2, 1, "c")}},
		{Entry: replica.Entry{Index: 7, Data: put(1, 1, "a", "b")}},
		{Entry: replica.Entry{Index: 8, Conf: remove}},
		{Entry: replica.Entry{Index: 9, Data: put(2, 2, "d")}},
		{Entry: replica.Entry{Index: 10, Data: put(1, 3, "e")}},
		{Entry: replica.Entry{Index: 11}},
	}
	for _, format := range []string{"json", "etcd-requests"} {
		var out bytes.Buffer
		p := &logPrinter{enc: json.NewEncoder(&out), seen: map[state.Proposal]bool{}, removed: map[uint64]bool{}}
		for _, e := range log {
			f := p.requests
			if format == "etcd-requests" {
				f = p.entry
			}
			if err := f(e); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			var l struct {
				Index, Missing uint64
				Refused        string
				Requests       [][]byte
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%d %d %s %d", l.Index, l.Missing, l.Refused, len(l.Requests)))
		}
		want := []string{"1 4  0", "5 0  2", "6 0  1", "7 0 duplicate 2", "8 0  0", "9 0 removed member 1", "10 0  1", "11 0  0"}
		if format == "json" {
			want = []string{"1 4  0", "5 0  0", "5 0  0", "6 0  0", "7 0 duplicate 0", "7 0 duplicate 0", "8 0  0", "9 0 removed member 0", "10 0  0", "11 0  0"}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\n%q, want\n%q", format, got, want)
		}
	}
}
