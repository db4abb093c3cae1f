package history

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func num(n int64) string { return strconv.FormatInt(n, 10) }

func word(b bool) string { return strconv.FormatBool(b) }

// String is the key with all that is known of it.
func (kv KV) String() string {
	s := fmt.Sprintf("%q = %q (create %d, mod %d, version %d", kv.Key, kv.Value, kv.Create, kv.Mod, kv.Version)
	if kv.Lease != 0 {
		s += ", lease " + num(kv.Lease)
	}
	return s + ")"
}

// String is the event in words.
func (e Event) String() string {
	if e.Type == DeleteEvent {
		return fmt.Sprintf("delete %q at %d", e.KV.Key, e.KV.Mod)
	}
	return "put " + e.KV.String()
}

func span(key, end string) string {
	switch end {
	case "":
		return strconv.Quote(key)
	case "\x00":
		return fmt.Sprintf("[%q, all)", key)
	}
	return fmt.Sprintf("[%q, %q)", key, end)
}

// String is the request in words.
func (r Request) String() string {
	switch r.Kind {
	case Put:
		s := fmt.Sprintf("put %q = %q", r.Key, r.Value)
		if r.Lease != 0 {
			s += " lease " + num(r.Lease)
		}
		return s
	case Range:
		s := "range " + span(r.Key, r.End)
		if r.Serializable {
			s = "serializable " + s
		}
		if r.Revision != 0 {
			s += " at " + num(r.Revision)
		}
		return s
	case Delete:
		return "delete " + span(r.Key, r.End)
	case Txn:
		var parts []string
		for _, c := range r.Compares {
			value := num(c.Number)
			if c.Target == TargetValue {
				value = strconv.Quote(c.Value)
			}
			parts = append(parts, fmt.Sprintf("%s of %s %s %s", c.Target, span(c.Key, c.End), c.Result, value))
		}
		return fmt.Sprintf("txn if {%s} then {%s} else {%s}", strings.Join(parts, ", "), list(r.Then), list(r.Else))
	case LeaseGrant, LeaseRevoke, KeepAlive:
		return fmt.Sprintf("%s %d", r.Kind, r.Lease)
	}
	return fmt.Sprintf("%s %d", r.Kind, r.Revision)
}

func list[T fmt.Stringer](items []T) string {
	parts := make([]string, 0, len(items))
	for _, item := range items {
		parts = append(parts, item.String())
	}
	return strings.Join(parts, ", ")
}

func at(t int64) string { return time.Duration(t).String() }

// operation is one line on an operation: who asked what, when, and what came of it.
func (h *History) operation(i int) string {
	o := &h.Operations[i]
	s := fmt.Sprintf("operation %d (client %d, member %d, %s to ", i, o.Client, o.Member, at(o.Call))
	if o.Outcome == Unknown {
		s += "?"
	} else {
		s += at(o.Return)
	}
	s += "): " + o.Request.String()
	switch o.Outcome {
	case Answered:
		s += " -> revision " + num(o.Response.Revision)
	case Refused:
		s += " -> refused: " + o.Error
	case Unknown:
		s += " -> unknown"
	}
	return s
}

func (h *History) watch(i int) string {
	w := &h.Watches[i]
	start := "now"
	if w.Start != 0 {
		start = num(w.Start)
	}
	return fmt.Sprintf("watch %d (client %d, member %d, on %s from %s, opened %s)", i, w.Client, w.Member, span(w.Key, w.End), start, at(w.Opened))
}
