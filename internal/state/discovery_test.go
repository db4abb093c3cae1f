package state

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// discoveryBench is a bench whose cluster knows the catalog, with two nodes, a service, checks and a session on each.
func discoveryBench(t testing.TB) *bench {
	b := newBench(t)
	for _, m := range threeMembers() {
		b.must(&MemberPublish{ID: m.ID, Name: "m", FeatureLevel: MaxLevel})
	}
	b.must(&RaiseLevel{Level: levelDiscovery})
	for _, n := range []string{"agent", "other"} {
		b.discover(policy.NewSystem("test"),
			catalog.Op{Verb: catalog.NodeSet, Node: &catalog.Node{Name: n, Address: "10.0.0.1", ID: "id-" + n}},
			catalog.Op{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: n, ID: "web", Name: "web"}},
			catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: n, ID: catalog.SerfHealth, Status: catalog.Passing}},
			catalog.Op{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: "s-" + n, Node: n, TTL: "10s"}})
	}
	return b
}

// discover applies a batch of operations that must succeed.
func (b *bench) discover(who policy.Principal, ops ...catalog.Op) *catalog.Outcome {
	b.t.Helper()
	r := b.do(who, &Discovery{Ops: ops})
	if r.Err != nil {
		b.t.Fatal(r.Err)
	}
	out := r.Value.(*catalog.Outcome)
	if len(out.Failures) > 0 {
		b.t.Fatalf("failures %+v", out.Failures)
	}
	return out
}

