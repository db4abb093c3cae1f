package catalog

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// checkRows holds the rows of the catalog against each other: every index row has what it is about and the other way
// round, and a topic of one thing is there only with the thing.
func (b *bench) checkRows() {
	b.t.Helper()
	have := map[string]string{}
	for id, s := range map[mvcc.SpaceID]*mvcc.Space{mvcc.SpaceConsulKV: b.kv, mvcc.SpaceCatalog: b.cat} {
		page, err := s.Read(b.e, mvcc.Query{Span: storage.Span{Start: []byte{0}}})
		if err != nil {
			b.t.Fatal(err)
		}
		for i := range page.KVs {
			kv := &page.KVs[i]
			if id == mvcc.SpaceConsulKV {
				p, err := readPair(kv)
				if err != nil {
					b.t.Fatal(err)
				}
				if p.Session != "" {
					have["want "+string(rowKey(tableLock, p.Session, p.Key))] = ""
				}
				continue
			}
			have["row "+string(kv.Key)] = ""
			for _, key := range b.implied(kv) {
				have["want "+string(key)] = ""
			}
		}
	}
	for key := range have {
		row, isRow := strings.CutPrefix(key, "row ")
		if !isRow {
			if _, ok := have["row "+key[len("want "):]]; !ok {
				b.t.Errorf("a row is missing: %q", key)
			}
			continue
		}
		if strings.IndexByte("UIKFGLQ", row[0]) >= 0 {
			if _, ok := have["want "+row]; !ok {
				b.t.Errorf("a row is left over: %q", row)
			}
		}
		if row[0] == tableTopic {
			by := map[byte]byte{topicNode: tableNode, topicNodeChecks: tableNode, topicNodeSessions: tableNode,
				topicInstances: tableInstance, topicServiceChecks: tableInstance}[row[1]]
			alive := by == 0
			for other := range have {
				alive = alive || strings.HasPrefix(other, "row "+string(by)+row[2:])
			}
			if !alive {
				b.t.Errorf("a topic is left over: %q", row)
			}
		}
	}
}

