package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrDecode is returned for bytes that are no form of what was asked for.
var ErrDecode = errors.New("catalog: malformed bytes")

// DecodeOps reads what AppendOps wrote, and nothing else: what it accepts, AppendOps would write again. The values of pairs
// and the definitions of checks alias b. It never allocates more than a small multiple of len(b).
func DecodeOps(b []byte) ([]Op, error) {
	d := decoder{b: b}
	ops := decodeList(&d, 2, (*decoder).op)
	return ops, d.end("operations")
}

// DecodeQuery reads what AppendQuery wrote, and nothing else.
func DecodeQuery(b []byte) (Query, error) {
	d := decoder{b: b}
	q := Query{Kind: Kind(d.byte())}
	q.Name, q.Separator = d.string(), d.string()
	if q.Kind == 0 || q.Kind > maxQuery {
		d.fail()
	}
	return q, d.end("query")
}

// DecodeAnswer reads what AppendAnswer wrote, and nothing else. Values alias b.
func DecodeAnswer(b []byte) (Answer, error) {
	d := decoder{b: b}
	a := Answer{
		Index: d.uvarint(), Pairs: decodeList(&d, smallestPair, (*decoder).pair), Keys: d.strings(),
		Nodes: decodeList(&d, smallestNode, (*decoder).node), Services: decodeList(&d, smallestService, (*decoder).service),
	}
	if n := d.count(2); n > 0 {
		a.Names = make(map[string][]string, min(n, 1024))
		last := ""
		for i := range n {
			name := d.string()
			if d.bad || i > 0 && name <= last {
				d.fail()
				break
			}
			a.Names[name], last = d.strings(), name
		}
	}
	a.Instances = decodeList(&d, smallestNode+smallestService+1, (*decoder).instance)
	a.Checks = decodeList(&d, smallestCheck, (*decoder).check)
	a.Sessions = decodeList(&d, smallestSession, (*decoder).session)
	return a, d.end("answer")
}

// DecodeOutcome reads what AppendOutcome wrote, and nothing else. Values alias b.
func DecodeOutcome(b []byte) (Outcome, error) {
	d := decoder{b: b}
	o := Outcome{
		Index: d.uvarint(), Results: decodeList(&d, 1, (*decoder).result), Failures: decodeList(&d, 3, (*decoder).failure),
	}
	return o, d.end("outcome")
}

// The fewest bytes that one of these takes, so that a count cannot ask for more memory than bytes were sent.
const (
	smallestPair    = 7
	smallestNode    = 9
	smallestService = 16
	smallestCheck   = 16
	smallestSession = 10
)

// decoder reads from b. After the first thing that does not fit, bad is set and everything read is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

// end returns the error of a decoder that should have read everything.
func (d *decoder) end(what string) error {
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("%w: %s", ErrDecode, what)
	}
	return nil
}

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

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // a last byte of zero: not the shortest form
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

// count reads a number of things of which each takes at least size bytes.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) take() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	if v := d.take(); len(v) > 0 {
		return v
	}
	return nil
}

func (d *decoder) string() string { return string(d.take()) }

func (d *decoder) strings() []string {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	list := make([]string, 0, min(n, 64)) // a string takes one byte at the least but 16 in memory
	for range n {
		if d.bad {
			return nil
		}
		list = append(list, d.string())
	}
	return list
}

func (d *decoder) texts() map[string]string {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	m := make(map[string]string, min(n, 64))
	last := ""
	for i := range n {
		k, v := d.string(), d.string()
		if d.bad || i > 0 && k <= last {
			d.fail()
			return nil
		}
		m[k], last = v, k
	}
	return m
}

// decodeList reads a list of things of which each takes at least size bytes. It grows as they are read: in memory one may
// take a hundred times as much.
func decodeList[T any](d *decoder, size int, one func(*decoder, *T)) []T {
	n := d.count(size)
	if n == 0 {
		return nil
	}
	list := make([]T, 0, min(n, 16))
	for range n {
		var v T
		one(d, &v)
		if d.bad {
			return nil
		}
		list = append(list, v)
	}
	return list
}

