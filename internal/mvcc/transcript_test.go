package mvcc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/storage"
)

// TestTranscripts runs testdata. The commands:
//
//	batch                       one batch; "--" ends a request. Lines: put KEY VALUE [lease=N] [prev] [ignore-value]
//	                            [ignore-lease]; delete FROM [TO] [prev]; read …; grant ID TTL; revoke ID;
//	                            checkpoint ID SECONDS; compact REV
//	read [FROM [TO]] [flags]    flags: rev= limit= bytes= keys-only count-only no-count sort=TARGET,ORDER min-mod= max-mod=
//	                            min-create= max-create=
//	events [FROM [TO]] from= to= [revs=]
//	key-at KEY REV
//	state | leases | sweep budget= | reopen | rows
//
// "*" stands for no bound, a quoted string for itself.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		x := openInstance(t, vfs.NewMem(), indexLimits{4, 4})
		defer func() { x.close(t) }()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "reopen" {
				if err := x.e.Flush(); err != nil {
					return err.Error()
				}
				x.close(t)
				x = openInstance(t, x.fs, x.s.limits)
				return ""
			}
			out, err := x.command(t, d)
			if err != nil {
				return "error: " + err.Error()
			}
			return out
		})
	})
}

// words are the arguments of a line: bare ones, and flags by name.
type words struct {
	bare  []string
	flags map[string]string
}

func parse(fields []string) words {
	w := words{flags: map[string]string{}}
	for _, f := range fields {
		name, value, isFlag := strings.Cut(f, "=")
		switch name {
		case "prev", "ignore-value", "ignore-lease", "keys-only", "count-only", "no-count":
			isFlag = true
		}
		if isFlag {
			w.flags[name] = value
			continue
		}
		if s, err := strconv.Unquote(f); err == nil {
			f = s
		}
		w.bare = append(w.bare, f)
	}
	return w
}

func (w words) has(flag string) bool { _, ok := w.flags[flag]; return ok }

func (w words) number(flag string) int64 {
	n, err := strconv.ParseInt(w.flags[flag], 0, 64)
	if err != nil && w.has(flag) {
		panic(err)
	}
	return n
}

