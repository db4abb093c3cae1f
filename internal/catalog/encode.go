package catalog

import (
	"encoding/binary"
	"maps"
	"slices"
)

// The forms written here are in docs/formats/catalog.md. Each value has exactly one: numbers are varints in their shortest
// form, maps are in order of keys, and an empty list, map or slice of bytes is the same as none.

// maxQuery is the highest Kind.
const (
	maxQuery = QuerySessions
)

// AppendOps appends the form of ops in the log. An Op whose field is not set travels with an empty one, and fields that
// its verb does not name do not travel: WellFormed tells such an Op from a good one.
func AppendOps(b []byte, ops []Op) []byte {
	b = binary.AppendUvarint(b, uint64(len(ops)))
	for i := range ops {
		b = appendOp(b, &ops[i])
	}
	return b
}

// OpsSize returns an upper bound of what AppendOps appends.
func OpsSize(ops []Op) int {
	n := binary.MaxVarintLen64
	for i := range ops {
		n += ops[i].size()
	}
	return n
}

func appendOp(b []byte, op *Op) []byte {
	b = append(b, byte(op.Verb))
	switch op.Verb.subject() {
	case subjectPair:
		return appendPair(b, orEmpty(op.Pair))
	case subjectNode:
		if op.Verb == NodeSet {
			b = append(b, flag(op.SkipNodeUpdate, 1))
		}
		return appendNode(b, orEmpty(op.Node))
	case subjectService:
		return appendService(b, orEmpty(op.Service))
	case subjectCheck:
		return appendCheck(b, orEmpty(op.Check))
	case subjectSession:
		return appendSession(b, orEmpty(op.Session))
	}
	return b
}

func orEmpty[T any](v *T) *T {
	if v == nil {
		return new(T)
	}
	return v
}

// size returns an upper bound of the bytes of the operation's form.
func (op *Op) size() int {
	const number = binary.MaxVarintLen64
	n := 2
	switch op.Verb.subject() {
	case subjectPair:
		p := orEmpty(op.Pair)
		n += 7*number + len(p.Key) + len(p.Value) + len(p.Session)
	case subjectNode:
		v := orEmpty(op.Node)
		n += 9*number + len(v.Extra) + len(v.ID) + len(v.Name) + len(v.Address) + len(v.Datacenter) + textsSize(v.TaggedAddresses) + textsSize(v.Meta)
	case subjectService:
		s := orEmpty(op.Service)
		n += 17*number + len(s.Extra) + len(s.Node) + len(s.ID) + len(s.Name) + len(s.Kind) + len(s.Address) + len(s.SocketPath) +
			listSize(s.Tags) + textsSize(s.Meta)
		for k, a := range s.TaggedAddresses {
			n += 3*number + len(k) + len(a.Address)
		}
	case subjectCheck:
		c := orEmpty(op.Check)
		n += 18*number + len(c.Node) + len(c.ID) + len(c.Name) + len(c.Status) + len(c.Notes) + len(c.Output) + len(c.ServiceID) +
			len(c.ServiceName) + listSize(c.ServiceTags) + len(c.Type) + len(c.Interval) + len(c.Timeout) + len(c.Definition)
	case subjectSession:
		s := orEmpty(op.Session)
		n += 12*number + len(s.ID) + len(s.Name) + len(s.Node) + len(s.Behavior) + len(s.TTL) + listSize(s.NodeChecks)
		for i := range s.ServiceChecks {
			n += 2*number + len(s.ServiceChecks[i].ID) + len(s.ServiceChecks[i].Namespace)
		}
	}
	return n
}

func listSize(list []string) int {
	n := 0
	for _, s := range list {
		n += binary.MaxVarintLen64 + len(s)
	}
	return n
}

func textsSize(m map[string]string) int {
	n := 0
	for k, v := range m {
		n += 2*binary.MaxVarintLen64 + len(k) + len(v)
	}
	return n
}

// AppendQuery appends the form of q between agents.
func AppendQuery(b []byte, q Query) []byte {
	return appendString(appendString(append(b, byte(q.Kind)), q.Name), q.Separator)
}

// AppendAnswer appends the form of a between agents.
func AppendAnswer(b []byte, a *Answer) []byte {
	b = binary.AppendUvarint(b, a.Index)
	b = appendList(b, a.Pairs, appendPair)
	b = appendStrings(b, a.Keys)
	b = appendList(b, a.Nodes, appendNode)
	b = appendList(b, a.Services, appendService)
	b = binary.AppendUvarint(b, uint64(len(a.Names)))
	for _, name := range slices.Sorted(maps.Keys(a.Names)) {
		b = appendStrings(appendString(b, name), a.Names[name])
	}
	b = appendList(b, a.Instances, appendInstance)
	b = appendList(b, a.Checks, appendCheck)
	return appendList(b, a.Sessions, appendSession)
}

// AppendOutcome appends the form of o between agents.
func AppendOutcome(b []byte, o *Outcome) []byte {
	b = binary.AppendUvarint(b, o.Index)
	b = appendList(b, o.Results, appendResult)
	return appendList(b, o.Failures, appendFailure)
}

