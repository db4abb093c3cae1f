package catalog

import (
	"encoding/binary"
	"fmt"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// The tables of SpaceCatalog: the first byte of a key. They are on disk.
const (
	tableNode      = 'N' // node                    -> Node
	tableNodeID    = 'U' // node's id               -> name of the node
	tableService   = 'S' // node, service id        -> Service
	tableInstance  = 'I' // service, node, id       -> nothing: instances by the name of their service
	tableCheck     = 'C' // node, check id          -> Check
	tableOwnCheck  = 'K' // node, service id, check -> nothing: checks by their service, or none if they are the node's
	tableSession   = 'E' // session                 -> Session
	tableNodeSess  = 'F' // node, session           -> nothing: sessions by node
	tableCheckSess = 'G' // node, check, session     -> nothing: sessions by the checks that they depend on
	tableLock      = 'L' // session, key            -> nothing: what the session holds
	tableDelay     = 'D' // key                     -> until when it cannot be locked
	tableDelayEnd  = 'Q' // until, key              -> nothing: delays in the order of their ends
	tableTopic     = 'T' // topic, name             -> nothing: changes when what the topic is about changes
)

// The topics: the second byte of a topic's key. A topic of one thing lives as long as the thing.
const (
	topicNodes         = 'n' // all nodes
	topicNode          = 'N' // one node and its services
	topicServices      = 's' // names, tags and nodes of all services
	topicInstances     = 'i' // the instances of a service, with their nodes and checks
	topicServiceChecks = 'c' // the checks of a service
	topicNodeChecks    = 'h' // the checks of a node and of its services
	topicStates        = 'a' // the checks in a state, or in any
	topicSessions      = 'e' // all sessions
	topicNodeSessions  = 'f' // the sessions of a node
)

const anyState = "any"

const rowVersion = 1

// fold makes of a name what rows are found by: nodes, services, checks and their ids are the same whatever the case of
// ASCII letters, as DNS asks for them. Letters beyond ASCII stay as they are: what their lower case is changes with the
// tables of a build, and members may differ in theirs.
func fold(name string) string {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				if c := b[i]; c >= 'A' && c <= 'Z' {
					b[i] = c + ('a' - 'A')
				}
			}
			return string(b)
		}
	}
	return name
}

// appendPart appends a name so that it ends where no other name goes on, and so that names sort as they are: 0 becomes
// 01 01, 1 becomes 01 02, and 0 ends it.
func appendPart(b []byte, part string) []byte {
	for i := 0; i < len(part); i++ {
		if c := part[i]; c <= 1 {
			b = append(b, 1, c+1)
		} else {
			b = append(b, c)
		}
	}
	return append(b, 0)
}

// cutPart reads what appendPart wrote.
func cutPart(b []byte) (part string, rest []byte, err error) {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == 0:
			return string(out), b[i+1:], nil
		case b[i] == 1 && i+1 < len(b) && (b[i+1] == 1 || b[i+1] == 2):
			i++
			out = append(out, b[i]-1)
		case b[i] == 1:
			return "", nil, corrupt("key")
		default:
			out = append(out, b[i])
		}
	}
	return "", nil, corrupt("key")
}

func rowKey(table byte, parts ...string) []byte {
	n := 1
	for _, p := range parts {
		n += len(p) + 1
	}
	b := append(make([]byte, 0, n), table)
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return b
}

func topicKey(topic byte, name string) []byte {
	return appendPart(append(make([]byte, 0, len(name)+3), tableTopic, topic), name)
}

func delayEndKey(until int64, key string) []byte {
	b := append(make([]byte, 0, len(key)+10), tableDelayEnd)
	return appendPart(binary.BigEndian.AppendUint64(b, uint64(until)), key)
}

// under returns the span of all keys that begin with prefix.
func under(prefix []byte) storage.Span {
	end := append([]byte{}, prefix...)
	for len(end) > 0 {
		if end[len(end)-1]++; end[len(end)-1] != 0 {
			return storage.Span{Start: prefix, End: end}
		}
		end = end[:len(end)-1]
	}
	return storage.Span{Start: prefix}
}

// rows returns the span of the rows of table whose first parts are these.
func rows(table byte, parts ...string) storage.Span { return under(rowKey(table, parts...)) }

