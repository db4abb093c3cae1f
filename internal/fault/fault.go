// Package fault defines the errors that may cross core: a small, closed set of kinds and the reasons under them.
//
// Job: give every layer below the edge one error type, so that each adapter needs one exhaustive table from reason
// or kind to its own codes. Non-job: formatting for people, stack traces, retry rules.
//
// Invariants: a Reason is a stable, lower-case sentence fragment; it never contains bytes that a user wrote. Two faults
// are the same error when their reasons are equal, also after a trip over the peer protocol. The zero Kind is Internal:
// an error whose kind nobody set is not shown to users.
package fault

import (
	"errors"
	"fmt"
)

// Kind is the class of a fault. Adapters fall back to it when they have no entry for the reason.
type Kind uint8

// The kinds. Their numbers travel between members, so the order never changes.
const (
	Internal        Kind = iota // a bug or a broken disk; the text is hidden from users
	Invalid                     // the request can never succeed as written
	NotFound                    // the named thing does not exist
	Conflict                    // the request clashes with the state as it is now
	OutOfRange                  // a revision or number outside what is kept
	Denied                      // the principal is known and may not
	Unauthenticated             // the principal is not known, or its token is not good any more
	Exhausted                   // a quota or a queue is full
	Unavailable                 // no leader, stopping, or timed out: the outcome may be unknown
	Corrupt                     // stored bytes do not verify
	Unsupported                 // this build or this member does not do that
	numKinds
)

var kindNames = [numKinds]string{
	"internal", "invalid", "not found", "conflict", "out of range", "denied", "unauthenticated", "exhausted",
	"unavailable", "corrupt", "unsupported",
}

// String returns the kind's name.
func (k Kind) String() string {
	if k >= numKinds {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// Kinds returns every kind, for the exhaustiveness tests of the adapters.
func Kinds() []Kind {
	kinds := make([]Kind, numKinds)
	for i := range kinds {
		kinds[i] = Kind(i)
	}
	return kinds
}

// Error is a fault. Compare with errors.Is against the sentinels that packages declare with New.
type Error struct {
	Kind   Kind
	Reason string // stable text, without user bytes
	Hint   string // what to do about it; may be empty
}

// New declares a fault.
func New(kind Kind, reason string) *Error { return &Error{Kind: kind, Reason: reason} }

// WithHint returns a copy of e that tells the reader what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	return &Error{Kind: e.Kind, Reason: e.Reason, Hint: fmt.Sprintf(format, args...)}
}

// Error returns the reason.
func (e *Error) Error() string { return e.Reason }

// Is reports whether target is the same fault: same kind and same reason.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Reason == e.Reason
}

// From returns the fault in err's chain. An error without one is Internal with a fixed reason, so that its text
// cannot reach a user by accident; nil stays nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var f *Error
	if errors.As(err, &f) {
		return f
	}
	return &Error{Kind: Internal, Reason: "internal error"}
}