func (b *bench) look(kind catalog.Kind, name string) catalog.Answer {
	b.t.Helper()
	a, err := catalog.Look(b.engine, b.machine.Space(mvcc.SpaceConsulKV), b.machine.Space(mvcc.SpaceCatalog), catalog.Query{Kind: kind, Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func kvSet(key, value string) catalog.Op {
	return catalog.Op{Verb: catalog.KVSet, Pair: &catalog.Pair{Key: key, Value: []byte(value)}}
}

// TestDiscoveryRights is the table of who may do what in Consul's spaces. The early check and Apply must agree on each.
func TestDiscoveryRights(t *testing.T) {
	nodeOp := func(verb catalog.Verb, name, id string) catalog.Op {
		return catalog.Op{Verb: verb, Node: &catalog.Node{Name: name, ID: id}}
	}
	serviceOp := func(verb catalog.Verb, node string) catalog.Op {
		return catalog.Op{Verb: verb, Service: &catalog.Service{Node: node, ID: "web", Name: "web"}}
	}
	checkOp := func(verb catalog.Verb, node string) catalog.Op {
		return catalog.Op{Verb: verb, Check: &catalog.Check{Node: node, ID: catalog.SerfHealth}}
	}
	sessionOp := func(verb catalog.Verb, id, node string) catalog.Op {
		return catalog.Op{Verb: verb, Session: &catalog.Session{ID: id, Node: node}}
	}
	everyone := []string{"open", "openclient", "agent", "client", "admin", "sys", "member", "nobody"}
	all, allButSystem := "open openclient admin sys member", "sys"
	withAgent := all + " agent"
	cases := map[string]struct {
		ops []catalog.Op
		who string
	}{
		"set a pair":                {[]catalog.Op{kvSet("a", "1")}, all},
		"read a pair":               {[]catalog.Op{{Verb: catalog.KVGet, Pair: &catalog.Pair{Key: "a"}}}, all},
		"set own node":              {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", "")}, withAgent},
		"set own node and id":       {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", "id-agent")}, withAgent},
		"take a free id":            {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", "ID-new")}, withAgent},
		"take another's id":         {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", "ID-OTHER")}, all},
		"cas with another's id":     {[]catalog.Op{nodeOp(catalog.NodeCAS, "agent", "id-other")}, all},
		"own node in capitals":      {[]catalog.Op{nodeOp(catalog.NodeSet, "AGENT", "")}, all},
		"set another node":          {[]catalog.Op{nodeOp(catalog.NodeSet, "other", "")}, all},
		"set a node of no name":     {[]catalog.Op{nodeOp(catalog.NodeSet, "", "")}, all},
		"set a new node":            {[]catalog.Op{nodeOp(catalog.NodeSet, "new", "")}, all},
		"delete own node":           {[]catalog.Op{nodeOp(catalog.NodeDelete, "agent", "")}, withAgent},
		"delete another node":       {[]catalog.Op{nodeOp(catalog.NodeDelete, "other", "")}, all},
		"read another node":         {[]catalog.Op{nodeOp(catalog.NodeGet, "other", "")}, withAgent},
		"own service":               {[]catalog.Op{serviceOp(catalog.ServiceSet, "agent")}, withAgent},
		"another's service":         {[]catalog.Op{serviceOp(catalog.ServiceSet, "other")}, all},
		"delete another's service":  {[]catalog.Op{serviceOp(catalog.ServiceDelete, "other")}, all},
		"read another's service":    {[]catalog.Op{serviceOp(catalog.ServiceGet, "other")}, withAgent},
		"own check":                 {[]catalog.Op{checkOp(catalog.CheckSet, "agent")}, withAgent},
		"another's check":           {[]catalog.Op{checkOp(catalog.CheckSet, "other")}, all},
		"cas another's check":       {[]catalog.Op{checkOp(catalog.CheckCAS, "other")}, all},
		"delete another's check":    {[]catalog.Op{checkOp(catalog.CheckDelete, "other")}, all},
		"read another's check":      {[]catalog.Op{checkOp(catalog.CheckGet, "other")}, withAgent},
		"own session":               {[]catalog.Op{sessionOp(catalog.SessionCreate, "new", "agent")}, withAgent},
		"another's session":         {[]catalog.Op{sessionOp(catalog.SessionCreate, "new", "other")}, all},
		"destroy own session":       {[]catalog.Op{sessionOp(catalog.SessionDestroy, "s-agent", "")}, withAgent},
		"destroy another's session": {[]catalog.Op{sessionOp(catalog.SessionDestroy, "s-other", "agent")}, all},
		"destroy an unknown one":    {[]catalog.Op{sessionOp(catalog.SessionDestroy, "nosuch", "")}, withAgent},
		"expire":                    {[]catalog.Op{sessionOp(catalog.SessionExpire, "s-agent", "agent")}, allButSystem},
		"own, then another's":       {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", ""), serviceOp(catalog.ServiceSet, "other")}, all},
		"own, then a pair":          {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", ""), kvSet("a", "1")}, all},
		"own, then expire":          {[]catalog.Op{nodeOp(catalog.NodeSet, "agent", ""), sessionOp(catalog.SessionExpire, "s", "")}, allButSystem},
		"a pair beside a node":      {[]catalog.Op{{Verb: catalog.NodeGet, Node: &catalog.Node{Name: "agent"}, Pair: &catalog.Pair{Key: "a"}}}, all},
		"a node of another field":   {[]catalog.Op{{Verb: catalog.ServiceSet, Node: &catalog.Node{Name: "agent"}}}, all},
		"nothing":                   {nil, all},
	}
	for name, c := range cases {
		for _, who := range everyone {
			b := discoveryBench(t)
			p, r := principal(who), &Discovery{Ops: c.ops}
			want := false
			for _, w := range strings.Fields(c.who) {
				want = want || w == who
			}
			early := b.machine.Authorize(p, r)
			a := application{m: b.machine, batch: b.machine.batch, auth: b.machine.auth.Load()}
			rights := authority{auth: a.auth, catalog: &a}
			late, err := rights.request(&p, r)
			if err != nil {
				t.Fatal(err)
			}
			for id, w := range a.writers {
				if w != nil { // gives back what it holds
					b.machine.spaces[id].NewWriter(b.engine, b.machine.batch)
				}
			}
			if (early == nil) != want || (late == nil) != want {
				t.Errorf("%s by %s: early %v, in Apply %v", name, who, early, late)
			}
			if early != nil && !errors.Is(early, ErrPermissionDenied) {
				t.Errorf("%s by %s: %v", name, who, early)
			}
			if early != nil && p.Kind() != policy.Nobody && fault.From(early).Hint == "" {
				t.Errorf("%s by %s is refused without a hint", name, who)
			}
		}
	}
	b := discoveryBench(t)
	b.must(parse("user-add root x").request())
	b.must(parse("role-add root").request())
	b.must(parse("user-grant root root").request())
	b.must(parse("auth-on").request())
	if err := b.machine.Authorize(principal("open"), &Discovery{Ops: []catalog.Op{kvSet("a", "1")}}); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("an open principal while user authentication is on: %v", err)
	}
}

// TestLookupRights: questions need the right too, also questions about what does not exist.
func TestLookupRights(t *testing.T) {
	b := discoveryBench(t)
	for kind := catalog.QueryPair; kind <= catalog.QuerySessions; kind++ {
		pairs := kind <= catalog.QueryKeys
		for who, want := range map[string]bool{
			"open": true, "openclient": true, "admin": true, "sys": true, "member": true, "agent": !pairs, "client": false, "nobody": false,
		} {
			err := b.machine.AuthorizeLookup(principal(who), catalog.Query{Kind: kind, Name: "x"})
			if (err == nil) != want || err != nil && !errors.Is(err, ErrPermissionDenied) {
				t.Errorf("question %d by %s: %v", kind, who, err)
			}
		}
	}
	if err := b.machine.AuthorizeLookup(principal("sys"), catalog.Query{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a question of no kind: %v", err)
	}
}

// TestAgentsIDWithinOneEntry: what an agent may do is judged by the state that its operation meets in the log, not by the
// one that the early check saw.
func TestAgentsIDWithinOneEntry(t *testing.T) {
	b := discoveryBench(t)
	agent := principal("agent")
	steal := &Discovery{Ops: []catalog.Op{{Verb: catalog.NodeSet, Node: &catalog.Node{Name: "agent", Address: "x", ID: "fresh"}}}}
	if err := b.machine.Authorize(agent, steal); err != nil {
		t.Fatal(err)
	}
	out := b.apply(b.encode(
		Call{policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{{Verb: catalog.NodeSet, Node: &catalog.Node{Name: "third", ID: "FRESH"}}}}},
		Call{agent, steal},
		Call{agent, &Discovery{Ops: []catalog.Op{{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: "s-agent"}}}}},
	))
	results := out.Batches[0].Results
	if results[0].Err != nil || !errors.Is(results[1].Err, ErrPermissionDenied) || results[2].Err != nil {
		t.Errorf("%v, %v, %v", results[0].Err, results[1].Err, results[2].Err)
	}
	if a := b.look(catalog.QueryNode, "third"); len(a.Nodes) != 1 {
		t.Error("the node was renamed away")
	}
}

// TestDiscoveryFollows: events of both spaces, effects of sessions, and nothing where nothing changed.
func TestDiscoveryFollows(t *testing.T) {
	b := discoveryBench(t)
	sys := policy.NewSystem("test")
	lock := catalog.Op{Verb: catalog.KVLock, Pair: &catalog.Pair{Key: "l", Session: "s-agent"}}
	create := catalog.Op{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: "s3", Node: "agent", TTL: "30s"}}
	destroy := func(id string) catalog.Op {
		return catalog.Op{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: id}}
	}
	missing := catalog.Op{Verb: catalog.KVGet, Pair: &catalog.Pair{Key: "nokey"}}
	for i, c := range []struct {
		ops    []catalog.Op
		spaces string
		effect []SessionEffect
	}{
		{[]catalog.Op{kvSet("a", "1")}, "2", nil},
		{[]catalog.Op{kvSet("a", "1")}, "", nil},
		{[]catalog.Op{kvSet("a", "2"), create, missing}, "", nil},
		{[]catalog.Op{missing}, "", nil},
		{[]catalog.Op{lock}, "2 3", nil},
		{[]catalog.Op{create}, "3", []SessionEffect{{ID: "s3", TTL: "30s"}}},
		{[]catalog.Op{destroy("s-agent")}, "2 3", []SessionEffect{{ID: "s-agent", Ended: true}}},
		{[]catalog.Op{destroy("s-agent")}, "", nil},
		{[]catalog.Op{{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: "agent"}}}, "3", []SessionEffect{{ID: "s3", Ended: true}}},
	} {
		before := map[mvcc.SpaceID]int64{}
		for _, id := range mvcc.Spaces() {
			before[id] = b.machine.Space(id).Revision()
		}
		out := b.apply(b.encode(Call{sys, &Discovery{Ops: c.ops}}))
		spaces := ""
		for _, id := range mvcc.Spaces() {
			moved := b.machine.Space(id).Revision() - before[id]
			if moved != int64(len(out.Events[id])) || moved > 1 {
				t.Errorf("step %d: space %d moved by %d with %d revisions of events", i, id, moved, len(out.Events[id]))
			}
			if moved > 0 {
				spaces = strings.TrimSpace(fmt.Sprintf("%s %d", spaces, id))
			}
		}
		if spaces != c.spaces || !reflect.DeepEqual(out.Effects.Sessions, c.effect) {
			t.Errorf("step %d: spaces %q, sessions %+v", i, spaces, out.Effects.Sessions)
		}
	}
	if b.machine.Space(mvcc.SpaceEtcd).Revision() != 1 {
		t.Error("the store of etcd's clients moved")
	}
}

// TestDiscoveryRefused: level, form, alarms.
func TestDiscoveryRefused(t *testing.T) {
	young := newBench(t)
	refusedWith(t, young.do(policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{kvSet("a", "1")}}), ErrFeatureLevel)
	b := discoveryBench(t)
	sys := policy.NewSystem("x")
	refusedWith(t, b.do(sys, &Discovery{}), ErrMalformed)
	many := make([]catalog.Op, MaxDiscoveryOps+1)
	for i := range many {
		many[i] = kvSet("a", "1")
	}
	refusedWith(t, b.do(sys, &Discovery{Ops: many}), ErrTooManyOps)
	b.discover(sys, many[1:]...)
	for _, op := range []catalog.Op{{}, {Verb: catalog.KVSet}, {Verb: catalog.NodeSet, Pair: &catalog.Pair{}}} {
		if Validate(&Discovery{Ops: []catalog.Op{op}}) == nil {
			t.Errorf("%+v is valid", op)
		}
	}
	remove := catalog.Op{Verb: catalog.KVDelete, Pair: &catalog.Pair{Key: "a"}}
	b.must(parse("alarm raise nospace 1").request())
	refusedWith(t, b.do(sys, &Discovery{Ops: []catalog.Op{kvSet("b", "1")}}), ErrNoSpace)
	refusedWith(t, b.do(sys, &Discovery{Ops: []catalog.Op{remove, kvSet("b", "1")}}), ErrNoSpace)
	b.discover(sys, remove, catalog.Op{Verb: catalog.SessionExpire, Session: &catalog.Session{ID: "s-agent"}})
	b.must(parse("alarm lower nospace 1").request())
	b.must(parse("alarm raise corrupt 1").request())
	refusedWith(t, b.do(sys, &Discovery{Ops: []catalog.Op{remove}}), ErrCorrupt)
}

// TestDiscoveryDeterminism: alone or many at once, and from a snapshot, every member has the same state and answers.
func TestDiscoveryDeterminism(t *testing.T) {
	one, many := discoveryBench(t), discoveryBench(t)
	sys := policy.NewSystem("x")
	statuses := []string{catalog.Passing, catalog.Warning, catalog.Critical}
	var entries []Entry
	for i := range 60 {
		name := fmt.Sprintf("n%d", i%4)
		ops := []catalog.Op{
			{Verb: catalog.NodeSet, Node: &catalog.Node{Name: name, Address: fmt.Sprint(i % 3), Meta: map[string]string{"b": "1", "a": "2", "c": "3"}}},
			{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: name, ID: fmt.Sprint(i % 2), Name: "web", Tags: []string{name}}},
			{Verb: catalog.CheckSet, Check: &catalog.Check{Node: name, ID: "c", Status: statuses[i%3]}},
		}
		id := fmt.Sprintf("s%d", i)
		locks := []catalog.Op{
			{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: id, Node: name, LockDelay: 2_000_000}},
			{Verb: catalog.KVLock, Pair: &catalog.Pair{Key: fmt.Sprint("lock", i%3), Value: []byte(id), Session: id}},
		}
		end := []catalog.Op{{Verb: catalog.SessionDestroy, Session: &catalog.Session{ID: fmt.Sprintf("s%d", i-2)}}, kvSet("k", id)}
		e := one.encode(Call{sys, &Discovery{Ops: ops}}, Call{sys, &Discovery{Ops: locks}}, Call{sys, &Discovery{Ops: end}}, Call{sys, etcdPut("k", id)})
		one.apply(e)
		entries = append(entries, e)
		if i%7 == 6 {
			many.apply(entries...)
			entries = nil
		}
		if i == 30 {
			one.reopen()
		}
	}
	many.apply(entries...)
	if one.hash() != many.hash() {
		t.Error("the same entries make different states")
	}
	var stream bytes.Buffer
	if _, err := one.machine.WriteSnapshot(&stream); err != nil {
		t.Fatal(err)
	}
	e := openEngine(t, vfs.NewMem())
	defer e.Close()
	if _, err := ReadSnapshot(&stream, e); err != nil {
		t.Fatal(err)
	}
	m, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	restored := &bench{t: t, engine: e, machine: m}
	if restored.hash() != one.hash() {
		t.Error("the snapshot makes another state")
	}
	for kind := catalog.QueryPair; kind <= catalog.QuerySessions; kind++ {
		for _, name := range []string{"", "k", "lock1", "n1", "web", "any", "s59"} {
			a, b, c := one.look(kind, name), many.look(kind, name), restored.look(kind, name)
			if !reflect.DeepEqual(a, b) || !reflect.DeepEqual(a, c) {
				t.Errorf("question %d %q: %+v, %+v, %+v", kind, name, a, b, c)
			}
		}
	}
	// The restored member goes on as the others do: locks, delays and sessions are the same for it.
	next := one.encode(Call{sys, &Discovery{Ops: []catalog.Op{{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: "n3"}}}}})
	one.apply(next)
	restored.apply(next)
	if restored.hash() != one.hash() {
		t.Error("the restored member goes another way")
	}
}

