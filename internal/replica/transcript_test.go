package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// transcript drives members by hand and writes down what they do. The commands are in testdata/member:
//
//	members n=3                   members that know each other, at index 1
//	campaign id=1                 an election, now
//	tick id=1 n=5
//	propose id=1 data=x           ticket numbers count up
//	read id=1
//	transfer id=1 to=2
//	conf id=1 change=(remove 3)   decided in favour when applied; refuse=(index) decides against
//	cut id=1                      nothing goes to or from it; heal: all is well again
//	unreachable id=1 peer=2
//	restart id=1                  with what was appended
//	run                           until nothing is left to do; messages are printed
type transcript struct {
	*sim
	out     strings.Builder
	refuse  map[uint64]bool
	tickets uint64
}

func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/member", func(t *testing.T, path string) {
		var tr *transcript
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "members" {
				var n int
				d.ScanArgs(t, "n", &n)
				tr = &transcript{refuse: map[uint64]bool{}}
				tr.sim = newSim(t, n, 1, &tr.out)
				return ""
			}
			tr.out.Reset()
			tr.t = t
			tr.do(t, d)
			return tr.out.String()
		})
	})
}

func (tr *transcript) do(t *testing.T, d *datadriven.TestData) {
	arg := func(name string) (v uint64) {
		if d.HasArg(name) {
			d.ScanArgs(t, name, &v)
		}
		return v
	}
	var x *simMember
	if id := arg("id"); id != 0 {
		x = tr.members[id-1]
	}
	switch d.Cmd {
	case "campaign":
		x.m.Campaign()
	case "tick":
		for range max(arg("n"), 1) {
			x.m.Tick()
		}
	case "propose":
		var data string
		d.ScanArgs(t, "data", &data)
		tr.tickets++
		x.tickets[tr.tickets] = data
		if !x.m.Propose(tr.tickets, []byte(data)) {
			fmt.Fprintln(&tr.out, "not taken")
		}
	case "read":
		ticket := x.m.Read()
		name := fmt.Sprint("r", ticket)
		tr.reads[name] = tr.acked
		x.pending[ticket] = append(x.pending[ticket], name)
		return // so that more can join it
	case "transfer":
		fmt.Fprintln(&tr.out, x.m.Transfer(arg("to")))
	case "conf":
		kinds := map[string]ChangeKind{"add": AddVoter, "learner": AddLearner, "remove": Remove, "update": Update}
		var kind string
		d.ScanArgs(t, "change", &kind)
		if err := x.m.ProposeConf(Change{Kind: kinds[kind], Member: arg("member")}, nil); err != nil {
			fmt.Fprintln(&tr.out, err)
		}
		if d.HasArg("refuse") {
			tr.refuse[arg("refuse")] = true
		}
	case "cut":
		x.cut = true
	case "heal":
		for _, y := range tr.members {
			y.cut = false
		}
	case "unreachable":
		x.m.Unreachable(arg("peer"))
	case "restart":
		tr.boot(x)
	case "run":
		tr.run()
	default:
		t.Fatalf("%s: what is that?", d.Cmd)
	}
	if x != nil {
		tr.collect(x)
	}
}

// run does everything that is to be done, member by member and message by message.
func (tr *transcript) run() {
	for again := true; again; {
		again = false
		for _, x := range tr.members {
			tr.collect(x)
			for len(x.appends) > 0 {
				again = true
				tr.append(x)
			}
			for len(x.applies) > 0 {
				again = true
				tr.applyDecided(x)
			}
		}
		net := tr.net
		tr.net = nil
		for _, what := range net {
			again = true
			tr.pass(what)
		}
	}
}

func (tr *transcript) applyDecided(x *simMember) {
	m := x.applies[0]
	var decisions []Decision
	for _, e := range m.GetEntries() {
		fmt.Fprintf(&tr.out, "%d: apply %s\n", x.id, raft.DescribeEntry(e, nil))
		if d := string(e.GetData()); d != "" {
			x.at[d] = e.GetIndex()
		}
		if e.GetType() != pb.EntryNormal {
			d := Decision{Index: e.GetIndex()}
			if tr.refuse[e.GetIndex()] {
				d.Err = errRefusedChange
			}
			decisions = append(decisions, d)
		}
		x.applied = e.GetIndex()
	}
	x.applies = x.applies[1:]
	changed, err := x.m.Applied(m, decisions)
	if err != nil {
		tr.t.Fatal(err)
	}
	if changed {
		fmt.Fprintf(&tr.out, "%d: %s\n", x.id, raft.DescribeConfState(x.m.conf))
	}
	tr.collect(x)
}

func (tr *transcript) pass(what any) {
	var from, to uint64
	var text string
	switch m := what.(type) {
	case *pb.Message:
		from, to, text = m.GetFrom(), m.GetTo(), raft.DescribeMessage(m, nil)
	case simForward:
		from, to, text = m.from, m.f.To, fmt.Sprintf("%d->%d forward %d %q", m.from, m.f.To, m.f.Ticket, m.f.Data)
	case simAnswer:
		from, to, text = m.from, m.a.To, fmt.Sprintf("%d->%d answer %d at %d/%d", m.from, m.a.To, m.a.Ticket, m.a.Term, m.a.Index)
	}
	if slices.ContainsFunc([]uint64{from, to}, func(id uint64) bool { return int(id) > len(tr.members) || tr.members[id-1].cut }) {
		fmt.Fprintln(&tr.out, "lost:", text)
		return
	}
	fmt.Fprintln(&tr.out, text)
	x := tr.members[to-1]
	switch m := what.(type) {
	case *pb.Message:
		if err := x.m.Step(m); err != nil {
			fmt.Fprintln(&tr.out, "fatal:", err)
		}
	case simForward:
		x.m.Forwarded(from, m.f.Ticket, m.f.Data)
	case simAnswer:
		x.m.Answered(from, m.a.Ticket, m.a.Index, m.a.Term)
	}
	tr.collect(x)
}
