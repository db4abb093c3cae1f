package replica

import (
	hexenc "encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
)

// The directory testdata/golden/v1 was written by the first build that had the format. Every later build opens it.
// REPLICA_GOLDEN=write writes it anew: only when the format has a new version, into a directory of that version.
func TestGoldenDirectory(t *testing.T) {
	golden := filepath.Join("testdata", "golden", "v1")
	if os.Getenv("REPLICA_GOLDEN") == "write" {
		writeGolden(t, golden)
	}
	fs := vfs.NewMem()
	if ok, err := vfs.Clone(vfs.Default, fs, golden, dataDir, vfs.CloneSync); err != nil || !ok {
		t.Fatalf("copy the golden directory: %v, %v", ok, err)
	}
	s, err := reopen(t, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Cluster() != testCluster || s.Member() != 1 {
		t.Errorf("member %x of cluster %x", s.Member(), s.Cluster())
	}
	want := goldenModel()
	if err := want.differs(s.log); err != nil {
		t.Error(err)
	}
	if err := s.log.check(22); err != nil {
		t.Error(err)
	}
}

func goldenModel() logModel {
	m := logModel{start: position{1, 1}, hard: hardState{term: 3, vote: 1}}
	for i := range uint64(20) {
		m.entries = append(m.entries, entriesFrom(i+2, 2, int(i)*40)...)
	}
	m.entries = append(m.entries[:18], entriesFrom(20, 3, 7, 0, 9)...)
	m.entries[20].Type = pb.EntryConfChangeV2.Enum()
	return m
}

func writeGolden(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	fs := vfs.Default
	s, err := Create(StoreOptions{FS: fs, Dir: dir, Ring: newRing(t, fs, dir), SegmentBytes: 4 << 10},
		Bootstrap{Cluster: testCluster, Member: 1, Voters: []uint64{1}}, func(dir string) error {
			if err := fs.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			return writeDurable(fs, fs.PathJoin(dir, "x"), []byte("the state's own"))
		})
	if err != nil {
		t.Fatal(err)
	}
	put := func(hard *hardState, entries []*pb.Entry) {
		if err := s.log.append(hard, entries); err != nil {
			t.Fatal(err)
		}
		if err := s.log.sync(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(20) {
		put(&hardState{term: 2, vote: 1, commit: 1}, entriesFrom(i+2, 2, int(i)*40))
	}
	last := entriesFrom(20, 3, 7, 0, 9)
	last[2].Type = pb.EntryConfChangeV2.Enum()
	put(&hardState{term: 3, vote: 1, commit: 22}, last)
	if err := s.log.close(); err != nil {
		t.Fatal(err)
	}
}

// What goes over the network and into frames, byte for byte: members of different builds must understand each other.
func TestGoldenEncodings(t *testing.T) {
	u := func(v uint64) *uint64 { return &v }
	m := &pb.Message{Type: pb.MsgApp.Enum(), From: u(1), To: u(2), Term: u(3), LogTerm: u(2), Index: u(300), Commit: u(299), Entries: entriesFrom(301, 3, 2, 0)}
	head := snapshotHead{3, position{300, 2}, []uint64{1, 2}, []uint64{9}}
	mark := marker{id: logID{0xc1, 1}, state: 2, start: position{300, 2}, segment: 7, voters: []uint64{1, 2}, learners: []uint64{9}}
	forward, _ := encodeOutgoing(nil, []outgoing{{forward: &Forward{Ticket: 5, Data: []byte("ab")}}})
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"record":   {(&record{kind: recordAppend, hasHard: true, hard: hardState{3, 1, 299}, prev: position{300, 2}, entries: m.Entries}).append(nil), "0101 0301ab02 ac0202 02ad02 0300022d2d 030000"},
		"reset":    {(&record{kind: recordReset, prev: position{300, 2}}).append(nil), "0200 ac0202 00"},
		"context":  {logID{0xc1, 1}.context(position{300, 2}), "01 00000000000000c1 0000000000000001 000000000000012c 0000000000000002"},
		"marker":   {mark.encode(), "01 00000000000000c1 0000000000000001 0000000000000002 000000000000012c 0000000000000002 0000000000000007 020102 0109"},
		"hello":    {hello{1, linkMessages, 0xc1, 1, 2}.encode(), "894846504545520a 0001 01 00000000000000c1 0000000000000001 0000000000000002"},
		"verdict":  {encodeVerdict(refusedRemoved, "hi"), "03 0001 02 6869"},
		"messages": {messagesFrame(m), "0000001e 01 01 00000018 0300 020103 02ac02ab0200000002ad020300022d2d030000"},
		"forward":  {forward, "00000004 02 05 6162"},
		"answer":   {answerFrame(Answer{2, 5, 300, 3}), "00000005 03 05 ac02 03"},
		"reply":    {replyFrame(5, []byte("ab"), nil), "00000005 05 05 00 6162"},
		"fault":    {replyFrame(5, nil, ErrBusy), ""},
		"ping":     {pingFrame(), "00000001 06"},
		"snapshot": {head.encode(), "0000000a 07 03 ac02 02 020102 0109"},
	} {
		want := strings.ReplaceAll(c.want, " ", "")
		if name == "fault" {
			want = "0000002f" + "05" + "05" + "01" + "03" + "29" + hexenc.EncodeToString([]byte(ErrBusy.Reason)) + "00"
		}
		if got := hexenc.EncodeToString(c.got); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}