// tree returns the span of the pairs whose keys begin with prefix.
func tree(prefix string) storage.Span {
	if prefix == "" {
		return storage.Span{Start: []byte{0}}
	}
	return under([]byte(prefix))
}

func corrupt(what string) error {
	return fmt.Errorf("catalog: row of a %s: %w", what, storage.ErrCorrupt)
}

// pairHead is what a pair's row holds before its value: version, flags, lock index, session.
func pairRow(p *Pair) []byte {
	b := make([]byte, 0, 1+2*binary.MaxVarintLen64+2+len(p.Session)+len(p.Value))
	b = binary.AppendUvarint(append(b, rowVersion), p.Flags)
	b = appendString(binary.AppendUvarint(b, p.LockIndex), p.Session)
	return append(b, p.Value...)
}

// readPair reads a pair; its value aliases the row.
func readPair(kv *mvcc.KV) (Pair, error) {
	p := Pair{Key: string(kv.Key), CreateIndex: uint64(kv.CreateRevision), ModifyIndex: uint64(kv.ModRevision)}
	d := decoder{b: kv.Value}
	if d.byte() != rowVersion {
		return p, corrupt("pair")
	}
	p.Flags, p.LockIndex, p.Session = d.uvarint(), d.uvarint(), d.string()
	if d.bad {
		return p, corrupt("pair")
	}
	if len(d.b) > 0 {
		p.Value = d.b
	}
	return p, nil
}

// The rows of the catalog hold their structs without the indexes: these are the revisions of the row.

func nodeRow(n Node) []byte {
	n.CreateIndex, n.ModifyIndex = 0, 0
	return appendNode([]byte{rowVersion}, &n)
}

func serviceRow(s Service) []byte {
	s.CreateIndex, s.ModifyIndex = 0, 0
	return appendService([]byte{rowVersion}, &s)
}

func checkRow(c Check) []byte {
	c.CreateIndex, c.ModifyIndex = 0, 0
	return appendCheck([]byte{rowVersion}, &c)
}

func sessionRow(s Session) []byte {
	s.CreateIndex, s.ModifyIndex = 0, 0
	return appendSession([]byte{rowVersion}, &s)
}

func readRow[T any](kv *mvcc.KV, what string, v *T, one func(*decoder, *T)) error {
	d := decoder{b: kv.Value}
	if d.byte() != rowVersion {
		return corrupt(what)
	}
	one(&d, v)
	if d.bad || len(d.b) != 0 {
		return corrupt(what)
	}
	return nil
}

func readNode(kv *mvcc.KV) (n Node, err error) {
	err = readRow(kv, "node", &n, (*decoder).node)
	n.CreateIndex, n.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	return n, err
}

func readService(kv *mvcc.KV) (s Service, err error) {
	err = readRow(kv, "service", &s, (*decoder).service)
	s.CreateIndex, s.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	return s, err
}

func readCheck(kv *mvcc.KV) (c Check, err error) {
	err = readRow(kv, "check", &c, (*decoder).check)
	c.CreateIndex, c.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	return c, err
}

func readSession(kv *mvcc.KV) (s Session, err error) {
	err = readRow(kv, "session", &s, (*decoder).session)
	s.CreateIndex, s.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	return s, err
}

// lastParts returns the parts of a row's key after the table byte.
func keyParts(key []byte, n int) ([]string, error) {
	if len(key) == 0 {
		return nil, corrupt("key")
	}
	parts, rest := make([]string, n), key[1:]
	var err error
	for i := range parts {
		if parts[i], rest, err = cutPart(rest); err != nil {
			return nil, err
		}
	}
	if len(rest) != 0 {
		return nil, corrupt("key")
	}
	return parts, nil
}

// SessionChange reports whether an event of SpaceCatalog is the beginning of a session, with the session, or the end of
// one, with its ID only.
func SessionChange(e *mvcc.Event) (s Session, ended, ok bool, err error) {
	if len(e.KV.Key) == 0 || e.KV.Key[0] != tableSession {
		return Session{}, false, false, nil
	}
	if e.Type == mvcc.EventPut {
		s, err = readSession(&e.KV)
		return s, false, err == nil, err
	}
	parts, err := keyParts(e.KV.Key, 1)
	if err != nil {
		return Session{}, false, false, err
	}
	return Session{ID: parts[0]}, true, true, nil
}
