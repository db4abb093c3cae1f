package catalog

import (
	"bytes"
	"encoding/hex"
	"errors"
	goflag "flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

var golden = goflag.Bool("golden", false, "write the golden file anew")

// samples has every field of everything set at least once, and everything empty once.
func samples() ([]Op, Answer, Outcome) {
	p := Pair{Key: "k\x00", Value: []byte("v"), Flags: 1 << 63, Session: "s", LockIndex: 3, CreateIndex: 4, ModifyIndex: 1 << 40}
	n := Node{ID: "id", Name: "n", Address: "a", Datacenter: "dc1", TaggedAddresses: map[string]string{"wan": "w", "lan": "l"},
		Meta: map[string]string{"": "", "m": "v"}, Extra: []byte("{}"), CreateIndex: 5, ModifyIndex: 6}
	s := Service{Node: "n", ID: "i", Name: "web", Kind: "k", Tags: []string{"b", "", "a"}, Address: "x", SocketPath: "/s", Port: -1,
		TaggedAddresses: map[string]Address{"wan": {"w", 2}, "lan": {"", -3}}, Meta: map[string]string{"m": ""}, Weights: Weights{1, -2},
		EnableTagOverride: true, Extra: []byte("x"), CreateIndex: 7, ModifyIndex: 8}
	c := Check{Node: "n", ID: "c", Name: "name", Status: Passing, Notes: "no", Output: "out", ServiceID: "i", ServiceName: "web",
		ServiceTags: []string{"t"}, Type: "ttl", Interval: "10s", Timeout: "1s", ExposedPort: 9, Definition: []byte(`{"TCP":"x"}`), CreateIndex: 10, ModifyIndex: 11}
	e := Session{ID: "s", Name: "lk", Node: "n", LockDelay: 15_000_000_000, Behavior: "delete", TTL: "10s", NodeChecks: []string{"serfHealth"},
		ServiceChecks: []ServiceCheck{{"c", "ns"}}, CreateIndex: 12, ModifyIndex: 13}
	var ops []Op
	for v := KVSet; v <= SessionExpire; v++ {
		for _, full := range []bool{true, false} {
			op := Op{Verb: v}
			switch v.subject() {
			case subjectPair:
				op.Pair = pick(full, p)
			case subjectNode:
				op.Node, op.SkipNodeUpdate = pick(full, n), full && v == NodeSet
			case subjectService:
				op.Service = pick(full, s)
			case subjectCheck:
				op.Check = pick(full, c)
			case subjectSession:
				op.Session = pick(full, e)
			}
			ops = append(ops, op)
		}
	}
	a := Answer{Index: 300, Pairs: []Pair{p, {}}, Keys: []string{"a", ""}, Nodes: []Node{n}, Services: []Service{s},
		Names: map[string][]string{"web": {"x", "y"}, "": nil}, Instances: []Instance{{n, s, []Check{c}}, {}}, Checks: []Check{c}, Sessions: []Session{e}}
	o := Outcome{Index: 9, Results: []Result{{}, {Pair: &p}, {Pairs: []Pair{p, p}}, {Node: &n}, {Service: &s}, {Check: &c}, {Session: &e}},
		Failures: []Failure{{Op: 3, Kind: Refused, What: "no"}}}
	return ops, a, o
}

func pick[T any](full bool, v T) *T {
	if full {
		return &v
	}
	return new(T)
}

// TestForms: what is written is read again, within the size that was told, and is what the golden file has.
func TestForms(t *testing.T) {
	ops, a, o := samples()
	q := Query{Kind: QueryKeys, Name: "a/", Separator: "/"}
	forms := map[string][]byte{"ops": AppendOps(nil, ops), "query": AppendQuery(nil, q), "answer": AppendAnswer(nil, &a), "outcome": AppendOutcome(nil, &o)}
	for i := range ops {
		if form := AppendOps(nil, ops[i:i+1]); len(form) > OpsSize(ops[i:i+1]) || !ops[i].WellFormed() {
			t.Errorf("operation %d takes %d bytes, told were %d", i, len(form), OpsSize(ops[i:i+1]))
		}
	}
	if got, err := DecodeOps(forms["ops"]); err != nil || !reflect.DeepEqual(got, ops) {
		t.Errorf("operations came back as %+v: %v", got, err)
	}
	if got, err := DecodeQuery(forms["query"]); err != nil || got != q {
		t.Errorf("the query came back as %+v: %v", got, err)
	}
	if got, err := DecodeAnswer(forms["answer"]); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("the answer came back as %+v: %v", got, err)
	}
	if got, err := DecodeOutcome(forms["outcome"]); err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("the outcome came back as %+v: %v", got, err)
	}
	text := ""
	for _, name := range []string{"ops", "query", "answer", "outcome"} {
		text += name + "\n"
		for form := forms[name]; len(form) > 0; {
			n := min(len(form), 60)
			text += hex.EncodeToString(form[:n]) + "\n"
			form = form[n:]
		}
	}
	const file = "testdata/forms-v1.hex"
	if *golden {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != text {
		t.Errorf("the forms are not those of %s (%v): logs that exist would not be read", file, err)
	}
}

