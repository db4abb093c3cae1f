package replica

import (
	"bytes"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"holdfast.dev/holdfast/internal/fuzztest"
)

func sampleMessages() []*pb.Message {
	u := func(v uint64) *uint64 { return &v }
	return []*pb.Message{
		{Type: pb.MsgApp.Enum(), From: u(1), To: u(2), Term: u(3), LogTerm: u(2), Index: u(9), Commit: u(8), Entries: entriesFrom(10, 3, 5, 0, 70)},
		{Type: pb.MsgAppResp.Enum(), From: u(2), To: u(1), Term: u(3), Index: u(9), Reject: new(true), RejectHint: u(4), LogTerm: u(1)},
		{Type: pb.MsgVote.Enum(), From: u(2), To: u(1), Term: u(3), Index: u(9), LogTerm: u(1), Context: []byte("CampaignTransfer")},
		{Type: pb.MsgHeartbeat.Enum(), From: u(2), To: u(1), Term: u(3), Context: make([]byte, 8)},
		{Type: pb.MsgReadIndex.Enum(), From: u(2), To: u(1), Entries: []*pb.Entry{{Data: []byte("0123456789abcdef")}}},
		{Type: pb.MsgReadIndexResp.Enum(), From: u(2), To: u(1), Term: u(3), Index: u(5), Entries: []*pb.Entry{{Data: []byte("0123456789abcdef")}}},
	}
}

func TestMessageCodec(t *testing.T) {
	for _, m := range sampleMessages() {
		b := appendMessage(nil, m)
		if len(b) > messageSize(m) {
			t.Errorf("%s takes %d bytes, said %d", m.GetType(), len(b), messageSize(m))
		}
		got, err := decodeMessage(b)
		if err != nil {
			t.Errorf("%s: %v", m.GetType(), err)
			continue
		}
		if raft.DescribeMessage(got, nil) != raft.DescribeMessage(m, nil) || got.GetRejectHint() != m.GetRejectHint() || !bytes.Equal(got.GetContext(), m.GetContext()) {
			t.Errorf("%v came back as %v", m, got)
		}
		for i := range b {
			if _, err := decodeMessage(b[:i]); err == nil {
				t.Errorf("%s: accepted when cut to %d bytes", m.GetType(), i)
			}
		}
	}
}

