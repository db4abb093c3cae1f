package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[secret]"

// Secret holds bytes that must not be printed. Every way of formatting, logging or marshalling it yields a fixed word.
// The bytes sit in a closure: where fmt walks through an unexported field of another struct it cannot call methods, and
// follows even a pointer when the verb does not fit. The zero Secret is empty.
type Secret struct{ bytes func(destroy bool) []byte }

// NewSecret returns a Secret that holds a copy of b.
func NewSecret(b []byte) Secret {
	held := bytes.Clone(b)
	return Secret{func(destroy bool) []byte {
		if destroy {
			clear(held)
			held = nil
		}
		return held
	}}
}

// Reveal returns the bytes themselves, not a copy. The caller neither changes nor prints them.
func (s Secret) Reveal() []byte {
	if s.bytes == nil {
		return nil
	}
	return s.bytes(false)
}

// Destroy overwrites the bytes, for every copy of s. Nobody may be using them.
func (s Secret) Destroy() {
	if s.bytes != nil {
		s.bytes(true)
	}
}

// String returns a fixed word.
func (s Secret) String() string { return redacted }

// GoString returns a fixed word.
func (s Secret) GoString() string { return redacted }

// Format writes a fixed word whatever the verb is.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a fixed word.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a fixed word, for JSON, YAML and every other text encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns a fixed word.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// GobEncode fails: a binary encoding of a Secret would either leak it or lose it.
func (s Secret) GobEncode() ([]byte, error) { return nil, errors.New("a secret is not encoded") }
