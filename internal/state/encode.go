package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// The format of commands is docs/formats/command.md.
const (
	batchVersion = 1
	timeOffset   = 1 // bytes [1:9] of a batch are the leader's time
	timeEnd      = timeOffset + 8

	maxDepth = 1000 // how deeply transactions nest

	fewPrincipals = 8 // up to here a principal is found by looking at each
)

// ErrEncode is returned for requests that have no form in the log: a nil one, an operation with two fields set, a
// transaction nested too deeply, a proposal without member or sequence. Validate finds all of them in a request.
var ErrEncode = errors.New("request has no encoding")

// EncodeBatch returns the form of calls in the log. Bytes [1:9] are zero until StampBatch.
func EncodeBatch(p Proposal, calls []Call) ([]byte, error) {
	if p.Member == 0 || p.Seq == 0 {
		return nil, fmt.Errorf("%w: proposal without member or sequence", ErrEncode)
	}
	size := 64
	for i := range calls {
		size += Size(calls[i].Request)
	}
	table, index := principalTable(calls)
	size += 160 * len(table)

	b := make([]byte, timeEnd, size)
	b[0] = batchVersion
	b = appendProposal(b, p)
	b = binary.AppendUvarint(b, uint64(len(table)))
	for _, who := range table {
		b = who.AppendBinary(b)
	}
	b = binary.AppendUvarint(b, uint64(len(calls)))
	var err error
	for i := range calls {
		at := uint64(0)
		if index != nil {
			at = uint64(index[i])
		}
		b = binary.AppendUvarint(b, at)
		if b, err = appendRequest(b, calls[i].Request); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// principalTable returns the distinct principals of calls in order of appearance and, unless there is only one, the place
// in the table for each call.
func principalTable(calls []Call) ([]policy.Principal, []uint32) {
	if len(calls) == 0 {
		return nil, nil
	}
	table := []policy.Principal{calls[0].Who}
	var index []uint32
	var seen map[policy.Principal]uint32
	last := uint32(0)
	for i := range calls {
		if calls[i].Who != table[last] {
			at, ok := findPrincipal(table, seen, calls[i].Who)
			if !ok {
				at = uint32(len(table))
				table = append(table, calls[i].Who)
				if len(table) > fewPrincipals && seen == nil {
					seen = make(map[policy.Principal]uint32, 2*len(table))
					for j, p := range table {
						seen[p] = uint32(j)
					}
				} else if seen != nil {
					seen[calls[i].Who] = at
				}
			}
			last = at
			if index == nil {
				index = make([]uint32, len(calls))
			}
		}
		if index != nil {
			index[i] = last
		}
	}
	return table, index
}

func findPrincipal(table []policy.Principal, seen map[policy.Principal]uint32, who policy.Principal) (uint32, bool) {
	if seen != nil {
		at, ok := seen[who]
		return at, ok
	}
	at := slices.Index(table, who)
	return uint32(at), at >= 0
}

// StampBatch writes the leader's time into a batch, in milliseconds since 1970. It does nothing to bytes too short to be one.
func StampBatch(data []byte, unixMilli int64) {
	if len(data) >= timeEnd {
		binary.BigEndian.PutUint64(data[timeOffset:timeEnd], uint64(unixMilli))
	}
}

// EncodeConf returns the form of a membership change in the log.
func EncodeConf(c ConfCommand) ([]byte, error) {
	if c.Proposal.Member == 0 || c.Proposal.Seq == 0 {
		return nil, fmt.Errorf("%w: proposal without member or sequence", ErrEncode)
	}
	b := make([]byte, 0, 256)
	b = append(b, batchVersion, flag(c.Strict, 1))
	b = appendProposal(b, c.Proposal)
	b = c.Who.AppendBinary(b)
	b = binary.AppendUvarint(b, uint64(c.MaxLearners))
	b = append(b, byte(c.Change.Op))
	return appendMember(b, &c.Change.Member), nil
}

// Size returns an upper bound of the bytes that r adds to a batch, for limits and for grouping.
func Size(r Request) int {
	switch r := r.(type) {
	case *Put:
		return 32 + len(r.Key) + len(r.Value)
	case *Delete:
		return 16 + spanSize(r.Span)
	case *Txn:
		return txnSize(r, 0)
	case *Encrypted:
		return 12 + Size(r.Request)
	case *LeaseRevoke:
		return 16 + 10*len(r.IDs)
	case *LeaseCheckpoint:
		return 16 + 20*len(r.Remaining)
	case *AuthChange:
		return 48 + len(r.User) + len(r.Role) + len(r.Hash) + spanSize(r.Permission.Span)
	case *MemberPublish:
		n := 48 + len(r.Name)
		for _, u := range r.ClientURLs {
			n += len(u) + 5
		}
		return n
	case *Discovery:
		return 16 + catalog.OpsSize(r.Ops)
	default:
		return 32
	}
}

func txnSize(t *Txn, depth int) int {
	n := 32
	for i := range t.Compare {
		n += 32 + spanSize(t.Compare[i].Span) + len(t.Compare[i].Value)
	}
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		for i := range ops {
			switch op := &ops[i]; {
			case op.Range != nil:
				n += 96 + spanSize(op.Range.Span)
			case op.Put != nil:
				n += 32 + len(op.Put.Key) + len(op.Put.Value)
			case op.Delete != nil:
				n += 16 + spanSize(op.Delete.Span)
			case op.Txn != nil && depth < maxDepth:
				n += txnSize(op.Txn, depth+1)
			default:
				n++
			}
		}
	}
	return n
}

func spanSize(s storage.Span) int { return 12 + len(s.Start) + len(s.End) }

func flag(on bool, bit byte) byte {
	if on {
		return bit
	}
	return 0
}

func appendProposal(b []byte, p Proposal) []byte {
	b = binary.BigEndian.AppendUint64(b, p.Member)
	b = binary.BigEndian.AppendUint64(b, p.Boot)
	return binary.AppendUvarint(b, p.Seq)
}

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendString(b []byte, v string) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendStrings(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

// Ways to write the end of a span; they share a varint with the length of its start.
const (
	spanSingle = iota // the start is followed by a zero byte, so that start and end alias the entry
	spanOpen
	spanBounded
)

func appendSpan(b []byte, s storage.Span) []byte {
	n := uint64(len(s.Start)) << 2
	switch {
	case s.End == nil:
		b = binary.AppendUvarint(b, n|spanOpen)
		return append(b, s.Start...)
	case s.SingleKey():
		b = binary.AppendUvarint(b, n+spanSingle)
		return append(append(b, s.Start...), 0)
	default:
		b = binary.AppendUvarint(b, n|spanBounded)
		return appendBytes(append(b, s.Start...), s.End)
	}
}

func appendRequest(b []byte, r Request) ([]byte, error) {
	if r == nil {
		return nil, fmt.Errorf("%w: nil request", ErrEncode)
	}
	b = append(b, byte(r.kind()))
	switch r := r.(type) {
	case *Put:
		return appendPut(append(b, byte(r.Space)), r), nil
	case *Delete:
		return appendDelete(append(b, byte(r.Space)), r), nil
	case *Txn:
		return appendTxn(append(b, byte(r.Space)), r, 0)
	case *Compact:
		return binary.AppendVarint(append(b, byte(r.Space)), r.Revision), nil
	case *LeaseGrant:
		return binary.AppendVarint(binary.AppendVarint(b, r.ID), r.TTL), nil
	case *LeaseRevoke:
		b = binary.AppendUvarint(append(b, flag(r.Expired, 1)), uint64(len(r.IDs)))
		for _, id := range r.IDs {
			b = binary.AppendVarint(b, id)
		}
		return b, nil
	case *LeaseCheckpoint:
		b = binary.AppendUvarint(b, uint64(len(r.Remaining)))
		for _, id := range slices.Sorted(maps.Keys(r.Remaining)) {
			b = binary.AppendVarint(binary.AppendVarint(b, id), r.Remaining[id])
		}
		return b, nil
	case *AuthChange:
		return appendAuthChange(b, r), nil
	case *AlarmChange:
		b = append(b, flag(r.Raise, 1), byte(r.Kind))
		return binary.BigEndian.AppendUint64(b, r.Member), nil
	case *MemberPublish:
		b = binary.BigEndian.AppendUint64(b, r.ID)
		b = binary.AppendUvarint(b, uint64(r.FeatureLevel))
		return appendStrings(appendString(b, r.Name), r.ClientURLs), nil
	case *RaiseLevel:
		return binary.AppendUvarint(b, uint64(r.Level)), nil
	case *Discovery:
		return appendDiscovery(b, r), nil
	case *Encrypted:
		if !mustBeEncrypted(r.Request) {
			return nil, fmt.Errorf("%w: %T that is encrypted", ErrEncode, r.Request)
		}
		return appendRequest(binary.AppendVarint(b, r.Epoch), r.Request)
	default:
		return nil, fmt.Errorf("%w: %T", ErrEncode, r)
	}
}

const (
	putPrevKV = 1 << iota
	putIgnoreValue
	putIgnoreLease
	putLease
	putFlags = putPrevKV | putIgnoreValue | putIgnoreLease | putLease
)

func appendPut(b []byte, p *Put) []byte {
	b = append(b, flag(p.PrevKV, putPrevKV)|flag(p.IgnoreValue, putIgnoreValue)|flag(p.IgnoreLease, putIgnoreLease)|
		flag(p.Lease != 0, putLease))
	b = appendBytes(appendBytes(b, p.Key), p.Value)
	if p.Lease != 0 {
		b = binary.AppendVarint(b, p.Lease)
	}
	return b
}

func appendDelete(b []byte, d *Delete) []byte {
	return appendSpan(append(b, flag(d.PrevKV, 1)), d.Span)
}

// Numbers of operations inside a transaction.
const (
	opNone = iota
	opRange
	opPut
	opDelete
	opTxn
)

func appendTxn(b []byte, t *Txn, depth int) ([]byte, error) {
	if depth >= maxDepth {
		return nil, fmt.Errorf("%w: nested too deeply", ErrEncode)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Compare)))
	for i := range t.Compare {
		c := &t.Compare[i]
		b = appendSpan(append(b, byte(c.Target), byte(c.Result)), c.Span)
		if c.Target == CompareValue {
			b = appendBytes(b, c.Value)
		} else {
			b = binary.AppendVarint(b, c.Number)
		}
	}
	var err error
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		b = binary.AppendUvarint(b, uint64(len(ops)))
		for i := range ops {
			if b, err = appendOp(b, &ops[i], depth); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func appendOp(b []byte, op *Op, depth int) ([]byte, error) {
	if opFields(op) > 1 {
		return nil, fmt.Errorf("%w: operation with two fields set", ErrEncode)
	}
	switch {
	case op.Range != nil:
		return appendQuery(append(b, opRange), op.Range), nil
	case op.Put != nil:
		return appendPut(append(b, opPut), op.Put), nil
	case op.Delete != nil:
		return appendDelete(append(b, opDelete), op.Delete), nil
	case op.Txn != nil:
		return appendTxn(append(b, opTxn), op.Txn, depth+1)
	default:
		return append(b, opNone), nil
	}
}

func opFields(op *Op) int {
	n := 0
	for _, set := range [...]bool{op.Range != nil, op.Put != nil, op.Delete != nil, op.Txn != nil} {
		if set {
			n++
		}
	}
	return n
}

const (
	queryKeysOnly = 1 << iota
	queryCountOnly
	queryNoCount
	querySort
	queryNumbers // from here one bit for each number of queryNumber, set if it is not 0
)

// queryNumber lists the numbers of a query in their order in the log.
func queryNumber(q *mvcc.Query) [7]*int64 {
	return [7]*int64{&q.Revision, &q.Limit, &q.MaxBytes, &q.MinModRevision, &q.MaxModRevision, &q.MinCreateRevision, &q.MaxCreateRevision}
}

func appendQuery(b []byte, q *mvcc.Query) []byte {
	flags := uint64(flag(q.KeysOnly, queryKeysOnly) | flag(q.CountOnly, queryCountOnly) | flag(q.NoCount, queryNoCount) |
		flag(q.Target != 0 || q.Order != 0, querySort))
	numbers := queryNumber(q)
	for i, n := range numbers {
		if *n != 0 {
			flags |= queryNumbers << i
		}
	}
	b = binary.AppendUvarint(b, flags)
	if flags&querySort != 0 {
		b = append(b, byte(q.Target), byte(q.Order))
	}
	for _, n := range numbers {
		if *n != 0 {
			b = binary.AppendVarint(b, *n)
		}
	}
	return appendSpan(b, q.Span)
}

const (
	authNoPassword = 1 << iota
	authRead
	authWrite
	authSpan
	authFlags = authNoPassword | authRead | authWrite | authSpan
)

func appendAuthChange(b []byte, c *AuthChange) []byte {
	span := c.Permission.Span
	withSpan := span.Start != nil || span.End != nil
	b = append(b, byte(c.Op), flag(c.NoPassword, authNoPassword)|flag(c.Permission.Read, authRead)|
		flag(c.Permission.Write, authWrite)|flag(withSpan, authSpan))
	b = appendBytes(appendString(appendString(b, c.User), c.Role), c.Hash)
	if withSpan {
		b = appendSpan(b, span)
	}
	return b
}

func appendMember(b []byte, m *Member) []byte {
	b = binary.BigEndian.AppendUint64(b, m.ID)
	b = append(b, flag(m.Learner, 1))
	return appendStrings(appendStrings(appendString(b, m.Name), m.PeerURLs), m.ClientURLs)
}