// TestCompactionOfConsulsSpaces: compaction of one space leaves the others alone.
func TestCompactionOfConsulsSpaces(t *testing.T) {
	b := discoveryBench(t)
	b.discover(policy.NewSystem("x"), kvSet("a", "1"))
	b.discover(policy.NewSystem("x"), kvSet("a", "2"))
	b.discover(policy.NewSystem("x"), catalog.Op{Verb: catalog.KVDelete, Pair: &catalog.Pair{Key: "a"}})
	etcd := b.machine.Space(mvcc.SpaceEtcd).CompactRevision()
	if a := b.look(catalog.QueryPair, "a"); a.Index != 4 {
		t.Errorf("index %d of a deleted pair", a.Index)
	}
	b.must(&Compact{Space: mvcc.SpaceConsulKV, Revision: 4})
	b.must(&Compact{Space: mvcc.SpaceCatalog, Revision: b.machine.Space(mvcc.SpaceCatalog).Revision()})
	if a := b.look(catalog.QueryPair, "a"); a.Index != 1 {
		t.Errorf("index %d after compaction", a.Index)
	}
	if a := b.look(catalog.QueryNodes, ""); len(a.Nodes) != 2 || a.Index < 2 {
		t.Errorf("%+v after compaction", a)
	}
	if b.machine.Space(mvcc.SpaceEtcd).CompactRevision() != etcd {
		t.Error("the store of etcd's clients was compacted")
	}
	if _, err := b.machine.Space(mvcc.SpaceConsulKV).LastModified(b.engine, storage.Span{Start: []byte{0}}); err != nil {
		t.Error(err)
	}
}

