package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// ErrDecode is returned for bytes that are no command of a version that this build knows.
var ErrDecode = errors.New("malformed command")

// Batch is the decoded form of a batch. Its byte slices alias the entry.
type Batch struct {
	Proposal   Proposal
	Time       int64              // unix milliseconds; 0: never stamped
	Principals []policy.Principal // the distinct ones
	Calls      []BatchCall
}

// BatchCall is one request and the place of its principal in Batch.Principals.
type BatchCall struct {
	Who     int
	Request Request
}

// DecodeBatch reads what EncodeBatch wrote. It accepts no other bytes: what it accepts, EncodeBatch would write again.
// It never allocates more than a small multiple of len(data).
func DecodeBatch(data []byte) (Batch, error) {
	if len(data) < timeEnd {
		return Batch{}, fmt.Errorf("%w: %d bytes", ErrDecode, len(data))
	}
	if data[0] != batchVersion {
		return Batch{}, fmt.Errorf("%w: batch version %d", ErrDecode, data[0])
	}
	d := decoder{b: data[timeEnd:]}
	batch := Batch{Time: int64(binary.BigEndian.Uint64(data[timeOffset:timeEnd])), Proposal: d.proposal()}
	const smallestPrincipal, smallestCall = 8, 3
	principals := d.count(smallestPrincipal)
	batch.Principals = make([]policy.Principal, principals)
	for i := range batch.Principals {
		batch.Principals[i] = d.principal()
	}
	if !distinct(batch.Principals) {
		return Batch{}, fmt.Errorf("%w: a principal is there twice", ErrDecode)
	}
	calls := d.count(smallestCall)
	batch.Calls = make([]BatchCall, calls)
	next := uint64(0) // principals appear in the order of their first call
	for i := range batch.Calls {
		who := d.uvarint()
		if d.bad || who > next || who >= uint64(principals) {
			return Batch{}, fmt.Errorf("%w: principal of request %d", ErrDecode, i)
		}
		next = max(next, who+1)
		batch.Calls[i] = BatchCall{Who: int(who), Request: d.request(calls - i)}
		if d.bad {
			return Batch{}, fmt.Errorf("%w: request %d", ErrDecode, i)
		}
	}
	if d.bad || len(d.b) != 0 || next != uint64(principals) {
		return Batch{}, fmt.Errorf("%w: batch of %d requests, %d bytes left", ErrDecode, calls, len(d.b))
	}
	return batch, nil
}

func distinct(table []policy.Principal) bool {
	if len(table) <= fewPrincipals {
		for i := range table {
			if slices.Contains(table[:i], table[i]) {
				return false
			}
		}
		return true
	}
	seen := make(map[policy.Principal]struct{}, len(table))
	for i := range table {
		seen[table[i]] = struct{}{}
	}
	return len(seen) == len(table)
}

// DecodeConf reads what EncodeConf wrote, and nothing else.
func DecodeConf(data []byte) (ConfCommand, error) {
	if len(data) < 2 || data[0] != batchVersion || data[1] > 1 {
		return ConfCommand{}, fmt.Errorf("%w: membership change", ErrDecode)
	}
	c := ConfCommand{Strict: data[1] == 1}
	d := decoder{b: data[2:]}
	c.Proposal = d.proposal()
	c.Who = d.principal()
	c.MaxLearners = d.uint32()
	c.Change.Op = ConfOp(d.byte())
	c.Change.Member = d.member()
	if d.bad || len(d.b) != 0 {
		return ConfCommand{}, fmt.Errorf("%w: membership change, %d bytes left", ErrDecode, len(d.b))
	}
	return c, nil
}

// decoder reads from b. After the first thing that does not fit, bad is set and everything read is zero.
type decoder struct {
	b   []byte
	bad bool

	puts []Put // slab: a batch of puts costs few allocations
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// flags reads a byte that may have only the bits of mask set.
func (d *decoder) flags(mask byte) byte {
	v := d.byte()
	if v&^mask != 0 {
		d.fail()
		return 0
	}
	return v
}

func (d *decoder) uint64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := uint64(d.b[0])
		d.b = d.b[1:]
		return v
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || d.b[n-1] == 0 { // a last byte of zero: not the shortest form
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail()
		return 0
	}
	return uint32(v)
}