// What members never send each other this way, or what would make raft panic.
func TestRefusedMessages(t *testing.T) {
	u := func(v uint64) *uint64 { return &v }
	for name, m := range map[string]*pb.Message{
		"local":                        {Type: pb.MsgHup.Enum(), From: u(1), To: u(2), Term: u(1)},
		"storage":                      {Type: pb.MsgStorageAppendResp.Enum(), From: u(1), To: u(2), Term: u(1)},
		"proposal":                     {Type: pb.MsgProp.Enum(), From: u(1), To: u(2), Entries: entriesFrom(1, 1, 1)},
		"snapshot":                     {Type: pb.MsgSnap.Enum(), From: u(1), To: u(2), Term: u(1)},
		"transfer":                     {Type: pb.MsgTransferLeader.Enum(), From: u(1), To: u(2)},
		"forget":                       {Type: pb.MsgForgetLeader.Enum(), From: u(1), To: u(2)},
		"from nobody":                  {Type: pb.MsgAppResp.Enum(), To: u(2), Term: u(1)},
		"from a local thread":          {Type: pb.MsgAppResp.Enum(), From: u(raft.LocalAppendThread), To: u(2), Term: u(1)},
		"without a term":               {Type: pb.MsgHeartbeat.Enum(), From: u(1), To: u(2)},
		"heartbeat with short context": {Type: pb.MsgHeartbeatResp.Enum(), From: u(1), To: u(2), Term: u(1), Context: []byte{1}},
		"read without an id":           {Type: pb.MsgReadIndex.Enum(), From: u(1), To: u(2)},
		"entries with a gap":           {Type: pb.MsgApp.Enum(), From: u(1), To: u(2), Term: u(3), Index: u(5), Entries: entriesFrom(7, 3, 1)},
		"entries of the future":        {Type: pb.MsgApp.Enum(), From: u(1), To: u(2), Term: u(3), Index: u(5), Entries: entriesFrom(6, 4, 1)},
		"entries older than the last":  {Type: pb.MsgApp.Enum(), From: u(1), To: u(2), Term: u(3), LogTerm: u(3), Index: u(5), Entries: entriesFrom(6, 2, 1)},
		"a vote with entries":          {Type: pb.MsgVote.Enum(), From: u(1), To: u(2), Term: u(3), Entries: entriesFrom(6, 2, 1)},
	} {
		if _, err := decodeMessage(appendMessage(nil, m)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// fuzzMember is a member in the middle of its life, to step messages into.
func fuzzMember(t *testing.T) *Member {
	s := raft.NewMemoryStorage()
	one := uint64(1)
	if err := s.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &one, Term: &one, ConfState: &pb.ConfState{Voters: []uint64{1, 2, 3}}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(entriesFrom(2, 1, 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetHardState(&pb.HardState{Term: &one, Vote: new(uint64), Commit: &one}); err != nil {
		t.Fatal(err)
	}
	m, err := NewMember(MemberConfig{ID: 1, Storage: s, Applied: 1, ElectionTicks: 10, Intn: func(int) int { return 0 }, Stamp: stampBatch, Logger: quietLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func FuzzMessages(f *testing.F) {
	var all []outgoing
	for _, m := range sampleMessages() {
		b, at := beginFrame(nil, frameMessages)
		_ = at
		f.Add(appendMessages(b[:0], []outgoing{{message: m}}, 0)[frameHeader:])
		all = append(all, outgoing{message: m})
	}
	f.Add(appendMessages(nil, all, 0)[frameHeader:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var first []*pb.Message
		var err error
		fuzztest.Bounded(t, len(b), func() {
			err = decodeMessages(b, func(m *pb.Message, _ int) error { first = append(first, m); return nil })
		})
		if err != nil {
			return
		}
		member := fuzzMember(t)
		for _, m := range first {
			again, err := decodeMessage(appendMessage(nil, m))
			if err != nil || raft.DescribeMessage(again, nil) != raft.DescribeMessage(m, nil) {
				t.Fatalf("%v came back as %v, %v", m, again, err)
			}
			// A link drops what its peer says in another's name, or to another.
			m.To = new(uint64(1))
			if m.GetFrom() == 1 {
				m.From = new(uint64(2))
			}
			// A member takes what passed, whatever it is, without a panic; a message of a peer that lies about what was
			// committed is the one thing that raft does not survive, and peers are authenticated.
			if m.GetType() == pb.MsgHeartbeat || m.GetType() == pb.MsgApp {
				m.Commit = new(min(m.GetCommit(), 1))
				m.Index = new(max(m.GetIndex(), 1))
			}
			if m.GetType() == pb.MsgApp && checkMessage(m) != nil {
				continue
			}
			_ = member.Step(m) // an error is an answer, too
			member.Take()
			member.Clear()
		}
	})
}

func FuzzRecord(f *testing.F) {
	c := record{kind: recordAppend, hasHard: true, hard: hardState{3, 2, 1}, prev: position{9, 2}, entries: entriesFrom(10, 3, 5, 0)}
	f.Add(c.append(nil))
	f.Add((&record{kind: recordReset, prev: position{9, 2}}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(c.append(nil))
		if err != nil || again.kind != c.kind || again.hard != c.hard || again.prev != c.prev || len(again.entries) != len(c.entries) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{version: 1, kind: linkMessages, cluster: 1, from: 2, to: 3}.encode())
	f.Add(encodeVerdict(refusedCluster, "no"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil && !bytes.Equal(h.encode(), b) {
			t.Fatalf("%+v does not encode to what it was", h)
		}
		if v, text, err := readVerdict(bytes.NewReader(b)); err == nil && v >= numVerdicts {
			t.Fatalf("verdict %d %q", v, text)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(pingFrame())
	f.Add(forwardFrame(3))
	f.Add(replyFrame(1, []byte("x"), nil))
	f.Add(replyFrame(1, nil, ErrRemoved))
	f.Add(snapshotHead{3, position{9, 2}, []uint64{1, 2}, nil}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		var payload []byte
		var err error
		fuzztest.Bounded(t, len(b), func() { _, payload, err = readFrame(bytes.NewReader(b), limit) })
		if err != nil {
			return
		}
		if len(payload) > limit {
			t.Fatalf("a payload of %d bytes passed", len(payload))
		}
		r := reader{b: payload}
		r.fault()
		if h, err := decodeSnapshotHead(payload); err == nil && len(h.voters) == 0 {
			t.Fatal("a snapshot without voters")
		}
		if _, err := decodeMarker(payload); err == nil && len(payload) < 49 {
			t.Fatal("a short marker")
		}
	})
}
