package agent

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzGossipKey: a key is 16, 24 or 32 bytes as base64, and no error shows any of it.
func FuzzGossipKey(f *testing.F) {
	f.Add("X4SYOinf2pTAcAHRhpj7dA==")
	f.Add(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)))
	f.Add("X4SYOinf2pTAcAHRhpj7dA=")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseGossipKey(text)
		if err == nil {
			if n := len(key); n != 16 && n != 24 && n != 32 {
				t.Fatalf("a key of %d bytes", n)
			}
			return
		}
		if len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Fatalf("the error shows the key: %v", err)
		}
	})
}

// kept is a store that has one document under every name.
type kept []byte

// Load implements Store.
func (k kept) Load(string) ([]byte, bool, error) { return k, true, nil }

// Save implements Store.
func (kept) Save(string, []byte) error { return nil }

// Delete implements Store.
func (kept) Delete(string) error { return nil }

// FuzzKept: what an agent has written down it reads back, and what is no such document it says.
func FuzzKept(f *testing.F) {
	for _, s := range []string{`{"Services":["a"],"Checks":["b"]}`, `{"Name":"x","Check":{"TTL":"1s"}}`, `{"Services":null}`, `[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			a := &Agent{o: Options{Store: kept(data)}}
			var i, again index
			if ok, err := a.restored("index", &i); err != nil {
				if ok {
					t.Fatal("both restored and an error")
				}
				return
			}
			out, err := json.Marshal(i)
			if err != nil {
				t.Fatal(err)
			}
			a.o.Store = kept(out)
			if _, err := a.restored("index", &again); err != nil || !reflect.DeepEqual(i, again) {
				t.Errorf("%+v became %+v (%v)", i, again, err)
			}
		})
	})
}
