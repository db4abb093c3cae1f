package agentapi

import (
	"encoding/binary"
	"math"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
)

// The calls, as paths. Every call is a POST.
const (
	pathDiscover = "/agent/1/discover"
	pathLookup   = "/agent/1/lookup"
	pathRenew    = "/agent/1/renew"
	pathServers  = "/agent/1/servers"
	pathJoin     = "/agent/1/join"

	contentType = "application/x-holdfast-agent"
)

// The first byte of an answer.
const (
	answerDone    = 0 // the call's result follows
	answerFault   = 1 // a fault follows; a write may have happened
	answerRefused = 2 // a fault follows; the server has not begun with the call
)

// The bounds of what crosses.
const (
	maxRequest = 4 << 20   // bytes of a request's body
	maxAnswer  = 128 << 20 // bytes of an answer's body
	maxText    = 4 << 10   // bytes of a name, an address, a reason
	maxMembers = 1 << 10   // members or servers in one answer
	maxWait    = 11 * time.Minute
)

// JoinRequest is the wish of a server to become a member.
type JoinRequest struct {
	Name    string // of the node
	NodeID  string // UUID; asking again with the same one changes nothing
	Address string // host:port of its RPC, under which the members reach it
}

// JoinAnswer is what a new member has to know.
type JoinAnswer struct {
	Cluster uint64
	Member  uint64 // its own id
	Level   uint32 // the cluster's feature level
	Members []JoinMember
}

// JoinMember is one member of the cluster.
type JoinMember struct {
	ID      uint64
	Name    string
	Address string // host:port of its RPC
	Learner bool
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// reader takes a body apart. The first thing that does not fit makes it bad for good.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) octet() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) text() string {
	n := r.number()
	if n > maxText || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) duration() time.Duration {
	n := r.number()
	if n > math.MaxInt64 {
		r.bad = true
		return 0
	}
	return time.Duration(n)
}

func (r *reader) level() uint32 {
	if len(r.b) < 4 {
		r.bad, r.b = true, nil
		return 0
	}
	n := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return n
}

func (r *reader) flag() bool {
	c := r.octet()
	r.bad = r.bad || c > 1
	return c == 1
}

// count reads how many of something follow, each of at least size bytes.
func (r *reader) count(size int) int {
	n := r.number()
	if n > maxMembers || n*uint64(size) > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

// end reports whether everything fitted and nothing is left.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

func flagByte(f bool) byte {
	if f {
		return 1
	}
	return 0
}

func appendLookup(b []byte, q core.LookupRequest) []byte {
	b = append(b, flagByte(q.Serializable))
	b = binary.AppendUvarint(b, q.MinIndex)
	b = binary.AppendUvarint(b, uint64(max(q.Wait, 0)))
	return catalog.AppendQuery(b, q.Query)
}

func decodeLookup(b []byte) (core.LookupRequest, error) {
	r := reader{b: b}
	q := core.LookupRequest{Serializable: r.flag(), MinIndex: r.number(), Wait: r.duration()}
	if r.bad || q.Wait > maxWait {
		return core.LookupRequest{}, ErrMalformed
	}
	var err error
	if q.Query, err = catalog.DecodeQuery(r.b); err != nil {
		return core.LookupRequest{}, ErrMalformed
	}
	return q, nil
}

func appendFound(b []byte, f *core.Found) []byte {
	b = append(b, flagByte(f.KnownLeader))
	b = binary.AppendUvarint(b, uint64(max(f.LastContact, 0)))
	return catalog.AppendAnswer(b, &f.Answer)
}

func decodeFound(b []byte) (core.Found, error) {
	r := reader{b: b}
	f := core.Found{KnownLeader: r.flag(), LastContact: r.duration()}
	if r.bad {
		return core.Found{}, ErrBadAnswer
	}
	var err error
	if f.Answer, err = catalog.DecodeAnswer(r.b); err != nil {
		return core.Found{}, ErrBadAnswer
	}
	return f, nil
}

func appendServers(b []byte, servers []core.Server) []byte {
	b = binary.AppendUvarint(b, uint64(len(servers)))
	for _, s := range servers {
		b = binary.BigEndian.AppendUint64(b, s.ID)
		b = appendText(appendText(b, s.Name), s.Address)
		b = append(b, flagByte(s.Leader), flagByte(s.Voter))
	}
	return b
}

func (r *reader) id() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	id := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return id
}

func decodeServers(b []byte) ([]core.Server, error) {
	r := reader{b: b}
	servers := make([]core.Server, r.count(12))
	for i := range servers {
		servers[i] = core.Server{ID: r.id(), Name: r.text(), Address: r.text(), Leader: r.flag(), Voter: r.flag()}
	}
	if !r.end() {
		return nil, ErrBadAnswer
	}
	return servers, nil
}

func appendJoin(b []byte, j JoinRequest) []byte {
	return appendText(appendText(appendText(b, j.Name), j.NodeID), j.Address)
}

func decodeJoin(b []byte) (JoinRequest, error) {
	r := reader{b: b}
	j := JoinRequest{Name: r.text(), NodeID: r.text(), Address: r.text()}
	if !r.end() {
		return JoinRequest{}, ErrMalformed
	}
	return j, nil
}

func appendJoinAnswer(b []byte, a *JoinAnswer) []byte {
	b = binary.BigEndian.AppendUint64(b, a.Cluster)
	b = binary.BigEndian.AppendUint64(b, a.Member)
	b = binary.BigEndian.AppendUint32(b, a.Level)
	b = binary.AppendUvarint(b, uint64(len(a.Members)))
	for _, m := range a.Members {
		b = binary.BigEndian.AppendUint64(b, m.ID)
		b = appendText(appendText(b, m.Name), m.Address)
		b = append(b, flagByte(m.Learner))
	}
	return b
}

func decodeJoinAnswer(b []byte) (JoinAnswer, error) {
	r := reader{b: b}
	a := JoinAnswer{Cluster: r.id(), Member: r.id(), Level: r.level()}
	a.Members = make([]JoinMember, r.count(11))
	for i := range a.Members {
		a.Members[i] = JoinMember{ID: r.id(), Name: r.text(), Address: r.text(), Learner: r.flag()}
	}
	if !r.end() {
		return JoinAnswer{}, ErrBadAnswer
	}
	return a, nil
}

// appendFault appends a fault as it crosses. Texts that are too long are cut.
func appendFault(b []byte, err error) []byte {
	f := fault.From(err)
	b = append(b, byte(f.Kind))
	return appendText(appendText(b, f.Reason[:min(len(f.Reason), maxText)]), f.Hint[:min(len(f.Hint), maxText)])
}

// decodeFault reads a fault.
func decodeFault(b []byte) (*fault.Error, error) {
	r := reader{b: b}
	f := &fault.Error{Kind: fault.Kind(r.octet()), Reason: r.text(), Hint: r.text()}
	if !r.end() || f.Reason == "" || int(f.Kind) >= len(fault.Kinds()) {
		return nil, ErrBadAnswer
	}
	return f, nil
}
