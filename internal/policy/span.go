package policy

import (
	"bytes"
	"slices"
)

// Span is a half-open range of keys [Start, End); a nil End means no upper bound, an empty non-nil End makes it empty. It has the
// shape of storage.Span, so that one converts to the other for nothing.
type Span struct {
	Start, End []byte
}

// Empty reports whether no key is in s.
func (s Span) Empty() bool { return s.End != nil && bytes.Compare(s.Start, s.End) >= 0 }

// Equal reports whether s and o have the same bounds.
func (s Span) Equal(o Span) bool {
	return bytes.Equal(s.Start, o.Start) && bytes.Equal(s.End, o.End) && (s.End == nil) == (o.End == nil)
}

// PermissionSet is a set of keys, held as spans that are sorted, disjoint and not adjacent. The zero value holds no key. A set is
// immutable: it may be shared between goroutines.
type PermissionSet struct {
	spans []Span
}

// NewPermissionSet returns the union of spans. Empty spans add nothing. The bounds are not copied: the caller must leave
// them alone from now on.
func NewPermissionSet(spans ...Span) PermissionSet {
	sorted := make([]Span, 0, len(spans))
	for _, s := range spans {
		if !s.Empty() {
			sorted = append(sorted, s)
		}
	}
	slices.SortFunc(sorted, func(a, b Span) int { return bytes.Compare(a.Start, b.Start) })
	var merged []Span
	for _, s := range sorted {
		last := len(merged) - 1
		if last < 0 || merged[last].End != nil && bytes.Compare(merged[last].End, s.Start) < 0 {
			merged = append(merged, s)
			continue
		}
		if merged[last].End != nil && (s.End == nil || bytes.Compare(merged[last].End, s.End) < 0) {
			merged[last].End = s.End
		}
	}
	return PermissionSet{spans: merged}
}

// Contains reports whether every key of s is in the set. An empty span is never contained: a request over nothing proves no right.
func (p PermissionSet) Contains(s Span) bool {
	if s.Empty() {
		return false
	}
	in := p.at(s.Start)
	return in != nil && (in.End == nil || s.End != nil && bytes.Compare(s.End, in.End) <= 0)
}

// ContainsKey reports whether key is in the set.
func (p PermissionSet) ContainsKey(key []byte) bool {
	in := p.at(key)
	return in != nil && (in.End == nil || bytes.Compare(key, in.End) < 0)
}

// at returns the last span that starts at or before key, nil if there is none.
func (p PermissionSet) at(key []byte) *Span {
	low, high := 0, len(p.spans)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if bytes.Compare(p.spans[mid].Start, key) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return nil
	}
	return &p.spans[low-1]
}

// Spans returns the set's spans in order. The caller must not change them.
func (p PermissionSet) Spans() []Span { return p.spans }