func sampleDiscovery(t testing.TB) ([]Call, []byte) {
	calls := []Call{
		{principal("agent"), &Discovery{Ops: []catalog.Op{
			{Verb: catalog.NodeSet, Node: &catalog.Node{Name: "n", ID: "id", Address: "a", Meta: map[string]string{"b": "", "a": "1"}}, SkipNodeUpdate: true},
			{Verb: catalog.ServiceSet, Service: &catalog.Service{Node: "n", ID: "i", Name: "web", Port: 80, Tags: []string{"t"}, Weights: catalog.Weights{Passing: 1, Warning: 1}}},
			{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "n", ID: "c", Status: catalog.Passing, ServiceID: "i", Definition: []byte("{}")}},
		}}},
		{policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{
			{Verb: catalog.SessionCreate, Session: &catalog.Session{ID: "s", Node: "n", LockDelay: 15_000_000_000, TTL: "10s", NodeChecks: []string{"serfHealth"}}},
			{Verb: catalog.KVLock, Pair: &catalog.Pair{Key: "k", Value: []byte("v"), Flags: 300, Session: "s"}},
			{Verb: catalog.KVDeleteTree, Pair: &catalog.Pair{}},
			{Verb: catalog.SessionExpire, Session: &catalog.Session{ID: "s"}},
		}}},
		{policy.NewSystem("x"), &Discovery{}},
	}
	data, err := EncodeBatch(Proposal{Member: 1, Boot: 2, Seq: 3}, calls)
	if err != nil {
		t.Fatal(err)
	}
	return calls, data
}

