package catalog

import (
	"errors"

	"holdfast.dev/holdfast/internal/mvcc"
)

var errSoon = errors.New("catalog: under construction")

// Batch is what is done at once, or not at all.
type Batch struct {
	Ops  []Op
	Time int64 // of the entry, unix milliseconds: what lock-delays are judged by
}

// Apply decides a batch over the writers of SpaceConsulKV and SpaceCatalog. system is whether the System principal asks
// it. An error is the storage's; everything else is an Outcome.
func Apply(kv, cat *mvcc.Writer, b Batch, system bool) (Outcome, error) {
	return Outcome{}, errSoon
}