// Bits of a Result that say which fields follow.
const (
	resultPair = 1 << iota
	resultPairs
	resultNode
	resultService
	resultCheck
	resultSession
	resultBits = 1<<iota - 1
)

func appendResult(b []byte, r *Result) []byte {
	b = append(b, flag(r.Pair != nil, resultPair)|flag(len(r.Pairs) > 0, resultPairs)|flag(r.Node != nil, resultNode)|
		flag(r.Service != nil, resultService)|flag(r.Check != nil, resultCheck)|flag(r.Session != nil, resultSession))
	if r.Pair != nil {
		b = appendPair(b, r.Pair)
	}
	if len(r.Pairs) > 0 {
		b = appendList(b, r.Pairs, appendPair)
	}
	if r.Node != nil {
		b = appendNode(b, r.Node)
	}
	if r.Service != nil {
		b = appendService(b, r.Service)
	}
	if r.Check != nil {
		b = appendCheck(b, r.Check)
	}
	if r.Session != nil {
		b = appendSession(b, r.Session)
	}
	return b
}

func appendFailure(b []byte, f *Failure) []byte {
	b = binary.AppendUvarint(b, uint64(f.Op))
	return appendString(append(b, byte(f.Kind)), f.What)
}

func appendInstance(b []byte, i *Instance) []byte {
	return appendList(appendService(appendNode(b, &i.Node), &i.Service), i.Checks, appendCheck)
}

func appendPair(b []byte, p *Pair) []byte {
	b = appendBytes(appendString(b, p.Key), p.Value)
	b = appendString(binary.AppendUvarint(b, p.Flags), p.Session)
	b = binary.AppendUvarint(b, p.LockIndex)
	return appendIndexes(b, p.CreateIndex, p.ModifyIndex)
}

func appendNode(b []byte, n *Node) []byte {
	b = appendString(appendString(appendString(appendString(b, n.ID), n.Name), n.Address), n.Datacenter)
	b = appendBytes(appendTexts(appendTexts(b, n.TaggedAddresses), n.Meta), n.Extra)
	return appendIndexes(b, n.CreateIndex, n.ModifyIndex)
}

func appendService(b []byte, s *Service) []byte {
	b = appendString(appendString(appendString(appendString(b, s.Node), s.ID), s.Name), s.Kind)
	b = appendString(appendString(appendStrings(b, s.Tags), s.Address), s.SocketPath)
	b = binary.AppendVarint(b, int64(s.Port))
	b = binary.AppendUvarint(b, uint64(len(s.TaggedAddresses)))
	for _, k := range slices.Sorted(maps.Keys(s.TaggedAddresses)) {
		a := s.TaggedAddresses[k]
		b = binary.AppendVarint(appendString(appendString(b, k), a.Address), int64(a.Port))
	}
	b = appendTexts(b, s.Meta)
	b = binary.AppendVarint(binary.AppendVarint(b, int64(s.Weights.Passing)), int64(s.Weights.Warning))
	b = appendBytes(append(b, flag(s.EnableTagOverride, 1)), s.Extra)
	return appendIndexes(b, s.CreateIndex, s.ModifyIndex)
}

func appendCheck(b []byte, c *Check) []byte {
	for _, s := range [...]string{c.Node, c.ID, c.Name, c.Status, c.Notes, c.Output, c.ServiceID, c.ServiceName} {
		b = appendString(b, s)
	}
	b = appendStrings(b, c.ServiceTags)
	b = appendString(appendString(appendString(b, c.Type), c.Interval), c.Timeout)
	b = appendBytes(binary.AppendVarint(b, int64(c.ExposedPort)), c.Definition)
	return appendIndexes(b, c.CreateIndex, c.ModifyIndex)
}

func appendSession(b []byte, s *Session) []byte {
	b = appendString(appendString(appendString(b, s.ID), s.Name), s.Node)
	b = binary.AppendVarint(b, s.LockDelay)
	b = appendStrings(appendString(appendString(b, s.Behavior), s.TTL), s.NodeChecks)
	b = binary.AppendUvarint(b, uint64(len(s.ServiceChecks)))
	for i := range s.ServiceChecks {
		b = appendString(appendString(b, s.ServiceChecks[i].ID), s.ServiceChecks[i].Namespace)
	}
	return appendIndexes(b, s.CreateIndex, s.ModifyIndex)
}

func appendIndexes(b []byte, create, modify uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, create), modify)
}

func appendList[T any](b []byte, list []T, one func([]byte, *T) []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for i := range list {
		b = one(b, &list[i])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendStrings(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

func appendTexts(b []byte, m map[string]string) []byte {
	b = binary.AppendUvarint(b, uint64(len(m)))
	if len(m) == 0 {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = appendString(appendString(b, k), m[k])
	}
	return b
}

func flag(on bool, bit byte) byte {
	if on {
		return bit
	}
	return 0
}