// implied returns the index rows that a row must have.
func (b *bench) implied(kv *mvcc.KV) [][]byte {
	var keys [][]byte
	var err error
	switch kv.Key[0] {
	case tableNode:
		var n Node
		if n, err = readNode(kv); n.ID != "" {
			keys = append(keys, rowKey(tableNodeID, fold(n.ID)))
		}
	case tableService:
		var s Service
		s, err = readService(kv)
		keys = append(keys, instanceKey(&s), rowKey(tableNode, fold(s.Node)), topicKey(topicInstances, fold(s.Name)))
	case tableCheck:
		var c Check
		c, err = readCheck(kv)
		keys = append(keys, rowKey(tableNode, fold(c.Node)), ownerKey(&c))
		if c.ServiceID != "" {
			keys = append(keys, rowKey(tableService, fold(c.Node), fold(c.ServiceID)))
		}
	case tableSession:
		var s Session
		s, err = readSession(kv)
		keys = append(s.indexKeys(), rowKey(tableNode, fold(s.Node)))
		for _, id := range s.checks() {
			keys = append(keys, rowKey(tableCheck, fold(s.Node), fold(id)))
		}
	case tableDelay:
		var parts []string
		parts, err = keyParts(kv.Key, 1)
		if err == nil {
			keys = append(keys, append(append([]byte{tableDelayEnd}, kv.Value...), appendPart(nil, parts[0])...))
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return keys
}

func TestParts(t *testing.T) {
	names := []string{"", "\x00", "\x00\x00", "\x00\x01", "\x01", "\x01\x00", "\x02", "a", "a\x00", "a\x00b", "a\x01", "ab", "b", "\xff", "\xff\xff"}
	if !slices.IsSorted(names) {
		t.Fatal("the names must be in order")
	}
	for i, name := range names {
		key := rowKey(tableService, name, "x")
		parts, err := keyParts(key, 2)
		if err != nil || parts[0] != name || parts[1] != "x" {
			t.Errorf("%q became %q: %v", name, parts, err)
		}
		if i > 0 && bytes.Compare(rowKey(tableService, names[i-1], "\xff"), key) >= 0 {
			t.Errorf("%q does not sort below %q", names[i-1], name)
		}
		if !rows(tableService, name).Contains(key) || i > 0 && rows(tableService, names[i-1]).Contains(key) {
			t.Errorf("the span of %q is wrong", name)
		}
	}
	for _, bad := range []string{"", "S", "Sa", "S\x01\x03\x00x\x00", "Sa\x00b\x00c\x00", "S\x01"} {
		if _, err := keyParts([]byte(bad), 2); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
	for in, want := range map[string]string{"": "", "abc": "abc", "ABC": "abc", "xYz-\u00c4\u0130": "xyz-\u00c4\u0130"} {
		if fold(in) != want {
			t.Errorf("%q folds to %q", in, fold(in))
		}
	}
}

// TestDelaysAreDropped: keys that are locked once and never again leave nothing behind, however many there are.
func TestDelaysAreDropped(t *testing.T) {
	b := newBench(t)
	b.must(node("n1"))
	rowsOf := func(table byte) int {
		page, err := b.cat.Read(b.e, mvcc.Query{Span: under([]byte{table})})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.KVs)
	}
	for i := range 40 {
		s := session(fmt.Sprintf("s%02d", i), "n1")
		s.Session.LockDelay, s.Session.Behavior = 1, "delete"
		b.time += 10
		b.must(s)
		ops := []Op{}
		for j := range 8 {
			ops = append(ops, pairOp(KVLock, fmt.Sprintf("k%d/%d", i, j), "", s.Session.ID))
		}
		b.must(append(ops, destroy(s.Session.ID))...)
		if n := rowsOf(tableDelay); n > 16 || n != rowsOf(tableDelayEnd) {
			t.Fatalf("%d delays, %d ends of them", n, rowsOf(tableDelayEnd))
		}
	}
	b.checkRows()
	if n := rowsOf(tableLock); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestLongestDelay: a delay of centuries neither overflows nor is shorter than asked for.
func TestLongestDelay(t *testing.T) {
	for _, start := range []int64{0, 1 << 62, math.MaxInt64 - 10} {
		b := newBench(t)
		b.time = start
		s := session("s1", "n1")
		s.Session.LockDelay = math.MaxInt64
		b.must(node("n1"), s, session("s2", "n1"), pairOp(KVLock, "k", "", "s1"), destroy("s1"))
		b.time = start + min(math.MaxInt64/1_000_000, math.MaxInt64-start-1)
		b.fails(map[int]string{0: `failed to lock key "k" due to lock delay`}, pairOp(KVLock, "k", "", "s2"))
		b.time++
		b.must(pairOp(KVLock, "k", "", "s2"))
		s.Session.LockDelay = -1
		b.fails(map[int]string{0: "Invalid LockDelay '-1': it must not be negative"}, s)
	}
}

// TestBounds: what one batch may make a member read and hold is bounded.
func TestBounds(t *testing.T) {
	b := newBench(t)
	value := strings.Repeat("v", 1<<20)
	for i := range 20 {
		b.must(set(fmt.Sprintf("big/%02d", i), value))
	}
	b.fails(map[int]string{0: tooLarge}, pairOp(KVGetTree, "big/", "", ""))
	var gets []Op
	want := map[int]string{}
	for i := range 20 {
		gets = append(gets, pairOp(KVGet, "big/00", "", ""))
		if i > 14 {
			want[i] = tooLarge
		}
	}
	b.fails(want, gets...)
	if out := b.must(gets[:15]...); len(out.Results) != 15 || out.Index != 0 {
		t.Errorf("%d results, index %d", len(out.Results), out.Index)
	}
	b.must(pairOp(KVDeleteTree, "big/", "", ""))
	if a := b.look(QueryPairs, ""); len(a.Pairs) != 0 {
		t.Errorf("%d pairs are left", len(a.Pairs))
	}
	// The walk of trees is bounded apart from what it finds.
	for i := range 10 {
		b.must(set(fmt.Sprintf("t/%d", i), ""))
	}
	batch := b.e.NewBatch()
	defer batch.Close()
	kv, cat := b.kv.NewWriter(b.e, batch), b.cat.NewWriter(b.e, batch)
	a := newApplication(kv, cat, 0, false)
	a.visits = 25
	for i, want := range []error{nil, nil, errTooMuch, errTooMuch} {
		if f, err := a.deleteTree("t/"); err != want || f != nil {
			t.Errorf("walk %d: %v %v", i, f, err)
		}
	}
	for _, w := range []*mvcc.Writer{kv, cat} { // gives back what the writers hold
		if _, err := w.Finish(); err != nil {
			t.Error(err)
		}
	}
}

// TestTotal: operations without a form are answered, not obeyed.
func TestTotal(t *testing.T) {
	b := newBench(t)
	for i, op := range []Op{
		{}, {Verb: 200, Pair: &Pair{Key: "a"}}, {Verb: KVSet}, {Verb: KVSet, Node: &Node{Name: "a"}}, {Verb: NodeSet, Pair: &Pair{Key: "a"}},
		{Verb: KVSet, Pair: &Pair{Key: "a"}, Node: &Node{Name: "a"}}, {Verb: NodeGet, Node: &Node{Name: "a"}, SkipNodeUpdate: true},
		{Verb: SessionCreate}, {Verb: CheckSet}, {Verb: ServiceDelete}, {Pair: &Pair{Key: "a"}},
	} {
		if op.WellFormed() {
			t.Errorf("operation %d is well-formed", i)
		}
		b.fails(map[int]string{0: "malformed operation"}, op)
	}
	if out := b.do(); len(out.Failures) != 0 || out.Index != 0 {
		t.Errorf("a batch of nothing: %+v", out)
	}
	for v := KVSet; v <= SessionExpire; v++ {
		op := Op{Verb: v, Pair: &Pair{}, Node: &Node{}, Service: &Service{}, Check: &Check{}, Session: &Session{}}
		switch v.subject() {
		case subjectPair:
			op = Op{Verb: v, Pair: op.Pair}
		case subjectNode:
			op = Op{Verb: v, Node: op.Node}
		case subjectService:
			op = Op{Verb: v, Service: op.Service}
		case subjectCheck:
			op = Op{Verb: v, Check: op.Check}
		case subjectSession:
			op = Op{Verb: v, Session: op.Session}
		}
		out := b.do(op)
		trees := v == KVGetTree || v == KVDeleteTree || v == NodeGet
		if failed := len(out.Failures) > 0; failed == (trees && v != NodeGet) || !op.WellFormed() {
			t.Errorf("verb %d with an empty field: %+v", v, out)
		}
		if v.Grows() && !v.Writes() {
			t.Errorf("verb %d grows without writing", v)
		}
	}
	if _, err := Look(b.e, b.kv, b.cat, Query{}); err == nil {
		t.Error("a query of no kind is answered")
	}
	if space, spans := Watched(Query{Kind: 200}); space != 0 || spans != nil {
		t.Error("a query of no kind is watched")
	}
	if a := b.look(QueryPair, ""); len(a.Pairs) != 0 || a.Index != 1 {
		t.Errorf("the empty key: %+v", a)
	}
}

// TestLookIsOneState: an answer taken from the engine while batches go on is of one revision.
func TestLookIsOneState(t *testing.T) {
	b := newBench(t)
	b.must(node("n1"))
	stop, found := make(chan struct{}), make(chan error)
	go func() {
		last := uint64(0)
		for {
			select {
			case <-stop:
				found <- nil
				return
			default:
			}
			a, err := Look(b.e, b.kv, b.cat, Query{Kind: QueryInstances, Name: "web"})
			if err == nil && len(a.Instances) == 2 {
				x, y := a.Instances[0].Service, a.Instances[1].Service
				if x.Port != y.Port || x.ModifyIndex != a.Index || a.Index < last {
					err = fmt.Errorf("port %d at %d beside port %d at %d, index %d after %d", x.Port, x.ModifyIndex, y.Port, y.ModifyIndex, a.Index, last)
				}
				last = a.Index
			}
			if err != nil {
				found <- err
				return
			}
		}
	}()
	for i := range 300 {
		b.must(Op{Verb: ServiceSet, Service: &Service{Node: "n1", ID: "a", Name: "web", Port: i}},
			Op{Verb: ServiceSet, Service: &Service{Node: "n1", ID: "b", Name: "web", Port: i}})
	}
	close(stop)
	if err := <-found; err != nil {
		t.Fatal(err)
	}
}
