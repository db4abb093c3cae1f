package storage

import "bytes"

// Span is a half-open range of keys [Start, End). A nil End means no upper bound; an empty, non-nil End makes the span
// empty. A single key k is [k, k+"\x00").
type Span struct {
	Start, End []byte
}

// KeySpan returns the span that holds exactly key.
func KeySpan(key []byte) Span {
	end := make([]byte, len(key)+1)
	copy(end, key)
	return Span{Start: end[:len(key):len(key)], End: end}
}

// SingleKey reports whether s holds exactly one key, its Start.
func (s Span) SingleKey() bool {
	return len(s.End) == len(s.Start)+1 && s.End[len(s.Start)] == 0 && bytes.HasPrefix(s.End, s.Start)
}

// Empty reports whether no key is in s.
func (s Span) Empty() bool { return s.End != nil && bytes.Compare(s.Start, s.End) >= 0 }

// Contains reports whether key is in s.
func (s Span) Contains(key []byte) bool {
	return bytes.Compare(key, s.Start) >= 0 && (s.End == nil || bytes.Compare(key, s.End) < 0)
}

// Overlaps reports whether some key is in both spans.
func (s Span) Overlaps(o Span) bool {
	return !s.Empty() && !o.Empty() &&
		(o.End == nil || bytes.Compare(s.Start, o.End) < 0) && (s.End == nil || bytes.Compare(o.Start, s.End) < 0)
}