// count reads a number of things of which each takes at least size bytes.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	v := d.take(d.uvarint())
	if len(v) == 0 {
		return nil
	}
	return v
}

func (d *decoder) string() string { return string(d.take(d.uvarint())) }

func (d *decoder) strings() []string {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = d.string()
	}
	return list
}

func (d *decoder) proposal() Proposal {
	p := Proposal{Member: d.uint64(), Boot: d.uint64(), Seq: d.uvarint()}
	if p.Member == 0 || p.Seq == 0 {
		d.fail()
		return Proposal{}
	}
	return p
}

func (d *decoder) principal() policy.Principal {
	if d.bad {
		return policy.Principal{}
	}
	p, rest, err := policy.DecodePrincipal(d.b)
	if err != nil {
		d.fail()
		return policy.Principal{}
	}
	d.b = rest
	return p
}

func (d *decoder) span() storage.Span {
	head := d.uvarint()
	n := head >> 2
	switch head & 3 {
	case spanOpen:
		return storage.Span{Start: nonNil(d.take(n))}
	case spanSingle:
		both := d.take(n + 1)
		if d.bad || both[n] != 0 {
			d.fail()
			return storage.Span{}
		}
		return storage.Span{Start: both[:n:n], End: both}
	case spanBounded:
		s := storage.Span{Start: nonNil(d.take(n)), End: nonNil(d.take(d.uvarint()))}
		if s.SingleKey() {
			d.fail()
		}
		return s
	default:
		d.fail()
		return storage.Span{}
	}
}

func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// request reads one request; remaining is how many the batch still holds, this one included.
func (d *decoder) request(remaining int) Request {
	switch requestKind(d.byte()) {
	case kindPut:
		if len(d.puts) == 0 {
			d.puts = make([]Put, min(remaining, 128))
		}
		p := &d.puts[0]
		d.puts = d.puts[1:]
		space := mvcc.SpaceID(d.byte())
		d.put(p, space)
		return p
	case kindDelete:
		return d.delete(mvcc.SpaceID(d.byte()))
	case kindTxn:
		return d.txn(mvcc.SpaceID(d.byte()), 0)
	case kindCompact:
		return &Compact{Space: mvcc.SpaceID(d.byte()), Revision: d.varint()}
	case kindLeaseGrant:
		return &LeaseGrant{ID: d.varint(), TTL: d.varint()}
	case kindLeaseRevoke:
		return d.leaseRevoke()
	case kindLeaseCheckpoint:
		return d.leaseCheckpoint()
	case kindAuthChange:
		return d.authChange()
	case kindAlarmChange:
		raise := d.flags(1) == 1
		return &AlarmChange{Raise: raise, Alarm: Alarm{Kind: AlarmKind(d.byte()), Member: d.uint64()}}
	case kindDiscovery:
		return d.discovery()
	case kindMemberPublish:
		return &MemberPublish{ID: d.uint64(), FeatureLevel: d.uint32(), Name: d.string(), ClientURLs: d.strings()}
	case kindRaiseLevel:
		return &RaiseLevel{Level: d.uint32()}
	case kindEncrypted:
		return d.encrypted(remaining)
	default:
		d.fail()
		return nil
	}
}

func (d *decoder) encrypted(remaining int) *Encrypted {
	e := &Encrypted{Epoch: d.varint()}
	if len(d.b) == 0 || requestKind(d.b[0]) != kindPut && requestKind(d.b[0]) != kindTxn {
		d.fail()
		return e
	}
	e.Request = d.request(remaining)
	if !d.bad && !mustBeEncrypted(e.Request) {
		d.fail()
	}
	return e
}

func (d *decoder) put(p *Put, space mvcc.SpaceID) {
	flags := d.flags(putFlags)
	p.Space = space
	p.PrevKV, p.IgnoreValue, p.IgnoreLease = flags&putPrevKV != 0, flags&putIgnoreValue != 0, flags&putIgnoreLease != 0
	p.Key, p.Value = d.bytes(), d.bytes()
	if flags&putLease != 0 {
		if p.Lease = d.varint(); p.Lease == 0 {
			d.fail()
		}
	}
}

