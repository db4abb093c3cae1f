package state

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// TestTranscripts runs testdata/transcripts: batches of requests and what follows from them.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		b := newBench(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			b.t = t
			return runTranscript(b, d)
		})
	})
}

func runTranscript(b *bench, d *datadriven.TestData) string {
	var w bytes.Buffer
	switch d.Cmd {
	case "batch": // one line a request: who request
		show(&w, b.apply(b.encode(calls(d.Input)...)))
	case "entries": // one entry a line, all in one Apply
		var entries []Entry
		for _, line := range strings.Split(d.Input, "\n") {
			entries = append(entries, b.encode(calls(line)...))
		}
		show(&w, b.apply(entries...))
	case "again": // the last proposal once more, in a new entry
		b.seq--
		show(&w, b.apply(b.encode(calls(d.Input)...)))
	case "conf":
		for _, line := range strings.Split(d.Input, "\n") {
			show(&w, b.apply(confEntry(b, line)))
		}
	case "read": // what readers see
		page, err := b.machine.Space(mvcc.SpaceEtcd).Read(b.engine, *parse(d.Input).query())
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		showValue(&w, &page, "")
	case "read-txn":
		words := parse(d.Input)
		words.expect("txn")
		result, err := b.machine.ReadTxn(words.txn())
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		showValue(&w, result, "")
	case "authorize":
		for _, c := range calls(d.Input) {
			fmt.Fprintf(&w, "%v\n", b.machine.Authorize(c.Who, c.Request))
		}
	case "reopen":
		before := b.hash()
		b.reopen()
		fmt.Fprintf(&w, "same hash %v\n", before == b.hash())
	case "state":
		showMachine(&w, b.machine)
	default:
		d.Fatalf(b.t.(*testing.T), "unknown command %s", d.Cmd)
	}
	return w.String()
}

func calls(text string) []Call {
	var list []Call
	for _, line := range strings.Split(text, "\n") {
		who, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		list = append(list, Call{Who: principal(who), Request: parse(rest).request()})
	}
	return list
}

// confEntry reads: who add|remove|update|promote id [url=…] [learner] [learners=n] [strict].
func confEntry(b *bench, line string) Entry {
	who, rest, _ := strings.Cut(line, " ")
	p := parse(rest)
	op := map[string]ConfOp{"add": ConfAdd, "remove": ConfRemove, "update": ConfUpdate, "promote": ConfPromote}[p.next()]
	m := Member{ID: uint64(number(p.next()))}
	o := p.options()
	if url := o["url"]; url != "" {
		m.PeerURLs = strings.Split(url, ",")
	}
	m.Learner = has(o, "learner")
	b.seq++
	b.index++
	limit := uint32(DefaultMaxLearners)
	if has(o, "learners") {
		limit = uint32(optional(o["learners"]).id())
	}
	data, err := EncodeConf(ConfCommand{
		Proposal: Proposal{Member: 1, Boot: 9, Seq: b.seq}, Who: principal(who), Change: ConfChange{Op: op, Member: m},
		MaxLearners: limit, Strict: has(o, "strict"),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return Entry{Index: b.index, Term: 2, Conf: data}
}

func showMachine(w *bytes.Buffer, m *Machine) {
	voters, learners := m.ConfState()
	fmt.Fprintf(w, "cluster %d level %d lowest %d applied %d voters %v learners %v\n",
		m.ClusterID(), m.FeatureLevel(), m.LowestLevel(), m.Applied(), voters, learners)
	for _, member := range m.Members() {
		fmt.Fprintf(w, "member %d %q peers %v clients %v\n", member.ID, member.Name, member.PeerURLs, member.ClientURLs)
	}
	for _, a := range m.Alarms() {
		fmt.Fprintf(w, "alarm %d of %d\n", a.Kind, a.Member)
	}
	auth := m.Auth()
	fmt.Fprintf(w, "auth %v revision %d\n", auth.Enabled(), auth.Revision())
	for _, name := range auth.Users() {
		u, _ := auth.User(name)
		fmt.Fprintf(w, "user %v roles %v password %v\n", u, u.Roles, len(u.PasswordHash()) > 0)
	}
	for _, name := range auth.Roles() {
		perms, _ := auth.Role(name)
		fmt.Fprintf(w, "role %s", name)
		for _, p := range perms {
			fmt.Fprintf(w, " %s%s %s", map[bool]string{true: "r"}[p.Read], map[bool]string{true: "w"}[p.Write], showSpan(p.Span))
		}
		fmt.Fprintln(w)
	}
	for _, id := range mvcc.Spaces() {
		if s := m.Space(id); s.Revision() > 1 {
			fmt.Fprintf(w, "space %d revision %d compacted %d\n", id, s.Revision(), s.CompactRevision())
		}
	}
}

func showSpan(s storage.Span) string {
	switch {
	case s.SingleKey():
		return fmt.Sprintf("%q", s.Start)
	case s.End == nil:
		return fmt.Sprintf("%q..", s.Start)
	}
	return fmt.Sprintf("%q..%q", s.Start, s.End)
}
