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
// The bytes sit behind a pointer, so that also fmt's walk through an unexported field of another struct prints an
// address. The zero Secret is empty.
type Secret struct{ hidden *secretBytes }

type secretBytes struct{ b []byte }

// NewSecret returns a Secret that holds a copy of b.
func NewSecret(b []byte) Secret { return Secret{&secretBytes{bytes.Clone(b)}} }

// Reveal returns the bytes themselves, not a copy. The caller neither changes nor prints them.
func (s Secret) Reveal() []byte {
	if s.hidden == nil {
		return nil
	}
	return s.hidden.b
}

// Destroy overwrites the bytes, for every copy of s.
func (s Secret) Destroy() {
	if s.hidden != nil {
		clear(s.hidden.b)
		s.hidden.b = nil
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
