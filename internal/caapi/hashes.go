package caapi

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"

	"holdfast.dev/holdfast/internal/mvcc"
)

// HashesAnswer are a member's checksums over everything it keeps, for comparison with another member's.
type HashesAnswer struct {
	Member  string      `json:"member"`
	Applied uint64      `json:"applied"` // index of the log that All was taken at; 0: All compares with nothing
	All     string      `json:"all"`     // over users, roles, members, alarms and every space
	Spaces  []SpaceHash `json:"spaces"`
}

// SpaceHash is the checksum of what can be read of a space at HashRevision.
type SpaceHash struct {
	Space           string `json:"space"`
	Revision        int64  `json:"revision"`
	CompactRevision int64  `json:"compactRevision"`
	HashRevision    int64  `json:"hashRevision"`
	Hash            string `json:"hash"`
}

// spaceNames are what spaces are called on the wire.
func spaceNames() map[mvcc.SpaceID]string {
	return map[mvcc.SpaceID]string{
		mvcc.SpaceEtcd: "etcd", mvcc.SpaceConsulKV: "consul-kv", mvcc.SpaceCatalog: "catalog", mvcc.SpaceCA: "ca", mvcc.SpaceSystem: "system",
	}
}

// serveHashes answers with the checksums of this member, at the revisions that the query names: ?catalog=7.
func (a *Authority) serveHashes(w http.ResponseWriter, r *http.Request) {
	names := spaceNames()
	at := map[mvcc.SpaceID]int64{}
	query := r.URL.Query()
	for id, name := range names {
		text := query.Get(name)
		if text == "" {
			continue
		}
		rev, err := strconv.ParseInt(text, 10, 64)
		if err != nil || rev < 1 {
			writeFault(w, ErrBadRequest.WithHint("%s=%q is no revision", name, text))
			return
		}
		at[id] = rev
		query.Del(name)
	}
	for name := range query {
		writeFault(w, ErrBadRequest.WithHint("there is no space %q", name))
		return
	}
	h, err := a.o.Core.Hashes(r.Context(), a.o.Principal(r.Context()), at)
	answer := HashesAnswer{Member: fmt.Sprintf("%x", h.Header.Member), Applied: h.Applied, All: hex.EncodeToString(h.All[:])}
	for i, s := range h.Spaces {
		answer.Spaces = append(answer.Spaces, SpaceHash{
			Space: names[mvcc.Spaces()[i]], Revision: s.Header.Revision, CompactRevision: s.CompactRevision, HashRevision: s.HashRevision, Hash: fmt.Sprintf("%08x", s.Hash),
		})
	}
	answerJSON(w, answer, err)
}