func (d *decoder) delete(space mvcc.SpaceID) *Delete {
	flags := d.flags(1)
	return &Delete{Space: space, PrevKV: flags != 0, Span: d.span()}
}

func (d *decoder) txn(space mvcc.SpaceID, depth int) *Txn {
	t := &Txn{Space: space}
	if depth >= maxDepth {
		d.fail()
		return t
	}
	const smallestCompare = 5
	if n := d.count(smallestCompare); n > 0 {
		t.Compare = make([]Compare, n)
		for i := range t.Compare {
			d.compare(&t.Compare[i])
		}
	}
	t.Success = d.ops(space, depth)
	t.Failure = d.ops(space, depth)
	return t
}

func (d *decoder) compare(c *Compare) {
	c.Target, c.Result = CompareTarget(d.byte()), CompareResult(d.byte())
	c.Span = d.span()
	if c.Target == CompareValue {
		c.Value = d.bytes()
	} else {
		c.Number = d.varint()
	}
}

func (d *decoder) ops(space mvcc.SpaceID, depth int) []Op {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	// An operation takes one byte at the least but 32 in memory: grow as they are read, so that a few bytes cannot ask for much.
	ops := make([]Op, 0, min(n, 16))
	for range n {
		if d.bad {
			return nil
		}
		ops = append(ops, d.op(space, depth))
	}
	return ops
}

func (d *decoder) op(space mvcc.SpaceID, depth int) Op {
	switch d.byte() {
	case opNone:
		return Op{}
	case opRange:
		return Op{Range: d.query()}
	case opPut:
		p := new(Put)
		d.put(p, space)
		return Op{Put: p}
	case opDelete:
		return Op{Delete: d.delete(space)}
	case opTxn:
		return Op{Txn: d.txn(space, depth+1)}
	default:
		d.fail()
		return Op{}
	}
}

func (d *decoder) query() *mvcc.Query {
	q := new(mvcc.Query)
	numbers := queryNumber(q)
	flags := d.uvarint()
	if flags >= queryNumbers<<len(numbers) {
		d.fail()
		return q
	}
	q.KeysOnly, q.CountOnly, q.NoCount = flags&queryKeysOnly != 0, flags&queryCountOnly != 0, flags&queryNoCount != 0
	if flags&querySort != 0 {
		q.Target, q.Order = mvcc.SortTarget(d.byte()), mvcc.SortOrder(d.byte())
		if q.Target == 0 && q.Order == 0 {
			d.fail()
		}
	}
	for i, n := range numbers {
		if flags&(queryNumbers<<i) != 0 {
			if *n = d.varint(); *n == 0 {
				d.fail()
			}
		}
	}
	q.Span = d.span()
	return q
}

func (d *decoder) leaseRevoke() *LeaseRevoke {
	r := &LeaseRevoke{Expired: d.flags(1) == 1}
	if n := d.count(1); n > 0 {
		r.IDs = make([]int64, n)
		for i := range r.IDs {
			r.IDs[i] = d.varint()
		}
	}
	return r
}

func (d *decoder) leaseCheckpoint() *LeaseCheckpoint {
	n := d.count(2)
	c := &LeaseCheckpoint{Remaining: make(map[int64]int64, min(n, 1024))}
	last := int64(0)
	for i := range n {
		id, remaining := d.varint(), d.varint()
		if d.bad || i > 0 && id <= last {
			d.fail()
			return c
		}
		c.Remaining[id], last = remaining, id
	}
	return c
}

func (d *decoder) authChange() *AuthChange {
	op, flags := AuthOp(d.byte()), d.flags(authFlags)
	c := &AuthChange{Op: op, NoPassword: flags&authNoPassword != 0, User: d.string(), Role: d.string(), Hash: d.bytes()}
	c.Permission = Permission{Read: flags&authRead != 0, Write: flags&authWrite != 0}
	if flags&authSpan != 0 {
		c.Permission.Span = d.span()
	}
	return c
}

func (d *decoder) member() Member {
	m := Member{ID: d.uint64(), Learner: d.flags(1) == 1}
	m.Name, m.PeerURLs, m.ClientURLs = d.string(), d.strings(), d.strings()
	return m
}
