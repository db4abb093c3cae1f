package catalog

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"holdfast.dev/holdfast/internal/mvcc"
)

// TestTranscripts runs testdata. The commands:
//
//	apply [time=N] [system]   one batch, an operation a line: VERB subject… [name=value…]; time stays until the next
//	look KIND [NAME] [SEP]    an answer
//	wakes                     the topics, keys and sessions that the last batch touched
//	compact
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		b := newBench(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "apply":
				d.MaybeScanArgs(t, "time", &b.time)
				var ops []Op
				for _, line := range strings.Split(d.Input, "\n") {
					ops = append(ops, parseOp(t, line))
				}
				return printOutcome(b.apply(d.HasArg("system"), ops)[0])
			case "look":
				q := Query{Kind: kinds[d.CmdArgs[0].Key]}
				for i, arg := range d.CmdArgs[1:] {
					if i == 0 {
						q.Name = unquote(arg.Key)
					} else {
						q.Separator = unquote(arg.Key)
					}
				}
				a, err := Look(b.e, b.kv, b.cat, q)
				if err != nil {
					return "error: " + err.Error()
				}
				return printAnswer(a)
			case "wakes":
				return wakes(b)
			case "compact":
				b.compact()
				return ""
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

var kinds = map[string]Kind{
	"pair": QueryPair, "pairs": QueryPairs, "keys": QueryKeys, "nodes": QueryNodes, "node": QueryNode, "services": QueryServiceNames,
	"instances": QueryInstances, "node-checks": QueryNodeChecks, "service-checks": QueryServiceChecks, "state": QueryChecksInState,
	"session": QuerySession, "node-sessions": QueryNodeSessions, "sessions": QuerySessions,
}

var verbNames = map[string]Verb{
	"set": KVSet, "cas": KVCAS, "lock": KVLock, "unlock": KVUnlock, "delete": KVDelete, "delete-cas": KVDeleteCAS, "delete-tree": KVDeleteTree,
	"get": KVGet, "get-or-empty": KVGetOrEmpty, "get-tree": KVGetTree, "check-session": KVCheckSession, "check-index": KVCheckIndex,
	"check-not-exists": KVCheckNotExists,
	"node-set":         NodeSet, "node-cas": NodeCAS, "node-get": NodeGet, "node-delete": NodeDelete, "node-delete-cas": NodeDeleteCAS,
	"service-set": ServiceSet, "service-cas": ServiceCAS, "service-get": ServiceGet, "service-delete": ServiceDelete, "service-delete-cas": ServiceDeleteCAS,
	"check-set": CheckSet, "check-cas": CheckCAS, "check-get": CheckGet, "check-delete": CheckDelete, "check-delete-cas": CheckDeleteCAS,
	"session-create": SessionCreate, "session-destroy": SessionDestroy, "session-expire": SessionExpire,
}

func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return s
}