// TestDiscoveryForm: the form in the log is read as it was written, in that form only, and stays what it is.
func TestDiscoveryForm(t *testing.T) {
	calls, data := sampleDiscovery(t)
	batch, err := DecodeBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for i, c := range batch.calls() {
		if !reflect.DeepEqual(c, calls[i]) {
			t.Errorf("request %d came back as %+v", i, c.Request)
		}
		size += Size(calls[i].Request)
	}
	if size+3*160 < len(data) {
		t.Errorf("%d bytes, told were %d", len(data), size)
	}
	for n := range data {
		if _, err := DecodeBatch(data[:n]); !errors.Is(err, ErrDecode) {
			t.Fatalf("the first %d of %d bytes are read: %v", n, len(data), err)
		}
	}
	const file = "testdata/discovery-v1.hex"
	text, err := os.ReadFile(file)
	if err != nil && os.Getenv("HOLDFAST_WRITE_GOLDEN") != "" {
		text, err = []byte(hex.Dump(data)), os.WriteFile(file, []byte(hex.Dump(data)), 0o644)
	}
	if err != nil || hex.Dump(data) != string(text) {
		t.Errorf("%s: %v: the format has changed; now\n%s", file, err, hex.Dump(data))
	}
}

// BenchmarkApplyPairs is BenchmarkApplyPuts for Consul's pairs; with checks, for what an agent's check costs.
func BenchmarkApplyPairs(b *testing.B) {
	value := strings.Repeat("v", 256)
	for name, op := range map[string]func(i int) catalog.Op{
		"pairs": func(i int) catalog.Op { return kvSet(fmt.Sprintf("key/%d", i%10000), value+fmt.Sprint(i)) },
		"checks": func(i int) catalog.Op {
			return catalog.Op{Verb: catalog.CheckSet, Check: &catalog.Check{Node: "agent", ID: "c", ServiceID: "web", Status: catalog.Passing, Output: fmt.Sprint(i)}}
		},
	} {
		b.Run(name, func(b *testing.B) {
			x := discoveryBench(b)
			b.ReportAllocs()
			for i := 0; b.Loop(); {
				calls := make([]Call, 100)
				for j := range calls {
					calls[j] = Call{policy.NewSystem("x"), &Discovery{Ops: []catalog.Op{op(i)}}}
					i++
				}
				x.apply(x.encode(calls...))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/request")
		})
	}
}
