package replica

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

var errMalformed = errors.New("malformed")

// reader takes fields from the front of b. After the first failure it returns zeros, and bad stays set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// bytes returns a length-prefixed string of at most limit bytes, aliasing the input.
func (r *reader) bytes(limit int) []byte {
	n := r.uvarint()
	if n > uint64(limit) || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// ids returns a counted list of member ids.
func (r *reader) ids() []uint64 {
	n := r.uvarint()
	if n > uint64(len(r.b)) || n > maxMembers {
		r.bad, r.b = true, nil
		return nil
	}
	ids := make([]uint64, 0, n)
	for range n {
		ids = append(ids, r.uvarint())
	}
	return ids
}

// end reports an error unless everything was read and nothing was wrong.
func (r *reader) end(what string) error {
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%s: %w", what, errMalformed)
	}
	return nil
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendIDs(b []byte, ids []uint64) []byte {
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.AppendUvarint(b, id)
	}
	return b
}

// maxMembers bounds the lists of members that are decoded.
const maxMembers = 1024

// entryBox holds the values that a decoded entry's pointers point to, so that it is one allocation.
type entryBox struct {
	e           pb.Entry
	term, index uint64
	typ         pb.EntryType
}

// appendEntries appends entries: count, index of the first (0: none has an index), and for each its term, type and
// data. Entries that have indexes are consecutive.
func appendEntries(b []byte, entries []*pb.Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(entries)))
	if len(entries) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, entries[0].GetIndex())
	for _, e := range entries {
		b = binary.AppendUvarint(b, e.GetTerm())
		b = append(b, byte(e.GetType()))
		b = appendBytes(b, e.GetData())
	}
	return b
}

func entriesSize(entries []*pb.Entry) int {
	n := 2 * binary.MaxVarintLen64
	for _, e := range entries {
		n += len(e.GetData()) + 2*binary.MaxVarintLen64 + 1
	}
	return n
}

// entries reads what appendEntries wrote. The entries' data alias the input.
func (r *reader) entries() []*pb.Entry {
	n := r.uvarint()
	if n == 0 {
		return nil
	}
	if n > uint64(len(r.b))/3 { // an entry takes three bytes or more
		r.bad, r.b = true, nil
		return nil
	}
	first := r.uvarint()
	if first+n < first {
		r.bad = true
		return nil
	}
	boxes := make([]entryBox, n)
	entries := make([]*pb.Entry, n)
	for i := range boxes {
		x := &boxes[i]
		x.term = r.uvarint()
		x.typ = pb.EntryType(r.byte())
		data := r.bytes(len(r.b))
		if x.typ > pb.EntryConfChangeV2 {
			r.bad = true
		}
		if first != 0 {
			x.index = first + uint64(i)
			x.e.Index = &x.index
		}
		x.e.Term, x.e.Type = &x.term, &x.typ
		if len(data) > 0 {
			x.e.Data = data
		}
		entries[i] = &x.e
	}
	if r.bad {
		return nil
	}
	return entries
}

// messageBox holds the values that a decoded message's pointers point to.
type messageBox struct {
	m                                                        pb.Message
	typ                                                      pb.MessageType
	to, from, term, logTerm, index, commit, vote, rejectHint uint64
	reject                                                   bool
}

// appendMessage appends a message between members. Snapshots have a connection of their own and never come here.
func appendMessage(b []byte, m *pb.Message) []byte {
	b = append(b, byte(m.GetType()))
	if m.GetReject() {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	for _, v := range [...]uint64{m.GetTo(), m.GetFrom(), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetVote(), m.GetRejectHint()} {
		b = binary.AppendUvarint(b, v)
	}
	b = appendBytes(b, m.GetContext())
	return appendEntries(b, m.GetEntries())
}

func messageSize(m *pb.Message) int {
	return 2 + 9*binary.MaxVarintLen64 + len(m.GetContext()) + entriesSize(m.GetEntries())
}

// decodeMessage reads what appendMessage wrote, and refuses whatever would make raft panic or that members never send
// each other this way. The message's bytes alias b.
func decodeMessage(b []byte) (*pb.Message, error) {
	r := reader{b: b}
	x := new(messageBox)
	x.typ = pb.MessageType(r.byte())
	flags := r.byte()
	x.reject = flags == 1
	for _, v := range [...]*uint64{&x.to, &x.from, &x.term, &x.logTerm, &x.index, &x.commit, &x.vote, &x.rejectHint} {
		*v = r.uvarint()
	}
	m := &x.m
	m.Type, m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit = &x.typ, &x.to, &x.from, &x.term, &x.logTerm, &x.index, &x.commit
	m.Vote, m.RejectHint, m.Reject = &x.vote, &x.rejectHint, &x.reject
	if c := r.bytes(maxContext); len(c) > 0 {
		m.Context = c
	}
	m.Entries = r.entries()
	if err := r.end("message"); err != nil {
		return nil, err
	}
	if flags > 1 {
		return nil, fmt.Errorf("message flags: %w", errMalformed)
	}
	return m, checkMessage(m)
}

// maxContext bounds the context of a message: a read's id or a campaign's type.
const maxContext = 64

// checkMessage refuses a message that raft would not have sent.
func checkMessage(m *pb.Message) error {
	bad := func(what string) error { return fmt.Errorf("%s: %s: %w", m.GetType(), what, errMalformed) }
	if m.GetTo() == 0 || m.GetFrom() == 0 || raft.IsLocalMsgTarget(m.GetFrom()) || raft.IsLocalMsgTarget(m.GetTo()) {
		return bad("to or from")
	}
	n := len(m.GetEntries())
	switch m.GetType() {
	case pb.MsgApp:
		return checkAppend(m, bad)
	case pb.MsgReadIndex, pb.MsgReadIndexResp:
		if n != 1 {
			return bad("entries")
		}
		if m.GetType() == pb.MsgReadIndexResp && m.GetTerm() == 0 || m.GetType() == pb.MsgReadIndex && m.GetTerm() != 0 {
			return bad("term")
		}
		return nil
	case pb.MsgHeartbeat, pb.MsgHeartbeatResp:
		if c := len(m.GetContext()); c != 0 && c != 8 {
			return bad("context")
		}
	case pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgTimeoutNow:
	default:
		return bad("not a message between members")
	}
	if n != 0 {
		return bad("entries")
	}
	if m.GetTerm() == 0 {
		return bad("term")
	}
	return nil
}

func checkAppend(m *pb.Message, bad func(string) error) error {
	if m.GetTerm() == 0 || m.GetLogTerm() > m.GetTerm() {
		return bad("term")
	}
	term := m.GetLogTerm()
	for i, e := range m.GetEntries() {
		if e.GetIndex() != m.GetIndex()+1+uint64(i) || e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return bad("entries")
		}
		term = e.GetTerm()
	}
	return nil
}