func (d *decoder) op(op *Op) {
	op.Verb = Verb(d.byte())
	switch op.Verb.subject() {
	case subjectPair:
		op.Pair = new(Pair)
		d.pair(op.Pair)
	case subjectNode:
		op.Node = new(Node)
		if op.Verb == NodeSet {
			op.SkipNodeUpdate = d.flags(1) == 1
		}
		d.node(op.Node)
	case subjectService:
		op.Service = new(Service)
		d.service(op.Service)
	case subjectCheck:
		op.Check = new(Check)
		d.check(op.Check)
	case subjectSession:
		op.Session = new(Session)
		d.session(op.Session)
	default:
		d.fail()
	}
}

func (d *decoder) result(r *Result) {
	bits := d.flags(resultBits)
	if bits&resultPair != 0 {
		r.Pair = new(Pair)
		d.pair(r.Pair)
	}
	if bits&resultPairs != 0 {
		if r.Pairs = decodeList(d, smallestPair, (*decoder).pair); len(r.Pairs) == 0 {
			d.fail()
		}
	}
	if bits&resultNode != 0 {
		r.Node = new(Node)
		d.node(r.Node)
	}
	if bits&resultService != 0 {
		r.Service = new(Service)
		d.service(r.Service)
	}
	if bits&resultCheck != 0 {
		r.Check = new(Check)
		d.check(r.Check)
	}
	if bits&resultSession != 0 {
		r.Session = new(Session)
		d.session(r.Session)
	}
}

func (d *decoder) failure(f *Failure) {
	op := d.uvarint()
	f.Op, f.Kind, f.What = int(op), FailureKind(d.byte()), d.string()
	if op > 1<<31 || f.Kind < Mismatch || f.Kind > Refused {
		d.fail()
	}
}

func (d *decoder) instance(i *Instance) {
	d.node(&i.Node)
	d.service(&i.Service)
	i.Checks = decodeList(d, smallestCheck, (*decoder).check)
}

func (d *decoder) pair(p *Pair) {
	p.Key, p.Value, p.Flags, p.Session = d.string(), d.bytes(), d.uvarint(), d.string()
	p.LockIndex, p.CreateIndex, p.ModifyIndex = d.uvarint(), d.uvarint(), d.uvarint()
}

func (d *decoder) node(n *Node) {
	n.ID, n.Name, n.Address, n.Datacenter = d.string(), d.string(), d.string(), d.string()
	n.TaggedAddresses, n.Meta, n.Extra = d.texts(), d.texts(), d.bytes()
	n.CreateIndex, n.ModifyIndex = d.uvarint(), d.uvarint()
}

func (d *decoder) service(s *Service) {
	s.Node, s.ID, s.Name, s.Kind = d.string(), d.string(), d.string(), d.string()
	s.Tags, s.Address, s.SocketPath, s.Port = d.strings(), d.string(), d.string(), int(d.varint())
	if n := d.count(3); n > 0 {
		s.TaggedAddresses = make(map[string]Address, min(n, 64))
		last := ""
		for i := range n {
			k, a := d.string(), Address{Address: d.string(), Port: int(d.varint())}
			if d.bad || i > 0 && k <= last {
				d.fail()
				break
			}
			s.TaggedAddresses[k], last = a, k
		}
	}
	s.Meta = d.texts()
	s.Weights = Weights{Passing: int(d.varint()), Warning: int(d.varint())}
	s.EnableTagOverride, s.Extra = d.flags(1) == 1, d.bytes()
	s.CreateIndex, s.ModifyIndex = d.uvarint(), d.uvarint()
}

func (d *decoder) check(c *Check) {
	for _, s := range [...]*string{&c.Node, &c.ID, &c.Name, &c.Status, &c.Notes, &c.Output, &c.ServiceID, &c.ServiceName} {
		*s = d.string()
	}
	c.ServiceTags = d.strings()
	c.Type, c.Interval, c.Timeout = d.string(), d.string(), d.string()
	c.ExposedPort, c.Definition = int(d.varint()), d.bytes()
	c.CreateIndex, c.ModifyIndex = d.uvarint(), d.uvarint()
}

func (d *decoder) session(s *Session) {
	s.ID, s.Name, s.Node, s.LockDelay = d.string(), d.string(), d.string(), d.varint()
	s.Behavior, s.TTL, s.NodeChecks = d.string(), d.string(), d.strings()
	s.ServiceChecks = decodeList(d, 2, (*decoder).serviceCheck)
	s.CreateIndex, s.ModifyIndex = d.uvarint(), d.uvarint()
}

func (d *decoder) serviceCheck(c *ServiceCheck) { c.ID, c.Namespace = d.string(), d.string() }