func (w words) bareNumber(i int) int64 {
	n, err := strconv.ParseInt(w.bare[i], 0, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func (w words) span() storage.Span {
	switch {
	case len(w.bare) == 0:
		return storage.Span{}
	case len(w.bare) == 1:
		return storage.KeySpan([]byte(w.bare[0]))
	case w.bare[1] == "*":
		return storage.Span{Start: []byte(w.bare[0])}
	}
	return storage.Span{Start: []byte(w.bare[0]), End: []byte(w.bare[1])}
}

func (w words) query() Query {
	q := Query{
		Span: w.span(), Revision: w.number("rev"), Limit: w.number("limit"), MaxBytes: w.number("bytes"),
		KeysOnly: w.has("keys-only"), CountOnly: w.has("count-only"), NoCount: w.has("no-count"),
		MinModRevision: w.number("min-mod"), MaxModRevision: w.number("max-mod"),
		MinCreateRevision: w.number("min-create"), MaxCreateRevision: w.number("max-create"),
	}
	target, order, _ := strings.Cut(w.flags["sort"], ",")
	q.Target = map[string]SortTarget{"version": SortByVersion, "create": SortByCreate, "mod": SortByMod, "value": SortByValue}[target]
	q.Order = map[string]SortOrder{"asc": SortAscend, "desc": SortDescend}[order]
	return q
}

func (x *instance) command(t *testing.T, d *datadriven.TestData) (string, error) {
	var fields []string
	for _, a := range d.CmdArgs {
		fields = append(fields, a.String())
	}
	w := parse(fields)
	switch d.Cmd {
	case "batch":
		return x.transcribe(d.Input)
	case "read":
		return showPage(x.s.Read(x.e, w.query())), nil
	case "events":
		events, next, err := x.s.Events(x.e, w.span(), w.number("from"), w.number("to"), int(w.number("revs")), 0)
		if err != nil {
			return "", err
		}
		return showEvents(events) + fmt.Sprint("next ", next), nil
	case "key-at":
		kv, ok, err := x.s.KeyAt(x.e, []byte(w.bare[0]), w.bareNumber(1))
		if err != nil || !ok {
			return "none", err
		}
		return showKV(kv), nil
	case "state":
		return fmt.Sprintf("revision %d, compacted %d, keys %d, bytes %d", x.s.Revision(), x.s.CompactRevision(), x.s.Keys(), x.s.Bytes()), nil
	case "leases":
		return x.showLeases()
	case "sweep":
		more, err := x.s.Sweep(x.e, int(w.number("budget")))
		return fmt.Sprint("more ", more), err
	case "rows":
		return x.rows()
	}
	t.Fatalf("unknown command %s", d.Cmd)
	return "", nil
}

func (x *instance) transcribe(input string) (string, error) {
	var out strings.Builder
	x.b.Reset()
	w := x.s.NewWriter(x.e, x.b)
	w.Begin()
	for line := range strings.Lines(input) {
		if strings.TrimSpace(line) == "--" {
			fmt.Fprintf(&out, "-- revision %d\n", w.End())
			w.Begin()
			continue
		}
		text, err := transcribeLine(w, strings.Fields(line))
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != "" {
			fmt.Fprintln(&out, text)
		}
	}
	fmt.Fprintf(&out, "-- revision %d\n", w.End())
	events, err := w.Finish()
	if err != nil {
		return "", err
	}
	out.WriteString(showEvents(events))
	if err := x.e.Apply(x.b); err != nil {
		return "", err
	}
	x.s.Publish(w)
	return out.String(), nil
}

func transcribeLine(w *Writer, fields []string) (string, error) {
	a := parse(fields[1:])
	switch fields[0] {
	case "put":
		value := ""
		if len(a.bare) > 1 {
			value = a.bare[1]
		}
		prev, err := w.Put([]byte(a.bare[0]), []byte(value), PutOptions{
			Lease: a.number("lease"), PrevKV: a.has("prev"), IgnoreValue: a.has("ignore-value"), IgnoreLease: a.has("ignore-lease"),
		})
		if err != nil || prev == nil {
			return "", err
		}
		return "previous " + showKV(*prev), nil
	case "delete":
		prev, n, err := w.DeleteSpan(a.span(), a.has("prev"))
		out := fmt.Sprint("deleted ", n)
		for _, kv := range prev {
			out += "\nprevious " + showKV(kv)
		}
		return out, err
	case "read":
		return showPage(w.Read(a.query())), nil
	case "grant":
		return "", w.GrantLease(a.bareNumber(0), a.bareNumber(1))
	case "checkpoint":
		return "", w.CheckpointLease(a.bareNumber(0), a.bareNumber(1))
	case "revoke":
		n, err := w.RevokeLease(a.bareNumber(0))
		return fmt.Sprint("deleted ", n), err
	case "compact":
		return "", w.Compact(a.bareNumber(0))
	}
	return "", fmt.Errorf("unknown line %q", fields)
}

func (x *instance) showLeases() (string, error) {
	leases, err := x.s.Leases(x.e, -1<<63, 0)
	out := ""
	for _, l := range leases {
		keys, kerr := x.s.LeaseKeys(x.e, l.ID)
		err = errors.Join(err, kerr)
		out += fmt.Sprintf("%d ttl=%d remaining=%d %q\n", l.ID, l.TTL, l.Remaining, keys)
	}
	return out, err
}

// rows shows the bytes on disk: the golden form of the format.
func (x *instance) rows() (string, error) {
	it, err := x.e.NewIter(storage.Span{})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&out, "%d %c %x = %x\n", it.Key()[0], it.Key()[1], it.Key()[2:], it.Value())
	}
	return out.String(), it.Close()
}
