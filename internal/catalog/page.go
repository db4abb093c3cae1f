package catalog

import (
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// SessionsAfter returns at most limit sessions by id, from the first whose id is above after: what a new leader's clock
// reads page by page.
func SessionsAfter(r storage.Reader, cat *mvcc.Space, after string, limit int) ([]Session, error) {
	span := rows(tableSession)
	if after != "" {
		span.Start = append(rowKey(tableSession, after), 0)
	}
	page, err := cat.Read(r, mvcc.Query{Span: span, Limit: int64(limit), NoCount: true})
	if err != nil {
		return nil, err
	}
	sessions := make([]Session, len(page.KVs))
	for i := range page.KVs {
		if sessions[i], err = readSession(&page.KVs[i]); err != nil {
			return nil, err
		}
	}
	return sessions, nil
}