// TestBadForms: nothing but the one form is read.
func TestBadForms(t *testing.T) {
	ops, a, o := samples()
	forms := map[string][]byte{"ops": AppendOps(nil, ops[:4]), "answer": AppendAnswer(nil, &a), "outcome": AppendOutcome(nil, &o)}
	decode := map[string]func([]byte) error{
		"ops":     func(b []byte) error { _, err := DecodeOps(b); return err },
		"query":   func(b []byte) error { _, err := DecodeQuery(b); return err },
		"answer":  func(b []byte) error { _, err := DecodeAnswer(b); return err },
		"outcome": func(b []byte) error { _, err := DecodeOutcome(b); return err },
	}
	for name, form := range forms {
		for n := range form {
			if err := decode[name](form[:n]); !errors.Is(err, ErrDecode) {
				t.Fatalf("%s: the first %d of %d bytes are read: %v", name, n, len(form), err)
			}
		}
		if decode[name](append(bytes.Clone(form), 0)) == nil {
			t.Errorf("%s: a byte too many is read", name)
		}
	}
	twice := strings.Replace(string(AppendOps(nil, []Op{{Verb: NodeGet, Node: &Node{Name: "n", Meta: map[string]string{"a": "", "b": ""}}}})), "\x01b", "\x01a", 1)
	for what, bad := range map[string]string{
		"no bytes": "", "a long zero": "\x80\x00", "an unknown verb": "\x01\xfa\x00", "no verb": "\x01\x00\x00", "a huge count": "\xff\xff\xff\xff\x0f",
		"a key twice": twice,
	} {
		if decode["ops"]([]byte(bad)) == nil {
			t.Errorf("operations: %s is read", what)
		}
	}
	for what, bad := range map[string]string{"no bytes": "", "kind 0": "\x00\x00\x00", "kind 99": "\x63\x00\x00"} {
		if decode["query"]([]byte(bad)) == nil {
			t.Errorf("query: %s is read", what)
		}
	}
	for what, bad := range map[string]string{"no pairs that are there": "\x00\x01\x02\x00\x00", "kind 0": "\x00\x00\x01\x00\x00\x00", "a wild bit": "\x00\x01\x40\x00"} {
		if decode["outcome"]([]byte(bad)) == nil {
			t.Errorf("outcome: %s is read", what)
		}
	}
}

func FuzzDecodeOps(f *testing.F) {
	ops, _, _ := samples()
	f.Add(AppendOps(nil, ops))
	for i := range ops {
		f.Add(AppendOps(nil, ops[i:i+1]))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var ops []Op
		var err error
		fuzztest.Bounded(t, len(data), func() { ops, err = DecodeOps(data) })
		if err != nil {
			return
		}
		again := AppendOps(nil, ops)
		if !bytes.Equal(again, data) || len(again) > OpsSize(ops) {
			t.Fatalf("%x is another form of %x, %d bytes were told", data, again, OpsSize(ops))
		}
		for i := range ops {
			if !ops[i].WellFormed() {
				t.Fatalf("operation %d is not well-formed: %+v", i, ops[i])
			}
		}
	})
}

func FuzzDecodeQuery(f *testing.F) {
	f.Add(AppendQuery(nil, Query{Kind: QueryPair, Name: "a"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if q, err := DecodeQuery(data); err == nil && !bytes.Equal(AppendQuery(nil, q), data) {
			t.Fatalf("%x is another form of %+v", data, q)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	_, a, _ := samples()
	f.Add(AppendAnswer(nil, &a))
	f.Add(AppendAnswer(nil, &Answer{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			if a, err := DecodeAnswer(data); err == nil && !bytes.Equal(AppendAnswer(nil, &a), data) {
				t.Fatalf("%x is another form of %+v", data, a)
			}
		})
	})
}

func FuzzDecodeOutcome(f *testing.F) {
	_, _, o := samples()
	f.Add(AppendOutcome(nil, &o))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			if o, err := DecodeOutcome(data); err == nil && !bytes.Equal(AppendOutcome(nil, &o), data) {
				t.Fatalf("%x is another form of %+v", data, o)
			}
		})
	})
}

// FuzzApply: whatever decodes is answered, and a batch that fails leaves no trace.
func FuzzApply(f *testing.F) {
	ops, _, _ := samples()
	for i := range ops {
		f.Add(AppendOps(nil, ops[max(0, i-3):i+1]), int64(i), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, now int64, system bool) {
		ops, err := DecodeOps(data)
		if err != nil || len(ops) > 64 {
			return
		}
		b := newBench(t)
		b.must(node("n"), check("n", "serfHealth", "", Passing), session("s", "n", "serfHealth"), set("a", "1"))
		b.time = max(now, 0)
		before := b.dump()
		out := b.apply(system, ops)[0]
		if len(out.Failures) > 0 && b.dump() != before {
			t.Fatalf("a failed batch left a trace: %s", fmt.Sprint(out.Failures))
		}
		b.checkRows()
	})
}
