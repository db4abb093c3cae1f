package agentapi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
)

// TestGolden: the bytes of docs/formats/agent-rpc.md. A change of one of them needs another number in the paths.
func TestGolden(t *testing.T) {
	lookup := core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryKeys, Name: "a/", Separator: "/"}, Serializable: true, MinIndex: 300, Wait: time.Second}
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"lookup", "01ac02" + "8094ebdc03" + hex.EncodeToString(catalog.AppendQuery(nil, lookup.Query)), appendLookup(nil, lookup)},
		{"found", "01" + "c0843d" + hex.EncodeToString(catalog.AppendAnswer(nil, &catalog.Answer{Index: 5})), appendFound(nil, &core.Found{Answer: catalog.Answer{Index: 5}, KnownLeader: true, LastContact: time.Millisecond})},
		{"servers", "01" + "0000000000000007" + "0161" + "03783a31" + "01" + "00", appendServers(nil, []core.Server{{ID: 7, Name: "a", Address: "x:1", Leader: true}})},
		{"join", "0161" + "0175" + "03783a31", appendJoin(nil, JoinRequest{Name: "a", NodeID: "u", Address: "x:1"})},
		{"joined", "0000000000000001" + "0000000000000002" + "00000003" + "01" + "0000000000000002" + "0161" + "03783a31" + "01",
			appendJoinAnswer(nil, &JoinAnswer{Cluster: 1, Member: 2, Level: 3, Members: []JoinMember{{ID: 2, Name: "a", Address: "x:1", Learner: true}}})},
		{"fault", "03" + "0161" + "0162", appendFault(nil, fault.New(fault.Conflict, "a").WithHint("b"))},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
	if got, err := decodeLookup(appendLookup(nil, lookup)); err != nil || got != lookup {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzDecode: whatever comes over the wire is refused, or is exactly what its own encoding gives again.
func FuzzDecode(f *testing.F) {
	f.Add(appendLookup(nil, core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryNode, Name: "n"}, MinIndex: 1, Wait: 1}))
	f.Add(appendFound(nil, &core.Found{Answer: catalog.Answer{Index: 1, Keys: []string{"a"}}}))
	f.Add(appendServers(nil, []core.Server{{ID: 1, Name: "a"}}))
	f.Add(appendJoin(nil, JoinRequest{Name: "a"}))
	f.Add(appendJoinAnswer(nil, &JoinAnswer{Members: []JoinMember{{ID: 1}}}))
	f.Add(appendFault(nil, ErrBusy))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := decodeLookup(b); err == nil {
			again, err := decodeLookup(appendLookup(nil, q))
			if err != nil || again != q || q.Wait < 0 || q.Wait > maxWait {
				t.Errorf("%x: %+v, again %+v, %v", b, q, again, err)
			}
		}
		if found, err := decodeFound(b); err == nil {
			if again, err := decodeFound(appendFound(nil, &found)); err != nil || !reflect.DeepEqual(again, found) {
				t.Errorf("%x: %+v, again %+v, %v", b, found, again, err)
			}
		}
		if s, err := decodeServers(b); err == nil {
			if again, err := decodeServers(appendServers(nil, s)); err != nil || !reflect.DeepEqual(again, s) || len(s) > maxMembers {
				t.Errorf("%x: %+v, %v", b, s, err)
			}
		}
		if j, err := decodeJoin(b); err == nil {
			if again, err := decodeJoin(appendJoin(nil, j)); err != nil || again != j {
				t.Errorf("%x: %+v, %v", b, j, err)
			}
		}
		if a, err := decodeJoinAnswer(b); err == nil {
			if again, err := decodeJoinAnswer(appendJoinAnswer(nil, &a)); err != nil || !reflect.DeepEqual(again, a) {
				t.Errorf("%x: %+v, %v", b, a, err)
			}
		}
		if e, err := decodeFault(b); err == nil {
			if again, err := decodeFault(appendFault(nil, e)); err != nil || *again != *e || e.Reason == "" {
				t.Errorf("%x: %+v, %v", b, e, err)
			}
		} else if !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%x: %v", b, err)
		}
	})
}

// TestCountsAreNotBelieved: memory is taken for what came, not for what was announced.
func TestCountsAreNotBelieved(t *testing.T) {
	for _, b := range [][]byte{{0xff, 0x07}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, append([]byte{0x81, 0x08}, bytes.Repeat([]byte{0}, 12*1025)...)} {
		r := reader{b: b}
		if n := r.count(12); n != 0 || !r.bad {
			t.Errorf("%x: %d", b[:2], n)
		}
	}
}
