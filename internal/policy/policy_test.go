package policy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// naiveContains looks at every key of up to two letters of a small alphabet.
func naiveContains(spans []Span, s Span) bool {
	if s.Empty() {
		return false
	}
	if s.End == nil {
		// All keys above the alphabet stand for the unbounded rest.
		above := false
		for _, p := range spans {
			above = above || p.End == nil
		}
		if !above {
			return false
		}
	}
	for _, key := range smallKeys() {
		if in(s, key) && !anyIn(spans, key) {
			return false
		}
	}
	return true
}

func in(s Span, key []byte) bool {
	return bytes.Compare(key, s.Start) >= 0 && (s.End == nil || bytes.Compare(key, s.End) < 0)
}

func anyIn(spans []Span, key []byte) bool {
	for _, p := range spans {
		if in(p, key) {
			return true
		}
	}
	return false
}

// smallKeys returns keys dense enough that two different unions of smallSpan differ in one of them.
func smallKeys() [][]byte {
	var keys [][]byte
	for a := byte('a'); a <= 'f'; a++ {
		keys = append(keys, []byte{a}, []byte{a, 0}, []byte{a, 0, 0}, []byte{a, 'z'})
	}
	return keys
}

func smallSpan(t *rapid.T) Span {
	start := []byte{byte(rapid.IntRange('a', 'e').Draw(t, "start"))}
	switch rapid.IntRange(0, 3).Draw(t, "shape") {
	case 0:
		return Span{Start: start, End: append(bytes.Clone(start), 0)}
	case 1:
		return Span{Start: start}
	default:
		return Span{Start: start, End: []byte{byte(rapid.IntRange('a', 'f').Draw(t, "end"))}}
	}
}

func TestPermissionSetAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var spans []Span
		for range rapid.IntRange(0, 5).Draw(t, "spans") {
			spans = append(spans, smallSpan(t))
		}
		set := NewPermissionSet(spans...)
		asked := smallSpan(t)
		if got, want := set.Contains(asked), naiveContains(spans, asked); got != want {
			t.Fatalf("%q contains %q: %v, want %v", spans, asked, got, want)
		}
		for _, key := range smallKeys() {
			if got, want := set.ContainsKey(key), anyIn(spans, key); got != want {
				t.Fatalf("%q contains key %q: %v, want %v", spans, key, got, want)
			}
		}
		for i, s := range set.Spans() {
			if s.Empty() || i > 0 && bytes.Compare(set.Spans()[i-1].End, s.Start) >= 0 {
				t.Fatalf("spans of %q are not disjoint: %q", spans, set.Spans())
			}
		}
	})
}

func TestZeroPermitsNothing(t *testing.T) {
	var set PermissionSet
	for _, s := range []Span{{}, {Start: []byte("a")}, {Start: []byte("a"), End: []byte("b")}, {Start: []byte("a"), End: []byte{}}} {
		if set.Contains(s) {
			t.Errorf("the zero set contains %q", s)
		}
	}
	if set.ContainsKey([]byte("a")) || set.ContainsKey(nil) {
		t.Error("the zero set contains a key")
	}
	all := NewPermissionSet(Span{Start: []byte{0}})
	if all.Contains(Span{Start: []byte("b"), End: []byte("a")}) {
		t.Error("an inverted span is contained")
	}
	if NoAction.Class() != ClassNone || Action(200).Class() != ClassNone {
		t.Error("an unknown action is for somebody")
	}
	if (Principal{}).Kind() != Nobody || (Principal{}).IsAdmin() || (Principal{}).OpenWhenAuthOff() {
		t.Error("the zero principal is somebody")
	}
	if p := (Principal{}).WithUser("root", 9, true); p.User() != "" {
		t.Error("nobody became a user")
	}
}

// TestClasses is the table of who may do what: a change of it has to be made twice.
func TestClasses(t *testing.T) {
	want := map[Class]string{
		ClassRoot: "member add, member remove, member update, member promote, defragment, hash, hash of a space, snapshot, " +
			"move leader, alarm change, compact, auth change, downgrade",
		ClassSelf: "user get, role get",
		ClassUser: "member list, alarm list, status, lease grant, lease renew, lease read",
		ClassOpen: "auth status, authenticate, health",
	}
	got := map[Class][]string{}
	for _, a := range Actions() {
		if a.String() == "" {
			t.Errorf("action %d has no name", a)
		}
		got[a.Class()] = append(got[a.Class()], a.String())
	}
	for class, names := range got {
		if strings.Join(names, ", ") != want[class] {
			t.Errorf("class %d: %s\nwant: %s", class, strings.Join(names, ", "), want[class])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d classes are used, want %d", len(got), len(want))
	}
}

func FuzzDecodePrincipal(f *testing.F) {
	cert := Certificate{Issuer: "aa", Serial: "01"}
	for _, p := range []Principal{
		{}, NewAnonymous(), NewSystem("expiry"), NewMember("m1", cert),
		NewHolder("alice", cert, RoleClient, true).WithUser("alice", 300, true),
	} {
		f.Add(p.AppendBinary(nil))
	}
	f.Add([]byte{1, 0, 0, 0x80, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, rest, err := DecodePrincipal(data)
		if err != nil {
			return
		}
		if again := p.AppendBinary(nil); !bytes.Equal(again, data[:len(data)-len(rest)]) {
			t.Fatalf("%x is another form of %x", data[:len(data)-len(rest)], again)
		}
	})
}

func TestPrincipalString(t *testing.T) {
	cert := Certificate{Issuer: "aa", Serial: "01"}
	p := NewHolder("node", cert, RoleClient, false).WithUser("bob", 2, true)
	if got := fmt.Sprint(p); got != "node (user bob)" {
		t.Errorf("%s", got)
	}
}