func parseOp(t *testing.T, line string) Op {
	var bare []string
	named := map[string]string{}
	fields := strings.Fields(line)
	for _, f := range fields[1:] {
		if name, value, ok := strings.Cut(f, "="); ok && !strings.HasPrefix(f, `"`) {
			named[name] = value
		} else {
			bare = append(bare, unquote(f))
		}
	}
	number := func(name string) uint64 {
		if named[name] == "" {
			return 0
		}
		n, err := strconv.ParseUint(named[name], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	list := func(name string) []string {
		if named[name] == "" {
			return nil
		}
		return strings.Split(named[name], ",")
	}
	arg := func(i int) string {
		if i < len(bare) {
			return bare[i]
		}
		return ""
	}
	op := Op{Verb: verbNames[fields[0]]}
	switch op.Verb.subject() {
	case subjectPair:
		op.Pair = &Pair{Key: arg(0), Value: []byte(arg(1)), Flags: number("flags"), Session: named["session"], ModifyIndex: number("index")}
	case subjectNode:
		op.Node = &Node{Name: arg(0), Address: named["address"], ID: named["id"], ModifyIndex: number("index")}
		_, op.SkipNodeUpdate = named["skip"]
	case subjectService:
		op.Service = &Service{
			Node: arg(0), ID: arg(1), Name: arg(2), Port: int(number("port")), Tags: list("tags"), ModifyIndex: number("index"),
		}
	case subjectCheck:
		op.Check = &Check{
			Node: arg(0), ID: arg(1), Status: arg(2), ServiceID: named["service"], Output: named["output"], ModifyIndex: number("index"),
		}
	case subjectSession:
		op.Session = &Session{
			ID: arg(0), Node: arg(1), LockDelay: int64(number("delay")) * 1_000_000, Behavior: named["behavior"], TTL: named["ttl"],
			NodeChecks: list("checks"),
		}
		for _, id := range list("service-checks") {
			op.Session.ServiceChecks = append(op.Session.ServiceChecks, ServiceCheck{ID: id})
		}
	default:
		t.Fatalf("unknown verb in %q", line)
	}
	return op
}

func printOutcome(o Outcome) string {
	var s strings.Builder
	for _, f := range o.Failures {
		fmt.Fprintf(&s, "%d: %s: %s\n", f.Op, [...]string{Mismatch: "mismatch", Missing: "missing", Refused: "refused"}[f.Kind], f.What)
	}
	for i, r := range o.Results {
		fmt.Fprintf(&s, "%d:", i)
		if r.Pair != nil {
			s.WriteString(printPair(r.Pair))
		}
		for j := range r.Pairs {
			s.WriteString(printPair(&r.Pairs[j]))
		}
		if r.Node != nil {
			s.WriteString(printNode(r.Node))
		}
		if r.Service != nil {
			s.WriteString(printService(r.Service))
		}
		if r.Check != nil {
			s.WriteString(printCheck(r.Check))
		}
		if r.Session != nil {
			s.WriteString(printSession(r.Session))
		}
		s.WriteString("\n")
	}
	fmt.Fprintf(&s, "index %d\n", o.Index)
	return s.String()
}

// plain shows control characters as Go writes them.
func plain(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

func printPair(p *Pair) string {
	s := fmt.Sprintf(" %q=%q", p.Key, p.Value)
	if p.Flags != 0 {
		s += fmt.Sprintf(" flags=%d", p.Flags)
	}
	if p.Session != "" {
		s += " session=" + p.Session
	}
	return s + fmt.Sprintf(" locks=%d [%d %d]", p.LockIndex, p.CreateIndex, p.ModifyIndex)
}

func printNode(n *Node) string {
	return fmt.Sprintf(" node %s id=%s address=%s [%d %d]", plain(n.Name), n.ID, n.Address, n.CreateIndex, n.ModifyIndex)
}

func printService(s *Service) string {
	return fmt.Sprintf(" service %s/%s name=%s port=%d tags=%v [%d %d]", plain(s.Node), plain(s.ID), plain(s.Name), s.Port, s.Tags, s.CreateIndex, s.ModifyIndex)
}

func printCheck(c *Check) string {
	s := fmt.Sprintf(" check %s/%s %s", c.Node, c.ID, c.Status)
	if c.ServiceID != "" {
		s += fmt.Sprintf(" of %s (%s %v)", c.ServiceID, c.ServiceName, c.ServiceTags)
	}
	if c.Output != "" {
		s += " " + c.Output
	}
	return s + fmt.Sprintf(" [%d %d]", c.CreateIndex, c.ModifyIndex)
}

func printSession(v *Session) string {
	return fmt.Sprintf(" session %s on %s %s delay=%dms ttl=%q checks=%v %v [%d %d]",
		v.ID, v.Node, v.Behavior, v.LockDelay/1_000_000, v.TTL, v.NodeChecks, v.ServiceChecks, v.CreateIndex, v.ModifyIndex)
}

func printAnswer(a Answer) string {
	var s strings.Builder
	for i := range a.Pairs {
		s.WriteString(printPair(&a.Pairs[i])[1:] + "\n")
	}
	for _, k := range a.Keys {
		fmt.Fprintf(&s, "%q\n", k)
	}
	for i := range a.Nodes {
		s.WriteString(printNode(&a.Nodes[i])[1:] + "\n")
	}
	for i := range a.Services {
		s.WriteString(printService(&a.Services[i])[1:] + "\n")
	}
	names := make([]string, 0, len(a.Names))
	for name := range a.Names {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&s, "%s: %v\n", name, a.Names[name])
	}
	for i := range a.Instances {
		x := &a.Instances[i]
		s.WriteString(printService(&x.Service)[1:] + " @" + printNode(&x.Node) + "\n")
		for j := range x.Checks {
			s.WriteString("  " + printCheck(&x.Checks[j])[1:] + "\n")
		}
	}
	for i := range a.Checks {
		s.WriteString(printCheck(&a.Checks[i])[1:] + "\n")
	}
	for i := range a.Sessions {
		s.WriteString(printSession(&a.Sessions[i])[1:] + "\n")
	}
	fmt.Fprintf(&s, "index %d\n", a.Index)
	return s.String()
}

// wakes prints which questions the last batch answers anew.
func wakes(b *bench) string {
	names := map[byte]string{
		topicNodes: "nodes", topicNode: "node", topicServices: "services", topicInstances: "instances", topicServiceChecks: "service-checks",
		topicNodeChecks: "node-checks", topicStates: "state", topicSessions: "sessions", topicNodeSessions: "node-sessions",
	}
	var out []string
	for _, id := range []mvcc.SpaceID{mvcc.SpaceConsulKV, mvcc.SpaceCatalog} {
		for _, r := range b.events[id] {
			for i := range r.Events {
				key := r.Events[i].KV.Key
				gone := ""
				if r.Events[i].Type == mvcc.EventDelete {
					gone = " gone"
				}
				switch {
				case id == mvcc.SpaceConsulKV:
					out = append(out, fmt.Sprintf("pair %q%s", key, gone))
				case key[0] == tableTopic:
					part, _, err := cutPart(key[2:])
					if err != nil {
						b.t.Fatal(err)
					}
					out = append(out, strings.TrimSpace(names[key[1]]+" "+part)+gone)
				case key[0] == tableSession:
					part, _, err := cutPart(key[1:])
					if err != nil {
						b.t.Fatal(err)
					}
					out = append(out, "session "+part+gone)
				}
			}
		}
	}
	if len(out) == 0 {
		return "nobody\n"
	}
	return strings.Join(out, "\n") + "\n"
}
