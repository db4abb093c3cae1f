package catalog

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// SessionsAfter returns at most limit sessions by id, from the first whose id is above after: what a new leader's clock
// reads page by page.
func SessionsAfter(r storage.Reader, cat *mvcc.Space, after string, limit int) ([]Session, error) {
	return nil, errSoon
}
