package storage

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// comparerName is written into the directory; a change of the key order or of the rule for prefixes needs a new name.
const comparerName = "holdfast.1"

// newComparer returns the order of bytes.Compare with prefixes cut by split.
func newComparer(split func([]byte) int) *pebble.Comparer {
	if split == nil {
		split = func(key []byte) int { return len(key) }
	}
	byteOrder := pebble.DefaultComparer
	return &pebble.Comparer{
		Name:                 comparerName,
		Split:                split,
		Compare:              bytes.Compare,
		Equal:                bytes.Equal,
		ComparePointSuffixes: bytes.Compare,
		CompareRangeSuffixes: bytes.Compare,
		AbbreviatedKey:       byteOrder.AbbreviatedKey,
		FormatKey:            formatKey,
		Separator: func(dst, a, b []byte) []byte {
			pa, pb := a[:split(a)], b[:split(b)]
			if bytes.Equal(pa, pb) {
				return append(dst, a...)
			}
			n := len(dst)
			dst = byteOrder.Separator(dst, pa, pb)
			if bytes.Equal(dst[n:], pa) { // not shortened: below every key that continues it
				return append(dst[:n], a...)
			}
			return dst
		},
		Successor: func(dst, a []byte) []byte {
			pa := a[:split(a)]
			n := len(dst)
			dst = byteOrder.Successor(dst, pa)
			if bytes.Equal(dst[n:], pa) {
				return append(dst[:n], a...)
			}
			return dst
		},
		ImmediateSuccessor: func(dst, a []byte) []byte {
			n := len(dst)
			dst = append(append(dst, a...), 0)
			if split(dst[n:]) == len(a)+1 {
				return dst
			}
			dst = dst[:len(dst)-1] // a may carry suffixes: the next prefix is the one with a raised last byte
			dst[len(dst)-1]++
			return dst
		},
	}
}

// formatKey hides keys in pebble's log lines: they hold what users wrote.
func formatKey(key []byte) fmt.Formatter { return hiddenKey(len(key)) }

// hiddenKey prints as the length of the key it stands for.
type hiddenKey int

// Format implements fmt.Formatter.
func (k hiddenKey) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "<key of %d bytes>", int(k)) }
