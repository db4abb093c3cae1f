package catalog

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// Look answers q from what r holds: the engine, or a snapshot of it.
func Look(r storage.Reader, kv, cat *mvcc.Space, q Query) (Answer, error) {
	return Answer{}, errSoon
}

// Watched returns what an answer to q rests on: nothing but a change of these keys can change it.
func Watched(q Query) (mvcc.SpaceID, []storage.Span) {
	return 0, nil
}
