package node

import (
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/policy"
)

// FuzzIdentity: what a member keeps of its certificates, and what a joining member is sent. What opens has a chain and a key for each side.
func FuzzIdentity(f *testing.F) {
	src := ca.Source{Now: time.Unix(2e9, 0), Rand: rand.Reader}
	seed, err := caapi.NewSeed(src, 7)
	if err != nil {
		f.Fatal(err)
	}
	whole := identFile{Root: seed.Root.Raw, Issuers: map[string][]byte{}}
	for _, i := range seed.Issuers {
		whole.Issuers[caapi.Roles()[i.Role]] = i.Certificate.Raw
		if i.Role != policy.RoleMember {
			continue
		}
		key, err := ca.EncodeKey(i.Signer)
		if err != nil {
			f.Fatal(err)
		}
		whole.Peer, whole.PeerKey, whole.Serve, whole.ServeKey = [][]byte{i.Certificate.Raw}, key, [][]byte{i.Certificate.Raw}, key
	}
	text, err := json.Marshal(whole)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"root":"AA=="}`))
	f.Add([]byte(`{"services":[{"name":"x"}],"checks":[{"ttl":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			var file identFile
			if json.Unmarshal(data, &file) == nil {
				if id, err := file.open(); err == nil && (id.root == nil || len(id.peer.Chain) == 0 || len(id.serve.Chain) == 0 || id.peer.Key == nil || len(id.issuers) != len(caapi.Roles())) {
					t.Errorf("half an identity is taken: %+v", id)
				}
				if chain, err := parseChain(file.Peer); err == nil && len(chain) != len(file.Peer) {
					t.Errorf("%d of %d certificates", len(chain), len(file.Peer))
				}
			}
			var lists struct{ Services, Checks []json.RawMessage }
			if json.Unmarshal(data, &lists) == nil {
				if s, c, err := definitions(lists.Services, lists.Checks); err == nil && (len(s) != len(lists.Services) || len(c) != len(lists.Checks)) {
					t.Errorf("%d services and %d checks of %s", len(s), len(c), data)
				}
			}
		})
	})
}
